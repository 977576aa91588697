"""`ssl/masked`: which of the candidates was hidden in the grey square?

SSL4RL's abstract names the reconstruction of masked parts, its released code has no such task: this is our
reconstruction, a choice among decoys as in PuzzleCraft (arXiv:2512.14944) and Spatial-SSRL (arXiv:2510.27606). Decoys
are other parts of the same photograph that the first picture does not show; harder ones come in pairs: each part
as it is and mirrored, turned or tinted, so that the candidates by themselves do not say which of them is true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.patches import matched
from fovea.tasks.ssl.spec import TRIES, Generator, knob, step_of, unsuitable, whole
from fovea.tasks.ssl.views import PLAIN, SAME, Box, difference, draw, finish, render, tint

COUNTS = (3, 4, 4, 6)
"""Candidates, easiest first."""
PROBE = 16
"""Pixels a side at which places are compared."""
GREY = (128, 128, 128)
LETTERS = "ABCDEFGH"
DRAWN, ANCHORS = 64, 12
"""Places of a photograph that are drawn, and how many of them are tried as the one that the others are compared to."""

Decoys = Literal["", "parts", "mirrored", "turned", "tinted"]


def chance(
    difficulty: float,
    *,
    candidates: int = 0,
    decoys: Decoys = "",
    part: float | None = None,
    gap: float | None = None,
    similar: float | None = None,
    match: float | None = None,
    jitter: float | None = None,
) -> float:
    return 1 / (candidates or step_of(difficulty, COUNTS))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    candidates: int = 0,
    decoys: Decoys = "",
    part: float | None = None,
    gap: float | None = None,
    similar: float | None = None,
    match: float | None = None,
    jitter: float | None = None,
) -> Asked:
    """`candidates`: how many, 2 to 8 (0: 3 to 6 by the difficulty). `decoys`: other parts of the photograph, or every
    part in pairs with its mirrored, turned or tinted self ("": parts up to difficulty 0.3, above the first three).
    `part`: side of the hidden part as a share of the picture's (None: 0.3 to 0.2). `gap`: by how much of it the grey
    square is larger on every side (None: 0.4 to 0.5). `similar`: 0 takes the parts in which light and dark lie least
    alike, 1 the most (None: 0.5 to 1). `match`: how far all candidates get the mean colour and contrast of one of them
    (None: 0.8 to 1). `jitter`: how differently they are then tinted, not with "tinted" (None: 0.4 to 0.8).
    """
    count = whole("candidates", candidates, difficulty, COUNTS, (2, len(LETTERS)))
    how = decoys or ("parts" if difficulty < 0.3 else _any(rng, count))
    part = knob("part", part, difficulty, 0.3, 0.2, (0.1, 0.5))
    gap = knob("gap", gap, difficulty, 0.4, 0.5, (0, 0.5))
    similar = knob("similar", similar, difficulty, 0.5, 1.0, (0, 1))
    match = knob("match", match, difficulty, 0.8, 1.0, (0, 1))
    jitter = knob("jitter", jitter, difficulty, 0.4, 0.8, (0, 1))
    place = int(rng.integers(count))
    for _ in range(TRIES):
        i = draw(rng, images)[0]
        found = _views(rng, images.picture(i), images.side, count, how, part, gap, similar, match)
        if found:
            break
    else:
        raise unsuitable("ssl/masked", images, "plain, or too small to have other parts")
    first, true, *others = found
    shown = [others[k] for k in rng.permutation(len(others))]
    shown.insert(place, true)
    if how != "tinted":
        shown = [tint(rng, view, jitter) for view in shown]
    letters = LETTERS[:count]
    return Asked(
        images=finish(rng, [first, *shown]),
        question="A part of the first picture is hidden by a grey square. The other pictures are "
        f"{', '.join(letters[:-1])} and {letters[-1]}. Which of them was hidden?",
        answer=letters[place],
        said=letters[place],
        thought=f"{letters[place]} fits into the grey square.",
        difficulty=difficulty,
        meta={"decoys": how, "chance": 1 / count, "pictures": [images.name(i)]},
    )


def _any(rng: np.random.Generator, count: int) -> Decoys:
    """Few candidates may all be other parts; of many there is hardly room beside the picture that is shown."""
    kinds: tuple[Decoys, ...] = ("mirrored", "turned", "parts")
    return kinds[int(rng.integers(3 if count <= 4 else 2))]


def _views(
    rng: np.random.Generator,
    picture: Image.Image,
    side: int,
    count: int,
    how: Decoys,
    part: float,
    gap: float,
    similar: float,
    match: float,
) -> list[Image.Image]:
    """The picture with its grey square, the true candidate, the decoys; none where this photograph does not suit."""
    picture, twin = _twin(rng, picture, how)
    wide = min(picture.size) * rng.uniform(0.45, 0.7)
    rim = min(gap, (1 / part - 1) / 2) * part * wide
    places = _places(rng, picture, count if twin is None else -(-count // 2), part * wide, rim, wide, similar)
    if not places:
        return []
    parts = [render(picture, place, (max(1, side // 2),) * 2) for place, _ in places]
    like = parts[int(rng.integers(len(parts)))]
    parts = [matched(view, like, match) for view in parts]
    place, box = places[0]
    first, scale = render(picture, box, (side, side)), side / wide
    left, top = (round((place[k] - rim - box[k]) * scale) for k in (0, 1))
    hole = round((part * wide + 2 * rim) * scale)
    first.paste(GREY, (left, top, left + hole, top + hole))
    if twin is None:
        return [first, *parts]
    twins = [twin(view) for view in parts]
    if how != "tinted" and any(difference(a, b) < SAME for a, b in zip(parts, twins)):
        return []
    # Of an odd number one pair is broken, and any decoy may be the one that is missing: a lone candidate is then as
    # often the true one as any other.
    decoys = [*parts[1:], *twins]
    return [first, parts[0], *(decoys[k] for k in rng.permutation(len(decoys))[: count - 1])]


def _twin(
    rng: np.random.Generator, picture: Image.Image, how: Decoys
) -> tuple[Image.Image, Callable[[Image.Image], Image.Image] | None]:
    """The photograph mirrored, turned or tinted at random, and what makes decoys of its parts: since the photograph is
    as often the one as the other, a candidate by itself does not say whether it is a decoy."""
    if how == "mirrored":
        return (ImageOps.mirror(picture) if rng.integers(2) else picture), ImageOps.mirror
    if how == "turned":
        base, more = (int(v) for v in (rng.integers(4), rng.integers(1, 4)))
        return _quarters(picture, base), lambda view: _quarters(view, more)
    if how == "tinted":
        casts = rng.uniform(0.55, 1, (2, 3))
        while np.ptp(np.log(casts[0] / casts[1])) < 0.4:
            casts = rng.uniform(0.55, 1, (2, 3))
        return _cast(picture, casts[0]), lambda view: _cast(view, casts[1] / casts[0])
    return picture, None


def _quarters(view: Image.Image, turns: int) -> Image.Image:
    return Image.fromarray(np.rot90(np.asarray(view), turns).copy())


def _cast(view: Image.Image, gains: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(view, np.float32) * gains, 0, 255).astype(np.uint8))


def _places(
    rng: np.random.Generator,
    picture: Image.Image,
    n: int,
    edge: float,
    rim: float,
    wide: float,
    similar: float,
) -> list[tuple[Box, Box]]:
    """`n` places of a photograph in random order that look different, `similar` in layout, and for each a square
    of side `wide` in which it can be hidden and that does not show the others; none where there are not so many.

    They are drawn by one law and any of them may be the hidden one: what a candidate shows by itself, more detail or
    the middle of the photograph, says nothing.
    """
    corner = rng.uniform(0, 1, (DRAWN, 2)) * (picture.width - edge, picture.height - edge)
    shown, layout, apart = _seen(picture, corner, edge)
    apart &= np.abs(corner[:, None] - corner[None]).max(2) > edge + rim
    for anchor in np.flatnonzero(shown)[:ANCHORS]:
        order = [k for k in np.argsort(np.abs(layout - layout[anchor]).sum(1)) if shown[k] and k != anchor]
        order = order if similar >= 0.5 else order[::-1]
        chosen = [anchor]
        for k in order[round((1 - abs(2 * similar - 1)) * max(0, len(order) - n) / 2) :]:
            if len(chosen) < n and apart[k, chosen].all():
                chosen.append(k)
        found = corner[rng.permutation(chosen)]
        around = [
            _around(rng, picture.size, edge, rim, wide, found[k], np.delete(found, k, 0))
            for k in range(len(found))
        ]
        if len(found) == n and all(around):
            return [((x, y, x + edge, y + edge), box) for (x, y), box in zip(found.tolist(), around) if box]
    return []


def _seen(
    picture: Image.Image, corner_N2: np.ndarray, edge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of squares of side `edge`: whether each shows enough [N]; where in it what colours lie, in 4 x 4 cells
    without mean and contrast [N, 48]; whether two look different [N, N]."""
    scale = PROBE / edge
    across = [max(PROBE, round(v * scale)) for v in picture.size]
    little = np.asarray(picture.resize((across[0], across[1]), Image.Resampling.BOX), np.float32)
    at = np.clip((corner_N2 * scale).astype(int), 0, np.array(across) - PROBE)
    views = np.stack([little[y : y + PROBE, x : x + PROBE] for x, y in at])
    grey = views.mean(3).reshape(len(views), -1)
    grey = grey - grey.mean(1, keepdims=True)
    coarse = (
        views.reshape(len(views), 4, PROBE // 4, 4, PROBE // 4, 3).mean((2, 4)).reshape(len(views), 16, 3)
    )
    coarse = coarse - coarse.mean(1, keepdims=True)
    layout = coarse / (np.abs(coarse).mean((1, 2), keepdims=True) + 1)
    return (
        grey.std(1) >= PLAIN,
        layout.reshape(len(views), -1),
        np.abs(grey[:, None] - grey[None]).mean(2) >= SAME,
    )


def _around(
    rng: np.random.Generator,
    size: tuple[int, int],
    edge: float,
    rim: float,
    wide: float,
    place: np.ndarray,
    others_N2: np.ndarray,
) -> Box | None:
    """A square of side `wide` that holds the square at `place` and its rim and shows nothing of the others; None if
    none is found."""
    low = np.maximum(0, place + edge + rim - wide)
    high = np.minimum(np.array(size) - wide, place - rim)
    if (low > high).any():
        return None
    corner = rng.uniform(low, high, (64, 1, 2))
    hidden = np.any((corner + wide <= others_N2) | (corner >= others_N2 + edge), axis=2)
    free = np.all(hidden, axis=1)
    if not free.any():
        return None
    x, y = corner[int(free.argmax()), 0].tolist()
    return x, y, x + wide, y + wide


GENERATOR = Generator(
    make=make,
    kind="choice",
    chance=chance,
    about="which candidate was hidden in the grey square of a picture",
    answer="the letter of the candidate",
    rewards={"choice": 1.0, "format": 0.1},
    shortcuts="borders that meet: the grey square is nearly twice as wide as what is asked for; sharpness, size: the "
    "true one is resampled and compressed as the decoys; decoys seen elsewhere in the picture: all are from outside; "
    "which candidate is like the others, upright or unmirrored: decoys come in pairs and the whole is turned, mirrored "
    "or tinted at random; colours: all candidates get the mean and the contrast of one of them, then each is tinted by "
    "itself. That light and lines go on around the grey square stays",
)
