"""`ssl/position`: from which part of the picture was the second one cut?

SSL4RL's released builders cut a rectangle out of one quarter, each side 20 to 80 % of the quarter's, and show it as
it is beside the whole picture. By default the cut-out is shown enlarged to one size and tinted otherwise than the
picture, and it must look like no other place. Finer grids (`n`) are ours.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageStat

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.spec import TRIES, Generator, knob, step_of, unsuitable
from fovea.tasks.ssl.spec import whole as chosen
from fovea.tasks.ssl.views import SAME, Box, detail, draw, finish, fit, plain, render, tint, window

GRIDS = (2, 2, 3, 4)
"""Cells a side, easiest first."""
WORDS = ("top left", "top right", "bottom left", "bottom right")
"""Answers where there are 2 x 2."""
PROBE = 8
"""Pixels a side of the cut-out where it is sought elsewhere."""
DRAWN = 24
"""Cut-outs of the right cell among which one is chosen; with 12 its bytes said 3 points more than chance."""
Shape = Literal["square", "free"]


def chance(
    difficulty: float,
    *,
    n: int = 0,
    part: float | None = None,
    shape: Shape = "square",
    jitter: float | None = None,
    whole: bool = False,
) -> float:
    return 1 / (n or step_of(difficulty, GRIDS)) ** 2


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: int = 0,
    part: float | None = None,
    shape: Shape = "square",
    jitter: float | None = None,
    whole: bool = False,
) -> Asked:
    """`n`: cells a side, 2 to 6 (0: 2 to 4 by the difficulty). `part`: side of the cut-out as a share of the cell's
    (None: 0.9 to 0.6). `shape`: "free" draws height and width by themselves, 0.2 to 0.8 of the cell's, and shows it as
    large as it is in the picture. `jitter`: how differently the two are tinted (None: 0.3 to 0.8). `whole`: all of
    the picture in its own shape, not a square of it."""
    n = chosen("n", n, difficulty, GRIDS, (2, 6))
    part = knob("part", part, difficulty, 0.9, 0.6, (0.2, 1))
    jitter = knob("jitter", jitter, difficulty, 0.3, 0.8, (0, 1))
    row, column = divmod(int(rng.integers(n * n)), n)
    for _ in range(TRIES):
        i = draw(rng, images)[0]
        picture = images.picture(i)
        box, cut = _places(rng, picture, n, row, column, part, shape, whole)
        size = fit(picture.size, images.side) if whole else (images.side, images.side)
        first = render(picture, box, size)
        view = _view(picture, first, box, cut, shape)
        if not plain(view) and not _elsewhere(picture, box, cut, n, row, column):
            break
    else:
        raise unsuitable("ssl/position", images, "plain, or with parts that look the same")
    answer = WORDS[2 * row + column] if n == 2 else f"row {row + 1}, column {column + 1}"
    how = "top left, top right, bottom left or bottom right" if n == 2 else 'like "row 1, column 2"'
    where = "quarter" if n == 2 else f"cell of a grid of {n} rows and {n} columns"
    return Asked(
        images=finish(rng, [tint(rng, one, jitter) for one in (first, view)]),
        question=f"The second picture was cut out of the first. From which {where}? Answer {how}.",
        answer=answer,
        said=answer,
        thought=f"It is from {answer}." if n > 2 else f"It is from the {answer}.",
        difficulty=difficulty,
        meta={"n": n, "chance": 1 / n**2, "pictures": [images.name(i)]},
    )


def _places(
    rng: np.random.Generator,
    picture: Image.Image,
    n: int,
    row: int,
    column: int,
    part: float,
    shape: Shape,
    whole: bool,
) -> tuple[Box, Box]:
    """(what is shown, what is cut out of it).

    Skies are above and say so by how bright and plain they are. Of `DRAWN` pairs the one is taken whose cut-out is in
    that most like one from a cell that is drawn without regard to the answer; with `whole` any.
    """
    found = []
    for k in range(1 if whole else DRAWN + 1):
        box: Box = (0, 0, *picture.size) if whole else window(rng, picture.size, least=0.7)
        share = (part, part) if shape == "square" else tuple(rng.uniform(0.2, 0.8, 2).tolist())
        cell = (row, column) if k or whole else divmod(int(rng.integers(n * n)), n)
        found.append((box, _inside(rng, box, n, *cell, (share[0], share[1]))))
    if whole:
        return found[0]
    look = np.array([_look(render(picture, cut, (24, 24))) for _, cut in found])
    return found[1 + int(np.abs(look[1:] - look[0]).sum(1).argmin())]


def _look(view: Image.Image) -> tuple[float, float, float]:
    """Detail, brightness and contrast, in like units."""
    stat = ImageStat.Stat(view.convert("L"))
    return 2 * detail(view), stat.mean[0] / 64, stat.stddev[0] / 32


def _inside(
    rng: np.random.Generator, box: Box, n: int, row: int, column: int, share: tuple[float, float]
) -> Box:
    """A box anywhere within a cell of an n x n grid over `box`, its sides `share` of the cell's."""
    w, h = (box[2] - box[0]) / n, (box[3] - box[1]) / n
    x = box[0] + (column + rng.uniform(0, 1 - share[0])) * w
    y = box[1] + (row + rng.uniform(0, 1 - share[1])) * h
    return x, y, x + share[0] * w, y + share[1] * h


def _view(picture: Image.Image, first: Image.Image, box: Box, cut: Box, shape: Shape) -> Image.Image:
    """The cut-out at half the first view's size, or ("free") the pixels that it has there."""
    if shape == "square":
        return render(picture, cut, (max(1, first.width // 2), max(1, first.height // 2)))
    scale = first.width / (box[2] - box[0]), first.height / (box[3] - box[1])
    x1, y1, x2, y2 = (round((cut[k] - box[k % 2]) * scale[k % 2]) for k in range(4))
    return first.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))


def _elsewhere(picture: Image.Image, box: Box, cut: Box, n: int, row: int, column: int) -> bool:
    """Whether the cut-out looks like a place whose middle is in another cell (grey levels, brightness apart)."""
    across = [max(PROBE, round(PROBE * (box[k + 2] - box[k]) / (cut[k + 2] - cut[k]))) for k in (0, 1)]
    field = np.asarray(render(picture, box, (across[0], across[1])).convert("L"), np.float32)
    sought = np.asarray(render(picture, cut, (PROBE, PROBE)).convert("L"), np.float32)
    places = np.lib.stride_tricks.sliding_window_view(field, (PROBE, PROBE))
    mean = places.mean((2, 3), keepdims=True)
    apart = np.abs(places - mean - (sought - sought.mean())).mean((2, 3))
    rows, columns = (((np.arange(m) + PROBE / 2) * n / (m + PROBE - 1)).astype(int) for m in apart.shape)
    other = (rows[:, None] != row) | (columns[None] != column)
    x, y = ((cut[k] - box[k]) * across[k] / (box[k + 2] - box[k]) for k in (0, 1))
    ys, xs = np.ogrid[: apart.shape[0], : apart.shape[1]]
    far = (
        np.maximum(np.abs(ys - y), np.abs(xs - x)) > PROBE / 2
    )  # what overlaps it by half shows the same things
    return bool((apart[other & far] < SAME).any())


GENERATOR = Generator(
    make=make,
    kind="text",
    chance=chance,
    about="from which part of a picture another one was cut",
    answer="top left, top right, bottom left or bottom right; in finer grids row and column, as row 2, column 3",
    rewards={"exact": 1.0, "format": 0.1},
    shortcuts="size of the cut-out: one for all; pixel-identical cut-outs: enlarged and tinted otherwise; where the "
    "lens darkens and colours fringe: a random part of the photograph is the picture, channels are tinted by "
    "themselves; plain cut-outs and such as look like another place are rejected",
    paper={"n": 2, "shape": "free", "jitter": 0.0, "whole": True},
)
