"""A recipe is a small YAML file; a `Run` is its resolved, validated, frozen form.

`load_run("quickstart", ["steps=10", "rewards.iou=2"])` reads a built-in or a user's recipe, applies dotted
overrides and validates. Unknown keys are refused with the nearest name. Nothing here knows what a task or a
model is: names are checked where they are looked up.
"""

from __future__ import annotations

import datetime
import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fovea.types import UserError

RECIPES = Path(__file__).parent / "recipes"


class Section(BaseModel):
    """Frozen, no unknown keys, no infinities; `images=7` is the text "7" where a text is wanted."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )


class SamplingSection(Section):
    """How replies are drawn."""

    temperature: float = Field(default=1.0, gt=0, le=10, description="divides the logits while sampling")
    max_new_tokens: int = Field(default=256, ge=1, description="longest reply, in tokens")


class OptimizerSection(Section):
    """AdamW and its schedule."""

    learning_rate: float = Field(default=1e-6, gt=0)
    warmup_steps: int = Field(default=0, ge=0, description="linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(default=0.0, ge=0)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="gradients are scaled down to this global norm"
    )


class AlgorithmSection(Section):
    """Which advantages and which loss (`fovea.algorithms`)."""

    name: str = Field(default="grpo", description="a name from `fovea.algorithms.ALGORITHMS`")
    clip: float = Field(default=0.2, gt=0, lt=1, description="epsilon of the ratio clip")
    updates_per_rollout: int = Field(
        default=1, ge=1, description="optimizer steps on the same completions (mu)"
    )


class EvaluationSection(Section):
    """How often and how much the held-out split is measured."""

    every: int = Field(default=0, ge=0, description="steps between evaluations; 0: only before and after")
    n: int = Field(default=512, ge=1, description="held-out problems before and after")
    during: int = Field(default=128, ge=1, description="validation problems in the evaluations on the way")
    split: Literal["validation", "test"] = Field(
        default="test", description="split of the evaluation before and after"
    )
    samples: int = Field(
        default=0, ge=0, description="sampled replies a problem for pass@k before and after; 0: none"
    )


class Run(Section):
    """Everything that decides a run. `run.json` holds it whole; equal runs write equal logs, times aside."""

    recipe: str = Field(default="", description="where it came from (set by the loader)")
    method: Literal["rl", "sft"] = "rl"
    task: str = Field(
        default="digits/locate", description="a name from `fovea tasks list`; ignored when data is given"
    )
    data: str | None = Field(default=None, description="a JSONL file of problems")
    validation_data: str | None = Field(
        default=None, description="held-out JSONL; default: every 10th line of data"
    )
    images: str | None = Field(
        default=None, description="folder that relative picture paths in data start from"
    )
    model: str = Field(
        default="fovea-tiny", description="'fovea-tiny', a folder, or a hub name (with download=true)"
    )
    download: bool = Field(default=False, description="allow fetching model files from the hub")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    freeze: tuple[Literal["vision", "text"], ...] = Field(
        default=(), description="parts that are not trained"
    )
    instruction: str | None = Field(
        default=None, description="text appended to every question; default: the task's own"
    )
    rewards: dict[str, float] = Field(
        default_factory=dict, description="reward name to weight; empty: the task's own"
    )
    prompts: int = Field(default=16, ge=1, description="problems a step")
    group: int = Field(default=8, ge=1, description="completions a problem (G)")
    steps: int = Field(default=100, ge=0)
    cpu_seconds: float | None = Field(
        default=None, gt=0, description="stop after so many CPU seconds of training steps"
    )
    seed: int = Field(default=0, ge=0)
    run_dir: str | None = Field(default=None, description="default: runs/RECIPE-seedSEED")
    save_every: int = Field(default=0, ge=0, description="steps between checkpoints; 0: only the last")
    show_every: int = Field(
        default=10, ge=0, description="steps between logged completions with their picture; 0: none"
    )
    tokens_per_pass: int = Field(
        default=8192, ge=1, description="completion tokens in one forward and backward pass"
    )
    max_megapixels: float = Field(
        default=100.0, gt=0, description="larger pictures in data are refused by their header"
    )
    verify_pictures: bool = Field(
        default=True, description="decode every picture of data once before training; false: headers only"
    )
    on_bad_sample: Literal["stop", "skip"] = Field(
        default="stop",
        description="a problem that cannot be shown to the model stops the run, or is left out",
    )
    max_bad_samples: int = Field(
        default=100,
        ge=1,
        description="with on_bad_sample=skip: different bad samples that end the run anyway",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: what torch chooses")
    sampling: SamplingSection = SamplingSection()
    optimizer: OptimizerSection = OptimizerSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    evaluation: EvaluationSection = EvaluationSection()

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_part(cls, value: Any) -> Any:
        """`freeze=vision` means `freeze=[vision]`."""
        return (value,) if isinstance(value, str) else value


def recipe_names() -> list[str]:
    """Names of the recipes shipped with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_run(recipe: str, overrides: list[str] | None = None) -> Run:
    """Read a recipe (built-in name or path of a YAML file), apply `key=value` overrides, validate.

    Overrides that name other problems (`data`, `task`) and no rewards get the default rewards of those problems.
    Raises UserError for a missing recipe, broken YAML, an unknown key or a bad value.
    """
    values = _read_recipe(recipe)
    keys = {key: text for key, _, text in (override.partition("=") for override in overrides or [])}
    moved = keys.get("data", "null") != "null" or keys.get("task", values.get("task")) != values.get("task")
    if moved and not any(key.split(".")[0] == "rewards" for key in keys):
        values["rewards"] = {}  # those of the recipe are for its own kind of answer
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
