"""The training loop: reinforcement learning from checked rewards, and supervised fine-tuning beside it.

    problems → groups of replies → rewards → advantages → one shared-prefix update → log

Not here: how each of these is done. Try it: `fovea train quickstart steps=3`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fovea.algorithms import find_algorithm, group_advantages
from fovea.config import Run
from fovea.rollouts import collect, rollout_metrics, shown, to_samples
from fovea.training.setup import Session
from fovea.training.update import sft_update, update
from fovea.types import Observer


def train(run: Run, observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Do a run and return its result (what result.json holds). Raises UserError and RunFailed."""
    do_step = _sft_step if run.method == "sft" else _rl_step
    with Session.open(run, observers) as session:
        session.evaluate("before")
        while session.done < run.steps and not session.budget_spent():
            step = session.done
            with session.clock:
                metrics, examples = do_step(session, step)
            session.record(step, metrics, examples)
            if _due(run.evaluation.every, step) and session.done < run.steps:
                session.evaluate("during")
            if _due(run.save_every, step):
                session.save()
        session.save()
        session.evaluate("after")
        return session.finish()


def _rl_step(session: Session, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One step of GRPO: metrics, and the first group's completions for the log."""
    run, policy = session.run, session.policy
    algorithm = find_algorithm(run.algorithm.name, run.algorithm.clip)
    began = time.perf_counter()
    prompts, counts = session.take()
    if not prompts:
        return _EMPTY_STEP | counts, []
    groups = collect(
        prompts, session.engine, session.sampling, session.rewards, group=run.group, seed=(run.seed, step)
    )
    drawn = time.perf_counter()
    samples = to_samples(groups, algorithm, run.sampling.max_new_tokens)
    report = update(policy, session.optimizer, samples, algorithm, session.sampling, run, step)
    session.engine.load_weights(policy)
    timing = {"rollout_seconds": drawn - began, "update_seconds": time.perf_counter() - drawn}
    examples: list[dict[str, Any]] = []
    if _due(run.show_every, step) or step == 0:
        advantages = group_advantages(groups[0].rewards, algorithm).numpy()
        examples = shown(groups[0], advantages, session.log.pictures(groups[0].problem))
    return rollout_metrics(groups) | report | counts | timing, examples


def _sft_step(session: Session, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One step of cross-entropy on the teacher's replies. It has no rewards: those keys are null."""
    prompts, counts = session.take(session.policy.encode_target)
    if not prompts:
        return _EMPTY_STEP | counts, []
    report = sft_update(session.policy, session.optimizer, prompts, session.run, step)
    return {"reward_mean": None, "entropy": None, "groups_skipped": 0} | report | counts, []


# A step whose every problem was bad: nothing was sampled and nothing was learned.
_EMPTY_STEP: dict[str, Any] = {"reward_mean": None, "entropy": None, "groups_skipped": 0, "tokens": 0}


def _due(every: int, step: int) -> bool:
    """Whether something that happens every `every` steps happens after step `step` (0: never)."""
    return every > 0 and (step + 1) % every == 0
