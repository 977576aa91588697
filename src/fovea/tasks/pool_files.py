"""What lies in a source of pictures, by name: pictures, depth maps, and a count of everything else.

Folders and archives are one list of (name, where it lies); a table is another. Nothing is decoded here
(`fovea.tasks.pool_pictures`), and nothing is said about splits (`fovea.tasks.pool_sources`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fovea.tasks.archives import ENDINGS, hidden, is_archive, members
from fovea.tasks.kinds import BadLine
from fovea.tasks.pictures import SUFFIXES, BadPicture, FileRef, Lies, printable
from fovea.tasks.sources import parted
from fovea.tasks.tables import HUB, is_saved_dataset, read_cells
from fovea.types import UserError

FRAMES = ".frames"
"""Ending of a folder whose pictures are a sequence."""
DEPTH = "depth"
"""Folder of depth maps, and what stands before their ending in a file name."""
_MAPS = (".png", ".npy")
_UNREADABLE = (
    ".heic", ".heif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthMap:
    """A depth map that nobody has looked into."""

    ref: Lies
    npy: bool
    """A .npy file, else a PNG."""


@dataclass(slots=True)
class Listing:
    """What lies in a source."""

    pictures: list[tuple[str, Lies]] = field(default_factory=list)
    maps: dict[str, DepthMap] = field(default_factory=dict)
    """By the name of the picture without its ending."""
    bad: list[BadPicture] = field(default_factory=list)
    """What was found to be unreadable by its name alone."""
    notes: list[str] = field(default_factory=list)
    """What was left out and why, a clause each."""


def listing(sources: Sequence[str | Path], download: bool, depth: str | Path | None) -> Listing:
    """Of one source, or of several with the last part of each one's name in front of its pictures' names.

    `depth`: a folder of further depth maps, named as the pictures. Raises UserError.
    """
    whole = Listing()
    tails = [PurePosixPath(str(source).replace("\\", "/")).name or str(source) for source in sources]
    for i, (source, tail) in enumerate(zip(sources, tails)):
        one = _source(source, download)
        front = tail if tails.count(tail) == 1 else f"{tail}#{i + 1}"
        front, said = (f"{front}/", f"{front}: ") if len(sources) > 1 else ("", "")
        whole.pictures += [(front + name, ref) for name, ref in one.pictures]
        whole.maps |= {front + name: ref for name, ref in one.maps.items()}
        whole.bad += one.bad
        whole.notes += [said + note for note in one.notes]
    if depth is not None:
        files, _ = _files(Path(depth))
        whole.maps |= {
            stem(name).removesuffix(f".{DEPTH}"): DepthMap(ref=ref, npy=name.endswith(".npy"))
            for name, ref in files
            if name.lower().endswith(_MAPS)
        }
    whole.pictures.sort(key=lambda one: one[0])
    unused = set(whole.maps) - {stem(name) for name, _ in whole.pictures}
    if unused:
        whole.notes.append(f"{len(unused)} depth maps belong to no picture ({few(sorted(unused))})")
    return whole


def stem(name: str) -> str:
    """A name without its ending."""
    return name.removesuffix(PurePosixPath(name).suffix)


def sequence_of(name: str) -> str:
    """The folder of frames that a picture lies in, else its own name."""
    parts = name.split("/")
    ends = [i for i, part in enumerate(parts[:-1]) if part.endswith(FRAMES)]
    return "/".join(parts[: ends[0] + 1]) if ends else name


def natural(name: str) -> list[tuple[int, str]]:
    """A key that puts frame2 before frame10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name) if part
    ]


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of the names, fit for a message."""
    shown = ", ".join(printable(name, 80) for name in names[:most])
    return f"{shown}, …" if len(names) > most else shown


# --- one source -------------------------------------------------------------------------------------------


def _source(source: str | Path, download: bool) -> Listing:
    if str(source).startswith(HUB):
        return _cells(source, download)
    path, part = parted(source)
    if part is not None:
        if not (path / "dataset_dict.json").is_file() or not (path / part).is_dir():
            raise UserError(f"{path} has no parts to name with @{part}; leave @{part} away.")
        path = path / part
    if path.is_dir():
        return _cells(path, download) if is_saved_dataset(path) else _sorted(*_files(path))
    if not path.is_file():
        raise UserError(f"{path} is neither a folder nor a file; name a folder of pictures.")
    if path.suffix == ".parquet":
        return _cells(path, download)
    if not is_archive(path):
        raise UserError(
            f"{path} holds no pictures that can be read; give a folder, an archive ({', '.join(ENDINGS)}), a .parquet "
            "file, a saved dataset or hub:OWNER/NAME@SPLIT."
        )
    refs, links, unseen = members(path)
    return _sorted([(ref.name, ref) for ref in refs], _left_out(unseen, links, "links and devices"))


def _files(folder: Path) -> tuple[list[tuple[str, Lies]], list[str]]:
    """(name below the folder, file) of all files but hidden ones, and what was left out. Links to folders are not
    followed: they may lead in a circle."""
    if not folder.is_dir():
        raise UserError(f"The picture folder {folder} does not exist; name a folder.")

    def refuse(error: OSError) -> None:
        raise UserError(
            f"The folder {error.filename} cannot be read ({error.strerror}); correct its permissions."
        )

    files: list[tuple[str, Lies]] = []
    unseen = links = 0
    for base, inner, names in os.walk(folder, onerror=refuse):
        links += sum(os.path.islink(os.path.join(base, name)) for name in inner)
        for name in names:
            path = Path(base) / name
            below = path.relative_to(folder).as_posix()
            if hidden(below):
                unseen += 1
            else:
                files.append((below, FileRef(path=str(path))))
    return files, _left_out(unseen, links, "links to folders")


def _left_out(unseen: int, links: int, what: str) -> list[str]:
    return [f"{n} {said}" for n, said in ((unseen, "hidden files"), (links, what)) if n]


def _sorted(files: Iterable[tuple[str, Lies]], notes: list[str]) -> Listing:
    """Files as pictures and depth maps, by their names."""
    found, others = Listing(notes=notes), Counter[str]()
    files = sorted(files, key=lambda one: one[0])
    stems = {stem(name) for name, _ in files if name.lower().endswith(SUFFIXES)}
    served = {_folder(name) for name, _ in files if _in_depth_folder(name) and _beside(name) in stems}
    seen = Counter[str]()
    for name, ref in files:
        low = name.lower()
        if low.endswith(_MAPS) and stem(low).endswith(f".{DEPTH}"):
            found.maps[stem(name)[: -len(DEPTH) - 1]] = DepthMap(ref=ref, npy=low.endswith(".npy"))
        elif _in_depth_folder(name) and _folder(name) in served:
            found.maps[_beside(name)] = DepthMap(ref=ref, npy=low.endswith(".npy"))
        elif low.endswith(SUFFIXES):
            seen[name] += 1  # an archive may hold one name twice
            found.pictures.append((name if seen[name] == 1 else f"{name} ({seen[name]})", ref))
        elif low.endswith(_UNREADABLE):
            kind = PurePosixPath(low).suffix[1:].upper()
            found.bad.append(
                BadPicture(f"the picture {ref} is {kind}, which is not read", "export it as JPEG")
            )
        else:
            others[PurePosixPath(low).suffix or "no ending"] += 1
    if others:
        kinds = few([f"{ending} {n}" for ending, n in others.most_common()], 6)
        n = others.total()
        which = (
            "file that is no picture by its ending"
            if n == 1
            else "files that are no pictures by their endings"
        )
        found.notes.append(f"{n} {which} ({kinds})")
    return found


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _in_depth_folder(name: str) -> bool:
    return name.lower().endswith(_MAPS) and _folder(name).rpartition("/")[2] == DEPTH


def _beside(name: str) -> str:
    """`a/depth/b.png` → `a/b`."""
    above = _folder(_folder(name))
    return f"{above}/{stem(name).rpartition('/')[2]}" if above else stem(name).rpartition("/")[2]


def _cells(source: str | Path, download: bool) -> Listing:
    found = Listing()
    for name, cell in read_cells(source, download=download):
        if isinstance(cell, BadLine):
            found.bad.append(BadPicture(f"{name}: {cell.problem}", cell.fix))
        else:
            found.pictures.append((name, cell))
    return found
