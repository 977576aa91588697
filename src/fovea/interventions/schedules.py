"""How strong an intervention is at a step of the run: a factor from 1 (as configured) to 0 (switched off).

    factor("linear", 30, 60)     0.5

Not here: what the factor multiplies (an epsilon, a noise level), and when that is too small to be worth a try.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

ScheduleName = Literal["constant", "linear", "cosine", "sigmoid"]

STEEPNESS = 30.0
"""λ of NoisyRollout's Geometry3K runs; its K12 runs have 60."""
MIDDLE = 2 / 3
"""γ / T of NoisyRollout's Geometry3K runs: step 40 of 60."""


def factor(
    name: ScheduleName, step: int, steps: int, *, steepness: float = STEEPNESS, middle: float = MIDDLE
) -> float:
    """0 to 1: what an intervention's strength is multiplied with at `step` (0 is the first) of `steps`.

        constant    1
        linear      1 - t/T
        cosine      (1 + cos(π t/T)) / 2
        sigmoid     1 - 1 / (1 + exp(-λ (t - γ) / T))     NoisyRollout (arXiv:2504.13055), γ = middle · T

    `steepness` (λ > 0) and `middle` (0 to 1) are of the sigmoid alone. A step after the last counts as t = T. Raises
    ValueError for a name that is none of these, a negative step and a run without steps.

    Example: int(500 * factor("sigmoid", 35, 60)) == 462
    """
    if name not in get_args(ScheduleName):
        raise ValueError(f"no schedule is called {name!r}: use {', '.join(get_args(ScheduleName))}")
    if steps < 1 or step < 0:
        raise ValueError(f"a schedule needs 0 <= step and 1 <= steps, not step {step} of {steps}")
    done = min(step / steps, 1.0)
    at: dict[str, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "linear": lambda: 1.0 - done,
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * done)),
        # The same number as in the equation; exp would overflow for a steep one.
        "sigmoid": lambda: 0.5 * (1.0 - math.tanh(0.5 * steepness * (done - middle))),
    }
    return at[name]()
