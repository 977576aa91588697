"""Gated delta nets: the state after a prefix is forked to its completions, exactly and with gradients."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conformance.subject import NONE, ONE, TWO, WIDE, Subject, plain_log_probs
from conftest import assert_gradients_close, assert_log_probs_close, gradients, loud_policy, ragged_rows
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5

from fovea.config import FinetuneSection
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models import shared_prefix
from fovea.models.packing import together
from fovea.models.policy import Policy, make_policy
from fovea.models.recurrent import State, completion_rows, hook, prompt_rows, take
from fovea.models.shared_prefix import backward, prefill, score
from fovea.types import Sampling

SAMPLING = Sampling(temperature=0.8, max_new_tokens=20)
SMALL = {"text_layers": 4, "text_width": 64, "text_mlp": 96, "heads": 2, "kv_heads": 1, "head_dim": 32}
SMALL |= {"vision_layers": 1, "vision_width": 32, "vision_mlp": 48, "vision_heads": 2}
LENGTHS = (5, 1, 17, 26, 2, 12, 9)


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence of `recurrent.py`, token by token, in the type of its inputs: transformers' own kernels compute
    in float32 whatever they are given, which hides what is exact. Arguments as theirs, [B, T, heads, dim]."""
    repeats = value.shape[2] // key.shape[2]
    normal = [x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key)]
    q, k = (x.repeat_interleave(repeats, dim=2) for x in normal)
    shape = (len(value), value.shape[2], key.shape[3], value.shape[3])
    memory = value.new_zeros(shape) if initial_state is None else initial_state
    outs = []
    for t in range(value.shape[1]):
        memory = memory * g[:, t, :, None, None].exp().to(memory.dtype)
        delta = value[:, t] - (memory * k[:, t, :, :, None]).sum(-2)
        memory = memory + k[:, t, :, :, None] * (beta[:, t, :, None] * delta)[:, :, None]
        outs.append((memory * q[:, t, :, :, None]).sum(-2) * key.shape[3] ** -0.5)
    return torch.stack(outs, dim=1), memory if output_final_state else None


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides, ours and plain transformers, with the recurrence above."""
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        monkeypatch.setattr(modeling_qwen3_5, name, delta_rule)


def loud() -> Policy:
    return loud_policy("qwen3_5", **SMALL)


def twin(policy: Policy) -> Subject:
    plain = copy.deepcopy(policy.model)
    plain.set_attn_implementation("sdpa")
    return Subject(policy=policy, plain=plain, processor=policy.processor, folder="")


def weighted(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
    weights = torch.cos(index.to(log_probs.dtype))
    return (weights * log_probs - 0.3 * weights.square() * entropy).sum()


def test_the_equation_is_transformers_kernel() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 70, heads, 8, generator=draw) for heads in (2, 2, 4))
    g, beta = -torch.rand(2, 70, 4, generator=draw), torch.rand(2, 70, 4, generator=draw)
    start = torch.randn(2, 4, 8, 8, generator=draw)
    how = {"g": g, "beta": beta, "initial_state": start, "output_final_state": True}
    ours = delta_rule(q, k, v, **how)
    for theirs in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        out = getattr(modeling_qwen3_5, theirs)(q, k, v, use_qk_l2norm_in_kernel=True, **how)
        for mine, true in zip(ours, out, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("in_float64")
def test_log_probs_and_gradients_are_plain_transformers_in_float64() -> None:
    """One pass, several, and completions cut into segments whose past is a state (2: the shortest there are)."""
    policy = loud()
    policy.model.double()
    one, problems = twin(policy), [ONE, NONE, TWO, WIDE]
    rows = ragged_rows(policy, len(problems), LENGTHS)
    log_probs, entropy = plain_log_probs(one, problems, rows, SAMPLING)
    weighted(torch.arange(len(log_probs)), log_probs, entropy).backward()
    plain = {n: p.grad.clone() for n, p in one.plain.named_parameters() if p.grad is not None}
    assert log_probs.std() > 0.5
    assert any(n.endswith("linear_attn.A_log") for n in plain)
    for tokens_per_pass in (8192, 90, 7, 1):
        prompts = one.prompts(problems)
        ours, _ = score(policy, prompts, rows, SAMPLING, tokens_per_pass=tokens_per_pass)
        assert_log_probs_close(ours, log_probs.detach(), 2e-6)
        backward(policy, prompts, rows, SAMPLING, weighted, tokens_per_pass)
        assert_gradients_close(gradients(policy), plain, 4e-6)


def test_log_probs_and_gradients_with_transformers_own_kernels() -> None:
    """float32, completions longer than a kernel's chunk of 64."""
    policy = loud()
    one, problems = twin(policy), [ONE, NONE, TWO]
    rows = ragged_rows(policy, len(problems), (70, 5, 1, 33, 2))
    log_probs, entropy = plain_log_probs(one, problems, rows, SAMPLING)
    weighted(torch.arange(len(log_probs)), log_probs, entropy).backward()
    plain = {n: p.grad.clone() for n, p in one.plain.named_parameters() if p.grad is not None}
    for tokens_per_pass in (8192, 11):
        ours, _ = score(policy, one.prompts(problems), rows, SAMPLING, tokens_per_pass=tokens_per_pass)
        assert_log_probs_close(ours, log_probs.detach(), 4e-6)
        backward(policy, one.prompts(problems), rows, SAMPLING, weighted, tokens_per_pass)
        assert_gradients_close(gradients(policy), plain)


def test_generation_is_scoring_while_rows_and_prompts_leave() -> None:
    policy = loud()
    ends = policy.eos_ids[0]
    with torch.no_grad():
        policy.model.lm_head.weight[ends] *= 3  # replies of many lengths
    prompts = [policy.prompt(p) for p in (ONE, NONE, TWO)]
    groups = SharedPrefillEngine(policy).generate(prompts, 8, SAMPLING, seed=(0, 0))
    rows = [(i, c.token_ids) for i, group in enumerate(groups) for c in group]
    assert len({len(tokens) for _, tokens in rows}) > 4
    said = torch.from_numpy(np.concatenate([c.log_probs for group in groups for c in group]))
    assert_log_probs_close(said, score(policy, prompts, rows, SAMPLING)[0], 4e-6)


def test_the_prefix_is_encoded_once_and_its_state_matters() -> None:
    policy = loud()
    prompts = [policy.prompt(p) for p in (ONE, TWO)]
    prefix = prefill(policy, [*prompts, prompts[0]])
    assert set(prefix.states) == {0, 2}
    assert set(prefix.keys) == {1, 3}
    assert {len(state.memory) for state in prefix.states.values()} == {2}
    for state in prefix.states.values():
        assert float((state.memory[0] - state.memory[1]).detach().abs().max()) > 1e-3
        assert state.memory.requires_grad


@pytest.mark.parametrize("part", ["memory", "inputs"])
def test_without_its_prompts_state_a_completion_says_something_else(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(states: dict[int, State], rows: Tensor) -> dict[int, State]:
        kept = take(states, rows)
        return {n: s._replace(**{part: torch.zeros_like(getattr(s, part))}) for n, s in kept.items()}

    policy = loud()
    prompts, rows = [policy.prompt(ONE)], ragged_rows(policy, 1, (9, 12))
    theirs, _ = score(policy, prompts, rows, SAMPLING)
    monkeypatch.setattr(shared_prefix, "take", forgetful)
    ours, _ = score(policy, prompts, rows, SAMPLING)
    with pytest.raises(AssertionError, match="log-probs differ"):
        assert_log_probs_close(ours, theirs, 1e-3)


def test_layers_computed_again_give_the_same_gradients() -> None:
    policy = loud()
    again = make_policy(loud().model, policy.processor, gradient_checkpointing=True)
    rows = ragged_rows(policy, 2, LENGTHS)
    found = []
    for one in (policy, again):
        for tokens_per_pass in (8192, 7):
            backward(one, [one.prompt(p) for p in (ONE, TWO)], rows, SAMPLING, weighted, tokens_per_pass)
            found.append(gradients(one))
    assert_gradients_close(found[2], found[0], 1e-6)
    assert_gradients_close(found[3], found[1], 1e-6)


def test_adapters_on_the_recurrent_layers_get_gradients() -> None:
    base = loud()
    policy = make_policy(base.model, base.processor, finetune=FinetuneSection(mode="lora"), seed=1)
    rows = ragged_rows(policy, 2, (5, 9))
    backward(policy, [policy.prompt(p) for p in (ONE, TWO)], rows, SAMPLING, weighted)
    assert any("linear_attn" in name and g.abs().max() > 0 for name, g in gradients(policy).items())


def test_hooks_do_nothing_without_a_plan_and_are_put_on_once() -> None:
    policy = loud()
    layers = policy.family.recurrent_layers
    assert layers is not None
    hook(layers(policy.model))
    assert {len(layer._forward_hooks) for layer in layers(policy.model)} == {1}
    bare = copy.deepcopy(policy.model)
    for layer in layers(bare):
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.equal(policy.model(input_ids=ids).logits, bare(input_ids=ids).logits)
        ours = policy.model.generate(ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(ours, bare.generate(ids, max_new_tokens=5, do_sample=False))


def test_rows_are_padded_where_it_is_inert() -> None:
    device = torch.device("cpu")
    x = torch.arange(1.0, 7.0)[None, :, None]
    left = prompt_rows([2, 4], device)
    assert left.pad(x)[..., 0].tolist() == [[0, 0, 1, 2], [3, 4, 5, 6]]
    right = completion_rows([4, 1, 1], {}, device)
    assert right.pad(x)[..., 0].tolist() == [[1, 2, 3, 4], [5, 0, 0, 0], [6, 0, 0, 0]]
    assert completion_rows([1], {}, device).pad(x[:, :1])[..., 0].tolist() == [[1, 0]]
    for one in (left, right, prompt_rows([3, 3], device)):
        assert torch.equal(one.unpad(one.pad(x)), x)


def test_what_goes_together_counts_its_padding() -> None:
    assert list(together([3, 3, 3], 7, False)) == [(0, 2), (2, 3)]
    assert list(together([1, 1, 9, 1], 12, False)) == [(0, 4)]
    assert list(together([1, 1, 9, 1], 12, True)) == [(0, 2), (2, 3), (3, 4)]
    assert list(together([50, 2], 7, True)) == [(0, 1), (1, 2)]
    assert list(together([1] * 5, 100, False, rows=2)) == [(0, 2), (2, 4), (4, 5)]
    assert list(together([], 7, False)) == []
