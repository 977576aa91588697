"""The first rewards: format, IoU of one box, exact text.

Each is a function (reply, problem) → number in [0, 1] that never raises on any reply. A truth that does not
fit the reward is the user's error and says so. Not here: the table of all rewards (`functions.py`).

Try it: `fovea score iou --answer '[0, 0, 10, 10]' --completion '<answer>[0, 0, 10, 5]</answer>'` gives 0.5.
"""

from __future__ import annotations

import math
import re

from fovea.rewards import answers
from fovea.rewards.answers import Box
from fovea.rewards.matching import Compat, first_block
from fovea.rewards.matching import refuse as refuse  # detection.py takes it from here
from fovea.types import Problem

_WHOLE_BOX = re.compile(r"\[([0-9]++),\s*+([0-9]++),\s*+([0-9]++),\s*+([0-9]++)\]")


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2), continuous areas, in [0, 1].

        IoU(a, b) = |a ∩ b| / (|a| + |b| - |a ∩ b|)                 Everingham et al., IJCV 2010, section 4.2

    A box with x2 <= x1 or y2 <= y1 has no area and gives 0: swapped corners are wrong, not repaired. (The
    PASCAL code counts inclusive pixels, x2 - x1 + 1; here an edge is a line, as in COCO.)
    """
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    if ax2 <= ax1 or ay2 <= ay1 or bx2 <= bx1 or by2 <= by1:
        return 0.0
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    # Coordinates of 1e300 overflow the areas and those of 1e-300 underflow them: no box of any picture.
    return inter / union if math.isfinite(union) and union > 0 else 0.0


def format_reward(text: str, problem: Problem) -> float:
    """1 if the whole reply is `<answer>…</answer>`, optionally after `<think>…</think>`, else 0."""
    return float(answers.has_format(text))


def iou(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """IoU of the reply's first box with the true box, both in `problem.frame`; 0 without a readable box.

    `compat="vlm_r1"`: the first `<answer>` block counts (no tags: 0), a box is four whole numbers without sign or point
    in brackets, and a box that overlaps the truth by a pixel or less in width or height earns 0.
    """
    truth = answers.box_from(problem.answer)
    if truth is None or answers.is_empty(truth):
        refuse("iou", problem, "four finite numbers [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
    if compat == "vlm_r1":
        return _whole_iou(text, truth)
    box = answers.read_box(answers.answer_of(text))
    return box_iou(box, truth) if box is not None else 0.0


def _whole_iou(text: str, truth: Box) -> float:
    """`iou` as VLM-R1's REC task has it, in a block of at most `answers.ANSWER_LIMIT` characters."""
    start = text.find("<answer>")
    block = first_block(text) if start >= 0 and "</answer>" in text[start:] else ""
    match = _WHOLE_BOX.search(block) if len(block) <= answers.ANSWER_LIMIT else None
    box = answers.box_from([float(number) for number in match.groups()]) if match else None
    if box is None:
        return 0.0
    overlaps = (min(box[i + 2], truth[i + 2]) - max(box[i], truth[i]) for i in (0, 1))
    return box_iou(box, truth) if all(overlap > 1 for overlap in overlaps) else 0.0


def iou_50(text: str, problem: Problem) -> float:
    """1 if `iou` is above one half, else 0."""
    return float(iou(text, problem) > 0.5)


def exact(text: str, problem: Problem) -> float:
    """1 if answer and truth are the same text after `answers.normal_text`, else 0."""
    if isinstance(problem.answer, bool) or not isinstance(problem.answer, str | int | float):
        refuse("exact", problem, "a text")
    answer = answers.value_of(text)
    return float(
        answer is not None and answers.normal_text(answer) == answers.normal_text(str(problem.answer))
    )
