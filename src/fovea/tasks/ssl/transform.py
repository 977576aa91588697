"""`ssl/transform`: what was done to the second picture? Letters stand for transformations in a drawn order.

EVE (arXiv:2604.18320) asks which transformation links two images; its set is not published, this one is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.geometry import CELLS, Quad, colored, quad, spans, warp, within
from fovea.tasks.ssl.spec import TRIES, Generator, knob, step_of, unsuitable
from fovea.tasks.ssl.views import SAME, Box, difference, draw, finish, plain, tint

GEOMETRIC = {
    "none": "nothing",
    "mirror": "mirrored left to right",
    "flip": "mirrored top to bottom",
    "left": "turned 90 degrees counter-clockwise",
    "right": "turned 90 degrees clockwise",
    "half": "turned 180 degrees",
    "zoom": "enlarged",
    "wide": "stretched in width",
    "high": "stretched in height",
    "shift": "moved sideways",
    "swap": "left and right half swapped",
}
PHOTOMETRIC = {
    "blur": "blurred",
    "bright": "made brighter",
    "negative": "colours inverted",
    "grey": "made grey",
}
"""What was done → its words in the question."""
KINDS = GEOMETRIC | PHOTOMETRIC
STRENGTH = (1.0, 0.4, (0.3, 1.0))
"""Of zoom, stretch and shift; 1: by 80 %, 80 % and 40 %."""
JITTER = (0.7, 1.0, (0.0, 1.0))
FRAME = 0.04
"""Width of the frame around both views, as a share of the side."""
CROSS = 0.03
"""Width of the bar over the seam of swapped halves, as a share of the side."""


def chance(
    difficulty: float,
    *,
    n: Literal[0, 2, 3, 4, 5, 6] = 0,
    photometric: bool = False,
    strength: float | None = None,
    nudge: float = 0.05,
    equal: bool = True,
    jitter: float | None = None,
) -> float:
    return 1 / (n or step_of(difficulty, (3, 4, 5, 6)))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    n: Literal[0, 2, 3, 4, 5, 6] = 0,
    photometric: bool = False,
    strength: float | None = None,
    nudge: float = 0.05,
    equal: bool = True,
    jitter: float | None = None,
) -> Asked:
    """`n`: answers to choose from (0: by the difficulty). `photometric`: blur, brightness, negative and grey too,
    which colour statistics give away, as colours must then be left. `strength` of zoom, stretch and shift, 0.3 to 1.
    `nudge`: how far the second view lies off in any case, as a share of its side, so that nothing is seen in equal
    pixels. `equal`: both get one mean and spread of each channel, then a tint each of strength `jitter` (strength
    and jitter None: by the difficulty)."""
    count = n or step_of(difficulty, (3, 4, 5, 6))
    force = knob("strength", strength, difficulty, *STRENGTH)
    tinted = knob("jitter", jitter, difficulty, *JITTER) * (0.25 if photometric else 1)
    listed = [str(kind) for kind in rng.permutation(list(KINDS if photometric else GEOMETRIC))[:count]]
    true = int(rng.integers(count))
    off = knob("nudge", nudge, difficulty, 0, 0, (0, 0.1))
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        box, sign = _base(rng, picture.size), float(rng.choice((-1, 1)))
        nudged = _nudged(rng, box, off)
        corners = [_corners(kind, nudged, force, sign) for kind in listed]
        if not all(within(one, picture.size) for one in corners):
            continue
        if plain(warp(picture, quad(box), (CELLS, CELLS))):
            continue
        if _different(listed, _views(picture, corners, listed, CELLS)):
            break
    else:
        raise unsuitable("ssl/transform", images, "plain, symmetric or too long")
    detail = _detail([quad(box), *corners], images.side)
    first, second = _views(
        picture, [quad(box), corners[true]], ["none", listed[true]], images.side, detail, "swap" in listed
    )
    if equal and not photometric:
        second = colored(second, first)
    options = "; ".join(f"{letter}: {KINDS[kind]}" for letter, kind in zip("ABCDEF", listed))
    told = "What, apart from a tint," if tinted else "What"
    return Asked(
        images=finish(rng, [_framed(tint(rng, view, tinted)) for view in (first, second)]),
        question=f"{told} was done to the first picture to get the second? {options}.",
        answer="ABCDEF"[true],
        said="ABCDEF"[true],
        difficulty=difficulty,
        meta={"done": listed[true]},
    )


def _base(rng: np.random.Generator, size: tuple[int, int]) -> Box:
    """A square that leaves room to be moved to one side."""
    side = min(size) * rng.uniform(0.6, 0.7)
    x, y = rng.uniform(0, size[0] - side), rng.uniform(0, size[1] - side)
    return x, y, x + side, y + side


def _nudged(rng: np.random.Generator, box: Box, off: float) -> Box:
    """The square moved by up to `off` of its side in x and y, and as much larger or smaller."""
    side = box[2] - box[0]
    dx, dy, more = side * rng.uniform(-off, off, 3)
    return box[0] + dx - more / 2, box[1] + dy - more / 2, box[2] + dx + more / 2, box[3] + dy + more / 2


def _framed(view: Image.Image) -> Image.Image:
    """The view with a grey frame: borders that go on in a mirrored or moved copy are no sign."""
    made = Image.new("RGB", view.size, (128, 128, 128))
    width = max(2, round(view.width * FRAME))
    made.paste(view.crop((width, width, view.width - width, view.height - width)), (width, width))
    return made


def _corners(kind: str, box: Box, force: float, sign: float) -> Quad:
    """Which part of the picture the second view shows; turns and mirrors are a matter of the order of corners."""
    x1, y1, x2, y2 = box
    side, less = x2 - x1, (x2 - x1) * (1 - 1 / (1 + 0.8 * force)) / 2
    if kind == "shift":
        x1 += sign * 0.4 * force * side
    across = less if kind in ("zoom", "wide") else 0.0
    down = less if kind in ("zoom", "high") else 0.0
    corners = quad((x1 + across, y1 + down, x1 + side - across, y2 - down))
    orders = {
        "mirror": (1, 0, 3, 2),
        "flip": (3, 2, 1, 0),
        "left": (1, 2, 3, 0),
        "right": (3, 0, 1, 2),
        "half": (2, 3, 0, 1),
    }
    return corners[list(orders.get(kind, (0, 1, 2, 3)))]


def _detail(corners: Sequence[Quad], side: int) -> int:
    """Pixels a side that the view which has fewest of them resolves."""
    return max(32, min(side, *(int(min(spans(one))) for one in corners)))


def _views(
    picture: Image.Image,
    corners: Sequence[Quad],
    kinds: Sequence[str],
    side: int,
    detail: int | None = None,
    seam: bool = False,
) -> list[Image.Image]:
    """`seam`: a bar over the middle of all, since swapped halves do not continue one another there."""
    views = []
    for kind, one in zip(kinds, corners):
        view = _changed(kind, warp(picture, one, (side, side), detail))
        if seam:
            half = max(1, round(side * CROSS / 2))
            view.paste((128, 128, 128), (side // 2 - half, 0, side // 2 + half, side))
        views.append(view)
    return views


def _changed(kind: str, view: Image.Image) -> Image.Image:
    side = view.width
    if kind == "swap":
        made = view.copy()
        made.paste(view.crop((side // 2, 0, side, side)), (0, 0))
        made.paste(view.crop((0, 0, side // 2, side)), (side - side // 2, 0))
        return made
    if kind == "blur":
        return view.filter(ImageFilter.GaussianBlur(side / 28))
    if kind == "bright":
        return Image.fromarray((255 * (np.asarray(view, np.float32) / 255) ** 0.5).astype(np.uint8))
    if kind == "negative":
        return ImageOps.invert(view)
    return view.convert("L").convert("RGB") if kind == "grey" else view


def _different(kinds: Sequence[str], views: Sequence[Image.Image]) -> bool:
    """Whether any two of the transformations give views that differ. Blur, brightness and grey always do: they are
    judged by what they change, not by where things are."""
    placed = [view for kind, view in zip(kinds, views) if kind not in ("blur", "bright", "grey")]
    return all(difference(a, b) >= SAME for i, a in enumerate(placed) for b in placed[:i])


GENERATOR = Generator(
    make=make,
    kind="choice",
    chance=chance,
    about="what was done to the first picture: mirrored, turned, enlarged, moved, …",
    answer="a letter",
    rewards={"choice": 1.0, "format": 0.1},
    shortcuts="the second view is nudged in any case, a frame hides the borders and a bar the seam of swapped halves "
    "(wherever these are among the answers), both views resolve equally fine detail and have one mean and spread of "
    "colours before they are tinted apart, symmetric pictures are rejected; which of two directions has the stronger "
    "edges changes with a quarter turn; a blur, a negative and the like are seen in colour statistics and therefore "
    "only an option (photometric=true)",
)
