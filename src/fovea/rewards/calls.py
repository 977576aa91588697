"""One call of a user's reward function inside its worker, and what came of it.

Nothing here raises for what the function does: every way to fail is a `Fault`. Not here: finding the function
(`loading.py`), limits and killing (`workers.py`), weights and counting (`scorer.py`). No torch: a worker imports
only what the user's file imports.
"""

from __future__ import annotations

import faulthandler
import hashlib
import inspect
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fovea.rewards.loading import LOADED, Fault, Form, Loaded, describe
from fovea.types import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The completions of one problem, or some of them, as a reward function sees them."""

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    """Beside `texts`; empty tuples where they are not known."""
    problem: Problem
    step: int
    steps: int
    """Steps of the whole run (TRL's `trainer_state.max_steps`)."""
    seed: int

    def some(self, chosen: Sequence[int]) -> Batch:
        """The batch of some of the completions, in that order."""
        return Batch(
            texts=tuple(self.texts[i] for i in chosen),
            token_ids=tuple(self.token_ids[i] for i in chosen),
            problem=self.problem,
            step=self.step,
            steps=self.steps,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Called:
    """What a call gave: a value (None: not scored) or a fault for each completion, and what it logged."""

    values: tuple[float | Fault | None, ...]
    parts: dict[str, tuple[float, ...]]
    """Name of a part → its numbers, NaN where a completion has none. Never rewarded, only shown."""
    metrics: dict[str, float]
    """What the function gave to `log_metric` (the mean where it gave several)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """The two fields of TRL's `trainer_state` that reward functions use for schedules."""

    global_step: int
    max_steps: int


Outcome: TypeAlias = Called | Fault


def call(name: str, batch: Batch, lifetime: float | None = None) -> Outcome | None:
    """Call a loaded function for a batch; None: it is not loaded in this process. Never raises.

    `lifetime`: seconds after which this process ends itself, whatever the function does; for the case that the
    process that would have killed it is gone. (faulthandler's watchdog is a C thread: it needs no GIL.)
    """
    if lifetime is not None:
        faulthandler.dump_traceback_later(lifetime, exit=True, file=_devnull())
    try:
        one = LOADED.get(name)
        if one is None:
            return None
        seed_everything(batch.seed, batch.step, batch.problem.id, name)
        if one.style == "group":
            values = one.function(batch.texts, batch.problem)
            return Called(values=tuple(checked(value) for value in values), parts={}, metrics={})
        return _call_trl(one, batch) if one.style == "trl" else _call_fovea(one, batch)
    except BaseException as error:  # SystemExit and KeyboardInterrupt of the user's code as well
        return Fault(kind="raised", detail=describe(error))
    finally:
        if lifetime is not None:
            faulthandler.cancel_dump_traceback_later()


_DEVNULL: list[Any] = []


def _devnull() -> Any:
    if not _DEVNULL:
        _DEVNULL.append(open(os.devnull, "w"))  # noqa: SIM115  kept open as long as the process lives
    return _DEVNULL[0]


def seed_everything(seed: int, step: int, problem: str, name: str) -> None:
    """Seed `random`, NumPy and (only if the user's code imported it) torch from (seed, step, problem, reward).

    So a reward that draws numbers is a function of those and of its arguments, whatever its worker did before.
    """
    digest = hashlib.sha256(repr((seed, step, problem, name)).encode("utf-8", "backslashreplace")).digest()
    number = int.from_bytes(digest[:4], "big")
    random.seed(number)
    np.random.seed(number)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(number)


def _call_fovea(one: Loaded, batch: Batch) -> Called:
    """f(text, problem) once a completion; a fault belongs to its completion alone."""

    def single(text: str) -> Any:
        try:
            return _awaited(one.function(text, batch.problem))
        except BaseException as error:
            return Fault(kind="raised", detail=describe(error))

    returned = [single(text) for text in batch.texts]
    breakdowns = [value if isinstance(value, Mapping) else {} for value in returned]
    names = dict.fromkeys(
        str(key) for breakdown in breakdowns for key in breakdown if key not in ("reward", "score")
    )
    return Called(
        values=tuple(checked(_total(value)) for value in returned),
        parts={name: tuple(_number_or_nan(b.get(name)) for b in breakdowns) for name in names},
        metrics={},
    )


def _total(value: Any) -> Any:
    """The number of a breakdown (key "reward", or "score"); anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    for key in ("reward", "score"):
        if key in value:
            return value[key]
    return Fault(kind="type", detail=f"returned a dict without the key 'reward' (keys: {shown(list(value))})")


def _call_trl(one: Loaded, batch: Batch) -> Outcome:
    """f(prompts, completions, completion_ids, **columns) once for the batch, as TRL's GRPOTrainer calls it."""
    extra: dict[str, tuple[float, ...]] = {}
    logged: dict[str, list[float]] = {}

    def log_extra(column: str, values: Sequence[Any]) -> None:
        numbers = tuple(_number_or_nan(value) for value in values)
        if len(numbers) == len(batch.texts) and not all(math.isnan(number) for number in numbers):
            extra[str(column)] = numbers

    def log_metric(name: str, value: Any) -> None:
        logged.setdefault(str(name), []).append(_number_or_nan(value))

    arguments = trl_arguments(batch, one.form) | {
        "trainer_state": TrainerState(global_step=batch.step, max_steps=batch.steps),
        "log_extra": log_extra,
        "log_metric": log_metric,
    }
    parameters = inspect.signature(one.function).parameters.values()
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        arguments = {p.name: arguments[p.name] for p in parameters if p.name in arguments}
    returned = _awaited(one.function(**arguments))
    if isinstance(returned, str | bytes | Mapping | set | frozenset) or not hasattr(returned, "__len__"):
        return Fault(kind="type", detail=f"returned {shown(returned)}, not a list of numbers")
    values = returned.tolist() if hasattr(returned, "tolist") else list(returned)
    if not isinstance(values, list) or len(values) != len(batch.texts):
        got = len(values) if isinstance(values, list) else "no"
        return Fault(kind="length", detail=f"returned {got} values for {len(batch.texts)} completions")
    metrics = {name: float(np.nanmean(numbers)) for name, numbers in logged.items() if _any(numbers)}
    return Called(values=tuple(checked(value) for value in values), parts=extra, metrics=metrics)


def columns_of(problem: Problem) -> dict[str, Any]:
    """The data set columns a TRL function may ask for: what `Problem` has, and everything in its `meta`."""
    return {
        "id": problem.id,
        "task": problem.task,
        "question": problem.question,
        "answer": problem.answer,
        "solution": problem.answer,
        "kind": problem.kind,
        "difficulty": problem.difficulty,
        "target": problem.target,
        "images": problem.images,
    } | {key: value for key, value in problem.meta.items() if key.isidentifier()}


def trl_arguments(batch: Batch, form: Form) -> dict[str, list[Any]]:
    """Prompts, completions and columns, each a list with an entry a completion, in TRL's two forms."""
    question = batch.problem.question
    if form == "chat":
        blocks: list[dict[str, Any]] = [{"type": "image"} for _ in range(len(batch.problem.images))]
        content: Any = [*blocks, {"type": "text", "text": question}] if blocks else question
        prompts: list[Any] = [[{"role": "user", "content": content}] for _ in batch.texts]
        completions: list[Any] = [[{"role": "assistant", "content": text}] for text in batch.texts]
    else:
        prompts, completions = [question for _ in batch.texts], list(batch.texts)
    columns = {key: [value for _ in batch.texts] for key, value in columns_of(batch.problem).items()}
    return columns | {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": [list(ids) for ids in batch.token_ids],
    }


def missing_columns(name: str, problem: Problem) -> tuple[list[str], list[str]] | None:
    """(parameters without a default that no column of `problem` fills, the columns there are) of a loaded function;
    None: it is not loaded in this process."""
    one = LOADED.get(name)
    if one is None:
        return None
    given = [*columns_of(problem), "prompts", "completions", "completion_ids"]
    given += ["trainer_state", "log_extra", "log_metric"]
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    wanted = [
        parameter.name
        for parameter in inspect.signature(one.function).parameters.values()
        if parameter.kind in positional and parameter.default is inspect.Parameter.empty
    ]
    lacking = [] if one.style != "trl" else [parameter for parameter in wanted if parameter not in given]
    return lacking, list(columns_of(problem))


def _awaited(value: Any) -> Any:
    """The result of an async reward, or the value itself."""
    if not inspect.isawaitable(value):
        return value

    import asyncio

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def checked(value: Any) -> float | Fault | None:
    """A returned value as a finite number; None stays None (not scored), the rest is a fault that says what it is.

    True and False count as 1 and 0, NumPy and torch scalars as their number. NaN is a fault, not "not scored":
    a function that means that returns None.
    """
    if value is None or isinstance(value, Fault):
        return value
    if not isinstance(value, str | bytes) and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if not isinstance(value, bool | int | float):
        return Fault(kind="type", detail=f"returned {shown(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        return Fault(kind="not_finite", detail="returned a whole number too large for a float")
    if not math.isfinite(number):
        return Fault(kind="not_finite", detail=f"returned {number}")
    return number


def _number_or_nan(value: Any) -> float:
    """A part's number; NaN for what is none: parts are shown, never rewarded, so they cannot fail."""
    number = checked(value)
    return number if isinstance(number, float) else math.nan


def _any(numbers: Sequence[float]) -> bool:
    return not all(math.isnan(number) for number in numbers)


def shown(value: Any) -> str:
    """A short, printable picture of any object; a `__repr__` that raises cannot hurt."""
    try:
        text = repr(value)
    except BaseException:
        text = "?"
    return f"{type(value).__name__} {text[:60]}"
