"""The configuration file: what it may say, and what it is told when it makes no sense."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq.declaration import Mode, Overflow, QueueSettings
from vibemq.errors import ConfigError
from vibemq.server.limits import Limits
from vibemq.server.queue_settings import PLAIN, Declaration
from vibemq.server.queue_tables import KEYS
from vibemq.server.settings import Settings, load_toml


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings") / "vibemq.toml"


def loaded(file: Path, text: str) -> Settings:
    file.write_text(text)
    return Settings(**load_toml(file))


def refusal(file: Path, text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        loaded(file, text)
    assert raised.value.text.startswith(f"{file}: ")
    assert len(raised.value.text.splitlines()) == 1
    return raised.value.text.removeprefix(f"{file}: ")


def test_an_empty_file_changes_nothing(file: Path) -> None:
    assert loaded(file, "") == Settings()


def test_queues_have_settings_without_units_and_patterns(file: Path) -> None:
    text = """
        unroutable = "lost"
        [queues.orders]
        mode = "priority"
        lease = "1m"
        ttl = 1.5
        retry_delay = 2
        retry_jitter = 20
        single_active = true
        overflow = "block"
        description = "what was ordered"
        bind = ["orders.*", "orders.*", "#.eu"]
        [queues."orders.new"]
    """
    settings = loaded(file, text)
    assert settings.unroutable == "lost"
    assert settings.queues == {
        "orders": Declaration(
            {
                "mode": Mode.PRIORITY,
                "lease_ms": 60_000,
                "ttl_ms": 1_500,
                "retry_delay_ms": 2_000,
                "retry_jitter_percent": 20,
                "single_active": True,
                "overflow": Overflow.BLOCK,
                "description": "what was ordered",
            },
            ("orders.*", "#.eu"),
        ),
        "orders.new": Declaration({}),
    }


def test_defaults_are_kept_in_the_order_of_the_file(file: Path) -> None:
    text = """
        [defaults."orders.#"]
        ttl = "1d"
        max_attempts = 3
        [defaults."*.eu"]
        ttl = "2d"
    """
    defaults = loaded(file, text).defaults
    assert defaults.of("orders") == QueueSettings(ttl_ms=86_400_000, max_attempts=3)
    assert defaults.of("orders.eu") == QueueSettings(ttl_ms=172_800_000, max_attempts=3)
    assert defaults.of("stock") == QueueSettings()


def test_every_setting_has_a_key_without_its_unit() -> None:
    assert list(KEYS.values()) == list(PLAIN)
    assert not [key for key in KEYS if key.endswith(("_ms", "_percent", "_us"))]


@given(st.sampled_from([key for key, name in KEYS.items() if name.endswith("_ms")]), st.integers(1, 40_000))
def test_durations_are_seconds_or_text(file: Path, key: str, seconds: int) -> None:
    for written in (f"{seconds}", f"{seconds}.0", f'"{seconds}s"', f'"{seconds}000ms"'):
        settings = loaded(file, f'[queues.q]\nmode = "fan-out"\n{key} = {written}').queues["q"].settings
        assert settings[KEYS[key]] == seconds * 1000


NO_SENSE = [
    (
        "[queues.orders]\nlease_ms = 5",
        """[queues."orders"] has no key 'lease_ms'; there are mode, max_attempts, lease, """,
    ),
    ("[queues.q]\nttl = 'soon'", """[queues."q"] ttl is 'soon': write seconds as a number, or text such as "250ms","""),
    ("[queues.q]\nttl = true", '[queues."q"] ttl must be a duration, seconds or text such as "30s", not True'),
    ("[queues.q]\nttl = nan", '[queues."q"] ttl is nan: a duration is a number of seconds from 0 on'),
    ("[queues.q]\nlease = 0", '[queues."q"] lease must be from 1 to 43200000 ms, not 0'),
    ("[queues.q]\nlease = '13h'", '[queues."q"] lease must be from 1 to 43200000 ms, not 46800000'),
    ("limits.lease_ms = 9\n[queues.q]\nlease = 1", '[queues."q"] lease must be from 1 to 9 ms, not 1000'),
    ("[queues.q]\nretry_jitter = 101", '[queues."q"] retry_jitter must be from 0 to 100 percent, not 101'),
    (
        "[queues.q]\nmode = 'fast'",
        """[queues."q"] mode must be one of round-robin, priority, fan-out, fan-out-no-ack""",
    ),
    ("[queues.q]\nmax_length = '5'", """[queues."q"] max_length must be a whole number, not '5'"""),
    ("[queues.q]\nsingle_active = 1", '[queues."q"] single_active must be true or false, not 1'),
    ("[queues.q]\npriority_guard = 1", """[queues."q"] priority_guard needs mode priority; the mode of queue 'q' is"""),
    ("[queues.q]\ndead_letter_queue = 'q'", """[queues."q"] queue 'q' cannot be its own dead-letter queue"""),
    ("[queues.q]\ndead_letter_queue = ' x'", '[queues."q"] the name of a dead-letter queue must not begin or end with'),
    ("[queues.q]\nbind = 'orders.*'", '[queues."q"] bind must be a list of patterns, such as ["orders.*"], not '),
    ("[queues.q]\nbind = [1]", '[queues."q"] bind must be a list of patterns, such as ["orders.*"], not [1]'),
    ("[queues.q]\nbind = ['']", '[queues."q"] the name of a pattern must have 1 to 255 bytes'),
    ("[queues.'']", '[queues.""] the name of a queue must have 1 to 255 bytes'),
    ('[queues."a\\nb"]', '[queues."a\\nb"] the name of a queue must not have control characters'),
    ("[queues]\norders = 5", '[queues."orders"] must be a table, with the settings of that queue below it'),
    ("queues = 5", "queues must be tables: write [queues.NAME] above the settings of each queue"),
    (
        "[queues.orders.new]\nttl = 1",
        """[queues."orders"] has no table 'new': a queue with dots needs quotes, [queues."orders.new"]""",
    ),
    ("[[queues.q]]", '[queues."q"] must be a table'),
    ("[defaults.'orders.*']\nbind = ['x']", """[defaults."orders.*"] has no key 'bind'; there are mode, """),
    ("[defaults.'#']\noverflow = 'x'", '[defaults."#"] overflow must be one of reject, drop-oldest, drop-newest, dead'),
    (
        "[defaults.a.b]\nttl = 1",
        """[defaults."a"] has no table 'b': a pattern with dots needs quotes, [defaults."a.b"]""",
    ),
    ("defaults = []", "defaults must be tables: write [defaults.NAME] above"),
    ("[queues.q]\nbind = ['orders*']", '[queues."q"] in a pattern * and # are words of their own'),
    ("[defaults.'orders*']", '[defaults."orders*"] in a pattern * and # are words of their own'),
    ("[defaults.'orders.']", '[defaults."orders."] a pattern is words between dots, and none of them empty'),
    ("unroutable = 1", "unroutable must be text, not 1"),
    ("unroutable = ' lost'", "unroutable: the name of a queue must not begin or end with a space"),
    ("[limits]\nconnections = 0", "limits.connections must be a whole number, at least 1, not 0"),
    (
        "[limits]\npublish_rate_per_connection = -1",
        "limits.publish_rate_per_connection must be a whole number, at least 0",
    ),
    (
        "queue = 1",
        "unknown setting 'queue'; there are auto_create, checkpoint_interval_ms, data, defaults, fsync, limits,",
    ),
]


@pytest.mark.parametrize(("text", "said"), NO_SENSE, ids=range(len(NO_SENSE)))
def test_what_makes_no_sense_is_refused_with_its_place_and_what_would(file: Path, text: str, said: str) -> None:
    assert refusal(file, text).startswith(said)


def test_a_queue_may_rely_on_the_defaults_for_its_name(file: Path) -> None:
    guard = "[queues.'orders.new']\npriority_guard = 5\n"
    assert loaded(file, guard + "[defaults.'orders.*']\nmode = 'priority'").queues.keys() == {"orders.new"}
    assert "needs mode priority" in refusal(file, guard)


def test_a_limit_whose_default_is_none_may_be_none(file: Path) -> None:
    assert loaded(file, "[limits]\npublish_rate_per_connection = 0").limits == Limits()
    assert loaded(file, "[limits]\npublish_rate_per_connection = 7").limits.publish_rate_per_connection == 7
