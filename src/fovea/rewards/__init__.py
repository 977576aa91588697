"""Rewards that can be checked, built in or the user's own: text and problem in, a number out. No torch."""

from fovea.rewards.answers import answer_of, has_format, read_box, read_choice, read_number
from fovea.rewards.functions import (
    REWARDS,
    box_iou,
    check_weights,
    correct,
    default_rewards,
    is_reference,
    parse_weights,
    score_json,
    weigh,
)
from fovea.rewards.journal import Journal, RewardEvent
from fovea.rewards.scorer import Job, Scorer, ScorerSettings, Scores, make_scorer

__all__ = [
    "REWARDS",
    "Job",
    "Journal",
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
    "make_scorer",
    "parse_weights",
    "read_box",
    "read_choice",
    "read_number",
    "score_json",
    "weigh",
]
