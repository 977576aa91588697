"""Reading an answer out of a reply: the tags, a box, a number, a letter, a text.

The reply is hostile text. Every function here takes any string and returns the thing or None; none raises,
none evaluates, all are linear in the length of the text. Not here: what an answer is worth (`functions.py`).

Try it: `read_box(answer_of("<think>left</think><answer>[1, 2, 3, 4]</answer>"))` gives (1.0, 2.0, 3.0, 4.0).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any, NoReturn, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
Thing: TypeAlias = tuple[Box | None, str]
"""A box and its label as `normal_text`; (None, "") for an item that is not one."""

ANSWER_LIMIT = 10_000
"""An answer of more characters than this is no answer: it bounds every parser below."""

MARKS_LIMIT = 30
"""Text that people write never has more combining marks in a row (Unicode Standard Annex 15, Stream-Safe Text)."""

NFKC_LIMIT = 2_000
"""Longer text is not brought into normal form NFKC, which can make one character eighteen."""

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Possessive quantifiers (`++`): a run of digits is never taken back, so no input makes matching quadratic.
_NUMBER = r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?"
_BOX = re.compile(r"\[\s*+" + r"\s*+,\s*+".join([f"({_NUMBER})"] * 4) + r"\s*+\]")
# Tried before a plain number; not where a digit follows, which would make "1,2345" the number 1,234.
# At most 16 groups: a longer run is several numbers, and is not read to its end again from each of its groups.
_THOUSANDS = r"[-+]?[0-9]{1,3}(?:,[0-9]{3}){1,16}+(?:\.[0-9]*+)?(?![0-9])"
_ANY_NUMBER = re.compile(rf"(?<![0-9])(?:{_THOUSANDS}|{_NUMBER})")
_CHOICE = re.compile(r"\(?([A-Za-z])\)|([A-Za-z])\.?")
_FENCE = re.compile(r"```(?:json)?\s*+(.*?)```", re.DOTALL)


def has_format(text: str) -> bool:
    """Whether the whole reply is `<answer>…</answer>`, optionally after one `<think>…</think>`.

    White space may stand around and between the two; nothing else may. Each tag occurs exactly once (the
    think tags once or not at all), and the answer is not blank: an empty pair of tags answers nothing.
    """
    think_open, think_close, answer_open, answer_close = (text.count(tag) for tag in _TAGS)
    if (answer_open, answer_close) != (1, 1) or (think_open, think_close) not in ((0, 0), (1, 1)):
        return False
    rest = text.strip()
    if think_open:
        if not rest.startswith("<think>"):
            return False
        rest = rest.partition("</think>")[2].lstrip()
    if not (rest.startswith("<answer>") and rest.endswith("</answer>")):
        return False
    return bool(rest.removeprefix("<answer>").removesuffix("</answer>").strip())


def answer_of(text: str) -> str | None:
    """The part of a reply that is its answer, stripped; None if there is none.

    Lenient as to format, which has a reward of its own, in this order:
    the last complete `<answer>…</answer>` pair, wherever it is; else what follows an unclosed `<answer>`;
    else what follows the last `</think>`; else, if no thought was begun, the whole reply. A thought that
    never ended holds no answer. More than `ANSWER_LIMIT` characters are no answer.
    """
    close = text.rfind("</answer>")
    open_ = text.rfind("<answer>", 0, close) if close >= 0 else -1
    if open_ >= 0:
        answer = text[open_ + len("<answer>") : close]
    elif "<answer>" in text:
        answer = text.rpartition("<answer>")[2]
    elif "</think>" in text:
        answer = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return None
    else:
        answer = text
    answer = answer.strip()
    return answer if answer and len(answer) <= ANSWER_LIMIT else None


def value_of(text: str) -> str | None:
    """`answer_of` without its wrapping: the content of the last `\\boxed{…}`, or the value under "answer" or "action"
    of a JSON object that is the whole answer (possibly in a code fence). Anything else is returned as it is.
    """
    answer = answer_of(text)
    if answer is None:
        return None
    if "\\boxed{" in answer:
        answer = _braced(answer.rpartition("\\boxed{")[2])
    if answer and '"' in answer and answer.lstrip("`jsonJSON \n\t").startswith("{"):
        value = _json_of(answer)
        for key in ("answer", "action") if isinstance(value, dict) else ():
            if isinstance(value.get(key), str | int | float) and not isinstance(value[key], bool):
                return str(value[key]).strip() or None
    return answer


def _braced(text: str) -> str | None:
    """`text` up to the brace that closes the one before it; None if none does."""
    depth = 1
    for i, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:i].strip() or None
    return None


def read_box(answer: str | None) -> Box | None:
    """The first box of an answer: four finite numbers, as `[x1, y1, x2, y2]` or under a JSON key `bbox_2d`.

    An answer that is JSON (possibly in a code fence) is searched for `bbox_2d` first, in document order; a
    first `bbox_2d` that is not four finite numbers means no box. Otherwise the first bracketed four
    numbers in the text count. Corners are returned as written, never swapped or clipped.
    """
    if answer is None or len(answer) > ANSWER_LIMIT:
        return None
    if '"bbox_2d"' in answer:
        found, value = _find_key(_json_of(answer), "bbox_2d")
        if found:
            return box_from(value)
    match = _BOX.search(answer)
    return box_from([float(number) for number in match.groups()]) if match else None


def read_objects(answer: str | None) -> list[Thing] | None:
    """Labelled boxes from JSON `[{"bbox_2d": [x1, y1, x2, y2], "label": "red circle"}, …]`, or None.

    The answer is the list (or one such object), possibly in a code fence. An item that is not a labelled
    box stays in the list as (None, ""), because what was said wrongly was said.
    """
    if answer is None or len(answer) > ANSWER_LIMIT:
        return None
    if answer.strip().rstrip(".").casefold() == "none":  # VLM-R1's word for an empty list
        return []
    value = _json_of(answer)
    items = [value] if isinstance(value, dict) else value
    return [thing_from(item) for item in items] if isinstance(items, list) else None


def thing_from(item: Any) -> Thing:
    """(box, label as compared) of one parsed item; (None, "") if it is not a box with a text as label."""
    if not isinstance(item, dict) or not isinstance(item.get("label"), str):
        return None, ""
    box = box_from(item.get("bbox_2d"))
    return (box, normal_text(item["label"])) if box else (None, "")


def boxes_from(value: Any) -> list[Box] | None:
    """The boxes of a parsed JSON value that is boxes throughout, else None.

    It is one `[x1, y1, x2, y2]`, one object with such a list under `bbox_2d`, or a list of either (maybe empty).
    """
    one = box_from(value)
    items = [value] if one or isinstance(value, dict) else value
    if not isinstance(items, list):
        return None
    boxes = [box_from(item.get("bbox_2d") if isinstance(item, dict) else item) for item in items]
    found = [box for box in boxes if box is not None]
    return found if len(found) == len(boxes) else None


def box_from(value: Any) -> Box | None:
    """Four finite numbers in a list or tuple as a box, anything else as None (True is not a number here)."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    numbers = [finite(number) for number in value]
    if any(number is None for number in numbers):
        return None
    x1, y1, x2, y2 = (float(number) for number in numbers if number is not None)
    return x1, y1, x2, y2


def is_empty(box: Box) -> bool:
    """Whether a box has no area, or its corners swapped: no true box is so."""
    return box[2] <= box[0] or box[3] <= box[1]


def finite(value: Any) -> float | None:
    """A finite float from a JSON number; None for everything else, bool, NaN and overflow included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_number(answer: str | None) -> float | None:
    """The one number in an answer; None if it holds none or several, or one that overflows.

    `12`, `-3.5`, `1,234.5`, `2e3`, `$1,200`, `5 cars` and `7.` are one number; `3 of 4`, `1/2`, `2-3` and
    `1,23` are several. The minus sign may be U+2212. Number words ("three") are not read.
    """
    if answer is None or len(answer) > ANSWER_LIMIT:
        return None
    found = _ANY_NUMBER.findall(answer.replace("\u2212", "-"))
    return finite(float(found[0].replace(",", ""))) if len(found) == 1 else None


def read_choice(answer: str | None) -> str | None:
    """The letter A to Z of a multiple-choice answer: the whole answer must be `B`, `(B)`, `B)` or `B.`.

    Lower case counts as upper case. A letter inside a word or a sentence is not an answer.
    """
    match = _CHOICE.fullmatch(answer.strip()) if answer is not None else None
    return (match[1] or match[2]).upper() if match else None


def normal_text(text: str) -> str:
    """Text as compared: NFKC, case folded, white space collapsed, outer quotes, final full stop dropped.

    Without NFKC where the text is longer than `NFKC_LIMIT`, and where more than `MARKS_LIMIT` combining marks follow
    each other: it sorts them in quadratic time.
    """
    if len(text) <= NFKC_LIMIT and _longest_marks(text) <= MARKS_LIMIT:
        text = unicodedata.normalize("NFKC", text)
    plain = " ".join(text.casefold().split())
    plain = plain.removesuffix(".").rstrip()
    for quote in ('"', "'", "`"):
        if len(plain) >= 2 and plain.startswith(quote) and plain.endswith(quote):
            plain = plain[1:-1].strip()
    return plain.removesuffix(".").rstrip()


def _longest_marks(text: str) -> int:
    """Length of the longest run of combining marks."""
    if text.isascii():
        return 0
    longest = run = 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) else 0
        longest = max(longest, run)
    return longest


def json_value(answer: str | None) -> tuple[bool, Any]:
    """(True, value) of an answer that is one JSON value and nothing else, possibly in a code fence; (False, None) else.

    Strict: NaN and Infinity, which Python's reader takes, are no JSON.
    """
    if answer is None or len(answer) > ANSWER_LIMIT:
        return False, None
    whole = answer.strip()
    fence = _FENCE.match(whole)
    if fence is not None and fence.end() == len(whole):
        whole = fence[1]
    try:
        return True, json.loads(whole, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False, None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _json_of(answer: str) -> Any:
    """The JSON of an answer, or of its first code fence; None if it is none."""
    fence = _FENCE.search(answer)
    return _json_or_none(fence[1] if fence else answer)


def _json_or_none(text: str) -> Any:
    """Parsed JSON or None. RecursionError: hostile nesting; ValueError: no JSON, or an integer too long."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _find_key(value: Any, key: str) -> tuple[bool, Any]:
    """Depth-first search for the first `key` in parsed JSON, in document order, with an explicit stack."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if key in node:
                return True, node[key]
            stack.extend(reversed(node.values()))
        elif isinstance(node, list):
            stack.extend(reversed(node))
    return False, None
