"""A run along the way: every kept checkpoint, and the model it began with, measured on one or several tasks.

How RL and SFT are compared step by step. What was measured is kept in `checkpoint_evaluations.jsonl` in the run folder,
by a digest of weights, problems and settings, so that a stopped measurement goes on and a repeated one is free. Not
here: the measuring itself (`fovea.evaluation`).

Try it: `fovea evaluate RUN --checkpoints --task digits/locate --task digits/count`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fovea
from fovea.api import OwnTask, as_overrides, measure, own_task, run_to_evaluate, to_evaluate
from fovea.config import Run
from fovea.runlog import read_run, to_json
from fovea.types import Task, UserError

CACHE = "checkpoint_evaluations.jsonl"
"""One line an evaluation: {"key": digest of all it depends on, "record": what `fovea evaluate --json` prints}."""

_NOT_MEASURED_BY = ("recipe", "run_dir", "model")
"""Keys of a run that do not change what a model scores; the weights stand for the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Station:
    """A model of a run. Example: Station(step=4, model="runs/a/checkpoints/step_4/model", weights="3f…")"""

    step: int
    model: str
    weights: str
    """SHA-256 of its weight files."""


def evaluate_checkpoints(
    run_folder: str | Path,
    *,
    tasks: str | Sequence[OwnTask] | None = None,
    split: str | None = None,
    say: Callable[[str], None] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Measure a run's start (step 0) and every kept checkpoint on each of `tasks`. Returns a JSON-ready record.

    `tasks`: names, lists of problems or task objects; default: the problems that the run was measured on. `split` of
    built-in tasks; `overrides`: keys of a recipe, as in `fovea.evaluate`. `say` is told about each evaluation.
    Keys: run, tasks, rows (step, task, cached, and what `fovea.evaluate` returns, by step), passed_over (step -> why a
    checkpoint is not whole). Raises UserError for a folder that is no run and one that has saved no model.
    """
    values = overrides if split is None else overrides | {"evaluation.split": split}
    listed = [tasks] if isinstance(tasks, str) else tasks
    return measure_checkpoints(run_folder, listed, as_overrides(values), say=say)


def measure_checkpoints(
    run_folder: str | Path,
    tasks: Sequence[OwnTask] | None,
    changes: Sequence[str],
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """`evaluate_checkpoints` with the overrides as `key=value`."""
    folder = Path(run_folder)
    stations, passed = _stations(folder)
    asked = _asked(folder, tasks, changes)
    cache = _read_cache(folder / CACHE)
    rows = []
    for station in stations:
        model = None  # loaded once for all of its tasks, and only if one is missing
        for run, task, name in asked:
            here = run.model_copy(update={"model": station.model})
            key = _key(station, here, task)
            cached = key in cache
            if say is not None:
                say(f"step {station.step}, {task.name}{': kept' if cached else ''}")
            if not cached:
                from fovea.training.problems import open_model

                model = open_model(here) if model is None else model
                cache[key] = measure(here, task, model=model, split=name)[0]
                _append(folder / CACHE, {"key": key, "record": cache[key]})
            rows.append({"step": station.step, "cached": cached} | cache[key] | {"model": station.model})
    return {
        "run": str(folder),
        "tasks": [task.name for _, task, _ in asked],
        "rows": rows,
        "passed_over": passed,
    }


def _stations(folder: Path) -> tuple[list[Station], dict[str, str]]:
    """The start and the whole checkpoints by step; and why others were passed over."""
    from fovea.checkpoints import all_steps, read
    from fovea.models.policy import find_model

    start: dict[str, Any] = read_run(folder)["run"]["run"]
    found, passed = [], dict[str, str]()
    for path in reversed(all_steps(folder)):
        try:
            saved = read(path)
        except UserError as error:
            passed[path.name.removeprefix("step_")] = str(error)
            continue
        found.append(Station(step=saved.step, model=str(saved.model), weights=_digest(saved.model)))
    if not found:
        raise UserError(f"{folder} has no whole checkpoint; train on, or save with save_every=N.")
    if found[0].step > 0:
        source = find_model(start["model"], start.get("download", False))
        first = Station(step=0, model=start["model"], weights=_digest(Path(source), start["model"]))
        found.insert(0, first)
    return found, passed


def _digest(folder: Path, name: str = "") -> str:
    """SHA-256 of a folder's weights, configuration, tokenizer and processor; of a hub name where it is no folder."""
    digest = hashlib.sha256(name.encode() if not folder.is_dir() else b"")
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path.suffix in (".safetensors", ".json", ".jinja"):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _asked(
    folder: Path, tasks: Sequence[OwnTask] | None, changes: Sequence[str]
) -> list[tuple[Run, Task, str | None]]:
    """(settings, problems, what the problems are called) of each task; every one is opened before the first minute."""
    from fovea.training.problems import open_to_measure

    if tasks is None:
        run, held_out, name = to_evaluate(str(folder), list(changes))
        if held_out is not None:
            return [(run, held_out, name)]
        return [(run, open_to_measure(run), run.evaluation.split if run.data is None else None)]
    found: list[tuple[Run, Task, str | None]] = []
    for task in tasks:
        if isinstance(task, str):
            run = run_to_evaluate(str(folder), [*as_overrides({"task": task}), *changes])
            found.append((run, open_to_measure(run), run.evaluation.split))
        else:
            mine = own_task(task)
            assert mine is not None
            run = run_to_evaluate(str(folder), [*as_overrides({"task": mine.name}), *changes])
            found.append((run, mine, None))
    if not found:
        raise UserError("No task is named; leave tasks away for those of the run.")
    return found


def _key(station: Station, run: Run, task: Task) -> str:
    """Digest of all that a record depends on: weights, settings, problems with their pictures, fovea's version."""
    from fovea.training.problems import fingerprint

    settings = {k: v for k, v in run.model_dump(mode="json").items() if k not in _NOT_MEASURED_BY}
    parts = [fovea.__version__, station.weights, settings, task.name, fingerprint(task)]
    return hashlib.sha256(to_json(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """What was measured before; a line that was not written to its end is measured again."""
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            try:
                one = json.loads(line)
                found[str(one["key"])] = dict(one["record"])
            except (ValueError, TypeError, KeyError):
                continue
    return found


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with path.open("ab") as file:
            file.write((to_json(line) + "\n").encode("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room or allow it.") from None


# --- as lines --------------------------------------------------------------------------------------------------


def curve_lines(record: dict[str, Any]) -> list[str]:
    """The record as a table for a terminal: a line a step, two columns a task (its main figure, looking)."""
    from fovea.viewer.display import interval

    steps = sorted({row["step"] for row in record["rows"]})
    table = [["step"]]
    for name in record["tasks"]:
        rows = {row["step"]: row for row in record["rows"] if row["task"] == name}
        label, _ = headline(next(iter(rows.values())))
        table[0] += [f"{name} {label}", "looking"]
    for step in steps:
        line = [str(step)]
        for name in record["tasks"]:
            row = next(row for row in record["rows"] if row["step"] == step and row["task"] == name)
            line += [interval(headline(row)[1]), interval(row.get("looking"))]
        table.append(line)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table]
    return lines + [f"step {step} was passed over: {why}" for step, why in record["passed_over"].items()]


def headline(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, value) of a record's main figure: F1 of detection, else accuracy."""
    detection = row.get("detection")
    return ("f1", detection["f1"]) if detection else ("accuracy", row["accuracy"])
