"""Tasks that a user makes in Python: a list of problems, or any object with a task's methods.

    problems = [Problem(id="7", task="cats", images=(picture,), question="How many cats?", answer=2, kind="number"), …]
    train, held_out = split_problems("cats", problems, seed=0)

Not here: files (`fovea.tasks.data`), everything that can be wrong with a problem (`fovea.tasks.check`).
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fovea.tasks.check import chance_of_problems, check_task, wrong_field
from fovea.tasks.data import EVERY
from fovea.types import AnswerKind, Problem, Task, UserError

LOOKED_AT = 16
"""Problems of a task object that are checked before a run starts; of a list all are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemList:
    """A finite task of problems in memory, taken in a fresh seeded order every epoch.

    Example: ProblemList(name="cats", problems=(problem,), seed=0, shuffle=True, chance=0.5)
    """

    name: str
    problems: tuple[Problem, ...]
    seed: int = 0
    shuffle: bool = True
    """False: always in the order given (held-out problems)."""
    chance: float = 0.0

    @property
    def kind(self) -> AnswerKind:
        """That of the first problem."""
        return self.problems[0].kind

    @property
    def size(self) -> int:
        return len(self.problems)

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        """The problems at positions `cursor` to `cursor + n`; after the last one an epoch begins anew."""
        return [self._at(position) for position in range(cursor, cursor + n)], cursor + n

    def _at(self, position: int) -> Problem:
        epoch, offset = divmod(position, len(self.problems))
        return self.problems[_order(self.seed, epoch, len(self.problems))[offset] if self.shuffle else offset]


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, n: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, epoch]).permutation(n).tolist())


def split_problems(
    name: str, problems: Sequence[Problem], held_out: Sequence[Problem] | None = None, *, seed: int = 0
) -> tuple[ProblemList, ProblemList]:
    """(training, held-out) tasks of a list; without `held_out` every tenth problem is held out, as with files.

    Raises UserError, naming the first problem that cannot be used, and for fewer than ten without `held_out`.
    """
    problem_list(name, problems)
    if held_out is not None:
        problem_list("validation", held_out)
        kept, held = list(problems), list(held_out)
    else:
        if len(problems) < EVERY:
            raise UserError(
                f"{name}: of {len(problems)} problems none can be held out (every tenth is); give validation=[…]."
            )
        kept = [problem for i, problem in enumerate(problems) if i % EVERY != EVERY - 1]
        held = [problem for i, problem in enumerate(problems) if i % EVERY == EVERY - 1]
    shared = {problem.id for problem in kept} & {problem.id for problem in held}
    if shared:
        raise UserError(
            f"{name}: the problem {min(shared)!r} is trained on and held out; give it to one of task and validation."
        )
    return (
        ProblemList(name=name, problems=tuple(kept), seed=seed, chance=chance_of_problems(kept)),
        ProblemList(
            name=name, problems=tuple(held), seed=seed, shuffle=False, chance=chance_of_problems(held)
        ),
    )


def problem_list(name: str, problems: Sequence[Problem]) -> ProblemList:
    """All problems in the order given. Raises UserError, naming the first that cannot be used."""
    if not problems:
        raise UserError(f"{name}: the list of problems is empty; give some.")
    for i, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            raise UserError(
                f"{name}, problem {i}: it is a {type(problem).__name__}, not a fovea.Problem; make it one."
            )
        wrong = wrong_field(problem)  # before anything that relies on the types
        if wrong is not None:
            raise UserError(f"{name}, problem {i}: {wrong[0]}; {wrong[1]}.")
    chance = chance_of_problems(problems)
    whole = ProblemList(name=name, problems=tuple(problems), shuffle=False, chance=chance)
    _refuse_findings(whole, len(problems))
    return whole


def check_own_task(task: Any, what: str = "task") -> Task:
    """`task` itself, when it is one: the attributes and methods of `fovea.Task`, and problems that are sound.

    `what`: how the user calls it, for the message. Raises UserError that names the attribute or method that is wrong
    and says what it must be. The first `LOOKED_AT` problems are taken twice, in different portions.
    """
    where = f"{what}={type(task).__name__}"
    for name, good, must in _ATTRIBUTES:
        if not hasattr(task, name):
            raise UserError(f"{where} has no attribute {name!r}; it must be {must}.")
        value = getattr(task, name)
        if callable(value) or not good(value):
            shown = "a method" if callable(value) else repr(value)[:60]
            raise UserError(f"{where}: {name} is {shown}; it must be {must}.")
    if not callable(getattr(task, "take", None)):
        raise UserError(
            f"{where} has no method take(cursor, n); it returns the next n problems and the next cursor."
        )
    _check_take(task, where)
    n = LOOKED_AT if task.size is None else min(LOOKED_AT, task.size)
    try:
        _refuse_findings(task, n)
    except UserError:
        raise
    except Exception as error:  # the user's code: whatever it raises is about the task
        raise UserError(f"{where}: take failed with {type(error).__name__}: {error}; correct it.") from error
    found: Task = task
    return found


def _is_chance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


_KINDS = typing.get_args(AnswerKind)
_ATTRIBUTES = (
    ("name", lambda value: isinstance(value, str) and bool(value), "a text"),
    ("kind", lambda value: value in _KINDS, f"one of {', '.join(_KINDS)}"),
    ("chance", _is_chance, "a number of 0 to 1: the accuracy of the best guesser that does not look"),
    ("size", _is_size, "how many different problems there are, or None if there is no end to them"),
)


def _check_take(task: Any, where: str) -> None:
    """The shape of what `take(0, 2)` gives, and that a task goes on after its last problem."""
    must = "it must return (a list of n fovea.Problem, the next cursor as an int)"
    for cursor, n in ((0, 1 if task.size == 1 else 2), *([(task.size, 1)] if task.size is not None else [])):
        try:
            found = task.take(cursor, n)
        except Exception as error:  # the user's code
            raise UserError(
                f"{where}: take({cursor}, {n}) failed with {type(error).__name__}: {error}; {must}"
                f"{', and begin anew after the last problem' if cursor else ''}."
            ) from error
        if not isinstance(found, tuple) or len(found) != 2:
            raise UserError(f"{where}: take({cursor}, {n}) returned a {type(found).__name__}; {must}.")
        problems, after = found
        if not isinstance(problems, list) or not all(isinstance(problem, Problem) for problem in problems):
            raise UserError(f"{where}: take({cursor}, {n}) returned no list of fovea.Problem; {must}.")
        if len(problems) != n:
            again = ", and begin anew after the last problem" if cursor else ""
            raise UserError(f"{where}: take({cursor}, {n}) returned {len(problems)} problems; {must}{again}.")
        if not isinstance(after, int) or isinstance(after, bool):
            raise UserError(f"{where}: take({cursor}, {n}) returned the cursor {after!r}; {must}.")


def _refuse_findings(task: Task, n: int) -> None:
    report = check_task(task, n)
    if report.bad:
        more = f" ({len(report.bad) - 1} more; fovea.tasks.check_task(task) names all)"
        raise UserError(f"{report.bad[0]}{more if len(report.bad) > 1 else ''}")
