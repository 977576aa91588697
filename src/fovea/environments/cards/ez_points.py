"""EZPoints: two cards, + and *, to 12. Rules and rewards: `points`.

Every hand has a solution. The first card is one of 2 to K; the second is what is missing to 12, or for 2, 3, 4 and
6 as often as not the other factor of 12; then the two change places as often as not. No ace is ever dealt.

Try it: python -c "from fovea.environments.cards.ez_points import *; print(EZPoints().reset(seed=0)[1])"
"""

from __future__ import annotations

from collections.abc import Sequence

from fovea.environments.cards import points
from fovea.environments.game import Game
from fovea.tasks.card_pictures import RANKS


class EZPoints(points.Points):
    """Two cards to 12. Example: EZPoints(side=(96, 64))"""

    names = (*map(str, range(1, 11)), "+", "*", "=")
    target = 12
    cap = 5
    signs = "+*"

    def _ranks(self) -> Sequence[str]:
        first = RANKS[int(self.np_random.integers(1, 13))]
        number = points.worth(first)
        factor = number in (2, 3, 4, 6) and self.np_random.random() < 0.5
        ranks = [first, str(12 // number if factor else 12 - number)]
        return ranks[::-1] if self.np_random.random() < 0.5 else ranks


GAME = Game(
    name="ez_points",
    make=EZPoints,
    legal=lambda env: env.legal(),
    ask=points.ask,
    act=lambda env, name: env.names.index(name),
    state=lambda env: env.info(),
    thought=points.thought,
    expert=points.expert,
    reason=points.reason,
    max_turns=7,
    # Exact, by going through every sequence of legal symbols (tests/test_card_games.py).
    floor=0.0367,
    ceiling=1.0,
    options={"preset": "fixed", "side": 300, "wording": "short"},
)
