"""Transactions over a connection that breaks at any moment: each is carried out once."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

import vibemq
from tests.client.fake_broker import FakeBroker, FakeConnection, with_broker
from tests.client.test_transactions import committed, committing, refuse
from vibemq.errors import TransactionEnded
from vibemq.protocol import messages as m


class Broker:
    """What a broker would have done, from what it was sent on any connection."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.epochs: dict[int, FakeConnection] = {}
        self.done: dict[int, list[bytes]] = {}
        broker.answers[m.Begin] = self.begin

    def begin(self, command: m.Begin) -> m.Reply:
        self.epochs[self.broker.epochs + 1] = self.broker.connections[-1]
        return self.broker.begun(command)

    async def take(self, fate: str) -> None:
        """Carry out the next commit; with "lose" or "miss" the connection breaks, after or before that is done."""
        connection, commit = await self.broker.next(m.Commit)
        if fate == "miss":
            connection.cut()
            return
        bodies = [body for one in commit.publishes for body in one.batch.bodies()]
        known = self.done.get(commit.sequence)
        # What comes by an old connection is late: its attempts have ended when its producer came again.
        is_open = connection is self.broker.connections[-1] is self.epochs.get(commit.epoch)
        if known is None and not is_open:
            refuse(connection, commit, TransactionEnded)
        elif known is None and fate == "block":
            connection.send(m.Failed(request=commit.request, code=213, text="wait"))
            connection.send(m.Unblocked(queue="q"))
        else:
            assert known is None or known == bodies, "another transaction under the same sequence"
            self.done[commit.sequence] = bodies
            self.epochs.pop(commit.epoch, None)
            if fate == "lose":
                connection.cut()
            else:
                committed(connection, commit, duplicate=known is not None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["commit", "commit", "take", "lose", "miss", "block", "cut"]), max_size=20))
def test_whatever_breaks_each_transaction_is_carried_out_once(script: list[str]) -> None:
    async def test(fake: FakeBroker) -> None:
        broker = Broker(fake)
        wanted: list[bytes] = []
        calls: list[asyncio.Task[list[vibemq.Receipt]]] = []
        async with vibemq.connect(fake.url, backoff_min=0.001, backoff_max=0.001) as client:
            for step in script:
                if step == "commit":
                    tx = client.transaction()
                    tx.publish("q", b"%d" % len(wanted))
                    if len(wanted) % 2:
                        tx.publish("r", b"and %d" % len(wanted))
                    wanted.append(b"%d" % len(wanted))
                    calls.append(await committing(tx))
                elif step == "cut":
                    fake.connections[-1].cut()
                elif not fake.idle:
                    await broker.take(step)
                await asyncio.sleep(0.002)
            while not all(call.done() for call in calls):
                if not fake.idle:
                    await broker.take("take")
                await asyncio.sleep(0.001)
            for number, call in enumerate(calls):
                assert len(call.result()) == 1 + number % 2
        first = sorted(bodies[0] for bodies in broker.done.values())
        assert first == sorted(wanted)
        assert all(len(bodies) == 1 + int(bodies[0]) % 2 for bodies in broker.done.values())

    with_broker(test)
