"""Pulling: a subscription without standing credit, which stays for the next pull.

Credit with wait_ms asks for what is there; Drained ends that. When a pull is cancelled meanwhile, what comes after all
is kept for the next one, and its lease is not extended: giving it back would end the subscription, and with it the
leases of messages that were pulled before.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from vibemq.client.message import M, Parcel
from vibemq.client.requests import Requests
from vibemq.client.subscription import Subscription, Subscriptions
from vibemq.errors import RequestTimeout, VibeMQError
from vibemq.protocol import messages as m


class Puller:
    """Pulls from one queue, one pull at a time."""

    def __init__(self, requests: Requests, subscriptions: Subscriptions, queue: str, bytes_max: int) -> None:
        """Prepare; the first pull subscribes."""
        self._requests = requests
        self._subscriptions = subscriptions
        self._queue = queue
        self._bytes_max = bytes_max
        self._subscription: Subscription | None = None
        self._parcels: deque[Parcel] = deque()
        self._handed = 0
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
                while True:
                    subscription = await self._subscribed()
                    if not self._drained.is_set():  # an earlier pull was cancelled
                        await self._drained.wait()
                    elif not self._parcels:
                        self._drained.clear()
                        subscription.credit(most, self._bytes_max, self._handed, wait_ms)
                        await self._drained.wait()
                    self._raise_error()
                    if not subscription.void:  # else ask the next broker
                        return self._take(make, most)
        except TimeoutError:
            raise RequestTimeout(
                f"pull from {self._queue!r}: no answer within {timeout:g} s besides the wait. "
                f"What still comes is kept for the next pull."
            ) from None

    async def _subscribed(self) -> Subscription:
        while self._subscription is None or self._subscription.void:
            self._parcels.clear()
            self._handed = 0
            await self._requests.call(
                lambda number: m.Subscribe(request=number, queue=self._queue),
                what=f"pull from {self._queue!r}",
                begin=self._begin,
            )
        return self._subscription

    def _begin(self, result: object) -> None:
        subscription = self._subscriptions.add(result, self)
        if self._subscription is not None and not self._subscription.void:
            self._subscriptions.abandon(subscription.number)  # the answer to a pull that was cancelled
            return
        self._subscription = subscription
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
        self._parcels = deque(part for parcel in self._parcels for part in parcel.without(deliveries))

    def cut(self) -> None:
        """The connection broke: what came will come again."""
        self._drained.set()

    def ended(self, error: VibeMQError) -> None:
        """The broker ended the subscription."""
        self._error = error
        self._drained.set()
