"""`ssl/jigsaw`: which part of a cut picture belongs where?

SSL4RL's released builders cut a picture into n x n parts, mix them and show every part as a picture of its own;
other systems (Jigsaw-R1, Spatial-SSRL) show one picture with numbered parts. Both are here (`single`). The answer
names, for each place of the original row by row, the number of the shown part that belongs there.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps, ImageStat

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.pieces import board, cells, cut, fitting, in_one_order, numbered, piece
from fovea.tasks.ssl.spec import TRIES, Generator, knob, step_of, unsuitable
from fovea.tasks.ssl.spec import whole as chosen
from fovea.tasks.ssl.views import Box, detail, draw, finish, fit, render, tint, window

GRIDS = (2, 2, 3, 4)
"""Parts a side, easiest first."""
DETAIL, BRIGHTER = 0.3, 30.0
"""Difference of the upper and the lower half of a picture, at most: in log detail, in grey levels."""
LEAST = 28
"""Pixels a side of a part that is a picture of its own, where pictures are that large."""


def chance(
    difficulty: float,
    *,
    n: int = 0,
    single: bool = False,
    gap: float | None = None,
    jitter: float | None = None,
    whole: bool = False,
) -> float:
    return 1 / math.factorial((n or step_of(difficulty, GRIDS)) ** 2)


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: int = 0,
    single: bool = False,
    gap: float | None = None,
    jitter: float | None = None,
    whole: bool = False,
) -> Asked:
    """`n`: parts a side, 2 to 6 (0: 2 to 4 by the difficulty, with `single` as many as fit). `single`: one picture with
    numbered parts instead of a picture a part. `gap`: share of the sides of every part that is hidden (None: 0.3 to
    0.45). `jitter`: how differently the parts are tinted (None: 0.5 to 1). `whole`: all of the picture in its own
    shape, not a square of it (not with `single`)."""
    n = chosen("n", n, difficulty, fitting(GRIDS, images.side) if single else GRIDS, (2, 6))
    gap = knob("gap", gap, difficulty, 0.3, 0.45, (0, 0.5))
    jitter = knob("jitter", jitter, difficulty, 0.5, 1.0, (0, 1))
    whole = whole and not single
    shown = rng.permutation(n * n)  # shown[k]: which place the part with number k + 1 is from
    for _ in range(TRIES):
        i = draw(rng, images)[0]
        picture = images.picture(i)
        box: Box = (0, 0, *picture.size) if whole else window(rng, picture.size, least=0.7)
        if (whole or _balanced(picture, box)) and in_one_order(picture, box, n, n):
            break
    else:
        raise unsuitable("ssl/jigsaw", images, "plain, or its parts fit in more than one order")
    size = _size(fit(picture.size, images.side) if whole else (images.side, images.side), n)
    size = (piece(images.side, n), piece(images.side, n)) if single else size
    places = cells(box, n, n)
    views = [tint(rng, cut(rng, picture, places[k], size, gap), jitter) for k in shown]
    answer = [int(k) + 1 for k in np.argsort(shown)]
    said = ", ".join(map(str, answer))
    if single:
        views = [board(views, n, images.side)]
    by_place = "" if not single or numbered(images.side, n, n) else " row by row"
    told = f"The {n * n} parts, numbered{by_place}," if single else f"The {n * n} pictures"
    return Asked(
        images=finish(rng, views),
        question=f"{told} are the mixed parts of one picture of {n} rows and {n} columns. Give for each place, row by "
        "row from the top left, the number of the part that belongs there.",
        answer=answer,
        said=said,
        thought=f"Row by row the parts are {said}.",
        difficulty=difficulty,
        meta={"n": n, "gap": gap, "chance": 1 / math.factorial(n * n), "pictures": [images.name(i)]},
    )


def _balanced(picture: Image.Image, box: Box) -> bool:
    """Whether the upper half shows about as much detail as the lower one and is about as bright: else how many bytes a
    part takes, or how bright it is, would say its row."""
    half = ImageOps.grayscale(render(picture, box, (64, 64)))
    upper, lower = half.crop((0, 0, 64, 32)), half.crop((0, 32, 64, 64))
    brighter = abs(ImageStat.Stat(upper).mean[0] - ImageStat.Stat(lower).mean[0])
    return abs(detail(upper) - detail(lower)) < DETAIL and brighter < BRIGHTER


def _size(whole: tuple[int, int], n: int) -> tuple[int, int]:
    """Pixels of each part of a picture of n x n: at least `LEAST` where the picture has as many."""
    width, height = whole[0] // n, whole[1] // n
    scale = max(1.0, min(LEAST / min(width, height), max(whole) / max(width, height)))
    return round(width * scale), round(height * scale)


GENERATOR = Generator(
    make=make,
    kind="order",
    chance=chance,
    about="the mixed parts of a cut picture, back in their places",
    answer="for each place, row by row, the number of the part that belongs there",
    rewards={"order": 1.0, "format": 0.1},
    reward_options={"order": {"partial": True, "chance": True}},
    shortcuts="edges that meet: a part of every piece is hidden, at random on all sides, and every piece is tinted by "
    "itself; all are of equal size, resampled and compressed alike; pictures whose parts are plain, alike, or fit "
    "nearly as well in another order are rejected. That the sky is above stays, and is meant to be seen",
    paper={"n": 2, "single": False, "gap": 0.0, "jitter": 0.0, "whole": True},
)
