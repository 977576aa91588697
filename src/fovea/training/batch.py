"""A mini-batch of samples on the device: rows, and flat tensors over all their tokens.

Not here: losses (`update`), which samples belong together (`fovea.rollouts.minibatches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from fovea.algorithms import Reduce
from fovea.models import Policy, Prompt
from fovea.models.shared_prefix import Row
from fovea.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B rows, their N tokens one after another."""

    prompts: list[Prompt]
    rows: list[Row]
    row_of: Tensor
    """[N] long."""
    lengths: Tensor
    """[N], counted tokens of the token's row."""
    old: Tensor
    advantages: Tensor
    weights: Tensor
    """[N], the mask over the denominator."""
    correction: Tensor
    """[N], what else multiplies the policy gradient: importance weights, a term's picks."""
    coefficients: Tensor
    """[N], `Sample.coefficients`."""
    returns: Tensor
    """[N], what the critic learns; with `old_values` and `value_weights` 0 where there is no critic."""
    old_values: Tensor
    value_weights: Tensor
    reference: Tensor | None
    moved: Tensor
    """[N], 1 where a token was sampled under another prompt than it is trained under."""
    mask: Tensor
    total: float
    """Counted tokens of the mini-batch, over all workers."""

    def only(self, kept: list[int]) -> tuple[Batch, Tensor]:
        """The same with these rows alone, and bool [N]: the tokens that are left. Denominators stay."""
        place = torch.full((len(self.rows),), -1, device=self.row_of.device)
        place[kept] = torch.arange(len(kept), device=place.device)
        row_of = place[self.row_of]
        tokens = row_of >= 0
        prompts, rows = distinct_rows([(self.prompts[self.rows[i][0]], self.rows[i][1]) for i in kept])
        flat = {
            field.name: getattr(self, field.name)[tokens]
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor) and field.name != "row_of"
        }
        return replace(self, prompts=prompts, rows=rows, row_of=row_of[tokens], **flat), tokens


def batch_of(policy: Policy, samples: Sequence[Sample], reduce: Reduce) -> Batch:
    """The samples of one optimizer step. `reduce` adds counts over workers."""
    prompts, rows = distinct_rows([(sample.trained_prompt, sample.token_ids) for sample in samples])
    sizes = torch.tensor([len(sample.token_ids) for sample in samples], dtype=torch.long)
    masks = [(sample.weights > 0).astype(np.float32) for sample in samples]
    lengths = [np.full(len(mask), mask.sum(), np.float32) for mask in masks]
    ones = [np.ones(len(mask), np.float32) for mask in masks]
    zeros = [np.zeros(len(mask), np.float32) for mask in masks]
    referenced = all(sample.reference_log_probs is not None for sample in samples) and len(samples) > 0
    references = [s.reference_log_probs for s in samples if s.reference_log_probs is not None]

    def flat(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *parts])).to(policy.device)

    def given(parts: Sequence[np.ndarray | None], default: list[np.ndarray]) -> Tensor:
        return flat([other if part is None else part for part, other in zip(parts, default, strict=True)])

    return Batch(
        prompts=prompts,
        rows=rows,
        row_of=torch.arange(len(samples)).repeat_interleave(sizes).to(policy.device),
        lengths=flat(lengths),
        old=flat([sample.old_log_probs for sample in samples]),
        advantages=flat([sample.advantage for sample in samples]),
        weights=flat([sample.weights for sample in samples]),
        correction=given([s.correction for s in samples], ones),
        coefficients=given([s.coefficients for s in samples], ones),
        returns=given([s.returns for s in samples], zeros),
        old_values=given([s.old_values for s in samples], zeros),
        value_weights=given([s.value_weights for s in samples], zeros),
        reference=flat(references) if referenced else None,
        moved=flat([one * float(s.sampled_prompt is not s.trained_prompt) for s, one in zip(samples, ones)]),
        mask=flat(masks),
        total=float(reduce(np.array([sum(float(mask.sum()) for mask in masks)]))[0]),
    )


def distinct_rows(pairs: Sequence[tuple[Prompt, np.ndarray]]) -> tuple[list[Prompt], list[Row]]:
    """Distinct prompts (by identity) and rows that point at them."""
    distinct = list({id(prompt): prompt for prompt, _ in pairs}.values())
    place = {id(prompt): i for i, prompt in enumerate(distinct)}
    return distinct, [(place[id(prompt)], tokens) for prompt, tokens in pairs]
