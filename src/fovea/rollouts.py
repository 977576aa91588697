"""Problems × engine → groups with rewards → samples with advantages and loss weights. Single-turn for now.

Not here: how replies are drawn (`engines`), what they are worth (`rewards`), the update (`training`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fovea.algorithms import Algorithm, group_advantages, token_weights
from fovea.engines import Engine
from fovea.models import Policy
from fovea.rewards import correct, weigh
from fovea.types import Group, Problem, Sample, Sampling


def collect(
    problems: Sequence[Problem],
    policy: Policy,
    engine: Engine,
    sampling: Sampling,
    weights: Mapping[str, float],
    *,
    group: int,
    seed: tuple[int, int],
    instruction: str | None = None,
) -> list[Group]:
    """Render each problem once, draw `group` replies to each, reward them. Groups in the order of `problems`."""
    prompts = [policy.prompt(problem, instruction) for problem in problems]
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
