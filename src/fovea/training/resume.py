"""Reading back the run that a folder was written by, to go on with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from fovea.config import Run, apply_override, explain
from fovea.runlog import read_run
from fovea.types import UserError

CHANGEABLE = (
    "steps",
    "cpu_seconds",
    "save_every",
    "keep_checkpoints",
    "show_every",
    "show_groups",
    "download",
    "on_bad_sample",
    "max_bad_samples",
    "on_reward_error",
    "reward_timeout",
    "max_nonfinite",
    "preflight",
)
"""What may differ from the recorded recipe: how long a run lasts, what is kept, what happens when something fails."""


def read_unfinished(folder: str | Path, overrides: Sequence[str] = ()) -> Run:
    """The recipe of an unfinished run, with `overrides` of `CHANGEABLE` keys, to be run in that folder.

    Raises UserError for a folder without a run, a finished one, and overrides that would make it another run.
    """
    folder = Path(folder)
    found = read_run(folder)
    values = found["run"].get("run")
    if not isinstance(values, dict):
        raise UserError(f"{folder / 'run.json'} holds no recipe; it was not written by `fovea train`.")
    before = dict(values)
    for text in overrides:
        key = text.partition("=")[0]
        if key not in CHANGEABLE:
            raise UserError(
                f"{key} cannot change in a run that goes on (only {', '.join(CHANGEABLE)} can); start a new run."
            )
        apply_override(values, text)
    values["run_dir"] = str(folder)
    done = (found["result"] or {}).get("steps")
    if done is not None and not (isinstance(values.get("steps"), int) and values["steps"] > done):
        raise UserError(
            f"{folder} is finished ({done} steps); add steps=N with a larger N to train on, or look at it: "
            f"fovea view {folder}"
        )
    try:
        run = Run.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, str(folder / "run.json"))) from None
    if run.steps != before.get("steps") and run.optimizer.schedule != "constant":
        raise UserError(
            f"steps={run.steps} would change the {run.optimizer.schedule} learning-rate schedule of the steps already "
            f"done ({before.get('steps')} were planned); only schedule=constant can be prolonged."
        )
    return run
