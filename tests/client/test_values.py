"""URLs, options, durations, runs: what needs no broker."""

import random
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vibemq
from vibemq.client.client import address_of
from vibemq.client.options import ConnectOptions, Options
from vibemq.client.settling import in_pieces, merged, runs_of
from vibemq.client.url import Address, parse
from vibemq.durations import milliseconds
from vibemq.errors import NotSupported, UsageError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("vibemq://localhost", Address("localhost", 2925)),
        ("vibemq://10.0.0.1:1/", Address("10.0.0.1", 1)),
        ("vibemq://[::1]:9", Address("::1", 9)),
        ("vibemq://h?tls=false", Address("h", 2925)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:2925", "amqp://h", "vibemq://", "vibemq://h:99999", "vibemq://h:0", "vibemq://h/path"),
        *("vibemq://h#x", "vibemq://h?color=red", "vibemq://h?tls=maybe", "vibemq://[::1"),
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError):
        parse(url)


@pytest.mark.parametrize("url", ["vibemq://me:s3cret@h", "vibemq://s3cret@h:1", "vibemq://me:s3cret@h?tls=true"])
def test_a_password_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(NotSupported) as raised:
        parse(url)
    assert "s3cret" not in str(raised.value)
    for broken in (url.replace("vibemq", "http"), url.replace("@h", "@h:x"), url + "#"):
        with pytest.raises((UsageError, NotSupported)) as other:
            parse(broken)
        assert "s3cret" not in str(other.value)


def test_tls_is_not_in_this_version() -> None:
    with pytest.raises(NotSupported, match="TLS"):
        parse("vibemq://h?tls=true")


def test_the_url_comes_from_the_environment_or_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIBEMQ_URL", raising=False)
    assert str(address_of(None)) == "127.0.0.1:2925"
    monkeypatch.setenv("VIBEMQ_URL", "vibemq://[::1]:7")
    assert str(address_of(None)) == "[::1]:7"
    assert str(address_of("vibemq://h")) == "h:2925"
    assert repr(vibemq.connect("vibemq://h")) == "<Client of h:2925>"


def test_options_know_their_names_and_ranges() -> None:
    chance = random.Random(1)
    options = Options.of({"timeout": "2m", "heartbeat": 1, "chance": chance, "prefetch_bytes": 5})
    assert (options.timeout, options.heartbeat, options.chance, options.prefetch_bytes) == (120, 1, chance, 5)
    wrong: list[dict[str, Any]] = [{"timout": 3}, {"timeout": 0}, {"timeout": -1}, {"timeout": "soon"}]
    wrong += [{"heartbeat": None}, {"pending_messages_max": 0}, {"pending_bytes_max": 1.5}, {"prefetch_bytes": True}]
    for one in wrong:
        with pytest.raises(UsageError, match=next(iter(one))):
            vibemq.connect("vibemq://h", **one)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, 0),
        (1.5, 1_500),
        (1_099_511_627.776, 1 << 40),
        ("250ms", 250),
        ("30s", 30_000),
        (" 5m ", 300_000),
        ("1.5h", 5_400_000),
        ("1d", 86_400_000),
    ],
)
def test_durations(given: float | str, expected: int) -> None:
    assert milliseconds(given, "delay") == expected


@pytest.mark.parametrize(
    "given",
    [
        "",
        "30",
        "5 m",
        "-1s",
        "1w",
        -1,
        float("nan"),
        float("inf"),
        10**400,
        1_099_511_627.777,
        "12726d",
        None,
        [],
        b"1s",
    ],
)
def test_what_is_no_duration(given: Any) -> None:  # noqa: ANN401 - anything
    with pytest.raises(UsageError, match="delay"):
        milliseconds(given, "delay")


@given(st.sets(st.integers(1, 60)))
def test_runs_hold_exactly_their_numbers_and_are_as_few_as_can_be(numbers: set[int]) -> None:
    runs = runs_of(list(numbers))
    assert [number for first, end in runs for number in range(first, end)] == sorted(numbers)
    assert all(end < first for (_, end), (first, _) in pairwise(runs))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)).map(lambda pair: (pair[0], sum(pair)))))
def test_merging_loses_nothing(runs: list[tuple[int, int]]) -> None:
    numbers = {number for first, end in runs for number in range(first, end)}
    assert merged(list(runs)) == runs_of(sorted(numbers))


@given(st.permutations(range(1, 9)))
def test_the_order_of_the_numbers_does_not_matter(numbers: list[int]) -> None:
    assert runs_of(numbers) == [(1, 9)]


def test_many_runs_are_several_requests() -> None:
    runs = [(i, i + 1) for i in range(1, 140_000, 2)]
    pieces = list(in_pieces(runs))
    assert [len(piece) for piece in pieces] == [1024] * 68 + [368]
    assert [run for piece in pieces for run in piece] == runs


def test_the_documentation_lists_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text("utf-8")
    table = page.split("## Options of `connect`")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [one.name for one in fields(Options)]
    assert set(ConnectOptions.__annotations__) == {one.name for one in fields(Options)}
