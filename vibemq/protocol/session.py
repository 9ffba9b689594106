"""Both ends of a connection as state machines without I/O: bytes in, values out.

    broker:  NEW --preface or '{'--> HELLO --Hello--> OPEN --Goodbye, error, end of stream--> CLOSED
    client:                          HELLO --Welcome-> OPEN --Goodbye, error, end of stream--> CLOSED

The first byte chooses the codec: '{' begins JSON lines, PREFACE the binary frames. Until Hello was accepted only Hello
is allowed, and only small frames. After an error nothing more is read: `error` says why, and the shell sends it in
Goodbye and closes. A request that is only wrong in itself is no error of the session: it becomes a Refused, which the
shell answers with Failed.
"""

import enum
from collections.abc import Callable, Iterator
from typing import Final

from vibemq.errors import MalformedFrame, ProtocolError, UnexpectedFrame, UnsupportedVersion, from_wire
from vibemq.protocol import binary, json_lines
from vibemq.protocol import messages as m
from vibemq.protocol.fields import LINE_BYTES_MAX
from vibemq.protocol.frames import PREFACE, FrameReader

HELLO_BYTES_MAX: Final = 16 * 1024
"""The largest frame before Hello was accepted."""
COMMANDS_MAX: Final = 256
"""Commands that one call of `receive` gives: what the broker carries out for one client before it hears the next."""
_OF_THE_SESSION: Final = frozenset({m.Hello, m.Goodbye})


class State(enum.Enum):
    """Where a session is."""

    NEW = enum.auto()
    HELLO = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


class ServerSession:
    """The broker's end. `encode` gives the bytes of a reply in the codec that the client chose."""

    def __init__(self, frame_bytes_max: int) -> None:
        """A connection of which nothing has been read; `frame_bytes_max` holds once it said Hello; for JSON less."""
        self.state = State.NEW
        self.error: ProtocolError | None = None
        self.codec = "binary"
        self.encode: Callable[[m.Reply], list[bytes | memoryview]] = binary.encode_reply
        self.frame_bytes_max = frame_bytes_max
        self._reader: FrameReader | json_lines.LineReader | None = None
        self._first = b""

    @property
    def has_more(self) -> bool:
        """Whether commands may be left of what was received: call `receive` again, with nothing if need be."""
        return self.state is not State.CLOSED and self._reader is not None and self._reader.has_more

    def receive(self, data: memoryview) -> list[m.Command | m.Refused]:
        """The commands that `data` completes, in order, and a Refused in the place of each that cannot be.

        After about COMMANDS_MAX the rest is kept for the next call, and `has_more` is true.
        """
        commands: list[m.Command | m.Refused] = []
        if self.state is State.CLOSED:
            return commands
        try:
            if self._reader is None:
                data = self._choose_codec(data)
            if self._reader is not None:
                is_open = self.state is State.OPEN
                for command in self._commands(self._reader, data):
                    if not is_open or type(command) in _OF_THE_SESSION:
                        self.state = self._step(self._reader, command)
                        is_open = self.state is State.OPEN
                    commands.append(command)
                    if not is_open:
                        return commands
                if self._reader.error is not None:
                    raise self._reader.error
        except ProtocolError as problem:
            self.error, self.state = problem, State.CLOSED
        return commands

    def _commands(
        self, reader: FrameReader | json_lines.LineReader, data: memoryview
    ) -> Iterator[m.Command | m.Refused]:
        if isinstance(reader, FrameReader):
            return map(binary.decode_command, reader.feed(data, COMMANDS_MAX))
        return map(json_lines.decode_command, reader.feed(data, COMMANDS_MAX))

    def _choose_codec(self, data: memoryview) -> memoryview:
        if self._first:
            data = memoryview(self._first + bytes(data))
        first = bytes(data[: len(PREFACE)])
        if first[:1] == b"{":
            self._reader = json_lines.LineReader(HELLO_BYTES_MAX)
            self.frame_bytes_max = min(self.frame_bytes_max, LINE_BYTES_MAX)
            self.codec, self.encode = "json", json_lines.encode_reply
        elif first == PREFACE:
            self._reader, data = FrameReader(HELLO_BYTES_MAX), data[len(PREFACE) :]
        elif PREFACE.startswith(first):
            self._first = first
            return data
        else:
            self.codec, self.encode = "json", json_lines.encode_reply  # whoever this is, a line of text tells most
            raise MalformedFrame(
                f"this is a VibeMQ port: a connection begins with {PREFACE!r} or with a JSON object, not with {first!r}"
            )
        self.state = State.HELLO
        return data

    def _step(self, reader: FrameReader | json_lines.LineReader, command: m.Command | m.Refused) -> State:
        """The state after a Goodbye, or after any command in a session that is not open."""
        if self.state is State.OPEN:
            if isinstance(command, m.Hello):
                raise UnexpectedFrame("a connection says hello only once")
            return State.CLOSED
        if isinstance(command, m.Refused):
            raise MalformedFrame(f"the first request must be a valid hello: {command.error.text}")
        if not isinstance(command, m.Hello):
            raise UnexpectedFrame(f"the first request must be hello, not {type(command).__name__}")
        if not command.version_min <= m.VERSION <= command.version_max:
            raise UnsupportedVersion(
                f"this broker speaks version {m.VERSION} of the protocol, "
                f"the client {command.version_min} to {command.version_max}"
            )
        reader.limit = self.frame_bytes_max
        return State.OPEN


class ClientSession:
    """The client's end, binary codec."""

    def __init__(self, frame_bytes_max: int = 1 << 30) -> None:
        """Accept frames of at most `frame_bytes_max` from the broker."""
        self.state = State.HELLO
        self._reader = FrameReader(frame_bytes_max)

    def begin(self, hello: m.Hello) -> bytes:
        """The first bytes to send."""
        return PREFACE + b"".join(binary.encode_command(hello))

    def receive(self, data: memoryview) -> Iterator[m.Reply]:
        """The replies that `data` completes, in order. Lazy, so that what came before an error is not lost with it.

        Raises:
            VibeMQError: the broker broke the protocol, or said Goodbye with a code: then the error of that code.
        """
        for frame in self._reader.feed(data):
            reply = binary.decode_reply(frame)
            if isinstance(reply, m.Welcome):
                self.state = State.OPEN
            elif isinstance(reply, m.Goodbye):
                self.state = State.CLOSED
                if reply.code:
                    raise from_wire(reply.code, reply.text)
            yield reply
        if self._reader.error is not None:
            raise self._reader.error
