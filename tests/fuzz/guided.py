"""One coverage-guided search, in a process of its own: `python -m tests.fuzz.guided TARGET WORK SECONDS`.

Atheris (libFuzzer) instruments the bytecode of vibemq, mutates the corpus, and keeps what reaches new code in
WORK/TARGET. A failing input is left in WORK/crashes. It needs the extra `fuzz` of pyproject.toml.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

INPUT_BYTES_MAX = 4096


def main(name: str, work: Path, seconds: int) -> None:
    """Search until the time is over or an input fails; then libFuzzer ends the process, with 77 for a failure."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["vibemq"]):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[name]
    found, crashes = work / name, work / "crashes"
    found.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(exist_ok=True)
    for number, seed in enumerate(target.corpus()):
        (found / f"seed-{number:03d}").write_bytes(seed)
    words = work / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in sorted(set(target.words))))
    atheris.Setup(
        [
            sys.argv[0],
            str(found),
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_BYTES_MAX}",
            *([f"-dict={words}"] if target.words else []),
            f"-artifact_prefix={crashes}/{name}-",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
            "-verbosity=1",
        ],
        target.run,
    )
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
