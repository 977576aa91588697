"""Which problems a run trains and is measured on, and how they are asked; the same for commands that only measure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from fovea.config import Run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.environments.beginnings import Beginnings
from fovea.environments.demonstrations import Demonstrations
from fovea.models import Policy, answers_untold, load_policy
from fovea.tasks import open_data
from fovea.tasks.curriculum import Curriculum
from fovea.tasks.data import DataTask, split
from fovea.tasks.opening import open_also, open_named
from fovea.tasks.own import ProblemList
from fovea.tasks.sources import Files, named_files
from fovea.training.bad_samples import SCANNED
from fovea.training.environment import episode_instruction, has_environment, open_episode_tasks
from fovea.types import AnswerKind, Problem, Task, UserError

EVALUATION_SEED = 1_000_003
"""Built-in tasks' held-out problems are the same whatever the run's seed, so that runs can be compared."""

# A user's question rarely says how the reply is to be written; built-in tasks' questions need no more than this.
INSTRUCTIONS: Mapping[AnswerKind, str] = {
    "box": "Output the box as [x1, y1, x2, y2] inside <answer> </answer> tags.",
    "number": "Output the number inside <answer> </answer> tags.",
    "choice": "Output the letter of the right choice inside <answer> </answer> tags.",
    "text": "Output the answer inside <answer> </answer> tags.",
    "math": "Output the final answer in LaTeX or as a number inside <answer> </answer> tags.",
    "order": "Output the numbers in order, with commas, inside <answer> </answer> tags.",
    "set": "Output the names, with commas, inside <answer> </answer> tags.",
    "objects": 'Output a JSON list of {"bbox_2d": [x1, y1, x2, y2], "label": text} inside <answer> </answer> tags.',
}

THINK = (
    "First output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> "
    "tags."
)
NAMED: Mapping[str, str | None] = {
    "plain": None,
    "think": THINK,
    "think_json": f"{THINK} Output the final answer in JSON format.",
    "think_first": "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think><answer> answer here </answer>\n{question}",
}
"""Instructions by name. plain: `INSTRUCTIONS`, by the kind of answer. The others are those of VLM-R1's task types:
think of `default` and `ic`, think_json of `rec`, think_first (R1's text, before the question) of `odLength`."""

Tasks = tuple[Task, Task, Task]
"""Training, validation and held-out problems."""


def open_tasks(run: Run) -> Tasks:
    """(training, validation, held-out) problems of a run; of a file, validation and held-out are the same lines."""
    if has_environment(run):
        return open_episode_tasks(run, EVALUATION_SEED)
    if run.data is None:
        return (
            open_named(run, "train", run.seed, Curriculum()),
            open_named(run, "validation", EVALUATION_SEED),
            open_named(run, run.evaluation.split, EVALUATION_SEED),
        )
    if run.validation_data is not None:
        held = _open(run, run.validation_data, shuffle=False, strict=False)
        return _open(run, run.data), held, held
    task = _open(run, run.data)  # once: COCO's file is large
    training, held = split(task)
    held = replace(held, shuffle=False)
    return training, held, held


def open_downstream(run: Run) -> dict[str, Task]:
    """Name → held-out problems of each task of `evaluation.also`. Raises UserError for one that the run trains on."""
    trained = set(run.mixture) or {run.task}
    for name in run.evaluation.also:
        if run.data is None and not has_environment(run) and name in trained:
            raise UserError(f"evaluation.also={name} is what the run trains on; name tasks that it does not.")
    return {name: open_also(run, name, run.evaluation.split, EVALUATION_SEED) for name in run.evaluation.also}


def _open(run: Run, path: Files, **how: Any) -> DataTask:
    """Files of the user's, as the recipe wants them read. Raises UserError where the rewards do not fit a kind."""
    files, folders = named_files(path, run.images, run.compat)
    task = open_data(
        files,
        folders,
        seed=run.seed,
        verify=run.verify_pictures,
        megapixels=run.max_megapixels,
        problems=run.problems,
        download=run.download,
        **how,
    )
    if len(task.kinds) == 1:
        return task
    if not run.rewards:
        raise UserError(
            f"{task.file} mixes answers of the kinds {', '.join(task.kinds)}, which have different rewards; set "
            "rewards.accuracy=1, which scores each problem by its own kind, or make a file for each kind."
        )
    told = run.instruction == "plain" or (run.instruction is None and not answers_untold(run.model))
    return replace(task, instructions=INSTRUCTIONS) if told else task


def fingerprint(task: Task) -> str:
    """SHA-256 over what a task gives: its files, those beside them, and up to 16 of its problems with their pixels.

    A run that goes on must meet the problems that it began with.
    """
    found = hashlib.sha256()
    for name in (*getattr(task, "files", ()), *getattr(task, "beside", ())):
        file = Path(name)
        if file.is_file():
            with file.open("rb") as lines:
                found.update(hashlib.file_digest(lines, "sha256").digest())
    found.update(str(getattr(task, "digest", "")).encode())
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
    """The first problem of each kind of answer and way of scoring (`rewards.routing`), to check rewards against."""
    first: dict[tuple[AnswerKind, str], Problem] = {}
    for problem in task.take(0, 1 if task.size is None else min(task.size, SCANNED))[0]:
        first.setdefault((problem.kind, str(problem.meta.get("accu_reward_method"))), problem)
    return list(first.values())


def instruction_of(run: Run, asked: Task | AnswerKind) -> str | None:
    """What is appended to each question, or put around its `{question}` (`fovea.models.rendering.asked`): the recipe's
    text or the one it names (`NAMED`), else for a user's problems how to write the answer, unless the
    model was taught that (`answers_untold`).

    `asked`: the task, or its kind. None for a task of several kinds whose questions say it themselves.
    """
    if isinstance(asked, Beginnings | Demonstrations):  # not other tasks that are measured beside a game
        told = episode_instruction(run)
        return None if told is None else NAMED.get(told, told) or None
    if getattr(asked, "instructions", None) is not None:
        return None
    kind: AnswerKind = asked if isinstance(asked, str) else asked.kind
    if run.instruction is None:
        users = run.data is not None or isinstance(asked, ProblemList)
        return INSTRUCTIONS[kind] if users and not answers_untold(run.model) else None
    if run.instruction == "plain":
        return INSTRUCTIONS[kind]
    return NAMED.get(run.instruction, run.instruction) or None


def at_most(n: int | Literal["all"], task: Task) -> int:
    """`n`, or all there is: a problem is never counted twice. Raises UserError for all of a task without an end."""
    if n == "all":
        if task.size is None:
            raise UserError(
                f"evaluation.n=all: the task {task.name} has no end; give a number, for example 512."
            )
        return task.size
    return n if task.size is None else min(n, task.size)


def open_for_evaluation(run: Run) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    """What `fovea evaluate` needs: (policy, engine, held-out task, instruction). Raises UserError."""
    return _open_for_measuring(run, run.evaluation.split, EVALUATION_SEED + run.seed)


def open_for_filter(run: Run) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    """The same for `fovea filter`: a built-in task's training problems, those of the run's seed."""
    return _open_for_measuring(run, "train", run.seed)


def open_to_measure(run: Run) -> Task:
    """The problems that `fovea evaluate` measures on, without a model. Raises UserError."""
    return _to_measure(run, run.evaluation.split, EVALUATION_SEED + run.seed)


def _to_measure(run: Run, split: str, seed: int) -> Task:
    if has_environment(run):
        raise UserError(
            f"environment.name={run.environment.name}: this is for questions of one turn; episodes are measured by "
            "fovea evaluate and shown by fovea play."
        )
    if run.data is None:
        return open_named(run, split, seed)
    return _open(run, run.data, shuffle=False, strict=False)


def _open_for_measuring(
    run: Run, split: str, seed: int
) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    task = _to_measure(run, split, seed)
    policy, engine = open_model(run)
    return policy, engine, task, instruction_of(run, task)


def open_model(run: Run) -> tuple[Policy, SharedPrefillEngine]:
    """A run's model as it was published or saved, only to be measured. Raises UserError."""
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    policy = load_policy(
        run.model,
        device=run.device,
        dtype=run.dtype,
        download=run.download,
        min_pixels=run.min_pixels,
        max_pixels=run.max_pixels,
        reply_tokens=run.sampling.max_new_tokens,
    )
    return policy, SharedPrefillEngine(policy)
