"""A broker that does what a test tells it, behind a real socket and the real protocol session.

It greets by itself, and answers what is in `answers` by itself; everything else waits until the test takes it with
`next` and sends what it likes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

import vibemq
from vibemq.batch import Headers, pack
from vibemq.client import Client
from vibemq.protocol import messages as m
from vibemq.protocol.session import ServerSession

C = TypeVar("C", bound=m.Command)
T = TypeVar("T")

SECONDS_MAX = 10
"""How long a test may take before it counts as stuck."""


class FakeConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, broker: "FakeBroker") -> None:
        self.broker = broker
        self.session = ServerSession(1 << 24)
        self.received: list[m.Command] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.broker.connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.lost = True

    def data_received(self, data: bytes) -> None:
        for command in self.session.receive(memoryview(data)):
            assert not isinstance(command, m.Refused), command
            if isinstance(command, m.Hello):
                self.broker.hellos.append(command)
                if self.broker.greeting is not None:
                    self.send(self.broker.greeting)
                continue
            if isinstance(command, m.Ping) and not self.broker.silent:
                self.broker.pings += 1
                self.send(m.Pong())
                continue
            self.received.append(command)
            answer = self.broker.answers.get(type(command))
            reply = answer(command) if answer is not None else None
            if reply is None and wants_answer(command):
                self.broker.waiting.put_nowait((self, command))
            elif reply is not None:
                self.send(reply)

    def send(self, *replies: m.Reply) -> None:
        self.transport.write(b"".join(part for reply in replies for part in self.session.encode(reply)))

    def cut(self) -> None:
        self.transport.abort()

    def confirm(
        self,
        publish: m.Publish,
        offset: int,
        sequence: int,
        *,
        duplicate: bool = False,
        dropped: int = 0,
        due_us: int = 0,
        duplicates: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        self.send(
            m.Confirmed(
                request=publish.request,
                offset=offset,
                sequence=sequence,
                duplicate=duplicate,
                dropped=dropped,
                due_us=due_us,
                duplicates=duplicates,
            )
        )


class FakeBroker:
    """Listens on a free port of this machine."""

    def __init__(self) -> None:
        self.connections: list[FakeConnection] = []
        self.hellos: list[m.Hello] = []
        self.waiting: asyncio.Queue[tuple[FakeConnection, m.Command]] = asyncio.Queue()
        self.silent = False
        self.pings = 0
        self.greeting: m.Reply | None = welcome()
        self.subscriptions = 0
        self.epochs = 0
        self.lease_ms = 0
        self.group: str | None = None
        """What a Subscribe is told of its group, if it names none."""
        self.answers: dict[type, Callable[..., m.Reply | None]] = {
            m.Goodbye: lambda _: m.Goodbye(),
            m.Subscribe: self.subscribed,
            m.Unsubscribe: lambda command: m.Done(request=command.request),
            m.Begin: self.begun,
            m.Rollback: lambda command: m.Done(request=command.request),
            m.Flush: lambda command: m.Done(request=command.request),
            m.Ack: lambda command: m.Done(request=command.request) if command.request else None,
            m.Nack: lambda command: m.Done(request=command.request) if command.request else None,
        }

    def begun(self, command: m.Begin) -> m.Reply:
        self.epochs += 1
        return m.Done(request=command.request, result={"epoch": self.epochs, "timeout_ms": command.timeout_ms})

    def subscribed(self, command: m.Subscribe) -> m.Reply:
        self.subscriptions += 1
        result = {
            "subscription": self.subscriptions,
            "queue": command.queue,
            "group": command.group or self.group,
            "lease_ms": self.lease_ms,
        }
        return m.Done(request=command.request, result=result)

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: FakeConnection(self), "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.close()
        for connection in self.connections:
            connection.cut()
        await self.server.wait_closed()

    @property
    def url(self) -> str:
        return f"vibemq://127.0.0.1:{self.port}"

    async def next(self, kind: type[C]) -> tuple[FakeConnection, C]:
        """The next command that wants an answer and got none by itself; it must be of this kind."""
        connection, command = await self.waiting.get()
        assert isinstance(command, kind), command
        return connection, command

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the test."""
        return self.waiting.empty()


def wants_answer(command: m.Command) -> bool:
    if isinstance(command, m.Credit):
        return command.wait_ms >= 0
    return bool(getattr(command, "request", 0))


def sent(connection: FakeConnection, *kinds: type[T]) -> list[T]:
    """What came on a connection, as far as it is of these kinds."""
    return [one for one in connection.received if isinstance(one, kinds)]


def welcome(
    *,
    heartbeat_ms: int = 15_000,
    frame_bytes_max: int = 1 << 24,
    batch_messages_max: int = 1 << 16,
    publish_window_bytes: int = 1 << 24,
    publish_window_batches: int = 1_000,
) -> m.Welcome:
    return m.Welcome(
        request=1,
        version=m.VERSION,
        broker="fake",
        connection=1,
        heartbeat_ms=heartbeat_ms,
        frame_bytes_max=frame_bytes_max,
        batch_messages_max=batch_messages_max,
        publish_window_bytes=publish_window_bytes,
        publish_window_batches=publish_window_batches,
    )


def deliver(
    bodies: Sequence[bytes],
    *,
    subscription: int = 1,
    delivery: int = 1,
    sequence: int | None = None,
    headers: Sequence[Headers | None] | None = None,
    attempt: int = 1,
    redelivered: bool = False,
) -> m.Deliver:
    parts: list[bytes | memoryview] = [b"".join(pack(bodies, headers))]
    first = delivery if sequence is None else sequence
    return m.Deliver(subscription, delivery, first, 70, 5, 1_700_000_000_000_001, attempt, redelivered, parts)


async def settle_loop() -> None:
    """Let everything that is under way on this machine arrive."""
    for _ in range(5):
        await asyncio.sleep(0.002)


async def until(reached: Callable[[], bool]) -> None:
    """Wait until something holds."""
    while not reached():  # noqa: ASYNC110 - what is waited for is no event of asyncio
        await asyncio.sleep(0.002)


def with_broker(test: Callable[[FakeBroker], Awaitable[T]]) -> T:
    """Run a test with a broker, and check that it leaves no task behind."""

    async def main() -> T:
        broker = FakeBroker()
        await broker.start()
        try:
            async with asyncio.timeout(SECONDS_MAX):
                result = await test(broker)
        finally:
            await broker.stop()
        await settle_loop()  # the tasks with which asyncio accepts connections end by themselves
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(main())


def with_client(test: Callable[[FakeBroker, Client], Awaitable[None]]) -> None:
    """Run a test with a broker and a client of it that reconnects fast."""

    async def main(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, backoff_min=0.001, backoff_max=0.002) as client:
            await test(broker, client)

    with_broker(main)
