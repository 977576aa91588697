"""What happens to a user's reward function inside its worker: loading, signature, one call, what came of it.

A function is called for the completions of one problem at a time, in one of two ways, told apart by its parameters:

    f(text, problem) -> number, None, or {"reward": number, "name of a part": number, …}         once a completion
    f(prompts, completions, completion_ids, **columns) -> a list of numbers or None              once a group (TRL)

Nothing here raises for what the function does: every way to fail is a `Fault`. Not here: limits and killing
(`workers.py`), weights and counting (`scorer.py`). No torch: a worker imports only what the user's file imports.
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Literal, TypeAlias

import cloudpickle
import numpy as np

from fovea.types import Problem

FaultKind = Literal["timeout", "died", "raised", "length", "type", "not_finite"]
Style = Literal["fovea", "trl"]
Form = Literal["text", "chat"]

DETAIL_LIMIT = 400
"""Characters of a user's error message that are kept: it may quote a whole reply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a reward function comes from. Picklable, small.

    Example: Source(name="rewards.py:short")
    """

    name: str
    """As the recipe names it: `path/file.py:function`, `package.module:function`, or the key of a function given
    to the Python API."""
    pickled: bytes | None = None
    """The function itself by cloudpickle (closures, lambdas and functions of `__main__` included)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A way in which a reward failed.

    Example: Fault(kind="raised", detail="ZeroDivisionError: division by zero (rewards.py:7)")
    """

    kind: FaultKind
    detail: str


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

    values: tuple[float | None | Fault, ...]
    parts: dict[str, tuple[float, ...]]
    """Name of a part → its numbers, NaN where a completion has none. Never rewarded, only shown."""
    metrics: dict[str, float]
    """What the function gave to `log_metric` (the mean where it gave several)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """The two fields of TRL's `trainer_state` that reward functions use for schedules."""

    global_step: int
    max_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A function that is ready to be called."""

    function: Callable[..., Any]
    style: Style
    form: Form
    code: str
    """12 hexadecimal digits of the SHA-256 of its file, or of the function where it has none."""


Outcome: TypeAlias = Called | Fault

_LOADED: dict[str, Loaded] = {}  # of this worker process: a function is loaded once


# --- loading ----------------------------------------------------------------------------------------------


def find_function(source: Source) -> Callable[..., Any]:
    """The function behind a source. A file is executed, with its own folder importable; so only in a worker.

    Raises whatever loading it raises, and LookupError where the file or module has no such function.
    """
    if source.pickled is not None:
        found = cloudpickle.loads(source.pickled)
    else:
        where, _, attribute = source.name.rpartition(":")
        module = _file_module(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        found = getattr(module, attribute, None)
        if found is None:
            raise LookupError(f"{where} has no function {attribute!r}")
    if not callable(found):
        raise LookupError(f"{source.name} is a {type(found).__name__}, not a function")
    return found


def _file_module(path: Path) -> Any:
    """Execute a Python file under a name of its own; two functions of one file share the module."""
    path = path.resolve()
    name = f"fovea_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise LookupError(f"the file {path.name} does not exist")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # `import helper` beside it works, as it does for a script
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def code_of(function: Callable[..., Any]) -> str:
    """12 digits that change when the function's file does (or, without a file, its byte code)."""
    plain = _plain(function)
    try:
        data = Path(inspect.getsourcefile(plain) or "").read_bytes()
    except (OSError, TypeError):
        code = getattr(plain, "__code__", None)
        data = repr((code.co_code, code.co_names)).encode() if code else repr(type(function)).encode()
    return hashlib.sha256(data).hexdigest()[:12]


def style_of(function: Callable[..., Any]) -> Style:
    """Which of the two signatures a function has. Raises LookupError with one sentence if it has neither.

    TRL's: it names `prompts`, `completions` or `completion_ids`, or takes keyword arguments only. Fovea's:
    it can be called with two positional arguments.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        raise LookupError("it shows no signature; wrap it in `def reward(text, problem)`") from None
    names = set(signature.parameters)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if names & {"prompts", "completions", "completion_ids"} or kinds == {inspect.Parameter.VAR_KEYWORD}:
        return "trl"
    try:
        signature.bind("text", "problem")
    except TypeError:
        raise LookupError(
            f"its parameters {signature} fit neither `reward(text, problem)` nor TRL's "
            "`reward(prompts, completions, **kwargs)`; rename or remove parameters"
        ) from None
    return "fovea"


def form_of(function: Callable[..., Any]) -> Form:
    """Whether a TRL function reads completions as texts or as chat messages, from the constants in its code.

    TRL hands over `[{"role": "assistant", "content": text}]` for conversational data sets and texts for others; a
    function written for the first mentions the key "content", itself or in a function of its module that it calls.
    """
    seen: set[int] = set()
    todo: list[Any] = [_plain(function)]
    while todo and len(seen) < 200:
        one = todo.pop()
        if isinstance(one, CodeType):
            code, scope = one, {}
        elif isinstance(getattr(one, "__code__", None), CodeType):
            code, scope = one.__code__, getattr(one, "__globals__", {})
        else:
            continue
        if id(code) in seen:
            continue
        seen.add(id(code))
        if "content" in code.co_consts:
            return "chat"
        todo.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
        called = [scope.get(name) for name in code.co_names]
        todo.extend(_plain(x) for x in called if inspect.isfunction(x) and x.__module__ == one.__module__)
    return "text"


def _plain(function: Any) -> Any:
    """The Python function inside decorators, `functools.partial` and objects with `__call__`."""
    while hasattr(function, "func") and not inspect.isfunction(function):
        function = function.func
    function = inspect.unwrap(function)
    if inspect.isfunction(function) or inspect.ismethod(function):
        return function
    return inspect.unwrap(getattr(type(function), "__call__", function))  # noqa: B004


def load(source: Source, form: Literal["auto", "text", "chat"] = "auto") -> dict[str, str] | Fault:
    """Load a function into this worker; {"style", "form", "code"} or the fault that kept it from loading."""
    try:
        function = find_function(source)
        one = Loaded(
            function=function,
            style=style_of(function),
            form=form_of(function) if form == "auto" else form,
            code=code_of(function),
        )
    except LookupError as error:
        # KeyError and IndexError are LookupErrors too, but those come from the user's file.
        detail = str(error) if type(error) is LookupError else describe(error)
        return Fault(kind="raised", detail=detail)
    except BaseException as error:
        return Fault(kind="raised", detail=describe(error))
    _LOADED[source.name] = one
    return {"style": one.style, "form": one.form, "code": one.code}


# --- calling ----------------------------------------------------------------------------------------------


def call(name: str, batch: Batch, lifetime: float | None = None) -> Outcome:
    """Call a loaded function for a batch. Never raises.

    `lifetime`: seconds after which this process ends itself, whatever the function does; for the case that the
    process that would have killed it is gone. (faulthandler's watchdog is a C thread: it needs no GIL.)
    """
    if lifetime is not None:
        faulthandler.dump_traceback_later(lifetime, exit=True, file=_devnull())
    try:
        seed_everything(batch.seed, batch.step, batch.problem.id, name)
        one = _LOADED[name]
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
    return Fault(kind="type", detail=f"a dict without the key 'reward' (keys: {shown(list(value))})")


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
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
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


def missing_columns(name: str, problem: Problem) -> tuple[list[str], list[str]]:
    """(parameters without a default that no column of `problem` fills, the columns there are) of a loaded function."""
    one = _LOADED[name]
    given = [*columns_of(problem), "prompts", "completions", "completion_ids"]
    given += ["trainer_state", "log_extra", "log_metric"]
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    wanted = [
        parameter.name
        for parameter in inspect.signature(one.function).parameters.values()
        if parameter.kind in positional and parameter.default is inspect.Parameter.empty
    ]
    lacking = [] if one.style == "fovea" else [parameter for parameter in wanted if parameter not in given]
    return lacking, list(columns_of(problem))


def _awaited(value: Any) -> Any:
    """The result of an async reward, or the value itself."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def checked(value: Any) -> float | None | Fault:
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


def describe(error: BaseException) -> str:
    """`ValueError: message (file.py:12)`: the last place in the user's own code, one line, bounded."""
    try:
        message = " ".join(str(error).split())[:DETAIL_LIMIT]
    except BaseException:
        message = ""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) != Path(__file__)]
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename[:1] != "<"]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"
