"""docs/configuration.md says what the configuration file may say."""

import asyncio
import json
import logging
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

import pytest

from vibemq.declaration import Backoff, Mode, Overflow
from vibemq.errors import ConfigError
from vibemq.server.clock import BrokerClock
from vibemq.server.queue_settings import PLAIN, Declaration
from vibemq.server.queue_tables import BIND, KEYS
from vibemq.server.runtime import Runtime
from vibemq.server.settings import DEFAULT_PORT, Settings, load_toml

PAGE: Final = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
EXAMPLES: Final = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[tuple[str, str]]:
    """The first two cells of each row below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [(key, second.strip()) for key, second in re.findall(r"^\| `([^`]+)` \|([^|]*)\|", section, re.MULTILINE)]


def test_every_key_is_on_the_page_with_its_default() -> None:
    settings = Settings()
    shown = {
        "data": str(settings.data),
        "listen": f"{settings.host}:{DEFAULT_PORT}",
        "fsync": settings.fsync.sync,
        "unroutable": "",
    }
    known = [one.name for one in fields(Settings) if one.name not in {"host", "port", "limits", "queues", "defaults"}]
    wanted = {key: f"`{text}`" if text else "(none)" for key, text in shown.items()}
    wanted |= {key: f"`{json.dumps(getattr(settings, key))}`" for key in known if key not in shown}
    found = dict(rows("The broker"))
    tables = {key for key in found if key.startswith("[")}
    assert tables == {"[limits]", "[queues.NAME]", '[defaults."PATTERN"]'}
    assert {key: default for key, default in found.items() if key not in tables} == wanted


def test_every_setting_of_a_queue_is_on_the_page_with_what_it_can_be() -> None:
    found = rows("Queues")
    assert [key for key, _ in found] == [*KEYS, BIND]
    for key, value in found:
        name = KEYS.get(key, key)
        choice = {"mode": Mode, "overflow": Overflow, "retry_backoff": Backoff}.get(name)
        if choice is not None:
            assert re.findall(r'`"([^"]+)"`', value) == [str(one) for one in choice]
        elif name != BIND:
            words = {int: "number", bool: "`true` or `false`", str: "text"}
            assert value.startswith("duration" if name.endswith("_ms") else words[type(PLAIN[name])])


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_are_configurations(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    found = Settings(**load_toml(tmp_path / "c.toml"))
    assert found.queues or found.defaults.patterns


def test_a_broker_starts_with_the_first_example_and_has_its_queues(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(EXAMPLES[0])
    settings = replace(Settings(**load_toml(tmp_path / "c.toml")), data=tmp_path / "data")

    async def run() -> list[tuple[str, Mode]]:
        runtime = Runtime(settings, "1", BrokerClock(), logging.getLogger("test"))
        state = runtime.open().state
        runtime.start(lambda: None)
        await runtime.stop("the test is over")
        assert runtime.failure is None
        assert [state.queues[number].name for number in state.bindings.match("orders.new")] == [
            "orders",
            "orders.archive",
        ]
        return [(queue.name, queue.settings.mode) for queue in state.queues.values()]

    for _ in range(2):
        assert asyncio.run(run()) == [("orders", Mode.PRIORITY), ("orders.archive", Mode.FAN_OUT)]
    other = replace(settings, queues={"orders": Declaration({"mode": Mode.FAN_OUT})})
    for _ in range(2):  # it has let go of the folder
        with pytest.raises(ConfigError, match="queue 'orders' exists with other settings: mode is 'priority'"):
            Runtime(other, "1", BrokerClock(), logging.getLogger("test")).open()


def test_the_examples_do_what_is_said_of_them(tmp_path: Path) -> None:
    first, second = EXAMPLES
    (tmp_path / "c.toml").write_text(first)
    settings = Settings(**load_toml(tmp_path / "c.toml"))
    assert settings.queues["orders.archive"].settings == {"mode": Mode.FAN_OUT, "ttl_ms": 7 * 86_400_000}
    assert settings.queues["orders"].bind == ("orders.*", "#.urgent")
    assert settings.defaults.of("reports.daily").retry_jitter_percent == 20
    (tmp_path / "c.toml").write_text(second)
    defaults = Settings(**load_toml(tmp_path / "c.toml")).defaults
    assert (defaults.of("events.new").mode, defaults.of("events.new").overflow) == (Mode.FAN_OUT, Overflow.BLOCK)
    assert (defaults.of("orders").max_length, defaults.of("orders.dlq").max_length) == (1_000_000, 10_000_000)
    assert defaults.of("orders.dlq").overflow is Overflow.DROP_OLDEST
