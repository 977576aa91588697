"""Trajectories → samples: a turn's advantage, what the critic learns, which of its tokens count.

A turn is a row of its own under the very prompt that it was sampled under, whatever that prompt holds of earlier turns;
so estimators do not know the layout, and what was sampled is what is trained.

Not here: the estimators (`fovea.algorithms.returns`), forward passes and the update (`fovea.training`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fovea.algorithms import (
    Algorithm,
    Reduce,
    alone,
    group_advantages,
    importance_correction,
    token_weights,
    totals,
)
from fovea.algorithms.returns import bi_level_gae, gigpo, lumped, token_gae, turn_gae, whitened
from fovea.types import Sample, Trajectory, Turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Credit:
    """What a turn's tokens get. Arrays float64 [T]."""

    advantage: np.ndarray
    returns: np.ndarray | None
    """None without a critic."""


def turns_of(trajectories: Sequence[Trajectory]) -> list[Turn]:
    """All turns, trajectory after trajectory."""
    return [turn for trajectory in trajectories for turn in trajectory.turns]


def credits_of(trajectories: Sequence[Trajectory], algorithm: Algorithm) -> list[Credit]:
    """One a turn, before any whitening. Raises ValueError for a trajectory without turns."""
    if any(not trajectory.turns for trajectory in trajectories):
        raise ValueError("a trajectory without turns has no advantages")
    if algorithm.critic:
        return [credit for one in trajectories for credit in _by_critic(one, algorithm)]
    lengths = [[len(turn.completion.token_ids) for turn in one.turns] for one in trajectories]
    if algorithm.estimator == "gigpo":
        each = gigpo(
            [_rewards(one) for one in trajectories],
            [[turn.anchor for turn in one.turns] for one in trajectories],
            [one.group for one in trajectories],
            gamma=algorithm.gamma,
            weight=algorithm.anchor_weight,
            by_std=algorithm.scale == "group_std",
        )
    else:
        each = _by_group(trajectories, algorithm)
    return [
        Credit(advantage=np.full(length, value), returns=None)
        for values, sizes in zip(each, lengths, strict=True)
        for value, length in zip(values, sizes, strict=True)
    ]


def _rewards(trajectory: Trajectory) -> np.ndarray:
    return np.array([turn.reward for turn in trajectory.turns], np.float64)


def _by_critic(trajectory: Trajectory, algorithm: Algorithm) -> list[Credit]:
    values = [_values(turn) for turn in trajectory.turns]
    rewards, bootstrap = _rewards(trajectory), trajectory.bootstrap
    gamma, lam = algorithm.gamma, algorithm.gae_lambda
    if algorithm.estimator == "token":
        advantages = token_gae(rewards, values, bootstrap, gamma, lam)
    elif algorithm.estimator == "bi_level":
        inside = (algorithm.token_gamma, algorithm.token_lambda)
        advantages = bi_level_gae(rewards, values, bootstrap, gamma, lam, *inside)
    else:
        given = lumped(rewards) if algorithm.estimator == "lumped" else rewards
        advantages = turn_gae(given, values, bootstrap, gamma, lam)
    return [Credit(advantage=a, returns=a + v) for a, v in zip(advantages, values, strict=True)]


def _values(turn: Turn) -> np.ndarray:
    assert turn.completion.values is not None, "the engine gives values where the policy has a critic"
    return turn.completion.values.astype(np.float64)


def _by_group(trajectories: Sequence[Trajectory], algorithm: Algorithm) -> list[np.ndarray]:
    """For each trajectory [K], constant: the episode's sum of rewards among those of its group."""
    found: list[np.ndarray] = [np.zeros(0)] * len(trajectories)
    groups: dict[int, list[int]] = {}
    for i, trajectory in enumerate(trajectories):
        groups.setdefault(trajectory.group, []).append(i)
    for members in groups.values():
        totals_G = np.array([_rewards(trajectories[i]).sum() for i in members])
        for i, advantage in zip(members, group_advantages(totals_G, algorithm).tolist(), strict=True):
            found[i] = np.full(len(trajectories[i].turns), advantage)
    return found


def turn_samples(
    trajectories: Sequence[Trajectory],
    algorithm: Algorithm,
    longest: int,
    *,
    learn_invalid: bool,
    learn_policy: bool = True,
    reference: Sequence[np.ndarray] | None = None,
    recomputed: Sequence[np.ndarray] | None = None,
    reduce: Reduce = alone,
) -> list[Sample]:
    """One sample a turn, in order.

    `learn_invalid`: whether the policy learns from turns whose reply held no legal action (where a random one was done,
    the text did not cause what came of it; the critic learns in any case). `learn_policy`: False while the critic alone
    learns. `reference`, `recomputed`: float32 [T] for each turn, as in `to_samples`. `longest`: the generation budget.
    Advantages are whitened (`Algorithm.scale`) over turns where the ratio or the estimator is a turn's, else over
    tokens; turns that the policy does not learn from are in no mean.
    """
    turns = turns_of(trajectories)
    masks = [_mask(turn, algorithm, learn_invalid and learn_policy, learn_policy) for turn in turns]
    earned = credits_of(trajectories, algorithm)
    advantages = [credit.advantage for credit in earned]
    if algorithm.scale == "whiten":
        count = masks if algorithm.values_of_tokens else [_first(mask) for mask in masks]
        advantages = whitened(advantages, count)
    # a group of its own: what a turn counts does not depend on how long its episode is
    ids = list(range(len(turns)))
    weights = token_weights(
        masks, ids, algorithm, longest=longest, total=totals(masks, ids).everywhere(reduce)
    )
    old = [turn.completion.log_probs for turn in turns] if recomputed is None else recomputed
    correction = None
    if algorithm.correction != "none":
        assert recomputed is not None, "the correction compares the engine's log-probs with the trainer's"
        correction = importance_correction(
            recomputed, [turn.completion.log_probs for turn in turns], algorithm
        )
    value_masks = [_value_mask(turn, algorithm) for turn in turns]
    counted = max(1.0, float(sum(mask.sum() for mask in value_masks)))
    return [
        Sample(
            sampled_prompt=turn.prompt,
            trained_prompt=turn.prompt,
            token_ids=turn.completion.token_ids,
            old_log_probs=old[i],
            weights=weights[i],
            advantage=advantages[i].astype(np.float32),
            group=i,
            reference_log_probs=None if reference is None else reference[i],
            correction=None if correction is None else correction[i],
            policy_version=turn.completion.policy_version,
            coefficients=coefficients(turn, algorithm),
            returns=None if earned[i].returns is None else np.asarray(earned[i].returns, np.float32),
            old_values=turn.completion.values,
            value_weights=value_masks[i] / counted if algorithm.critic else None,
        )
        for i, turn in enumerate(turns)
    ]


def coefficients(turn: Turn, algorithm: Algorithm) -> np.ndarray | None:
    """float32 [T]: λ on the tokens before the action, 1 from there on; None where λ is 1."""
    if algorithm.thought_weight == 1.0:
        return None
    found = np.ones(len(turn.completion.token_ids), np.float32)
    found[: turn.action_start] = algorithm.thought_weight
    return found


def _mask(turn: Turn, algorithm: Algorithm, learn_invalid: bool, learn_policy: bool) -> np.ndarray:
    cut = algorithm.mask_truncated and turn.completion.stop == "length"
    counts = learn_policy and (turn.legal or learn_invalid) and not cut
    return np.full(len(turn.completion.token_ids), float(counts), np.float32)


def _value_mask(turn: Turn, algorithm: Algorithm) -> np.ndarray:
    ones = np.ones(len(turn.completion.token_ids), np.float32)
    return ones if algorithm.values_of_tokens else _first(ones)


def _first(mask: np.ndarray) -> np.ndarray:
    found = np.zeros_like(mask)
    found[0] = mask[0]
    return found


def episode_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float | int | None]:
    """What a step's episodes say. Shares over turns; success, return and length over episodes that ended in the step.

    `thought_entropy`, `action_entropy`: means of -log p over the sampled tokens of thoughts and of actions, in nats;
    `thought_distinct`: different thoughts over thoughts (one template for every state brings it towards 0).
    """
    turns = turns_of(trajectories)
    ended = [one for one in trajectories if one.over]
    thoughts = [turn.thought for turn in turns if turn.thought]
    found: dict[str, float | int | None] = {
        "episodes": len(ended),
        "turns": len(turns),
        "success": _mean([float(bool(one.success)) for one in ended]),
        "return": _mean([one.total for one in ended]),
        "episode_turns": _mean([float(one.first + len(one.turns)) for one in ended]),
        "episodes_truncated": _mean([float(one.truncated) for one in ended]),
        "invalid": _mean([float(not turn.legal) for turn in turns]),
        "thought_entropy": _surprise([(turn, slice(None, turn.action_start)) for turn in turns]),
        "action_entropy": _surprise([(turn, slice(turn.action_start, None)) for turn in turns]),
        "thought_distinct": len(set(thoughts)) / len(thoughts) if thoughts else None,
    }
    for name in dict.fromkeys(name for turn in turns for name in turn.parts):
        found[f"reward/{name}"] = _mean([turn.parts[name] for turn in turns if name in turn.parts])
    values = [float(turn.completion.values[0]) for turn in turns if turn.completion.values is not None]
    if values:
        found["value_mean"] = _mean(values)
    return found


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _surprise(parts: Sequence[tuple[Turn, slice]]) -> float | None:
    chosen = [turn.completion.log_probs[where] for turn, where in parts]
    flat = np.concatenate([np.zeros(0, np.float32), *chosen])
    return float(-flat.mean(dtype=np.float64)) if len(flat) else None


def explained_variance(samples: Sequence[Sample]) -> float | None:
    """1 - Var(R - V) / Var(R) over the places that the critic learns; None without a critic or where R is constant."""
    rows = [s for s in samples if s.returns is not None and s.old_values is not None]
    chosen = [
        (s.returns[s.value_weights > 0], s.old_values[s.value_weights > 0])
        for s in rows
        if s.returns is not None and s.old_values is not None and s.value_weights is not None
    ]
    if not chosen:
        return None
    returns, old = (np.concatenate(list(each)).astype(np.float64) for each in zip(*chosen))
    variance = float(returns.var())
    return None if variance == 0 else 1.0 - float((returns - old).var()) / variance
