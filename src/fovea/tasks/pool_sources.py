"""From any pictures to a pool: a folder, a zip or tar archive, parquet, a saved or hub dataset, or several of them.

Every picture is read whole once when the pool is opened (remembered for the process): a broken one is found now.
Near-duplicates are one picture: the first by name stays. Content, not names, decides the split. What is left out
says `FilePool.notes`; what cannot be read is one UserError that names the first.

    NAME.depth.png, NAME.depth.npy,   the depth map of NAME.jpg: larger is farther, 0 unknown (16-bit PNG or numbers)
    depth/NAME.png, depth/NAME.npy    the same, in a folder beside the pictures
    NAME.frames/…                     a sequence of frames, in the order of the numbers in their names
    an animation of 4 or more frames  (GIF, WebP, PNG, AVIF) likewise, at most 64 of its frames

Try it: `len(open_pool("photos", "train"))`
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fovea.tasks.near_duplicates import Print, groups, pairs
from fovea.tasks.pictures import MEGAPIXELS, SUFFIXES, BadPicture, Lies, PictureCache, Size, key_of, printable
from fovea.tasks.pool import SIDE, BuiltIn, Pool
from fovea.tasks.pool_files import DepthMap, Listing, few, listing, natural, sequence_of, stem
from fovea.tasks.pool_pictures import (
    Examined,
    capped,
    decode_capped,
    examine_all,
    examine_depths,
    read_depth,
)
from fovea.tasks.scenes import DATA, Split
from fovea.tasks.splits import split_of
from fovea.types import UserError

Sources = str | Path | Sequence[str | Path]

MAX_PIXELS = 1_000_000
LEAST_SIDE = 32
"""Pictures with a shorter side are left out: a view that is cut from them shows nothing."""
LEAST_POOL = 10
"""Pictures that a split must have."""
CACHE_BYTES = 1_000_000_000
CACHE = PictureCache(CACHE_BYTES)
"""Decoded pictures of all pools of the process: about 250 of a megapixel."""


@dataclass(slots=True)
class Decoding:
    """What decoding has cost since the pool was opened."""

    decoded: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A picture of a pool."""

    name: str
    ref: Lies
    frame: int
    """Of an animation; 0 of a still picture."""
    size: Size
    """Whole and upright; what is shown is under the cap."""
    print: Print
    depth: DepthMap | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePool:
    """The pictures of one split. Those with numbers below `len` are one for each photograph; the frames of a
    sequence but its first have numbers from there on, so that who draws from `len` draws no sequence twice."""

    source: str
    split: Split
    side: int
    items: tuple[Item, ...]
    count: int
    """`len`: items before it are drawn."""
    found: tuple[tuple[int, ...], ...] = ()
    """The sequences."""
    removed: tuple[tuple[str, str], ...] = ()
    """(name, of which it is a near-duplicate), over all splits."""
    notes: tuple[str, ...] = ()
    """What was left out and why, a clause each."""
    max_pixels: int = MAX_PIXELS
    megapixels: float = MEGAPIXELS
    cost: Decoding = field(default_factory=Decoding, compare=False)

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return self.items[i].name

    def picture(self, i: int) -> Image.Image:
        item = self.items[i]
        try:
            key = (key_of(item.ref), item.frame, self.max_pixels)
            picture = CACHE.kept(key, lambda: self._decode(item))
            if picture.size != capped(item.size, self.max_pixels):
                raise BadPicture(
                    f"the picture {item.ref} has changed since the pool was opened", "start again"
                )
        except BadPicture as error:
            raise refusal(self.source, [error]) from None
        return picture

    def depth(self, i: int) -> np.ndarray | None:
        item = self.items[i]
        at = item.depth
        if at is None:
            return None
        size = capped(item.size, self.max_pixels)

        def make() -> Image.Image:
            return Image.fromarray(read_depth(at, size, self.megapixels))  # 32-bit floats

        try:
            return np.array(CACHE.kept((key_of(at.ref), "depth", size), make))
        except BadPicture as error:
            raise refusal(self.source, [error]) from None

    def sequences(self) -> tuple[tuple[int, ...], ...]:
        return self.found

    @property
    def decoded(self) -> int:
        """Pictures decoded since the pool was opened; the cache had the others."""
        return self.cost.decoded

    @property
    def decode_seconds(self) -> float:
        return self.cost.seconds

    def _decode(self, item: Item) -> Image.Image:
        start = time.perf_counter()
        picture = decode_capped(item.ref, self.max_pixels, self.megapixels, item.frame)
        self.cost.seconds += time.perf_counter() - start
        self.cost.decoded += 1
        return picture


def open_pool(
    source: Sources | None,
    split: Split,
    *,
    side: int = SIDE,
    max_pixels: int = MAX_PIXELS,
    duplicates: Literal["remove", "keep"] = "remove",
    transductive: bool = False,
    validation: Sources | None = None,
    megapixels: float = MEGAPIXELS,
    download: bool = False,
    depth: str | Path | None = None,
) -> Pool:
    """The pictures of a split; without a source those in the package.

    70 % of the photographs are "train", 10 % "validation", 20 % "test". With `validation` its pictures are the split
    "validation", and the first 80 % of the source "train"; a photograph that is in both is refused. With `transductive`
    every split holds all pictures, and nothing measured on them says how a model does on others.
    `max_pixels`: larger pictures are scaled down. `megapixels`: larger ones are refused. `duplicates="keep"`: copies
    stay, in the split of their first. `depth`: a folder of depth maps named as the pictures. Raises UserError for the
    first picture that cannot be used, and where a split would have fewer than ten.
    """
    if source is None and not transductive and validation is None:
        return BuiltIn(split=split, side=side)
    own = _whole(
        DATA / "photos.zip" if source is None else source, max_pixels, duplicates, megapixels, download, depth
    )
    held = None
    if validation is not None:
        held = _whole(validation, max_pixels, duplicates, megapixels, download, None)
        if not transductive:
            _refuse_overlap(own, held)
    if split == "validation" and held is not None:
        chosen = held.units
    elif transductive:
        chosen = own.units
    else:
        parts = ("train", "validation") if split == "train" and held is not None else (split,)
        chosen = [unit for unit in own.units if unit.split in parts]
    whole = held if split == "validation" and held is not None else own
    if len(chosen) < LEAST_POOL and not transductive:
        raise UserError(
            f"{whole.source} gives only {len(chosen)} {split} pictures of {len(whole.units)} different ones, and "
            f"{LEAST_POOL} are needed; give about {_enough(split, whole is held)}, or accept evaluating on the "
            "pictures that are trained on with pictures.transductive=true."
        )
    return _of_units(whole, chosen, split, side, max_pixels, megapixels)


def _enough(split: Split, alone: bool) -> int:
    """Photographs of which a split gets ten with some certainty."""
    return LEAST_POOL if alone else {"train": 30, "validation": 200, "test": 100}[split]


# --- files to photographs ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Unit:
    """A photograph or a sequence: what is in one split."""

    items: tuple[Item, ...]
    split: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class _Whole:
    """A source with all its splits."""

    source: str
    units: list[_Unit]
    removed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def _whole(
    source: Sources,
    max_pixels: int,
    duplicates: Literal["remove", "keep"],
    megapixels: float,
    download: bool,
    depth: str | Path | None,
) -> _Whole:
    if max_pixels < LEAST_SIDE**2:
        raise UserError(
            f"max_pixels is {max_pixels}; give at least {LEAST_SIDE**2}, for example {MAX_PIXELS}."
        )
    named = [source] if isinstance(source, str | Path) else list(source)
    if not named:
        raise UserError("The list of picture sources is empty; name a folder, an archive or a data set.")
    label = " and ".join(str(one) for one in named)
    sequences, notes = _examined(label, listing(named, download, depth), megapixels)
    return _grouped(label, sequences, duplicates, notes)


def _examined(label: str, found: Listing, megapixels: float) -> tuple[list[list[Item]], list[str]]:
    """Everything read once and refused where it cannot be used: photographs and sequences by name, and notes."""
    results = examine_all([ref for _, ref in found.pictures], megapixels)
    depths = [found.maps.get(stem(name)) for name, _ in found.pictures]
    misfits = examine_depths(depths, results, megapixels)
    bad = found.bad + [one for one in results if isinstance(one, BadPicture)] + misfits
    if bad:
        raise refusal(label, bad)
    small: list[str] = []
    units: dict[str, list[Item]] = {}
    for (name, ref), result, depth in zip(found.pictures, results, depths):
        assert isinstance(result, Examined)
        if min(result.size) < LEAST_SIDE:
            small.append(name)
            continue
        moving = len(result.frames) > 1
        for frame, one in zip(result.frames, result.prints):
            item = Item(
                name=f"{name}#{frame + 1}" if moving else name, ref=ref, frame=frame, size=result.size, print=one,
                depth=None if moving else depth,
            )  # fmt: skip
            units.setdefault(sequence_of(name), []).append(item)
    notes = list(found.notes)
    if small:
        why = f"have a side under {LEAST_SIDE} pixels, too small to cut a view from"
        notes.append(f"{len(small)} pictures {why} ({few(small)})")
    if not units:
        raise UserError(f"{label} holds no pictures; known endings: {', '.join(SUFFIXES)}.")
    return [sorted(units[name], key=lambda item: natural(item.name)) for name in sorted(units)], notes


def _grouped(
    label: str, sequences: list[list[Item]], duplicates: Literal["remove", "keep"], notes: list[str]
) -> _Whole:
    """Photographs and sequences with their split; of copies the first, of copies of frames the sequence."""
    unit_of = [i for i, items in enumerate(sequences) for _ in items]
    links = _links(tuple(item.print for items in sequences for item in items), tuple(unit_of))
    group_of = groups(len(sequences), ((unit_of[i], unit_of[j]) for i, j in links))
    inside: dict[int, list[int]] = {}
    for i, group in enumerate(group_of):
        inside.setdefault(group, []).append(i)
    units, removed = list[tuple[int, _Unit]](), []
    for copies in inside.values():
        # The least digest, not the first name's: what a file is called has no say in its split.
        split = split_of(min(item.print.content for i in copies for item in sequences[i]))
        films = [i for i in copies if len(sequences[i]) > 1]
        kept = copies if duplicates == "keep" else films or copies[:1]
        first = sequences[kept[0]][0].name
        removed += [(sequences[i][0].name, first) for i in copies if i not in kept]
        units += [(i, _Unit(items=tuple(sequences[i]), split=split)) for i in kept]
    if removed:
        shown = few([f"{name} is {first} again" for name, first in sorted(removed)])
        notes.append(f"{len(removed)} near-duplicates ({shown})")
    ordered = [unit for _, unit in sorted(units, key=lambda one: one[0])]
    return _Whole(source=label, units=ordered, removed=tuple(sorted(removed)), notes=tuple(notes))


@lru_cache(maxsize=8)
def _links(prints: tuple[Print, ...], units: tuple[int, ...]) -> list[tuple[int, int]]:
    """Remembered for all splits, which are opened one after the other."""
    return pairs(prints, units=units)


def _of_units(
    whole: _Whole, chosen: list[_Unit], split: Split, side: int, max_pixels: int, megapixels: float
) -> FilePool:
    items = [unit.items[0] for unit in chosen]
    found = []
    for i, unit in enumerate(chosen):
        if len(unit.items) > 1:
            found.append((i, *range(len(items), len(items) + len(unit.items) - 1)))
            items += unit.items[1:]
    return FilePool(
        source=whole.source, split=split, side=side, items=tuple(items), count=len(chosen), found=tuple(found),
        removed=whole.removed, notes=whole.notes, max_pixels=max_pixels, megapixels=megapixels,
    )  # fmt: skip


def _refuse_overlap(own: _Whole, held: _Whole) -> None:
    first = [item for unit in own.units for item in unit.items]
    second = [item for unit in held.units for item in unit.items]
    both = pairs([item.print for item in first], [item.print for item in second])
    if both:
        i, j = both[0]
        more = f" ({len(both) - 1} more pairs)" if len(both) > 1 else ""
        raise UserError(
            f"{held.source}, which is evaluated on, holds pictures of {own.source}, which is trained on: "
            f"{printable(second[j].name)} is {printable(first[i].name)}{more}; take them out, or accept that with "
            "pictures.transductive=true."
        )


def refusal(label: str, bad: Sequence[BadPicture]) -> UserError:
    """What is wrong with the first, and how many there are."""
    more = f" ({len(bad) - 1} more bad pictures)" if len(bad) > 1 else ""
    return UserError(f"{label}: {bad[0]}{more}.")
