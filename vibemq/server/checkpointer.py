"""Saves the state beside the log, a part at a time, so that a restart replays only what came after.

Taking a part's bytes happens on the loop, between two turns, for no longer than a slice; writing them happens on a thread.
Only parts that changed are taken. Each stands at its own offset; a replay from the lowest brings them together.
"""

import asyncio
import time
from concurrent.futures import Executor

from vibemq.projections import part as parts
from vibemq.server.storage import Storage

SLICE_S = 0.001


class Checkpointer:
    """Takes checkpoints of a storage's state."""

    def __init__(self, storage: Storage, executor: Executor) -> None:
        """Write on `executor`; begin with what the index holds."""
        self._storage = storage
        self._executor = executor
        checkpoint = storage.index.load_checkpoint()
        self._saved = {key: as_of for key, (as_of, _) in checkpoint.parts.items()} if checkpoint else {}
        self.last_offset = checkpoint.start if checkpoint else 0

    async def take(self) -> bool:
        """Save what changed; False when the disk had no room for it, which costs nothing but time at the next start."""
        state, index, log = self._storage.state, self._storage.index, self._storage.log
        start = state.next_offset
        changed: dict[str, tuple[int, bytes]] = {}
        present: set[str] = set()
        begun = time.monotonic()
        for part in state.parts():
            present.add(part.key)
            if self._saved.get(part.key, -1) < part.as_of:
                changed[part.key] = (part.as_of, parts.encode(part))
            if time.monotonic() - begun > SLICE_S:
                await asyncio.sleep(0)
                begun = time.monotonic()
        gone = set(self._saved) - present
        wanted = max([start, *(as_of for as_of, _ in changed.values())])
        while log.synced < wanted:
            if log.failure:
                return False
            await asyncio.sleep(0.005)
        mark = log.synced_mark
        loop = asyncio.get_running_loop()
        done = await loop.run_in_executor(self._executor, index.commit, mark, changed, gone, start)
        if done:
            self._saved = {key: self._saved.get(key, 0) for key in present}
            self._saved |= {key: as_of for key, (as_of, _) in changed.items()}
            self.last_offset = start
        return done
