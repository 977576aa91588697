"""A user's reward function: where it is, what it looks like, whether it loads. Runs inside a worker.

Two signatures, told apart by their parameters:

    f(text, problem) -> number, None, or {"reward": number, "name of a part": number, …}         once a completion
    f(prompts, completions, completion_ids, **columns) -> a list of numbers or None              once a group (TRL)

Not here: calling it (`calls.py`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Literal

FaultKind = Literal["timeout", "died", "raised", "unanswered", "length", "type", "not_finite"]
"""`unanswered`: `judge` got no reply, or an HTTP status instead of one."""
Style = Literal["fovea", "trl", "group"]
"""`group`: a built-in reward that asks outside, f(texts, problem) -> a number or a Fault for each text."""
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
    options: dict[str, Any] | None = None
    """Of the built-in reward `judge`, which works in a worker as a function of the user's; None for those."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A way in which a reward failed.

    Example: Fault(kind="raised", detail="ZeroDivisionError: division by zero (rewards.py:7)")
    """

    kind: FaultKind
    detail: str
    fix: str | None = None
    """What the user has to set right, where the settings of the run are at fault (`judge`); None for other faults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A function that is ready to be called."""

    function: Callable[..., Any]
    style: Style
    form: Form
    code: str
    """12 hexadecimal digits: `code_of`."""


LOADED: dict[str, Loaded] = {}  # of this worker process: a function is loaded once


def find_function(source: Source) -> Callable[..., Any]:
    """The function behind a source. A file is executed, with its own folder importable; so only in a worker.

    Raises whatever loading it raises, and LookupError where the file or module has no such function.
    """
    if source.options is not None:
        from fovea.rewards.judge import score_group

        return functools.partial(score_group, **source.options)
    if source.pickled is not None:
        import cloudpickle

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
    """12 digits of a SHA-256 that change when the function's file does (without a file: its byte code, names and
    constants, also of functions inside it), or a plain value that it holds: a default, a closure's variable, an
    argument of `functools.partial`. Not seen: modules it imports, global variables, objects that are not plain."""
    plain = _plain(function)
    try:
        data = Path(inspect.getsourcefile(plain) or "").read_bytes()
    except (OSError, TypeError):
        code = getattr(plain, "__code__", None)
        data = (_said(code) if code else repr(type(function))).encode()
    held = _held(function)
    return hashlib.sha256(data + (held.encode() if held else b"")).hexdigest()[:12]


def _held(function: Any) -> str:
    """The values that a function carries with it; "" for one that carries none."""
    found: list[Any] = []
    while hasattr(function, "func") and not inspect.isfunction(function):
        found += [function.args, function.keywords] if hasattr(function, "keywords") else []
        function = function.func
    plain = _plain(function)
    found += [getattr(plain, "__defaults__", None), getattr(plain, "__kwdefaults__", None)]
    found += _closed_over(plain)
    return _said(found) if any(value is not None for value in found) else ""


def _closed_over(function: Any) -> list[Any]:
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            found.append(None)
    return found


def _said(value: Any, depth: int = 8) -> str:
    """A value in words that are the same in every process (no addresses, sets in order); of what is not plain only
    the type."""
    if isinstance(value, CodeType) and depth:
        words = (_said(constant, depth - 1) for constant in value.co_consts)
        return f"code({value.co_code!r}, {value.co_names!r}, {', '.join(words)})"
    if inspect.isfunction(value) and depth:
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, _closed_over(value))
        return f"function({', '.join(_said(part, depth - 1) for part in parts)})"
    if type(value) in (list, tuple, set, frozenset) and depth:
        words = (_said(one, depth - 1) for one in value)
        return f"{type(value).__name__}({', '.join(words if isinstance(value, list | tuple) else sorted(words))})"
    if type(value) is dict and depth:
        return f"dict({', '.join(f'{_said(k, depth - 1)}: {_said(v, depth - 1)}' for k, v in value.items())})"
    if type(value) in (type(None), bool, int, float, complex, str, bytes, type(...)):
        return repr(value)
    return f"a {type(value).__name__}"


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
    plain = _plain(function)
    scope = getattr(plain, "__globals__", {})
    todo, seen = [getattr(plain, "__code__", None)], set[int]()
    while todo and len(seen) < 200:
        code = todo.pop()
        if not isinstance(code, CodeType) or id(code) in seen:
            continue
        seen.add(id(code))
        if "content" in code.co_consts:
            return "chat"
        todo.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
        called = [_plain(scope[name]) for name in code.co_names if callable(scope.get(name))]
        todo.extend(one.__code__ for one in called if getattr(one, "__globals__", None) is scope)
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
        if source.options is not None:
            one = Loaded(function=function, style="group", form="text", code=_code_of_judge(function))
        else:
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
    LOADED[source.name] = one
    return {"style": one.style, "form": one.form, "code": one.code}


def _code_of_judge(function: Any) -> str:
    """`code_of` but for where its cache is, which a moved run folder changes."""
    options = {name: value for name, value in function.keywords.items() if name != "cache"}
    return code_of(functools.partial(function.func, **options))


def describe(error: BaseException) -> str:
    """`ValueError: message (file.py:12)`: the last place in the user's own code, one line, bounded."""
    try:
        message = " ".join(str(error).split())[:DETAIL_LIMIT]
    except BaseException:
        message = ""
    foreign = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(foreign)]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"
