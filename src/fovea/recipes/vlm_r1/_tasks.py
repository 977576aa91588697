"""The problems of VLM-R1's studies in miniature: built-in tasks, digits asked for and shown otherwise, mixtures.

`open_study_task(name, split, seed)` opens any of them; a name is a key of `DIGITS`, `MIXTURES` or `FLAWED`,
`digits/detect`, or a built-in task. Problem i is a function of (name, split, seed, i).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fovea.boxes import place
from fovea.tasks import open_task
from fovea.tasks.questions import Ask, Asked
from fovea.tasks.scenes import SPLITS, Scene, Split, Thing, compose, digit_stamps, generator
from fovea.tasks.stages import listing, photo_behind
from fovea.types import AnswerKind, Problem, Task

APART = 8
"""Pixels between the middles of two digits from which on one is left of the other."""


# --- digits, asked for and shown otherwise ------------------------------------------------------------------------


def _about(expression: str, thing: Thing) -> Asked:
    return Asked(
        images=(),
        question=f"Where is {expression}? Answer with its box.",
        answer=thing.box,
        said=place(thing.box),
    )


def _middle(thing: Thing) -> float:
    return (thing.box[0] + thing.box[2]) / 2


def _plain(rng: np.random.Generator, scene: Scene, labels: list[str]) -> Asked | None:
    wanted = next(thing for thing in scene.things if thing.label == labels[0])
    return _about(f"the digit {labels[0]}", wanted)


def _negated(rng: np.random.Generator, scene: Scene, labels: list[str]) -> Asked | None:
    """With two digits in the picture: the one that is not N."""
    wanted = next(thing for thing in scene.things if thing.label == labels[0])
    return _about(f"the digit that is not {labels[1]}", wanted)


def _relation(rng: np.random.Generator, scene: Scene, labels: list[str]) -> Asked | None:
    """The digit left (right) of N; None where that is not exactly one, or not beyond doubt."""
    mark = next(thing for thing in scene.things if thing.label == labels[0])
    side = "left" if rng.random() < 0.5 else "right"
    sign = 1 if side == "left" else -1
    ahead = [sign * (_middle(mark) - _middle(thing)) for thing in scene.things if thing is not mark]
    there = [
        thing for thing in scene.things if thing is not mark and sign * (_middle(mark) - _middle(thing)) > 0
    ]
    if len(there) != 1 or min(map(abs, ahead)) < APART:
        return None
    return _about(f"the digit {side} of the {labels[0]}", there[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Digits:
    """How pictures of digits are made and asked about. Example: Digits(things=(2, 4))"""

    things: tuple[int, int]
    size: tuple[int, int] = (64, 64)
    side: tuple[int, int] = (14, 26)
    photo: bool = False
    how: str = "plain"
    """plain, negated or relation."""

    def __call__(self, rng: np.random.Generator, split: Split) -> Asked:
        asks = {"plain": _plain, "negated": _negated, "relation": _relation}
        while True:
            count = int(rng.integers(self.things[0], self.things[1] + 1))
            labels = [str(label) for label in rng.choice(10, count, replace=False)]
            behind = photo_behind(rng, split, self.size) if self.photo else None
            scene = compose(
                rng, digit_stamps(split), count, labels=labels, split=split, size=self.size, side=self.side,
                behind=behind,
            )  # fmt: skip
            asked = asks[self.how](rng, scene, labels)
            if asked is not None:
                return replace(asked, images=(scene.image,))


DIGITS: Mapping[str, Ask] = {
    "digits/clutter": Digits(things=(5, 6), size=(80, 64), side=(14, 22)),
    "digits/scale": Digits(things=(2, 4), size=(96, 96), side=(24, 36)),
    "digits/photo": Digits(things=(2, 4), photo=True),
    "digits/negated": Digits(things=(2, 2), how="negated"),
    "digits/relation": Digits(things=(2, 3), how="relation"),
    "digits/alone": Digits(things=(1, 1)),
}
"""Out of domain for who is trained on digits/locate; `digits/alone` is that task made too easy."""


def _asked_digits(task: StudyTask, i: int) -> Problem:
    """Problem i of one of `DIGITS`."""
    asked = DIGITS[task.name](generator("problem", task.name, task.split, task.seed, i), task.split)
    return Problem(
        id=f"{task.name}:{task.split}:{task.seed}:{i}", task=task.name, images=asked.images,
        question=asked.question, answer=asked.answer, kind="box", target=f"<answer>{asked.said}</answer>",
    )  # fmt: skip


# --- digits, detected among classes that are not there ----------------------------------------------------------------

NONE_LISTED = 0.1
"""Share of the problems in which no listed digit is in the picture."""
THINKS = 0.5
"""Share of the problems in which the teacher names what is there before the boxes."""


def detect_digits(rng: np.random.Generator, split: Split) -> Asked:
    """Two to four digits, one of which may be there twice; the question lists two to four classes, one or two of them
    (at times all) absent."""
    count = int(rng.integers(2, 5))
    labels = [str(label) for label in rng.choice(10, count, replace=False)]
    if count > 2 and rng.random() < 0.3:
        labels[1] = labels[0]
    scene = compose(rng, digit_stamps(split), count, labels=labels, split=split)
    there = [str(label) for label in rng.permutation(sorted(set(labels)))]
    none = rng.random() < NONE_LISTED
    present = [] if none else there[: int(rng.integers(1, min(3, len(there)) + 1))]
    others = [str(digit) for digit in range(10) if str(digit) not in there]
    absent = [str(name) for name in rng.choice(others, 2 if none or len(present) == 1 else 1, replace=False)]
    asked = [str(name) for name in rng.permutation(present + absent)]
    found = [thing for thing in scene.things if thing.label in present]
    seen = ", ".join(thing.label for thing in found)
    denied = [f"No {name}." for name in asked if name in absent]
    return Asked(
        images=(scene.image,),
        question=f"Detect: {', '.join(asked)}. Answer with a JSON list, or None.",
        answer=listing(found),
        said="[" + ", ".join(f'{{"bbox_2d": {place(t.box)}, "label": "{t.label}"}}' for t in found) + "]",
        thought=" ".join([f"I see: {seen or 'none'}.", *denied]),
        meta={
            "asked": asked,
            "present": present,
            "absent": absent,
            "things": listing(scene.things),
        },
    )


def _detected(task: StudyTask, i: int) -> Problem:
    """Problem i of `detect_digits`; the teacher thinks first in the share `THINKS`, drawn by (seed, i)."""
    rng = generator("problem", task.name, task.split, task.seed, i)
    asked = detect_digits(rng, task.split)
    said = asked.said if asked.answer else "None"
    thought = f"<think>{asked.thought}</think>" if rng.random() < THINKS else ""
    return Problem(
        id=f"{task.name}:{task.split}:{task.seed}:{i}", task=task.name, images=asked.images,
        question=asked.question, answer=asked.answer, kind="objects", meta=asked.meta,
        target=f"{thought}<answer>{said}</answer>",
    )  # fmt: skip


# --- mixtures and flawed problems -----------------------------------------------------------------------------------

MIXTURES: Mapping[str, Mapping[str, float]] = {
    "detect/start": {"digits/detect": 0.75, "digits/describe": 0.25},
    "digits/start": {"digits/locate": 0.6, "digits/describe": 0.4},
}  # fmt: skip
"""Name → task → share."""

FLAWED: Mapping[str, float] = {"digits/noisy": 0.3}
"""digits/locate with this share of truths that are the box of nothing asked for: that of another problem."""


def _mixed(task: StudyTask, i: int) -> Problem:
    """Problem i of one of several tasks, drawn by (seed, i)."""
    shares = MIXTURES[task.name]
    place_in = np.random.default_rng([task.seed, SPLITS.index(task.split), i])
    name = str(place_in.choice(list(shares), p=list(shares.values())))
    return open_study_task(name, task.split, task.seed).take(i, 1)[0][0]


def _noisy(task: StudyTask, i: int) -> Problem:
    """digits/locate with wrong truths in a share of the problems, drawn by (seed, i)."""
    clean = open_task("digits/locate", task.split, task.seed)
    problem, other = (clean.take(at, 1)[0][0] for at in (i, i + 500_000))
    if np.random.default_rng([task.seed, 7, i]).random() >= FLAWED[task.name]:
        return problem
    return replace(problem, answer=other.answer, target=other.target)


# --- the tasks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyTask:
    """An endless task: problem i is `make(task, i)`, by (name, split, seed, i) alone."""

    name: str
    split: Split
    seed: int
    kind: AnswerKind
    chance: float
    make: Callable[[StudyTask, int], Problem]
    size: None = None

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self.make(self, i) for i in range(cursor, cursor + n)], cursor + n


def open_study_task(name: str, split: Split, seed: int) -> Task:
    """Any task of the studies, or a built-in one. Raises UserError for an unknown name."""
    kind: AnswerKind = "box"
    if name in DIGITS:
        make, chance = _asked_digits, 0.03
    elif name == "digits/detect":
        make, kind, chance = _detected, "objects", NONE_LISTED
    elif name in FLAWED:
        make, chance = _noisy, 0.03
    elif name in MIXTURES:
        first = next(iter(MIXTURES[name]))
        make, kind, chance = _mixed, open_study_task(first, split, seed).kind, 0.0
    else:
        return open_task(name, split, seed)
    return StudyTask(name=name, split=split, seed=seed, kind=kind, chance=chance, make=make)
