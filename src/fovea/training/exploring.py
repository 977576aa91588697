"""The run's intervention: opened from the recipe, and shown in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from fovea.config import Run
from fovea.interventions import EpsilonControl, intervention_of
from fovea.models import Policy
from fovea.models.canvas import canvases
from fovea.phases import Explorer
from fovea.runlog import RunLog
from fovea.types import Group, UserError


def open_explorer(run: Run, policy: Policy, instruction: str | None) -> Explorer | None:
    """What samples in two phases; None where the recipe names no intervention."""
    intervention = intervention_of(run.intervention)
    if intervention is None:
        return None
    section = run.intervention
    control = None
    if section.control:
        control = EpsilonControl(
            most=max(1, int(section.epsilon)),
            low=section.keep[0],
            high=section.keep[1],
            max_gain=section.max_gain,
            window=section.window,
        )
    return Explorer(
        policy=policy, run=run, intervention=intervention, instruction=instruction, control=control
    )


def check_intervention(run: Run) -> None:
    """Raises UserError for an intervention that cannot work in this run."""
    section = run.intervention
    if section.name == "none":
        return
    if run.method == "sft":
        raise UserError(
            f"intervention.name={section.name} changes what is sampled, and supervised fine-tuning samples nothing; "
            "leave it away."
        )
    if run.group < 2:
        raise UserError(
            f"intervention.name={section.name} samples every group in two phases; give group=2 or more."
        )
    if run.algorithm.replay and section.ratio in ("adversarial", "shared"):
        raise UserError(
            f"algorithm.replay makes prompts again from their problems, but with intervention.ratio={section.ratio} "
            "completions are trained under changed pictures; use ratio=clean or corrected, or no replay."
        )


def log_changed(log: RunLog, policy: Policy, group: Group, step: int) -> dict[str, Any]:
    """Write the pictures of a group's second phase and what they differ in, enlarged; {} where there was none.

    "pictures" and "differences": paths, in order; "largest": greatest change of a pixel, in 1/255. A difference is grey
    where nothing changed and scaled so that the greatest is black or white.
    """
    for name, prompt in group.variants.items():
        clean = canvases(policy, group.prompt)
        changed = [np.asarray(image.convert("RGB")) for image in prompt.problem.images]
        differences = [b.astype(np.int16) - a for a, b in zip(clean, changed, strict=True)]
        largest = max((int(np.abs(d).max()) for d in differences), default=0)
        both = [*changed, *(_enlarged(d, largest) for d in differences)]
        pictured = replace(
            group.problem,
            id=f"{group.problem.id} step {step} {name}",
            images=tuple(Image.fromarray(x) for x in both),
        )
        paths = log.pictures(pictured)
        n = len(changed)
        return {"variant": name, "pictures": paths[:n], "differences": paths[n:], "largest": largest}
    return {}


def _enlarged(difference: np.ndarray, largest: int) -> np.ndarray:
    return np.rint(127.5 + difference * (127.5 / max(1, largest))).clip(0, 255).astype(np.uint8)


def records_with(records: Sequence[dict[str, Any]], changed: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a group's completions; those of the second phase with its pictures."""
    return [
        record | {"changed": changed} if changed and record["variant"] == changed["variant"] else record
        for record in records
    ]
