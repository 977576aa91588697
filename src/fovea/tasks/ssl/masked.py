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
from fovea.tasks.ssl.spec import TRIES, Generator, step_of, unsuitable
from fovea.tasks.ssl.views import SAME, Box, difference, draw, finish, plain, render, tint, window
from fovea.types import UserError

COUNTS = (3, 4, 4, 6)
"""Candidates, easiest first."""
GREY = (128, 128, 128)
LETTERS = "ABCDEFGH"
DRAWN = 24
"""Places that are tried for other parts; the most similar are taken, or the least."""

Decoys = Literal["", "parts", "mirrored", "turned", "tinted"]


def chance(
    difficulty: float,
    *,
    candidates: int = 0,
    decoys: Decoys = "",
    part: float = 0.0,
    gap: float | None = None,
    similar: float | None = None,
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
    part: float = 0.0,
    gap: float | None = None,
    similar: float | None = None,
    jitter: float | None = None,
) -> Asked:
    """`candidates`: how many, 2 to 8 (0: 3 to 6 by the difficulty). `decoys`: other parts of the photograph, or every
    part in pairs with its mirrored, turned or tinted self ("": parts up to difficulty 0.3, above one of the four).
    `part`: side of the hidden part as a share of the picture's (0: 0.4 to 0.25). `gap`: by how much of its side the grey
    square is larger on every side (None: 0.1 to 0.2). `similar`: 0 takes the parts least like the true one, 1 the most
    (None: the difficulty). `jitter`: how differently the candidates are tinted, not with "tinted" (None: 0.2 to 0.6).
    """
    if candidates and not 2 <= candidates <= len(LETTERS):
        raise UserError(
            f"task_options.ssl/masked.candidates={candidates} is not allowed; give 2 to {len(LETTERS)} (0: by the "
            "difficulty)."
        )
    count = candidates or step_of(difficulty, COUNTS)
    how = decoys or ("parts" if difficulty < 0.3 else _any(rng))
    part = min(part or 0.4 - 0.15 * difficulty, 0.5)
    gap = 0.1 + 0.1 * difficulty if gap is None else gap
    similar = difficulty if similar is None else similar
    jitter = 0.2 + 0.4 * difficulty if jitter is None else jitter
    place = int(rng.integers(count))
    for _ in range(TRIES):
        i = draw(rng, images)[0]
        found = _views(rng, images.picture(i), images.side, count, how, part, gap, similar)
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


def _any(rng: np.random.Generator) -> Decoys:
    kinds: tuple[Decoys, ...] = ("parts", "mirrored", "turned", "tinted")
    return kinds[int(rng.integers(4))]


def _views(
    rng: np.random.Generator,
    picture: Image.Image,
    side: int,
    count: int,
    how: Decoys,
    part: float,
    gap: float,
    similar: float,
) -> list[Image.Image]:
    """The picture with its grey square, the true candidate, the decoys; none where this photograph does not suit."""
    picture, twin = _twin(rng, picture, how)
    box = window(rng, picture.size, least=0.5, most=0.75)
    edge = part * (box[2] - box[0])
    rim = min(gap, (1 / part - 1) / 2) * edge
    x, y = (rng.uniform(box[k] + rim, box[k + 2] - rim - edge) for k in (0, 1))
    size = (max(1, side // 2),) * 2
    true = render(picture, (x, y, x + edge, y + edge), size)
    others = _parts(rng, picture, box, edge, true, (count if twin is None else -(-count // 2)) - 1, similar)
    if plain(true) or others is None:
        return []
    first, scale = render(picture, box, (side, side)), side / (box[2] - box[0])
    left, top, wide = (round(v * scale) for v in (x - box[0] - rim, y - box[1] - rim, edge + 2 * rim))
    first.paste(GREY, (left, top, left + wide, top + wide))
    decoys = others
    if twin is not None:
        twins = [twin(view) for view in (true, *others)]
        if how != "tinted" and any(difference(a, b) < SAME for a, b in zip((true, *others), twins)):
            return []
        # Of an odd number one pair is broken, and any decoy may be the one that is missing: a lone candidate is then
        # as often the true one as any other.
        decoys = [*others, *twins]
        decoys = [decoys[k] for k in rng.permutation(len(decoys))[: count - 1]]
    return [first, true, *decoys]


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


def _parts(
    rng: np.random.Generator,
    picture: Image.Image,
    box: Box,
    edge: float,
    true: Image.Image,
    n: int,
    similar: float,
) -> list[Image.Image] | None:
    """`n` other parts of the photograph as large as the true one, outside `box`, all different; None where it has not
    so many."""
    corner = rng.uniform(0, 1, (8 * DRAWN, 2)) * (picture.width - edge, picture.height - edge)
    outside = (corner + edge <= box[:2]).any(1) | (corner >= box[2:]).any(1)
    corner = corner[outside][:DRAWN] if n else corner[:0]
    seen = [render(picture, (x, y, x + edge, y + edge), (16, 16)) for x, y in corner]
    away = [float(np.abs(_colors(view) - _colors(true)).sum()) for view in seen]
    order = np.argsort(away)[:: 1 if similar >= 0.5 else -1]
    start = round((1 - abs(2 * similar - 1)) * max(0, len(order) - n) / 2)
    found: list[Image.Image] = []
    taken: list[np.ndarray] = []
    for k in order[start:]:
        apart = all(np.abs(corner[k] - other).max() > edge / 2 for other in taken)
        if len(found) < n and apart and not plain(seen[k]):
            x, y = corner[k]
            view = render(picture, (x, y, x + edge, y + edge), true.size)
            if all(difference(view, other) >= SAME for other in (true, *found)):
                found.append(view)
                taken.append(corner[k])
    return found if len(found) == n else None


def _colors(view: Image.Image) -> np.ndarray:
    """float32 [6]: means and deviations of the channels."""
    pixels = np.asarray(view.resize((16, 16), Image.Resampling.BOX), np.float32)
    return np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))])


GENERATOR = Generator(
    make=make,
    kind="choice",
    chance=chance,
    about="which candidate was hidden in the grey square of a picture",
    answer="the letter of the candidate",
    rewards={"choice": 1.0, "format": 0.1},
    shortcuts="borders that meet: the grey square is larger than what is asked for; sharpness, size: the true one is "
    "resampled and compressed as the decoys; decoys that are seen elsewhere in the picture: they are from outside it; "
    "which candidate is like the others, upright or unmirrored: decoys come in pairs and the whole is turned, mirrored "
    "or tinted at random; colours: decoys like the true one, each tinted by itself. That neighbouring things have like "
    "colours stays",
)
