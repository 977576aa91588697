"""The attention function that lets many completions share one prefix, registered with transformers under one name.

`ATTENTION` is registered through `AttentionInterface` (and its mask twin), so no model code is changed.
Without a plan it is exactly transformers' `sdpa`. A plan travels as the keyword `shared_prefix=` (language
model) or `vision_segments=` (vision tower) from the model's forward down to the attention function and picks
one of
    CapturePlan   prompts packed end to end attend to themselves; their keys and values are kept
    AttendPlan    packed completions attend to (the prefix of their prompt, their own past), in `cascade.py`
    DecodePlan    one query a row against (the prefix, its own past), in `decoding.py`
Everything is packed without padding as [1, heads, N tokens, head_dim]. A layer with a sliding window says so
itself: transformers' modules hand `sliding_window=` to their attention function. Recurrent layers are reached
through `recurrent.py`, by the same plan. Not here: who the prompts are (`shared_prefix.py`), sampling (engines).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fovea.models.recurrent import Recurrence
from fovea.models.tiles import Tile, causal_tiles

ATTENTION = "fovea_shared_prefix"


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    shared_prefix: Plan | None = None,
    vision_segments: dict[torch.nn.Module, Segments] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered function. query [B, H, N, D], key and value [B, KV, N, D] -> ([B, N, H, D], None)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if shared_prefix is not None:
        # a module of the language model; layer_idx is set by transformers for its own cache
        layer: int = module.layer_idx  # type: ignore[assignment]
        out = shared_prefix.attend(layer, query, key, value, scale, sliding_window)
        return out.transpose(1, 2).contiguous(), None
    if vision_segments is not None:
        out = attend_segments(query, key, value, vision_segments[module], causal=False, scale=scale)
        return out.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


class Plan(Protocol):
    """How one pass of the language model attends."""

    @property
    def recurrence(self) -> Recurrence | None:
        """What recurrent layers begin with and leave behind; None for a model that has none."""
        ...

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """query [1, H, N, D], key and value [1, KV, N, D], after RoPE -> [1, H, N, D].

        `window`: a query sees itself and the `window` - 1 tokens before it; None: all before it.
        """
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
    blocks: tuple[tuple[tuple[int, int], ...], ...]
    """For each group, the runs [start, stop) inside its segments that see all of themselves (`segments_of`)."""


def segments_of(
    lengths: Sequence[int],
    device: torch.device,
    blocks: Sequence[tuple[tuple[int, int], ...]] | None = None,
) -> Segments:
    """Segments of consecutive runs of `lengths` (each >= 1), with the `blocks` of each if there are any.

    Example: segments_of([3, 3], device).groups == ((2, 3, None),)
    """
    shapes: list[tuple[int, tuple[tuple[int, int], ...]]]
    shapes = list(zip(lengths, blocks or [()] * len(lengths), strict=True))
    if len(set(shapes)) == 1:
        group = (len(lengths), lengths[0], None)
        return Segments(groups=(group,), inverse=None, blocks=(shapes[0][1],))
    starts: dict[Hashable, list[int]] = defaultdict(list)
    offset = 0
    for shape in shapes:
        starts[shape].append(offset)
        offset += shape[0]
    kinds = list(dict.fromkeys(shapes))
    groups = []
    for length, inside in kinds:
        begins = starts[length, inside]
        positions = (torch.tensor(begins)[:, None] + torch.arange(length)).flatten()
        groups.append((len(begins), length, positions))
    order = torch.cat([positions for _, _, positions in groups])
    return Segments(
        groups=tuple((n, length, positions.to(device)) for n, length, positions in groups),
        inverse=torch.argsort(order).to(device),
        blocks=tuple(inside for _, inside in kinds),
    )


def attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    causal: bool,
    scale: float,
    tiles: Sequence[tuple[Tile, ...]] | None = None,
) -> Tensor:
    """Each segment attends to itself. query [1, H, N, D], key and value [1, KV, N, D] -> [1, H, N, D].

    `tiles`: for each group, which of its queries meet which keys; None: all of them, or the causal half.
    """
    outs = []
    for i, (runs, length, positions) in enumerate(segments.groups):
        q, k, v = (
            _take(x, positions).reshape(x.shape[1], runs, length, x.shape[3]).transpose(0, 1)
            for x in (query, key, value)
        )
        if tiles is None or (len(tiles[i]) == 1 and tiles[i][0].causal):
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        else:
            out = torch.cat([_attend_tile(q, k, v, tile, scale) for tile in tiles[i]], dim=2)
        outs.append(out.transpose(0, 1).reshape(query.shape[1], runs * length, -1))
    packed = (outs[0] if len(outs) == 1 else torch.cat(outs, dim=1))[None]
    return _take(packed, segments.inverse)


def _attend_tile(q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        q[:, :, tile.start : tile.stop],
        k[:, :, tile.low : tile.high],
        v[:, :, tile.low : tile.high],
        attn_mask=tile.mask,
        is_causal=tile.causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _take(x: Tensor, positions: Tensor | None) -> Tensor:
    return x if positions is None else x.index_select(2, positions)


@dataclass(frozen=True, kw_only=True, slots=True)
class CapturePlan:
    """Prompts packed end to end; causal inside each, picture blocks to all of themselves where the family has such.

    Post-RoPE keys and values are kept by layer.
    """

    segments: Segments
    recurrence: Recurrence | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> [1, KV, N, D], filled by the forward pass."""
    values: dict[int, Tensor] = field(default_factory=dict)
    tiles: dict[int | None, list[tuple[Tile, ...]]] = field(default_factory=dict)
    """Window -> the tiles of every group of `segments`, made at the first layer that asks."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        self.keys[layer], self.values[layer] = key, value
        if window not in self.tiles:
            groups = zip(self.segments.groups, self.segments.blocks, strict=True)
            self.tiles[window] = [
                causal_tiles(length, blocks, window, query) for (_, length, _), blocks in groups
            ]
        tiles = self.tiles[window]
        return attend_segments(query, key, value, self.segments, causal=True, scale=scale, tiles=tiles)
