"""Which problems a run trains and is measured on, and how they are asked; the same for commands that only measure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fovea.config import Run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models import Policy, load_policy
from fovea.tasks import open_data, open_task
from fovea.tasks.data import DataTask
from fovea.training.bad_samples import SCANNED
from fovea.types import AnswerKind, Problem, Task, UserError

EVALUATION_SEED = 1_000_003
"""Built-in tasks' held-out problems are the same whatever the run's seed, so that runs can be compared."""

# A user's question rarely says how the reply is to be written; built-in tasks' questions need no more than this.
INSTRUCTIONS: Mapping[AnswerKind, str] = {
    "box": "Output the box as [x1, y1, x2, y2] inside <answer> </answer> tags.",
    "number": "Output the number inside <answer> </answer> tags.",
    "choice": "Output the letter of the right choice inside <answer> </answer> tags.",
    "text": "Output the answer inside <answer> </answer> tags.",
    "objects": 'Output a JSON list of {"bbox_2d": [x1, y1, x2, y2], "label": text} inside <answer> </answer> tags.',
}


Tasks = tuple[Task, Task, Task]
"""Training, validation and held-out problems."""


def open_tasks(run: Run) -> Tasks:
    """(training, validation, held-out) problems of a run; of a file, validation and held-out are the same lines."""
    if run.data is None:
        held_out = open_task(run.task, run.evaluation.split, EVALUATION_SEED)
        return (
            open_task(run.task, "train", run.seed),
            open_task(run.task, "validation", EVALUATION_SEED),
            held_out,
        )
    if run.validation_data is not None:
        held = _open(run, run.validation_data, shuffle=False)
        return _open(run, run.data), held, held
    task = _open(run, run.data, part="train")
    held = _open(run, run.data, part="heldout", shuffle=False, verify=False)  # decoded with the others
    return task, held, held


def _open(run: Run, path: str, verify: bool = True, **how: Any) -> DataTask:
    """A file of the user's, as the recipe wants it read. Raises UserError where the rewards do not fit a kind."""
    task = open_data(
        path,
        run.images,
        seed=run.seed,
        verify=verify and run.verify_pictures,
        megapixels=run.max_megapixels,
        **how,
    )
    if len(task.kinds) > 1 and not run.rewards:
        raise UserError(
            f"{path} mixes answers of the kinds {', '.join(task.kinds)}, which have different rewards; "
            "make a file for each kind, or name rewards that fit all of them, for example rewards.exact=1."
        )
    return task


def fingerprint(task: Task) -> str:
    """SHA-256 over what a task gives: its file, and up to 16 of its problems with their pictures' pixels.

    A run that goes on must meet the problems that it began with.
    """
    found = hashlib.sha256()
    file = Path(str(getattr(task, "file", "")))
    if file.is_file():
        with file.open("rb") as lines:
            found.update(hashlib.file_digest(lines, "sha256").digest())
    size = task.size
    places = range(4) if size is None else sorted({i * size // 16 for i in range(16)} & set(range(size)))
    for place in places:
        try:
            (problem,), _ = task.take(place, 1)
            asked = (problem.id, problem.question, problem.kind, repr(problem.answer))
            found.update("\0".join(asked).encode("utf-8", "surrogatepass"))
            for image in problem.images:
                found.update(image.tobytes())
        except UserError as error:  # a bad sample, which the run may skip
            found.update(str(error).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def fingerprints(training: Task, validation: Task, held_out: Task) -> dict[str, str]:
    """The `fingerprint` of each by name; a task that has two parts is read once."""
    found = {
        id(task): fingerprint(task) for task in {id(t): t for t in (training, validation, held_out)}.values()
    }
    return {
        "training": found[id(training)],
        "validation": found[id(validation)],
        "held-out": found[id(held_out)],
    }


def first_of_each_kind(task: Task) -> list[Problem]:
    """The first problem of each kind of answer, to check rewards against."""
    first: dict[AnswerKind, Problem] = {}
    for problem in task.take(0, 1 if task.size is None else min(task.size, SCANNED))[0]:
        first.setdefault(problem.kind, problem)
    return list(first.values())


def instruction_of(run: Run, kind: AnswerKind) -> str | None:
    """What is appended to each question: the recipe's text, else for a user's file how to write the answer."""
    if run.instruction is not None:
        return run.instruction or None
    return INSTRUCTIONS.get(kind) if run.data is not None else None


def at_most(n: int, task: Task) -> int:
    """`n`, or all there is: a problem is never counted twice."""
    return n if task.size is None else min(n, task.size)


def open_for_evaluation(run: Run) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    """What `fovea evaluate` needs: (policy, engine, held-out task, instruction). Raises UserError."""
    return _open_for_measuring(run, run.evaluation.split, EVALUATION_SEED + run.seed)


def open_for_filter(run: Run) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    """The same for `fovea filter`: a built-in task's training problems, those of the run's seed."""
    return _open_for_measuring(run, "train", run.seed)


def _open_for_measuring(
    run: Run, split: str, seed: int
) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    if run.data is None:
        task: Task = open_task(run.task, split, seed)
    else:
        task = _open(run, run.data, shuffle=False)
    policy = load_policy(
        run.model,
        device=run.device,
        dtype=run.dtype,
        download=run.download,
        min_pixels=run.min_pixels,
        max_pixels=run.max_pixels,
        reply_tokens=run.sampling.max_new_tokens,
    )
    return policy, SharedPrefillEngine(policy), task, instruction_of(run, task.kind)
