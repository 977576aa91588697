"""Pictures inside a zip or tar archive, read where they lie: nothing is ever unpacked under a member's name.

A member's name is a label and no path: `../../x.png` and `/etc/x.png` are harmless. How large a member is says its
header, and one of more than `MEMBER_BYTES` is not read. A compressed tar is unpacked once a process, into a file
without a name, up to `RATIO` times its own size. Not here: what the bytes are (`fovea.tasks.pictures`).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO, Literal

from fovea.tasks.pictures import BadPicture, printable
from fovea.types import UserError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
MEMBER_BYTES = 500_000_000
"""A member that says it is larger is refused."""
RATIO = 50
"""A compressed tar that becomes larger than this many times its size is a bomb (photographs: about 1)."""
FREE = 500_000_000
"""So much may come out of any compressed tar, however small it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberRef:
    """A picture in an archive."""

    archive: str
    stamp: tuple[int, int]
    """Time of the archive's last change, and its size: one that was written anew is opened anew."""
    name: str
    form: Literal["zip", "tar"]
    start: int
    """Zip: which of its entries. Tar: where the bytes begin."""
    size: int

    def __str__(self) -> str:
        return printable(f"{self.name} in {self.archive}")

    def key(self) -> Hashable:
        return self

    def open(self) -> BinaryIO:
        """The bytes. Raises BadPicture."""
        if self.size > MEMBER_BYTES:
            raise BadPicture(
                f"the picture {self} says it has {self.size:,} bytes, more than {MEMBER_BYTES:,}",
                "scale it down",
            )
        if self.size == 0:
            raise BadPicture(f"the picture {self} holds no bytes", "copy it again")
        try:
            data = _bytes(self)
        except BadPicture:
            raise
        except Exception as error:  # as in `members`
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise BadPicture(
                f"the picture {self} cannot be read ({reason})", "write the archive again"
            ) from None
        if len(data) != self.size:
            raise BadPicture(f"the picture {self} is cut off", "write the archive again")
        return io.BytesIO(data)


def is_archive(path: str | Path) -> bool:
    """By its ending."""
    return str(path).lower().endswith(ENDINGS)


def members(path: Path) -> tuple[list[MemberRef], int, int]:
    """(files in the archive; how many links and devices, how many hidden files were left out). Raises UserError."""
    try:
        found = path.stat()
        stamp = found.st_mtime_ns, found.st_size
        with path.open("rb") as stream:
            zipped = stream.read(2) == b"PK"
        listed = _zip_members(path, stamp) if zipped else _tar_members(path, stamp)
    except UserError:
        raise
    # Broken archives raise TarError, BadZipFile, zlib.error, LZMAError, OSError, EOFError, ValueError, RuntimeError …
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} cannot be read as an archive ({reason}); write it again.") from None
    refs, others = listed
    shown = [ref for ref in refs if not hidden(ref.name)]
    return shown, others, len(refs) - len(shown)


def hidden(name: str) -> bool:
    """Whether a part of the name begins with a dot, or is where macOS keeps what is no picture."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


# --- zip --------------------------------------------------------------------------------------------------


def _zip_members(path: Path, stamp: tuple[int, int]) -> tuple[list[MemberRef], int]:
    refs = [
        MemberRef(
            archive=str(path),
            stamp=stamp,
            name=_label(entry.filename),
            form="zip",
            start=i,
            size=entry.file_size,
        )
        for i, entry in enumerate(_zip(str(path), stamp, os.getpid()).infolist())
        if not entry.is_dir()
    ]
    return refs, 0


@lru_cache(maxsize=8)
def _zip(path: str, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    """Opened once a process: two that share a file would move each other's place in it."""
    return zipfile.ZipFile(path)


# --- tar --------------------------------------------------------------------------------------------------


def _tar_members(path: Path, stamp: tuple[int, int]) -> tuple[list[MemberRef], int]:
    refs, others, held = [], 0, _tar(str(path), stamp)
    with os.fdopen(os.dup(held.fd), "rb") as stream:
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for entry in archive:
                if entry.isdir():
                    continue
                if not entry.isfile() or entry.issparse():
                    others += 1
                    continue
                name = _label(entry.name)
                refs.append(
                    MemberRef(
                        archive=str(path),
                        stamp=stamp,
                        name=name,
                        form="tar",
                        start=entry.offset_data,
                        size=entry.size,
                    )
                )
    return refs, others


class _Held:
    """A file that stays open for as long as somebody remembers it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.fd = os.dup(stream.fileno())

    def __del__(self) -> None:
        os.close(self.fd)


@lru_cache(maxsize=8)
def _tar(path: str, stamp: tuple[int, int]) -> _Held:
    """The tar as a file on disk: itself, or what comes out of its compression, in a file without a name."""
    with open(path, "rb") as stream:
        magic = stream.read(6)
        unpack = (
            gzip.open if magic[:2] == b"\x1f\x8b"
            else bz2.open if magic[:3] == b"BZh"
            else lzma.open if magic == b"\xfd7zXZ\x00"
            else None
        )  # fmt: skip
        if unpack is None:
            return _Held(stream)
    limit = max(FREE, RATIO * stamp[1])
    with tempfile.TemporaryFile() as whole, unpack(path, "rb") as packed:
        while chunk := packed.read(1 << 20):
            if whole.tell() + len(chunk) > limit:
                raise UserError(
                    f"{path} becomes more than {limit:,} bytes when it is unpacked, {RATIO} times its size; give "
                    "the pictures themselves in a folder."
                )
            whole.write(chunk)
        whole.flush()
        return _Held(whole)


def _bytes(ref: MemberRef) -> bytes:
    if ref.form == "tar":
        held = _tar(
            ref.archive, ref.stamp
        )  # pread has no place in the file that threads and forks could move
        return os.pread(held.fd, ref.size, ref.start)
    archive = _zip(ref.archive, ref.stamp, os.getpid())
    entry = archive.infolist()[ref.start]
    if entry.flag_bits & 1:
        raise BadPicture(f"the picture {ref} is encrypted", "write the archive without a password")
    with archive.open(entry) as stream:
        return stream.read(ref.size + 1)


def _label(name: str) -> str:
    """A member's name as a name below the archive's root."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))
