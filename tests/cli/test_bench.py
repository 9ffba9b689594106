import random

import pytest

from tests.cli.processes import ServedBroker
from vibemq.cli.latency import histogram, merged, percentiles_ms


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--mode", "publish", "--messages", "5000"], 5_000),
        (["--mode", "publish", "--messages", "4000", "--concurrency", "100", "--clients", "2"], 4_000),
        (["--mode", "publish", "--messages", "1000", "--batch", "100", "--rate", "50000"], 1_000),
        (["--mode", "consume", "--messages", "5000"], 5_000),
        (["--mode", "consume", "--messages", "5000", "--concurrency", "50"], 5_000),
        (["--mode", "end-to-end", "--messages", "10000", "--clients", "2"], 10_000),
        (["--mode", "end-to-end", "--messages", "3000", "--concurrency", "100", "--size", "0"], 3_000),
        (["--mode", "latency", "--messages", "500", "--rate", "2000"], 500),
        (["--mode", "latency", "--messages", "1000", "--batch", "10", "--rate", "5000"], 1_000),
        (["--mode", "sync", "--messages", "100"], 100),
    ],
)
def test_every_mode_moves_all_messages_and_leaves_nothing(
    broker: ServedBroker, arguments: list[str], messages: int
) -> None:
    (figures,) = broker.lines("bench", *arguments)
    assert figures["mode"] == arguments[1]
    assert figures["messages"] == messages
    assert figures["messages_per_s"] > 0
    if arguments[1] != "consume":
        assert set(figures["confirm_ms"]) == {"p50", "p90", "p99", "p99.9", "max"}
    assert ("end_to_end_ms" in figures) == (arguments[1] == "latency")
    assert broker.lines("queue", "list") == []


def test_people_get_a_table(broker: ServedBroker) -> None:
    done = broker.run("bench", "--mode", "sync", "--messages", "20")
    assert done.returncode == 0
    rows = dict(line.split(maxsplit=1) for line in done.stdout.decode().splitlines())
    assert rows["messages"] == "20"


def test_percentiles_are_those_of_all_latencies_within_a_bucket() -> None:
    chance = random.Random(1)
    latencies = [round(chance.lognormvariate(13, 2)) for _ in range(10_000)]
    parts = [histogram(latencies[:3_000]), histogram(latencies[3_000:])]
    found = percentiles_ms(merged(parts))
    ordered = sorted(latencies)
    for share, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max")):
        exact_ms = ordered[round(share * len(ordered)) - 1] / 1e6
        assert exact_ms * (1 - 1 / 128) <= found[name] <= exact_ms
    assert sum(merged(parts).values()) == len(latencies)


def test_no_latencies_have_no_percentiles() -> None:
    assert percentiles_ms(histogram([])) == {}
