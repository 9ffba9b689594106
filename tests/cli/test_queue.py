import os
import pty
import subprocess

from tests.cli.processes import PATIENCE_SECONDS, VIBEMQ, ServedBroker, environment


def test_declare_shows_what_was_declared(broker: ServedBroker) -> None:
    options = ["--max-attempts", "3", "--lease", "2m", "--retry-delay", "500ms", "--max-length", "7"]
    found = broker.lines("queue", "declare", "declared", *options, "--dead-letter-queue", "graves")[0]
    assert found["name"] == "declared"
    assert found["settings"] == {
        "max_attempts": 3,
        "lease_ms": 120_000,
        "retry_delay_ms": 500,
        "dead_letter_queue": "graves",
        "max_length": 7,
        "max_bytes": 1 << 40,
    }
    assert broker.lines("queue", "show", "declared") == [found]


def test_declaring_again_with_other_settings_fails(broker: ServedBroker) -> None:
    assert broker.run("queue", "declare", "twice", "--max-attempts", "3").returncode == 0
    assert broker.run("queue", "declare", "twice", "--max-attempts", "3").returncode == 0
    done = broker.run("queue", "declare", "twice", "--max-attempts", "4")
    assert done.returncode == 1
    assert b"max_attempts" in done.stderr


def test_a_setting_that_makes_no_sense_is_refused(broker: ServedBroker) -> None:
    assert broker.run("queue", "declare", "odd", "--lease", "soon").returncode == 2
    assert broker.run("queue", "declare", "odd", "--lease", "0").returncode in {1, 2}
    assert broker.run("queue", "declare", "odd", "--mode", "sideways").returncode == 1
    assert broker.run("queue", "declare", "odd", "--mode", "round-robin").returncode == 0


def test_list_tells_of_every_queue_by_name(broker: ServedBroker) -> None:
    broker.run("publish", "z-listed", "a", "b")
    broker.run("queue", "declare", "a-listed")
    found = broker.lines("queue", "list")
    assert [queue["name"] for queue in found] == sorted(queue["name"] for queue in found)
    assert {queue["name"]: queue["ready"] for queue in found}["z-listed"] == 2
    table = broker.run("queue", "list").stdout.decode().splitlines()
    assert table[0].split() == ["name", "ready", "unacked", "waiting", "bytes", "consumers"]
    assert ["z-listed", "2", "0", "0", "2", "0"] in [line.split() for line in table]


def test_a_queue_that_is_not_there_is_an_error_for_show_purge_and_delete(broker: ServedBroker) -> None:
    for verb in ("show", "purge", "delete"):
        done = broker.run("queue", verb, "absent")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"absent" in done.stderr
        assert b"Traceback" not in done.stderr


def test_purge_throws_away_what_is_ready(broker: ServedBroker) -> None:
    broker.run("publish", "purged", "a", "b", "c")
    assert broker.lines("queue", "purge", "purged") == [{"queue": "purged", "count": 3}]
    assert broker.lines("queue", "show", "purged")[0]["messages"] == 0


def test_delete_removes_the_queue(broker: ServedBroker) -> None:
    broker.run("publish", "deleted", "a")
    done = broker.run("queue", "delete", "deleted")
    assert (done.returncode, done.stdout) == (0, b"deleted deleted: 1 messages\n")
    assert broker.run("queue", "show", "deleted").returncode == 1


def answered(broker: ServedBroker, answer: bytes, *arguments: str) -> int:
    """Run a command at a terminal, and answer what it asks; its exit code."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*VIBEMQ, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(broker.url)
        ) as process:
            os.write(ours, answer)
            return process.wait(PATIENCE_SECONDS)
    finally:
        os.close(theirs)
        os.close(ours)


def test_at_a_terminal_purge_and_delete_ask_first(broker: ServedBroker) -> None:
    broker.run("publish", "asked", "a")
    for verb in ("purge", "delete"):
        assert answered(broker, b"n\n", "queue", verb, "asked") == 1
        assert broker.lines("queue", "show", "asked")[0]["ready"] == 1
    assert answered(broker, b"y\n", "queue", "purge", "asked") == 0
    assert answered(broker, b"", "queue", "delete", "asked", "--yes") == 0
    assert broker.run("queue", "show", "asked").returncode == 1


def test_at_a_terminal_tables_have_frames(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "framed[bold]")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*VIBEMQ, "queue", "show", "framed[bold]"], stdout=theirs, env=environment(broker.url)
    ) as one:
        assert one.wait(PATIENCE_SECONDS) == 0
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "framed[bold]" in text
    assert "max_attempts" in text
    assert "│" in text
