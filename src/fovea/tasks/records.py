"""One line of the user's data, checked: from a JSON object in one of two schemas to a `Row`.

Plain, where `<image>` in the question is literal text:

    {"id": "7", "images": ["cat.png"], "question": "Where is the cat?", "answer": [10, 20, 110, 220]}

`image` instead of `images` for one picture. Optional: `kind` (box, number, choice, text, objects, math; guessed
from the answer; or, never guessed, order and set: lists of whole numbers and of names), `frame` of a box (pixels,
thousandths, unit, or resized with `resized`: [width, height]; default pixels), `box_image` (which picture a box
belongs to, from 0), `target` (the reply a teacher would give, for SFT), `difficulty` (0 to 1), `meta` (an object:
columns for reward functions, never shown to the model), `accu_reward_method`, which may stand in `meta` too.

VLM-R1's (github.com/om-ai-lab/VLM-R1, `grpo_jsonl.py`), where `<image>` stands for a picture:

    {"id": 1, "image": "cat.png", "conversations": [{"from": "human", "value": "<image>Where is the cat?"},
                                                    {"from": "gpt", "value": "[10, 20, 110, 220]"}]}

There are as many `<image>` as pictures, or none. VLM-R1 drops them all and shows the pictures first. Here, too,
pictures come first, and placeholders at the start, or on lines of their own at the end, are dropped; one inside
the text becomes "Picture 2", so that the text still says which picture it means. Answers lose their `<answer>`
tags; boxes are pixels of the original picture. `accu_reward_method` decides the kind where it can, and is kept: with
`mcq` "(B)" and "B. a cat" are B, with `all_match` "1.50" is no number.

Boxes may pass the picture's edge by one pixel (rounding, inclusive corners), not more. A labelled box may be marked
`"iscrowd": 1` (COCO: a crowd, which is neither asked for nor wrong); the teacher's reply leaves it out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fovea.boxes import convert, place
from fovea.rewards.sequences import write_list
from fovea.tasks.kinds import BadLine as BadLine
from fovea.tasks.kinds import inside_tags, is_number, is_size, kind_of, said, short, unfit
from fovea.tasks.pictures import MEGAPIXELS, CellRef, FileRef, Pictures, Ref, Size, printable
from fovea.types import AnswerKind, BoxFrame, Problem

FRAMES: tuple[BoxFrame, ...] = ("pixels", "resized", "thousandths", "unit")
KEYS = {
    "image", "images", "question", "answer", "kind", "frame", "target", "id", "difficulty", "box_image",
    "accu_reward_method", "meta", "resized",
}  # fmt: skip
OUTSIDE = 1.0
"""Pixels by which a box may pass the edge of its picture."""

RESHAPED = 1.5
"""Factor by which width / height of a declared resized size may differ from the picture's: families round both
sides; a picture that was turned differs by more."""

_LEADING = re.compile(r"\A(?:\s*<image>)+\s*")
_TRAILING = re.compile(r"(?:\n[ \t]*(?:<image>[ \t]*)+)+\s*\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A line whose text is checked; its pictures and what depends on their sizes are not yet."""

    id: str | None
    question: str
    answer: Any
    kind: AnswerKind
    frame: BoxFrame
    box_image: int
    target: str | None
    difficulty: float
    images: tuple[str | Ref, ...]
    """As the line names them: paths; of a table, references."""
    meta: dict[str, Any] = field(default_factory=dict)
    resized: Size | None = None
    """What boxes in the frame "resized" are pixels of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One checked line: everything a problem needs; the pictures by reference."""

    number: int
    """Line of the file, or row of the table, from 1."""
    id: str
    question: str
    answer: Any
    """Boxes in pixels of the oriented picture."""
    kind: AnswerKind
    target: str | None
    difficulty: float
    refs: tuple[Ref, ...]
    sizes: tuple[Size, ...]
    meta: dict[str, Any]
    megapixels: float = MEGAPIXELS
    file: str = ""
    """As the user named it, for messages."""
    unit: str = "line"
    """What `number` counts: line, row, entry, picture."""


def read_record(record: Any, *, lenient: bool = False) -> Draft:
    """A parsed line of either schema as a Draft. Raises BadLine.

    `lenient`: for tables, whose columns have one type and names of their own: unknown keys are kept as `meta`,
    `<image>` stands for a picture, answers are read by what they mean.
    """
    if not isinstance(record, dict):
        raise BadLine(
            "must be an object",
            'write {"image": …, "question": …, "answer": …} on every line, without a list',
        )
    if "conversations" in record:
        return _vlm_r1(record)
    unknown = sorted(set(record) - KEYS)
    if unknown and not lenient:
        raise BadLine(f"unknown key {short(unknown[0])}", f"known: {', '.join(sorted(KEYS))}")
    if "image" in record and "images" in record:
        raise BadLine('has both "image" and "images"', "keep one")
    question = _text(record.get("question"), "question")
    if record.get("answer") is None:
        raise BadLine('"answer" is missing', "add the true answer")
    answer = record["answer"]
    if not lenient:
        return _draft(record, question, answer, record.get("target"))
    if "<image>" in question:
        question = _text(_shown(question, len(_names(record))), "question")
    written = inside_tags(answer).strip() if isinstance(answer, str) else None
    return _draft(
        record,
        question,
        said(written, loose=True) if written is not None else answer,
        record.get("target"),
        written,
        loose=True,
    )


def _vlm_r1(record: dict[str, Any]) -> Draft:
    turns = record["conversations"]
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        raise BadLine('"conversations" must hold two turns', "write one question and one answer a line")
    for turn, names in zip(turns, (("human", "user"), ("gpt", "assistant"))):
        if turn.get("from", turn.get("role")) not in names:
            raise BadLine(
                f'"from" is {short(turn.get("from"))} where {names[0]!r} is wanted',
                "write the question (human) before the answer (gpt)",
            )
    asked, reply = (turn.get("value", turn.get("content")) for turn in turns)
    if reply is None:
        raise BadLine('the answer\'s "value" is missing', "add the true answer")
    text = _shown(_text(asked, "value"), len(_names(record)))
    target = reply if isinstance(reply, str) and "<think>" in reply else None
    written = inside_tags(reply).strip() if isinstance(reply, str) else None
    answer = said(written) if written is not None else reply
    return _draft(record, _text(text, "value"), answer, target, written)


def _shown(text: str, count: int) -> str:
    """`without_placeholders` of a question about `count` pictures. Raises BadLine."""
    found = text.count("<image>")
    if found not in (0, count):
        raise BadLine(
            f"the question has {found} <image> but the line names {count} pictures",
            "write one <image> for each picture, or none",
        )
    return without_placeholders(text)


def without_placeholders(text: str) -> str:
    """The text after the pictures: `<image>` at the start or alone at the end goes, inside it becomes "Picture k".

    Example: "<image>\\nIs it as in <image>?" -> "Is it as in Picture 2?"
    """
    first = _LEADING.match(text)
    shown = text.count("<image>", 0, first.end()) if first else 0
    rest = _TRAILING.sub("", text[first.end() :] if first else text)
    pieces = rest.split("<image>")
    named = [f"Picture {shown + k}{piece}" for k, piece in enumerate(pieces[1:], 1)]
    return pieces[0] + "".join(named)


def _draft(
    record: dict[str, Any],
    question: str,
    answer: Any,
    target: Any,
    written: str | None = None,
    *,
    loose: bool = False,
) -> Draft:
    names = _names(record)
    columns = _columns(record)
    method = _method(record, columns)
    kind, answer = kind_of(answer, record.get("kind"), method, written=written, loose=loose)
    if kind in ("text", "math"):
        _text(answer, "answer")
    if kind == "objects":
        for thing in answer:
            _text(thing["label"], "label")
    if kind == "set":
        for name in answer:
            _text(str(name), "answer")
    frame, resized = _frame(record)
    which = record.get("box_image")
    boxed = kind in ("box", "objects")
    if boxed and not names:
        raise BadLine("has a box but no picture", "name its picture in images")
    if boxed and len(names) > 1 and which is None:
        raise BadLine("has a box and several pictures", 'say which one it belongs to: "box_image": 0')
    if which is not None and not (isinstance(which, int) and 0 <= which < max(1, len(names))):
        raise BadLine(f'"box_image" is {short(which)}', "give the picture's place in images, from 0")
    difficulty: Any = record.get("difficulty")
    difficulty = 0.0 if difficulty is None else difficulty
    if not is_number(difficulty) or not 0 <= difficulty <= 1:
        raise BadLine(f'"difficulty" is {short(difficulty)}', "give a number from 0 to 1")
    meta = columns | ({"box_image": int(which)} if which else {})
    return Draft(
        id=_id(record.get("id")),
        question=question,
        answer=float(answer) if kind == "number" and isinstance(answer, float) else answer,
        kind=kind,
        frame=frame,
        box_image=int(which or 0),
        target=None if target is None else _text(target, "target"),
        difficulty=float(difficulty),
        images=tuple(names),
        meta=meta | ({"accu_reward_method": method} if method is not None else {}),
        resized=resized,
    )


def _method(record: dict[str, Any], columns: dict[str, Any]) -> Any:
    """The line's `accu_reward_method`, the key's or that of "meta". Raises BadLine where they differ."""
    method, other = record.get("accu_reward_method"), columns.get("accu_reward_method")
    if method is None:
        return other
    if other is not None and other != method:
        raise BadLine(
            f'"accu_reward_method" is {short(method)}, and {short(other)} in "meta"', "keep one of them"
        )
    return method


def _frame(record: dict[str, Any]) -> tuple[BoxFrame, Size | None]:
    """(frame of the line's boxes, the size it refers to where it is "resized"). Raises BadLine."""
    size: Any = record.get("resized")
    frame = record.get("frame") or "pixels"
    if frame not in FRAMES:
        raise BadLine(f'"frame" {short(frame)} is unknown', f"known: {', '.join(FRAMES)}")
    if frame != "resized":
        return frame, None
    if not is_size(size):
        raise BadLine(
            f'"frame" "resized" needs the size that boxes refer to, but "resized" is {short(size)}',
            'write "resized": [width, height]',
        )
    return "resized", (int(size[0]), int(size[1]))


def _columns(record: dict[str, Any]) -> dict[str, Any]:
    """What reward functions may ask for besides the answer: the entries of "meta", and the other columns of a table
    or of VLM-R1's schema as far as they are plain values. Never shown to the model."""
    meta = record.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise BadLine(f'"meta" is {short(meta)}', 'write an object, for example {"solution": "2x"}')
    others = {
        key: value
        for key, value in record.items()
        if key not in KEYS and isinstance(value, str | int | float)  # not its lists and objects
    }
    return others | {str(key): value for key, value in (meta or {}).items()}


def finish(
    draft: Draft,
    task: str,
    number: int,
    refs: tuple[Ref, ...],
    sizes: tuple[Size, ...],
    megapixels: float = MEGAPIXELS,
    *,
    file: str = "",
    unit: str = "line",
) -> Row:
    """The Row of a draft whose pictures are known: boxes in pixels and inside, and a truth that its rewards can judge.

    Raises BadLine.
    """
    answer, target = draft.answer, draft.target
    if draft.kind in ("box", "objects"):
        size = sizes[draft.box_image]
        resized = _same_shape(draft.resized or size, size)
        if draft.kind == "box":
            answer = _inside(answer, draft.frame, size, resized, unit)
            reply = place(_rounded(answer))
        else:
            answer = [
                {
                    "bbox_2d": list(_inside(thing["bbox_2d"], draft.frame, size, resized, unit)),
                    "label": thing["label"],
                }
                | ({"iscrowd": 1} if thing.get("iscrowd") else {})
                for thing in answer
            ]
            items = (
                f'{{"bbox_2d": {place(_rounded(thing["bbox_2d"]))}, '
                f'"label": {json.dumps(thing["label"], ensure_ascii=False)}}}'
                for thing in answer
                if "iscrowd" not in thing
            )
            reply = "[" + ", ".join(items) + "]"
    else:
        reply = write_list(answer) if draft.kind in ("order", "set") else str(answer)
    row = Row(
        number=number,
        id=draft.id if draft.id is not None else f"{task}:{number}",
        question=draft.question,
        answer=answer,
        kind=draft.kind,
        target=target or f"<answer>{reply}</answer>",
        difficulty=draft.difficulty,
        refs=refs,
        sizes=sizes,
        meta=draft.meta,
        megapixels=megapixels,
        file=file,
        unit=unit,
    )
    wrong = unfit(to_problem(row, task))
    if wrong is not None:
        raise wrong
    return row


def to_problem(row: Row, task: str) -> Problem:
    """The problem of a checked line; its pictures are decoded when they are taken."""
    source = f"{row.file}, {row.unit} {row.number}"
    where = f"{source} (problem {printable(row.id, 80)})"
    pictures = [ref.path if isinstance(ref, FileRef) else str(ref) for ref in row.refs]
    return Problem(
        id=row.id,
        task=task,
        images=Pictures(refs=row.refs, where=where, known=row.sizes, megapixels=row.megapixels),
        question=row.question,
        answer=row.answer,
        kind=row.kind,
        difficulty=row.difficulty,
        target=row.target,
        meta=row.meta | {"source": source, "line": row.number, "pictures": pictures},
    )


# --- single values ----------------------------------------------------------------------------------------


def _names(record: dict[str, Any]) -> list[str | Ref]:
    names = record.get("images")
    names = record.get("image") if names is None else names
    if names is None:
        return []
    names = names if isinstance(names, list) else [names]
    if not all(isinstance(name, str | FileRef | CellRef) and name for name in names):
        raise BadLine('"images" must be a list of file names', 'write "images": ["cat.png"]')
    for name in names:
        if isinstance(name, str):
            _text(name, "images")
    return names


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadLine(f'"{key}" must be a text that is not empty', f'write "{key}": "…"')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadLine(f'"{key}" holds half a character (a lone surrogate)', "write the text again") from None
    return value


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    return _text(value, "id")


def _same_shape(resized: Size, size: Size) -> Size:
    """The declared size. Raises BadLine where it is not one of this picture, for example of it turned."""
    factor = resized[0] * size[1] / (resized[1] * size[0])
    if not 1 / RESHAPED <= factor <= RESHAPED:
        raise BadLine(
            f"boxes are declared in a picture of {resized[0]} x {resized[1]} pixels, but the picture (upright) has "
            f"{size[0]} x {size[1]}",
            "use the pictures that belong to the file, or correct the size",
        )
    return resized


def _inside(box: list[float], frame: BoxFrame, size: Size, resized: Size, unit: str) -> tuple[float, ...]:
    """The box in pixels; ordered, and inside the picture. Raises BadLine.

    `unit`: what the file's lines are; of a COCO file's, pictures and refs, no frame can be declared.
    """
    if not (box[0] < box[2] and box[1] < box[3]):
        raise BadLine(f"the box {box} must have x1 < x2 and y1 < y2", "write [left, top, right, bottom]")
    pixels = convert(box, frame, "pixels", size, resized)
    width, height = size
    if min(pixels) < -OUTSIDE or pixels[2] > width + OUTSIDE or pixels[3] > height + OUTSIDE:
        if unit in ("picture", "ref"):
            width, height = resized
            raise BadLine(
                f"the box {box} (x1, y1, x2, y2) is outside its picture of {width} x {height} pixels",
                "correct its bbox [x, y, width, height]",
            )
        shown = "" if frame == "pixels" else f" ({frame})"
        raise BadLine(
            f"the box {box}{shown} is outside its picture of {width} x {height} pixels",
            "correct it, or say in which frame it is: pixels, resized, thousandths or unit",
        )
    return tuple(int(v) if v == int(v) else v for v in pixels)


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in box]  # place() must not write 1e-05
