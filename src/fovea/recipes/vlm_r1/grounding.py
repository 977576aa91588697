"""RL against SFT on referring expressions, in and out of domain; data quality; three model sizes. In miniature.

    fovea study vlm_r1/grounding --out runs/vlm_r1/grounding

All arms begin with fovea-tiny and are trained on digits/locate ("Where is the digit 7?"). The learning rate of RL and
of SFT is chosen among three each, on the validation split, before anything is measured on the test split. SFT gets the
CPU seconds of the RL run of its seed, and is also measured where it has seen as many problems. Out of domain, never
trained: printed digits, photographs behind, larger pictures, clutter, negated expressions, relations.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from fovea.checkpoints import newest
from fovea.recipes.vlm_r1._arms import Arm, curve_of, hardware, run_arms
from fovea.recipes.vlm_r1._plots import grounding_plot
from fovea.recipes.vlm_r1._sizes import SIZES, write_size
from fovea.runlog import write_json

IN_DOMAIN = "digits/locate"
OUT_OF_DOMAIN = (
    "printed/locate", "digits/photo", "digits/scale", "digits/clutter", "digits/negated", "digits/relation",
)  # fmt: skip
MEASURE = {IN_DOMAIN: 384} | dict.fromkeys(OUT_OF_DOMAIN, 256)
RATES: dict[str, tuple[float, ...]] = {"rl": (2e-5, 5e-5, 1e-4), "sft": (2e-5, 1e-4, 3e-4)}
TUNING_SEED = 100
STEPS, SAVED, SIZE_STEPS = 120, 60, 40

RL: dict[str, Any] = {
    "model": "fovea-tiny",
    "rewards": {"iou_50": 1.0, "format": 0.1},
    "prompts": 32,
    "group": 8,
    "steps": STEPS,
    "save_every": SAVED,
    "tokens_per_pass": 2048,
    "sampling": {"max_new_tokens": 32},
    "optimizer": {"learning_rate": 5e-5, "warmup_steps": 5},
    "algorithm": {"name": "grpo"},
}
SFT: dict[str, Any] = RL | {"method": "sft"}


def _with(values: dict[str, Any], rate: float, **more: Any) -> dict[str, Any]:
    return values | {"optimizer": {"learning_rate": rate, "warmup_steps": 5}} | more


def trials() -> list[Arm]:
    """Half-length runs, three for each of RL and SFT, measured on the validation split only."""
    return [
        Arm(
            name=f"trial-{method}-{rate:g}", seed=TUNING_SEED, task=IN_DOMAIN, split="validation",
            values=_with(values, rate, steps=STEPS // 2, save_every=STEPS // 2), measure={IN_DOMAIN: 384},
        )
        for method, values in (("rl", RL), ("sft", SFT))
        for rate in RATES[method]
    ]  # fmt: skip


def chosen(out: Path) -> dict[str, float]:
    """The learning rate with the best validation accuracy, of each method; the smaller one of equals."""
    found: dict[str, tuple[float, float]] = {}
    for arm in trials():
        method, rate = arm.name.split("-", 2)[1], float(arm.values["optimizer"]["learning_rate"])
        accuracy = curve_of(out, arm)["checkpoints"][-1]["tasks"][IN_DOMAIN]["accuracy"]["mean"]
        found[method] = max(found.get(method, (-1.0, 0.0)), (accuracy, -rate))
    return {method: -rate for method, (_, rate) in found.items()}


def rl_arm(rate: float, seed: int) -> Arm:
    """RL from fovea-tiny."""
    return Arm(
        name="rl", seed=seed, task=IN_DOMAIN, values=_with(RL, rate), measure=MEASURE, look=tuple(MEASURE)
    )


def sft_arm(rate: float, seed: int, cpu_seconds: float) -> Arm:
    """SFT on the same problems for as many CPU seconds; its checkpoint after `STEPS` steps has seen as many of them."""
    values = _with(SFT, rate, steps=100 * STEPS, cpu_seconds=cpu_seconds)
    return Arm(name="sft", seed=seed, task=IN_DOMAIN, values=values, measure=MEASURE, look=tuple(MEASURE))


def data_arms(rate: float, seeds: Sequence[int]) -> list[Arm]:
    """Half as many steps on flawed problems; the clean arm is the RL run's own checkpoint at that step."""
    return [
        Arm(
            name=name.replace("/", "-"), seed=seed, task=name, measure={IN_DOMAIN: 384, "printed/locate": 256},
            values=_with(RL, rate, steps=STEPS // 2),
        )
        for seed in seeds
        for name in ("digits/noisy", "digits/alone")
    ]  # fmt: skip


def size_starts(out: Path) -> list[Arm]:
    """SFT that heals each size alike: six problems in ten digits/locate, the others descriptions."""
    arms = []
    for width in SIZES:
        base = out / "sizes" / str(width)
        if not (base / "model.safetensors").is_file():
            write_size(base, width)
        values = _with(SFT, 3e-4, model=str(base), steps=90, save_every=90, rewards={"format": 1.0})
        arms.append(
            Arm(name=f"start-{width}", seed=77, task="digits/start", values=values, measure={IN_DOMAIN: 384})
        )
    return arms


def size_arms(out: Path, rate: float, seeds: Sequence[int]) -> list[Arm]:
    """The RL recipe for `SIZE_STEPS` steps, from each healed size."""
    starts = {start.name.rpartition("-")[2]: newest(out / start.folder / "run") for start in size_starts(out)}
    return [
        Arm(
            name=f"size-{width}", seed=seed, task=IN_DOMAIN, measure={IN_DOMAIN: 384, "printed/locate": 256},
            values=_with(RL, rate, steps=SIZE_STEPS, save_every=SIZE_STEPS, model=f"{start}/model"),
        )
        for seed in seeds
        for width, start in starts.items()
    ]  # fmt: skip


# --- what came of it --------------------------------------------------------------------------------------------------


def _seeds(out: Path, arms: Sequence[Arm]) -> dict[str, Any]:
    """{"seeds", "metrics": {"curve": a list a seed of {"step", "prompts", "cpu_seconds", "tasks"}}} of one arm."""
    curves = []
    for arm in arms:
        points = curve_of(out, arm)["checkpoints"]
        curves.append(
            [point | {"tasks": {k: _kept(v) for k, v in point["tasks"].items()}} for point in points]
        )
    rate = arms[0].values["optimizer"]["learning_rate"]
    return {"seeds": [arm.seed for arm in arms], "metrics": {"learning_rate": rate, "curve": curves}}


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    kept = {"accuracy": record["accuracy"], "n": record["n"]}
    return kept | ({"looking": record["looking"]} if "looking" in record else {})


def summary(out: Path, seeds: Sequence[int], rates: dict[str, float], command: str) -> dict[str, Any]:
    """What results.json holds of this study."""
    rl = [rl_arm(rates["rl"], seed) for seed in seeds]
    sft = [sft_arm(rates["sft"], seed, 1.0) for seed in seeds]
    arms = {"rl": rl, "sft": sft}
    for arm in [*data_arms(rates["rl"], seeds), *size_arms(out, rates["rl"], seeds)]:
        arms.setdefault(arm.name, []).append(arm)
    tried = {
        arm.name.removeprefix("trial-"): curve_of(out, arm)["checkpoints"][-1]["tasks"][IN_DOMAIN]["accuracy"]
        for arm in trials()
    }
    about = {"command": command, "hardware": hardware(), "validation_trials": tried, "chosen": rates}
    return {"study": "grounding", **about, "arms": {name: _seeds(out, mine) for name, mine in arms.items()}}


def at(arm: dict[str, Any], seed: int, step: int, task: str) -> float:
    """Accuracy of one seed of an arm after `step` steps; -1: the last checkpoint."""
    curve = arm["metrics"]["curve"][seed]
    point = curve[-1] if step < 0 else next(point for point in curve if point["step"] == step)
    return float(point["tasks"][task]["accuracy"]["mean"])


def tables(result: dict[str, Any]) -> str:
    """RL beside SFT on every task; flawed problems; sizes. Differences are paired by seed, 95 % t intervals."""
    arms, n = result["arms"], range(len(result["arms"]["rl"]["seeds"]))
    lines = [
        "| task | start | RL | SFT, equal prompts | SFT, equal CPU seconds | RL - SFT, prompts | RL - SFT, CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in MEASURE:
        start = at(arms["rl"], 0, 0, task)
        rl = [at(arms["rl"], i, STEPS, task) for i in n]
        prompts, cpu = ([at(arms["sft"], i, step, task) for i in n] for step in (STEPS, -1))
        cells = [f"{np.mean(values):.3f}" for values in (rl, prompts, cpu)]
        gaps = [_gap(rl, other) for other in (prompts, cpu)]
        lines.append(f"| {task} | {start:.3f} | {' | '.join([*cells, *gaps])} |")
    lines += [
        "",
        "| arm (60 steps; sizes 40) | start | end | printed/locate, start | end |",
        "|---|---|---|---|---|",
    ]
    for name in ("rl", "digits-noisy", "digits-alone", *(f"size-{width}" for width in SIZES)):
        label = {"rl": "clean", "digits-noisy": "30 % wrong truths", "digits-alone": "too easy: one digit"}
        cells = []
        for task in (IN_DOMAIN, "printed/locate"):
            cells.append(f"{at(arms[name], 0, 0, task):.3f}")
            ends = [at(arms[name], i, STEPS // 2 if not name.startswith("size") else -1, task) for i in n]
            cells.append(f"{np.mean(ends):.3f} ({', '.join(f'{end:.3f}' for end in ends)})")
        lines.append(f"| {label.get(name, name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gap(a: Sequence[float], b: Sequence[float]) -> str:
    """Mean difference over seeds, paired, with its 95 % t interval."""
    gaps = np.subtract(a, b)
    half = float(student_t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    return f"{gaps.mean():+.3f} [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}]"


def main(argv: list[str]) -> None:
    """Run the study, or finish it."""
    parser = argparse.ArgumentParser(prog="fovea study vlm_r1/grounding", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/vlm_r1/grounding"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    out, seeds, jobs = options.out, options.seeds, options.jobs
    run_arms(out, trials(), jobs)
    rates = chosen(out)
    print(f"learning rates: {rates}", flush=True)
    rl = [rl_arm(rates["rl"], seed) for seed in seeds]
    run_arms(out, rl, jobs)
    used = {arm.seed: curve_of(out, arm)["run"]["train_cpu_seconds"] for arm in rl}
    run_arms(out, [sft_arm(rates["sft"], seed, used[seed]) for seed in seeds], jobs)
    run_arms(out, data_arms(rates["rl"], seeds), jobs)
    run_arms(out, size_starts(out), jobs)
    run_arms(out, size_arms(out, rates["rl"], seeds), jobs)
    command = "fovea study vlm_r1/grounding " + " ".join(argv)
    result = summary(out, seeds, rates, command.strip())
    write_json(out / "results.json", result)
    (out / "tables.md").write_text(tables(result))
    grounding_plot(result, out / "grounding.png")
    print(tables(result))
