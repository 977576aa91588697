"""Pieces of a picture on one board: cutting them with hidden gaps, laying them out, numbering them; whether edges
say that their order is the only one.

Not here: patches that are pasted into a picture (`patches.py`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fovea.tasks.ssl.views import SAME, Box, difference, plain, render

SMALLEST = 20
"""Shortest side of a piece in pixels where the difficulty chooses how many there are."""
NUMBERED = 56
"""Shortest side of a piece in pixels that has room for its number; smaller ones are numbered by their place."""
CLEAR = 12.0
"""Grey levels by which the seams of every other order must be worse, summed over the seams."""
GAP = (0.2, 0.5, (0.0, 0.5))
"""Share of a piece's sides that is hidden: easiest, hardest, what the option takes. With 0.04 to 0.2 a low-level solver
put the tiles of `ssl/tiles` in order by their borders in 31 of 100, at difficulty 0.4."""
WHITE, GREY = (255, 255, 255), (128, 128, 128)
"""Between the pieces, and of a masked one."""
_PROBE = 24  # pixels of a piece whose seams are compared


def line(side: int) -> int:
    """Pixels between two pieces on a board of `side` pixels."""
    return max(2, side // 64)


def piece(side: int, n: int) -> int:
    """Pixels of a piece where `n` of them lie along a board of `side` pixels."""
    return (side - (n - 1) * line(side)) // n


def numbered(side: int, columns: int, rows: int) -> bool:
    """Whether the pieces have room for a printed number."""
    return piece(side, max(columns, rows)) >= NUMBERED


def fitting(values: Sequence[int], side: int) -> list[int]:
    """Numbers of pieces along a side, those capped of which a piece would be smaller than `SMALLEST` pixels."""
    most = max((n for n in values if piece(side, n) >= SMALLEST), default=values[0])
    return [min(n, most) for n in values]


def cells(box: Box, columns: int, rows: int) -> list[Box]:
    """The parts of a box, row by row."""
    x, y, w, h = box[0], box[1], (box[2] - box[0]) / columns, (box[3] - box[1]) / rows
    return [
        (x + c * w, y + r * h, x + (c + 1) * w, y + (r + 1) * h) for r in range(rows) for c in range(columns)
    ]


def cut(
    rng: np.random.Generator, picture: Image.Image, cell: Box, size: tuple[int, int], gap: float
) -> Image.Image:
    """A part of a cell, its sides 1 - `gap` of the cell's and its place random: what lies between two pieces is
    not shown, so that edges do not meet (Noroozi and Favaro 2016)."""
    w, h = cell[2] - cell[0], cell[3] - cell[1]
    x, y = cell[0] + rng.uniform(0, gap) * w, cell[1] + rng.uniform(0, gap) * h
    return render(picture, (x, y, x + w * (1 - gap), y + h * (1 - gap)), size)


def board(pieces: Sequence[Image.Image], columns: int, side: int) -> Image.Image:
    """Equal pieces row by row on a white square of `side` pixels, each with its number where there is room."""
    rows, between = len(pieces) // columns, line(side)
    w, h = pieces[0].size
    left = (side - columns * w - (columns - 1) * between) // 2
    top = (side - rows * h - (rows - 1) * between) // 2
    whole = Image.new("RGB", (side, side), WHITE)
    for k, one in enumerate(pieces):
        at = left + k % columns * (w + between), top + k // columns * (h + between)
        whole.paste(one, at)
        if numbered(side, columns, rows):
            _number(whole, k + 1, at, max(16, side // 18))
    return whole


def _number(whole: Image.Image, number: int, at: tuple[int, int], size: int) -> None:
    """A white number on a black square at the upper left corner of a piece."""
    draw = ImageDraw.Draw(whole)
    draw.rectangle((*at, at[0] + size - 1, at[1] + size - 1), fill=(0, 0, 0))
    font = ImageFont.load_default(size * 0.8)
    draw.text((at[0] + size / 2, at[1] + size / 2), str(number), fill=WHITE, font=font, anchor="mm")


# --- is there only one order? -----------------------------------------------------------------------------


@functools.cache
def _orders(n: int) -> np.ndarray:
    """int [m, n]: all other orders of up to 6 pieces; of more those with two pieces exchanged."""
    if n <= 6:
        return np.array(list(itertools.permutations(range(n)))[1:])
    swapped = np.tile(np.arange(n), (n * (n - 1) // 2, 1))
    for row, (a, b) in zip(swapped, itertools.combinations(range(n), 2)):
        row[[a, b]] = b, a
    return swapped


def _probe(picture: Image.Image, box: Box, columns: int, rows: int) -> np.ndarray:
    """float32 [columns * rows, p, p, 3]: the cells, small."""
    p = _PROBE
    pixels = np.asarray(render(picture, box, (columns * p, rows * p)), np.float32)
    return pixels.reshape(rows, p, columns, p, 3).swapaxes(1, 2).reshape(-1, p, p, 3)


def in_one_order(picture: Image.Image, box: Box, columns: int, rows: int) -> bool:
    """Whether no other order of the cells has seams nearly as good, and no two cells look alike or show nothing."""
    found = _probe(picture, box, columns, rows)
    views = [Image.fromarray(one.astype(np.uint8)) for one in found]
    if any(plain(view) for view in views):
        return False
    if any(difference(a, b) < SAME for a, b in itertools.combinations(views, 2)):
        return False
    beside = np.abs(found[:, None, :, -1] - found[None, :, :, 0]).mean((2, 3))  # [i, j]: i left of j
    below = np.abs(found[:, None, -1] - found[None, :, 0]).mean((2, 3))  # [i, j]: i above j

    def seams(order_M: np.ndarray) -> np.ndarray:
        grid = order_M.reshape(-1, rows, columns)
        across = beside[grid[:, :, :-1], grid[:, :, 1:]].sum((1, 2))
        return np.asarray(across + below[grid[:, :-1], grid[:, 1:]].sum((1, 2)))

    n = columns * rows
    return bool(seams(_orders(n)).min() >= seams(np.arange(n)[None])[0] + CLEAR)


def flip_shows(picture: Image.Image, box: Box, n: int, k: int, upright: bool) -> bool:
    """Whether cell `k` of an n x n grid looks otherwise when flipped (upside down if `upright`) and then no longer
    fits to its neighbours."""
    found = _probe(picture, box, n, n)
    turned = found[k, ::-1] if upright else found[k, :, ::-1]
    before, after = (Image.fromarray(one.astype(np.uint8)) for one in (found[k], turned))
    if plain(before) or difference(before, after) < 2 * SAME:
        return False
    seams = 0.0
    for step, there, edge in ((-1, k % n > 0, (slice(None), 0)), (1, k % n < n - 1, (slice(None), -1))):
        if there:
            beside = found[k + step][:, -1 if step < 0 else 0]
            seams += float(np.abs(turned[edge] - beside).mean() - np.abs(found[k][edge] - beside).mean())
    for step, there, row in ((-n, k >= n, 0), (n, k < n * (n - 1), -1)):
        if there:
            beside = found[k + step][-1 if step < 0 else 0]
            seams += float(np.abs(turned[row] - beside).mean() - np.abs(found[k][row] - beside).mean())
    return seams >= 2 * CLEAR
