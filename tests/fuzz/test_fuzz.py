"""50,000 inputs that nobody meant, the same at each run, and planted bugs that they find (promise G17)."""

import hashlib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.counting import counted
from tests.fuzz.target import Target, inputs
from tests.fuzz.targets import TARGETS
from vibemq import durations
from vibemq import events as e
from vibemq.batch import Batch
from vibemq.log import frame
from vibemq.log.frame import Record
from vibemq.projections.group import Lane
from vibemq.protocol import binary, json_lines
from vibemq.protocol.frames import FrameReader
from vibemq.server import settings, storage

INPUTS: Final = {
    "binary": 7_000,
    "json": 7_000,
    "client": 6_000,
    "batch": 6_000,
    "requests": 6_000,
    "events": 5_000,
    "recovery": 6_000,
    "checkpoint": 4_000,
    "config": 1_500,
    "address": 1_500,
}


def failure(target: Target, count: int, seed: int = 0) -> tuple[bytes, BaseException] | None:
    """The first input that fails, and how."""
    for data in inputs(target, count, seed=seed):
        try:
            target.run(data)
        except Exception as problem:  # noqa: BLE001 - whatever a target raises is what is looked for
            return data, problem
    return None


def test_every_target_has_its_share_of_50_000_inputs() -> None:
    assert INPUTS.keys() == TARGETS.keys()
    assert sum(INPUTS.values()) == 50_000


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks(name: str, tmp_path: Path) -> None:
    with counted("G17", INPUTS[name], of=sum(INPUTS.values())) as done:
        while done.left:
            found = failure(TARGETS[name], INPUTS[name], seed=done.first + done.done // INPUTS[name])
            report(name, found, tmp_path)
            done.add(INPUTS[name])


def report(name: str, found: tuple[bytes, BaseException] | None, tmp_path: Path) -> None:
    """Keep an input that failed, and say how to see it again."""
    if found is not None:
        data, problem = found
        path = tmp_path / f"{name}-{hashlib.sha1(data).hexdigest()}"  # noqa: S324 - a name, no secret
        path.write_bytes(data)
        pytest.fail(f"{problem!r}; see it again with: python -m tests.fuzz {name} --run {path}")


def test_the_same_seed_gives_the_same_inputs() -> None:
    target = TARGETS["json"]
    assert list(inputs(target, 500)) == list(inputs(target, 500))
    assert list(inputs(target, 500)) != list(inputs(target, 500, seed=1))


def forgets_what_straddles(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FrameReader, "_partial_is_whole", lambda _self: False)


def takes_any_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(json_lines, "BAD_INPUT", (UnicodeDecodeError,))


def believes_lengths(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(binary, "DELIVER_BYTES", binary.DELIVER_BYTES - 8)


def cuts_one_early(patch: pytest.MonkeyPatch) -> None:
    def bodies(batch: Batch) -> list[bytes]:
        return [b""] * batch.count

    patch.setattr(Batch, "bodies", bodies)


def counts_no_failures(patch: pytest.MonkeyPatch) -> None:
    """What decides sees other attempts than what replays."""
    apply = Lane.count_failure
    calls: list[int] = []

    def sometimes(lane: Lane, start: int, end: int) -> None:
        calls.append(start)
        if len(calls) % 2:
            apply(lane, start, end)

    patch.setattr(Lane, "count_failure", sometimes)


def lets_errors_through(patch: pytest.MonkeyPatch) -> None:
    def decode(tag: int, version: int, facts: bytes) -> e.Event:
        assert version
        return e._decoders[e.Tag(tag)].decode(facts)

    patch.setattr(e, "decode", decode)


def checks_no_payload(patch: pytest.MonkeyPatch) -> None:
    def attach(record: Record, block: memoryview, index: int, _log_id: int) -> None:
        facts_at = index + frame.HEADER_BYTES
        record.facts = block[facts_at : facts_at + record.facts_bytes]
        record.payload = block[facts_at + record.facts_bytes : index + record.stored_bytes]

    patch.setattr(frame, "attach_body", attach)


def handles_fewer_errors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storage, "_NONSENSE", (AssertionError, ValueError))


def takes_any_kind(patch: pytest.MonkeyPatch) -> None:
    def unchecked(_path: Path, _section: str, table: Any, _kind: type) -> dict[str, Any]:  # noqa: ANN401
        return dict(table)

    patch.setattr(settings, "_checked", unchecked)


def repeats_what_it_read(patch: pytest.MonkeyPatch) -> None:
    def milliseconds(text: str, _what: str) -> int:
        return round(float(text.strip("smhd ")))

    patch.setattr(durations, "milliseconds", milliseconds)


PLANTED: Final = {
    "binary": forgets_what_straddles,
    "json": takes_any_number,
    "client": believes_lengths,
    "batch": cuts_one_early,
    "requests": counts_no_failures,
    "events": lets_errors_through,
    "recovery": checks_no_payload,
    "checkpoint": handles_fewer_errors,
    "config": takes_any_kind,
    "address": repeats_what_it_read,
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[name](monkeypatch)
    assert failure(TARGETS[name], INPUTS[name]) is not None
