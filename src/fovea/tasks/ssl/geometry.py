"""Views under a known perspective, and points marked in them: what several generators share. No questions here.

A `Quad` says which part of a picture a view shows: the places in the picture that become the view's corners.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fovea.tasks.ssl.views import SAME, Box

Quad = np.ndarray
"""float64 [4, 2]: x, y in pixels of the picture of the view's top left, top right, bottom right, bottom left."""

CELLS = 48
"""Pixels a side of the small views at which pictures are compared."""
UNIT: Quad = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
"""Corners of the unit square."""


def quad(box: Box, turn: float = 0.0) -> Quad:
    """The box's corners; with `turn` in degrees counter-clockwise (-45 to 45), those of the largest turned rectangle
    in the box, which touches all four sides."""
    x1, y1, x2, y2 = box
    angle = math.radians(turn)
    c, s = math.cos(angle), math.sin(angle)
    corners = (UNIT - 0.5) @ np.array([(c, -s), (s, c)]) / (c + abs(s)) + 0.5
    return np.array([x1, y1]) + corners * np.array([x2 - x1, y2 - y1])


def homography(source: Quad, target: Quad) -> np.ndarray:
    """float64 [3, 3] that takes the corners of `source` to those of `target` (homogeneous coordinates)."""
    rows = []
    for (x, y), (u, v) in zip(source, target):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    found = np.linalg.solve(np.array(rows), np.asarray(target, np.float64).reshape(8))
    return np.append(found, 1.0).reshape(3, 3)


def mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float64 [n, 2]: the points [n, 2] under a homography."""
    found = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return np.asarray(found[:, :2] / found[:, 2:])


def within(corners: Quad, size: tuple[int, int]) -> bool:
    """Whether a quad lies in a picture of `size`."""
    return bool((corners >= 0).all() and (corners <= np.array(size)).all())


def spans(corners: Quad) -> tuple[float, float]:
    """The longer of its horizontal and of its vertical edges, in pixels."""
    across = np.linalg.norm(corners[[1, 2]] - corners[[0, 3]], axis=1)
    down = np.linalg.norm(corners[[3, 2]] - corners[[0, 1]], axis=1)
    return float(across.max()), float(down.max())


def warp(
    picture: Image.Image, corners: Quad, size: tuple[int, int], detail: int | None = None
) -> Image.Image:
    """The part of a picture at a size in pixels, scaled down without aliasing, then one bicubic resample.

    `detail`: no more than so many pixels a side are resolved; two views of different zoom are equally sharp where
    `detail` is that of the one that has fewer.
    """
    made = size if detail is None else (min(size[0], detail), min(size[1], detail))
    low = np.clip(np.floor(corners.min(0)) - 3, 0, None)
    high = np.minimum(np.ceil(corners.max(0)) + 3, picture.size)
    scale = [max(1.0, span / pixels) for span, pixels in zip(spans(corners), made)]
    reduced = [max(1, round((high[k] - low[k]) / scale[k])) for k in (0, 1)]
    part = picture.resize((reduced[0], reduced[1]), Image.Resampling.BICUBIC, box=(*low, *high))
    there = (corners - low) * (np.array(reduced) / (high - low))
    matrix = homography(UNIT * np.array(made), np.clip(there, 0, np.array(reduced) - 1e-3))
    view = part.transform(
        made, Image.Transform.PERSPECTIVE, tuple(matrix.ravel()[:8]), Image.Resampling.BICUBIC
    )
    return view if made == size else view.resize(size, Image.Resampling.BICUBIC)


def colored(view: Image.Image, model: Image.Image) -> Image.Image:
    """The view with each channel's mean and, as far as a factor of two does it, spread as in `model`."""
    levels, wanted = (np.asarray(v, np.float32) for v in (view, model))
    gain = np.clip(wanted.std((0, 1)) / np.maximum(levels.std((0, 1)), 1), 0.5, 2)
    made = (levels - levels.mean((0, 1))) * gain + wanted.mean((0, 1))
    return Image.fromarray(np.clip(made, 0, 255).astype(np.uint8))


def repeated(view: Image.Image, box: Box) -> bool:
    """Whether the part of a view of CELLS pixels a side within `box` (0 to 1) looks the same as one elsewhere, which
    it meets with IoU < 1/3. Brightness and what is finer than three pixels do not count."""
    grey = np.asarray(view.convert("L").filter(ImageFilter.BoxBlur(1)), np.float32)
    x1, y1 = int(box[0] * CELLS), int(box[1] * CELLS)
    w, h = max(4, int((box[2] - box[0]) * CELLS)), max(4, int((box[3] - box[1]) * CELLS))
    places = np.lib.stride_tricks.sliding_window_view(grey, (h, w))
    places = places - places.mean((2, 3), keepdims=True)
    truth = grey[y1 : y1 + h, x1 : x1 + w] - grey[y1 : y1 + h, x1 : x1 + w].mean()
    unlike = np.abs(places - truth).mean((2, 3))
    rows, columns = (np.arange(n) for n in (CELLS - h + 1, CELLS - w + 1))
    shared = np.clip(h - np.abs(rows - y1), 0, None)[:, None] * np.clip(w - np.abs(columns - x1), 0, None)
    far = shared < 0.5 * w * h  # of equal boxes: IoU = shared / (2 area - shared) < 1/3
    return bool((unlike[far] < max(SAME, 0.4 * float(np.abs(truth).mean()))).any())


# --- points -----------------------------------------------------------------------------------------------


def radius(side: int) -> int:
    """Of a mark's ring, in pixels of a view of `side` pixels. What is marked stays visible inside."""
    return max(3, round(side / 45))


@functools.lru_cache(maxsize=16)
def _letters(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def room(side: int) -> float:
    """Least distance of two marks as a share of the side, so that no name covers another mark."""
    return max(0.12, 14 / side)


def mark(view: Image.Image, points: np.ndarray, names: str) -> Image.Image:
    """A copy with a ring around every point [n, 2] and its name (one character, or a space for none) beside it."""
    made = view.copy()
    draw = ImageDraw.Draw(made)
    side, ring = max(view.size), radius(max(view.size))
    line, em = max(1, side // 200), max(10, side // 20)
    for (x, y), name, (u, v) in zip(
        points.tolist(), names, _beside(view.size, points, ring + 0.55 * em + line)
    ):
        for extra, ink in ((line, "black"), (0, "white")):
            reach = ring + extra
            draw.ellipse(
                (x - reach, y - reach, x + reach, y + reach), outline=ink, width=line * (1 + bool(extra))
            )
        draw.text((u, v), name, "white", _letters(em), "mm", stroke_width=line, stroke_fill="black")
    return made


def _beside(size: tuple[int, int], points: np.ndarray, reach: float) -> np.ndarray:
    """[n, 2]: where the points' names go: right, left, below or above, wherever the most room is."""
    taken: list[list[float]] = points.tolist()
    names: list[list[float]] = []
    for i, point in enumerate(points):
        places = point + reach * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
        others = np.array([*taken[:i], *taken[i + 1 :], *names]).reshape(-1, 2)
        gaps = np.linalg.norm(places[:, None] - others, axis=-1).min(1, initial=2 * reach)
        border = 1.5 * np.minimum(places, np.array(size) - places).min(1)
        names.append(places[int(np.argmax(np.minimum(gaps, border).round(3)))].tolist())
    return np.array(names)


def scattered(rng: np.random.Generator, points: np.ndarray, n: int, apart: float, tries: int) -> np.ndarray:
    """int [k, n]: of `tries` draws of `n` of the points [m, 2], those whose points are all at least `apart` from one
    another."""
    if len(points) < n:
        return np.zeros((0, n), np.int64)
    draws = rng.random((tries, len(points))).argpartition(n - 1, axis=1)[:, :n]
    draws = rng.permuted(draws, axis=1)
    chosen = points[draws]
    gaps = np.linalg.norm(chosen[:, :, None] - chosen[:, None], axis=-1)  # [tries, n, n]
    gaps[:, range(n), range(n)] = np.inf
    return np.asarray(draws[gaps.min((1, 2)) >= apart])
