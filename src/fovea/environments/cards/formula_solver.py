"""Which formulas of a hand reach a target, and how a formula that is half written can still be finished.

Exact for every hand of up to four cards: all orders, operators and bracketings; and for every beginning, redundant
brackets included, a search in order of length over what is left to write.

Not here: formulas (`formulas`), the games (`points`).

Try it: python -c "from fovea.environments.cards.formula_solver import *; print(solutions((3, 3, 8, 8), 24))"
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from fovea.environments.cards.formulas import PRECEDENCE, Divide, Stack, exact, push, value_of, wants_number

ALL_SIGNS = "+-*/"


def without(cards: Sequence[int], card: int) -> tuple[int, ...]:
    """The cards that are left when one has been used."""
    at = cards.index(card)
    return (*cards[:at], *cards[at + 1 :])


@functools.lru_cache(maxsize=4096)
def solvable(cards: tuple[int, ...], target: int, signs: str = ALL_SIGNS) -> bool:
    """Whether some formula uses each card once and comes to the target. `cards` in ascending order, for the cache."""
    return _reaches(tuple(Fraction(card) for card in cards), Fraction(target), signs)


def _reaches(values: tuple[Fraction, ...], target: Fraction, signs: str) -> bool:
    """Any two numbers are joined by any operator, until one is left."""
    if len(values) == 1:
        return values[0] == target
    for i, j in itertools.permutations(range(len(values)), 2):
        rest = tuple(value for k, value in enumerate(values) if k not in (i, j))
        for sign in signs:
            if (i > j and sign in "+*") or (sign == "/" and values[j] == 0):
                continue
            if _reaches((*rest, _joined(values[i], sign, values[j])), target, signs):
                return True
    return False


def _joined(a: Any, sign: str, b: Any) -> Any:
    if sign == "+":
        return a + b
    return a - b if sign == "-" else a * b if sign == "*" else Fraction(a, b)


# --- all formulas --------------------------------------------------------------------------------------------

_Part = tuple[Fraction, int, tuple[str, ...]]
"""Value, how tightly its last operator binds (3: a single number), and its symbols."""


@functools.lru_cache(maxsize=1024)
def solutions(cards: tuple[int, ...], target: int, signs: str = ALL_SIGNS) -> tuple[tuple[str, ...], ...]:
    """Every formula without redundant brackets that reaches the target, as symbols to press, the shortest first.

    Example: solutions((3, 3, 8, 8), 24) is (("8", "/", "(", "3", "-", "8", "/", "3", ")", "="),)
    """
    found = set()
    for order in sorted(set(itertools.permutations(cards))):
        for value, _, symbols in _formulas(order, signs):
            if value == target:
                found.add((*symbols, "="))
    return tuple(sorted(found, key=lambda symbols: (len(symbols), symbols)))


@functools.lru_cache(maxsize=4096)
def _parts(order: tuple[int, ...], signs: str) -> tuple[_Part, ...]:
    """Kept for up to three cards, of which there are few; those of four would fill the memory."""
    return tuple(_formulas(order, signs))


def _formulas(order: tuple[int, ...], signs: str) -> Iterator[_Part]:
    """Every formula of the cards in this order."""
    if len(order) == 1:
        yield Fraction(order[0]), 3, (str(order[0]),)
    for cut in range(1, len(order)):
        for a, left, before in _parts(order[:cut], signs):
            for b, right, after in _parts(order[cut:], signs):
                for sign in signs:
                    if sign == "/" and b == 0:
                        continue
                    level = PRECEDENCE[sign]
                    if sign in "+*" and right == level:
                        continue  # 3+(5-8) is found as 3+5-8 at another cut
                    first = before if left >= level else ("(", *before, ")")
                    second = after if right > level else ("(", *after, ")")
                    yield _joined(a, sign, b), level, (*first, sign, *second)


# --- finishing a formula -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16384)
def completion(
    stack: Stack,
    left: tuple[int, ...],
    target: int,
    signs: str = ALL_SIGNS,
    most: int = 21,
    floats: bool = False,
) -> tuple[str, ...] | None:
    """The fewest symbols, at most `most`, that finish a formula rightly, "=" included; None where nothing does.

    `stack` is what is written (`formulas.push`), `left` the cards not yet used, ascending. `floats` divides as Python
    does, so that 8/(3-8/3) is not 24. `signs` with "(" last allow brackets.
    """
    divide: Divide = operator.truediv if floats else exact
    brackets = "(" in signs
    operators = signs.replace("(", "")
    seen = {(stack, left)}
    level: list[tuple[Stack, tuple[int, ...], tuple[str, ...]]] = [(stack, left, ())]
    while level:
        following = []
        for at, cards, written in level:
            if not cards and value_of(at, divide) == target:
                return (*written, "=")
            for symbol in _next_symbols(at, cards, operators, brackets):
                number = symbol.isdigit()
                after = push(at, int(symbol) if number else symbol, divide)
                remaining = without(cards, int(symbol)) if number else cards
                if after is None or len(written) + 1 + _needed(after, remaining) > most:
                    continue
                if (after, remaining) not in seen:
                    seen.add((after, remaining))
                    following.append((after, remaining, (*written, symbol)))
        level = following
    return None


def _needed(stack: Stack, cards: tuple[int, ...]) -> int:
    """Symbols that must still come: each card, an operator before each but the next, closing brackets, "="."""
    return 2 * len(cards) - wants_number(stack) + stack.count("(") + 1


def _next_symbols(stack: Stack, cards: tuple[int, ...], operators: str, brackets: bool) -> list[str]:
    """The symbols that may help: a bracket is opened only for two numbers or more, each opening for two of its own."""
    if not wants_number(stack):
        closing = [")"] if "(" in stack else []
        return closing + (list(operators) if cards else [])
    symbols = [str(card) for card in dict.fromkeys(cards)]
    opened = len(stack) - len(_without_last_brackets(stack))
    return symbols + (["("] if brackets and len(cards) > opened + 1 else [])


def _without_last_brackets(stack: Stack) -> Stack:
    while stack and stack[-1] == "(":
        stack = stack[:-1]
    return stack
