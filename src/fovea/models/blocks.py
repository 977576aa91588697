"""One block of attention (queries against keys), its logsumexp, the merge of two blocks, and the exact backward.

The merge. For one query with scores s_A over keys A and s_B over keys B, with l = logsumexp(s):
    softmax([s_A, s_B]) [V_A; V_B] = e^(l_A - l) o_A + e^(l_B - l) o_B,    l = log(e^l_A + e^l_B)
and the backward of each block needs only the *merged* o and l (Dao et al., FlashAttention, arXiv:2205.14135,
app. B):
    P = e^(s - l),  D = rowsum(dO * o),  dS = scale P * (dO V^T - D),  dV = P^T dO,  dQ = dS K,  dK = dS^T Q.

On a CPU the blocks are PyTorch's own flash kernels; elsewhere the scores are made explicitly, a bounded number at
a time. Every query must see at least one key of a block it is given to: what sees nothing is not asked
(`tiles.py`). Not here: which queries meet which keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# PyTorch's CPU kernels that return the logsumexp are private names; without them the explicit path serves.
_CPU_KERNELS = all(
    hasattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{end}") for end in ("", "_backward")
)

# Scores of the explicit (not CPU) path are made for so many (query, key) pairs at a time.
_SCORES_AT_ONCE = 2**24


class Block(NamedTuple):
    """What the backward of one block needs; `out` and `lse` are the merged ones."""

    d_out: Tensor
    """[B, H, n, D]."""
    q: Tensor
    k: Tensor
    """[B, KV, m, D]."""
    v: Tensor
    out: Tensor
    lse: Tensor
    """[B, H, n]."""


def accurate(x: Tensor) -> torch.dtype:
    """float32, or float64 for a float64 tensor."""
    return torch.promote_types(x.dtype, torch.float32)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two blocks' outputs [..., D] by their logsumexp [...], in float32 or better."""
    lse = torch.logaddexp(lse_a, lse_b)
    merged = out_a * (lse_a - lse).exp_()[..., None] + out_b * (lse_b - lse).exp_()[..., None]
    return merged.to(out_a.dtype), lse


def attend_block(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One attention block: q [B, H, n, D], k and v [B, KV, m, D] -> (out [B, H, n, D], logsumexp [B, H, n]).

    `mask` [1 or B, 1, 1 or n, m], 0 or -inf in the type of q, is added to the scores.
    """
    if q.device.type == "cpu" and _CPU_KERNELS:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(q, k, v, 0.0, causal, attn_mask=_everywhere(mask, q, k), scale=scale)
    return explicit_block(q, k, v, scale, causal=causal, mask=mask)


def block_backward(
    block: Block, scale: float, *, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) of one block; `causal` and `mask` as given to `attend_block`."""
    if block.q.device.type == "cpu" and _CPU_KERNELS:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        whole = _everywhere(mask, block.q, block.k)
        return kernel(*block, 0.0, causal, attn_mask=whole, scale=scale)
    return explicit_block_backward(block, scale, causal=causal, mask=mask)


def explicit_block(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attend_block` in plain torch, for every device."""
    outs, lses = [], []
    for a, b in _query_chunks(q, k):
        scores = _scores(q, k, scale, a, b, causal, mask)
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp_().to(v.dtype)
        outs.append(_fold(weights) @ v)
        lses.append(lse.flatten(1, 2))
    groups = q.shape[1] // k.shape[1]
    unfolded = [out.unflatten(2, (groups, -1)).flatten(1, 2) for out in outs]
    return torch.cat(unfolded, dim=2), torch.cat(lses, dim=2)


def explicit_block_backward(
    block: Block, scale: float, *, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`block_backward` in plain torch, for every device."""
    d_out, q, k, v, out, lse = block
    kv = k.shape[1]
    delta = (d_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    d_q = torch.empty_like(q)
    d_k, d_v = torch.zeros_like(k, dtype=lse.dtype), torch.zeros_like(v, dtype=lse.dtype)
    for a, b in _query_chunks(q, k):
        p = (_scores(q, k, scale, a, b, causal, mask) - _grouped(lse[:, :, a:b], kv)[..., None]).exp_()
        d_o = _fold(_grouped(d_out[:, :, a:b], kv))
        d_p = (d_o @ v.transpose(-1, -2)).to(lse.dtype).view_as(p)
        d_s = _fold((p * (d_p - _grouped(delta[:, :, a:b], kv)[..., None]) * scale).to(q.dtype))
        d_q[:, :, a:b] = (d_s @ k).unflatten(2, (-1, b - a)).flatten(1, 2)
        d_k += d_s.transpose(-1, -2) @ _fold(_grouped(q[:, :, a:b], kv))
        d_v += _fold(p.to(q.dtype)).transpose(-1, -2) @ d_o
    return d_q, d_k.to(k.dtype), d_v.to(v.dtype)


def _everywhere(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    return None if mask is None else mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


def _query_chunks(q: Tensor, k: Tensor) -> list[tuple[int, int]]:
    step = max(1, _SCORES_AT_ONCE // (q.shape[0] * q.shape[1] * max(1, k.shape[2])))
    return [(a, min(a + step, q.shape[2])) for a in range(0, q.shape[2], step)]


def _grouped(x: Tensor, kv: int) -> Tensor:
    """[B, H, n, ...] -> [B, KV, H / KV, n, ...]."""
    return x.unflatten(1, (kv, -1))


def _fold(x: Tensor) -> Tensor:
    """[B, KV, groups, n, m] -> [B, KV, groups * n, m]: grouped heads share one product, keys are not
    repeated."""
    return x.flatten(2, 3)


def _scores(q: Tensor, k: Tensor, scale: float, a: int, b: int, causal: bool, mask: Tensor | None) -> Tensor:
    """Scaled scores of queries a to b, [B, KV, groups, b - a, m], float32 or better."""
    folded = _fold(_grouped(q[:, :, a:b], k.shape[1]))
    scores = (folded @ k.transpose(-1, -2)).to(accurate(q)) * scale
    scores = scores.unflatten(2, (-1, b - a))
    if causal:
        ahead = torch.arange(k.shape[2], device=q.device) > torch.arange(a, b, device=q.device)[:, None]
        scores = scores.masked_fill(ahead, -torch.inf)
    if mask is not None:
        scores = scores + (mask if mask.shape[2] == 1 else mask[:, :, a:b])[:, :, None]
    return scores
