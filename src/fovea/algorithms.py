"""Advantages, the clipped loss and its denominators, as pure functions of tensors.

A variant is a value in `ALGORITHMS`, not a subclass. The loss of a step is the plain sum over tokens of
`token_loss`: the denominator is inside the weights that `token_weights` computes once for the whole step, so
that any splitting of the step into passes or workers adds up to the same loss and gradient.

    L = Σ_{i,t} -w_{i,t} · min(ρ_{i,t} A_{i,t}, clip(ρ_{i,t}, 1 - ε_low, 1 + ε_high) A_{i,t})

Not here: sampling, forward passes, the optimizer (`fovea.training`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fovea.config import nearest
from fovea.types import UserError

Denominator = Literal["sequence_mean", "token_mean", "constant"]

LOG_RATIO_LIMIT = 60.0
"""exp(60) is 1e26: finite in float32 and bfloat16. See `_log_ratio`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """One variant of the group-relative policy gradient.

    Example: Algorithm(name="grpo", std_normalised=True, denominator="sequence_mean")
    """

    name: str
    """Its key in `ALGORITHMS`."""
    std_normalised: bool
    """Whether an advantage is divided by the standard deviation of its group's rewards."""
    denominator: Denominator
    """What a token's loss is divided by; see `token_weights`."""
    clip_low: float = 0.2
    """ε_low: the ratio is clipped below at 1 - ε_low."""
    clip_high: float = 0.2
    """ε_high: the ratio is clipped above at 1 + ε_high."""
    std_eps: float = 1e-4
    """Added to the standard deviation."""


ALGORITHMS: dict[str, Algorithm] = {
    # Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, equations 1 and 3. Without its KL term (β = 0).
    "grpo": Algorithm(name="grpo", std_normalised=True, denominator="sequence_mean"),
    # Liu et al. 2025, "Understanding R1-Zero-Like Training", arXiv:2503.20783: neither std nor 1/|o_i|.
    "dr_grpo": Algorithm(name="dr_grpo", std_normalised=False, denominator="constant"),
    # The token mean of DAPO (Yu et al. 2025, arXiv:2503.14476) alone. Not DAPO: its higher upper clip,
    # dynamic sampling and overlong shaping are absent, hence the name.
    "grpo_token_mean": Algorithm(name="grpo_token_mean", std_normalised=True, denominator="token_mean"),
}


def find_algorithm(name: str, clip: float | None = None) -> Algorithm:
    """The named value of `ALGORITHMS`, with both clip bounds set to `clip` where given. Raises UserError."""
    if name not in ALGORITHMS:
        known = list(ALGORITHMS)
        raise UserError(f"There is no algorithm {name!r}{nearest(name, known)}; known: {', '.join(known)}.")
    algorithm = ALGORITHMS[name]
    return algorithm if clip is None else replace(algorithm, clip_low=clip, clip_high=clip)


def group_advantages(rewards: Tensor | np.ndarray, algorithm: Algorithm) -> Tensor:
    """Rewards of one group, any float [G], to advantages, float64 [G].

        A_i = r_i - mean(r)                              Dr. GRPO (arXiv:2503.20783)
        A_i = (r_i - mean(r)) / (std(r) + std_eps)       GRPO (arXiv:2402.03300, section 4.1.2, has no eps)

    The papers write std(r) without saying which. Ours is the sample one (divisor G - 1) and eps is 1e-4,
    as in TRL and in VLM-R1's code; other code bases differ (verl: the sample one with 1e-6). With the
    population one and G = 8 every advantage would be 7 % larger. A group whose rewards are all equal (G =
    1 included) gets exactly zero, not the rounding error of its mean over eps, so that it can be skipped.
    """
    reward_G = torch.as_tensor(rewards, dtype=torch.float64)
    assert reward_G.ndim == 1, f"rewards [G], got {tuple(reward_G.shape)}"
    assert reward_G.numel() >= 1, "an empty group has no advantages"
    if bool((reward_G == reward_G[0]).all()):
        return torch.zeros_like(reward_G)
    centred_G = reward_G - reward_G.mean()
    if not algorithm.std_normalised:
        return centred_G
    return centred_G / (reward_G.std(correction=1) + algorithm.std_eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a denominator counts over the whole step; add the workers' totals before `token_weights`.

    Example: Totals(tokens=1024.0, groups=16)
    """

    tokens: float
    """Sum of the loss masks: tokens that count."""
    groups: int
    """Number of groups, skipped ones included."""

    def __add__(self, other: Totals) -> Totals:
        return Totals(tokens=self.tokens + other.tokens, groups=self.groups + other.groups)


def totals(masks: Sequence[np.ndarray], groups: Sequence[int]) -> Totals:
    """`Totals` of rows with loss masks [T_i] (B of them) and their group indices (B)."""
    return Totals(tokens=float(sum(float(mask.sum()) for mask in masks)), groups=len(set(groups)))


def token_weights(
    masks: Sequence[np.ndarray],
    groups: Sequence[int],
    algorithm: Algorithm,
    *,
    longest: int,
    total: Totals | None = None,
) -> list[np.ndarray]:
    """The weight of every token in the loss of the step: for each of B rows float32 [T_i].

    `masks[i]` [T_i] is 1 where a token counts and 0 elsewhere, `groups[i]` the row's group. With m the mask,
    P the number of groups, G the rows of the row's own group and |o_i| = Σ_t m_{i,t}:

        sequence_mean   w_{i,t} = m_{i,t} / (P · G · |o_i|)    GRPO, arXiv:2402.03300, eq. 3
        constant        w_{i,t} = m_{i,t} / (P · G · longest)    Dr. GRPO, arXiv:2503.20783, its listing
        token_mean      w_{i,t} = m_{i,t} / Σ_{j,s} m_{j,s}    over the whole step; see below

    `longest` is the most tokens a completion may have (`Sampling.max_new_tokens`): Dr. GRPO's equation has
    no such divisor, its code divides by the generation budget. DAPO's token mean (arXiv:2503.14476) is
    written over one prompt's group and implemented over the batch; ours is over the step. A row without
    any counted token, and a skipped row, stay in P and G. `total`: counts over all workers, default those
    of the rows given; a group is never split between workers.
    """
    assert len(masks) == len(groups), f"{len(masks)} masks, {len(groups)} groups"
    total = total or totals(masks, groups)
    rows_of = Counter(groups)
    weights = []
    for mask_T, group in zip(masks, groups):
        length = float(mask_T.sum())
        if algorithm.denominator == "token_mean":
            denominator = total.tokens
        elif algorithm.denominator == "constant":
            denominator = float(total.groups * rows_of[group] * longest)
        else:
            denominator = total.groups * rows_of[group] * length
        weights.append((mask_T / max(denominator, 1.0)).astype(np.float32))
    return weights


def token_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, weights: Tensor, algorithm: Algorithm
) -> Tensor:
    """Weighted clipped surrogate of every token, all arguments float [N] and so the result; sum it.

        ρ = exp(log π(o) - log π_old(o))
        ℓ = -w · min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A)    arXiv:1707.06347 eq. 7, 2402.03300 eq. 3

    Gradients flow through `log_probs` alone. With μ = 1 (one update a rollout) ρ is 1 and the value of the
    loss says nothing (it is -Σ wA, near zero): look at gradients. A token of weight 0 gives exactly 0.
    """
    ratio_N = _log_ratio(log_probs, old_log_probs).exp()
    clipped_N = ratio_N.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
    return -weights * torch.minimum(ratio_N * advantages, clipped_N * advantages)


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioSums:
    """Sums over tokens of what the ratios say; add those of all passes, then take `means`.

    0-d tensors stay on their device, so that a pass need not wait for the GPU.
    """

    clipped: Tensor
    """Tokens at which the clip decides, so that they give no gradient."""
    kl: Tensor
    """Sum of the k3 terms."""
    tokens: Tensor
    """Sum of the mask."""

    def __add__(self, other: RatioSums) -> RatioSums:
        return RatioSums(
            clipped=self.clipped + other.clipped, kl=self.kl + other.kl, tokens=self.tokens + other.tokens
        )

    def means(self) -> dict[str, float]:
        """{"clip_fraction", "approx_kl"}: means over counted tokens; 0 where there is none."""
        tokens = max(float(self.tokens), 1.0)
        return {"clip_fraction": float(self.clipped) / tokens, "approx_kl": float(self.kl) / tokens}


@torch.no_grad()
def ratio_sums(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, algorithm: Algorithm
) -> RatioSums:
    """How far the policy moved from the one that sampled; all arguments [N], `mask` 0 or 1.

        clipped = Σ m · [A > 0 and ρ > 1 + ε_high, or A < 0 and ρ < 1 - ε_low]
        kl      = Σ m · (ρ - 1 - log ρ)

    The second estimates KL(π_old ‖ π) from samples of π_old without bias and is never negative: k3 of
    J. Schulman, "Approximating KL divergence" (blog, 2020).
    """
    log_ratio_N = _log_ratio(log_probs, old_log_probs)
    ratio_N = log_ratio_N.exp()
    above_N = (advantages > 0) & (ratio_N > 1 + algorithm.clip_high)
    below_N = (advantages < 0) & (ratio_N < 1 - algorithm.clip_low)
    # expm1 keeps the small difference that `ratio - 1` loses near 1, where kl is of the order (log ρ)²/2.
    kl_N = torch.expm1(log_ratio_N) - log_ratio_N
    return RatioSums(clipped=((above_N | below_N) * mask).sum(), kl=(kl_N * mask).sum(), tokens=mask.sum())


def _log_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """log ρ [N], held within ±`LOG_RATIO_LIMIT`.

    A ratio that large is a run that has already failed; the limit only keeps exp finite, because inf · 0
    would turn a masked token, or the branch that `minimum` did not choose, into NaN in the backward pass.
    """
    return (log_probs - old_log_probs.detach()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
