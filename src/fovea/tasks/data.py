"""The user's own problems as a task: `open_data` opens a file or folder, `read_data` says all that is wrong with it.

    my.jsonl          one problem a line, plain or VLM-R1's schema (`fovea.tasks.records`)
    my.parquet, or a folder written by `save_to_disk`: the extra [data] (`fovea.tasks.tables`)
    a folder with metadata.jsonl: JSONL whose "file_name" is the picture (the imagefolder convention)
    a folder with one subfolder a class: "What is in the picture?", answered by the subfolder's name

Everything is checked before the first problem is taken, pictures included: each is decoded once, because a run
must not stop after hours at a truncated file. `verify=False` reads their headers only.

Not here: pictures without questions (`fovea.tasks.pictures.open_pictures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fovea.tasks.chance import blind_chance
from fovea.tasks.jsonl import read_lines
from fovea.tasks.pictures import (
    MEGAPIXELS,
    BadPicture,
    FileRef,
    Ref,
    Size,
    picture_files,
    verify_all,
)
from fovea.tasks.records import BadLine, Draft, Row, finish, read_record, to_problem
from fovea.tasks.tables import is_saved_dataset, read_table
from fovea.types import AnswerKind, Problem, UserError

Part = Literal["all", "train", "heldout"]

EVERY = 10
"""Without a validation file every tenth line is held out."""
CHUNK = 512
"""Lines whose pictures are checked together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something wrong with one sample.

    Example: Finding(file="my.jsonl", line=3, problem="not JSON", fix="write one object a line")
    """

    file: str
    line: int | None
    """Line of a file, row of a table, index of a task's problem; None if the whole is meant."""
    problem: str
    fix: str
    unit: str = "line"

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}, {self.unit} {self.line}"
        return f"{where}: {self.problem}; {self.fix}."


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where lines come from."""

    name: str
    """Of the task."""
    file: str
    """For messages."""
    folder: Path
    """What picture names are relative to."""
    lines: Iterable[tuple[int, Any]]
    """(number, parsed JSON or BadLine)."""
    unit: str = "line"
    lenient: bool = False
    """See `records.read_record`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataTask:
    """A finite task, taken in a fresh seeded order every epoch. Pictures are decoded when they are looked at."""

    name: str
    file: str
    kind: AnswerKind
    rows: tuple[Row, ...]
    seed: int
    shuffle: bool = True
    chance: float = 0.0
    unit: str = "line"

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def kinds(self) -> tuple[AnswerKind, ...]:
        """Every kind of answer that occurs; `kind` is that of the first line."""
        return tuple(dict.fromkeys(row.kind for row in self.rows))

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self._problem(position) for position in range(cursor, cursor + n)], cursor + n

    def _problem(self, position: int) -> Problem:
        epoch, offset = divmod(position, len(self.rows))
        if self.shuffle:
            offset = int(_order(self.seed, epoch, len(self.rows))[offset])
        return to_problem(self.rows[offset], self.name, self.file, self.unit)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def open_data(
    path: str | Path,
    images: str | Path | None = None,
    *,
    part: Part = "all",
    seed: int = 0,
    shuffle: bool = True,
    verify: bool = True,
    megapixels: float = MEGAPIXELS,
) -> DataTask:
    """Read and check a file or folder of problems. `part`: "all", "train" (without every tenth line) or "heldout".

    `images`: what relative picture names start from; default: the file's own folder. `verify`: decode every
    picture once. Larger ones than `megapixels` are refused. Raises UserError naming the first bad line and how
    many there are.
    """
    source = open_source(path, images)
    rows, bad = read_rows(source, verify=verify, megapixels=megapixels)
    if bad:
        more = (
            f" ({len(bad) - 1} more bad {source.unit}s; fovea tasks check names all)" if len(bad) > 1 else ""
        )
        raise UserError(f"{bad[0]}{more}")
    kept = [
        row for i, row in enumerate(rows) if part == "all" or (i % EVERY == EVERY - 1) == (part == "heldout")
    ]
    if not kept:
        raise UserError(
            f"{path} has only {len(rows)} {source.unit}s; every {EVERY}th is held out, so give at least {EVERY}, "
            "or name a file with validation_data=FILE."
        )
    return DataTask(
        name=source.name,
        file=source.file,
        kind=kept[0].kind,
        rows=tuple(kept),
        seed=seed,
        shuffle=shuffle,
        chance=chance_of(kept),
        unit=source.unit,
    )


def chance_of(rows: list[Row]) -> float:
    """`blind_chance` of checked lines."""
    sizes = [row.sizes[int(row.meta.get("box_image", 0))] if row.kind == "box" else None for row in rows]
    return blind_chance([row.kind for row in rows], [row.answer for row in rows], sizes)


def read_data(
    path: str | Path,
    images: str | Path | None = None,
    *,
    verify: bool = True,
    megapixels: float = MEGAPIXELS,
) -> tuple[list[Row], list[Finding]]:
    """All good lines and everything that is wrong, in one pass. Raises UserError if there is nothing to read."""
    return read_rows(open_source(path, images), verify=verify, megapixels=megapixels)


# --- from a path to lines ---------------------------------------------------------------------------------


def open_source(path: str | Path, images: str | Path | None = None) -> Source:
    """What the path holds, by its ending or what lies in the folder. Raises UserError."""
    file = Path(path)
    try:
        there, is_folder, is_file = file.exists(), file.is_dir(), file.is_file()
    except OSError as error:
        raise UserError(f"{str(path)[:200]} cannot be opened ({error.strerror}); correct its name.") from None
    if not there:
        raise UserError(f"The data file {path} does not exist; correct its name.")
    base = Path(images) if images is not None else file if is_folder else file.parent
    if not base.is_dir():
        raise UserError(f"The picture folder {base} does not exist; set images=FOLDER.")
    if is_folder:
        return _folder(file, base)
    if not is_file:
        raise UserError(f"{path} is not a file that can be read twice; write it to a JSONL file.")
    if file.suffix == ".parquet":
        lines = read_table(file, base)
        return Source(name=file.stem, file=str(path), folder=base, lines=lines, unit="row", lenient=True)
    return Source(name=file.stem, file=str(path), folder=base, lines=_readable(file))


def _readable(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from read_lines(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); check its permissions.") from None


def _folder(folder: Path, base: Path) -> Source:
    if is_saved_dataset(folder):
        lines = read_table(folder, base)
        return Source(name=folder.name, file=str(folder), folder=base, lines=lines, unit="row", lenient=True)
    listed = folder / "metadata.jsonl"
    if listed.is_file():
        return Source(
            name=folder.resolve().name,
            file=str(listed),
            folder=base,
            lines=((number, _named(record)) for number, record in _readable(listed)),
        )
    return Source(
        name=folder.resolve().name,
        file=str(folder),
        folder=folder,
        lines=_classes(folder),
        unit="picture",
    )


def _named(record: Any) -> Any:
    """`file_name` and `file_names` of the imagefolder convention as `images`."""
    if not isinstance(record, dict) or "conversations" in record:
        return record
    alias = {"file_name": "image", "file_names": "images"}
    return {alias.get(key, key): value for key, value in record.items()}


def _classes(folder: Path) -> list[tuple[int, Any]]:
    """A question for every picture of a folder with one subfolder a class. Raises UserError for any other folder."""
    paths = [path.relative_to(folder) for path in picture_files(folder)]
    names = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    if len(names) < 2 or any(len(path.parts) < 2 for path in paths):
        raise UserError(
            f"The folder {folder} holds pictures but no questions; add metadata.jsonl with file_name, question "
            "and answer, or one subfolder for each class."
        )
    question = f"What is in the picture? Answer with one of: {', '.join(names)}."
    return [
        (number, {"image": str(path), "question": question, "answer": path.parts[0], "kind": "text"})
        for number, path in enumerate(paths, 1)
    ]


# --- from lines to rows -----------------------------------------------------------------------------------


def read_rows(
    source: Source, *, verify: bool = True, megapixels: float = MEGAPIXELS
) -> tuple[list[Row], list[Finding]]:
    """All good lines and, for every bad one, what is wrong and the fix. Nothing at all is one finding."""
    rows: list[Row] = []
    bad: list[Finding] = []
    seen: dict[str, int] = {}
    checked: dict[Ref, Size | BadPicture] = {}
    lines = iter(source.lines)
    while chunk := [_draft(number, record, source) for number, record in islice(lines, CHUNK)]:
        fresh = [ref for _, _, refs in chunk for ref in refs if ref not in checked]
        checked |= verify_all(fresh, megapixels, whole=verify)
        for number, draft, refs in chunk:
            try:
                row = _row(draft, refs, number, source.name, checked, megapixels)
                if row.id in seen:
                    raise BadLine(
                        f"the id {row.id[:80]!r} is already that of {source.unit} {seen[row.id]}",
                        "give each its own",
                    )
            except (BadLine, BadPicture) as error:
                bad.append(
                    Finding(
                        file=source.file,
                        line=number,
                        problem=error.problem,
                        fix=error.fix,
                        unit=source.unit,
                    )
                )
                continue
            seen[row.id] = number
            rows.append(row)
    if not rows and not bad:
        bad.append(
            Finding(file=source.file, line=None, problem="holds no problems", fix="write one on every line")
        )
    return rows, bad


def _draft(number: int, record: Any, source: Source) -> tuple[int, Draft | BadLine, tuple[Ref, ...]]:
    if isinstance(record, BadLine):
        return number, record, ()
    try:
        draft = read_record(record, lenient=source.lenient)
    except BadLine as error:
        return number, error, ()
    refs = tuple(
        FileRef(path=str(source.folder / name)) if isinstance(name, str) else name for name in draft.images
    )
    return number, draft, refs


def _row(
    draft: Draft | BadLine,
    refs: tuple[Ref, ...],
    number: int,
    task: str,
    checked: dict[Ref, Size | BadPicture],
    megapixels: float,
) -> Row:
    if isinstance(draft, BadLine):
        raise draft
    sizes: list[Size] = []
    for ref in refs:
        found = checked[ref]
        if isinstance(found, BadPicture):
            raise found
        sizes.append(found)
    return finish(draft, task, number, refs, tuple(sizes), megapixels)
