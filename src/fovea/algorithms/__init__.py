"""Advantages, losses, denominators, loss terms and replay: values and pure functions of tensors.

    ALGORITHMS["dapo"]          one row of the table (`table`)
    step_advantages(...)        rewards to advantages (`advantages`)
    token_weights, token_loss   the loss as a plain sum over tokens (`loss`)
    loss_terms(section)         entropy bonus, top-entropy tokens, Clip-Cov, KL-Cov (`terms`), PAPO (`papo`)
    SelectiveReplay(...)        samples kept for later steps (`replay`)

Not here: sampling, forward passes, the optimizer (`fovea.training`).
"""

from fovea.algorithms.advantages import (
    Moments,
    Reduce,
    alone,
    group_advantages,
    overlong_penalty,
    step_advantages,
)
from fovea.algorithms.loss import (
    LOG_RATIO_LIMIT,
    RatioSums,
    Totals,
    clip_decides,
    importance_correction,
    kl_estimates,
    ratio_sums,
    sequence_log_ratios,
    token_loss,
    token_ratio,
    token_weights,
    totals,
    value_errors,
)
from fovea.algorithms.papo import MASKED, TRAINED, Papo, perception_kl
from fovea.algorithms.replay import SelectiveReplay, Stored, make_replay
from fovea.algorithms.table import ALGORITHMS, Algorithm, Denominator, algorithm_of, find_algorithm
from fovea.algorithms.terms import (
    ClipCov,
    EntropyBonus,
    KlCov,
    TopEntropy,
    loss_terms,
)
from fovea.algorithms.token_view import TokenView

__all__ = [
    "ALGORITHMS",
    "LOG_RATIO_LIMIT",
    "MASKED",
    "TRAINED",
    "Algorithm",
    "ClipCov",
    "Denominator",
    "EntropyBonus",
    "KlCov",
    "Moments",
    "Papo",
    "RatioSums",
    "Reduce",
    "SelectiveReplay",
    "Stored",
    "TokenView",
    "TopEntropy",
    "Totals",
    "algorithm_of",
    "alone",
    "clip_decides",
    "find_algorithm",
    "group_advantages",
    "importance_correction",
    "kl_estimates",
    "loss_terms",
    "make_replay",
    "overlong_penalty",
    "perception_kl",
    "ratio_sums",
    "sequence_log_ratios",
    "step_advantages",
    "token_loss",
    "token_ratio",
    "token_weights",
    "totals",
    "value_errors",
]
