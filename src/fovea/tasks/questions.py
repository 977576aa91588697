"""Questions about scenes: locate, count, read, describe. Each is asked of any stamp source.

A question is a function `(generator, stamps, split) -> Asked`; it decides what the scene holds so that the
answer is unique, and draws it. Sizes and counts are small on purpose: the embedded model is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fovea.boxes import place
from fovea.tasks.scenes import COLORS, SHAPES, Scene, Split, StampSource, compose

DIGITS = tuple(map(str, range(10)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A scene, a question about it, and the answer in pixels."""

    scene: Scene
    question: str
    answer: Any
    target: str
    """What a teacher would reply; boxes as `{box:…}` placeholders."""
    difficulty: float
    """(things - fewest) / (most - fewest)."""


Ask = Callable[[np.random.Generator, StampSource, Split], Asked]


def locate_digit(rng: np.random.Generator, stamps: StampSource, split: Split) -> Asked:
    """Two to four different digits; where is one of them?"""
    count = int(rng.integers(2, 5))
    labels = [str(label) for label in rng.choice(10, count, replace=False)]
    scene = compose(rng, stamps, count, labels=labels, split=split)
    box = next(thing.box for thing in scene.things if thing.label == labels[0])
    return Asked(
        scene=scene,
        question=f"Where is the digit {labels[0]}? Answer with its box.",
        answer=box,
        target=f"<answer>{place(box)}</answer>",
        difficulty=(count - 2) / 2,
    )


def locate_shape(rng: np.random.Generator, stamps: StampSource, split: Split) -> Asked:
    """Two to four things; where is the one with this shape (asked by shape, which is unique)?"""
    count = int(rng.integers(2, 5))
    shapes = rng.choice(SHAPES, count, replace=False)
    labels = [f"{rng.choice(list(COLORS))} {shape}" for shape in shapes]
    scene = compose(rng, stamps, count, labels=labels, split=split)
    box = next(thing.box for thing in scene.things if thing.label == labels[0])
    return Asked(
        scene=scene,
        question=f"Where is the {shapes[0]}? Answer with its box.",
        answer=box,
        target=f"<answer>{place(box)}</answer>",
        difficulty=(count - 2) / 2,
    )


def count_things(noun: str) -> Ask:
    """One to six things, any number equally likely; how many?"""

    def ask(rng: np.random.Generator, stamps: StampSource, split: Split) -> Asked:
        count = int(rng.integers(1, 7))
        scene = compose(rng, stamps, count, split=split, side=(12, 20))
        return Asked(
            scene=scene,
            question=f"How many {noun} are in the picture?",
            answer=count,
            target=f"<answer>{count}</answer>",
            difficulty=(count - 1) / 5,
        )

    return ask


def read_digits(rng: np.random.Generator, stamps: StampSource, split: Split) -> Asked:
    """One to three digits, read from left to right."""
    count = int(rng.integers(1, 4))
    scene = compose(rng, stamps, count, split=split)
    text = ", ".join(thing.label for thing in scene.things)
    return Asked(
        scene=scene,
        question="Which digits are in the picture, from left to right?",
        answer=text,
        target=f"<answer>{text}</answer>",
        difficulty=(count - 1) / 2,
    )


def describe(rng: np.random.Generator, stamps: StampSource, split: Split) -> Asked:
    """One to four things; name every one with its box, from left to right."""
    count = int(rng.integers(1, 5))
    scene = compose(rng, stamps, count, split=split)
    things = [{"bbox_2d": list(thing.box), "label": thing.label} for thing in scene.things]
    written = ", ".join(
        f'{{"bbox_2d": {place(t.box)}, "label": {json.dumps(t.label)}}}' for t in scene.things
    )
    return Asked(
        scene=scene,
        question="Describe the picture: every thing with its box.",
        answer=things,
        target=f"<answer>[{written}]</answer>",
        difficulty=(count - 1) / 3,
    )
