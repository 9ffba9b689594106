import importlib
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.cli.processes import VIBEMQ, environment, run
from vibemq.cli.main import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there_and_explains_itself(name: str) -> None:
    command = importlib.import_module(f"vibemq.cli.{name}").command
    assert isinstance(command, click.Command)
    assert command.help
    assert run(name, "--help").returncode == 0


def test_the_help_lists_every_command() -> None:
    text = run("--help").stdout.decode()
    assert all(name in text and line in text for name, line in COMMANDS.items())


def commands(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and those below it."""
    yield path, command
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands((*path, name), below)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_it_shortly_and_shows_examples_as_they_are_written(name: str) -> None:
    for path, command in commands((name,), importlib.import_module(f"vibemq.cli.{name}").command):
        text = command.get_help(click.Context(command, info_name=" ".join(path), terminal_width=80))
        assert "\\b" not in text
        assert len(path) == 1 or not command.get_short_help_str(62).endswith("..."), path
        for line in (command.epilog or "\b").split("\n")[1:]:
            assert line in text
            assert not line.startswith("  vibemq") or line.split()[1] in COMMANDS


def test_the_version() -> None:
    assert run("--version").stdout.startswith(b"vibemq ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing-of-this-name"],
        ["publish"],
        ["publish", "q"],
        ["publish", "q", "x", "--stdin-lines"],
        ["publish", "q", "x", "--header", "no-equals-sign"],
        ["publish", "q", "x", "--priority", "10"],
        ["publish", "q", "x", "--priority", "urgent"],
        ["publish", "q", "x", "--ttl", "soon"],
        ["publish", "q", "x", "--key", ""],
        ["publish", "q", "--file", "/no/such/file"],
        ["publish", "q", "x", "--url", "http://127.0.0.1"],
        ["consume", "q", "--follow", "--peek"],
        ["consume", "q", "--follow", "--count", "1"],
        ["consume", "q", "--count", "0"],
        ["consume", "q", "--from", "somewhere"],
        ["consume", "q", "--from", "99999999999999999999"],
        ["consume", "q", "--peek", "--from", "tail"],
        ["consume", "q", "--peek", "--from", "1h"],
        ["consume", "q", "--peek", "--exclusive"],
        ["queue", "rename"],
        ["bench", "--batch", "1", "--concurrency", "1"],
        ["bench", "--mode", "sync", "--rate", "5"],
        ["bench", "--mode", "latency", "--size", "7"],
    ],
)
def test_a_call_that_cannot_work_exits_with_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_no_broker_there_says_where_and_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    done = run("publish", "q", "x", "--timeout", "0.3", url=f"vibemq://127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr.decode()
    assert b"vibemq serve" in done.stderr
    assert b"Traceback" not in done.stderr


def test_something_else_on_the_port_is_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_as_a_web_server() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"." * 100)

        thread = threading.Thread(target=answer_as_a_web_server)
        thread.start()
        done = run("queue", "list", "--timeout", "5", url=f"vibemq://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_password_in_the_url_is_never_printed() -> None:
    done = run("queue", "list", "--url", "vibemq://me:hunter2@127.0.0.1")
    assert done.returncode == 1
    assert b"hunter2" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "arguments", [["verify", "--data", "FILE"], ["replay", "--data", "FILE"], ["audit", "--data", "FILE"]]
)
def test_a_data_folder_that_is_a_file_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    done = run(*(str(path) if one == "FILE" else one for one in arguments))
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"vibemq: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-"])
def test_a_stdout_that_takes_nothing_is_one_line(redirection: str) -> None:
    command = f"{shlex.join(VIBEMQ)} --version {redirection}"
    done = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, env=environment(), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"vibemq: ")
    assert done.stderr.count(b"\n") == 1
