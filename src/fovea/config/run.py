"""A `Run` is everything that decides a run: a recipe's resolved, validated, frozen form."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, field_validator

from fovea.config.episodes import CriticSection, EnvironmentSection
from fovea.config.sections import (
    AlgorithmSection,
    DifficultySection,
    EvaluationSection,
    FinetuneSection,
    InterventionSection,
    OptimizerSection,
    PicturesSection,
    ProblemsSection,
    SamplingSection,
    Section,
)

INSTRUCTIONS = ("plain", "think", "think_json", "think_first")
"""Names that `instruction` may have; the texts: `fovea.training.problems`."""


class Run(Section):
    """Everything that decides a run. `run.json` holds it whole; equal runs write equal logs, times aside."""

    recipe: str = Field(default="", description="where it came from (set by the loader)")
    method: Literal["rl", "sft"] = Field(
        default="rl", description="from rewards, or from the teacher's replies (`fovea sft`)"
    )
    task: str = Field(
        default="digits/locate", description="a name from `fovea tasks list`; ignored when data is given"
    )
    mixture: dict[str, float] = Field(
        default_factory=dict,
        description="several tasks instead of one: name to weight (their shares of the problems)",
    )
    task_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="self-supervised task to its options (docs/ssl4rl.md): task_options.ssl/jigsaw.n=3",
    )
    graph: str | None = Field(
        default=None,
        description="of graph tasks: a file of edges, a GraphML file, or the name of a built-in graph",
    )
    data: str | tuple[str, ...] | None = Field(
        default=None, description="a file or folder of problems, or a list of them (docs/data.md)"
    )
    validation_data: str | tuple[str, ...] | None = Field(
        default=None, description="held-out file or list; default: every 10th line of data"
    )
    images: str | tuple[str, ...] | None = Field(
        default=None,
        description="folder that relative picture paths in data start from, or one for each file; of "
        "self-supervised tasks the pictures (folder, zip, tar, parquet, saved dataset, hub:OWNER/NAME)",
    )
    validation_images: str | tuple[str, ...] | None = Field(
        default=None,
        description="of self-supervised tasks: pictures for validation and test; default: a part of images",
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
    intervention: InterventionSection = InterventionSection()
    environment: EnvironmentSection = EnvironmentSection()
    critic: CriticSection = CriticSection()
    evaluation: EvaluationSection = EvaluationSection()
    problems: ProblemsSection = ProblemsSection()
    pictures: PicturesSection = PicturesSection()
    difficulty: DifficultySection = DifficultySection()

    @field_validator("data", "validation_data", "images", "validation_images")
    @classmethod
    def _some_files(cls, value: Any) -> Any:
        """`data=[]` must not train on something else."""
        if value == ():
            raise ValueError("an empty list names no file; leave the key away or write null")
        return value

    @field_validator("mixture")
    @classmethod
    def _positive_shares(cls, value: dict[str, float]) -> dict[str, float]:
        bad = next((name for name, weight in value.items() if not weight > 0), None)
        if bad is not None:
            raise ValueError(f"the weight of {bad} must be above 0; leave the task away instead")
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
