"""The reward `accuracy`: each problem is scored the way it asks for, so that one run can mix kinds of answers.

A problem asks by `meta["accu_reward_method"]`, VLM-R1's key in a data file (`METHODS`), else by its kind (`BY_KIND`).
Not here: the rewards themselves (`functions.REWARDS`).

Try it: `fovea score accuracy --answer '"yes"' --completion 'Yes, it is.' --meta '{"accu_reward_method": "yes_no"}'`
gives 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import TypeAlias

from fovea.rewards import answers
from fovea.rewards.matching import Compat, clean_text, guess_choice, last_block
from fovea.rewards.mathematics import equal
from fovea.rewards.options import Options, bind, parameters_of
from fovea.types import AnswerKind, Problem, UserError

Method: TypeAlias = tuple[str | None, AnswerKind | None]

METHODS: dict[str, Method] = {
    "default": (None, None),
    "accuracy": (None, None),
    "mcq": ("choice", "choice"),
    "yes_no": ("yes_no", "text"),
    "all_match": ("all_match", "text"),
    "llm": ("judge", "text"),
    "math": ("math", "math"),
    "rec": ("iou", "box"),
    "iou": ("iou", "box"),
    "map": ("od_map", "objects"),
    "od_ap": ("od_map", "objects"),
    "od_ap50": ("od_ap50", "objects"),
    "odLength": ("od_length", "objects"),
    "weighted_sum": ("od_weighted", "objects"),
}
"""VLM-R1's `accu_reward_method` → (reward, kind of answer that it implies); None: by the answer."""

BY_KIND: dict[AnswerKind, str] = {
    "box": "iou",
    "text": "exact",
    "number": "numeric",
    "choice": "choice",
    "objects": "od_f1",
    "math": "math",
    "order": "order",
    "set": "set_f1",
}
"""Kind of answer → reward of a problem that names no method."""

_ROUTED = {name for name, _ in METHODS.values() if name} | {*BY_KIND.values()}


def route(problem: Problem) -> str:
    """Name of the reward that `accuracy` is for this problem. Raises UserError for a method that is not known."""
    method = problem.meta.get("accu_reward_method")
    if method is None:
        return BY_KIND[problem.kind]
    if isinstance(method, str) and method in METHODS:
        return METHODS[method][0] or BY_KIND[problem.kind]
    from fovea.config import nearest

    near = nearest(str(method), list(METHODS))
    raise UserError(
        f"Problem {problem.id} has the accu_reward_method {str(method)[:60]!r}{near}; known: {', '.join(METHODS)}."
    )


def check_used(options: Options, names: Collection[str], where: str = "reward_options.") -> None:
    """Raise UserError for options of a reward that is not among `names`; `accuracy` takes those of all it routes to."""
    used = {*names, *(_ROUTED if "accuracy" in names else ())}
    for name, given in options.items():
        if given and name not in used:
            raise UserError(
                f"{where}{name} would do nothing: {name} is not among the rewards and audits "
                f"({', '.join(names)}); leave it away or name the reward."
            )


def accuracy(
    text: str,
    problem: Problem,
    *,
    options: Options | None = None,
    tokens: int | None = None,
    compat: Compat = None,
) -> float:
    """The reward that the problem asks for: `accu_reward_method` in its meta, else the one of its kind.

    mcq is `choice`, llm `judge`, rec and iou `iou`, map and od_ap `od_map`, odLength `od_length`, weighted_sum
    `od_weighted`, and yes_no, all_match, math, od_ap50 what they are called; by kind box is `iou`, text `exact`, number
    `numeric`, choice `choice`, objects `od_f1`, math `math`, order `order`, set `set_f1`. That reward's own options
    hold. `compat="vlm_r1"`: it is asked in the original's way, and texts, numbers, letters and mathematics without a
    method by the original's `default`, which pays for similar letters: 1 if mathematically equal, else equal numbers
    (a truth with a digit), else equal letters (a truth that looks like a choice), else, or where there are no numbers
    to compare, `similarity` of the texts.
    """
    name = route(problem)
    asked = METHODS[problem.meta.get("accu_reward_method") or "default"][0]
    if compat == "vlm_r1" and asked is None and problem.kind in ("text", "number", "choice", "math"):
        return _guessed(text, problem)
    from fovea.rewards.functions import REWARDS  # it imports this file

    function, given = REWARDS[name], dict(options or {})
    if compat is not None and "compat" in parameters_of(function):
        given[name] = {"compat": compat} | dict(given.get(name, {}))
    return bind(function, name, given)(text, problem, tokens)


def _guessed(text: str, problem: Problem) -> float:
    """VLM-R1's `default` method."""
    truth = problem.answer if isinstance(problem.answer, str) else json.dumps(problem.answer)
    truth, answer = truth.strip(), last_block(text).strip()
    if len(answer) > answers.ANSWER_LIMIT:
        return 0.0
    if equal(answer, truth):
        return 1.0
    plain, true = clean_text(answer), clean_text(truth)
    if re.search(r"\d", truth):
        try:
            return float(float(plain) == float(true))
        except ValueError:
            return similarity(plain, true)
    letter = guess_choice(truth)
    if letter is not None:
        return float(guess_choice(answer) == letter)
    return similarity(plain, true)


def similarity(a: str, b: str) -> float:
    """Share of two texts that is a common subsequence, in [0, 1]: `Levenshtein.ratio`; two empty texts have 1.

        2 · LCS(a, b) / (|a| + |b|)

    Bit by bit in whole numbers (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): one addition a letter.
    """
    if not a and not b:
        return 1.0
    short, long = sorted((a, b), key=len)
    places: dict[str, int] = {}
    for i, char in enumerate(short):
        places[char] = places.get(char, 0) | 1 << i
    full = (1 << len(short)) - 1
    open_ = full
    for char in long:
        here = open_ & places.get(char, 0)
        open_ = ((open_ + here) | (open_ - here)) & full
    return 2 * (len(short) - open_.bit_count()) / (len(a) + len(b))
