"""`ssl/strips`: the strips of a picture, shuffled in one picture with gaps and numbers; in which order were they?

Spatial-SSRL (arXiv:2510.27606) has strips of one picture among its shuffled patches. Not among SSL4RL's tasks.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.pieces import board, cells, cut, fitting, in_one_order, numbered, piece
from fovea.tasks.ssl.spec import TRIES, Generator, knob, unsuitable, whole
from fovea.tasks.ssl.views import draw, finish, tint, window

STRIPS = (2, 3, 4, 5)
"""How many, easiest first."""
GAP = (0.35, 0.5, (0.0, 0.5))
"""As `pieces.GAP`, more: strips have the longest borders. 0.1 and weaker tints put 76 of 100 in order, chance 17."""
MANY = (2, 8)
"""Fewest and most that `n` takes."""
Cut = Literal["either", "vertical", "horizontal"]


def chance(
    difficulty: float, *, n: int = 0, cuts: Cut = "either", gap: float | None = None, jitter: float = 1.0
) -> float:
    return 1 / math.factorial(whole("n", n, difficulty, STRIPS, MANY))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: int = 0,
    cuts: Cut = "either",
    gap: float | None = None,
    jitter: float = 1.0,
) -> Asked:
    """`n`: strips (0: by the difficulty and what fits). `cuts`: vertical or horizontal strips. `gap`: share of a
    strip's width that is hidden, 0 to 0.5. `jitter`: how differently the strips are tinted."""
    n = whole("n", n, difficulty, fitting(STRIPS, images.side), MANY)
    gap = knob("gap", gap, difficulty, *GAP)
    upright = bool(rng.integers(2)) if cuts == "either" else cuts == "vertical"
    columns, rows = (n, 1) if upright else (1, n)
    shown = rng.permutation(n)  # shown[k]: which strip of the picture has number k + 1
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        box = window(rng, picture.size, least=0.8)
        if in_one_order(picture, box, columns, rows):
            break
    else:
        raise unsuitable("ssl/strips", images, "plain, or their strips fit in more than one order")
    size = (piece(images.side, columns), piece(images.side, rows))
    parts = cells(box, columns, rows)
    strips = [tint(rng, cut(rng, picture, parts[k], size, gap), jitter) for k in shown]
    order = [int(k) + 1 for k in np.argsort(shown)]
    along = "from left to right" if upright else "from top to bottom"
    told = "numbered" if numbered(images.side, columns, rows) else f"numbered {along}"
    return Asked(
        images=finish(rng, [board(strips, columns, images.side)]),
        question=f"The {n} strips of a picture were shuffled and {told}. Give the numbers in the right order "
        f"{along}.",
        answer=order,
        said=", ".join(map(str, order)),
        difficulty=difficulty,
        meta={"n": n, "gap": gap, "chance": 1 / math.factorial(n)},
    )


GENERATOR = Generator(
    make=make,
    kind="order",
    chance=chance,
    about="the order of the shuffled strips of a picture",
    answer="the strips' numbers in the order of the picture",
    rewards={"order": 1.0, "format": 0.1},
    reward_options={"order": {"partial": True, "gamma": 0.2, "chance": True}},
    shortcuts="edges that meet: a part of every strip is hidden, at random on all sides, and every strip is tinted "
    "by itself; all are of equal size, resampled alike and compressed together; pictures whose strips are plain, "
    "alike, or fit nearly as well in another order are rejected",
)
