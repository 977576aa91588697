"""Intervals and pass@k against published or hand-derived values."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from fovea import statistics


def test_wilson_known_values() -> None:
    # Textbook: 8 of 10. z² = 3.841459; centre (0.8 + 0.192073)/1.384146 = 0.716740; half 1.959964/1.384146 ·
    # sqrt(0.016 + 0.00960365) = 0.226577. So (0.490163, 0.943317).
    assert statistics.wilson(8, 10) == pytest.approx((0.490163, 0.943317), abs=2e-6)
    # 0 of n: the upper end is z²/(n + z²) = 3.841459/13.841459.
    assert statistics.wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert statistics.wilson(10, 10) == (pytest.approx(1 - 0.277533, abs=1e-6), 1.0)
    # Half of n is symmetric about one half.
    low, high = statistics.wilson(256, 512)
    assert low + high == pytest.approx(1)
    assert high - low == pytest.approx(
        2 * 1.959964 * math.sqrt(0.25 / 512) / math.sqrt(1 + 3.841459 / 512), rel=1e-6
    )


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published_values(right: int, n: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (the score interval)."""
    assert statistics.wilson(right, n) == pytest.approx((low, high), abs=6e-5)
    # right and wrong are each other's mirror
    assert statistics.wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=6e-5)


def wilson_coverage(n: int, p_P: np.ndarray) -> np.ndarray:
    """Share of samples whose interval holds p, for each p: exact, the sum of the binomial distribution."""
    ends = np.array([statistics.wilson(k, n) for k in range(n + 1)])
    k_K = np.arange(n + 1)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in k_K])
    log_p = log_choose + k_K * np.log(p_P)[:, None] + (n - k_K) * np.log1p(-p_P)[:, None]
    covered = (ends[:, 0] <= p_P[:, None]) & (p_P[:, None] <= ends[:, 1])
    return np.asarray((np.exp(log_p) * covered).sum(axis=1))


@pytest.mark.parametrize("n", [50, 500, 512])
def test_wilson_coverage_averaged_over_p(n: int) -> None:
    """As Brown, Cai and DasGupta (Statist. Sci. 16, 2001) do: one p oscillates (k is whole), the average does not."""
    p_P = np.arange(0.05, 0.951, 0.05)
    coverage_P = wilson_coverage(n, p_P)
    assert 0.94 < coverage_P.mean() < 0.96
    assert 0.945 < wilson_coverage(n, np.linspace(0.05, 0.95, 901)).mean() < 0.955
    assert coverage_P.min() > 0.93
    assert coverage_P.max() < (0.97 if n >= 500 else 0.98)
    # and the same by simulation, seeded
    generator = np.random.default_rng(n)
    ends = np.array([statistics.wilson(k, n) for k in range(n + 1)])
    drawn = generator.binomial(n, p_P, (4000, len(p_P)))
    held = (ends[drawn, 0] <= p_P) & (p_P <= ends[drawn, 1])
    assert held.mean() == pytest.approx(coverage_P.mean(), abs=0.003)  # 76,000 draws: 3 standard errors


def paired_coverage(simulations: int, resamples: int = 2000) -> float:
    """n = 500; both right 45 %, only a 20 %, only b 12 %: the true difference is 0.08."""
    generator, held = np.random.default_rng(1), 0
    for seed in range(simulations):
        cell = generator.choice(4, 500, p=[0.45, 0.20, 0.12, 0.23])
        a, b = (cell == 0) | (cell == 1), (cell == 0) | (cell == 2)
        low, high = statistics.paired_bootstrap(a, b, seed, resamples)
        held += low <= 0.08 <= high
    return held / simulations


def pass_coverage(simulations: int, k: int, resamples: int = 2000) -> float:
    """n = 500 problems whose chance to be solved is Beta(1/2, 1), 8 samples each.

    E[pass@k] = 1 - E[(1 - p)^k] = 1 - Γ(1 + k) Γ(3/2) / (Γ(1) Γ(3/2 + k)).
    """
    truth = 1 - math.exp(math.lgamma(1 + k) + math.lgamma(1.5) - math.lgamma(1.5 + k))
    table = np.array([statistics.pass_at_k(8, c, k) for c in range(9)])
    generator, held = np.random.default_rng(2), 0
    for seed in range(simulations):
        right_N = generator.binomial(8, generator.beta(0.5, 1.0, 500))
        if k == 8:  # all or nothing: a share
            low, high = statistics.average(table[right_N], seed)["ci95"]
        else:
            low, high = statistics.bootstrap_ci(table[right_N], seed, resamples)
        held += low <= truth <= high
    return held / simulations


def test_bootstrap_coverage_quick() -> None:
    """80 simulations have a standard error of 2.4 %; the long test below is the measurement."""
    assert 0.88 < paired_coverage(80, 300) <= 0.99
    assert 0.88 < pass_coverage(80, 4, 300) <= 0.99
    assert 0.93 < pass_coverage(1000, 8) < 0.97


@pytest.mark.long
@pytest.mark.parametrize("k", [None, 1, 4])
def test_bootstrap_coverage(k: int | None) -> None:
    coverage = paired_coverage(1000) if k is None else pass_coverage(1000, k)
    print(f"coverage {k}: {coverage:.4f}")
    assert 0.93 < coverage < 0.97


def test_wilson_covers() -> None:
    # Coverage over n = 50, p = 0.3, computed exactly from the binomial: at least 93 % (nominal 95).
    n, p = 50, 0.3
    covered = 0.0
    for k in range(n + 1):
        low, high = statistics.wilson(k, n)
        covered += math.comb(n, k) * p**k * (1 - p) ** (n - k) * (low <= p <= high)
    assert 0.93 < covered < 0.97


def test_bootstrap_is_seeded_and_near_the_normal_interval() -> None:
    value_N = np.random.default_rng(0).normal(3, 2, 400)
    interval = statistics.bootstrap_ci(value_N, seed=1)
    assert interval == statistics.bootstrap_ci(value_N, seed=1)
    assert interval != statistics.bootstrap_ci(value_N, seed=2)
    half = 1.96 * value_N.std() / math.sqrt(400)
    # 2,000 resamples place a 2.5 % quantile to about 3 % of the half width.
    assert interval == pytest.approx((value_N.mean() - half, value_N.mean() + half), abs=0.1 * half)


def test_bootstrap_of_halves_is_the_binomial() -> None:
    """50 ones and 50 zeros: a resampled sum is Binomial(100, 1/2), whose 2.5 % and 97.5 % quantiles are 40 and 60
    (P(X <= 39) = 0.0176, P(X <= 40) = 0.0284)."""
    interval = statistics.bootstrap_ci([0.0, 1.0] * 50, seed=0, resamples=20_000)
    assert interval == pytest.approx((0.40, 0.60), abs=1e-12)


def test_mcnemar_by_hand() -> None:
    # Of 8 discordant pairs one goes to a: 2 · (C(8,0) + C(8,1)) / 2^8 = 18 / 256.
    assert statistics.mcnemar(1, 7) == statistics.mcnemar(7, 1) == 18 / 256
    assert statistics.mcnemar(0, 5) == 2 / 32
    assert statistics.mcnemar(0, 0) == statistics.mcnemar(3, 3) == 1.0
    assert statistics.mcnemar(2, 3) == 1.0  # 2 · (1 + 5 + 10) / 32 = 1
    # 1,200 against 1,000: z = (200 - 1) / sqrt(2200) = 4.243 (corrected for continuity), p = 2.2e-5.
    assert statistics.mcnemar(1200, 1000) == pytest.approx(2.2e-5, rel=0.03)
    with pytest.raises(AssertionError):
        statistics.mcnemar(-1, 2)


def test_pass_at_k_by_hand() -> None:
    assert statistics.pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)  # C(3,3) / C(5,3)
    assert statistics.pass_at_k(8, 1, 4) == pytest.approx(1 / 2)  # C(7,4) / C(8,4) = 35 / 70
    assert statistics.pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)  # C(7,5) / C(10,5)
    # Two problems, 4 samples each, one and none right: pass@2 = (1/2 + 0) / 2; pass@4 = (1 + 0) / 2, a share.
    right = [[True, False, False, False], [False] * 4]
    assert statistics.mean_pass_at_k(right, 2, seed=0)["mean"] == 0.25
    assert statistics.mean_pass_at_k(right, 4, seed=0) == statistics.proportion([True, False])


def test_bootstrap_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    value_N = np.arange(30.0)
    whole = statistics.bootstrap_ci(value_N, seed=5)
    monkeypatch.setattr(statistics, "_CHUNK", 100)
    assert statistics.bootstrap_ci(value_N, seed=5) == whole


def test_bootstrap_edges() -> None:
    assert statistics.bootstrap_ci([2.5], seed=0) == (2.5, 2.5)
    assert statistics.bootstrap_ci([1.0] * 9, seed=0) == (1.0, 1.0)


def test_pairs_are_tighter_than_their_parts() -> None:
    generator = np.random.default_rng(3)
    hard_N = generator.normal(0, 5, 200)  # difficulty that both share
    a_N, b_N = hard_N + generator.normal(1, 0.5, 200), hard_N + generator.normal(0, 0.5, 200)
    low, high = statistics.paired_bootstrap(a_N, b_N, seed=0)
    assert low < 1 < high
    assert high - low < 0.3
    low, high = statistics.bootstrap_ci(a_N, seed=0)
    assert high - low > 1
    with pytest.raises(AssertionError, match="equal shapes"):
        statistics.paired_bootstrap([1.0], [1.0, 2.0], seed=0)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    # The definition by enumeration, all n <= 6.
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                expected = sum(any(subset) for subset in subsets) / len(subsets)
                assert statistics.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)
    assert statistics.pass_at_k(8, 8, 8) == 1
    assert statistics.pass_at_k(200, 0, 100) == 0
    with pytest.raises(AssertionError):
        statistics.pass_at_k(4, 1, 5)


def test_summaries() -> None:
    empty = {"mean": None, "ci95": None}
    assert (
        statistics.proportion([]) == statistics.mean([], seed=0) == statistics.difference([], [], 0) == empty
    )
    right = [True] * 8 + [False] * 2
    assert statistics.average(right, seed=0) == statistics.proportion(right)
    assert statistics.average([0.5, 1.0], seed=0) == statistics.mean([0.5, 1.0], seed=0)
    assert statistics.average([], seed=0) == empty
    assert statistics.proportion(right) == {"mean": 0.8, "ci95": list(statistics.wilson(8, 10))}
    assert statistics.mean([1.0, 3.0], seed=0)["mean"] == 2
    found = statistics.difference([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], seed=0)
    assert found == {"mean": 1.0, "ci95": [1.0, 1.0]}
    # Two problems, 2 samples each: pass@1 = (1/2 + 0)/2.
    assert statistics.mean_pass_at_k([[True, False], [False, False]], 1, seed=0)["mean"] == 0.25
