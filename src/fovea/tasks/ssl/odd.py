"""`ssl/odd`: a patch of another picture was pasted into this one; where is it?

Beside it decoys: patches of the picture itself, pasted a little beside where they belong, with the same border
and the same treatment. Cut-and-paste anomalies are also in Med-Scout (arXiv:2601.23220); what is done here against
their borders is our choice.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from fovea.boxes import place
from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.patches import (
    beside,
    blind_one,
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

DECOYS = (1, 1, 2, 2)
SHARES = (0.4, 0.36, 0.32, 0.25)
"""Decoys, and a patch's share of the picture's side, easiest first."""

UNLIKE = 2 * SAME
"""Grey levels by which a patch must differ from what it replaces, inside and along the border."""


def chance(
    difficulty: float,
    *,
    share: float = 0.0,
    decoys: int | None = None,
    match: float | None = None,
    border: float = 0.15,
    jitter: float = 0.5,
) -> float:
    others = decoys_of(decoys, difficulty, DECOYS)
    return blind_one(patch_share(share, difficulty, SHARES), 1 + others)


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    share: float = 0.0,
    decoys: int | None = None,
    match: float | None = None,
    border: float = 0.15,
    jitter: float = 0.5,
) -> Asked:
    """`share`: of the picture's side that a patch takes (0: by the difficulty). `decoys`: how many. `match`: how
    far colours and contrast are made those of what is replaced, 0 to 1. `border`: share of a patch that fades.
    `jitter`: how differently patches are tinted."""
    side = images.side
    patch = patch_side(side, patch_share(share, difficulty, SHARES))
    others = decoys_of(decoys, difficulty, DECOYS)
    match = knob("match", match, difficulty, 0.6, 1.0, (0.0, 1.0))
    spots = squares(rng, side, patch, 1 + others)
    for _ in range(TRIES):
        host, *guest = (images.picture(i) for i in draw(rng, images, 2))
        box = window(rng, host.size, least=0.8)
        scale = (box[2] - box[0]) / side
        whole = render(host, box, (side, side))
        places = [whole.crop(spot) for spot in spots]
        foreign = _foreign(rng, guest[0], scale, places[0], difficulty) if guest else None
        if foreign is not None and all(busy(one) for one in places):
            break
    else:
        raise unsuitable("ssl/odd", images, "plain where a patch is to lie, or others fit in")
    near = [beside(rng, host, box, spot, scale, 0.2 + 0.15 * difficulty) for spot in spots[1:]]
    treated = [
        tint(rng, matched(one, there, match), 0.5 * jitter) for one, there in zip([foreign, *near], places)
    ]
    for one, spot in zip(treated, spots):
        paste(whole, one, spot, border)
    return Asked(
        images=finish(rng, [whole]),
        question="One square patch of this picture comes from another picture"
        f"{', others were only moved a little' if others else ''}. Where is it? Answer with its box.",
        answer=spots[0],
        said=place(spots[0]),
        difficulty=difficulty,
        meta={"decoys": [list(spot) for spot in spots[1:]], "chance": blind_one(patch / side, 1 + others)},
    )


def _foreign(
    rng: np.random.Generator, guest: Image.Image, scale: float, replaced: Image.Image, difficulty: float
) -> Image.Image | None:
    """A patch of another picture at the host's scale (`scale`: its pixels for one shown): of 1 to 6 that differ
    from what they replace the one most like it. None where none differs, or all are plain."""
    side = min(replaced.width * scale, *guest.size)
    found: list[tuple[float, Image.Image]] = []
    for _ in range(1 + round(5 * difficulty)):
        x, y = (rng.uniform(0, most - side) for most in guest.size)
        patch = render(guest, (x, y, x + side, y + side), replaced.size)
        unlike = misfit(patch, replaced)
        if busy(patch) and unlike >= UNLIKE:
            found.append((unlike, patch))
    return min(found, key=lambda one: one[0])[1] if found else None


GENERATOR = Generator(
    make=make,
    kind="box",
    chance=chance,
    about="where a patch of another picture was pasted in",
    answer="the patch's box",
    rewards={"iou_50": 0.5, "iou": 0.5, "format": 0.1},
    shortcuts="borders, colours, sharpness: decoys of the picture itself, pasted a little beside their place, have "
    "the same soft border, tint and resample, and all patches take the mean and contrast of what they replace; "
    "places are drawn before the pictures; patches that fit in are rejected",
)
