"""One arm of the study, in a process of its own: trained (or gone on with), then measured in and out of its domain.

    python -m fovea.recipes.saei._arms FOLDER      one arm, described by FOLDER/arm.json

Not here: which arms there are (`study`), running them side by side (`vlm_r1._arms.run_arms`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fovea.recipes.vlm_r1._arms import HELD_OUT_SEED, hardware
from fovea.runlog import newest_model, write_json

MODULE = "fovea.recipes.saei._arms"
SAMPLES = 8
"""Sampled replies a problem, for pass@k."""
KEPT = ("entropy", "reward_mean", "accuracy", "grad_norm")


def do_arm(place: Path) -> None:
    """Train unless `steps` is 0, measure the model that came of it, and write curve.json."""
    from fovea.config import Run
    from fovea.training import train

    arm = json.loads((place / "arm.json").read_text())
    run = Run.model_validate(
        dict(arm["values"])
        | {"recipe": f"study:{arm['name']}", "task": arm["task"], "seed": arm["seed"], "threads": 1}
        | {"run_dir": str(place / "run"), "evaluation": {"n": 4, "during": 4, "split": "validation"}}
    )
    result: dict[str, Any] = {"steps": 0, "train_cpu_seconds": 0.0}
    model = run.model
    if run.steps:
        done = place / "run" / "result.json"
        if not done.is_file():
            train(run, (), resume=(place / "run" / "run.json").is_file())
        result = json.loads(done.read_text())
        model = str(newest_model(place / "run"))
    write_json(
        place / "curve.json",
        {
            "tasks": _measured(run, arm, model),
            "run": result,
            "training": _training(place / "run" / "metrics.jsonl"),
            "hardware": hardware(),
        },
    )


def _measured(run: Any, arm: dict[str, Any], model: str) -> dict[str, Any]:
    """Task → n, chance, accuracy, looking and pass@k on held-out problems, the same for every arm and seed."""
    from fovea.engines.shared_prefill import SharedPrefillEngine
    from fovea.evaluation import evaluate
    from fovea.models import load_policy
    from fovea.tasks import open_task

    policy = load_policy(model)
    engine = SharedPrefillEngine(policy)
    found = {}
    for name, n in arm["measure"].items():
        task = open_task(name, "test", HELD_OUT_SEED)
        record = evaluate(
            policy,
            engine,
            task,
            n,
            seed=0,
            max_new_tokens=run.sampling.max_new_tokens,
            samples=SAMPLES if name == arm["task"] else 0,
            rewards=(),
        )
        kept = ("n", "chance", "accuracy", "looking", "pass_at_k")
        found[name] = {key: record[key] for key in kept if key in record}
    return found


def _training(path: Path) -> dict[str, list[Any]]:
    """By step: what was noted of policy and second phase. Entropy under the clean picture, whatever was sampled."""
    if not path.is_file():
        return {}
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    names = dict.fromkeys(key for step in steps for key in step if key in KEPT or key.startswith("explore/"))
    return {name: [step.get(name) for step in steps] for name in names}


if __name__ == "__main__":
    do_arm(Path(sys.argv[1]))
