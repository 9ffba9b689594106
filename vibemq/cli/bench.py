"""`vibemq bench`: put load on a running broker and measure it.

The load comes from processes of its own, one for each client, so that this one is no bottleneck and each client has an
interpreter to itself. Figures of clients that share a machine with the broker are figures of both.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

import click
import msgspec

from vibemq.cli.connecting import Broker, broker_options
from vibemq.cli.examples import lines
from vibemq.cli.latency import merged, percentiles_ms
from vibemq.cli.load import Outcome, Plan
from vibemq.cli.output import print_json, print_table
from vibemq.errors import ConnectionFailed, UnknownQueue

MODES: Final = ("publish", "consume", "end-to-end", "latency", "sync")
BATCH: Final = 1000
BATCHES_AHEAD: Final = 20
MESSAGES: Final = {"latency": 10_000, "sync": 5_000}
MESSAGES_OTHERWISE: Final = 1_000_000
LATENCY_RATE: Final = 1_000.0
STAMP_BYTES: Final = 8


class Crew:
    """The processes that make the load. Leaving the context ends those that still run."""

    def __init__(self, plans: Sequence[Plan], silence_seconds: float) -> None:
        """Start a process for each plan, and wait until all are connected.

        Raises:
            ConnectionFailed: one of them ended, or nothing was heard for `silence_seconds`.
        """
        self._silence_seconds = silence_seconds
        self._lines: SimpleQueue[tuple[int, str]] = SimpleQueue()
        self._processes = [_start() for _ in plans]
        self._outcomes: dict[int, Outcome] = {}
        self._seen = [0] * len(plans)
        try:
            for number, (process, plan) in enumerate(zip(self._processes, plans, strict=True)):
                self._say(number, msgspec.json.encode(plan).decode())
                threading.Thread(target=self._read, args=(number, process), daemon=True).start()
            for _ in plans:
                self._hear()
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def go(self) -> None:
        """Let producers begin, or consumers end."""
        for number in range(len(self._processes)):
            self._say(number, "go")

    def outcomes(self) -> list[Outcome]:
        """Wait for what all of them did."""
        while len(self._outcomes) < len(self._processes):
            self._hear()
        return [self._outcomes[number] for number in sorted(self._outcomes)]

    def wait_for(self, messages: int) -> None:
        """Wait until consumers have so many messages together."""
        while sum(self._seen) < messages:
            self._hear()

    def _hear(self) -> None:
        try:
            number, line = self._lines.get(timeout=self._silence_seconds)
        except Empty:
            raise ConnectionFailed(
                f"bench: no message moved for {self._silence_seconds:g} s; there were {sum(self._seen)} consumed"
            ) from None
        if line.isdecimal():
            self._seen[number] = int(line)
        elif line.startswith("{"):
            self._outcomes[number] = msgspec.json.decode(line, type=Outcome)
        elif not line and number not in self._outcomes:
            raise ConnectionFailed("bench: a process of the load generator ended early; its error is above")

    def _say(self, number: int, line: str) -> None:
        pipe = self._processes[number].stdin
        assert pipe is not None
        pipe.write(line + "\n")
        pipe.flush()

    def _read(self, number: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put((number, line.strip()))
        self._lines.put((number, ""))

    def _close(self) -> None:
        for process in self._processes:
            if process.poll() is None and not self._complete:
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    @property
    def _complete(self) -> bool:
        return len(self._outcomes) == len(self._processes)


def _start() -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vibemq.cli.load"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this interpreter


@click.command(
    name="bench",
    epilog=lines(
        "Modes",
        "publish      messages that are confirmed",
        "consume      a backlog that is consumed and acked",
        "end-to-end   both at the same time",
        "latency      end to end at a fixed rate (default 1000), from when it was due",
        "sync         one confirmed publish at a time",
    ),
)
@click.option("--mode", type=click.Choice(MODES), default="end-to-end", show_default=True, help="What to measure.")
@click.option("--messages", type=click.IntRange(min=1), help="How many.  [default: 1000000; latency 10000, sync 5000]")
@click.option("--size", type=click.IntRange(min=0), default=256, show_default=True, help="Bytes of a message.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Messages a batch, with the calls for batches.  [default: 1000]"
)
@click.option("--concurrency", type=click.IntRange(min=1), help="Or: message by message, so many at the same time.")
@click.option("--clients", type=click.IntRange(min=1), default=1, show_default=True, help="Producers, and consumers.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Messages a second, all producers together.")
@click.option("--prefetch", type=click.IntRange(min=1), default=20_000, show_default=True, help="Of each consumer.")
@click.option("--queue", help="The queue to use; its messages are lost.  [default: a new one]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON line.")
@broker_options
def command(
    broker: Broker,
    mode: str,
    messages: int | None,
    size: int,
    batch: int | None,
    concurrency: int | None,
    clients: int,
    rate: float | None,
    prefetch: int,
    queue: str | None,
    as_json: bool,
) -> None:
    """Put load on a running broker, and print messages a second and percentiles of latencies."""
    if batch is not None and concurrency is not None:
        raise click.UsageError("Give either --batch or --concurrency.")
    if rate is not None and mode in {"consume", "sync"}:
        raise click.UsageError(f"--rate means nothing with --mode {mode}.")
    if mode == "latency" and size < STAMP_BYTES:
        raise click.UsageError(f"--mode latency needs a --size of {STAMP_BYTES}: messages carry their time.")
    if mode == "latency":
        rate = rate or LATENCY_RATE
    if mode == "sync":
        batch, concurrency = None, 1
    elif mode == "latency" and batch is None:
        concurrency = concurrency or 1
    total = messages or MESSAGES.get(mode, MESSAGES_OTHERWISE)
    each = max(1, total // clients)
    plan = Plan(
        url=broker.url,
        queue=queue or f"bench-{os.getpid()}",
        produce=True,
        messages=each,
        size=size,
        batch=0 if concurrency is not None else batch or BATCH,
        ahead=concurrency or BATCHES_AHEAD,
        rate=(rate or 0.0) / clients,
        stamped=mode == "latency",
        prefetch=prefetch,
    )
    if plan.batch:  # whole batches only
        plan = msgspec.structs.replace(plan, messages=-(-each // plan.batch) * plan.batch)
    _empty(broker, plan.queue)
    signal.signal(signal.SIGTERM, _end)  # or the processes of the load would go on without this one
    try:
        figures = measure(mode, plan, clients, broker.timeout)
    finally:
        _empty(broker, plan.queue)
    if as_json:
        print_json([figures])
    else:
        print_table(("figure", "value"), _rows(figures))


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise click.exceptions.Exit(128 + number)


def _empty(broker: Broker, queue: str) -> None:
    try:
        broker.run("bench", lambda client: client.delete(queue, grace=0))
    except UnknownQueue:
        return


def measure(mode: str, plan: Plan, clients: int, silence_seconds: float) -> dict[str, Any]:
    """The figures of one run."""
    total = plan.messages * clients
    consumer = msgspec.structs.replace(plan, produce=False, messages=total)
    consumers = [consumer] * (0 if mode in {"publish", "sync"} else clients)
    producers = [plan] * clients
    published: list[Outcome] = []
    consumed: list[Outcome] = []
    if mode == "consume":
        with Crew(producers, silence_seconds) as crew:
            crew.go()
            crew.outcomes()
        producers = []
    with Crew(consumers, silence_seconds) as takers, Crew(producers, silence_seconds) as makers:
        makers.go()
        published = makers.outcomes()
        if consumers:
            takers.wait_for(total)
            takers.go()
            consumed = takers.outcomes()
    return _figures(mode, plan, clients, published, consumed)


def _figures(
    mode: str, plan: Plan, clients: int, published: Sequence[Outcome], consumed: Sequence[Outcome]
) -> dict[str, Any]:
    last = consumed or published
    rate = _rate(last)
    figures: dict[str, Any] = {
        "mode": mode,
        "messages": sum(one.messages for one in last),
        "size": plan.size,
        "clients": clients,
        "batch" if plan.batch else "concurrency": plan.batch or plan.ahead,
        "rate": plan.rate * clients or None,
        "messages_per_s": round(rate),
        "mb_per_s": round(rate * plan.size / 1e6, 1),
    }
    if published and consumed:
        figures["confirmed_per_s"] = round(_rate(published))
    if published:
        figures["confirm_ms"] = percentiles_ms(merged(one.latencies for one in published))
    if plan.stamped:
        figures["end_to_end_ms"] = percentiles_ms(merged(one.latencies for one in consumed))
    figures["client_cpu_s"] = round(sum(one.cpu_s for one in [*published, *consumed]), 2)
    return figures


def _rate(outcomes: Sequence[Outcome]) -> float:
    """Messages a second from the first to the last of all."""
    active = [one for one in outcomes if one.messages]
    took_ns = max(one.last_ns for one in active) - min(one.first_ns for one in active)
    return sum(one.messages for one in active) * 1e9 / max(1, took_ns)


def _rows(figures: dict[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            rows += [(f"{name} {part}", f"{amount:.3f}") for part, amount in value.items()]
        elif value is not None:
            rows.append((name, value))
    return rows
