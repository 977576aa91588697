"""Groups → samples: under which prompt a completion is trained, its advantage and its loss weights.

Not here: forward passes and the update (`fovea.training`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fovea.algorithms import (
    Algorithm,
    Reduce,
    Stored,
    alone,
    importance_correction,
    kl_estimates,
    overlong_penalty,
    step_advantages,
    token_weights,
    totals,
)
from fovea.models import Prompt
from fovea.types import (
    Completion,
    Group,
    Sample,
)


def learned_rewards(group: Group, algorithm: Algorithm, longest: int) -> np.ndarray:
    """float64 [G]: the rewards that advantages are made of, the length penalty included."""
    lengths = np.array([len(completion.token_ids) for completion in group.completions])
    return group.rewards + overlong_penalty(lengths, longest, algorithm.overlong)


def has_signal(group: Group, algorithm: Algorithm, longest: int, baseline: str = "pooled") -> bool:
    """Whether the group's rewards differ, so that a baseline leaves something (NaN: not rewarded).

    `baseline`: with "halves" those of a phase must differ; see `line_advantages`.
    """
    rewards = [learned_rewards(group, algorithm, longest)]
    if baseline == "halves":
        rewards = _by_phase([group], rewards)
    given = [values[~np.isnan(values)] for values in rewards]
    return any(len(values) > 0 and bool((values != values[0]).any()) for values in given)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A completion and the prompt that it is trained under."""

    group: int
    completion: Completion
    sampled: Prompt
    trained: Prompt

    @property
    def row(self) -> np.ndarray:
        """int64 [T]."""
        return self.completion.token_ids

    @property
    def moved(self) -> bool:
        """Whether it is trained under another prompt than it was sampled under."""
        return self.sampled is not self.trained


def lines_of(groups: Sequence[Group], ratio: str = "clean") -> list[Line]:
    """What is learned from, in order: one line a completion, or with "shared" one for every prompt of its group.

    clean, corrected    under the group's own prompt
    adversarial         under the prompt that it was sampled under
    shared              under every prompt of the group (R1-ShareVL, arXiv:2505.16673), its own first
    """
    lines = []
    for g, group in enumerate(groups):
        for completion in group.completions:
            sampled = group.variants.get(completion.variant, group.prompt)
            if ratio == "shared":
                every = [group.prompt, *group.variants.values()]
                prompts = [sampled, *(prompt for prompt in every if prompt is not sampled)]
            else:
                prompts = [sampled if ratio == "adversarial" else group.prompt]
            lines += [Line(group=g, completion=completion, sampled=sampled, trained=p) for p in prompts]
    return lines


def to_samples(
    groups: Sequence[Group],
    algorithm: Algorithm,
    longest: int,
    *,
    reference: Sequence[np.ndarray] | None = None,
    recomputed: Sequence[np.ndarray] | None = None,
    positions: Sequence[int] | None = None,
    reduce: Reduce = alone,
    ratio: str = "clean",
    baseline: str = "pooled",
) -> list[Sample]:
    """One sample a line (`lines_of`), in order.

    `longest`: the generation budget (Dr. GRPO's denominator). `reference`, `recomputed`: float32 [T] for each
    line, log-probs of the reference policy and of the trainer's policy where the algorithm asks for them;
    `positions`: each group's cursor (for replay). `reduce` adds counts over workers: denominators and batch
    statistics are of all workers' groups. `ratio`, `baseline`: as `InterventionSection` says.
    """
    lines = lines_of(groups, ratio)
    masks = [_mask(line.completion, algorithm) for line in lines]
    engine = [line.completion.log_probs for line in lines]
    old = engine if recomputed is None else recomputed
    ids = [line.group for line in lines]
    weights = token_weights(
        masks, ids, algorithm, longest=longest, total=totals(masks, ids).everywhere(reduce)
    )
    kl = None if reference is None else _kl(old, reference, algorithm)
    advantages = line_advantages(groups, lines, masks, algorithm, longest, kl, reduce, ratio, baseline)
    correction = None
    if algorithm.correction != "none":
        assert recomputed is not None, "the correction compares the engine's log-probs with the trainer's"
        correction = importance_correction(recomputed, engine, algorithm)
    return [
        Sample(
            sampled_prompt=line.sampled,
            trained_prompt=line.trained,
            token_ids=line.row,
            old_log_probs=old[i],
            weights=weights[i],
            advantage=advantages[i].astype(np.float32),
            group=line.group,
            reference_log_probs=None if reference is None else reference[i],
            correction=None if correction is None else correction[i],
            policy_version=line.completion.policy_version,
            position=None if positions is None else positions[line.group],
        )
        for i, line in enumerate(lines)
    ]


def line_advantages(
    groups: Sequence[Group],
    lines: Sequence[Line],
    masks: Sequence[np.ndarray],
    algorithm: Algorithm,
    longest: int,
    kl: list[np.ndarray] | None,
    reduce: Reduce,
    ratio: str,
    baseline: str,
) -> list[np.ndarray]:
    """float [T] for every line.

    "pooled": among all completions of a group; "halves": among those of the same phase. "shared" (R1-ShareVL): pooled,
    and to a completion under its own prompt the advantage within its phase is added, where a group has two.
    """
    rewards = [learned_rewards(group, algorithm, longest) for group in groups]
    if ratio != "shared":
        if baseline == "halves":
            rewards = _by_phase(groups, rewards)
        return step_advantages(rewards, masks, algorithm, kl=kl, reduce=reduce)
    own = [i for i, line in enumerate(lines) if not line.moved]
    first = [masks[i] for i in own]
    own_kl = None if kl is None else [kl[i] for i in own]
    pooled = step_advantages(rewards, first, algorithm, kl=own_kl, reduce=reduce)
    within = step_advantages(_by_phase(groups, rewards), first, algorithm, kl=own_kl, reduce=reduce)
    found: list[np.ndarray] = []
    place = -1
    for line in lines:
        place += not line.moved  # a completion's own line stands before its others
        alone = line.moved or not groups[line.group].variants
        found.append(pooled[place] if alone else pooled[place] + within[place])
    return found


def _by_phase(groups: Sequence[Group], rewards: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rewards of each phase by themselves; phases stand one after another in a group."""
    found = []
    for group, values in zip(groups, rewards, strict=True):
        variants = [completion.variant for completion in group.completions]
        cuts = [i for i in range(1, len(variants)) if variants[i] != variants[i - 1]]
        found += np.split(values, cuts)
    return found


def _mask(completion: Completion, algorithm: Algorithm) -> np.ndarray:
    cut = algorithm.mask_truncated and completion.stop == "length"
    return np.full(len(completion.token_ids), 0.0 if cut else 1.0, np.float32)


def _kl(
    log_probs: Sequence[np.ndarray], reference: Sequence[np.ndarray], algorithm: Algorithm
) -> list[np.ndarray]:
    """float64 [T] of each row, in float64 because a sum over a reply is taken."""
    pairs = zip(log_probs, reference, strict=True)
    wide = [(torch.from_numpy(a).double(), torch.from_numpy(b).double()) for a, b in pairs]
    return [kl_estimates(ours, theirs, algorithm.kl).numpy() for ours, theirs in wide]


def reweigh(
    samples: Sequence[Sample], algorithm: Algorithm, longest: int, reduce: Reduce = alone
) -> list[Sample]:
    """The samples with the loss weights of a mini-batch of their own."""
    masks = [(sample.weights > 0).astype(np.float32) for sample in samples]
    ids = [sample.group for sample in samples]
    total = totals(masks, ids).everywhere(reduce)
    weights = token_weights(masks, ids, algorithm, longest=longest, total=total)
    valued = sum(float((s.value_weights > 0).sum()) for s in samples if s.value_weights is not None)
    return [
        replace(
            sample,
            weights=weight,
            value_weights=None
            if sample.value_weights is None
            else (sample.value_weights > 0).astype(np.float32) / max(1.0, valued),
        )
        for sample, weight in zip(samples, weights, strict=True)
    ]


def minibatches(
    samples: Sequence[Sample],
    algorithm: Algorithm,
    longest: int,
    prompts_per_update: int | None,
    reduce: Reduce = alone,
) -> list[list[Sample]]:
    """The samples of a rollout in mini-batches of so many groups, in order, each with denominators of its own.

    None, or no more groups than that: one mini-batch. Advantages stay those of the whole rollout.
    """
    groups = list(dict.fromkeys(sample.group for sample in samples))
    per = prompts_per_update or max(1, len(groups))
    if per >= len(groups):
        return [list(samples)]
    batches = []
    for start in range(0, len(groups), per):
        chosen = set(groups[start : start + per])
        batches.append(reweigh([s for s in samples if s.group in chosen], algorithm, longest, reduce))
    return batches


def fill(
    samples: Sequence[Sample],
    stored: Sequence[tuple[Stored, Prompt]],
    algorithm: Algorithm,
    longest: int,
    reduce: Reduce = alone,
) -> list[Sample]:
    """Replayed completions in the place of the first rows without signal, one each; the rest is as it was.

    A replayed row counts as the row that it replaces: P and G stay, the token mean counts its tokens.
    """
    waiting = list(stored)
    filled = []
    for sample in samples:
        if not waiting or bool((sample.weights * sample.advantage).any()):
            filled.append(sample)
            continue
        one, prompt = waiting.pop(0)
        filled.append(
            Sample(
                sampled_prompt=prompt,
                trained_prompt=prompt,
                token_ids=one.token_ids,
                old_log_probs=one.old_log_probs,
                weights=np.ones(len(one.token_ids), np.float32),
                advantage=one.advantage,
                group=sample.group,
                reference_log_probs=one.reference_log_probs,
                correction=one.correction,
                policy_version=one.policy_version,
                position=one.position,
                replayed=True,
            )
        )
    return reweigh(filled, algorithm, longest, reduce)
