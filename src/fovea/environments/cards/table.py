"""What the four card games share: presets, sizes, splits, and that the observation is the picture.

A game gives `_begin` (a new episode), `_draw` (its picture), `info` (the truth) and gymnasium's `step`. Cards and
numbers come from gymnasium's `np_random`; fonts, suits and colours from a generator spawned from it, so that how
things look never changes what is dealt.

Not here: the games, the pictures (`drawing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from PIL import Image

from fovea.environments.cards.drawing import PLAIN, Look, Size, look
from fovea.tasks.scenes import SPLITS, Split
from fovea.types import UserError

Preset = Literal["fixed", "paper"]
Wording = Literal["short", "paper"]
Picture = NDArray[np.uint8]
Step = tuple[Picture, float, bool, bool, dict[str, Any]]
_SIDES = (32, 2048)


class PictureGame(gymnasium.Env[Picture, Any]):
    """A gymnasium environment whose observation is its picture, [height, width, 3] uint8."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  # as gymnasium has it
    names: tuple[str, ...]
    """Of the actions, in order."""

    def __init__(
        self,
        *,
        preset: Preset = "fixed",
        side: int | Sequence[int] = 300,
        wording: Wording = "short",
        render_mode: str | None = "rgb_array",
    ) -> None:
        """`side`: pixels, or (width, height). `wording` is read by the game's `ask` alone."""
        self.preset: Preset = _one_of("preset", preset, get_args(Preset))
        self.wording: Wording = _one_of("wording", wording, get_args(Wording))
        self.size = _size(side, square=preset == "paper")
        self.render_mode = render_mode
        self.action_space = Discrete(len(self.names))
        self.observation_space = Box(0, 255, (self.size[1], self.size[0], 3), np.uint8)
        self.split: Split = "train"
        self.looks = np.random.default_rng(0)
        self.look: Look = PLAIN
        self.over = True
        self._shown: Picture | None = None

    # --- what a game gives

    def _begin(self) -> None:
        raise NotImplementedError

    def _draw(self) -> Image.Image:
        raise NotImplementedError

    def info(self) -> dict[str, Any]:
        """The truth as plain JSON."""
        raise NotImplementedError

    def legal(self) -> tuple[str, ...]:
        """Names of the actions that are legal now."""
        return self.names

    # --- gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        """`options={"split": "train" | "validation" | "test"}`; train by default."""
        super().reset(seed=seed)
        self.split = _one_of("split", (options or {}).get("split", "train"), SPLITS)
        self.looks = self.np_random.spawn(1)[0]
        self.look = look(self.looks, self.split) if self.preset == "fixed" else PLAIN
        self.over = False
        self._shown = None
        self._begin()
        return self.render(), self.info()

    def render(self) -> Picture:
        """The picture of the present state; a copy, so that nobody can write into it."""
        if self._shown is None:
            self._shown = np.asarray(self._draw(), dtype=np.uint8)
        return self._shown.copy()

    def _check(self, action: Any) -> str:
        """The name of an action; an episode that is over takes none."""
        if self.over:
            raise ResetNeeded("This episode is over: call reset() first.")
        if not self.action_space.contains(action):
            last = len(self.names) - 1
            raise UserError(f"The action must be a whole number from 0 to {last}, not {str(action)[:40]!r}.")
        return self.names[int(action)]

    def _answer(self, reward: float, *, terminated: bool = False, truncated: bool = False) -> Step:
        self.over = terminated or truncated
        self._shown = None
        return self.render(), reward, terminated, truncated, self.info()


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)}, not {str(value)[:40]!r}.")
    return value


def _size(side: Any, *, square: bool) -> Size:
    sides = (side, side) if isinstance(side, int) else tuple(side) if isinstance(side, list | tuple) else ()
    low, high = _SIDES
    if len(sides) != 2 or not all(type(pixels) is int and low <= pixels <= high for pixels in sides):
        raise UserError(
            f"side must be pixels from {low} to {high}, or [width, height] of those, not {str(side)[:40]!r}."
        )
    if square and sides[0] != sides[1]:
        raise UserError(
            f"preset paper draws square pictures: give one number as side, not {str(side)[:40]!r}."
        )
    return sides[0], sides[1]
