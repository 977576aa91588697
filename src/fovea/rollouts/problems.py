"""The next problems of a task as prompts, and those that cannot be shown to the model.

Not here: what is drawn for them (`drawing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fovea.models import Policy, Prompt
from fovea.models.policy import named
from fovea.types import (
    AnswerKind,
    Problem,
    Task,
    UserError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A problem that could not be shown to the model: its picture is gone, it does not fit the context.

    Example: BadSample(id="my:12", error="line 12: the picture cat.png does not exist; …")
    """

    id: str
    """The problem's id; `TASK:position N` when the task could not even make the problem."""
    error: str
    """One sentence: what is wrong, where, the fix."""
    position: int = 0
    """The cursor it was taken with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """The next problems of a task as prompts, and those that cannot be one."""

    prompts: tuple[Prompt, ...]
    bad: tuple[BadSample, ...]
    cursor: int
    """Where the next problems begin."""
    seconds: float = 0.0
    """Spent waiting for the task's problems, pictures included; rendering prompts is not counted."""


def gather(
    task: Task,
    cursor: int,
    n: int,
    policy: Policy,
    instruction: str | None = None,
    check: Callable[[Prompt], object] | None = None,
) -> Gathered:
    """Take `n` problems one by one and render them; one that raises UserError becomes a `BadSample`.

    Nothing is drawn in place of a bad one: `len(prompts) + len(bad) == n`, so that what comes next does not
    depend on it. `check` may refuse a prompt, too (a teacher's reply that does not fit).
    """
    prompts: list[Prompt] = []
    bad: list[BadSample] = []
    waited = 0.0
    for position in range(cursor, cursor + n):
        name = f"{task.name}:position {position}"
        began = time.perf_counter()
        try:
            try:
                (problem,), _ = task.take(position, 1)
            finally:
                waited += time.perf_counter() - began
            name = problem.id
            prompt = policy.prompt(problem, instruction)
            try:
                if check is not None:
                    check(prompt)
            except UserError as error:
                raise UserError(named(problem, str(error))) from error
        except UserError as error:
            bad.append(BadSample(id=name, error=str(error), position=position))
        else:
            prompts.append(prompt)
    return Gathered(prompts=tuple(prompts), bad=tuple(bad), cursor=cursor + n, seconds=waited)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Some problems of another task, in order: what is left of it without the bad ones."""

    task: Task
    positions: tuple[int, ...]

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
    def size(self) -> int:
        return len(self.positions)

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        """Once through, no second epoch: fewer than `n` at the end."""
        taken = self.positions[cursor : cursor + n]
        return [self.task.take(position, 1)[0][0] for position in taken], cursor + n


def without_bad(
    task: Task, n: int, policy: Policy, instruction: str | None = None
) -> tuple[Chosen, tuple[BadSample, ...]]:
    """The first `n` problems of a task without those that cannot be shown to the model, and those.

    For evaluations: render everything once, a few at a time, when one of them failed. Raises UserError when none
    is left.
    """
    bad: list[BadSample] = []
    for position in range(0, n, 16):
        bad.extend(gather(task, position, min(16, n - position), policy, instruction).bad)
    gone = {one.position for one in bad}
    kept = tuple(position for position in range(n) if position not in gone)
    if not kept:
        raise UserError(f"All {n} problems of {task.name} are bad, the first one because: {bad[0].error}")
    return Chosen(task=task, positions=kept), tuple(bad)
