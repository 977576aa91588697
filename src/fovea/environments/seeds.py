"""What an episode is seeded with."""

from __future__ import annotations

import zlib

import numpy as np


def episode_seed(seed: int, split: str, number: int) -> int:
    """Of episode `number`, below 2^32: a function of the three, so that splits never share an episode."""
    state = np.random.SeedSequence([seed, zlib.crc32(split.encode()), number]).generate_state(1)
    return int(state[0])
