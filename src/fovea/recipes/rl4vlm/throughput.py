"""Episodes side by side against one at a time (as RL4VLM plays them): environment steps a CPU second, one thread.

    fovea study rl4vlm/throughput --out runs/rl4vlm/throughput

Both sides take turns in one process with the same policy, game and number of turns; a reply is never cut short (end
tokens are banned), so that each has as many new tokens. The figure is the median over rounds of the ratio of two
neighbouring measurements; `decode` is the time inside the engine alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from fovea.recipes.vlm_r1._arms import hardware
from fovea.runlog import write_json


class TimedEngine:
    """An engine, and the CPU seconds spent in it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.seconds = 0.0

    def generate(self, *arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return self._engine.generate(*arguments, **named)
        finally:
            self.seconds += time.process_time() - began

    def load_weights(self, policy: Any) -> None:
        self._engine.load_weights(policy)


def measure(side_by_side: int, turns: int, rounds: int, tokens: int) -> dict[str, Any]:
    """{"ratio", "decode_ratio", "steps_per_cpu_second": {"side by side", "one at a time"}, ...}; NumberLine, 64 x 64"""
    import torch

    from fovea.engines.shared_prefill import SharedPrefillEngine
    from fovea.environments.catalogue import find_game
    from fovea.environments.spoken import Spoken
    from fovea.models import load_policy
    from fovea.rollouts.episodes import Stage
    from fovea.types import Sampling

    torch.set_num_threads(1)
    policy = load_policy("fovea-tiny", reply_tokens=tokens)
    game = find_game("number_line")
    engine = TimedEngine(SharedPrefillEngine(policy))
    sampling = Sampling(max_new_tokens=tokens, bans=policy.eos_ids)
    seconds: dict[str, list[float]] = {"side by side": [], "one at a time": []}
    decode: dict[str, list[float]] = {name: [] for name in seconds}
    image_tokens = 0
    for number in range(rounds + 1):
        for name in seconds:
            stage = Stage(
                policy=policy, engine=engine, sampling=sampling, game=game.name, split="train", seed=number,
                make=lambda: Spoken(game=game, options={"side": 64}),
            )  # fmt: skip
            engine.seconds, began, played = 0.0, time.process_time(), 0
            if name == "side by side":
                played += sum(len(one.turns) for one in stage.advance(side_by_side, turns, seed=(0, number)))
            else:
                found = stage.advance(1, side_by_side * turns, seed=(0, number))
                played += sum(len(one.turns) for one in found)
                image_tokens = sum(found[0].turns[0].prompt.picture_tokens)
                assert all(len(t.completion.token_ids) == tokens for one in found for t in one.turns)
            assert played == side_by_side * turns
            stage.close()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - began)
                decode[name].append(engine.seconds)
    several, single = (np.array(seconds[name]) for name in seconds)
    ratios, inside = single / several, np.array(decode["one at a time"]) / np.array(decode["side by side"])
    steps = side_by_side * turns
    return {
        "image_tokens": image_tokens,
        "new_tokens": tokens,
        "side_by_side": side_by_side,
        "steps_a_round": steps,
        "rounds": rounds,
        "ratio": float(np.median(ratios)),
        "range": [float(ratios.min()), float(ratios.max())],
        "decode_ratio": float(np.median(inside)),
        "decode_share": float(np.sum(decode["side by side"]) / np.sum(several)),
        "steps_per_cpu_second": {name: float(steps / np.median(each)) for name, each in seconds.items()},
    }


def main(argv: list[str]) -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(prog="fovea study rl4vlm/throughput", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/rl4vlm/throughput"))
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args(argv)
    found = measure(options.episodes, options.turns, options.rounds, options.tokens)
    options.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["fovea study rl4vlm/throughput", *argv])
    write_json(options.out / "results.json", {"command": command, "hardware": hardware()} | found)
    speeds = ", ".join(f"{name} {value:.1f}" for name, value in found["steps_per_cpu_second"].items())
    print(
        f"{found['image_tokens']} image tokens, {found['new_tokens']} new tokens: {speeds} environment steps a CPU "
        f"second; ratio {found['ratio']:.1f} [{found['range'][0]:.1f}, {found['range'][1]:.1f}], decode alone "
        f"{found['decode_ratio']:.1f} ({found['decode_share']:.0%} of the time side by side)"
    )
