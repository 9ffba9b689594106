"""Targets for what people write: configuration files, addresses, durations."""

import io
from dataclasses import fields
from pathlib import Path
from typing import cast

from tests.fuzz.target import Target
from vibemq import durations
from vibemq import events as e
from vibemq.client import url
from vibemq.errors import ConfigError, NotSupported, UsageError
from vibemq.server.limits import Limits
from vibemq.server.settings import Settings, load_toml, parse_listen

PLANTED = "s3cr3t"


class _File:
    """A file in memory, as far as load_toml needs one."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_text(self, encoding: str = "utf-8") -> str:
        return io.TextIOWrapper(io.BytesIO(self._data), encoding).read()

    def __str__(self) -> str:
        return "vibemq.toml"


def run_config(data: bytes) -> None:
    """A configuration file gives settings that a broker can start with, or ConfigError."""
    try:
        found = load_toml(cast("Path", _File(data)))
    except ConfigError:
        return
    settings = Settings(**found)
    assert 0 <= settings.port < 1 << 16
    assert settings.segment_bytes > 0
    none = {one.name for one in fields(Limits) if not one.default}
    assert all(getattr(settings.limits, name) >= (name not in none) for name in type(settings.limits).__slots__)
    for name, queue in settings.queues.items():
        assert e.encode(e.QueueDeclared(1, name, settings.defaults.of(name, queue.settings), 0))


def run_address(data: bytes) -> None:
    """Byte 0 chooses what the text is meant to be: a URL, an address to listen on, a duration."""
    if not data:
        return
    text = data[1:].decode("utf-8", "surrogateescape")
    try:
        if data[0] % 3 == 0:
            address = url.parse(text)
            assert 0 < address.port < 1 << 16
            assert address.host
            assert "@" not in text.partition("//")[2].partition("/")[0]
        elif data[0] % 3 == 1:
            host, port = parse_listen(text)
            assert host
            assert 0 <= port < 1 << 16
        else:
            assert durations.milliseconds(text, "timeout") >= 0
    except (UsageError, NotSupported, ConfigError) as problem:
        refusal = problem.text if data[0] % 3 == 0 else ""
    else:
        refusal = ""
    assert PLANTED not in refusal, "an error repeats a password"


def _config_seeds() -> list[bytes]:
    return [
        b'data = "d"\nlisten = "0.0.0.0:2925"\nfsync = "interval:50"\nauto_create = false\nsegment_bytes = 65536\n',
        b"checkpoint_interval_ms = 100\n[limits]\nframe_bytes = 65536\nconnections = 5\n",
        b"[limits]\nframe_bytes = 1.5\n",
        b"limits = 3\n",
        b'unroutable = "lost"\n[queues.q]\nmode = "priority"\nttl = "1d"\nbind = ["a.*"]\n[queues."a.b"]\nlease = 5\n',
        b'[defaults."#"]\nretry_backoff = "exponential"\nretry_delay = "2h"\nsingle_active = true\nmax_bytes = 10\n',
        b'listen = ":0"\n',
    ]


def _address_seeds() -> list[bytes]:
    urls = ("vibemq://h:1/?tls=false", "vibemq://[::1]:2925", f"vibemq://u:{PLANTED}@h", "vibemq://h?tls=true")
    listens = ("127.0.0.1:2925", "[::1]:0", ":70000", "host")
    spans = ("1.5s", "250ms", "5m", "1e9d", " 2h ")
    return [bytes([kind]) + text.encode() for kind, some in enumerate((urls, listens, spans)) for text in some]


TARGETS = (
    Target(
        "config",
        run_config,
        _config_seeds,
        (b"[limits]", b"inf", b"-1", b"[[", b"999999999999999999999", b'"""', b"[queues.", b"[defaults."),
    ),
    Target(
        "address",
        run_address,
        _address_seeds,
        (b"vibemq://", b"@", b"tls=", b"[", b"]", "\uff11".encode(), b"%", b"9" * 400),
    ),
)
