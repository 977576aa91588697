"""Means with their uncertainty: intervals, paired differences, pass@k. NumPy only, every draw seeded.

Not here: which quantities are reported (`fovea.evaluation`).

Try it: `wilson(8, 10)` gives (0.490, 0.943).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

Interval: TypeAlias = tuple[float, float]

Z95 = 1.959964
"""The 97.5 % point of the standard normal distribution."""

_CHUNK = 4_000_000
"""Resampled values held at once (32 MB of float64)."""


def wilson(successes: float, n: int, z: float = Z95) -> Interval:
    """Score interval of a proportion, clipped to [0, 1].

        p = successes / n,    centre = (p + z²/2n) / (1 + z²/n),
        half = z/(1 + z²/n) · sqrt(p(1 - p)/n + z²/4n²)              Wilson, JASA 22 (1927)

    Unlike p ± z·sqrt(p(1 - p)/n) it has a width at 0 of n and n of n. Needs 0 <= successes <= n and n >= 1.
    """
    assert n >= 1, "an empty sample has no proportion"
    assert 0 <= successes <= n, f"{successes} successes of {n}"
    p = successes / n
    shrink = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 of n and n of n the ends are 0 and 1 in exact arithmetic: rounding must not leave 1e-17 instead.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def bootstrap_ci(values: ArrayLike, seed: int, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean of `values` [n], n >= 1 (Efron, Ann. Statist. 7, 1979).

    Draws n values with replacement `resamples` times and returns the (1 ± level)/2 quantiles of their
    means (linear interpolation). The values are independent units: problems, not tokens. With n = 1 it has
    no width.
    """
    means = _resampled_means(np.asarray(values, dtype=np.float64), seed, resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap(a: ArrayLike, b: ArrayLike, seed: int, resamples: int = 2000) -> Interval:
    """95 % bootstrap interval of mean(a - b) for `a`, `b` [n] measured on the same n units.

    Units are resampled as pairs, so what both share (a hard problem) does not widen the interval.
    """
    a_N, b_N = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a_N.shape == b_N.shape, f"pairs need equal shapes, got {a_N.shape} and {b_N.shape}"
    return bootstrap_ci(a_N - b_N, seed, resamples)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right, from c right of n, in [0, 1].

        pass@k = 1 - C(n - c, k) / C(n, k) = 1 - Π_{i=n-c+1..n} (1 - k/i)     Chen et al., arXiv:2107.03374

    Needs 1 <= k <= n and 0 <= c <= n. Average it over problems.
    """
    assert 1 <= k <= n, f"pass@{k} needs at least {k} samples, got {n}"
    assert 0 <= c <= n, f"{c} right of {n}"
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test, in (0, 1], from the pairs in which one of two is right.

        p = min(1, 2 · Σ_{i <= min(b, c)} C(b + c, i) / 2^(b + c))     McNemar, Psychometrika 12 (1947), exact form

    Under the null each of the b + c discordant pairs is a fair coin. Needs counts >= 0; with none p is 1.
    """
    assert only_a >= 0 <= only_b, f"counts cannot be negative: {only_a}, {only_b}"
    pairs = only_a + only_b
    tail, term = 0, 1  # term = C(pairs, i), exact whole numbers
    for i in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (pairs - i) // (i + 1)
    return min(1.0, 2 * tail / 2**pairs)


def proportion(successes: ArrayLike) -> dict[str, Any]:
    """{"mean", "ci95"} of right-or-wrong outcomes [n], interval by `wilson`; both None for n = 0, never 0."""
    outcome_N = np.asarray(successes, dtype=np.float64)
    if outcome_N.size == 0:
        return {"mean": None, "ci95": None}
    return {"mean": float(outcome_N.mean()), "ci95": list(wilson(float(outcome_N.sum()), outcome_N.size))}


def mean(values: ArrayLike, seed: int) -> dict[str, Any]:
    """{"mean", "ci95"} of any numbers [n], interval by `bootstrap_ci`; both None for n = 0."""
    value_N = np.asarray(values, dtype=np.float64)
    if value_N.size == 0:
        return {"mean": None, "ci95": None}
    return {"mean": float(value_N.mean()), "ci95": list(bootstrap_ci(value_N, seed))}


def average(values: ArrayLike, seed: int) -> dict[str, Any]:
    """{"mean", "ci95"}: `proportion` where all values [n] are 0 or 1, else `mean`.

    A bootstrap of values that are all equal has no width, however few they are; Wilson's interval has one.
    """
    value_N = np.asarray(values, dtype=np.float64)
    return proportion(value_N) if np.isin(value_N, (0.0, 1.0)).all() else mean(value_N, seed)


def difference(a: ArrayLike, b: ArrayLike, seed: int) -> dict[str, Any]:
    """{"mean", "ci95"} of a - b over the same units [n] by `paired_bootstrap`; both None for n = 0."""
    a_N, b_N = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_N.size == 0 and b_N.size == 0:
        return {"mean": None, "ci95": None}
    interval = paired_bootstrap(a_N, b_N, seed)
    return {"mean": float((a_N - b_N).mean()), "ci95": list(interval)}


def mean_pass_at_k(right: Sequence[Sequence[bool]], k: int, seed: int) -> dict[str, Any]:
    """{"mean", "ci95"} of pass@k over problems; `right[i]`: outcomes of problem i's n_i >= k samples.

    Interval by `average`: problems are the independent units; with k = n_i each is a hit or a miss.
    """
    return average([pass_at_k(len(outcomes), int(sum(outcomes)), k) for outcomes in right], seed)


def _resampled_means(value_N: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of `resamples` draws with replacement, float64 [resamples], in chunks that bound the memory."""
    assert value_N.ndim == 1, f"need values [n], got shape {value_N.shape}"
    assert value_N.size >= 1, "an empty sample has no mean"
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // value_N.size)
    chunks = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), value_N.size)
        chunks.append(value_N[generator.integers(0, value_N.size, shape)].mean(axis=1))
    return np.concatenate(chunks)
