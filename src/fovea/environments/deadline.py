"""A deadline for code in this process: `with within(5): …` raises `TooLong` in the midst of an endless loop.

By an alarm signal, so only in the main thread of a POSIX system; elsewhere nothing is cut off. It reaches Python code,
`time.sleep` and the engine of regular expressions, but no foreign code that never returns to Python: that needs a
process of its own (`isolated.py`).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TooLong(BaseException):
    """Not an Exception: code under a deadline must not catch it as one of its own."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `TooLong` inside the block after `seconds`. An alarm that was set before goes on afterwards."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TooLong

    handler = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    before, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before:  # at least a moment: 0 would turn it off
            signal.setitimer(signal.ITIMER_REAL, max(before - (time.monotonic() - began), 0.001), interval)
