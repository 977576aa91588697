"""The built-in tasks that a run or a command names, opened: one or a mixture, with pictures, graph and difficulty.

Not here: files of problems (`fovea.tasks.data`), a run's three parts (`fovea.training.problems`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fovea.config import Run, nearest
from fovea.tasks import TASKS, open_task
from fovea.tasks.curriculum import Curriculum, MixedTask
from fovea.tasks.graph_ssl import GRAPH, GRAPH_TASKS, open_graph_task
from fovea.tasks.pool import BuiltIn, Pool
from fovea.tasks.scenes import SPLITS, Split
from fovea.tasks.ssl import SSL
from fovea.types import Task, UserError


def is_known(name: str) -> bool:
    """Whether a name, its style aside, is a built-in task's."""
    base = name.partition("@")[0]
    return base in TASKS or has_difficulty(name)


def has_difficulty(name: str) -> bool:
    """Whether a name is a self-supervised task's, of pictures or of a graph."""
    base = name.partition("@")[0]
    return base in SSL or base in GRAPH_TASKS


def open_named(run: Run, split: str, seed: int, curriculum: Curriculum | None = None) -> Task:
    """The task or mixture that a run names, for a split.

    `curriculum`: takes a controller for every task with a difficulty; without one the difficulty is the recipe's.
    Raises UserError for a name, option or key that would do nothing, and for pictures that cannot be used.
    """
    shares = dict(run.mixture) or {run.task: 1.0}
    check_settings(run)
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; known: {', '.join(SPLITS)}.")
    held = Curriculum() if curriculum is None else curriculum
    section = (
        run.difficulty if curriculum is not None else run.difficulty.model_copy(update={"control": False})
    )
    pool = pool_of(run, split) if any(name.partition("@")[0] in SSL for name in shares) else None
    tasks: list[Task] = []
    for name in shares:
        base = name.partition("@")[0]
        if not has_difficulty(base):
            tasks.append(open_task(name, split, seed))
            continue
        level = held.controller(base, section).at
        options = run.task_options.get(base)
        if base in SSL:
            tasks.append(open_task(name, split, seed, pool=pool, level=level, options=options))
        else:
            tasks.append(
                open_graph_task(name, split, seed, graph=run.graph or GRAPH, level=level, options=options)
            )
    if len(tasks) == 1 and not has_difficulty(tasks[0].name):
        return tasks[0]
    name = next(iter(shares)) if len(tasks) == 1 else "+".join(shares)
    return MixedTask(name=name, tasks=tuple(tasks), shares=tuple(shares.values()), seed=seed, curriculum=held)


def open_also(run: Run, name: str, split: str, seed: int) -> Task:
    """Another built-in task than the run's own, with what of the run's settings concerns it. Raises UserError."""
    base = name.partition("@")[0]
    alone: dict[str, Any] = {
        "task": name,
        "mixture": {},
        "data": None,
        "task_options": {key: given for key, given in run.task_options.items() if key == base},
        "difficulty": run.difficulty.model_copy(
            update={"levels": {key: level for key, level in run.difficulty.levels.items() if key == base}}
        ),
    }
    alone |= {} if base in SSL else {"images": None, "validation_images": None}
    alone |= {} if base in GRAPH_TASKS else {"graph": None}
    return open_named(run.model_copy(update=alone), split, seed)


def check_settings(run: Run) -> None:
    """Raise UserError for tasks that do not exist and settings that would do nothing."""
    names = [name.partition("@")[0] for name in run.mixture or {run.task: 1.0}]
    for name in run.mixture:
        if not is_known(name):
            known = [*TASKS, *SSL, *GRAPH_TASKS]
            raise UserError(
                f"mixture.{name}: there is no such task{nearest(name, known)}; `fovea tasks list` names all."
            )
    if len(set(names)) < len(names):
        raise UserError("mixture names a task twice, in two styles; give it once.")
    for key, given in (("task_options", run.task_options), ("difficulty.levels", run.difficulty.levels)):
        other = next((name for name in given if name not in names), None)
        if other is not None:
            raise UserError(
                f"{key}.{other} would do nothing: the task is not among those of the run ({', '.join(names)}); leave "
                "it away or name the task."
            )
    idle = _idle(run, names)
    if idle is not None:
        raise UserError(f"{idle[0]} would do nothing with {', '.join(names)}; it is for {idle[1]} tasks.")


def _idle(run: Run, names: Sequence[str]) -> tuple[str, str] | None:
    """(setting, domain of its tasks) of a setting that no task of the run has use for."""
    if not any(name in SSL for name in names):
        if run.data is None and run.images is not None:
            return f"images={run.images}", "ssl/…"
        if run.validation_images is not None:
            return f"validation_images={run.validation_images}", "ssl/…"
    if run.graph is not None and not any(name in GRAPH_TASKS for name in names):
        return f"graph={run.graph}", "graph/…"
    return None


def pool_of(run: Run, split: Split) -> Pool:
    """The run's pictures of a split."""
    section = run.pictures
    if run.images is None:
        if run.validation_images is not None:
            raise UserError(
                f"validation_images={run.validation_images} needs images=FOLDER beside it, to train on."
            )
        return BuiltIn(split=split, side=section.side)
    from fovea.tasks.pool_sources import open_pool

    how: Mapping[str, Any] = {
        "side": section.side,
        "max_pixels": section.max_pixels,
        "duplicates": section.duplicates,
        "transductive": section.transductive,
        "depth": section.depth,
        "validation": run.validation_images,
        "megapixels": run.max_megapixels,
        "download": run.download,
    }
    return open_pool(run.images, split, **how)
