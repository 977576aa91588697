"""`ssl/contrastive`: do two changed pictures show the same photograph?

SSL4RL's released builders change both pictures as SimCLR does (solo-learn's pipeline; a strong variant has smaller
crops and more of everything) and take any two pictures for "negative", which colours alone mostly tell. By default
the other picture is chosen, and tinted, to be like a second view of the same picture in colours and detail, and the two
parts of one picture overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.spec import TRIES, Generator, knob, unsuitable
from fovea.tasks.ssl.views import SAME, Box, detail, difference, draw, finish, plain, render

LOOK = 48
"""Pixels a side at which colours are compared."""
SIDE = 224
"""Pixels a side of a view at most, as in SimCLR."""

Changes = Literal["matched", "simclr", "simclr_strong"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """What is done to a view. Chances 0 to 1.

    Example: Pipeline(least=0.08, most=1.0, jitter=0.8, hue=0.2, grey=0.2, blur=0.5)
    """

    least: float
    """Share of the picture's area that a view shows, at least."""
    most: float
    jitter: float
    """Brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter, in 4 of 5 views."""
    hue: float
    """Turn of the hues, as a share of the circle."""
    grey: float
    blur: float
    solarize: float = 0.0
    equalize: float = 0.0
    flip: float = 0.5


# solo-learn's SimCLR as in SSL4RL's augcfg.yaml and augcfg_strong.yaml.
SIMCLR = Pipeline(least=0.08, most=1.0, jitter=0.8, hue=0.2, grey=0.2, blur=0.5)
STRONG = Pipeline(
    least=0.08, most=0.3, jitter=0.8, hue=0.2, grey=0.8, blur=0.8, solarize=0.8, equalize=0.8, flip=0.8
)


def chance(
    difficulty: float,
    *,
    changes: Changes = "matched",
    candidates: int = 12,
    overlap: float | None = None,
    strength: float | None = None,
) -> float:
    return 0.5


def make(
    images: Pool,
    rng: np.random.Generator,
    difficulty: float,
    *,
    changes: Changes = "matched",
    candidates: int = 12,
    overlap: float | None = None,
    strength: float | None = None,
) -> Asked:
    """`changes`: how the views are made; the two of SimCLR are the paper's, at every difficulty. `candidates`: pictures
    among which the other one is chosen by its colours (1: any). `overlap`: of the smaller part in common, at least
    (None: 0.6 to 0.2 by the difficulty). `strength`: of the changes (None: 0.3 to 1). SimCLR's have their own."""
    positive = bool(rng.integers(2))
    strength = knob("strength", strength, difficulty, 0.3, 1.0, (0, 1))
    matched = changes == "matched"
    pipeline = _matched(difficulty, strength) if matched else SIMCLR if changes == "simclr" else STRONG
    common = knob("overlap", overlap, difficulty, 0.6, 0.2, (0, 0.9)) if matched else 0.0
    size = min(images.side, SIDE)
    for _ in range(TRIES):
        i, *others = draw(rng, images, 1 + max(1, candidates))
        views = _pair(rng, images.picture(i), pipeline, common, size)
        shown = [images.name(i)] * 2
        if not positive and views:
            other = _other(rng, images, others, pipeline, common, views)
            views = [views[0], other[1]] if other else []
            shown[1] = images.name(other[0]) if other else shown[1]
        if views:
            break
    else:
        raise unsuitable("ssl/contrastive", images, "plain, or too few to compare")
    answer = "positive" if positive else "negative"
    return Asked(
        images=finish(rng, [_change(rng, view, pipeline) for view in views]),
        question="Do the two pictures show parts of the same photo, changed in different ways? Answer positive for the "
        "same, negative for two different photos.",
        answer=answer,
        said=answer,
        thought=f"They show {'the same photo' if positive else 'two different photos'}.",
        difficulty=difficulty,
        meta={"changes": changes, "pictures": shown},
    )


def _matched(difficulty: float, strength: float) -> Pipeline:
    """Smaller parts and stronger changes with the difficulty; brightness less than SimCLR's, which hides things."""
    return Pipeline(
        least=0.5 - 0.35 * difficulty,
        most=0.8 - 0.3 * difficulty,
        jitter=0.5 * strength,
        hue=0.2 * strength,
        grey=0.2,
        blur=0.5 * strength,
    )


def _part(rng: np.random.Generator, size: tuple[int, int], pipeline: Pipeline) -> Box:
    """A box of a picture as RandomResizedCrop draws it: area in the pipeline's range, width / height 3/4 to 4/3."""
    width, height = size
    for _ in range(20):
        area = rng.uniform(pipeline.least, pipeline.most) * width * height
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            break
    else:
        w = h = float(min(size))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return x, y, x + w, y + h


def _common(a: Box, b: Box) -> float:
    """Area in common, as a share of the smaller box."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    least = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, w) * max(0.0, h) / least


def _boxes(rng: np.random.Generator, size: tuple[int, int], pipeline: Pipeline, common: float) -> list[Box]:
    """Two parts of a picture with at least `common` in common; none where 50 tries find none."""
    for _ in range(50):
        boxes = [_part(rng, size, pipeline) for _ in range(2)]
        if common <= _common(*boxes):
            return boxes
    return []


def _pair(
    rng: np.random.Generator, picture: Image.Image, pipeline: Pipeline, common: float, size: int
) -> list[Image.Image]:
    """Two views of a picture, not yet changed; none where they show too little."""
    views = [render(picture, box, (size, size)) for box in _boxes(rng, picture.size, pipeline, common)]
    return [] if any(map(plain, views)) else views


def _other(
    rng: np.random.Generator,
    images: Pool,
    others: list[int],
    pipeline: Pipeline,
    common: float,
    views: list[Image.Image],
) -> tuple[int, Image.Image] | None:
    """(picture, view) of another picture in place of the second view, drawn by the same law so that its place and size
    say nothing. Of several the one most like that view in colours and detail, and with its means and contrasts."""
    size, several = views[0].size, len(others) > 1
    second = views[1].resize((LOOK, LOOK), Image.Resampling.BICUBIC)
    found: list[tuple[float, int, Box]] = []
    for k in others:
        picture = images.picture(k)
        for _ in range(3 if several else 1):
            for box in _boxes(rng, picture.size, pipeline, common)[1:]:
                view = _like(render(picture, box, (LOOK, LOOK)), second)
                found.append((float(np.abs(_colors(view) - _colors(second)).sum()), k, box))
    for _, k, box in sorted(found):
        view = render(images.picture(k), box, size)
        if not plain(view) and difference(views[0], view) >= SAME:
            return k, (_like(view, views[1]) if several else view)
    return None


def _like(view: Image.Image, other: Image.Image) -> Image.Image:
    """A view with the means and contrasts of another one's channels, contrasts at most doubled."""
    a, b = np.asarray(view, np.float32), np.asarray(other, np.float32)
    gain = np.minimum(b.std((0, 1)) / np.maximum(a.std((0, 1)), 1.0), 2.0)
    like = b.mean((0, 1)) + (a - a.mean((0, 1))) * gain
    return Image.fromarray(np.clip(np.rint(like), 0, 255).astype(np.uint8))


def _colors(view: Image.Image) -> np.ndarray:
    """float32 [28]: means and deviations of the channels in shares of 255, three times the detail, and a histogram of
    the grey levels and the two colour differences, 7 bins each."""
    rgb = np.asarray(view, np.float32) / 255
    planes = np.asarray(view.convert("YCbCr"), np.int32).reshape(-1, 3)
    bins = np.stack([planes[:, 0] * 7 // 256, *((planes[:, 1:].clip(88, 167) - 88) * 7 // 80).T])
    counts = np.bincount((bins + 7 * np.arange(3)[:, None]).ravel(), minlength=21) / len(planes)
    return np.concatenate([rgb.mean((0, 1)), rgb.std((0, 1)), [3 * detail(view)], counts]).astype(np.float32)


def _change(rng: np.random.Generator, view: Image.Image, pipeline: Pipeline) -> Image.Image:
    """A view after the pipeline's changes; torchvision's factors, in this order."""
    if rng.random() < 0.8:
        view = _jitter(rng, view, pipeline)
    if rng.random() < pipeline.grey:
        view = view.convert("L").convert("RGB")
    if rng.random() < pipeline.blur:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0) * view.width / SIDE))
    if rng.random() < pipeline.solarize:
        view = ImageOps.solarize(view, 128)
    if rng.random() < pipeline.equalize:
        view = ImageOps.equalize(view)
    if rng.random() < pipeline.flip:
        view = ImageOps.mirror(view)
    return view


def _jitter(rng: np.random.Generator, view: Image.Image, pipeline: Pipeline) -> Image.Image:
    """Brightness, contrast, saturation and hue changed, at once instead of in random order."""
    bright, contrast, vivid = 1 + pipeline.jitter * rng.uniform(-1, 1, 3)
    hue, saturation, value = view.convert("HSV").split()
    turn = round(256 * pipeline.hue * rng.uniform(-1, 1))
    hue = hue.point([(k + turn) % 256 for k in range(256)])
    pixels = np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"), np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    pixels = grey[..., None] + (pixels - grey[..., None]) * vivid
    middle = grey.mean()
    pixels = (middle + (pixels - middle) * contrast) * bright
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


GENERATOR = Generator(
    make=make,
    kind="text",
    chance=chance,
    about="whether two changed pictures are of one photograph",
    answer="positive (the same photograph) or negative",
    rewards={"exact": 1.0, "format": 0.1},
    shortcuts="colours, detail: the other picture is chosen and tinted to be like a second view, then both are "
    "changed; size and place of the part, sharpness: drawn by one law for both answers; pixel-identical views: never; "
    "plain parts are rejected",
    paper={"changes": "simclr", "candidates": 1},
)
