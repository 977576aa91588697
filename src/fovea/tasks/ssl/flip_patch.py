"""`ssl/flip_patch`: a picture cut into numbered tiles; which one is flipped?

After Spatial-SSRL's flipped patch recognition (arXiv:2510.27606), which also asks in which direction; there the
tiles meet, here what lies between them is hidden.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.flip import mirrored
from fovea.tasks.ssl.pieces import GAP, board, cells, cut, fitting, flip_shows, numbered, piece
from fovea.tasks.ssl.spec import TRIES, Generator, knob, unsuitable, whole
from fovea.tasks.ssl.views import draw, finish, tint, window

GRIDS = (2, 3, 4)
"""Tiles along a side, easiest first."""
MANY = (2, 6)
"""Fewest and most along a side that `n` takes."""
Way = Literal["either", "left-right", "upside-down"]


def chance(
    difficulty: float, *, n: int = 0, way: Way = "either", gap: float | None = None, jitter: float = 0.5
) -> float:
    return 1 / whole("n", n, difficulty, GRIDS, MANY) ** 2


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: int = 0,
    way: Way = "either",
    gap: float | None = None,
    jitter: float = 0.5,
) -> Asked:
    """`n`: tiles along a side (0: by the difficulty and what fits). `way`: of the flip. `gap`: share of a tile's
    sides that is hidden, 0 to 0.5. `jitter`: how differently the tiles are tinted."""
    n = whole("n", n, difficulty, fitting(GRIDS, images.side), MANY)
    gap = knob("gap", gap, difficulty, *GAP)
    answer = int(rng.integers(n * n))
    turn = ("left-right", "upside-down")[int(rng.integers(2))] if way == "either" else way
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        box = window(rng, picture.size, least=0.8)
        if flip_shows(picture, box, n, answer, turn == "upside-down"):
            break
    else:
        raise unsuitable("ssl/flip_patch", images, "plain, or a flipped tile of it still fits")
    size = (piece(images.side, n),) * 2
    tiles = [tint(rng, cut(rng, picture, cell, size, gap), jitter) for cell in cells(box, n, n)]
    tiles[answer] = mirrored(tiles[answer], turn)
    told = "numbered" if numbered(images.side, n, n) else "numbered row by row from the top left"
    how = "left-right or upside-down" if way == "either" else way
    return Asked(
        images=finish(rng, [board(tiles, n, images.side)]),
        question=f"The picture is cut into {n * n} tiles, {told}. One is flipped {how}. Which number?",
        answer=answer + 1,
        said=str(answer + 1),
        difficulty=difficulty,
        meta={"n": n, "gap": gap, "way": turn, "chance": 1 / n**2},
    )


GENERATOR = Generator(
    make=make,
    kind="number",
    chance=chance,
    about="which tile of a picture is flipped",
    answer="the tile's number",
    rewards={"numeric": 1.0, "format": 0.1},
    shortcuts="edges that do not meet: a part of every tile is hidden, at random on all sides, and every tile is "
    "tinted by itself; all are resampled alike and compressed together; tiles that look the same when flipped, or "
    "still fit to their neighbours, are rejected after the answer is drawn, so that no number is favoured",
)
