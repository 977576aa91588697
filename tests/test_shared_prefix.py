"""Sharing the prefix gives the numbers of the plain repeated forward: log-probs, gradients, post-step
weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import (
    FAMILIES,
    assert_gradients_close,
    assert_log_probs_close,
    different_problems,
    gradients,
    loud_policy,
    picture,
    plain_log_probs,
    problem,
    ragged_rows,
)
from torch import Tensor

from fovea.models import blocks
from fovea.models.policy import Policy, make_policy
from fovea.models.shared_prefix import Loss, Row, backward, prefill, score
from fovea.types import Problem, Sampling

LENGTHS = (5, 1, 17, 33, 9, 2, 20, 3, 7)
SAMPLING = Sampling(temperature=0.7, bans=(300,))


def weighted(n: int, dtype: torch.dtype = torch.float32) -> Loss:
    """A loss with a different weight for every token's log-prob and entropy."""
    weights = torch.linspace(-1, 1, n, dtype=dtype)

    def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        return (weights[index] * log_probs - 0.3 * weights[index].square() * entropy).sum()

    return loss


def plain_gradients(policy: Policy, problems: list[Problem], rows: Sequence[Row]) -> dict[str, Tensor]:
    log_probs, entropy = plain_log_probs(policy, problems, list(rows), SAMPLING)
    loss = weighted(len(log_probs), log_probs.dtype)
    loss(torch.arange(len(log_probs)), log_probs, entropy).backward()
    return gradients(policy)


def shared_gradients(
    policy: Policy, problems: list[Problem], rows: Sequence[Row], tokens_per_pass: int = 8192
) -> dict[str, Tensor]:
    prompts = [policy.prompt(p) for p in problems]
    dtype = next(policy.model.parameters()).dtype
    total = sum(len(tokens) for _, tokens in rows)
    backward(policy, prompts, rows, SAMPLING, weighted(total, dtype), tokens_per_pass)
    return gradients(policy)


def test_log_probs_and_entropies_of_ragged_rows_and_prompts(policy: Policy) -> None:
    problems = different_problems()
    rows = ragged_rows(policy, len(problems), LENGTHS)
    log_probs, entropy = score(policy, [policy.prompt(p) for p in problems], rows, SAMPLING)
    with torch.no_grad():
        theirs, their_entropy = plain_log_probs(policy, problems, rows, SAMPLING)
    assert theirs.std() > 1, "the check means nothing if all log-probs are alike"
    assert log_probs.dtype == torch.float32
    assert_log_probs_close(log_probs, theirs)
    assert_log_probs_close(entropy, their_entropy)


@pytest.mark.parametrize("tokens_per_pass", [8192, 40, 7])
def test_gradients_of_every_parameter(policy: Policy, tokens_per_pass: int) -> None:
    """8192: one pass; 40: several; 7: prompts one by one and completions cut into segments."""
    problems = different_problems()
    rows = ragged_rows(policy, len(problems), LENGTHS)
    theirs = plain_gradients(policy, problems, rows)
    assert_gradients_close(shared_gradients(policy, problems, rows, tokens_per_pass), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_agrees_to_a_millionth(family: str) -> None:
    policy = loud_policy(family)
    policy.model.double()
    problems = different_problems()
    rows = ragged_rows(policy, len(problems), LENGTHS)
    with torch.no_grad():
        theirs, _ = plain_log_probs(policy, problems, rows, SAMPLING)
    for tokens_per_pass in (8192, 7):
        ours, _ = score(
            policy, [policy.prompt(p) for p in problems], rows, SAMPLING, tokens_per_pass=tokens_per_pass
        )
        assert_log_probs_close(ours, theirs, 1e-6)
    plain = plain_gradients(policy, problems, rows)
    assert_gradients_close(shared_gradients(policy, problems, rows, 30), plain, 1e-6)


def test_weights_after_optimizer_steps(policy: Policy) -> None:
    problems = different_problems()
    rows = ragged_rows(policy, len(problems), LENGTHS)
    twin = make_policy(loud_policy(policy.family.name).model, policy.processor)
    for way, one in ((plain_gradients, twin), (shared_gradients, policy)):
        optimizer = torch.optim.SGD(one.model.parameters(), lr=1e-4)
        for _ in range(2):
            for name, gradient in way(one, problems, rows).items():
                one.model.get_parameter(name).grad = gradient
            optimizer.step()
            one.model.zero_grad()
    start = dict(loud_policy(policy.family.name).model.named_parameters())
    ours, theirs = dict(policy.model.named_parameters()), dict(twin.model.named_parameters())
    moved = {n: p.detach() - start[n].detach() for n, p in theirs.items()}
    assert max(float(m.abs().max()) for m in moved.values()) > 1e-3, (
        "a step that moves nothing proves nothing"
    )
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("tokens_per_pass", [5, 16])
def test_segments_equal_one_pass(policy: Policy, tokens_per_pass: int) -> None:
    problems = different_problems()[:1]
    rows = ragged_rows(policy, 1, (41, 6, 17, 16))
    prompts = [policy.prompt(p) for p in problems]
    whole, _ = score(policy, prompts, rows, SAMPLING)
    cut, _ = score(policy, prompts, rows, SAMPLING, tokens_per_pass=tokens_per_pass)
    assert_log_probs_close(cut, whole)
    assert_gradients_close(
        shared_gradients(policy, problems, rows, tokens_per_pass), shared_gradients(policy, problems, rows)
    )


def test_another_picture_fails_the_same_check(policy: Policy) -> None:
    problems = different_problems()
    rows = ragged_rows(policy, len(problems), LENGTHS)
    other = [replace(p, images=tuple(picture(*i.size, seed=99) for i in p.images)) for p in problems]
    ours, _ = score(policy, [policy.prompt(p) for p in other], rows, SAMPLING)
    with torch.no_grad():
        theirs, _ = plain_log_probs(policy, problems, rows, SAMPLING)
    with pytest.raises(AssertionError, match="log-probs differ"):
        assert_log_probs_close(ours, theirs)
    with pytest.raises(AssertionError, match="gradient of"):
        assert_gradients_close(shared_gradients(policy, other, rows), plain_gradients(policy, problems, rows))


def test_positions_off_by_one_fail_the_same_check(policy: Policy) -> None:
    problems = different_problems()
    rows = ragged_rows(policy, len(problems), LENGTHS)
    prompts = [policy.prompt(p) for p in problems]
    moved = [replace(p, next_position=p.next_position + 1) for p in prompts]
    flat = [replace(p, positions=torch.arange(len(p.token_ids)).expand(3, -1)) for p in prompts]
    with torch.no_grad():
        theirs, _ = plain_log_probs(policy, problems, rows, SAMPLING)
    for wrong in (moved, flat):
        with pytest.raises(AssertionError, match="log-probs differ"):
            assert_log_probs_close(score(policy, wrong, rows, SAMPLING)[0], theirs)


def test_one_prompt_object_is_encoded_once(policy: Policy) -> None:
    first, second = (policy.prompt(p) for p in different_problems()[:2])
    prefix = prefill(policy, [first, second, first])
    assert prefix.index == (0, 1, 0)
    assert len(prefix.last_hidden) == 2


def test_only_trained_parameters_get_gradients() -> None:
    model = loud_policy("qwen2_5_vl").model
    for freeze in (("vision", "projector"), ("text",)):
        policy = make_policy(model, loud_policy("qwen2_5_vl").processor, freeze=freeze)
        problems = different_problems()
        found = shared_gradients(policy, problems, ragged_rows(policy, len(problems), LENGTHS))
        assert found
        assert all(name.startswith("model.visual.") == (freeze == ("text",)) for name in found)


def test_gradients_accumulate_and_the_loss_is_returned(policy: Policy) -> None:
    problems = different_problems()[:2]
    rows = ragged_rows(policy, 2, (4, 6))
    prompts = [policy.prompt(p) for p in problems]
    once = shared_gradients(policy, problems, rows)
    values = [backward(policy, prompts, rows, SAMPLING, weighted(10)) for _ in range(2)]
    assert values[0] == values[1]
    log_probs, entropy = score(policy, prompts, rows, SAMPLING)
    assert values[0] == pytest.approx(float(weighted(10)(torch.arange(10), log_probs, entropy)), abs=1e-4)
    assert_gradients_close(gradients(policy), {name: 2 * g for name, g in once.items()})


def test_text_only_prompts_and_rows_of_one_token(policy: Policy) -> None:
    problems = [problem("a", (), "One?"), problem("b", (), "Or rather two of them?")]
    rows = ragged_rows(policy, 2, (1, 1, 1))
    ours, _ = score(policy, [policy.prompt(p) for p in problems], rows, SAMPLING)
    with torch.no_grad():
        theirs, _ = plain_log_probs(policy, problems, rows, SAMPLING)
    assert_log_probs_close(ours, theirs)
    shared = shared_gradients(policy, problems, rows)
    assert_gradients_close(shared, plain_gradients(policy, problems, rows))


def test_head_chunks_are_recomputed_exactly(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = different_problems()[:2]
    rows = ragged_rows(policy, 2, (12, 9, 5))
    whole = shared_gradients(policy, problems, rows)
    monkeypatch.setattr("fovea.models.head._LOGITS_AT_ONCE", 7 * 1024)
    assert_gradients_close(shared_gradients(policy, problems, rows), whole)


def test_empty_rows_and_banned_tokens_are_refused(policy: Policy) -> None:
    prompts = [policy.prompt(different_problems()[0])]
    media = policy.family.media_ids(policy.model.config)[0]
    with pytest.raises(ValueError, match="at least one token"):
        score(policy, prompts, [(0, np.zeros(0, dtype=np.int64))], SAMPLING)
    with pytest.raises(ValueError, match="banned token"):
        score(policy, prompts, [(0, np.array([5, media]))], SAMPLING)


@pytest.mark.parametrize("causal", [True, False])
def test_explicit_block_equals_the_cpu_kernel(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain torch path (every other device) and the CPU kernel are one function, backward included."""
    monkeypatch.setattr(blocks, "_SCORES_AT_ONCE", 200)  # several query chunks
    torch.manual_seed(0)
    n, m = (9, 9) if causal else (9, 13)
    q, d_out = (torch.randn(2, 4, n, 8, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(2, 2, m, 8, dtype=torch.float64) for _ in range(2))
    theirs = blocks.attend_block(q, k, v, 0.3, causal=causal)
    ours = blocks.explicit_block(q, k, v, 0.3, causal=causal)
    torch.testing.assert_close(ours, theirs)
    block = blocks.Block(d_out, q, k, v, *theirs)
    torch.testing.assert_close(
        blocks.explicit_block_backward(block, 0.3, causal=causal),
        blocks.block_backward(block, 0.3, causal=causal),
    )
    if not causal:
        mask = torch.where(torch.arange(m) < 5, 0.0, -torch.inf).double().expand(2, 1, 1, m)
        torch.testing.assert_close(
            blocks.explicit_block(q, k, v, 0.3, causal=False, mask=mask),
            blocks.attend_block(q, k, v, 0.3, causal=False, mask=mask),
        )
