"""Opening a run: everything that can be checked is checked before the first minute is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fovea import checkpoints
from fovea.algorithms import algorithm_of, loss_terms, make_replay
from fovea.audits import Watch, check_audits
from fovea.config import Run, nearest
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models import Policy, load_policy
from fovea.models.reference import open_reference
from fovea.phases import Explorer
from fovea.rewards import default_rewards
from fovea.rewards.journal import Journal
from fovea.rewards.judge import CACHE
from fovea.rewards.options import plain_sum
from fovea.rewards.scorer import Scorer, ScorerSettings, make_scorer
from fovea.rollouts.episodes import Stage
from fovea.runlog import REWARD_JOURNAL, RunLog, check_run_folder, run_folder
from fovea.tasks.curriculum import Curriculum
from fovea.training.bad_samples import BadSamples, largest_prompts
from fovea.training.environment import has_environment, open_critic, open_stage
from fovea.training.exploring import check_intervention, open_explorer
from fovea.training.optim import make_optimizer
from fovea.training.preflight import check_memory
from fovea.training.problems import (
    Tasks,
    fingerprints,
    first_of_each_kind,
    instruction_of,
    open_downstream,
    open_tasks,
)
from fovea.training.setup import Session, Stateful
from fovea.types import Observer, Sampling, Task, UserError

MEASURES = ("accuracy", "looking", "swapped", "follow", "blank")
"""Figures of an evaluation that best and patience may go by."""
OF_EPISODES = ("accuracy", "return")
"""The same in a game: on the way nothing is played under other pictures."""

Functions = Mapping[str, Callable[..., Any]]


def open_session(
    run: Run,
    observers: Sequence[Observer] = (),
    *,
    tasks: Tasks | None = None,
    functions: Functions | None = None,
    resume: bool = False,
) -> Session:
    """A run that is ready for its first step, or with `resume` for the step after its newest whole checkpoint.

    `tasks`: the user's own instead of those that the recipe names; `functions`: rewards by the names that the recipe
    weighs. Raises UserError.
    """
    algorithm = algorithm_of(run)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    check_audits(run.audits, tuple(functions or ()))
    loss_terms(run.algorithm)
    _refuse_idle(run, algorithm.beta)
    check_intervention(run)
    task, validation, held_out = tasks or open_tasks(run)
    downstream = open_downstream(run)
    rewards, notes = _weights(run, run.rewards or _own_rewards(run, task))
    notes += getattr(task, "notes", ())  # what was left out of its files
    folder = run_folder(run)
    check_run_folder(folder, resume=resume)
    told = {} if run.rewards else getattr(task, "reward_options", {})
    scorer = _open_scorer(run, rewards, functions, told)
    log: RunLog | None = None
    try:
        scorer.check(first_of_each_kind(task))
        held = RunLog(folder, resume=resume) if resume else None
        log = held
        saved = _find_saved(held) if held else None
        policy = _open_policy(run, saved)
        if algorithm.critic and _plays(run):
            policy.critic = open_critic(run, policy, algorithm.stop_gradient)
        instruction = instruction_of(run, task)
        compared = algorithm.beta > 0 and run.method == "rl"
        check = policy.encode_target if run.method == "sft" else None
        largest = largest_prompts(policy, task, instruction, check, skip=run.on_bad_sample == "skip")
        check_memory(run, policy, largest, reference=compared, say=notes.append)
        log = held or RunLog(folder)
        log.notes.extend(notes)
        scorer.journal = Journal(folder / REWARD_JOURNAL)  # not before the folder is ours
        reference = open_reference(run, policy, resumed=saved is not None) if compared else None
        watch = Watch(audits=run.audits, expected=run.prompts * run.group)
        explorer = open_explorer(run, policy, instruction)
        engine = SharedPrefillEngine(policy)
        stage = open_stage(run, policy, engine, instruction) if _plays(run) else None
        session = Session(
            run=run,
            policy=policy,
            engine=engine,
            stage=stage,
            optimizer=make_optimizer(policy, run.optimizer),
            task=task,
            validation=validation,
            held_out=held_out,
            downstream=downstream,
            rewards=rewards,
            sampling=_sampling(run),
            instruction=instruction,
            log=log,
            bad=BadSamples.of(run, log),
            scorer=scorer,
            problems=fingerprints(task, validation, held_out),
            watch=watch,
            observers=(log, *observers),
            reference=reference,
            explorer=explorer,
            parts=_parts(run, task, watch, explorer, stage),
        )
        session.begin(saved, resume)
    except BaseException:
        scorer.close()
        if log is not None:
            log.close()
        raise
    return session


def _plays(run: Run) -> bool:
    """Whether the run learns from episodes."""
    return has_environment(run) and run.method == "rl"


def _sampling(run: Run) -> Sampling:
    return Sampling(temperature=run.sampling.temperature, max_new_tokens=run.sampling.max_new_tokens)


def _own_rewards(run: Run, task: Task) -> Mapping[str, float]:
    """Those of the task; in episodes the environment gives them."""
    if has_environment(run):
        return {}
    return getattr(task, "rewards", None) or default_rewards(task.kind)


def _parts(
    run: Run, task: Task, watch: Watch, explorer: Explorer | None, stage: Stage | None
) -> dict[str, Stateful]:
    """Whatever remembers something from step to step, by name."""
    replay = make_replay(run.algorithm)
    curriculum: Curriculum | None = getattr(task, "curriculum", None)
    found = {
        "watch": watch,
        "replay": replay,
        "curriculum": curriculum,
        "explorer": explorer,
        "episodes": stage,
    }
    return {name: part for name, part in found.items() if part is not None}


def _weights(run: Run, weights: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """The weights that count, and what is to be said if they are not the recipe's (`compat`)."""
    counting = plain_sum(weights, run.compat)
    lost = [f"rewards.{name}={weight:g}" for name, weight in weights.items() if weight != counting[name]]
    note = (
        f"compat={run.compat}: rewards are added up without weights: each of {', '.join(lost)} counts as 1."
    )
    return counting, [note] if lost else []


def _open_scorer(
    run: Run, rewards: Mapping[str, float], functions: Functions | None, told: Mapping[str, Mapping[str, Any]]
) -> Scorer:
    """`told`: the task's own options of its own rewards; the recipe's come before them."""
    gigabytes = run.reward_memory_gb
    settings = ScorerSettings(
        seed=run.seed,
        steps=run.steps,
        timeout=run.reward_timeout,
        on_error=run.on_reward_error,
        error_value=run.reward_on_error,
        workers=run.reward_workers,
        memory_bytes=None if gigabytes is None else int(gigabytes * 2**30),
        form=run.reward_completions,
    )
    if has_environment(run):  # the environment gives them
        return Scorer(weights={}, sources=(), settings=settings, journal=Journal(None), options={})
    options: dict[str, Mapping[str, Any]] = dict(told) | dict(run.reward_options)
    if "judge" in options:  # a resumed run asks nothing twice
        options["judge"] = {"cache": str(run_folder(run) / CACHE)} | dict(options["judge"])
    return make_scorer(
        rewards, functions, audits=run.audits, settings=settings, options=options, compat=run.compat
    )


def _refuse_idle(run: Run, beta: float) -> None:
    """Settings that would do nothing, or that fail only later. Raises UserError."""
    section = run.evaluation
    measures = OF_EPISODES if has_environment(run) else MEASURES
    if section.metric not in measures:
        raise UserError(
            f"evaluation.metric={section.metric!r} is not a figure of an evaluation"
            f"{nearest(section.metric, list(measures))}; known: {', '.join(measures)}."
        )
    if section.patience and not section.every:
        raise UserError("evaluation.patience counts evaluations on the way; give evaluation.every=N, too.")
    if run.reference_sync_steps and not beta:
        raise UserError("reference_sync_steps needs a reference; give algorithm.beta, too, or leave it away.")


def _find_saved(log: RunLog) -> checkpoints.Saved | None:
    """The newest whole checkpoint that the logs reach; without one everything starts again from step 0.

    The logs are cut back by `Session.begin` alone, when nothing can be refused any more.
    """
    saved, passed = checkpoints.newest_whole(log.folder, lambda found: log.check(found.logs))
    if saved is None and passed:
        why = next(iter(passed.values()))
        raise UserError(
            f"No checkpoint of {log.folder} is whole, the newest because: {why} Start over in another run_dir."
        )
    if saved is None and (log.folder / "result.json").exists():
        raise UserError(
            f"{log.folder} is finished but its checkpoints are gone; there is nothing to go on from: start a new run."
        )
    if saved is None:
        log.notes.append("There was no checkpoint yet: the run begins again at step 0.")
    for folder in passed:
        checkpoints.set_aside(folder)
    log.notes.extend(passed.values())
    return saved


def _open_policy(run: Run, saved: checkpoints.Saved | None) -> Policy:
    """The recipe's model; of a checkpoint the saved one, or the recipe's with the saved adapter."""
    whole = saved is not None and run.finetune.mode == "full"
    policy = load_policy(
        str(saved.model) if saved is not None and whole else run.model,
        device=run.device,
        dtype=run.dtype,
        download=run.download,
        freeze=run.freeze,
        finetune=run.finetune,
        adapter=saved.model if saved is not None and not whole else None,
        seed=run.seed,
        gradient_checkpointing=run.gradient_checkpointing,
        min_pixels=run.min_pixels,
        max_pixels=run.max_pixels,
        reply_tokens=run.sampling.max_new_tokens,
    )
    policy.vision_cache.budget = int(run.vision_cache_gib * 2**30)
    return policy
