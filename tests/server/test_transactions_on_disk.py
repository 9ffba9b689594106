"""Transactions in a data folder: whole or absent wherever the log was cut off, read back, and asked for again."""

import shutil
from pathlib import Path
from types import NoneType

from tests.server.rig import batch_of
from tests.server.test_storage import opened, write_out
from vibemq.errors import DiskFull, FlowExceeded, InvalidRequest
from vibemq.log.index import FOLDER as INDEX
from vibemq.log.segment import FOLDER as SEGMENTS
from vibemq.protocol import messages as m
from vibemq.protocol.binary import encode_command
from vibemq.protocol.session import ClientSession
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.conversation import Conversation
from vibemq.server.effects import Answer, Committed, Load, Recall, Stored
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.storage import Storage
from vibemq.server.transactions import Commit


def begun(storage: Storage) -> tuple[Broker, int]:
    """A broker on a folder, and a client whose producer is 7."""
    broker = Broker(storage.state, Limits(), QueueDefaults())
    broker.start("test", 1)
    return broker, broker.connect("a", "b", "json", 7)


def committed(broker: Broker, client: int) -> None:
    """Take an order out of one queue, and put things into three."""
    for name in ("x", "y"):
        broker.queues.declare(client, 1, name, {})
    broker.queues.bind(client, 1, "x", "t")
    broker.publishing.publish(Publish(client, 1, "orders", 0, batch_of([b"order"])))
    broker.subscribe(Subscribing(client, 1, "orders", None, 10, 1_000))
    broker.end_turn()
    (consumer,) = broker.journal.state.topology.subscriptions
    broker.transactions.begin(client, 1, 0)
    answer = broker.journal.effects[-1]
    assert isinstance(answer, Answer)
    epoch = answer.result["epoch"]
    publishes = [
        Publish(client, 0, "t", 0, batch_of([b"1", b"2"]), to_topic=True),
        Publish(client, 0, "y", 0, batch_of([b"3"])),
        Publish(client, 0, "y", 0, batch_of([b"4"] * 3)),
    ]
    broker.transactions.commit(Commit(client, 2, epoch, 5, publishes, [(consumer, ((1, 2),))]))


def test_wherever_the_log_is_cut_off_a_transaction_is_whole_or_absent(tmp_path: Path) -> None:
    storage = opened(tmp_path / "data")
    broker, client = begun(storage)
    committed(broker, client)
    write_out(storage, broker)
    record = storage.log.read(storage.log.written - 1)
    storage.close()
    shutil.rmtree(tmp_path / "data" / INDEX)
    segment = next((tmp_path / "data" / SEGMENTS).glob("*.seg*"))
    whole = segment.read_bytes()
    lengths = set()
    for end in range(record.at, record.end + 1):
        cut = shutil.copytree(tmp_path / "data", tmp_path / "cut")
        (cut / SEGMENTS / segment.name).write_bytes(whole[:end])
        again = opened(cut)
        found = tuple(queue.length for _, queue in sorted(again.state.queues.items()))
        assert bool(again.state.producers.known) == (end == record.end)
        lengths.add((end == record.end, found))
        again.close()
        shutil.rmtree(cut)
    assert lengths == {(False, (0, 0, 1)), (True, (2, 4, 0))}


def test_a_transaction_is_read_back_batch_by_batch_and_as_a_whole(tmp_path: Path) -> None:
    storage = opened(tmp_path)
    broker, client = begun(storage)
    committed(broker, client)
    effect = broker.journal.effects[-1]
    assert isinstance(effect, Committed)
    write_out(storage, broker)
    x, y, _ = sorted(storage.state.queues)
    places = [
        (batch.batch.bodies(), batch.origin.offset, batch.origin.index, batch.sequence)
        for queue, sequence in ((x, 1), (y, 1), (y, 3))
        for batch in storage.load(Load(queue, 0, sequence))
    ]
    offset = effect.offset
    last = ([b"4"] * 3, offset, 1, 2)
    assert places == [([b"1", b"2"], offset, 4, 1), ([b"3"], offset, 0, 1), last, last]
    broker.transactions.commit(Commit(client, 9, 1, 5, [*_again(client)], []))
    (recall,) = broker.journal.loads
    assert isinstance(recall, Recall)
    broker.transactions.recalled(recall, storage.recall(recall))
    stored = (Stored(4, 0), Stored(0, 1), Stored(1, 2))
    assert broker.journal.effects[-1] == Committed(offset + 1, client, 9, offset, duplicate=True, stored=stored)
    storage.close()


def _again(client: int) -> list[Publish]:
    return [Publish(client, 0, name, 0, batch_of([b"x"]), to_topic=name == "t") for name in ("t", "y", "y")]


# --- what a connection may ask


class Host:
    """Who holds a conversation. `room` is what is left on the disk."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.room = broker, 1 << 30

    def connect(self, hello: m.Hello, codec: str) -> int:
        return self.broker.connect(hello.client, "here", codec, hello.producer)

    def admit(self, size: int) -> None:
        if size > self.room:
            raise DiskFull("the disk is full")


class Talk:
    """A client that talks to a broker in bytes."""

    def __init__(self, storage: Storage, limits: Limits) -> None:
        self.broker = Broker(storage.state, limits, QueueDefaults())
        self.broker.start("test", 1)
        self.host = Host(self.broker)
        self.conversation = Conversation(self.host, self.broker, limits, "1")
        self.session = ClientSession()
        self.hear(self.session.begin(m.Hello(producer=7)))

    def hear(self, data: bytes) -> list[m.Reply]:
        """What is said to these bytes."""
        for command in self.conversation.receive(memoryview(data)):
            self.conversation.execute(command)
        for effect in self.broker.journal.effects:
            self.conversation.send(effect)
        self.broker.journal.effects.clear()
        said, self.conversation.out = b"".join(self.conversation.out), []
        return list(self.session.receive(memoryview(said)))

    def ask(self, command: m.Command) -> list[m.Reply]:
        """What is said to a command."""
        return self.hear(b"".join(encode_command(command)))

    def commit(self, *names: str, sequence: int = 0) -> m.Reply | None:
        """Commit a message for each of some queues. The answer, if there is one yet."""
        (done,) = self.ask(m.Begin(request=2))
        assert isinstance(done, m.Done)
        publishes = tuple(m.Publish(0, name, 0, batch_of([b"x"])) for name in names)
        said = self.ask(m.Commit(3, done.result["epoch"], sequence, publishes, ()))
        return said[-1] if said else None


def test_on_a_full_disk_only_acks_are_committed_and_what_is_stored_is_told(tmp_path: Path) -> None:
    storage = opened(tmp_path)
    talk = Talk(storage, Limits())
    assert isinstance(talk.commit("q", sequence=1), m.Committed)
    talk.host.room = 5
    refusal = talk.commit("q")
    assert isinstance(refusal, m.Failed)
    assert refusal.code == DiskFull.code
    assert isinstance(talk.commit(), m.Committed)
    assert talk.commit("q", sequence=1) is None
    assert [type(reading) for reading in talk.broker.journal.loads] == [Recall]
    storage.close()


def test_a_commit_is_one_of_the_batches_that_may_be_unanswered(tmp_path: Path) -> None:
    storage = opened(tmp_path)
    talk = Talk(storage, Limits(publish_window_batches=1))
    for _ in range(5):  # those that are answered do not count, however they are
        assert isinstance(talk.commit("q", "r"), m.Committed)
        assert [type(one) for one in talk.ask(m.Commit(3, 1, 0, (), ()))] == [m.Failed]
    talk.commit("q", sequence=1)
    errors = []
    for _ in range(3):  # their answers are still to be read
        assert talk.commit("q", sequence=1) is None
        errors.append(type(talk.conversation.error))
    assert errors == [NoneType, NoneType, FlowExceeded]
    storage.close()


def test_a_repeated_commit_of_something_else_is_answered_too(tmp_path: Path) -> None:
    storage = opened(tmp_path)
    talk = Talk(storage, Limits(publish_window_batches=1))
    talk.commit("q", sequence=1)
    for _ in range(5):
        assert talk.commit("q", "r", sequence=1) is None
        write_out(storage, talk.broker)
        (recall,) = talk.broker.journal.loads
        talk.broker.journal.loads.clear()
        assert isinstance(recall, Recall)
        talk.broker.transactions.recalled(recall, storage.recall(recall))
        refusal, _pong = sorted(talk.ask(m.Ping()), key=lambda one: isinstance(one, m.Pong))
        assert isinstance(refusal, m.Failed)
        assert (refusal.request, refusal.code) == (3, InvalidRequest.code)
    assert talk.conversation.error is None
    storage.close()
