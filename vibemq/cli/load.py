"""One process of `vibemq bench`: a producer or a consumer, as thin as the client allows.

    bench -> load   a Plan as one line of JSON on stdin
    load -> bench   "ready"
    bench -> load   "go"
    load -> bench   a consumer: how many messages it has, some times a second
    bench -> load   to a consumer: "stop"
    load -> bench   an Outcome as one line of JSON

All processes read the same monotonic clock, so times in messages can be compared where they arrive.
"""

import asyncio
import resource
import sys
import threading
import time
from array import array
from collections.abc import Callable

import msgspec

import vibemq
from vibemq.cli.connecting import in_thread
from vibemq.cli.latency import histogram
from vibemq.client import Messages

REPORT_SECONDS = 0.02
PACE_SECONDS = 0.0002
ACKS_AHEAD = 8
STAMP_BYTES = 8  # of a message, with which it says when it was due


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one process does. `batch` 0: message by message, with publish() and `async for`."""

    url: str
    queue: str
    produce: bool
    messages: int
    size: int
    batch: int
    ahead: int
    """Publishes that are under way at the same time: batches, or single messages."""
    rate: float
    """Messages a second; 0: as many as possible."""
    stamped: bool
    """Whether messages carry the time at which they should have been sent."""
    prefetch: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one process did. Times in nanoseconds of the monotonic clock."""

    messages: int
    first_ns: int
    last_ns: int
    latencies: dict[int, int]
    """Of a producer: from when it should have been sent until it was confirmed. Of a consumer: until it was here."""
    cpu_s: float


class Producer:
    """Publishes `plan.messages`; counts every latency from the moment the send was due, not from when it was possible.

    That is what keeps a stall of the broker from hiding the sends that it held up (coordinated omission).
    """

    def __init__(self, plan: Plan, client: vibemq.Client) -> None:
        """Prepare the payload."""
        self._plan, self._client = plan, client
        self._body = bytes(plan.size)
        self._latencies_ns = array("q")

    async def run(self) -> Outcome:
        """Publish all, and return when all is confirmed."""
        began = time.monotonic_ns()
        if self._plan.rate:
            await self._paced(began)
        else:
            await self._flat_out()
        return _outcome(self._plan.messages, began, time.monotonic_ns(), self._latencies_ns)

    async def _flat_out(self) -> None:
        plan = self._plan
        share, more = divmod(plan.messages, plan.ahead)
        if plan.batch:
            batches = -(-plan.messages // plan.batch)
            share, more = divmod(batches, plan.ahead)
        work = self._batches if plan.batch else self._singles
        async with asyncio.TaskGroup() as tasks:
            for at in range(plan.ahead):
                tasks.create_task(work(share + (at < more)))

    async def _batches(self, count: int) -> None:
        publish_many, queue, bodies = self._client.publish_many, self._plan.queue, [self._body] * self._plan.batch
        done, clock = self._latencies_ns.append, time.monotonic_ns
        for _ in range(count):
            began = clock()
            await publish_many(queue, list(bodies))
            done(clock() - began)

    async def _singles(self, count: int) -> None:
        publish, queue, body = self._client.publish, self._plan.queue, self._body
        done, clock = self._latencies_ns.append, time.monotonic_ns
        for _ in range(count):
            began = clock()
            await publish(queue, body)
            done(clock() - began)

    async def _paced(self, began: int) -> None:
        unit = self._plan.batch or 1
        interval_ns = unit * 1e9 / self._plan.rate
        total = -(-self._plan.messages // unit)
        loop, sent, all_due = asyncio.get_running_loop(), 0, asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def send_due() -> None:
            nonlocal sent
            due = min(total, int((time.monotonic_ns() - began) / interval_ns) + 1)
            for at in range(sent, due):
                task = loop.create_task(self._due(began + int(at * interval_ns), unit))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            sent = due
            if sent == total:
                all_due.set()

        def keep_time() -> None:
            # A thread, as it sleeps to some 50 us; the timers of event loops know only milliseconds.
            while not all_due.is_set():
                loop.call_soon_threadsafe(send_due)
                next_ns = began + int(((time.monotonic_ns() - began) // interval_ns + 1) * interval_ns)
                time.sleep(max(PACE_SECONDS, (next_ns - time.monotonic_ns()) / 1e9))

        threading.Thread(target=keep_time, daemon=True).start()
        await all_due.wait()
        await asyncio.gather(*tasks)

    async def _due(self, due_ns: int, unit: int) -> None:
        body = due_ns.to_bytes(STAMP_BYTES, "little") + self._body[STAMP_BYTES:] if self._plan.stamped else self._body
        if self._plan.batch:
            await self._client.publish_many(self._plan.queue, [body] * unit)
        else:
            await self._client.publish(self._plan.queue, body)
        self._latencies_ns.append(time.monotonic_ns() - due_ns)


class Consumer:
    """Consumes and acks until it is told to stop."""

    def __init__(self, plan: Plan, client: vibemq.Client) -> None:
        """Nothing has come yet."""
        self._plan, self._client = plan, client
        self._seen = 0
        self._first_ns = self._last_ns = 0
        self._latencies_ns = array("q")

    async def run(self, ready: Callable[[], None]) -> Outcome:
        """Subscribe, say that this is `ready`, and consume until a line comes on stdin."""
        async with self._client.consume(self._plan.queue, self._plan.prefetch) as messages:
            ready()
            tasks = [asyncio.create_task(self._report())]
            work = self._batches(messages) if self._plan.batch else self._singles(messages)
            tasks.append(asyncio.create_task(work))
            stopped = in_thread(sys.stdin.readline)
            await asyncio.wait([stopped, tasks[1]], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
        return _outcome(self._seen, self._first_ns, self._last_ns, self._latencies_ns)

    async def _batches(self, messages: Messages[vibemq.Message]) -> None:
        room = asyncio.Semaphore(ACKS_AHEAD)
        tasks: set[asyncio.Task[None]] = set()

        def acked(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            room.release()

        async for batch in messages.batches(max_messages=self._plan.batch):
            self._arrived(len(batch))
            if self._plan.stamped:
                self._stamps(batch)
            await room.acquire()
            task = asyncio.create_task(self._client.ack_all(batch))
            tasks.add(task)
            task.add_done_callback(acked)

    async def _singles(self, messages: Messages[vibemq.Message]) -> None:
        stamped, expected = self._plan.stamped, self._plan.messages
        async for message in messages:
            await message.ack()
            self._seen += 1
            if stamped:
                self._stamps([message])
            if self._seen in {1, expected}:
                self._arrived(0)

    def _arrived(self, count: int) -> None:
        self._last_ns = time.monotonic_ns()
        self._first_ns = self._first_ns or self._last_ns
        self._seen += count

    def _stamps(self, batch: list[vibemq.Message]) -> None:
        now = time.monotonic_ns()
        self._latencies_ns.extend(now - int.from_bytes(message.body[:STAMP_BYTES], "little") for message in batch)

    async def _report(self) -> None:
        """Tell how many have come. Without batches the clock is read only here, not for each message."""
        told = 0
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if self._seen != told:
                told = self._seen
                if not self._plan.batch:
                    self._arrived(0)
                _tell(str(told))


def _outcome(messages: int, first_ns: int, last_ns: int, latencies_ns: "array[int]") -> Outcome:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Outcome(
        messages=messages,
        first_ns=first_ns,
        last_ns=last_ns,
        latencies=histogram(latencies_ns),
        cpu_s=usage.ru_utime + usage.ru_stime,
    )


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _run(plan: Plan) -> Outcome:
    async with vibemq.connect(plan.url, name="vibemq bench") as client:
        if not plan.produce:
            return await Consumer(plan, client).run(lambda: _tell("ready"))
        _tell("ready")
        await in_thread(sys.stdin.readline)
        return await Producer(plan, client).run()


def main() -> None:
    """Carry out the plan that comes on stdin."""
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    try:
        import uvloop  # noqa: PLC0415 - only where it exists
    except ImportError:
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with runner:
        outcome = runner.run(_run(plan))
    _tell(msgspec.json.encode(outcome).decode())


if __name__ == "__main__":
    main()
