"""CPU seconds that mean the same on a slow machine: scaled by how long plain Python takes at this moment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

COUNTING = 0.0022
"""Seconds in which the machine that limits were set on counts to 100,000. A slower one is given as much more."""


def count() -> int:
    """Plain Python whose time says how fast the machine is."""
    total = 0
    for i in range(100_000):
        total += i
    return total


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def best_time(work: Callable[[], object], enough: float, tries: int = 6) -> float:
    """CPU seconds on the machine of `COUNTING`: the least of at most `tries` runs, or the first below `enough`."""
    best = counting = math.inf
    for _ in range(tries):
        best = min(best, cpu_seconds(work))
        if best < enough:
            return best
        counting = min(counting, cpu_seconds(count))
    return best * min(1, COUNTING / counting)
