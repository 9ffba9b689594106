"""Latencies as a histogram: small enough to travel between processes, and precise to 1 %.

A latency is counted under its leading eight bits: a bucket is at most 1/128 too wide (the idea of HdrHistogram).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
_BITS: Final = 8


def histogram(latencies_ns: Iterable[int]) -> dict[int, int]:
    """How many latencies there are of each size, in nanoseconds."""
    counted: Counter[int] = Counter()
    for latency, times in Counter(latencies_ns).items():
        shift = max(0, latency.bit_length() - _BITS)
        counted[latency >> shift << shift] += times
    return dict(counted)


def merged(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """One histogram of all."""
    total: Counter[int] = Counter()
    for one in histograms:
        total.update(one)
    return dict(total)


def percentiles_ms(counted: Mapping[int, int]) -> dict[str, float]:
    """The latency, in milliseconds, that each share of all stays within, and the longest. Empty when there is none."""
    total, seen, found = sum(counted.values()), 0, {}
    wanted = list(PERCENTILES)
    for latency in sorted(counted):
        seen += counted[latency]
        while wanted and seen * 100 >= wanted[0] * total:
            found[f"p{wanted.pop(0):g}"] = latency / 1e6
    if counted:
        found["max"] = max(counted) / 1e6
    return found
