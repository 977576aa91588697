"""What a pool reads of one picture: its size and print once, its pixels under the cap, its depth map.

Not here: which pictures a pool holds (`fovea.tasks.pool_sources`), formats and modes (`fovea.tasks.pictures`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from fovea.tasks.near_duplicates import Print, fingerprint
from fovea.tasks.pictures import BadPicture, Lies, Size, key_of, opened, quiet, to_rgb, turned
from fovea.tasks.pool_files import DepthMap

T = TypeVar("T")
R = TypeVar("R")

LEAST_FRAMES = 4
"""An animation with fewer frames counts as the one picture that its first frame is."""
MOST_FRAMES = 64
"""Of a longer animation so many are taken, evenly spread."""
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_LONGEST_ANIMATION = 10_000
_SMALL = 128 * 128  # pixels of the copy that the print is taken of


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What is known of a picture file after it was read once."""

    size: Size
    """Whole and upright."""
    frames: tuple[int, ...]
    """(0,) of a still picture."""
    prints: tuple[Print, ...]
    """One for each frame."""


_known: dict[Hashable, Examined] = {}
"""By `key()` of where the picture lies: a file that has changed is read again."""


def examine_all(refs: Sequence[Lies], megapixels: float) -> list[Examined | BadPicture]:
    """Each picture read whole once a process, on all cores."""
    return in_threads(lambda ref: _examine(ref, megapixels), refs)


def in_threads(function: Callable[[T], R], given: Sequence[T]) -> list[R]:
    """As `map`, on all cores: Pillow decodes without Python's lock."""
    workers = min(8, os.cpu_count() or 1)
    if len(given) < 16 or workers == 1:
        return [function(one) for one in given]
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(function, given))


def _examine(ref: Lies, megapixels: float) -> Examined | BadPicture:
    try:
        key = key_of(ref)
        found = _known.get(key)
        if found is None:
            found = _read(ref, megapixels)
            _known[key] = found
        if found.size[0] * found.size[1] > megapixels * 1e6:  # known from a pool that allowed more
            raise BadPicture(f"the picture {ref} has more than {megapixels:g} megapixels", "scale it down")
        return found
    except BadPicture as error:
        return error


def _read(ref: Lies, megapixels: float) -> Examined:
    with opened(ref, megapixels) as (image, size, turn):
        frames = _frames(ref, image)
        prints = []
        for frame in frames:
            if frame:
                image.seek(frame)
            prints.append(fingerprint(_scaled_down(image, _SMALL, turn)))
        return Examined(size=size, frames=frames, prints=tuple(prints))


def _frames(ref: Lies, image: Image.Image) -> tuple[int, ...]:
    n = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
    if n < LEAST_FRAMES:
        return (0,)
    if n > _LONGEST_ANIMATION:
        raise BadPicture(f"the animation {ref} has {n:,} frames", f"cut it to {_LONGEST_ANIMATION:,}")
    return tuple(int(i) for i in np.linspace(0, n - 1, min(n, MOST_FRAMES)).round())


# --- pixels -----------------------------------------------------------------------------------------------


def capped(size: Size, most: int) -> Size:
    """The size of a picture of at most `most` pixels, its sides in the same ratio."""
    part = min(1.0, (most / (size[0] * size[1])) ** 0.5)
    return max(1, int(size[0] * part)), max(1, int(size[1] * part))


def decode_capped(ref: Lies, most: int, megapixels: float, frame: int = 0) -> Image.Image:
    """RGB, upright, at most `most` pixels. `frame`: of an animation. Raises BadPicture."""
    with opened(ref, megapixels) as (image, _, turn):
        if frame:
            image.seek(frame)
        return _scaled_down(image, most, turn)


def _scaled_down(image: Image.Image, most: int, turn: int) -> Image.Image:
    size = capped(image.size, most)
    if size != image.size and image.format in ("JPEG", "MPO"):
        image.draft(
            None, size
        )  # 1/2, 1/4 or 1/8 of the sides, never smaller than asked: up to 5 times faster
    picture = to_rgb(image)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return turned(picture, turn)


# --- depth maps -------------------------------------------------------------------------------------------


_known_depths: dict[Hashable, Size] = {}


def examine_depths(
    maps: Sequence[DepthMap | None], pictures: Sequence[Examined | BadPicture], megapixels: float
) -> list[BadPicture]:
    """What is wrong with the depth maps of pictures; each is read whole once a process."""
    both = [
        (one, picture.size) for one, picture in zip(maps, pictures) if one and isinstance(picture, Examined)
    ]

    def wrong(one: tuple[DepthMap, Size]) -> BadPicture | None:
        try:
            _check_depth(*one, megapixels)
        except BadPicture as error:
            return error
        return None

    return [found for found in in_threads(wrong, both) if found is not None]


def _check_depth(depth: DepthMap, size: Size, megapixels: float) -> None:
    key = key_of(depth.ref)
    if key not in _known_depths:
        height, width = _depth(depth, megapixels).shape
        _known_depths[key] = width, height
    width, height = _known_depths[key]
    if abs(height - width * size[1] / size[0]) > max(1.5, 0.02 * height):
        raise BadPicture(
            f"the depth map {depth.ref} is {width} x {height}, its upright picture {size[0]} x {size[1]}",
            "give it the picture's shape",
        )


def read_depth(depth: DepthMap, size: Size, megapixels: float) -> np.ndarray:
    """float32 [height, width] at `size`, larger is farther, NaN where it is 0, negative or not finite.

    Nearest cell: a mean of near and far would be a depth that is nowhere. Raises BadPicture.
    """
    whole = _depth(depth, megapixels)
    height, width = whole.shape
    rows = (np.arange(size[1]) + 0.5) * height / size[1]
    columns = (np.arange(size[0]) + 0.5) * width / size[0]
    return whole[rows.astype(int)][:, columns.astype(int)]


def _depth(depth: DepthMap, megapixels: float) -> np.ndarray:
    if depth.npy:
        found = _array(depth.ref, megapixels).astype(np.float32)
    else:
        with opened(depth.ref, megapixels) as (image, _, _turn):
            if image.mode not in ("I;16", "I;16B", "I", "L"):
                raise BadPicture(
                    f"the depth map {depth.ref} is no grey picture", "write 16-bit grey PNG or .npy"
                )
            found = np.asarray(image).astype(np.float32)
    found[~(np.isfinite(found) & (found > 0))] = np.nan
    return found


def _array(ref: Lies, megapixels: float) -> np.ndarray:
    """A two-dimensional array of real numbers from a .npy file, never a pickle. Raises BadPicture."""
    try:
        with quiet, ref.open() as stream:
            old = np.lib.format.read_magic(stream) == (1, 0)
            header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(stream)
            if len(shape) != 2 or dtype.kind not in "fiu" or min(shape) < 1:
                raise BadPicture(
                    f"the depth map {ref} is {dtype} {shape}", "save real numbers [height, width]"
                )
            if shape[0] * shape[1] > megapixels * 1e6:
                raise BadPicture(
                    f"the depth map {ref} has more than {megapixels:g} megapixels", "scale it down"
                )
            stream.seek(0)
            return np.array(np.lib.format.read_array(stream, allow_pickle=False))
    except BadPicture:
        raise
    except Exception as error:  # ValueError, EOFError, SyntaxError, OSError: no .npy file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadPicture(
            f"the depth map {ref} cannot be read ({reason})", "save it again with numpy"
        ) from None
