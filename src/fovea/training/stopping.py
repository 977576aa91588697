"""When a run ends before its last step: because it was asked to, or because the held-out metric no longer rises."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from fovea.types import RunFailed

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(RunFailed):
    """The run was asked to stop; what it did is saved. `signal` is the number that asked."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class StopNow(BaseException):
    """Raised by the signal handler, only while nothing would be left half done (`StopRequest.at_once`)."""


class StopRequest:
    """Ctrl-C and SIGTERM while training: the step is finished, the run is saved, then it ends.

    A second signal ends the process at once, as without us. Signals are taken over in the main thread only, and
    given back at the end.

    Example: with StopRequest() as stop: ... if stop.number: save()
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that asked, or None."""
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        return NAMES.get(signal.Signals(self.number), "a signal") if self.number else ""

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises `StopNow` instead of waiting: for what changes nothing, like an evaluation."""
        if self.number:
            raise StopNow
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:  # asked twice
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.number = number
        if self._at_once:
            raise StopNow


def value_of(record: Mapping[str, Any], metric: str) -> float | None:
    """A figure of an evaluation: a number, or the mean of a record with an interval."""
    found = record.get(metric)
    found = found.get("mean") if isinstance(found, Mapping) else found
    return float(found) if isinstance(found, (int, float)) else None


def best_of(records: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    """The evaluation with the highest figure, the earliest of equals; None without any."""
    known = [record for record in records if value_of(record, metric) is not None]
    return max(known, key=lambda record: value_of(record, metric) or 0.0, default=None)


def no_longer_rises(records: Sequence[Mapping[str, Any]], metric: str, patience: int) -> bool:
    """Whether the last `patience` evaluations (in order of steps) all stayed at or below the best before them."""
    values = [value_of(record, metric) for record in records]
    known = [value for value in values if value is not None]
    return 0 < patience < len(known) and max(known[-patience:]) <= max(known[:-patience])
