"""Attention that lets many completions share one prefix, registered with transformers under one name.

`ATTENTION` is registered through `AttentionInterface` (and its mask twin), so no model code is changed.
Without a plan it is exactly transformers' `sdpa`. A plan travels as the keyword `shared_prefix=` (language
model) or `vision_segments=` (vision tower) from the model's forward down to the attention function and picks
one of
    CapturePlan   prompts packed end to end attend to themselves; their keys and values are kept
    AttendPlan    packed completions attend to (the prefix of their prompt, their own past); differentiable
    DecodePlan    one query a row against (the prefix, its own past), in `decoding.py`
Everything is packed without padding as [1, heads, N tokens, head_dim]; only the own-past block of ragged
completions is padded, inside this file. Not here: who the prompts are (`shared_prefix.py`), sampling
(engines).

The merge. For one query with scores s_A over keys A and s_B over keys B, with l = logsumexp(s):
    softmax([s_A, s_B]) [V_A; V_B] = e^(l_A - l) o_A + e^(l_B - l) o_B,    l = log(e^l_A + e^l_B)
and the backward of each block needs only the *merged* o and l (Dao et al., FlashAttention, arXiv:2205.14135,
app. B):
    P = e^(s - l),  D = rowsum(dO * o),  dS = scale P * (dO V^T - D),  dV = P^T dO,  dQ = dS K,  dK = dS^T Q.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "fovea_shared_prefix"

# PyTorch's CPU kernels that return the logsumexp are private names; without them the explicit path serves.
_CPU_KERNELS = all(
    hasattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{end}") for end in ("", "_backward")
)

# Scores of the explicit (not CPU) path are made for so many (query, key) pairs at a time.
_SCORES_AT_ONCE = 2**24


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    shared_prefix: Plan | None = None,
    vision_segments: dict[torch.nn.Module, Segments] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered function. query [B, H, N, D], key and value [B, KV, N, D] -> ([B, N, H, D], None)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if shared_prefix is not None:
        # a module of the language model; layer_idx is set by transformers for its own cache
        out = shared_prefix.attend(module.layer_idx, query, key, value, scale)  # type: ignore[arg-type]
        return out.transpose(1, 2).contiguous(), None
    if vision_segments is not None:
        out = attend_segments(query, key, value, vision_segments[module], causal=False, scale=scale)
        return out.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


class Plan(Protocol):
    """How one pass of the language model attends."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [1, H, N, D], key and value [1, KV, N, D], after RoPE -> [1, H, N, D]."""
        ...


def register() -> None:
    """Make `attn_implementation=ATTENTION` known to transformers. Safe to call again."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# ---------------------------------------------------------------- self-attention of packed segments


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """Which runs of a packed sequence attend to themselves. Runs of one length go through one kernel call."""

    groups: tuple[tuple[int, int, Tensor | None], ...]
    """(runs, length, packed positions [runs * length]); positions is None when one group covers all in
    order."""
    inverse: Tensor | None
    """[N] long: where each packed token is in the groups' concatenation; None when in order."""


def segments_of(lengths: Sequence[int], device: torch.device) -> Segments:
    """Segments of consecutive runs of `lengths` (each >= 1).

    Example: segments_of([3, 3], device).groups == ((2, 3, None),)
    """
    if len(set(lengths)) == 1:
        return Segments(groups=((len(lengths), lengths[0], None),), inverse=None)
    starts = defaultdict(list)
    offset = 0
    for length in lengths:
        starts[length].append(offset)
        offset += length
    groups = []
    for length, begins in starts.items():
        positions = (torch.tensor(begins)[:, None] + torch.arange(length)).flatten()
        groups.append((len(begins), length, positions))
    order = torch.cat([positions for _, _, positions in groups])
    return Segments(
        groups=tuple((n, length, positions.to(device)) for n, length, positions in groups),
        inverse=torch.argsort(order).to(device),
    )


def attend_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, causal: bool, scale: float
) -> Tensor:
    """Each segment attends to itself. query [1, H, N, D], key and value [1, KV, N, D] -> [1, H, N, D]."""
    outs = []
    for runs, length, positions in segments.groups:
        q, k, v = (
            _take(x, positions).reshape(x.shape[1], runs, length, x.shape[3]).transpose(0, 1)
            for x in (query, key, value)
        )
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outs.append(out.transpose(0, 1).reshape(query.shape[1], runs * length, -1))
    packed = (outs[0] if len(outs) == 1 else torch.cat(outs, dim=1))[None]
    return _take(packed, segments.inverse)


def _take(x: Tensor, positions: Tensor | None) -> Tensor:
    return x if positions is None else x.index_select(2, positions)


@dataclass(frozen=True, kw_only=True, slots=True)
class CapturePlan:
    """Prompts packed end to end; causal inside each. Post-RoPE keys and values are kept by layer."""

    segments: Segments
    keys: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> [1, KV, N, D], filled by the forward pass."""
    values: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.keys[layer], self.values[layer] = key, value
        return attend_segments(query, key, value, self.segments, causal=True, scale=scale)


# ---------------------------------------------------------------- completions against a shared prefix


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """Rows of similar length, padded to one width for their own-past attention."""

    rows: int
    width: int
    source: Tensor | None
    """[n] long: packed tokens of these rows; None: all of them, in order."""
    slot: Tensor | None
    """[n] long: their places in the padded [rows * width]; None: no padding."""

    def pad(self, x: Tensor) -> Tensor:
        """[1, H, N, ...] -> [rows, H, width, ...]; padding is zero, so it is inert in every product."""
        x = x[0] if self.source is None else x[0].index_select(1, self.source)
        if self.slot is not None:
            padded = x.new_zeros(x.shape[0], self.rows * self.width, *x.shape[2:])
            x = padded.index_copy_(1, self.slot, x)
        return x.reshape(x.shape[0], self.rows, self.width, *x.shape[2:]).transpose(0, 1)

    def unpad_into(self, out: Tensor, padded: Tensor) -> None:
        """Write [rows, H, width, ...] to the packed places of `out` [1, H, N, ...]."""
        x = padded.transpose(0, 1).reshape(padded.shape[1], self.rows * self.width, *padded.shape[3:])
        x = x if self.slot is None else x.index_select(1, self.slot)
        if self.source is None:
            out[0].copy_(x)
        else:
            out[0].index_copy_(1, self.source, x)


def row_groups(lengths: Sequence[int], device: torch.device) -> tuple[RowGroup, ...]:
    """Bucket packed rows by length (powers of two), so that one long row does not pad all the others."""
    buckets: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        buckets[max(length - 1, 15).bit_length()].append(row)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    groups = []
    for rows in buckets.values():
        width = max(lengths[row] for row in rows)
        source = torch.cat([torch.arange(int(starts[row]), int(starts[row + 1])) for row in rows])
        slot = torch.cat([torch.arange(lengths[row]) + i * width for i, row in enumerate(rows)])
        groups.append(
            RowGroup(
                rows=len(rows),
                width=width,
                source=None if len(buckets) == 1 else source.to(device),
                slot=None if len(slot) == len(rows) * width else slot.to(device),
            )
        )
    return tuple(groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttendPlan:
    """Packed completions, ordered by prompt, against their prompts' keys and values."""

    spans: tuple[tuple[int, int], ...]
    """Packed token range of each prompt's completions; together they cover [0, N)."""
    rows: tuple[RowGroup, ...]
    prefix_keys: tuple[tuple[Tensor, ...], ...]
    """[layer][span] -> [1, KV, P, D]."""
    prefix_values: tuple[tuple[Tensor, ...], ...]
    own_keys: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> [1, KV, N, D], filled by the forward pass (a long completion's next segment attends to it)."""
    own_values: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.own_keys[layer], self.own_values[layer] = key, value
        prefix = (*self.prefix_keys[layer], *self.prefix_values[layer])
        return _Cascade.apply(query, key, value, scale, self.spans, self.rows, *prefix)


class _Cascade(torch.autograd.Function):
    """The merge of the module's docstring: prefix block(s), own-past block, and their exact backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Any, rows: Any, *prefix: Tensor
    ) -> Tensor:
        own, own_lse = torch.empty_like(q), torch.empty_like(q[..., 0], dtype=_accurate(q))
        for group in rows:
            out_g, lse_g = attend_block(group.pad(q), group.pad(k), group.pad(v), scale, causal=True)
            group.unpad_into(own, out_g)
            group.unpad_into(own_lse, lse_g)
        parts = [
            attend_block(q[:, :, a:b], prefix[i], prefix[len(spans) + i], scale, causal=False)
            for i, (a, b) in enumerate(spans)
        ]
        shared = torch.cat([part for part, _ in parts], dim=2)
        out, lse = merge(own, own_lse, shared, torch.cat([lse_p for _, lse_p in parts], dim=2))
        ctx.save_for_backward(q, k, v, out, lse, *prefix)
        ctx.scale, ctx.spans, ctx.rows = scale, spans, rows
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, lse, *prefix = ctx.saved_tensors
        d_out = grads[0]
        scale, spans, rows = ctx.scale, ctx.spans, ctx.rows
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for group in rows:
            block = _Block(*(group.pad(x) for x in (d_out, q, k, v, out, lse)))
            for total, part in zip((d_q, d_k, d_v), _block_backward(block, scale, causal=True), strict=True):
                group.unpad_into(total, part)
        d_keys, d_values = [], []
        for i, (a, b) in enumerate(spans):
            d_out_s, q_s, out_s, lse_s = (x[:, :, a:b] for x in (d_out, q, out, lse))
            block = _Block(d_out_s, q_s, prefix[i], prefix[len(spans) + i], out_s, lse_s)
            part_q, part_k, part_v = _block_backward(block, scale, causal=False)
            d_q[:, :, a:b] += part_q
            d_keys.append(part_k)
            d_values.append(part_v)
        return (d_q, d_k, d_v, None, None, None, *d_keys, *d_values)


def _accurate(x: Tensor) -> torch.dtype:
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

    `mask` [B, 1, 1, m] is added to the scores. The CPU has a kernel that returns the logsumexp and knows
    grouped heads; elsewhere the scores are made explicitly, a bounded number at a time.
    """
    if q.device.type == "cpu" and _CPU_KERNELS:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        if mask is not None:
            mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        return kernel(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)  # type: ignore[no-any-return]
    return explicit_block(q, k, v, scale, causal=causal, mask=mask)


def explicit_block(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attend_block` in plain torch, for every device."""
    outs, lses = [], []
    for a, b in _query_chunks(q, k):
        scores = _scores(q, k, scale, a, b, causal)
        scores = scores if mask is None else scores + mask[:, :, None]
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp_().to(v.dtype)
        outs.append(_fold(weights) @ v)
        lses.append(lse.flatten(1, 2))
    groups = q.shape[1] // k.shape[1]
    unfolded = [out.unflatten(2, (groups, -1)).flatten(1, 2) for out in outs]
    return torch.cat(unfolded, dim=2), torch.cat(lses, dim=2)


class _Block(NamedTuple):
    """What the backward of one block needs; `out` and `lse` are the merged ones."""

    d_out: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


def _block_backward(block: _Block, scale: float, *, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) of one block."""
    if block.q.device.type == "cpu" and _CPU_KERNELS:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return kernel(*block, 0.0, causal, scale=scale)  # type: ignore[no-any-return]
    return explicit_block_backward(block, scale, causal=causal)


def explicit_block_backward(block: _Block, scale: float, *, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`_block_backward` in plain torch, for every device."""
    d_out, q, k, v, out, lse = block
    kv = k.shape[1]
    delta = (d_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    d_q = torch.empty_like(q)
    d_k, d_v = torch.zeros_like(k, dtype=lse.dtype), torch.zeros_like(v, dtype=lse.dtype)
    for a, b in _query_chunks(q, k):
        p = (_scores(q, k, scale, a, b, causal) - _grouped(lse[:, :, a:b], kv)[..., None]).exp_()
        d_o = _fold(_grouped(d_out[:, :, a:b], kv))
        d_p = (d_o @ v.transpose(-1, -2)).to(lse.dtype).view_as(p)
        d_s = _fold((p * (d_p - _grouped(delta[:, :, a:b], kv)[..., None]) * scale).to(q.dtype))
        d_q[:, :, a:b] = (d_s @ k).unflatten(2, (-1, b - a)).flatten(1, 2)
        d_k += d_s.transpose(-1, -2) @ _fold(_grouped(q[:, :, a:b], kv))
        d_v += _fold(p.to(q.dtype)).transpose(-1, -2) @ d_o
    return d_q, d_k.to(k.dtype), d_v.to(v.dtype)


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


def _scores(q: Tensor, k: Tensor, scale: float, a: int, b: int, causal: bool) -> Tensor:
    """Scaled scores of queries a to b, [B, KV, groups, b - a, m], float32 or better."""
    folded = _fold(_grouped(q[:, :, a:b], k.shape[1]))
    scores = (folded @ k.transpose(-1, -2)).to(_accurate(q)) * scale
    scores = scores.unflatten(2, (-1, b - a))
    if causal:
        ahead = torch.arange(k.shape[2], device=q.device) > torch.arange(a, b, device=q.device)[:, None]
        scores = scores.masked_fill(ahead, -torch.inf)
    return scores
