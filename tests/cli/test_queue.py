import json
import shlex
from typing import Any, get_args

import click
import msgspec
import pytest

from tests.cli.processes import ServedBroker
from tests.cli.terminal import answered, drawn
from vibemq.cli import queue as queue_commands
from vibemq.cli.queue_settings import SETTINGS
from vibemq.client import QueueSettings
from vibemq.declaration import QueueSettings as BrokerSettings
from vibemq.protocol.fields import OnDifference

PLAIN: dict[str, Any] = msgspec.to_builtins(msgspec.structs.asdict(BrokerSettings()))


def shown(broker: ServedBroker, name: str) -> dict[str, Any]:
    return broker.lines("queue", "show", name)[0]


# --- settings


def test_there_is_an_option_for_every_setting() -> None:
    assert {one.name for one in SETTINGS} == set(QueueSettings.__annotations__)
    assert len(SETTINGS) == len(PLAIN)
    for verb in ("declare", "change"):
        command = queue_commands.command.commands[verb]
        assert {one.name for one in SETTINGS} <= {one.name for one in command.params if isinstance(one, click.Option)}


def test_every_setting_can_be_declared(broker: ServedBroker) -> None:
    options = shlex.split("""
        --max-attempts 3 --lease 2m --retry-delay 500ms --retry-backoff exponential --retry-delay-max 1h
        --retry-jitter 20 --ttl 7d --max-length 7 --max-bytes 1000 --overflow drop-oldest --dead-letter-queue graves
        --single-active --publish-rate 1000 --deliver-rate 2000 --delete-grace 90
        --dedup-window 1h --expires 30d
    """)
    found = broker.lines("queue", "declare", "declared", *options, "--description", "for a test")[0]
    assert (found["name"], found["mode"], found.pop("differences")) == ("declared", "round-robin", [])
    assert found["settings"] == {name: value for name, value in PLAIN.items() if name != "mode"} | {
        "max_attempts": 3,
        "lease_ms": 120_000,
        "retry_delay_ms": 500,
        "retry_backoff": "exponential",
        "retry_delay_max_ms": 3_600_000,
        "retry_jitter_percent": 20,
        "ttl_ms": 7 * 86_400_000,
        "max_length": 7,
        "max_bytes": 1000,
        "overflow": "drop-oldest",
        "dead_letter_queue": "graves",
        "single_active": True,
        "publish_rate": 1000,
        "deliver_rate": 2000,
        "delete_grace_ms": 90_000,
        "dedup_window_ms": 3_600_000,
        "expires_ms": 30 * 86_400_000,
        "description": "for a test",
    }
    assert shown(broker, "declared") == found


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("fan-out", ["--group-idle", "1d", "--group-max-lag", "10", "--order-by-key"]),
        ("fan-out-no-ack", ["--group-idle", "0"]),
        ("priority", ["--priority-guard", "5"]),
        ("round-robin", ["--order-by-key"]),
    ],
)
def test_every_mode_can_be_declared_with_what_is_its_own(broker: ServedBroker, mode: str, options: list[str]) -> None:
    assert broker.lines("queue", "declare", f"as-{mode}", "--mode", mode, *options)[0]["mode"] == mode


def test_settings_are_shown_as_they_are_written(broker: ServedBroker) -> None:
    options = ["--lease", "90s", "--retry-delay", "1.5s", "--ttl", "2d", "--order-by-key", "--retry-jitter", "5"]
    done = broker.run("queue", "declare", "worded", *options)
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    for row in (["lease", "90s"], ["retry_delay", "1500ms"], ["ttl", "2d"], ["order_by_key", "yes"]):
        assert row in rows
    assert ["retry_jitter", "5"] in rows
    assert {row[0] for row in rows} >= {one.name for one in SETTINGS}


@pytest.mark.parametrize(
    "options",
    [
        ["--lease", "soon"],
        ["--mode", "sideways"],
        ["--overflow", "explode"],
        ["--retry-jitter", "101"],
        ["--max-length", "-1"],
        ["--on-difference", "cry"],
    ],
)
def test_a_setting_that_makes_no_sense_is_a_usage_error(broker: ServedBroker, options: list[str]) -> None:
    done = broker.run("queue", "declare", "odd", *options)
    assert (done.returncode, done.stdout) == (2, b"")
    assert options[0].encode() in done.stderr


def test_what_only_the_broker_can_tell_is_refused_by_it(broker: ServedBroker) -> None:
    for options in (["--lease", "0"], ["--priority-guard", "3"]):
        done = broker.run("queue", "declare", "odd", *options)
        assert done.returncode == 1
        assert options[0].removeprefix("--").replace("-", "_").encode() in done.stderr


# --- differences and changes


def test_declaring_with_other_settings_fails_is_ignored_or_overrides(broker: ServedBroker) -> None:
    assert broker.run("queue", "declare", "twice", "--max-attempts", "3").returncode == 0
    assert broker.run("queue", "declare", "twice", "--max-attempts", "3").returncode == 0
    other = ["queue", "declare", "twice", "--max-attempts", "4", "--lease", "1m"]
    done = broker.run(*other)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"max_attempts is 3, not 4" in done.stderr
    assert b"--on-difference" in done.stderr
    ignored = broker.run(*other, "--on-difference", "ignore").stdout.decode().split("\n\n")[1].splitlines()
    assert "stays as it is" in ignored[0]
    assert [line.split() for line in ignored[1:]] == [
        ["setting", "live", "declared", "class"],
        ["max_attempts", "3", "4", "soft"],
        ["lease", "30s", "1m", "soft"],
    ]
    assert shown(broker, "twice")["settings"]["max_attempts"] == 3
    overridden = broker.lines(*other, "--on-difference", "override")[0]
    assert [one["setting"] for one in overridden["differences"]] == ["max_attempts", "lease_ms"]
    assert shown(broker, "twice")["settings"]["max_attempts"] == 4


def test_what_is_hard_cannot_be_overridden(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "hard")
    done = broker.run("queue", "declare", "hard", "--mode", "fan-out", "--on-difference", "override")
    assert done.returncode == 1
    assert b"mode" in done.stderr


def test_change_gives_a_queue_other_settings_and_leaves_the_rest(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "changed", "--lease", "5s", "--single-active")
    found = broker.lines("queue", "change", "changed", "--max-attempts", "9", "--no-single-active")[0]["settings"]
    assert (found["lease_ms"], found["max_attempts"], found["single_active"]) == (5000, 9, False)
    assert broker.run("queue", "change", "changed").returncode == 2
    assert broker.run("queue", "change", "absent", "--lease", "1s").returncode == 1
    assert broker.run("queue", "change", "changed", "--mode", "priority").returncode == 1


def test_a_renamed_queue_keeps_its_messages(broker: ServedBroker) -> None:
    broker.run("publish", "old-name", "a")
    done = broker.run("queue", "rename", "old-name", "new-name")
    assert (done.returncode, done.stdout) == (0, b"renamed old-name to new-name\n")
    assert broker.run("consume", "new-name").stdout == b"a\n"
    assert broker.run("queue", "rename", "old-name", "x").returncode == 1
    broker.run("queue", "declare", "taken")
    assert broker.run("queue", "rename", "new-name", "taken").returncode == 1


# --- looking


def test_list_tells_of_every_queue_by_name(broker: ServedBroker) -> None:
    broker.run("publish", "z-listed", "a", "b")
    broker.run("queue", "declare", "a-listed", "--mode", "fan-out")
    broker.run("consume", "a-listed", "--group", "g")
    broker.run("queue", "declare", "b-listed", "--max-length", "1", "--overflow", "dead-letter")
    broker.run("publish", "b-listed", "a", "b", "c")
    found = broker.lines("queue", "list")
    assert [queue["name"] for queue in found] == sorted(queue["name"] for queue in found)
    assert {queue["name"]: queue["ready"] for queue in found}["z-listed"] == 2
    table = [line.split() for line in broker.run("queue", "list").stdout.decode().splitlines()]
    assert table[0] == ["name", "mode", "ready", "unacked", "waiting", "groups", "consumers", "dead", "bytes"]
    assert ["a-listed", "fan-out", "0", "0", "0", "1", "0", "0", "0"] in table
    assert ["b-listed", "round-robin", "1", "0", "0", "0", "2", "1"] in table
    assert ["b-listed.dlq", "round-robin", "2", "0", "0", "0", "0", "2"] in table
    assert ["z-listed", "round-robin", "2", "0", "0", "0", "0", "2"] in table


def test_show_has_the_groups_as_a_second_table(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "grouped", "--mode", "fan-out")
    for group in ("one", "two"):
        broker.run("consume", "grouped", "--group", group)
    broker.run("publish", "grouped", "a", "b")
    _, groups = broker.run("queue", "show", "grouped").stdout.decode().split("\n\n")
    assert [line.split() for line in groups.splitlines()] == [
        ["group", "ready", "unacked", "waiting", "consumers"],
        ["one", "2", "0", "0", "0"],
        ["two", "2", "0", "0", "0"],
    ]
    assert [group["name"] for group in shown(broker, "grouped")["groups"]] == ["one", "two"]


@pytest.mark.parametrize("verb", ["show", "purge", "delete", "undelete", "bindings"])
def test_a_queue_that_is_not_there_is_an_error(broker: ServedBroker, verb: str) -> None:
    done = broker.run("queue", verb, "absent")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"absent" in done.stderr
    assert b"Traceback" not in done.stderr


# --- topics


def test_what_matches_a_pattern_comes_to_the_queue_that_is_bound_to_it(broker: ServedBroker) -> None:
    for name, pattern in (("bound-a", "shop.*.new"), ("bound-b", "shop.#")):
        broker.run("queue", "declare", name)
        assert broker.run("queue", "bind", name, pattern).stdout.decode() == f"bound {name} to {pattern}\n"
    assert broker.run("publish", "shop.eu.new", "x", "--to-topic").returncode == 0
    assert broker.run("publish", "shop.eu.old", "y", "--to-topic").returncode == 0
    assert broker.run("consume", "bound-a").stdout == b"x\n"
    assert broker.run("consume", "bound-b").stdout == b"x\ny\n"
    assert broker.lines("queue", "bindings", "bound-a") == [{"queue": "bound-a", "pattern": "shop.*.new"}]
    table = [line.split() for line in broker.run("queue", "bindings").stdout.decode().splitlines()]
    assert table == [["queue", "pattern"], ["bound-a", "shop.*.new"], ["bound-b", "shop.#"]]
    assert broker.lines("queue", "unbind", "bound-b", "shop.#") == [{"queue": "bound-b", "pattern": "shop.#"}]
    done = broker.run("queue", "unbind", "bound-b", "shop.#")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"not bound" in done.stderr
    done = broker.run("publish", "shop.eu.old", "z", "--to-topic")
    assert done.returncode == 1
    assert b"shop.eu.old" in done.stderr
    assert broker.run("queue", "bind", "bound-a", "half*").returncode == 1


# --- emptying and deleting


def test_purge_throws_away_what_is_ready(broker: ServedBroker) -> None:
    broker.run("publish", "purged", "a", "b", "c")
    assert broker.lines("queue", "purge", "purged") == [{"queue": "purged", "count": 3}]
    assert shown(broker, "purged")["messages"] == 0


def test_a_deleted_queue_can_be_brought_back_for_its_grace_time(broker: ServedBroker) -> None:
    broker.run("publish", "deleted", "a")
    done = broker.run("queue", "delete", "deleted")
    assert done.returncode == 0
    assert done.stdout.startswith(b"deleted deleted: 1 message\nfor 1h `vibemq queue undelete`")
    assert broker.run("queue", "show", "deleted").returncode == 1
    (found,) = [one for one in broker.lines("queue", "list", "--deleted") if one["name"] == "deleted"]
    assert (found["messages"], found["until"][-1]) == (1, "Z")
    table = broker.run("queue", "list", "--deleted").stdout.decode().splitlines()
    assert table[0].split() == ["name", "mode", "messages", "bytes", "until"]
    broker.run("publish", "deleted", "another")
    done = broker.run("queue", "undelete", "deleted")
    assert done.returncode == 1
    assert b"choose another" in done.stderr
    done = broker.run("queue", "undelete", "deleted", "--as", "again")
    assert (done.returncode, done.stdout) == (0, b"brought back deleted as again: 1 message\n")
    assert broker.run("consume", "again").stdout == b"a\n"
    assert broker.run("consume", "deleted").stdout == b"another\n"


def test_without_grace_a_deleted_queue_is_gone(broker: ServedBroker) -> None:
    broker.run("publish", "gone", "a", "b")
    assert broker.run("queue", "delete", "gone", "--grace", "0").stdout == b"deleted gone: 2 messages\n"
    assert broker.run("queue", "undelete", "gone").returncode == 1
    broker.run("publish", "gone", "a")
    assert b"for 2m" in broker.run("queue", "delete", "gone", "--grace", "2m").stdout
    assert broker.lines("queue", "undelete", "gone")[0]["messages"] == 1


# --- at a terminal


def test_at_a_terminal_purge_and_delete_ask_first(broker: ServedBroker) -> None:
    broker.run("publish", "asked", "a")
    for verb in ("purge", "delete"):
        assert answered(broker, b"n\n", "queue", verb, "asked") == 1
        assert shown(broker, "asked")["ready"] == 1
    assert answered(broker, b"y\n", "queue", "purge", "asked") == 0
    assert answered(broker, b"", "queue", "delete", "asked", "--yes") == 0
    assert broker.run("queue", "show", "asked").returncode == 1


def test_at_a_terminal_tables_have_frames(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "framed[bold]")
    text = drawn(broker, "queue", "show", "framed[bold]")
    assert "framed[bold]" in text
    assert "max_attempts" in text
    assert "│" in text


def test_a_narrow_terminal_goes_without_the_columns_that_matter_least(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "narrowed")
    assert "bytes" in drawn(broker, "queue", "list")
    narrow = drawn(broker, "queue", "list", columns=80)
    assert "bytes" not in narrow
    assert "dead" in narrow
    assert "narrowed" in narrow


def test_text_from_outside_cannot_reach_the_terminal(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "plain", "--description", "\x1b[31mred")
    for text in (broker.run("queue", "show", "plain").stdout.decode(), drawn(broker, "queue", "show", "plain")):
        assert "\x1b[31m" not in text
        assert r"\x1b[31mred" in text
    (line,) = broker.run("queue", "show", "plain", "--json").stdout.splitlines()
    assert json.loads(line)["settings"]["description"] == "\x1b[31mred"


def test_the_choices_are_those_of_the_client() -> None:
    (option,) = [one for one in queue_commands.command.commands["declare"].params if one.name == "on_difference"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == get_args(OnDifference)
