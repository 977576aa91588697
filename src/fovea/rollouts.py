"""Problems × engine → groups with rewards → samples with advantages and loss weights. Single-turn for now.

Not here: how replies are drawn (`engines`), what they are worth (`rewards`), the update (`training`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from fovea.engines import Engine
from fovea.models import Policy, Prompt
from fovea.models.policy import named
from fovea.phases import Explorer, plain
from fovea.rewards import correct, weigh
from fovea.rewards.scorer import Job, Scorer
from fovea.types import (
    AnswerKind,
    Completion,
    Group,
    Problem,
    Sample,
    Sampling,
    Task,
    UserError,
    picture_sizes,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A problem that could not be shown to the model: its picture is gone, it does not fit the context.

    Example: BadSample(id="my:12", error="line 12: the picture cat.png does not exist; …")
    """

    id: str
    """The problem's id; `TASK:position N` when the task could not even make the problem."""
    error: str
    """One sentence: what is wrong, where, the fix."""
    position: int = 0
    """The cursor it was taken with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """The next problems of a task as prompts, and those that cannot be one."""

    prompts: tuple[Prompt, ...]
    bad: tuple[BadSample, ...]
    cursor: int
    """Where the next problems begin."""
    seconds: float = 0.0
    """Spent waiting for the task's problems, pictures included; rendering prompts is not counted."""


def gather(
    task: Task,
    cursor: int,
    n: int,
    policy: Policy,
    instruction: str | None = None,
    check: Callable[[Prompt], object] | None = None,
) -> Gathered:
    """Take `n` problems one by one and render them; one that raises UserError becomes a `BadSample`.

    Nothing is drawn in place of a bad one: `len(prompts) + len(bad) == n`, so that what comes next does not
    depend on it. `check` may refuse a prompt, too (a teacher's reply that does not fit).
    """
    prompts: list[Prompt] = []
    bad: list[BadSample] = []
    waited = 0.0
    for position in range(cursor, cursor + n):
        name = f"{task.name}:position {position}"
        began = time.perf_counter()
        try:
            try:
                (problem,), _ = task.take(position, 1)
            finally:
                waited += time.perf_counter() - began
            name = problem.id
            prompt = policy.prompt(problem, instruction)
            try:
                if check is not None:
                    check(prompt)
            except UserError as error:
                raise UserError(named(problem, str(error))) from error
        except UserError as error:
            bad.append(BadSample(id=name, error=str(error), position=position))
        else:
            prompts.append(prompt)
    return Gathered(prompts=tuple(prompts), bad=tuple(bad), cursor=cursor + n, seconds=waited)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Some problems of another task, in order: what is left of it without the bad ones."""

    task: Task
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def kind(self) -> AnswerKind:
        return self.task.kind

    @property
    def chance(self) -> float:
        return self.task.chance

    @property
    def size(self) -> int:
        return len(self.positions)

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        """Once through, no second epoch: fewer than `n` at the end."""
        taken = self.positions[cursor : cursor + n]
        return [self.task.take(position, 1)[0][0] for position in taken], cursor + n


def without_bad(
    task: Task, n: int, policy: Policy, instruction: str | None = None
) -> tuple[Chosen, tuple[BadSample, ...]]:
    """The first `n` problems of a task without those that cannot be shown to the model, and those.

    For evaluations: render everything once, a few at a time, when one of them failed. Raises UserError when none
    is left.
    """
    bad: list[BadSample] = []
    for position in range(0, n, 16):
        bad.extend(gather(task, position, min(16, n - position), policy, instruction).bad)
    gone = {one.position for one in bad}
    kept = tuple(position for position in range(n) if position not in gone)
    if not kept:
        raise UserError(f"All {n} problems of {task.name} are bad, the first one because: {bad[0].error}")
    return Chosen(task=task, positions=kept), tuple(bad)


def collect(
    prompts: Sequence[Prompt],
    engine: Engine,
    sampling: Sampling,
    weights: Mapping[str, float] | Scorer,
    *,
    group: int,
    seed: tuple[int, int],
    draw: int = 0,
    explorer: Explorer | None = None,
) -> list[Group]:
    """Draw `group` replies to each prompt and reward them. Groups in the order of `prompts`.

    `weights`: those of built-in rewards, or a scorer (which may run the user's own); `seed`: (run's seed, step);
    `draw`: the sampling phase, so that a problem met again in another round of a step gets other replies; one that is
    twice among `prompts` does, too (`fovea.types.occurrences`). `explorer`: samples in two phases.
    """
    how = plain if explorer is None else explorer.draw
    drawn = how(prompts, engine, group, sampling, seed=seed, draw=draw)
    replies = drawn.replies
    if isinstance(weights, Mapping):
        scored = [
            weigh(
                [completion.text for completion in completions],
                prompt.problem,
                weights,
                tokens=[len(completion.token_ids) for completion in completions],
            )
            for prompt, completions in zip(prompts, replies, strict=True)
        ]
    else:
        jobs = [
            Job(
                texts=tuple(completion.text for completion in completions),
                problem=prompt.problem,
                token_ids=tuple(tuple(map(int, completion.token_ids)) for completion in completions),
            )
            for prompt, completions in zip(prompts, replies, strict=True)
        ]
        scored = [(scores.rewards, scores.parts) for scores in weights.weigh_all(jobs, step=seed[1])]
    return [
        Group(
            problem=prompt.problem,
            prompt=prompt,
            completions=completions,
            rewards=rewards,
            parts=parts,
            variants=variants,
        )
        for prompt, completions, variants, (rewards, parts) in zip(
            drawn.prompts, replies, drawn.variants, scored, strict=True
        )
    ]


def learned_rewards(group: Group, algorithm: Algorithm, longest: int) -> np.ndarray:
    """float64 [G]: the rewards that advantages are made of, the length penalty included."""
    lengths = np.array([len(completion.token_ids) for completion in group.completions])
    return group.rewards + overlong_penalty(lengths, longest, algorithm.overlong)


def has_signal(group: Group, algorithm: Algorithm, longest: int) -> bool:
    """Whether the group's rewards differ, so that a baseline leaves something (NaN: not rewarded)."""
    rewards = learned_rewards(group, algorithm, longest)
    given = rewards[~np.isnan(rewards)]
    return bool(len(given) and (given != given[0]).any())


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
    return [replace(sample, weights=weight) for sample, weight in zip(samples, weights, strict=True)]


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


def rollout_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """What a step's replies say: reward by part, accuracy, entropy, length.

    `entropy` is the mean over sampled tokens of -log p(token), an unbiased estimate of the mean per-token
    entropy of the sampling distribution, in nats. `groups_skipped`: groups whose rewards are all equal.
    `reward_std`: mean over groups of their sample standard deviation. A reward that is NaN was not given and is in
    no mean; None where none of a step was.
    """
    completions = [completion for group in groups for completion in group.completions]
    log_probs = np.concatenate([completion.log_probs for completion in completions])
    right = [correct(completion.text, group.problem) for group in groups for completion in group.completions]
    metrics: dict[str, Any] = {"reward_mean": _mean([group.rewards for group in groups])}
    metrics["reward_std"] = float(np.mean([_std(group.rewards) for group in groups]))
    for name in dict.fromkeys(name for group in groups for name in group.parts):
        metrics[f"reward/{name}"] = _mean([group.parts[name] for group in groups if name in group.parts])
    return metrics | {
        "accuracy": float(np.mean(right)),
        "entropy": float(-log_probs.mean(dtype=np.float64)),
        "completion_tokens": len(log_probs) / len(completions),
        "truncated": float(np.mean([completion.stop == "length" for completion in completions])),
        "groups_skipped": sum(bool((group.rewards == group.rewards[0]).all()) for group in groups),
        "tokens": len(log_probs),
    }


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    """Of what is not NaN; None where nothing is."""
    values = np.concatenate(list(parts))
    given = values[~np.isnan(values)]
    return float(given.mean()) if len(given) else None


def _std(rewards: np.ndarray) -> float:
    given = rewards[~np.isnan(rewards)]
    return float(given.std(ddof=1)) if len(given) > 1 else 0.0


def shown(group: Group, advantages: np.ndarray, pictures: list[str]) -> list[dict[str, Any]]:
    """The completions of a group as plain records for the log and the display.

    `size` and `resized`: [w, h] of the picture `box_image`, which boxes refer to, before and after the processor.
    """
    which = int(group.problem.meta.get("box_image", 0))
    sizes, resized = picture_sizes(group.problem), getattr(group.prompt, "resized", ())
    return [
        {
            "id": group.problem.id,
            "question": group.problem.question,
            "pictures": pictures,
            "box_image": which,
            "size": list(sizes[which]) if which < len(sizes) else None,
            "resized": list(resized[which]) if which < len(resized) else None,
            "answer": group.problem.answer,
            "frame": group.problem.frame,
            "difficulty": group.problem.difficulty,
            "text": completion.text,
            "stop": completion.stop,
            "reward": float(group.rewards[i]),
            "parts": {name: float(part[i]) for name, part in group.parts.items()},
            "advantage": float(advantages[i]),
            "mean_log_prob": float(completion.log_probs.mean()),
            "variant": completion.variant,
            "policy_version": completion.policy_version,
        }
        for i, completion in enumerate(group.completions)
    ]
