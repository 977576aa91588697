"""A game: a plain gymnasium environment, and how it is spoken of. A value, not a subclass.

The environment itself knows nothing of language models: it has a uint8 picture, a `Discrete` (or other) action space,
and any learner can train on it. A `Game` says what a model is told at a state, which actions are legal there and what
they are called, what a teacher would think, and what counts as success. `Spoken` (`spoken.py`) makes of the two an
environment whose observation is pictures and text and whose action is text.

Every function is given the running, unwrapped environment and must not change it.

Not here: the games (a file each), reading a reply (`replies.py`), episodes (`fovea.rollouts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Observation(NamedTuple):
    """What the model is shown before it replies. Example: Observation(images=(picture,), text="Which action?")"""

    images: tuple[Image.Image, ...]
    """RGB pictures, before the text; may be empty."""
    text: str
    """Without the chat template and without the form of the reply."""


def rendered(env: Any) -> tuple[Image.Image, ...]:
    """The picture that the environment renders (`render_mode="rgb_array"`)."""
    return (Image.fromarray(np.asarray(env.render(), dtype=np.uint8)[..., :3]),)


def named(env: Any, legal: tuple[str, ...], text: str) -> str | None:
    """The legal action whose name `text` is, whatever the case, spaces and quotes around it; else None.

    Whole names only: "go to cabinet 1" is not in "go to cabinet 12", and "-" is not read out of a sentence.
    """
    said = " ".join(text.split()).strip("\"'`").strip().casefold()
    return next((name for name in legal if name.casefold() == said), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Game:
    """How one environment is spoken of.

    Example: Game(name="number_line", make=NumberLine, legal=lambda env: ("-", "+"), ask=..., act=...)
    """

    name: str
    make: Callable[..., Any]
    """(**options) → a gymnasium environment. `reset(seed=, options={"split": "train" | "validation" | "test"})`: what
    it draws depends on these two alone; it may ignore the split."""
    legal: Callable[[Any], tuple[str, ...]]
    """(env) → names of the actions that are legal now, in a fixed order, never empty while the episode runs. Where
    actions have arguments (a crop's box): some of them, enough to draw a random one from."""
    ask: Callable[[Any], str]
    """(env) → what the model is told now: the rules, the state's text if it has one, the legal actions."""
    act: Callable[[Any, str], Any]
    """(env, name of a legal action) → what `env.step` takes."""
    read: Callable[[Any, tuple[str, ...], str], str | None] = named
    """(env, legal names, text of the action) → the name of the legal action that it is, or None. Model output: never
    evaluated, and answered within 5 ms whatever it holds."""
    pictures: Callable[[Any], tuple[Image.Image, ...]] = rendered
    """(env) → what is shown now."""
    won: Callable[[Any, float, bool], bool] = lambda env, total, terminated: terminated and total > 0
    """(env, sum of rewards, terminated) → whether a finished episode was a success."""
    state: Callable[[Any], Mapping[str, Any]] = lambda env: {}
    """(env) → the truth as plain JSON; never shown to the model. For teachers, audits and film strips."""
    thought: Callable[[Any], str] = lambda env: ""
    """(env) → the state transcribed rightly in a few words, without what to do (cold start `format`)."""
    expert: Callable[[Any], str] | None = None
    """(env) → name of a best action; None where there is no solver."""
    reason: Callable[[Any, str], str] | None = None
    """(env, name of the best action) → why, in a few words that stand after `thought` (cold start `expert`)."""
    max_turns: int = 50
    """Replies after which an episode is cut off (truncated), unless the environment does so itself."""
    no_op: str | None = None
    """Name of an action that changes nothing, where there is one."""
    floor: float | None = None
    """Success of uniformly random legal actions, 0 to 1, derived or measured (n in a comment); None: unknown."""
    ceiling: float | None = None
    """Success of the best policy."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`make`'s options and their defaults, which a recipe may change."""
