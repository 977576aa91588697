"""Which queries meet which keys where attention is not plainly causal: sliding windows and picture blocks.

A window w lets the query at place i see the keys j with i - w < j <= i, places counted in the row as the model
would see it whole: prompt, then completion. A picture block lets each of its tokens see all of them (Gemma 3), in
windowed layers within the window's lower bound. Queries are cut into tiles, every tile meets one run of keys, and
only a tile whose edge is not straight has a mask of its own size: nothing here is as large as (prompt + completion)
squared, and a tile in which every query sees every key has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Queries of a tile with a crooked edge: large enough for the kernels, small enough for its mask.
TILE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Queries [start, stop) against keys [low, high)."""

    start: int
    stop: int
    low: int
    high: int
    causal: bool = False
    """Query start + i sees keys up to low + i (only where start equals low, and without a mask)."""
    mask: Tensor | None = None
    """[1, 1, stop - start, high - low], 0 or -inf."""


def causal_tiles(
    length: int, blocks: Sequence[tuple[int, int]], window: int | None, like: Tensor
) -> tuple[Tile, ...]:
    """The tiles of a sequence that attends to itself, `blocks` [start, stop) to all of themselves.

    Example: causal_tiles(9, (), None, like) == (Tile(start=0, stop=9, low=0, high=9, causal=True),)
    """
    if not blocks and (window is None or length <= window):
        return (Tile(start=0, stop=length, low=0, high=length, causal=True),)
    masks: _Masks = {}
    tiles: list[Tile] = []
    done = 0
    for a, b in (*blocks, (length, length)):
        for start in range(done, a, TILE):
            tiles.append(_text_tile(start, min(start + TILE, a), length, window, like, masks))
        if b > a:
            tiles.append(_block_tile(a, b, window, like))
        done = b
    return tuple(tiles)


_Masks = dict[tuple[int, int], Tensor]
"""(queries, keys) -> mask: tiles of one shape share it."""


def _text_tile(start: int, stop: int, length: int, window: int | None, like: Tensor, masks: _Masks) -> Tile:
    low = 0 if window is None else max(0, start - window + 1)
    if start == low and (window is None or stop - low <= window):
        return Tile(start=start, stop=stop, low=low, high=stop, causal=True)
    # without a window the mask of the longest tile serves the shorter ones: they are cut from its right end
    edge = _edge(stop - start, length if window is None else stop - low, window, like, masks)
    return Tile(start=start, stop=stop, low=low, high=stop, mask=edge[..., low - stop :])


def _edge(queries: int, keys: int, window: int | None, like: Tensor, masks: _Masks) -> Tensor:
    """[1, 1, queries, keys] for queries that end where the keys end. Only the last columns are crooked."""
    if (queries, keys) not in masks:
        query = torch.arange(keys - queries, keys, device=like.device)[:, None]
        key = torch.arange(keys, device=like.device)
        unseen = key > query if window is None else (key > query) | (key <= query - window)
        masks[queries, keys] = _mask(unseen, like)
    return masks[queries, keys]


def _block_tile(start: int, stop: int, window: int | None, like: Tensor) -> Tile:
    low = 0 if window is None else max(0, start - window + 1)
    mask = None
    if window is not None and stop - low > window:
        query = torch.arange(start, stop, device=like.device)[:, None]
        mask = _mask(torch.arange(low, stop, device=like.device) <= query - window, like)
    return Tile(start=start, stop=stop, low=low, high=stop, mask=mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixTile:
    """Some completion tokens of one prompt against the end of its prefix."""

    queries: Tensor | None
    """[n] long, among the prompt's packed completion tokens, ascending; None: all of them."""
    low: int
    """Keys [low, prefix length)."""
    mask: Tensor | None
    """[1, 1, n, prefix length - low], 0 or -inf."""

    @property
    def plain(self) -> bool:
        """Every query sees the whole prefix."""
        return self.queries is None and self.mask is None and self.low == 0


def prefix_tiles(prefix: int, steps: Tensor, window: int | None, like: Tensor) -> tuple[PrefixTile, ...]:
    """The tiles of completion tokens against a prefix of `prefix` tokens.

    `steps` [N] long, on the CPU: how many tokens lie between the prefix and each query. Token t sees the prefix
    from prefix + t - window + 1 on; from t = window - 1 on it sees none of it and is in no tile.
    """
    if window is None or prefix + int(steps.max()) < window:
        return (PrefixTile(queries=None, low=0, mask=None),)
    near = torch.nonzero(steps < window - 1)[:, 0]
    tiles = []
    for queries in near.split(TILE) if len(near) else ():
        first = prefix - window + 1 + steps[queries]
        low = max(0, int(first.min()))
        mask = None
        if int(first.max()) > low:
            unseen = torch.arange(low, prefix) < first[:, None]
            mask = _mask(unseen.to(like.device), like)
        every = len(queries) == len(steps)
        tiles.append(PrefixTile(queries=None if every else queries.to(like.device), low=low, mask=mask))
    return tuple(tiles)


def _mask(unseen: Tensor, like: Tensor) -> Tensor:
    zeros = torch.zeros(unseen.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(unseen, -torch.inf)[None, None]
