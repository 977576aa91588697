"""The user's own problems as a task: `open_data` opens files or folders, `read_data` says all that is wrong with them.

Which forms there are says `fovea.tasks.sources`. Several files become one task; an id that two of them have gets its
file's name in front. Without a file of validation problems some are held out: never one whose picture is trained on.

Everything is checked before the first problem is taken, pictures included: each is decoded once, because a run
must not stop after hours at a truncated file. `verify=False` reads their headers only.

Not here: pictures without questions (`fovea.tasks.pictures.open_pictures`).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import numpy as np

from fovea.config import ProblemsSection
from fovea.tasks.chance import blind_chance
from fovea.tasks.kinds import BadLine
from fovea.tasks.pictures import MEGAPIXELS, BadPicture, FileRef, Ref, Size, verify_all
from fovea.tasks.records import Draft, Row, finish, read_record, to_problem
from fovea.tasks.sources import Files, Source, open_sources
from fovea.types import AnswerKind, Problem, UserError

Part = Literal["all", "train", "heldout"]

EVERY = 10
"""Without a validation file every tenth group of lines is held out, of those that share a picture (`groups_of`)."""
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
class DataTask:
    """A finite task, taken in a fresh seeded order every epoch. Pictures are decoded when they are looked at."""

    name: str
    files: tuple[str, ...]
    """As the user named them."""
    kind: AnswerKind
    """That of the first line."""
    rows: tuple[Row, ...]
    seed: int
    shuffle: bool = True
    chance: float = 0.0
    unit: str = "line"
    """What a row is: line, row, entry, picture."""
    notes: tuple[str, ...] = ()
    """What was left out when the files were read, a clause each."""
    beside: tuple[str, ...] = ()
    """Further files that the problems depend on (the instances of RefCOCO's refs)."""
    instructions: Mapping[AnswerKind, str] | None = None
    """Of a task of several kinds: what is appended to each question, by its kind."""

    @property
    def file(self) -> str:
        """For messages."""
        return " and ".join(self.files)

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
        problem = to_problem(self.rows[offset], self.name)
        told = (self.instructions or {}).get(problem.kind)
        return problem if told is None else replace(problem, question=f"{problem.question}\n{told}")


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def open_data(
    path: Files,
    images: Files | None = None,
    *,
    part: Part = "all",
    seed: int = 0,
    shuffle: bool = True,
    verify: bool = True,
    megapixels: float = MEGAPIXELS,
    problems: ProblemsSection | None = None,
    strict: bool = True,
    download: bool = False,
) -> DataTask:
    """Read and check a file or folder of problems, or several. `part`: as in `part_of`.

    `images`: what relative picture names start from, one folder or one for each file; default: the file's own.
    `verify`: decode every picture once. Larger ones than `megapixels` are refused. `problems`, `strict`, `download`:
    as in `sources.open_source`. Raises UserError naming the first bad line and how many there are.
    """
    sources = open_sources(path, images, problems=problems, strict=strict, download=download)
    rows, bad = read_all(sources, verify=verify, megapixels=megapixels)
    unit = sources[0].unit
    if bad:
        more = f" ({len(bad) - 1} more bad {unit}s; fovea tasks check names all)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}")
    task = DataTask(
        name="+".join(source.name for source in sources),
        files=tuple(source.file for source in sources),
        kind=rows[0].kind,
        rows=tuple(rows),
        seed=seed,
        shuffle=shuffle,
        chance=chance_of(rows),
        unit=unit,
        notes=tuple(f"{source.file}: {note}" for source in sources for note in source.notes),
        beside=tuple(name for source in sources for name in source.beside),
    )
    return part_of(task, part)


def part_of(task: DataTask, part: Part) -> DataTask:
    """The task of some of the lines: "all", "heldout" (every tenth of `groups_of`) or "train" (the others).

    Where no two lines share a picture, every tenth line is held out. Of fewer than ten groups it is the one with the
    fewest lines (of equals the last). Raises UserError for fewer than ten lines, and for lines of one group.
    """
    return task if part == "all" else _part(task, groups_of(task.rows), heldout=part == "heldout")


def split(task: DataTask) -> tuple[DataTask, DataTask]:
    """(training, held-out) lines as `part_of` gives them. Raises UserError where there are too few."""
    groups = groups_of(task.rows)
    held = _part(task, groups, heldout=True)
    return _part(task, groups, heldout=False), held


def _part(task: DataTask, groups: Sequence[int], *, heldout: bool) -> DataTask:
    sizes = Counter(groups)
    held = set(range(EVERY - 1, len(sizes), EVERY)) or {min(sizes, key=lambda i: (sizes[i], -i))}
    if len(groups) < EVERY:
        raise UserError(
            f"{task.file} has only {len(groups)} {task.unit}s; every {EVERY}th is held out, so give at least {EVERY}, "
            "or name a file with validation_data=FILE."
        )
    if len(sizes) == 1:
        raise UserError(
            f"{task.file} asks everything about one picture, or about pictures that its {task.unit}s share, so that "
            "nothing new can be held out; name a file with validation_data=FILE."
        )
    kept = [row for row, i in zip(task.rows, groups) if (i in held) == heldout]
    return replace(task, rows=tuple(kept), kind=kept[0].kind, chance=chance_of(kept))


def groups_of(rows: Sequence[Row]) -> list[int]:
    """The group of each row, numbered from 0 in the order of their first rows.

    Rows that share a picture are of one group, also through others (a and b share one, b and c another); a row
    without pictures is its own.
    """
    pictures = _pictures(ref for row in rows for ref in row.refs)
    above = list(range(len(rows)))  # a forest: the root of a tree is its first row

    def root(i: int) -> int:
        while above[i] != i:
            above[i] = i = above[above[i]]
        return i

    first: dict[Hashable, int] = {}
    for i, row in enumerate(rows):
        for ref in row.refs:
            one, other = root(i), root(first.setdefault(pictures[ref], i))
            above[max(one, other)] = min(one, other)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(rows))]


def _pictures(refs: Iterable[Ref]) -> dict[Ref, Hashable]:
    """Reference → which picture it is: of a file its real path, of a table's cell what it holds."""
    folders: dict[str, str] = {}  # many pictures lie in one: each is looked up once
    found: dict[Ref, Hashable] = {}
    for ref in refs:
        if ref in found:
            continue
        if isinstance(ref, FileRef):
            folder, name = os.path.split(ref.path)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            path = os.path.join(folders[folder], name)
            found[ref] = os.path.realpath(path) if os.path.islink(path) else path
        else:
            with ref.open() as stream:
                found[ref] = hashlib.sha256(stream.read()).digest()
    return found


def chance_of(rows: list[Row]) -> float:
    """`blind_chance` of checked lines."""
    sizes = [row.sizes[int(row.meta.get("box_image", 0))] if row.kind == "box" else None for row in rows]
    return blind_chance([row.kind for row in rows], [row.answer for row in rows], sizes)


def read_data(
    path: Files,
    images: Files | None = None,
    *,
    verify: bool = True,
    megapixels: float = MEGAPIXELS,
    problems: ProblemsSection | None = None,
    download: bool = False,
) -> tuple[list[Row], list[Finding]]:
    """All good lines and everything that is wrong, in one pass. Raises UserError if there is nothing to read."""
    sources = open_sources(path, images, problems=problems, download=download)
    return read_all(sources, verify=verify, megapixels=megapixels)


# --- from lines to rows -----------------------------------------------------------------------------------


def read_all(
    sources: Sequence[Source], *, verify: bool = True, megapixels: float = MEGAPIXELS
) -> tuple[list[Row], list[Finding]]:
    """`read_rows` of each source. An id that two sources have gets its file's name in front: "a/7" and "b/7"."""
    found = [read_rows(source, verify=verify, megapixels=megapixels) for source in sources]
    shared = Counter(row_id for rows, _ in found for row_id in {row.id for row in rows})
    names = Counter(source.name for source in sources)
    rows: list[Row] = []
    for place, (source, (own, _)) in enumerate(zip(sources, found), 1):
        label = source.name if names[source.name] == 1 else f"{source.name}#{place}"
        rows += [replace(row, id=f"{label}/{row.id}") if shared[row.id] > 1 else row for row in own]
    return rows, [finding for _, bad in found for finding in bad]


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
                row = _row(draft, refs, number, source, checked, megapixels)
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
    source: Source,
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
    return finish(
        draft, source.name, number, refs, tuple(sizes), megapixels, file=source.file, unit=source.unit
    )
