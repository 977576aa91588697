"""A recipe is a small YAML file; a `Run` is its resolved, validated, frozen form.

`load_run("quickstart", ["steps=10", "rewards.iou=2"])` reads a built-in or a user's recipe, applies dotted
overrides and validates. Unknown keys are refused with the nearest name. Nothing here knows what a task or a
model is: names are checked where they are looked up.
"""

from __future__ import annotations

import datetime
import difflib
import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fovea.types import UserError

RECIPES = Path(__file__).parent / "recipes"

INSTRUCTIONS = ("plain", "think", "think_json", "think_first")
"""Names that `instruction` may have; the texts: `fovea.training.problems`."""


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
    """Which optimizer and its schedule (`fovea.training.optim`)."""

    learning_rate: float = Field(default=1e-6, gt=0, description="at its peak")
    name: Literal["adamw", "adafactor", "muon", "adamw_8bit", "paged_adamw_8bit"] = Field(
        default="adamw", description="adafactor and the 8-bit ones (extra `bitsandbytes`) need less memory"
    )
    vision_learning_rate: float | None = Field(
        default=None, gt=0, description="of the vision tower and the projector; default: learning_rate"
    )
    warmup_steps: int = Field(default=0, ge=0, description="linear warm-up")
    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        default="constant",
        description="wsd: constant, then linear decay over the last decay_ratio of the run",
    )
    min_ratio: float = Field(
        default=0.0, ge=0, le=1, description="the schedule ends at this share of the learning rate"
    )
    decay_ratio: float = Field(default=0.1, gt=0, le=1, description="share of the steps in which wsd decays")
    weight_decay: float = Field(default=0.0, ge=0, description="of matrices; vectors are never decayed")
    beta2: float = Field(default=0.999, gt=0, lt=1, description="decay of AdamW's second moment")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="gradients are scaled down to this global norm"
    )
    master_weights: bool = Field(
        default=True, description="with dtype=bfloat16: the optimizer works on float32 copies of the weights"
    )


class FinetuneSection(Section):
    """Which weights are trained (`fovea.models.finetune`)."""

    mode: Literal["full", "lora", "qlora"] = Field(
        default="full", description="qlora: lora on a 4-bit base (extra `bitsandbytes`)"
    )
    rank: int = Field(default=16, ge=1, description="r of the low-rank matrices")
    alpha: int = Field(default=32, ge=1, description="the low-rank product is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("text",),
        min_length=1,
        description="parts whose linear layers get an adapter (text, vision, projector), or regular "
        "expressions on module names",
    )
    dropout: float = Field(default=0.0, ge=0, description="must be 0: rollout and update must agree")

    @field_validator("targets", mode="before")
    @classmethod
    def _one_target(cls, value: Any) -> Any:
        """`finetune.targets=text` means `[text]`."""
        return (value,) if isinstance(value, str) else value


class AlgorithmSection(Section):
    """Which advantages and which loss (`fovea.algorithms`). What is left away is the named algorithm's own value."""

    name: str = Field(default="grpo", description="a name from `fovea.algorithms.ALGORITHMS`")
    clip: float | None = Field(default=None, gt=0, lt=1, description="both bounds of the ratio clip")
    clip_low: float | None = Field(default=None, gt=0, description="the ratio is clipped below 1 - this")
    clip_high: float | None = Field(default=None, gt=0, description="the ratio is clipped above 1 + this")
    delta: float | None = Field(
        default=None, gt=1, description="two-sided clip: the largest ratio where the advantage is negative"
    )
    scale: Literal["group_std", "batch_std", "whiten", "none"] | None = Field(
        default=None, description="what an advantage is divided by"
    )
    updates_per_rollout: int = Field(
        default=1, ge=1, description="times that the same completions are learned from (mu)"
    )
    prompts_per_update: int | None = Field(
        default=None, ge=1, description="problems an optimizer step; default: all of the step's"
    )
    beta: float | None = Field(default=None, ge=0, description="weight of the KL to the reference policy")
    kl: Literal["k1", "k2", "k3"] | None = Field(default=None, description="estimator of that KL")
    kl_in: Literal["loss", "reward", "reward_to_go"] | None = Field(
        default=None, description="where that KL is taken off"
    )
    kl_ratio: bool | None = Field(default=None, description="weigh the KL in the loss by the ratio")
    old_log_probs: Literal["sampled", "recomputed"] | None = Field(
        default=None,
        description="old log-probs: the engine's, or computed again before the first update; default: sampled, in "
        "bfloat16 recomputed",
    )
    correction: (
        Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = Field(default=None, description="importance weight where the engine's log-probs differ")
    correction_cap: float | None = Field(default=None, gt=0, description="largest importance weight")
    resample_limit: int | None = Field(
        default=None, ge=0, description="rounds in which groups without signal are drawn anew"
    )
    overlong: float | None = Field(
        default=None, ge=0, le=1, description="share of the budget over which length is punished"
    )
    mask_truncated: bool | None = Field(
        default=None, description="leave replies without an end out of the loss"
    )
    entropy_bonus: float = Field(
        default=0.0, ge=0, description="weight of the mean entropy, added to the aim"
    )
    top_entropy: float = Field(
        default=1.0, gt=0, le=1, description="learn from this share of the tokens, those of highest entropy"
    )
    clip_cov: float = Field(
        default=0.0, ge=0, lt=1, description="share of high-covariance tokens without gradient (Clip-Cov)"
    )
    kl_cov: float = Field(
        default=0.0, ge=0, lt=1, description="share of tokens of highest covariance under a KL (KL-Cov)"
    )
    replay: int = Field(default=0, ge=0, description="completions kept for later steps; 0: none")
    replay_alpha: float | None = Field(default=None, ge=0, description="drawn with weight |advantage|^alpha")
    replay_age: int | None = Field(default=None, ge=1, description="steps that a completion is kept")


class EvaluationSection(Section):
    """How often and how much the held-out split is measured."""

    every: int = Field(default=0, ge=0, description="steps between evaluations; 0: only before and after")
    n: int | Literal["all"] = Field(
        default=512, description="held-out problems before and after; all: as many as there are"
    )
    during: int = Field(default=128, ge=1, description="validation problems in the evaluations on the way")
    split: Literal["validation", "test"] = Field(
        default="test", description="split of the evaluation before and after"
    )
    samples: int = Field(
        default=0, ge=0, description="sampled replies a problem for pass@k before and after; 0: none"
    )
    metric: str = Field(
        default="accuracy", description="the figure of an evaluation on the way that best and patience go by"
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="evaluations on the way without a rise of metric after which the run ends; 0: never",
    )

    @field_validator("n", mode="before")
    @classmethod
    def _a_number_or_all(cls, value: Any) -> Any:
        """One sentence for both of its types."""
        whole = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 1 <= value < math.inf
            and value == int(value)
        )
        if value != "all" and not whole:
            raise ValueError("write a whole number, 1 or more, or all")
        return value


class ProblemsSection(Section):
    """How files of annotations become problems, and what a whole file declares (`fovea.tasks.sources`)."""

    ask: Literal["ovd", "rec", "count"] = Field(
        default="ovd", description="of COCO files: every box of some categories, the one box, or how many"
    )
    question: str | None = Field(
        default=None,
        description="of COCO and RefCOCO files: the question's words around {targets} (ovd), {query} (rec) or "
        "{category} (count); default: VLM-R1's",
    )
    negatives: tuple[int, int] = Field(
        default=(1, 3), description="ovd: absent categories among those asked, least and most"
    )
    empty: float = Field(
        default=0.0, ge=0, le=1, description="ovd, count: share of the pictures asked for what is not there"
    )
    max_boxes: int | None = Field(
        default=None, ge=1, description="a category with more boxes in a picture is not asked there"
    )
    min_area: float = Field(
        default=0.0, ge=0, description="a category with a smaller box (square pixels) is not asked there"
    )
    crowds: Literal["leave_out", "keep"] = Field(
        default="leave_out",
        description="ovd: a category with a crowd box is not asked, or its crowd is marked",
    )
    instances: str | None = Field(
        default=None,
        description="COCO file that RefCOCO's refs point into; default: instances.json beside it",
    )
    kind: Literal["box", "text", "number", "choice", "objects", "math", "order", "set"] | None = Field(
        default=None, description="kind of answer of lines that declare none"
    )
    frame: Literal["pixels", "resized", "thousandths", "unit"] | None = Field(
        default=None, description="how boxes are written in lines that declare nothing; default: pixels"
    )
    resized: tuple[int, int] | None = Field(
        default=None, description="width and height that boxes with frame resized refer to"
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="of the categories that are drawn: the same problems whatever the run's seed",
    )

    @field_validator("negatives")
    @classmethod
    def _a_range(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError("write [least, most], for example [1, 3]")
        return value

    @field_validator("resized")
    @classmethod
    def _a_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < 1:
            raise ValueError("write [width, height] in pixels")
        return value


class Run(Section):
    """Everything that decides a run. `run.json` holds it whole; equal runs write equal logs, times aside."""

    recipe: str = Field(default="", description="where it came from (set by the loader)")
    method: Literal["rl", "sft"] = Field(
        default="rl", description="from rewards, or from the teacher's replies (`fovea sft`)"
    )
    task: str = Field(
        default="digits/locate", description="a name from `fovea tasks list`; ignored when data is given"
    )
    data: str | tuple[str, ...] | None = Field(
        default=None, description="a file or folder of problems, or a list of them (docs/data.md)"
    )
    validation_data: str | tuple[str, ...] | None = Field(
        default=None, description="held-out file or list; default: every 10th line of data"
    )
    images: str | tuple[str, ...] | None = Field(
        default=None,
        description="folder that relative picture paths in data start from, or one for each file",
    )
    model: str = Field(
        default="fovea-tiny", description="'fovea-tiny', a folder, or a hub name (with download=true)"
    )
    download: bool = Field(default=False, description="allow fetching model files from the hub")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="of the weights")
    freeze: tuple[Literal["vision", "projector", "text"], ...] = Field(
        default=(), description="parts that are not trained"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="layers are computed again in the backward pass: less memory, more time"
    )
    preflight: Literal["refuse", "warn", "off"] = Field(
        default="refuse", description="what happens to a run whose first step would not fit into memory"
    )
    reference_model: str | None = Field(
        default=None, description="model of the KL reference; default: the run's own at its start"
    )
    reference_sync_steps: int = Field(
        default=0, ge=0, description="steps after which the reference becomes the policy; 0: never"
    )
    min_pixels: int | None = Field(
        default=None, ge=1, description="smallest picture after the resize; default: the processor's"
    )
    max_pixels: int | None = Field(
        default=None,
        ge=1,
        description="largest picture after the resize (all its tiles together); default: the processor's",
    )
    instruction: str | None = Field(
        default=None,
        description="text appended to every question, or put around its {question}, or a name: plain, think, "
        "think_json, think_first; default: the task's own",
    )
    rewards: dict[str, float] = Field(
        default_factory=dict,
        description="reward name (built in, path/file.py:function or package.module:function) to weight; empty: the "
        "task's own",
    )
    reward_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="built-in reward to its options (`fovea score --list`): reward_options.cosine.max_tokens=512",
    )
    compat: Literal["vlm_r1"] | None = Field(
        default=None,
        description="vlm_r1: every reward as VLM-R1's code computes it, its bugs included, and their sum without "
        "weights (docs/rewards.md)",
    )
    reward_timeout: float = Field(
        default=30.0, gt=0, description="seconds that a reward function of yours may take for one group"
    )
    on_reward_error: Literal["stop", "zero"] = Field(
        default="stop",
        description="a reward function of yours that fails on a completion stops the run, or the completion gets "
        "reward_on_error",
    )
    reward_on_error: float = Field(default=0.0, description="with on_reward_error=zero: value of that reward")
    reward_workers: int = Field(
        default=1, ge=1, description="processes for reward functions of yours: groups scored at the same time"
    )
    reward_memory_gb: float | None = Field(
        default=None, gt=0, description="private memory of such a process; default: half of the machine's"
    )
    reward_completions: Literal["auto", "text", "chat"] = Field(
        default="auto",
        description="what TRL's reward functions get: texts, or chat messages; auto: chat if they read 'content'",
    )
    audits: tuple[str, ...] = Field(
        default=(),
        description="rewards or metrics that are watched and never optimised (`fovea.audits`)",
    )
    prompts: int = Field(default=16, ge=1, description="problems a step")
    group: int = Field(default=8, ge=1, description="completions a problem (G)")
    steps: int = Field(default=100, ge=0, description="of the whole run; one takes `prompts` problems")
    cpu_seconds: float | None = Field(
        default=None, gt=0, description="stop after so many CPU seconds of training steps"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of everything that is drawn")
    run_dir: str | None = Field(default=None, description="default: runs/RECIPE-seedSEED")
    save_every: int = Field(
        default=50,
        ge=0,
        description="steps between checkpoints; 0: only the last, and when the run is stopped",
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, description="newest checkpoints that are kept, besides the best one"
    )
    show_every: int = Field(
        default=10, ge=0, description="steps between logged completions with their picture; 0: none"
    )
    show_groups: int = Field(default=4, ge=1, description="problems whose completions are logged then")
    max_nonfinite: int = Field(
        default=5,
        ge=1,
        description="steps in a row with a loss or gradient that is not finite (skipped) that end the run",
    )
    deterministic: bool = Field(
        default=False,
        description="refuse GPU kernels whose result differs from call to call (CPU: always so)",
    )
    tokens_per_pass: int = Field(
        default=8192, ge=1, description="completion tokens in one forward and backward pass"
    )
    vision_cache_gib: float = Field(
        default=1.0,
        ge=0,
        description="memory (CPU) for the features of pictures seen, while vision tower and projector are frozen",
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
    finetune: FinetuneSection = FinetuneSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    evaluation: EvaluationSection = EvaluationSection()
    problems: ProblemsSection = ProblemsSection()

    @field_validator("data", "validation_data", "images")
    @classmethod
    def _some_files(cls, value: Any) -> Any:
        """`data=[]` must not train on something else."""
        if value == ():
            raise ValueError("an empty list names no file; leave the key away or write null")
        return value

    @field_validator("instruction")
    @classmethod
    def _a_name_or_a_text(cls, value: str | None) -> str | None:
        """A misspelt name must not become the text that every question ends with; `/no_think` may."""
        if value is None or value in INSTRUCTIONS or len(value.split()) != 1:
            return value
        near = difflib.get_close_matches(value.strip().lower(), INSTRUCTIONS, n=1, cutoff=0.8)
        if near:
            raise ValueError(f"did you mean {near[0]!r}? a text of one word is not an instruction")
        return value

    @field_validator("freeze", "audits", mode="before")
    @classmethod
    def _one_part(cls, value: Any) -> Any:
        """`freeze=vision` means `freeze=[vision]`."""
        return (value,) if isinstance(value, str) else value

    @field_validator("preflight", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML reads the word off as false."""
        return "off" if value is False else value


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
    moved = other_file or keys.get("task", values.get("task")) != values.get("task")
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
