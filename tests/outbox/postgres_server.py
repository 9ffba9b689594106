"""A PostgreSQL server of the tests' own, where the machine has the programs for one: on a socket, not the network."""

import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

PROGRAMS: Final = [*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), *os.environ["PATH"].split(":")]  # noqa: PTH207


def program(name: str) -> str:
    """Where a program of PostgreSQL is; without it the test is skipped."""
    found = shutil.which(name, path=":".join(PROGRAMS))
    if found is None:
        pytest.skip(f"no PostgreSQL on this machine: {name} is missing (apt-get install postgresql)")
    return found


@contextmanager
def postgres() -> Iterator[str]:
    """A server that runs inside the block; the DSN of its one database."""
    initdb, control = program("initdb"), program("pg_ctl")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to be root
    folder = Path(tempfile.mkdtemp(prefix="vibemq-postgres-"))  # short: the path of a socket has at most 107 bytes
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"

        def run(*command: str) -> None:
            done = subprocess.run(
                command, check=False, user=user, capture_output=True, text=True, cwd="/", env={"LC_ALL": "C.UTF-8"}
            )
            assert done.returncode == 0, done.stdout + done.stderr

        run(initdb, "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "-D", str(data))
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c max_connections=20"
        with (folder / "log").open("wb"):
            pass
        if user is not None:
            shutil.chown(folder / "log", user)
        run(control, "start", "--wait", "-D", str(data), "-l", str(folder / "log"), "-o", options)
        try:
            yield f"host={folder} user=postgres dbname=postgres"
        finally:
            run(control, "stop", "--mode=immediate", "--wait", "-D", str(data))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
