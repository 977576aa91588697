"""The next step's problems, made in a thread while the model learns from this one's.

Which problems those are is settled when the step has sampled (a controller of difficulty has decided by then),
so nothing depends on the thread: a problem that is asked for and was not made ahead is made at once.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from fovea.types import AnswerKind, Problem, Task


@dataclass(kw_only=True)
class Ahead:
    """A task with some of its next problems on the way."""

    task: Task
    _made: dict[int, Future[list[Problem]]] = field(default_factory=dict)
    _thread: ThreadPoolExecutor | None = None

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def kind(self) -> AnswerKind:
        return self.task.kind

    @property
    def chance(self) -> float:
        return self.task.chance

    @property
    def size(self) -> int | None:
        return self.task.size

    def begin(self, cursor: int, n: int) -> None:
        """Begin with problems `cursor` to `cursor + n - 1`; what was begun and not taken is forgotten."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="problems")
        self.forget()
        for position in range(cursor, cursor + n):
            self._made[position] = self._thread.submit(self._one, position)

    def _one(self, position: int) -> list[Problem]:
        return self.task.take(position, 1)[0]

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        """As the task's own; raises what it raises."""
        found: list[Problem] = []
        for position in range(cursor, cursor + n):
            made = self._made.pop(position, None)
            found += self._one(position) if made is None else made.result()
        return found, cursor + n

    def forget(self) -> None:
        for made in self._made.values():
            made.cancel()
        self._made.clear()

    def close(self) -> None:
        """End the thread; what it is making is waited for."""
        self.forget()
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
