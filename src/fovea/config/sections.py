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
    critic_learning_rate: float | None = Field(
        default=None, gt=0, description="of the critic of actor-critic algorithms; default: learning_rate"
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
    top_entropy_over: Literal["counted", "selected"] = Field(
        default="counted", description="tokens in that loss's mean: all, or those that are learned from"
    )
    clip_cov: float = Field(
        default=0.0, ge=0, lt=1, description="share of high-covariance tokens without gradient (Clip-Cov)"
    )
    kl_cov: float = Field(
        default=0.0, ge=0, lt=1, description="share of tokens of highest covariance under a KL (KL-Cov)"
    )
    papo: float = Field(
        default=0.0,
        ge=0,
        description="weight of the KL away from the policy that sees masked pictures (PAPO)",
    )
    papo_mask: float = Field(
        default=0.6, gt=0, le=1, description="probability that a block of 14 x 14 pixels is black there"
    )
    papo_entropy: float = Field(
        default=0.0, ge=0, description="weight of PAPO's entropy loss: lowers -log p of the sampled tokens"
    )
    papo_masked_entropy: float = Field(
        default=0.0, ge=0, description="the same under the masked pictures; a gradient only with papo_both"
    )
    papo_both: bool = Field(
        default=False, description="gradient through the masked pictures too (one more backward pass)"
    )
    gamma: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="episodes: discount from turn to turn (token_ppo: from token to token)",
    )
    gae_lambda: float | None = Field(default=None, ge=0, le=1, description="episodes: lambda of the GAE")
    token_gamma: float | None = Field(
        default=None, ge=0, le=1, description="vagen: discount from token to token inside a turn"
    )
    token_lambda: float | None = Field(default=None, ge=0, le=1, description="vagen: lambda there")
    thought_weight: float | None = Field(
        default=None, ge=0, le=1, description="rl4vlm: lambda, weight of the thought's log-probs"
    )
    anchor_weight: float | None = Field(
        default=None, ge=0, description="gigpo: omega, weight of the advantage among equal states"
    )
    replay: int = Field(default=0, ge=0, description="completions kept for later steps; 0: none")
    replay_alpha: float | None = Field(default=None, ge=0, description="drawn with weight |advantage|^alpha")
    replay_age: int | None = Field(default=None, ge=1, description="steps that a completion is kept")


class InterventionSection(Section):
    """What changes the pictures of a second sampling phase (`fovea.interventions`, docs/saei.md)."""

    name: Literal["none", "egas", "random_sign", "noisy_rollout", "rotation", "occlusion", "share"] = Field(
        default="none", description="egas: SaEI, reconstructed; the others are its neighbours (docs/saei.md)"
    )
    share: float = Field(
        default=0.5, gt=0, lt=1, description="part of every group that is sampled under the changed picture"
    )
    ratio: Literal["clean", "adversarial", "corrected", "shared"] = Field(
        default="clean",
        description="the picture that such completions are trained under: the clean one, their own, the clean one with "
        "importance weights, or every one (R1-ShareVL)",
    )
    baseline: Literal["pooled", "halves"] = Field(
        default="pooled", description="advantages among all completions of a group, or of the same phase"
    )
    epsilon: float = Field(
        default=4.0, ge=0, le=255, description="egas, random_sign: largest change of a pixel, in 1/255"
    )
    strength: float | None = Field(
        default=None,
        ge=0,
        description="noisy_rollout: noise level, below 1000 (default 500); rotation: degrees (15); occlusion: share "
        "of the picture (0.1)",
    )
    schedule: Literal["constant", "linear", "cosine", "sigmoid"] = Field(
        default="constant", description="how epsilon or strength falls over the run"
    )
    steepness: float = Field(default=30.0, gt=0, description="of the sigmoid (NoisyRollout's lambda)")
    middle: float = Field(
        default=2 / 3, ge=0, le=1, description="of the sigmoid: part of the run after which half is left"
    )
    attack_steps: int = Field(default=1, ge=1, description="1: FGSM; more: PGD")
    attack_step_size: float | None = Field(
        default=None, gt=0, description="in 1/255; default: epsilon, of PGD 2.5 epsilon / attack_steps"
    )
    restarts: int = Field(default=1, ge=1, description="PGD: searches a problem, the best counts")
    random_start: bool = Field(default=False, description="PGD: begin at a random point of the ball")
    guard: float = Field(
        default=0.0, ge=0, description="PGD: weight of the KL on the tokens that are not selected"
    )
    select: Literal["all", "top_fraction", "bottom_fraction", "band_quantile", "band_absolute"] = Field(
        default="band_quantile", description="egas: tokens whose entropy is raised (TsEC)"
    )
    fraction: float = Field(
        default=0.2, gt=0, le=1, description="share of the tokens that top_fraction and bottom_fraction take"
    )
    band: tuple[float, float] = Field(
        default=(0.6, 0.95), description="band_quantile: quantiles; band_absolute: nats"
    )
    scope: Literal["completion", "group", "batch"] = Field(
        default="group", description="tokens that quantiles are taken of"
    )
    control: bool = Field(
        default=False,
        description="egas, random_sign: fit epsilon (at most its value) to what the second half earns",
    )
    keep: tuple[float, float] = Field(
        default=(0.75, 0.95),
        description="control: epsilon falls where the second half earns less than this part of the first, rises where "
        "it earns more than that",
    )
    max_gain: float = Field(
        default=1.0, gt=0, description="control: epsilon falls above this entropy gain, in nats"
    )
    window: int = Field(default=8, ge=1, description="control: steps between decisions")
    measure_every: int = Field(
        default=10,
        ge=0,
        description="steps between measurements of the entropy under the changed pictures; 0: none",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> InterventionSection:
        low, high = self.band
        if not 0 <= low < high or (self.select == "band_quantile" and high > 1):
            raise ValueError(
                f"band=[{low:g}, {high:g}] must be [low, high], quantiles from 0 to 1 or nats from 0"
            )
        if not 0 <= self.keep[0] < self.keep[1]:
            raise ValueError(
                f"keep=[{self.keep[0]:g}, {self.keep[1]:g}] must be [low, high], parts of a reward from 0"
            )
        if self.name == "noisy_rollout" and (self.strength or 0) >= 1000:
            raise ValueError("strength of noisy_rollout is a noise level below 1000")
        if self.name == "occlusion" and (self.strength or 0) > 1:
            raise ValueError("strength of occlusion is a share of the picture, 0 to 1")
        if self.guard > 0 and self.attack_steps == 1:
            raise ValueError(
                "guard needs attack_steps of 2 or more: at the clean picture the KL has no gradient"
            )
        ball = self.name in ("egas", "random_sign")
        if ball and 0 < self.epsilon < 1:
            raise ValueError(
                f"epsilon={self.epsilon:g} is less than one step of a picture's 255; it is counted in these steps, so "
                "write 4 for 4/255"
            )
        if self.control and not ball:
            raise ValueError("control fits epsilon, which only egas and random_sign have")
        return self


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
