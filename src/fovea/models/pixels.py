"""What an intervention may ask of the policy: entropies under other pictures, and their gradients to the pixels.

`PolicyPixels` is the `fovea.interventions.Pixels` of a rollout: it teacher-forces completions that were sampled in the
first phase, at the sampling distribution, by the shared prefix, in chunks. Not here: which tokens and which pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fovea.interventions.slot import Answer, Ask, Seen
from fovea.models.adapter import Prompt
from fovea.models.canvas import on_canvas, pull_back
from fovea.models.packing import Row
from fovea.models.pixel_gradients import picture_gradients
from fovea.models.policy import Policy
from fovea.models.shared_prefix import score
from fovea.types import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyPixels:
    """Of one rollout. Example: PolicyPixels(policy=p, prompts=shown, seen=seen, sampling=s, tokens_per_pass=8192)"""

    policy: Policy
    prompts: Sequence[Prompt]
    """On their canvases, whose pixels take a gradient."""
    seen: Sequence[Seen]
    """In the order of `prompts`."""
    sampling: Sampling
    tokens_per_pass: int

    def gradients(self, asks: Sequence[Ask]) -> list[Answer]:
        """Values and gradients. Asks under the clean canvases use the prompts that the rollout encoded."""
        prompts = [self._shown(ask) for ask in asks]
        objective = _Objective(asks, self._rows(asks), self.seen, self.policy.device)
        found = picture_gradients(
            self.policy, prompts, objective.rows, self.sampling, objective.value, self.tokens_per_pass
        )
        return [
            Answer(value=value, gradients=self._pulled(ask, gradient))
            for ask, gradient, value in zip(asks, found, objective.values.tolist(), strict=True)
        ]

    def values(self, asks: Sequence[Ask]) -> list[Answer]:
        """Values alone, without a graph."""
        if not asks:
            return []
        objective = _Objective(asks, self._rows(asks), self.seen, self.policy.device)
        prompts = [self._shown(ask) for ask in asks]
        log_probs, entropy = score(
            self.policy, prompts, objective.rows, self.sampling, tokens_per_pass=self.tokens_per_pass
        )
        objective.value(torch.arange(len(log_probs), device=log_probs.device), log_probs, entropy)
        return [Answer(value=value, gradients=()) for value in objective.values.tolist()]

    def _rows(self, asks: Sequence[Ask]) -> list[Row]:
        return [
            (k, reply.token_ids) for k, ask in enumerate(asks) for reply in self.seen[ask.which].completions
        ]

    def _shown(self, ask: Ask) -> Prompt:
        prompt = self.prompts[ask.which]
        if ask.canvases is None:
            return prompt
        return on_canvas(self.policy, prompt, [_tensor(x) for x in ask.canvases], leaf=True)

    def _pulled(self, ask: Ask, gradient: Tensor | None) -> tuple[np.ndarray, ...]:
        assert gradient is not None, "who has no picture is not asked for"
        own = ask.canvases if ask.canvases is not None else self.seen[ask.which].canvases
        pulled = pull_back(self.policy, [_tensor(x) for x in own], gradient.cpu())
        return tuple(x.permute(1, 2, 0).numpy() for x in pulled)


class _Objective:
    """Σ weights H - guards KL of every ask, from the tokens of one pass after another."""

    def __init__(
        self, asks: Sequence[Ask], rows: list[Row], seen: Sequence[Seen], device: torch.device
    ) -> None:
        self.rows = rows
        counts = [sum(len(reply.token_ids) for reply in seen[ask.which].completions) for ask in asks]
        self._ask = torch.arange(len(asks), device=device).repeat_interleave(
            torch.tensor(counts, device=device)
        )
        self._weights = _flat([w for ask in asks for w in ask.weights], device)
        zeros = [
            tuple(np.zeros_like(w) for w in ask.weights) if ask.guards is None else ask.guards for ask in asks
        ]
        self._guards = _flat([g for one in zeros for g in one], device)
        clean = [reply.log_probs for ask in asks for reply in seen[ask.which].completions]
        self._clean = _flat(clean, device)
        self.values = torch.zeros(len(asks), dtype=torch.float64, device=device)

    def value(self, index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        """[] of these tokens; each ask's share is added to `values`."""
        each = self._weights[index] * entropy
        guards = self._guards[index]
        if guards.any():
            # KL(clean ‖ changed) at a token that the clean policy sampled: r - 1 - log r, r = changed / clean, is its
            # unbiased estimate, never negative, and has no gradient where both are the same
            difference = log_probs - self._clean[index]
            each = each - guards * (difference.exp() - 1 - difference)
        self.values.index_add_(0, self._ask[index], each.detach().double())
        return each.sum()


def _flat(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(device)


def _tensor(canvas: np.ndarray) -> Tensor:
    """float32 [3, H, W] in 0 to 255."""
    return torch.from_numpy(canvas.astype(np.float32)).permute(2, 0, 1).contiguous()
