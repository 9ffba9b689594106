"""System calls of a real broker that fail from outside, by strace: errors as the kernel would give them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

CALLS = {"pwrite": "pwritev,pwritev2", "fdatasync": "fdatasync", "fsync": "fsync", "rename": "rename",
         "truncate": "ftruncate", "allocate": "fallocate", "unlink": "unlink", "index": "pwrite64"}  # fmt: skip
"""What Disk calls things, and the system calls behind them. Of pwrite64 all but one, for LOCK, are LMDB's.

A broker calls write() for nothing but its log messages and to wake up threads.
"""


@cache
def why_not() -> str:
    """Why strace cannot be used here; empty when it can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    tried = subprocess.run(
        [strace, "-f", "-qq", "--seccomp-bpf", "-e", "trace=none", "true"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else f"strace cannot trace here: {tried.stderr.decode().strip()}"


needs_strace = pytest.mark.skipif(bool(why_not()), reason=why_not() or "strace works")


def program(trace: Path, operation: str, error: str, when: str) -> list[str]:
    """The `vibemq` command, in which calls of an operation fail: call `when` of a thread, or from it on with `+`."""
    calls = CALLS[operation]
    inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={when}"]
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-y", "-o", str(trace), *inject]
    return [*strace, sys.executable, "-m", "vibemq.cli.main"]


def failed_calls(trace: Path) -> list[str]:
    """The calls that were made to fail, each as its name and what it was about."""
    found = re.findall(r"^\d+ +(\w+)\(([^\n]*)\(INJECTED\)", trace.read_text(), re.MULTILINE)
    return [f"{name} {about}" for name, about in found]


@contextmanager
def ended_by_lock(data: Path) -> Iterator[None]:
    """Kill the process in LOCK in the end: the end of strace alone does not end what it traces."""
    try:
        yield
    finally:
        kill_by_lock(data)


def kill_by_lock(data: Path) -> None:
    """kill -9 of the broker that runs on this folder, if there is one."""
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = int((data / "LOCK").read_text())
        if b"vibemq" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
