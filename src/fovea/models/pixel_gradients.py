"""What a prompt's pictures would have to become for its completions to get another value: gradients to the pixels.

    gradients = picture_gradients(policy, prompts, rows, sampling, loss)

By the same leaves as `shared_prefix.backward`: completions are streamed through the language model against the
prompts' keys and values, which collect a gradient, then one backward pass goes through the prompts and the vision tower
down to `pixel_values`. A picture is encoded once, however many completions it has; where the rollout kept its graph not
even that. Weights get no gradient: `.grad` of every parameter stays what it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fovea.models.adapter import Prompt
from fovea.models.packing import Row, batches
from fovea.models.policy import Policy
from fovea.models.recompute import recomputing
from fovea.models.shared_prefix import (
    Loss,
    Losses,
    check_rows,
    encoded,
    gradient_pairs,
    leaves_of,
    through_completions,
)
from fovea.types import Sampling


def picture_gradients(
    policy: Policy,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    sampling: Sampling,
    loss: Loss,
    tokens_per_pass: int = 8192,
) -> list[Tensor | None]:
    """For every prompt the gradient of `loss` to its `pixel_values`, in their shape; None without pictures or rows.

    `pixel_values` of the prompts must take a gradient (`canvas.on_canvas(..., leaf=True)`). `loss` is called once a
    pass with that pass's tokens and must be additive over tokens, as in `backward`. Frozen parts let the gradient
    through. Raises ValueError for an empty row, a banned token, or pictures that take no gradient.
    """
    check_rows(policy, prompts, rows, sampling)
    for prompt in prompts:
        if prompt.media and not prompt.media["pixel_values"].requires_grad:
            raise ValueError(f"the pixels of {prompt.problem.id} take no gradient; show it with leaf=True")
    tokens_per_pass = max(2, tokens_per_pass)
    found: dict[int, Tensor] = {}
    with torch.enable_grad(), recomputing(policy.model, policy.recompute):
        for batch in batches(prompts, rows, tokens_per_pass, policy.family.recurrent):
            pictured = [prompt for prompt in batch.prompts if prompt.media]
            if not pictured:
                continue
            captured = encoded(policy, batch.prompts, keep=True)
            leaves = leaves_of(captured)
            with frozen(policy.model):
                through_completions(policy, batch, leaves, sampling, Losses(loss=loss), tokens_per_pass)
            # the layers that gradient checkpointing computes again must find the weights as the forward pass did
            pairs = gradient_pairs(captured, leaves)
            gradients = torch.autograd.grad(
                [tensor for tensor, _ in pairs],
                [prompt.media["pixel_values"] for prompt in pictured],
                [gradient for _, gradient in pairs],
                retain_graph=True,
            )
            found |= {id(prompt): gradient for prompt, gradient in zip(pictured, gradients, strict=True)}
    return [found.get(id(prompt)) for prompt in prompts]


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No weight takes a gradient inside."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
