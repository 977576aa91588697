"""An engine that replies from a script: for tests, docs and tasks without a model. No torch, no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fovea.types import Completion, Problem, Sampling


def utf8_tokens(text: str) -> np.ndarray:
    """int64 [T]: the bytes of `text` and 0 as end token; a stand-in where no tokenizer is at hand."""
    return np.array([*text.encode("utf-8"), 0], dtype=np.int64)


class ScriptedEngine:
    """Says what `reply(problem, sample)` returns, with log-prob 0 (a certain reply).

    Example: ScriptedEngine(lambda problem, sample: f"<answer>{sample}</answer>")
    """

    def __init__(
        self, reply: Callable[[Problem, int], str], encode: Callable[[str], np.ndarray] = utf8_tokens
    ) -> None:
        """`encode`: text -> token ids with the end token last, for example `policy.encode_reply`."""
        self._reply = reply
        self._encode = encode
        self._version = 0

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
        """The scripted replies, cut at `max_new_tokens`. `seed`, `draw` and `entropies` change nothing."""
        return [tuple(self._say(prompt.problem, i, sampling) for i in range(group)) for prompt in prompts]

    def load_weights(self, policy: Any) -> None:
        """Only the version number is taken."""
        self._version = policy.version

    def _say(self, problem: Problem, sample: int, sampling: Sampling) -> Completion:
        text = self._reply(problem, sample)
        tokens = self._encode(text)
        whole = len(tokens) <= sampling.max_new_tokens
        tokens = tokens[: sampling.max_new_tokens]
        return Completion(
            token_ids=tokens,
            log_probs=np.zeros(len(tokens), dtype=np.float32),
            text=text,
            stop="eos" if whole else "length",
            policy_version=self._version,
        )
