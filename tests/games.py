"""Two games that are solved within a test: a bandit that shows which arm pays, and a corridor."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from fovea.environments.game import Game

COLOURS = {"a": (230, 40, 40), "b": (40, 60, 230)}


class Bandit(gymnasium.Env):
    """One turn: the picture's colour says which arm pays."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    observation_space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.arm = int(self.np_random.integers(2))
        return self.render(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        return self.render(), float(action == self.arm), True, False, {}

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), COLOURS["ab"[self.arm]], np.uint8)


class Corridor(gymnasium.Env):
    """Four fields; the right end pays 1 and ends, the left wall pays nothing. The optimum is to go right."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    observation_space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(3))
        return self.render(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.at = min(max(self.at + (1 if action else -1), 0), 3)
        return self.render(), float(self.at == 3), self.at == 3, False, {}

    def render(self) -> np.ndarray:
        picture = np.full((32, 32, 3), 235, np.uint8)
        picture[8:24, 8 * self.at : 8 * self.at + 8] = (30, 120, 60)
        return picture


def _game(name: str, make: Any, names: tuple[str, ...], thought: Any, turns: int, **more: Any) -> Game:
    return Game(
        name=name,
        make=make,
        legal=lambda env: names,
        ask=lambda env: "Choose.",
        act=lambda env, action: names.index(action),
        state=thought,
        thought=lambda env: " ".join(f"{key} {value}" for key, value in thought(env).items()),
        max_turns=turns,
        **more,
    )


BANDIT = _game("bandit", Bandit, ("a", "b"), lambda env: {"arm": "ab"[env.arm]}, 1, floor=0.5, ceiling=1.0)
CORRIDOR = _game("corridor", Corridor, ("l", "r"), lambda env: {"at": env.at}, 4, ceiling=1.0)
