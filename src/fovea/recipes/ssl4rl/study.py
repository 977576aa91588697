"""SSL4RL in miniature: which self-supervised task to train on, and what it does to tasks that were never trained.

    fovea study ssl4rl/study images=FOLDER --out runs/ssl4rl/study --seeds 0 1 2 --jobs 2

Every arm but the supervised one is RL from the same start with as many problems: fovea-tiny after a short, slow SFT on
training problems of the fixed mixture, for as it is it answers SSL4RL's five tasks in the words of others and is never
right. Arms: each of the five alone; a fixed mixture of ten; the mixture that `fovea diagnose` proposes for the start
(measured on validation pictures); SFT on the fixed mixture's own replies; ssl/overlay_find easy, right and hard; a
mismatched task, which is text without a picture. Then all are measured on the test split: on the tasks themselves, and
downstream on tasks that no arm was trained on, with looking (accuracy less that under another problem's pictures).
Further key=value change every arm; finished arms are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy.stats import t as student_t

from fovea.config import Run, apply_override, load_run
from fovea.config.recipes import explain
from fovea.diagnosis import diagnose, write_recipe
from fovea.recipes.ssl4rl._arms import MODULE
from fovea.recipes.ssl4rl._plots import gains_plot
from fovea.recipes.vlm_r1._arms import Arm, curve_of, hardware, run_arms
from fovea.runlog import newest_model, write_json
from fovea.tasks.opening import pool_of
from fovea.tasks.scenes import SPLITS
from fovea.tasks.ssl import SSL
from fovea.types import UserError

PARITY = ("ssl/rotation", "ssl/jigsaw", "ssl/contrastive", "ssl/position", "ssl/masked")
OTHERS = tuple(name for name, one in SSL.items() if one.needs == "pictures" and name not in PARITY)
MIXED = (*PARITY, "ssl/overlay_find", "ssl/overlay", "ssl/odd", "ssl/crop", "ssl/transform")
"""Of the fixed mixture, in equal shares."""
SWEPT = "ssl/overlay_find"
"""Whose difficulty is varied: the one that fovea-tiny does better than chance (`fovea diagnose`); it is at chance on
ssl/crop at every difficulty."""
SWEEP: dict[str, dict[str, Any]] = {
    "easy": {"difficulty": {"level": 0.0}, "task_options": {SWEPT: {"total": 1}}},
    "right": {"difficulty": {"level": 0.3}},
    "hard": {"difficulty": {"level": 0.9}},
}
"""easy: a single shape, so that which one is asked for need not be read."""
LEVELS = {SWEPT: 0.3}
"""Difficulty at which training begins and the tasks are measured; 0 of the others."""
INSIDE = (*PARITY, SWEPT)
"""Self-supervised tasks that every arm is measured on."""
MISMATCHED = "graphs/text_edge"
DOWNSTREAM = {
    "photos/find": 256, "photos/color": 256, "shapes/locate": 256, "digits/locate": 256, "shapes/left_of": 256,
    "panels/same": 256,
}  # fmt: skip
MEASURE = dict.fromkeys(INSIDE, 128) | DOWNSTREAM
START_SEED = 77
CONTROL = {"control": True, "window": 48}

BASE: dict[str, Any] = {
    "model": "fovea-tiny",
    "pictures": {"side": 64, "max_pixels": 65536},
    "prompts": 24,
    "group": 8,
    "steps": 70,
    "save_every": 0,
    "tokens_per_pass": 2048,
    "sampling": {"max_new_tokens": 32},
    "optimizer": {"learning_rate": 1e-4, "warmup_steps": 5},
    "algorithm": {"name": "grpo"},
}
# At three times the learning rate it forgets how to find things (ssl/overlay_find, greedy: 0.60 → 0.00).
START: dict[str, Any] = BASE | {
    "method": "sft",
    "mixture": dict.fromkeys(MIXED, 1.0) | {SWEPT: 3.0},
    "difficulty": {"level": 0.0, "levels": LEVELS},
    "rewards": {"format": 1.0},
    "prompts": 32,
    "steps": 60,
}


def _mixture(names: Sequence[str]) -> dict[str, Any]:
    levels = {name: LEVELS[name] for name in names if name in LEVELS}
    return {
        "mixture": dict.fromkeys(names, 1.0),
        "difficulty": CONTROL | {"level": 0.0, "levels": levels},
    }


def trained() -> dict[str, dict[str, Any]]:
    """Arm → keys in which it differs from the others; the diagnosed one's are not known before (`with_diagnosis`)."""
    arms: dict[str, dict[str, Any]] = {name.removeprefix("ssl/"): _mixture([name]) for name in PARITY}
    arms["mixture"] = _mixture(MIXED)
    arms["diagnosed"] = {}
    arms["sft"] = _mixture(MIXED) | {"method": "sft", "rewards": {"format": 1.0}}
    for name, values in SWEEP.items():
        arms[f"find_{name}"] = {"mixture": {SWEPT: 1.0}} | values
    arms["mismatched"] = {"task": MISMATCHED}
    return arms


def _arm(name: str, seed: int, values: Mapping[str, Any], overrides: Sequence[str], n: int | None) -> Arm:
    held: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in values.items()}
    for override in overrides:
        apply_override(held, override)
    label = ", ".join(held["mixture"]) if "mixture" in held else str(held["task"])
    measure = {task: n or most for task, most in MEASURE.items()}
    return Arm(name=name, seed=seed, task=label, values=held, measure=measure, levels=LEVELS)


def start_arms(overrides: Sequence[str], n: int | None) -> tuple[Arm, Arm]:
    """fovea-tiny as it is, only measured; and the start of all arms."""
    tiny = _arm(
        "tiny", START_SEED, START | {"steps": 0}, [o for o in overrides if not o.startswith("steps=")], n
    )
    return tiny, _arm("start", START_SEED, START, overrides, n)


def with_diagnosis(out: Path, model: str, overrides: Sequence[str], n: int) -> dict[str, Any]:
    """Mixture and difficulties that the start's diagnosis proposes; measured once, kept in diagnosed.yaml and .json."""
    recipe = out / "diagnosed.yaml"
    if not recipe.is_file():
        values: dict[str, Any] = {key: BASE[key] for key in ("pictures", "sampling")}
        values |= {"recipe": "diagnose", "model": model, "threads": 1}
        for override in overrides:
            if override.startswith(("images=", "pictures.", "validation_images=")):
                apply_override(values, override)
        run = Run.model_validate(values)
        names = (*PARITY, *OTHERS)
        found = diagnose(run, names, n=n, samples=4, difficulties=(0.0, 0.3, 0.6, 0.9), say=print)
        write_json(out / "diagnosed.json", found.record())
        write_recipe(recipe, run, found)
    run = load_run(str(recipe))
    return {"mixture": run.mixture, "difficulty": CONTROL | {"levels": dict(run.difficulty.levels)}}


def arms_of(
    names: Sequence[str],
    seeds: Sequence[int],
    model: str,
    diagnosed: Mapping[str, Any] | None,
    overrides: Sequence[str],
    n: int | None,
) -> dict[str, list[Arm]]:
    """Arm → one run a seed, all from `model`."""
    every = trained() | ({} if diagnosed is None else {"diagnosed": dict(diagnosed)})
    return {
        name: [_arm(name, seed, BASE | {"model": model} | every[name], overrides, n) for seed in seeds]
        for name in names
    }


# --- what came of it -----------------------------------------------------------------------------------------------


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "ci95"}: mean over seeds with its 95 % t interval; None for a single seed, which says nothing of it."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "ci95": None}
    half = float(student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def metrics_of_arm(curves: Sequence[Mapping[str, Any]], start: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json holds of one arm: gains over the start by task, their means, and every seed's figures.

    Accuracy and looking are those of the test split; a gain is paired: same problems, same start.
    """
    ends = [curve["checkpoints"][-1]["tasks"] for curve in curves]
    begins = start["checkpoints"][-1]["tasks"]
    gains: dict[str, Any] = {}
    for figure in ("accuracy", "looking"):
        by_task = {
            task: [end[task][figure]["mean"] - begins[task][figure]["mean"] for end in ends]
            for task in begins
            if begins[task][figure]["mean"] is not None
        }
        gains[figure] = {task: over_seeds(values) for task, values in by_task.items()}
        for group, names in (("downstream", DOWNSTREAM), ("self-supervised", INSIDE)):
            rows = [by_task[name] for name in names if name in by_task]
            gains[figure][group] = over_seeds(list(np.mean(rows, axis=0))) | {
                "seeds": [float(value) for value in np.mean(rows, axis=0)]
            }
    return {
        "gain": gains,
        "tasks": [dict(end) for end in ends],
        "train_cpu_seconds": [curve["run"]["train_cpu_seconds"] for curve in curves],
        "training": [curve["training"] for curve in curves],
    }


def summary(
    out: Path, arms: Mapping[str, Sequence[Arm]], starts: tuple[Arm, Arm], command: str
) -> dict[str, Any]:
    """What results.json holds: {"study", "command", "hardware", "arms": {name: {"seeds", "metrics"}}}."""
    tiny, start = (curve_of(out, one) for one in starts)
    found: dict[str, Any] = {
        "study": "ssl4rl",
        "command": command,
        "hardware": hardware(),
        "start": {"tiny": tiny["checkpoints"][-1]["tasks"], "start": start["checkpoints"][-1]["tasks"]},
        "arms": {},
    }
    if (out / "diagnosed.yaml").is_file():
        run = load_run(str(out / "diagnosed.yaml"))
        found["diagnosed"] = {"mixture": run.mixture, "levels": run.difficulty.levels}
    for name, mine in arms.items():
        curves = [curve_of(out, arm) for arm in mine]
        found["arms"][name] = {"seeds": [arm.seed for arm in mine], "metrics": metrics_of_arm(curves, start)}
    return found


def tables(result: Mapping[str, Any]) -> str:
    """Gains over the start: downstream in accuracy and looking, on the self-supervised tasks; then task by task."""
    lines = [
        "| arm | seeds | downstream accuracy | downstream looking | self-supervised tasks | CPU s a run |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in result["arms"].items():
        gain, seconds = arm["metrics"]["gain"], arm["metrics"]["train_cpu_seconds"]
        cells = [
            _cell(gain["accuracy"]["downstream"]),
            _cell(gain["looking"]["downstream"]),
            _cell(gain["accuracy"]["self-supervised"]),
        ]
        lines.append(f"| {name} | {len(arm['seeds'])} | {' | '.join(cells)} | {np.mean(seconds):.0f} |")
    tasks = list(MEASURE)
    lines += ["", f"| accuracy | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    chance = [f"{result['start']['start'][task]['chance']:.2f}" for task in tasks]
    lines.append(f"| chance | {' | '.join(chance)} |")
    for name in ("tiny", "start"):
        found = result["start"][name]
        cells = [f"{found[task]['accuracy']['mean']:.2f}" for task in tasks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, arm in result["arms"].items():
        means = [
            np.mean([end[task]["accuracy"]["mean"] for end in arm["metrics"]["tasks"]]) for task in tasks
        ]
        lines.append(f"| {name} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    return "\n".join(lines) + "\n"


def _cell(gain: Mapping[str, Any]) -> str:
    if gain["ci95"] is None:
        return f"{gain['mean']:+.3f}"
    return f"{gain['mean']:+.3f} [{gain['ci95'][0]:+.3f}, {gain['ci95'][1]:+.3f}]"


def main(argv: list[str]) -> None:
    """Run the study, or finish it. Raises UserError for an arm that does not exist."""
    parser = argparse.ArgumentParser(prog="fovea study ssl4rl/study", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="key=value for every arm, images=FOLDER above all")
    parser.add_argument("--out", type=Path, default=Path("runs/ssl4rl/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--arms", nargs="+", help=f"default: all of {', '.join(trained())}")
    parser.add_argument("--n", type=int, help="problems measured a task; default: 128 and 256")
    parser.add_argument("--diagnose-n", type=int, default=48, help="problems a task and difficulty")
    options = parser.parse_intermixed_args(argv)
    names = options.arms or list(trained())
    unknown = next((name for name in names if name not in trained()), None)
    if unknown is not None:
        raise UserError(f"The study has no arm {unknown!r}; known: {', '.join(trained())}.")
    out: Path = options.out
    starts = start_arms(options.overrides, options.n)
    try:
        run = Run.model_validate(starts[0].values)
    except ValidationError as error:
        raise UserError(explain(error, "ssl4rl/study")) from None
    for split in SPLITS:
        pool_of(run, split)  # unusable pictures are named here, not in an arm's log
    out.mkdir(parents=True, exist_ok=True)
    run_arms(out, starts, options.jobs, MODULE)
    model = str(newest_model(out / starts[1].folder / "run"))
    diagnosed = None
    if "diagnosed" in names:
        diagnosed = with_diagnosis(out, model, options.overrides, options.diagnose_n)
    arms = arms_of(names, options.seeds, model, diagnosed, options.overrides, options.n)
    every = [
        arm for seed in range(len(options.seeds)) for mine in arms.values() for arm in mine[seed : seed + 1]
    ]
    run_arms(out, every, options.jobs, MODULE)
    command = " ".join(["fovea study ssl4rl/study", *argv])
    result = summary(out, arms, starts, command)
    write_json(out / "results.json", result)
    (out / "tables.md").write_text(tables(result))
    gains_plot(result, out / "ssl4rl.png")
    print(tables(result))
