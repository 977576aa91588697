"""`ssl/flip`: is the second picture mirrored: left-right, upside down, both, or not at all?

Not among SSL4RL's tasks; Spatial-SSRL (arXiv:2510.27606) asks which patch of a picture was flipped
(`flip_patch.py`).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.spec import TRIES, Generator, knob, unsuitable, whole
from fovea.tasks.ssl.views import SAME, draw, finish, plain, render, small, tint, window

WAYS = ("none", "upside-down", "left-right", "both")
MANY = (2, 3, 3, 4)
"""How many of `WAYS` there are, easiest first."""


def chance(difficulty: float, *, ways: int = 0, shift: float | None = None, jitter: float = 0.5) -> float:
    return 1 / whole("ways", ways, difficulty, MANY, (2, 4))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    ways: int = 0,
    shift: float | None = None,
    jitter: float = 0.5,
) -> Asked:
    """`ways`: 2 to 4 answers (none, upside-down, left-right, both; 0: by the difficulty). `shift`: how far apart
    the two views may lie, as a share of their sides, 0 to 0.3. `jitter`: how differently they are tinted."""
    names = WAYS[: whole("ways", ways, difficulty, MANY, (2, 4))]
    shift = knob("shift", shift, difficulty, 0.0, 0.2, (0.0, 0.3))
    answer = names[int(rng.integers(len(names)))]
    size = (images.side, images.side)
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        part = window(rng, picture.size, least=0.7)
        side = (part[2] - part[0]) * (1 - shift)
        first, second = (
            render(picture, (x, y, x + side, y + side), size)
            for x, y in rng.uniform(part[:2], np.array(part[:2]) + shift * (part[2] - part[0]), (2, 2))
        )
        levels = small(first, 12)
        if not plain(first) and min(_apart(levels, turned(levels, way), shift) for way in WAYS[1:]) >= SAME:
            break
    else:
        raise unsuitable("ssl/flip", images, "plain, or alike when mirrored")
    views = [tint(rng, view, jitter) for view in (first, mirrored(second, answer))]
    return Asked(
        images=finish(rng, views),
        question="The second picture shows nearly the same as the first. Is it mirrored, and how: "
        f"{', '.join(names)}?",
        answer=answer,
        said=answer,
        difficulty=difficulty,
        meta={"ways": len(names), "shift": shift},
    )


def mirrored(view: Image.Image, way: str) -> Image.Image:
    """The view flipped in one of `WAYS`, pixel for pixel."""
    return Image.fromarray(turned(np.asarray(view), way).copy())


def turned(pixels: np.ndarray, way: str) -> np.ndarray:
    """An array [height, width, …] flipped in one of `WAYS`."""
    if way in ("left-right", "both"):
        pixels = pixels[:, ::-1]
    if way in ("upside-down", "both"):
        pixels = pixels[::-1]
    return pixels


def _apart(one: np.ndarray, other: np.ndarray, shift: float) -> float:
    """Difference of two small views in grey levels where they lie best on each other, moved by up to `shift`."""
    reach = round(shift * len(one))
    found = []
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            rows, columns = len(one) - abs(dy), len(one) - abs(dx)
            p = one[max(dy, 0) :, max(dx, 0) :][:rows, :columns]
            q = other[max(-dy, 0) :, max(-dx, 0) :][:rows, :columns]
            found.append(float(np.abs((p - p.mean()) - (q - q.mean())).mean()))
    return min(found)


GENERATOR = Generator(
    make=make,
    kind="text",
    chance=chance,
    about="whether and how the second of two views is mirrored",
    answer="one of the ways named: none, upside-down, left-right, both",
    rewards={"exact": 1.0, "format": 0.1},
    shortcuts="pixel-identical views: each is cut at its own place, tinted by itself and resampled and compressed "
    "alike, the one that is not mirrored too; pictures that are nearly symmetric, also after a shift, are rejected; "
    "where colours lie is what is meant to be seen",
)
