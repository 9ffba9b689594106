import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.processes import VIBEMQ, ServedBroker, environment, run, served
from vibemq.log.disk import Disk


def test_it_says_when_it_is_ready_and_stops_on_sigterm(tmp_path: Path) -> None:
    with served(tmp_path / "d") as broker:
        assert broker.run("publish", "q", "x").returncode == 0
        assert broker.stop() == 0
        assert [line["event"] for line in broker.log()][-1] == "stopped"


def test_people_get_one_line_with_the_url(tmp_path: Path) -> None:
    command = [*VIBEMQ, "serve", "--data", str(tmp_path / "d"), "--listen", "127.0.0.1:0", "--log-level", "error"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        process.terminate()
        rest = process.stderr.read()
        assert process.wait() == 0
    assert "vibemq://127.0.0.1:" in line
    assert rest == b""


def test_messages_are_there_after_a_restart(tmp_path: Path) -> None:
    with served(tmp_path / "d") as broker:
        broker.run("publish", "q", "a", "b")
        broker.kill()
        broker.start()
        assert broker.run("consume", "q").stdout == b"a\nb\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--fsync", "sometimes"],
        ["--fsync", "interval"],
        ["--fsync", "interval:0"],
        ["--listen", "127.0.0.1:http"],
        ["--listen", "127.0.0.1:70000"],
        ["--log-level", "loud"],
        ["surplus"],
    ],
)
def test_options_that_make_no_sense_are_usage_errors(tmp_path: Path, options: list[str]) -> None:
    done = run("serve", "--data", str(tmp_path / "d"), *options)
    assert done.returncode == 2
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("policy", ["always", "interval:5", "os"])
def test_every_sync_policy_serves(tmp_path: Path, policy: str) -> None:
    with served(tmp_path / "d", "--fsync", policy) as broker:
        assert broker.run("publish", "q", "x").returncode == 0
        assert broker.run("consume", "q").stdout == b"x\n"
        assert broker.stop() == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("segment_bites = 1", "segment_bytes"),
        ("[limits]\nconections = 1", "connections"),
        ("auto_create = 3", "true or false"),
        ("fsync = 'sometimes'", "interval:MILLISECONDS"),
        ("listen = '127.0.0.1:http'", "HOST:PORT"),
        ("no toml", "cannot read"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_with_what_would(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    done = run("serve", "--data", str(tmp_path / "d"), "--config", str(tmp_path / "c.toml"))
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


def test_queues_of_the_configuration_are_there_from_the_start(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("auto_create = false\n[queues.orders]\nmode = 'priority'\nlease = '1m'")
    with served(tmp_path / "d", "--config", str(config)) as broker:
        shown = json.loads(broker.run("queue", "show", "orders", "--json").stdout)
        assert (shown["mode"], shown["settings"]["lease_ms"]) == ("priority", 60_000)
        broker.stop()
        config.write_text("[queues.orders]\nmode = 'fan-out'")
        done = run("serve", "--data", str(tmp_path / "d"), "--config", str(config), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert b"mode is 'priority', not 'fan-out'" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_configuration_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = run("serve", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 1
    assert b"none.toml" in done.stderr


def test_options_come_before_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f"data = {json.dumps(str(tmp_path / 'from-file'))}\nlisten = '127.0.0.1:1'\nauto_create = false")
    with served(tmp_path / "d", "--config", str(config)) as broker:
        assert (tmp_path / "d").exists()
        assert not (tmp_path / "from-file").exists()
        done = broker.run("publish", "q", "x")
        assert done.returncode == 1
        assert b"auto_create" in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with served(tmp_path / "d") as broker:
        address = broker.url.removeprefix("vibemq://")
        done = run("serve", "--data", str(tmp_path / "other"), "--listen", address)
    assert done.returncode == 1
    assert f"cannot listen on {address}".encode() in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_folder_has_one_broker(tmp_path: Path) -> None:
    with served(tmp_path / "d") as broker:
        done = run("serve", "--data", str(tmp_path / "d"), "--listen", "127.0.0.1:0")
        assert done.returncode == 1
        assert str(tmp_path / "d").encode() in done.stderr
        assert b"Traceback" not in done.stderr
        assert broker.run("publish", "q", "x").returncode == 0


def test_damage_to_the_log_is_named_and_refused(tmp_path: Path) -> None:
    with served(tmp_path / "d") as broker:
        for _ in range(5):
            broker.run("publish", "q", "payload" * 100)
        broker.stop()
    _damage(broker)
    done = run("serve", "--data", str(broker.data), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert b"damaged" in done.stderr
    assert b"vibemq verify" in done.stderr
    assert b"Traceback" not in done.stderr


def _damage(broker: ServedBroker) -> None:
    """Change a byte of the first message, far below what was synced; without an index, all is read again."""
    segment = next((broker.data / "log").glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[data.index(b"payload")] ^= 1
    segment.write_bytes(data)
    Disk(broker.data).remove_folder("index")
