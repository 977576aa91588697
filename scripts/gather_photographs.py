"""Gathers photographs out of unpacked packages into one folder: the pictures that the figures of docs/ssl4rl.md are of.

    python scripts/gather_photographs.py OUT UNPACKED [UNPACKED ...]

UNPACKED is a folder with the files of one package; its name is the first part of the pictures' names. For the 376
photographs of the study, unpack these (`apt-get download NAME && dpkg -x FILE UNPACKED`, wheels with `unzip`):
gcompris-qt-data, opencv-doc, cimg-doc, hugin-data, plasma-workspace-wallpapers, lomiri-wallpapers-16.04,
mate-backgrounds and ukui-wallpapers of Debian 12; scikit-image 0.26.0 and ultralytics 8.4.190 of PyPI.
Their licences differ and some pictures are large, so none is in this repository.

Kept is what looks like a photograph: at least 160 pixels a side, many colours, few neighbouring pixels that are equal
(drawings, screenshots) and no large white or black area. Pictures inside Qt resource files (.rcc) are found by their
first bytes. Turned upright by EXIF, at most 1024 pixels a side, without near-duplicates (a difference hash), named by
the hash of the file they come from, written as JPEG of quality 92.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

LEAST_SIDE, MOST_SIDE = 160, 1024
LEAST_PNG = 150_000
"""Bytes; smaller ones are icons and diagrams."""
MOST_JPEG = 3_000_000
"""Bytes read from where a JPEG begins inside a resource file: where it ends is left to the decoder."""
ALIKE = 30
"""Of 256 bits: fewer different ones are the same photograph."""
MANUALS = ("opencv-doc", "cimg-doc")
"""Packages whose pictures are mostly plots and drawings: stricter limits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder for the photographs")
    parser.add_argument("unpacked", type=Path, nargs="+", help="folder with the files of one package")
    options = parser.parse_args()
    for folder in options.unpacked:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder; unpack the package there first.")
    options.out.mkdir(parents=True, exist_ok=True)
    counts = gather(options.out, sorted(options.unpacked))
    for name, count in counts.most_common():
        print(f"{name} {count}")
    print(f"{sum(counts.values())} photographs in {options.out}")


def gather(out: Path, unpacked: list[Path]) -> collections.Counter[str]:
    """Writes the photographs; package → how many."""
    kept: list[np.ndarray] = []
    counts: collections.Counter[str] = collections.Counter()
    for folder in unpacked:
        for blob in files(folder):
            picture = opened(blob)
            if picture is None or not is_photograph(picture, strict=folder.name in MANUALS):
                continue
            bits = difference_hash(picture)
            if any(int((bits != other).sum()) < ALIKE for other in kept):
                continue
            kept.append(bits)
            counts[folder.name] += 1
            picture.save(out / f"{folder.name}-{hashlib.sha1(blob).hexdigest()[:10]}.jpg", quality=92)
    return counts


def files(folder: Path) -> Iterator[bytes]:
    """What may be a picture, in the order of the names: files, and what lies inside resource files."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        ending = path.suffix.lower()
        large_png = ending == ".png" and path.stat().st_size > LEAST_PNG
        if ending in (".jpg", ".jpeg") or large_png:
            yield path.read_bytes()
        elif ending == ".rcc":
            yield from inside(path.read_bytes())


def inside(resources: bytes) -> Iterator[bytes]:
    """Pictures in a Qt resource file, which holds them as they are."""
    for found in re.finditer(b"\xff\xd8\xff", resources):
        yield resources[found.start() : found.start() + MOST_JPEG]
    for found in re.finditer(b"RIFF....WEBP", resources, re.DOTALL):
        size = int.from_bytes(resources[found.start() + 4 : found.start() + 8], "little") + 8
        yield resources[found.start() : found.start() + size]


def opened(blob: bytes) -> Image.Image | None:
    """Upright, in colour, under the largest side; nothing if it is no picture or a small one."""
    try:
        with Image.open(io.BytesIO(blob)) as picture:
            if min(picture.size) < LEAST_SIDE:
                return None
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # what Pillow raises for broken files
        return None
    upright.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    return upright


def is_photograph(picture: Image.Image, strict: bool) -> bool:
    """Whether colours are many, vary from pixel to pixel, and no large part is white or black."""
    pixels = np.asarray(picture).astype(int)
    small = np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR)).astype(int)
    equal = np.mean(np.abs(np.diff(pixels, axis=1)).sum(-1) == 0)
    grey = np.mean(np.ptp(small, axis=-1) < 6)
    colors = len(np.unique((small // 8) @ np.array([1024, 32, 1])))
    empty = max(np.mean(small.min(-1) > 245), np.mean(small.max(-1) < 6))
    if strict and (equal > 0.2 or colors < 1800 or grey > 0.7):
        return False
    return bool(equal <= 0.35 and grey <= 0.97 and colors >= 900 and empty <= 0.15)


def difference_hash(picture: Image.Image) -> np.ndarray:
    """256 bits: whether brightness rises from one of 17 x 16 cells to the next."""
    cells = np.asarray(picture.convert("L").resize((17, 16), Image.Resampling.BILINEAR)).astype(int)
    return (cells[:, 1:] > cells[:, :-1]).ravel()


if __name__ == "__main__":
    main()
