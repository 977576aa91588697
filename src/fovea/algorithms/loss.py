"""The loss of a token, its denominator and its ratios, as pure functions of tensors.

The loss of an optimizer step is the plain sum over tokens of `token_loss`: the denominator is inside the weights
that `token_weights` computes once for the whole mini-batch, so that any splitting into passes or workers adds up
to the same loss and gradient.

    L = Σ_{i,t} -w_{i,t} · min(ρ_{i,t} A_{i,t}, clip(ρ_{i,t}, 1 - ε_low, 1 + ε_high) A_{i,t})

Not here: sampling, forward passes, the optimizer (`fovea.training`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fovea.algorithms.advantages import Reduce, alone
from fovea.algorithms.table import Algorithm

LOG_RATIO_LIMIT = 60.0
"""exp(60) is 1e26: finite in float32 and bfloat16. See `_log_ratio`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a denominator counts over a whole mini-batch; add the workers' totals before `token_weights`.

    Example: Totals(tokens=1024.0, groups=16)
    """

    tokens: float
    """Sum of the loss masks: tokens that count."""
    groups: int
    """Number of groups, skipped ones included."""

    def __add__(self, other: Totals) -> Totals:
        return Totals(tokens=self.tokens + other.tokens, groups=self.groups + other.groups)

    def everywhere(self, reduce: Reduce = alone) -> Totals:
        """The sum over all workers."""
        tokens, groups = reduce(np.array([self.tokens, self.groups], np.float64))
        return Totals(tokens=float(tokens), groups=round(float(groups)))


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
    """The weight of every token in the loss of a mini-batch: for each of B rows float32 [T_i].

    `masks[i]` [T_i] is 1 where a token counts and 0 elsewhere, `groups[i]` the row's group. With m the mask,
    P the number of groups, G the rows of the row's own group and |o_i| = Σ_t m_{i,t}:

        sequence_mean   w_{i,t} = m_{i,t} / (P · G · |o_i|)    GRPO, arXiv:2402.03300, eq. 3
        constant        w_{i,t} = m_{i,t} / (P · G · longest)    Dr. GRPO, arXiv:2503.20783, its listing
        token_mean      w_{i,t} = m_{i,t} / Σ_{j,s} m_{j,s}    over the whole mini-batch; see below

    `longest` is the most tokens a completion may have (`Sampling.max_new_tokens`): Dr. GRPO's equation has
    no such divisor, its code divides by the generation budget. DAPO's token mean (arXiv:2503.14476) is
    written over one prompt's group and implemented over the batch; ours is over the mini-batch. A row without
    any counted token, and a skipped row, stay in P and G. `total`: counts over all workers, default those
    of the rows given; a group is never split between workers. Workers' gradients are added, not averaged.
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


def sequence_log_ratios(
    log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, rows: Tensor, algorithm: Algorithm
) -> Tensor:
    """The log-ratio of each token's completion, [N], without gradient. All of a completion's tokens must be there.
    `mask` may hold weights other than 1 where the ratio is a sum.

        sequence_mean   log s_i = (1/|o_i|) Σ_t m (log π - log π_old)    GSPO, arXiv:2507.18071, eq. 7
        sequence_sum    log s_i = Σ_t m (log π - log π_old)

    `rows` [N] long: the completion of each token, any numbers.
    """
    ids, place = rows.unique(return_inverse=True)
    difference = (log_probs.detach() - old_log_probs.detach()) * mask
    total = difference.new_zeros(len(ids)).index_add(0, place, difference)
    if algorithm.ratio == "sequence_mean":
        length = difference.new_zeros(len(ids)).index_add(0, place, mask.to(difference.dtype))
        total = total / length.clamp(min=1.0)
    return total[place]


def token_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    algorithm: Algorithm,
    *,
    sequence: Tensor | None = None,
    lengths: Tensor | None = None,
    coefficients: Tensor | None = None,
) -> Tensor:
    """Weighted surrogate of every token, all arguments float [N] and so the result; sum it.

        ρ = exp(log π(o) - log π_old(o))
        clip    ℓ = -w · min(min(ρ, δ) A, clip(ρ, 1 - ε_low, 1 + ε_high) A)    arXiv:1707.06347 eq. 7,
                2402.03300 eq. 3; δ (arXiv:2505.07291, its two-sided clip) only where given
        cispo   ℓ = -w · sg(clip(ρ, 1 - ε_low, 1 + ε_high)) A log π           arXiv:2506.13585 eq. 4

    Where the algorithm's ratio is a completion's, `sequence` is `sequence_log_ratios` and `lengths` [N] the counted
    tokens of each token's completion. The ratio is then s_i in value and each token carries its own share of the
    gradient, so that a completion may be split over passes: with c = 1 (mean) or |o_i| (sum),

        ρ_t = s_i · exp(c · (log π_t - sg(log π_t))),   Σ_t (1/|o_i|) ∇ρ_t = ∇s_i

    `coefficients` [N] multiply a token's log-prob in s_i (RL4VLM's λ on thoughts, arXiv:2405.10292, equation 4.3), and
    so c; `sequence` must have been made with them.

    Gradients flow through `log_probs` alone. With μ = 1 (one update a rollout) ρ is 1 and the value of the
    loss says nothing (it is -Σ wA, near zero): look at gradients. A token of weight 0 gives exactly 0.
    """
    log_ratio_N = _log_ratio(log_probs, old_log_probs)
    if algorithm.ratio != "token":
        assert sequence is not None, "a completion's ratio needs `sequence`"
        own_N = log_probs - log_probs.detach()
        if algorithm.ratio == "sequence_sum":
            assert lengths is not None, "the ratio of a whole completion needs `lengths`"
            own_N = own_N * lengths
        if coefficients is not None:
            own_N = own_N * coefficients
        log_ratio_N = sequence.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) + own_N
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
    if algorithm.objective == "cispo":
        return -weights * clipped_N.detach() * advantages * log_probs
    if algorithm.delta is not None:
        ratio_N = ratio_N.clamp(max=algorithm.delta)
    return -weights * torch.minimum(ratio_N * advantages, clipped_N * advantages)


def value_errors(values: Tensor, returns: Tensor, old_values: Tensor, clip: float | None) -> Tensor:
    """½ (V - R)² of every token, all arguments [N]; with `clip` ε the larger of it and ½ (V_c - R)²,

        V_c = V_old + clip(V - V_old, -ε, ε)       PPO's code and RL4VLM's

    so that a critic gains nothing from moving further than ε in one rollout."""
    errors = (values - returns) ** 2
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (held - returns) ** 2)
    return 0.5 * errors


def kl_estimates(log_probs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Per-token estimates, [N] each, of KL(π ‖ π_ref) from samples of π, with r = log π_ref - log π:

        k1 = -r          unbiased, any sign
        k2 = r²/2        biased, ≥ 0; its gradient is that of the KL in expectation on policy
        k3 = e^r - 1 - r    unbiased, ≥ 0     (J. Schulman, "Approximating KL divergence", 2020)

    r is held within ±`LOG_RATIO_LIMIT`. GRPO (arXiv:2402.03300, equation 4) has k3 in the loss.
    """
    r = (reference.detach() - log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        return -r
    if estimator == "k2":
        return r * r / 2
    return torch.expm1(r) - r


def token_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """ρ [N], with gradient: what weighs the KL in the loss where `Algorithm.kl_ratio` (DeepSeek-V3.2,
    arXiv:2512.02556; TRL's `use_bias_correction_kl`)."""
    return _log_ratio(log_probs, old_log_probs).exp()


def importance_correction(
    trainer: Sequence[np.ndarray], engine: Sequence[np.ndarray], algorithm: Algorithm
) -> list[np.ndarray]:
    """Weights, float32 [T_i] for each row, for an engine whose log-probs differ from the trainer's same weights.

        c = exp(log π_trainer - log π_engine), of a token, or of a completion (the sum over its tokens)
        truncate   min(c, cap)      IMPALA's ρ̄, arXiv:1802.01561; for LLM engines TRL's "truncated importance
                                    sampling" and arXiv:2510.13786's
        mask       c, but 0 where c > cap      IcePop's one side, arXiv:2510.18855

    Constant in the update: computed once, before the first optimizer step of a rollout. An engine log-prob that is
    NaN (an engine may not report one) counts as equal to the trainer's.
    """
    level, _, rule = algorithm.correction.partition("_")
    if algorithm.correction == "none":
        return [np.ones(len(row), np.float32) for row in trainer]
    weights = []
    for ours, theirs in zip(trainer, engine, strict=True):
        gap = np.nan_to_num(ours.astype(np.float64) - theirs.astype(np.float64), nan=0.0)
        if level == "sequence":
            gap = np.full(len(gap), gap.sum())
        c = np.exp(np.clip(gap, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
        over = c > algorithm.correction_cap
        weights.append(
            np.where(over, algorithm.correction_cap if rule == "truncate" else 0.0, c).astype(np.float32)
        )
    return weights


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioSums:
    """Sums over tokens of what the ratios say; add those of all passes, then take `means`.

    0-d tensors stay on their device, so that a pass need not wait for the GPU.
    """

    clipped: Tensor
    """Tokens at which the clip decides, so that they give no gradient (CISPO: whose weight is cut)."""
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
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    algorithm: Algorithm,
    *,
    sequence: Tensor | None = None,
) -> RatioSums:
    """How far the policy moved from the one that sampled; all arguments [N], `mask` 0 or 1.

        clipped = Σ m · [A > 0 and ρ > 1 + ε_high, or A < 0 and ρ < 1 - ε_low]
        kl      = Σ m · (ρ - 1 - log ρ), of the token's own ratio whatever the algorithm's

    The second estimates KL(π_old ‖ π) from samples of π_old without bias and is never negative: k3 of
    J. Schulman, "Approximating KL divergence" (blog, 2020).
    """
    log_ratio_N = _log_ratio(log_probs, old_log_probs)
    clipped_N = clip_decides(log_probs, old_log_probs, advantages, algorithm, sequence=sequence)
    # expm1 keeps the small difference that `ratio - 1` loses near 1, where kl is of the order (log ρ)²/2.
    kl_N = torch.expm1(log_ratio_N) - log_ratio_N
    return RatioSums(clipped=(clipped_N * mask).sum(), kl=(kl_N * mask).sum(), tokens=mask.sum())


def clip_decides(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    algorithm: Algorithm,
    *,
    sequence: Tensor | None = None,
) -> Tensor:
    """bool [N], all arguments [N]: A > 0 and ρ > 1 + ε_high, or A < 0 and ρ < 1 - ε_low; ρ of `sequence` if given."""
    log_ratio_N = _log_ratio(log_probs, old_log_probs)
    ratio_N = (log_ratio_N if sequence is None else sequence.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)).exp()
    above_N = (advantages > 0) & (ratio_N > 1 + algorithm.clip_high)
    return above_N | ((advantages < 0) & (ratio_N < 1 - algorithm.clip_low))


def _log_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """log ρ [N], held within ±`LOG_RATIO_LIMIT`.

    A ratio that large is a run that has already failed; the limit only keeps exp finite, because inf · 0
    would turn a masked token, or the branch that `minimum` did not choose, into NaN in the backward pass.
    """
    return (log_probs - old_log_probs.detach()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
