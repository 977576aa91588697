"""The rewards, what "correct" means for each kind of answer, and the weighted sum of a group.

Each reward is a function (reply, problem) → number in [0, 1] that never raises on any reply. A truth that
does not fit the reward is the user's error and says so. Not here: advantages (`fovea.algorithms`), reading
text (`answers.py`).

Try it: `fovea score iou --answer '[0, 0, 10, 10]' --completion '<answer>[0, 0, 10, 5]</answer>'` gives 0.5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fovea.rewards import answers
from fovea.rewards.answers import Box
from fovea.types import AnswerKind, Problem, Reward, RunFailed, UserError

NUMERIC_TOLERANCE = 1e-6
"""Two numbers are equal when they differ by at most this share of the larger (zero equals only zero)."""


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


def iou(text: str, problem: Problem) -> float:
    """IoU of the reply's first box with the true box, both in `problem.frame`; 0 without a readable box."""
    truth = answers.box_from(problem.answer)
    if truth is None:
        _refuse("iou", problem, "four finite numbers [x1, y1, x2, y2]")
    box = answers.read_box(answers.answer_of(text))
    return box_iou(box, truth) if box is not None else 0.0


def iou_50(text: str, problem: Problem) -> float:
    """1 if `iou` is above one half, else 0."""
    return float(iou(text, problem) > 0.5)


def exact(text: str, problem: Problem) -> float:
    """1 if answer and truth are the same text after `answers.normal_text`, else 0."""
    if isinstance(problem.answer, bool) or not isinstance(problem.answer, str | int | float):
        _refuse("exact", problem, "a text")
    answer = answers.value_of(text)
    return float(
        answer is not None and answers.normal_text(answer) == answers.normal_text(str(problem.answer))
    )


def numeric(text: str, problem: Problem) -> float:
    """1 if the answer holds one number and it equals the truth within `NUMERIC_TOLERANCE`, else 0."""
    truth = problem.answer
    truth = answers.read_number(truth) if isinstance(truth, str) else answers.finite(truth)
    if truth is None:
        _refuse("numeric", problem, "one finite number")
    number = answers.read_number(answers.value_of(text))
    return float(number is not None and math.isclose(number, truth, rel_tol=NUMERIC_TOLERANCE))


def choice(text: str, problem: Problem) -> float:
    """1 if the whole answer is the true letter (`B`, `(B)`, `B)`, `B.`), else 0."""
    truth = answers.read_choice(problem.answer) if isinstance(problem.answer, str) else None
    if truth is None:
        _refuse("choice", problem, "one letter A to Z")
    return float(answers.read_choice(answers.value_of(text)) == truth)


def objects(text: str, problem: Problem) -> float:
    """F1 of the labelled boxes in the answer against the true ones, in [0, 1], whatever their order.

        F1 = 2 M / (predicted + true)

    M is the largest number of disjoint pairs (predicted, true) with equal label and IoU > 0.5; a
    duplicate, a box of an absent thing and an item that is not a labelled box count as predicted. (Average
    precision with equal scores depends on the order of the output and forgives what comes last; this does
    not.) Nothing true and nothing predicted is 1; an answer that is not JSON is 0.
    """
    truth = (
        [answers.thing_from(item) for item in problem.answer]
        if isinstance(problem.answer, list | tuple)
        else None
    )
    if truth is None or any(box is None for box, _ in truth):
        _refuse("objects", problem, 'a list of {"bbox_2d": [x1, y1, x2, y2], "label": text}')
    things = answers.read_objects(answers.value_of(text))
    if things is None:
        return 0.0
    if not things and not truth:
        return 1.0
    fits = [
        [i for i, (box, label) in enumerate(things) if _same(box, label, true_box, true_label)]
        for true_box, true_label in truth
    ]
    return 2 * _most_pairs(fits) / (len(things) + len(truth))


def _same(box: Box | None, label: str, true_box: Box | None, true_label: str) -> bool:
    return box is not None and true_box is not None and label == true_label and box_iou(box, true_box) > 0.5


def _most_pairs(fits: Sequence[Sequence[int]]) -> int:
    """Size of a maximum matching, where row r may be paired with any of `fits[r]` (Kuhn's augmenting paths).

    Recursion is as deep as there are items, and `ANSWER_LIMIT` characters hold fewer than 400.
    """
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for item in fits[row]:
            if item not in tried:
                tried.add(item)
                if item not in owner or place(owner[item], tried):
                    owner[item] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(len(fits)))


REWARDS: dict[str, Reward] = {
    "format": format_reward,
    "iou": iou,
    "iou_50": iou_50,
    "exact": exact,
    "numeric": numeric,
    "choice": choice,
    "objects": objects,
}

_DEFAULTS: dict[AnswerKind, dict[str, float]] = {
    "box": {"iou": 1.0, "format": 0.1},
    "text": {"exact": 1.0, "format": 0.1},
    "number": {"numeric": 1.0, "format": 0.1},
    "choice": {"choice": 1.0, "format": 0.1},
    "objects": {"objects": 1.0, "format": 0.1},
}

_CORRECT: dict[AnswerKind, Reward] = {
    "box": iou_50,
    "text": exact,
    "number": numeric,
    "choice": choice,
    "objects": objects,
}


def default_rewards(kind: AnswerKind) -> dict[str, float]:
    """Reward name → weight for a kind of answer: mostly being right, a little for the format."""
    return dict(_DEFAULTS[kind])


def correct(text: str, problem: Problem) -> bool:
    """What accuracy counts: its kind's reward is 1 (`iou_50`, `exact`, `numeric`, `choice`, `objects`).

    So a box needs IoU > 0.5, and a list of objects every thing, rightly named, and nothing else.
    The answer is what `answers.answer_of` finds, so a right answer without tags is right: accuracy measures
    seeing, and the format is measured beside it by its own reward. Never raises on any text.
    """
    return _CORRECT[problem.kind](text, problem) == 1


def is_reference(name: str) -> bool:
    """Whether a name points to a function of the user's: `path/file.py:function` or `package.module:function`."""
    where, colon, function = name.rpartition(":")
    parts = [where] if where.endswith(".py") else where.split(".")
    return (
        bool(colon)
        and function.isidentifier()
        and (where.endswith(".py") or all(map(str.isidentifier, parts)))
    )


def check_weights(weights: Mapping[str, float], known: Sequence[str] = ()) -> None:
    """Raise UserError unless there is a weight, every name means something and every weight is finite.

    A name is in `REWARDS` or `known` (functions given to the Python API), or is a reference (`is_reference`).
    """
    if not weights:
        raise UserError(
            f"No reward is named; give at least one of {', '.join(REWARDS)}, for example rewards.iou=1."
        )
    for name, weight in weights.items():
        if name not in REWARDS and name not in known and not is_reference(name):
            from fovea.config import (
                nearest,
            )  # here and below: it would be half of what a reward worker imports

            names = [*REWARDS, *known]
            raise UserError(
                f"There is no reward {name!r}{nearest(name, names)}; known: {', '.join(names)}. A function of your "
                "own is named path/file.py:function or package.module:function."
            )
        where = name.rpartition(":")[0]
        if where.endswith(".py") and name not in known and not Path(where).is_file():
            raise UserError(f"The reward {name!r}: the file {where} does not exist; give its path from here.")
        if not math.isfinite(weight):
            raise UserError(
                f"The weight of reward {name!r} is {weight}; give a finite number, for example 1.0."
            )


def weigh(
    texts: Sequence[str], problem: Problem, weights: Mapping[str, float]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rewards of one group: the weighted sums, float64 [G], and the unweighted parts, name → float64 [G].

        total_i = Σ_name weights[name] · REWARDS[name](texts[i], problem)

    A weight of 0 keeps a part in the breakdown without rewarding it. Raises UserError for an unknown name, a
    weight that is not finite or a truth that does not fit; RunFailed if a reward function returns a number
    that is not finite.
    """
    check_weights(weights)
    own = next((name for name in weights if name not in REWARDS), None)
    if own is not None:
        raise UserError(f"{own!r} is a function of your own; only built-in rewards are known here.")
    total_G = np.zeros(len(texts), dtype=np.float64)
    parts: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        part_G = np.array([REWARDS[name](text, problem) for text in texts], dtype=np.float64)
        if not np.isfinite(part_G).all():
            raise RunFailed(f"Reward {name!r} gave a number that is not finite for problem {problem.id}.")
        parts[name] = part_G
        total_G += weight * part_G
    return total_G, parts


def parse_weights(text: str) -> dict[str, float]:
    """`"iou"` → {"iou": 1.0}; `"iou=1,format=0.1"` → {"iou": 1.0, "format": 0.1}. Raises UserError."""
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        try:
            weights[name] = float(number) if equals else 1.0
        except ValueError:
            raise UserError(
                f"{item.strip()!r} is not NAME=WEIGHT; write for example iou=1,format=0.1."
            ) from None
    check_weights(weights)
    return weights


def score_json(
    reward_name: str, answer_json: str, completion: str, kind: AnswerKind | None = None
) -> dict[str, Any]:
    """What `fovea score REWARD --answer JSON --completion TEXT` prints: {"reward": …, "parts": …}.

    `reward_name` is a name or `iou=1,format=0.1`; `answer_json` the truth as JSON (`[0, 0, 9, 9]`, `3` or
    `"B"`); `kind` is inferred from it where not given. Raises UserError for a bad name, bad JSON or a
    truth that does not fit the reward.
    """
    weights = parse_weights(reward_name)
    try:
        answer = json.loads(answer_json)
    except (ValueError, RecursionError):
        raise UserError(
            f"--answer {answer_json[:60]!r} is not JSON; write [0, 0, 9, 9] for a box, 3 for a number and "
            "'\"text\"' (with both quotes) for a text."
        ) from None
    if kind is not None and kind not in _CORRECT:
        from fovea.config import nearest

        raise UserError(
            f"There is no kind of answer {kind!r}{nearest(kind, list(_CORRECT))}; "
            f"known: {', '.join(_CORRECT)}."
        )
    problem = Problem(
        id="score", task="score", images=(), question="", answer=answer, kind=kind or _kind_of(answer)
    )
    total_G, parts = weigh([completion], problem, weights)
    return {"reward": float(total_G[0]), "parts": {name: float(part_G[0]) for name, part_G in parts.items()}}


def _kind_of(answer: Any) -> AnswerKind:
    if isinstance(answer, list):
        return "box" if answer and not isinstance(answer[0], dict) else "objects"
    if isinstance(answer, int | float):
        return "number"
    return "choice" if isinstance(answer, str) and answers.read_choice(answer) else "text"


def _refuse(reward: str, problem: Problem, wanted: str) -> NoReturn:
    shown = repr(problem.answer)[:60]
    raise UserError(
        f"Reward {reward!r} needs {wanted} as the true answer, but that of problem {problem.id} is {shown}; "
        "correct the answer or choose another reward."
    )
