"""A game as an environment that is spoken with: pictures and text out, a reply in. Gymnasium's API throughout.

    env = Spoken(game=find_game("number_line"))
    observation, info = env.reset(seed=3, options={"split": "train"})
    observation, reward, terminated, truncated, info = env.step("<think>…</think><answer>+</answer>")

What is done with a reply that holds no legal action is `Rules.invalid`:

    random    a legal action drawn uniformly, as in RL4VLM (equation 4.1); counts a turn like any other
    no_op     the game's action that changes nothing, or nothing at all; counts a turn
    penalty   nothing, and `Rules.penalty` is taken off the reward
    end       the same, and the episode terminates as a failure

`info` holds "action" (name of what was done, or None), "legal" (whether the reply said it), "legal_actions", "state",
"thought" (the state transcribed), "said" (`Said`), "parts" (the reward by part), and of an episode that is over
"success".

Not here: which tokens a reply is made of, episodes side by side (`fovea.rollouts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fovea.environments.game import Game, Observation
from fovea.environments.replies import Form, Said, read_reply
from fovea.types import UserError

Invalid = Literal["random", "no_op", "penalty", "end"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How a game is played. Example: Rules(form="tags", invalid="penalty", penalty=1.0)"""

    form: Form = "tags"
    thought: bool = True
    """Whether replies have a thought before the action."""
    invalid: Invalid = "random"
    penalty: float = 0.0
    """Taken off the reward of a reply without a legal action (whatever is done then)."""
    format_reward: float = 0.0
    """Added to the reward of a reply in the right form: a thought if one is wanted, and an action that can be read."""
    max_turns: int | None = None
    """Replies after which an episode is truncated; None: the game's own."""


@dataclass(kw_only=True)
class Spoken:
    """See the module. `options`: changes of the game's own (`Game.options`)."""

    game: Game
    rules: Rules = field(default_factory=Rules)
    options: Mapping[str, Any] = field(default_factory=dict)
    _turns: int = 0
    _total: float = 0.0
    _over: bool = True
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        unknown = next((name for name in self.options if name not in self.game.options), None)
        if unknown is not None:
            known = ", ".join(self.game.options) or "it has none"
            raise UserError(f"{self.game.name} has no option {unknown!r}; known: {known}.")
        self.env = self.game.make(**{**self.game.options, **self.options})
        self.inner = getattr(self.env, "unwrapped", self.env)

    @property
    def max_turns(self) -> int:
        return self.rules.max_turns or self.game.max_turns

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new episode, a function of (seed, options). Random legal actions are drawn from the seed, too."""
        self.env.reset(seed=None if seed is None else seed % 2**32, options=options)
        if seed is not None:
            self._rng = np.random.default_rng([seed, 1])
        self._turns, self._total, self._over = 0, 0.0, False
        return self._observation(), self._info()

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Read the reply `action`, do what it says or what the rules say instead. Raises UserError after the end."""
        if self._over:
            raise UserError(f"{self.game.name}: the episode is over; call reset first.")
        said = read_reply(action, self.rules.form)
        legal = self.game.legal(self.inner)
        chosen = None if said.action is None else self.game.read(self.inner, legal, said.action)
        done, reward, terminated, truncated = self._act(chosen, legal)
        self._turns += 1
        self._total += reward
        truncated = (truncated or self._turns >= self.max_turns) and not terminated
        self._over = terminated or truncated
        parts = {"environment": reward} | self._text_parts(said, chosen is not None)
        more = {"action": done, "legal": chosen is not None, "said": said, "parts": parts}
        info = self._info() | more
        if self._over:
            failed = self.rules.invalid == "end" and chosen is None
            info["success"] = not failed and bool(self.game.won(self.inner, self._total, terminated))
        return self._observation(), sum(parts.values()), terminated, truncated, info

    def _act(self, chosen: str | None, legal: tuple[str, ...]) -> tuple[str | None, float, bool, bool]:
        """(name of what was done, reward, terminated, truncated)."""
        name = chosen
        if name is None and self.rules.invalid == "random":
            name = legal[int(self._rng.integers(len(legal)))]
        elif name is None and self.rules.invalid == "no_op":
            name = self.game.no_op
        if name is None:
            return None, 0.0, self.rules.invalid == "end", False
        _, reward, terminated, truncated, _ = self.env.step(self.game.act(self.inner, name))
        return name, float(reward), bool(terminated), bool(truncated)

    def _text_parts(self, said: Said, legal: bool) -> dict[str, float]:
        parts = {}
        if self.rules.format_reward:
            right = said.action is not None and (bool(said.thought) or not self.rules.thought)
            parts["format"] = self.rules.format_reward * right
        if self.rules.penalty:
            parts["invalid"] = 0.0 if legal else -self.rules.penalty
        return parts

    def _observation(self) -> Observation:
        return Observation(images=self.game.pictures(self.inner), text=self.game.ask(self.inner))

    def _info(self) -> dict[str, Any]:
        legal = () if self._over else self.game.legal(self.inner)
        return {
            "legal_actions": legal,
            "state": dict(self.game.state(self.inner)),
            "thought": self.game.thought(self.inner),
            "turns": self._turns,
        }

    def close(self) -> None:
        self.env.close()
