"""`ssl/similar`: candidates in order of how much of the first picture they show.

SSL-R1 (arXiv:2604.20705) trains on "visual similarity" and gives no construction; this one is our choice. All
windows are equally large, so that the share of the reference that a candidate shows is exact.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.geometry import CELLS, colored, repeated
from fovea.tasks.ssl.spec import TRIES, Generator, knob, step_of, unsuitable
from fovea.tasks.ssl.views import SAME, Box, difference, draw, finish, plain, render, tint

SHARES = ((0.75, 0.25), (0.8, 0.4), (0.8, 0.5, 0.2), (0.85, 0.6, 0.35, 0.1))
"""Of the reference, shown by all candidates but the last; easiest first."""
OTHER = 0.25
"""Difficulty below which the last is of another picture, whose bytes and colours tell it."""
SIDE = 0.42
"""Side of a window as a share of the picture's shorter side: two that share nothing fit in."""


def chance(
    difficulty: float,
    *,
    n: Literal[0, 3, 4, 5] = 0,
    last: Literal["by difficulty", "other", "same"] = "by difficulty",
    equal: bool = True,
    jitter: float = 1.0,
) -> float:
    """One of the n! orders."""
    return 1 / math.factorial(1 + len(_shares(difficulty, n)))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: Literal[0, 3, 4, 5] = 0,
    last: Literal["by difficulty", "other", "same"] = "by difficulty",
    equal: bool = True,
    jitter: float = 1.0,
) -> Asked:
    """`n`: candidates (0: by the difficulty). `last`: whether the least similar one is of another picture or of
    another part of the same one (by difficulty: the same from `OTHER` on). `equal`: every view gets the first
    one's mean and spread of each colour channel, so that these do not tell. `jitter`: how differently all are
    tinted after that."""
    shares = _shares(difficulty, n)
    strength = knob("jitter", jitter, difficulty, 1, 1, (0, 1))
    other = last == "other" or (last == "by difficulty" and difficulty < OTHER)
    for _ in range(TRIES):
        picture, *rest = (images.picture(i) for i in draw(rng, images, 2))
        boxes = _windows(rng, picture.size, shares if other else (*shares, 0.0))
        if boxes is None or (other and not rest):
            continue
        parts = [(picture, box) for box in boxes]
        if other:
            parts.append((rest[0], _anywhere(rng, rest[0].size)))
        views = [render(*part, (CELLS, CELLS)) for part in parts]
        clear = not any(map(plain, [*views, *_shared(views[0], boxes)]))
        if clear and not _alike(views) and not _repeats(picture, boxes):
            break
    else:
        raise unsuitable("ssl/similar", images, "plain, or the same in several places")
    views = [render(*part, (images.side, images.side)) for part in parts]
    count = len(views) - 1
    shown = rng.permutation(count)  # place among the candidates → rank
    answer = [int(place) + 1 for place in np.argsort(shown)]
    views = [
        views[0],
        *(colored(view, views[0]) if equal else view for view in (views[1 + k] for k in shown)),
    ]
    views = [tint(rng, view, strength) for view in views]
    return Asked(
        images=finish(rng, views),
        question=f"The other pictures are candidates 1 to {count}. Order them by how much of the first picture's "
        "scene they show, most first.",
        answer=answer,
        said=", ".join(map(str, answer)),
        difficulty=difficulty,
        meta={"shares": [*shares, 0.0]},
    )


def _shares(difficulty: float, n: int) -> tuple[float, ...]:
    return {3: SHARES[1], 4: SHARES[2], 5: SHARES[3]}[n] if n else step_of(difficulty, SHARES)


def _anywhere(rng: np.random.Generator, size: tuple[int, int]) -> Box:
    side = SIDE * min(size)
    x, y = rng.uniform(0, size[0] - side), rng.uniform(0, size[1] - side)
    return x, y, x + side, y + side


def _windows(
    rng: np.random.Generator, size: tuple[int, int], shares: tuple[float, ...], tries: int = 40
) -> list[Box] | None:
    """The reference, then windows that show these shares of it, each moved in a direction of its own."""
    x1, y1, x2, y2 = _anywhere(rng, size)
    side, found = x2 - x1, [(x1, y1, x2, y2)]
    for share in shares:
        for _ in range(tries):
            # Uniform in the share of the move that is horizontal: (1 - a)(1 - b) = share.
            if share > 0:
                a = 1 - share ** rng.random()
                b = 1 - share / (1 - a)
            else:
                a, b = (1.05, rng.uniform(0, 1.05))[:: int(rng.choice((-1, 1)))]
            dx, dy = side * a * rng.choice((-1, 1)), side * b * rng.choice((-1, 1))
            box = (x1 + dx, y1 + dy, x2 + dx, y2 + dy)
            if min(box) >= 0 and box[2] <= size[0] and box[3] <= size[1]:
                found.append(box)
                break
        else:
            return None
    return found


def _shared(reference: Image.Image, boxes: list[Box]) -> list[Image.Image]:
    """The parts of the reference that the others show, where they show any: something must be seen in them."""
    x1, y1, x2, _ = boxes[0]
    scale, found = reference.width / (x2 - x1), []
    for box in boxes[1:]:
        dx, dy = (box[0] - x1) * scale, (box[1] - y1) * scale
        left, top = round(max(0, dx)), round(max(0, dy))
        right, bottom = round(reference.width + min(0, dx)), round(reference.height + min(0, dy))
        if right > left and bottom > top:
            found.append(reference.crop((left, top, right, bottom)))
    return found


def _repeats(picture: Image.Image, boxes: list[Box]) -> bool:
    """Whether the reference is seen a second time in the part of the picture that all windows cover."""
    low, high = np.array(boxes)[:, :2].min(0), np.array(boxes)[:, 2:].max(0)
    (x1, y1), (x2, y2) = (np.array(boxes[0]).reshape(2, 2) - low) / (high - low)
    around = render(picture, (low[0], low[1], high[0], high[1]), (CELLS, CELLS))
    return repeated(around, (float(x1), float(y1), float(x2), float(y2)))


def _alike(views: list[Image.Image]) -> bool:
    """Whether the least similar one looks like the reference, or two candidates look the same."""
    return difference(views[0], views[-1]) < 2 * SAME or any(
        difference(a, b) < SAME / 2 for i, a in enumerate(views) for b in views[:i]
    )


GENERATOR = Generator(
    make=make,
    kind="order",
    chance=chance,
    about="order candidates by how much of the first picture they show",
    answer="the candidates' numbers, most similar first, with commas",
    rewards={"order": 1.0, "format": 0.1},
    reward_options={"order": {"partial": True, "gamma": 0.2}},
    shortcuts="sizes, zoom and resampling are the same for all; what shares more of a scene shares more of its "
    "colours: all get one mean and spread of each channel before they are tinted apart, and from difficulty 0.25 on "
    "the least similar one is of the same picture; joint statistics of colours and textures, and with them the size as "
    "a file, still say something",
)
