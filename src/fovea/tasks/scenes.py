"""Pictures with things in them and exact boxes: backgrounds, placing, drawing. No questions here.

A scene is a pure function of a numpy generator and its arguments. What is drawn (handwritten digits, printed
digits, shapes) is a `Stamp` source, kept apart from how it is placed.

Try it: python -c "from fovea.tasks.scenes import *; compose(generator(0, 1), digit_stamps('train'), 3).image.show()"
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

DATA = Path(__file__).parent.parent / "data"

# The 1,797 handwritten digits are cut once and for all; a digit is in exactly one split.
DIGIT_SPLITS: dict[Split, tuple[int, int]] = {
    "train": (0, 1300),
    "validation": (1300, 1500),
    "test": (1500, 1797),
}
# Backgrounds come from finite pools of patterns, one pool a split.
BACKGROUNDS: dict[Split, tuple[int, int]] = {
    "train": (0, 4096),
    "validation": (4096, 4608),
    "test": (4608, 5632),
}

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (44, 150, 64),
    "blue": (40, 80, 200),
    "yellow": (236, 204, 40),
    "purple": (134, 54, 166),
    "orange": (240, 132, 30),
    "cyan": (50, 190, 205),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """Something to put into a picture."""

    label: str
    """What it is called, e.g. "7" or "red circle"."""
    alpha: np.ndarray
    """float32 [h, w], 0 transparent to 1 opaque, at its final size."""
    color: tuple[int, int, int]
    """RGB ink."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """Something in a picture. `box` is (x1, y1, x2, y2) in pixels of its ink, x2 and y2 exclusive."""

    label: str
    """What it is called in questions, e.g. "7", "red circle", "10 of hearts"."""
    box: tuple[int, int, int, int]
    facts: tuple[tuple[str, str], ...] = ()
    """What can be seen of it, as (name, value): (("color", "red"), ("kind", "circle")). The vision tower is taught
    these; names and values are listed in `fovea.zoo.vision.FACTS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A picture and what is in it, from left to right (by x1, then y1)."""

    image: Image.Image
    things: tuple[Thing, ...]


StampSource = Callable[[np.random.Generator, np.ndarray, str | None, int], Stamp]
"""(generator, mean background colour [3], wanted label or None, longest side in pixels) -> Stamp."""


def generator(*key: int | str) -> np.random.Generator:
    """A numpy generator that is a pure function of `key` (stable across platforms and processes)."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


# --- backgrounds ------------------------------------------------------------------------------------------


def background(pattern: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3], a pure function of the pattern's number and the size."""
    rng = generator("background", pattern)
    base = rng.uniform(20, 235, 3)
    other = np.clip(base + rng.normal(0, 35, 3), 0, 255)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    kind = rng.integers(6)
    angle = rng.uniform(0, np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    mix: np.ndarray
    if kind == 0:  # plain
        mix = np.zeros((height, width), np.float32)
    elif kind == 1:  # gradient
        mix = (along - along.min()) / max(float(np.ptp(along)), 1.0)
    elif kind == 2:  # stripes
        mix = 0.5 + 0.5 * np.sin(along * (2 * np.pi / rng.uniform(5, 24)) + rng.uniform(0, 6))
    elif kind == 3:  # checks
        cell = rng.uniform(5, 20)
        mix = ((np.floor(x / cell) + np.floor(y / cell)) % 2).astype(np.float32)
    elif kind == 4:  # clouds: coarse noise, smoothly enlarged
        coarse = rng.uniform(0, 255, (rng.integers(3, 9), rng.integers(3, 9))).astype(np.uint8)
        enlarged = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        mix = np.asarray(enlarged, np.float32) / 255
    else:  # rings
        center = rng.uniform(0, 1, 2) * (width, height)
        mix = 0.5 + 0.5 * np.sin(np.hypot(x - center[0], y - center[1]) * (2 * np.pi / rng.uniform(6, 30)))
    picture = base + mix[..., None] * (other - base)
    picture += rng.normal(0, rng.uniform(0, 7), (height, width, 1))  # sensor noise
    return np.clip(picture, 0, 255).astype(np.uint8)


# --- things to draw ---------------------------------------------------------------------------------------


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(pictures uint8 [1797, 8, 8] with values 0 to 16, labels uint8 [1797]), shuffled once."""
    with np.load(DATA / "optdigits.npz") as file:
        pictures, labels = file["pictures"], file["labels"]
    order = np.random.default_rng(0).permutation(len(labels))
    return pictures[order], labels[order]


def ink_color(rng: np.random.Generator, behind: np.ndarray) -> tuple[int, int, int]:
    """A colour that stands out: at least 90 grey levels from the mean colour `behind` it."""
    grey = np.array([0.299, 0.587, 0.114])
    while True:
        color = rng.integers(0, 256, 3)
        if abs(float((color - behind) @ grey)) >= 90:
            return int(color[0]), int(color[1]), int(color[2])


def _tight(alpha: np.ndarray) -> np.ndarray:
    """Cut away the transparent border (alpha below 0.3 counts as transparent)."""
    rows = np.flatnonzero((alpha > 0.3).any(1))
    columns = np.flatnonzero((alpha > 0.3).any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _slant(picture: Image.Image, shear: float) -> Image.Image:
    """Shear a grey picture sideways by `shear` pixels a row, on a canvas wide enough to lose nothing."""
    extra = int(np.ceil(abs(shear) * picture.height))
    wide = Image.new("L", (picture.width + 2 * extra, picture.height))
    wide.paste(picture, (extra, 0))
    affine = (1, shear, -shear * picture.height / 2, 0, 1, 0)
    return wide.transform(wide.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


def digit_stamps(split: Split) -> StampSource:
    """Handwritten digits (UCI optical digits, 8x8 pixels, enlarged), the split's own ones only."""
    pictures, labels = _digits()
    start, stop = DIGIT_SPLITS[split]

    def stamp(rng: np.random.Generator, behind: np.ndarray, label: str | None, side: int) -> Stamp:
        candidates = np.arange(start, stop)
        if label is not None:
            candidates = candidates[labels[start:stop] == int(label)]
        index = int(rng.choice(candidates))
        picture = Image.fromarray((pictures[index].astype(np.float32) * (255 / 16)).astype(np.uint8))
        width = max(8, round(side * rng.uniform(0.75, 1.0)))
        picture = picture.resize((width, side), Image.Resampling.BICUBIC)
        picture = _slant(picture, rng.uniform(-0.2, 0.2))
        picture = picture.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
        alpha = np.clip(np.asarray(picture, np.float32) / 255 * 1.3, 0, 1)
        return Stamp(label=str(labels[index]), alpha=_tight(alpha), color=ink_color(rng, behind))

    return stamp


def printed_stamps(split: Split) -> StampSource:
    """Printed digits: the font inside Pillow, with random weight and slant. Splits differ in their seeds only."""

    def stamp(rng: np.random.Generator, behind: np.ndarray, label: str | None, side: int) -> Stamp:
        text = label if label is not None else str(rng.integers(10))
        canvas = Image.new("L", (4 * side, 4 * side))
        font = ImageFont.load_default(1.3 * side)
        weight = int(rng.integers(0, 2))
        ImageDraw.Draw(canvas).text((side, side), text, fill=255, font=font, stroke_width=weight)
        slanted = _slant(canvas, rng.uniform(-0.25, 0.25))
        tight = Image.fromarray((_tight(np.asarray(slanted, np.float32) / 255) * 255).astype(np.uint8))
        width = max(4, round(tight.width * side / tight.height))
        alpha = np.asarray(tight.resize((width, side), Image.Resampling.BILINEAR), np.float32) / 255
        return Stamp(label=text, alpha=_tight(alpha), color=ink_color(rng, behind))

    return stamp


def shape_stamps(split: Split) -> StampSource:
    """Plain shapes in named colours; label "COLOR SHAPE". Splits differ in their seeds only."""

    def stamp(rng: np.random.Generator, behind: np.ndarray, label: str | None, side: int) -> Stamp:
        if label is None:
            far = [name for name, rgb in COLORS.items() if np.abs(np.array(rgb) - behind).sum() > 150]
            label = f"{rng.choice(far)} {rng.choice(SHAPES)}"
        color, shape = label.split()
        return Stamp(label=label, alpha=_tight(_draw_shape(shape, side)), color=COLORS[color])

    return stamp


def _draw_shape(shape: str, side: int) -> np.ndarray:
    """float32 [side, side] alpha of one shape, drawn four times larger and averaged down."""
    scale = 4
    n = side * scale
    canvas = Image.new("L", (n, n))
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((0, 0, n - 1, n - 1), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, n - 1, n - 1), fill=255)
        draw.ellipse((n * 0.28, n * 0.28, n * 0.72, n * 0.72), fill=0)
    elif shape == "square":
        draw.rectangle((0, 0, n - 1, n - 1), fill=255)
    elif shape == "triangle":
        draw.polygon([(n / 2, 0), (n - 1, n - 1), (0, n - 1)], fill=255)
    elif shape == "cross":
        draw.rectangle((n * 0.33, 0, n * 0.67, n - 1), fill=255)
        draw.rectangle((0, n * 0.33, n - 1, n * 0.67), fill=255)
    else:  # star
        turn = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, n / 2, n / 4.6)
        draw.polygon([(n / 2 + r * np.cos(t), n / 2 + r * np.sin(t)) for t, r in zip(turn, radius)], fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float32) / 255


# --- composing --------------------------------------------------------------------------------------------


def compose(
    rng: np.random.Generator,
    stamps: StampSource,
    count: int,
    *,
    labels: Sequence[str | None] | None = None,
    split: Split = "train",
    size: tuple[int, int] = (64, 64),
    side: tuple[int, int] = (14, 26),
    behind: np.ndarray | None = None,
) -> Scene:
    """A scene of `count` things that do not overlap, on a background of the split's pool.

    `behind`: RGB [height, width, 3] of this size instead of a background of the pool. `labels` fixes what some of
    them are; `side` is the range of their height in pixels. When a thing finds no free place in 60 tries the scene
    begins anew with smaller things, so that `count` is always met.
    """
    width, height = size
    start, stop = BACKGROUNDS[split]
    largest = side[1]
    while True:
        drawn = background(int(rng.integers(start, stop)), width, height) if behind is None else behind
        canvas = drawn.astype(np.float32)
        things: list[Thing] = []
        for index in range(count):
            wanted = labels[index] if labels is not None else None
            stamp = stamps(rng, canvas.mean((0, 1)), wanted, int(rng.integers(side[0], largest + 1)))
            box = _free_place(rng, stamp, things, width, height)
            if box is None:
                break
            x1, y1, x2, y2 = box
            cut = canvas[y1:y2, x1:x2]
            cut += stamp.alpha[..., None] * (np.array(stamp.color, np.float32) - cut)
            things.append(Thing(label=stamp.label, box=box))
        if len(things) == count:
            image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
            return Scene(image=image, things=tuple(sorted(things, key=lambda thing: thing.box)))
        largest = max(side[0], largest - 2)


def _free_place(
    rng: np.random.Generator, stamp: Stamp, things: list[Thing], width: int, height: int
) -> tuple[int, int, int, int] | None:
    """A box for the stamp that keeps a pixel away from all others, or None."""
    h, w = stamp.alpha.shape
    if w > width or h > height:
        return None
    for _ in range(60):
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        if all(
            x >= b[2] + 1 or x + w + 1 <= b[0] or y >= b[3] + 1 or y + h + 1 <= b[1]
            for b in (t.box for t in things)
        ):
            return x, y, x + w, y + h
    return None
