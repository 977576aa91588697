"""A study is a list of arms: run side by side in processes of one thread, each resumable, each measured along the way.

`run_arms(folder, arms, jobs=2)` does what is not done yet. An arm leaves its run folder and `curve.json`: what was
measured of its checkpoints. An interrupted study goes on where it was.

    python -m fovea.recipes.vlm_r1._arms FOLDER      one arm, described by FOLDER/arm.json
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fovea.runlog import write_json

Opener = Callable[[str, Any, int], Any]
"""(name, split, seed) → a task."""

HELD_OUT_SEED = 1_000_003
"""Every arm of every seed is measured on the same problems."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One run of a study. Example: Arm(name="rl", seed=0, task="digits/locate", values={"steps": 60}, measure={…})"""

    name: str
    seed: int
    task: str
    """A name for `open_study_task`."""
    values: Mapping[str, Any]
    """Keys of the recipe; `steps: 0` only measures the model it starts from."""
    measure: Mapping[str, int]
    """Task → number of held-out problems, for every checkpoint."""
    rewards: tuple[str, ...] = ()
    """Rewards of the greedy replies that are recorded beside accuracy."""
    split: str = "test"
    """Which split is measured."""
    look: tuple[str, ...] = ()
    """Tasks on which it is also measured, at the start and the end, whether the model looks."""
    keep: int = 0
    """Replies per task that are kept in the curve."""
    start: bool = True
    """Whether the model that it starts from is measured, too; another arm may have measured it already."""
    levels: Mapping[str, float] = field(default_factory=dict)
    """Self-supervised task → difficulty at which it is measured."""

    @property
    def folder(self) -> str:
        return f"{self.name}-seed{self.seed}"


def run_arms(
    folder: Path, arms: Sequence[Arm], jobs: int = 2, module: str = "fovea.recipes.vlm_r1._arms"
) -> None:
    """Do the arms that are not finished, `jobs` at a time. Raises RuntimeError naming the log of one that failed.

    `module`: what does one arm as a script: `do_arm` with the study's own tasks.
    """
    waiting = [arm for arm in arms if not (folder / arm.folder / "curve.json").is_file()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            arm = waiting.pop(0)
            place = folder / arm.folder
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / "arm.json", asdict(arm))
            print(f"{time.strftime('%H:%M:%S')} {arm.folder}: {arm.task}", flush=True)
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
            with (place / "arm.log").open("ab") as log:
                running[arm.folder] = subprocess.Popen(
                    [sys.executable, "-m", module, str(place)],
                    env=environment, stdout=log, stderr=log,
                )  # fmt: skip
        time.sleep(0.5)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                if process.returncode:
                    for other in running.values():
                        other.terminate()
                    raise RuntimeError(f"The arm {name} failed; read {folder / name / 'arm.log'}.")


def curve_of(folder: Path, arm: Arm) -> dict[str, Any]:
    """What was measured of a finished arm: {"checkpoints": [{"step", "prompts", "cpu_seconds", "tasks"}], "run": …}."""
    found: dict[str, Any] = json.loads((folder / arm.folder / "curve.json").read_text())
    return found


def metrics_of(folder: Path, arm: Arm) -> list[dict[str, Any]]:
    """The arm's metrics.jsonl."""
    lines = (folder / arm.folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def hardware() -> str:
    """One line on what the study ran on."""
    import torch

    return f"{platform.machine()}, {os.cpu_count()} CPU cores, one thread a run, torch {torch.__version__}, float32"


# --- one arm, in its own process -------------------------------------------------------------------------------------


def do_arm(place: Path, opened: Opener | None = None) -> None:
    """Train (or go on), then measure every checkpoint. `opened`: opens a task by (name, split, seed); default:
    `open_study_task`."""
    from fovea.config import Run
    from fovea.recipes.vlm_r1._tasks import open_study_task
    from fovea.training import train

    opened = opened or open_study_task
    arm = json.loads((place / "arm.json").read_text())
    run = Run.model_validate(
        dict(arm["values"])
        | {"recipe": f"study:{arm['name']}", "task": arm["task"], "seed": arm["seed"], "threads": 1}
        | {"run_dir": str(place / "run"), "keep_checkpoints": 99}
        | {"evaluation": {"n": 32, "during": 32, "split": "validation"}}
    )
    result: dict[str, Any] = {"steps": 0, "train_cpu_seconds": 0.0}
    if run.steps:
        done = place / "run" / "result.json"
        if not done.is_file():
            began = (place / "run" / "run.json").is_file()
            train(run, (), tasks=_tasks(run, opened), resume=began)
        result = json.loads(done.read_text())
    curve = [_measured(run, arm, opened, run.model, 0)] if arm.get("start", True) else []
    for checkpoint in sorted((place / "run" / "checkpoints").glob("step_*"), key=_step):
        curve.append(
            _measured(run, arm, opened, str(checkpoint / "model"), _step(checkpoint), result["steps"])
        )
    for point in curve:
        point["prompts"] = point["step"] * run.prompts
        point["cpu_seconds"] = round(_cpu_seconds(place / "run", point["step"]), 1)
    write_json(place / "curve.json", {"checkpoints": curve, "run": result, "hardware": hardware()})


def _tasks(run: Any, opened: Opener) -> Any:
    held = opened(run.task, "validation", HELD_OUT_SEED)
    return opened(run.task, "train", run.seed), held, held


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _cpu_seconds(run: Path, step: int) -> float:
    """CPU seconds of training up to a checkpoint, from the checkpoint's own clock."""
    if not step:
        return 0.0
    from fovea.checkpoints import read

    return float(read(run / "checkpoints" / f"step_{step}").state["cpu_seconds"])


def _measured(
    run: Any, arm: Mapping[str, Any], opened: Opener, model: str, step: int, last: int = 0
) -> dict[str, Any]:
    from fovea.engines.shared_prefill import SharedPrefillEngine
    from fovea.evaluation import evaluate
    from fovea.models import load_policy

    policy = load_policy(model)
    engine = SharedPrefillEngine(policy)
    found: dict[str, Any] = {"step": step, "tasks": {}}
    for name, n in arm["measure"].items():
        outcomes: list[Any] = []
        record = evaluate(
            policy, engine, opened(name, arm["split"], HELD_OUT_SEED), n, seed=0,
            max_new_tokens=run.sampling.max_new_tokens, rewards=arm["rewards"] or None,
            look=name in arm["look"] and step in (0, last), outcomes=outcomes,
        )  # fmt: skip
        kept = {"replies": [asdict(o) for o in outcomes[: arm["keep"]]]} if arm["keep"] else {}
        found["tasks"][name] = {k: v for k, v in record.items() if k != "shown"} | kept
    return found


if __name__ == "__main__":
    do_arm(Path(sys.argv[1]))
