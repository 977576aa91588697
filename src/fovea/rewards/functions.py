"""The table of rewards, what "correct" means for each kind of answer, and the weighted sum of a group.

Each reward is a function `(reply, problem, *, option=default, …)` → number that never raises on any reply. A truth that
does not fit the reward is the user's error and says so. Not here: the functions themselves (the files that are
imported below), their options (`options.py`), advantages (`fovea.algorithms`).

Try it: `fovea score iou --answer '[0, 0, 10, 10]' --completion '<answer>[0, 0, 10, 5]</answer>'` gives 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fovea.rewards.basics import box_iou, exact, format_reward, iou, iou_50
from fovea.rewards.detection import objects, od_ap50, od_f1, od_length, od_map, od_ratio, od_weighted
from fovea.rewards.judge import judge
from fovea.rewards.matching import NUMERIC_TOLERANCE, Compat, all_match, choice, numeric, yes_no
from fovea.rewards.mathematics import math as mathematics
from fovea.rewards.options import Function, Options, bind, lengths, plain_sum, with_compat
from fovea.rewards.routing import accuracy, route
from fovea.rewards.sequences import order, set_exact, set_f1
from fovea.rewards.wording import cosine, format_boxes, format_json, format_strict, repetition
from fovea.types import AnswerKind, Problem, RunFailed, UserError

__all__ = ["NUMERIC_TOLERANCE", "REWARDS", "box_iou", "check_weights", "correct", "default_rewards", "is_reference",
           "measurable", "parse_weights", "weigh"]  # fmt: skip


REWARDS: dict[str, Function] = {
    "format": format_reward,
    "iou": iou,
    "iou_50": iou_50,
    "exact": exact,
    "numeric": numeric,
    "choice": choice,
    "objects": objects,
    "od_map": od_map,
    "od_ap50": od_ap50,
    "od_length": od_length,
    "od_weighted": od_weighted,
    "od_f1": od_f1,
    "od_ratio": od_ratio,
    "all_match": all_match,
    "yes_no": yes_no,
    "math": mathematics,
    "format_strict": format_strict,
    "format_json": format_json,
    "format_boxes": format_boxes,
    "accuracy": accuracy,
    "judge": judge,
    "cosine": cosine,
    "repetition": repetition,
    "order": order,
    "set_f1": set_f1,
}

_DEFAULTS: dict[AnswerKind, dict[str, float]] = {
    "box": {"iou": 1.0, "format": 0.1},
    "text": {"exact": 1.0, "format": 0.1},
    "number": {"numeric": 1.0, "format": 0.1},
    "choice": {"choice": 1.0, "format": 0.1},
    "objects": {"objects": 1.0, "format": 0.1},
    "math": {"math": 1.0, "format": 0.1},
    "order": {"order": 1.0, "format": 0.1},
    "set": {"set_f1": 1.0, "format": 0.1},
}

_CORRECT: dict[AnswerKind, Function] = {
    "box": iou_50,
    "text": exact,
    "number": numeric,
    "choice": choice,
    "objects": objects,
    "math": mathematics,
    "order": order,
    "set": set_exact,
}


def default_rewards(kind: AnswerKind) -> dict[str, float]:
    """Reward name → weight for a kind of answer: mostly being right, a little for the format."""
    return dict(_DEFAULTS[kind])


def correct(text: str, problem: Problem) -> bool:
    """What accuracy counts: its kind's reward is 1 (`iou_50`, `exact`, `numeric`, `choice`, `objects`, `math`,
    `order`, `set_f1`).

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
    texts: Sequence[str],
    problem: Problem,
    weights: Mapping[str, float],
    *,
    options: Options | None = None,
    compat: Compat = None,
    tokens: Sequence[int | None] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rewards of one group: the weighted sums, float64 [G], and the unweighted parts, name → float64 [G].

        total_i = Σ_name weights[name] · REWARDS[name](texts[i], problem, **options[name])

    A weight of 0 keeps a part in the breakdown without rewarding it. `options`: name of a reward → option → value
    (`options.check_options`); `compat` is given to every reward that has it, and makes every weight but 0 count as
    1 (`options.plain_sum`); `tokens` [G]: lengths of the replies, where they are known. Raises UserError for an
    unknown name or option, a weight that is not finite or a truth that does not fit; RunFailed if a reward function
    returns a number that is not finite.
    """
    check_weights(weights)
    own = next((name for name in weights if name not in REWARDS), None)
    if own is not None:
        raise UserError(f"{own!r} is a function of your own; only built-in rewards are known here.")
    given = with_compat(REWARDS, options, compat) if options or compat else {}
    total_G = np.zeros(len(texts), dtype=np.float64)
    parts: dict[str, np.ndarray] = {}
    for name, weight in plain_sum(weights, compat).items():
        reward = bind(REWARDS[name], name, given)
        part_G = np.array(
            [reward(text, problem, n) for text, n in zip(texts, lengths(tokens, texts), strict=True)],
            dtype=np.float64,
        )
        if not np.isfinite(part_G).all():
            raise RunFailed(f"Reward {name!r} gave a number that is not finite for problem {problem.id}.")
        parts[name] = part_G
        total_G += weight * part_G
    return total_G, parts


def measurable(names: Sequence[str], problem: Problem) -> list[str]:
    """Those of `names` that this process computes by itself: no functions of the user's, and nobody else is asked."""
    return [name for name in names if name in REWARDS and not asks_outside(name, problem)]


def asks_outside(name: str, problem: Problem) -> bool:
    """Whether a built-in reward asks a language model about this problem: `judge`, or `accuracy` routed to it."""
    return name == "judge" or (name == "accuracy" and route(problem) == "judge")


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
