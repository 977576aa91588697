"""Recurrent layers (Qwen3.5's gated delta net) in packed passes: the state after a prefix, forked to its completions.

A gated delta net (Yang et al., arXiv:2412.06464, eq. 10) keeps a memory S [key dim, value dim] a head,
    S_t = e^(g_t) S_(t-1) + beta_t k_t (v_t - (e^(g_t) S_(t-1))^T k_t)^T,      o_t = S_t^T q_t,
and a causal convolution before it that reads the last `kernel` inputs. What a completion needs to know of its
prompt is the memory after the prompt's last token and the convolution's last inputs: a `State`. It is computed
once a prompt, and every completion begins with it. Copying it is `index_select`, whose gradient adds up over the
completions, so the fork is exact in both directions.

The layer itself is transformers', untouched, with its own kernels. It takes its state from the object that it is
given as its cache and hands its new state to it: ours is `Fork`, which keeps the graph (transformers' own
cache copies in place). The rest of the model is packed [1, N]; a recurrence must not run from one row into the
next, so rows are laid out as [rows, T] around this layer alone, by a forward pre-hook and a forward hook. Hooks,
because transformers' decoder layer calls the module directly: there is no registry of recurrences as there is of
attention functions. Without a plan in the call the hooks do nothing.

Padding is inert: prompts are padded on the left (a zero input writes nothing into a zero memory: k = v = 0),
completions on the right (what follows is dropped, and their last state is only asked of a row that goes alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """What a recurrent layer remembers of each row."""

    inputs: Tensor
    """[B, channels, kernel]: the last inputs of the convolution, zero before the first token."""
    memory: Tensor
    """[B, heads, key dim, value dim] float32."""


def take(states: dict[int, State], rows: Tensor) -> dict[int, State]:
    """The states of `rows` [b] long; a row may be taken several times."""
    return {layer: State(*(x.index_select(0, rows) for x in state)) for layer, state in states.items()}


@dataclass(kw_only=True, slots=True)
class Recurrence:
    """One pass through the recurrent layers. `before` and `after` hold the state of every row by layer."""

    shape: tuple[int, int]
    """Rows, and the width that they are padded to."""
    places: Tensor | None
    """[N] long: place of each packed token in the padded [rows * width]; None: no padding, in order."""
    before: dict[int, State] = field(default_factory=dict)
    """Empty for prompts: they begin with nothing."""
    after: dict[int, State] = field(default_factory=dict)
    """Filled by the forward pass. Of rows padded on the right (several completions) it is not the rows' own."""
    decoding: bool = False
    """One token a row without gradients: states are replaced in place of a new pass."""

    def pad(self, packed: Tensor) -> Tensor:
        """[1, N, width] -> [rows, T, width], zeros in the gaps."""
        rows, width = self.shape
        if self.places is not None:
            empty = packed.new_zeros(rows * width, packed.shape[2])
            packed = empty.index_copy(0, self.places, packed[0])
        return packed.reshape(rows, width, packed.shape[-1])

    def unpad(self, padded: Tensor) -> Tensor:
        """The inverse of `pad`."""
        flat = padded.reshape(-1, padded.shape[-1])
        return (flat if self.places is None else flat.index_select(0, self.places))[None]


def prompt_rows(lengths: Sequence[int], device: torch.device) -> Recurrence:
    """Prompts packed end to end, padded on the left so that every row's last state is its own."""
    width = max(lengths)
    places = torch.cat([torch.arange(n) + (i + 1) * width - n for i, n in enumerate(lengths)])
    return Recurrence(
        shape=(len(lengths), width), places=None if min(lengths) == width else places.to(device)
    )


def completion_rows(lengths: Sequence[int], before: dict[int, State], device: torch.device) -> Recurrence:
    """Completions packed end to end; `before` as many rows as `lengths`.

    At least two wide: for one token transformers takes a kernel that is meant for decoding, without a backward.
    """
    width = max(2, *lengths) if len(lengths) > 1 else max(2, lengths[0])
    places = torch.cat([torch.arange(n) + i * width for i, n in enumerate(lengths)])
    full = min(lengths) == width
    return Recurrence(shape=(len(lengths), width), places=None if full else places.to(device), before=before)


def token_rows(before: dict[int, State]) -> Recurrence:
    """One token of each row a step; the states are the decode loop's own and are replaced step by step."""
    rows = len(next(iter(before.values())).memory)
    return Recurrence(shape=(rows, 1), places=None, before=before, after=before, decoding=True)


class Fork:
    """What a gated delta net takes for its cache (the methods that it calls), for one call of one layer."""

    def __init__(self, recurrence: Recurrence, layer: int) -> None:
        self.recurrence = recurrence
        self._layer = layer
        self._inputs: Tensor | None = None

    def get_conv_state(self, layer: int, state_idx: int = 0) -> Tensor | None:
        before = self.recurrence.before.get(self._layer)
        return None if before is None else before.inputs

    def get_recurrent_state(self, layer: int, state_idx: int = 0) -> Tensor | None:
        before = self.recurrence.before.get(self._layer)
        return None if before is None else before.memory

    def is_recording_past(self, layer: int) -> bool:
        """True keeps the layer from the kernel that overwrites the convolution's inputs in place."""
        return not self.recurrence.decoding

    # transformers 5.19 and 5.20 ask the same three things of `has_previous_state` and of the cache's layer itself
    def has_previous_state(self, layer: int, state_idx: int = 0) -> bool:
        return self.get_recurrent_state(layer) is not None

    @property
    def layers(self) -> dict[int, SimpleNamespace]:
        return {
            self._layer: SimpleNamespace(
                conv_states=[self.get_conv_state(self._layer)],
                recurrent_states=[self.get_recurrent_state(self._layer)],
                record_past=self.is_recording_past(self._layer),
            )
        }

    def update_conv_state(self, inputs: Tensor, layer: int, conv_kernel_size: int) -> Tensor:
        """`inputs` [B, channels, T] -> the last ones before them, then they; remembers the last of all."""
        before = self.get_conv_state(layer)
        if before is None:
            before = inputs.new_zeros(*inputs.shape[:2], conv_kernel_size)
        whole = torch.cat([before, inputs], dim=2)
        self._inputs = whole[:, :, -conv_kernel_size:]
        return whole

    def update_recurrent_state(self, memory: Tensor, layer: int) -> Tensor:
        inputs = self._inputs
        if inputs is None:  # decoding: the layer has written them into our tensor
            inputs = self.recurrence.before[self._layer].inputs
        self.recurrence.after[self._layer] = State(inputs, memory)
        return memory


# ---------------------------------------------------------------- hooks


def hook(modules: Sequence[torch.nn.Module]) -> None:
    """Let recurrent modules (with `layer_idx`, `hidden_states=` and a cache) follow a pass's plan.

    Safe to call again on the same modules.
    """
    for module in modules:
        if any(registered is _enter for registered in module._forward_pre_hooks.values()):
            continue
        module.register_forward_pre_hook(_enter, with_kwargs=True)
        module.register_forward_hook(_leave, with_kwargs=True)


def _enter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    plan = kwargs.get("shared_prefix")
    if plan is None:
        return None
    recurrence = plan.recurrence
    assert recurrence is not None, "a plan for a model with recurrent layers must say where their rows are"
    layer: int = module.layer_idx  # type: ignore[assignment]
    rest = {key: value for key, value in kwargs.items() if key not in ("shared_prefix", "attention_mask")}
    rest["hidden_states"] = recurrence.pad(kwargs["hidden_states"])
    rest[_cache_of(rest)] = Fork(recurrence, layer)
    return args, rest


def _cache_of(kwargs: dict[str, Any]) -> str:
    """The name under which a decoder layer hands over a cache: `cache_params` up to transformers 5.23, then `cache`."""
    return "cache" if "cache" in kwargs else "cache_params"


def _leave(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Any:
    fork = kwargs.get(_cache_of(kwargs))
    return fork.recurrence.unpad(out) if isinstance(fork, Fork) else None
