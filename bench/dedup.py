"""What dedup ids cost: memory, the publish, the forgetting, and a checkpoint.

    python bench/dedup.py [IDS]

A million ids in one queue, in batches of 1, 100 and 1000 messages, each batch size in a process of its own. Times are
those of the processor, so that other programs do not count.
"""

import gc
import os
import sys
import time
from pathlib import Path

from vibemq.batch import Batch, pack
from vibemq.projections import part as parts
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults

IDS = 1_000_000
SIZES = (1, 100, 1000)
ID_BYTES = 16
PAGE = os.sysconf("SC_PAGE_SIZE")


def rss() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE


def measure(ids: int, size: int) -> None:
    """Publish batches with new ids, then look at what that left."""
    broker = Broker(Projector(), Limits(dedup_ids=ids, cache_bytes=1), QueueDefaults())
    journal = broker.journal
    journal.now_us = 1
    broker.start("bench", 0)
    connection = broker.connect("bench", "", "binary", 1)
    batch = Batch(b"".join(pack([b"x"] * size)))
    gc.collect()
    before, longest, spent = rss(), 0.0, 0.0
    for _ in range(ids // size):
        publish = Publish(connection, 1, "q", 0, batch, dedup=os.urandom(ID_BYTES * size))
        begun = time.thread_time()
        broker.publishing.publish(publish)
        took = time.thread_time() - begun
        spent, longest = spent + took, max(longest, took)
        journal.records.clear()
        journal.effects.clear()
    each = (rss() - before) / ids
    begun = time.thread_time()
    saved = [(part.key, part.as_of, parts.encode(part)) for part in journal.state.dedup.parts()]
    encoded = time.thread_time() - begun
    begun = time.thread_time()
    Projector.restore(saved, journal.next_offset)
    restored = time.thread_time() - begun
    journal.now_us += 600_000_000
    begun = time.thread_time()
    broker.tick()
    forgot = time.thread_time() - begun
    print(
        f"batches of {size:4}: {each:4.0f} bytes an id, {spent / ids * 1e6:5.2f} us a message, longest batch "
        f"{longest * 1e3:4.1f} ms; {len(saved)} slices, {encoded / len(saved) * 1e3:.2f} ms to encode each, "
        f"{restored:.2f} s to restore all; a turn of forgetting {forgot * 1e3:.1f} ms",
        flush=True,
    )


def main() -> None:
    """Measure each size."""
    ids = int(sys.argv[1]) if len(sys.argv) > 1 else IDS
    for size in SIZES:
        child = os.fork()
        if not child:
            measure(ids, size)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
