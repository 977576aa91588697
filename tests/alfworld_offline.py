"""ALFWorld without its data and without a network: the games of fovea/recipes/rl4vlm, loaded, stepped, their rewards
logged; by the planner, by the walkthrough in the file, and by a seeded random agent, all through `Game`.

Not collected by pytest: it needs the package `alfworld` (extra `alfworld`), which builds from source.

    pip install 'fovea-rl[alfworld]' && python tests/alfworld_offline.py > docs/results/alfworld-offline.txt
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fovea.environments.alfworld import ALFWORLD as GAME
from fovea.environments.check import check_environment, success

Agent = Callable[[Any, int], str]


def play(env: Any, agent: Agent, seed: int, split: str, shown: int = 100) -> None:
    """One episode, every step printed up to `shown`."""
    env.reset(seed=seed, options={"split": split})
    print(f"{env.file.name} ({split}, seed {seed}): {env.task}")
    print(f"    {env.said}")
    total, turn, over, began = 0.0, 0, False, time.perf_counter()
    while not over:
        legal = GAME.legal(env)
        name = GAME.read(env, legal, agent(env, turn))
        assert name is not None, "what an agent says is legal"
        _, reward, terminated, truncated, _ = env.step(GAME.act(env, name))
        total, over = total + reward, terminated or truncated
        if turn < shown:
            print(f"  {turn:2d} of {len(legal):2d} legal > {name:32s} reward {reward:g}  {env.said}")
        turn += 1
    if turn > shown:
        print(f"     … {turn - shown} more steps")
    took = 1000 * (time.perf_counter() - began) / turn
    won = GAME.won(env, total, terminated)
    print(
        f"  {'won' if won else 'not won'} after {turn} steps, sum of rewards {total:g}, {took:.0f} ms a step\n"
    )


def main() -> None:
    versions = {
        name: importlib.metadata.version(name) for name in ("alfworld", "textworld", "gymnasium", "numpy")
    }
    print(f"ALFWorld offline, text mode. {json.dumps(versions)}\n")
    env = GAME.make(**GAME.options)
    print("--- the walkthrough in the file\n")
    for split in ("train", "validation", "test"):

        def walk(env: Any, turn: int) -> str:
            return str(json.loads(env.file.read_text(encoding="utf-8"))["walkthrough"][turn])

        play(env, walk, 0, split)
    print("--- the planner, asked anew at every step\n")
    assert GAME.expert is not None
    play(env, lambda env, turn: GAME.expert(env), 0, "train")  # type: ignore[misc]
    print("--- a random agent: uniform over the legal commands, its own seed\n")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        play(
            env,
            lambda env, turn, rng=rng: GAME.legal(env)[int(rng.integers(len(GAME.legal(env))))],  # type: ignore[misc]
            seed,
            "train",
            shown=8,
        )
    print("--- the check\n")
    print(check_environment(GAME, episodes=2, steps=20).text())
    for split in ("train", "validation", "test"):
        won, turns = success(GAME, "random", 40, split=split)
        print(f"random agent, {split}: won {won:.3f} of 40 episodes, {turns:.1f} steps on average")


if __name__ == "__main__":
    main()
