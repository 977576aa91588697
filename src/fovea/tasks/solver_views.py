"""What the low-level solver sees of the pixels: of one view, of two, of a grid of cells. No problems here.

Numbers that say where in a view something lies, or how like two views are there, are marked as coarse: who solves a
question by these alone has looked, if only at a thumbnail. Deliberately not here: matching across scales or turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

IDENTICAL = 0.97, 4.0
"""From this correlation of grey levels, up to this mean difference of pixels, two views are the same pixels after
another compression."""
MATCH_SIDE = 128
"""Views are reduced by a whole factor under this side before one is sought in another."""
EDGE = 32
"""Samples of a border."""
PLACES = (2, 3, 4)
"""Grids whose cells' mean colours are compared with a whole other picture's."""
CELLS = 32
"""Cells a side of the maps in which boxes are sought."""

# --- one view ---------------------------------------------------------------------------------------------

OWN = 6 + 24 + 48 + 20 + 2
"""Numbers of one view; the last two are the place of a part."""
_GRID = slice(30, 78)
_HISTOGRAM = slice(6, 30)
_SHARP = 80


def own_numbers(pixels: np.ndarray) -> np.ndarray:
    """Channel means and deviations, histogram (8 bins a channel), 4 x 4 mean colours, then `_texture`."""
    bins = (pixels.reshape(-1, 3) / 32).astype(np.int64).clip(0, 7) + 8 * np.arange(3)
    histogram = np.bincount(bins.ravel(), minlength=24) / (len(bins) or 1)
    grid = _means(pixels, 4).ravel()
    found = [pixels.mean((0, 1)), pixels.std((0, 1)), histogram, grid, _texture(pixels)]
    return np.concatenate(found).astype(np.float32)


def _means(pixels: np.ndarray, n: int) -> np.ndarray:
    """Mean colours of an n x n grid, float32 [n, n, 3] (or [n, n] of grey); repeats pixels of smaller views."""
    rows, columns = (np.linspace(0, size, n + 1).astype(int)[:-1] for size in pixels.shape[:2])
    if min(pixels.shape[:2]) < n:
        return np.asarray(pixels[rows][:, columns])
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, 0), columns, 1)
    heights, widths = (np.diff([*starts, size]) for starts, size in zip((rows, columns), pixels.shape[:2]))
    area = np.outer(heights, widths)
    return np.asarray(sums / (area[..., None] if pixels.ndim == 3 else area))


def _texture(pixels: np.ndarray) -> list[float]:
    """Gradient energy (x, y), sharpness, JPEG grid (x, y), dark shares of the whole, the corners and the borders,
    contrast of rim and centre, saturation, noise of the channels."""
    grey = pixels.mean(2)
    dx, dy = (np.abs(np.diff(grey, axis=axis)) for axis in (1, 0))
    if min(grey.shape) < 4:
        return [0.0] * 20
    laplace = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    blocks = []
    for steps in (dx.mean(0), dy.mean(1)):
        on = steps[7::8].mean() if len(steps) > 7 else steps.mean()
        blocks.append(float(on - steps.mean()))
    dark = pixels.max(2) < 12
    h, w = max(1, grey.shape[0] // 8), max(1, grey.shape[1] // 8)
    corners = [dark[:h, :w], dark[:h, -w:], dark[-h:, :w], dark[-h:, -w:]]
    rims = [dark[:2], dark[-2:], dark[:, :2], dark[:, -2:]]
    inner = grey[h:-h, w:-w].mean() if min(grey.shape) > 2 * max(h, w) else grey.mean()
    smooth = [float(np.log1p(np.square(np.diff(grey[::4, ::4], axis=axis)).mean())) for axis in (0, 1)]
    return [
        *(float(np.log1p(np.square(d).mean())) for d in (dx, dy)),
        float(np.log1p(laplace.var())),
        *blocks,
        float(dark.mean()),
        *(float(part.mean()) for part in corners + rims),
        float(grey.mean() - inner),
        float((pixels.max(2) - pixels.min(2)).mean()),
        *smooth,
        float(np.abs(np.diff(pixels[..., 0] - pixels[..., 2], axis=1)).mean()),
        float((grey > 250).mean()),
    ]


# --- two views --------------------------------------------------------------------------------------------

PAIR = 6 + 14 + 3
"""Numbers of two views: `_edges`, then `_alike`, `match` and `_fits`."""
RIGHT, DOWN, MATCH = slice(0, 3), slice(3, 6), slice(15, 20)
"""Where the numbers lie that say whether b goes on to the right of a, or below; and `match`."""
_SAME = 14
_THUMBNAIL = slice(10, 13)


def pair_numbers(pixels: Sequence[np.ndarray], own: np.ndarray, whole: int) -> np.ndarray:
    """float32 [V, V, PAIR]. The first `whole` views are pictures: only these are sought in each other."""
    n = len(pixels)
    found = np.zeros((n, n, PAIR), np.float32)
    if n < 2:
        return found
    found[..., :6] = _edges(pixels)
    found[..., 6:15] = _alike(pixels, own)
    holes = [_hole(array) for array in pixels[:whole]]
    for a, b in itertools.permutations(range(whole), 2):
        found[a, b, MATCH] = match(pixels[a], pixels[b])
        found[a, b, 20:] = _fits(pixels[a], holes[a], pixels[b])
    found[np.arange(n), np.arange(n)] = 0.0
    return found


def _edges(pixels: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [V, V, 6]: does b go on to the right of a: mean difference of the two border columns, of b's and a's
    continued by its slope, 1 - correlation; then the same of b below a."""
    found = []
    for axis in (1, 0):
        ends = [_border(array, axis, (-1, -2)) for array in pixels]
        starts = [_border(array, axis, (0, 1)) for array in pixels]
        last, before, first = (
            np.stack([e[0] for e in ends]),
            np.stack([e[1] for e in ends]),
            np.stack([s[0] for s in starts]),
        )  # [V, L, 3] each
        plain = np.abs(last[:, None] - first[None]).mean((2, 3))
        slope = np.abs(2 * last[:, None] - before[:, None] - first[None]).mean((2, 3))
        flat_a, flat_b = ((x - x.mean(1, keepdims=True)).reshape(len(x), -1) for x in (last, first))
        size = np.linalg.norm(flat_a, axis=1)[:, None] * np.linalg.norm(flat_b, axis=1)[None] + 1e-3
        found += [plain, slope, 1 - flat_a @ flat_b.T / size]
    return np.stack(found, -1)


def _border(pixels: np.ndarray, axis: int, places: tuple[int, int]) -> list[np.ndarray]:
    """The outermost and the next row or column, resampled to EDGE values, float [EDGE, 3] each."""
    size = pixels.shape[axis]
    lines = [np.take(pixels, place if size > 1 else 0, axis) for place in places]
    if len(lines[0]) % EDGE == 0 and len(lines[0]) <= 4 * EDGE:
        step = len(lines[0]) // EDGE
        return [line[:: max(1, step)] for line in lines]
    at = np.linspace(0, len(lines[0]) - 1, EDGE).round().astype(int)
    return [line[at] for line in lines]


def _hole(pixels: np.ndarray) -> tuple[int, int, int, int] | None:
    """(x1, y1, x2, y2) of an evenly grey square of at least a sixth of the sides; None: there is none."""
    grey = np.abs(pixels - 128).max(2) < 10
    rows, columns = (np.flatnonzero(grey.mean(axis) > 0.15) for axis in (1, 0))
    if len(rows) < pixels.shape[0] / 6 or len(columns) < pixels.shape[1] / 6:
        return None
    x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return (x1, y1, x2, y2) if grey[y1:y2, x1:x2].mean() > 0.9 else None


def _fits(a: np.ndarray, hole: tuple[int, int, int, int] | None, b: np.ndarray) -> tuple[float, ...]:
    """How b's border goes on in what is around a's hole: difference of the lines, of their means, 1 - correlation.
    Zeros without a hole."""
    if hole is None:
        return 0.0, 0.0, 0.0
    x1, y1, x2, y2 = (int(v) for v in hole)
    height, width = a.shape[:2]
    inner, outer = [], []
    for there, outside, inside in (
        (y1 > 2, a[max(0, y1 - 2), x1:x2], b[0]),
        (y2 < height - 2, a[min(height - 1, y2 + 1), x1:x2], b[-1]),
        (x1 > 2, a[y1:y2, max(0, x1 - 2)], b[:, 0]),
        (x2 < width - 2, a[y1:y2, min(width - 1, x2 + 1)], b[:, -1]),
    ):
        if there:
            outer.append(outside[np.linspace(0, len(outside) - 1, EDGE).astype(int)])
            inner.append(inside[np.linspace(0, len(inside) - 1, EDGE).astype(int)])
    if not inner:
        return 0.0, 0.0, 0.0
    one, two = np.concatenate(inner), np.concatenate(outer)
    flat_one, flat_two = ((v - v.mean(0)).ravel() for v in (one, two))
    size = float(np.linalg.norm(flat_one) * np.linalg.norm(flat_two)) + 1e-3
    apart = float(np.abs(one.mean(0) - two.mean(0)).mean())
    return float(np.abs(one - two).mean()), apart, 1 - float(flat_one @ flat_two) / size


def _alike(pixels: Sequence[np.ndarray], own: np.ndarray) -> np.ndarray:
    """float32 [V, V, 9], how like two views are: mean colour (signed brightness, distance), deviation, histogram, grid
    of colours, 8 x 8 grey (correlation, difference), sharpness, mean difference of the pixels (-1: of other sizes)."""
    small = np.array([_means(array.mean(2), 8).ravel() for array in pixels])
    small -= small.mean(1, keepdims=True)
    size = np.linalg.norm(small, axis=1)
    apart = own[:, None] - own[None]  # [V, V, OWN]
    away = np.abs(apart)
    same = np.full((len(pixels), len(pixels)), -1.0)
    for a, b in itertools.combinations(range(len(pixels)), 2):
        if pixels[a].shape == pixels[b].shape:
            same[a, b] = same[b, a] = np.abs(pixels[a] - pixels[b]).mean()
    return np.stack(
        [
            apart[..., :3].mean(2),
            away[..., :3].mean(2),
            away[..., 3:6].mean(2),
            away[..., _HISTOGRAM].sum(2),
            away[..., _GRID].mean(2),
            small @ small.T / (np.outer(size, size) + 1e-3),
            np.abs(small[:, None] - small[None]).mean(2),
            apart[..., _SHARP],
            same,
        ],
        -1,
    )


def place_numbers(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far b's mean colour is from that of each cell of a, the cells of each grid of `PLACES`."""
    mean = b.mean((0, 1))
    return np.concatenate([np.abs(_means(a, n) - mean).mean(2).ravel() for n in PLACES])


def match(a: np.ndarray, b: np.ndarray) -> tuple[float, ...]:
    """Where the smaller view b lies in a pixel by pixel: the best normalised correlation of grey levels at scale 1, and
    b's box there in shares of a's sides (x1, y1, x2, y2). Zeros where b is not smaller."""
    factor = max(1, -(-max(a.shape[:2]) // MATCH_SIDE))
    big, tile = (x.mean(2)[::factor, ::factor] for x in (a, b))
    if not (tile.shape[0] < big.shape[0] and tile.shape[1] < big.shape[1] and min(tile.shape) > 3):
        return 0.0, 0.0, 0.0, 0.0, 0.0
    (height, width), (h, w) = big.shape, tile.shape
    tile = tile - tile.mean()
    shape = (height, width)
    spectrum = np.fft.rfft2(big, shape) * np.conj(np.fft.rfft2(tile, shape))
    over = np.fft.irfft2(spectrum, shape)[: height - h + 1, : width - w + 1]
    sums = [
        np.pad(x.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        for x in (big.astype(np.float64), big.astype(float) ** 2)
    ]
    first, second = (s[h:, w:] - s[:-h, w:] - s[h:, :-w] + s[:-h, :-w] for s in sums)
    spread = np.sqrt(np.clip(second - first**2 / (h * w), 1e-3, None))
    score = over / (spread * (np.linalg.norm(tile) + 1e-3))
    y, x = np.unravel_index(int(score.argmax()), score.shape)
    return float(score[y, x]), x / width, y / height, (x + w) / width, (y + h) / height


# --- cells ------------------------------------------------------------------------------------------------

LAYERS = 7
"""Of the maps: mean red, green, blue, deviation of grey, mean step along x, along y, mean second difference."""


def maps(pixels: np.ndarray) -> np.ndarray:
    """float16 [LAYERS, CELLS, CELLS]."""
    grey = pixels.mean(2)
    steps = [np.abs(np.diff(grey, axis=axis, prepend=np.take(grey, [0], axis))) for axis in (1, 0)]
    second = np.zeros_like(grey)
    second[1:-1, 1:-1] = np.abs(
        4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    )
    stack = np.stack([*np.moveaxis(pixels, 2, 0), grey**2, *steps, second], -1)
    layers = np.stack([_means(layer, CELLS) for layer in np.moveaxis(stack, 2, 0)])
    layers[3] = np.sqrt(np.clip(layers[3] - layers[:3].mean(0) ** 2, 0, None))
    return layers.astype(np.float16)


# --- without the coarse ones ------------------------------------------------------------------------------


def without_coarse_own(own: np.ndarray) -> np.ndarray:
    """A copy of numbers of views [..., OWN] without where colours lie."""
    found = own.copy()
    found[..., _GRID] = 0.0
    return found


def without_coarse_pairs(pairs: np.ndarray) -> np.ndarray:
    """A copy of numbers of pairs [..., PAIR] without thumbnails; of matches only those of identical pixels."""
    found = pairs.copy()
    found[..., _THUMBNAIL] = 0.0
    same = pairs[..., _SAME]
    found[..., _SAME] = (same >= 0) & (same < IDENTICAL[1])
    found[..., MATCH] *= pairs[..., MATCH][..., :1] >= IDENTICAL[0]
    return found
