"""RL4VLM in miniature: cold starts, then PPO with and without a thought, lambda, and three algorithms.

    fovea study rl4vlm/study --out runs/rl4vlm/study --seeds 0 1 2 --jobs 2

First the cold starts are trained, one of each, the same for every arm and seed (fovea-tiny, supervised): `format`,
whose thoughts transcribe the state and whose actions are random, and `expert`, a solver's. Then every arm goes on from
its start. All are measured on the same held-out episodes (of NumberLine other starts and other fonts). Further
key=value change every arm; finished arms are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fovea.config import apply_override
from fovea.recipes.rl4vlm._arms import MODULE
from fovea.recipes.rl4vlm._tables import tables
from fovea.recipes.ssl4rl.study import over_seeds
from fovea.recipes.vlm_r1._arms import Arm, curve_of, hardware, run_arms
from fovea.runlog import newest_model, write_json
from fovea.types import UserError

BASE: dict[str, Any] = {
    "model": "fovea-tiny",
    "save_every": 0,
    "show_every": 0,
    "tokens_per_pass": 4096,
    "sampling": {"max_new_tokens": 40},
}
GAMES: dict[str, dict[str, Any]] = {
    "number_line": {"options": {"side": 64}, "turns": 4, "steps": 24},
    "ez_points": {"options": {"side": 64}, "turns": 5, "steps": 24},
    "minigrid": {"options": {}, "turns": 4, "steps": 24},
    "blackjack": {"options": {"side": 96}, "turns": 2, "steps": 24},
}
"""Game → how it is shown, turns a step and steps of PPO."""
START: dict[str, Any] = {
    "method": "sft",
    "prompts": 32,
    "steps": 170,
    "optimizer": {"learning_rate": 1e-4, "warmup_steps": 10, "schedule": "wsd", "decay_ratio": 0.2},
}
"""Supervised: 5,440 demonstrated turns."""
PPO: dict[str, Any] = {
    "freeze": ["vision", "projector"],
    "prompts": 32,
    "group": 1,
    "optimizer": {"learning_rate": 5e-5, "critic_learning_rate": 1e-3, "warmup_steps": 3},
    "algorithm": {"updates_per_rollout": 2, "prompts_per_update": 64},
    "critic": {"hidden": [256]},
}
GROUPS: dict[str, Any] = {
    "freeze": ["vision", "projector"],
    "prompts": 4,
    "group": 8,
    "cpu_seconds": 300.0,
    "optimizer": {"learning_rate": 5e-5, "warmup_steps": 3},
    "algorithm": {"updates_per_rollout": 2, "prompts_per_update": 64},
}
"""Whole episodes, eight of each beginning; no more compute than PPO takes here, for a step may have many more turns."""

STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nl_format": ("number_line", {}),
    "nl_format_no_cot": ("number_line", {"thought": False}),
    "nl_expert": ("number_line", {"demonstrations": "expert"}),
    "ez_format": ("ez_points", {}),
    "ez_expert": ("ez_points", {"demonstrations": "expert"}),
    "ez_expert_no_cot": ("ez_points", {"demonstrations": "expert", "thought": False}),
    "mg_format": ("minigrid", {}),
    "bj_format": ("blackjack", {}),
    "bj_expert": ("blackjack", {"demonstrations": "expert"}),
}
"""Cold start → game, and its `environment` section's further keys."""

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "nl_ppo": ("nl_format", {}),
    "nl_ppo_no_cot": ("nl_format_no_cot", {}),
    "nl_sft": ("nl_expert", {"sft": True}),
    "ez_ppo": ("ez_expert", {}),
    "ez_ppo_no_cot": ("ez_expert_no_cot", {}),
    "ez_format_ppo": ("ez_format", {}),
    "ez_sft": ("ez_expert", {"sft": True}),
    "nl_lambda_0": ("nl_format", {"algorithm": {"thought_weight": 0.0}}),
    "nl_lambda_1": ("nl_format", {"algorithm": {"thought_weight": 1.0}}),
    "nl_vl_dac": ("nl_format", {"algorithm": {"name": "vl_dac"}}),
    "nl_grpo": ("nl_format", {"algorithm": {"name": "grpo"}}),
    "mg_ppo": ("mg_format", {}),
    "bj_ppo": ("bj_format", {}),
    "nl_expert_ppo": ("nl_expert", {}),
}
"""Arm → the cold start that it goes on from, and what is changed: `sft` (more of the same demonstrations, as much
compute as PPO), `algorithm`. Unless it says otherwise an arm is RL4VLM's PPO with lambda 0.5."""
SFT_CPU_SECONDS = 240.0
"""About what PPO's steps take here."""
MEASURE = {"blackjack": 10_000}
"""Games that need more held-out episodes than the others."""


def start_of(name: str, n: int) -> Arm:
    """A cold start; seed 0."""
    game, more = STARTS[name]
    section = {"name": game, "options": GAMES[game]["options"]} | more
    values = BASE | START | {"environment": section}
    return Arm(name=name, seed=0, task=game, values=values, measure=measure_of(game, n, start=True))


def arm_of(name: str, seed: int, out: Path, overrides: Sequence[str], n: int) -> Arm:
    """One run from its cold start, which must be finished."""
    start, changes = ARMS[name]
    game, more = STARTS[start]
    own = dict(GAMES[game])
    section = {"name": game, "options": own["options"], "turns": own["turns"]} | more
    values = BASE | {"model": str(newest_model(out / f"{start}-seed0" / "run"))}
    if changes.get("sft"):
        values |= START | {"steps": 5000, "cpu_seconds": SFT_CPU_SECONDS, "environment": section}
    else:
        asked = {"name": "rl4vlm"} | changes.get("algorithm", {})
        whole = asked["name"] == "grpo"
        base = GROUPS if whole else PPO
        section = section | {"invalid": "penalty", "penalty": 1.0, "demonstrations": "format"}
        values |= base | {"steps": own["steps"], "environment": section}
        values["algorithm"] = base["algorithm"] | asked
        if (
            game == "ez_points" and not whole
        ):  # rewards of 10: values held to 0.1 a rollout would not get there
            values["critic"] = values["critic"] | {"clip": 0}
    for override in overrides:
        apply_override(values, override)
    return Arm(name=name, seed=seed, task=game, values=values, measure=measure_of(game, n))


def measure_of(game: str, n: int, *, start: bool = False) -> dict[str, int]:
    """Held-out episodes; of a cold start always `n`."""
    return {"test": n if start else MEASURE.get(game, n)}


def read(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json holds of one arm: every figure by seed, its mean and a 95 % t interval over seeds."""
    found: dict[str, Any] = {"tasks": {}}
    for name in curves[0]["tasks"]:
        figures = {}
        for figure in ("accuracy", "return", "invalid", "looking", "swapped", "thought_follows"):
            values = [curve["tasks"][name].get(figure, {}).get("mean") for curve in curves]
            if all(value is not None for value in values):
                figures[figure] = over_seeds(values) | {"seeds": values}
        drawn = [curve["tasks"][name].get("sampled", {}).get("accuracy", {}).get("mean") for curve in curves]
        if all(value is not None for value in drawn):
            figures["sampled"] = over_seeds(drawn) | {"seeds": drawn}
        own = curves[0]["tasks"][name]
        of_one = [curve["tasks"][name]["accuracy"]["ci95"] for curve in curves]
        found["tasks"][name] = figures | {"n": own["n"], "ci95_of_each": of_one}
    found["train_cpu_seconds"] = [curve["run"]["train_cpu_seconds"] for curve in curves]
    found["training"] = [curve["training"] for curve in curves]
    return found


def main(argv: list[str]) -> None:
    """Run the study, or finish it. Raises UserError for an arm that does not exist."""
    parser = argparse.ArgumentParser(prog="fovea study rl4vlm/study", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="key=value for every arm")
    parser.add_argument("--out", type=Path, default=Path("runs/rl4vlm/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help=f"default: all of {', '.join(ARMS)}")
    parser.add_argument("--starts", nargs="*", default=[], help="further cold starts to measure")
    parser.add_argument("--n", type=int, default=96, help="held-out episodes")
    options = parser.parse_intermixed_args(argv)
    unknown = next((name for name in options.arms if name not in ARMS), None)
    if unknown is not None:
        raise UserError(f"The study has no arm {unknown!r}; known: {', '.join(ARMS)}.")
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    needed = dict.fromkeys([*(ARMS[name][0] for name in options.arms), *options.starts])
    starts = [start_of(name, options.n) for name in needed]
    run_arms(out, starts, options.jobs, MODULE)
    arms = {
        name: [arm_of(name, seed, out, options.overrides, options.n) for seed in options.seeds]
        for name in options.arms
    }
    # seed after seed, so that whatever is finished is finished of every arm
    every = [arm for i in range(len(options.seeds)) for mine in arms.values() for arm in mine[i : i + 1]]
    run_arms(out, every, options.jobs, MODULE)
    write_results(out, starts, arms, argv)


def write_results(
    out: Path, starts: Sequence[Arm], arms: Mapping[str, Sequence[Arm]], argv: list[str]
) -> None:
    """results.json and tables.md of what is finished."""
    done = {
        name: [arm for arm in mine if (out / arm.folder / "curve.json").is_file()]
        for name, mine in arms.items()
    }
    result: dict[str, Any] = {
        "study": "rl4vlm",
        "command": " ".join(["fovea study rl4vlm/study", *argv]),
        "hardware": hardware(),
        "starts": {arm.name: {"game": arm.task} | read([curve_of(out, arm)]) for arm in starts},
        "arms": {
            name: {"game": mine[0].task, "start": ARMS[name][0], "seeds": [arm.seed for arm in mine]}
            | read([curve_of(out, arm) for arm in mine])
            for name, mine in done.items()
            if mine
        },
    }
    write_json(out / "results.json", result)
    (out / "tables.md").write_text(tables(result))
    print(tables(result))
