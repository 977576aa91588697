"""One step of reinforcement learning from episodes.

    episodes, some turns further → rewards → advantages of turns → one shared-prefix update → metrics

Not here: playing (`fovea.rollouts.episodes`), the gradient (`update`), questions of one turn (`steps`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fovea.algorithms import Algorithm, algorithm_of
from fovea.models import score
from fovea.models.shared_prefix import Row
from fovea.rollouts.turns import episode_metrics, explained_variance, turn_samples, turns_of
from fovea.training.batch import distinct_rows
from fovea.training.setup import Session
from fovea.training.strips import strip
from fovea.training.update import one_step, update
from fovea.types import Sample, Trajectory


def episode_step(session: Session, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One step: metrics, and the turns of the first episodes for the log."""
    run, policy = session.run, session.policy
    algorithm = algorithm_of(run)
    began = time.perf_counter()
    trajectories = play(session, algorithm, step)
    drawn = time.perf_counter()
    samples, gaps = _samples(session, algorithm, trajectories, step)
    report = update(
        policy,
        session.optimizer,
        shuffled(samples, (run.seed, step)) if run.algorithm.prompts_per_update else samples,
        algorithm,
        session.sampling,
        run,
        step,
        first=one_step(run, algorithm),
    )
    session.engine.load_weights(policy)
    timing = {"rollout_seconds": drawn - began, "update_seconds": time.perf_counter() - drawn}
    examples: list[dict[str, Any]] = []
    if step == 0 or (run.show_every > 0 and (step + 1) % run.show_every == 0):
        place = 0
        for trajectory in trajectories[: run.show_groups]:
            own = samples[place : place + len(trajectory.turns)]
            examples += strip(session.log, trajectory, [float(sample.advantage[0]) for sample in own])
            place += len(own)
    return _metrics(trajectories, samples) | report | gaps | timing, examples


def play(session: Session, algorithm: Algorithm, step: int) -> list[Trajectory]:
    """What the step learns from: with a critic every episode some turns further, else whole episodes in groups."""
    run, stage = session.run, session.stage
    assert stage is not None, "a run with an environment has a stage"
    seed = (run.seed, step)
    if algorithm.critic:
        return stage.advance(run.prompts * run.group, run.environment.turns, seed=seed)
    numbers = range(session.cursor, session.cursor + run.prompts)
    session.cursor += run.prompts
    return stage.whole(numbers, run.group, seed=seed)


def _samples(
    session: Session, algorithm: Algorithm, trajectories: Sequence[Trajectory], step: int
) -> tuple[list[Sample], dict[str, float]]:
    """The turns as samples, with the trainer's and the reference's log-probs where the algorithm has use of them."""
    run, turns = session.run, turns_of(trajectories)
    prompts, rows = distinct_rows([(turn.prompt, turn.completion.token_ids) for turn in turns])
    recomputed = reference = None
    gaps: dict[str, float] = {}
    if algorithm.old_log_probs == "recomputed" and not one_step(run, algorithm):
        flat = score(session.policy, prompts, rows, session.sampling, tokens_per_pass=run.tokens_per_pass)[0]
        recomputed = _by_row(flat.float().cpu().numpy(), rows)
        gap = np.abs(np.concatenate([a - t.completion.log_probs for a, t in zip(recomputed, turns)]))
        gaps = {"engine_gap_mean": float(gap.mean()), "engine_gap_max": float(gap.max())}
    if algorithm.beta > 0:
        assert session.reference is not None, "beta > 0 opens a reference"
        theirs = session.reference.log_probs(prompts, rows, session.sampling, run.tokens_per_pass)
        reference = _by_row(theirs.float().cpu().numpy(), rows)
    section = run.environment
    samples = turn_samples(
        trajectories,
        algorithm,
        run.sampling.max_new_tokens,
        learn_invalid=section.invalid != "random" if section.learn_invalid is None else section.learn_invalid,
        learn_policy=step >= algorithm.value_warmup,
        reference=reference,
        recomputed=recomputed,
    )
    if (
        section.thought_sft
    ):  # GTR's auxiliary loss (arXiv:2503.08525), with the game's own thoughts as the teacher
        # without the end token: an action follows a thought
        samples = [
            replace(sample, taught=session.policy.encode_reply(turn.taught)[:-1]) if turn.taught else sample
            for sample, turn in zip(samples, turns, strict=True)
        ]
    return samples, gaps


def _by_row(flat: np.ndarray, rows: Sequence[Row]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum([len(tokens) for _, tokens in rows])[:-1])


def shuffled(samples: Sequence[Sample], seed: tuple[int, int]) -> list[Sample]:
    """The samples in a drawn order, for mini-batches: neighbours in time are alike. Groups are numbered anew."""
    order = np.random.default_rng([*seed, 7]).permutation(len(samples))
    return [replace(samples[i], group=place) for place, i in enumerate(order.tolist())]


def _metrics(trajectories: Sequence[Trajectory], samples: Sequence[Sample]) -> dict[str, Any]:
    """Under the names of questions of one turn where the meaning is the same, so that displays and audits need no
    others: `reward_mean` is a turn's reward, `accuracy` the success of the episodes that ended."""
    turns = turns_of(trajectories)
    log_probs = np.concatenate([turn.completion.log_probs for turn in turns])
    rewards = np.array([turn.reward for turn in turns])
    found: dict[str, Any] = {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0,
        "entropy": float(-log_probs.mean(dtype=np.float64)),
        "completion_tokens": len(log_probs) / len(turns),
        "truncated": float(np.mean([turn.completion.stop == "length" for turn in turns])),
        "groups_skipped": 0,
        "tokens": len(log_probs),
        "bad_samples": 0,
    }
    episodes = episode_metrics(trajectories)
    explained = explained_variance(samples)
    if explained is not None:
        episodes["explained_variance"] = explained
    return found | {"accuracy": episodes["success"]} | episodes
