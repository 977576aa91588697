"""The Python API: `fovea.train`, `fovea.resume`, `fovea.evaluate`, and the `Result` they leave.

The same runs as on the command line, with what a command line cannot be given: functions as rewards, objects as
tasks and observers. Not here: any training; this turns Python's values into a `Run` and calls `fovea.training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fovea.config import Run, apply_override, explain, load_run
from fovea.outcomes import Outcome
from fovea.rewards import REWARDS, with_compat
from fovea.rewards.functions import is_reference
from fovea.runlog import newest_model, read_run, run_folder, to_json
from fovea.runlog.plain import jsonable
from fovea.tasks.opening import is_known
from fovea.tasks.own import check_own_task, problem_list, split_problems
from fovea.types import Observer, Problem, Task, UserError

RewardFunction = Callable[..., Any]
Rewards = RewardFunction | str | Sequence[Any] | Mapping[str, Any]
OwnTask = str | Task | Sequence[Problem]
Tasks = tuple[Task, Task, Task]
"""Training, validation and held-out problems."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A finished run.

    Example: Result(folder=Path("runs/quickstart-seed0"), record={"before": {"mean": 0.4, "ci95": [0.36, 0.45]}, …})
    """

    folder: Path
    """The run folder; `fovea view` shows it."""
    record: dict[str, Any]
    """What result.json holds."""

    @property
    def before(self) -> dict[str, Any]:
        """Held-out accuracy before training: {"mean", "ci95"}."""
        return dict(self.record["before"])

    @property
    def after(self) -> dict[str, Any]:
        """Held-out accuracy after training: {"mean", "ci95"}."""
        return dict(self.record["after"])

    @property
    def steps(self) -> int:
        return int(self.record["steps"])

    @property
    def model(self) -> Path:
        """The folder of the trained model: `fovea.evaluate(str(result.model))`, or `model=` of another run."""
        return newest_model(self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl: a record a step."""
        return list(read_run(self.folder)["metrics"])

    def evaluations(self) -> list[dict[str, Any]]:
        """evaluations.jsonl: a record an evaluation, with 95 % intervals."""
        return list(read_run(self.folder)["evaluations"])

    def table(self) -> str:
        """All that was measured before and after, with 95 % intervals, as lines of text."""
        from fovea.viewer.display import interval
        from fovea.viewer.report import measures_of

        records = self.evaluations()
        sides = []
        for phase in ("before", "after"):
            found = [line for line in records if line.get("phase") == phase]
            measured = measures_of(found[-1]) if found else []
            sides.append({label: interval(value) for label, _, value in measured})
        rows = [("", "before", "after")]
        rows += [
            (label, sides[0].get(label, "–"), sides[1].get(label, "–")) for label in {**sides[0], **sides[1]}
        ]
        width = max([18, *(len(label) + 2 for label, _, _ in rows)])
        return "\n".join(f"{label:<{width}}{before:<26}{after}".rstrip() for label, before, after in rows)


def train(
    run_or_recipe: Run | str | Path,
    *,
    rewards: Rewards | None = None,
    task: OwnTask | None = None,
    validation: OwnTask | None = None,
    observers: Sequence[Observer] = (),
    **overrides: Any,
) -> Result:
    """Do a run.

    `run_or_recipe`: a `Run`, a recipe's name or the path of its file. `overrides`: keys of the recipe, sections as
    dicts: `steps=10, optimizer={"learning_rate": 1e-5}`. `rewards`: a function, a name, a list of them, or a dict of
    name → weight, function or (function, weight). `task`: a name, a list of problems (every tenth is held out, or
    give `validation`), or an object with the methods of `fovea.Task`; then `validation` is another one, whose
    problems are not trained on. Raises UserError and RunFailed.
    """
    check_observers(observers)
    weights, functions = read_rewards(rewards)
    values = dict(overrides)
    if weights is not None:
        values["rewards"] = weights
    own = task is not None and not isinstance(task, str)
    if task is not None:
        values["task"] = task if isinstance(task, str) else _name_of(task)
    if own:
        values["data"] = values["validation_data"] = None
    run = _resolve(run_or_recipe, values)
    tasks = _own_tasks(run, task, validation) if own or validation is not None else None
    return _train(run, observers, tasks, functions, go_on=False)


def resume(
    folder: str | Path,
    *,
    rewards: Rewards | None = None,
    task: OwnTask | None = None,
    validation: OwnTask | None = None,
    observers: Sequence[Observer] = (),
    **overrides: Any,
) -> Result:
    """Go on with an unfinished run; `rewards`, `task` and `validation` as they were given to `train`.

    `overrides`: the few keys that may change, such as `steps`. Raises UserError and RunFailed.
    """
    from fovea.training.resume import read_unfinished

    check_observers(observers)
    functions = read_rewards(rewards)[1]
    run = read_unfinished(folder, as_overrides(overrides))
    own = task is not None and not isinstance(task, str)
    if not own and run.data is None and not run.mixture and not is_known(run.task):
        raise UserError(
            f"{folder} was trained on a task of your own, {run.task!r}; give task= (and validation=) as to fovea.train."
        )
    lost = [name for name in run.rewards if not (name in REWARDS or name in functions or is_reference(name))]
    if lost:
        raise UserError(
            f"{folder} was trained with a function of your own as the reward {lost[0]!r}; give rewards= as to "
            "fovea.train."
        )
    tasks = _own_tasks(run, task, validation) if own else None
    return _train(run, observers, tasks, functions, go_on=True)


def _train(
    run: Run,
    observers: Sequence[Observer],
    tasks: Tasks | None,
    functions: Mapping[str, RewardFunction],
    go_on: bool,
) -> Result:
    from fovea.training import train as do
    from fovea.viewer.report import write_report

    record = do(run, tuple(observers), tasks=tasks, functions=dict(functions), resume=go_on)
    write_report(run_folder(run))
    return Result(folder=run_folder(run), record=record)


def evaluate(
    model_or_run: str | Path = "fovea-tiny",
    *,
    task: OwnTask | None = None,
    outcomes: list[Outcome] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Measure a model, or a run's newest model, on held-out problems: accuracy, and whether it looks.

    `task`: a name, a list of problems or a task object; default: what the run was measured on. `overrides`: keys of
    a recipe, sections as dicts (`evaluation={"n": 64, "samples": 8}`). `outcomes` takes what came of each problem.
    Returns the record that `fovea evaluate --json` prints. Raises UserError.
    """
    values = dict(overrides)
    if task is not None:
        values["task"] = task if isinstance(task, str) else _name_of(task)
        if not isinstance(task, str):
            values |= {"data": None, "validation_data": None}
    run, held_out, split = to_evaluate(str(model_or_run), as_overrides(values))
    record, found = measure(run, held_out if task is None else own_task(task), split=split)
    if outcomes is not None:
        outcomes.extend(found)
    return record


def own_task(task: OwnTask | None) -> Task | None:
    """A list of problems or an object of the user's as a task; None for none and for a name. Raises UserError."""
    listed = _listed(task)
    if isinstance(listed, list):
        return problem_list(_name_of(task), listed)
    return None if listed is None else check_own_task(task)


# --- what the command line shares ------------------------------------------------------------------------------


def measure(
    run: Run, task: Task | None = None, *, model: Any = None, split: str | None = None
) -> tuple[dict[str, Any], list[Outcome]]:
    """(record, outcome a problem) of a run's model on its held-out problems, or on those of `task`.

    `model`: (policy, engine) of `training.problems.open_model(run)`, to measure one model on several tasks; `split`:
    what the record calls the problems.
    """
    from fovea.evaluation import evaluate as do
    from fovea.training.environment import has_environment
    from fovea.training.problems import at_most, instruction_of, open_model, open_to_measure

    if has_environment(run) and task is None:
        return _measure_episodes(run, model)
    if split is None:
        split = "all lines" if run.data is not None else "own" if task is not None else run.evaluation.split
    task = open_to_measure(run) if task is None else task
    n = at_most(run.evaluation.n, task)
    instruction = instruction_of(run, task)
    policy, engine = open_model(run) if model is None else model
    outcomes: list[Outcome] = []
    record = do(
        policy,
        engine,
        task,
        n,
        seed=run.seed,
        max_new_tokens=run.sampling.max_new_tokens,
        instruction=instruction,
        samples=run.evaluation.samples,
        temperature=run.sampling.temperature,
        rewards=[name for name in run.rewards if name in REWARDS] or None,  # not the user's functions
        options=with_compat(REWARDS, run.reward_options, run.compat),
        outcomes=outcomes,
    )
    return {"model": run.model, "split": split, "seed": run.seed} | record, outcomes


def _measure_episodes(run: Run, model: Any) -> tuple[dict[str, Any], list[Outcome]]:
    """(record, outcome an episode) of a run's model in its environment."""
    from fovea.training.environment import measure_episodes
    from fovea.training.problems import EVALUATION_SEED, at_most, instruction_of, open_model, open_tasks

    held_out = open_tasks(run)[2]
    instruction = instruction_of(run, held_out)
    policy, engine = open_model(run) if model is None else model
    outcomes: list[Outcome] = []
    record = measure_episodes(
        run,
        policy,
        engine,
        instruction,
        at_most(run.evaluation.n, held_out),
        split=run.evaluation.split,
        seed=EVALUATION_SEED,
        samples=run.evaluation.samples,
        outcomes=outcomes,
    )
    record.pop("shown")
    return {"model": run.model, "split": run.evaluation.split, "seed": run.seed} | record, outcomes


def run_to_evaluate(model_or_run: str, changes: Sequence[str]) -> Run:
    """The run whose held-out problems are measured: a run folder's own recipe, or the defaults, changed."""
    values: dict[str, Any] = {"recipe": "evaluate", "model": model_or_run}
    trained_on = None
    if (Path(model_or_run) / "run.json").is_file():
        values = read_run(model_or_run)["run"]["run"] | {"model": str(newest_model(model_or_run))}
        # The problems that the run itself was measured on are the same whatever its seed.
        values["seed"] = 0
        # Never measure on the lines that were trained on: only a separate file is known to be held out.
        trained_on, values["data"] = values["data"], values["validation_data"]
    if any(change.startswith(("task=", "data=")) for change in changes):
        values["rewards"] = {}  # of the run's own kind of answer
        values["data"] = None  # a task that is named is meant, not the run's file
    for change in changes:
        apply_override(values, change)
    if trained_on and values["data"] is None and not any(change.startswith("task=") for change in changes):
        raise UserError(
            f"{model_or_run} was trained on {trained_on}; name held-out problems with --data or --task."
        )
    return _validated(values, "evaluate")


def to_evaluate(model_or_run: str, changes: Sequence[str]) -> tuple[Run, Task | None, str | None]:
    """`run_to_evaluate`, and for a run on a file without another one for validation the lines that it held out.

    Returns (run, those lines as a task, what records call them); (run, None, None) where the run names its problems.
    """
    own = _trained_on(model_or_run)
    if own is None or any(change.startswith(("task=", "data=")) for change in changes):
        return run_to_evaluate(model_or_run, changes), None, None
    from fovea.training.problems import open_tasks

    kept = as_overrides({"data": own.data, "rewards": own.rewards})
    run = run_to_evaluate(model_or_run, [*kept, *changes])
    # Which lines were held out is the run's own affair; where their pictures lie may have changed.
    return run, open_tasks(own.model_copy(update={"images": run.images}))[2], "held-out lines"


def _trained_on(model_or_run: str) -> Run | None:
    """The run in a folder if it was trained on a file of which it held lines out."""
    if not (Path(model_or_run) / "run.json").is_file():
        return None
    values = read_run(model_or_run)["run"]["run"]
    if values.get("data") is None or values.get("validation_data") is not None:
        return None
    return _validated(values, "evaluate")


def as_overrides(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key=value` for each, sections dotted; JSON is YAML, so a path with a colon stays one text."""
    found: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix and key != "rewards":
            found += as_overrides(value, f"{key}.")
        else:
            found.append(f"{prefix}{key}={_as_json(f'{prefix}{key}', value)}")
    return found


def _as_json(key: str, value: Any) -> str:
    """A key's value as JSON; a set as a sorted list. Raises UserError for what a recipe cannot hold."""
    try:
        clean, reasons = jsonable(sorted(value) if isinstance(value, set | frozenset) else value)
    except TypeError as error:
        raise UserError(f"{key}: {error}; give a number, a text, a list or None.") from None
    if reasons:
        place, number = next(iter(reasons.items()))
        raise UserError(f"{key}{'.' * bool(place)}{place} is {_NUMBERS[number]}; give a finite number.")
    return to_json(clean)


_NUMBERS = {"nan": "NaN", "inf": "infinite", "-inf": "infinite"}


# --- Python's values as a run's --------------------------------------------------------------------------------


def _resolve(run_or_recipe: Run | str | Path, values: Mapping[str, Any]) -> Run:
    if not isinstance(run_or_recipe, Run):
        return load_run(str(run_or_recipe), as_overrides(values))
    before = run_or_recipe.model_dump(mode="json")
    changed = dict(before)
    for override in as_overrides(values):
        apply_override(changed, override)
    moved = (changed["task"], changed["data"]) != (before["task"], before["data"])
    if moved and "rewards" not in values:  # those of the run are for its own kind of answer
        changed["rewards"] = {}
        if "reward_options" not in values:
            changed["reward_options"] = {}
    return _validated(changed, run_or_recipe.recipe or "Run")


def _validated(values: Mapping[str, Any], name: str) -> Run:
    try:
        return Run.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, name)) from None


def read_rewards(
    rewards: Rewards | None,
) -> tuple[dict[str, float] | None, dict[str, RewardFunction]]:
    """({name: weight}, {name: function}) of what a user gave as `rewards`; (None, {}) for None.

    Raises UserError for anything that is neither, for two functions of one name and for the name of a built-in.
    """
    if rewards is None:
        return None, {}
    if isinstance(rewards, Mapping):
        items = [(str(name), value) for name, value in rewards.items()]
    else:
        listed = [rewards] if callable(rewards) or isinstance(rewards, str) else rewards
        if not isinstance(listed, Sequence):
            raise UserError(f"rewards={listed!r} is not a function, a name, a list of them, or a dict.")
        items = [(item, 1.0) if isinstance(item, str) else (_name_of(item), item) for item in listed]
    weights: dict[str, float] = {}
    functions: dict[str, RewardFunction] = {}
    for name, value in items:
        function, weight = _one_reward(name, value)
        if name in weights:
            raise UserError(f"Two rewards are called {name!r}; give a dict of name: function.")
        if function is not None and name in REWARDS:
            raise UserError(f"There is a built-in reward {name!r}; give yours another name in a dict.")
        weights[name] = weight
        if function is not None:
            functions[name] = function
    if not weights:
        raise UserError("rewards is empty; leave it away for the task's own.")
    return weights, functions


def _one_reward(name: str, value: Any) -> tuple[RewardFunction | None, float]:
    if isinstance(value, tuple) and len(value) == 2:
        function, weight = value
    elif callable(value):
        function, weight = value, 1.0
    else:
        function, weight = None, value
    if isinstance(weight, np.generic):
        weight = weight.item()
    good = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not good or (function is not None and not callable(function)):
        raise UserError(
            f"rewards[{name!r}] is {value!r}; give a weight, a function or a pair (function, weight)."
        )
    if not math.isfinite(weight):
        said = "NaN" if math.isnan(weight) else "infinite"
        raise UserError(f"The weight of rewards[{name!r}] is {said}; give a finite number, for example 1.0.")
    return function, float(weight)


def check_observers(observers: Any) -> None:
    """Raises UserError unless `observers` is a list of objects with the four methods of `fovea.Observer`."""
    if not isinstance(observers, list | tuple):
        said = "None" if observers is None else f"a {type(observers).__name__}"
        raise UserError(f"observers is {said}; give a list of observers, [] for none.")
    for i, observer in enumerate(observers):
        where = f"observers[{i}] is {'None' if observer is None else f'a {type(observer).__name__}'}"
        if observer is None or isinstance(observer, type):
            raise UserError(f"{where}; give an object with the methods {', '.join(_METHODS)}.")
        for name, arguments in _METHODS.items():
            if not callable(getattr(observer, name, None)):
                raise UserError(f"{where} and has no method {name!r}; add def {name}(self, {arguments}).")


_METHODS = {"start": "run", "step": "metrics, shown", "evaluation": "record", "finish": "result"}


def _name_of(thing: Any) -> str:
    """What the logs call a function or a task object."""
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return str(thing[0].task) if thing and isinstance(thing[0], Problem) else "own"
    name = getattr(thing, "__name__", None) or getattr(thing, "name", None) or type(thing).__name__
    return "reward" if name == "<lambda>" else str(name)


def _listed(task: OwnTask | None) -> list[Problem] | Task | None:
    """A list of problems or an object as it was given; None for none and for a name."""
    if task is None or isinstance(task, str):
        return None
    return [*task] if isinstance(task, list | tuple) else task  # type: ignore[return-value]


def _own_tasks(run: Run, task: OwnTask | None, validation: OwnTask | None) -> Tasks:
    """(training, validation, held-out); the last two are the same problems. Raises UserError."""
    own, other = _listed(task), _listed(validation)
    if own is None:
        raise UserError("validation= belongs to a task of your own; give task=… beside it.")
    if isinstance(own, list):
        if validation is not None and not isinstance(other, list):
            raise UserError("task is a list of problems, so validation must be one, too.")
        held_out = other if isinstance(other, list) else None
        kept, held = split_problems(run.task, own, held_out, seed=run.seed)
        return kept, held, held
    if other is None or isinstance(other, list):
        raise UserError(
            f"task={type(own).__name__} needs held-out problems beside it; give validation=ANOTHER_TASK, whose "
            "problems are not trained on."
        )
    train_on, measure_on = check_own_task(own), check_own_task(other, "validation")
    if train_on.kind != measure_on.kind:
        raise UserError(
            f"task is of kind {train_on.kind!r} and validation of kind {measure_on.kind!r}; make them one."
        )
    return train_on, measure_on, measure_on
