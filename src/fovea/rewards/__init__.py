"""Rewards that can be checked, built in or the user's own: text and problem in, a number out. No torch."""

from fovea.rewards.answers import answer_of, has_format, read_box, read_choice, read_number
from fovea.rewards.functions import (
    REWARDS,
    box_iou,
    check_weights,
    correct,
    default_rewards,
    is_reference,
    measurable,
    parse_weights,
    weigh,
)
from fovea.rewards.journal import Journal, RewardEvent
from fovea.rewards.one_reply import list_rewards, score_json
from fovea.rewards.options import Options, with_compat
from fovea.rewards.scorer import Job, Scorer, ScorerSettings, Scores, make_scorer

__all__ = [
    "REWARDS",
    "Job",
    "Journal",
    "Options",
    "RewardEvent",
    "Scorer",
    "ScorerSettings",
    "Scores",
    "answer_of",
    "box_iou",
    "check_weights",
    "correct",
    "default_rewards",
    "has_format",
    "is_reference",
    "list_rewards",
    "make_scorer",
    "measurable",
    "parse_weights",
    "read_box",
    "read_choice",
    "read_number",
    "score_json",
    "weigh",
    "with_compat",
]
