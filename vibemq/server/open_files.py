"""How many connections the operating system leaves room for.

A connection is an open file, and so is a segment: were connections to use up all files that a process may have open,
the next segment could not be made, and the broker would have to end. So what they may use is known before.
"""

import logging
import resource

from vibemq.server.listeners import BACKLOG

FILES_BESIDE = 128 + BACKLOG
"""For segments, index and logs; and for connections that were accepted in one go and are about to be turned away."""


def connections_possible(wanted: int, logger: logging.Logger) -> int:
    """Raise the soft limit of open files as far as that helps; `wanted` connections, or as many as fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    needed = wanted + FILES_BESIDE
    if soft != endless and soft < needed:
        soft = needed if hard == endless else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == endless or soft >= needed:
        return wanted
    possible = soft - min(FILES_BESIDE, soft // 2)
    logger.warning(
        "the limit of open files allows fewer connections",
        extra={"open_files": soft, "connections": possible, "wanted": wanted},
    )
    return possible
