"""What a teacher would say in a game, as problems for supervised fine-tuning: the cold start.

    format   the thought transcribes the state rightly, the action is drawn uniformly from the legal ones: the policy
             begins at the random floor, and whatever it learns about acting comes from reinforcement learning
    expert   the thought goes on to why, the action is a solver's (as in RL4VLM, whose solvers wrote its data)

Problem i is one turn of an episode that is a function of (seed, split, i): it is played by the teacher to a turn that
is drawn uniformly from those it has.

Try it: python -c "from fovea.environments.demonstrations import *; print(Demonstrations(game=find_game('number_line'),
kind='format').take(0, 1)[0][0].target)"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fovea.environments.game import Game
from fovea.environments.replies import write_reply
from fovea.environments.seeds import episode_seed
from fovea.environments.spoken import Rules, Spoken
from fovea.types import AnswerKind, Earlier, Problem, UserError

Teaching = Literal["format", "expert"]


@dataclass(kw_only=True)
class Demonstrations:
    """An endless task: every problem is a turn with the teacher's reply as `target`."""

    game: Game
    teaching: Teaching = "format"
    rules: Rules = field(default_factory=Rules)
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"
    seed: int = 0
    turns: int | None = 1
    """Turns that a prompt holds, this one included; None: all (as `fovea.rollouts.episodes.Layout`)."""
    thoughts: bool = True
    """Whether earlier replies stand there with their thoughts."""
    instructions: Mapping[str, str] | None = None
    _env: Spoken | None = None

    kind: AnswerKind = "text"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.teaching == "expert" and self.game.expert is None:
            raise UserError(
                f"{self.game.name} has no solver to learn from; take environment.demonstrations=format."
            )

    @property
    def name(self) -> str:
        return self.game.name

    @property
    def chance(self) -> float:
        return self.game.floor or 0.0

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        """The next `n` turns and the next cursor."""
        return [self._problem(i) for i in range(cursor, cursor + n)], cursor + n

    def _problem(self, i: int) -> Problem:
        if self._env is None:
            self._env = Spoken(game=self.game, rules=self.rules, options=self.options)
        env, seed = self._env, episode_seed(self.seed, f"{self.split}/demonstrations", i)
        rng = np.random.default_rng([seed, 2])
        observation, info = env.reset(seed=seed, options={"split": self.split})
        played: list[Problem] = []
        earlier: list[Earlier] = []
        for turn in range(env.max_turns):
            thought, action = teach(env, self.teaching, rng)
            reply = write_reply(thought, action, self.rules.form)
            played.append(
                Problem(
                    id=f"{self.game.name}:{self.split}:{self.seed}:{i}#{turn}",
                    task=self.game.name,
                    images=observation.images,
                    question=observation.text,
                    answer=action,
                    kind="text",
                    target=reply,
                    earlier=tuple(
                        earlier if self.turns is None else earlier[max(0, turn - self.turns + 1) :]
                    ),
                    meta={"state": info["state"]},
                )
            )
            said = reply if self.thoughts else write_reply(None, action, self.rules.form)
            earlier.append((played[-1], said))
            observation, _, terminated, truncated, info = env.step(reply)
            if terminated or truncated:
                break
        return played[int(rng.integers(len(played)))]


def teach(env: Spoken, teaching: Teaching, rng: np.random.Generator) -> tuple[str | None, str]:
    """(thought, or None where replies have none; action) that the teacher says now. In a state from which no solver
    knows a way the action is a random legal one."""
    game, inner = env.game, env.inner
    legal = game.legal(inner)
    action = legal[int(rng.integers(len(legal)))]
    thought = game.thought(inner)
    if teaching == "expert" and game.expert is not None:
        action = game.expert(inner) or action
        if game.reason is not None:
            why = game.reason(inner, action)
            thought = f"{thought}; {why}" if thought and why else thought or why
    return (thought if env.rules.thought else None), action
