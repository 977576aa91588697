"""The critic: what an episode will still earn, read off the model's own last hidden states.

A small network on the hidden state that predicts the next token. Before the first token of a reply that is the state of
the last prompt token, where RL4VLM (arXiv:2405.10292, C.3) puts its value head; VL-DAC (arXiv:2508.04280) stops the
gradient there. Always float32, whatever the model's dtype.

    policy.critic = Critic(width=256, hidden=(1024, 512), stop_gradient=True, seed=0)
    values(policy, prompts)        [prompts]: what is expected of the states that the prompts show

Not here: advantages (`fovea.algorithms.returns`), the critic's loss (`fovea.training.update`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fovea.models.adapter import Prompt
    from fovea.models.policy import Policy

NAME = "critic"
"""What its weights' names begin with, in checkpoints and optimizers: critic.layers.0.weight, ..."""


class Critic(torch.nn.Module):
    """width → hidden ... → 1 with ReLU between. Drawn from `seed`; the last layer begins at zero, so that every value
    does (our choice: nothing is expected before anything was seen)."""

    def __init__(self, width: int, hidden: Sequence[int], *, stop_gradient: bool, seed: int) -> None:
        super().__init__()
        self.stop_gradient = stop_gradient
        generator = torch.Generator().manual_seed(seed)
        sizes = [width, *hidden, 1]
        linear = [torch.nn.Linear(a, b, dtype=torch.float32) for a, b in itertools.pairwise(sizes)]
        self.layers = torch.nn.ModuleList(linear)
        with torch.no_grad():
            for layer in linear:
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()
            linear[-1].weight.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, width] of any float dtype → [N] float32 (float64 of float64)."""
        x = hidden.detach() if self.stop_gradient else hidden
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        *inner, last = self.layers
        for layer in inner:
            x = torch.relu(layer(x))
        return last(x)[:, 0]


def values(policy: Policy, prompts: Sequence[Prompt], tokens_at_once: int = 65536) -> Tensor:
    """float32 [prompts], without gradient: what the critic expects after each prompt. Needs `policy.critic`."""
    from fovea.models.packing import together
    from fovea.models.shared_prefix import prefill

    assert policy.critic is not None, "the policy has no critic"
    lengths = [len(prompt.token_ids) for prompt in prompts]
    found = []
    with torch.no_grad():
        for a, b in together(lengths, tokens_at_once, policy.family.recurrent, len(prompts)):
            prefix = prefill(policy, prompts[a:b])
            index = torch.tensor(prefix.index, device=prefix.last_hidden.device)
            found.append(policy.critic(prefix.last_hidden)[index].float())
    return torch.cat(found) if found else torch.zeros(0)
