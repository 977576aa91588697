"""Fonts of the printed pictures: a few free ones, shipped as printable ASCII; each split has its own.

Try it: python -c "from fovea.tasks.fonts import *; print(font('test', generator(0), 20).getname())"
"""

from __future__ import annotations

import functools
import io
import zipfile

import numpy as np
from PIL import ImageFont

from fovea.tasks.scenes import DATA, Split, generator

__all__ = ["font", "font_names", "generator", "load", "pick"]


@functools.cache
def _archive() -> dict[str, bytes]:
    with zipfile.ZipFile(DATA / "fonts.zip") as archive:
        return {name: archive.read(name) for name in sorted(archive.namelist())}


def font_names(split: Split) -> tuple[str, ...]:
    """The fonts of a split; no font is in two."""
    return tuple(name for name in _archive() if name.startswith(f"{split}/"))


def pick(split: Split, rng: np.random.Generator) -> str:
    """The name of one of the split's fonts."""
    names = font_names(split)
    return names[int(rng.integers(len(names)))]


@functools.lru_cache(maxsize=512)
def load(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at `size` pixels an em (a capital letter is about 0.7 em high)."""
    return ImageFont.truetype(io.BytesIO(_archive()[name]), size, layout_engine=ImageFont.Layout.BASIC)


def font(split: Split, rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    """One of the split's fonts at `size` pixels an em."""
    return load(pick(split, rng), size)
