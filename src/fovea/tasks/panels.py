"""Questions over several pictures, two to nine: which one, how many, the same, the odd one."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from fovea.boxes import look
from fovea.tasks.questions import Asked, Question
from fovea.tasks.scenes import (
    COLORS,
    SHAPES,
    Split,
    StampSource,
    Thing,
    compose,
    digit_stamps,
    shape_stamps,
)

SIDE = 32
_stamps = {"digits": functools.cache(digit_stamps), "shapes": functools.cache(shape_stamps)}


def panel(
    rng: np.random.Generator, split: Split, stamps: StampSource, label: str
) -> tuple[Image.Image, Thing]:
    """A picture of 32 or 48 pixels with one thing in it."""
    scene = compose(rng, stamps, 1, labels=[label], split=split, size=(SIDE, SIDE), side=(14, 26))
    return scene.image, scene.things[0]


def which(rng: np.random.Generator, split: Split) -> Asked:
    """Two to nine pictures with different digits, or two to six with different shapes; which one shows it?"""
    digits = rng.random() < 0.5
    count = int(rng.integers(2, 10 if digits else 7))
    if digits:
        labels = [str(name) for name in rng.choice(10, count, replace=False)]
        named = [f"digit {label}" for label in labels]
    else:
        shapes = [str(name) for name in rng.choice(SHAPES, count, replace=False)]
        labels, named = [f"{rng.choice(list(COLORS))} {shape}" for shape in shapes], shapes
    source = _stamps["digits" if digits else "shapes"](split)
    drawn = [panel(rng, split, source, label) for label in labels]
    asked = int(rng.integers(count))
    thing = drawn[asked][1]
    return Asked(
        images=tuple(image for image, _ in drawn),
        question=f"Which picture shows the {named[asked]}? Answer with its number.",
        answer=asked + 1,
        said=look(thing.box, asked) + str(asked + 1),
        thought="I see: " + ", ".join(look(t.box, i) + t.label for i, (_, t) in enumerate(drawn)) + ".",
        difficulty=(count - 2) / 7,
    )


def show(rng: np.random.Generator, split: Split) -> Asked:
    """Two to nine pictures with a digit each; what does picture K show?"""
    count = int(rng.integers(2, 10))
    labels = [str(name) for name in rng.choice(10, count)]
    drawn = [panel(rng, split, _stamps["digits"](split), label) for label in labels]
    asked = int(rng.integers(count))
    thing = drawn[asked][1]
    return Asked(
        images=tuple(image for image, _ in drawn),
        question=f"Which digit does picture {asked + 1} show?",
        answer=int(labels[asked]),
        said=look(thing.box, asked) + labels[asked],
        thought=f"There are {count} pictures.",
        difficulty=(count - 2) / 7,
    )


def same(rng: np.random.Generator, split: Split) -> Asked:
    """Two pictures with a digit each; is it the same digit? Yes as often as no."""
    answer = "yes" if rng.random() < 0.5 else "no"
    labels = [str(name) for name in rng.choice(10, 2, replace=False)]
    if answer == "yes":
        labels[1] = labels[0]
    drawn = [panel(rng, split, _stamps["digits"](split), label) for label in labels]
    return Asked(
        images=tuple(image for image, _ in drawn),
        question="Do the two pictures show the same digit?",
        answer=answer,
        said=answer,
        thought="I see: " + ", ".join(look(t.box, i) + t.label for i, (_, t) in enumerate(drawn)) + ".",
    )


def odd(rng: np.random.Generator, split: Split) -> Asked:
    """Three to five pictures with one shape each, all the same but one (colours vary); which is the odd one?"""
    count = int(rng.integers(3, 6))
    usual, other = (str(name) for name in rng.choice(SHAPES, 2, replace=False))
    asked = int(rng.integers(count))
    labels = [f"{rng.choice(list(COLORS))} {other if i == asked else usual}" for i in range(count)]
    drawn = [panel(rng, split, _stamps["shapes"](split), label) for label in labels]
    thing = drawn[asked][1]
    return Asked(
        images=tuple(image for image, _ in drawn),
        question="In which picture is the shape different from all others? Answer with its number.",
        answer=asked + 1,
        said=look(thing.box, asked) + str(asked + 1),
        thought="I see: "
        + ", ".join(look(t.box, i) + t.label.split()[1] for i, (_, t) in enumerate(drawn))
        + ".",
        difficulty=(count - 3) / 2,
    )


def how_many(rng: np.random.Generator, split: Split) -> Asked:
    """Two to five pictures with a shape each; how many show this shape? Any number from 0 to 2 equally likely."""
    count, wanted = int(rng.integers(2, 6)), int(rng.integers(0, 3))
    shape = str(rng.choice(SHAPES))
    others = [name for name in SHAPES if name != shape]
    shapes = [shape] * wanted + [str(rng.choice(others)) for _ in range(count - wanted)]
    shapes = [shapes[i] for i in rng.permutation(count)]
    drawn = [
        panel(rng, split, _stamps["shapes"](split), f"{rng.choice(list(COLORS))} {name}") for name in shapes
    ]
    return Asked(
        images=tuple(image for image, _ in drawn),
        question=f"How many pictures show a {shape}?",
        answer=wanted,
        said=str(wanted),
        thought="I see: "
        + ", ".join(look(t.box, i) + t.label.split()[1] for i, (_, t) in enumerate(drawn))
        + ".",
        difficulty=(count - 2) / 3,
    )


QUESTIONS: dict[str, Question] = {
    # always "1": mean of 1/count over the counts, digits 2..9 and shapes 2..6
    "panels/which": (which, "number", 0.27, "which of two to nine pictures shows a digit or a shape"),
    "panels/show": (show, "number", 0.1, "which digit one of two to nine pictures shows"),
    "panels/same": (same, "text", 0.5, "do two pictures show the same digit"),
    # mean of 1/3, 1/4, 1/5
    "panels/odd": (odd, "number", 0.262, "which of three to five pictures has another shape"),
    "panels/count": (how_many, "number", 1 / 3, "how many of two to five pictures show a shape"),
}
