"""Blackjack with an infinite deck, solved exactly: what standing and hitting are worth, and the best policies.

The rules are those of gymnasium's Blackjack-v1: the dealer draws to 17, soft or hard; no splitting, no doubling,
no bonus for a natural. An ace counts 11 where that does not pass 21.

Not here: the game (`blackjack`).

Try it: python -c "from fovea.environments.cards.blackjack_solver import *; print(outcomes(most_wins))"
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

DECK = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10)
Policy = Callable[[int, bool, int], bool]
"""(total, whether an ace counts 11, the dealer's card, 1 to 10) → whether to hit."""
Odds = tuple[float, float]
"""Chances of a win and of a draw."""


def total_of(hand: Sequence[int]) -> tuple[int, bool]:
    """The total of a hand, and whether an ace counts 11. Example: total_of([1, 5]) is (16, True)"""
    hard = sum(hand)
    return (hard + 10, True) if 1 in hand and hard + 10 <= 21 else (hard, False)


def _draws() -> Iterator[tuple[int, float]]:
    for card in range(1, 11):
        yield card, DECK.count(card) / len(DECK)


def _after(total: int, soft: bool, card: int) -> tuple[int, bool]:
    total += card
    if card == 1 and not soft and total + 10 <= 21:
        return total + 10, True
    return (total - 10, False) if soft and total > 21 else (total, soft)


@functools.cache
def _dealer(total: int, soft: bool) -> tuple[float, ...]:
    """Chances that the dealer ends at 17, 18, 19, 20, 21 or busts."""
    if total > 21:
        return (0, 0, 0, 0, 0, 1)
    if total >= 17:
        return tuple(float(total == end) for end in range(17, 23))
    ends = [0.0] * 6
    for card, chance in _draws():
        for i, share in enumerate(_dealer(*_after(total, soft, card))):
            ends[i] += chance * share
    return tuple(ends)


@functools.cache
def standing(total: int, dealer: int) -> Odds:
    """Of a player who stands at a total of at most 21."""
    ends = _dealer(*total_of([dealer]))
    won = ends[5] + sum(share for end, share in zip(range(17, 22), ends) if end < total)
    return won, ends[total - 17] if total >= 17 else 0.0


def _value(odds: Odds, draws: float) -> float:
    return odds[0] + draws * odds[1]


@functools.cache
def best(total: int, soft: bool, dealer: int, draws: float) -> tuple[bool, Odds]:
    """(whether to hit, odds of going on so) where a win is worth 1 and a draw `draws`; stands when equal."""
    if total > 21:
        return False, (0.0, 0.0)
    stand, hit = standing(total, dealer), hitting(total, soft, dealer, draws)
    wants = _value(hit, draws) > _value(stand, draws) + 1e-12
    return wants, hit if wants else stand


@functools.cache
def hitting(total: int, soft: bool, dealer: int, draws: float) -> Odds:
    """Of a player who takes a card now and plays best afterwards."""
    won = drawn = 0.0
    for card, chance in _draws():
        odds = best(*_after(total, soft, card), dealer, draws)[1]
        won, drawn = won + chance * odds[0], drawn + chance * odds[1]
    return won, drawn


def most_wins(total: int, soft: bool, dealer: int) -> bool:
    """The policy that wins most often; a draw is worth nothing."""
    return best(total, soft, dealer, 0.0)[0]


def most_reward(total: int, soft: bool, dealer: int) -> bool:
    """The policy of the highest mean reward (a draw lies half way between a loss and a win)."""
    return best(total, soft, dealer, 0.5)[0]


def outcomes(policy: Policy | None) -> Odds:
    """Chances of a win and of a draw under a policy, over all deals; None: hits with chance 1/2 each time."""

    @functools.cache
    def going_on(total: int, soft: bool, dealer: int) -> Odds:
        if total > 21:
            return 0.0, 0.0
        hits = 0.5 if policy is None else float(policy(total, soft, dealer))
        stand = standing(total, dealer)
        won, drawn = (1 - hits) * stand[0], (1 - hits) * stand[1]
        for card, chance in _draws() if hits else ():
            odds = going_on(*_after(total, soft, card), dealer)
            won, drawn = won + hits * chance * odds[0], drawn + hits * chance * odds[1]
        return won, drawn

    won = drawn = 0.0
    for first, one in _draws():
        for second, two in _draws():
            for dealer, three in _draws():
                odds = going_on(*total_of([first, second]), dealer)
                won, drawn = won + one * two * three * odds[0], drawn + one * two * three * odds[1]
    return won, drawn
