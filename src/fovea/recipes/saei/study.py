"""SaEI (reconstructed) in miniature against what it must be compared with, all with as many completions.

    fovea study saei/study --out runs/saei/study --seeds 0 1 2 --jobs 2

Every arm trains fovea-tiny on digits/locate with 8 completions a problem: GRPO samples all of them under the picture as
it is, the others 4 and then 4 under a changed one. Then all are measured on the same held-out problems, in the domain
and out of it: accuracy, whether the model looks, and pass@k in the domain. The policy's entropy along training is that
under the clean picture. Further key=value change every arm; finished arms are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fovea.config import apply_override
from fovea.recipes.saei._arms import MODULE
from fovea.recipes.saei._plots import entropy_plot
from fovea.recipes.ssl4rl.study import over_seeds
from fovea.recipes.vlm_r1._arms import Arm, curve_of, hardware, run_arms
from fovea.runlog import write_json
from fovea.types import UserError

TASK = "digits/locate"
OUTSIDE = ("printed/locate", "shapes/locate", "photos/find")
EGAS: dict[str, Any] = {"name": "egas", "epsilon": 4, "measure_every": 10}
ARMS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "random_sign": {"name": "random_sign", "epsilon": 4},
    "noisy_rollout": {"name": "noisy_rollout", "schedule": "sigmoid"},
    "egas_all": EGAS | {"select": "all"},
    "egas_band": EGAS,
    "egas_top": EGAS | {"select": "top_fraction"},
    "egas_bottom": EGAS | {"select": "bottom_fraction"},
    "egas_band_adversarial": EGAS | {"ratio": "adversarial"},
    "egas_band_corrected": EGAS | {"ratio": "corrected"},
    "egas_band_1": EGAS | {"epsilon": 1},
    "egas_band_2": EGAS | {"epsilon": 2},
    "egas_band_8": EGAS | {"epsilon": 8},
}
"""Arm → its `intervention` section."""
BASE: dict[str, Any] = {
    "model": "fovea-tiny",
    "prompts": 16,
    "group": 8,
    "steps": 60,
    "save_every": 0,
    "tokens_per_pass": 4096,
    "rewards": {"iou_50": 1.0, "format": 0.1},
    "sampling": {"max_new_tokens": 32},
    "optimizer": {"learning_rate": 5e-5, "warmup_steps": 5},
    "algorithm": {"name": "grpo"},
}


def arm_of(name: str, seed: int, overrides: Sequence[str], n: int) -> Arm:
    """One run. `n`: as in `measured`."""
    values: dict[str, Any] = BASE | {"intervention": dict(ARMS[name])}
    for override in overrides:
        apply_override(values, override)
    return Arm(name=name, seed=seed, task=TASK, values=values, measure=measured(n))


def start_arm(n: int) -> Arm:
    """fovea-tiny as it is, only measured."""
    return Arm(name="start", seed=0, task=TASK, values=BASE | {"steps": 0}, measure=measured(n))


def measured(n: int) -> dict[str, int]:
    """Task → held-out problems: `n` in the domain, half as many of each task outside."""
    return {TASK: n} | dict.fromkeys(OUTSIDE, max(1, n // 2))


# --- what came of it -------------------------------------------------------------------------------------------------


def metrics_of_arm(
    curves: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What results.json holds of one arm: means over seeds with 95 % t intervals, and differences from the reference
    arm paired by seed (same problems, same order, same held-out set)."""
    found: dict[str, Any] = {}
    for figure, read in READ.items():
        values = [read(curve) for curve in curves]
        theirs = [read(curve) for curve in reference]
        found[figure] = over_seeds(values) | {"seeds": values}
        if len(theirs) == len(values):
            found[figure]["against_grpo"] = over_seeds([a - b for a, b in zip(values, theirs)])
    found["train_cpu_seconds"] = [curve["run"]["train_cpu_seconds"] for curve in curves]
    found["training"] = [curve["training"] for curve in curves]
    return found


def _accuracy(curve: Mapping[str, Any], tasks: Sequence[str], figure: str = "accuracy") -> float:
    return float(np.mean([curve["tasks"][task][figure]["mean"] for task in tasks]))


def _pass_at(curve: Mapping[str, Any], k: str) -> float:
    return float(curve["tasks"][TASK]["pass_at_k"][k]["mean"])


def _last_entropy(curve: Mapping[str, Any], last: int = 10) -> float:
    steps = curve["training"]
    clean = steps.get("explore/policy_entropy", steps["entropy"])
    return float(np.mean([value for value in clean[-last:] if value is not None]))


READ = {
    "in_domain": lambda curve: _accuracy(curve, [TASK]),
    "out_of_domain": lambda curve: _accuracy(curve, OUTSIDE),
    "looking": lambda curve: _accuracy(curve, [TASK], "looking"),
    "pass_at_1": lambda curve: _pass_at(curve, "1"),
    "pass_at_8": lambda curve: _pass_at(curve, "8"),
    "last_entropy": _last_entropy,
}
"""Figure → how it is read from an arm's curve."""


def tables(result: Mapping[str, Any]) -> str:
    """Markdown: every figure with its interval, then the differences from GRPO."""
    figures = list(READ)
    lines = [f"| arm | seeds | {' | '.join(figures)} | CPU s a run |", "|---" * (len(figures) + 3) + "|"]
    for name, arm in result["arms"].items():
        metrics = arm["metrics"]
        cells = [_cell(metrics[figure]) for figure in figures]
        seeds, seconds = len(metrics[figures[0]]["seeds"]), np.mean(metrics["train_cpu_seconds"])
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} | {seconds:.0f} |")
    lines += ["", f"| arm - grpo, paired | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    for name, arm in result["arms"].items():
        if name != "grpo" and "against_grpo" in arm["metrics"][figures[0]]:
            cells = [_cell(arm["metrics"][figure]["against_grpo"], "+") for figure in figures]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Mapping[str, Any], sign: str = "") -> str:
    if value["ci95"] is None:
        return f"{value['mean']:{sign}.3f}"
    return f"{value['mean']:{sign}.3f} [{value['ci95'][0]:{sign}.3f}, {value['ci95'][1]:{sign}.3f}]"


def main(argv: list[str]) -> None:
    """Run the study, or finish it. Raises UserError for an arm that does not exist."""
    parser = argparse.ArgumentParser(prog="fovea study saei/study", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="key=value for every arm")
    parser.add_argument("--out", type=Path, default=Path("runs/saei/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help=f"default: all of {', '.join(ARMS)}")
    parser.add_argument("--n", type=int, default=384, help="held-out problems; half as many of tasks outside")
    options = parser.parse_intermixed_args(argv)
    unknown = next((name for name in options.arms if name not in ARMS), None)
    if unknown is not None:
        raise UserError(f"The study has no arm {unknown!r}; known: {', '.join(ARMS)}.")
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    start = start_arm(options.n)
    arms = {
        name: [arm_of(name, seed, options.overrides, options.n) for seed in options.seeds]
        for name in options.arms
    }
    # seed after seed, so that whatever is finished is finished of every arm
    every = [arm for i in range(len(options.seeds)) for mine in arms.values() for arm in mine[i : i + 1]]
    run_arms(out, [start, *every], options.jobs, MODULE)
    curves = {name: [curve_of(out, arm) for arm in mine] for name, mine in arms.items()}
    result: dict[str, Any] = {
        "study": "saei",
        "command": " ".join(["fovea study saei/study", *argv]),
        "hardware": hardware(),
        "start": curve_of(out, start)["tasks"],
        "arms": {},
    }
    for name, mine in curves.items():
        metrics = metrics_of_arm(mine, curves.get("grpo", []))
        result["arms"][name] = {"seeds": list(options.seeds), "metrics": metrics}
    write_json(out / "results.json", result)
    (out / "tables.md").write_text(tables(result))
    entropy_plot(result, out / "saei.png")
    print(tables(result))
