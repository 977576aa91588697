"""Rewards of an answer that is an order (`3, 1, 2, 4`) or a set of names (`os, sys`).

Each takes (reply, problem) and never raises on any reply. Credit for parts of an answer is given to valid
answers only: an order must name every place once, a set must not name everything.

Try it: `fovea score order --kind order --answer '[2, 1, 3]' --completion '<answer>2, 1, 3</answer>'` gives 1.
"""

from __future__ import annotations

import re

from fovea.rewards import answers
from fovea.rewards.matching import refuse
from fovea.types import Problem, UserError

_NUMBERS = re.compile(r"[0-9]{1,3}(?:\s*+[,;]\s*+[0-9]{1,3}|\s++[0-9]{1,3})*+")
_WRAPPED = {"[": "]", "(": ")"}


def read_order(answer: str | None) -> list[int] | None:
    """Whole numbers with commas or spaces between them, in brackets or not; None for anything else."""
    if answer is None or len(answer) > answers.ANSWER_LIMIT:
        return None
    plain = answer.strip().removesuffix(".").rstrip()
    if plain and _WRAPPED.get(plain[0]) == plain[-1]:
        plain = plain[1:-1].strip()
    return [int(n) for n in re.findall(r"[0-9]+", plain)] if _NUMBERS.fullmatch(plain) else None


def read_set(answer: str | None) -> frozenset[str] | None:
    """Names with commas, semicolons or line breaks between them (or a JSON list), as compared; None for no answer."""
    if answer is None or len(answer) > answers.ANSWER_LIMIT:
        return None
    found, value = answers.json_value(answer)
    if found and isinstance(value, list):
        pieces = [str(item) for item in value if isinstance(item, str | int)]
        if len(pieces) < len(value):
            return None
    else:
        pieces = re.split(r"[,;\n]", answer.strip().removeprefix("[").removesuffix("]"))
    names = [answers.normal_text(piece) for piece in pieces]
    return frozenset(name for name in names if name)


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

        r = 1 if all right, else gamma * right / n;      with `chance`: max(0, (r - 1/n) / (1 - 1/n))

    `gate`: an answer that is not a permutation of the truth's numbers (a number twice, one too many, one out of
    range) earns 0. Without it extra numbers are ignored and missing ones are wrong, so that `1, 1, 1, 1` earns
    1/n: that, `partial` and no `chance` is SSL4RL's reward (reward_score/jigsaw.py). gamma 0.2 and the gate:
    Visual Jigsaw (arXiv:2509.25190). A random permutation has 1/n of its places right on average, which `chance`
    takes off.
    """
    truth = problem.answer
    if not isinstance(truth, list | tuple) or not truth or not all(type(n) is int for n in truth):
        refuse("order", problem, "a list of whole numbers")
    if not 0 <= gamma <= 1:
        raise UserError(f"gamma of the reward 'order' is {gamma}; give 0 to 1, for example 0.2.")
    said = read_order(answers.value_of(text))
    if said is None or (gate and sorted(said) != sorted(truth)):
        return 0.0
    right = sum(a == b for a, b in zip(said, truth)) / len(truth)
    if gate and said == list(truth):
        return 1.0
    if right < 1 or len(said) < len(truth):
        right *= gamma if partial else 0.0
    floor = 1 / len(truth)
    return max(0.0, (right - floor) / (1 - floor)) if chance and len(truth) > 1 else right


def set_f1(text: str, problem: Problem, *, exact: bool = False) -> float:
    """F1 of the named set against the true one; 1 only where they are equal. `exact`: 1 or 0.

        F1 = 2 |said ∩ true| / (|said| + |true|)

    Names that are no candidates count as said. Where the problem lists its candidates (`meta["candidates"]`), an
    answer that names all of them, or more names than there are candidates, earns 0: who lists everything has
    said nothing.
    """
    truth = problem.answer
    if not isinstance(truth, list | tuple) or not all(isinstance(name, str | int) for name in truth):
        refuse("set_f1", problem, "a list of names")
    true = frozenset(answers.normal_text(str(name)) for name in truth)
    said = read_set(answers.value_of(text))
    if said is None:
        return 0.0
    listed = problem.meta.get("candidates")
    if isinstance(listed, list | tuple) and listed:
        candidates = {answers.normal_text(str(name)) for name in listed}
        if len(said) >= len(candidates) > len(true) or candidates <= said:
            return float(said == true and len(candidates) == len(true))
    if said == true:
        return 1.0
    if exact or not said or not true:
        return 0.0
    return 2 * len(said & true) / (len(said) + len(true))


def set_exact(text: str, problem: Problem) -> float:
    """1 if the named set is the true one, else 0: what `correct` counts."""
    return set_f1(text, problem, exact=True)
