"""One line of the user's data, checked: from a JSON object in one of two schemas to a `Row`.

Plain, where `<image>` in the question is literal text:

    {"id": "7", "images": ["cat.png"], "question": "Where is the cat?", "answer": [10, 20, 110, 220]}

`image` instead of `images` for one picture. Optional: `kind` (box, number, choice, text, objects; guessed from
the answer), `frame` of a box (pixels, thousandths, unit; default pixels), `box_image` (which picture a box
belongs to, from 0), `target` (the reply a teacher would give, for SFT), `difficulty` (0 to 1), `meta` (an
object: columns for reward functions, never shown to the model).

VLM-R1's (github.com/om-ai-lab/VLM-R1, `grpo_jsonl.py`), where `<image>` stands for a picture:

    {"id": 1, "image": "cat.png", "conversations": [{"from": "human", "value": "<image>Where is the cat?"},
                                                    {"from": "gpt", "value": "[10, 20, 110, 220]"}]}

There are as many `<image>` as pictures, or none. VLM-R1 drops them all and shows the pictures first. Here, too,
pictures come first, and placeholders at the start, or on lines of their own at the end, are dropped; one inside
the text becomes "Picture 2", so that the text still says which picture it means. Answers lose their `<answer>`
tags; boxes are pixels of the original picture. `accu_reward_method` decides the kind where it can, and is kept.

Boxes may pass the picture's edge by one pixel (rounding, inclusive corners), not more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from fovea.boxes import convert, place
from fovea.tasks.pictures import MEGAPIXELS, CellRef, FileRef, Pictures, Ref, Size, printable
from fovea.types import AnswerKind, BoxFrame, Problem

KINDS: tuple[AnswerKind, ...] = ("box", "text", "number", "choice", "objects")
FRAMES: tuple[BoxFrame, ...] = ("pixels", "thousandths", "unit")
KEYS = {
    "image", "images", "question", "answer", "kind", "frame", "target", "id", "difficulty", "box_image",
    "accu_reward_method", "meta",
}  # fmt: skip
METHODS: dict[str, AnswerKind | None] = {
    "default": None, "accuracy": None, "llm": "text", "math": "text", "all_match": "text", "yes_no": "text",
    "mcq": "choice", "rec": "box", "iou": "box", "map": "objects", "od_ap": "objects", "od_ap50": "objects",
    "odLength": "objects", "weighted_sum": "objects",
}  # fmt: skip
"""VLM-R1's `accu_reward_method` and the kind it implies; None: by the answer."""
OUTSIDE = 1.0
"""Pixels by which a box may pass the edge of its picture."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_LEADING = re.compile(r"\A(?:\s*<image>)+\s*")
_TRAILING = re.compile(r"(?:\n[ \t]*(?:<image>[ \t]*)+)+\s*\Z")


class BadLine(Exception):
    """What is wrong with a line, and the fix."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem, self.fix = problem, fix


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


def read_record(record: Any, *, lenient: bool = False) -> Draft:
    """A parsed line of either schema as a Draft. `lenient`: unknown keys of the plain schema are ignored and
    answers are read as VLM-R1's (columns of tables have one type). Raises BadLine."""
    if not isinstance(record, dict):
        raise BadLine(
            "must be an object",
            'write {"image": …, "question": …, "answer": …} on every line, without a list',
        )
    if "conversations" in record:
        return _vlm_r1(record)
    unknown = sorted(set(record) - KEYS)
    if unknown and not lenient:
        raise BadLine(f"unknown key {_short(unknown[0])}", f"known: {', '.join(sorted(KEYS))}")
    if "image" in record and "images" in record:
        raise BadLine('has both "image" and "images"', "keep one")
    question = _text(record.get("question"), "question")
    if record.get("answer") is None:
        raise BadLine('"answer" is missing', "add the true answer")
    answer = record["answer"]
    if lenient and isinstance(answer, str):
        answer = _said(_ANSWER.findall(answer)[-1] if _ANSWER.search(answer) else answer)
    return _draft(record, question, answer, record.get("target"))


def _vlm_r1(record: dict[str, Any]) -> Draft:
    turns = record["conversations"]
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        raise BadLine('"conversations" must hold two turns', "write one question and one answer a line")
    for turn, names in zip(turns, (("human", "user"), ("gpt", "assistant"))):
        if turn.get("from", turn.get("role")) not in names:
            raise BadLine(
                f'"from" is {_short(turn.get("from"))} where {names[0]!r} is wanted',
                "write the question (human) before the answer (gpt)",
            )
    asked, said = (turn.get("value", turn.get("content")) for turn in turns)
    if said is None:
        raise BadLine('the answer\'s "value" is missing', "add the true answer")
    count = len(_names(record))
    text = _text(asked, "value")
    found = text.count("<image>")
    if found not in (0, count):
        raise BadLine(
            f"the question has {found} <image> but the line names {count} pictures",
            "write one <image> for each picture, or none",
        )
    target = said if isinstance(said, str) and "<think>" in said else None
    if isinstance(said, str):
        inside = _ANSWER.findall(said)
        said = inside[-1] if inside else said
    return _draft(record, _text(without_placeholders(text), "value"), _said(said), target)


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


def _said(said: Any) -> Any:
    """VLM-R1's answer as plain JSON: a box, labelled boxes (fenced or not), a number, else the text."""
    if not isinstance(said, str):
        return said
    fenced = _FENCED.findall(said)
    text = (fenced[-1] if fenced else said).strip()
    if text[:1] in ("[", "{") or re.fullmatch(r"-?\d{1,15}(\.\d{1,15})?", text):
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return text
        if _is_box(value) or _is_number(value) or _is_objects(value):
            return value
    return text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _draft(record: dict[str, Any], question: str, answer: Any, target: Any) -> Draft:
    names = _names(record)
    method = record.get("accu_reward_method")
    kind = _kind(answer, record.get("kind"), method)
    if kind == "objects" and isinstance(answer, str):
        answer = []  # VLM-R1 writes None when nothing asked for is in the picture
    frame = record.get("frame") or "pixels"
    if frame not in FRAMES:
        raise BadLine(f'"frame" {_short(frame)} is unknown', f"known: {', '.join(FRAMES)}")
    which = record.get("box_image")
    boxed = kind in ("box", "objects")
    if boxed and not names:
        raise BadLine("has a box but no picture", "name its picture in images")
    if boxed and len(names) > 1 and which is None:
        raise BadLine("has a box and several pictures", 'say which one it belongs to: "box_image": 0')
    if which is not None and not (isinstance(which, int) and 0 <= which < max(1, len(names))):
        raise BadLine(f'"box_image" is {_short(which)}', "give the picture's place in images, from 0")
    difficulty: Any = record.get("difficulty")
    difficulty = 0.0 if difficulty is None else difficulty
    if not _is_number(difficulty) or not 0 <= difficulty <= 1:
        raise BadLine(f'"difficulty" is {_short(difficulty)}', "give a number from 0 to 1")
    meta = _columns(record) | ({"box_image": int(which)} if which else {})
    return Draft(
        id=_id(record.get("id")),
        question=question,
        answer=float(answer) if kind == "number" and isinstance(answer, float) else answer,
        kind=kind,
        frame=cast(BoxFrame, frame),
        box_image=int(which or 0),
        target=None if target is None else _text(target, "target"),
        difficulty=float(difficulty),
        images=tuple(names),
        meta=meta | ({"accu_reward_method": method} if method is not None else {}),
    )


def _columns(record: dict[str, Any]) -> dict[str, Any]:
    """What reward functions may ask for besides the answer: the entries of "meta", and the other columns of a table
    or of VLM-R1's schema as far as they are plain values. Never shown to the model."""
    meta = record.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise BadLine(f'"meta" is {_short(meta)}', 'write an object, for example {"solution": "2x"}')
    others = {
        key: value
        for key, value in record.items()
        if key not in KEYS and isinstance(value, str | int | float)
    }
    return others | {str(key): value for key, value in (meta or {}).items()}


def finish(
    draft: Draft,
    task: str,
    number: int,
    refs: tuple[Ref, ...],
    sizes: tuple[Size, ...],
    megapixels: float = MEGAPIXELS,
) -> Row:
    """The Row of a draft whose pictures are known: boxes in pixels and inside. Raises BadLine."""
    answer, target = draft.answer, draft.target
    if draft.kind in ("box", "objects"):
        size = sizes[draft.box_image]
        if draft.kind == "box":
            answer = _inside(answer, draft.frame, size)
            said = place(_rounded(answer))
        else:
            answer = [
                {"bbox_2d": list(_inside(thing["bbox_2d"], draft.frame, size)), "label": thing["label"]}
                for thing in answer
            ]
            items = (
                f'{{"bbox_2d": {place(_rounded(thing["bbox_2d"]))}, '
                f'"label": {json.dumps(thing["label"], ensure_ascii=False)}}}'
                for thing in answer
            )
            said = "[" + ", ".join(items) + "]"
    else:
        said = str(answer)
    return Row(
        number=number,
        id=draft.id if draft.id is not None else f"{task}:{number}",
        question=draft.question,
        answer=answer,
        kind=draft.kind,
        target=target or f"<answer>{said}</answer>",
        difficulty=draft.difficulty,
        refs=refs,
        sizes=sizes,
        meta=draft.meta,
        megapixels=megapixels,
    )


def to_problem(row: Row, task: str, file: str, unit: str = "line") -> Problem:
    """The problem of a checked line; its pictures are decoded when they are taken."""
    source = f"{file}, {unit} {row.number}"
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


def _kind(answer: Any, kind: Any, method: Any) -> AnswerKind:
    """The declared kind, or the one the reward method implies, checked against the answer, or a guess from it."""
    if method is not None and not (isinstance(method, str) and method in METHODS):
        raise BadLine(f'"accu_reward_method" {_short(method)} is unknown', f"known: {', '.join(METHODS)}")
    letter = isinstance(answer, str) and len(answer) == 1 and "A" <= answer <= "Z"
    fits = {
        "box": _is_box(answer),
        "objects": _is_objects(answer),
        "number": _is_number(answer),
        "choice": letter,
        "text": isinstance(answer, str) and bool(answer.strip()),
    }
    if kind is None and method is not None:
        kind = METHODS[method]
        if kind == "text" and fits["number"]:
            kind = "number"
        if kind == "objects" and isinstance(answer, str) and answer.strip().lower() == "none":
            return "objects"
    if kind is None:
        guesses = ("box", "objects", "number", "choice")
        kind = next((name for name in guesses if fits[name]), "text")
    if not isinstance(kind, str) or kind not in fits:
        raise BadLine(f'"kind" {_short(kind)} is unknown', f"known: {', '.join(KINDS)}")
    if not fits[kind]:
        raise BadLine(f"the answer {_short(answer)} does not fit kind {kind!r}", _WANTED[kind])
    if kind == "text":
        _text(answer, "answer")
    if kind == "objects":
        for thing in answer:
            _text(thing["label"], "label")
    return cast(AnswerKind, kind)


_WANTED = {
    "box": "write [x1, y1, x2, y2]",
    "objects": 'write [{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}]',
    "number": "write one finite number without quotes",
    "choice": "write one capital letter",
    "text": "write a text, a number, a letter or a box [x1, y1, x2, y2]",
}


def _is_number(value: Any) -> bool:
    # 10**400 is valid JSON and no float; nothing that is counted or measured here is above 1e15.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(thing, dict) and _is_box(thing.get("bbox_2d")) and isinstance(thing.get("label"), str)
        for thing in value
    )


def _inside(box: list[float], frame: BoxFrame, size: Size) -> tuple[float, ...]:
    """The box in pixels; ordered, and inside the picture. Raises BadLine."""
    if not (box[0] < box[2] and box[1] < box[3]):
        raise BadLine(f"the box {box} must have x1 < x2 and y1 < y2", "write [left, top, right, bottom]")
    pixels = convert(box, frame, "pixels", size, size)
    width, height = size
    if min(pixels) < -OUTSIDE or pixels[2] > width + OUTSIDE or pixels[3] > height + OUTSIDE:
        shown = "" if frame == "pixels" else f" ({frame})"
        raise BadLine(
            f"the box {box}{shown} is outside its picture of {width} x {height} pixels",
            "correct it, or say in which frame it is: pixels, thousandths or unit",
        )
    return tuple(int(v) if v == int(v) else v for v in pixels)


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in box]  # place() must not write 1e-05


def _short(value: Any) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=True, default=str)
    except (ValueError, TypeError, RecursionError):
        shown = f"of type {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:60] + "…"
