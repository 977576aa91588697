"""What EZPoints and Points24 share: a formula of the cards' numbers, written one symbol at a time, to a target.

Each action appends a symbol. "=" judges and ends: 10 where the formula uses every card once and comes to the
target, else -1. A symbol that is not legal costs 1. After `cap` + 1 symbols the next action costs 1 and cuts the
episode off. Anything else gives 0. Success is a return above 0. J, Q and K count 10.

`fixed`: legal is what some formula could go on with (a number whose card is left, after an operator or an opening
bracket; and so on), "=" always; what is not legal changes nothing; the formula is an exact fraction.
`paper`: every symbol is legal but a number without a card, which leaves a space behind; the typed text is judged by
Python's arithmetic, so digits run together, `**` and `//` count (`formulas.evaluate_like_python`).

Not here: which cards are dealt (`ez_points`, `points24`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fovea.environments.cards import drawing
from fovea.environments.cards.formula_solver import completion, solutions, solvable, without
from fovea.environments.cards.formulas import Divide, Stack, evaluate_like_python, exact, push, value_of
from fovea.environments.cards.table import PictureGame, Step
from fovea.tasks.card_pictures import RANKS, SUITS, Card


def worth(rank: str) -> int:
    """The number of a card. Example: worth("A") is 1, worth("K") is 10"""
    return min(RANKS.index(rank) + 1, 10)


class Points(PictureGame):
    """A game of formulas; the subclass says the symbols, the target, the cap and the deal."""

    target: int
    cap: int
    signs: str
    """For the solver: operators, and "(" where there are brackets."""

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.cards: tuple[Card, ...] = ()
        self.formula: list[str] = []
        self.left: tuple[int, ...] = ()
        self.stack: Stack | None = ()
        self.actions = 0

    def _ranks(self) -> Sequence[str]:
        raise NotImplementedError

    @property
    def divide(self) -> Divide:
        return operator.truediv if self.preset == "paper" else exact

    def _begin(self) -> None:
        ranks = self._ranks()
        self.cards = tuple(Card(rank=rank, suit=SUITS[int(self.looks.integers(4))]) for rank in ranks)
        self.left = tuple(sorted(worth(rank) for rank in ranks))
        self.formula, self.stack, self.actions = [], (), 0

    def _item(self, name: str) -> int | str:
        return int(name) if name.isdigit() else name

    def legal(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if self._is_legal(name))

    def _is_legal(self, name: str) -> bool:
        if name.isdigit() and int(name) not in self.left:
            return False
        if name == "=" or self.preset == "paper":
            return True
        return self.stack is not None and push(self.stack, self._item(name), self.divide) is not None

    def step(self, action: int) -> Step:
        name = self._check(action)
        if self.actions > self.cap:
            return self._answer(-1.0, truncated=True)
        self.actions += 1
        if not self._is_legal(name):
            if self.preset == "paper":
                self.formula.append(" ")
            return self._answer(-1.0)
        if name == "=":
            return self._answer(10.0 if self.is_right() else -1.0, terminated=True)
        self.formula.append(name)
        if name.isdigit():
            self.left = without(self.left, int(name))
        if self.stack is not None:
            self.stack = push(self.stack, self._item(name), self.divide)
        return self._answer(0.0)

    def is_right(self) -> bool:
        """Whether "=" would be worth 10 now."""
        if self.left:
            return False
        if self.preset == "paper":
            return evaluate_like_python(self.text()) == self.target
        return self.stack is not None and value_of(self.stack) == self.target

    def text(self) -> str:
        return "".join(self.formula)

    def numbers(self) -> tuple[int, ...]:
        """Of the cards, from left to right."""
        return tuple(worth(card.rank) for card in self.cards)

    def info(self) -> dict[str, Any]:
        return {
            "cards": [card.rank for card in self.cards],
            "numbers": list(self.numbers()),
            "formula": self.text(),
            "solvable": solvable(tuple(sorted(self.numbers())), self.target, self.signs.replace("(", "")),
        }

    def _draw(self) -> Image.Image:
        if self.preset == "paper":
            return drawing.paper_hand(self.size[0], self.cards, self.text())
        return drawing.hand(self.look, self.size, self.cards, self.text())


# --- how it is spoken of ---------------------------------------------------------------------------------------


def rest(env: Any) -> tuple[str, ...] | None:
    """Symbols that still finish the formula rightly; None: nothing helps, or too few actions are left for it.

    The shortest known solution that begins like the formula (of several the one nearest to the order in which the
    cards lie, which is easiest to learn), else the fewest symbols that the search finds.
    """
    cards = tuple(sorted(env.numbers()))
    operators = env.signs.replace("(", "")
    if env.stack is None or not solvable(cards, env.target, operators):
        return None
    actions, floats = env.cap + 1 - env.actions, env.preset == "paper"
    written = tuple(symbol for symbol in env.formula if symbol != " ")
    fitting = [
        symbols
        for symbols in solutions(cards, env.target, operators)
        if symbols[: len(written)] == written
        and len(symbols) - len(written) <= actions
        and (not floats or evaluate_like_python("".join(symbols[:-1])) == env.target)
    ]
    if fitting:
        numbers = env.numbers()
        places = {
            symbols: [numbers.index(int(name)) for name in symbols if name.isdigit()] for symbols in fitting
        }
        return min(fitting, key=lambda symbols: (len(symbols), places[symbols]))[len(written) :]
    return completion(env.stack, env.left, env.target, env.signs, actions, floats)


def expert(env: Any) -> str:
    """Where nothing helps, "=" ends it at the least cost."""
    return (rest(env) or ("=",))[0]


def thought(env: Any) -> str:
    return f"cards {' '.join(map(str, env.numbers()))}, formula {env.text().strip() or 'empty'}"


def reason(env: Any, name: str) -> str:
    following = rest(env)
    if following is None:
        return f"no formula makes {env.target}"
    return f"{env.text()}{''.join(following[:-1])} = {env.target}"


def ask(env: Any) -> str:
    count = {2: "both", 4: "all four"}[len(env.cards)]
    symbols = " ".join(name for name in env.names if not name.isdigit())
    formula = env.text().strip() or "empty"
    if env.wording == "short":
        return f"Make {env.target} of {count} cards. Formula: {formula}. Actions: 1 to 10 {symbols}"
    return (
        f"You are playing a card game. The picture shows {len(env.cards)} cards and the formula that has been written "
        f"so far. Your aim is a formula that comes to {env.target} and uses the number of each card exactly once; "
        "an ace counts 1; J, Q and K count 10. You write one symbol at a time. The symbols are the numbers 1 to 10 "
        f"and {symbols}; '=' ends the game. Only numbers of cards that are not in the formula yet may be "
        f"written. The formula so far: {formula}. First read the cards, then think about which symbol comes next."
    )
