"""Several tasks as one, and a controller for each that holds the policy's success in a band by changing the difficulty.

    after every `window` problems of a task:   success > high → level + change,   success < low → level - change

A controller remembers from which problem on a level holds, so problem i stays what it was whenever it is made again
(a replay, a resumed run), and its state is a list of these changes. Decisions look back on whole steps and hold from
the next one, so that they are the same in every run of the same seed.

Not here: what a difficulty means (the generators), which share of the problems a task should have (an experiment).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fovea.config import DifficultySection
from fovea.types import AnswerKind, Problem, Task

_DRAW = 0x6D697874
"""Apart from other draws with the same seed."""


@dataclass(kw_only=True)
class Controller:
    """The difficulty of one task."""

    low: float
    high: float
    change: float
    window: int
    control: bool = True
    """False: the level stays where it is."""
    since: list[int] = field(default_factory=lambda: [0])
    """First problem of each level, rising."""
    levels: list[float] = field(default_factory=lambda: [0.4])
    seen: int = 0
    """Problems since the last decision."""
    right: float = 0.0
    """Sum of their shares of right replies."""

    def at(self, index: int) -> float:
        """Difficulty of problem `index`."""
        return self.levels[bisect_right(self.since, index) - 1]

    @property
    def level(self) -> float:
        return self.levels[-1]

    def observe(self, success: Sequence[float], cursor: int) -> None:
        """Shares of right replies (0 to 1) of the step's problems; a change holds from problem `cursor` on."""
        self.seen += len(success)
        self.right += float(sum(success))
        if self.seen < self.window:
            return
        mean, self.seen, self.right = self.right / self.seen, 0, 0.0
        move = self.change if mean > self.high else -self.change if mean < self.low else 0.0
        level = round(min(1.0, max(0.0, self.level + move)), 6)
        if self.control and level != self.level:
            self.since.append(cursor)
            self.levels.append(level)

    def state(self) -> dict[str, Any]:
        return {
            "since": list(self.since),
            "levels": list(self.levels),
            "seen": self.seen,
            "right": self.right,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.since, self.levels = list(state["since"]), list(state["levels"])
        self.seen, self.right = int(state["seen"]), float(state["right"])


@dataclass(kw_only=True)
class Curriculum:
    """The controllers of a run's tasks; a stateful part of the run (`Session.parts`)."""

    controllers: dict[str, Controller] = field(default_factory=dict)
    """By the task's name, only of tasks that have a difficulty."""

    def controller(self, name: str, section: DifficultySection) -> Controller:
        """The controller of a task, made on first use."""
        if name not in self.controllers:
            level = section.levels.get(name, section.level)
            self.controllers[name] = Controller(
                low=section.low,
                high=section.high,
                change=section.change,
                window=section.window,
                control=section.control,
                levels=[level],
            )
        return self.controllers[name]

    def observe(
        self, problems: Sequence[Problem], success: Sequence[float], cursor: int
    ) -> dict[str, float | int]:
        """Tell every controller what came of a step; a metric a task: share right, problems, difficulty."""
        found: dict[str, list[float]] = {}
        for problem, share in zip(problems, success, strict=True):
            found.setdefault(problem.task.partition("@")[0], []).append(share)
        metrics: dict[str, float | int] = {}
        for name, shares in found.items():
            metrics[f"success/{name}"] = float(np.mean(shares))
            metrics[f"problems/{name}"] = len(shares)
            if name in self.controllers:
                metrics[f"difficulty/{name}"] = self.controllers[name].level  # the one that was asked
                self.controllers[name].observe(shares, cursor)
        return metrics

    def state(self) -> dict[str, Any]:
        return {name: controller.state() for name, controller in self.controllers.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, controller in self.controllers.items():
            controller.restore(state[name])


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedTask:
    """One or several tasks by shares: problem i is problem i of a task that is drawn by (seed, i)."""

    name: str
    tasks: tuple[Task, ...]
    shares: tuple[float, ...]
    """Of the problems, above 0; they need not add up to 1."""
    seed: int
    curriculum: Curriculum

    @property
    def kind(self) -> AnswerKind:
        """Of the first task; `kinds` are all."""
        return self.tasks[0].kind

    @property
    def kinds(self) -> tuple[AnswerKind, ...]:
        return tuple(dict.fromkeys(task.kind for task in self.tasks))

    @property
    def chance(self) -> float:
        """Mean over the problems."""
        return float(np.average([task.chance for task in self.tasks], weights=self.shares))

    @property
    def size(self) -> None:
        return None

    @property
    def rewards(self) -> Mapping[str, float]:
        """What a run takes where its recipe names none: the task's own, or each problem's by its kind."""
        own: Mapping[str, float] | None = (
            getattr(self.tasks[0], "rewards", None) if len(self.tasks) == 1 else None
        )
        return {"accuracy": 1.0, "format": 0.1} if own is None else own

    @property
    def reward_options(self) -> Mapping[str, Mapping[str, Any]]:
        """Options of those rewards: of several tasks what all that have a reward agree on."""
        found: dict[str, dict[str, Any]] = {}
        for task in self.tasks:
            for reward, options in getattr(task, "reward_options", {}).items():
                found.setdefault(reward, {}).update(options)
        return found

    @property
    def digest(self) -> str:
        """Of the pictures and graphs that the tasks are made of, for a run that goes on."""
        made_of = [getattr(task, "pool", None) or getattr(task, "part", None) for task in self.tasks]
        return " ".join(str(getattr(one, "digest", "")) for one in made_of)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the pictures, once."""
        pools = [getattr(task, "pool", None) for task in self.tasks]
        return tuple(dict.fromkeys(note for pool in pools for note in getattr(pool, "notes", ())))

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self._problem(index) for index in range(cursor, cursor + n)], cursor + n

    def _problem(self, index: int) -> Problem:
        which = 0
        if len(self.tasks) > 1:
            edges = np.cumsum(self.shares) / np.sum(self.shares)
            drawn = np.random.default_rng([_DRAW, self.seed, index]).random()
            which = min(int(np.searchsorted(edges, drawn, side="right")), len(self.tasks) - 1)
        (problem,), _ = self.tasks[which].take(index, 1)
        return problem
