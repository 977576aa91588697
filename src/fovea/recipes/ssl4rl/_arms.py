"""One arm of the study, in a process of its own: trained (or gone on with), then measured, on other tasks, too.

    python -m fovea.recipes.ssl4rl._arms FOLDER      one arm, described by FOLDER/arm.json

Not here: which arms there are (`study`), running them side by side (`vlm_r1._arms.run_arms`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fovea.recipes.vlm_r1._arms import HELD_OUT_SEED, hardware
from fovea.runlog import newest_model, write_json

MODULE = "fovea.recipes.ssl4rl._arms"


def do_arm(place: Path) -> None:
    """Train unless `steps` is 0, measure the model that came of it, and write curve.json."""
    from fovea.config import Run
    from fovea.training import train

    arm = json.loads((place / "arm.json").read_text())
    run = Run.model_validate(
        dict(arm["values"])
        | {"recipe": f"study:{arm['name']}", "seed": arm["seed"], "threads": 1, "run_dir": str(place / "run")}
        | {"evaluation": {"n": 4, "during": 4, "split": "validation"}}
    )
    result: dict[str, Any] = {"steps": 0, "train_cpu_seconds": 0.0}
    model = run.model
    if run.steps:
        done = place / "run" / "result.json"
        if not done.is_file():
            train(_to_train(run), (), resume=(place / "run" / "run.json").is_file())
        result = json.loads(done.read_text())
        model = str(newest_model(place / "run"))
    tasks = _measured(run, arm, model)
    checkpoint = {"step": result["steps"], "tasks": tasks, "cpu_seconds": result["train_cpu_seconds"]}
    training = _training(place / "run" / "metrics.jsonl")
    write_json(
        place / "curve.json",
        {"checkpoints": [checkpoint], "run": result, "training": training, "hardware": hardware()},
    )


def _to_train(run: Any) -> Any:
    """Without the pictures if the task has no use for them, which a run refuses; they are measured on all the same."""
    made_of_pictures = bool(run.mixture)
    return run if made_of_pictures else run.model_copy(update={"images": None, "validation_images": None})


def _measured(run: Any, arm: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Task → n, chance, accuracy and looking on the test split: pictures and problems that nothing was trained on."""
    from fovea.engines.shared_prefill import SharedPrefillEngine
    from fovea.evaluation import evaluate
    from fovea.models import load_policy
    from fovea.tasks import open_task
    from fovea.tasks.opening import pool_of
    from fovea.tasks.ssl import SSL, open_ssl

    policy = load_policy(model)
    engine = SharedPrefillEngine(policy)
    pool = pool_of(run, "test")
    found = {}
    for name, n in arm["measure"].items():
        task: Any
        if name in SSL:
            task = open_ssl(name, "test", HELD_OUT_SEED, pool=pool, level=arm["levels"].get(name, 0.0))
        else:
            task = open_task(name, "test", HELD_OUT_SEED)
        record = evaluate(
            policy, engine, task, n, seed=0, max_new_tokens=run.sampling.max_new_tokens, rewards=()
        )
        found[name] = {key: record[key] for key in ("n", "chance", "accuracy", "looking")}
    return found


def _training(path: Path) -> dict[str, list[Any]]:
    """What was noted of every step: reward, success by task, difficulty by task; null where a task had no problem."""
    if not path.is_file():
        return {}
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    kept = {
        key: None
        for step in steps
        for key in step
        if key == "reward_mean" or key.startswith(("success/", "difficulty/"))
    }
    return {key: [step.get(key) for step in steps] for key in kept}


if __name__ == "__main__":
    do_arm(Path(sys.argv[1]))
