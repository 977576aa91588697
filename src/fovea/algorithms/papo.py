"""PAPO (arXiv:2507.06448): the policy is to say something else when much of the picture is masked, and be sure of it.

    J = J_RL + γ KL(π || π_mask) - η1 H(π) - η2 H(π_mask)

Estimated on the sampled tokens as the released code does it. Not here: the masked pictures
(`fovea.training.variants`), the forward passes (`fovea.training.update`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fovea.algorithms.token_view import TokenView

TRAINED = "trained"
"""The forward variant that is the trained prompt itself."""
MASKED = "masked"
"""The forward variant whose pictures are masked."""
LOG_RATIO_CLAMP = 20.0
"""d is clamped to ±20 before its exponential, as in the released code."""
KL_CLAMP = 10.0
"""The estimate of a token is clamped to ±10, as in the released code."""


def perception_kl(log_probs: Tensor, masked: Tensor) -> Tensor:
    """[N]: k3 estimate of KL(π || π_mask) on tokens sampled from π: exp(d) - d - 1 with d = log π_mask - log π.

    0 to 10; d is clamped to ±20 and the estimate to ±10, with no gradient where a clamp decides.
    """
    d = (masked - log_probs).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    return (torch.exp(d) - d - 1.0).clamp(-KL_CLAMP, KL_CLAMP)


@dataclass(frozen=True, kw_only=True, slots=True)
class Papo:
    """L = Σ m (-γ kl - η1 log π - η2 log π_mask) / Σ m: `perception_kl` is raised, both surprises are lowered.

    `both=False` is the released code's default: masked log-probs are scored once, before the rollout's first update,
    and only log π has a gradient (the η2 part is then a number without one). `both=True` is the paper's objective:
    masked log-probs are those of the current weights and have gradients too, by one more backward pass. Tokens whose
    prompt has no picture give nothing and stay in the denominator. Example: Papo(gamma=0.02, entropy=0.05)
    """

    gamma: float
    entropy: float = 0.0
    """η1."""
    masked_entropy: float = 0.0
    """η2."""
    both: bool = False
    name: str = "papo"
    picks: bool = False
    weighs: bool = False

    @property
    def variants(self) -> tuple[str, ...]:
        """Those with a gradient."""
        return (TRAINED, MASKED) if self.both else (TRAINED,)

    @property
    def scored(self) -> tuple[str, ...]:
        """Those without."""
        return () if self.both else (MASKED,)

    def pick(self, view: TokenView) -> Tensor:
        """All ones; never asked for."""
        return torch.ones_like(view.mask)

    def loss(self, variant: str, view: TokenView) -> Tensor:
        """[] of these tokens."""
        mask, total = view.mask * view.differs[MASKED], max(view.total, 1.0)
        if variant == MASKED:
            kl = perception_kl(view.others[TRAINED], view.log_probs)
            # The pass of the trained prompt has the KL's value already; this one adds its gradient.
            each = -self.gamma * (kl - kl.detach()) - self.masked_entropy * view.log_probs
        else:
            masked = view.others[MASKED]
            each = -self.gamma * perception_kl(view.log_probs, masked) - self.entropy * view.log_probs
            if not self.both:
                each = each - self.masked_entropy * masked
        return (each * mask).sum() / total
