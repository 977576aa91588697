"""`ssl/rotation`: how far was the second picture turned? Or, with one picture, how far from upright?

SSL4RL's released builders show the original and the turned picture and ask for the angle counter-clockwise; its
overview figure shows one picture. Both are here (`pair`). Where the angles are multiples of 90 degrees the turn
is an exact transpose of a square; else both views, that of 0 degrees too, are the same inscribed square after
one resample of the same kind.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.spec import TRIES, Generator, step_of, unsuitable
from fovea.tasks.ssl.views import SAME, difference, draw, finish, plain, render, tint, window

STEPS = (180, 90, 45, 30)
"""Degrees between two possible answers, easiest first."""


def chance(difficulty: float, *, pair: bool = True, step: int = 0, jitter: float = 0.5) -> float:
    return (step or step_of(difficulty, STEPS)) / 360


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    pair: bool = True,
    step: int = 0,
    jitter: float = 0.5,
) -> Asked:
    """`step`: degrees between two possible answers (0: by the difficulty). `jitter`: how differently the two are
    tinted."""
    step = step or step_of(difficulty, STEPS)
    angle = int(rng.integers(360 // step)) * step
    side = images.side
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        base = rng.uniform(0, 360) if pair and step % 90 else 0.0
        box = window(rng, picture.size, least=0.7)
        first, second = (_turned(picture, box, side, base, turn) for turn in (0, angle))
        ambiguous = any(
            difference(first, _turned(picture, box, side, base, other)) < SAME
            for other in range(step, 360, step)
        )
        if not plain(first) and not ambiguous:
            break
    else:
        raise unsuitable("ssl/rotation", images, "plain, or alike after a turn")
    views = [tint(rng, view, jitter) for view in ((first, second) if pair else (second,))]
    angles = ", ".join(map(str, range(0, 360, step)))
    told = "The second picture is the first one turned" if pair else "The picture is turned"
    return Asked(
        images=finish(rng, views),
        question=f"{told} counter-clockwise. By how many degrees: {angles}?",
        answer=angle,
        said=str(angle),
        difficulty=difficulty,
        meta={"step": step},
    )


def _turned(
    picture: Image.Image, box: tuple[float, float, float, float], side: int, base: float, turn: int
) -> Image.Image:
    """The part of a picture turned counter-clockwise by base + turn degrees, `side` pixels a side, without
    corners."""
    if base == 0 and turn % 90 == 0:
        return Image.fromarray(np.rot90(np.asarray(render(picture, box, (side, side))), turn // 90).copy())
    whole = math.ceil(side * math.sqrt(2)) + 2  # its inscribed circle holds the square at every angle
    turned = render(picture, box, (whole, whole)).rotate(base + turn, Image.Resampling.BICUBIC)
    edge = (whole - side) // 2
    return turned.crop((edge, edge, edge + side, edge + side))


GENERATOR = Generator(
    make=make,
    kind="number",
    chance=chance,
    about="by how many degrees a picture was turned, beside the original or (pair=false) alone",
    answer="the angle in degrees, counter-clockwise",
    rewards={"numeric": 1.0, "format": 0.1},
    shortcuts="black corners, canvas size, resampling: exact transposes of a square, or the same inscribed square "
    "after the same resample for every angle, 0 too; symmetric pictures are rejected; with pair=false a "
    "photographer's horizon and light from above are what is meant to be seen",
    paper={"pair": True, "step": 90, "jitter": 0.0},
)
