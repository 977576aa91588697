"""The slot between two sampling phases: what an intervention sees, what it may ask, what it hands back.

A group of completions is split. The first phase is sampled as always. Then an `Intervention` is shown the pictures at
model-input resolution (canvases), the completions and their token entropies, may ask for gradients of the entropy to
the pixels, and hands back other pictures (or a sentence to add), under which the second phase is sampled. Who calls it
knows nothing else about it (`fovea.phases`). No torch here: pictures and gradients are NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fovea.types import Completion, Problem

Skip = Literal[
    "no_picture",
    "nothing_selected",
    "no_gradient",
    "annealed",
    "moves_the_answer",
    "unchanged",
    "does_not_fit",
]
"""Why a problem's second phase is sampled as the first one was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One problem after the first phase: n completions of T_i tokens."""

    problem: Problem
    occurrence: int
    """How often the problem was met before in the same step."""
    canvases: tuple[np.ndarray, ...]
    """uint8 [H, W, 3] each; empty without pictures."""
    completions: tuple[Completion, ...]
    entropies: tuple[np.ndarray, ...]
    """float32 [T_i] each: of the sampling distribution over the whole vocabulary, in nats."""
    content: tuple[np.ndarray, ...]
    """bool [T_i] each: False for special tokens and for those that only spell out the reply's format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """What the second phase of one problem is sampled under."""

    canvases: tuple[np.ndarray, ...] = ()
    """uint8, in the sizes of `Seen.canvases`. Of no meaning where skipped."""
    text: str | None = None
    """A sentence that is added to the question."""
    skipped: Skip | None = None
    masks: tuple[np.ndarray, ...] = ()
    """bool [T_i] each: the tokens that were selected, for the metrics; empty where nothing is selected by tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Where in a run the second phase is."""

    seed: int
    step: int
    epsilon: int
    """Radius of the ball in steps of 1/255, annealed and controlled."""
    factor: float
    """0 to 1: what the schedule leaves of a strength."""
    draw: int = 0
    """Which round of the step (groups without signal may be drawn anew)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Σ_i Σ_t weights_i,t H_i,t - guards_i,t KL_i,t of one problem's completions, under other pictures."""

    which: int
    """Index of the problem in what was seen."""
    weights: tuple[np.ndarray, ...]
    """float32 [T_i] each."""
    canvases: tuple[np.ndarray, ...] | None = None
    """float32 [H, W, 3] in 0 to 255; None: the clean ones."""
    guards: tuple[np.ndarray, ...] | None = None
    """float32 [T_i] each, weights of the KL between the clean and the changed policy; None: none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Of an `Ask`."""

    value: float
    gradients: tuple[np.ndarray, ...]
    """float32 [H, W, 3] each, of `value`, in units of one step of 255. Empty where only the value was asked."""


class Pixels(Protocol):
    """What an intervention may ask of the policy. Weights and their gradients stay as they are."""

    def gradients(self, asks: Sequence[Ask]) -> list[Answer]:
        """Values and gradients to the pixels, in order."""
        ...

    def values(self, asks: Sequence[Ask]) -> list[Answer]:
        """Values alone."""
        ...


Change = Callable[[Sequence[Seen], Pixels, Moment], list[Changed]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """One way to change what is sampled. Variants are values of this, made by `fovea.interventions.intervention_of`."""

    name: str
    """Also the `Completion.variant` of what is sampled under it."""
    change: Change
    asks: bool = False
    """Whether it asks for gradients, and so needs the entropies of the first phase."""
    ball: bool = False
    """Whether `Moment.epsilon` is what it changes pictures by; otherwise `Moment.factor` scales its strength."""
