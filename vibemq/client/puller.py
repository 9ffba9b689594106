"""Pulling: a subscription without standing credit, which stays for the next pull.

Credit with wait_ms asks for what is there; Drained ends that. A pull that is cancelled meanwhile leaves a subscription
that still waits for it. When nothing is held through it, it is given up, together with what may still come: the next
pull subscribes anew and waits for nobody. Otherwise it stays, as giving it up would end the leases of messages that
were pulled before; then what comes after all is kept for the next pull, and its lease is not extended.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from vibemq.client.membership import Membership
from vibemq.client.message import M, Parcel
from vibemq.client.requests import Pending, Requests
from vibemq.client.subscription import Subscription, Subscriptions
from vibemq.errors import RequestTimeout, UnknownGroup, VibeMQError


class Puller:
    """Pulls from one queue or group, one pull at a time."""

    def __init__(
        self, requests: Requests, subscriptions: Subscriptions, membership: Membership, bytes_max: int
    ) -> None:
        """Prepare; the first pull subscribes."""
        self._requests = requests
        self._subscriptions = subscriptions
        self.membership = membership
        self._bytes_max = bytes_max
        self._subscription: Subscription | None = None
        self._parcels: deque[Parcel] = deque()
        self._handed = 0
        self._lost = 0  # of those not handed on
        self._drained = asyncio.Event()
        self._error: VibeMQError | None = None
        self._turn = asyncio.Lock()

    async def pull(self, make: Callable[[Parcel, int, bytes], M], most: int, wait_ms: int, timeout: float) -> list[M]:
        """Up to `most` messages, made by `make`; none when nothing came for `wait_ms`.

        Raises:
            VibeMQError: what the broker answered, or RequestTimeout.
        """
        try:
            async with asyncio.timeout(timeout + wait_ms / 1_000), self._turn:
                self._raise_error()  # before a queue that is gone is created once more by subscribing to it
                while True:
                    subscription = await self._subscribed()
                    await self._ask(subscription, most, wait_ms)
                    self._raise_error()
                    if not subscription.void:  # else ask the next broker
                        return self._take(make, most)
        except TimeoutError:
            raise RequestTimeout(
                f"pull from {self.membership.queue!r}: no answer within {timeout:g} s besides the wait"
            ) from None

    async def _ask(self, subscription: Subscription, most: int, wait_ms: int) -> None:
        """Have messages in `_parcels`, or wait for them in vain."""
        if self._drained.is_set():
            if self._parcels:  # an earlier pull was cancelled
                return
            self._drained.clear()
            subscription.credit(most, self._bytes_max, self._handed, wait_ms)
        try:
            await self._drained.wait()
        except asyncio.CancelledError:
            self._give_up(subscription)
            raise

    def _give_up(self, subscription: Subscription) -> None:
        """A pull was cancelled and the broker waits on: do without this subscription, if nothing is held through it."""
        subscription.flush()
        if subscription.void or subscription.settled + self._lost < self._handed - 1:
            return
        subscription.void = True
        self._subscription = None
        self._subscriptions.abandon(subscription.number)
        if self.membership.given is not None:  # a group of our own goes when nobody takes part in it
            self._requests.start(Pending(self.membership.subscribe, self._begin, self._refused, None))

    async def _subscribed(self) -> Subscription:
        while self._subscription is None or self._subscription.void:
            try:
                await self._requests.call(
                    self.membership.subscribe, what=f"pull from {self.membership.queue!r}", begin=self._begin
                )
            except UnknownGroup as error:
                if not self._is_gone(error):
                    raise
        return self._subscription

    def _refused(self, error: VibeMQError) -> None:
        self._is_gone(error)  # else the next pull asks again, and raises it

    def _is_gone(self, error: VibeMQError) -> bool:
        gone = self.membership.gone(error)
        self._subscriptions.stats.groups_lost += gone
        return gone

    def _begin(self, result: object) -> None:
        subscription = self._subscriptions.add(result, self)
        if self._subscription is not None and not self._subscription.void:
            self._subscriptions.abandon(subscription.number)  # the answer to a pull that was cancelled
            return
        self._subscription = subscription
        self.membership.joined(subscription.group)
        self._parcels.clear()
        self._handed = self._lost = 0
        self._drained.set()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _take(self, make: Callable[[Parcel, int, bytes], M], most: int) -> list[M]:
        taken: list[M] = []
        while self._parcels and most > len(taken):
            taken += self._parcels[0].take(most - len(taken), make)
            if not self._parcels[0].left:
                self._parcels.popleft()
        if taken:
            self._handed = taken[-1].delivery + 1
        return taken

    # --- from the broker -------------------------------------------------------------------------------------------

    def delivered(self, parcel: Parcel) -> None:
        """Messages came."""
        self._parcels.append(parcel)

    def drained(self) -> None:
        """The pull is complete."""
        self._drained.set()

    def leases_lost(self, deliveries: tuple[tuple[int, int], ...]) -> None:
        """Drop what is not this client's any more."""
        before = sum(parcel.left for parcel in self._parcels)
        self._parcels = deque(part for parcel in self._parcels for part in parcel.without(deliveries))
        self._lost += before - sum(parcel.left for parcel in self._parcels)

    def cut(self) -> None:
        """The connection broke: what came will come again."""
        self._drained.set()

    def ended(self, error: VibeMQError) -> None:
        """The broker ended the subscription."""
        self._error = error
        self._drained.set()
