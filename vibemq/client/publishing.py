"""The verbs that publish."""

import asyncio
from collections.abc import Sequence
from itertools import chain, repeat

from vibemq.client.moment import Moment
from vibemq.client.outgoing import Body, MessageHeaders, Priority, Receipt, Route, check_dedup_id, stamped
from vibemq.client.publisher import Publisher
from vibemq.durations import Duration
from vibemq.errors import UsageError


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
        deliver_at: Moment | None = None,
        dedup_id: str | None = None,
    ) -> Receipt:
        """Store a message; returns once it is durable. Calls that meet in one turn of the loop travel together.

        `priority` is 0 to 9, or low (1), normal (4), high (7) or critical (9), and counts in queues of mode priority.
        `ttl` is how long the message may wait to be delivered. Messages of one `key` stay in order, in queues that have
        `order_by_key`; consumers find it in the header `key`.

        With `delay`, or until `deliver_at`, the message waits before it is ready, for as long as you like; a delay
        counts from the call. Of messages with one `dedup_id` the queue stores the first, within its `dedup_window`; for
        the others the receipt says that it is a `duplicate`, and of which.

        A queue may be full and let publishers wait (`overflow="block"`), or have a publish rate: then the call waits
        until the message is taken. Cancelling the call does not take the message back.

        Raises:
            RequestTimeout: not confirmed in time; the text says whether it may still be stored.
            LimitExceeded: larger than the broker takes.
            QueueFull: the queue takes no more.
        """
        if key is dedup_id is priority is ttl is delay is deliver_at is None:
            publisher = self._publisher
            if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
                await publisher.room()
            return await publisher.add(queue, body, headers)
        if dedup_id is not None:
            check_dedup_id(dedup_id)
        route = Route.of(queue, priority, ttl, delay, deliver_at)
        return await self._publish(route, body, stamped(headers, key, None), key, dedup_id)

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
        deliver_at: Moment | None = None,
    ) -> Receipt:
        """Store a message in every queue that is bound to a pattern which `topic` matches; else as publish().

        A topic is words between dots; see bind(). Consumers find it in the header `topic`. There is no `dedup_id`, as
        one queue may know it and another may not.

        Raises:
            Unroutable: no queue is bound to it; nothing was stored.
            RequestTimeout, LimitExceeded, QueueFull: as publish().
        """
        route = Route.of(topic, priority, ttl, delay, deliver_at, to_topic=True)
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
        delay: Duration | None = None,
        deliver_at: Moment | None = None,
        dedup_ids: Sequence[str | None] | None = None,
    ) -> list[Receipt]:
        """Store messages as one batch; returns once all are durable, with their receipts in the same order.

        `headers`, `keys` and `dedup_ids` have an entry for each body; all else is the same for all. What is above the
        broker's limits for a batch goes in several, and when one of them is refused the others may be stored. Messages
        whose dedup ids are known are not stored, and the others are.

        Raises:
            RequestTimeout, LimitExceeded, QueueFull: as publish().
        """
        route = Route.of(queue, priority, ttl, delay, deliver_at)
        return await self._publish_many(route, bodies, headers, keys, dedup_ids)

    async def publish_topic_many(
        self,
        topic: str,
        bodies: Sequence[Body],
        *,
        headers: Sequence[MessageHeaders | None] | None = None,
        priority: Priority | None = None,
        ttl: Duration | None = None,
        keys: Sequence[str | None] | None = None,
        delay: Duration | None = None,
        deliver_at: Moment | None = None,
    ) -> list[Receipt]:
        """Store messages as one batch in every queue that is bound to a pattern which `topic` matches.

        Raises:
            Unroutable: no queue is bound to it; nothing was stored.
            RequestTimeout, LimitExceeded, QueueFull: as publish().
        """
        route = Route.of(topic, priority, ttl, delay, deliver_at, to_topic=True)
        return await self._publish_many(route, bodies, headers, keys)

    async def _publish(
        self,
        route: Route,
        body: Body,
        headers: MessageHeaders | None,
        key: str | None,
        dedup_id: str | None = None,
    ) -> Receipt:
        publisher = self._publisher
        if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
            await publisher.room()
        to = route.name if route == Route(route.name) else route
        return await publisher.add(to, body, headers, key, dedup_id)

    async def _publish_many(
        self,
        route: Route,
        bodies: Sequence[Body],
        headers: Sequence[MessageHeaders | None] | None,
        keys: Sequence[str | None] | None,
        dedup_ids: Sequence[str | None] | None = None,
    ) -> list[Receipt]:
        headers = stamped_all(route, bodies, headers, keys, dedup_ids)
        if not bodies:
            return []
        publisher = self._publisher
        if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
            await publisher.room()
        futures = publisher.add_many(route, bodies, headers, keys, dedup_ids)
        if len(futures) == 1:
            return await futures[0]
        return list(chain.from_iterable(await asyncio.gather(*futures)))


def stamped_all(
    route: Route,
    bodies: Sequence[Body],
    headers: Sequence[MessageHeaders | None] | None,
    keys: Sequence[str | None] | None,
    dedup_ids: Sequence[str | None] | None,
) -> Sequence[MessageHeaders | None] | None:
    """The headers of messages, with key and topic in them; None where no message has any.

    Raises:
        UsageError: headers, keys or ids that are not one for each message, or no texts.
    """
    for what, given in (("headers", headers), ("keys", keys), ("dedup_ids", dedup_ids)):
        if given is not None and len(given) != len(bodies):
            raise UsageError(f"there are {len(bodies)} messages, and {what} for {len(given)}")
    for dedup_id in dedup_ids or ():
        if dedup_id is not None:
            check_dedup_id(dedup_id)
    if keys is None and not route.to_topic:
        return headers
    topic = route.name if route.to_topic else None
    return [
        stamped(one, key, topic)
        for _, one, key in zip(bodies, headers or repeat(None), keys or repeat(None), strict=False)
    ]
