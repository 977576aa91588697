"""Prompts × engine → groups with rewards, and what a step's replies say.

Not here: what is learned from a group (`samples`), in how many phases it is sampled (`fovea.phases`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fovea.engines import Engine
from fovea.models import Prompt
from fovea.phases import Explorer, plain
from fovea.rewards import correct, weigh
from fovea.rewards.scorer import Job, Scorer
from fovea.types import (
    Group,
    Sampling,
    picture_sizes,
)


def collect(
    prompts: Sequence[Prompt],
    engine: Engine,
    sampling: Sampling,
    weights: Mapping[str, float] | Scorer,
    *,
    group: int,
    seed: tuple[int, int],
    draw: int = 0,
    explorer: Explorer | None = None,
) -> list[Group]:
    """Draw `group` replies to each prompt and reward them. Groups in the order of `prompts`.

    `weights`: those of built-in rewards, or a scorer (which may run the user's own); `seed`: (run's seed, step);
    `draw`: the sampling phase, so that a problem met again in another round of a step gets other replies; one that is
    twice among `prompts` does, too (`fovea.types.occurrences`). `explorer`: samples in two phases.
    """
    how = plain if explorer is None else explorer.draw
    drawn = how(prompts, engine, group, sampling, seed=seed, draw=draw)
    replies = drawn.replies
    if isinstance(weights, Mapping):
        scored = [
            weigh(
                [completion.text for completion in completions],
                prompt.problem,
                weights,
                tokens=[len(completion.token_ids) for completion in completions],
            )
            for prompt, completions in zip(prompts, replies, strict=True)
        ]
    else:
        jobs = [
            Job(
                texts=tuple(completion.text for completion in completions),
                problem=prompt.problem,
                token_ids=tuple(tuple(map(int, completion.token_ids)) for completion in completions),
            )
            for prompt, completions in zip(prompts, replies, strict=True)
        ]
        scored = [(scores.rewards, scores.parts) for scores in weights.weigh_all(jobs, step=seed[1])]
    return [
        Group(
            problem=prompt.problem,
            prompt=prompt,
            completions=completions,
            rewards=rewards,
            parts=parts,
            variants=variants,
        )
        for prompt, completions, variants, (rewards, parts) in zip(
            drawn.prompts, replies, drawn.variants, scored, strict=True
        )
    ]


def rollout_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """What a step's replies say: reward by part, accuracy, entropy, length.

    `entropy` is the mean over sampled tokens of -log p(token), an unbiased estimate of the mean per-token
    entropy of the sampling distribution, in nats. `groups_skipped`: groups whose rewards are all equal.
    `reward_std`: mean over groups of their sample standard deviation. A reward that is NaN was not given and is in
    no mean; None where none of a step was.
    """
    completions = [completion for group in groups for completion in group.completions]
    log_probs = np.concatenate([completion.log_probs for completion in completions])
    right = [correct(completion.text, group.problem) for group in groups for completion in group.completions]
    metrics: dict[str, Any] = {"reward_mean": _mean([group.rewards for group in groups])}
    metrics["reward_std"] = float(np.mean([_std(group.rewards) for group in groups]))
    for name in dict.fromkeys(name for group in groups for name in group.parts):
        metrics[f"reward/{name}"] = _mean([group.parts[name] for group in groups if name in group.parts])
    return metrics | {
        "accuracy": float(np.mean(right)),
        "entropy": float(-log_probs.mean(dtype=np.float64)),
        "completion_tokens": len(log_probs) / len(completions),
        "truncated": float(np.mean([completion.stop == "length" for completion in completions])),
        "groups_skipped": sum(bool((group.rewards == group.rewards[0]).all()) for group in groups),
        "tokens": len(log_probs),
    }


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    """Of what is not NaN; None where nothing is."""
    values = np.concatenate(list(parts))
    given = values[~np.isnan(values)]
    return float(given.mean()) if len(given) else None


def _std(rewards: np.ndarray) -> float:
    given = rewards[~np.isnan(rewards)]
    return float(given.std(ddof=1)) if len(given) > 1 else 0.0


def shown(group: Group, advantages: np.ndarray, pictures: list[str]) -> list[dict[str, Any]]:
    """The completions of a group as plain records for the log and the display.

    `size` and `resized`: [w, h] of the picture `box_image`, which boxes refer to, before and after the processor.
    """
    which = int(group.problem.meta.get("box_image", 0))
    sizes, resized = picture_sizes(group.problem), getattr(group.prompt, "resized", ())
    return [
        {
            "id": group.problem.id,
            "question": group.problem.question,
            "pictures": pictures,
            "box_image": which,
            "size": list(sizes[which]) if which < len(sizes) else None,
            "resized": list(resized[which]) if which < len(resized) else None,
            "answer": group.problem.answer,
            "frame": group.problem.frame,
            "difficulty": group.problem.difficulty,
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
