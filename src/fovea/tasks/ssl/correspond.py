"""`ssl/correspond`: a point is marked in one view; which of the points A to D in another view is it?

SSL-R1 (arXiv:2604.20705) trains on "geometric correspondence" and gives no construction; this one is our choice: both
views are parts of one picture, linked by a known homography.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.geometry import (
    UNIT,
    Quad,
    homography,
    mapped,
    mark,
    quad,
    room,
    warp,
    within,
)
from fovea.tasks.ssl.spec import TRIES, Generator, knob, unsuitable
from fovea.tasks.ssl.views import draw, finish, tint, window

APART = (0.25, 0.18, (0.1, 0.3))
"""Between two points in the second view, as a share of its side."""
CORNERS = (0.03, 0.2, (0.0, 0.25))
"""How far a corner of the second view is moved, as a share of its side."""
TURN = (0.0, 25.0, (0.0, 40.0))
JITTER = (0.8, 1.0, (0.0, 1.0))
EDGE = 0.12
"""No point lies nearer to a view's border."""
SIDE = 64
"""Pixels a side at which points are compared."""
AROUND = 0.5
"""Weight of what is around a point against what is under its mark, where colours are compared."""
ALIKE = 7.0
"""Mean absolute difference in grey levels below which two surroundings count as the same."""
PATIENCE = 40
"""Pictures that are tried for one arrangement of the points."""
MANY, CENTRES, SETS = 400, 16, 60
"""Points, those around which others of the same colour are sought, and sets of them that are tried for each."""


def chance(
    difficulty: float,
    *,
    n: Literal[2, 3, 4, 5, 6] = 4,
    apart: float | None = None,
    corners: float | None = None,
    turn: float | None = None,
    jitter: float | None = None,
) -> float:
    return 1 / n


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: Literal[2, 3, 4, 5, 6] = 4,
    apart: float | None = None,
    corners: float | None = None,
    turn: float | None = None,
    jitter: float | None = None,
) -> Asked:
    """None: by the difficulty. `n`: points to choose from. `apart`: least distance of two of them / side (in small
    views at least 17 pixels). `corners`: most that the second view's corners are moved / side, its perspective.
    `turn`: most degrees that it is turned. `jitter`: how differently the two are tinted."""
    distance = max(room(images.side), knob("apart", apart, difficulty, *APART))
    strength = knob("jitter", jitter, difficulty, *JITTER)
    moved = knob("corners", corners, difficulty, *CORNERS)
    angle = knob("turn", turn, difficulty, *TURN)
    side, ranks = images.side, _ranks(rng, n)
    for trial in range(1, TRIES + 1):
        if trial % PATIENCE == 0:  # of some places there are few in some pools
            ranks = _ranks(rng, n)
        picture = images.picture(draw(rng, images)[0])
        one = quad(window(rng, picture.size, least=0.7, most=0.95))
        two = _second(rng, one, moved, angle)
        if not within(two, picture.size):
            continue
        link = homography(two, UNIT) @ homography(UNIT, one)  # unit square of the first view → of the second
        found = _points(rng, warp(picture, one, (SIDE, SIDE)), link, n, distance, ranks)
        if found is not None:
            break
    else:
        raise unsuitable(
            "ssl/correspond", images, "plain, or too few places that look alike at a first glance"
        )
    points, true = found
    views = [tint(rng, warp(picture, corners_, (side, side)), strength) for corners_ in (one, two)]
    names = "ABCDEF"[:n]
    marked = (
        mark(views[0], points[[true]] * side, " "),
        mark(views[1], mapped(link, points) * side, names),
    )
    return Asked(
        images=finish(rng, marked),
        question=f"A point is marked in the first picture. Which point of the second picture, {names[0]} to "
        f"{names[-1]}, is the same place?",
        answer=names[true],
        said=names[true],
        difficulty=difficulty,
        meta={"link": link.ravel().tolist(), "points": points.tolist()},
    )


def _ranks(rng: np.random.Generator, n: int) -> np.ndarray:
    """How near to the mark's place and to the middle the true point is among all: see `_points`."""
    return rng.integers((max(2, n - 1), n))


def _second(rng: np.random.Generator, one: Quad, moved: float, angle: float) -> Quad:
    """Another part of the picture, 60 to 100 % of the first view, turned and in perspective."""
    side = one[1, 0] - one[0, 0]
    scale, turn = rng.uniform(0.6, 1.0), np.radians(rng.uniform(-angle, angle))
    middle = one.mean(0) + side * rng.uniform(-0.3, 0.3, 2)
    spin = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    corners = (UNIT - 0.5 + rng.uniform(-moved, moved, (4, 2))) @ spin
    return np.asarray(middle + side * scale * corners)


def _points(
    rng: np.random.Generator, view: Image.Image, link: np.ndarray, n: int, apart: float, ranks: np.ndarray
) -> tuple[np.ndarray, int] | None:
    """Points [n, 2] of the unit square of the first view, seen in both, and which of them is asked about.

    They have nearly the same colour and different surroundings. The one that is asked about is, among all of them
    in the second view, the `ranks[0]`-nearest to where the mark is in the first one and the `ranks[1]`-nearest to
    the middle. The ranks are drawn apart: the places of marks say little.
    """
    points = rng.uniform(EDGE, 1 - EDGE, (MANY, 2))
    points = points[(np.abs(mapped(link, points) - 0.5) <= 0.5 - EDGE).all(1)]
    if len(points) < 4 * n:
        return None
    colors, patches = _looks(view, points)
    points, colors, patches = (a[patches[:, 3:12, 3:12].std((1, 2)) > 6] for a in (points, colors, patches))
    if len(points) < 4 * n:
        return None
    there = mapped(link, points)
    # Around each of some points, sets of n of those that have the nearest colours.
    centres = rng.permutation(len(points))[:CENTRES]
    alike = np.abs(colors[centres, None] - colors).sum(2).argsort(1)[:, : max(2 * n, len(points) // 10)]
    sets = rng.random((len(centres), SETS, alike.shape[1])).argpartition(n - 1, axis=2)[:, :, :n]
    sets = np.take_along_axis(alike[:, None], sets, axis=2).reshape(-1, n)
    gaps = np.linalg.norm(there[sets][:, :, None] - there[sets][:, None], axis=-1) + 9 * np.eye(n)
    sets = sets[gaps.min((1, 2)) >= apart]
    near = np.linalg.norm(
        points[sets][:, :, None] - there[sets][:, None], axis=-1
    )  # [set, asked about, candidate]
    middle = np.linalg.norm(there[sets] - 0.5, axis=-1)
    own = np.diagonal(near, axis1=1, axis2=2)[:, :, None]
    right = (near < own).sum(2) == ranks[0]
    right &= (middle[:, None] < middle[:, :, None]).sum(2) == ranks[1]
    for which, true in rng.permutation(np.argwhere(right))[:20]:
        chosen = sets[which]
        if _distinct(patches[chosen]):
            order = rng.permutation(n)
            return points[chosen[order]], int(np.flatnonzero(order == true)[0])
    return None


def _looks(view: Image.Image, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of points in a view of SIDE pixels: colours [m, 7], the mean under a mark, the mean around it and the contrast
    there; and the grey surroundings [m, 15, 15]."""
    under, around = (np.asarray(view.filter(ImageFilter.BoxBlur(r)), np.float32) for r in (1, 5))
    grey = np.pad(np.asarray(view.filter(ImageFilter.BoxBlur(0.5)).convert("L"), np.float32), 7, "edge")
    x, y = np.clip((points * SIDE).astype(int), 0, SIDE - 1).T
    reach = np.arange(15)
    patches = grey[y[:, None, None] + reach[:, None], x[:, None, None] + reach]
    contrast = patches[:, 2:13, 2:13].std((1, 2))[:, None]
    return np.concatenate([under[y, x], AROUND * around[y, x], 3 * AROUND * contrast], 1), patches


def _distinct(patches: np.ndarray) -> bool:
    """Whether no two of the surroundings [n, 15, 15] look the same in their middles, brightness apart, however one of
    them is moved by up to 3 pixels."""
    shifts = np.lib.stride_tricks.sliding_window_view(patches, (9, 9), axis=(1, 2))  # [n, 7, 7, 9, 9]
    shifts = shifts - shifts.mean((3, 4), keepdims=True)
    unlike = np.abs(shifts[:, None] - shifts[:, 3, 3][:, None, None]).mean((4, 5)).min((2, 3))
    least = np.maximum(ALIKE, 0.4 * np.abs(shifts[:, 3, 3]).mean((1, 2)))  # a share of what each shows
    return bool((unlike + 255 * np.eye(len(patches)) > least).all())


GENERATOR = Generator(
    make=make,
    kind="choice",
    chance=chance,
    about="which of the points marked in another view is the one marked in the first",
    answer="a letter",
    rewards={"choice": 1.0, "format": 0.1},
    shortcuts="the points and what is around them have nearly one colour and contrast, tints are drawn apart; the true "
    "one is as often the first, second, … nearest to the middle, and the nearest, second or third nearest to where the "
    "mark is in the first view (never the last of four, which hardly occurs: one in three by places alone); colours "
    "and contrasts in a square around each mark, learned together, still tell part of it: matching is the task",
)
