"""`ssl/frames`: shuffled frames of a sequence; in which order were they taken?

Visual Jigsaw (arXiv:2509.25190) orders 6 clips of a video. Much of what moves looks as likely backwards; here the
first frame is shown as the start, so that the order is determined (`anchor`); without it, the arrow of time has to be
seen, and some truths cannot be known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.geometry import CELLS, quad, warp
from fovea.tasks.ssl.spec import TRIES, Generator, knob, step_of, unsuitable
from fovea.tasks.ssl.views import finish, plain, small, tint, window

SPAN = (1.0, 0.4, (0.1, 1.0))
"""Part of a sequence from which the frames are taken: easiest, hardest, allowed."""
MOVED = 15.0
"""Grey levels by which the most changed twentieth of two small frames must differ on average."""


def chance(
    difficulty: float,
    *,
    n: Literal[0, 2, 3, 4, 5, 6] = 0,
    anchor: bool = True,
    span: float | None = None,
    jitter: float = 0.3,
) -> float:
    """One of the n! orders."""
    return 1 / math.factorial(n or step_of(difficulty, (2, 3, 4, 5)))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: Literal[0, 2, 3, 4, 5, 6] = 0,
    anchor: bool = True,
    span: float | None = None,
    jitter: float = 0.3,
) -> Asked:
    """`n`: frames to order (0: by the difficulty). `anchor`: the frame before all of them is shown first, so that a
    film that may run backwards has one order. `span`: part of a sequence that they are taken from (None: by the
    difficulty). `jitter`: how differently the frames are tinted."""
    count = n or step_of(difficulty, (2, 3, 4, 5))
    part = knob("span", span, difficulty, *SPAN)
    strength = knob("jitter", jitter, difficulty, 0, 0, (0, 1))
    sequences = [one for one in images.sequences() if len(one) >= count + anchor]
    for _ in range(TRIES if sequences else 0):
        sequence = sequences[int(rng.integers(len(sequences)))]
        frames = [images.picture(i) for i in _taken(rng, sequence, count + anchor, part)]
        if len({frame.size for frame in frames}) > 1:
            continue
        corners = quad(window(rng, frames[0].size, least=0.8))
        views = [warp(frame, corners, (CELLS, CELLS)) for frame in frames]
        if not any(map(plain, views)) and not _alike(views):
            break
    else:
        raise unsuitable("ssl/frames", images, f"no sequence of {count + anchor} frames, or nothing moves")
    views = [warp(frame, corners, (images.side, images.side)) for frame in frames]
    start, rest = views[:anchor], views[anchor:]
    shown = rng.permutation(count)  # place among the pictures → rank in time
    answer = [int(place) + 1 for place in np.argsort(shown)]
    told = (
        "The first picture is the start of a film; the others are its"
        if anchor
        else "The pictures are a film's"
    )
    return Asked(
        images=finish(rng, [tint(rng, view, strength) for view in (*start, *(rest[k] for k in shown))]),
        question=f"{told} frames 1 to {count}, shuffled. In which order were they taken?",
        answer=answer,
        said=", ".join(map(str, answer)),
        difficulty=difficulty,
    )


def _taken(rng: np.random.Generator, sequence: Sequence[int], n: int, part: float) -> list[int]:
    """Numbers of n frames in order, about evenly spaced over a part of the sequence."""
    span = max(n, round(len(sequence) * part))
    start = int(rng.integers(len(sequence) - span + 1))
    edges = np.linspace(0, span, n + 1).astype(int)  # one frame of each piece
    return [sequence[start + int(rng.integers(a, b))] for a, b in itertools.pairwise(edges)]


def _alike(views: Sequence[Image.Image]) -> bool:
    """Whether two frames show nearly the same. Little may move, so the most changed cells count."""
    cells = [small(view) for view in views]
    most = cells[0].size // 20
    return any(
        np.sort(np.abs(a - b).ravel())[-most:].mean() < MOVED for i, a in enumerate(cells) for b in cells[:i]
    )


GENERATOR = Generator(
    make=make,
    kind="order",
    chance=chance,
    about="put shuffled frames of a film into order (needs sequences)",
    answer="the frames' numbers, earliest first, with commas",
    rewards={"order": 1.0, "format": 0.1},
    reward_options={"order": {"partial": True, "gamma": 0.2}},
    shortcuts="exposure that drifts: frames are tinted apart; one window and one encoding for all; two frames that "
    "show nearly the same are rejected; backwards is told from forwards by the first frame (anchor)",
    needs="frames",
)
