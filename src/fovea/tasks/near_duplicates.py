"""Which pictures show the same photograph: resized, re-encoded or slightly cropped copies.

Two steps. A difference hash of 128 bits (is the next of 9 x 8 and 8 x 9 cells brighter?) proposes pairs; small grey
copies, laid over each other with up to 8 % of a side cut off, confirm them. A mirrored or turned copy is no
near-duplicate: it looks different to every question that is asked about it. Thresholds are our choice, measured on 388
photographs: of copies at a fifth of the size or JPEG quality 30 all are found, cut by 4 % 99 %, by 8 % around 98 %, by
8 % on two sides half; of 75,078 pairs of different photographs none.

Not here: reading pictures (`fovea.tasks.pictures`), what is done with copies (`fovea.tasks.pool_sources`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

CELLS = 32
"""Side of the small grey copy."""
BITS = 32
"""Of 128: hashes that differ by more are not compared further."""
LIKE = 0.93
"""Correlation of the small copies, best alignment, from which they are one photograph."""
FLAT = 3.0
"""Standard deviation in grey levels below which a picture has nothing to correlate; then its levels are compared."""
_BLOCK = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Print:
    """What is remembered of a picture to find its copies."""

    bits: bytes
    """The difference hash, 16 bytes."""
    cells: bytes
    """Grey levels of `CELLS` x `CELLS` cells."""
    color: tuple[int, int, int]
    """Mean red, green and blue."""

    @property
    def content(self) -> str:
        """A hexadecimal digest that a renamed copy shares."""
        return hashlib.sha256(self.bits + self.cells + bytes(self.color)).hexdigest()


def fingerprint(picture: Image.Image) -> Print:
    """Of an RGB picture of any size."""
    grey = picture.convert("L")
    across = np.diff(np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16), axis=1) > 0
    down = np.diff(np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16), axis=0) > 0
    red, green, blue = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    return Print(
        bits=np.packbits(np.concatenate([across.ravel(), down.ravel()])).tobytes(),
        cells=grey.resize((CELLS, CELLS), Image.Resampling.BOX).tobytes(),
        color=(int(red), int(green), int(blue)),
    )


def pairs(
    prints: Sequence[Print], others: Sequence[Print] | None = None, units: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """(i, j) of near-duplicates: i < j of `prints`, or i of `prints` and j of `others`. Ordered.

    `units`: for each of `prints` what it is a part of; parts of one thing are not compared (frames of a sequence).
    n² / 2 hashes are compared as one matrix product: 10,000 pictures take about a second on one core.
    """
    own = _signs(prints)
    against = own if others is None else _signs(others)
    second = prints if others is None else others
    found = []
    for start in range(0, len(prints), _BLOCK):
        first = start if others is None else 0
        # Of signs ±1 the product is 128 - 2 x the number of bits that differ.
        close = own[start : start + _BLOCK] @ against[first:].T >= 128 - 2 * BITS
        for row, column in np.argwhere(close).tolist():
            i, j = start + row, first + column
            if others is None and (i >= j or (units is not None and units[i] == units[j])):
                continue
            if same(prints[i], second[j]):
                found.append((i, j))
    return found


def same(a: Print, b: Print) -> bool:
    """Whether two pictures show one photograph, the hashes apart."""
    x, y = _levels(a), _levels(b)
    if min(x.std(), y.std()) < FLAT:
        colors = np.abs(np.subtract(a.color, b.color)).max()
        return bool(colors <= 6 and np.abs(x - y).mean() < 2 * FLAT)
    plain = _correlation(x[None], y)[0]
    if plain >= LIKE:
        return True
    if plain < 0.4:
        return False
    return bool(max(_correlation(_windows(x), y).max(), _correlation(_windows(y), x).max()) >= LIKE)


def groups(n: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `n` things the first one that it is linked with, also through others; its own number if none.

    Example: groups(4, [(1, 3), (3, 2)]) == [0, 1, 1, 1]
    """
    above = list(range(n))  # a forest: the root of a tree is its first thing

    def root(i: int) -> int:
        while above[i] != i:
            above[i] = i = above[above[i]]
        return i

    for i, j in links:
        one, other = root(i), root(j)
        above[max(one, other)] = min(one, other)
    return [root(i) for i in range(n)]


def _signs(prints: Sequence[Print]) -> np.ndarray:
    """float32 [pictures, 128]: the bits as 1 and -1."""
    packed = np.frombuffer(b"".join(one.bits for one in prints), np.uint8).reshape(len(prints), 16)
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1


def _levels(one: Print) -> np.ndarray:
    return np.frombuffer(one.cells, np.uint8).reshape(CELLS, CELLS).astype(np.float32)


@functools.cache
def _cuts() -> np.ndarray:
    """float32 [7, CELLS, CELLS]: linear maps along one side, each keeping 100, 96 or 92 % of it, at its start, middle
    or end, sampled to its whole length."""
    maps = []
    for kept, starts in ((1.0, (0.0,)), (0.96, (0.0, 0.5, 1.0)), (0.92, (0.0, 0.5, 1.0))):
        for start in starts:
            at = (np.arange(CELLS) + 0.5) * kept - 0.5 + start * CELLS * (1 - kept)
            low = np.clip(np.floor(at).astype(int), 0, CELLS - 2)
            share = np.clip(at - low, 0, 1)
            one = np.zeros((CELLS, CELLS), np.float32)
            one[np.arange(CELLS), low] = 1 - share
            one[np.arange(CELLS), low + 1] += share
            maps.append(one)
    return np.stack(maps)


def _windows(cells: np.ndarray) -> np.ndarray:
    """float32 [49, CELLS, CELLS]: parts of a small copy, each as large as the copy."""
    cuts = _cuts()
    rows = cuts @ cells
    return (rows[:, None] @ cuts.transpose(0, 2, 1)[None]).reshape(-1, CELLS, CELLS)


def _correlation(many: np.ndarray, one: np.ndarray) -> np.ndarray:
    """float32 [n]: Pearson's, of each of `many` with `one`."""
    a, b = many.reshape(len(many), -1), one.ravel()
    a, b = a - a.mean(1, keepdims=True), b - b.mean()
    return (a @ b) / np.sqrt((a * a).sum(1) * (b * b).sum() + 1e-6)
