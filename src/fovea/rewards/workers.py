"""Killable worker processes for reward code, and finding the completion that is to blame.

loky starts a clean interpreter (no fork of a process with threads and CUDA, `__main__` is not run again), takes
closures, and kills hard: the whole process tree, whatever signal handlers say. Tried before choosing: an endless
loop, an endless sleep, a regular expression that holds the GIL, `os._exit`, a memory bomb, an ignored SIGTERM, a
child process that sleeps. pebble waits 3 s on an ignored SIGTERM and leaves the child behind; loky does neither.

Not here: what happens inside a worker (`calls.py`), weights, journal and what a fault costs (`scorer.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Literal

from fovea.rewards.calls import Batch, Called, call, missing_columns
from fovea.rewards.loading import Fault, Source, describe, load
from fovea.types import RunFailed, UserError

START_LIMIT = 120.0
"""Seconds a worker may take to start and to load the user's functions (a file may load a model)."""

ROOM = 32 * 2**20
"""Bytes that a worker must be allowed beyond what Python, NumPy and loky hold before any reward is loaded."""

_LEAK_SIZE = "LOKY_MAX_MEMORY_LEAK_SIZE"

SMALLEST_SHARE = 0.25
"""While looking for the guilty completion, n of G completions get max(n / G, this) of the limit."""

SEARCH_LIMITS = 4.0
"""The search ends after so many limits; completions that are not cleared by then count as timed out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What a reward gave to each completion of a group, faults found down to the completion."""

    values: tuple[float | Fault | None, ...]
    parts: dict[str, tuple[float, ...]]
    metrics: dict[str, float]
    rescued: Fault | None = None
    """Why the call for the whole group failed, if none of its parts did: it works on few at a time only."""


@dataclass(slots=True)
class Worker:
    """One process with the user's functions loaded; started when first needed, again after it was killed."""

    sources: Sequence[Source]
    form: Literal["auto", "text", "chat"] = "auto"
    memory_bytes: int | None = None
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name → {"style", "form", "code"} of the loaded functions."""
    starts: int = 0
    _executor: Any = None

    def score(self, name: str, batch: Batch, limit: float) -> Called | Fault:
        """One call within `limit` seconds. A timeout or a death costs the worker, not the run."""
        result = self._loaded(limit, call, name, batch, 2 * limit + 10)
        assert isinstance(result, Called | Fault), f"a worker gave {result!r}"
        return result

    def missing_columns(self, name: str, problem: Any) -> tuple[list[str], list[str]]:
        """See `calls.missing_columns`."""
        result = self._loaded(START_LIMIT, missing_columns, name, problem)
        if isinstance(result, Fault):
            raised = "raised " * (result.kind == "raised")
            raise RunFailed(f"The worker of reward {name!r} {raised}{_said(result)}.")
        return result

    def start(self) -> None:
        """Start the process and load every function, unless that is done. Raises UserError if one does not load."""
        if self._executor is not None:
            return
        import loky  # only runs with reward functions of their own pay for it
        from loky.backend import get_context

        # One hash seed for all workers: the order of a set must not differ between a run and its resumption. Safe
        # path: a random.py in the working folder must not keep a worker from starting. No leak size: loky would put
        # a new process without the user's functions in the place of one that grew by 300 MB (one that imports torch).
        self._executor = loky.ProcessPoolExecutor(
            max_workers=1,
            context=get_context("loky"),
            initializer=prepare,
            initargs=(os.getpid(),),
            env={"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1", _LEAK_SIZE: "1e18"},
        )
        self.starts += 1
        if self.memory_bytes is not None:
            self._limit(self.memory_bytes)
        for source in self.sources:
            loaded = self._run(START_LIMIT, load, source, self.form)
            if isinstance(loaded, Fault):
                self.kill()
                short = loaded.kind == "died" or loaded.detail.startswith("MemoryError")
                hint = f" (the limit of reward_memory_gb is {_gigabytes(self.memory_bytes)} GB)"
                raise UserError(
                    f"The reward {source.name!r} cannot be used: {_said(loaded)}"
                    f"{hint if short and self.memory_bytes is not None else ''}."
                )
            self.facts[source.name] = loaded

    def _limit(self, limit: int) -> None:
        """Set the process's limit of memory. Raises UserError where Python itself does not fit into it."""
        needed = self._run(START_LIMIT, limit_memory, limit)
        if needed is None:
            return
        self.kill()
        said = _said(needed) if isinstance(needed, Fault) else f"needs {_gigabytes(needed)} GB by itself"
        raise UserError(
            f"reward_memory_gb={_gigabytes(limit)} is too small: a worker {said} before it loads any reward; give "
            "more, for example 2, or leave the key away."
        )

    def _loaded(self, limit: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """`_run` where the functions are loaded: a process that has none of them is replaced, once."""
        self.start()
        result = self._run(limit, function, *arguments)
        if result is None:
            self.kill()
            self.start()
            result = self._run(limit, function, *arguments)
        return Fault(kind="died", detail="lost its process twice") if result is None else result

    def run(self, limit: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """A call of any importable function in the process that `start` started: its result, or a `Fault` of kind
        timeout, died (then the process is gone) or raised. For others who need a killable process (environments)."""
        return self._run(limit, function, *arguments)

    def kill(self) -> None:
        """End the process and its children at once, whatever they are doing."""
        executor, self._executor = self._executor, None
        if executor is not None:
            with warnings.catch_warnings():  # loky warns that a task was lost; losing it is the point
                warnings.simplefilter("ignore")
                executor.shutdown(wait=True, kill_workers=True)

    def _run(self, limit: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result in the worker, or a `Fault` of kind timeout, died or raised (cannot be sent)."""
        from loky.process_executor import BrokenProcessPool

        assert self._executor is not None, "start() first"
        try:
            return self._executor.submit(function, *arguments).result(limit)
        except FutureTimeout:
            self.kill()
            return Fault(kind="timeout", detail=f"took longer than {limit:g} s")
        except BrokenProcessPool as error:
            self.kill()
            return Fault(kind="died", detail=f"ended its process ({_ending(error)})")
        except Exception as error:  # the functions above never raise: something could not be pickled
            return Fault(kind="raised", detail=f"an error on the way to its worker: {describe(error)}")
        except KeyboardInterrupt:
            self.kill()  # its worker may be in a loop that would hold up the end of the program
            raise


def prepare(parent: int) -> None:
    """In a new worker: it ends when the process that started it (`parent`) has, not before: Ctrl-C in a terminal and
    a scheduler's SIGTERM reach workers, too, while the run still finishes its step and saves."""
    for name in ("PYTHONSAFEPATH", _LEAK_SIZE):  # not for programs that the user's code starts
        os.environ.pop(name, None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def limit_memory(limit: int) -> int | None:
    """In a new worker: from now on more than `limit` bytes of private memory raise MemoryError (not on Windows).

    The bytes that it has to have, `ROOM` included, if those are more: nothing is limited then. RLIMIT_DATA and not
    RLIMIT_AS: CUDA reserves hundreds of gigabytes of addresses that it never writes.
    """
    if sys.platform == "win32":
        return None
    import resource

    needed = _private_bytes() + ROOM
    if limit < needed:
        return needed
    with contextlib.suppress(OSError, ValueError):  # a lower hard limit is there already: that one holds
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return None


def _private_bytes() -> int:
    """What RLIMIT_DATA counts of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)
    except (OSError, ValueError):
        return 0


def _gigabytes(number: int | None) -> str:
    return f"{(number or 0) / 2**30:.2g}"


def _end_with(parent: int) -> None:
    """End this process soon after its parent was killed; code that holds the GIL is ended by `calls.call`."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def default_memory() -> int | None:
    """Half of the machine's memory in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return None


@dataclass(slots=True)
class Search:
    """Finding the guilty completions of one group by halving: at most `SEARCH_LIMITS` limits after the first call."""

    worker: Worker
    name: str
    batch: Batch
    limit: float
    first_only: bool = False
    """Stop at the first guilty one (the run is going to stop anyway); the others stay None."""
    values: list[float | Fault | None] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    spent: float = 0.0
    """Seconds of calls after the first one; starting workers again is not counted."""

    def run(self) -> Resolved:
        """Score the whole group, halving whatever fails as a whole."""
        everyone = range(len(self.batch.texts))
        self.values = [None for _ in everyone]
        outcome = self.worker.score(self.name, self.batch, self.limit)
        self._settle(everyone, outcome)
        return Resolved(
            values=tuple(self.values),
            parts={name: tuple(numbers) for name, numbers in self.parts.items()},
            metrics={name: sum(numbers) / len(numbers) for name, numbers in self.metrics.items()},
            rescued=outcome
            if isinstance(outcome, Fault) and outcome.kind != "timeout" and not self._found()
            else None,
        )

    def _settle(self, chosen: Sequence[int], outcome: Called | Fault) -> None:
        if isinstance(outcome, Called):
            self._keep(chosen, outcome)
        elif len(chosen) == 1 or outcome.kind in ("length", "type"):
            # A list that fits no completions is wrong for all of them: alone it might fit by accident.
            for place in chosen:
                self.values[place] = outcome
        else:
            middle = (len(chosen) + 1) // 2
            for half in (chosen[:middle], chosen[middle:]):
                if not (self.first_only and self._found()):
                    self._settle(half, self._again(half))

    def _again(self, chosen: Sequence[int]) -> Called | Fault:
        """Score some of the completions within their share of the limit, as long as the search may go on."""
        left = SEARCH_LIMITS * self.limit - self.spent
        share = self.limit * max(len(chosen) / len(self.batch.texts), SMALLEST_SHARE)
        if left <= 0:
            return Fault(
                kind="timeout", detail=f"not reached within {1 + SEARCH_LIMITS:g} x {self.limit:g} s"
            )
        self.worker.start()
        began = time.monotonic()
        try:
            return self.worker.score(self.name, self.batch.some(chosen), min(share, left))
        finally:
            self.spent += time.monotonic() - began

    def _keep(self, chosen: Sequence[int], outcome: Called) -> None:
        for place, value in zip(chosen, outcome.values, strict=True):
            self.values[place] = value
        for name, numbers in outcome.parts.items():
            whole = self.parts.setdefault(name, [float("nan") for _ in self.batch.texts])
            for place, number in zip(chosen, numbers, strict=True):
                whole[place] = number
        for name, number in outcome.metrics.items():
            self.metrics.setdefault(name, []).append(number)

    def _found(self) -> bool:
        return any(isinstance(value, Fault) for value in self.values)


def _said(fault: Fault) -> str:
    return fault.detail.rstrip(".")


def _ending(error: BaseException) -> str:
    """The exit code or signal in loky's long message."""
    words = str(error)
    return words[words.find("{") + 1 : words.rfind("}")] if "{" in words else "killed, or out of memory"
