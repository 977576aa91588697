"""`ssl/tiles`: the tiles of a picture, shuffled in one picture, one of them masked; in which order were they?

Spatial-SSRL's shuffled patches with one masked (arXiv:2510.27606: 2 x 2, red borders, a white mask); the grids
beyond 2 x 2 and the grey mask are our choice. The masked one's place follows from the others'. Tiles as pictures
of their own: `ssl/jigsaw`.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.pieces import GAP, GREY, board, cells, cut, in_one_order, numbered, piece
from fovea.tasks.ssl.spec import TRIES, Generator, knob, unsuitable, whole
from fovea.tasks.ssl.views import draw, finish, tint, window

GRIDS = ((2, 2), (3, 2), (3, 3))
"""(columns, rows), easiest first."""


def chance(
    difficulty: float,
    *,
    columns: int = 0,
    rows: int = 0,
    masked: bool = True,
    gap: float | None = None,
    jitter: float = 0.5,
) -> float:
    return 1 / math.factorial(math.prod(_grid(columns, rows, difficulty)))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    columns: int = 0,
    rows: int = 0,
    masked: bool = True,
    gap: float | None = None,
    jitter: float = 0.5,
) -> Asked:
    """`columns`, `rows`: of tiles (0: by the difficulty). `masked`: one tile is grey. `gap`: share of a tile's
    sides that is hidden, 0 to 0.5. `jitter`: how differently the tiles are tinted."""
    columns, rows = _grid(columns, rows, difficulty)
    gap = knob("gap", gap, difficulty, *GAP)
    n = columns * rows
    shown = rng.permutation(n)  # shown[k]: which tile of the picture has number k + 1
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        box = window(rng, picture.size, least=0.8)
        if in_one_order(picture, box, columns, rows):
            break
    else:
        raise unsuitable("ssl/tiles", images, "plain, or their tiles fit in more than one order")
    size = (piece(images.side, columns), piece(images.side, rows))
    parts = cells(box, columns, rows)
    tiles = [tint(rng, cut(rng, picture, parts[k], size, gap), jitter) for k in shown]
    if masked:
        tiles[int(rng.integers(n))] = Image.new("RGB", size, GREY)
    order = [int(k) + 1 for k in np.argsort(shown)]
    told = "numbered" if numbered(images.side, columns, rows) else "numbered row by row from the top left"
    hidden = " (one is masked)" if masked else ""
    return Asked(
        images=finish(rng, [board(tiles, columns, images.side)]),
        question=f"The {n} tiles of a picture, {columns} by {rows}, were shuffled and {told}{hidden}. Give the "
        "numbers in the right order, row by row.",
        answer=order,
        said=", ".join(map(str, order)),
        difficulty=difficulty,
        meta={"columns": columns, "rows": rows, "gap": gap},
    )


def _grid(columns: int, rows: int, difficulty: float) -> tuple[int, int]:
    by_columns, by_rows = zip(*GRIDS)
    return (
        whole("columns", columns, difficulty, by_columns, (2, 5)),
        whole("rows", rows, difficulty, by_rows, (2, 5)),
    )


GENERATOR = Generator(
    make=make,
    kind="order",
    chance=chance,
    about="the order of the shuffled tiles of a picture, one of them masked",
    answer="the tiles' numbers in the order of the picture, row by row",
    rewards={"order": 1.0, "format": 0.1},
    reward_options={"order": {"partial": True, "gamma": 0.2, "chance": True}},
    shortcuts="edges that meet: a part of every tile is hidden, at random on all sides, every tile is tinted by "
    "itself and one cannot be matched at all; equal sizes, resampled alike and compressed together; pictures whose "
    "tiles are plain, alike, or fit nearly as well in another order are rejected",
)
