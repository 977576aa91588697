"""Rewards to advantages, and the length penalty: pure functions.

Not here: the loss and KL estimates (`loss`), which algorithm has which (`table`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fovea.algorithms.table import Algorithm

Reduce = Callable[[np.ndarray], np.ndarray]
"""Adds a float64 vector over the workers; `alone` where there is one."""

WHITEN_EPS = 1e-8
"""Added to the variance when advantages are whitened (OpenRLHF's and verl's)."""


def alone(vector: np.ndarray) -> np.ndarray:
    """The sum over the workers where there is only one."""
    return vector


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Count, mean and sum of squared differences of numbers. Example: Moments(count=4.0, mean=0.5, m2=1.0)"""

    count: float
    mean: float
    m2: float

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Of float64 [N]; of nothing where N = 0."""
        if values.size == 0:
            return cls(count=0.0, mean=0.0, m2=0.0)
        mean = float(values.mean())
        return cls(count=float(values.size), mean=mean, m2=float(((values - mean) ** 2).sum()))

    def everywhere(self, reduce: Reduce) -> Moments:
        """Those of all workers' numbers together.

        The mean is reduced first and the squared differences are then taken from it, so that a large mean does not
        cancel the variance: Σ (x - m)² = m2 + n (mean - m)².
        """
        count, total = reduce(np.array([self.count, self.count * self.mean]))
        mean = float(total / count) if count else 0.0
        m2 = reduce(np.array([self.m2 + self.count * (self.mean - mean) ** 2]))[0]
        return Moments(count=float(count), mean=mean, m2=float(m2))

    @property
    def variance(self) -> float:
        """The sample one (divisor count - 1); 0 of fewer than two numbers."""
        return self.m2 / (self.count - 1) if self.count > 1 else 0.0


def group_advantages(rewards: Tensor | np.ndarray, algorithm: Algorithm) -> Tensor:
    """Rewards of one group, any float [G], to advantages, float64 [G], as far as the group alone decides them.

        A_i = r_i - mean(r)                              Dr. GRPO (arXiv:2503.20783)
        A_i = (r_i - mean(r)) / (std(r) + std_eps)       GRPO (arXiv:2402.03300, section 4.1.2, has no eps)
        A_i = r_i - mean over j ≠ i of r_j               RLOO (arXiv:2402.14740)
        A_i = r_i                                        REINFORCE++, which whitens later (`step_advantages`)

    The papers write std(r) without saying which. Ours is the sample one (divisor G - 1) and eps is 1e-4,
    as in TRL and in VLM-R1's code; other code bases differ (verl: the sample one with 1e-6). With the
    population one and G = 8 every advantage would be 7 % larger. With a baseline a group whose rewards are all
    equal (G = 1 included) gets exactly zero, not the rounding error of its mean over eps, so that it can be
    skipped. A reward that is NaN was not given (no function could score the reply): it is in no mean and its
    advantage is 0.
    """
    reward_G = torch.as_tensor(rewards, dtype=torch.float64)
    assert reward_G.ndim == 1, f"rewards [G], got {tuple(reward_G.shape)}"
    assert reward_G.numel() >= 1, "an empty group has no advantages"
    given = ~reward_G.isnan()
    scored = reward_G[given]
    advantage_G = torch.zeros_like(reward_G)
    if algorithm.baseline == "none":
        advantage_G[given] = scored
        return advantage_G
    if len(scored) == 0 or bool((scored == scored[0]).all()):
        return advantage_G
    centred = scored - scored.mean()
    if algorithm.baseline == "leave_one_out":
        centred = centred * (len(scored) / (len(scored) - 1))
    if algorithm.scale == "group_std":
        centred = centred / (scored.std(correction=1) + algorithm.std_eps)
    advantage_G[given] = centred
    return advantage_G


def step_advantages(
    rewards: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    algorithm: Algorithm,
    *,
    kl: Sequence[np.ndarray] | None = None,
    reduce: Reduce = alone,
) -> list[np.ndarray]:
    """Advantages of a whole rollout: for each of B rows float64 [T_i].

    `rewards`: float [G] of each group, in the order of the rows; `masks`: [T_i] of each row, 1 where a token counts;
    `kl`: [T_i] KL estimates of each row where the algorithm takes them off the reward, with β:

        reward         r_i ← r_i - β Σ_t kl_{i,t}, before the baseline
        reward_to_go   A_{i,t} = A_i - β Σ_{s ≥ t} kl_{i,s}, after it      (arXiv:2501.03262, equations 8 and 9)

    Scales that need the whole rollout, over all workers by `reduce`:

        batch_std      A / (std of all rewards + std_eps)        TRL's scale_rewards="batch", arXiv:2508.08221
        whiten         (A - mean) / sqrt(var + 1e-8), over all counted tokens    arXiv:2501.03262, equation 10

    The whitening weighs a reply by its tokens, as OpenRLHF and verl do; the paper writes "batch". A row whose reward
    is NaN was not given one: it is in no statistic and its advantage is 0, the KL to go included.
    """
    groups = [np.asarray(group, np.float64) for group in rewards]
    in_reward = kl if algorithm.beta > 0 and algorithm.kl_in == "reward" else None
    if in_reward is not None:
        sums = iter([float((part * mask).sum()) for part, mask in zip(in_reward, masks, strict=True)])
        groups = [np.array([r - algorithm.beta * next(sums) for r in group]) for group in groups]
    given = ~np.isnan(np.concatenate(groups))
    flat = np.concatenate([group_advantages(group, algorithm).numpy() for group in groups])
    if algorithm.scale == "batch_std":
        scored = np.concatenate(groups)
        moments = Moments.of(scored[~np.isnan(scored)]).everywhere(reduce)
        flat = flat / (math.sqrt(moments.variance) + algorithm.std_eps)
    rows = [np.full(len(mask), advantage) for mask, advantage in zip(masks, flat, strict=True)]
    if algorithm.beta > 0 and algorithm.kl_in == "reward_to_go":
        assert kl is not None, "the KL in the reward needs the reference's log-probs"
        rows = [
            row - algorithm.beta * np.cumsum((part * mask)[::-1])[::-1] if scored else row
            for row, part, mask, scored in zip(rows, kl, masks, given, strict=True)
        ]
    return _whitened(rows, masks, given, reduce) if algorithm.scale == "whiten" else rows


def _whitened(
    rows: list[np.ndarray], masks: Sequence[np.ndarray], given: np.ndarray, reduce: Reduce
) -> list[np.ndarray]:
    """`given`: bool [B], rows with a reward; the others keep their 0, which whitening would make a -mean/std."""
    counted = [row[mask > 0] for row, mask, scored in zip(rows, masks, given, strict=True) if scored]
    moments = Moments.of(np.concatenate([np.zeros(0), *counted])).everywhere(reduce)
    if moments.m2 == 0.0:  # every reward equal: exactly zero, not rounding over eps
        return [np.zeros_like(row) for row in rows]
    scale = math.sqrt(moments.variance + WHITEN_EPS)
    return [(row - moments.mean) / scale if scored else row for row, scored in zip(rows, given, strict=True)]


def overlong_penalty(lengths: np.ndarray, budget: int, share: float) -> np.ndarray:
    """DAPO's soft punishment (arXiv:2503.14476, equation 13) of replies of `lengths` tokens, float64 like it, -1 to 0.

    With L the budget (the most tokens sampled) and C = share · L the part of it that is punished:

        0                      |y| ≤ L - C
        ((L - C) - |y|) / C    L - C < |y| ≤ L, so -1 for a reply that was cut off
    """
    cache = share * budget
    if cache <= 0:
        return np.zeros(len(lengths))
    return np.clip(((budget - cache) - np.asarray(lengths, np.float64)) / cache, -1.0, 0.0)
