"""`ssl/crop`: the second picture is a part of the first; which? The answer is a box.

The dense version of `ssl/position` (Med-Scout, arXiv:2601.23220, asks for such boxes of medical images). Where the
part is turned, the answer is the upright box that it touches with its corners, so that boxes are as evenly spread
as without.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from fovea.boxes import place
from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.geometry import CELLS, quad, repeated, warp
from fovea.tasks.ssl.spec import TRIES, Generator, knob, unsuitable
from fovea.tasks.ssl.views import Box, draw, finish, plain, tint, window

SHARE = (0.5, 0.22, (0.15, 0.7))
"""Mean side of the box as a share of the first picture's side: easiest, hardest, allowed."""
SPREAD = 0.05
"""The side is uniform in the mean ± SPREAD."""
STRETCH = (1.0, 1.5, (1.0, 2.0))
TURN = (0.0, 15.0, (0.0, 45.0))
JITTER = (0.4, 1.0, (0.0, 1.0))


def chance(
    difficulty: float,
    *,
    share: float | None = None,
    stretch: float | None = None,
    turn: float | None = None,
    jitter: float | None = None,
    shown: float = 0.5,
) -> float:
    """Of the best constant box: it lies in the middle and is a little larger than the mean box."""
    return _best_middle(
        round(knob("share", share, difficulty, *SHARE), 3),
        round(knob("stretch", stretch, difficulty, *STRETCH), 3),
    )


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    share: float | None = None,
    stretch: float | None = None,
    turn: float | None = None,
    jitter: float | None = None,
    shown: float = 0.5,
) -> Asked:
    """None: by the difficulty. `share`: mean side of the box / side of the first picture. `stretch`: most that the
    part's sides are changed against each other (1: not). `turn`: most degrees that it is turned. `jitter`: how
    differently the two are tinted. `shown`: side of the second picture / side of the first."""
    mean = knob("share", share, difficulty, *SHARE)
    most_stretch = knob("stretch", stretch, difficulty, *STRETCH)
    most_turn = knob("turn", turn, difficulty, *TURN)
    strength = knob("jitter", jitter, difficulty, *JITTER)
    side = images.side
    part_side = round(side * knob("shown", shown, difficulty, 0.5, 0.5, (0.25, 1.0)))
    # Drawn before the picture that suits it: else boxes would gather where pictures have most to show.
    x1, y1, x2, y2 = _draw_box(rng, mean, most_stretch)
    angle = rng.uniform(-most_turn, most_turn)
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        outer = window(rng, picture.size, least=0.7)
        scale = outer[2] - outer[0]
        inner = (outer[0] + scale * x1, outer[1] + scale * y1, outer[0] + scale * x2, outer[1] + scale * y2)
        seen = warp(picture, quad(outer), (CELLS, CELLS))
        if not plain(warp(picture, quad(inner, angle), (CELLS, CELLS))) and not repeated(
            seen, (x1, y1, x2, y2)
        ):
            break
    else:
        raise unsuitable("ssl/crop", images, "plain, or the same in several places")
    views = (
        warp(picture, quad(outer), (side, side)),
        warp(picture, quad(inner, angle), (part_side, part_side)),
    )
    box = tuple(round(v * side) for v in (x1, y1, x2, y2))
    return Asked(
        images=finish(rng, [tint(rng, view, strength) for view in views]),
        question="The second picture is a part of the first, perhaps changed a little. Where is it in the first? "
        "Answer with its box.",
        answer=box,
        said=place(box),
        difficulty=difficulty,
        box_image=0,
        meta={"turn": angle},
    )


def _draw_box(rng: np.random.Generator, mean: float, stretch: float) -> Box:
    """In shares of the first picture: any size and place as likely as any other."""
    size = mean + rng.uniform(-SPREAD, SPREAD)
    aspect = math.exp(rng.uniform(-1, 1) * math.log(stretch))
    w, h = min(0.95, size * math.sqrt(aspect)), min(0.95, size / math.sqrt(aspect))
    x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    return x, y, x + w, y + h


@functools.lru_cache(maxsize=4096)
def _best_middle(mean: float, stretch: float, n: int = 24) -> float:
    """Share of the boxes of `_draw_box` that the best square in the middle meets with IoU > 1/2, by quadrature."""
    middles = (np.arange(n) + 0.5) / n
    found = np.zeros(9)
    guesses = mean * np.linspace(0.95, 1.35, 9)
    sizes = mean + SPREAD * np.array([-0.8, -0.4, 0.0, 0.4, 0.8])
    aspects = np.exp(np.array([-0.8, -0.4, 0.0, 0.4, 0.8]) * math.log(stretch))
    for size in sizes:
        for aspect in aspects:
            w, h = min(0.95, size * math.sqrt(aspect)), min(0.95, size / math.sqrt(aspect))
            across, down = (_shared(guesses, length, middles * (1 - length) / 2) for length in (w, h))
            inside = 3 * across[:, :, None] * down[:, None] > (guesses**2 + w * h)[:, None, None]
            found += inside.mean((1, 2)) / (len(sizes) * len(aspects))
    return float(found.max())


def _shared(guesses: np.ndarray, length: float, offsets: np.ndarray) -> np.ndarray:
    """[guesses, offsets]: overlap of two intervals with middles `offsets` apart."""
    reach = (guesses[:, None] + length) / 2 - offsets
    return np.clip(np.minimum(reach, np.minimum(guesses[:, None], length)), 0, None)


GENERATOR = Generator(
    make=make,
    kind="box",
    chance=chance,
    about="which part of the first picture the second one shows, as a box",
    answer="the box in the first picture",
    rewards={"iou": 0.5, "iou_50": 0.5, "format": 0.1},
    shortcuts="a box in the middle (its accuracy is the declared chance); equal sizes for every box, both views "
    "resampled from the photograph, tinted and encoded apart, so never identical pixels; plain parts and parts that "
    "are found twice are rejected. Matching of templates is the task itself, which tint, turn and stretch make harder",
)
