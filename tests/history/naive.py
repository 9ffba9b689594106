"""The audit trail done naively: it remembers everything, and looks at every event."""

from tests.history.world import Kept
from vibemq import events as e
from vibemq.declaration import Mode
from vibemq.history.audit import Filter

PUBLISHES = e.Published | e.Routed | e.Fired
Key = tuple[int, int, int]
"""A message in a queue: (queue, lane, sequence)."""


def parts_of(event: e.Event) -> tuple[e.Event, ...]:
    """What happened at once."""
    if isinstance(event, e.TransactionCommitted):
        return (*event.published, *event.routed, *event.acked)
    return (event,)


def numbers_of(event: e.Event) -> set[int]:
    """The queues that are named in an event."""
    targets = {target[0] for target in getattr(event, "targets", ())}
    return {getattr(event, name, 0) for name in ("queue", "dead_queue", "target")} | targets


class Naive:
    """Everything that was ever said, and where every message is."""

    def __init__(self, kept: list[Kept]) -> None:
        queues = {0: ""}
        clients: dict[int, tuple[str, str]] = {}
        subscriptions: dict[int, int] = {}
        messages = Messages()
        self.touched: list[set[str]] = []
        self.queues: list[set[str]] = []
        self.clients: list[tuple[int, str, str] | None] = []
        for record in kept:
            event = record.event
            before = dict(queues)
            if isinstance(event, e.QueueDeclared | e.QueueRenamed | e.QueueUndeleted):
                queues[event.queue] = event.name
            if isinstance(event, e.ClientConnected):
                clients[event.connection] = event.name, event.address
            if isinstance(event, e.Subscribed):
                subscriptions[event.subscription] = event.connection
            numbers = {number for part in parts_of(event) for number in numbers_of(part)} - {0}
            self.queues.append({known[number] for number in numbers for known in (before, queues) if number in known})
            number = getattr(event, "connection", 0) or subscriptions.get(getattr(event, "subscription", 0), 0)
            self.clients.append((number, *clients[number]) if number else None)
            self.touched.append(messages.touched(record.offset, event))

    def offsets(self, kept: list[Kept], wanted: Filter) -> list[int]:
        """What `select` must find."""
        return [record.offset for record in kept if self._asked(record, wanted)]

    def _asked(self, record: Kept, wanted: Filter) -> bool:
        client = self.clients[record.offset]
        return (
            wanted.since_us <= record.time_us
            and (wanted.until_us is None or record.time_us < wanted.until_us)
            and (not wanted.kinds or record.tag in wanted.kinds)
            and (wanted.queue is None or wanted.queue in self.queues[record.offset])
            and (wanted.message is None or f"{wanted.message[0]}-{wanted.message[1]}" in self.touched[record.offset])
            and (wanted.client is None or (client is not None and _called(client, wanted.client)))
        )


class Messages:
    """Where all messages are: those that can be handed out again, and which groups have not settled them."""

    def __init__(self) -> None:
        self.modes: dict[int, Mode] = {}
        self.groups: dict[int, set[int]] = {}
        self.here: dict[Key, str] = {}
        self.open: set[tuple[Key, int]] = set()
        self.held: set[tuple[Key, int]] = set()
        self.waiting: dict[int, dict[str, int]] = {}
        """Queue -> what waits for its time there -> when that is."""
        self.final: set[Key] = set()
        """What is here no more once no group has it open: in queues without groups everything."""

    def touched(self, offset: int, event: e.Event) -> set[str]:
        """The messages that this event is about; and what it does to them."""
        found, at = set[str](), 0
        for part in parts_of(event):
            if isinstance(part, e.Published | e.Routed | e.Fired):
                names = [f"{offset}-{number}" for number in range(at, at + part.count)]
                at += part.count
                twins = {f"{record}-{place}" for _, record, place in getattr(part, "duplicates", ())}
                alive = {*self.here.values(), *(name for queue in self.waiting.values() for name in queue)}
                self._publish(part, names)
                found |= {*names, *(twins & alive)}
            else:
                found |= self._touch_waiting(part) | self._touch(part)
        return found

    def _publish(self, event: e.Published | e.Routed | e.Fired, names: list[str]) -> None:
        if due_us := getattr(event, "due_us", 0) if not isinstance(event, e.Fired) else 0:
            for queue in numbers_of(event) - {0}:
                self.waiting.setdefault(queue, {}).update(dict.fromkeys(names, due_us))
        else:
            self._arrive(event, names)

    def _touch_waiting(self, event: e.Event) -> set[str]:
        """The same for what waits for its time."""
        waiting = self.waiting.setdefault(getattr(event, "queue", 0), {})
        before = dict(waiting)
        if isinstance(event, e.Matured):
            names = [f"{offset}-{index + at}" for _, offset, index, count, *_ in event.entries for at in range(count)]
            for name in names:
                assert waiting.pop(name)
            self._arrive(event, names)
        elif isinstance(event, e.Rescheduled | e.Cancelled):
            for entries, is_left in ((event.before, False), (event.after, True)):
                for due_us, offset, index, count, *_ in entries:
                    for at in range(count):
                        if is_left:
                            waiting[f"{offset}-{index + at}"] = due_us
                        else:
                            del waiting[f"{offset}-{index + at}"]
        elif isinstance(event, e.QueueDeleted | e.QueueUndeleted | e.QueuePurged):
            if isinstance(event, e.QueuePurged) or (isinstance(event, e.QueueDeleted) and not event.until_us):
                waiting.clear()
            return set(before)
        return {name for name, due_us in before.items() if waiting.get(name) != due_us}

    def _touch(self, event: e.Event) -> set[str]:
        queue = getattr(event, "queue", 0)
        inside = {key for key in self.here if key[0] == queue}
        about = set[Key]()
        if isinstance(event, e.BrokerStarted | e.BrokerStopped):
            about = {key for key, _ in self.held}
            self.held.clear()
        elif isinstance(event, e.QueueDeclared):
            self.modes[queue] = event.settings.mode
            self.groups[queue] = set() if event.settings.mode.has_groups else {0}
        elif isinstance(event, e.QueueDeleted | e.QueueUndeleted):
            about = inside
        elif isinstance(event, e.QueuePurged):
            self.final |= inside
            thrown = {one for one in self.open - self.held if one[0] in inside}
            self.open -= thrown
            about = {key for key, _ in thrown}
        elif isinstance(event, e.GroupCreated | e.GroupSought | e.GroupDeleted):
            about = self._group(event, inside)
        else:
            about = self._spans(event, queue)
        names_about = {self.here[key] for key in about}
        self._clear({key for key in inside if key in self.final and not any((key, n) in self.open for n in range(9))})
        if isinstance(event, e.QueueDeleted) and not event.until_us:
            self._clear(inside)
        return names_about

    def _arrive(self, event: e.Event, names: list[str]) -> None:
        for queue, lane, first, _ in event.arrivals:
            for at, name in enumerate(names):
                key = queue, lane, first + at
                self.here[key] = name
                self.open |= {(key, group) for group in self.groups[queue]}
                if not self.modes[queue].has_groups:
                    self.final.add(key)

    def _clear(self, keys: set[Key]) -> None:
        for key in keys:
            self.here.pop(key, None)
        self.open = {one for one in self.open if one[0] not in keys}
        self.held = {one for one in self.held if one[0] not in keys}

    def _group(self, event: e.GroupCreated | e.GroupSought | e.GroupDeleted, inside: set[Key]) -> set[Key]:
        """What a group had to do, and has to do now."""
        had = {one for one in self.open if one[0] in inside and one[1] == event.group}
        has = set[tuple[Key, int]]()
        if isinstance(event, e.GroupDeleted):
            self.groups[event.queue].remove(event.group)
        else:
            self.groups[event.queue].add(event.group)
            has = {(key, event.group) for key in inside if key[2] >= event.sequence}
        self.open = self.open - had | has
        self.held -= had
        return {key for key, _ in had | has}

    def _spans(self, event: e.Event, queue: int) -> set[Key]:
        group, spans = getattr(event, "group", 0), getattr(event, "spans", ())
        keys = [(queue, lane, number) for lane, low, high in spans for number in range(low, high)]
        ones = {(key, group) for key in keys}
        if isinstance(event, e.Delivered) and self.modes[queue] is not Mode.FAN_OUT_NO_ACK:
            self.held |= ones
        elif isinstance(event, e.Released):
            self.held -= ones
        elif isinstance(event, e.Delivered | e.Acked | e.Dropped | e.DeadLettered | e.Redriven):
            self.held -= ones
            self.open -= ones
            self._arrive(event, [self.here[key] for key in keys])
        return set(keys)


def _called(client: tuple[int, str, str], wanted: str) -> bool:
    number, name, address = client
    return wanted in {name or "nobody", address, address.split(":")[0], f"#{number}"}
