"""`ssl/overlay_find`: simple shapes lie over a photograph; where is the one that is named?

The box for `ssl/overlay`'s count: any photograph gives problems of grounding. Our own; not among SSL4RL's tasks.
"""

from __future__ import annotations

import numpy as np

from fovea.boxes import look, place
from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked, where
from fovea.tasks.scenes import SHAPES, compose
from fovea.tasks.ssl.overlay import HEIGHTS, NAMED, VISIBLE, change_of, tinted
from fovea.tasks.ssl.spec import TRIES, Generator, step_of, unsuitable, whole
from fovea.tasks.ssl.views import draw, finish, render, window

TOTAL = (2, 3, 4, 5)
"""Shapes in all, each of another kind, easiest first."""
BLIND = (0.06, 0.05, 0.045, 0.04)
"""Share of the boxes that the best constant box meets, measured."""


def chance(difficulty: float, *, total: int = 0, tints: float = 0.5) -> float:
    return step_of(difficulty, BLIND)


def make(
    images: Pool, rng: np.random.Generator, difficulty: float, *, total: int = 0, tints: float = 0.5
) -> Asked:
    """`total`: shapes in all, each of another kind (0: by the difficulty). `tints`: how much colours and transparency
    vary, 0 to 1."""
    side = images.side
    total = whole("total", total, difficulty, TOTAL, (1, len(SHAPES)))
    low, high = (max(9, round(share * side)) for share in step_of(difficulty, HEIGHTS))
    kinds = [str(kind) for kind in rng.permutation(SHAPES)[:total]]
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        behind = np.asarray(render(picture, window(rng, picture.size, least=0.6), (side, side)))
        labels = [f"{rng.choice(NAMED)} {kind}" for kind in kinds]
        scene = compose(
            rng, tinted(tints), total, labels=labels, size=(side, side), side=(low, high), behind=behind
        )
        after = np.asarray(scene.image)
        if all(change_of(thing, behind, after) >= VISIBLE for thing in scene.things):
            break
    else:
        raise unsuitable("ssl/overlay_find", images, "of colours on which the shapes cannot be seen")
    asked = next(thing for thing in scene.things if thing.label == labels[0])
    return Asked(
        images=finish(rng, [scene.image]),
        question=f"Where is the {kinds[0]}? Answer with its box.",
        answer=asked.box,
        said=place(asked.box),
        thought=f"{look(asked.box)}The {asked.label} is at the {where(asked.box, (side, side))}.",
        difficulty=difficulty,
        meta={"total": total},
    )


GENERATOR = Generator(
    make=make,
    kind="box",
    chance=chance,
    about="where one of the shapes over a photograph is, as a box",
    answer="the shape's box",
    rewards={"iou": 0.5, "iou_50": 0.5, "format": 0.1},
    shortcuts="the only thing that was drawn: other shapes lie there too, drawn alike, and any may be asked for; "
    "place, colour and size are drawn alike for all; tints and transparency vary",
)
