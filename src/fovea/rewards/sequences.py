"""Rewards of an answer that is an order (`3, 1, 2, 4`) or a set of names (`os, sys`).

Each takes (reply, problem) and never raises on any reply. Credit for parts of an answer is given to valid
answers only: an order must name every place once, a set must not name everything.

Try it: `fovea score order --kind order --answer '[2, 1, 3]' --completion '<answer>2, 1, 3</answer>'` gives 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from fovea.rewards import answers
from fovea.rewards.matching import refuse
from fovea.types import Problem, UserError

LARGEST = 999
"""The largest number of an order, and the most names of a set: longer answers are none."""

_NUMBERS = re.compile(r"[0-9]{1,3}(?:\s*+[,;]\s*+[0-9]{1,3}|\s++[0-9]{1,3})*+")
_WRAPPED = {"[": "]", "(": ")"}


def is_order(value: Any) -> bool:
    """Whether a truth is an order: a list, not empty, of different whole numbers from 0 to `LARGEST`."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(type(n) is int and 0 <= n <= LARGEST for n in value)
        and len(set(value)) == len(value)
    )


def is_names(value: Any) -> bool:
    """Whether a truth is a set: a list, not empty, of texts or whole numbers that say something when compared."""
    if not isinstance(value, list | tuple) or not 0 < len(value) <= LARGEST:
        return False
    names = _compared(value)
    return names is not None and "" not in names


def read_order(answer: str | None) -> list[int] | None:
    """Whole numbers with commas, semicolons or white space between them, in brackets or not, or a JSON list of them.

    None for anything else: words, signs, more than three digits.
    """
    if answer is None or len(answer) > answers.ANSWER_LIMIT:
        return None
    listed = _json_list(answer)
    if listed is not None:
        sound = bool(listed) and all(type(n) is int and 0 <= n <= LARGEST for n in listed)
        return listed if sound else None
    plain = answer.strip().removesuffix(".").rstrip()
    if plain and _WRAPPED.get(plain[0]) == plain[-1]:
        plain = plain[1:-1].strip()
    return [int(n) for n in re.findall(r"[0-9]+", plain)] if _NUMBERS.fullmatch(plain) else None


def read_set(answer: str | None) -> frozenset[str] | None:
    """Names with commas, semicolons or line breaks between them, or a JSON list, as compared (`normal_text`).

    None for no answer, for a JSON list of other things than names, and for more than `LARGEST` names.
    """
    if answer is None or len(answer) > answers.ANSWER_LIMIT:
        return None
    pieces = pieces_of(answer)
    names = _compared(pieces) if len(pieces) <= LARGEST else None
    return None if names is None else names - {""}


def pieces_of(answer: str) -> list[Any]:
    """What stands between the commas, semicolons and line breaks of a text, or the items of a JSON list."""
    listed = _json_list(answer)
    if listed is not None:
        return listed
    pieces = re.split(r"[,;\n]", answer.strip().removeprefix("[").removesuffix("]"))
    return [stripped for piece in pieces if (stripped := piece.strip())]


def write_list(values: Sequence[str | int]) -> str:
    """An order or a set as a reply writes it, `3, 1, 2`; as a JSON list where names would not be read back."""
    plain = ", ".join(map(str, values))
    return plain if read_set(plain) == _compared(values) else json.dumps(list(values), ensure_ascii=False)


def _compared(values: Sequence[Any]) -> frozenset[str] | None:
    """Names as compared; None if one is no text or whole number."""
    if not all(isinstance(value, str | int) and not isinstance(value, bool) for value in values):
        return None
    return frozenset(answers.normal_text(str(value)) for value in values)


def _json_list(answer: str) -> list[Any] | None:
    """The list that an answer is in JSON, in a code fence or under "answer" too; None if it is none."""
    _, value = answers.json_value(answer)
    if isinstance(value, dict):
        value = value.get("answer")
    return value if isinstance(value, list) else None


def order(
    text: str,
    problem: Problem,
    *,
    partial: bool = False,
    gate: bool = True,
    gamma: float = 1.0,
    chance: bool = False,
) -> float:
    """1 if the answer is the true order, else 0; with `partial`, credit for the places that are right.

        r = 1 if all n are right, else g · right / n          g = gamma with `partial`, else 0
        with `chance`: max(0, (r - c) / (1 - c))              c = g / n + (1 - g) / n!

    `gate`: an answer that is not a permutation of the truth's numbers (a number twice, one too many, one out of
    range) earns 0. Without it further numbers are ignored and missing ones are wrong, so that `1, 1, 1, 1` earns
    1/4: that, `partial` and no `chance` is SSL4RL's reward (reward_score/jigsaw.py). gamma 0.2 and the gate:
    Visual Jigsaw (arXiv:2509.25190). c is what a random permutation earns on average; no answer given without
    looking earns more. Within a group only the cut at 0 changes anything: answers below chance become equal.
    Raises UserError for a gamma outside 0 to 1.
    """
    truth = problem.answer
    if not is_order(truth):
        refuse("order", problem, f"a list of different whole numbers from 0 to {LARGEST}")
    if not 0 <= gamma <= 1:
        raise UserError(f"gamma of the reward 'order' is {gamma}; give 0 to 1, for example 0.2.")
    said, n = read_order(answers.value_of(text)), len(truth)
    if said is None or (gate and sorted(said) != sorted(truth)):
        return 0.0
    right = sum(a == b for a, b in zip(said, truth))
    share = gamma if partial else 0.0
    earned = 1.0 if right == n else share * right / n
    if not chance or n == 1:
        return earned
    blind = share / n + (1 - share) / math.factorial(min(n, 99))  # a float holds no 171!
    return max(0.0, (earned - blind) / (1 - blind))


def set_f1(text: str, problem: Problem, *, exact: bool = False, chance: bool = False) -> float:
    """F1 of the named set against the true one; 1 only where they are equal. `exact`: 1 or 0.

        F1 = 2 |said ∩ true| / (|said| + |true|)
        with `chance`: max(0, (F1 - c) / (1 - c))             c = 2 |true| / (|candidates| + |true|)

    Names that are no candidates count as said. Where the problem lists its candidates (`meta["candidates"]`), a
    wrong answer that names as many as there are earns 0: who lists everything has said nothing. c is the F1 of that
    list, and the most that an answer earns on average which is given without looking; with `chance` a list of all
    candidates but one is worth next to nothing too. Raises UserError where `chance` finds no candidates.
    """
    if not is_names(problem.answer):
        refuse("set_f1", problem, "a list of names")
    true = _compared(problem.answer) or frozenset()
    candidates = _candidates(problem, true)
    if chance and not candidates:
        raise UserError(
            f"The reward 'set_f1' with chance=true needs the candidates of problem {problem.id}; list them in "
            'meta["candidates"], or leave chance away.'
        )
    said = read_set(answers.value_of(text))
    if said == true:
        return 1.0
    if exact or not said or (candidates and len(said) >= len(candidates)):
        return 0.0
    f1 = 2 * len(said & true) / (len(said) + len(true))
    everything = 2 * len(true) / (len(candidates) + len(true)) if chance else 0.0
    return (f1 - everything) / (1 - everything) if f1 > everything else 0.0


def _candidates(problem: Problem, true: frozenset[str]) -> frozenset[str]:
    """The names that a problem lists as candidates, empty if it lists none. Raises UserError unless the truth is
    among them."""
    listed = problem.meta.get("candidates")
    if not isinstance(listed, list | tuple) or not listed:
        return frozenset()
    candidates = _compared(listed) or frozenset()
    if not true <= candidates:
        refuse("set_f1", problem, 'names out of meta["candidates"]')
    return candidates


def set_exact(text: str, problem: Problem) -> float:
    """1 if the named set is the true one, else 0: what `correct` counts."""
    return set_f1(text, problem, exact=True)
