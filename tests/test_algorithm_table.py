"""What the table's algorithms do that TRL does not check (`test_trl_parity`): by hand, derivation in the comment."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fovea.algorithms import (
    ALGORITHMS,
    ClipCov,
    EntropyBonus,
    KlCov,
    Moments,
    SelectiveReplay,
    TokenView,
    TopEntropy,
    algorithm_of,
    group_advantages,
    importance_correction,
    kl_estimates,
    loss_terms,
    make_replay,
    overlong_penalty,
    sequence_log_ratios,
    step_advantages,
    token_loss,
    token_weights,
)
from fovea.config import load_run
from fovea.types import UserError

RLOO, REINFORCE = ALGORITHMS["rloo"], ALGORITHMS["reinforce_plus_plus"]
BASELINE = ALGORITHMS["reinforce_plus_plus_baseline"]


def masks(*lengths: int) -> list[np.ndarray]:
    return [np.ones(length) for length in lengths]


# ---------------------------------------------------------------- advantages


def test_leave_one_out() -> None:
    # r = 1, 0, 0.5: baselines (0 + 0.5)/2 = 0.25, 0.75, 0.5, so A = 0.75, -0.75, 0.
    np.testing.assert_allclose(
        group_advantages(np.array([1.0, 0.0, 0.5]), RLOO), [0.75, -0.75, 0.0], atol=1e-15
    )
    # The one that no function scored is nobody's sibling: baselines 0 and 1.
    found = group_advantages(np.array([1.0, np.nan, 0.0]), RLOO)
    np.testing.assert_allclose(found, [1.0, 0.0, -1.0], atol=1e-15)


def test_reinforce_plus_plus_whitens_over_tokens() -> None:
    # Rewards 1 (one token) and 0 (three tokens): tokens 1, 0, 0, 0; mean 1/4, sample variance
    # (9/16 + 3/16) / 3 = 1/4, so A = (1 - 1/4) / (1/2) = 1.5 and -0.5. The group does not matter.
    one, three = step_advantages([np.array([1.0, 0.0])], masks(1, 3), REINFORCE)
    np.testing.assert_allclose(one, [1.5], rtol=1e-7)
    np.testing.assert_allclose(three, [-0.5] * 3, rtol=1e-7)
    apart = step_advantages([np.array([1.0]), np.array([0.0])], masks(1, 3), REINFORCE)
    np.testing.assert_allclose(np.concatenate(apart), [1.5, -0.5, -0.5, -0.5], rtol=1e-7)


def test_a_reply_that_no_function_scored_is_in_no_statistic_of_the_whitening() -> None:
    # Given: 1 (one token) and 0 (three tokens), as above; the third reply, of five tokens, changes nothing and gets 0.
    rewards = [np.array([1.0, 0.0, np.nan])]
    one, three, unscored = step_advantages(rewards, masks(1, 3, 5), REINFORCE)
    np.testing.assert_allclose(one, [1.5], rtol=1e-6)
    np.testing.assert_allclose(three, [-0.5] * 3, rtol=1e-6)
    assert unscored.tolist() == [0.0] * 5
    # Nor has it a KL to go.
    kl = [np.full(n, 0.5) for n in (1, 3, 5)]
    for algorithm in (replace(REINFORCE, beta=0.1), replace(REINFORCE, beta=0.1, scale="none")):
        found = step_advantages(rewards, masks(1, 3, 5), algorithm, kl=kl)
        alone = step_advantages([np.array([1.0, 0.0])], masks(1, 3), algorithm, kl=kl[:2])
        for ours, theirs in zip(found, [*alone, np.zeros(5)], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    nothing = step_advantages([np.array([np.nan, np.nan])], masks(2, 2), REINFORCE)
    assert [row.tolist() for row in nothing] == [[0.0, 0.0]] * 2


def test_reinforce_plus_plus_learns_from_a_group_whose_rewards_are_equal() -> None:
    # Groups (1, 1) and (0, 0): GRPO has no signal; whitened over the batch the first is good, the second bad:
    # tokens 1, 1, 0, 0, mean 1/2, sample variance 1/3, A = ±(1/2) / sqrt(1/3) = ±0.8660254.
    groups = [np.array([1.0, 1.0]), np.array([0.0, 0.0])]
    assert not np.concatenate(step_advantages(groups, masks(1, 1, 1, 1), ALGORITHMS["grpo"])).any()
    found = np.concatenate(step_advantages(groups, masks(1, 1, 1, 1), REINFORCE))
    np.testing.assert_allclose(found, np.array([1, 1, -1, -1]) * math.sqrt(3) / 2, rtol=1e-7)
    assert not np.concatenate(step_advantages([np.ones(4)], masks(1, 1, 1, 1), REINFORCE)).any()


def test_reinforce_plus_plus_with_baseline() -> None:
    # Groups (1, 0) and (0.5, 0.5), one token each: centred 1/2, -1/2, 0, 0; mean 0, sample variance (1/2)/3 = 1/6.
    found = step_advantages([np.array([1.0, 0.0]), np.array([0.5, 0.5])], masks(1, 1, 1, 1), BASELINE)
    np.testing.assert_allclose(np.concatenate(found), np.array([1, -1, 0, 0]) * math.sqrt(6) / 2, rtol=1e-6)


def test_batch_std() -> None:
    # Centred ±1/2 and ±1; std of the rewards 1, 0, 2, 0: mean 3/4, squares 1/16 + 9/16 + 25/16 + 9/16 = 44/16, /3.
    algorithm = replace(ALGORITHMS["grpo"], scale="batch_std")
    found = step_advantages([np.array([1.0, 0.0]), np.array([2.0, 0.0])], masks(1, 1, 1, 1), algorithm)
    size = math.sqrt(44 / 16 / 3) + 1e-4
    np.testing.assert_allclose(np.concatenate(found), np.array([0.5, -0.5, 1, -1]) / size, rtol=1e-12)


# ---------------------------------------------------------------- the KL


def test_kl_estimators() -> None:
    # π = 1/2, π_ref = 1/4: r = ln(1/2). k1 = ln 2, k2 = (ln 2)²/2, k3 = 1/2 - 1 + ln 2.
    ours, theirs = torch.tensor([0.5]).double().log(), torch.tensor([0.25]).double().log()
    found = [float(kl_estimates(ours, theirs, k)) for k in ("k1", "k2", "k3")]
    assert found == pytest.approx([math.log(2), math.log(2) ** 2 / 2, math.log(2) - 0.5], rel=1e-12)


def test_kl_estimators_in_expectation() -> None:
    # Over the samples of π = (0.3, 0.7) with π_ref = (0.4, 0.6), k1 and k3 average to KL(π ‖ π_ref) exactly, and the
    # gradient of k2 is that of the KL: Σ p ∇(½ log²(p/q)) = Σ ∇p log(p/q), while that of k1 is Σ ∇p = 0.
    logits = torch.tensor([0.3, 0.7], dtype=torch.float64).log().requires_grad_()
    reference = torch.tensor([0.4, 0.6], dtype=torch.float64).log()
    p = logits.softmax(0).detach()
    true = (logits.softmax(0) * (logits.log_softmax(0) - reference)).sum()
    (exact,) = torch.autograd.grad(true, logits)
    for name in ("k1", "k2", "k3"):
        k = (p * kl_estimates(logits.log_softmax(0), reference, name)).sum()
        if name != "k2":
            assert float(k.detach()) == pytest.approx(float(true.detach()), rel=1e-12)
        (gradient,) = torch.autograd.grad(k, logits)
        expected = torch.zeros(2) if name == "k1" else exact
        if name != "k3":
            np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize(("name", "kl"), [("k1", (0.5, -0.25)), ("k2", (0.1, 0.3)), ("k3", (0.2, 0.0))])
def test_kl_off_the_reward(name: str, kl: tuple[float, float]) -> None:
    # Two replies of one token, rewards 1 and 0, β = 0.4: r = 1 - 0.4 kl_0 and -0.4 kl_1; RLOO: ± their difference.
    algorithm = replace(RLOO, beta=0.4, kl=name)
    found = step_advantages(
        [np.array([1.0, 0.0])], masks(1, 1), algorithm, kl=[np.array([kl[0]]), np.array([kl[1]])]
    )
    difference = 1 - 0.4 * (kl[0] - kl[1])
    np.testing.assert_allclose(np.concatenate(found), [difference, -difference], rtol=1e-12)


def test_kl_to_go() -> None:
    # One reply of three tokens, reward 1, KL 0.1, 0.2, 0.3, β = 1: returns 1 - (0.6, 0.5, 0.3) = 0.4, 0.5, 0.7; mean
    # 0.5333, deviations -0.1333, -0.0333, 0.1667; sample variance (0.01778 + 0.00111 + 0.02778) / 2 = 0.0233333.
    algorithm = replace(REINFORCE, beta=1.0)
    (found,) = step_advantages([np.array([1.0])], masks(3), algorithm, kl=[np.array([0.1, 0.2, 0.3])])
    expected = (np.array([0.4, 0.5, 0.7]) - 1.6 / 3) / math.sqrt(0.07 / 3 + 1e-8)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


# ---------------------------------------------------------------- length, ratios, weights


def test_overlong_penalty() -> None:
    # Budget 20, a share of 0.2: four tokens are punished; 16 and less are free, 17 costs 1/4, 20 costs 1.
    found = overlong_penalty(np.array([1, 16, 17, 18, 20]), 20, 0.2)
    np.testing.assert_allclose(found, [0, 0, -0.25, -0.5, -1.0])
    assert not overlong_penalty(np.array([20]), 20, 0.0).any()


def test_rloo_takes_the_whole_reply_as_one_action() -> None:
    # Two replies, ratios of their tokens (1.1, 1.0) and (0.5,): ρ = 1.1 and 0.5, A = 1, -1, P = 1, G = 2.
    # Loss -(1/2)(1.1 · 1) - (1/2) min(-0.5, -0.8) = -0.55 + 0.4; gradient of log π: -A ρ/2 for each token of the
    # first, whatever its length; nothing of the second, which is clipped.
    log_probs = torch.tensor([1.1, 1.0, 0.5]).double().log().requires_grad_()
    rows, old, ones = torch.tensor([0, 0, 1]), torch.zeros(3).double(), torch.ones(3).double()
    weights = torch.from_numpy(np.concatenate(token_weights(masks(2, 1), [0, 0], RLOO, longest=8))).double()
    sequence = sequence_log_ratios(log_probs, old, ones, rows, RLOO)
    lengths = torch.tensor([2.0, 2.0, 1.0]).double()
    advantages = torch.tensor([1.0, 1.0, -1.0]).double()
    loss = token_loss(log_probs, old, advantages, weights, RLOO, sequence=sequence, lengths=lengths).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-0.15, rel=1e-7)
    np.testing.assert_allclose(log_probs.grad, [-0.55, -0.55, 0.0], rtol=1e-7)


def test_importance_correction() -> None:
    # Trainer over engine: ratios 2, 0.5, 4 in one reply (product 4) and 1 where the engine reported nothing.
    ours = [np.log([2.0, 0.5, 4.0]), np.log([0.9])]
    theirs = [np.zeros(3), np.array([np.nan])]
    expected = {
        "token_truncate": [2, 0.5, 3, 1],
        "token_mask": [2, 0.5, 0, 1],
        "sequence_truncate": [3, 3, 3, 1],
        "sequence_mask": [0, 0, 0, 1],
    }
    for name, weights in expected.items():
        algorithm = replace(ALGORITHMS["grpo"], correction=name, correction_cap=3.0)
        np.testing.assert_allclose(
            np.concatenate(importance_correction(ours, theirs, algorithm)), weights, rtol=1e-6
        )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_advantages_of_two_workers_are_those_of_one(name: str) -> None:
    """Each worker has one group of two; sums meet in `reduce`, which is asked in the same order on both."""
    algorithm = replace(ALGORITHMS[name], beta=0.0)
    groups, lengths = [np.array([1.0, 0.2]), np.array([0.3, 0.0])], [(2, 5), (1, 3)]
    whole = step_advantages(groups, masks(2, 5, 1, 3), algorithm)
    asked: list[list[np.ndarray]] = [[], []]

    def run(worker: int, other: list[np.ndarray] | None) -> list[np.ndarray]:
        def reduce(vector: np.ndarray) -> np.ndarray:
            asked[worker].append(vector)
            return vector if other is None else vector + other[len(asked[worker]) - 1]

        asked[worker] = []
        return step_advantages([groups[worker]], masks(*lengths[worker]), algorithm, reduce=reduce)

    # A second reduction depends on the result of the first: ask until nothing changes any more.
    for _ in range(3):
        before = [list(vectors) for vectors in asked]
        parts = [run(worker, before[1 - worker] if before[1 - worker] else None) for worker in (0, 1)]
    np.testing.assert_allclose(
        np.concatenate(parts[0] + parts[1]), np.concatenate(whole), rtol=1e-12, atol=1e-14
    )


def test_moments_of_parts_with_a_large_mean() -> None:
    values = 1e8 + np.array([0.0, 1.0, 2.0, 3.0])
    a, b = Moments.of(values[:1]), Moments.of(values[1:])
    sums = iter([np.array([4.0, values.sum()]), None])

    def reduce(vector: np.ndarray) -> np.ndarray:
        found = next(sums)
        return vector + (b.m2 + 3 * (b.mean - (1e8 + 1.5)) ** 2) if found is None else found

    both = a.everywhere(reduce)
    assert (both.count, both.mean) == (4.0, 1e8 + 1.5)
    assert both.variance == pytest.approx(5 / 3, rel=1e-9)


# ---------------------------------------------------------------- loss terms


def view_of(**changes: object) -> TokenView:
    plain = {
        "log_probs": torch.tensor([-1.0, -2.0, -0.5, -3.0]), "entropy": torch.tensor([0.1, 0.9, 0.5, 0.7]),
        "old_log_probs": torch.tensor([-1.0, -1.0, -1.0, -1.0]), "advantages": torch.tensor([1.0, 1.0, -1.0, -1.0]),
        "mask": torch.ones(4), "total": 4.0, "seed": (0, 1, 0), "others": {},
    }  # fmt: skip
    return TokenView(**(plain | changes))  # type: ignore[arg-type]


def test_entropy_bonus() -> None:
    # -0.1 · (0.1 + 0.9 + 0.7) / 4: the third token is masked, the denominator is the mini-batch's.
    value = EntropyBonus(coefficient=0.1).loss("trained", view_of(mask=torch.tensor([1.0, 1, 0, 1])))
    assert float(value) == pytest.approx(-0.0425, rel=1e-6)


def test_top_entropy() -> None:
    # Quantile 1/2 of 0.1, 0.5, 0.7, 0.9 is 0.6: two tokens stay. Without the second token: 0.5 is the median.
    assert TopEntropy(share=0.5).pick(view_of()).tolist() == [0, 1, 0, 1]
    assert TopEntropy(share=0.5).pick(view_of(mask=torch.tensor([1.0, 0, 1, 1]))).tolist() == [0, 0, 1, 1]
    assert TopEntropy(share=0.2).pick(view_of(mask=torch.zeros(4))).tolist() == [0, 0, 0, 0]
    # Over those that stay: four counted tokens for two, so that a mean over four is the mean over the two; 3 for 2.
    assert TopEntropy(share=0.5, selected=True).pick(view_of()).tolist() == [0, 2, 0, 2]
    some = view_of(mask=torch.tensor([1.0, 0, 1, 1]))
    assert TopEntropy(share=0.5, selected=True).pick(some).tolist() == [0, 0, 1.5, 1.5]
    section = load_run("quickstart", ["algorithm={top_entropy: 0.2, top_entropy_over: selected}"]).algorithm
    assert loss_terms(section) == (TopEntropy(share=0.2, selected=True),)


def test_covariances() -> None:
    # Mean log-prob -1.625, mean advantage 0: covariances 0.625, -0.375, -1.125, 1.375. KL-Cov takes the highest, the
    # fourth: |-3 - -1| = 2 (less half of the 1e-3 in which it is smooth) over 4 tokens. Clip-Cov leaves one out of
    # those between 0.5 and 1.
    kl_cov = KlCov(share=0.25, coefficient=0.5)
    picked = kl_cov.pick(view_of())
    assert picked.tolist() == [0, 0, 0, 1]
    assert float(kl_cov.loss("trained", view_of(picked=picked))) == pytest.approx(0.5 * (2 - 5e-4) / 4)
    assert ClipCov(share=0.25, low=0.5, high=1.0).pick(view_of()).tolist() == [0, 1, 1, 1]
    # Where the ratio clip has decided for the first nothing is left to draw.
    decided = view_of(clipped=torch.tensor([True, False, False, False]))
    assert ClipCov(share=0.25, low=0.5, high=1.0).pick(decided).tolist() == [1, 1, 1, 1]
    wide = ClipCov(share=0.5, low=-2.0, high=2.0)
    assert torch.equal(wide.pick(view_of()), wide.pick(view_of()))
    assert float(wide.pick(view_of()).sum()) == 2


# ---------------------------------------------------------------- the recipe's section


def test_kl_cov_does_not_follow_the_rounding_of_log_probs() -> None:
    """At the first update the log-ratio is float noise: its gradient is noise too, not ±1; a real one's is the sign."""
    old = torch.full((4,), -1.0)
    for gap, least, most in ((1e-6, 0.0, 2e-3), (0.0, 0.0, 0.0), (2e-3, 1.0, 1.0)):
        log_probs = (old + gap * torch.tensor([1.0, -1.0, 1.0, -1.0])).requires_grad_()
        view = view_of(log_probs=log_probs, old_log_probs=old, picked=torch.ones(4), total=1.0)
        KlCov(share=1.0).loss("trained", view).backward()
        assert log_probs.grad is not None
        size = log_probs.grad.abs()
        assert float(size.min()) >= least
        assert float(size.max()) <= most


def test_old_log_probs_are_recomputed_where_the_decode_path_rounds_more() -> None:
    def of(*overrides: str) -> str:
        return algorithm_of(load_run("quickstart", ["algorithm.name=gspo", *overrides])).old_log_probs

    assert of() == of("dtype=float32") == "sampled"
    assert of("dtype=bfloat16") == "recomputed"
    assert of("dtype=bfloat16", "algorithm.old_log_probs=sampled") == "sampled"


def test_overrides_and_the_tables_own_values() -> None:
    def of(*overrides: str):
        return algorithm_of(load_run("quickstart", [f"algorithm={{{', '.join(overrides)}}}"]))

    assert of("name: dapo") == ALGORITHMS["dapo"]
    assert (ALGORITHMS["dapo"].clip_low, ALGORITHMS["dapo"].clip_high) == (0.2, 0.28)
    assert of("name: grpo", "clip: 0.1", "beta: 0.01") == replace(
        ALGORITHMS["grpo"], clip_low=0.1, clip_high=0.1, beta=0.01
    )
    assert of("name: grpo", "correction: token_truncate").old_log_probs == "recomputed"
    terms = loss_terms(
        load_run("quickstart", ["algorithm={entropy_bonus: 0.01, top_entropy: 0.2}"]).algorithm
    )
    assert [term.name for term in terms] == ["entropy_bonus", "top_entropy"]
    assert isinstance(make_replay(load_run("quickstart", ["algorithm.replay=64"]).algorithm), SelectiveReplay)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("name: grppo", "did you mean 'grpo'"),
        ("clip: 0.1, clip_high: 0.3", "clip sets both bounds"),
        ("beta: 0.1, kl: k1", "gradient of mean zero"),
        ("kl: k2", "give algorithm.beta too"),
        ("correction: token_mask, old_log_probs: sampled", "needs old_log_probs=recomputed"),
        ("correction_cap: 2.0", "of no use without"),
        ("name: cispo, delta: 9.0", "leave it away"),
        ("delta: 1.1", "must be above 1"),
        ("prompts_per_update: 5", "must divide prompts=16"),
        ("name: dapo, replay: 8", "choose one of them"),
        ("name: reinforce_plus_plus, resample_limit: 2", "set it to 0"),
        ("replay_age: 3", "of no use without"),
        ("beta: 0.1, kl_in: reward_to_go", "take scale=whiten"),
    ],
)
def test_contradictions_are_refused_in_one_sentence(section: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        algorithm_of(load_run("quickstart", [f"algorithm={{{section}}}", "prompts=16"]))


def test_one_reply_a_problem_needs_an_algorithm_without_a_group() -> None:
    with pytest.raises(UserError, match="give at least group=2"):
        algorithm_of(load_run("quickstart", ["group=1"]))
    assert algorithm_of(load_run("quickstart", ["group=1", "algorithm.name=reinforce_plus_plus"]))
