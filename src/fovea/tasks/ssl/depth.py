"""`ssl/depth`: marked points from the nearest to the farthest, of a picture whose pool supplies a depth map.

Visual Jigsaw (arXiv:2509.25190) orders 6 points of ScanNet at least 40 pixels and 0.2 m apart; Spatial-SSRL
(arXiv:2510.27606) orders 3 regions whose normalised depths differ by at least 0.05, each spanning at most 0.15. Here
depth has no unit: differences are shares of the view's range (2nd to 98th percentile).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.geometry import mark, quad, radius, room, scattered, warp
from fovea.tasks.ssl.spec import TRIES, Generator, knob, step_of, unsuitable
from fovea.tasks.ssl.views import Box, draw, finish, tint, window

APART = (0.25, 0.05, (0.02, 0.3))
"""Between the depths of two points, as a share of the view's range: easiest, hardest, allowed."""
DISTANCE = 0.15
"""Between two points, as a share of the view's side (Visual Jigsaw: 40 pixels)."""
FLAT = 0.15
"""Most that the depth may vary under a mark, and not more than half of what two points differ by."""
EDGE = 0.08
MANY = 80
PROBED = 64
"""Cells a side, about, whose depths give a view's range: all of them, half a megapixel, took half of the time."""


def chance(
    difficulty: float, *, n: Literal[0, 2, 3, 4] = 0, apart: float | None = None, jitter: float = 0.5
) -> float:
    """One of the n! orders."""
    return 1 / math.factorial(n or step_of(difficulty, (2, 3, 4)))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: Literal[0, 2, 3, 4] = 0,
    apart: float | None = None,
    jitter: float = 0.5,
) -> Asked:
    """`n`: points (0: by the difficulty). `apart`: least difference of two points' depths as a share of the view's
    range (None: by the difficulty). `jitter`: strength of the tint."""
    count = n or step_of(difficulty, (2, 3, 4))
    least = knob("apart", apart, difficulty, *APART)
    side, heights = images.side, rng.permutation(count)
    for trial in range(TRIES):
        number = draw(rng, images)[0]
        depth = images.depth(number)
        if depth is None:
            continue
        picture = images.picture(number)
        box = window(rng, picture.size, least=0.7)
        # Where this pool has no such points, those of any heights are better than none.
        found = _points(rng, depth, box, count, least, heights if trial < TRIES // 2 else None, side)
        if found is not None:
            break
    else:
        raise unsuitable("ssl/depth", images, "no depth map, or too flat")
    order = rng.permutation(count)  # number of a mark → its rank in depth
    answer = [int(place) + 1 for place in np.argsort(order)]
    view = tint(rng, warp(picture, quad(box), (side, side)), knob("jitter", jitter, difficulty, 0, 0, (0, 1)))
    marked = mark(view, found[order] * side, "1234"[:count])
    return Asked(
        images=finish(rng, [marked]),
        question=f"Order the marked points 1 to {count} from the nearest to the camera to the farthest.",
        answer=answer,
        said=", ".join(map(str, answer)),
        difficulty=difficulty,
        meta={"points": found[order].tolist()},
    )


def _points(
    rng: np.random.Generator,
    depth: np.ndarray,
    box: Box,
    n: int,
    least: float,
    heights: np.ndarray | None,
    side: int,
) -> np.ndarray | None:
    """Points [n, 2] of the view's unit square, nearest first; None if there are none.

    `heights`: the wanted order of their heights, a permutation that is drawn apart from the depths, so that lower
    in the picture is nearer as often as farther.
    """
    x1, y1, x2, y2 = box
    view = depth[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)]
    every = max(1, min(view.shape) // PROBED)
    probe = view[::every, ::every]
    if np.isnan(probe).all():
        return None
    low, high = np.nanpercentile(probe, (2, 98))
    if not high > low:
        return None
    distance = max(DISTANCE, room(side))
    points = rng.uniform(EDGE, 1 - EDGE, (MANY, 2))
    x, y = (points * (x2 - x1) + (x1, y1)).T
    reach = np.linspace(-1, 1, 5) * radius(side) / side * (x2 - x1)
    rows = np.clip(y[:, None, None] + reach[:, None], 0, depth.shape[0] - 1).astype(int)
    columns = np.clip(x[:, None, None] + reach, 0, depth.shape[1] - 1).astype(int)
    under = (depth[rows, columns] - low) / (high - low)  # [MANY, 5, 5], NaN where unknown
    flat = under.max((1, 2)) - under.min((1, 2)) <= min(FLAT, least / 2)  # False for NaN
    points, level = points[flat], under[:, 2, 2][flat]
    drawn = scattered(rng, points, n, distance, 400)  # [draws, n]
    ranked = np.take_along_axis(drawn, np.argsort(level[drawn], axis=1), axis=1)
    fits = (np.diff(level[ranked], axis=1) >= least).all(1)
    if heights is not None:
        fits &= (np.argsort(points[ranked, 1], axis=1) == heights).all(1)
    return np.asarray(points[ranked[fits.argmax()]]) if fits.any() else None


GENERATOR = Generator(
    make=make,
    kind="order",
    chance=chance,
    about="order marked points from the nearest to the farthest (needs depth maps)",
    answer="the points' numbers, nearest first, with commas",
    rewards={"order": 1.0, "format": 0.1},
    reward_options={"order": {"partial": True, "gamma": 0.2}},
    shortcuts="what is lower in a picture is mostly nearer: every order of heights is equally likely for an order of "
    "depths, as far as the pool has such points; haze and colours of the sky remain",
    needs="depth",
)
