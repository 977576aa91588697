"""Questions about scenes of digits, shapes and printed digits: locate, count, read, describe, compare.

A question is a function `(generator, split) -> Asked`; it decides what the pictures hold so that the answer is
unique, and draws them. Sizes and counts are small on purpose: the embedded model is. How the reply is to be
written (tags, JSON, a box around it) is not decided here but by a style (`fovea.tasks.styles`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from fovea.boxes import look, place
from fovea.tasks.scenes import COLORS, SHAPES, Scene, Split, StampSource, Thing, compose
from fovea.types import AnswerKind

DIGITS = tuple(map(str, range(10)))
Stamps = Callable[[Split], StampSource]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Pictures, a question about them, and the answer; boxes in pixels."""

    images: tuple[Image.Image, ...]
    question: str
    """Without a word about tags or JSON."""
    answer: Any
    said: str
    """The answer as a teacher writes it, without tags; boxes as `fovea.boxes.place`, and `fovea.boxes.look` before
    what can be read off one place in a picture."""
    difficulty: float = 0.0
    """0 easiest to 1 hardest, usually (things - fewest) / (most - fewest)."""
    thought: str = ""
    """What a teacher thinks before (for the `think` style), with the same placeholders."""
    box_image: int = 0
    """Which picture the boxes of the answer belong to."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Plain JSON that the problem keeps (`Problem.meta`); never shown to a model."""


Ask = Callable[[np.random.Generator, Split], Asked]
Question = tuple[Ask, AnswerKind, float, str]
"""(question, kind of its answer, accuracy of the best reply that does not look, one line about it)."""

# Nine pictures in ten have no side above 96 pixels; sides are multiples of the embedded model's 16.
_SIZES = (
    (64, 64), (64, 64), (64, 64), (64, 64), (48, 48), (48, 64), (64, 48), (80, 64), (64, 80), (80, 80),
    (96, 64), (64, 96), (96, 96), (32, 96), (96, 48), (96, 80),
)  # fmt: skip
_LARGE = ((128, 96), (96, 160), (160, 160), (224, 128), (192, 192), (256, 96), (320, 64), (320, 240))


def picture_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height: mostly 48 to 96 pixels, one in twenty larger, up to 320."""
    sizes = _LARGE if rng.random() < 0.05 else _SIZES
    return sizes[int(rng.integers(len(sizes)))]


def sides(size: tuple[int, int], smallest: int = 14) -> tuple[int, int]:
    """Heights of things that suit a picture of this size: larger pictures hold larger things, too."""
    return smallest, int(np.clip(min(size) * 0.4, smallest + 4, 64))


def where(box: Sequence[float], size: tuple[int, int]) -> str:
    """One of nine places: "top left", "center", "bottom", …"""
    column = min(2, int(3 * (box[0] + box[2]) / 2 / size[0]))
    row = min(2, int(3 * (box[1] + box[3]) / 2 / size[1]))
    words = [word for word in (("top", "", "bottom")[row], ("left", "", "right")[column]) if word]
    return " ".join(words) or "center"


def _seen(things: Sequence[Thing]) -> str:
    """A thought that names everything from left to right."""
    return "I see: " + ", ".join(look(thing.box) + thing.label for thing in things) + "."


def _find(scene: Scene, label: str) -> Thing:
    return next(thing for thing in scene.things if thing.label == label)


# --- where ------------------------------------------------------------------------------------------------


def locate_digit(stamps: Stamps) -> Ask:
    """Two to four different digits in 64 x 64 pixels; where is one of them?"""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        count = int(rng.integers(2, 5))
        labels = [str(label) for label in rng.choice(10, count, replace=False)]
        scene = compose(rng, stamps(split), count, labels=labels, split=split)
        box = _find(scene, labels[0]).box
        return Asked(
            images=(scene.image,),
            question=f"Where is the digit {labels[0]}? Answer with its box.",
            answer=box,
            said=place(box),
            thought=f"{look(box)}The {labels[0]} is at the {where(box, scene.image.size)}.",
            difficulty=(count - 2) / 2,
        )

    return ask


def locate_shape(stamps: Stamps) -> Ask:
    """Two to four things of different shape; where is the one with this shape?"""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        count, size = int(rng.integers(2, 5)), picture_size(rng)
        shapes = rng.choice(SHAPES, count, replace=False)
        labels = [f"{rng.choice(list(COLORS))} {shape}" for shape in shapes]
        scene = compose(
            rng, stamps(split), count, labels=labels, split=split, size=size, side=sides(size, 12)
        )
        box = _find(scene, labels[0]).box
        return Asked(
            images=(scene.image,),
            question=f"Where is the {shapes[0]}? Answer with its box.",
            answer=box,
            said=place(box),
            thought=f"{look(box)}The {shapes[0]} is at the {where(box, size)}.",
            difficulty=(count - 2) / 2,
        )

    return ask


def left_of(rng: np.random.Generator, split: Split, stamps: Stamps) -> Asked:
    """Three shapes; is one left of another (centres at least 8 pixels apart)? Yes as often as no."""
    while True:
        size = picture_size(rng)
        shapes = [str(shape) for shape in rng.choice(SHAPES, 3, replace=False)]
        labels = [f"{rng.choice(list(COLORS))} {shape}" for shape in shapes]
        scene = compose(rng, stamps(split), 3, labels=labels, split=split, size=size, side=sides(size, 12))
        first, second = _find(scene, labels[0]), _find(scene, labels[1])
        apart = (second.box[0] + second.box[2] - first.box[0] - first.box[2]) / 2
        if abs(apart) >= 8:
            break
    answer = "yes" if apart > 0 else "no"
    return Asked(
        images=(scene.image,),
        question=f"Is the {shapes[0]} left of the {shapes[1]}?",
        answer=answer,
        said=answer,
        thought=f"{look(first.box)}The {shapes[0]} is at the {where(first.box, size)}, "
        f"{look(second.box)}the {shapes[1]} at the {where(second.box, size)}.",
        difficulty=1 - min(1.0, abs(apart) / size[0]),
    )


# --- how many ---------------------------------------------------------------------------------------------


def count_things(noun: str, stamps: Stamps) -> Ask:
    """One to six things, any number equally likely; how many?"""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        count = int(rng.integers(1, 7))
        size = (64, 64) if rng.random() < 0.5 else (96, 64)
        scene = compose(rng, stamps(split), count, split=split, size=size, side=(12, 20))
        return Asked(
            images=(scene.image,),
            question=f"How many {noun} are in the picture?",
            answer=count,
            said=str(count),
            thought=_seen(scene.things),
            difficulty=(count - 1) / 5,
        )

    return ask


def count_color(rng: np.random.Generator, split: Split, stamps: Stamps) -> Asked:
    """Zero to three of three to five shapes have the named colour, any number equally likely; how many?"""
    wanted, total = int(rng.integers(0, 4)), int(rng.integers(3, 6))
    colors = list(COLORS)
    color = str(rng.choice(colors))
    others = [name for name in colors if name != color]
    labels = [f"{color if i < wanted else rng.choice(others)} {rng.choice(SHAPES)}" for i in range(total)]
    scene = compose(rng, stamps(split), total, labels=labels, split=split, size=(80, 64), side=(12, 20))
    found = [thing for thing in scene.things if thing.label.startswith(color)]
    return Asked(
        images=(scene.image,),
        question=f"How many {color} shapes are in the picture?",
        answer=wanted,
        said=str(wanted),
        thought=_seen(found) if found else f"I see nothing {color}.",
        difficulty=wanted / 3,
    )


# --- which ------------------------------------------------------------------------------------------------


def read_digits(stamps: Stamps) -> Ask:
    """One to three digits, read from left to right."""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        count = int(rng.integers(1, 4))
        scene = compose(rng, stamps(split), count, split=split)
        return Asked(
            images=(scene.image,),
            question="Which digits are in the picture, from left to right?",
            answer=", ".join(thing.label for thing in scene.things),
            said=", ".join(look(thing.box) + thing.label for thing in scene.things),
            thought=f"There are {count}.",
            difficulty=(count - 1) / 2,
        )

    return ask


def largest(stamps: Stamps) -> Ask:
    """Two or three different digits; which is the largest?"""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        count = int(rng.integers(2, 4))
        labels = [str(label) for label in rng.choice(10, count, replace=False)]
        scene = compose(rng, stamps(split), count, labels=labels, split=split)
        best = max(scene.things, key=lambda thing: int(thing.label))
        return Asked(
            images=(scene.image,),
            question="Which digit in the picture is the largest number?",
            answer=int(best.label),
            said=look(best.box) + best.label,
            thought=_seen(scene.things),
            difficulty=(count - 2) / 1,
        )

    return ask


def total(stamps: Stamps) -> Ask:
    """Two digits; what is their sum?"""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        scene = compose(rng, stamps(split), 2, split=split)
        a, b = (int(thing.label) for thing in scene.things)
        return Asked(
            images=(scene.image,),
            question="What is the sum of the two digits?",
            answer=a + b,
            said=str(a + b),
            thought=_seen(scene.things),
            difficulty=float(a + b > 9),
        )

    return ask


def color_of(rng: np.random.Generator, split: Split, stamps: Stamps) -> Asked:
    """Two to four things of different shape; what colour is one of them?"""
    count, size = int(rng.integers(2, 5)), picture_size(rng)
    shapes = rng.choice(SHAPES, count, replace=False)
    labels = [f"{rng.choice(list(COLORS))} {shape}" for shape in shapes]
    scene = compose(rng, stamps(split), count, labels=labels, split=split, size=size, side=sides(size, 12))
    color, box = labels[0].split()[0], _find(scene, labels[0]).box
    return Asked(
        images=(scene.image,),
        question=f"What color is the {shapes[0]}?",
        answer=color,
        said=look(box) + color,
        thought=f"{look(box)}The {shapes[0]} is at the {where(box, size)}.",
        difficulty=(count - 2) / 2,
    )


def exists(rng: np.random.Generator, split: Split, stamps: Stamps) -> Asked:
    """Two to four shapes; is there a COLOR SHAPE? No: another thing has its colour or its shape. Half are yes."""
    count, size = int(rng.integers(2, 5)), picture_size(rng)
    colors = list(COLORS)
    labels = [f"{rng.choice(colors)} {shape}" for shape in rng.choice(SHAPES, count, replace=False)]
    color, shape = labels[0].split()
    answer = "yes" if rng.random() < 0.5 else "no"
    asked = labels[0]
    if answer == "no":
        # Nearly right: the colour of one thing with another shape, or its shape in another colour.
        if rng.random() < 0.5:
            asked = f"{rng.choice([name for name in colors if name != color])} {shape}"
        else:
            absent = [name for name in SHAPES if not any(label.endswith(name) for label in labels)]
            asked = f"{color} {rng.choice(absent)}"
    scene = compose(rng, stamps(split), count, labels=labels, split=split, size=size, side=sides(size, 12))
    box = _find(scene, labels[0]).box
    return Asked(
        images=(scene.image,),
        question=f"Is there a {asked} in the picture?",
        answer=answer,
        said=(look(box) if asked.split()[1] == shape else "") + answer,
        thought=_seen(scene.things),
        difficulty=(count - 2) / 2,
    )


def describe(stamps: Stamps) -> Ask:
    """One to four things; name every one with its box, from left to right."""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        count = int(rng.integers(1, 5))
        scene = compose(rng, stamps(split), count, split=split)
        written = ", ".join(
            f'{{"bbox_2d": {place(t.box)}, "label": {json.dumps(t.label)}}}' for t in scene.things
        )
        return Asked(
            images=(scene.image,),
            question="Describe the picture: every thing with its box.",
            answer=[{"bbox_2d": list(thing.box), "label": thing.label} for thing in scene.things],
            said=f"[{written}]",
            thought=f"There are {count} things.",
            difficulty=(count - 1) / 3,
        )

    return ask
