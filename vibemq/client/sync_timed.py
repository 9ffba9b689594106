"""The part of the blocking client that deals with time: messages that wait for theirs, and schedules."""

from collections.abc import Iterator
from datetime import datetime

from vibemq.client.client import Client
from vibemq.client.delayed import After, DelayedMessage, MessageIds, ShownDelayed
from vibemq.client.moment import Moment
from vibemq.client.outgoing import Body, MessageHeaders, Priority
from vibemq.client.schedules import Schedule
from vibemq.client.sync_messages import Bridge
from vibemq.durations import Duration
from vibemq.protocol.fields import Misfire


class SyncTimed:
    """The verbs of Delayed and Schedules."""

    _client: Client
    _bridge: Bridge

    def delayed(self, queue: str) -> Iterator[DelayedMessage]:
        """The messages of a queue that wait for their time, the first due first, as Client.delayed()."""
        after: After | None = (0, 0, 0)
        while after is not None:
            page, after = self._bridge.call(self._client.delayed_page(queue, after))
            yield from page

    def show_delayed(self, queue: str, message_id: str) -> ShownDelayed:
        """A message that waits for its time, with body and headers, as Client.show_delayed()."""
        return self._bridge.call(self._client.show_delayed(queue, message_id))

    def cancel_delayed(self, queue: str, ids: MessageIds) -> int:
        """Take messages back that wait for their time, as Client.cancel_delayed()."""
        return self._bridge.call(self._client.cancel_delayed(queue, ids))

    def reschedule(
        self, queue: str, ids: MessageIds, *, delay: Duration | None = None, deliver_at: Moment | None = None
    ) -> datetime:
        """Let messages wait for another time, as Client.reschedule()."""
        return self._bridge.call(self._client.reschedule(queue, ids, delay=delay, deliver_at=deliver_at))

    def release_delayed(self, queue: str, ids: MessageIds) -> int:
        """Let messages be ready at once, as Client.release_delayed()."""
        return self._bridge.call(self._client.release_delayed(queue, ids))

    def set_schedule(
        self,
        name: str,
        queue: str,
        body: Body,
        *,
        cron: str | None = None,
        every: Duration | None = None,
        zone: str = "UTC",
        start: Moment | None = None,
        end: Moment | None = None,
        times: int | None = None,
        misfire: Misfire = "once",
        headers: MessageHeaders | None = None,
        priority: Priority | None = None,
        ttl: Duration | None = None,
        to_topic: bool = False,
    ) -> Schedule:
        """Let the broker publish a message again and again, as Client.set_schedule()."""
        return self._bridge.call(
            self._client.set_schedule(
                name,
                queue,
                body,
                cron=cron,
                every=every,
                zone=zone,
                start=start,
                end=end,
                times=times,
                misfire=misfire,
                headers=headers,
                priority=priority,
                ttl=ttl,
                to_topic=to_topic,
            )
        )

    def schedules(self, name: str | None = None) -> list[Schedule]:
        """All schedules by name, or the one of that `name`, as Client.schedules()."""
        return self._bridge.call(self._client.schedules(name))

    def pause_schedule(self, name: str) -> Schedule:
        """Let a schedule publish nothing until it is resumed, as Client.pause_schedule()."""
        return self._bridge.call(self._client.pause_schedule(name))

    def resume_schedule(self, name: str) -> Schedule:
        """Let a schedule go on from now on, as Client.resume_schedule()."""
        return self._bridge.call(self._client.resume_schedule(name))

    def delete_schedule(self, name: str) -> None:
        """Delete a schedule, as Client.delete_schedule()."""
        self._bridge.call(self._client.delete_schedule(name))
