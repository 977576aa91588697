"""The first turn of every episode, as a task: what a run is checked with before its first step.

The other way round than "a problem is an episode of one turn": an episode begins with a problem. It has no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fovea.environments.game import Game
from fovea.environments.seeds import episode_seed
from fovea.environments.spoken import Rules, Spoken
from fovea.types import AnswerKind, Problem


@dataclass(kw_only=True)
class Beginnings:
    """An endless task of first turns; problem i is that of episode i."""

    game: Game
    rules: Rules = field(default_factory=Rules)
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"
    seed: int = 0
    _env: Spoken | None = None

    kind: AnswerKind = "text"
    size: int | None = None

    @property
    def name(self) -> str:
        return self.game.name

    @property
    def chance(self) -> float:
        """Success of random legal actions; 0 where nobody has measured it."""
        return self.game.floor or 0.0

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        """The beginnings of the next `n` episodes and the next cursor."""
        return [self._problem(i) for i in range(cursor, cursor + n)], cursor + n

    def _problem(self, i: int) -> Problem:
        if self._env is None:
            self._env = Spoken(game=self.game, rules=self.rules, options=self.options)
        seed = episode_seed(self.seed, self.split, i)
        observation, info = self._env.reset(seed=seed, options={"split": self.split})
        return Problem(
            id=f"{self.game.name}:{self.split}:{self.seed}:{i}",
            task=self.game.name,
            images=observation.images,
            question=observation.text,
            answer="",
            kind="text",
            meta={"state": info["state"]},
        )
