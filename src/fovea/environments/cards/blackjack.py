"""Blackjack against a dealer: stand or hit, nearer to 21 wins. The rules of gymnasium's Blackjack-v1.

Action 0 is "stand", 1 is "hit". Cards come from an infinite deck. Reward 1 for a win, 0 for a draw, -1 for a loss,
at the end. Success is a win: a draw is none. The same `np_random` deals the same cards as gymnasium's game does.

`fixed`: all cards are visible, and the dealer's lie open when the hand is over; a ten is a 10, J, Q or K.
`paper`: a ten is J, Q or K, the player's fifth card lies outside the picture, the dealer's second stays hidden.

Not here: what is best (`blackjack_solver`).

Try it: python -c "from fovea.environments.cards.blackjack import *; print(Blackjack().reset(seed=0)[1])"
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image

from fovea.environments.cards import drawing
from fovea.environments.cards.blackjack_solver import DECK, most_wins, total_of
from fovea.environments.cards.points import worth
from fovea.environments.cards.table import PictureGame, Step
from fovea.environments.game import Game
from fovea.tasks.card_pictures import SUITS, Card


class Blackjack(PictureGame):
    """A hand of blackjack. Example: Blackjack(side=(128, 96))"""

    names = ("stand", "hit")

    def __init__(self, **shared: Any) -> None:
        """`shared`: preset, side, wording, render_mode."""
        super().__init__(**shared)
        self.dealer: list[Card] = []
        self.player: list[Card] = []

    def _deal(self) -> Card:
        number = int(self.np_random.choice(DECK))
        tens = ("J", "Q", "K") if self.preset == "paper" else ("10", "J", "Q", "K")
        ten = tens[int(self.looks.integers(len(tens)))]
        suit = SUITS[int(self.looks.integers(4))]
        return Card(rank="A" if number == 1 else ten if number == 10 else str(number), suit=suit)

    def _begin(self) -> None:
        self.dealer = [self._deal(), self._deal()]
        self.player = [self._deal(), self._deal()]

    def step(self, action: int) -> Step:
        name = self._check(action)
        if name == "hit":
            self.player.append(self._deal())
            bust = self.total()[0] > 21
            return self._answer(-1.0 if bust else 0.0, terminated=bust)
        while _total(self.dealer)[0] < 17:
            self.dealer.append(self._deal())
        mine, theirs = self.total()[0], _total(self.dealer)[0]
        theirs = 0 if theirs > 21 else theirs
        return self._answer(float(mine > theirs) - float(mine < theirs), terminated=True)

    def total(self) -> tuple[int, bool]:
        """The player's total, and whether an ace counts 11."""
        return _total(self.player)

    def shown(self) -> int:
        """The number of the dealer's open card; 1 for an ace."""
        return worth(self.dealer[0].rank)

    def info(self) -> dict[str, Any]:
        total, soft = self.total()
        return {
            "player": [card.rank for card in self.player],
            "dealer": [card.rank for card in self.dealer],
            "total": total,
            "usable_ace": soft,
        }

    def _draw(self) -> Image.Image:
        covered = [self.dealer[0], replace(self.dealer[1], hidden=True)]
        if self.preset == "paper":
            return drawing.paper_table(self.size[0], covered, self.player)
        return drawing.table(self.look, self.size, self.dealer if self.over else covered, self.player)


def _total(cards: list[Card]) -> tuple[int, bool]:
    return total_of([worth(card.rank) for card in cards])


# --- how it is spoken of ---------------------------------------------------------------------------------------


def ask(env: Any) -> str:
    if env.wording == "short":
        return "Blackjack: get nearer to 21 than the dealer. Actions: stand or hit."
    return (
        "You are playing blackjack. The picture shows the dealer's cards above, one of them face down, and yours "
        "below. You win with a total above the dealer's that does not pass 21; the dealer draws to 17. J, Q and K "
        "count 10; an ace counts 11, or 1 where 11 would pass 21. 'hit' takes another card, 'stand' takes none and "
        "ends your turn. First add up your cards and read the dealer's open one, then think about what is better."
    )


def thought(env: Any) -> str:
    total, soft = env.total()
    cards = " ".join(card.rank for card in env.player)
    return f"dealer {env.dealer[0].rank}, player {cards} = {'soft ' if soft else ''}{total}"


def expert(env: Any) -> str:
    total, soft = env.total()
    return "hit" if most_wins(total, soft, env.shown()) else "stand"


def reason(env: Any, name: str) -> str:
    total, soft = env.total()
    verdict = "low" if name == "hit" else "enough"
    return f"{'soft ' if soft else ''}{total} is {verdict} against {env.dealer[0].rank}"


GAME = Game(
    name="blackjack",
    make=Blackjack,
    legal=lambda env: env.legal(),
    ask=ask,
    act=lambda env, name: env.names.index(name),
    state=lambda env: env.info(),
    thought=thought,
    expert=expert,
    reason=reason,
    max_turns=20,
    # `blackjack_solver.outcomes`, exact: hitting with chance 1/2; always standing wins 0.3807
    floor=0.2806,
    # outcomes(most_wins), exact; the policy of the highest mean reward wins 0.4295
    ceiling=0.4316,
    options={"preset": "fixed", "side": 300, "wording": "short"},
)
