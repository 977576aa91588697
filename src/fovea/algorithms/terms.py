"""Loss terms: weights on the policy gradient, or an extra loss, on named forward variants (`fovea.types.LossTerm`).

    EntropyBonus    -c · mean entropy                         an extra loss
    TopEntropy      only the tokens of highest entropy        weights    arXiv:2506.01939
    ClipCov         some high-covariance tokens left out      weights    arXiv:2505.22617
    KlCov           a KL on the tokens of highest covariance  an extra loss    arXiv:2505.22617
    Papo            away from a masked picture (`papo`)       an extra loss    arXiv:2507.06448

A term that must see the whole mini-batch before its first pass (a quantile, a covariance) says `picks = True`; the
update then scores the rows once more, without gradient. Every term's denominator is the mini-batch's counted tokens,
over all workers. Not here: what a term sees (`token_view`), the forward passes (`fovea.training.update`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fovea.algorithms.papo import Papo
from fovea.algorithms.token_view import TokenView
from fovea.config import AlgorithmSection
from fovea.types import LossTerm, UserError

SMOOTH = 1e-3
"""Log-ratio below which KL-Cov's |log ratio| is a parabola: a thousand times float32's rounding of it. Our choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyBonus:
    """L = -c · Σ m H / Σ m: rewards the policy for staying uncertain. Example: EntropyBonus(coefficient=0.01)"""

    coefficient: float
    name: str = "entropy_bonus"
    variants: tuple[str, ...] = ("trained",)
    scored: tuple[str, ...] = ()
    picks: bool = False
    weighs: bool = False

    def pick(self, view: TokenView) -> Tensor:
        """All ones; never asked for."""
        return torch.ones_like(view.mask)

    def loss(self, variant: str, view: TokenView) -> Tensor:
        """[] of these tokens."""
        return -self.coefficient * (view.entropy * view.mask).sum() / max(view.total, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TopEntropy:
    """1 on the `share` of counted tokens whose entropy is highest, 0 on the others (arXiv:2506.01939).

    The threshold is the (1 - share) quantile of the entropies of the whole mini-batch under the current policy, with
    linear interpolation; tokens at the threshold count. The loss keeps its denominator: tokens left out stay in it,
    as in TRL's `top_entropy_quantile`. `selected` gives the others the weight (counted tokens) / (tokens that stay), so
    that a mean over all tokens becomes the mean over those that stay, as in the released code.
    Example: TopEntropy(share=0.2)
    """

    share: float
    selected: bool = False
    name: str = "top_entropy"
    variants: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    picks: bool = True
    weighs: bool = True

    def pick(self, view: TokenView) -> Tensor:
        """[N]: 0, or 1 (with `selected` the same larger number for all that stay)."""
        counted = view.entropy[view.mask > 0]
        if len(counted) == 0:
            return torch.zeros_like(view.mask)
        # torch.quantile refuses more than 2^24 numbers; the sorted tensor does not.
        place = (1 - self.share) * (len(counted) - 1)
        below = int(place)
        ordered = counted.sort().values
        above = min(below + 1, len(counted) - 1)
        threshold = ordered[below] + (place - below) * (ordered[above] - ordered[below])
        stays = (view.entropy >= threshold).to(view.entropy.dtype) * (view.mask > 0)
        return stays * (len(counted) / stays.sum()) if self.selected else stays

    def loss(self, variant: str, view: TokenView) -> Tensor | None:
        """Nothing."""
        return None


def covariance_terms(view: TokenView) -> Tensor:
    """[N]: (log π - mean log π)(A - mean A) over the counted tokens, 0 elsewhere: arXiv:2505.22617, equation 8.

    Its mean is the covariance that drives the entropy down; a few tokens carry most of it.
    """
    mask = view.mask
    n = mask.sum().clamp(min=1.0)
    log_probs, advantages = view.log_probs.detach(), view.advantages
    centred = log_probs - (log_probs * mask).sum() / n
    return centred * (advantages - (advantages * mask).sum() / n) * mask


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipCov:
    """0 on `share` of the counted tokens, drawn among those of covariance `low` to `high`; 1 elsewhere.

    arXiv:2505.22617, equation 9, with its code's bounds 1 and 5; as there, a token at which the ratio clip has decided
    is not drawn. Where fewer are in the range all of them are taken.
    Example: ClipCov(share=2e-4)
    """

    share: float
    low: float = 1.0
    high: float = 5.0
    name: str = "clip_cov"
    variants: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    picks: bool = True
    weighs: bool = True

    def pick(self, view: TokenView) -> Tensor:
        """[N], 0 or 1; drawn from `view.seed` alone."""
        covariance = covariance_terms(view)
        eligible = (covariance > self.low) & (covariance < self.high) & (view.mask > 0)
        if view.clipped is not None:
            eligible &= ~view.clipped
        inside = eligible.nonzero()[:, 0]
        wanted = max(1, int(self.share * float(view.mask.sum())))
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(view.seed).generate_state(1)[0]))
        chosen = inside[torch.randperm(len(inside), generator=generator)[:wanted].to(inside.device)]
        kept = torch.ones_like(view.log_probs)
        kept[chosen] = 0.0
        return kept

    def loss(self, variant: str, view: TokenView) -> Tensor | None:
        """Nothing."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class KlCov:
    """c · Σ over the `share` of counted tokens of highest covariance of |log π - log π_old| / Σ m.

    arXiv:2505.22617, equation 10, with the absolute log-ratio of its code, smooth near 0 (`smooth_abs`: our choice).
    The tokens are chosen once an optimizer step, on the whole mini-batch. Example: KlCov(share=2e-3)
    """

    share: float
    coefficient: float = 1.0
    name: str = "kl_cov"
    variants: tuple[str, ...] = ("trained",)
    scored: tuple[str, ...] = ()
    picks: bool = True
    weighs: bool = False

    def pick(self, view: TokenView) -> Tensor:
        """[N], 1 on the chosen tokens."""
        covariance = covariance_terms(view).masked_fill(view.mask == 0, -torch.inf)
        wanted = min(max(1, int(self.share * float(view.mask.sum()))), int((view.mask > 0).sum()))
        picked = torch.zeros_like(view.mask)
        picked[covariance.topk(wanted).indices] = 1.0
        return picked

    def loss(self, variant: str, view: TokenView) -> Tensor | None:
        """[] of these tokens."""
        assert view.picked is not None, "`picks` is true"
        chosen = view.picked * view.mask
        distance = smooth_abs(view.log_probs - view.old_log_probs)
        return self.coefficient * (distance * chosen).sum() / max(view.total, 1.0)


def smooth_abs(x: Tensor) -> Tensor:
    """|x| - δ/2 where |x| ≥ δ, else x²/2δ, with δ = `SMOOTH`: Huber's function, float of x's shape.

    In the first update of a rollout log π - log π_old is 0 but for float rounding. The gradient of |x| is the sign of
    that rounding, ±1 at random; this one's is rounding/δ, and x = 0 gives 0.
    """
    return torch.nn.functional.smooth_l1_loss(x, torch.zeros_like(x), reduction="none", beta=SMOOTH)


def loss_terms(section: AlgorithmSection) -> tuple[LossTerm, ...]:
    """The terms that the `algorithm:` section asks for.

    Raises UserError for two that choose tokens by covariance, and for parts of PAPO without its weight.
    """
    if section.clip_cov > 0 and section.kl_cov > 0:
        raise UserError(
            "algorithm.clip_cov and kl_cov treat the same tokens in two ways; choose one of them."
        )
    parts = section.papo_entropy > 0 or section.papo_masked_entropy > 0 or section.papo_both
    if section.papo == 0 and parts:
        raise UserError(
            "algorithm.papo_entropy, papo_masked_entropy and papo_both need algorithm.papo above 0."
        )
    terms: list[LossTerm] = []
    if section.entropy_bonus > 0:
        terms.append(EntropyBonus(coefficient=section.entropy_bonus))
    if section.top_entropy < 1:
        terms.append(TopEntropy(share=section.top_entropy, selected=section.top_entropy_over == "selected"))
    if section.clip_cov > 0:
        terms.append(ClipCov(share=section.clip_cov))
    if section.kl_cov > 0:
        terms.append(KlCov(share=section.kl_cov))
    if section.papo > 0:
        terms.append(
            Papo(
                gamma=section.papo,
                entropy=section.papo_entropy,
                masked_entropy=section.papo_masked_entropy,
                both=section.papo_both,
            )
        )
    return tuple(terms)
