"""What a recipe's `environment:` section means: its game, rules and prompts, and the stages on which it is played.

Not here: playing (`fovea.rollouts.episodes`), one step of learning (`episodes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fovea.config import Run
from fovea.engines import Engine
from fovea.environments.beginnings import Beginnings
from fovea.environments.catalogue import find_game
from fovea.environments.demonstrations import Demonstrations
from fovea.environments.game import Game
from fovea.environments.replies import INSTRUCTIONS
from fovea.environments.spoken import Rules, Spoken
from fovea.episode_evaluation import evaluate_episodes
from fovea.models import Policy, answers_untold
from fovea.models.critic import Critic
from fovea.rewards.loading import Source, describe, find_function
from fovea.rollouts.episodes import Layout, Stage
from fovea.rollouts.turn_rewards import TURN_REWARDS, TurnReward
from fovea.types import Sampling, Task, UserError


def has_environment(run: Run) -> bool:
    return run.environment.name != "none"


def game_of(run: Run) -> Game:
    """Raises UserError for a name that there is not."""
    return find_game(run.environment.name)


def rules_of(run: Run) -> Rules:
    section = run.environment
    return Rules(
        form=section.form,
        thought=section.thought,
        invalid=section.invalid,
        penalty=section.penalty,
        format_reward=section.format_reward,
        max_turns=section.max_turns,
    )


def layout_of(run: Run) -> Layout:
    section = run.environment
    turns = {"single": 1, "window": section.window, "history": None}[section.context]
    return Layout(turns=turns, thoughts=section.earlier_thoughts)


def open_episode_tasks(run: Run, seed: int) -> tuple[Task, Task, Task]:
    """(training, validation, held-out): beginnings of episodes, of `fovea sft` a teacher's turns. `seed`: of the
    episodes that are measured on. Raises UserError for what does not belong beside an environment."""
    section = run.environment
    _refuse(run)
    game, rules = game_of(run), rules_of(run)
    how: dict[str, Any] = {"game": game, "rules": rules, "options": section.options}
    validation = Beginnings(split="validation", seed=seed, **how)
    held_out = Beginnings(split=run.evaluation.split, seed=seed, **how)
    if run.method == "rl":
        return Beginnings(split="train", seed=run.seed, **how), validation, held_out
    layout = layout_of(run)
    teacher = Demonstrations(
        teaching=section.demonstrations,
        seed=run.seed,
        turns=layout.turns,
        thoughts=layout.thoughts,
        **how,
    )
    return teacher, validation, held_out


def _refuse(run: Run) -> None:
    """What does not belong beside an environment, and what would do nothing there. Raises UserError."""
    section = run.environment
    for key in (
        "data",
        "validation_data",
        "mixture",
        "task_options",
        "rewards",
        "reward_options",
        "graph",
        "images",
    ):
        if getattr(run, key):
            raise UserError(
                f"{key} is for questions of one turn; leave it away with environment.name={section.name}."
            )
    if run.difficulty.control:
        raise UserError(
            f"difficulty.control is for tasks with levels, which {section.name} has not; leave it away."
        )
    if section.thought_sft and not (section.form == "tags" and section.thought):
        raise UserError(
            "environment.thought_sft teaches thoughts in <think> tags; it needs environment.form=tags and thought=true."
        )
    if section.invalid == "penalty" and not section.penalty:
        raise UserError(
            "environment.invalid=penalty takes nothing off the reward; give environment.penalty, too."
        )
    if not section.earlier_thoughts and section.context == "single":
        raise UserError(
            "environment.earlier_thoughts=false is of no use: with context=single a prompt holds no earlier replies; "
            "take context=window or history."
        )


def episode_instruction(run: Run) -> str | None:
    """What stands behind every turn's text: the recipe's own instruction, or how a reply is written, unless the model
    was taught that (`instruction=plain`: in any case)."""
    if run.instruction not in (None, "plain"):
        return run.instruction
    if run.instruction is None and answers_untold(run.model):
        return None
    return INSTRUCTIONS[run.environment.form, run.environment.thought]


def open_stage(
    run: Run,
    policy: Policy,
    engine: Engine,
    instruction: str | None,
    *,
    split: str = "train",
    seed: int | None = None,
    sampling: Sampling | None = None,
) -> Stage:
    """Episodes of a split. `seed`, `sampling`: default the run's own."""
    section, game, rules = run.environment, game_of(run), rules_of(run)

    played = game
    if section.isolated:
        from fovea.environments.isolated import isolated

        played = isolated(section.name, reset_seconds=section.deadline, step_seconds=section.deadline)

    def make() -> Any:
        return Spoken(game=played, rules=rules, options=section.options)

    taught = _teacher(run, game) if section.thought_sft else None
    return Stage(
        policy=policy,
        engine=engine,
        sampling=sampling
        or Sampling(temperature=run.sampling.temperature, max_new_tokens=run.sampling.max_new_tokens),
        make=make,
        game=game.name,
        split=split,
        seed=run.seed if seed is None else seed,
        layout=layout_of(run),
        instruction=instruction,
        rewards=turn_rewards(run),
        taught=taught,
    )


def measure_episodes(
    run: Run,
    policy: Policy,
    engine: Engine,
    instruction: str | None,
    n: int,
    *,
    split: str,
    seed: int,
    **how: Any,
) -> dict[str, Any]:
    """`evaluate_episodes` of a run's game on the first `n` episodes of a split. `seed`: which episodes."""
    return evaluate_episodes(
        lambda sampling: open_stage(
            run, policy, engine, instruction, split=split, seed=seed, sampling=sampling
        ),
        game_of(run),
        n,
        seed=run.seed,
        max_new_tokens=run.sampling.max_new_tokens,
        temperature=run.sampling.temperature,
        **how,
    )


def open_critic(run: Run, policy: Policy, stop_gradient: bool) -> Critic:
    """A fresh critic for the policy, drawn from the run's seed."""
    width = int(policy.model.config.get_text_config().hidden_size)
    critic = Critic(width, run.critic.hidden, stop_gradient=stop_gradient, seed=run.seed)
    return critic.to(policy.device)


def turn_rewards(run: Run) -> dict[str, tuple[TurnReward, float]]:
    """The recipe's further rewards of a turn. Raises UserError for a name that there is not."""
    found: dict[str, tuple[TurnReward, float]] = {}
    for name, weight in run.environment.turn_rewards.items():
        if name in TURN_REWARDS:
            found[name] = (TURN_REWARDS[name], weight)
            continue
        try:
            function = find_function(Source(name=name))
        except Exception as error:  # the user's own file: whatever it raises
            known = ", ".join(TURN_REWARDS)
            raise UserError(
                f"environment.turn_rewards: {name!r} cannot be used ({describe(error)}); known: {known}, or "
                "path/file.py:function(text, *, before, after)."
            ) from None
        found[name] = (function, weight)
    return found


def _teacher(run: Run, game: Game) -> Any:
    """(info) → what the reply should begin with in that state: the thought in its tags."""

    def taught(info: Mapping[str, Any]) -> str:
        thought = str(info.get("thought", ""))
        return f"<think>{thought}</think>" if thought and run.environment.form == "tags" else ""

    return taught
