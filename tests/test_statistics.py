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
    assert statistics.proportion(right) == {"mean": 0.8, "ci95": list(statistics.wilson(8, 10))}
    assert statistics.mean([1.0, 3.0], seed=0)["mean"] == 2
    found = statistics.difference([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], seed=0)
    assert found == {"mean": 1.0, "ci95": [1.0, 1.0]}
    # Two problems, 2 samples each: pass@1 = (1/2 + 0)/2.
    assert statistics.mean_pass_at_k([[True, False], [False, False]], 1, seed=0)["mean"] == 0.25
