"""Model families behind one small adapter, the policy, and the shared prefix."""

from __future__ import annotations

from fovea.models.adapter import Family, Prompt
from fovea.models.families import FAMILIES
from fovea.models.policy import Policy, answers_untold, load_policy
from fovea.models.shared_prefix import Prefix, backward, prefill, score

__all__ = [
    "FAMILIES",
    "Family",
    "Policy",
    "Prefix",
    "Prompt",
    "answers_untold",
    "backward",
    "load_policy",
    "prefill",
    "score",
]
