"""What client and broker say to each other, as values, whatever the codec.

Requests carry a number that the client chose, never 0, and get exactly one answer with it: Confirmed, Done or Failed.
An Ack or Nack with request 0 asks for none. Durations are milliseconds, times microseconds since 1970 (UTC).
`deliveries` are half-open runs (first, end) of a subscription's delivery numbers, which count what it was sent from 1;
a message that is sent again gets a new number, so an ack can never settle a later delivery than the one it means.
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from vibemq.batch import Batch
from vibemq.errors import RequestError
from vibemq.protocol.control import Control
from vibemq.protocol.fields import (
    Count,
    Deliveries,
    Duplicates,
    Duration,
    Number,
    OnDifference,
    Priority,
    Producer,
    Request,
    RequestOrNone,
    Settings,
    Start,
    Text,
    Version,
    Wait,
    Word,
)
from vibemq.protocol.timed import (
    Begin,
    CancelDelayed,
    DeleteSchedule,
    ListDelayed,
    ListSchedules,
    PauseSchedule,
    Reschedule,
    Rollback,
    SetSchedule,
    ShowDelayed,
)

# Messages that have a file of their own: whoever imports this one finds all.
__all__ = [
    "Begin",
    "CancelDelayed",
    "Control",
    "DeleteSchedule",
    "ListDelayed",
    "ListSchedules",
    "PauseSchedule",
    "Reschedule",
    "Rollback",
    "SetSchedule",
    "ShowDelayed",
]

VERSION = 1
"""The protocol version that this code speaks."""


# --- from the client ------------------------------------------------------------------------------------------------


class Hello(Control, frozen=True, kw_only=True):
    """The first frame of a connection. `producer` makes resent publishes recognisable; 0: there will be none."""

    request: Request = 1
    version_min: Version = VERSION
    version_max: Version = VERSION
    client: Word = ""
    heartbeat_ms: Duration = 0
    producer: Producer = 0
    compression: Annotated[tuple[Word, ...], msgspec.Meta(max_length=16)] = ()


class Publish(msgspec.Struct, frozen=True):
    """Store `batch` in `queue`. `sequence` numbers the producer's messages; the batch takes `batch.count` of them.

    `oldest` is the sequence of the producer's oldest batch without an answer: what is below it will not be sent again.
    With `to_topic`, `queue` is a topic: the batch goes to every queue that is bound to it. The messages wait for
    `delay_ms`, or until `due_us`, before they are ready; one of them is 0. `dedup` is empty, or has 16 bytes for each
    message: the BLAKE2b hash of its dedup id, of that size, or zeros where it has none.
    """

    request: int
    queue: str
    sequence: int
    batch: Batch
    oldest: int = 0
    to_topic: bool = False
    delay_ms: int = 0
    due_us: int = 0
    dedup: bytes = b""


class TransactionAck(msgspec.Struct, frozen=True, array_like=True):
    """Deliveries of a subscription that are done when the transaction is."""

    subscription: Number
    deliveries: Deliveries


class Commit(msgspec.Struct, frozen=True):
    """Carry out all of this, or nothing, as attempt `epoch` of a transaction that is this connection's.

    It takes one `sequence` of the producer, so that a commit sent again is recognised: it is not carried out again, and
    answered with what came of it. In `publishes`, request, sequence and oldest mean nothing. Answered by Committed.
    """

    request: int
    epoch: int
    sequence: int
    publishes: tuple[Publish, ...]
    acks: tuple[TransactionAck, ...]
    oldest: int = 0


class Subscribe(Control, frozen=True, kw_only=True):
    """Take part in a queue, with credit for `messages` and `bytes` from the start.

    Queues that fan out have groups: each gets every message. A `group` that is not there yet is created and begins at
    `start`; without a name it is this consumer's own, and goes soon after it. `exclusive`: nobody else may take part.
    Done.result: {"subscription", "queue", "group", "lease_ms", "credit_bytes_max"}.
    """

    request: Request
    queue: str
    group: str | None = None
    messages: Count = 0
    bytes: Count = 0
    start: Start = "tail"
    at: Number = 0
    exclusive: bool = False


class Seek(Control, frozen=True, kw_only=True):
    """Let a group go on from somewhere else; what its consumers hold is taken from them.

    Done.result: {"sequence": n}, where it goes on.
    """

    request: Request
    queue: str
    group: str
    start: Start
    at: Number = 0


class DeleteGroup(Control, frozen=True, kw_only=True):
    """Delete a group, and end its consumers."""

    request: Request
    queue: str
    group: str


class Unsubscribe(Control, frozen=True, kw_only=True):
    """End a subscription: what it holds goes back without counting an attempt."""

    request: Request
    subscription: Number


class Credit(Control, frozen=True, kw_only=True):
    """Grant more messages and bytes. `handed` is the delivery number below which all was given to the application.

    With `wait_ms` >= 0 the broker answers Drained as soon as it has sent something, or after that time, and takes back
    the credit that is left: this is how a client pulls.
    """

    subscription: Number
    messages: Count
    bytes: Count
    handed: Number = 0
    wait_ms: Wait = -1


class Ack(Control, frozen=True, kw_only=True):
    """These deliveries are done."""

    subscription: Number
    deliveries: Deliveries
    request: RequestOrNone = 0


class Nack(Control, frozen=True, kw_only=True):
    """These deliveries failed, or with `reject` can never succeed and go to the dead letters at once.

    A `reason` longer than TEXT_MAX is cut by the broker: a long text is no cause to leave a message unsettled.
    """

    subscription: Number
    deliveries: Deliveries
    request: RequestOrNone = 0
    delay_ms: Duration | None = None
    reason: str = ""
    reject: bool = False


class Extend(Control, frozen=True, kw_only=True):
    """The client still works on these deliveries: their lease ends `lease_ms` from now (0: the queue's own lease)."""

    subscription: Number
    deliveries: Deliveries
    lease_ms: Duration = 0
    request: RequestOrNone = 0


class Declare(Control, frozen=True, kw_only=True):
    """Create a queue, or compare it with these settings. Settings that are not given take their defaults.

    `on_difference` chooses what happens where the live queue differs: "fail", "ignore", or "override", which changes
    it. Done.result: what ShowQueue gives, with "differences", a list of {"setting", "live", "declared", "class"}; the
    classes are "info", "soft" (can be changed while the queue is used) and "hard" (cannot).
    """

    request: Request
    queue: str
    settings: Settings = msgspec.field(default_factory=dict)
    on_difference: OnDifference = "fail"


class Change(Control, frozen=True, kw_only=True):
    """Give a queue other settings; those that are not named stay. Done.result: what ShowQueue gives."""

    request: Request
    queue: str
    settings: Settings


class Rename(Control, frozen=True, kw_only=True):
    """Give a queue another name; its messages, consumers, groups and bindings stay. Done.result: as of ShowQueue."""

    request: Request
    queue: str
    name: str


class Bind(Control, frozen=True, kw_only=True):
    """Let a queue have what is published to topics that match `pattern`: words between dots, * is one, # any number."""

    request: Request
    queue: str
    pattern: str


class Unbind(Control, frozen=True, kw_only=True):
    """Take a binding back. Done.result: {"count": 1}, or 0 when there was none."""

    request: Request
    queue: str
    pattern: str


class ListBindings(Control, frozen=True, kw_only=True):
    """Ask for the bindings of a queue, or of all. Done.result: a list of {"queue", "pattern"}."""

    request: Request
    queue: str | None = None


class ListQueues(Control, frozen=True, kw_only=True):
    """Ask for all queues. Done.result: a list of what ShowQueue gives."""

    request: Request


class ListDeleted(Control, frozen=True, kw_only=True):
    """Ask for the queues that Undelete can bring back. Done.result: what ShowQueue gives, each with "until_us"."""

    request: Request


class ShowQueue(Control, frozen=True, kw_only=True):
    """Ask for one queue: its settings and counts."""

    request: Request
    queue: str


class Purge(Control, frozen=True, kw_only=True):
    """Throw away what is ready in a queue. Done.result: {"count": n}."""

    request: Request
    queue: str


class Delete(Control, frozen=True, kw_only=True):
    """Delete a queue with all it holds; for `grace_ms` (None: the queue's own) Undelete brings it back.

    Done.result: {"count": n, "until_us": t}, with t = 0 where there is no way back.
    """

    request: Request
    queue: str
    grace_ms: Duration | None = None


class Undelete(Control, frozen=True, kw_only=True):
    """Bring a deleted queue back, whole, as `name` if that is not empty. Done.result: what ShowQueue gives."""

    request: Request
    queue: str
    name: str = ""


class Peek(Control, frozen=True, kw_only=True):
    """Read up to `count` ready messages from sequence `start` on, and take none. Done.result: see docs/protocol.md.

    In mode priority each `priority` numbers its messages for itself: ask for one after the other to see all.
    """

    request: Request
    queue: str
    start: Number = 0
    count: Count = 100
    group: str | None = None
    priority: Priority | None = None


class DeadLetters(Control, frozen=True, kw_only=True):
    """Read dead letters as Peek does, each with why it is one. `queue`: theirs, or the one they came from.

    Each message has also the "queue" that it is in, and "dead": {"reason", "queue", "attempts", "error", "at"}; the
    queue it came from is null where there is none any more.

    A filter that is empty lets everything through: the name of a `reason`, the queue of `source`, a part of the
    `error`'s text, times from `since_us` on and before `until_us` (0: no end).
    """

    request: Request
    queue: str
    start: Number = 0
    count: Count = 100
    reason: Word = ""
    source: Word = ""
    error: Text = ""
    since_us: Number = 0
    until_us: Number = 0


class Redrive(Control, frozen=True, kw_only=True):
    """Send dead letters back to the queue they came from, or to `target`; filters are those of DeadLetters.

    At most `count` at a time, from sequence `start` on and before `end` (0: all that are there). Done.result:
    {"count": n, "next": s, "end": s, "targets": {queue: n}, "homeless": n}: what was moved, where to go on and up to
    where, and how many were passed over, as the queue that they came from is gone; `next` is 0 when nothing is left.
    With `dry_run` nothing is moved, and what would be is counted.
    """

    request: Request
    queue: str
    target: Word = ""
    start: Number = 0
    end: Number = 0
    count: Count = 1000
    dry_run: bool = False
    reason: Word = ""
    source: Word = ""
    error: Text = ""
    since_us: Number = 0
    until_us: Number = 0


class Flush(Control, frozen=True, kw_only=True):
    """Answered when all that this connection sent before is durable."""

    request: Request


class Digest(Control, frozen=True, kw_only=True):
    """Ask for the digest of every projection, and the offset at which it holds."""

    request: Request


class Ping(Control, frozen=True, kw_only=True):
    """Anything is a sign of life; this is for when there is nothing else to say. Answered by Pong."""


class Goodbye(Control, frozen=True, kw_only=True):
    """The sender is about to close: in order when `code` is 0."""

    code: Count = 0
    text: Text = ""


Command: TypeAlias = (
    Hello
    | Publish
    | Begin
    | Commit
    | Rollback
    | Subscribe
    | Unsubscribe
    | Seek
    | DeleteGroup
    | Credit
    | Ack
    | Nack
    | Extend
    | Declare
    | Change
    | Rename
    | Bind
    | Unbind
    | ListBindings
    | ListQueues
    | ListDeleted
    | ShowQueue
    | Purge
    | Delete
    | Undelete
    | Peek
    | DeadLetters
    | Redrive
    | ListDelayed
    | ShowDelayed
    | CancelDelayed
    | Reschedule
    | SetSchedule
    | ListSchedules
    | PauseSchedule
    | DeleteSchedule
    | Flush
    | Digest
    | Ping
    | Goodbye
)


class Refused(msgspec.Struct, frozen=True):
    """What a session gives in place of a command that cannot be.

    The broker answers Failed with `request` and the error's code and text. `request` is 0 where the command carries no
    number that could be read.
    """

    request: int
    error: RequestError


# --- from the broker ------------------------------------------------------------------------------------------------


class Welcome(Control, frozen=True, kw_only=True):
    """The answer to Hello: what was agreed, and the limits that hold.

    A client may have `publish_window_bytes` of batches, and `publish_window_batches` of them, sent and not answered.
    """

    request: Request
    version: Version
    broker: str
    connection: Number
    heartbeat_ms: Duration
    frame_bytes_max: Count
    batch_messages_max: Count
    publish_window_bytes: Number
    publish_window_batches: Count
    message_bytes_max: Count = 0
    compression: str = ""


class Confirmed(Control, frozen=True, kw_only=True):
    """The batch is durable as record `offset`; its first message has `sequence`. `duplicate`: it was already there.

    The last `dropped` of its messages were not stored, as a queue was full that drops the newest. For a topic the
    sequence is 0, as each queue has its own. It is 0, too, where the messages wait until `due_us`. `duplicates` were
    not stored, as messages with their dedup ids were there: (position in the batch, record offset, index) of each; what
    was dropped is the last of the others. What is stored has the indices of the record in its order.
    """

    request: Request
    offset: Number
    sequence: Number
    duplicate: bool = False
    dropped: Count = 0
    due_us: Number = 0
    duplicates: Duplicates = ()


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """What became of one batch of a transaction; the fields are those of Confirmed.

    Its messages are in the transaction's record, from `index` on.
    """

    index: Count
    sequence: Number
    dropped: Count = 0
    due_us: Number = 0
    duplicates: Duplicates = ()


class Committed(Control, frozen=True, kw_only=True):
    """A transaction is durable as record `offset`. `duplicate`: it already was. `stored`: of each batch, in order."""

    request: Request
    offset: Number
    duplicate: bool = False
    stored: tuple[Stored, ...] = ()


class Deliver(msgspec.Struct, frozen=True):
    """Messages for a subscription: numbers `delivery` and on, sequences `sequence` and on, from one record.

    `parts` are the bytes of a batch. All of its messages have the same `attempt` and `redelivered`.
    """

    subscription: int
    delivery: int
    sequence: int
    offset: int
    index: int
    time_us: int
    attempt: int
    redelivered: bool
    parts: list[bytes | memoryview]


class Done(Control, frozen=True, kw_only=True):
    """A request succeeded, and everything that it changed is durable."""

    request: Request
    result: Any = None


class Failed(Control, frozen=True, kw_only=True):
    """A request failed and changed nothing. `code` is stable (docs/protocol.md), `text` is for people.

    Request 0: something that the client sent without a number was refused; its author wants to know.
    """

    request: RequestOrNone
    code: Count
    text: str


class Drained(Control, frozen=True, kw_only=True):
    """The answer to Credit with `wait_ms`: all that there was has been sent, and no credit is left."""

    subscription: Number


class LeasesLost(Control, frozen=True, kw_only=True):
    """The leases of these deliveries ended; acks for them are void."""

    subscription: Number
    deliveries: Deliveries


class Ended(Control, frozen=True, kw_only=True):
    """The broker ended a subscription, for instance because its queue was deleted."""

    subscription: Number
    code: Count
    text: str


class Unblocked(Control, frozen=True, kw_only=True):
    """A queue (or topic) for which this connection's publishes failed with QueueBlocked takes some again.

    The client sends what was refused again: in order, with the sequences that it had, before anything new. More of its
    batches may have been on their way meanwhile. So that none of these overtakes, the broker takes, of the sequences
    that it refused to this connection for this queue, only the lowest next; others are refused again, and Unblocked
    follows again. What is below the `oldest` of a later publish was given up by the client and is not waited for.
    A sequence that was refused so was not stored: it is not too old, whatever came after it.
    """

    queue: str


class Pong(Control, frozen=True, kw_only=True):
    """The answer to Ping."""


Reply: TypeAlias = (
    Welcome
    | Confirmed
    | Committed
    | Deliver
    | Done
    | Failed
    | Drained
    | LeasesLost
    | Ended
    | Unblocked
    | Ping
    | Pong
    | Goodbye
)
