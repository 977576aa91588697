"""Games by name, loaded when they are asked for."""

from __future__ import annotations

import importlib

from fovea.config import nearest
from fovea.environments.game import Game
from fovea.types import UserError

GAMES = {
    "number_line": "fovea.environments.cards.number_line:GAME",
    "ez_points": "fovea.environments.cards.ez_points:GAME",
    "points24": "fovea.environments.cards.points24:GAME",
    "blackjack": "fovea.environments.cards.blackjack:GAME",
}


def find_game(name: str) -> Game:
    """The game. Raises UserError for a name that there is not."""
    if name not in GAMES:
        raise UserError(f"There is no game {name!r}{nearest(name, list(GAMES))}; known: {', '.join(GAMES)}.")
    module, _, attribute = GAMES[name].partition(":")
    game: Game = getattr(importlib.import_module(module), attribute)
    return game
