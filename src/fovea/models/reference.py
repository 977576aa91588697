"""The frozen model that a KL term compares the policy with.

With a fresh adapter it is the base: the same weights with the adapter off, no second copy. A run that goes on with an
adapter is compared with that adapter: a copy of its few weights is kept. Else it is a frozen copy, or another model of
the user's. It may follow the policy from time to time (`sync`: the hard update of Gorbatovski et al.,
arXiv:2404.09656); with an adapter it then keeps a copy of the adapter's few weights only. Not here: the KL estimators
(`fovea.algorithms`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fovea.config import Run
from fovea.models.adapter import Prompt
from fovea.models.finetune import is_adapter, load_adapter
from fovea.models.policy import Policy, load_policy
from fovea.models.shared_prefix import Row, score
from fovea.models.vision_cache import VisionCache
from fovea.types import Sampling, UserError


class Reference:
    """Log-probs under frozen weights. Made by `make_reference` or `open_reference`."""

    def __init__(
        self, policy: Policy, copied: Policy | None, start: Mapping[str, Tensor] | None = None
    ) -> None:
        """`copied`: a frozen policy of its own weights; None: `policy` with the adapter's weights `start`, by the
        names of its parameters, or with its adapter off if there are none."""
        assert copied is not None or policy.adapter is not None, "without an adapter there must be a copy"
        assert copied is None or not start, "a copy has its own weights"
        self._policy = policy
        self._copied = copied
        self._synced = False
        self._start = dict(start or {})
        self._adapter = dict(self._start)
        """The adapter's weights at the last sync, before it those of the start; empty: the adapter off."""

    @property
    def bytes(self) -> int:
        """Memory that it takes besides the policy."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._held().values())

    def log_probs(
        self, prompts: Sequence[Prompt], rows: Sequence[Row], sampling: Sampling, tokens_per_pass: int = 8192
    ) -> Tensor:
        """[sum of T] float32 in the order of `rows`: what `score` gives for the reference. No gradient."""
        if self._copied is not None:
            return score(self._copied, prompts, rows, sampling, tokens_per_pass=tokens_per_pass)[0]
        with self._base():
            return score(self._policy, prompts, rows, sampling, tokens_per_pass=tokens_per_pass)[0]

    def sync(self) -> None:
        """Become what the policy is now."""
        self._synced = True
        if self._copied is None:
            self._adapter = {name: p.detach().clone() for name, p in _adapter_weights(self._policy).items()}
            return
        with torch.no_grad():
            for mine, now in zip(
                self._copied.model.parameters(), self._policy.model.parameters(), strict=True
            ):
                mine.copy_(now)

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold: nothing before the first sync (the weights are then those of files on disk),
        the synced tensors by name after it; bfloat16 ones as float32, which loses nothing."""
        if not self._synced:
            return {}
        return {name: _wide(tensor).cpu().numpy().copy() for name, tensor in self._held().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state_dict`. Raises UserError that names a missing, unexpected or misshapen tensor."""
        self._synced, self._adapter = bool(state), dict(self._start)
        if not state:
            return
        if self._copied is None:
            self._adapter = {name: torch.empty_like(p) for name, p in _adapter_weights(self._policy).items()}
        held = self._held()
        shared = held.keys() & state.keys()
        for names, verdict in (
            (held.keys() - state.keys(), "is missing in"),
            (state.keys() - held.keys(), "is unexpected in"),
            ({n for n in shared if tuple(held[n].shape) != state[n].shape}, "has another shape in"),
        ):
            if names:
                raise UserError(
                    f"The tensor {min(names)} {verdict} the saved reference model; "
                    "resume with the recipe that wrote it."
                )
        for name, tensor in held.items():
            tensor.copy_(torch.from_numpy(state[name]))

    def _held(self) -> dict[str, Tensor]:
        if self._copied is None:
            return self._adapter
        return {name: p.detach() for name, p in self._copied.model.named_parameters()}

    @contextlib.contextmanager
    def _base(self) -> Iterator[None]:
        """While it is open the policy computes what the reference is."""
        if not self._adapter:
            with self._policy.adapter.disable_adapter():
                yield
            return
        weights = _adapter_weights(self._policy)
        now = {name: p.data for name, p in weights.items()}
        try:
            for name, parameter in weights.items():
                parameter.data = self._adapter[name]
            yield
        finally:
            for name, parameter in weights.items():
                parameter.data = now[name]


def make_reference(policy: Policy, frozen: Policy | None = None) -> Reference:
    """The reference of a policy: `frozen` if given (its gradients are turned off), else the base under its adapter,
    else a copy of what the policy is now."""
    if frozen is None and policy.adapter is None:
        frozen = _separate(policy)
    if frozen is not None:
        frozen.model.requires_grad_(False)
    return Reference(policy, frozen)


def open_reference(run: Run, policy: Policy, *, resumed: bool = False) -> Reference:
    """The reference that a run asks for: `reference_model`, else what the policy was at the run's start.

    `resumed`: the policy's weights are no longer those of the start, so they are read again from the run's model. The
    adapter that a run began with is read again in any case. Raises UserError for a model that cannot be it.
    """
    if run.reference_model is None and policy.adapter is not None and is_adapter(run.model):
        return Reference(policy, None, _adapter_of(run.model, policy))
    if run.reference_model is None and (policy.adapter is not None or not resumed):
        return make_reference(policy)
    frozen = load_policy(
        run.reference_model or run.model,
        device=str(policy.device),
        dtype=run.dtype,
        download=run.download,
        # the prompts are the policy's: LLaVA-OneVision's model reads from its config how they were cut
        min_pixels=run.min_pixels,
        max_pixels=run.max_pixels,
    )
    if run.reference_sync_steps and policy.adapter is not None:
        raise UserError(
            "reference_model and reference_sync_steps cannot be used together with an adapter; leave one of them away."
        )
    if frozen.family.name != policy.family.name or (
        frozen.model.config.text_config.vocab_size != policy.model.config.text_config.vocab_size
    ):
        raise UserError(
            f"reference_model={run.reference_model} has another family or vocabulary than the run's model; "
            "use a model of the same family."
        )
    return make_reference(policy, frozen)


def _adapter_of(folder: str, policy: Policy) -> dict[str, Tensor]:
    """An adapter's weights in a folder, by the names and in the types of the policy's, which stays what it is."""
    weights = _adapter_weights(policy)
    now = {name: p.detach().clone() for name, p in weights.items()}
    try:
        load_adapter(policy.adapter, folder)
        return {name: p.detach().clone() for name, p in weights.items()}
    finally:
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(now[name])


def _adapter_weights(policy: Policy) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in policy.model.named_parameters() if ".lora_" in name}


def _separate(policy: Policy) -> Policy:
    """A policy with a copy of the weights and a picture cache of its own."""
    cache = VisionCache(budget=policy.vision_cache.budget)
    return replace(policy, model=copy.deepcopy(policy.model), vision_cache=cache)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
