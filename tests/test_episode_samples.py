"""From turns to the gradient, with numbers. Each test failed when the line that it guards was broken on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fovea.algorithms import ALGORITHMS
from fovea.algorithms.returns import turn_gae
from fovea.config import Run
from fovea.models import backward, load_policy
from fovea.models.critic import Critic
from fovea.rollouts import minibatches
from fovea.rollouts.episodes import Layout
from fovea.rollouts.turns import credits_of, turn_samples
from fovea.training.optim import make_optimizer
from fovea.training.update import update
from fovea.types import Completion, Problem, Sample, Sampling, Trajectory, Turn

SAMPLING = Sampling(max_new_tokens=8)


def turn(reward: float, value: float, *, legal: bool = True, prompt: Any = None) -> Turn:
    completion = Completion(
        token_ids=np.array([5, 6, 2]), log_probs=np.full(3, -1.0, np.float32), text="", stop="eos",
        values=np.full(3, value, np.float32),
    )  # fmt: skip
    return Turn(prompt=prompt, completion=completion, reward=reward, action="+", legal=legal, action_start=2)


def test_what_comes_after_a_cut_is_in_the_advantages() -> None:
    turns = (turn(0.0, 0.5), turn(1.0, -0.25))
    cut = Trajectory(id="a", turns=turns, terminated=False, truncated=True, bootstrap=2.0)
    algorithm = ALGORITHMS["turn_ppo"]
    values = [np.full(3, 0.5), np.full(3, -0.25)]
    expected = turn_gae(np.array([0.0, 1.0]), values, 2.0, algorithm.gamma, algorithm.gae_lambda)
    found = credits_of([cut], algorithm)
    for credit, advantage, value in zip(found, expected, values, strict=True):
        np.testing.assert_allclose(credit.advantage, advantage)
        np.testing.assert_allclose(credit.returns, advantage + value)


def test_a_masked_turn_is_in_no_mean() -> None:
    """Advantages 1, 3 of legal turns: mean 2, deviation √2; the masked one has 100."""
    ones = [
        Trajectory(id=str(i), turns=(turn(r, 0.0, legal=legal),), terminated=True, truncated=False)
        for i, (r, legal) in enumerate([(1.0, True), (3.0, True), (100.0, False)])
    ]
    found = turn_samples(ones, ALGORITHMS["turn_ppo"], 8, learn_invalid=False)
    np.testing.assert_allclose([s.advantage[0] for s in found[:2]], [-(0.5**0.5), 0.5**0.5], rtol=1e-4)
    assert [bool(s.weights.any()) for s in found] == [True, True, False]


def test_the_critics_weights_are_those_of_the_mini_batch() -> None:
    ones = [
        Trajectory(id=str(i), turns=(turn(1.0, 0.0),), terminated=True, truncated=False) for i in range(6)
    ]
    algorithm = ALGORITHMS["turn_ppo"]
    samples = turn_samples(ones, algorithm, 8, learn_invalid=True)
    batches = minibatches(samples, algorithm, 8, 2)
    assert [len(batch) for batch in batches] == [2, 2, 2]
    for batch in batches:
        total = sum(float(s.value_weights.sum()) for s in batch if s.value_weights is not None)
        assert total == pytest.approx(1.0)


def test_earlier_replies_stand_with_their_thoughts_or_without() -> None:
    asked = Problem(id="a", task="t", images=(), question="", answer="", kind="text")
    turns = [(asked, np.array([1, 2, 3, 4]), 2), (asked, np.array([5, 6, 7]), 1)]
    whole = Layout(turns=None).earlier(turns)
    assert [list(reply) for _, reply in whole] == [[1, 2, 3, 4], [5, 6, 7]]
    short = Layout(turns=None, thoughts=False).earlier(turns)
    assert [list(reply) for _, reply in short] == [[3, 4], [6, 7]]
    assert [list(reply) for _, reply in Layout(turns=2).earlier(turns)] == [[5, 6, 7]]
    assert Layout().earlier(turns) == ()


def test_lambda_reaches_the_gradient_of_an_update() -> None:
    """Near the clip's middle ∇ = -A exp(Σ c δ) Σ c_t ∇ log π_t, δ = log π - log π_old and c = λ on the thought."""
    policy = load_policy("fovea-tiny")
    policy.critic = Critic(256, (8,), stop_gradient=True, seed=0)
    prompt = policy.prompt(Problem(id="a", task="t", images=(), question="Go.", answer="", kind="text"))
    row = policy.encode_reply("<think>x</think><answer>+</answer>")
    coefficient = np.ones(len(row), np.float32)
    coefficient[:4] = 0.25
    delta = np.zeros(len(row), np.float32)
    delta[:2], delta[-1] = 0.06, 0.02  # Σ c δ = 0.05 with λ, 0.14 (beyond the clip) without
    from fovea.models import score

    now = score(policy, [prompt], [(0, row)], SAMPLING)[0].numpy()
    run = Run(optimizer={"max_grad_norm": 1e9, "learning_rate": 1e-9}, algorithm={"name": "rl4vlm"})
    sample = Sample(
        sampled_prompt=prompt, trained_prompt=prompt, token_ids=row, old_log_probs=now - delta,
        weights=np.full(len(row), 1 / len(row), np.float32), advantage=np.full(len(row), 2.0, np.float32),
        group=0, coefficients=coefficient,
    )  # fmt: skip
    optimizer = make_optimizer(policy, run.optimizer)

    def expected(index: torch.Tensor, log_probs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        scale = 2.0 * float(np.exp((coefficient * delta).sum()))
        return -scale * (torch.from_numpy(coefficient)[index] * log_probs).sum()

    backward(policy, [prompt], [(0, row)], SAMPLING, expected)
    gradients = [p.grad.flatten() for p in policy.trained().values() if p.grad is not None]
    norm = float(torch.cat(gradients).norm())
    report = update(policy, optimizer, [sample], ALGORITHMS["rl4vlm"], SAMPLING, run, 0)
    assert report["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_the_critics_loss_has_its_coefficient_and_the_larger_of_both_errors() -> None:
    """A fresh critic says 0; R = 1, V_old = 0.5, clip 0.1: V_c = 0.4, errors 1 and 0.36, so ½ · 1, times 0.5."""
    policy = load_policy("fovea-tiny")
    policy.critic = Critic(256, (8,), stop_gradient=True, seed=0)
    prompt = policy.prompt(Problem(id="a", task="t", images=(), question="Go.", answer="", kind="text"))
    row = policy.encode_reply("+")
    first = np.zeros(len(row), np.float32)
    first[0] = 1.0
    zeros = np.zeros(len(row), np.float32)
    sample = Sample(
        sampled_prompt=prompt, trained_prompt=prompt, token_ids=row, old_log_probs=zeros - 1, weights=zeros,
        advantage=zeros, group=0, returns=first, old_values=zeros + 0.5, value_weights=first,
    )  # fmt: skip
    run = Run(algorithm={"name": "rl4vlm"})
    report = update(
        policy, make_optimizer(policy, run.optimizer), [sample], ALGORITHMS["rl4vlm"], SAMPLING, run, 0
    )
    assert report["loss"] == pytest.approx(0.25)
    assert report["value_loss"] == pytest.approx(0.5)
