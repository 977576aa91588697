"""Problems as files: `images/*.png` and one JSONL, in the plain schema or VLM-R1's, that `open_data` reads back.

What is read back is the same problem: question, truth and pictures. Thoughts of a style's teacher and a problem's meta
are kept by the plain schema only. VLM-R1's lines have no kind: a text that has digits (digits/read: "7") or looks like
a choice names the method `all_match`, which keeps it a text.

Try it: `fovea tasks write shapes/refer --n 100 --out refer --schema vlm_r1`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea.boxes import unmarked, write
from fovea.rewards.sequences import write_list
from fovea.runlog import to_json, write_atomically
from fovea.tasks.kinds import BadLine, kind_of, said
from fovea.tasks.records import finish, read_record
from fovea.types import AnswerKind, Problem, Task, UserError, picture_sizes

Record = dict[str, Any]

METHODS: dict[AnswerKind, str] = {"choice": "mcq", "objects": "odLength", "math": "math"}
"""`accu_reward_method` of VLM-R1 by kind; a box, a number and most texts are what its default compares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written. Example: Written(file=Path("refer/shapes-refer.jsonl"), problems=100, pictures=100)"""

    file: Path
    problems: int
    pictures: int


def plain_record(problem: Problem, pictures: Sequence[str]) -> Record:
    """A line of Fovea's own schema; the teacher's reply stands in it where the truth alone does not give it."""
    record: Record = {"id": problem.id}
    record |= {"image": pictures[0]} if len(pictures) == 1 else {"images": list(pictures)}
    record |= {"question": problem.question, "answer": problem.answer, "kind": problem.kind}
    record |= {"difficulty": problem.difficulty}
    if len(pictures) > 1 and problem.kind in ("box", "objects"):
        record["box_image"] = int(problem.meta.get("box_image", 0))
    meta = {key: value for key, value in problem.meta.items() if key != "box_image"}
    if meta:
        record["meta"] = meta
    said = unmarked(problem.target or "")
    if said and said != _derived(record, problem):
        record["target"] = (
            said  # boxes as placeholders: a model that speaks another frame must not learn pixels
        )
    return record


def vlm_r1_record(problem: Problem, pictures: Sequence[str]) -> Record:
    """A line of VLM-R1's schema: one `<image>` a picture before the question, boxes in pixels of the picture."""
    record: Record = {"id": problem.id}
    if pictures:
        record["image"] = pictures[0] if len(pictures) == 1 else list(pictures)
    record["conversations"] = [
        {"from": "human", "value": "<image>" * len(pictures) + problem.question},
        {"from": "gpt", "value": f"<answer> {_said(problem)} </answer>"},
    ]
    if problem.kind in METHODS:
        record["accu_reward_method"] = METHODS[problem.kind]
    elif problem.kind == "text" and _looks_else(problem.answer):
        record["accu_reward_method"] = "all_match"
    elif problem.kind in ("order", "set"):  # VLM-R1 has no method for them
        record["kind"] = problem.kind
    if len(pictures) > 1 and problem.kind in ("box", "objects"):
        record["box_image"] = int(problem.meta.get("box_image", 0))
    return record


SCHEMAS: dict[str, Callable[[Problem, Sequence[str]], Record]] = {
    "plain": plain_record,
    "vlm_r1": vlm_r1_record,
}


def write_task(task: Task, n: int, out: str | Path, schema: str = "plain") -> Written:
    """Write the first `n` problems of a task to the new folder `out`: all of it, or nothing is there.

    Raises UserError if `out` holds something or cannot be written, for an unknown schema, and for a problem that
    would not be read back as it is.
    """
    if schema not in SCHEMAS:
        raise UserError(f"There is no schema {schema!r}; known: {', '.join(SCHEMAS)}.")
    target = Path(out).absolute()
    _check_folder(target, out)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        (partial / "images").mkdir(parents=True)
        # A task's name holds a slash, no file's may.
        file = partial / f"{task.name.replace('/', '-')}.jsonl"
        pictures = _write_all(task, n, file, SCHEMAS[schema])
        if target.is_dir():
            target.rmdir()  # it is empty
        partial.rename(target)
    except OSError as error:
        raise UserError(
            f"The problems cannot be written to {out} ({error.strerror or error}); choose another folder or make room."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Written(file=Path(out) / file.name, problems=n, pictures=pictures)


def _check_folder(target: Path, shown: str | Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{shown} is a file or a link; give a new folder.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"The folder {shown} is not empty; give a new folder.")


def _write_all(task: Task, n: int, file: Path, record: Callable[[Problem, Sequence[str]], Record]) -> int:
    """Pictures and lines; returns the number of pictures."""
    lines: list[str] = []
    pictures = 0
    for start in range(0, n, 64):  # a thousand pictures of a large task need not be in memory at once
        for problem in task.take(start, min(64, n - start))[0]:
            count = len(problem.images)
            stem = f"images/{len(lines):06d}"
            names = [f"{stem}.png"] if count == 1 else [f"{stem}-{k}.png" for k in range(count)]
            for name, picture in zip(names, problem.images, strict=True):
                picture.save(file.parent / name, "PNG")
            line = to_json(record(problem, names))
            _check(line, problem)
            lines.append(line)
            pictures += count
    write_atomically(file, "".join(f"{line}\n" for line in lines).encode("utf-8"))
    return pictures


def _said(problem: Problem) -> str:
    """The truth as VLM-R1's data writes it."""
    if problem.kind == "box":
        return write(problem.answer, "pixels")
    if problem.kind in ("order", "set"):
        return write_list(problem.answer)
    if problem.kind != "objects":
        return str(problem.answer)
    if not problem.answer:
        return "None"
    things = [{"bbox_2d": [round(v) for v in t["bbox_2d"]], "label": t["label"]} for t in problem.answer]
    return f"```json\n{to_json(things)}\n```"


def _looks_else(text: str) -> bool:
    """Whether a reader who is told nothing might not take a text for that text: "7", "B", "[1, 2, 3, 4]"; and "012",
    which VLM-R1's default compares as the number 12."""
    return any(map(str.isdigit, text)) or kind_of(said(text), None, None, written=text) != ("text", text)


def _derived(record: Record, problem: Problem) -> str | None:
    """The teacher's reply that a reader of the plain schema makes of the truth."""
    draft = read_record(json.loads(to_json(record)))
    return finish(draft, problem.task, 1, (), picture_sizes(problem)).target


def _check(line: str, problem: Problem) -> None:
    """Raise UserError unless the line is read back as the problem."""
    try:
        draft = read_record(json.loads(line))
        truth = json.loads(to_json(problem.answer))
        same = (draft.question, draft.kind, draft.answer) == (problem.question, problem.kind, truth)
        why = "it would not be read back as it is"
    except BadLine as error:
        same, why = False, str(error)
    if not same:
        raise UserError(
            f"Problem {problem.id} cannot be written in this schema ({why}); choose the other one."
        )
