"""The part of a simulated client that sees to the queues: it declares, changes, binds, purges, deletes and looks."""

from typing import TYPE_CHECKING, Any

from tests.checker import Violation
from tests.sim.scene import DEAD, GROUPS, PATTERNS, RENAMED
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from tests.sim.clients import Client

REASONS = ("", "", "", "rejected", "expired", "max-attempts", "overflow")


class Operating:
    """What an administrator does, by hand or by a program that tells a broker what there shall be."""

    def __init__(self, client: "Client") -> None:
        """Nothing was done."""
        self.client = client

    def _ask(self, command: m.Command) -> None:
        self.client.say(command)
        self.client.told = f"ask: {command}"

    def _queue(self) -> str:
        return self.client.random.choice(self.client.scene.names)

    def declare_all(self) -> None:
        """Declare everything, whatever it is like now."""
        for name, settings in self.client.scene.queues.items():
            self.declare(name, settings)

    def declare(self, name: str, settings: dict[str, Any], on_difference: Any = "ignore") -> None:  # noqa: ANN401
        """Declare a queue. `on_difference` is one of three words."""
        request = self.client.ask()
        self._ask(m.Declare(request=request, queue=name, settings=settings, on_difference=on_difference))

    def change(self) -> None:
        """Give a queue its other settings, or those that it began with."""
        scene, random, name = self.client.scene, self.client.random, self._queue()
        wanted = {**scene.queues[name], **(scene.others.get(name, {}) if random.random() < 0.6 else {})}
        if random.random() < 0.5:
            self.declare(name, wanted, random.choice(("fail", "ignore", "override", "override")))
            return
        hard = {"mode", "order_by_key"} if random.random() < 0.9 else set()
        soft = {key: value for key, value in wanted.items() if key not in hard}
        self._ask(m.Change(request=self.client.ask(), queue=name, settings=soft))

    def rename(self) -> None:
        """Call a queue otherwise, or as it was."""
        name = self._queue()
        name, new_name = (name, RENAMED) if self.client.random.random() < 0.4 else (RENAMED, name)
        self._ask(m.Rename(request=self.client.ask(), queue=name, name=new_name))

    def bind(self) -> None:
        """Have a queue get what is published to some topics."""
        pattern = self.client.random.choice(PATTERNS)
        self._ask(m.Bind(request=self.client.ask(), queue=self._queue(), pattern=pattern))

    def unbind(self) -> None:
        """Or no longer."""
        pattern = self.client.random.choice(PATTERNS)
        self._ask(m.Unbind(request=self.client.ask(), queue=self._queue(), pattern=pattern))

    def seek(self) -> None:
        """Let a group go on from somewhere else."""
        if names := self._with_groups():
            name = self.client.random.choice(names)
            start, at = self.client.place(name)
            group = self.client.random.choice((*GROUPS, self.client.consuming.groups.get(name, GROUPS[0])))
            self._ask(m.Seek(request=self.client.ask(), queue=name, group=group, start=start, at=at))

    def delete_group(self) -> None:
        """Let a group end."""
        if names := self._with_groups():
            name, group = self.client.random.choice(names), self.client.random.choice(GROUPS)
            self._ask(m.DeleteGroup(request=self.client.ask(), queue=name, group=group))

    def _with_groups(self) -> list[str]:
        scene = self.client.scene
        return [name for name in scene.names if scene.mode(name).has_groups]

    def look(self) -> None:
        """Ask for what changes nothing."""
        random, request = self.client.random, self.client.ask
        name = random.choice((*self.client.scene.names, DEAD))
        choice = random.randrange(6)
        if choice == 0:
            self._ask(m.Ping())
        elif choice == 1:
            self._ask(m.ShowQueue(request=request(self._shown), queue=name))
        elif choice == 2:
            self._ask(m.ListBindings(request=request()))
        elif choice == 3:
            group = random.choice(GROUPS) if self.client.scene.mode(name).has_groups else None
            priority = random.choice((None, None, 9))
            self._ask(m.Peek(request=request(), queue=name, start=0, count=5, group=group, priority=priority))
        else:
            reason = random.choice(REASONS)
            start, count = random.choice((0, 0, 5)), random.choice((3, 100))
            self._ask(m.DeadLetters(request=request(), queue=name, start=start, count=count, reason=reason))

    def _shown(self, reply: m.Done) -> None:
        counts = {key: reply.result[key] for key in ("messages", "ready", "unacked", "waiting")}
        if counts["messages"] != counts["ready"] + counts["unacked"] + counts["waiting"]:
            raise Violation(f"a queue is shown with {counts}")

    def redrive(self) -> None:
        """Send dead letters back to work."""
        random, names = self.client.random, self.client.scene.names
        queue = random.choice((*names, DEAD, DEAD, *(f"{name}.dlq" for name in names)))
        self._ask(
            m.Redrive(
                request=self.client.ask(_redriven),
                queue=queue,
                target=random.choice(("", "", "", *names)),
                start=random.choice((0, 0, 0, 4)),
                count=random.choice((1, 5, 1000)),
                dry_run=random.random() < 0.1,
                reason=random.choice(REASONS),
            )
        )

    def wreck(self) -> None:
        """Purge a queue; or delete it, for good or for a while, and declare it again."""
        client, random, name = self.client, self.client.random, self._queue()
        if random.random() < 0.35:
            self._ask(m.Purge(request=client.ask(), queue=name))
            return
        connection = client.connection

        def deleted(reply: m.Done) -> None:
            queue = client.watch.deleted.get((connection, reply.request))
            if queue is not None:
                client.history.gone.setdefault(str(queue), client.moment)

        grace_ms = random.choice((None, 0, 3_600_000, 3_600_000))
        self._ask(m.Delete(request=client.ask(deleted), queue=name, grace_ms=grace_ms))
        if (then := random.random()) < 0.4:
            self.declare(name, client.scene.queues[name])
        elif then < 0.6:
            self._undelete(name)

    def undelete(self) -> None:
        """Bring a queue back that was deleted."""
        self._undelete(self._queue())

    def _undelete(self, name: str) -> None:
        new_name = self.client.random.choice(("", "", RENAMED))
        self._ask(m.Undelete(request=self.client.ask(), queue=name, name=new_name))


def _redriven(reply: m.Done) -> None:
    if reply.result["count"] != sum(reply.result["targets"].values()):
        raise Violation(f"dead letters were sent back, and the sums are wrong: {reply.result}")
