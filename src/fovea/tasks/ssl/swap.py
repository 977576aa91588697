"""`ssl/swap`: two squares of equal size of a picture were exchanged; where?

Jigsaw-R1 (arXiv:2505.23590) has exchanged boxes among its questions. The answer is a list of two boxes as other
tasks have it: a choice among drawn frames would be shorter, but the frames would do the finding. Decoys as in
`odd.py`.
"""

from __future__ import annotations

import numpy as np

from fovea.boxes import place
from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.patches import (
    beside,
    blind_two,
    busy,
    decoys_of,
    matched,
    misfit,
    paste,
    patch_share,
    patch_side,
    squares,
)
from fovea.tasks.ssl.spec import TRIES, Generator, knob, unsuitable
from fovea.tasks.ssl.views import SAME, draw, finish, render, tint, window

DECOYS = (0, 0, 1, 2)
SHARES = (0.42, 0.38, 0.34, 0.25)
"""Decoys, and a square's share of the picture's side, easiest first."""
LABEL = "swapped"


def chance(
    difficulty: float,
    *,
    share: float = 0.0,
    decoys: int | None = None,
    match: float | None = None,
    border: float = 0.1,
    jitter: float = 0.5,
) -> float:
    others = decoys_of(decoys, difficulty, DECOYS)
    return blind_two(patch_share(share, difficulty, SHARES), 2 + others)


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    share: float = 0.0,
    decoys: int | None = None,
    match: float | None = None,
    border: float = 0.1,
    jitter: float = 0.5,
) -> Asked:
    """`share`: of the picture's side that a square takes (0: by the difficulty). `decoys`: squares pasted a little
    beside their own place. `match`: how far colours and contrast are made those of what is replaced, 0 to 1.
    `border`: share of a square that fades. `jitter`: how differently squares are tinted."""
    side = images.side
    size = patch_side(side, patch_share(share, difficulty, SHARES))
    others = decoys_of(decoys, difficulty, DECOYS)
    match = knob("match", match, difficulty, 0.0, 0.7, (0.0, 1.0))
    spots = squares(rng, side, size, 2 + others)
    for _ in range(TRIES):
        host = images.picture(draw(rng, images)[0])
        box = window(rng, host.size, least=0.8)
        whole = render(host, box, (side, side))
        places = [whole.crop(spot) for spot in spots]
        a, b = places[:2]
        fits = min(misfit(a, b), misfit(b, a)) < (3 - difficulty / 2) * SAME
        if not fits and all(busy(one) for one in places):
            break
    else:
        raise unsuitable("ssl/swap", images, "plain, or such that exchanged squares fit")
    scale = (box[2] - box[0]) / side
    near = [beside(rng, host, box, spot, scale, 0.2 + 0.15 * difficulty) for spot in spots[2:]]
    for patch, there, spot in zip([b, a, *near], places, spots):
        paste(whole, tint(rng, matched(patch, there, match), 0.3 * jitter), spot, border)
    answer = [{"bbox_2d": list(spot), "label": LABEL} for spot in sorted(spots[:2])]
    written = ", ".join(f'{{"bbox_2d": {place(spot)}, "label": "{LABEL}"}}' for spot in sorted(spots[:2]))
    return Asked(
        images=finish(rng, [whole]),
        question="Two square parts of this picture were exchanged"
        f"{', others only moved a little' if others else ''}. Where? Answer in JSON with both boxes, each labelled "
        f'"{LABEL}".',
        answer=answer,
        said=f"[{written}]",
        difficulty=difficulty,
        meta={"decoys": [list(spot) for spot in spots[2:]], "chance": blind_two(size / side, 2 + others)},
    )


GENERATOR = Generator(
    make=make,
    kind="objects",
    chance=chance,
    about="which two squares of a picture were exchanged",
    answer='a JSON list of two boxes, each with the label "swapped"',
    rewards={"od_f1": 1.0, "format": 0.1},
    shortcuts="borders and colours: soft borders, every square tinted and made like what it replaces; at higher "
    "difficulty decoys with the same border, pasted a little beside their place; squares that look alike or plain "
    "are rejected after their places are drawn",
)
