"""The verbs that publish."""

import asyncio
from collections.abc import Sequence
from itertools import chain, repeat

from vibemq.client.outgoing import Body, MessageHeaders, Priority, Receipt, Route, stamped
from vibemq.client.publisher import Publisher
from vibemq.durations import Duration
from vibemq.errors import NotSupported, UsageError


class Publishing:
    """The part of a client that publishes."""

    _publisher: Publisher

    async def publish(
        self,
        queue: str,
        body: Body,
        *,
        headers: MessageHeaders | None = None,
        priority: Priority | None = None,
        ttl: Duration | None = None,
        key: str | None = None,
        delay: Duration | None = None,
        dedup_id: str | None = None,
    ) -> Receipt:
        """Store a message; returns once it is durable. Calls that meet in one turn of the loop travel together.

        `priority` is 0 to 9, or low (1), normal (4), high (7) or critical (9), and counts in queues of mode priority.
        `ttl` is how long the message may wait to be delivered. Messages of one `key` stay in order, in queues that have
        `order_by_key`; consumers find it in the header `key`.

        A queue may be full and let publishers wait (`overflow="block"`), or have a publish rate: then the call waits
        until the message is taken. Cancelling the call does not take the message back.

        Raises:
            RequestTimeout: not confirmed in time; the text says whether it may still be stored.
            LimitExceeded: larger than the broker takes.
            QueueFull: the queue takes no more.
            NotSupported: delay and dedup_id are not in this version.
        """
        if priority is ttl is key is delay is dedup_id is None:
            publisher = self._publisher
            if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
                await publisher.room()
            return await publisher.add(queue, body, headers)
        _check_supported(delay=delay, dedup_id=dedup_id)
        return await self._publish(Route.of(queue, priority, ttl), body, stamped(headers, key, None), key)

    async def publish_topic(
        self,
        topic: str,
        body: Body,
        *,
        headers: MessageHeaders | None = None,
        priority: Priority | None = None,
        ttl: Duration | None = None,
        key: str | None = None,
        delay: Duration | None = None,
        dedup_id: str | None = None,
    ) -> Receipt:
        """Store a message in every queue that is bound to a pattern which `topic` matches; else as publish().

        A topic is words between dots; see bind(). Consumers find it in the header `topic`.

        Raises:
            Unroutable: no queue is bound to it; nothing was stored.
            RequestTimeout, LimitExceeded, QueueFull, NotSupported: as publish().
        """
        _check_supported(delay=delay, dedup_id=dedup_id)
        route = Route.of(topic, priority, ttl, to_topic=True)
        return await self._publish(route, body, stamped(headers, key, topic), key)

    async def publish_many(
        self,
        queue: str,
        bodies: Sequence[Body],
        *,
        headers: Sequence[MessageHeaders | None] | None = None,
        priority: Priority | None = None,
        ttl: Duration | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> list[Receipt]:
        """Store messages as one batch; returns once all are durable, with their receipts in the same order.

        `headers` and `keys` have an entry for each body; `priority` and `ttl` are the same for all. What is above the
        broker's limits for a batch goes in several, and when one of them is refused the others may be stored.

        Raises:
            RequestTimeout, LimitExceeded, QueueFull: as publish().
        """
        return await self._publish_many(Route.of(queue, priority, ttl), bodies, headers, keys)

    async def publish_topic_many(
        self,
        topic: str,
        bodies: Sequence[Body],
        *,
        headers: Sequence[MessageHeaders | None] | None = None,
        priority: Priority | None = None,
        ttl: Duration | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> list[Receipt]:
        """Store messages as one batch in every queue that is bound to a pattern which `topic` matches.

        Raises:
            Unroutable: no queue is bound to it; nothing was stored.
            RequestTimeout, LimitExceeded, QueueFull: as publish().
        """
        return await self._publish_many(Route.of(topic, priority, ttl, to_topic=True), bodies, headers, keys)

    async def _publish(self, route: Route, body: Body, headers: MessageHeaders | None, key: str | None) -> Receipt:
        publisher = self._publisher
        if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
            await publisher.room()
        return await publisher.add(route.name if route == Route(route.name) else route, body, headers, key)

    async def _publish_many(
        self,
        route: Route,
        bodies: Sequence[Body],
        headers: Sequence[MessageHeaders | None] | None,
        keys: Sequence[str | None] | None,
    ) -> list[Receipt]:
        if not bodies:
            return []
        for what, given in (("headers", headers), ("keys", keys)):
            if given is not None and len(given) != len(bodies):
                raise UsageError(f"there are {len(bodies)} messages, and {what} for {len(given)}")
        if keys is not None or route.to_topic:
            topic = route.name if route.to_topic else None
            headers = [
                stamped(one, key, topic)
                for _, one, key in zip(bodies, headers or repeat(None), keys or repeat(None), strict=False)
            ]
        publisher = self._publisher
        if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
            await publisher.room()
        futures = publisher.add_many(route, bodies, headers, keys)
        if len(futures) == 1:
            return await futures[0]
        return list(chain.from_iterable(await asyncio.gather(*futures)))


def _check_supported(**given: object) -> None:
    names = " and ".join(name for name, value in given.items() if value is not None)
    if names:
        raise NotSupported(f"{names}: not in this version of the broker; leave it out")
