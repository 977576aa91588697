"""Square patches pasted into a picture: placing them, matching their colours, blending their borders.

Not here: pieces laid out side by side (`pieces.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fovea.tasks.chance import best_box
from fovea.tasks.scenes import generator
from fovea.tasks.ssl.spec import knob, step_of
from fovea.tasks.ssl.views import PLAIN, Box, difference, plain, render, small
from fovea.types import UserError

SMALLEST = 20
"""Side of a patch in pixels, at least."""

Square = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in pixels of the picture into which it is pasted."""


def patch_share(share: float, difficulty: float, values: Sequence[float]) -> float:
    """The option `share` as given, or for 0 by the difficulty. Raises UserError for one that cannot be."""
    return knob("share", share or step_of(difficulty, values), difficulty, 0, 0, (0.1, 0.5))


def decoys_of(decoys: int | None, difficulty: float, values: Sequence[int]) -> int:
    """The option `decoys` as given, or by the difficulty. Raises UserError for one that cannot be."""
    given = step_of(difficulty, values) if decoys is None else decoys
    return int(knob("decoys", given, difficulty, 0, 0, (0, 4)))


def patch_side(side: int, share: float) -> int:
    """Pixels of a patch of a share of the picture's side, at least `SMALLEST`."""
    return min(max(round(side * share), SMALLEST), side // 2)


def squares(rng: np.random.Generator, side: int, patch: int, n: int) -> list[Square]:
    """`n` squares of `patch` pixels that do not touch, in a picture of `side`; every arrangement equally likely.

    Raises UserError where they hardly fit.
    """
    for _ in range(200):
        free = _free(rng, side, patch, n)
        if len(free):
            return [(int(x), int(y), int(x) + patch, int(y) + patch) for x, y in free[0]]
    raise UserError(
        f"{n} patches of {patch} pixels hardly fit into a picture of {side}; give a smaller share or fewer decoys."
    )


def _free(rng: np.random.Generator, side: int, patch: int, n: int) -> np.ndarray:
    """int [m, n, 2]: upper left corners (x, y) of those of 256 random arrangements in which no squares touch."""
    corners = rng.integers(0, side - patch + 1, (256, n, 2))
    between = np.abs(corners[:, :, None] - corners[:, None]).max(3)  # [256, n, n]
    return corners[((between > patch) | np.eye(n, dtype=bool)).all((1, 2))]


def matched(patch: Image.Image, place: Image.Image, strength: float) -> Image.Image:
    """The patch with the mean colour and the contrast of `place`, by `strength` 0 to 1."""
    a, b = np.asarray(patch, np.float32), np.asarray(place, np.float32)
    mean_a, mean_b = a.mean((0, 1)), b.mean((0, 1))
    contrast = float(b.mean(2).std()) / max(float(a.mean(2).std()), 1.0)
    like = mean_b + (a - mean_a) * min(contrast, 2.0)
    return Image.fromarray(np.clip(a + strength * (like - a), 0, 255).astype(np.uint8))


def paste(whole: Image.Image, patch: Image.Image, at: Square, border: float) -> None:
    """Put a patch into a picture, its outer `border` (share of its side, 0 to 0.5) fading into what was there."""
    ramp = (np.arange(patch.width) + 0.5) / max(border * patch.width, 0.5)
    edge = np.minimum(np.minimum(ramp, ramp[::-1]), 1)
    mask = Image.fromarray((np.minimum(edge[:, None], edge[None]) * 255).astype(np.uint8))
    whole.paste(patch, at[:2], mask)


def beside(
    rng: np.random.Generator, host: Image.Image, box: Box, spot: Square, scale: float, shift: float
) -> Image.Image:
    """What the host shows `shift` of a patch's side beside a spot, rendered as the foreign patch is: of four
    directions that in which the border fits worst, as a foreign one fits badly everywhere."""
    width = spot[2] - spot[0]
    side = width * scale
    corner = np.array([box[0] + spot[0] * scale, box[1] + spot[1] * scale])
    here = render(host, (corner[0], corner[1], corner[0] + side, corner[1] + side), (width, width))
    found: list[tuple[float, Image.Image]] = []
    for angle in rng.uniform(0, 2 * np.pi, 4):
        x, y = corner + shift * side * np.array([np.cos(angle), np.sin(angle)])
        x, y = float(np.clip(x, 0, host.width - side)), float(np.clip(y, 0, host.height - side))
        patch = render(host, (x, y, x + side, y + side), (width, width))
        found.append((_rim(patch, here), patch))
    return max(found, key=lambda one: one[0])[1]


def _rim(patch: Image.Image, place: Image.Image) -> float:
    """Mean difference of a patch with the colours of `place` along its border, in grey levels."""
    apart = np.abs(small(matched(patch, place, 1.0)) - small(place))
    apart[2:-2, 2:-2] = np.nan
    return float(np.nanmean(apart))


def busy(view: Image.Image) -> bool:
    """Whether a view is not plain and shows something in at least three of its quarters."""
    levels = np.asarray(view.convert("L"), np.float32)
    h, w = levels.shape[0] // 2, levels.shape[1] // 2
    quarters = (levels[:h, :w], levels[:h, w:], levels[h:, :w], levels[h:, w:])
    return not plain(view) and sum(float(one.std()) >= PLAIN / 2 for one in quarters) >= 3


def misfit(patch: Image.Image, place: Image.Image) -> float:
    """How badly a patch with the colours of `place` fits there, in grey levels: the smaller of the mean difference
    inside and of that along the border."""
    return min(difference(matched(patch, place, 1.0), place), _rim(patch, place))


def _arrangements(share: float, n: int) -> np.ndarray:
    """float [512, n, 2]: corners as `squares` draws them, in shares of the side."""
    rng, side = generator("blind", n), 1000
    patch, found, m = round(side * share), [], 0
    for _ in range(2000):
        found.append(_free(rng, side, patch, n))
        m += len(found[-1])
        if m >= 512:
            break
    return np.concatenate(found)[:512] / side


@functools.lru_cache(maxsize=256)
def blind_one(share: float, n: int) -> float:
    """Share of problems in which one constant box has IoU > 0.5 with the first of `n` squares. Monte Carlo."""
    corner = _arrangements(share, n)[:, 0]
    return best_box(np.concatenate([corner, corner + share], 1)) if len(corner) else 0.0


@functools.lru_cache(maxsize=256)
def blind_two(share: float, n: int) -> float:
    """Share of problems in which one constant pair of boxes has IoU > 0.5 with the first two of `n` squares, the
    best of 512 pairs that occur. Monte Carlo."""
    corner = _arrangements(share, n)[:, :2]

    def hits(a: int, b: int) -> np.ndarray:
        over = np.clip(share - np.abs(corner[:, None, a] - corner[None, :, b]), 0, None).prod(2)
        return np.asarray(3 * over > 2 * share**2)

    right = (hits(0, 0) & hits(1, 1)) | (hits(0, 1) & hits(1, 0))
    return float((right.sum(1) - 1).max() / (len(right) - 1)) if len(right) > 1 else 0.0  # not itself
