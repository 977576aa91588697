"""The user's own problems: one JSON object a line.

    {"images": ["cat.png"], "question": "Where is the cat? Answer with its box.", "answer": [10, 20, 110, 220]}

`image` instead of `images` for one picture. Optional keys: `kind` (box, number, choice, text; guessed from the
answer), `frame` of a box (pixels, thousandths, unit; default pixels), `target` (the reply a teacher would give,
for SFT), `id`. Picture paths are relative to `images=FOLDER`, or to the file's own folder.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from fovea.boxes import convert, place
from fovea.types import AnswerKind, Problem, UserError

KINDS: tuple[AnswerKind, ...] = ("box", "text", "number", "choice")
KEYS = {"image", "images", "question", "answer", "kind", "frame", "target", "id", "difficulty"}
EVERY = 10
"""Without a validation file every tenth line is held out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One checked line of a data file."""

    number: int
    paths: tuple[Path, ...]
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonlTask:
    """A finite task, taken in a fresh seeded order every epoch. Pictures are opened when they are taken."""

    name: str
    kind: AnswerKind
    lines: tuple[Line, ...]
    seed: int
    shuffle: bool = True
    chance: float = 0.0

    @property
    def size(self) -> int:
        return len(self.lines)

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self._problem(position) for position in range(cursor, cursor + n)], cursor + n

    def _problem(self, position: int) -> Problem:
        epoch, offset = divmod(position, len(self.lines))
        if self.shuffle:
            offset = int(np.random.default_rng([self.seed, epoch]).permutation(len(self.lines))[offset])
        return to_problem(self.lines[offset], self.name)


def open_data(
    path: str, images: str | None = None, *, part: str = "all", seed: int = 0, shuffle: bool = True
) -> JsonlTask:
    """Read and check a JSONL file. `part`: "all", "train" (without every tenth line) or "heldout" (those).

    Raises UserError naming the first bad line and how many there are.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"The data file {path} does not exist.")
    folder = Path(images) if images else file.parent
    if not folder.is_dir():
        raise UserError(f"The picture folder {folder} does not exist; set images=FOLDER.")
    lines, bad = _read(file, folder)
    if bad:
        more = f" ({len(bad) - 1} more bad lines)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}")
    if not lines:
        raise UserError(f"{path} holds no problems.")
    kept = [
        line
        for i, line in enumerate(lines)
        if part == "all" or (i % EVERY == EVERY - 1) == (part == "heldout")
    ]
    if not kept:
        raise UserError(
            f"{path} has only {len(lines)} lines; every {EVERY}th is held out, so give at least {EVERY}, "
            "or name a file with validation_data=FILE."
        )
    return JsonlTask(
        name=file.stem, kind=kept[0].record["kind"], lines=tuple(kept), seed=seed, shuffle=shuffle
    )


def _read(file: Path, folder: Path) -> tuple[list[Line], list[str]]:
    """All checked lines, and one sentence for every bad one."""
    lines: list[Line] = []
    bad: list[str] = []
    with file.open(encoding="utf-8", errors="replace") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                lines.append(_check(text, number, folder))
            except UserError as error:
                bad.append(f"{file}, line {number}: {error}")
    return lines, bad


def _check(text: str, number: int, folder: Path) -> Line:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at column {error.colno}); write one object a line.") from None
    if not isinstance(record, dict):
        raise UserError('must be an object like {"image": …, "question": …, "answer": …}.')
    unknown = set(record) - KEYS
    if unknown:
        raise UserError(f"unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(KEYS))}.")
    if not isinstance(record.get("question"), str) or not record["question"].strip():
        raise UserError('"question" must be a text.')
    if "answer" not in record:
        raise UserError('"answer" is missing.')
    record["kind"] = _kind(record)
    return Line(number=number, paths=_paths(record, folder), record=record)


def _paths(record: dict[str, Any], folder: Path) -> tuple[Path, ...]:
    names = record["images"] if "images" in record else record.get("image", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError('"images" must be a list of file names.')
    paths = tuple(folder / name for name in names)
    for path in paths:
        if not path.is_file():
            raise UserError(f"the picture {path} does not exist; set images=FOLDER if it lies elsewhere.")
    return paths


def _kind(record: dict[str, Any]) -> AnswerKind:
    """The declared kind, checked against the answer, or a guess from the answer's form."""
    answer, kind = record["answer"], record.get("kind")
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer)
    is_box = isinstance(answer, list) and len(answer) == 4 and all(isinstance(v, int | float) for v in answer)
    is_letter = isinstance(answer, str) and len(answer) == 1 and answer.isalpha() and answer.isupper()
    if kind is None:
        kind = "box" if is_box else "number" if is_number else "choice" if is_letter else "text"
    fits = {"box": is_box, "number": is_number, "choice": is_letter, "text": isinstance(answer, str)}
    if kind not in fits:
        raise UserError(f'"kind" {kind!r} is unknown; known: {", ".join(KINDS)}.')
    if not fits[kind]:
        raise UserError(f"the answer {json.dumps(answer)[:60]} does not fit kind {kind!r}.")
    if kind == "box" and not (answer[0] < answer[2] and answer[1] < answer[3]):
        raise UserError(f"the box {answer} must have x1 < x2 and y1 < y2.")
    if record.get("frame", "pixels") not in ("pixels", "thousandths", "unit"):
        raise UserError(f'"frame" {record["frame"]!r} is unknown; known: pixels, thousandths, unit.')
    if kind == "box" and len(record.get("images", [record.get("image")])) != 1:
        raise UserError("a box needs exactly one picture.")
    return cast(AnswerKind, kind)


def to_problem(line: Line, task: str) -> Problem:
    """Open the pictures of a checked line. Raises UserError if one cannot be read."""
    images = tuple(_open(path, line.number) for path in line.paths)
    record = line.record
    answer, target = record["answer"], record.get("target")
    if record["kind"] == "box":
        size = images[0].size
        answer = convert(answer, record.get("frame", "pixels"), "pixels", size, size)
        target = target or f"<answer>{place(answer)}</answer>"
    return Problem(
        id=str(record.get("id", f"{task}:{line.number}")),
        task=task,
        images=images,
        question=record["question"],
        answer=answer,
        kind=record["kind"],
        difficulty=float(record.get("difficulty", 0.0)),
        target=target or f"<answer>{answer}</answer>",
        meta={"source": f"line {line.number}", "pictures": [str(path) for path in line.paths]},
    )


def _open(path: Path, number: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"Line {number}: the picture {path} cannot be read ({error}).") from None
