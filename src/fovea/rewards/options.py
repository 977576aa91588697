"""Options of built-in rewards: what a recipe may say under `reward_options`, checked against the signatures.

A built-in reward is `(text, problem, *, option=default, …)`. Two names are not the recipe's to give, the caller passes
them where the signature has them: `tokens` (length of the reply in tokens) and `options` (those of all rewards, for
one that routes to others). `compat` may be given to one reward, or to all by the recipe's key of that name.
Not here: the rewards (`functions.py`).

Try it: `check_options(REWARDS, {"iou": {"compat": "vlm_r1"}})` gives it back; `{"iou": {"compat": "r1"}}` is refused.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, get_type_hints

from fovea.rewards.matching import Compat
from fovea.types import UserError

Function: TypeAlias = Callable[..., float]
"""`(text, problem, *, option=default, …) -> float`: a `fovea.types.Reward` with options."""

Options: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Name of a reward → option → value."""

PASSED = ("tokens", "options")
"""Options that the caller gives, never the recipe."""


@functools.cache
def parameters_of(function: Function) -> dict[str, inspect.Parameter]:
    """Name → parameter of each option of a reward: what follows (text, problem)."""
    return dict(list(inspect.signature(function).parameters.items())[2:])


def options_of(function: Function) -> dict[str, Any]:
    """Name → default of each option that a recipe may give."""
    return {name: one.default for name, one in parameters_of(function).items() if name not in PASSED}


def check_options(rewards: Mapping[str, Function], options: Options | None) -> dict[str, dict[str, Any]]:
    """The options as the functions want them (`"3"` as 3 where a whole number is wanted).

    Raises UserError for a reward or an option that is not there and for a value of another type or not finite.
    """
    return {
        name: {option: _value(rewards, name, option, value) for option, value in given.items()}
        for name, given in (options or {}).items()
        if _known(rewards, name)
    }


def _known(rewards: Mapping[str, Function], name: str) -> bool:
    if name in rewards:
        return True
    from fovea.config import nearest  # it would be half of what a reward worker imports

    having = [known for known, function in rewards.items() if options_of(function)]
    raise UserError(
        f"reward_options.{name}: there is no built-in reward {name!r}{nearest(name, list(rewards))}; those with "
        f"options: {', '.join(having)} (a function of your own takes its options from functools.partial)."
    )


def _value(rewards: Mapping[str, Function], name: str, option: str, value: Any) -> Any:
    from pydantic import ValidationError  # likewise

    function = rewards[name]
    known = options_of(function)
    if option not in known:
        from fovea.config import nearest

        there = f"known: {', '.join(known)}" if known else "it has none"
        raise UserError(f"Reward {name!r} has no option {option!r}{nearest(option, list(known))}; {there}.")
    try:
        wants_bool, adapter = _adapter(function, option)
        if isinstance(value, bool) and not wants_bool:
            raise TypeError("input should not be true or false")
        found = adapter.validate_python(value)
    except ValidationError as error:
        said = error.errors()[-1 if value is None else 0]["msg"].lower()
    except TypeError as error:
        said = str(error)
    else:
        if not isinstance(found, float) or math.isfinite(found):
            return found
        said = "give a finite number"
    raise UserError(f"reward_options.{name}.{option}={value!r} is not allowed: {said}.")


@functools.cache
def _adapter(function: Function, option: str) -> tuple[bool, Any]:
    """(whether the option is a bool, pydantic's validator of its type)."""
    from pydantic import TypeAdapter

    hint = get_type_hints(function, include_extras=True)[option]
    return hint is bool, TypeAdapter(hint)


def with_compat(
    rewards: Mapping[str, Function], options: Options | None, compat: Compat
) -> dict[str, dict[str, Any]]:
    """Checked options in which every reward that has the option `compat` and is not given one has this one."""
    found = check_options(rewards, options)
    if compat is not None:
        for name, function in rewards.items():
            if "compat" in parameters_of(function):
                found[name] = {"compat": compat} | found.get(name, {})
    return found


def plain_sum(weights: Mapping[str, float], compat: Compat) -> dict[str, float]:
    """The weights that count: with compat="vlm_r1" each is 1, for the original never reads its reward weights.

    A weight of 0 stays 0: that is a reward which is only watched.
    """
    return {name: float(weight != 0) if compat else weight for name, weight in weights.items()}


def bind(function: Function, name: str, options: Options) -> Callable[[str, Any, int | None], float]:
    """The reward as (text, problem, tokens) → number, with its options in place. `options`: of all rewards."""
    own = dict(options.get(name, {}))
    wanted = parameters_of(function)
    if "options" in wanted:
        own["options"] = options
    if "tokens" not in wanted:
        return lambda text, problem, tokens: function(text, problem, **own)
    return lambda text, problem, tokens: function(text, problem, tokens=tokens, **own)


def lengths(tokens: Sequence[int | None] | None, texts: Sequence[str]) -> Sequence[int | None]:
    """Length of each reply in tokens; None where it is not known."""
    return [None] * len(texts) if tokens is None else tokens
