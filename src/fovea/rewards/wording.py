"""Rewards for how a reply is worded, whatever it answers: its form, its length, its repetitions.

Each takes (reply, problem) and never raises on any reply. `compat="vlm_r1"` is what VLM-R1's code does, its
mistakes included. Not here: the lenient `format` (`functions.py`), reading text (`answers.py`).

Try it: `fovea score format_strict --answer 3 --completion '<think>one</think><answer>3</answer>'` gives 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import islice

from fovea.rewards import answers
from fovea.rewards.matching import Compat
from fovea.types import Problem, UserError

COUNTED_TOKENS = 16_384
"""A reply whose length in tokens is not known is not counted beyond this (it bounds the time)."""

COUNTED_WORDS = 10_000
"""`repetition` looks at this many words of a reply, for the same reason."""

_JOINT = re.compile(r"</think>\s*+<answer>")
_WHOLE_BOX = re.compile(r"\[\d++,\s*+\d++,\s*+\d++,\s*+\d++\]")
_TOKEN = re.compile(r"\w++|[^\w\s]")


def format_strict(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """1 if the reply is exactly `<think>…</think>` white space `<answer>…</answer>`, else 0.

    Each tag occurs once, thought and answer are not blank, and nothing stands before or after, white space
    included. (`format` makes the thought optional and forgives outer white space.) `compat="vlm_r1"`: what its
    regular expression matches, so anything may stand between the tags, tags and nothing among it.
    """
    if compat == "vlm_r1":
        joint = _JOINT.search(text, len("<think>"))
        ends = text.startswith("<think>") and text.endswith("</answer>")
        return float(ends and joint is not None and joint.end() <= len(text) - len("</answer>"))
    if text != text.strip() or "<think>" not in text or not answers.has_format(text):
        return 0.0
    return float(bool(text[len("<think>") : text.find("</think>")].strip()))


def format_json(text: str, problem: Problem) -> float:
    """1 if the whole answer is one JSON value, in a code fence or not, else 0.

    The answer is what `answers.answer_of` finds; the tags have rewards of their own. `NaN` is no JSON.
    """
    return float(answers.json_value(answers.answer_of(text))[0])


def format_boxes(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """1 if the reply has `format_strict` and its answer is JSON that is boxes throughout, else 0.

    Boxes: `[x1, y1, x2, y2]`, or an object with four finite numbers under `bbox_2d`, or a list of either, which
    may be empty (nothing to box); in a code fence or not. `compat="vlm_r1"`: what the regular expression of
    its REC task finds, so anything may stand around (it searches, it does not match the whole), and the
    answer need only hold `{`, then four whole numbers in brackets, then `}`.
    """
    if compat == "vlm_r1":
        return float(_rec_pattern(text))
    if not format_strict(text, problem):
        return 0.0
    found, value = answers.json_value(answers.answer_of(text))
    return float(found and answers.boxes_from(value) is not None)


def _rec_pattern(text: str) -> bool:
    """Whether `<think>.*?</think>\\s*<answer>.*?{.*[d, d, d, d].*}.*?</answer>` is found, dot matching all.

    A chain of pieces that may lie anywhere apart is found if and only if it is found with each piece taken as
    early as it occurs after the one before, which is linear where the expression itself is not.
    """
    at = text.find("<think>")
    joint = _JOINT.search(text, at + len("<think>")) if at >= 0 else None
    brace = text.find("{", joint.end()) if joint else -1
    box = _WHOLE_BOX.search(text, brace + 1) if brace >= 0 else None
    closing = text.find("}", box.end()) if box else -1
    return closing >= 0 and text.find("</answer>", closing) >= 0


def cosine(
    text: str,
    problem: Problem,
    *,
    tokens: int | None = None,
    max_tokens: int = 1024,
    correct_start: float = 1.0,
    correct_end: float = 0.5,
    wrong_start: float = -0.5,
    wrong_end: float = 0.0,
    compat: Compat = None,
) -> float:
    """Short right replies earn more than long ones; wrong ones lose less the longer they are.

        r = end + (start - end) * (1 + cos(pi * min(L, max_tokens) / max_tokens)) / 2

    L is the length of the reply in tokens (`tokens`; where it is None, words and punctuation marks are counted,
    up to `COUNTED_TOKENS`). Start and end are those of a right or of a wrong reply: `functions.correct` decides
    by the problem's kind. Source: VLM-R1's `length` reward, after Yeo et al., arXiv:2502.03373, section 3.

    `compat="vlm_r1"` keeps two mistakes: every reply is paid as a right one (a line overwrites the accuracy, so
    the wrong branch is dead), and L is not clamped, so that the reward rises again from `max_tokens` on and is
    back at its start at twice that.
    """
    if max_tokens < 1:
        raise UserError(
            f"max_tokens of the reward 'cosine' is {max_tokens}; give 1 or more, for example 1024."
        )
    if compat == "vlm_r1":
        right, counted = True, COUNTED_TOKENS
    else:
        from fovea.rewards.functions import correct  # it imports this file

        right, counted = correct(text, problem), min(max_tokens, COUNTED_TOKENS)
    length = tokens if tokens is not None else _count(text, counted)
    if compat is None:
        length = min(max(length, 0), max_tokens)
    start, end = (correct_start, correct_end) if right else (wrong_start, wrong_end)
    return end + (start - end) * (1 + math.cos(math.pi * length / max_tokens)) / 2


def _count(text: str, limit: int) -> int:
    """Words and punctuation marks of a text, at most `limit`."""
    return sum(1 for _ in islice(_TOKEN.finditer(text), limit))


def repetition(text: str, problem: Problem, *, n: int = 6) -> float:
    """How much of a reply is said before, from -1 to 0 (0: nothing).

        r = -(1 - distinct / all)

    over its n-grams of words in lower case; a text of fewer than n words gives 0. Where the answer is a JSON list of
    boxes, over those, each with its label where it has one, so that a repeated box costs and the words that all
    of them share do not. Looks at `COUNTED_WORDS` words at most. Source: VLM-R1's `repetition`.
    """
    if n < 1:
        raise UserError(f"n of the reward 'repetition' is {n}; give 1 or more, for example 6.")
    items = _boxes_said(text)
    if items:
        return -(1 - len(set(items)) / len(items))
    words = text.lower().split(None, COUNTED_WORDS)[:COUNTED_WORDS]
    total = len(words) - n + 1
    if total < 1:
        return 0.0
    return -(1 - len(set(zip(*(words[i:] for i in range(n)), strict=False))) / total)


def _boxes_said(text: str) -> Sequence[object]:
    """The labelled boxes, or the bare boxes, of an answer that is a list of them; empty for any other answer."""
    answer = answers.answer_of(text)
    things = answers.read_objects(answer)
    if things and any(box is not None for box, _ in things):
        return things
    found, value = answers.json_value(answer)
    return (answers.boxes_from(value) if found else None) or ()
