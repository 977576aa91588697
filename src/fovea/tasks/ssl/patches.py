"""Square patches pasted into a picture: placing them, matching their colours, blending their borders.

Not here: pieces laid out side by side (`pieces.py`).
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from fovea.tasks.chance import best_box
from fovea.tasks.scenes import generator
from fovea.tasks.ssl.views import Box, render

SMALLEST = 20
"""Side of a patch in pixels, at least."""

Square = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in pixels of the picture into which it is pasted."""


def patch_side(side: int, share: float) -> int:
    """Pixels of a patch of a share of the picture's side."""
    return min(max(round(side * share), SMALLEST), side // 2)


def squares(rng: np.random.Generator, side: int, patch: int, n: int) -> list[Square]:
    """`n` squares of `patch` pixels that do not touch, in a picture of `side`; every arrangement equally likely.

    Raises ValueError where they hardly fit.
    """
    for _ in range(200):
        corners = rng.integers(0, side - patch + 1, (256, n, 2))
        between = np.abs(corners[:, :, None] - corners[:, None]).max(3)  # [256, n, n]
        apart = (between > patch) | np.eye(n, dtype=bool)
        free = np.flatnonzero(apart.all((1, 2)))
        if len(free):
            return [(int(x), int(y), int(x) + patch, int(y) + patch) for x, y in corners[free[0]]]
    raise ValueError(f"{n} patches of {patch} pixels hardly fit into {side}.")


def matched(patch: Image.Image, place: Image.Image, strength: float) -> Image.Image:
    """The patch with the mean colour and the contrast of `place`, by `strength` 0 to 1."""
    a, b = np.asarray(patch, np.float32), np.asarray(place, np.float32)
    mean_a, mean_b = a.mean((0, 1)), b.mean((0, 1))
    contrast = float(b.mean(2).std()) / max(float(a.mean(2).std()), 1.0)
    like = mean_b + (a - mean_a) * min(contrast, 4.0)
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
    """What the host shows `shift` of a patch's side beside a spot, rendered as the foreign patch is."""
    width = spot[2] - spot[0]
    angle = rng.uniform(0, 2 * np.pi)
    x = box[0] + (spot[0] + shift * width * np.cos(angle)) * scale
    y = box[1] + (spot[1] + shift * width * np.sin(angle)) * scale
    side = width * scale
    x, y = float(np.clip(x, 0, host.width - side)), float(np.clip(y, 0, host.height - side))
    return render(host, (x, y, x + side, y + side), (width, width))


@functools.lru_cache(maxsize=256)
def blind_one(share: float, n: int) -> float:
    """Share of problems in which one constant box has IoU > 0.5 with the first of `n` squares. Monte Carlo."""
    rng = generator("blind", n)
    found = [squares(rng, 1000, round(1000 * share), n)[0] for _ in range(512)]
    return best_box(np.array(found) / 1000)


@functools.lru_cache(maxsize=256)
def blind_two(share: float, n: int) -> float:
    """Share of problems in which one constant pair of boxes has IoU > 0.5 with the first two of `n` squares, the
    best of 512 pairs that occur. Monte Carlo."""
    rng = generator("blind", n)
    p = round(1000 * share)
    corner = np.array([squares(rng, 1000, p, n)[:2] for _ in range(512)], float)[:, :, :2]

    def hits(a: int, b: int) -> np.ndarray:
        over = np.clip(p - np.abs(corner[:, None, a] - corner[None, :, b]), 0, None).prod(2)
        return np.asarray(3 * over > 2 * p * p)

    right = (hits(0, 0) & hits(1, 1)) | (hits(0, 1) & hits(1, 0))
    return float((right.sum(1) - 1).max() / (len(right) - 1))  # a pair does not count for itself
