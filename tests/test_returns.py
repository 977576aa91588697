"""Estimators of episodes against arrays derived by hand, stable-baselines3's GAE, and each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.algorithms.returns import bi_level_gae, gae, gigpo, lumped, to_go, token_gae, turn_gae, whitened

numbers = st.floats(-5, 5, allow_nan=False, width=32)


def test_gae_terminated() -> None:
    # γ = 0.9, λ = 0.5, r = (1, 0, 2), V = (0.5, 1, -1), nothing after the end.
    # δ_2 = 2 + 0 - (-1) = 3;          A_2 = 3
    # δ_1 = 0 + 0.9·(-1) - 1 = -1.9;   A_1 = -1.9 + 0.45·3 = -0.55
    # δ_0 = 1 + 0.9·1 - 0.5 = 1.4;     A_0 = 1.4 + 0.45·(-0.55) = 1.1525
    found = gae(np.array([1.0, 0, 2]), np.array([0.5, 1, -1]), 0.0, 0.9, 0.5)
    np.testing.assert_allclose(found, [1.1525, -0.55, 3.0], rtol=0, atol=1e-12)


def test_gae_truncated_is_bootstrapped() -> None:
    # As above, but cut off where the critic expects 2: δ_2 = 2 + 0.9·2 + 1 = 4.8; A_2 = 4.8
    # A_1 = -1.9 + 0.45·4.8 = 0.26; A_0 = 1.4 + 0.45·0.26 = 1.517
    found = gae(np.array([1.0, 0, 2]), np.array([0.5, 1, -1]), 2.0, 0.9, 0.5)
    np.testing.assert_allclose(found, [1.517, 0.26, 4.8], rtol=0, atol=1e-12)


def test_turn_gae_gives_every_token_its_turns_advantage() -> None:
    # The same numbers; only a turn's first value counts.
    values = [np.array([0.5, 9, 9]), np.array([1.0]), np.array([-1.0, 7])]
    found = turn_gae(np.array([1.0, 0, 2]), values, 0.0, 0.9, 0.5)
    assert [list(np.round(one, 12)) for one in found] == [[1.1525] * 3, [-0.55], [3.0, 3.0]]


def test_bi_level_gae() -> None:
    # Two turns of 2 and 3 tokens, γ = 0.5, λ = 1, γ' = 1, λ' = 0.5, r = (0, 4), terminated.
    # Last tokens: V(e_0) = 2, V(e_1) = 1.
    # between: δ_1 = 4 - 1 = 3, A(e_1) = 3; δ_0 = 0 + 0.5·1 - 2 = -1.5, A(e_0) = -1.5 + 0.5·3 = 0
    # turn 1 values (0, 3, 1): δ_1 = 1 - 3 = -2, A = -2 + 0.5·3 = -0.5; δ_0 = 3 - 0 = 3, A = 3 + 0.5·(-0.5) = 2.75
    # turn 0 values (1, 2): δ_0 = 2 - 1 = 1, A = 1 + 0.5·0 = 1
    values = [np.array([1.0, 2.0]), np.array([0.0, 3.0, 1.0])]
    found = bi_level_gae(np.array([0.0, 4.0]), values, 0.0, 0.5, 1.0, 1.0, 0.5)
    np.testing.assert_allclose(np.concatenate(found), [1.0, 0.0, 2.75, -0.5, 3.0], rtol=0, atol=1e-12)
    # truncated where 6 is expected: A(e_1) = 4 + 0.5·6 - 1 = 6; A(e_0) = -1.5 + 0.5·6 = 1.5
    # turn 1: A_1 = -2 + 0.5·6 = 1, A_0 = 3 + 0.5·1 = 3.5; turn 0: A_0 = 1 + 0.5·1.5 = 1.75
    cut = bi_level_gae(np.array([0.0, 4.0]), values, 6.0, 0.5, 1.0, 1.0, 0.5)
    np.testing.assert_allclose(np.concatenate(cut), [1.75, 1.5, 3.5, 1.0, 6.0], rtol=0, atol=1e-12)


def test_a_turn_whose_reward_is_zero_is_still_a_turn() -> None:
    """VAGEN's first code found turn ends by their rewards: an episode of two turns with rewards (0, 1) became one."""
    values = [np.zeros(2), np.zeros(2)]
    found = bi_level_gae(np.array([0.0, 1.0]), values, 0.0, 0.5, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(np.concatenate(found), [0.5, 0.5, 1.0, 1.0])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 9), gamma=st.floats(0, 1), lam=st.floats(0, 1), ends=st.booleans())
def test_against_stable_baselines3(data: st.DataObject, n: int, gamma: float, lam: float, ends: bool) -> None:
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    import torch
    from gymnasium import spaces

    rewards = np.array(data.draw(st.lists(numbers, min_size=n, max_size=n)))
    values = np.array(data.draw(st.lists(numbers, min_size=n, max_size=n)))
    last = data.draw(numbers)
    theirs = buffers.RolloutBuffer(
        n, spaces.Box(0, 1, (1,)), spaces.Discrete(2), device="cpu", gamma=gamma, gae_lambda=lam
    )
    theirs.reset()
    for i in range(n):
        theirs.add(np.zeros((1, 1)), np.zeros((1, 1)), rewards[i : i + 1], np.array([i == 0]),
                   torch.tensor([values[i]]), torch.zeros(1))  # fmt: skip
    theirs.compute_returns_and_advantage(torch.tensor([last]), np.array([ends]))
    ours = gae(rewards, values, 0.0 if ends else last, gamma, lam)
    np.testing.assert_allclose(ours, theirs.advantages[:, 0], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(ours + values, theirs.returns[:, 0], rtol=1e-6, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(numbers, min_size=1, max_size=6), reward=numbers, last=numbers, lam=st.floats(0, 1))
def test_estimators_agree_on_one_turn(values: list[float], reward: float, last: float, lam: float) -> None:
    """One turn of one token: all the same; one turn with λ' = 1 and γ' = 1: bi-level's first token is turn GAE with
    the value of that token, up to what the turn's own bootstrap at its end says."""
    one = [np.array(values[:1])]
    rewards = np.array([reward])
    expected = turn_gae(rewards, one, last, 0.9, lam)[0]
    np.testing.assert_allclose(token_gae(rewards, one, last, 0.9, lam)[0], expected)
    np.testing.assert_allclose(bi_level_gae(rewards, one, last, 0.9, lam, 1.0, 1.0)[0], expected)
    several = [np.array(values)]
    # γ' = λ' = 1 telescopes: A_0 = A(e) + V(e) - V_0 = r + γ V_next - V_0, the turn's own advantage
    inside = bi_level_gae(rewards, several, last, 0.9, lam, 1.0, 1.0)[0]
    np.testing.assert_allclose(inside[0], turn_gae(rewards, several, last, 0.9, lam)[0][0], atol=1e-9)


def test_lambda_one_is_the_discounted_return() -> None:
    rewards, values = np.array([1.0, -1, 0.5]), np.array([0.3, 0.1, -2])
    np.testing.assert_allclose(gae(rewards, values, 0.0, 0.9, 1.0), to_go(rewards, 0.9) - values)
    np.testing.assert_allclose(to_go(rewards, 0.9), [1 - 0.9 + 0.81 * 0.5, -1 + 0.45, 0.5])


def test_lumped() -> None:
    assert list(lumped(np.array([1.0, -1.0, 2.0]))) == [0.0, 0.0, 2.0]


def test_gigpo_two_levels() -> None:
    # Two episodes of a group: rewards (0, 1) through states a, b and (0, 0) through a, c. γ = 1, no division.
    # A_E: returns 1 and 0, mean 0.5: +0.5, -0.5. Returns to go: 1, 1 and 0, 0.
    # A_S: state a was seen twice with 1 and 0: +0.5, -0.5; b and c once: 0.
    found = gigpo(
        [np.array([0.0, 1.0]), np.array([0.0, 0.0])],
        [["a", "b"], ["a", "c"]],
        [0, 0],
        gamma=1.0,
        weight=2.0,
        by_std=False,
    )
    assert [one.tolist() for one in found] == [[1.5, 0.5], [-1.5, -0.5]]
    # by_std: the sample deviation of (1, 0) is 1/√2
    scaled = gigpo([np.array([1.0]), np.array([0.0])], [["a"], ["a"]], [0, 0], gamma=1, weight=0, by_std=True)
    np.testing.assert_allclose(np.concatenate(scaled), [0.5**0.5, -(0.5**0.5)], atol=1e-5)
    # another group is never compared with
    apart = gigpo([np.array([1.0]), np.array([0.0])], [["a"], ["a"]], [0, 1], gamma=1, weight=1, by_std=True)
    assert np.concatenate(apart).tolist() == [0.0, 0.0]


def test_gigpo_counts_a_state_as_often_as_it_was_seen() -> None:
    # One episode that passes a twice with returns to go 2 and 1: mean 1.5.
    found = gigpo([np.array([1.0, 1.0])], [["a", "a"]], [0], gamma=1.0, weight=1.0, by_std=False)
    assert found[0].tolist() == [0.5, -0.5]


def test_whitened_leaves_out_what_does_not_count() -> None:
    advantages = [np.array([1.0, 1.0]), np.array([3.0]), np.array([100.0])]
    count = [np.array([1.0, 0.0]), np.array([1.0]), np.array([0.0])]
    # mean 2, sample deviation √2
    found = whitened(advantages, count)
    np.testing.assert_allclose(found[0], [-1 / 2**0.5] * 2, rtol=1e-4)
    np.testing.assert_allclose(found[1], [1 / 2**0.5], rtol=1e-4)
    assert whitened([np.ones(2)], [np.ones(2)])[0].tolist() == [0.0, 0.0]
