"""Gymnasium's toy text games as pictures: FrozenLake-v1, Taxi-v4, CliffWalking-v1 and Blackjack-v1.

The first three carry their whole transition table, so their teacher is value iteration over it. All actions are always
legal: to list only those that do something would tell a model what it should see. Floors are exact, from the tables
and the deck (tests/test_environments.py); what `fovea.environments.check.success` measured stands beside each.

Importing this file imports gymnasium; pictures need pygame-ce (extra `envs`). Blackjack here shows the player's sum as
a number; the card game with cards to read is `fovea.environments.cards.blackjack`.

Try it:

    from fovea.environments.toy_text import FROZEN_LAKE
    env = FROZEN_LAKE.make(is_slippery=False); env.reset(seed=0); print(FROZEN_LAKE.ask(env), FROZEN_LAKE.expert(env))
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import numpy as np

from fovea.environments.game import Game
from fovea.environments.generic import gym_game, listed

DISCOUNT = 0.99
"""Of value iteration: shorter ways are better."""

_PLANS: weakref.WeakKeyDictionary[Any, np.ndarray] = weakref.WeakKeyDictionary()


def best_actions(table: dict[int, dict[int, list[Any]]], discount: float = DISCOUNT) -> np.ndarray:
    """int64 [S]: the best action of every state of a transition table {state: {action: [(p, next, reward, over)]}}.

    Q(s, a) = sum over outcomes of p (r + discount V(s')), V(s) = max over a of Q(s, a), V = 0 after the end.
    """
    widest = max(len(outcomes) for row in table.values() for outcomes in row.values())
    shape = (len(table), len(table[0]), widest)
    chance, reward, goes_on = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    after = np.zeros(shape, np.int64)
    for state, row in table.items():
        for action, outcomes in row.items():
            for k, (p, to, paid, over) in enumerate(outcomes):
                chance[state, action, k], after[state, action, k] = p, to
                reward[state, action, k], goes_on[state, action, k] = paid, not over
    value = np.zeros(shape[0])
    while True:
        quality = (chance * (reward + discount * goes_on * value[after])).sum(2)
        better = quality.max(1)
        if np.abs(better - value).max() < 1e-10:
            # rounded, so that of equal actions the first is taken on every machine
            return np.asarray(np.round(quality, 8).argmax(1))
        value = better


def _plan(env: Any) -> int:
    """The best action where `env` stands now."""
    core = env.core
    if core not in _PLANS:
        _PLANS[core] = best_actions(core.P)
    return int(_PLANS[core][int(core.s)])


def _place(row: int, column: int) -> str:
    return f"row {row + 1}, column {column + 1}"


# --- FrozenLake -------------------------------------------------------------------------------------------

_LAKE = ("left", "down", "right", "up")
_MOVES = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
_ICE = {"S": "ice", "F": "ice", "H": "a hole", "G": "the goal"}


def _lake_cell(env: Any, row: int, column: int) -> str:
    inside = 0 <= row < env.core.nrow and 0 <= column < env.core.ncol
    return _ICE[env.core.desc[row, column].decode()] if inside else "the edge"


def _lake_state(env: Any) -> dict[str, Any]:
    row, column = divmod(int(env.core.s), env.core.ncol)
    around = {name: _lake_cell(env, row + dr, column + dc) for name, (dr, dc) in _MOVES.items()}
    lines = ["".join(cell.decode() for cell in line) for line in env.core.desc]
    return {"row": row, "column": column, "map": lines, "around": around}


def _lake_ask(env: Any) -> str:
    slips = (
        " The ice is slippery: a step may go sideways."
        if env.core.spec.kwargs.get("is_slippery", True)
        else ""
    )
    return f"Bring the elf over the ice to the goal flag without falling into a hole.{slips}\n{listed(_LAKE)}"


def _lake_thought(env: Any) -> str:
    state = _lake_state(env)
    around = ", ".join(f"{name} {what}" for name, what in state["around"].items())
    return f"The elf is in {_place(state['row'], state['column'])}: {around}."


def _lake_reason(env: Any, best: str) -> str:
    return f"{best.capitalize()} is {_lake_state(env)['around'][best]}, on a safe way to the goal."


FROZEN_LAKE: Game = gym_game(
    "FrozenLake-v1",
    _LAKE,
    _lake_ask,
    name="frozen_lake",
    shrink=4,
    options={"is_slippery": False, "map_name": "4x4"},
    state=_lake_state,
    thought=_lake_thought,
    expert=lambda env: _LAKE[_plan(env)],
    reason=_lake_reason,
    max_turns=30,
    floor=0.0137,  # measured: 0.0141, n = 20,000
    ceiling=1.0,
)


# --- Taxi -------------------------------------------------------------------------------------------------

_TAXI = ("down", "up", "right", "left", "pick up", "drop off")
_STANDS = ("red", "green", "yellow", "blue")


def _taxi_state(env: Any) -> dict[str, Any]:
    row, column, passenger, goal = (int(one) for one in env.core.decode(env.core.s))
    where = "taxi" if passenger == 4 else _STANDS[passenger]
    return {"row": row, "column": column, "passenger": where, "destination": _STANDS[goal]}


def _taxi_thought(env: Any) -> str:
    state = _taxi_state(env)
    where = "in the taxi" if state["passenger"] == "taxi" else f"at {state['passenger']}"
    place = _place(state["row"], state["column"])
    return f"The taxi is in {place}. The passenger is {where} and wants to {state['destination']}."


def _taxi_reason(env: Any, best: str) -> str:
    state = _taxi_state(env)
    if best in ("pick up", "drop off"):
        return f"The taxi is there: {best}."
    goal = state["destination"] if state["passenger"] == "taxi" else state["passenger"]
    return f"{best.capitalize()} is on the shortest way to {goal}."


TAXI: Game = gym_game(
    "Taxi-v4",
    _TAXI,
    "Drive the taxi to the passenger, pick up, drive to the marked destination, drop off. Walls cannot be crossed.",
    name="taxi",
    shrink=4,
    state=_taxi_state,
    thought=_taxi_thought,
    expert=lambda env: _TAXI[_plan(env)],
    reason=_taxi_reason,
    # each step costs 1, so the sum may be negative; the episode terminates at the right destination alone
    won=lambda env, total, terminated: terminated,
    max_turns=50,
    floor=0.0033,  # measured: 0.0036, n = 10,000
    ceiling=1.0,
)


# --- CliffWalking -----------------------------------------------------------------------------------------

_CLIFF = ("up", "right", "down", "left")
_CLIFF_COLUMNS = 12


def _cliff_state(env: Any) -> dict[str, Any]:
    row, column = divmod(int(env.core.s), _CLIFF_COLUMNS)
    return {"row": row, "column": column, "rows": 4, "columns": _CLIFF_COLUMNS}


def _cliff_thought(env: Any) -> str:
    state = _cliff_state(env)
    below = " with the cliff below" if state["row"] == 2 and 0 < state["column"] < 11 else ""
    return f"The elf is in {_place(state['row'], state['column'])}{below}; the goal is in row 4, column 12."


CLIFF_WALKING: Game = gym_game(
    "CliffWalking-v1",
    _CLIFF,
    "Bring the elf to the goal flag at the lower right. Whoever steps over the cliff begins again at the lower left.",
    name="cliff_walking",
    shrink=4,
    options={"is_slippery": False},
    state=_cliff_state,
    thought=_cliff_thought,
    expert=lambda env: _CLIFF[_plan(env)],
    reason=lambda env, best: f"{best.capitalize()} is on the shortest safe way.",
    # terminates at the goal alone; a fall (-100) ends no episode, but is no success either
    won=lambda env, total, terminated: terminated and total > -100,
    max_turns=40,
    floor=0.00025,  # measured: none of n = 10,000
    ceiling=1.0,
)


# --- Blackjack --------------------------------------------------------------------------------------------

_TABLE = ("stand", "hit")
_DECK = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10)


def _add(total: int, ace: bool, card: int) -> tuple[int, bool]:
    """Sum and usable ace after one more card; `total` counts a usable ace as 11."""
    total, ace = (total + 11, True) if card == 1 and total + 11 <= 21 else (total + card, ace)
    return (total - 10, False) if total > 21 and ace else (total, ace)


@functools.cache
def _dealer(total: int, ace: bool) -> tuple[float, ...]:
    """Probability of the dealer's final sum: [0] bust, [17] to [21]."""
    found = [0.0] * 22
    if total >= 17:
        found[total if total <= 21 else 0] = 1.0
        return tuple(found)
    for card in _DECK:
        for end, chance in enumerate(_dealer(*_add(total, ace, card))):
            found[end] += chance / len(_DECK)
    return tuple(found)


@functools.cache
def win_chances(total: int, ace: bool, upcard: int) -> tuple[float, float]:
    """Probability to win by standing and by hitting, with the best play afterwards (endless deck, a draw is no win)."""
    ends = _dealer(*_add(0, False, upcard))
    stand = sum(chance for end, chance in enumerate(ends) if end < total)
    after = [_add(total, ace, card) for card in _DECK]
    hit = sum(max(win_chances(*one, upcard)) for one in after if one[0] <= 21) / len(_DECK)
    return stand, hit


def _table_state(env: Any) -> dict[str, Any]:
    total, upcard, ace = (int(one) for one in env.observation)
    return {"sum": total, "dealer": upcard, "usable_ace": bool(ace)}


def _table_best(env: Any) -> str:
    state = _table_state(env)
    stand, hit = win_chances(state["sum"], state["usable_ace"], state["dealer"])
    return "hit" if hit > stand else "stand"


def _table_thought(env: Any) -> str:
    state = _table_state(env)
    dealer = "an ace" if state["dealer"] == 1 else str(state["dealer"])
    return f"My sum is {state['sum']}{' with a usable ace' * state['usable_ace']}. The dealer shows {dealer}."


GYM_BLACKJACK: Game = gym_game(
    "Blackjack-v1",
    _TABLE,
    "Blackjack. The picture shows the dealer's open card and your sum. Come closer to 21 than the dealer, not above.",
    name="gym_blackjack",
    shrink=2,
    state=_table_state,
    thought=_table_thought,
    expert=_table_best,
    reason=lambda env, best: (
        "Another card helps more often." if best == "hit" else "Another card is too risky."
    ),
    max_turns=12,
    floor=0.2806,  # measured: 0.2817, n = 60,000
    ceiling=0.4316,  # exact for the policy that wins most often; tests/test_environments.py derives it
)
