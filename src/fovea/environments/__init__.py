"""Environments: things that answer back. Light: no torch; gymnasium (extra `envs`) is imported where it is used.

game = find_game("number_line")                 a gymnasium environment, and how it is spoken of (`Game`)
env = Spoken(game=game)                         pictures and text out, a reply in
print(check_environment(game).text())           what a game promises, tried out
"""

from fovea.environments.catalogue import GAMES, find_game
from fovea.environments.check import EnvironmentReport, check_environment
from fovea.environments.game import Game, Observation
from fovea.environments.replay import Recorded, digest, restore
from fovea.environments.spoken import Rules, Spoken

__all__ = [
    "GAMES",
    "EnvironmentReport",
    "Game",
    "Observation",
    "Recorded",
    "Rules",
    "Spoken",
    "check_environment",
    "digest",
    "find_game",
    "restore",
]
