"""`vibemq request`: ask whoever consumes a queue, and print what they reply."""

import os
import sys

import click

import vibemq
from vibemq.cli.connecting import Broker, broker_options
from vibemq.cli.examples import examples
from vibemq.cli.output import message_line
from vibemq.cli.publish import read_headers
from vibemq.errors import RequestTimeout


@click.command(
    name="request",
    epilog=examples(
        "vibemq request prices '{\"item\": 7}' --timeout 5",
        "vibemq request workers.ping '' --many --timeout 2 --json",
    ),
)
@click.argument("queue")
@click.argument("body")
@click.option(
    "--header", "headers", multiple=True, callback=read_headers, metavar="NAME=VALUE", help="For the request."
)
@click.option("--many", is_flag=True, help="Print all replies that come within the timeout.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="With --many: end after N replies.")
@click.option("--json", "as_json", is_flag=True, help="Print replies as JSON lines, with all that is known of them.")
@broker_options
def command(
    broker: Broker,
    queue: str,
    body: str,
    headers: dict[str, str] | None,
    many: bool,
    count: int | None,
    as_json: bool,
) -> None:
    """Publish BODY to QUEUE, wait for the reply of whoever consumes it, and print that.

    Consumers answer with `message.reply()`. When no reply comes within the timeout, the exit code is 1; nobody begins
    to work on the request later than that.
    """
    if count is not None and not many:
        raise click.UsageError("--count goes with --many: without it there is one reply.")
    payload = os.fsencode(body)

    async def print_one(client: vibemq.Client) -> int:
        _print(await client.request(queue, payload, headers=headers), as_json=as_json)
        return 1

    async def print_many(client: vibemq.Client) -> int:
        found = 0
        async with client.request_many(queue, payload, headers=headers, max_replies=count) as replies:
            async for reply in replies:
                _print(reply, as_json=as_json)
                found += 1
        return found

    if not broker.run("request", print_many if many else print_one):
        raise RequestTimeout(f"no reply from consumers of {queue!r} within {broker.timeout:g} s")


def _print(reply: vibemq.Message, *, as_json: bool) -> None:
    sys.stdout.buffer.write(message_line(reply) if as_json else reply.body + b"\n")
    sys.stdout.buffer.flush()
