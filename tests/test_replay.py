"""Environments are restored by replay: equal answers afterwards, and those that do not repeat are caught."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fovea.environments import Recorded, digest, restore
from fovea.environments.replay import decode, encode
from fovea.types import RunFailed, UserError

gymnasium = pytest.importorskip("gymnasium")

NAMES = {"FrozenLake-v1": {"map_name": "4x4"}, "Blackjack-v1": {}, "CartPole-v1": {}, "Taxi-v4": {}}


def play(env: Recorded, steps: int, seed: int) -> list[Any]:
    """Random actions, new episodes without a seed; what was seen and paid."""
    draw = np.random.default_rng(seed)
    seen: list[Any] = []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(int(draw.integers(env.action_space.n)))
        seen.append((digest(observation), reward, terminated, truncated))
        if terminated or truncated:
            seen.append(digest(env.reset()[0]))
    return seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_goes_on_as_if_it_had_not_been_interrupted(name: str, steps: int) -> None:
    env = Recorded(gymnasium.make(name, **NAMES[name]))
    env.reset(seed=7)
    play(env, steps, seed=1)
    state = json.loads(json.dumps(env.state()))
    again = restore(state)
    assert again.state() == env.state()
    assert again.last is not None
    assert env.last is not None
    assert digest(again.last[:4]) == digest(env.last[:4])
    assert play(again, 30, seed=2) == play(env, 30, seed=2)
    assert again.state() == env.state()


def test_a_seeded_reset_starts_the_journal_anew() -> None:
    env = Recorded(gymnasium.make("FrozenLake-v1", is_slippery=False))
    assert env.kwargs["is_slippery"] is False
    env.reset(seed=1)
    play(env, 5, seed=0)
    env.reset(seed=2)
    assert env.steps == 1
    env.step(np.int64(2))
    assert restore(env.state()).state() == env.state()


class Pixels:
    """A grey picture that an action darkens; `noise` makes it answer otherwise each time."""

    def __init__(self, noise: str = "", size: int = 6) -> None:
        self.noise, self.size, self.done = noise, size, 0

    def _picture(self) -> Image.Image:
        return Image.new("L", (self.size, self.size), 200 - self.done)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        self.done = (options or {}).get("start", 0)
        return self._picture(), {"time": random.random()}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        self.done += int(np.sum(action))
        picture = self._picture()
        if self.noise == "pixel" and self.done >= 3:
            picture.putpixel((0, 0), random.randrange(200, 256))
        reward = random.random() if self.noise == "reward" else 0.0
        return picture, reward, False, False, {}

    def close(self) -> None: ...


def make(id: str, **kwargs: Any) -> Pixels:
    assert id == "Pixels"
    return Pixels(**kwargs)


@pytest.mark.parametrize(
    "action", [1, np.int32(1), np.array([0.25, 0.75], np.float32), (1, 0), [0, 1], np.array([True, False])]
)
def test_pictures_and_any_action(action: Any) -> None:
    env = Recorded(Pixels(), id="Pixels", kwargs={"size": 6})
    env.reset(seed=0, options={"start": 4})
    env.step(action)
    again = restore(json.loads(json.dumps(env.state())), make)
    assert again.state() == env.state()
    assert again.env.done == env.env.done == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(("noise", "step"), [("pixel", 3), ("reward", 1)])
def test_an_environment_that_does_not_repeat_is_named_with_the_step(noise: str, step: int) -> None:
    env = Recorded(Pixels(noise), id="Pixels", kwargs={"noise": noise})
    random.seed(0)
    env.reset(seed=0)
    for _ in range(4):
        env.step(1)
    with pytest.raises(
        RunFailed, match=rf"Pixels cannot be restored: at step {step} of 5 \(action 1\).*not determin"
    ):
        restore(env.state(), make)


def test_another_version_is_named_as_the_likely_cause() -> None:
    env = Recorded(Pixels(), id="Pixels")
    env.reset(seed=0)
    state = env.state()
    state["versions"]["gymnasium"] = "0.1"
    state["events"][0][2] = "0" * 64
    with pytest.raises(RunFailed, match=r"step 0 of 1 \(reset .*gymnasium was 0\.1, is "):
        restore(state, make)


def test_what_is_shown_is_part_of_the_answer() -> None:
    show: Callable[[Any], Any] = lambda env: env.render()  # noqa: E731
    env = Recorded(gymnasium.make("FrozenLake-v1", render_mode="ansi"), show=show)
    env.reset(seed=0)
    env.step(1)
    assert restore(env.state(), show=show).state() == env.state()
    with pytest.raises(RunFailed, match="shown"):
        restore(env.state())


def test_bad_use_is_one_sentence() -> None:
    env = Recorded(Pixels(), id="Pixels")
    with pytest.raises(UserError, match="needs a seed"):
        env.reset()
    with pytest.raises(UserError, match="step before reset"):
        env.step(0)
    with pytest.raises(UserError, match="has no spec"):
        Recorded(Pixels())
    with pytest.raises(UserError, match="no journal"):
        restore({})
    env.reset(seed=0)
    with pytest.raises(TypeError, match="cannot be recorded"):
        env.step(object())
    assert env.steps == 1


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner).map(tuple),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_actions_survive_json(value: Any) -> None:
    again = decode(json.loads(json.dumps(encode(value))))
    assert repr(again) == repr(value)
    assert digest(again) == digest(value)


def test_digests_tell_apart() -> None:
    grey = np.zeros((2, 3), np.uint8)
    different = [
        0,
        0.0,
        False,
        None,
        "0",
        "",
        b"0",
        [],
        {},
        [0, 0],
        [[0], 0],
        {"a": 0},
        {"a": 1},
        ["ab", "c"],
    ]
    different += [["a", "bc"], grey, grey.T, grey.astype(np.int8), Image.fromarray(grey), -0.0]
    different += [Image.new("RGB", (3, 2)), np.float32(0), np.float64(0)]
    assert len({digest(value) for value in different}) == len(different)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(TypeError, match="cannot be hashed"):
        digest(object())
