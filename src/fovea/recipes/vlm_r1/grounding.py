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

from fovea.checkpoints import newest
from fovea.recipes.vlm_r1._arms import Arm, curve_of, run_arms
from fovea.recipes.vlm_r1._sizes import SIZES, write_size

IN_DOMAIN = "digits/locate"
OUT_OF_DOMAIN = (
    "printed/locate", "digits/photo", "digits/scale", "digits/clutter", "digits/negated", "digits/relation",
)  # fmt: skip
MEASURE = {IN_DOMAIN: 384} | dict.fromkeys(OUT_OF_DOMAIN, 256)
RATES: dict[str, tuple[float, ...]] = {"rl": (2e-5, 5e-5, 1e-4), "sft": (2e-5, 1e-4, 3e-4)}
TUNING_SEED = 100
STEPS, SAVED = 120, 30

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
    """SFT that heals each size alike: half of it digits/locate, half descriptions."""
    arms = []
    for layers in SIZES:
        base = out / "sizes" / str(layers)
        if not (base / "model.safetensors").is_file():
            write_size(base, layers)
        values = _with(SFT, 3e-4, model=str(base), steps=120, save_every=120)
        arms.append(
            Arm(name=f"start-{layers}", seed=77, task="digits/start", values=values, measure={IN_DOMAIN: 384})
        )
    return arms


def size_arms(out: Path, rate: float, seeds: Sequence[int]) -> list[Arm]:
    """The RL recipe at half length, from each healed size."""
    starts = {start.name.rpartition("-")[2]: newest(out / start.folder / "run") for start in size_starts(out)}
    return [
        Arm(
            name=f"size-{layers}", seed=seed, task=IN_DOMAIN, measure={IN_DOMAIN: 384, "printed/locate": 256},
            values=_with(RL, rate, steps=STEPS // 2, model=f"{start}/model"),
        )
        for seed in seeds
        for layers, start in starts.items()
    ]  # fmt: skip


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
