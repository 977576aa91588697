"""One token a row at a time against prefixes that are stored once a prompt: the decode loop's key/value
store.

Not here: choosing the tokens and when a row leaves (`fovea.engines.shared_prefill`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fovea.models.attention import attend_block, merge


@dataclass(kw_only=True, slots=True)
class DecodePlan:
    """One query a row. Mutable on purpose: it is the decode loop's key/value store.

    Prefix keys are held once a prompt and never expanded to rows. `step` is how many own tokens are stored.
    """

    prefix_keys: list[Tensor]
    """[layer] -> [n prompts, KV, P max, D], right-padded."""
    prefix_values: list[Tensor]
    prefix_mask: Tensor | None
    """[n prompts, 1, 1, P max]: 0 or -inf; None when no prompt is padded."""
    own_keys: list[Tensor]
    """[layer] -> [B, KV, capacity, D]."""
    own_values: list[Tensor]
    slot: Tensor
    """[B] long: place of each row in the padded [n prompts * width]; ascending."""
    width: int
    """Most live rows of one prompt."""
    step: int = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [1, H, B, D], key and value [1, KV, B, D] -> [1, H, B, D]; stores key and value at `step`."""
        batch, kv, (heads, dim) = len(self.slot), key.shape[1], (query.shape[1], query.shape[3])
        own_k, own_v = self.own_keys[layer], self.own_values[layer]
        own_k[:, :, self.step] = key[0].transpose(0, 1)
        own_v[:, :, self.step] = value[0].transpose(0, 1)
        # grouped heads become queries of one key head: [B, KV, H / KV, D]
        q_B = query[0].transpose(0, 1).reshape(batch, kv, heads // kv, dim)
        own, own_lse = attend_block(
            q_B, own_k[:, :, : self.step + 1], own_v[:, :, : self.step + 1], scale, causal=False
        )
        shared, shared_lse = self._attend_prefix(layer, q_B, scale)
        out, _ = merge(own, own_lse, shared, shared_lse)
        return out.reshape(batch, heads, dim).transpose(0, 1)[None]

    def _attend_prefix(self, layer: int, q_B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        keys, values = self.prefix_keys[layer], self.prefix_values[layer]
        n, (batch, kv, groups, dim) = len(keys), q_B.shape
        full = batch == n * self.width
        if not full:
            padded = q_B.new_zeros(n * self.width, kv, groups, dim)
            q_B = padded.index_copy_(0, self.slot, q_B)
        q = q_B.view(n, self.width, kv, groups, dim).transpose(1, 2).reshape(n, kv, self.width * groups, dim)
        out, lse = attend_block(q, keys, values, scale, causal=False, mask=self.prefix_mask)
        out = out.view(n, kv, self.width, groups, dim).transpose(1, 2).reshape(-1, kv, groups, dim)
        lse = lse.reshape(n, kv, self.width, groups).transpose(1, 2).reshape(-1, kv, groups)
        return (out, lse) if full else (out.index_select(0, self.slot), lse.index_select(0, self.slot))

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` own tokens a row."""
        for store in (self.own_keys, self.own_values):
            for layer, buffer in enumerate(store):
                if buffer.shape[2] < tokens:
                    grown = buffer.new_empty(buffer.shape[0], buffer.shape[1], tokens, buffer.shape[3])
                    grown[:, :, : self.step] = buffer[:, :, : self.step]
                    store[layer] = grown

    def keep(self, rows: Tensor, row_prompt: Sequence[int]) -> None:
        """Drop all but `rows` [b] long; prompts without rows leave too.

        `row_prompt`: for each kept row, its prompt's place in the current plan (ascending).
        """
        for store in (self.own_keys, self.own_values):
            store[:] = [buffer.index_select(0, rows) for buffer in store]
        live = sorted(set(row_prompt))
        if len(live) < len(self.prefix_keys[0]):
            index = torch.tensor(live, device=rows.device)
            for store in (self.prefix_keys, self.prefix_values):
                store[:] = [keys.index_select(0, index) for keys in store]
            self.prefix_mask = None if self.prefix_mask is None else self.prefix_mask.index_select(0, index)
        self.slot, self.width = slots([live.index(prompt) for prompt in row_prompt], rows.device)


def slots(row_prompt: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
    """Places of rows (ascending by prompt 0..n-1) in a padded [n, width], and the width.

    Example: slots([0, 0, 1], device) == (tensor([0, 1, 2]), 2)
    """
    counts: dict[int, int] = defaultdict(int)
    within = []
    for prompt in row_prompt:
        within.append(counts[prompt])
        counts[prompt] += 1
    width = max(counts.values())
    places = [prompt * width + i for prompt, i in zip(row_prompt, within, strict=True)]
    return torch.tensor(places, device=device), width
