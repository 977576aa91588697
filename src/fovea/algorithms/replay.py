"""Selective sample replay: completions with an advantage are kept and fill the place of rows without one.

After VL-Rethinker (arXiv:2504.08837): as training goes on more and more groups have equal rewards, so the effective
batch shrinks; SSR fills it up with earlier completions, drawn with probability |A|^α / Σ |A|^α.

The released code keeps a queue of half its batch buffer and fills a batch of those with an advantage up from it; here
every row without one gives its place to a kept completion, and the queue is as long as the recipe says.

What is kept is self-contained and small: the problem's position in its task, token ids, log-probs of the policy that
sampled, advantage. The prompt is made again when it is needed. Not here: that, and the update (`fovea.training`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fovea.config import AlgorithmSection
from fovea.types import Replay, Sample

ALPHA = 1.0
"""α where the recipe says nothing: that of the released code."""
AGE = 8
"""Steps that a completion is kept where the recipe says nothing; our choice (the paper: a recent window)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One completion with all that is needed to learn from it again."""

    position: int
    """Cursor of its task with which its problem is taken (or, past bad samples, a little later: see `problem`)."""
    problem: str
    """The problem's id, to recognise it by."""
    token_ids: np.ndarray
    """int64 [T]."""
    old_log_probs: np.ndarray
    """float32 [T], of the policy that sampled it: never recomputed, so that the ratio stays an importance ratio."""
    reference_log_probs: np.ndarray | None
    """float32 [T], or None where the algorithm has no reference."""
    advantage: np.ndarray
    """float32 [T], as it was in its own group."""
    policy_version: int
    """Updates that the policy that sampled it had seen."""
    step: int
    """Step in which it was sampled."""
    correction: np.ndarray | None = None
    """float32 [T], the importance weights against its engine, or None where the algorithm has none."""

    @property
    def weight(self) -> float:
        """Mean |A| over its tokens."""
        return float(np.abs(self.advantage.astype(np.float64)).mean())


@dataclass(kw_only=True, slots=True)
class SelectiveReplay:
    """At most `capacity` completions, the newest, none older than `age` steps.

    Example: SelectiveReplay(capacity=512)
    """

    capacity: int
    alpha: float = ALPHA
    age: int = AGE
    kept: list[Stored] = field(default_factory=list)

    def add(self, samples: Sequence[Sample], step: int) -> None:
        """Keep those that have an advantage; they need `Sample.position`."""
        for sample in samples:
            if not bool((sample.weights * sample.advantage).any()):
                continue
            assert sample.position is not None, "a sample without its problem's position cannot be kept"
            self.kept.append(
                Stored(
                    position=sample.position,
                    problem=sample.trained_prompt.problem.id,
                    token_ids=sample.token_ids,
                    old_log_probs=sample.old_log_probs,
                    reference_log_probs=sample.reference_log_probs,
                    advantage=sample.advantage,
                    policy_version=sample.policy_version,
                    step=step,
                    correction=sample.correction,
                )
            )
        self.kept = self.kept[max(0, len(self.kept) - self.capacity) :]

    def draw(self, n: int, *, seed: tuple[int, int]) -> list[Stored]:
        """At most `n` different ones, with weight |A|^α; what is too old is dropped first.

        `seed`: (run's seed, step); the same buffer and seed give the same draw.
        """
        step = seed[1]
        self.kept = [one for one in self.kept if step - one.step <= self.age]
        n = min(n, len(self.kept))
        if n == 0:
            return []
        weights = np.array([one.weight for one in self.kept]) ** self.alpha
        generator = np.random.default_rng(np.random.SeedSequence([*seed, 0x5E1EC7]))
        chosen = generator.choice(len(self.kept), size=n, replace=False, p=weights / weights.sum())
        return [self.kept[i] for i in sorted(chosen)]

    def state(self) -> dict[str, Any]:
        """JSON in which NumPy arrays stand: rows one after another, and their lengths."""
        kept, none = self.kept, np.zeros(0, np.float32)
        references = [one.reference_log_probs for one in kept]
        corrections = [one.correction for one in kept]
        return {
            "rows": [[one.position, one.problem, one.policy_version, one.step] for one in kept],
            "lengths": [len(one.token_ids) for one in kept],
            "referenced": [reference is not None for reference in references],
            "corrected": [correction is not None for correction in corrections],
            "token_ids": np.concatenate([np.zeros(0, np.int64), *(one.token_ids for one in kept)]),
            "old_log_probs": np.concatenate([none, *(one.old_log_probs for one in kept)]),
            "advantage": np.concatenate([none, *(one.advantage for one in kept)]),
            "reference_log_probs": np.concatenate([none, *(r for r in references if r is not None)]),
            "correction": np.concatenate([none, *(c for c in corrections if c is not None)]),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken of; one of before `correction` was kept has none."""
        ends = np.cumsum(state["lengths"], dtype=np.int64)[:-1]
        parts = {
            name: np.split(np.asarray(state[name]), ends)
            for name in ("token_ids", "old_log_probs", "advantage")
        }
        references = _some(state, "referenced", "reference_log_probs")
        corrections = _some(state, "corrected", "correction")
        self.kept = [
            Stored(
                position=position,
                problem=problem,
                policy_version=version,
                step=step,
                token_ids=parts["token_ids"][i],
                old_log_probs=parts["old_log_probs"][i],
                advantage=parts["advantage"][i],
                reference_log_probs=references[i],
                correction=corrections[i],
            )
            for i, (position, problem, version, step) in enumerate(state["rows"])
        ]


def _some(state: Mapping[str, Any], there: str, name: str) -> list[np.ndarray | None]:
    """The rows of an array that not every completion has: None where `there` is false, or no such key."""
    lengths, has = state["lengths"], state.get(there) or [False] * len(state["lengths"])
    ends = np.cumsum([n for n, one in zip(lengths, has, strict=True) if one], dtype=np.int64)
    parts = iter(np.split(np.asarray(state[name]), ends[:-1]) if len(ends) else [])
    return [next(parts) if one else None for one in has]


def make_replay(section: AlgorithmSection) -> Replay | None:
    """What the `algorithm:` section asks for; None without `replay`."""
    if section.replay == 0:
        return None
    return SelectiveReplay(
        capacity=section.replay,
        alpha=ALPHA if section.replay_alpha is None else section.replay_alpha,
        age=AGE if section.replay_age is None else section.replay_age,
    )
