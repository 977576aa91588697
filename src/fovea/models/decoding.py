"""One token a row at a time against prefixes that are stored once a prompt: the decode loop's key/value
store.

Not here: choosing the tokens and when a row leaves (`fovea.engines.shared_prefill`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fovea.models.blocks import attend_block, merge
from fovea.models.recurrent import Recurrence, take, token_rows


@dataclass(kw_only=True, slots=True)
class DecodePlan:
    """One query a row. Mutable on purpose: it is the decode loop's key/value store.

    Prefix keys are held once a prompt and never expanded to rows. `step` is how many own tokens are stored.
    """

    prefix_keys: dict[int, Tensor]
    """Layer -> [n prompts, KV, P max, D], right-padded."""
    prefix_values: dict[int, Tensor]
    prefix_lengths: Tensor
    """[n prompts] long, on the CPU: P of each prompt."""
    own_keys: dict[int, Tensor]
    """Layer -> [B, KV, capacity, D]."""
    own_values: dict[int, Tensor]
    slot: Tensor
    """[B] long: place of each row in the padded [n prompts * width]; ascending."""
    width: int
    """Most live rows of one prompt."""
    recurrence: Recurrence | None = None
    """The states of every row; None for a model without recurrent layers."""
    step: int = 0
    seen: dict[int | None, tuple[int, Tensor | None]] = field(default_factory=dict)
    """Window -> the first prefix place anybody sees at this step, and the mask from there on."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """query [1, H, B, D], key and value [1, KV, B, D] -> [1, H, B, D]; stores key and value at `step`."""
        batch, kv, (heads, dim) = len(self.slot), key.shape[1], (query.shape[1], query.shape[3])
        own_k, own_v = self.own_keys[layer], self.own_values[layer]
        own_k[:, :, self.step] = key[0].transpose(0, 1)
        own_v[:, :, self.step] = value[0].transpose(0, 1)
        first, last = 0 if window is None else max(0, self.step + 1 - window), self.step + 1
        # grouped heads become queries of one key head: [B, KV, H / KV, D]
        q_B = query[0].transpose(0, 1).reshape(batch, kv, heads // kv, dim)
        own, own_lse = attend_block(
            q_B, own_k[:, :, first:last], own_v[:, :, first:last], scale, causal=False
        )
        if window is None or self.step < window - 1:
            shared, shared_lse = self._attend_prefix(layer, q_B, scale, window)
            own, _ = merge(own, own_lse, shared, shared_lse)
        return own.reshape(batch, heads, dim).transpose(0, 1)[None]

    def next_token(self) -> None:
        """The token of this step is stored in every layer."""
        self.step += 1
        self.seen = {None: self.seen[None]} if None in self.seen else {}

    def _attend_prefix(
        self, layer: int, q_B: Tensor, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        low, mask = self._seen(window, q_B)
        keys, values = self.prefix_keys[layer][:, :, low:], self.prefix_values[layer][:, :, low:]
        n, (batch, kv, groups, dim) = len(keys), q_B.shape
        full = batch == n * self.width
        if not full:
            padded = q_B.new_zeros(n * self.width, kv, groups, dim)
            q_B = padded.index_copy_(0, self.slot, q_B)
        q = q_B.view(n, self.width, kv, groups, dim).transpose(1, 2).reshape(n, kv, self.width * groups, dim)
        out, lse = attend_block(q, keys, values, scale, causal=False, mask=mask)
        out = out.view(n, kv, self.width, groups, dim).transpose(1, 2).reshape(-1, kv, groups, dim)
        lse = lse.reshape(n, kv, self.width, groups).transpose(1, 2).reshape(-1, kv, groups)
        return (out, lse) if full else (out.index_select(0, self.slot), lse.index_select(0, self.slot))

    def _seen(self, window: int | None, like: Tensor) -> tuple[int, Tensor | None]:
        """(first place that any row sees, mask [n prompts, 1, 1, P max - first] or None): padding, window."""
        if window not in self.seen:
            lengths = self.prefix_lengths
            first = torch.zeros_like(lengths)
            if window is not None:
                first = (lengths + self.step - window + 1).clamp(min=0)
            low, longest = int(first.min()), int(lengths.max())
            mask = None
            if int(first.max()) > low or int(lengths.min()) < longest:
                place = torch.arange(low, longest)
                unseen = (place >= lengths[:, None]) | (place < first[:, None])
                mask = torch.zeros(unseen.shape, dtype=like.dtype).masked_fill_(unseen, -torch.inf)
                mask = mask[:, None, None].to(like.device)
            self.seen[window] = (low, mask)
        return self.seen[window]

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` own tokens a row."""
        for store in (self.own_keys, self.own_values):
            for layer, buffer in store.items():
                if buffer.shape[2] < tokens:
                    grown = buffer.new_empty(buffer.shape[0], buffer.shape[1], tokens, buffer.shape[3])
                    grown[:, :, : self.step] = buffer[:, :, : self.step]
                    store[layer] = grown

    @property
    def full(self) -> bool:
        """No room for another token."""
        return any(self.step == buffer.shape[2] for buffer in self.own_keys.values())

    def keep(self, rows: Tensor, row_prompt: Sequence[int]) -> None:
        """Drop all but `rows` [b] long; prompts without rows leave too.

        `row_prompt`: for each kept row, its prompt's place in the current plan (ascending).
        """
        for store in (self.own_keys, self.own_values):
            store.update({layer: buffer.index_select(0, rows) for layer, buffer in store.items()})
        if self.recurrence is not None:
            self.recurrence = token_rows(take(self.recurrence.after, rows))
        live = sorted(set(row_prompt))
        if len(live) < len(self.prefix_lengths):
            index = torch.tensor(live, device=rows.device)
            self.prefix_lengths = self.prefix_lengths[live]
            longest = int(self.prefix_lengths.max())
            for store in (self.prefix_keys, self.prefix_values):
                store.update({layer: x[:, :, :longest].index_select(0, index) for layer, x in store.items()})
            self.seen = {}
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
