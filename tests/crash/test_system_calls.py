"""G7 and G8 on a real broker: the kernel refuses a write, a sync, a name, or room."""

import time
from pathlib import Path
from random import Random

import pytest

import vibemq
from tests.checker import Verdict
from tests.counting import counted
from tests.crash.laboratory import PATIENCE_S, QUEUE, SETTINGS, Laboratory, laboratory
from tests.crash.tracing import ended_by_lock, failed_calls, kill_by_lock, needs_strace, program
from tests.running import RunningBroker
from vibemq.errors import DiskFull

pytestmark = needs_strace

FAULTS = [
    # the operation, the error, and among which calls of a thread the failing one is; the first ones are the start's
    ("pwrite", "EIO", range(5, 60)),
    ("fdatasync", "EIO", range(10, 60)),
    ("fsync", "EIO", range(9, 13)),
    ("rename", "EIO", range(3, 8)),
    ("truncate", "EIO", range(3, 8)),
    ("allocate", "EIO", range(3, 8)),
    ("pwrite", "ENOSPC", range(5, 60)),
]


@pytest.mark.parametrize(("operation", "error", "calls"), FAULTS, ids=lambda value: str(value).replace("range", ""))
def test_a_failed_call_ends_the_broker_and_nothing_confirmed_is_lost(
    operation: str, error: str, calls: range, tmp_path: Path
) -> None:
    with counted("G7_CALLS", 1, of=len(FAULTS)) as rounds:
        for seed in rounds:
            verdict = run_until_a_call_fails(tmp_path / str(seed), seed, operation, error, calls)
            assert verdict.faults() == [], str(verdict)


def run_until_a_call_fails(folder: Path, seed: int, operation: str, error: str, calls: range) -> Verdict:
    """Load a broker until one call of it fails, once; start it again on a healthy machine, and judge."""
    when = Random(seed).choice(calls)
    trace = folder / "trace"
    with (
        laboratory(folder, seed, program=program(trace, operation, error, str(when))) as lab,
        ended_by_lock(folder / "data"),
    ):
        lab.start(producers=2)
        await_the_end(lab, trace)
        lab.broker.program = RunningBroker(folder / "data").program
        lab.broker.start()
        lab.await_progress()
        return lab.finish()


def await_the_end(lab: Laboratory, trace: Path) -> None:
    """The broker ends by itself, with a message and without a traceback.

    strace counts for each thread: the call may first have failed for the index, which costs no more than a checkpoint.
    """
    process = lab.broker.process
    assert process is not None
    code = process.wait(PATIENCE_S)
    (failed, *_) = failed_calls(trace)
    said = lab.broker.log.read_text()
    assert code == 1, f"{failed}: exit code {code}\n{said[-1000:]}"
    assert "Traceback" not in said, said[-3000:]
    assert "the broker must end" in said.splitlines()[-1], said[-1000:]


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_an_index_that_cannot_be_written_costs_checkpoints_and_nothing_else(error: str, tmp_path: Path) -> None:
    with counted("G7_INDEX", 1, of=2) as rounds:
        for seed in rounds:
            verdict = run_while_the_index_fails(tmp_path / str(seed), seed, error)
            assert verdict.faults() == [], str(verdict)


def run_while_the_index_fails(folder: Path, seed: int, error: str) -> Verdict:
    """Load a broker whose index cannot be written from some call on; kill it, start it on a healthy machine, judge."""
    trace, when = folder / "trace", Random(seed).randrange(6, 30)  # the first five of a thread may be the start's
    with (
        laboratory(folder, seed, program=program(trace, "index", error, f"{when}+")) as lab,
        ended_by_lock(folder / "data"),
    ):
        lab.start(producers=2)
        deadline = time.monotonic() + PATIENCE_S
        while not failed_calls(trace):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lab.await_progress()
        kill_by_lock(folder / "data")
        assert lab.broker.process is not None
        lab.broker.process.wait(PATIENCE_S)
        lab.broker.program = RunningBroker(folder / "data").program
        lab.broker.start()
        lab.await_progress()
        return lab.finish()


def test_a_start_that_fails_says_why_and_spoils_nothing(tmp_path: Path) -> None:
    with counted("G7_STARTS", 8) as starts:
        while starts.left:
            folder = tmp_path / str(starts.done)
            folder.mkdir()
            starts.add(fail_starts(folder))


def fail_starts(folder: Path) -> int:
    """Start a broker on a folder where calls fail, when it is new and when it is not; how often that was."""
    broker = RunningBroker(folder / "data")
    healthy, trace = broker.program, folder / "trace"
    making, opening = ("pwrite", "rename", "truncate"), ("unlink", "truncate", "allocate", "fdatasync", "fsync")
    for operation in making:
        refuse_start(broker, trace, operation)
    broker.program = healthy
    broker.start()
    with vibemq.connect_sync(broker.url) as client:
        client.publish_many(QUEUE, [b"a", b"b"])
    broker.kill()
    (broker.data / "log" / "next-9.tmp").touch()
    for operation in opening:
        refuse_start(broker, trace, operation)
    broker.program = healthy
    broker.start()
    with vibemq.connect_sync(broker.url) as client:
        assert [message.body for message in client.pull(QUEUE, max_messages=10, wait=1.0)] == [b"a", b"b"]
    broker.close()
    return len(making) + len(opening)


def refuse_start(broker: RunningBroker, trace: Path, operation: str) -> None:
    """Start it on a machine where every call of an operation fails."""
    broker.program = program(trace, operation, "EIO", "1+")
    with ended_by_lock(broker.data), pytest.raises(AssertionError, match="the broker ended with 1") as caught:
        broker.start()
    assert failed_calls(trace)
    assert "Traceback" not in str(caught.value)
    assert "Input/output error" in str(caught.value)


def test_without_room_publishes_are_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    """The kernel gives no more room from some call on: consuming and acking use what was reserved before."""
    with counted("G8_CALLS", 1) as rounds:
        for seed in rounds:
            fill_and_drain(tmp_path / str(seed), 3 + seed % 5)


def fill_and_drain(folder: Path, last: int) -> None:
    """Publish to a broker that gets no room from its call number `last` on."""
    folder.mkdir()
    (folder / "vibemq.toml").write_text(SETTINGS.replace("reserve_bytes = 65536", "reserve_bytes = 4194304"))
    broker = RunningBroker(
        folder / "data",
        ["--config", str(folder / "vibemq.toml")],
        program=program(folder / "trace", "allocate", "ENOSPC", f"{last}+"),
    )
    with ended_by_lock(folder / "data"):
        broker.start()
        with vibemq.connect_sync(broker.url) as client:
            confirmed = []
            with pytest.raises(DiskFull, match="consuming and acking go on"):  # noqa: PT012 - some publish, which is not known
                for number in range(10_000):
                    client.publish_many(QUEUE, [b"%d " % number + bytes(1000)] * 5)
                    confirmed.append(number)
            assert confirmed
            with pytest.raises(DiskFull):
                client.publish(QUEUE, b"again")
            taken = client.pull(QUEUE, max_messages=100_000, wait=5.0)
            client.ack_all(taken)
            assert [int(message.body.split()[0]) for message in taken[::5]] == confirmed
            assert client.show_queue(QUEUE)["messages"] == 0
        assert len(failed_calls(folder / "trace")) > 0
    broker.close()
