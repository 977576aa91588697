"""Every game by its name. A game's file, and what it needs, is imported when the game is named, not before.

    find_game("frozen_lake")            one of `GAMES`
    find_game("gym:CartPole-v1")        any registered gymnasium environment, its actions numbered
    find_game("my/games.py:MAZE")       a `Game` (or a function that gives one) in a file of the user's

A user's file is a program and is executed with the user's rights, but only when it is named.

Try it: python -c "from fovea.environments.catalogue import find_game; print(find_game('sokoban'))"
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fovea.config import nearest
from fovea.environments.game import Game
from fovea.types import UserError

_HERE = "fovea.environments"

GAMES: dict[str, str] = {
    "number_line": f"{_HERE}.cards.number_line:GAME",
    "ez_points": f"{_HERE}.cards.ez_points:GAME",
    "points24": f"{_HERE}.cards.points24:GAME",
    "blackjack": f"{_HERE}.cards.blackjack:GAME",
    "frozen_lake": f"{_HERE}.toy_text:FROZEN_LAKE",
    "taxi": f"{_HERE}.toy_text:TAXI",
    "cliff_walking": f"{_HERE}.toy_text:CLIFF_WALKING",
    "gym_blackjack": f"{_HERE}.toy_text:GYM_BLACKJACK",
    "minigrid": f"{_HERE}.minigrid:MINIGRID",
    "sokoban": f"{_HERE}.sokoban:SOKOBAN",
    "alfworld": f"{_HERE}.alfworld:ALFWORLD",
    "alfworld_thor": f"{_HERE}.alfworld:ALFWORLD_THOR",
    "zoom": f"{_HERE}.tools:ZOOM",
    "jigsaw": f"{_HERE}.jigsaw:JIGSAW",
}
"""Name → "module:attribute"."""

_EXTRAS = {
    "minigrid": "envs",
    "pygame": "envs",
    "alfworld": "alfworld",
    "textworld": "alfworld",
}
"""Package that may be missing → the extra that has it."""


def find_game(name: str) -> Game:
    """The game of that name. Raises UserError for a name that is none, and where its package is not installed."""
    module, colon, attribute = name.rpartition(":")
    try:
        if name in GAMES:
            where, _, attribute = GAMES[name].rpartition(":")
            found = getattr(importlib.import_module(where), attribute)
        elif name.startswith("gym:") and len(name) > len("gym:"):
            from fovea.environments.generic import registered

            found = registered(name.removeprefix("gym:"))
        elif colon and module.endswith(".py"):
            found = _from_file(Path(module), attribute)
        else:
            raise UserError(_unknown(name))
    except ModuleNotFoundError as error:
        raise UserError(_missing(name, error)) from error
    return found if isinstance(found, Game) else _called(name, found)


def _unknown(name: str) -> str:
    near = nearest(name, list(GAMES))
    return f"There is no game {name!r}{near}; known: {', '.join(GAMES)}, gym:ID, or path/file.py:NAME."


def _missing(name: str, error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    if package in _EXTRAS:
        return f"The game {name} needs the package {package}; pip install 'fovea-rl[{_EXTRAS[package]}]'."
    return f"The game {name} needs the module {error.name}, which is not installed."


def _from_file(path: Path, attribute: str) -> Any:
    """What a user's file calls `attribute`."""
    if not path.is_file():
        raise UserError(f"There is no file {path}; a game of your own is named path/file.py:NAME.")
    found = getattr(_module(path.resolve()), attribute, None)
    if found is None:
        raise UserError(f"{path.name} has no {attribute!r}; name the Game that it defines: {path.name}:NAME.")
    return found


def _module(path: Path) -> ModuleType:
    """The file as a module under a name of its own; executed once, again only after it was changed."""
    content = path.read_bytes()
    name = f"fovea_game_{hashlib.sha256(str(path).encode() + content).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path.name} cannot be loaded: {said[:300]}.") from error
    return module


def _called(name: str, found: Any) -> Game:
    """A function without arguments may make the game, so that a file can import late."""
    made = found() if callable(found) else found
    if not isinstance(made, Game):
        raise UserError(
            f"{name} is a {type(made).__name__}, not a Game (fovea.environments.Game), nor a function that gives one."
        )
    return made
