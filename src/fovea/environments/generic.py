"""Any registered gymnasium environment with pictures and `Discrete` actions, spoken of by a list of action names.

    walk = gym_game("CliffWalking-v1", ("up", "right", "down", "left"), "Reach the flag. Avoid the cliff.")

`Kept` is what a game over a foreign environment runs on: an environment of its own (not a wrapper, so that it is its
own `unwrapped`) that holds the foreign one, remembers its last answer, makes its picture smaller and gives every split
its own seeds.

Importing this file imports gymnasium; the catalogue does so when one of its games is named. Not here: games with
legal actions, teachers or states of their own (`toy_text`, `minigrid`).

Try it:

    from fovea.environments.generic import registered
    env = registered("MountainCar-v0").make(); print(env.reset(seed=0), env.render().shape)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from fovea.environments.game import Game
from fovea.types import UserError

SPLITS = ("train", "validation", "test")


def split_seed(seed: int, split: str) -> int:
    """A seed of 32 bits that depends on both, so that a foreign environment shows each split other episodes.

    Example: split_seed(3, "train") != split_seed(3, "test")
    """
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; known: {', '.join(SPLITS)}.")
    return int(np.random.SeedSequence([seed, SPLITS.index(split)]).generate_state(1)[0])


def without_a_display() -> None:
    """Pictures are drawn in memory: pygame must neither look for a screen nor greet. Before its first import."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def _cannot_make(id: str, error: Exception) -> UserError:
    return UserError(f"gymnasium cannot make {id!r}: {' '.join(str(error).split()).rstrip('.')}.")


class Kept(gymnasium.Env):
    """A registered environment with its last answer kept. Example: Kept("FrozenLake-v1", shrink=4)

    `shrink`: the picture is so many times smaller than the environment draws it; further options are the environment's.
    """

    def __init__(self, id: str, *, shrink: int = 1, **options: Any) -> None:
        without_a_display()
        if shrink < 1:
            raise UserError(f"{id}: shrink is {shrink}; give 1 or more.")
        try:
            self.inner = gymnasium.make(id, render_mode="rgb_array", disable_env_checker=True, **options)
        except gymnasium.error.Error as error:
            raise _cannot_make(id, error) from error
        except TypeError as error:  # an option that the environment does not know
            raise UserError(f"gymnasium cannot make {id!r} with {options}: {error}.") from error
        self.id, self.shrink = id, shrink
        self.action_space = self.inner.action_space
        self.observation_space = self.inner.observation_space
        self.metadata = self.inner.metadata
        self.render_mode = "rgb_array"
        self.observation: Any = None
        """Of the last answer, as the environment gave it."""
        self.info: dict[str, Any] = {}
        """Of the last answer."""

    @property
    def core(self) -> Any:
        """The foreign environment itself, without gymnasium's wrappers."""
        return self.inner.unwrapped

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        given = dict(options or {})
        split = given.pop("split", "train")
        inner_seed = int(self.np_random.integers(2**31)) if seed is None else split_seed(seed, split)
        self.observation, self.info = self.inner.reset(seed=inner_seed, options=given or None)
        return self.observation, self.info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.observation, reward, terminated, truncated, self.info = self.inner.step(action)
        return self.observation, float(reward), bool(terminated), bool(truncated), self.info

    def render(self) -> Any:
        try:
            drawn: Any = self.inner.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"{self.id} cannot be drawn: {error}; pip install 'fovea-rl[envs]'.") from error
        if not isinstance(drawn, np.ndarray) or drawn.ndim != 3:
            raise UserError(
                f"{self.id} draws no picture (render_mode rgb_array); choose an environment that does."
            )
        picture = Image.fromarray(drawn[..., :3].astype(np.uint8, copy=False))
        return np.asarray(picture.reduce(self.shrink) if self.shrink > 1 else picture)

    def close(self) -> None:
        self.inner.close()


def listed(names: Sequence[str]) -> str:
    """The line that ends what is asked. Example: listed(("up", "down")) == "Actions: up, down." """
    return f"Actions: {', '.join(names)}."


def gym_game(
    id: str,
    actions: Sequence[str] | None,
    ask: str | Callable[[Any], str],
    *,
    name: str | None = None,
    shrink: int = 1,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Game:
    """A game over the registered environment `id`, whose action i is called `actions[i]` (None: "action 0", …).

    `ask` is the text that stands before the list of actions, or a function of the running `Kept` that gives all of it.
    `options` are the environment's, with defaults; `more` are further fields of `Game` (`won`, `expert`, `floor`, …).
    Example: gym_game("CliffWalking-v1", ("up", "right", "down", "left"), "Reach the flag.", max_turns=30)
    """
    if actions is not None and len({one.casefold() for one in actions}) != len(actions):
        raise UserError(f"Two actions of {id} have one name ({', '.join(actions)}); give each its own.")

    def names(env: Any) -> tuple[str, ...]:
        return (
            tuple(actions) if actions is not None else tuple(f"action {i}" for i in range(env.action_space.n))
        )

    def make(**given: Any) -> Kept:
        env = Kept(id, **given)
        if not isinstance(env.action_space, gymnasium.spaces.Discrete):
            raise UserError(f"The actions of {id} are {env.action_space}, not Discrete; write a Game for it.")
        if len(names(env)) != env.action_space.n:
            raise UserError(f"{id} has {env.action_space.n} actions, not {len(names(env))}; name each once.")
        return env

    def told(env: Any) -> str:
        return ask(env) if callable(ask) else f"{ask}\n{listed(names(env))}"

    return Game(
        name=name or id,
        make=make,
        legal=names,
        ask=told,
        act=lambda env, said: int(env.action_space.start) + names(env).index(said),
        options={"shrink": shrink, **(options or {})},
        **more,
    )


def registered(id: str) -> Game:
    """What the catalogue makes of "gym:ID": numbered actions and no words of its own.

    A success is a sum of rewards of at least the threshold that the environment is registered with; where it has none,
    an episode that terminates with a sum above 0. Raises UserError for an id that is not registered.
    """
    try:
        spec = gymnasium.spec(id)
    except gymnasium.error.Error as error:
        raise _cannot_make(id, error) from error
    least = spec.reward_threshold

    def won(env: Any, total: float, terminated: bool) -> bool:
        return terminated and total > 0 if least is None else total >= least

    asked = f"You play {id}. The picture shows the state now."
    return gym_game(id, None, asked, name=f"gym:{id}", max_turns=spec.max_episode_steps or 50, won=won)
