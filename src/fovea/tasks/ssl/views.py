"""What the generators share: cutting views out of pictures, treating them alike, telling whether they differ.

Every view of a problem goes through the same steps (one resample, one re-encoding), also the one that is not
changed: what was done to a view must be seen in what it shows, never in its size, sharpness, borders or JPEG grid.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter, ImageStat

from fovea.tasks.pool import Pool

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels of the picture that is cut."""

PLAIN = 16.0
"""Standard deviation in grey levels below which a view shows too little."""
SAME = 10.0
"""Mean absolute difference in grey levels of two small, smoothed views below which they count as the same."""


def draw(rng: np.random.Generator, images: Pool, n: int = 1) -> list[int]:
    """Numbers of `n` different pictures, each equally likely (fewer where the pool has fewer)."""
    return [int(i) for i in rng.choice(len(images), min(n, len(images)), replace=False)]


def window(
    rng: np.random.Generator,
    size: tuple[int, int],
    aspect: float = 1.0,
    least: float = 0.6,
    most: float = 1.0,
) -> Box:
    """A part of a picture of `size`, width / height = `aspect`, its sides `least` to `most` of the largest that
    fits."""
    width, height = size
    w = min(width, height * aspect) * rng.uniform(least, most)
    h = min(w / aspect, height)  # by an ulp it may be more, and no box may pass the edge by that
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return x, y, min(x + w, width), min(y + h, height)


def fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """A picture's size scaled down, never up, so that neither side is above `side`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def render(picture: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """The part of a picture at a size in pixels: one antialiased resample, whatever the scale.

    It weighs two pixels beyond the box, of the picture or of the view, whichever are larger: parts that must not know
    of each other need a gap of at least twice that between them.
    """
    return picture.resize(size, Image.Resampling.BICUBIC, box=box)


def encode(picture: Image.Image, quality: int) -> Image.Image:
    """The picture after JPEG compression."""
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=quality, subsampling=0)
    return Image.open(io.BytesIO(held.getvalue())).convert("RGB")


def finish(rng: np.random.Generator, views: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    """The last step of every generator: all views compressed alike, at one quality drawn for the problem."""
    quality = int(rng.integers(80, 96))
    return tuple(encode(view, quality) for view in views)


def tint(rng: np.random.Generator, view: Image.Image, strength: float) -> Image.Image:
    """Brightness and contrast up to 30 %, each channel up to 15 % more or less, all times `strength` (0 to 1).

    Against colour statistics. The shift between channels by which chromatic aberration gives a place away (Doersch et
    al. 2015, section 3.1) stays, made fainter by how differently the channels are scaled and by scaling down.
    """
    pixels = np.asarray(view, np.float32)
    gain = (1 + strength * rng.uniform(-0.3, 0.3)) * (1 + strength * rng.uniform(-0.15, 0.15, 3))
    middle = pixels.mean((0, 1), dtype=np.float64)  # exact, so the same whatever order a machine adds in
    contrast = 1 + strength * rng.uniform(-0.3, 0.3)
    tinted = (middle + (pixels - middle) * contrast) * gain
    return Image.fromarray(np.clip(np.rint(tinted), 0, 255).astype(np.uint8))


def small(view: Image.Image, side: int = 16) -> np.ndarray:
    """float32 [side, side]: grey levels of a small, smoothed copy, mean 0: for comparing what two views show."""
    levels = view.convert("L").filter(ImageFilter.BoxBlur(max(1.0, max(view.size) / 64)))
    grey = np.asarray(levels.resize((side, side), Image.Resampling.BOX), np.float32)
    return grey - grey.mean()


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference of two views in grey levels, brightness apart."""
    return float(np.abs(small(a) - small(b)).mean())


def detail(view: Image.Image) -> float:
    """Log of the mean difference of neighbouring pixels in grey levels: goes with sharpness and with a file's bytes."""
    grey = np.asarray(view.convert("L"), np.int32)
    across, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    return float(np.log(1 + across.sum() / max(1, across.size) + down.sum() / max(1, down.size)))


def plain(view: Image.Image) -> bool:
    """Whether a view shows too little to ask about."""
    return float(ImageStat.Stat(view.convert("L")).stddev[0]) < PLAIN  # of whole numbers: the same everywhere
