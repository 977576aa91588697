"""One step of a run: reinforcement learning from checked rewards, or supervised fine-tuning beside it.

    problems → groups of replies → rewards → advantages → one shared-prefix update → metrics

Not here: how often something happens (`loop`), the gradient (`update`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fovea.algorithms import Algorithm, Stored, algorithm_of
from fovea.models import Prompt, score
from fovea.models.kept import keeping
from fovea.models.shared_prefix import Row
from fovea.rollout_health import health
from fovea.rollouts import (
    Line,
    collect,
    fill,
    has_signal,
    learned_rewards,
    lines_of,
    rollout_metrics,
    shown,
    to_samples,
)
from fovea.training.exploring import log_changed, records_with
from fovea.training.setup import Session
from fovea.training.update import one_step, sft_update, update
from fovea.training.variants import variants_of
from fovea.types import Group, Sample, UserError

# A step whose every problem was bad: nothing was sampled and nothing was learned.
EMPTY_STEP: dict[str, Any] = {"reward_mean": None, "entropy": None, "groups_skipped": 0, "tokens": 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """What a step sampled."""

    drawn: tuple[Group, ...]
    """Every group, in order."""
    kept: tuple[Group, ...]
    """Those that are learned from; fewer only where groups without signal are drawn anew."""
    positions: tuple[int, ...]
    """Cursor of each kept group's problem, exact where no sample was bad and else a little low."""
    counts: dict[str, Any]


def rl_step(session: Session, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One step of policy gradient: metrics, and the completions of the first groups for the log."""
    try:
        return _rl_step(session, step)
    finally:
        session.policy.kept.drop()  # also after a step that ends before its update


def _rl_step(session: Session, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    run, policy = session.run, session.policy
    algorithm = algorithm_of(run)
    began = time.perf_counter()
    with keeping(policy, run.tokens_per_pass):
        rollout = roll_out(session, algorithm, step)
    if not rollout.drawn:
        return EMPTY_STEP | rollout.counts, []
    drawn = time.perf_counter()
    samples, gaps = _samples(session, algorithm, rollout)
    filled, replayed = _replay(session, algorithm, samples, step)
    sampling, first = session.sampling, one_step(run, algorithm)
    variants = variants_of(policy, run, step, session.instruction)
    report = update(
        policy, session.optimizer, filled, algorithm, sampling, run, step, variants=variants, first=first
    )
    session.engine.load_weights(policy)
    timing = {"rollout_seconds": drawn - began, "update_seconds": time.perf_counter() - drawn}
    examples: list[dict[str, Any]] = []
    if due(run.show_every, step) or step == 0:
        examples = _examples(session, rollout.kept, samples, step)
    metrics = (
        health(rollout.drawn) | rollout_metrics(rollout.drawn) | _penalty(session, algorithm, rollout.kept)
    )
    if algorithm.flat_groups_learn or algorithm.every_row_learns:
        metrics["groups_skipped"] = 0  # `groups_without_signal` says how many have equal rewards
    return metrics | report | gaps | replayed | rollout.counts | timing, examples


def roll_out(session: Session, algorithm: Algorithm, step: int) -> Rollout:
    """Sample and reward the step's groups; with `resample_limit` also those that replace groups without signal.

    DAPO's dynamic sampling (arXiv:2503.14476): in each further round as many problems are taken as groups are missing,
    the next ones of the task. What is still missing after the last round stays away; if no group has a signal all of
    the first round are kept, so that the step learns nothing and says so.
    """
    run, budget = session.run, session.run.sampling.max_new_tokens
    drawn: list[Group] = []
    kept: list[tuple[int, Group]] = []
    counts: dict[str, Any] = {"bad_samples": 0}
    rounds, first = 0, 0
    while rounds <= algorithm.resample_limit and len(kept) < run.prompts:
        position = session.cursor
        prompts, noted = session.take(n=run.prompts - len(kept))
        counts["bad_samples"] += noted["bad_samples"]
        new = _collect(session, prompts, step, rounds) if prompts else []
        first = first or len(new)
        drawn += new
        placed = list(enumerate(new, start=position))
        if algorithm.resample_limit:
            how = "pooled" if run.intervention.ratio == "shared" else run.intervention.baseline
            placed = [(p, group) for p, group in placed if has_signal(group, algorithm, budget, how)]
        kept += placed
        rounds += 1
    if not kept:  # nothing of it is learned, so nothing is replayed: positions do not matter
        kept = list(enumerate(drawn[:first]))
    if algorithm.resample_limit:
        counts |= {"groups_drawn": len(drawn), "groups_kept": len(kept), "resample_rounds": rounds - 1}
    counts |= session.scorer.take_metrics() | session.observe(drawn)
    if session.explorer is not None:
        counts |= session.explorer.take_metrics(drawn)
    session.look_ahead()
    return Rollout(
        drawn=tuple(drawn),
        kept=tuple(group for _, group in kept),
        positions=tuple(position for position, _ in kept),
        counts=counts,
    )


def _collect(session: Session, prompts: Sequence[Prompt], step: int, draw: int) -> list[Group]:
    return collect(
        prompts,
        session.engine,
        session.sampling,
        session.scorer,
        group=session.run.group,
        seed=(session.run.seed, step),
        draw=draw,
        explorer=session.explorer,
    )


def _samples(
    session: Session, algorithm: Algorithm, rollout: Rollout
) -> tuple[list[Sample], dict[str, float]]:
    """The kept groups as samples, with the trainer's and the reference's log-probs where the algorithm has use of
    them; and how far the trainer's are from the engine's. Where the update's own forward says both (`one_step`) the
    samples have the engine's."""
    run, groups = session.run, rollout.kept
    lines = lines_of(groups, run.intervention.ratio)
    prompts: list[Prompt] = list({id(line.trained): line.trained for line in lines}.values())
    place = {id(prompt): i for i, prompt in enumerate(prompts)}
    rows: list[Row] = [(place[id(line.trained)], line.row) for line in lines]
    recomputed = reference = None
    gaps: dict[str, float] = {}
    if algorithm.old_log_probs == "recomputed" and not one_step(run, algorithm):
        ours = score(session.policy, prompts, rows, session.sampling, tokens_per_pass=run.tokens_per_pass)[0]
        recomputed = _by_row(ours.float().cpu().numpy(), rows)
        gaps = _gaps(lines, recomputed)
    if algorithm.beta > 0:
        assert session.reference is not None, "beta > 0 opens a reference"
        theirs = session.reference.log_probs(prompts, rows, session.sampling, run.tokens_per_pass)
        reference = _by_row(theirs.float().cpu().numpy(), rows)
    samples = to_samples(
        groups,
        algorithm,
        run.sampling.max_new_tokens,
        reference=reference,
        recomputed=recomputed,
        positions=rollout.positions,
        ratio=run.intervention.ratio,
        baseline=run.intervention.baseline,
    )
    return samples, gaps


def _gaps(lines: Sequence[Line], recomputed: Sequence[np.ndarray]) -> dict[str, float]:
    """How far the trainer's log-probs are from the engine's under the same prompt; and the KL between the changed and
    the clean policy where a completion is trained under another prompt (`explore/kl`, as `update` measures it)."""
    found: dict[str, float] = {}
    same = [ours - line.completion.log_probs for line, ours in zip(lines, recomputed) if not line.moved]
    moved = [ours - line.completion.log_probs for line, ours in zip(lines, recomputed) if line.moved]
    if same:
        gap = np.abs(np.concatenate(same))
        found |= {"engine_gap_mean": float(gap.mean()), "engine_gap_max": float(gap.max())}
    if moved:
        difference = np.concatenate(moved).astype(np.float64)
        found["explore/kl"] = float((np.expm1(difference) - difference).mean())
    return found


def _by_row(flat: np.ndarray, rows: Sequence[Row]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum([len(tokens) for _, tokens in rows])[:-1])


def _replay(
    session: Session, algorithm: Algorithm, samples: list[Sample], step: int
) -> tuple[list[Sample], dict[str, float]]:
    """Earlier completions in the place of rows without signal, then the step's own are offered to the buffer."""
    replay: Any = session.parts.get("replay")
    if replay is None:
        return samples, {}
    empty = sum(not (sample.weights * sample.advantage).any() for sample in samples)
    stored = replay.draw(empty, seed=(session.run.seed, step))
    prompts: dict[str, Prompt] = {}
    for one in stored:
        if one.problem not in prompts:
            prompts[one.problem] = prompt_again(session, one)
    pairs = [(one, prompts[one.problem]) for one in stored]
    filled = fill(samples, pairs, algorithm, session.run.sampling.max_new_tokens) if pairs else samples
    replay.add(samples, step)
    age = float(np.mean([step - one.step for one in stored])) if stored else 0.0
    return filled, {"replayed": len(stored), "replay_age": age}


def prompt_again(session: Session, stored: Stored) -> Prompt:
    """The prompt of a kept completion, made again from its problem. Raises UserError if the problem is gone."""
    for position in range(stored.position, stored.position + session.run.prompts):
        try:
            (problem,), _ = session.task.take(position, 1)
        except UserError:  # a bad sample between
            continue
        if problem.id == stored.problem:
            prompt = session.policy.prompt(problem, session.instruction)
            return prompt if session.explorer is None else session.explorer.first(prompt, stored.step)
    raise UserError(
        f"{stored.problem}, which algorithm.replay kept, is no longer at its place in {session.task.name}; "
        "go on with the data that the run began with."
    )


def _penalty(session: Session, algorithm: Algorithm, groups: Sequence[Group]) -> dict[str, float]:
    """Mean length penalty of a completion, where there is one."""
    if algorithm.overlong == 0:
        return {}
    budget = session.run.sampling.max_new_tokens
    changes = [learned_rewards(group, algorithm, budget) - group.rewards for group in groups]
    return {"overlong_penalty": float(np.nanmean(np.concatenate(changes)))}


def _examples(
    session: Session, groups: Sequence[Group], samples: Sequence[Sample], step: int
) -> list[dict[str, Any]]:
    """Records of the first `show_groups` groups. A completion's advantage is the mean over its tokens (the first time
    that it is learned from, where it is trained under several prompts)."""
    records: list[dict[str, Any]] = []
    for g, group in enumerate(groups[: session.run.show_groups]):
        means = [sample.advantage.mean() for sample in samples if sample.group == g]
        times = max(1, len(means) // len(group.completions))
        changed = log_changed(session.log, session.policy, group, step)
        found = shown(group, np.array(means[::times]), session.log.pictures(group.problem))
        records += records_with(found, changed)
    return records


def sft_step(session: Session, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One step of cross-entropy on the teacher's replies. It has no rewards: those keys are null."""
    prompts, counts = session.take(session.policy.encode_target)
    if not prompts:
        return EMPTY_STEP | counts, []
    session.look_ahead()
    report = sft_update(session.policy, session.optimizer, prompts, session.run, step)
    return {"reward_mean": None, "entropy": None, "groups_skipped": 0} | report | counts, []


def due(every: int, step: int) -> bool:
    """Whether something that happens every `every` steps happens after step `step` (0: never)."""
    return every > 0 and (step + 1) % every == 0
