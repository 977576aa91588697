"""What a step's groups say about the health of a run, beside reward and accuracy. Pure functions on `Group`; no torch.

Not here: whether a number is alarming (`fovea.audits`), reward, accuracy and entropy (`fovea.rollouts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fovea.rewards import answer_of, correct, read_box, read_choice, read_number
from fovea.rewards.answers import read_objects, value_of
from fovea.rewards.sequences import read_order, read_set
from fovea.types import Group, Problem

HEALTH: dict[str, str] = {
    "unparsed": "share of replies whose answer cannot be read as what is asked for",
    "unparsed/missing": "… because there is none (no tags, a thought that never ends, nothing inside)",
    "unparsed/unreadable": "… because it is no box, number, letter or list",
    "duplicates": "0: all replies of a group differ, 1: all are equal; mean over groups",
    "completion_tokens_max": "tokens of the longest reply",
    "groups_without_signal": "share of groups whose rewards are all equal (or not given)",
    "groups_all_right": "share of groups without signal in which every answer is right, of all groups",
    "groups_all_wrong": "the same, every answer wrong",
    "box_count": "boxes in a reply, mean; only for boxes and lists of objects",
    "box_count_error": "|boxes in a reply - true boxes|, mean; only for boxes and lists of objects",
    "box_ratio": "boxes in all replies / true boxes of their problems; only for boxes and lists of objects",
}
"""Name → meaning of every metric of `health`, `reward_std/PART` aside (mean over groups of the part's deviation)."""


def health(groups: Sequence[Group]) -> dict[str, float]:
    """The metrics of `HEALTH` for a step's groups, {} for none. Shares are in [0, 1]; NaN rewards are not given."""
    if not groups:
        return {}
    replies = [(one.text, group.problem) for group in groups for one in group.completions]
    read = [parse(text, problem) for text, problem in replies]
    lengths = [len(one.token_ids) for group in groups for one in group.completions]
    silent = [group for group in groups if not _has_signal(group.rewards)]
    metrics = {
        "unparsed": _share(outcome != "read" for outcome in read),
        "unparsed/missing": _share(outcome == "missing" for outcome in read),
        "unparsed/unreadable": _share(outcome == "unreadable" for outcome in read),
        "duplicates": float(
            np.mean([duplicates([one.text for one in group.completions]) for group in groups])
        ),
        "completion_tokens_max": float(max(lengths)),
        "groups_without_signal": len(silent) / len(groups),
        "groups_all_right": sum(all(_right(group)) for group in silent) / len(groups),
        "groups_all_wrong": sum(not any(_right(group)) for group in silent) / len(groups),
    }
    for name in dict.fromkeys(name for group in groups for name in group.parts):
        spreads = [_std(group.parts[name]) for group in groups if name in group.parts]
        metrics[f"reward_std/{name}"] = float(np.mean(spreads))
    return metrics | box_counts(groups)


def parse(text: str, problem: Problem) -> str:
    """ "read", "missing" (no answer in the reply) or "unreadable" (an answer, but not of the problem's kind)."""
    if answer_of(text) is None:
        return "missing"
    if problem.kind == "box":
        found: object = read_box(answer_of(text))
    else:
        value = value_of(text)
        readers: dict[str, Callable[[str], object]] = {
            "number": read_number,
            "choice": read_choice,
            "objects": read_objects,
            "text": str,
            "math": str,
            "order": read_order,
            "set": read_set,
        }
        found = None if value is None else readers[problem.kind](value)
    return "unreadable" if found is None else "read"


def duplicates(texts: Sequence[str]) -> float:
    """(G - distinct) / (G - 1) of a group's G replies, in [0, 1]; 0 for a single one."""
    return (len(texts) - len(set(texts))) / max(1, len(texts) - 1)


def box_counts(groups: Sequence[Group]) -> dict[str, float]:
    """`box_count`, `box_count_error` and `box_ratio` over the replies to problems about boxes; {} if there are none.

    A list says as many boxes as it has items, readable or not: a model that floods the picture is seen here even
    where average precision forgives it.
    """
    said: list[int] = []
    true: list[int] = []
    for group in groups:
        problem = group.problem
        if problem.kind not in ("box", "objects"):
            continue
        for one in group.completions:
            if problem.kind == "objects":
                said.append(len(read_objects(value_of(one.text)) or []))
                true.append(len(problem.answer))
            else:
                answer = answer_of(one.text)
                said.append(max(answer.count("["), int(read_box(answer) is not None)) if answer else 0)
                true.append(1)
    if not said:
        return {}
    gaps = np.abs(np.array(said) - np.array(true))
    counts = {"box_count": float(np.mean(said)), "box_count_error": float(gaps.mean())}
    return counts | ({"box_ratio": sum(said) / sum(true)} if any(true) else {})


def advantage_abs(advantages: Sequence[np.ndarray]) -> float:
    """Mean |A| over all tokens of a step, each advantage float [T] or a number: 0 says that nothing is learned."""
    values = np.concatenate([np.atleast_1d(one) for one in advantages]) if len(advantages) else np.zeros(0)
    return float(np.abs(values).mean()) if values.size else 0.0


def _right(group: Group) -> list[bool]:
    return [correct(one.text, group.problem) for one in group.completions]


def _has_signal(reward_G: np.ndarray) -> bool:
    given = reward_G[~np.isnan(reward_G)]
    return bool(given.size and (given != given[0]).any())


def _std(part_G: np.ndarray) -> float:
    given = part_G[~np.isnan(part_G)]
    value = float(given.std(ddof=1)) if given.size > 1 else 0.0
    return value if math.isfinite(value) else 0.0


def _share(flags: Iterable[bool]) -> float:
    return float(np.mean(list(flags)))
