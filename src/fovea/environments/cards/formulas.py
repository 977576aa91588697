"""Formulas such as (3+5)*8-40: text to an exact fraction, or a refusal. Nothing is ever evaluated as code.

`push` adds one symbol to a formula that is worked out as far as possible on the way, so that the same few lines
parse a text, say which symbol may come next, and search for a solution. No recursion, and texts above
`LONGEST` characters are refused unread.

`evaluate_like_python` is for the games' preset `paper`: what Python's own arithmetic makes of the typed symbols,
digits run together, `**` and `//` included, within bounds.

Not here: which formula reaches a target (`formula_solver`), rewards (`points`).

Try it: python -c "from fovea.environments.cards.formulas import *; print(evaluate('8/(3-8/3)'))"
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

LONGEST = 200
"""Characters of a formula; the games' longest has 44."""
LARGEST = 10**12
"""Size of a number on the way, and of its denominator, beyond which `evaluate_like_python` gives up."""

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
Number = Fraction | int | float
Stack = tuple[Any, ...]
"""Numbers, operators and open brackets that cannot be worked out yet. Example: 3+5*(2-1 is (3, "+", 5, "*", "(", 2,
"-", 1), and 3*5+1 is (15, "+", 1)."""
Divide = Callable[[Any, Any], Any]

# ASCII digits only, and three at most: \d would take every script's digits.
_TOKEN = re.compile(r"[0-9]{1,3}(?![0-9])|[-+*/()]")
_PYTHON_TOKEN = re.compile(r"\*\*|//|[-+*/()]|[0-9]{1,12}(?![0-9])")


# --- exact formulas ------------------------------------------------------------------------------------------


def exact(a: Any, b: Any) -> Fraction:
    return Fraction(a) / b


def wants_number(stack: Stack) -> bool:
    """Whether a number or an opening bracket must come next."""
    return not stack or isinstance(stack[-1], str)


def push(stack: Stack, item: Number | str, divide: Divide = exact) -> Stack | None:
    """The stack after a number, an operator or a bracket; None where no formula goes on that way.

    That is: two numbers or two operators in a row, a sign, a bracket that closes none, a division by zero.
    """
    if not isinstance(item, str) or item == "(":
        return (*stack, item) if wants_number(stack) else None
    if wants_number(stack):
        return None
    reduced = worked_out(stack, PRECEDENCE.get(item, 0), divide)
    if reduced is None:
        return None
    if item != ")":
        return (*reduced, item)
    return (*reduced[:-2], reduced[-1]) if reduced[-2:-1] == ("(",) else None


def worked_out(stack: Stack, level: int = 0, divide: Divide = exact) -> Stack | None:
    """The stack after its last operators have been applied as far as `level` allows; None: a division by zero."""
    while len(stack) >= 3 and PRECEDENCE.get(stack[-2], -1) >= level:
        a, sign, b = stack[-3:]
        if sign == "/" and b == 0:
            return None
        value = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else divide(a, b)
        stack = (*stack[:-3], value)
    return stack


def value_of(stack: Stack, divide: Divide = exact) -> Any:
    """The number that a complete formula comes to; None where it is not complete."""
    if wants_number(stack):
        return None
    reduced = worked_out(stack, 0, divide)
    return reduced[0] if reduced is not None and len(reduced) == 1 else None


def tokens(text: str) -> tuple[str, ...] | None:
    """Numbers, operators and brackets of a text, spaces between them left out; None where it holds anything else."""
    if len(text) > LONGEST:
        return None
    found = _TOKEN.findall(text)
    # Spaces alone may stand between; "1 0" stays two numbers, which `push` refuses.
    return tuple(found) if sum(map(len, found)) == len(text) - text.count(" ") else None


def evaluate(text: str) -> Fraction | None:
    """What a formula comes to, exactly; None where it is no formula. Example: evaluate("8/(3-8/3)") is 24"""
    stack: Stack = ()
    for token in tokens(text) or ():
        pushed = push(stack, Fraction(token) if token.isdigit() else token)
        if pushed is None:
            return None
        stack = pushed
    return value_of(stack)


def solves(text: str, cards: Iterable[int], target: int) -> bool:
    """Whether a formula uses each of the cards' numbers once and comes to the target."""
    found = tokens(text) or ()
    return Counter(int(t) for t in found if t.isdigit()) == Counter(cards) and evaluate(text) == target


# --- what Python makes of it ---------------------------------------------------------------------------------

_POWER, _SIGN = 4, 3
_LEVEL = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "**": _POWER, "positive": _SIGN, "negative": _SIGN}
_APPLY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
}


def evaluate_like_python(text: str) -> int | float | None:
    """The number that Python's arithmetic makes of a text of digits, + - * / // ** ( ) and spaces.

    None where Python would fail, and where a number on the way passes `LARGEST` (or an exponent 64): Python would
    go on, or hang, and the games' target is never near.
    """
    found = _PYTHON_TOKEN.findall(text) if len(text) <= LONGEST else []
    if not found or sum(map(len, found)) != len(text) - text.count(" "):
        return None
    numbers: list[int | float] = []
    waiting: list[str] = []
    operand = True  # whether a number, a sign or an opening bracket must come
    for token in found:
        if operand and token in ("+", "-"):
            waiting.append("positive" if token == "+" else "negative")
        elif operand and token == "(":
            waiting.append("(")
        elif operand and token.isdigit():
            if token[0] == "0":
                return None
            numbers.append(int(token))
            operand = False
        elif operand or token == "(" or token.isdigit():
            return None
        elif token == ")":
            if not _apply_until(numbers, waiting, 0) or not waiting:
                return None
            waiting.pop()
        else:
            level = _LEVEL[token]
            # ** groups from the right: an equal one stays waiting
            if not _apply_until(numbers, waiting, level + (level == _POWER)):
                return None
            waiting.append(token)
            operand = True
    if operand or not _apply_until(numbers, waiting, 0) or waiting:
        return None
    return numbers[0]


def _apply_until(numbers: list[int | float], waiting: list[str], level: int) -> bool:
    """Applies the operators that bind at least as tightly as `level`, down to an open bracket; False: no number."""
    while waiting and waiting[-1] != "(" and _LEVEL[waiting[-1]] >= level:
        sign = waiting.pop()
        b = numbers.pop()
        if sign == "negative":
            value: Any = -b
        elif sign == "positive":
            value = b
        else:
            value = _python(sign, numbers.pop(), b)
        if value is None or abs(value) > LARGEST:
            return False
        numbers.append(value)
    return True


def _python(sign: str, a: int | float, b: int | float) -> int | float | None:
    if sign != "**":
        return None if b == 0 and sign in ("/", "//") else _APPLY[sign](a, b)
    # Bounds first; a root of a negative number would be complex.
    if abs(a) > 10**6 or abs(b) > 64 or (a == 0 and b < 0) or (a < 0 and b != int(b)):
        return None
    return a**b
