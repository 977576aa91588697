"""Recipes: small YAML files, read with dotted overrides and validated into a `Run`.

Unknown keys are refused with the nearest name.
"""

from __future__ import annotations

import datetime
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fovea.config.run import Run
from fovea.types import UserError

RECIPES = Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes shipped with the package; one in a folder is called FOLDER/NAME."""
    return _shipped(".yaml")


def study_names() -> list[str]:
    """Names of the studies shipped with the package; one in a folder is called FOLDER/NAME."""
    return _shipped(".py")


def _shipped(suffix: str) -> list[str]:
    """Files of `RECIPES` and of its folders, not deeper; what begins with an underscore is none."""
    found = [*RECIPES.glob(f"*{suffix}"), *RECIPES.glob(f"*/*{suffix}")]
    names = (path.relative_to(RECIPES).with_suffix("").as_posix() for path in found if path.name[0] != "_")
    return sorted(names)


def load_run(recipe: str, overrides: list[str] | None = None) -> Run:
    """Read a recipe (built-in name or path of a YAML file), apply `key=value` overrides, validate.

    Overrides that name other problems (`data`, `task`) drop the recipe's rewards with their options: those that are
    named beside them are all there are, and without any the problems' own are taken. A recipe that names a file
    itself is written for any file of its kind and keeps its rewards for another.
    Raises UserError for a missing recipe, broken YAML, an unknown key or a bad value.
    """
    values = _read_recipe(recipe)
    keys = {key: text for key, _, text in (override.partition("=") for override in overrides or [])}
    other_file = keys.get("data", "null") != "null" and values.get("data") is None
    mixed = any(key.partition(".")[0] == "mixture" for key in keys)
    moved = other_file or mixed or keys.get("task", values.get("task")) != values.get("task")
    if "task" in keys and not mixed:
        values.pop("mixture", None)  # the task that is named is meant
    if moved:  # those of the recipe are for its own kind of answer
        values |= {"rewards": {}, "reward_options": {}}
    for override in overrides or []:
        apply_override(values, override)
    values["recipe"] = values.get("recipe") or recipe
    try:
        run = Run.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, recipe)) from None
    if run.data is None and run.validation_data is not None:
        raise UserError(f"validation_data={run.validation_data} needs data=FILE beside it, to train on.")
    if run.data is not None and "task" in keys:
        raise UserError(f"task={run.task} and data={run.data} are both given; leave one of them away.")
    if run.data is not None and mixed:
        raise UserError(f"mixture and data={run.data} are both given; leave one of them away.")
    if "task" in keys and mixed:
        raise UserError(f"task={run.task} and mixture are both given; leave one of them away.")
    return run


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{recipe}.yaml"
        if not path.is_file():
            raise UserError(
                f"There is no recipe {recipe!r}{nearest(recipe, recipe_names())}; "
                f"built-in recipes: {', '.join(recipe_names())}, or give the path of a .yaml file."
            )
    if not path.is_file():
        raise UserError(f"The recipe file {recipe} does not exist; `fovea recipes` lists the built-in ones.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"{recipe} cannot be read: {error.strerror}; check its permissions.") from None
    # ValueError: PyYAML lets the date 2024-13-45 fail in datetime; UnicodeDecodeError is one too.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{recipe} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{recipe} must hold `key: value` lines, not a {type(values).__name__}.")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted `key=value`; the value is read as YAML (numbers, lists and null as in a recipe)."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not an override; write key=value, for example steps=10.")
    if not text.strip():  # data=$UNSET must not train on something else
        raise UserError(f"{key}= has no value; write {key}=VALUE, or {key}=null for none.")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    if isinstance(value, datetime.date):  # run_dir=2025-01-31 is a name, not a date
        value = text
    node = values
    *parents, last = key.split(".")
    if parents[:1] == ["rewards"]:  # rewards.my_rewards.py:short=1: the rest is one name
        parents, last = ["rewards"], key.removeprefix("rewards.")
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise UserError(f"{key}: {name} is a single value and has no parts; write {name}=VALUE.")
    node[last] = value


def explain(error: ValidationError, recipe: str) -> str:
    """The first thing that is wrong, as one sentence with the fix."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" ({error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = _nearest_key(str(first["loc"][-1]), known)
        return f"Recipe {recipe}: there is no key {where!r}{near}; known: {', '.join(known)}.{more}"
    if first["type"] in ("model_type", "dict_type"):
        part = next(iter(_known_keys(first["loc"])), "NAME") if first["type"] == "model_type" else "NAME"
        return f"Recipe {recipe}: {where} is a group of values, not one; write {where}.{part}=VALUE.{more}"
    if (
        first["type"] == "value_error"
    ):  # a sentence of ours; about a group of values it names the one it means
        given = first.get("input")
        what = where if isinstance(given, dict) else f"{where}={given!r} is not allowed"
        return f"Recipe {recipe}: {what}: {first['ctx']['error']}.{more}"
    return f"Recipe {recipe}: {where}={first.get('input')!r} is not allowed: {first['msg'].lower()}.{more}"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    model: Any = Run
    for name in loc:
        model = model.model_fields[name].annotation
    return list(model.model_fields)


def _nearest_key(key: str, known: list[str]) -> str:
    """`nearest` among the keys beside it and, by their last part, those of all sections."""
    fields = Run.model_fields
    sections = [name for name in fields if hasattr(fields[name].annotation, "model_fields")]
    full = {part: f"{section}.{part}" for section in sections for part in _known_keys((section,))}
    full |= {name: name for name in known}
    close = difflib.get_close_matches(key, list(full), n=1, cutoff=0.5)
    return f" (did you mean {full[close[0]]!r}?)" if close else ""


def nearest(name: str, known: list[str]) -> str:
    """` (did you mean 'X'?)` for the known name closest to a misspelt one, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
