"""`ssl/rotation`: how far was the second picture turned? Or, with one picture, how far from upright?

SSL4RL's released builders show the original and the turned picture and ask for the angle counter-clockwise; its
overview figure shows one picture. Both are here (`pair`). Where the answers are multiples of 90 degrees a turn is
an exact transpose of a square; else every view, that of 0 degrees too, is the same inscribed square after two
resamples at angles that say nothing about the answer.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.spec import TRIES, Generator, knob, step_of, unsuitable
from fovea.tasks.ssl.views import SAME, Box, difference, draw, finish, fit, plain, render, tint
from fovea.types import UserError

STEPS = (180, 90, 45, 30)
"""Degrees between two possible answers, easiest first."""
CHECKED = 48
"""Pixels a side at which a picture is compared with itself turned."""


def chance(
    difficulty: float,
    *,
    pair: bool = True,
    step: int = 0,
    overlap: float | None = None,
    jitter: float | None = None,
    whole: bool = False,
) -> float:
    return _step(step, difficulty) / 360


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    pair: bool = True,
    step: int = 0,
    overlap: float | None = None,
    jitter: float | None = None,
    whole: bool = False,
) -> Asked:
    """`step`: degrees between two possible answers, a divisor of 360 (0: by the difficulty). `overlap`: of the sides
    of the two parts of the picture that are shown, in common (None: 1 to 0.7). `jitter`: how differently the two are
    tinted (None: 0.3 to 0.8). `whole`: all of the picture in its own shape, which swaps width and height
    at a quarter turn (only where `step` is a multiple of 90)."""
    step = _step(step, difficulty)
    jitter = knob("jitter", jitter, difficulty, 0.3, 0.8, (0, 1))
    overlap = knob("overlap", overlap, difficulty, 1.0, 0.7, (0.3, 1))
    angle = int(rng.integers(360 // step)) * step
    for _ in range(TRIES):
        i = draw(rng, images)[0]
        picture = images.picture(i)
        boxes = _boxes(rng, picture.size, overlap)
        base = float(rng.uniform(0, 360)) if pair and step % 90 else 0.0
        if not _ambiguous(picture, boxes[1], step, base):
            break
    else:
        raise unsuitable("ssl/rotation", images, "plain, or alike after a turn")
    if whole and step % 90 == 0:
        upright = picture.resize(fit(picture.size, images.side), Image.Resampling.BICUBIC)
        views = [upright, _quarters(upright, angle)]
    else:
        views = [
            _turned(rng, picture, box, images.side, base + turn, step % 90 == 0)
            for box, turn in zip(boxes, (0, angle))
        ]
    views = [tint(rng, view, jitter) for view in (views if pair else views[1:])]
    angles = ", ".join(map(str, range(0, 360, step)))
    told = "The second picture shows the same as the first," if pair else "The picture was upright and is"
    return Asked(
        images=finish(rng, views),
        question=f"{told} turned counter-clockwise. By how many degrees: {angles}?",
        answer=angle,
        said=str(angle),
        thought=f"It is turned by {angle} degrees.",
        difficulty=difficulty,
        meta={"step": step, "pictures": [images.name(i)]},
    )


def _step(step: int, difficulty: float) -> int:
    step = step or step_of(difficulty, STEPS)
    if not 1 <= step <= 180 or 360 % step:
        raise UserError(
            f"task_options.ssl/rotation.step={step} does not divide the circle; give a divisor of 360 up to 180, for "
            "example 45 (0: by the difficulty)."
        )
    return step


def _boxes(rng: np.random.Generator, size: tuple[int, int], overlap: float) -> tuple[Box, Box]:
    """Two squares of one size in a picture that have `overlap` of their sides in common along one axis, or as much
    more as the picture forces."""
    width, height = size
    side = min(size) * rng.uniform(0.7, 0.9)
    x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
    shift = (1 - overlap) * side * rng.uniform(0.5, 1.0)
    way = rng.uniform(0, 2 * math.pi)
    x2 = float(np.clip(x + shift * math.cos(way), 0, width - side))
    y2 = float(np.clip(y + shift * math.sin(way), 0, height - side))
    return (x, y, x + side, y + side), (x2, y2, x2 + side, y2 + side)


def _ambiguous(picture: Image.Image, box: Box, step: int, base: float) -> bool:
    """Whether what is shown is plain, or looks the same after one of the turns."""
    whole = _margin(CHECKED)
    square = render(picture, box, (whole, whole))
    turns = [
        _middle(square.rotate(base + turn, Image.Resampling.BILINEAR), CHECKED)
        for turn in range(0, 360, step)
    ]
    return plain(turns[0]) or any(difference(turns[0], other) < SAME for other in turns[1:])


def _turned(
    rng: np.random.Generator, picture: Image.Image, box: Box, side: int, turn: float, exact: bool
) -> Image.Image:
    """The part of a picture turned counter-clockwise, `side` pixels a side, without corners.

    Unless `exact`, in two steps with a random angle between them: what one resample leaves behind would tell its
    angle."""
    if exact:
        return _quarters(render(picture, box, (side, side)), round(turn))
    whole, between = _margin(side), float(rng.uniform(0, 360))
    turned = render(picture, box, (whole, whole))
    for angle in (between, turn - between):
        turned = turned.rotate(angle, Image.Resampling.BICUBIC)
    return _middle(turned, side)


def _quarters(view: Image.Image, turn: int) -> Image.Image:
    return Image.fromarray(np.rot90(np.asarray(view), turn // 90).copy())


def _margin(side: int) -> int:
    """Pixels a side of a square whose inscribed circle holds a square of `side` at every angle, both centred."""
    whole = math.ceil(side * math.sqrt(2)) + 4
    return whole + (whole - side) % 2


def _middle(square: Image.Image, side: int) -> Image.Image:
    edge = (square.width - side) // 2
    return square.crop((edge, edge, edge + side, edge + side))


GENERATOR = Generator(
    make=make,
    kind="number",
    chance=chance,
    about="by how many degrees a picture was turned, beside the original or (pair=false) alone",
    answer="the angle in degrees, counter-clockwise",
    rewards={"numeric": 1.0, "format": 0.1},
    shortcuts="black corners, canvas size, resampling: exact transposes of a square, or the same inscribed square "
    "after the same resamples for every angle, 0 too; pixel-identical views: another part, another tint; plain and "
    "symmetric pictures are rejected; with pair=false a photographer's horizon and light from above are what is "
    "meant to be seen",
    paper={"pair": True, "step": 90, "overlap": 1.0, "jitter": 0.0, "whole": True},
)
