"""The sections of a recipe that belong to episodes: the environment and the critic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fovea.config.sections import Section


class EnvironmentSection(Section):
    """What answers back, and how it is played (`fovea.environments`, docs/rl4vlm.md)."""

    name: str = Field(
        default="none",
        description="a game (docs/environments.md): number_line, minigrid, gym:ID, path/file.py:NAME, ...",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="the game's own: environment.options.side=64"
    )
    thought: bool = Field(default=True, description="a thought before every action (chain of thought)")
    form: Literal["tags", "json"] = Field(
        default="tags", description="how a reply says its action: <answer> tags, or JSON as in RL4VLM"
    )
    invalid: Literal["random", "no_op", "penalty", "end"] = Field(
        default="random", description="what is done with a reply that holds no legal action"
    )
    penalty: float = Field(default=0.0, ge=0, description="taken off the reward of such a reply")
    learn_invalid: bool | None = Field(
        default=None,
        description="whether the policy learns from the outcome of such replies; default: unless invalid is random",
    )
    format_reward: float = Field(default=0.0, ge=0, description="added for a reply in the right form")
    turn_rewards: dict[str, float] = Field(
        default_factory=dict,
        description="further rewards of a turn to their weights: state, prediction, or path/file.py:function",
    )
    max_turns: int | None = Field(default=None, ge=1, description="longest episode; default: the game's own")
    turns: int = Field(
        default=8,
        ge=1,
        description="with a critic: turns of every episode a step, then the rest is bootstrapped",
    )
    context: Literal["single", "window", "history"] = Field(
        default="single",
        description="what a prompt holds: this turn's pictures, some turns before it too, or all",
    )
    window: int = Field(default=3, ge=1, description="turns in the prompt, with context=window")
    earlier_thoughts: bool = Field(
        default=True, description="whether earlier replies stand in the prompt with their thoughts"
    )
    demonstrations: Literal["format", "expert"] = Field(
        default="format",
        description="fovea sft: thoughts that transcribe the state and random legal actions, or a solver's actions",
    )
    thought_sft: float = Field(
        default=0.0,
        ge=0,
        description="weight of cross-entropy on a teacher's thoughts for the states met (GTR)",
    )
    isolated: bool = Field(
        default=False, description="every episode in a process of its own, killed after deadline"
    )
    deadline: float = Field(default=60.0, gt=0, description="isolated: seconds for a reset or a step")


class CriticSection(Section):
    """The value head of actor-critic algorithms (`fovea.models.critic`). What is left away is the algorithm's own."""

    hidden: tuple[int, ...] = Field(default=(1024, 512), description="widths between the model's and 1")
    coefficient: float | None = Field(default=None, ge=0, description="weight of its loss")
    clip: float | None = Field(default=None, ge=0, description="of its loss; 0: not clipped")
    stop_gradient: bool | None = Field(default=None, description="its loss leaves the model's weights alone")
    warmup_steps: int | None = Field(default=None, ge=0, description="first steps in which it alone learns")
