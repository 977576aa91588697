"""Rewards of episodes to advantages and to what a critic learns: pure functions on float64 arrays.

Where a turn ends is said by the data (one array a turn), never guessed from rewards: VAGEN's first code took a reward
of exactly 0 for "no turn ends here" and lost such turns. How turns are laid out as prompts is of no concern here.

    turn_gae       one advantage a turn             RL4VLM (arXiv:2405.10292), VL-DAC (arXiv:2508.04280)
    token_gae      over all reply tokens in a row    PPO on whole episodes
    bi_level_gae   turns first, then tokens inside   VAGEN (arXiv:2510.16907)
    gigpo          without a critic, two levels      GiGPO (arXiv:2505.10978)

`bootstrap` is the critic's value after the last turn: 0 where the episode terminated, V of what comes next where it was
truncated or where a step saw only a part of it. Truncation is never taken for an end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

WHITEN_EPS = 1e-5
"""Added to the standard deviation (RL4VLM's code)."""


def gae(rewards: np.ndarray, values: np.ndarray, bootstrap: float, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates, float64 [K], of float [K] rewards and values (arXiv:1506.02438, equation 16).

        δ_k = r_k + γ V_{k+1} - V_k,    A_k = δ_k + γ λ A_{k+1},    V_K = bootstrap, A_K = 0

    What a critic learns is A + V. Example: gae(array([0., 1.]), array([.5, .5]), 0.0, 1.0, 1.0) == [.5, .5]
    """
    following = np.append(np.asarray(values, np.float64)[1:], bootstrap)
    delta = np.asarray(rewards, np.float64) + gamma * following - values
    advantages = np.zeros(len(delta))
    ahead = 0.0
    for k in range(len(delta) - 1, -1, -1):
        ahead = delta[k] + gamma * lam * ahead
        advantages[k] = ahead
    return advantages


def turn_gae(
    rewards: np.ndarray, values: Sequence[np.ndarray], bootstrap: float, gamma: float, lam: float
) -> list[np.ndarray]:
    """For each of K turns float64 [T_k], constant along it: `gae` of turns, a turn's value being that before its first
    token. `values`: [T_k] for each turn."""
    advantages = gae(rewards, np.array([value[0] for value in values]), bootstrap, gamma, lam)
    return [np.full(len(value), advantage) for value, advantage in zip(values, advantages, strict=True)]


def token_gae(
    rewards: np.ndarray, values: Sequence[np.ndarray], bootstrap: float, gamma: float, lam: float
) -> list[np.ndarray]:
    """For each of K turns float64 [T_k]: `gae` over the reply tokens of the whole episode in a row, what stands between
    them (observations) being no step; a turn's reward is given at its last token."""
    lengths = [len(value) for value in values]
    flat = np.zeros(sum(lengths))
    flat[np.cumsum(lengths) - 1] = rewards
    advantages = gae(flat, np.concatenate(values), bootstrap, gamma, lam)
    return np.split(advantages, np.cumsum(lengths)[:-1])


def bi_level_gae(
    rewards: np.ndarray,
    values: Sequence[np.ndarray],
    bootstrap: float,
    gamma: float,
    lam: float,
    token_gamma: float,
    token_lam: float,
) -> list[np.ndarray]:
    """For each of K turns float64 [T_k]. With e_k the last token of turn k:

        between turns    δ_k = r_k + γ V(e_{k+1}) - V(e_k),    A(e_k) = δ_k + γ λ A(e_{k+1}),    V(e_K) = bootstrap
        inside a turn    δ_t = γ' V_{t+1} - V_t,               A_t = δ_t + γ' λ' A_{t+1}        for t < e_k

    so that nothing is bootstrapped across turns on the level of tokens (VAGEN, section 3.3).
    """
    ends = np.array([value[-1] for value in values])
    found = []
    for value, last in zip(values, gae(rewards, ends, bootstrap, gamma, lam), strict=True):
        advantages = np.empty(len(value))
        advantages[-1] = ahead = last
        for t in range(len(value) - 2, -1, -1):
            ahead = token_gamma * value[t + 1] - value[t] + token_gamma * token_lam * ahead
            advantages[t] = ahead
        found.append(advantages)
    return found


def lumped(rewards: np.ndarray) -> np.ndarray:
    """Everything an episode earned at its last turn: what trainers of single turns do to episodes (a baseline).

    Example: lumped(array([1., -1., 2.])) == [0., 0., 2.]
    """
    moved = np.zeros(len(rewards))
    moved[-1] = np.sum(rewards)
    return moved


def to_go(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted return from each turn on, float64 [K]: R_k = r_k + γ R_{k+1}."""
    return gae(rewards, np.zeros(len(rewards)), 0.0, gamma, 1.0)


def gigpo(
    rewards: Sequence[np.ndarray],
    anchors: Sequence[Sequence[str]],
    groups: Sequence[int],
    *,
    gamma: float,
    weight: float,
    by_std: bool,
    eps: float = 1e-6,
) -> list[np.ndarray]:
    """For each trajectory float64 [K]: A = A_E + ω A_S, without a critic (GiGPO, equations 4 to 8).

        A_E   the episode's sum of rewards, among those of its group (same beginning)
        A_S   the discounted return from a turn on, among all turns of the group that saw the same (`anchors`)

    Both: minus the mean, divided by the standard deviation + eps where `by_std`. A state that was seen once has
    A_S = 0, an episode alone in its group A_E = 0. `groups`: of each trajectory; `weight`: ω.
    """
    totals: dict[int, list[float]] = defaultdict(list)
    seen: dict[tuple[int, str], list[float]] = defaultdict(list)
    returns = [to_go(reward, gamma) for reward in rewards]
    for group, reward, names, ahead in zip(groups, rewards, anchors, returns, strict=True):
        totals[group].append(float(np.sum(reward)))
        for name, value in zip(names, ahead, strict=True):
            seen[group, name].append(float(value))

    def relative(value: float, among: list[float]) -> float:
        if len(among) < 2 or all(other == among[0] for other in among):
            return 0.0
        scale = float(np.std(among, ddof=1)) + eps if by_std else 1.0
        return (value - float(np.mean(among))) / scale

    return [
        np.array(
            [
                relative(float(np.sum(reward)), totals[group])
                + weight * relative(float(value), seen[group, name])
                for value, name in zip(ahead, names, strict=True)
            ]
        )
        for group, reward, names, ahead in zip(groups, rewards, anchors, returns, strict=True)
    ]


def whitened(advantages: Sequence[np.ndarray], count: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Minus the mean, divided by the standard deviation, both over the places where `count` (same shapes) is not 0.

    RL4VLM's code: (A - mean) / (std + 1e-5), the sample standard deviation, over the turns of the whole rollout. With
    fewer than two places, or all equal, everything is 0.
    """
    chosen = np.concatenate([a[c != 0] for a, c in zip(advantages, count, strict=True)])
    if len(chosen) < 2 or bool((chosen == chosen[0]).all()):
        return [np.zeros(len(a)) for a in advantages]
    mean, std = chosen.mean(), chosen.std(ddof=1)
    return [(a - mean) / (std + WHITEN_EPS) for a in advantages]
