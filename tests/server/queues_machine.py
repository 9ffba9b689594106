"""The machine with everything that people do to queues: looking, changing, deleting for a while, dead letters."""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Final, TypeAlias

from hypothesis.stateful import rule

from tests.server.machine import RANDOM, refused
from tests.server.model import MS, Copy, Group, Queue, State
from tests.server.transactions_machine import TransactionsMachine
from vibemq.errors import DeclareConflict, InvalidRequest, QueueFull, UnknownQueue
from vibemq.events import DeadReason
from vibemq.server import effects as f
from vibemq.server.dead_letters import Filter, Redriving

WORDS: Final = {reason: reason.name.lower().replace("_", "-") for reason in DeadReason}
Home: TypeAlias = Callable[[Copy], Queue | None]
"""Where a dead letter goes."""


class QueuesMachine(TransactionsMachine):
    """People, too."""

    def some_queue(self, random: Random) -> Queue | None:
        """Any queue that is there."""
        return random.choice(list(self.model.queues.values())) if self.model.queues else None

    # --- what queues are like

    @rule(random=RANDOM)
    def change(self, random: Random) -> None:
        if (queue := self.some_queue(random)) is None or random.random() < 0.5:
            return
        settings = self.settings_for(random, queue.name)
        names = [name for name in settings if name not in {"mode", "order_by_key"}]
        wanted = {name: settings[name] for name in random.sample(names, 2)}
        connection = self.connection(random)
        refusal = refused(lambda: self.rig.broker.queues.change(connection, 1, queue.name, wanted))
        effects = self.settle()
        if refusal is not None:
            assert type(refusal) is InvalidRequest
            assert effects == []
        else:
            assert {name: getattr(queue.settings, name) for name in wanted} == wanted
        self.turn()

    @rule(random=RANDOM)
    def rename(self, random: Random) -> None:
        if (queue := self.some_queue(random)) is None or random.random() < 0.8:
            return
        name, connection = random.choice([*self.NAMES, "c"]), self.connection(random)
        is_taken = self.model.named(name) is not None
        dead_letters_were_in = self.model.named(queue.dead_name)
        refusal = refused(lambda: self.rig.broker.queues.rename(connection, 1, queue.name, name))
        effects = self.settle()
        if is_taken:
            assert type(refusal) is DeclareConflict
            assert effects == []
        elif refusal is None:
            assert queue.name == name
            assert dead_letters_were_in in {None, queue, self.model.named(queue.dead_name)}
        else:
            assert queue.settings.dead_letter_queue == name, "a queue cannot be its own dead-letter queue"

    @rule(random=RANDOM)
    def delete_for_a_while(self, random: Random) -> None:
        if (queue := self.some_queue(random)) is None or random.random() < 0.8:
            return
        ended = [consumer for group in queue.groups.values() for consumer in list(group.consumers)]
        length, until_us = queue.length, self.rig.now_us + 60 * MS
        self.rig.broker.delete(self.connection(random), 1, queue.name, 60)
        for consumer in ended:
            self.model.leave(consumer, lost=False)
        *endings, answer = self.settle()
        assert isinstance(answer, f.Answer)
        assert answer.result == {"count": length, "until_us": until_us}
        self.check_endings(endings, ended)
        assert self.model.deleted[queue.number] == (queue, until_us)

    @rule(random=RANDOM)
    def undelete(self, random: Random) -> None:
        if not self.model.deleted:
            return
        name = random.choice([queue.name for queue, _ in self.model.deleted.values()])
        new_name, connection = random.choice(["", "c"]), self.connection(random)
        queue = next(one for one, _ in reversed(self.model.deleted.values()) if one.name == name)
        is_taken = self.model.named(new_name or name) is not None
        refusal = refused(lambda: self.rig.broker.undelete(connection, 1, name, new_name))
        effects = self.settle()
        if is_taken:
            assert type(refusal) is DeclareConflict
            assert effects == []
        elif refusal is None:
            assert self.model.named(new_name or name) is queue
        else:
            assert queue.settings.dead_letter_queue == new_name, "a queue cannot be its own dead-letter queue"
        self.turn()

    # --- looking

    @rule(random=RANDOM)
    def peek(self, random: Random) -> None:
        if (queue := self.some_queue(random)) is None:
            return
        request, start, count = self.request(), random.choice([0, 0, 5]), random.choice([3, 100])
        priority = random.choice([None, None, 4])
        group = random.choice([*queue.groups.values(), None]) if queue.settings.mode.has_groups else queue.groups[0]
        name = group.name if group is not None and queue.settings.mode.has_groups else None
        self.rig.broker.peek(self.connection(random), request, queue.name, name, start, count, priority)
        (found,) = self.settle()
        assert isinstance(found, f.Peeked)
        expected: list[tuple[int, int, int, bool]] = []
        if group is None:
            messages = [one for one in queue.messages if one.sequence >= max(start, queue.floor)]
            expected = [(0, one.sequence, 0, False) for one in messages]
        else:
            only = priority if queue.settings.mode == "priority" else None
            lanes = sorted(queue.next, reverse=True) if only is None else [only]
            for lane in lanes:
                ready = [copy for copy in group.of(State.READY) if copy.message.lane == lane]
                expected += [seen(group, copy) for copy in ready if copy.message.sequence >= start]
        assert shown(found) == expected[:count]

    # --- dead letters

    def dead_letters(self, name: str, wanted: Filter) -> list[Copy] | None:
        """Those that are meant; None: there is nothing of that name."""
        queue = self.model.named(name)
        if queue is None or not queue.is_dead_letter_queue:
            dead = self.model.named(queue.dead_name if queue is not None else f"{name}.dlq")
            if dead is None and queue is None:
                return None
            queue = dead
            wanted = wanted._replace(source=wanted.source or name)
        if queue is None or not queue.is_dead_letter_queue or queue.settings.mode.has_groups:
            return []
        return [copy for copy in queue.groups[0].of(State.READY) if self.is_wanted(copy, wanted)]

    def is_wanted(self, copy: Copy, wanted: Filter) -> bool:
        """Whether a filter lets a message through."""
        why = copy.message.why
        if why is None:
            return False
        numbers = [queue.number for queue in self.model.queues.values() if queue.name == wanted.source]
        numbers += [number for number, (queue, _) in self.model.deleted.items() if queue.name == wanted.source]
        return (
            wanted.reason in {"", WORDS[why.reason]}
            and (not wanted.source or numbers[:1] == [why.queue])
            and wanted.error in why.error
            and wanted.since_us <= why.time_us
            and (not wanted.until_us or why.time_us < wanted.until_us)
        )

    def some_filter(self, random: Random) -> Filter:
        """Some wish of somebody who looks for dead letters."""
        reason = random.choice(["", "", "", "rejected", "expired", "overflow"])
        time_us = random.choice([0, 0, self.rig.now_us - 50 * MS])
        since_us, until_us = (time_us, 0) if random.random() < 0.5 else (0, time_us)
        return Filter(reason, random.choice(["", "", *self.TARGETS]), random.choice(["", "", "no"]), since_us, until_us)

    @rule(random=RANDOM)
    def peek_dead_letters(self, random: Random) -> None:
        name, wanted, start, count = random.choice(self.NAMES), self.some_filter(random), 0, random.choice([2, 100])
        expected, request = self.dead_letters(name, wanted), self.request()
        connection = self.connection(random)
        refusal = refused(lambda: self.rig.broker.dead_letters.peek(connection, request, name, start, count, wanted))
        effects = self.settle()
        if expected is None:
            assert type(refusal) is UnknownQueue
            assert effects == []
            return
        (found,) = effects
        assert isinstance(found, f.Peeked)
        assert len(found.why) == len(found.spans)
        whys = [why for why, span in zip(found.why, found.spans, strict=True) for _ in range(span[1], span[2])]
        group = self.model.queues[found.queue].groups[0] if found.queue else None
        assert shown(found) == [seen(group, copy) for copy in expected[:count] if group is not None]
        place = self.model.queues[found.queue].name if found.queue else ""
        assert whys == [{"queue": place, "dead": self.describe(copy)} for copy in expected[:count]]

    def describe(self, copy: Copy) -> dict[str, Any]:
        """What people are told of a dead letter."""
        why = copy.message.why
        assert why is not None
        everything = [*self.model.queues.values(), *(queue for queue, _ in self.model.deleted.values())]
        name = next((queue.name for queue in everything if queue.number == why.queue), None)
        return {
            "reason": WORDS[why.reason],
            "queue": name,
            "attempts": why.attempts,
            "error": why.error,
            "dead_us": why.time_us,
        }

    @rule(random=RANDOM)
    def redrive(self, random: Random) -> None:
        if self.redriving:
            return
        name, wanted = random.choice(self.NAMES), self.some_filter(random)
        target, start = random.choice(["", "", *self.TARGETS]), random.choice([0, 0, 3])
        end, most, dry_run = random.choice([0, 0, 9]), random.choice([1, 4, 100]), random.random() < 0.3
        connection, request = self.connection(random), self.request()
        ask = Redriving(connection, request, name, target, start, end, most, wanted)
        letters = self.in_range(ask)
        is_known = letters is not None and not (target and self.model.named(target) is None)

        def home(copy: Copy) -> Queue | None:
            assert copy.message.why is not None
            found = self.model.named(target) if target else self.model.queues.get(copy.message.why.queue)
            return None if found is None or copy in found.groups.get(0, NOWHERE).copies else found

        before = Counter(queue.name if (queue := home(copy)) is not None else "" for copy in letters or ())

        def answered(effect: f.Effect) -> None:
            if isinstance(effect, f.Refusal):
                assert type(effect.error) in {QueueFull, UnknownQueue}
                assert not self.witness.redriven
                return
            assert isinstance(effect, f.Answer)
            if dry_run:
                assert isinstance(effect.result, dict)
                if not effect.result["next"]:
                    homeless = before.pop("", 0)
                    assert effect.result["homeless"] == homeless
                assert effect.result["count"] == min(before.total() - before[""], most)
                assert Counter(effect.result["targets"]) <= before
            else:
                self.check_redriven(ask, effect.result, home)

        self.witness.redriven.clear()
        self.answers[request] = connection, answered
        refusal = refused(lambda: self.rig.broker.dead_letters.redrive(ask, dry_run=dry_run))
        if refusal is not None:
            del self.answers[request]
            assert type(refusal) is (QueueFull if is_known else UnknownQueue)
            if is_known:  # and so there is no room for the first of them
                full = next(queue for copy in letters or () if (queue := home(copy)) is not None)
                first = next(copy for copy in letters or () if home(copy) is not None)
                assert full.fitting([len(first.message.content.body)]) == 0
        else:
            assert is_known or letters == []
        assert self.settle() == []
        assert not (dry_run and self.witness.redriven)
        self.turn()

    @property
    def redriving(self) -> bool:
        """Whether somebody waits for dead letters to be sent back."""
        return any(answered.__name__ == "answered" for _, answered in self.answers.values())

    def in_range(self, ask: Redriving) -> list[Copy] | None:
        """The dead letters that somebody asks for."""
        letters = self.dead_letters(ask.queue, ask.wanted)
        if letters is None:
            return None
        return [one for one in letters if ask.start <= one.message.sequence < (ask.end or 1 << 60)]

    def check_redriven(self, ask: Redriving, result: dict[str, Any], home: Home) -> None:
        """Dead letters went back to work: those that were asked for, in order, and where they belong."""
        moved = self.witness.redriven
        assert len(moved) <= ask.most
        for target, copy in moved:
            assert ask.start <= copy.message.sequence < (ask.end or 1 << 60)
            wanted = ask.wanted
            assert self.is_wanted(copy, wanted)
            assert target is home(copy)
        counts = Counter(target.name for target, _ in moved)
        assert (result["count"], result["targets"]) == (counts.total(), dict(counts))
        # What died in the turn that answers came after the answer.
        letters = [one for one in self.in_range(ask) or () if one.message not in self.witness.just_died]
        left = [copy.message.sequence for copy in letters if home(copy) is not None]
        assert not left or result["next"], "there is more, and nobody is told"
        assert not any(sequence < result["next"] for sequence in left), "what is left out is not come back to"


NOWHERE: Final = Group(Queue(0, "", None), 0, "", ephemeral=False, idle_since_us=0)  # type: ignore[arg-type]


def seen(group: Group | None, copy: Copy) -> tuple[int, int, int, bool]:
    """What a peek shows of a message: lane, sequence, failed attempts, redelivered."""
    assert group is not None
    return *copy.place, copy.failed, group.may_have_been_sent(copy)


def shown(found: f.Peeked) -> list[tuple[int, int, int, bool]]:
    """What a peek shows, message by message."""
    return [
        (lane, at, failed, redelivered)
        for lane, start, end, failed, redelivered in found.spans
        for at in range(start, end)
    ]
