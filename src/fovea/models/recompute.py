"""Gradient checkpointing: a layer keeps only its input, and its forward runs again in the backward pass.

Transformers' own layers do it, where the layer (not what is in it) is in training mode. Ours stay in eval mode, so that
sampling, scoring and update are one distribution; only while `backward` runs are the layers themselves, never their
children, marked as training: that marks no dropout (there is none) and no key/value cache elsewhere is dropped.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174. It costs one more forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from fovea.types import UserError


def enable_recompute(model: Any) -> None:
    """Make a transformers model ready for `recomputing`; outside of it nothing changes. Raises UserError where the
    model has no such layers."""
    if not getattr(model, "supports_gradient_checkpointing", False) or not layers(model):
        raise UserError(
            f"gradient_checkpointing=true: the model ({type(model).__name__}) does not support it; leave it away and "
            "lower tokens_per_pass instead."
        )
    # not reentrant: prompts' keys and values leave a layer by the side door (a plan's dict), which only this form of
    # checkpointing differentiates; and inputs without gradient (LoRA) need no trick
    how = {"use_reentrant": False, "preserve_rng_state": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:  # transformers before 5.22
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    model.disable_input_require_grads()  # would send a gradient to frozen embeddings


def layers(model: Any) -> list[GradientCheckpointingLayer]:
    """The layers that can be computed again."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextlib.contextmanager
def recomputing(model: Any, wanted: bool = True) -> Iterator[None]:
    """While it is open the layers of a model that `enable_recompute` has seen are computed again in the backward
    pass. With `wanted=False` nothing happens."""
    marked = layers(model) if wanted else []
    for layer in marked:
        layer.training = True
    try:
        yield
    finally:
        for layer in marked:
            layer.training = False
