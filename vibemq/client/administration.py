"""The verbs that look after queues, groups and bindings."""

from collections.abc import Callable, Mapping
from typing import Unpack

import msgspec

from vibemq.client.membership import StartAt, start_of
from vibemq.client.outgoing import Priority, priority_number
from vibemq.client.peeked import PeekedMessage, peeked
from vibemq.client.queues import QueueSettings, declare_of, settings_of
from vibemq.client.requests import Requests
from vibemq.durations import Duration, milliseconds
from vibemq.errors import ConnectionLost
from vibemq.protocol import messages as m
from vibemq.protocol.fields import OnDifference, check_name, check_pattern


class Administration:
    """The part of a client that looks after queues.

    What may be done twice is sent again when the connection breaks before the answer. The rest raises ConnectionLost
    then: whether it was done is not known.
    """

    _requests: Requests

    # --- queues ----------------------------------------------------------------------------------------------------

    async def declare(
        self, name: str, *, on_difference: OnDifference = "fail", **settings: Unpack[QueueSettings]
    ) -> dict[str, object]:
        """Create a queue, or compare the one that is there with these settings; returns what show_queue() does.

        In the result, "differences" lists where the live queue differed: {"setting", "live", "declared", "class"}. The
        classes are "info" (a description), "soft" (can be changed while the queue is used) and "hard" (cannot: `mode`
        and `order_by_key`). With `on_difference` "ignore" the queue stays as it is, with "override" it is changed.

        Raises:
            DeclareConflict: it differs, and on_difference is "fail"; or in what is hard, and it is "override".
            UsageError: a setting that does not exist.
        """
        declare = declare_of(name, on_difference, settings)
        return await self._mapping(
            lambda number: msgspec.structs.replace(declare, request=number), what=f"declare {name!r}"
        )

    async def change(self, name: str, **settings: Unpack[QueueSettings]) -> dict[str, object]:
        """Give a queue other settings while it is used; those that are not named stay. Returns what show_queue() does.

        Raises:
            UnknownQueue: there is none of that name.
            DeclareConflict: a setting that cannot be changed.
            UsageError: a setting that does not exist.
        """
        check_name(name)
        wanted = settings_of(settings)
        return await self._mapping(
            lambda number: m.Change(request=number, queue=name, settings=wanted), what=f"change {name!r}"
        )

    async def rename(self, name: str, new: str) -> dict[str, object]:
        """Give a queue another name; its messages, consumers, groups and bindings stay. Returns what show_queue() does.

        Raises:
            UnknownQueue: there is none of that name.
            DeclareConflict: there is one of the new name.
            ConnectionLost: the connection broke, and whether it was done is not known.
        """
        check_name(name)
        check_name(new)
        return await self._mapping(
            lambda number: m.Rename(request=number, queue=name, name=new), what=f"rename {name!r}", once=True
        )

    async def list_queues(self) -> list[dict[str, object]]:
        """All queues by name, each as show_queue() gives it."""
        return await self._list(lambda number: m.ListQueues(request=number), what="list_queues")

    async def list_deleted(self) -> list[dict[str, object]]:
        """The queues that undelete() can bring back, each as show_queue() gives it, with `until_us`: till when."""
        return await self._list(lambda number: m.ListDeleted(request=number), what="list_deleted")

    async def show_queue(self, name: str) -> dict[str, object]:
        """The counts and settings of a queue.

        Raises:
            UnknownQueue: there is none of that name.
        """
        check_name(name)
        return await self._mapping(lambda number: m.ShowQueue(request=number, queue=name), what=f"show {name!r}")

    async def purge(self, name: str) -> int:
        """Throw away what is ready in a queue; returns how many messages that were.

        Raises:
            UnknownQueue: there is none of that name.
            ConnectionLost: the connection broke, and whether it was done is not known. Not sent again: by then there
                may be other messages.
        """
        check_name(name)
        return _count(
            await self._mapping(lambda number: m.Purge(request=number, queue=name), what=f"purge {name!r}", once=True)
        )

    async def delete(self, name: str, grace: Duration | None = None) -> int:
        """Delete a queue; returns how many messages it held. For `grace` undelete() brings it back.

        Without a `grace` it is the queue's own setting `delete_grace`; with 0 the queue is gone at once.

        Raises:
            UnknownQueue: there is none of that name.
            ConnectionLost: the connection broke, and whether it was done is not known.
        """
        check_name(name)
        grace_ms = None if grace is None else milliseconds(grace, "grace")
        return _count(
            await self._mapping(
                lambda number: m.Delete(request=number, queue=name, grace_ms=grace_ms),
                what=f"delete {name!r}",
                once=True,
            )
        )

    async def undelete(self, name: str, as_name: str | None = None) -> dict[str, object]:
        """Bring back the queue of that name which was deleted last, with its messages, groups, bindings and settings.

        It gets its old name, or `as_name` if the old one was taken meanwhile. Returns what show_queue() does.

        Raises:
            UnknownQueue: there is none, or not any more.
            DeclareConflict: there is a queue of that name.
            ConnectionLost: the connection broke, and whether it was done is not known.
        """
        check_name(name)
        if as_name is not None:
            check_name(as_name)
        return await self._mapping(
            lambda number: m.Undelete(request=number, queue=name, name=as_name or ""),
            what=f"undelete {name!r}",
            once=True,
        )

    async def peek(
        self,
        queue: str,
        start: int = 0,
        count: int = 100,
        group: str | None = None,
        *,
        priority: Priority | None = None,
    ) -> list[PeekedMessage]:
        """Up to `count` ready messages from sequence `start` on, of one `group` where there are any; none is taken.

        In mode priority each priority numbers its messages for itself: to see all of a long queue, ask for one after
        the other.

        Raises:
            UnknownQueue, UnknownGroup: there is none of that name.
        """
        check_name(queue)
        if group is not None:
            check_name(group, "group")
        found = await self._list(
            lambda number: m.Peek(
                request=number,
                queue=queue,
                start=start,
                count=count,
                group=group,
                priority=None if priority is None else priority_number(priority),
            ),
            what=f"peek {queue!r}",
        )
        return [peeked(queue, one) for one in found]

    # --- groups ----------------------------------------------------------------------------------------------------

    async def seek(self, queue: str, group: str, to: StartAt) -> int:
        """Let a group go on from the "head", the "tail", a sequence or a time; returns the sequence that this is.

        What its consumers hold is taken from them: acks of that come too late, as after the end of a lease.

        Raises:
            UnknownQueue, UnknownGroup: there is none of that name.
            ConnectionLost: the connection broke, and whether it was done is not known.
        """
        check_name(queue)
        check_name(group, "group")
        start, at = start_of(to, "to")
        result = await self._mapping(
            lambda number: m.Seek(request=number, queue=queue, group=group, start=start, at=at),
            what=f"seek {group!r} of {queue!r}",
            once=True,
        )
        return _count(result, "sequence")

    async def delete_group(self, queue: str, group: str) -> None:
        """Delete a group; its consumers end with UnknownGroup.

        Raises:
            UnknownQueue, UnknownGroup: there is none of that name.
            ConnectionLost: the connection broke, and whether it was done is not known.
        """
        check_name(queue)
        check_name(group, "group")
        await self._mapping(
            lambda number: m.DeleteGroup(request=number, queue=queue, group=group),
            what=f"delete group {group!r} of {queue!r}",
            once=True,
        )

    # --- topics ----------------------------------------------------------------------------------------------------

    async def bind(self, queue: str, pattern: str) -> None:
        """Let a queue have what is published to topics that match `pattern`. A binding that is there already stays.

        A pattern is words between dots; the word `*` stands for any one word, `#` for any number of words, also none.

        Raises:
            InvalidName: a pattern that cannot be.
            UnknownQueue: there is none of that name.
        """
        check_name(queue)
        check_pattern(pattern)
        await self._mapping(lambda number: m.Bind(request=number, queue=queue, pattern=pattern), what=f"bind {queue!r}")

    async def unbind(self, queue: str, pattern: str) -> bool:
        """Take a binding back; returns whether there was one.

        Raises:
            UnknownQueue: there is none of that name.
        """
        check_name(queue)
        check_pattern(pattern)
        result = await self._mapping(
            lambda number: m.Unbind(request=number, queue=queue, pattern=pattern), what=f"unbind {queue!r}"
        )
        return _count(result) > 0

    async def bindings(self, queue: str | None = None) -> list[tuple[str, str]]:
        """The bindings of a queue, or of all queues: (queue, pattern) each.

        Raises:
            UnknownQueue: there is none of that name.
        """
        if queue is not None:
            check_name(queue)
        found = await self._list(lambda number: m.ListBindings(request=number, queue=queue), what="bindings")
        return [(str(one.get("queue")), str(one.get("pattern"))) for one in found]

    # --- the broker ------------------------------------------------------------------------------------------------

    async def digest(self) -> dict[str, object]:
        """The digest of every projection of the broker, and the offset at which it holds."""
        return await self._mapping(lambda number: m.Digest(request=number), what="digest")

    # --- answers ---------------------------------------------------------------------------------------------------

    async def _mapping(self, make: Callable[[int], m.Command], *, what: str, once: bool = False) -> dict[str, object]:
        """The answer to a request. With `once` it is not sent again when the connection breaks."""
        lost = ConnectionLost(f"{what}: the connection broke before the answer; whether it was done is not known")
        result = await self._requests.call(make, what=what, lost=lost if once else None)
        return result if isinstance(result, dict) else {}

    async def _list(self, make: Callable[[int], m.Command], *, what: str) -> list[dict[str, object]]:
        result = await self._requests.call(make, what=what)
        return [one for one in result if isinstance(one, dict)] if isinstance(result, list) else []


def _count(result: Mapping[str, object], name: str = "count") -> int:
    count = result.get(name)
    return count if isinstance(count, int) else 0
