"""From hidden states to log-probs of the `Sampling` distribution, in float32, never for a whole batch at
once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fovea.models.policy import Policy
from fovea.types import Sampling

# A head chunk holds at most so many logits; a pass with more recomputes them in the backward pass.
_LOGITS_AT_ONCE = 2**22


def token_log_probs(
    policy: Policy, hidden: Tensor, target: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """(log_probs [N], entropy [N]) of `target` [N] long given `hidden` [N, width], chunk by chunk, in
    float32."""
    weight = policy.family.lm_head(policy.model).weight
    rows = max(1, _LOGITS_AT_ONCE // weight.shape[0])
    bans = torch.tensor(policy.bans(sampling), device=hidden.device, dtype=torch.long)
    head = policy.family.lm_head(policy.model)

    def chunk(hidden_c: Tensor, target_c: Tensor) -> tuple[Tensor, Tensor]:
        logits = sampling_logits(head(hidden_c), sampling, bans)
        lse = logits.logsumexp(-1)
        mean = (torch.softmax(logits, -1) * logits).sum(-1)
        return logits.gather(-1, target_c[:, None])[:, 0] - lse, lse - mean

    if len(hidden) <= rows:
        return chunk(hidden, target)
    parts = []
    for h, t in zip(hidden.split(rows), target.split(rows), strict=True):
        parts.append(checkpoint(chunk, h, t, use_reentrant=False, preserve_rng_state=False))
    return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts])


def sampling_logits(logits: Tensor, sampling: Sampling, bans: Tensor) -> Tensor:
    """Logits [N, V] of the `Sampling` distribution: float32 or better, temperature, then bans.

    A banned logit is the lowest finite half number, not -inf: its probability is exactly 0 and 0 * logit
    stays 0.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / (sampling.temperature or 1.0)
    return logits.index_fill(-1, bans, torch.finfo(torch.float32).min / 2)
