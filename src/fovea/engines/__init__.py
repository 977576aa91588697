"""Engines: things that sample. One method wide, so that a scripted fake or a server fits behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fovea.types import Completion, Sampling


class Engine(Protocol):
    """Samples groups of completions. `prompts` are `fovea.models.Prompt` (Any: an engine may only need the
    text)."""

    def generate(
        self,
        prompts: Sequence[Any],
        group: int,
        sampling: Sampling,
        *,
        seed: tuple[int, int],
        draw: int = 0,
        entropies: bool = False,
    ) -> list[tuple[Completion, ...]]:
        """`group` completions for each prompt, in order. `seed`: (run's seed, step); `draw`: which sampling
        phase; `entropies`: `Completion.entropies` are wanted, too, if they cost little."""
        ...

    def load_weights(self, policy: Any) -> None:
        """Take the policy's current weights (nothing to do where they are shared)."""
        ...


__all__ = ["Engine"]
