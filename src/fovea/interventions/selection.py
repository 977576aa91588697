"""TsEC: which tokens' entropy an attack is to raise. A *reconstruction* (docs/saei.md).

SaEI's page says that moderately uncertain tokens are chosen and that knowledge must not be distorted; thresholds, their
scope and whether they are quantiles could not be found. The default is a band of quantiles over all content tokens of a
problem's clean completions. Why a band: tokens of low entropy carry what the model knows (half of all tokens are below
0.01 nat, one in five above 0.672, arXiv:2506.01939 §3); at the highest ones dH/dz = -p (log p + H) goes to 0 as p
becomes uniform, so that they cost budget and give nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["all", "top_fraction", "bottom_fraction", "band_quantile", "band_absolute"]
Scope = Literal["completion", "group", "batch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selector:
    """Which content tokens are selected, by entropy. Example: Selector(kind="band_quantile", low=0.6, high=0.95)"""

    kind: Kind = "band_quantile"
    fraction: float = 0.2
    """Of `top_fraction` and `bottom_fraction`: share of the tokens in the scope, 0 to 1."""
    low: float = 0.60
    """Lower end of a band: a quantile (0 to 1), or nats."""
    high: float = 0.95
    """Upper end, included."""
    scope: Scope = "group"
    """Over which tokens quantiles are taken: those of a completion, of a problem's completions, of all problems'."""


def select(
    entropies: Sequence[Sequence[np.ndarray]], content: Sequence[Sequence[np.ndarray]], selector: Selector
) -> list[tuple[np.ndarray, ...]]:
    """bool [T_i] for every completion of every problem. `entropies`, `content`: [problems][completions] of [T_i].

    Quantiles interpolate linearly; tokens at a threshold are selected. Where a scope has no content token nothing is.
    """
    every = _flat([e[c] for problem, valid in zip(entropies, content) for e, c in zip(problem, valid)])
    found = []
    for problem, valid in zip(entropies, content, strict=True):
        group = _flat([e[c] for e, c in zip(problem, valid)])
        masks = []
        for entropy_T, content_T in zip(problem, valid, strict=True):
            own = entropy_T[content_T]
            scope = {"completion": own, "group": group, "batch": every}[selector.scope]
            low, high = _ends(scope, selector)
            masks.append(content_T & (entropy_T >= low) & (entropy_T <= high))
        found.append(tuple(masks))
    return found


def _ends(scope: np.ndarray, selector: Selector) -> tuple[float, float]:
    """Least and greatest entropy that is selected."""
    kind = selector.kind
    if kind == "all":
        return -np.inf, np.inf
    if kind == "band_absolute":
        return selector.low, selector.high
    if not len(scope):
        return np.inf, -np.inf
    if kind == "top_fraction":
        return float(np.quantile(scope, 1 - selector.fraction)), np.inf
    if kind == "bottom_fraction":
        return -np.inf, float(np.quantile(scope, selector.fraction))
    return float(np.quantile(scope, selector.low)), float(np.quantile(scope, selector.high))


def _flat(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) else np.zeros(0, np.float32)


def mean_weights(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """float32 [T_i]: of L = (1/n) Σ_i Σ_t m_i,t H_i,t / max(1, Σ_t m_i,t), the mean of one problem's n completions.

    The unselected form of the objective is quoted by a review of SaEI (docs/saei.md); the mask in it is ours.
    """
    return tuple((mask / (len(masks) * max(1.0, float(mask.sum())))).astype(np.float32) for mask in masks)
