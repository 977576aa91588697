"""ε by what it does: a controller on the reward gap between the halves and on the entropy gain. A *reconstruction*.

Nothing of the kind is known of SaEI. It is there because ε must be fitted to the model: with 4/255 on a small model the
second half's reward fell by a third (docs/saei.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class EpsilonControl:
    """Holds ε, a whole number of 1/255 steps from `least` to `most`. Deterministic; its state is in checkpoints.

    After `window` steps with a second phase: one step down if the second half earned less than `low` of what the first
    half earned, or the entropy of the selected tokens grew by more than `max_gain` nats in the mean; one up if it
    earned at least `high` of it. Where the first half earned nothing rewards say nothing.
    """

    most: int
    low: float = 0.75
    high: float = 0.95
    max_gain: float = 1.0
    window: int = 8
    least: int = 1
    epsilon: int = 0
    """0: begins at `most`."""
    _clean: float = 0.0
    _changed: float = 0.0
    _gains: list[float] = field(default_factory=list)
    _steps: int = 0

    def __post_init__(self) -> None:
        self.epsilon = self.epsilon or self.most

    def observe(self, clean: float, changed: float, gain: float | None) -> None:
        """A step's mean rewards of the two halves, and the entropy gain in nats where it was measured."""
        self._clean, self._changed, self._steps = (
            self._clean + clean,
            self._changed + changed,
            self._steps + 1,
        )
        if gain is not None:
            self._gains.append(gain)
        if self._steps < self.window:
            return
        too_much = bool(self._gains) and sum(self._gains) / len(self._gains) > self.max_gain
        earned = self._clean > 0
        if too_much or (earned and self._changed < self.low * self._clean):
            self.epsilon = max(self.least, self.epsilon - 1)
        elif earned and self._changed >= self.high * self._clean:
            self.epsilon = min(self.most, self.epsilon + 1)
        self._clean, self._changed, self._gains, self._steps = 0.0, 0.0, [], 0

    def state(self) -> dict[str, Any]:
        return {
            "epsilon": self.epsilon,
            "clean": self._clean,
            "changed": self._changed,
            "gains": list(self._gains),
            "steps": self._steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.epsilon = int(state["epsilon"])
        self._clean, self._changed = float(state["clean"]), float(state["changed"])
        self._gains, self._steps = [float(x) for x in state["gains"]], int(state["steps"])
