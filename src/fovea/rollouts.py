"""Problems × engine → groups with rewards → samples with advantages and loss weights. Single-turn for now.

Not here: how replies are drawn (`engines`), what they are worth (`rewards`), the update (`training`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fovea.algorithms import Algorithm, group_advantages, token_weights
from fovea.engines import Engine
from fovea.models import Policy, Prompt
from fovea.models.policy import named
from fovea.rewards import correct, weigh
from fovea.types import AnswerKind, Group, Problem, Sample, Sampling, Task, UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A problem that could not be shown to the model: its picture is gone, it does not fit the context.

    Example: BadSample(id="my:12", error="line 12: the picture cat.png does not exist; …")
    """

    id: str
    """The problem's id; `TASK:position N` when the task could not even make the problem."""
    error: str
    """One sentence: what is wrong, where, the fix."""
    position: int = 0
    """The cursor it was taken with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """The next problems of a task as prompts, and those that cannot be one."""

    prompts: tuple[Prompt, ...]
    bad: tuple[BadSample, ...]
    cursor: int
    """Where the next problems begin."""


def gather(
    task: Task,
    cursor: int,
    n: int,
    policy: Policy,
    instruction: str | None = None,
    check: Callable[[Prompt], object] | None = None,
) -> Gathered:
    """Take `n` problems one by one and render them; one that raises UserError becomes a `BadSample`.

    Nothing is drawn in place of a bad one: `len(prompts) + len(bad) == n`, so that what comes next does not
    depend on it. `check` may refuse a prompt, too (a teacher's reply that does not fit).
    """
    prompts: list[Prompt] = []
    bad: list[BadSample] = []
    for position in range(cursor, cursor + n):
        name = f"{task.name}:position {position}"
        try:
            (problem,), _ = task.take(position, 1)
            name = problem.id
            prompt = policy.prompt(problem, instruction)
            try:
                if check is not None:
                    check(prompt)
            except UserError as error:
                raise UserError(named(problem, str(error))) from error
        except UserError as error:
            bad.append(BadSample(id=name, error=str(error), position=position))
        else:
            prompts.append(prompt)
    return Gathered(prompts=tuple(prompts), bad=tuple(bad), cursor=cursor + n)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Some problems of another task, in order: what is left of it without the bad ones."""

    task: Task
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def kind(self) -> AnswerKind:
        return self.task.kind

    @property
    def chance(self) -> float:
        return self.task.chance

    @property
    def size(self) -> int:
        return len(self.positions)

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        """Once through, no second epoch: fewer than `n` at the end."""
        taken = self.positions[cursor : cursor + n]
        return [self.task.take(position, 1)[0][0] for position in taken], cursor + n


def without_bad(
    task: Task, n: int, policy: Policy, instruction: str | None = None
) -> tuple[Chosen, tuple[BadSample, ...]]:
    """The first `n` problems of a task without those that cannot be shown to the model, and those.

    For evaluations: render everything once, a few at a time, when one of them failed. Raises UserError when none
    is left.
    """
    bad: list[BadSample] = []
    for position in range(0, n, 16):
        bad.extend(gather(task, position, min(16, n - position), policy, instruction).bad)
    gone = {one.position for one in bad}
    kept = tuple(position for position in range(n) if position not in gone)
    if not kept:
        raise UserError(f"All {n} problems of {task.name} are bad, the first one because: {bad[0].error}")
    return Chosen(task=task, positions=kept), tuple(bad)


def collect(
    prompts: Sequence[Prompt],
    engine: Engine,
    sampling: Sampling,
    weights: Mapping[str, float],
    *,
    group: int,
    seed: tuple[int, int],
) -> list[Group]:
    """Draw `group` replies to each prompt and reward them. Groups in the order of `prompts`."""
    groups = []
    for prompt, completions in zip(
        prompts, engine.generate(prompts, group, sampling, seed=seed), strict=True
    ):
        rewards, parts = weigh([completion.text for completion in completions], prompt.problem, weights)
        groups.append(
            Group(
                problem=prompt.problem, prompt=prompt, completions=completions, rewards=rewards, parts=parts
            )
        )
    return groups


def to_samples(groups: Sequence[Group], algorithm: Algorithm, longest: int) -> list[Sample]:
    """One sample a completion, in order. `longest`: the generation budget (Dr. GRPO's denominator)."""
    rows = [(g, completion) for g, group in enumerate(groups) for completion in group.completions]
    masks = [np.ones(len(completion.token_ids), np.float32) for _, completion in rows]
    weights = token_weights(masks, [g for g, _ in rows], algorithm, longest=longest)
    advantages = np.concatenate([group_advantages(group.rewards, algorithm).numpy() for group in groups])
    return [
        Sample(
            sampled_prompt=groups[g].prompt,
            trained_prompt=groups[g].prompt,
            token_ids=completion.token_ids,
            old_log_probs=completion.log_probs,
            weights=weight,
            advantage=np.full(len(completion.token_ids), advantage, np.float32),
            group=g,
        )
        for (g, completion), weight, advantage in zip(rows, weights, advantages, strict=True)
    ]


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What a step's replies say: reward by part, accuracy, entropy, length.

    `entropy` is the mean over sampled tokens of -log p(token), an unbiased estimate of the mean per-token
    entropy of the sampling distribution, in nats. `groups_skipped`: groups whose rewards are all equal.
    """
    completions = [completion for group in groups for completion in group.completions]
    log_probs = np.concatenate([completion.log_probs for completion in completions])
    right = [correct(completion.text, group.problem) for group in groups for completion in group.completions]
    metrics = {"reward_mean": float(np.mean([group.rewards for group in groups]))}
    for name in groups[0].parts:
        metrics[f"reward/{name}"] = float(np.mean([group.parts[name] for group in groups]))
    return metrics | {
        "accuracy": float(np.mean(right)),
        "entropy": float(-log_probs.mean(dtype=np.float64)),
        "completion_tokens": len(log_probs) / len(completions),
        "truncated": float(np.mean([completion.stop == "length" for completion in completions])),
        "groups_skipped": sum(bool((group.rewards == group.rewards[0]).all()) for group in groups),
        "tokens": len(log_probs),
    }


def shown(group: Group, advantages: np.ndarray, pictures: list[str]) -> list[dict[str, Any]]:
    """The completions of a group as plain records for the log and the display."""
    return [
        {
            "id": group.problem.id,
            "question": group.problem.question,
            "pictures": pictures,
            "answer": group.problem.answer,
            "frame": group.problem.frame,
            "text": completion.text,
            "stop": completion.stop,
            "reward": float(group.rewards[i]),
            "parts": {name: float(part[i]) for name, part in group.parts.items()},
            "advantage": float(advantages[i]),
            "mean_log_prob": float(completion.log_probs.mean()),
            "variant": completion.variant,
            "policy_version": completion.policy_version,
        }
        for i, completion in enumerate(group.completions)
    ]
