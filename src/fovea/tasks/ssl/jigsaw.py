"""`ssl/jigsaw`: which part of a cut picture belongs where?

SSL4RL's released builders cut a picture into n x n parts, mix them and show every part as a picture of its own;
other systems (Jigsaw-R1, Spatial-SSRL) show one picture with numbered parts. Both are here (`single`). The answer
names, for each place of the original row by row, the number of the shown part that belongs there.
"""

from __future__ import annotations

import math

import numpy as np

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.pieces import board, cells, cut, fitting, in_one_order, numbered, piece
from fovea.tasks.ssl.spec import TRIES, Generator, step_of, unsuitable
from fovea.tasks.ssl.views import Box, draw, finish, fit, tint, window
from fovea.types import UserError

GRIDS = (2, 2, 3, 4)
"""Parts a side, easiest first."""
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
    numbered parts instead of a picture a part. `gap`: share of the sides of every part that is hidden (None: 0.1 to
    0.3). `jitter`: how differently the parts are tinted (None: 0.3 to 1). `whole`: all of the picture in its own shape,
    not a square of it (not with `single`)."""
    if n and not 2 <= n <= 6:
        raise UserError(f"task_options.ssl/jigsaw.n={n} is not allowed; give 2 to 6 (0: by the difficulty).")
    n = n or step_of(difficulty, fitting(GRIDS, images.side) if single else GRIDS)
    gap = min(max(0.1 + 0.2 * difficulty if gap is None else gap, 0.0), 0.5)
    jitter = 0.3 + 0.7 * difficulty if jitter is None else jitter
    whole = whole and not single
    shown = rng.permutation(n * n)  # shown[k]: which place the part with number k + 1 is from
    for _ in range(TRIES):
        i = draw(rng, images)[0]
        picture = images.picture(i)
        box: Box = (0, 0, *picture.size) if whole else window(rng, picture.size, least=0.8)
        if in_one_order(picture, box, n, n):
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
