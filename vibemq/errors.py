"""Every error that VibeMQ raises, in one tree.

    VibeMQError
      UsageError                 the caller passed something that can never work
      ProtocolError              the peer broke the protocol; the connection ends
        MalformedFrame             bytes that are no frame, or fields that are no request
        FrameTooLong               a frame above its limit
        UnsupportedVersion         no protocol version in common
        UnexpectedFrame            a frame that the state of the session does not allow
        HeartbeatMissed            silence for longer than was agreed
        FlowExceeded               more sent than credit was granted for
      RequestError               one request was refused; the connection goes on
        UnknownQueue               no queue of that name
        DeclareConflict            the queue exists with other settings
        InvalidName                a name that is empty, too long, or has forbidden characters
        InvalidRequest             a field out of range, or a batch that does not add up
        LimitExceeded              a limit of the table in docs/limits.md
        QueueFull                  the queue's own max_length or max_bytes
        DiskFull                   only the reserve is left on the disk
        LeaseLost                  the message is no longer yours
        UnknownSubscription        that subscription has ended
        SequenceTooOld             a producer sequence below the remembered window
        NotSupported               known, but not in this version
        ShuttingDown               the broker is stopping
        QueueBlocked               no room, or too fast: wait for Unblocked, then send again
        Unroutable                 no queue is bound to that topic
        ConsumerExclusive          another consumer has the group for itself, or this one may not have it so
        UnknownGroup               the queue has no group of that name
        TransactionConflict        a message that was to be acked is no longer yours; nothing was done
        TransactionEnded           this attempt is over, and never will be committed
          TransactionTimeout       it was open for too long
        UnknownMessage             no message of that id waits for its time there
        UnknownSchedule            no schedule of that name
      ConnectionFailed           the broker could not be reached, or went away
        ConnectionLost             the connection broke while something waited for it
        RequestTimeout             no answer within the timeout
        ClientClosed               the client was closed
      StorageError               the data folder
        DataFolderLocked           another process has it
        FormatUnsupported          written by a version this one cannot read
        CorruptLog                 damage to what was synced
        WriteFailed                a write or a sync failed; the process must end
        OutOfSpace                 no room even for the reserve
        BeyondLog                  an offset the log does not (or no longer) hold
        EventNotApplied            an event that does not fit the state before it
      ConfigError                a setting or configuration file that makes no sense

Errors with a `code` travel over the wire: the broker sends the code and the text, the client raises the same class.
Codes are stable and listed in docs/protocol.md.
"""

from typing import ClassVar


class VibeMQError(Exception):
    """The root. `code` is the number on the wire; 0 means that the error never travels."""

    code: ClassVar[int] = 0

    @property
    def text(self) -> str:
        """The message for people: what happened, where, and what to do. Always text that can be sent as UTF-8."""
        return str(self).encode("utf-8", "backslashreplace").decode()


class UsageError(VibeMQError):
    """The caller passed something that can never work."""


class ProtocolError(VibeMQError):
    """The peer broke the protocol; the connection ends after the error was sent."""

    code = 100


class MalformedFrame(ProtocolError):
    """Bytes that are no frame, or a frame whose fields are no request."""

    code = 101


class FrameTooLong(ProtocolError):
    """A frame above the limit that holds for it."""

    code = 102


class UnsupportedVersion(ProtocolError):
    """Client and broker have no protocol version in common."""

    code = 103


class UnexpectedFrame(ProtocolError):
    """A frame that the state of the session does not allow."""

    code = 104


class HeartbeatMissed(ProtocolError):
    """The peer was silent for longer than twice the agreed heartbeat."""

    code = 105


class FlowExceeded(ProtocolError):
    """The peer sent more than it had credit for."""

    code = 106


class RequestError(VibeMQError):
    """One request was refused; the connection goes on."""

    code = 200


class UnknownQueue(RequestError):
    """No queue of that name, and it may not be created on the way."""

    code = 201


class DeclareConflict(RequestError):
    """The queue exists with other settings."""

    code = 202


class InvalidName(RequestError):
    """A name that is empty, too long, or has forbidden characters."""

    code = 203


class InvalidRequest(RequestError):
    """A field out of range, or a batch that does not add up."""

    code = 204


class LimitExceeded(RequestError):
    """A limit of the broker was met (docs/limits.md)."""

    code = 205


class QueueFull(RequestError):
    """The queue's max_length or max_bytes is reached."""

    code = 206


class DiskFull(RequestError):
    """Only the reserve is left on the broker's disk; consuming and acking go on."""

    code = 207


class LeaseLost(RequestError):
    """The message's lease ended before the ack; it may be delivered to somebody else."""

    code = 208


class UnknownSubscription(RequestError):
    """The subscription has ended or never was this connection's."""

    code = 209


class SequenceTooOld(RequestError):
    """A producer sequence below the remembered window: whether it was stored is not known any more."""

    code = 210


class NotSupported(RequestError):
    """Part of the contract, but not in this version of the broker."""

    code = 211


class ShuttingDown(RequestError):
    """The broker is stopping; reconnect and send again."""

    code = 212


class QueueBlocked(RequestError):
    """The queue is full, or takes no more for now: wait until the broker says Unblocked, then send again, in order."""

    code = 213


class Unroutable(RequestError):
    """No queue is bound to the topic; nothing was stored."""

    code = 214


class ConsumerExclusive(RequestError):
    """Another consumer has the group for itself, or there are consumers and this one wants it for itself."""

    code = 215


class UnknownGroup(RequestError):
    """The queue has no group of that name, or queues of its mode have none."""

    code = 216


class TransactionConflict(RequestError):
    """A message that the transaction was to ack is no longer this consumer's; nothing of the transaction was done."""

    code = 217


class TransactionEnded(RequestError):
    """This attempt at a transaction is over: nothing of it was done, and nothing will be. Begin anew."""

    code = 218


class TransactionTimeout(TransactionEnded):
    """The transaction was open for longer than its timeout; nothing of it was done."""

    code = 219


class UnknownMessage(RequestError):
    """No message of that id waits for its time in that queue."""

    code = 220


class UnknownSchedule(RequestError):
    """No schedule of that name."""

    code = 221


class ConnectionFailed(VibeMQError):
    """The broker could not be reached, or went away."""


class ConnectionLost(ConnectionFailed):
    """The connection broke while something waited for it."""


class RequestTimeout(ConnectionFailed):
    """No answer came within the timeout of the call."""


class ClientClosed(ConnectionFailed):
    """The client was closed before the call could end."""


class StorageError(VibeMQError):
    """The data folder."""


class DataFolderLocked(StorageError):
    """Another process writes to this data folder."""


class FormatUnsupported(StorageError):
    """The data folder was written by a version that this one cannot read."""


class CorruptLog(StorageError):
    """Damage to records that were known to be synced."""

    def __init__(self, file: str, position: int, offset: int, problem: str) -> None:
        """`file` within the data folder, byte `position` in it, record `offset` expected there, and the `problem`."""
        self.file, self.position, self.offset, self.problem = file, position, offset, problem
        super().__init__(
            f"the log is damaged: {file}, byte {position}, record {offset}: {problem}. These bytes were synced, so "
            f"this is no torn tail and nothing was cut. Copy the data folder, then look at it with `vibemq verify`, "
            f"and restore the folder from a backup if you have one."
        )


class WriteFailed(StorageError):
    """A write or a sync of the log failed. What it covered is not confirmed; the process must end."""


class OutOfSpace(StorageError):
    """The disk has no room, not even for the reserve."""


class BeyondLog(StorageError):
    """An offset that the log does not hold yet, or no longer."""


class EventNotApplied(StorageError):
    """An event that does not fit the state which the events before it add up to."""

    def __init__(self, offset: int, kind: str, problem: str) -> None:
        """Record `offset` is an event of this `kind`."""
        self.offset, self.kind, self.problem = offset, kind, problem
        super().__init__(
            f"record {offset} ({kind}) does not fit the state before it: {problem}. Either these two are of different "
            f"builds of VibeMQ, or this is a bug: `python -m tools.replay` helps to find where it begins."
        )


class ConfigError(VibeMQError):
    """A setting or a configuration file that makes no sense."""


def _by_code(root: type[VibeMQError]) -> dict[int, type[VibeMQError]]:
    found = {root.code: root} if root.code else {}
    for child in root.__subclasses__():
        found |= _by_code(child)
    return found


BY_CODE: dict[int, type[VibeMQError]] = _by_code(VibeMQError)


def from_wire(code: int, text: str) -> VibeMQError:
    """The error that a peer sent as `code` and `text`; an unknown code becomes a RequestError that names it."""
    kind = BY_CODE.get(code)
    return kind(text) if kind is not None else RequestError(f"{text} (error {code})")
