"""Advantages, denominators and the clipped loss: by hand, and against the papers' equations as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fovea.algorithms import (
    ALGORITHMS,
    RatioSums,
    Totals,
    find_algorithm,
    group_advantages,
    ratio_sums,
    token_loss,
    token_weights,
    totals,
)
from fovea.types import UserError

BASELINED = {name: value for name, value in ALGORITHMS.items() if value.baseline != "none"}
GRPO, DR_GRPO, TOKEN_MEAN = (ALGORITHMS[name] for name in ("grpo", "dr_grpo", "grpo_token_mean"))


def test_advantages_by_hand() -> None:
    # r = 1, 0, 0, 1: mean 1/2, sample variance (4 · 1/4) / 3 = 1/3, so A = ±0.5 / (sqrt(1/3) + 1e-4).
    rewards_G = np.array([1.0, 0.0, 0.0, 1.0])
    size = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    advantages_G = group_advantages(rewards_G, GRPO)
    assert advantages_G.dtype == torch.float64
    np.testing.assert_allclose(advantages_G, [size, -size, -size, size], rtol=1e-14)
    np.testing.assert_allclose(group_advantages(rewards_G, DR_GRPO), [0.5, -0.5, -0.5, 0.5], rtol=1e-14)


@pytest.mark.parametrize("algorithm", BASELINED.values(), ids=BASELINED)
@pytest.mark.parametrize("group", [[0.1] * 7, [0.3], [0.0, 0.0], [1.1] * 64])
def test_equal_rewards_give_exactly_zero(algorithm, group) -> None:
    assert group_advantages(torch.tensor(group), algorithm).tolist() == [0.0] * len(group)


def test_advantages_do_not_change_with_a_shift_and_hardly_with_scale() -> None:
    reward_G = torch.tensor([0.1, 0.9, 0.4, 0.4, 0.0], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(reward_G + 5, GRPO), group_advantages(reward_G, GRPO))
    # The eps of 1e-4 is all that a scale leaves: 1e-4 · (1 - 1/10) / 0.36.
    torch.testing.assert_close(
        group_advantages(reward_G * 10, GRPO), group_advantages(reward_G, GRPO), rtol=3e-4, atol=0
    )
    assert abs(float(group_advantages(reward_G, GRPO).sum())) < 1e-14


def test_token_weights_by_hand() -> None:
    # Group 0: rows of 2 and 4 tokens (one of the 4 masked out); group 1: one row of 3. P = 2, 8 tokens count.
    masks = [np.ones(2), np.array([1.0, 1, 1, 0]), np.ones(3)]
    groups = [0, 0, 1]
    w = token_weights(masks, groups, GRPO, longest=5)
    np.testing.assert_allclose(w[0], [1 / 8] * 2, rtol=1e-7)  # 1 / (P 2 · G 2 · |o| 2)
    np.testing.assert_allclose(w[1], [1 / 12] * 3 + [0], rtol=1e-7)  # 1 / (2 · 2 · 3)
    np.testing.assert_allclose(w[2], [1 / 6] * 3, rtol=1e-7)  # 1 / (2 · 1 · 3)
    assert sum(float(row.sum()) for row in w) == pytest.approx(1)  # every prompt counts the same
    w = token_weights(masks, groups, DR_GRPO, longest=5)
    np.testing.assert_allclose(np.concatenate(w), [1 / 20] * 5 + [0] + [1 / 10] * 3, rtol=1e-7)
    w = token_weights(masks, groups, TOKEN_MEAN, longest=5)
    np.testing.assert_allclose(np.concatenate(w), [1 / 8] * 5 + [0] + [1 / 8] * 3, rtol=1e-7)
    assert {row.dtype for row in w} == {np.dtype(np.float32)}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_row_without_counted_tokens_stays_in_the_denominator(algorithm) -> None:
    masks = [np.ones(4), np.zeros(4)]
    weights = token_weights(masks, [0, 0], algorithm, longest=4)
    assert np.isfinite(np.concatenate(weights)).all()
    assert weights[1].sum() == 0
    # Of G = 2 rows one is masked: sequence mean and constant give half, the token mean ignores it.
    assert float(weights[0].sum()) == pytest.approx(1.0 if algorithm.denominator == "token_mean" else 0.5)
    assert not np.concatenate(token_weights([np.zeros(2)], [0], algorithm, longest=4)).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_two_workers_with_shared_totals_equal_one(algorithm) -> None:
    masks = [np.ones(n) for n in (2, 3, 5, 7)]
    groups = [0, 0, 1, 1]
    whole = token_weights(masks, groups, algorithm, longest=9)
    total = totals(masks[:2], groups[:2]) + totals(masks[2:], groups[2:])
    assert total == Totals(tokens=17.0, groups=2)
    first = token_weights(masks[:2], groups[:2], algorithm, longest=9, total=total)
    second = token_weights(masks[2:], groups[2:], algorithm, longest=9, total=total)
    for row, expected in zip(first + second, whole):
        np.testing.assert_array_equal(row, expected)


def test_token_loss_by_hand() -> None:
    # ρ = 1.5, 1.5, 0.5, 0.5, 1.1 with A = 1, -1, 1, -1, 2 and ε = 0.2:
    #   min(1.5, 1.2) = 1.2;  min(-1.5, -1.2) = -1.5;  min(0.5, 0.8) = 0.5;  min(-0.5, -0.8) = -0.8;  2.2
    # times -w; the gradient is that of the branch taken: -w A ρ, or 0 where the clipped one is.
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1], dtype=torch.float64)
    log_probs = ratio.log().requires_grad_()
    advantages = torch.tensor([1.0, -1, 1, -1, 2], dtype=torch.float64)
    weights = torch.tensor([1.0, 1, 1, 0.5, 0.1], dtype=torch.float64)
    loss = token_loss(log_probs, torch.zeros(5), advantages, weights, GRPO)
    np.testing.assert_allclose(loss.detach(), [-1.2, 1.5, -0.5, 0.4, -0.22], rtol=1e-12)
    loss.sum().backward()
    np.testing.assert_allclose(log_probs.grad, [0, 1.5, -0.5, 0, -0.22], rtol=1e-12)
    sums = ratio_sums(log_probs, torch.zeros(5), advantages, torch.tensor([1.0, 1, 1, 1, 0]), GRPO)
    # Clipped: the first and the fourth, of four counted. k3: 0.5 - ln 1.5 twice, -0.5 - ln 0.5 twice.
    kl = (2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))) / 4
    assert sums.means() == {"clip_fraction": 0.5, "approx_kl": pytest.approx(kl, rel=1e-12)}


def test_asymmetric_clip() -> None:
    algorithm = find_algorithm("grpo", clip=0.3)
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.name) == (0.3, 0.3, "grpo")
    assert find_algorithm("dr_grpo") is DR_GRPO
    with pytest.raises(UserError, match="did you mean 'dr_grpo'"):
        find_algorithm("dr-grpo")


def test_without_an_update_the_value_is_minus_the_weighted_advantage_and_the_gradient_reinforce() -> None:
    log_probs = torch.tensor([-1.0, -2.0, -0.5]).requires_grad_()
    advantages, weights = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.1, 0.2, 0.3])
    token_loss(log_probs, log_probs.detach(), advantages, weights, GRPO).sum().backward()
    torch.testing.assert_close(log_probs.grad, -weights * advantages)


def test_no_gradient_through_the_old_log_probs() -> None:
    # The same tensor as both: were the old one not held fixed, the two gradients would cancel.
    log_probs = torch.tensor([-1.0, -2.0]).requires_grad_()
    token_loss(log_probs, log_probs, torch.tensor([1.0, -2.0]), torch.ones(2), GRPO).sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([-1.0, 2.0]))


@pytest.mark.parametrize("gap", [1e4, -1e4, math.inf])
def test_absurd_ratios_stay_finite(gap: float) -> None:
    log_probs = torch.tensor([0.0, 0.0, 0.0]).requires_grad_()
    old = torch.full((3,), -gap)
    loss = token_loss(log_probs, old, torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0]), GRPO)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(log_probs.grad).all()
    assert loss[2] == 0
    assert log_probs.grad[2] == 0


def a_step(seed: int = 0):
    """Three groups of four ragged rows: (log-probs, old log-probs, rewards [P, G], masks) by row."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, size=12)
    new = [generator.normal(-1, 0.5, n) for n in lengths]
    old = [row + generator.normal(0, 0.2, row.size) for row in new]
    return new, old, generator.random((3, 4)), [np.ones(n) for n in lengths]


def literal_loss(new, old, rewards_PG, longest: int, name: str, eps: float = 0.2) -> float:
    """The equations of the papers, read as loops over prompts, completions and tokens."""
    objective, tokens = 0.0, sum(len(row) for row in new)
    for p, rewards_G in enumerate(rewards_PG):
        size = len(rewards_G)
        mean = sum(rewards_G) / size
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards_G) / (size - 1))
        for i, reward in enumerate(rewards_G):
            row, old_row = new[p * size + i], old[p * size + i]
            advantage = (reward - mean) if name == "dr_grpo" else (reward - mean) / (std + 1e-4)
            inner = 0.0
            for log_prob, old_log_prob in zip(row, old_row):
                ratio = math.exp(log_prob) / math.exp(old_log_prob)
                inner += min(ratio * advantage, min(max(ratio, 1 - eps), 1 + eps) * advantage)
            if name == "grpo":
                objective += inner / len(row) / size / len(rewards_PG)
            elif name == "dr_grpo":
                objective += inner / longest / size / len(rewards_PG)
            else:
                objective += inner / tokens
    return -objective


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "grpo_token_mean", "bnpo"])
def test_fast_path_equals_the_equation_read_literally(name: str) -> None:
    new, old, rewards_PG, masks = a_step()
    algorithm = ALGORITHMS[name]
    weights = token_weights(masks, [row // 4 for row in range(12)], algorithm, longest=8)
    advantages_B = torch.cat([group_advantages(rewards_G, algorithm) for rewards_G in rewards_PG])
    advantage_N = np.concatenate([np.full(len(row), a) for row, a in zip(new, advantages_B.tolist())])
    new_N, old_N, weight_N = (torch.tensor(np.concatenate(rows)).double() for rows in (new, old, weights))
    loss = token_loss(new_N, old_N, torch.tensor(advantage_N), weight_N, algorithm)
    # float32 weights: 6e-8 relative each.
    assert float(loss.sum()) == pytest.approx(literal_loss(new, old, rewards_PG, 8, name), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", [name for name, value in ALGORITHMS.items() if value.ratio == "token"])
@pytest.mark.parametrize("parts", [2, 3, 12])
def test_any_splitting_of_the_step_gives_the_same_loss_gradient_and_metrics(name: str, parts: int) -> None:
    new, old, rewards_PG, masks = a_step(1)
    algorithm = ALGORITHMS[name]
    weights = token_weights(masks, [row // 4 for row in range(12)], algorithm, longest=8)
    advantages_B = torch.cat([group_advantages(rewards_G, algorithm) for rewards_G in rewards_PG])

    def run(pieces: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, RatioSums]:
        shift = torch.zeros(8, dtype=torch.float64, requires_grad=True)  # a parameter per position
        loss, sums = torch.zeros((), dtype=torch.float64), None
        for rows in pieces:
            position_N = torch.cat([torch.arange(len(new[row])) for row in rows])
            log_prob_N = torch.tensor(np.concatenate([new[row] for row in rows])) + shift[position_N]
            old_N = torch.tensor(np.concatenate([old[row] for row in rows]))
            weight_N = torch.tensor(np.concatenate([weights[row] for row in rows])).double()
            advantage_N = torch.cat([advantages_B[row].expand(len(new[row])) for row in rows])
            piece = token_loss(log_prob_N, old_N, advantage_N, weight_N, algorithm).sum()
            piece.backward()
            loss += piece.detach()
            found = ratio_sums(log_prob_N, old_N, advantage_N, torch.ones_like(weight_N), algorithm)
            sums = found if sums is None else sums + found
        return loss, shift.grad, sums

    order = np.random.default_rng(2).permutation(12)
    whole, split = run([list(range(12))]), run([list(piece) for piece in np.array_split(order, parts)])
    torch.testing.assert_close(split[0], whole[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(split[1], whole[1], rtol=1e-12, atol=1e-14)
    assert split[2].means() == pytest.approx(whole[2].means(), rel=1e-12)


def test_kl_estimate_is_unbiased_and_positive() -> None:
    # Two coins, old p = 0.3, new q = 0.4: KL(old ‖ new) = 0.3 ln(0.3/0.4) + 0.7 ln(0.7/0.6) = 0.02160.
    old_p, new_p = torch.tensor([[0.3, 0.7], [0.4, 0.6]], dtype=torch.float64)
    sides = [(new_p[side].log().view(1), old_p[side].log().view(1)) for side in range(2)]
    sums = [ratio_sums(new, old, torch.ones(1), torch.ones(1), GRPO) for new, old in sides]
    assert all(float(s.kl) > 0 for s in sums)
    expected = sum(float(old_p[i]) * float(sums[i].kl) for i in range(2))
    assert expected == pytest.approx(0.3 * math.log(0.3 / 0.4) + 0.7 * math.log(0.7 / 0.6), rel=1e-12)
