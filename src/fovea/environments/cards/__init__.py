"""The four card games of RL4VLM (arXiv 2405.10292), written anew: number_line, ez_points, points24, blackjack.

Each file has an environment class and a `GAME` (`fovea.environments.game`); both need gymnasium (extra `envs`).
The formulas, solvers and pictures beside them need only NumPy and Pillow.
"""
