"""Where in a reply's tokens a part of its text begins."""

from __future__ import annotations

import numpy as np

from fovea.models import Policy


def action_start(policy: Policy, token_ids: np.ndarray, text_offset: int) -> int:
    """Index of the first token whose text reaches beyond character `text_offset`; the number of tokens if none does."""
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if len(policy.decode(token_ids[: middle + 1])) > text_offset:
            high = middle
        else:
            low = middle + 1
    return low
