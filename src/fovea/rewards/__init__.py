"""Rewards that can be checked: text and problem in, a number out. No torch."""

from fovea.rewards.answers import answer_of, has_format, read_box, read_choice, read_number
from fovea.rewards.functions import (
    REWARDS,
    box_iou,
    check_weights,
    correct,
    default_rewards,
    parse_weights,
    score_json,
    weigh,
)

__all__ = [
    "REWARDS",
    "answer_of",
    "box_iou",
    "check_weights",
    "correct",
    "default_rewards",
    "has_format",
    "parse_weights",
    "read_box",
    "read_choice",
    "read_number",
    "score_json",
    "weigh",
]
