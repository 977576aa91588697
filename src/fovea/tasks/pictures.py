"""Pictures by reference: opened late, checked early, decoded through one bounded cache.

A `Pictures` is the `images` of a problem that comes from a file: a sequence that decodes on access. What travels
is where a picture lies (`FileRef`, `CellRef`) and how large it is. Every file is hostile until it was decoded
once: only `FORMATS` are opened (Pillow hands EPS to another program), and a picture above the limit of
megapixels is refused by its header, before anything is allocated.

Not here: problems (`fovea.tasks.records`), which pictures a model can read (`fovea.models`).

Try it: `open_pictures("photos")[0]`
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, overload

import numpy as np
from PIL import Image, UnidentifiedImageError

from fovea.types import UserError

Size = tuple[int, int]
"""(width, height) in pixels, after EXIF orientation."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".jp2", ".avif",
)  # fmt: skip
MEGAPIXELS = 100.0
"""Larger pictures are refused. Pillow itself opens none above 178."""
LONGEST = 200
"""A picture whose sides differ by more cannot be resized by any supported family (Qwen's `smart_resize`)."""
CACHE_BYTES = 256_000_000

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPicture(Exception):
    """Why a picture cannot be used, and the fix; the caller knows the file and the line."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem, self.fix = problem, fix


def printable(text: str, limit: int = 200) -> str:
    """A name out of a user's file, fit for a message on a terminal: no control characters, not endless."""
    return text if text.isprintable() and len(text) <= limit else ascii(text)[:limit]


# --- where a picture lies ---------------------------------------------------------------------------------


class Lies(Protocol):
    """Where a picture lies; `str` of it names the picture in messages."""

    def key(self) -> Hashable:
        """Changes when the picture does. Raises OSError or ValueError if it is not there."""
        ...

    def open(self) -> BinaryIO:
        """The bytes. Raises BadPicture."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRef:
    """A picture in a file of its own."""

    path: str

    def __str__(self) -> str:
        return printable(self.path)

    def key(self) -> Hashable:
        """Changes when the file does. Raises OSError or ValueError if it is not there."""
        found = os.stat(self.path)
        return self.path, found.st_mtime_ns, found.st_size

    def open(self) -> BinaryIO:
        """The bytes. Raises BadPicture for what is not a file with bytes (a pipe would be waited for)."""
        path = Path(self.path)
        try:
            if not path.exists():
                raise BadPicture(
                    f"the picture {self} does not exist", "set images=FOLDER if it lies elsewhere"
                )
            if not path.is_file():
                raise BadPicture(f"the picture {self} is not a file", "name a picture file")
            if path.stat().st_size == 0:
                raise BadPicture(f"the picture {self} holds no bytes", "copy it again")
            return path.open("rb")
        except (OSError, ValueError) as error:  # too long a name, no permission, a NUL in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise BadPicture(
                f"the picture {self} cannot be opened ({reason})",
                "correct its name or permissions",
            ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class CellRef:
    """A picture in a cell of a table (parquet, Hugging Face dataset); `table` stays on disk."""

    table: Any
    """`fovea.tasks.tables.Table`: hashable, with `picture_bytes(row, column, item)`."""
    row: int
    column: str
    item: int

    def __str__(self) -> str:
        return f"in column {self.column!r}" + (f" (number {self.item + 1})" if self.item else "")

    def key(self) -> Hashable:
        return self.table, self.row, self.column, self.item

    def open(self) -> BinaryIO:
        data = self.table.picture_bytes(self.row, self.column, self.item)
        if not data:
            raise BadPicture(f"the picture {self} holds no bytes", "write the table again with its pictures")
        return io.BytesIO(data)


Ref = FileRef | CellRef


# --- bytes to pixels --------------------------------------------------------------------------------------


class _Quiet:
    """Silences Pillow's warnings about hostile files, also with threads: the last one out restores the filters.

    `warnings.catch_warnings` alone would let two threads restore each other's filters in the wrong order.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._catcher = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._catcher = warnings.catch_warnings()
                self._catcher.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._catcher.__exit__(None, None, None)


quiet = _Quiet()


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """`FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def opened(ref: Lies, megapixels: float) -> Iterator[tuple[Image.Image, Size, int]]:
    """(undecoded picture, size after orientation, orientation); every failure inside becomes BadPicture."""
    try:
        with quiet, ref.open() as stream, Image.open(stream, formats=_formats()) as image:
            turn = _orientation(image)
            size = (image.height, image.width) if turn >= 5 else image.size
            _check_size(ref, size, megapixels)
            yield image, size, turn
    except BadPicture:
        raise
    except Image.DecompressionBombError:
        raise _too_large(ref, megapixels) from None
    except UnidentifiedImageError:
        raise BadPicture(
            f"the picture {ref} is not a picture that can be read",
            f"give one of {', '.join(_formats())}, whole and under its right name",
        ) from None
    # Pillow's decoders meet hostile bytes with OSError, SyntaxError, ValueError, struct.error, EOFError,
    # IndexError, TypeError, OverflowError, MemoryError and zlib.error: every one of them means the same here.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadPicture(f"the picture {ref} cannot be read ({reason})", "copy or export it again") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8, from the header alone; 1 where Pillow turns the pixels itself."""
    if image.format == "TIFF":
        return 1
    # A PNG without EXIF before its pixels would be decoded whole to look behind them.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    turn = image.getexif().get(_ORIENTATION, 1)
    return turn if turn in _TURNS else 1


def _check_size(ref: Lies, size: Size, megapixels: float) -> None:
    width, height = size
    if width * height > megapixels * 1e6:
        raise _too_large(ref, megapixels, f"{width} x {height} pixels, ")
    if min(size) < 1 or max(size) > LONGEST * min(size):
        raise BadPicture(
            f"the picture {ref} is {width} x {height} pixels, longer than {LONGEST} times its other side",
            "cut it",
        )


def _too_large(ref: Lies, megapixels: float, shown: str = "") -> BadPicture:
    return BadPicture(f"the picture {ref} has {shown}more than {megapixels:g} megapixels", "scale it down")


def read_size(ref: Lies, megapixels: float = MEGAPIXELS) -> Size:
    """Size after EXIF orientation, from the header. Raises BadPicture."""
    with opened(ref, megapixels) as (_, size, _turn):
        return size


def verify(ref: Lies, megapixels: float = MEGAPIXELS) -> Size:
    """Size after EXIF orientation, after decoding the whole picture once. Raises BadPicture.

    A JPEG is read to its end but only an eighth of its pixels are computed, which is about twice as fast.
    """
    with opened(ref, megapixels) as (image, size, turn):
        if image.format in ("JPEG", "MPO"):
            image.draft("L", (1, 1))
            image.load()
        else:
            _oriented(image, turn)
        return size


def decode(ref: Lies, megapixels: float = MEGAPIXELS) -> Image.Image:
    """The picture as RGB, turned by its EXIF orientation. Raises BadPicture."""
    with opened(ref, megapixels) as (image, _, turn):
        return _oriented(image, turn)


def _oriented(image: Image.Image, turn: int) -> Image.Image:
    return turned(to_rgb(image), turn)


def turned(picture: Image.Image, turn: int) -> Image.Image:
    """Upright by its EXIF orientation."""
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB, a picture of its own.

    Transparency is laid on white. 16-bit grey is divided by 257 (65535 becomes 255); 32-bit grey as 16-bit if it
    fits, else scaled to its maximum; floats in 0 to 1 are multiplied by 255. Nothing is clipped but negatives.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        solid = image.convert("RGBA")
        white = Image.new("RGBA", solid.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, solid).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((grey.astype(np.uint16) // 257).astype(np.uint8)).convert("RGB")
    values = np.nan_to_num(grey.astype(np.float64), posinf=0.0, neginf=0.0).clip(min=0)
    most = float(values.max(initial=0.0))
    if image.mode == "F":
        whole = 1.0 if most <= 1 else 255.0 if most <= 255 else most
    else:
        whole = 65535.0 if most <= 65535 else most
    return Image.fromarray((values * (255 / whole)).astype(np.uint8)).convert("RGB")


# --- the cache --------------------------------------------------------------------------------------------


class PictureCache:
    """The most recently used decoded pictures, at most `limit` bytes of pixels; safe with threads."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self._pictures: OrderedDict[Hashable, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ref: Lies, megapixels: float) -> Image.Image:
        """The picture, decoded now or kept. Raises BadPicture."""
        return self.kept(key_of(ref), lambda: decode(ref, megapixels))

    def kept(self, key: Hashable, make: Callable[[], Image.Image]) -> Image.Image:
        """What is kept under the key, else what `make` gives."""
        with self._lock:
            kept = self._pictures.get(key)
            if kept is not None:
                self._pictures.move_to_end(key)
                return kept
        picture = make()  # outside the lock: two threads may decode one picture twice
        with self._lock:
            if key not in self._pictures and _weight(picture) <= self.limit:
                self._pictures[key] = picture
                self.bytes += _weight(picture)
            while self.bytes > self.limit:
                self.bytes -= _weight(self._pictures.popitem(last=False)[1])
        return picture

    def clear(self) -> None:
        with self._lock:
            self._pictures.clear()
            self.bytes = 0


def key_of(ref: Lies) -> Hashable:
    """`ref.key()`. Raises BadPicture if the picture is not there."""
    try:
        return ref.key()
    except (OSError, ValueError):
        ref.open().close()  # says what is wrong
        raise BadPicture(f"the picture {ref} cannot be opened", "copy it again") from None


def _weight(picture: Image.Image) -> int:
    return picture.width * picture.height * 4  # Pillow keeps RGB in four bytes a pixel


CACHE = PictureCache()
"""One for the process, so that one bound holds for all tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures(Sequence[Image.Image]):
    """Pictures that are decoded when they are taken, RGB and turned by EXIF orientation; boxes refer to those.

    The cache may hand the same picture to others: copy before drawing on it. A slice is again a `Pictures`.
    """

    refs: tuple[Ref, ...]
    where: str = ""
    """For messages: file, line and problem id."""
    known: tuple[Size, ...] = ()
    """Sizes found when the data was checked; empty if it was not."""
    megapixels: float = MEGAPIXELS

    def __len__(self) -> int:
        return len(self.refs)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Pictures:
        if isinstance(index, slice):
            return Pictures(
                refs=self.refs[index],
                where=self.where,
                known=self.known[index],
                megapixels=self.megapixels,
            )
        ref = self.refs[index]
        try:
            picture = CACHE.get(ref, self.megapixels)
            if self.known and picture.size != self.known[index]:
                raise BadPicture(f"the picture {ref} has changed since it was checked", "start again")
        except BadPicture as error:
            raise self._error(error) from None
        return picture

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(width, height) of each, from headers: nothing is decoded. Raises UserError for a bad picture."""
        if self.known:
            return self.known
        try:
            return tuple(read_size(ref, self.megapixels) for ref in self.refs)
        except BadPicture as error:
            raise self._error(error) from None

    def _error(self, error: BadPicture) -> UserError:
        return UserError(
            f"{self.where}: {error}." if self.where else f"{str(error)[0].upper()}{str(error)[1:]}."
        )


def picture_files(folder: str | Path) -> list[Path]:
    """Every picture file below a folder, sorted by name, hidden ones left out. Raises UserError if there is none."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"The picture folder {folder} does not exist; name a folder.")
    found = (Path(base) / name for base, _, names in os.walk(root) for name in names)
    paths = sorted(
        path
        for path in found
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not paths:
        raise UserError(f"The folder {folder} holds no pictures; known endings: {', '.join(SUFFIXES)}.")
    return paths


def open_pictures(folder: str | Path, *, check: bool = True, megapixels: float = MEGAPIXELS) -> Pictures:
    """All pictures of a folder as a source for tasks that need no labels; subfolders included, order by name.

    `check` decodes each once, so that a broken file is found now. Raises UserError naming the first and how
    many there are.
    """
    refs = tuple(FileRef(path=str(path)) for path in picture_files(folder))
    known: tuple[Size, ...] = ()
    if check:
        found = verify_all(refs, megapixels)
        bad = [found[ref] for ref in refs if isinstance(found[ref], BadPicture)]
        if bad:
            more = f" ({len(bad) - 1} more bad pictures)" if len(bad) > 1 else ""
            raise UserError(f"{folder}: {bad[0]}.{more}")
        known = tuple(found[ref] for ref in refs)  # type: ignore[misc]
    return Pictures(refs=refs, where=str(folder), known=known, megapixels=megapixels)


def verify_all(
    refs: Sequence[Ref], megapixels: float = MEGAPIXELS, *, whole: bool = True
) -> dict[Ref, Size | BadPicture]:
    """Check each picture once (`whole`: decode it, else read its header), on all cores if there are many."""
    examine = verify if whole else read_size

    def result(ref: Ref) -> Size | BadPicture:
        try:
            return examine(ref, megapixels)
        except BadPicture as error:
            return error

    unique = list(dict.fromkeys(refs))
    workers = min(8, os.cpu_count() or 1)
    if len(unique) < 16 or workers == 1:
        return {ref: result(ref) for ref in unique}
    from concurrent.futures import ThreadPoolExecutor  # Pillow decodes without Python's lock

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(unique, pool.map(result, unique, chunksize=4)))
