"""Saves the state beside the log, a part at a time, so that a restart replays only what came after.

Taking a part's bytes happens on the loop, between two turns, for no longer than a slice; writing them happens on a
thread. Only parts that changed are taken. Each stands at its own offset; a replay from the lowest brings them together.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor

from vibemq.projections import part as parts
from vibemq.projections.projector import Projector
from vibemq.server.storage import DELAYED_MAX, Storage

SLICE_S = 0.001


class Capture:
    """The bytes of the parts that changed since they were `saved` (key -> as_of), taken one at a time.

    Events may be applied between two steps: then the parts stand at different offsets. `wanted` is the offset below
    which every event must be durable before any of this may be kept: no part knows more, none went later.
    """

    def __init__(self, state: Projector, saved: Mapping[str, int]) -> None:
        """Begin now: a replay over these parts starts with the event that comes next."""
        self._state, self._saved = state, saved
        self.start = self.wanted = state.next_offset
        self.changed: dict[str, tuple[int, bytes]] = {}
        self.present: set[str] = set()

    def steps(self) -> Iterator[None]:
        """Take the parts; between two of them the loop may do something else."""
        for part in self._state.parts():
            self.present.add(part.key)
            if self._saved.get(part.key, -1) < part.as_of:
                self.changed[part.key] = (part.as_of, parts.encode(part))
            yield
        # A queue deleted on the way is missing here, though no part may know of it.
        self.wanted = self._state.next_offset

    @property
    def gone(self) -> set[str]:
        """Parts that were saved and are not there any more."""
        return set(self._saved) - self.present

    @property
    def saved(self) -> dict[str, int]:
        """What is saved once this is."""
        kept = {key: as_of for key, as_of in self._saved.items() if key in self.present}
        return kept | {key: as_of for key, (as_of, _) in self.changed.items()}


class Checkpointer:
    """Takes checkpoints of a storage's state."""

    def __init__(self, storage: Storage, executor: Executor) -> None:
        """Write on `executor`; begin with what the index holds."""
        self._storage = storage
        self._executor = executor
        checkpoint = storage.index.load_checkpoint()
        self._saved = {key: as_of for key, (as_of, _) in checkpoint.parts.items()} if checkpoint else {}
        self.last_offset = checkpoint.start if checkpoint else 0

    @property
    def is_pressed(self) -> bool:
        """Whether so much waits for a commit of the index that it should not wait for the next checkpoint."""
        index = self._storage.index
        return len(index.overlay.delayed) >= DELAYED_MAX and not index.failure

    async def relieve(self) -> bool:
        """Commit what the index has noted, without a checkpoint; False when the disk had no room for it."""
        loop, mark = asyncio.get_running_loop(), self._storage.log.synced_mark
        return await loop.run_in_executor(self._executor, self._storage.index.commit, mark)

    async def take(self) -> bool:
        """Save what changed; False when the disk had no room for it, which costs nothing but time at the next start."""
        index, log = self._storage.index, self._storage.log
        capture = Capture(self._storage.state, self._saved)
        begun = time.monotonic()
        for _ in capture.steps():
            if time.monotonic() - begun > SLICE_S:
                await asyncio.sleep(0)
                begun = time.monotonic()
        while log.synced < capture.wanted:
            if log.failure:
                return False
            await asyncio.sleep(0.005)
        mark = log.synced_mark
        loop = asyncio.get_running_loop()
        done = await loop.run_in_executor(
            self._executor, index.commit, mark, capture.changed, capture.gone, capture.start
        )
        if done:
            self._saved = capture.saved
            self.last_offset = capture.start
        return done
