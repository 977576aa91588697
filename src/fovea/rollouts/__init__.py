"""Problems × engine → groups with rewards → samples with advantages and loss weights. Single-turn for now.

Not here: how replies are drawn (`engines`, `phases`), what they are worth (`rewards`), the update (`training`).
"""

from fovea.rollouts.drawing import collect, rollout_metrics, shown
from fovea.rollouts.problems import BadSample, Chosen, Gathered, gather, without_bad
from fovea.rollouts.samples import (
    Line,
    fill,
    has_signal,
    learned_rewards,
    line_advantages,
    lines_of,
    minibatches,
    reweigh,
    to_samples,
)

__all__ = [
    "BadSample",
    "Chosen",
    "Gathered",
    "Line",
    "collect",
    "fill",
    "gather",
    "has_signal",
    "learned_rewards",
    "line_advantages",
    "lines_of",
    "minibatches",
    "reweigh",
    "rollout_metrics",
    "shown",
    "to_samples",
    "without_bad",
]
