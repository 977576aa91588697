"""What a rollout encoded serves the update: the same gradient to the bit, one forward pass less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fovea.bench.case import Work, full_length, make_problems
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models import Policy, Prompt, backward, shared_prefix
from fovea.models.construct import random_policy_parts
from fovea.models.kept import keeping
from fovea.models.policy import make_policy
from fovea.types import Completion, Sampling

WORK = Work(image_tokens=16, prompts=3, group=2, response_tokens=3)


class Rollout:
    def __init__(self, family: str, tokens: int, prompts: int = 3) -> None:
        self.policy: Policy = make_policy(*random_policy_parts(family, 0))
        self.sampling: Sampling = full_length(self.policy, WORK)
        problems = make_problems(WORK, self.policy.model.config, prompts)
        self.prompts: list[Prompt] = [self.policy.prompt(problem) for problem in problems]
        with keeping(self.policy, tokens):
            engine = SharedPrefillEngine(self.policy)
            self.replies: list[tuple[Completion, ...]] = engine.generate(
                self.prompts, 2, self.sampling, seed=(0, 0)
            )

    def gradients(self, chosen: list[int]) -> dict[str, Tensor]:
        self.policy.model.zero_grad(set_to_none=True)
        rows: list[tuple[int, np.ndarray]] = [(i, c.token_ids) for i in chosen for c in self.replies[i]]
        backward(self.policy, self.prompts, rows, self.sampling, lambda i, lp, e: -lp.sum())
        return {n: p.grad.clone() for n, p in self.policy.model.named_parameters() if p.grad is not None}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of `prefill` got."""
    calls: list[int] = []
    real = shared_prefix.prefill

    def prefill(policy: Policy, prompts: list[Prompt]) -> shared_prefix.Prefix:
        calls.append(len(prompts))
        return real(policy, prompts)

    monkeypatch.setattr(shared_prefix, "prefill", prefill)
    return calls


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_gradients_are_the_same_bits_and_the_prompts_are_encoded_once(
    family: str, encoded: list[int]
) -> None:
    rollout = Rollout(family, 8192)
    kept = rollout.gradients([0, 1, 2])
    assert encoded == [3]
    anew = rollout.gradients([0, 1, 2])
    assert encoded == [3, 3]
    assert kept.keys() == anew.keys()
    assert all(torch.equal(kept[name], anew[name]) for name in kept)


def test_some_of_the_prompts_and_another_order(encoded: list[int]) -> None:
    rollout = Rollout("qwen2_5_vl", 8192)
    kept = rollout.gradients([2, 0])
    assert encoded == [3]
    anew = rollout.gradients([2, 0])
    for name in kept:  # packed with other prompts: rounding differs
        assert torch.allclose(kept[name], anew[name], rtol=1e-4, atol=1e-6), name


def test_too_few_prompts_are_encoded_anew(encoded: list[int]) -> None:
    rollout = Rollout("qwen2_5_vl", 8192)
    rollout.gradients([1])
    assert encoded == [3, 1]


def test_other_weights_and_larger_rollouts_are_encoded_anew(encoded: list[int]) -> None:
    rollout = Rollout("qwen2_5_vl", 8192)
    rollout.policy.version += 1
    rollout.gradients([0, 1, 2])
    assert encoded == [3, 3]
    small = Rollout("qwen2_5_vl", 32)
    assert small.policy.kept.prefix is None


def test_nothing_is_kept_outside_and_nothing_stays() -> None:
    rollout = Rollout("qwen2_5_vl", 8192)
    rollout.gradients([0, 1, 2])
    assert rollout.policy.kept.prefix is None
    SharedPrefillEngine(rollout.policy).generate(rollout.prompts, 2, rollout.sampling, seed=(0, 1))
    assert rollout.policy.kept.prefix is None
