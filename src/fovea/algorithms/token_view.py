"""What a loss term sees of a mini-batch's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenView:
    """Tokens of a mini-batch as a loss term sees them; N tokens of one pass, or all of them in `pick`.

    Example: TokenView(log_probs=lp, entropy=h, old_log_probs=lp, advantages=a, mask=m, total=64.0, seed=(0, 3))
    """

    log_probs: Tensor
    """[N], of the current policy; with gradient in `loss`, without in `pick`."""
    entropy: Tensor
    """[N], as `log_probs`."""
    old_log_probs: Tensor
    """[N], what the ratio compares with."""
    advantages: Tensor
    """[N]."""
    mask: Tensor
    """[N], 1 where a token counts."""
    total: float
    """Counted tokens of the mini-batch, over all workers: the denominator of a term's mean."""
    seed: tuple[int, ...]
    """(run's seed, step, optimizer step of the rollout), for terms that draw."""
    others: Mapping[str, Tensor]
    """[N] log-probs of the same tokens under the other forward variants, by name, without gradient: of the current
    weights, or for those that a term only has `scored`, of the weights before the rollout's first update. "trained" is
    there in the passes of the other variants."""
    differs: Mapping[str, Tensor] = field(default_factory=dict)
    """[N] for each of `others` but "trained": 1 where its prompt is another than the trained one, 0 where it is the
    same (a prompt without pictures has no masked one)."""
    clipped: Tensor | None = None
    """bool [N], in `pick`: where the ratio clip has decided, so that the token has no gradient; None: nowhere."""
    picked: Tensor | None = None
    """[N], in `loss`: what the term's own `pick` returned for these tokens; None for a term that picks nothing."""
