"""Referring expressions: the box of the one shape that a phrase means, "the circle left of the blue square".

A phrase is an `Expression`, a value; `judge` says of every thing in a picture whether it is meant, is not, or could be
argued about; a problem is asked only where one thing is meant and nothing can be argued about. Trained are colour
and shape, an extreme, and one relation; what is said or shown differently stands beside it, out of domain.

Try it: `fovea tasks show shapes/refer --out sheet.png`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fovea.boxes import look, place
from fovea.tasks.questions import Asked, Question, where
from fovea.tasks.scenes import COLORS, Scene, Split, Thing
from fovea.tasks.stages import LARGE, Stage, draw, listing, some_labels

APART = 8.0
"""Pixels between two centres from which on one is left of (right of, above, below) the other beyond doubt."""
FIRST = 5.0
"""Pixels by which the leftmost (rightmost, highest, lowest) must lead."""
LARGER = 1.4
"""Ratio of the areas from which on one thing is larger beyond doubt."""

RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
"""Words → (axis, direction in which the thing lies from the landmark)."""
SIDEMOST: dict[str, tuple[int, int]] = {
    "leftmost": (0, -1), "rightmost": (0, 1), "highest": (1, -1), "lowest": (1, 1),
}  # fmt: skip
EXTREMES = (*SIDEMOST, "largest", "smallest")


@dataclass(frozen=True, kw_only=True, slots=True)
class Expression:
    """A phrase that should mean one thing; all its conditions hold together.

    Example: Expression(shape="circle", relations=(("left of", "blue square"),))
    """

    color: str = ""
    """"" means any."""
    shape: str = ""
    without: tuple[str, ...] = ()
    """Colours and shapes that it must not have."""
    extreme: str = ""
    """One of `EXTREMES`, among the things with this colour and shape."""
    relations: tuple[tuple[str, str], ...] = ()
    """(one of `RELATIONS`, the landmark: a label or a shape)."""


def words(expression: Expression) -> str:
    """As a person says it: "the largest red shape", "the shape that is neither red nor a star"."""
    noun = expression.shape or "shape"
    text = " ".join(part for part in ("the", expression.extreme, expression.color, noun) if part)
    nots = [name if name in COLORS else f"a {name}" for name in expression.without]
    if nots:
        text += f" that is not {nots[0]}" if len(nots) == 1 else f" that is neither {' nor '.join(nots)}"
    relations = [f"{relation} the {landmark}" for relation, landmark in expression.relations]
    if len(relations) > 1:
        text += " that is"
    return " ".join([text, " and ".join(relations)]).strip()


# --- what a phrase means ----------------------------------------------------------------------------------


def fits(expression: Expression, thing: Thing) -> bool:
    """Whether colour and shape are as the phrase says, places and sizes aside."""
    color, shape = thing.label.split()
    return (
        expression.color in ("", color)
        and expression.shape in ("", shape)
        and not {color, shape} & set(expression.without)
    )


def judge(expression: Expression, thing: Thing, things: Sequence[Thing]) -> bool | None:
    """Whether the phrase means `thing` in this picture: True, False, or None where it could be argued about.

    A landmark that is not exactly one other thing makes every answer None.
    """
    verdicts: list[bool | None] = [fits(expression, thing)]
    if expression.extreme:
        verdicts.append(_extreme(expression, thing, things))
    verdicts += [_related(relation, thing, landmark, things) for relation, landmark in expression.relations]
    return False if False in verdicts else None if None in verdicts else True


def referent(expression: Expression, things: Sequence[Thing]) -> Thing | None:
    """The one thing that the phrase means; None if there is none, more than one, or doubt about any."""
    verdicts = [judge(expression, thing, things) for thing in things]
    return things[verdicts.index(True)] if verdicts.count(True) == 1 and None not in verdicts else None


def _middle(thing: Thing) -> tuple[float, float]:
    x1, y1, x2, y2 = thing.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def _area(thing: Thing) -> int:
    x1, y1, x2, y2 = thing.box
    return (x2 - x1) * (y2 - y1)


def _extreme(expression: Expression, thing: Thing, things: Sequence[Thing]) -> bool | None:
    """Whether it leads all that have the phrase's colour and shape. Two that are close: None for both."""
    if not fits(expression, thing):
        return False
    rivals = [other for other in things if other is not thing and fits(expression, other)]
    if expression.extreme in SIDEMOST:
        axis, sign = SIDEMOST[expression.extreme]
        leads = [sign * (_middle(thing)[axis] - _middle(other)[axis]) / FIRST for other in rivals]
    else:
        sign = 1 if expression.extreme == "largest" else -1
        leads = [sign * float(np.log(_area(thing) / _area(other)) / np.log(LARGER)) for other in rivals]
    if any(lead <= -1 for lead in leads):
        return False
    return True if all(lead >= 1 for lead in leads) else None


def _related(relation: str, thing: Thing, landmark: str, things: Sequence[Thing]) -> bool | None:
    """True: at least `APART` that way, and not mostly across; False: not that way at all."""
    marks = [other for other in things if other.label == landmark or other.label.split()[1] == landmark]
    if len(marks) != 1 or marks[0] is thing:
        return None if len(marks) != 1 else False
    axis, sign = RELATIONS[relation]
    away = [a - b for a, b in zip(_middle(thing), _middle(marks[0]))]
    along = sign * away[axis]
    if along <= 0:
        return False
    return True if along >= APART and 2 * along >= abs(away[1 - axis]) else None


# --- drawing a phrase for a picture -----------------------------------------------------------------------

Draft = Callable[[np.random.Generator, Thing, Sequence[Thing]], Expression | None]
"""A phrase that may mean the thing: nothing is promised, `good` decides. None: no such phrase."""


def _named(rng: np.random.Generator, thing: Thing, shares: tuple[float, float, float]) -> Expression:
    """By colour and shape, by colour, or by shape alone, in these shares."""
    color, shape = thing.label.split()
    kind = int(rng.choice(3, p=shares))
    return Expression(color="" if kind == 2 else color, shape="" if kind == 1 else shape)


def _by_attribute(rng: np.random.Generator, thing: Thing, things: Sequence[Thing]) -> Expression:
    return _named(rng, thing, (0.6, 0.2, 0.2))


def _by_extreme(rng: np.random.Generator, thing: Thing, things: Sequence[Thing]) -> Expression:
    return replace(_named(rng, thing, (0.2, 0.4, 0.4)), extreme=EXTREMES[int(rng.integers(len(EXTREMES)))])


def _by_relation(
    rng: np.random.Generator, thing: Thing, things: Sequence[Thing], number: int = 1
) -> Expression | None:
    """With relations that hold, to different landmarks."""
    marks = [things[i] for i in rng.permutation(len(things)) if things[i] is not thing]
    relations: list[tuple[str, str]] = []
    for mark in marks:
        said = mark.label if rng.random() < 0.6 else mark.label.split()[1]
        hold = [name for name in RELATIONS if _related(name, thing, said, things)]
        hold = [name for name in hold if name not in dict(relations)]
        if hold and len(relations) < number:
            relations.append((hold[int(rng.integers(len(hold)))], said))
    named = _named(rng, thing, (0.2, 0.3, 0.5))
    return replace(named, relations=tuple(relations)) if len(relations) == number else None


def _by_absence(
    rng: np.random.Generator, thing: Thing, things: Sequence[Thing], shape: bool = False
) -> Expression:
    """The circle that is not red, or with `shape` the shape that is neither red nor a star."""
    color = things[int(rng.integers(len(things)))].label.split()[0]
    if not shape:
        return Expression(shape=thing.label.split()[1], without=(color,))
    return Expression(without=(color, things[int(rng.integers(len(things)))].label.split()[1]))


DRAFTS: dict[str, Draft] = {
    "attribute": _by_attribute,
    "extreme": _by_extreme,
    "relation": _by_relation,
    "relations": partial(_by_relation, number=2),
    "not": _by_absence,
    "neither": partial(_by_absence, shape=True),
}
_HARD = {"attribute": 0.0, "extreme": 0.25, "relation": 0.5, "relations": 0.5, "not": 0.25, "neither": 0.5}
_TRIES = 24


def good(expression: Expression, things: Sequence[Thing]) -> Thing | None:
    """The `referent`, if another thing shares its colour or shape and no part of the phrase is idle: without its
    extreme, one of its relations or one of its exclusions it would not mean one thing, and where it has relations
    something else than landmarks has its colour and shape."""
    found = referent(expression, things)
    if found is None or not _shared(found, things):
        return None
    marks = {mark for _, mark in expression.relations}
    if marks and not any(
        fits(expression, other) and other is not found and not marks & {other.label, other.label.split()[1]}
        for other in things
    ):
        return None
    less = [replace(expression, extreme="")] if expression.extreme else []
    for part in ("relations", "without"):
        items = getattr(expression, part)
        less += [replace(expression, **{part: items[:i] + items[i + 1 :]}) for i in range(len(items))]
    return None if any(referent(other, things) is not None for other in less) else found


def _shared(thing: Thing, things: Sequence[Thing]) -> list[Thing]:
    """Other things of its colour or shape."""
    own = set(thing.label.split())
    return [other for other in things if other is not thing and own & set(other.label.split())]


def _scene(
    rng: np.random.Generator, split: Split, stage: Stage, draft: Draft
) -> tuple[Scene, Expression, Thing]:
    """A picture and a phrase that means one thing in it."""
    fewest, most = stage.things
    count = int(rng.integers(fewest, most + 1))
    while True:
        scene = draw(rng, split, stage, some_labels(rng, count))
        for _ in range(_TRIES):
            thing = scene.things[int(rng.integers(count))]
            expression = draft(rng, thing, scene.things)
            if expression and good(expression, scene.things) is thing:
                return scene, expression, thing


def refer(stage: Stage, *kinds: str) -> Callable[[np.random.Generator, Split], Asked]:
    """The question for pictures of a stage; `kinds` of `DRAFTS`, each as often."""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        kind = kinds[int(rng.integers(len(kinds)))]
        scene, expression, thing = _scene(rng, split, stage, DRAFTS[kind])
        said = words(expression)
        landmarks = [mark for _, mark in expression.relations]
        plain = replace(expression, extreme="", relations=(), without=())
        seen = [
            other
            for other in scene.things
            if (other in _shared(thing, scene.things) if kind == "attribute" else fits(plain, other))
            or other is thing
            or any(mark in (other.label, other.label.split()[1]) for mark in landmarks)
        ]
        return Asked(
            images=(scene.image,),
            question=f"Where is {said}? Answer with its box.",
            answer=thing.box,
            said=place(thing.box),
            thought="I see: "
            + ", ".join(look(other.box) + other.label for other in seen)
            + f". {look(thing.box)}It is at the {where(thing.box, scene.image.size)}.",
            difficulty=_HARD[kind] + stage.crowding(len(scene.things)) / 2,
            meta={"expression": said, "type": kind, "things": listing(scene.things)},
        )

    return ask


TRAINED = ("attribute", "extreme", "relation")
_OUT = "; never trained"
QUESTIONS: dict[str, Question] = {
    "shapes/refer": (
        refer(Stage(things=(3, 5)), *TRAINED), "box", 0.055,
        "the box of the shape that a phrase means, by colour and shape, an extreme or one relation",
    ),
    "shapes/refer_long": (
        refer(Stage(things=(4, 6)), "relations"), "box", 0.05, f"as shapes/refer, with two relations{_OUT}",
    ),
    "shapes/refer_not": (
        refer(Stage(things=(3, 5)), "not", "neither"), "box", 0.05, f"as shapes/refer, by what it is not{_OUT}",
    ),
    "shapes/refer_small": (
        refer(Stage(things=(3, 5), sizes=LARGE, side=(8, 14)), *TRAINED), "box", 0.012,
        f"as shapes/refer, things half as large in larger pictures{_OUT}",
    ),
    "shapes/refer_clutter": (
        refer(Stage(things=(7, 9), sizes=((96, 80), (80, 96), (96, 96)), side=(12, 20)), *TRAINED), "box", 0.03,
        f"as shapes/refer, seven to nine shapes{_OUT}",
    ),
    "shapes/refer_photo": (
        refer(Stage(things=(3, 5), photo=True), *TRAINED), "box", 0.055, f"as shapes/refer, on a photograph{_OUT}",
    ),
}  # fmt: skip
