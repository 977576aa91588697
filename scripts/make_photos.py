"""Make src/fovea/data/photos.zip: the photographs that src/fovea/data/photos.LICENSE lists, reduced, as WebP.

    pip install pillow pillow-jxl-plugin && python scripts/make_photos.py FOLDER [FOLDER ...]

FOLDERs hold the unpacked packages that the table names, each in a folder whose name contains the word before the
first dash of the package's (budgie, lomiri, gcompris, tuxmath; scikit-image: skimage; scikit-learn: sklearn).
"""

import bz2
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pillow_jxl  # noqa: F401  (teaches Pillow to read .jxl)
from PIL import Image

LONGEST = 224
QUALITY = 85
DATA = Path("src/fovea/data")
FOLDERS = {"scikit-image": "skimage", "scikit-learn": "sklearn"}


def table() -> Iterator[list[str]]:
    """The rows of photos.LICENSE: name, file, package, author, licence, source."""
    text = (DATA / "photos.LICENSE").read_text(encoding="utf-8")
    for line in text.partition("name | file | package")[2].splitlines()[1:]:
        yield line.split(" | ")


def qt_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of everything in a Qt resource file (.rcc, formats 1 to 3; not zstd-compressed)."""
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    size = 14 if version == 1 else 22

    def walk(index: int) -> Iterator[tuple[str, bytes]]:
        at = tree + index * size
        name_at, flags = struct.unpack(">IH", data[at : at + 6])
        if flags & 2:  # a folder: how many children, the first one's index
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from walk(child)
            return
        length = struct.unpack(">H", data[names + name_at : names + name_at + 2])[0]
        name = data[names + name_at + 6 : names + name_at + 6 + 2 * length].decode("utf-16-be")
        start = contents + struct.unpack(">I", data[at + 10 : at + 14])[0]
        end = start + 4 + struct.unpack(">I", data[start : start + 4])[0]
        raw = data[start + 4 : end]
        yield name, zlib.decompress(raw[4:]) if flags & 1 else raw

    yield from walk(0)


def read(folder: Path, name: str) -> Image.Image:
    """A picture by its file's name, from a file, SciPy's compressed raccoon or a Qt resource."""
    for path in sorted(folder.rglob("*")):
        if path.name == name and path.suffix == ".dat":
            return Image.frombytes("RGB", (1024, 768), bz2.decompress(path.read_bytes()))
        if path.name == name:
            return Image.open(path)
    for path in sorted(folder.rglob("*.rcc")):
        for found, data in qt_resources(path.read_bytes()):
            if found == name:
                return Image.open(io.BytesIO(data))
    raise SystemExit(f"{name} is not under {folder}")


def reduced(picture: Image.Image) -> bytes:
    """As WebP without metadata, no side longer than LONGEST."""
    small = picture.convert("RGB")
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=QUALITY, method=6)
    return out.getvalue()


def main(folders: list[Path]) -> None:
    with zipfile.ZipFile(DATA / "photos.zip", "w") as archive:
        for name, file, package, *_ in sorted(table()):
            word = FOLDERS.get(package, package.partition("-")[0])
            folder = next(folder for folder in folders if word in folder.name)
            archive.writestr(zipfile.ZipInfo(f"{name}.webp"), reduced(read(folder.resolve(), file)))


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
