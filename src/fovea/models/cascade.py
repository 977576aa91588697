"""Packed completions against (the prefix of their prompt, their own past): two blocks merged, and differentiable.

Completions are packed without padding as [1, heads, N tokens, head_dim]; only the own-past block of ragged
completions is padded, inside this file. The arithmetic of blocks is in `blocks.py`, which queries meet which keys
under a sliding window in `tiles.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fovea.models.blocks import Block, accurate, attend_block, block_backward, merge
from fovea.models.recurrent import Recurrence
from fovea.models.tiles import PrefixTile, Tile, causal_tiles, prefix_tiles


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
class Meetings:
    """Which queries meet which keys in one kind of layer."""

    own: tuple[tuple[Tile, ...], ...]
    """For each row group, in its padded width."""
    shared: tuple[tuple[PrefixTile, ...], ...]
    """For each span."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttendPlan:
    """Packed completions, ordered by prompt, against their prompts' keys and values."""

    lengths: tuple[int, ...]
    """Tokens of each packed row."""
    spans: tuple[tuple[int, int], ...]
    """Packed token range of each prompt's completions; together they cover [0, N)."""
    rows: tuple[RowGroup, ...]
    prefix_keys: dict[int, tuple[Tensor, ...]]
    """Layer -> for each span [1, KV, P, D]."""
    prefix_values: dict[int, tuple[Tensor, ...]]
    recurrence: Recurrence | None = None
    own_keys: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> [1, KV, N, D], filled by the forward pass (a long completion's next segment attends to it)."""
    own_values: dict[int, Tensor] = field(default_factory=dict)
    meetings: dict[int | None, Meetings] = field(default_factory=dict)
    """Window -> its meetings, made at the first layer that asks."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        self.own_keys[layer], self.own_values[layer] = key, value
        if window not in self.meetings:
            self.meetings[window] = self._meetings(layer, window, query)
        prefix = (*self.prefix_keys[layer], *self.prefix_values[layer])
        return _Cascade.apply(query, key, value, scale, self.spans, self.rows, self.meetings[window], *prefix)

    def _meetings(self, layer: int, window: int | None, like: Tensor) -> Meetings:
        steps = torch.cat([torch.arange(length) for length in self.lengths])
        sizes = [keys.shape[2] for keys in self.prefix_keys[layer]]
        return Meetings(
            own=tuple(causal_tiles(group.width, (), window, like) for group in self.rows),
            shared=tuple(
                prefix_tiles(size, steps[a:b], window, like)
                for size, (a, b) in zip(sizes, self.spans, strict=True)
            ),
        )


class _Cascade(torch.autograd.Function):
    """The merge of `blocks.py`: prefix block(s), own-past block, and their exact backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        spans: Any,
        rows: Any,
        met: Meetings,
        *prefix: Tensor,
    ) -> Tensor:
        own, own_lse = torch.empty_like(q), torch.empty_like(q[..., 0], dtype=accurate(q))
        for group, tiles in zip(rows, met.own, strict=True):
            out_g, lse_g = _own_past(group.pad(q), group.pad(k), group.pad(v), tiles, scale)
            group.unpad_into(own, out_g)
            group.unpad_into(own_lse, lse_g)
        parts = []
        for i, (a, b) in enumerate(spans):
            seen = (q[:, :, a:b], prefix[i], prefix[len(spans) + i])
            parts.append(_shared(*seen, met.shared[i], scale, own_lse))
        shared = torch.cat([part for part, _ in parts], dim=2)
        out, lse = merge(own, own_lse, shared, torch.cat([lse_p for _, lse_p in parts], dim=2))
        ctx.save_for_backward(q, k, v, out, lse, *prefix)
        ctx.scale, ctx.spans, ctx.rows, ctx.met = scale, spans, rows, met
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, lse, *prefix = ctx.saved_tensors
        d_out = grads[0]
        scale, spans, rows, met = ctx.scale, ctx.spans, ctx.rows, ctx.met
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for group, tiles in zip(rows, met.own, strict=True):
            block = Block(*(group.pad(x) for x in (d_out, q, k, v, out, lse)))
            for total, part in zip((d_q, d_k, d_v), _own_past_backward(block, tiles, scale), strict=True):
                group.unpad_into(total, part)
        d_keys, d_values = [], []
        for i, (a, b) in enumerate(spans):
            d_out_s, q_s, out_s, lse_s = (x[:, :, a:b] for x in (d_out, q, out, lse))
            block = Block(d_out_s, q_s, prefix[i], prefix[len(spans) + i], out_s, lse_s)
            part_k, part_v = _shared_backward(block, met.shared[i], scale, d_q[:, :, a:b])
            d_keys.append(part_k)
            d_values.append(part_v)
        return (d_q, d_k, d_v, None, None, None, None, *d_keys, *d_values)


# ---------------------------------------------------------------- own past


def _own_past(q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], scale: float) -> tuple[Tensor, Tensor]:
    """Padded rows [rows, H, width, D] against themselves -> (out, logsumexp [rows, H, width])."""
    if len(tiles) == 1 and tiles[0].causal:
        return attend_block(q, k, v, scale, causal=True)
    parts = [
        attend_block(
            q[:, :, t.start : t.stop],
            k[:, :, t.low : t.high],
            v[:, :, t.low : t.high],
            scale,
            causal=t.causal,
            mask=t.mask,
        )
        for t in tiles
    ]
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


def _own_past_backward(block: Block, tiles: Sequence[Tile], scale: float) -> tuple[Tensor, Tensor, Tensor]:
    if len(tiles) == 1 and tiles[0].causal:
        return block_backward(block, scale, causal=True)
    d_q = torch.empty_like(block.q)
    d_k, d_v = torch.zeros_like(block.k), torch.zeros_like(block.v)
    for t in tiles:
        d_out, q, out, lse = (x[:, :, t.start : t.stop] for x in (block.d_out, block.q, block.out, block.lse))
        k, v = block.k[:, :, t.low : t.high], block.v[:, :, t.low : t.high]
        part = block_backward(Block(d_out, q, k, v, out, lse), scale, causal=t.causal, mask=t.mask)
        d_q[:, :, t.start : t.stop] = part[0]
        d_k[:, :, t.low : t.high] += part[1]
        d_v[:, :, t.low : t.high] += part[2]
    return d_q, d_k, d_v


# ---------------------------------------------------------------- the prefix


def _shared(
    q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[PrefixTile], scale: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """One prompt's completion tokens [1, H, n, D] against its prefix; logsumexp -inf for what sees none of it."""
    if len(tiles) == 1 and tiles[0].plain:
        return attend_block(q, k, v, scale, causal=False)
    out, lse = torch.zeros_like(q), torch.full_like(q[..., 0], -torch.inf, dtype=like.dtype)
    for t in tiles:
        asked = q if t.queries is None else q.index_select(2, t.queries)
        part, part_lse = attend_block(
            asked, k[:, :, t.low :], v[:, :, t.low :], scale, causal=False, mask=t.mask
        )
        places = slice(None) if t.queries is None else t.queries
        out[:, :, places], lse[:, :, places] = part, part_lse
    return out, lse


def _shared_backward(
    block: Block, tiles: Sequence[PrefixTile], scale: float, d_q: Tensor
) -> tuple[Tensor, Tensor]:
    """(dK, dV) of the prefix; the queries' part is added to `d_q`."""
    if len(tiles) == 1 and tiles[0].plain:
        part_q, part_k, part_v = block_backward(block, scale, causal=False)
        d_q += part_q
        return part_k, part_v
    d_k, d_v = torch.zeros_like(block.k), torch.zeros_like(block.v)
    for t in tiles:
        d_out, q, out, lse = (
            x if t.queries is None else x.index_select(2, t.queries)
            for x in (block.d_out, block.q, block.out, block.lse)
        )
        seen = Block(d_out, q, block.k[:, :, t.low :], block.v[:, :, t.low :], out, lse)
        part_q, part_k, part_v = block_backward(seen, scale, causal=False, mask=t.mask)
        if t.queries is None:
            d_q += part_q
        else:
            d_q.index_add_(2, t.queries, part_q)
        d_k[:, :, t.low :] += part_k
        d_v[:, :, t.low :] += part_v
    return d_k, d_v
