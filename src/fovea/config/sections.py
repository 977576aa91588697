"""The sections of a recipe: groups of keys that belong together, validated and frozen."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


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
    also: tuple[str, ...] = Field(
        default=(),
        description="further tasks, not trained on, that are measured before and after (downstream)",
    )
    also_n: int = Field(default=256, ge=1, description="problems of each of those")
    metric: str = Field(
        default="accuracy", description="the figure of an evaluation on the way that best and patience go by"
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="evaluations on the way without a rise of metric after which the run ends; 0: never",
    )

    @field_validator("also", mode="before")
    @classmethod
    def _one_task(cls, value: Any) -> Any:
        """`evaluation.also=digits/locate` means `[digits/locate]`."""
        return (value,) if isinstance(value, str) else value

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


class PicturesSection(Section):
    """The pictures that self-supervised tasks are made of (`images`; `fovea.tasks.pool_sources`)."""

    side: int = Field(
        default=448,
        ge=16,
        le=8192,
        description="longest side in pixels of a picture that a self-supervised problem shows",
    )
    max_pixels: int = Field(
        default=1_000_000,
        ge=1024,
        description="larger pictures are scaled down to so many pixels when they are decoded",
    )
    duplicates: Literal["remove", "keep"] = Field(
        default="remove", description="of near-duplicates the first is used, or all, in the same split"
    )
    transductive: bool = Field(
        default=False,
        description="train on the pictures that the evaluations use, too: every picture is in every split",
    )
    depth: str | None = Field(
        default=None, description="folder of depth maps, named as the pictures; default: beside them"
    )


class DifficultySection(Section):
    """How hard self-supervised problems are, and who decides (`fovea.tasks.curriculum`)."""

    level: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="where training begins, and what evaluations ask: 0 easiest, 1 hardest",
    )
    levels: dict[str, float] = Field(default_factory=dict, description="the same for single tasks, by name")
    control: bool = Field(
        default=False,
        description="hold the success of every task between low and high by changing its difficulty",
    )
    low: float = Field(
        default=0.4, ge=0, le=1, description="below this share of right replies it gets easier"
    )
    high: float = Field(default=0.7, ge=0, le=1, description="above this one harder")
    change: float = Field(default=0.1, gt=0, le=1, description="by so much")
    window: int = Field(default=64, ge=1, description="problems of a task that a decision looks back on")

    @model_validator(mode="after")
    def _a_band(self) -> DifficultySection:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        bad = next((name for name, level in self.levels.items() if not 0 <= level <= 1), None)
        if bad is not None:
            raise ValueError(f"levels.{bad} must be 0 to 1")
        return self
