"""The photographs inside the package, and what is cut from them: crops, jitter, named colours. No questions here.

Sixty photographs that other free packages ship (public domain, CC0, CC BY; `data/photos.LICENSE` names author,
licence and source of each), at most 224 pixels a side. A photograph is in exactly one split.

Try it: python -c "from fovea.tasks.photographs import *; render(window(generator(0), 'cat', 1.0), (96, 96)).show()"
"""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fovea.tasks.scenes import DATA, SPLITS, Split, generator

__all__ = ["NAMED", "Window", "chroma", "detail", "dominant", "generator", "grey", "jitter", "load", "names"]
__all__ += ["plain_windows", "recolor", "render", "window"]

SHARES = (0.7, 0.1, 0.2)
"""Of the photographs, for train, validation and test."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A part of a photograph. Example: Window(name="cat", box=(10.0, 5.0, 106.0, 101.0))"""

    name: str
    box: Box
    """(x1, y1, x2, y2) in pixels of the photograph as it is stored."""


# --- the pool ---------------------------------------------------------------------------------------------


@functools.cache
def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO((DATA / "photos.zip").read_bytes()))


@functools.cache
def names(split: Split) -> tuple[str, ...]:
    """The split's photographs, in the order of their names' hash, which also divides them."""
    order = sorted((name.removesuffix(".webp") for name in _archive().namelist()), key=_rank)
    first = round(len(order) * SHARES[0])
    second = round(len(order) * (SHARES[0] + SHARES[1]))
    parts = dict(zip(SPLITS, (order[:first], order[first:second], order[second:])))
    return tuple(parts[split])


def _rank(name: str) -> int:
    return zlib.crc32(f"photo {name}".encode())


@functools.cache
def load(name: str) -> Image.Image:
    """A photograph, decoded once. Not to be drawn on."""
    return Image.open(io.BytesIO(_archive().read(f"{name}.webp"))).convert("RGB")


# --- crops ------------------------------------------------------------------------------------------------


def window(
    rng: np.random.Generator, name: str, aspect: float, least: float = 0.4, most: float = 1.0
) -> Window:
    """A part of a photograph, `aspect` = width / height, `least` to `most` as large as the largest that fits."""
    width, height = load(name).size
    full = min(width, height * aspect)
    w = full * rng.uniform(least, most)
    h = w / aspect
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return Window(name=name, box=(x, y, x + w, y + h))


def render(part: Window, size: tuple[int, int]) -> Image.Image:
    """The part at a size in pixels."""
    return load(part.name).resize(size, Image.Resampling.BILINEAR, box=part.box)


def jitter(rng: np.random.Generator, picture: Image.Image, strength: float = 1.0) -> Image.Image:
    """Brightness and contrast up to 15 %, each channel up to 4 % more or less, all times `strength`."""
    pixels = np.asarray(picture, np.float32)
    gain = (1 + strength * rng.uniform(-0.15, 0.15)) * (1 + strength * rng.uniform(-0.04, 0.04, 3))
    middle = pixels.mean((0, 1))
    contrast = 1 + strength * rng.uniform(-0.15, 0.15)
    changed = (middle + (pixels - middle) * contrast) * gain
    return Image.fromarray(np.clip(changed, 0, 255).astype(np.uint8))


def grey(picture: Image.Image) -> np.ndarray:
    """float32 [h, w], 0 to 255."""
    return np.asarray(picture.convert("L"), np.float32)


def detail(picture: Image.Image) -> float:
    """Mean absolute difference of neighbouring pixels in grey levels: high where sharp, low where blurred."""
    levels = grey(picture)
    return float(np.abs(np.diff(levels, axis=0)).mean() + np.abs(np.diff(levels, axis=1)).mean())


def chroma(picture: Image.Image) -> float:
    """Mean difference of a pixel's largest and smallest channel, 0 (grey) to 255."""
    pixels = np.asarray(picture, np.int16)
    return float((pixels.max(2) - pixels.min(2)).mean())


# --- named colours ----------------------------------------------------------------------------------------

# Degrees of hue [from, to) between which everyone uses the name, with gaps where names are disputed.
_HUES = {
    "orange": (16, 40),
    "yellow": (46, 66),
    "green": (80, 155),
    "cyan": (170, 195),
    "blue": (207, 250),
    "purple": (265, 310),
    "red": (345, 368),
}
NAMED = (*_HUES, "white")
"""Colours that a crop can be asked for."""
_BINS = 12
_COARSE = 4  # windows are sought in photographs reduced by this


def _hsv(picture: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value 0 to 1; float32 [h, w] each."""
    hue, saturation, value = np.moveaxis(np.asarray(picture.convert("HSV"), np.float32), 2, 0)
    return hue * (360 / 256), saturation / 255, value / 255


def color_shares(picture: Image.Image) -> dict[str, float]:
    """The share of the pixels that have each named colour. Dark, pale and disputed pixels have none."""
    hue, saturation, value = _hsv(picture)
    vivid = (saturation > 0.35) & (value > 0.3)
    shares = {}
    for name, (low, high) in _HUES.items():
        bright = (
            value > 0.5 if name in ("orange", "yellow") else True
        )  # darker ones are called brown and olive
        shares[name] = float((vivid & bright & ((hue - low) % 360 < high - low)).mean())
    shares["white"] = float(((saturation < 0.12) & (value > 0.82)).mean())
    return shares


def dominant(picture: Image.Image) -> str | None:
    """The named colour of at least half of the pixels if no other has more than a fifth, else None."""
    shares = color_shares(picture)
    second, first = sorted(shares, key=lambda name: shares[name])[-2:]
    return first if shares[first] >= 0.5 and shares[second] <= 0.2 else None


def recolor(picture: Image.Image, color: str) -> Image.Image:
    """All hues turned together so that the mean hue becomes `color`'s; not for white."""
    hue, saturation, value = _hsv(picture)
    turn = np.where((saturation > 0.35) & (value > 0.3), np.exp(1j * np.radians(hue)), 0).sum()
    low, high = _HUES[color]
    hue = (hue + (low + high) / 2 - np.degrees(np.angle(turn))) % 360
    value = np.minimum(1, value * 1.2) if color in ("orange", "yellow") else value
    turned = np.stack([hue * (256 / 360), saturation * 255, value * 255], 2)
    return Image.fromarray(turned.astype(np.uint8), "HSV").convert("RGB")


@functools.cache
def plain_windows(split: Split, white: bool) -> tuple[tuple[Window, ...], ...]:
    """Square windows in which nearly everything vivid has nearly one hue, or is white; one tuple a photograph."""
    found = []
    for name in names(split):
        photo = load(name)
        hue, saturation, value = _hsv(photo.resize((photo.width // _COARSE, photo.height // _COARSE)))
        vivid, pale = (saturation > 0.35) & (value > 0.4), (saturation < 0.12) & (value > 0.82)
        maps = np.concatenate([vivid & (np.arange(_BINS)[:, None, None] == hue // (360 / _BINS)), pale[None]])
        windows: list[Window] = []
        for side in (10, 14, 20, 28):
            shares = _shares(maps, side)
            hues, all_vivid = shares[:_BINS] + np.roll(shares[:_BINS], 1, 0), shares[:_BINS].sum(0)
            one_hue = (hues.max(0) > 0.6) & (all_vivid - hues.max(0) < 0.12)
            chosen = (shares[_BINS] > 0.55) & (all_vivid < 0.15) if white else one_hue
            for y, x in (np.argwhere(chosen) * 2).tolist():
                x1, y1, x2, y2 = (_COARSE * value for value in (x, y, x + side, y + side))
                windows.append(Window(name=name, box=(x1, y1, x2, y2)))
        if windows:
            found.append(tuple(windows))
    return tuple(found)


def _shares(maps: np.ndarray, side: int) -> np.ndarray:
    """float [n, rows, columns]: mean of each map in every second square of `side` pixels; empty if none fits."""
    n, height, width = maps.shape
    if side > min(height, width):
        return np.zeros((n, 0, 0))
    sums = np.zeros((n, height + 1, width + 1), np.int32)  # of any rectangle, from four corners
    sums[:, 1:, 1:] = maps.cumsum(1, dtype=np.int32).cumsum(2, dtype=np.int32)
    inside = sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side] + sums[:, :-side, :-side]
    return inside[:, ::2, ::2] / side**2
