"""One arm of the study, in a process of its own: trained (or gone on with), then measured on held-out episodes.

    python -m fovea.recipes.rl4vlm._arms FOLDER      one arm, described by FOLDER/arm.json

Not here: which arms there are (`study`), running them side by side (`vlm_r1._arms.run_arms`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fovea.recipes.vlm_r1._arms import hardware
from fovea.runlog import newest_model, write_json

MODULE = "fovea.recipes.rl4vlm._arms"
KEPT = ("success", "return", "invalid", "entropy", "thought_entropy", "thought_distinct", "value_loss")
"""Figures of training that are kept by step."""


def do_arm(place: Path) -> None:
    """Train unless `steps` is 0, measure the model that came of it, and write curve.json."""
    from fovea.config import Run
    from fovea.training import train

    arm = json.loads((place / "arm.json").read_text())
    run = Run.model_validate(
        dict(arm["values"])
        | {"recipe": f"study:{arm['name']}", "seed": arm["seed"], "threads": 1, "run_dir": str(place / "run")}
        | {"evaluation": {"n": 2, "during": 2, "split": "validation"}}
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
            "tasks": {name: measured(run, model, n) for name, n in arm["measure"].items()},
            "run": result,
            "training": _training(place / "run" / "metrics.jsonl"),
            "hardware": hardware(),
        },
    )


def measured(run: Any, model: str, n: int) -> dict[str, Any]:
    """Success, return and looking on the first `n` held-out episodes, the same for every arm and seed; greedy, and once
    at the run's temperature."""
    from fovea.engines.shared_prefill import SharedPrefillEngine
    from fovea.models import load_policy
    from fovea.training.environment import measure_episodes
    from fovea.training.problems import EVALUATION_SEED, instruction_of, open_tasks

    policy = load_policy(model, reply_tokens=run.sampling.max_new_tokens)
    engine = SharedPrefillEngine(policy)
    instruction = instruction_of(run, open_tasks(run)[2])
    record = measure_episodes(
        run.model_copy(update={"seed": 0}),
        policy,
        engine,
        instruction,
        n,
        split="test",
        seed=EVALUATION_SEED,
        samples=int(n <= 1000),
        look=n <= 1000,
    )
    return {key: value for key, value in record.items() if key not in ("shown", "rewards")}


def _training(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        return {}
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: [step.get(name) for step in steps] for name in KEPT if any(name in step for step in steps)}


if __name__ == "__main__":
    do_arm(Path(sys.argv[1]))
