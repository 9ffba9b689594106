"""Sending: batches wait for the window, are sent, and kept until they are answered.

    queued --window--> sent --Confirmed, Committed or Failed--> done
      ^                | |
      +-- connection --+ +--QueueBlocked--> held, by queue --Unblocked--> sent again
          breaks

A batch gets its producer sequences when it is first sent. Sent again after a reconnect it has the same, and goes in the
old order and before anything new: the broker recognises what it has already.

A queue that blocks holds up only what is published to it. Its batches do not count as sent; they wait in order, those
that were refused and all that come after, until the broker says Unblocked. As it has stored none of them, they are new
batches to the next connection, with new sequences.

A transaction goes the same way: it takes one sequence, among those of the batches, so that it is recognised like them.
One that was refused with QueueBlocked and goes to several places waits for no one of them in particular, as the broker
does not say which it was, and is tried again when any of them takes more.

Where a queue has no room for a batch of messages that were published one by one, half of them are tried, and so on, so
that each gets the answer that it would have got alone.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from vibemq.client.link import Link
from vibemq.client.outgoing import Outgoing, Place
from vibemq.client.stats import Stats
from vibemq.errors import LimitExceeded, QueueBlocked, QueueFull, RequestTimeout, ShuttingDown, VibeMQError, from_wire
from vibemq.protocol import messages as m

BATCH_OVERHEAD: Final = 16
"""What a batch has besides its messages, at most."""


class Outbox:
    """All batches of a client that have no answer."""

    def __init__(self, link: Link, timeout: float, stats: Stats, answered: Callable[[Outgoing], None]) -> None:
        """Send over `link`, give up after `timeout` seconds, and tell of each batch that is done with."""
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._timeout = timeout
        self._stats = stats
        self._done = answered
        # All of them, by order, and so by expiry. A plain dict takes long to find its first when many were deleted.
        self._pending: OrderedDict[int, Outgoing] = OrderedDict()
        self._numbered: dict[int, Outgoing] = {}  # those that have a sequence, by that
        self._queued: deque[Outgoing] = deque()
        self._sent: dict[int, Outgoing] = {}
        self._sent_bytes = 0
        self._held: dict[Place, list[tuple[int, Outgoing]]] = {}  # heaps by order
        self._unblocked: dict[Place, None] = {}  # those of the held that may be sent
        self._waiting: dict[int, Outgoing] = {}  # what was refused and goes to several places, by order
        self._order = 0
        self._sequence = 1
        self._timer: asyncio.TimerHandle | None = None
        self._marks: deque[tuple[int, asyncio.Future[None]]] = deque()
        link.handlers[m.Confirmed] = link.handlers[m.Committed] = self._confirmed
        link.handlers[m.Unblocked] = self._unblock
        link.on_cut.append(self._cut)
        link.on_closed.append(self._closed)

    # --- from the publisher ----------------------------------------------------------------------------------------

    def add(self, batch: Outgoing) -> None:
        """Take a batch; it is sent by the next `pump`."""
        self._order = batch.order = self._order + 1
        self._pending[batch.order] = batch
        self._queued.append(batch)
        if self._timer is None:
            self._timer = self._loop.call_at(batch.expires, self._expire)

    async def answered(self) -> None:
        """Wait until everything that was added so far has its answer."""
        if self._pending:
            mark: asyncio.Future[None] = self._loop.create_future()
            self._marks.append((self._order, mark))
            await mark

    @property
    def blocked(self) -> str:
        """A sentence that names the queues for which something is held, with a space before it; else nothing."""
        names = ", ".join(repr(name) for name, _ in self._held)
        return f" Full, or taking no more for now: {names}." if names else ""

    # --- to the broker ---------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what the window and the transport have room for."""
        link, sent = self._link, self._sent
        limits = link.limits
        while link.writable and len(sent) < limits.publish_window_batches:
            batch = self._next()
            if batch is None:
                return
            size = batch.size
            if sent and self._sent_bytes + size > limits.publish_window_bytes:
                self._queued.appendleft(batch)
                return
            if not batch.fits(limits):  # formed for another broker, or before its limits changed
                batch.failed(LimitExceeded(f"{size} bytes are above what the broker now takes at a time"))
                self._forget(batch)
                continue
            self._send(batch)

    def _next(self) -> Outgoing | None:
        """Take the next batch that may be sent; those of queues that block are held on the way."""
        while self._unblocked:
            place = next(iter(self._unblocked))
            if self._held[place]:
                return heappop(self._held[place])[1]
            del self._held[place], self._unblocked[place]
        while self._queued:
            batch = self._queued.popleft()
            if not self._held or not any(place in self._held for place in batch.places):
                return batch
            self._hold(batch)
        return None

    def _send(self, batch: Outgoing) -> None:
        if not batch.sequence:
            batch.sequence = self._sequence
            self._sequence += batch.numbers
            self._numbered[batch.sequence] = batch
        number = self._link.number()
        self._sent[number] = batch
        batch.sent_bytes = batch.size
        self._sent_bytes += batch.sent_bytes
        self._stats.batches_resent += batch.sent
        batch.sent, batch.blocked = True, False
        self._link.send(batch.frame(number, next(iter(self._numbered)), self._loop.time))

    # --- from the broker -------------------------------------------------------------------------------------------

    def _confirmed(self, reply: m.Confirmed | m.Committed) -> None:
        batch = self._sent.pop(reply.request, None)
        if batch is None:
            return
        self._sent_bytes -= batch.sent_bytes
        batch.confirmed(reply)
        if batch.go_on():
            self._send_anew(batch)
        else:
            self._forget(batch)
        if self._queued or self._unblocked:
            self.pump()

    def failed(self, reply: m.Failed) -> bool:
        """Take the refusal of a publish or a commit; False when it is not one."""
        batch = self._sent.get(reply.request)
        if batch is None:
            return False
        error = from_wire(reply.code, reply.text)
        if not isinstance(error, ShuttingDown):  # then it stays, to be sent to the next broker
            del self._sent[reply.request]
            self._sent_bytes -= batch.sent_bytes
            if isinstance(error, QueueBlocked) and not batch.abandoned:
                batch.sent = False
                if len(batch.places) == 1:
                    self._unblocked.pop(batch.places[0], None)
                self._hold(batch)
            elif isinstance(error, QueueFull) and not batch.abandoned and batch.try_less():
                self._send_anew(batch)
            else:
                batch.failed(error)
                self._forget(batch)
            self.pump()
        return True

    def _send_anew(self, batch: Outgoing) -> None:
        """Other messages than before are tried next, before all that is new: to the broker they are a new batch."""
        del self._numbered[batch.sequence]
        batch.sequence, batch.sent = 0, False
        self._queued.appendleft(batch)

    def _hold(self, batch: Outgoing) -> None:
        """Keep a batch until its queue takes some again."""
        if not batch.waited:
            batch.waited = True
            self._stats.publishes_blocked += batch.published
        batch.blocked = True
        held = next((place for place in batch.places if place in self._held), batch.places[0])
        if len(batch.places) == 1 or held in self._held:
            heappush(self._held.setdefault(held, []), (batch.order, batch))
        else:
            self._waiting[batch.order] = batch

    def _unblock(self, reply: m.Unblocked) -> None:
        for place in ((reply.queue, False), (reply.queue, True)):
            if place in self._held:
                self._unblocked[place] = None
            again = [batch for batch in self._waiting.values() if place in batch.places]
            for batch in reversed(again):
                del self._waiting[batch.order]
                self._queued.appendleft(batch)
        self.pump()

    def _forget(self, batch: Outgoing) -> None:
        """A batch has its answer, or needs none any more."""
        del self._pending[batch.order]
        if batch.sequence:
            del self._numbered[batch.sequence]
        self._done(batch)
        if self._marks:
            oldest = next(iter(self._pending), self._order + 1)
            while self._marks and self._marks[0][0] < oldest:
                _, mark = self._marks.popleft()
                if not mark.done():
                    mark.set_result(None)

    def _cut(self) -> None:
        """The connection broke: everything is sent again, in the old order."""
        self._sent.clear()
        self._sent_bytes = 0
        self._held.clear()
        self._unblocked.clear()
        self._waiting.clear()
        for batch in self._pending.values():
            batch.blocked = False
            if batch.sequence and not batch.sent:  # refused, and so not stored: by now its sequence may be too old
                del self._numbered[batch.sequence]
                batch.sequence = 0
        self._queued = deque(self._pending.values())
        self._drop_abandoned()

    # --- ends ------------------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        """Give up on the batches that waited too long. Those on their way keep their place in the window."""
        self._timer = None
        now = self._loop.time()
        for batch in self._pending.values():
            if batch.abandoned:
                continue
            if batch.expires > now:
                self._timer = self._loop.call_at(batch.expires, self._expire)
                break
            batch.abandoned = True
            batch.failed(RequestTimeout(f"{batch.expired} within {self._timeout:g} s: {batch.fate}."))
        self._drop_abandoned()

    def withdraw(self, batch: Outgoing, error: VibeMQError) -> bool:
        """Give up on one that is on no connection, because of `error`. False: it may be carried out already."""
        if batch.sent or batch.abandoned or batch.order not in self._pending:
            return False
        batch.abandoned = True
        batch.failed(error)
        self._drop_abandoned()
        return True

    def abandon(self, batch: Outgoing) -> None:
        """Nobody waits for one any more: it is not sent again."""
        batch.abandoned = True
        self._drop_abandoned()

    def _drop_abandoned(self) -> None:
        """Forget what nobody waits for and what is on no connection."""
        sent = {batch.order for batch in self._sent.values()}
        abandoned = [batch for batch in self._pending.values() if batch.abandoned and batch.order not in sent]
        if not abandoned:
            return
        self._queued = deque(batch for batch in self._queued if not batch.abandoned)
        for heap in self._held.values():  # also an empty one stays: the broker has not said that it takes more
            heap[:] = [entry for entry in heap if not entry[1].abandoned]
            heapify(heap)
        for batch in abandoned:
            self._waiting.pop(batch.order, None)
            self._forget(batch)

    def _closed(self, error: VibeMQError) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batches = list(self._pending.values())
        self._sent.clear()
        self._queued.clear()
        self._held.clear()
        self._unblocked.clear()
        self._waiting.clear()
        for batch in batches:
            batch.failed(type(error)(f"{error}: {batch.expired}; {batch.fate}"))
            self._forget(batch)
