"""`ssl/overlay`: simple shapes lie over a photograph; how many are of one kind?

VideoSSR (arXiv:2511.06281) counts overlaid shapes on films. Not among SSL4RL's tasks.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.scenes import SHAPES, Stamp, StampSource, Thing, compose, shape_stamps
from fovea.tasks.ssl.spec import TRIES, Generator, step_of, unsuitable, whole
from fovea.tasks.ssl.views import draw, finish, render, window

MOST = (3, 3, 4, 5)
TOTAL = (4, 6, 8, 12)
"""Largest count, and how many shapes there are in all, easiest first."""
HEIGHTS = ((0.2, 0.3), (0.18, 0.28), (0.16, 0.25), (0.15, 0.2))
"""Shortest and longest height of a shape, as a share of the picture's side."""
NAMED = ("red", "green", "blue", "yellow", "white")
"""Colours that keep their names when tinted."""
VISIBLE = 40.0
"""Mean change of a shape's ink against the photograph in grey levels, at least."""
By = Literal["difficulty", "shape", "both"]


def chance(
    difficulty: float, *, most: int = 0, total: int = 0, by: By = "difficulty", tints: float = 0.5
) -> float:
    return 1 / (1 + whole("most", most, difficulty, MOST, (1, 9)))


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    most: int = 0,
    total: int = 0,
    by: By = "difficulty",
    tints: float = 0.5,
) -> Asked:
    """`most`: largest count, each from 0 equally likely; `total`: shapes in all, whatever the count (0: both by the
    difficulty). `by`: counted are all of a shape, or those of a shape and a colour. `tints`: how much colours and
    transparency vary, 0 to 1."""
    side = images.side
    most = whole("most", most, difficulty, MOST, (1, 9))
    both = difficulty >= 0.5 if by == "difficulty" else by == "both"
    total = max(whole("total", total, difficulty, TOTAL, (1, 20)), 2 * most if both else most)
    count = int(rng.integers(most + 1))
    shape, color = str(rng.choice(SHAPES)), str(rng.choice(NAMED))
    low, high = (max(9, round(share * side)) for share in step_of(difficulty, HEIGHTS))
    for _ in range(TRIES):
        picture = images.picture(draw(rng, images)[0])
        behind = np.asarray(render(picture, window(rng, picture.size, least=0.6), (side, side)))
        labels = _labels(rng, count, most, total, shape, color, both)
        scene = compose(
            rng, tinted(tints), total, labels=labels, size=(side, side), side=(low, high), behind=behind
        )
        after = np.asarray(scene.image)
        if all(change_of(thing, behind, after) >= VISIBLE for thing in scene.things):
            break
    else:
        raise unsuitable("ssl/overlay", images, "of colours on which the shapes cannot be seen")
    kind = f"{color} {shape}" if both else shape
    many = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    return Asked(
        images=finish(rng, [scene.image]),
        question=f"Shapes lie over the photograph. How many are {many}?",
        answer=count,
        said=str(count),
        difficulty=difficulty,
        meta={"total": total, "things": [[thing.label, list(thing.box)] for thing in scene.things]},
    )


def _labels(
    rng: np.random.Generator, count: int, most: int, total: int, shape: str, color: str, both: bool
) -> list[str]:
    """`total` names "COLOR SHAPE" of which `count` are asked for. With `both`, `most` have the shape and `most` the
    colour whatever the count, so that neither alone says it."""
    shapes = [name for name in SHAPES if name != shape]
    colors = [name for name in NAMED if name != color]
    if both:
        labels = [f"{color} {shape}"] * count
        labels += [f"{rng.choice(colors)} {shape}" for _ in range(most - count)]
        labels += [f"{color} {rng.choice(shapes)}" for _ in range(most - count)]
        labels += [f"{rng.choice(colors)} {rng.choice(shapes)}" for _ in range(total - len(labels))]
    else:
        labels = [f"{rng.choice(NAMED)} {shape}" for _ in range(count)]
        labels += [f"{rng.choice(NAMED)} {rng.choice(shapes)}" for _ in range(total - count)]
    return [labels[k] for k in rng.permutation(total)]


def tinted(strength: float) -> StampSource:
    """Shapes in colours up to 24 levels off and up to 30 % transparent, times `strength`."""
    plain = shape_stamps("train")

    def stamp(rng: np.random.Generator, behind: np.ndarray, label: str | None, side: int) -> Stamp:
        one = plain(rng, behind, label, side)
        shade = np.clip(np.array(one.color) + strength * rng.uniform(-24, 24, 3), 0, 255).astype(int)
        opacity = np.float32(1 - strength * rng.uniform(0, 0.3))
        return Stamp(
            label=one.label, alpha=one.alpha * opacity, color=(int(shade[0]), int(shade[1]), int(shade[2]))
        )

    return stamp


def change_of(thing: Thing, before: np.ndarray, after: np.ndarray) -> float:
    """How far a shape's ink differs from the photograph: mean of the half of its box that changed most."""
    x1, y1, x2, y2 = thing.box
    a, b = (pixels[y1:y2, x1:x2].astype(np.float32) for pixels in (before, after))
    changed = np.sort(np.abs(a - b).max(2).ravel())
    return float(changed[len(changed) // 2 :].mean())


GENERATOR = Generator(
    make=make,
    kind="number",
    chance=chance,
    about="how many of the shapes over a photograph are of one kind",
    answer="a whole number",
    rewards={"numeric": 1.0, "format": 0.1},
    shortcuts="how much is covered, and by which colours: there are equally many shapes whatever the count, and where "
    "colour and shape are asked for, equally many of the colour and equally many of the shape; tints, transparency "
    "and sizes vary; shapes that hardly differ from the photograph under them are rejected",
)
