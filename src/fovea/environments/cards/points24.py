"""Points24: four cards, + - * / and brackets, to 24. Rules and rewards: `points`.

Four ranks, each equally likely. Of the 13^4 hands 73.09 % have a solution (`info["solvable"]`); `solvable_only` deals
until one has.

Try it: python -c "from fovea.environments.cards.points24 import *; print(Points24().reset(seed=0)[1])"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fovea.environments.cards import points
from fovea.environments.cards.formula_solver import solvable
from fovea.environments.game import Game
from fovea.tasks.card_pictures import RANKS


class Points24(points.Points):
    """Four cards to 24. Example: Points24(solvable_only=True)"""

    names = (*map(str, range(1, 11)), "+", "-", "*", "/", "(", ")", "=")
    target = 24
    cap = 20
    signs = "+-*/("

    def __init__(self, *, solvable_only: bool = False, **shared: Any) -> None:
        """`shared`: preset, side, wording, render_mode."""
        super().__init__(**shared)
        self.solvable_only = bool(solvable_only)

    def _ranks(self) -> Sequence[str]:
        while True:
            ranks = [RANKS[int(rank)] for rank in self.np_random.integers(0, 13, 4)]
            if not self.solvable_only or solvable(tuple(sorted(map(points.worth, ranks))), self.target):
                return ranks


GAME = Game(
    name="points24",
    make=Points24,
    legal=lambda env: env.legal(),
    ask=points.ask,
    act=lambda env, name: env.names.index(name),
    state=lambda env: env.info(),
    thought=points.thought,
    expert=points.expert,
    reason=points.reason,
    max_turns=22,
    # Measured: 14 of 300,000 episodes; in `paper` 1 of 300,000.
    floor=0.00005,
    # Share of the 13^4 hands with a solution, exact (`solvable`); 1.0 with solvable_only.
    ceiling=0.7309,
    options={"preset": "fixed", "side": 300, "solvable_only": False, "wording": "short"},
)
