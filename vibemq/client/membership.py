"""Which group of a queue a consumer takes part in, over any number of connections."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from vibemq.client.moment import microseconds
from vibemq.errors import UnknownGroup, UsageError, VibeMQError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import NUMBER_MAX, Start, check_name

StartAt: TypeAlias = Literal["tail", "head"] | int | datetime
"""Behind the last message, at the first, at a sequence, or at the first message from a time on."""


def start_of(start: StartAt, what: str = "start") -> tuple[Start, int]:
    """Where to start, as it travels; `what` names it in errors.

    Raises:
        UsageError: it is none of that.
    """
    if start == "tail":
        return "tail", 0
    if start == "head":
        return "head", 0
    if isinstance(start, datetime):
        return "time", microseconds(start, what)
    if type(start) is int and 0 <= start <= NUMBER_MAX:
        return "sequence", start
    raise UsageError(f'{what} is {start!r}: write "tail", "head", a sequence, or a datetime with a time zone')


@dataclass(slots=True)
class Membership:
    """What a consumer asks for. Who names no group is given one, where the queue has any, and asks for it again later.

    The broker keeps such a group for a while after its last consumer. When it is gone, another one starts where this
    was told to start.
    """

    queue: str
    group: str | None
    start: StartAt = "tail"
    exclusive: bool = False
    given: str | None = None
    """The group that the broker gave."""

    def __post_init__(self) -> None:
        """Check what was given.

        Raises:
            VibeMQError: a name or a start that cannot be.
        """
        check_name(self.queue)
        if self.group is not None:
            check_name(self.group, "group")
        start_of(self.start)

    def subscribe(self, number: int, messages: int = 0, size: int = 0) -> m.Subscribe:
        """The request to take part, with credit for so many messages and bytes."""
        start, at = start_of(self.start)
        return m.Subscribe(
            request=number,
            queue=self.queue,
            group=self.group or self.given,
            messages=messages,
            bytes=size,
            start=start,
            at=at,
            exclusive=self.exclusive,
        )

    def joined(self, group: str | None) -> None:
        """The broker said which group it is."""
        if self.group is None:
            self.given = group

    def gone(self, error: VibeMQError) -> bool:
        """Whether `error` says that the group which the broker gave is gone; then the next request is for another."""
        if self.given is None or not isinstance(error, UnknownGroup):
            return False
        self.given = None
        return True
