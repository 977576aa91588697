"""Reward hacking in detection, and the aha moment: five rewards, beta 0, the same start, what each of them breeds.

    fovea study vlm_r1/hacking --out runs/vlm_r1/hacking

The start is fovea-tiny after 200 steps of supervised fine-tuning on open-vocabulary detection in which half of the
teacher's replies name what is there before they box it. From it, for every seed, GRPO without a KL term on AP50, mAP,
odLength, weighted_sum (VLM-R1's four) and od_f1 (ours, the control). Along training: predicted / true boxes,
completion length, reward, order-independent F1, the audits' warnings; of the checkpoints the same on held-out pictures,
and whether the model names before it boxes. Writes results.json and hacking.png's data (curves.json).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fovea.checkpoints import newest
from fovea.recipes.vlm_r1._arms import Arm, run_arms

REWARDS = ("od_ap50", "od_map", "od_length", "od_weighted", "od_f1")
SHOWN = (*REWARDS, "od_ratio")
MEASURE = {"shapes/detect": 192}

START: dict[str, Any] = {
    "model": "fovea-tiny",
    "method": "sft",
    "rewards": {"format": 1.0},
    "prompts": 48,
    "steps": 200,
    "save_every": 200,
    "tokens_per_pass": 4096,
    "sampling": {"max_new_tokens": 192},
    "optimizer": {"learning_rate": 3e-4, "warmup_steps": 20},
}
RL: dict[str, Any] = {
    "prompts": 16,
    "group": 8,
    "steps": 75,
    "save_every": 25,
    "tokens_per_pass": 4096,
    "sampling": {"max_new_tokens": 192},
    "optimizer": {"learning_rate": 5e-5, "warmup_steps": 5},
    "algorithm": {"name": "grpo", "beta": 0.0},
    "audits": ("od_f1", "od_ratio"),
}


def start_arm(steps: int = 200) -> Arm:
    """The supervised start that all arms share."""
    return Arm(
        name="start",
        seed=77,
        task="detect/start",
        values=START | {"steps": steps},
        measure=MEASURE,
        rewards=SHOWN,
    )


def start_of(out: Path) -> str:
    """The folder of the start's model."""
    checkpoint = newest(out / start_arm().folder / "run")
    assert checkpoint is not None, "the start is trained first"
    return str(checkpoint / "model")


def arms(out: Path, seeds: Sequence[int], rewards: Sequence[str] = REWARDS) -> list[Arm]:
    """One arm a reward and seed; seeds in the outer place, so that a stopped study has whole seeds."""
    return [
        Arm(
            name=reward,
            seed=seed,
            task="shapes/detect",
            values=RL | {"model": start_of(out), "rewards": {reward: 1.0}},
            measure=MEASURE,
            rewards=SHOWN,
            keep=192,
        )
        for seed in seeds
        for reward in rewards
    ]


def main(argv: list[str]) -> None:
    """Run the study, or finish it."""
    parser = argparse.ArgumentParser(prog="fovea study vlm_r1/hacking", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/vlm_r1/hacking"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    run_arms(options.out, [start_arm()], options.jobs)
    run_arms(options.out, arms(options.out, options.seeds, options.rewards), options.jobs)
