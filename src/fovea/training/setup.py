"""What a run needs, opened once: policy, tasks, engine, optimizer, log; and what it leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from fovea import checkpoints
from fovea.algorithms import find_algorithm
from fovea.config import Run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.evaluation import evaluate
from fovea.models import Policy, Prompt, load_policy
from fovea.rewards import check_weights, default_rewards, weigh
from fovea.rollouts import BadSample, gather, without_bad
from fovea.runlog import RunLog, check_run_folder, describe_run, run_folder
from fovea.tasks import open_data, open_task
from fovea.tasks.data import DataTask
from fovea.training.bad_samples import SCANNED, BadSamples, check_largest
from fovea.training.update import make_optimizer
from fovea.types import AnswerKind, Observer, Problem, Sampling, Task, UserError

EVALUATION_SEED = 1_000_003
"""Built-in tasks' held-out problems are the same whatever the run's seed, so that runs can be compared."""

# A user's question rarely says how the reply is to be written; built-in tasks' questions need no more than this.
INSTRUCTIONS: Mapping[AnswerKind, str] = {
    "box": "Output the box as [x1, y1, x2, y2] inside <answer> </answer> tags.",
    "number": "Output the number inside <answer> </answer> tags.",
    "choice": "Output the letter of the right choice inside <answer> </answer> tags.",
    "text": "Output the answer inside <answer> </answer> tags.",
    "objects": 'Output a JSON list of {"bbox_2d": [x1, y1, x2, y2], "label": text} inside <answer> </answer> tags.',
}


@dataclass(slots=True)
class Clock:
    """Wall and CPU seconds spent inside `with clock:`, in all and the last time."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    last_seconds: float = 0.0
    _began: tuple[float, float] = (0.0, 0.0)

    def __enter__(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def __exit__(self, *_: object) -> None:
        self.last_seconds = time.perf_counter() - self._began[0]
        self.wall_seconds += self.last_seconds
        self.cpu_seconds += time.process_time() - self._began[1]


def open_tasks(run: Run) -> tuple[Task, Task, Task]:
    """(training, validation, held-out) problems of a run; of a file, validation and held-out are the same lines."""
    if run.data is None:
        held_out = open_task(run.task, run.evaluation.split, EVALUATION_SEED)
        return (
            open_task(run.task, "train", run.seed),
            open_task(run.task, "validation", EVALUATION_SEED),
            held_out,
        )
    if run.validation_data is not None:
        held = _open(run, run.validation_data, shuffle=False)
        return _open(run, run.data), held, held
    task = _open(run, run.data, part="train")
    held = _open(run, run.data, part="heldout", shuffle=False, verify=False)  # decoded with the others
    return task, held, held


def _open(run: Run, path: str, verify: bool = True, **how: Any) -> DataTask:
    """A file of the user's, as the recipe wants it read. Raises UserError where the rewards do not fit a kind."""
    task = open_data(
        path,
        run.images,
        seed=run.seed,
        verify=verify and run.verify_pictures,
        megapixels=run.max_megapixels,
        **how,
    )
    if len(task.kinds) > 1 and not run.rewards:
        raise UserError(
            f"{path} mixes answers of the kinds {', '.join(task.kinds)}, which have different rewards; "
            "make a file for each kind, or name rewards that fit all of them, for example rewards.exact=1."
        )
    return task


def _check_rewards_fit(rewards: Mapping[str, float], task: Task) -> None:
    """Score an empty reply to a problem of each kind. Raises UserError where a reward is for other answers."""
    first: dict[AnswerKind, Problem] = {}
    for problem in task.take(0, 1 if task.size is None else min(task.size, SCANNED))[0]:
        first.setdefault(problem.kind, problem)
    for problem in first.values():
        weigh([""], problem, rewards)


def instruction_of(run: Run, kind: AnswerKind) -> str | None:
    """What is appended to each question: the recipe's text, else for a user's file how to write the answer."""
    if run.instruction is not None:
        return run.instruction or None
    return INSTRUCTIONS.get(kind) if run.data is not None else None


def at_most(n: int, task: Task) -> int:
    """`n`, or all there is: a problem is never counted twice."""
    return n if task.size is None else min(n, task.size)


@dataclass(kw_only=True)
class Session:
    """An open run. Used as a context manager; everything a step needs is an attribute."""

    run: Run
    policy: Policy
    engine: SharedPrefillEngine
    optimizer: torch.optim.Optimizer
    task: Task
    validation: Task
    held_out: Task
    rewards: Mapping[str, float]
    sampling: Sampling
    instruction: str | None
    log: RunLog
    bad: BadSamples
    observers: Sequence[Observer]
    cursor: int = 0
    done: int = 0
    saved: int | None = None
    clock: Clock = field(default_factory=Clock)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Run, observers: Sequence[Observer] = ()) -> Session:
        """Check everything that can be checked before the first minute is spent. Raises UserError."""
        find_algorithm(run.algorithm.name)
        if run.method == "rl" and run.group < 2:
            raise UserError(
                f"group={run.group}: {run.algorithm.name} compares the replies to one problem; give at least group=2."
            )
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        task, validation, held_out = open_tasks(run)
        rewards = run.rewards or default_rewards(task.kind)
        check_weights(rewards)
        _check_rewards_fit(rewards, task)
        check_run_folder(run_folder(run))
        policy = load_policy(
            run.model,
            device=run.device,
            dtype=run.dtype,
            download=run.download,
            freeze=run.freeze,
            reply_tokens=run.sampling.max_new_tokens,
        )
        instruction = instruction_of(run, task.kind)
        if run.on_bad_sample == "stop":
            check_largest(policy, task, instruction, policy.encode_target if run.method == "sft" else None)
        log = RunLog(run_folder(run))
        session = cls(
            run=run,
            policy=policy,
            engine=SharedPrefillEngine(policy),
            optimizer=make_optimizer(policy, run.optimizer),
            task=task,
            validation=validation,
            held_out=held_out,
            rewards=rewards,
            sampling=Sampling(
                temperature=run.sampling.temperature, max_new_tokens=run.sampling.max_new_tokens
            ),
            instruction=instruction,
            log=log,
            bad=BadSamples.of(run, log),
            observers=(log, *observers),
        )
        description = describe_run(run) | {"rewards": dict(rewards), "instruction": session.instruction}
        for observer in session.observers:
            observer.start(description)
        return session

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()

    def budget_spent(self) -> bool:
        """Whether the steps so far have used the run's CPU seconds."""
        return self.run.cpu_seconds is not None and self.clock.cpu_seconds >= self.run.cpu_seconds

    def record(self, step: int, metrics: dict[str, Any], examples: list[dict[str, Any]]) -> None:
        """A step is done: one line of metrics.jsonl."""
        self.done = step + 1
        seconds = self.clock.last_seconds
        timing = {"seconds": seconds, "tokens_per_seconds": metrics["tokens"] / max(seconds, 1e-9)}
        for observer in self.observers:
            observer.step({"step": step} | metrics | timing, examples)

    def take(
        self, check: Callable[[Prompt], object] | None = None
    ) -> tuple[tuple[Prompt, ...], dict[str, int]]:
        """The step's problems as prompts, without the bad ones, and how many those were, as a metric.

        Raises UserError when a bad sample ends the run.
        """
        found = gather(self.task, self.cursor, self.run.prompts, self.policy, self.instruction, check)
        self.cursor = found.cursor
        self.note(found.bad)
        return found.prompts, {"bad_samples": len(found.bad)}

    def evaluate(self, phase: str) -> None:
        """One line of evaluations.jsonl: the held-out split before and after, the validation split on the way."""
        section, during = self.run.evaluation, phase == "during"
        name = "validation" if during else section.split
        split = "held-out lines" if self.run.data is not None else name
        head = {"step": self.done, "phase": phase, "split": split}
        try:
            record = head | self._measure(during)
        except UserError as error:
            self._leave_out_bad(during, error)
            record = head | self._measure(during)
        self.evaluations[phase] = record
        for observer in self.observers:
            observer.evaluation(record)

    def _measure(self, during: bool) -> dict[str, Any]:
        section, task = self.run.evaluation, self.validation if during else self.held_out
        return evaluate(
            self.policy,
            self.engine,
            task,
            at_most(section.during if during else section.n, task),
            seed=self.run.seed,
            max_new_tokens=self.run.sampling.max_new_tokens,
            instruction=self.instruction,
            samples=0 if during else section.samples,
            temperature=self.run.sampling.temperature,
            rewards=tuple(self.rewards),
            show=0 if during else 12,
            keep=self.log.pictures,
        )

    def _leave_out_bad(self, during: bool, error: UserError) -> None:
        """An evaluation met a bad sample: stop, or measure on the problems that are left, now and later.

        An `error` that no problem of the evaluation explains is raised again.
        """
        section, task = self.run.evaluation, self.validation if during else self.held_out
        n = at_most(section.during if during else section.n, task)
        left, bad = without_bad(task, n, self.policy, self.instruction)
        if not bad:
            raise error
        self.note(bad)
        if during:
            self.validation = left
        else:
            self.held_out = left

    def note(self, bad: Sequence[BadSample]) -> None:
        """Record bad samples. Raises UserError when they end the run; what was trained so far is saved."""
        try:
            self.bad.note(bad, self.done)
        except UserError:
            if self.done:
                self.save()
            raise

    def save(self) -> None:
        """A checkpoint of the steps so far, unless it is there."""
        if self.saved != self.done:
            checkpoints.save(self.log, self.policy, self.optimizer, self.done, {"cursor": self.cursor})
            self.saved = self.done

    def finish(self) -> dict[str, Any]:
        """The before/after table of the run, written to result.json. Point estimates of `looking` and the like:
        their intervals are in evaluations.jsonl."""
        before, after = self.evaluations["before"], self.evaluations["after"]
        result = {name: before[name] for name in ("task", "split", "n", "chance")}
        result |= {"metric": "accuracy", "before": before["accuracy"], "after": after["accuracy"]}
        for name in ("looking", "swapped", "follow", "blank"):
            result[name] = {"before": before[name]["mean"], "after": after[name]["mean"]}
        if "pass_at_k" in before:
            result["pass_at_k"] = {"before": before["pass_at_k"], "after": after["pass_at_k"]}
        result |= {
            "method": self.run.method,
            "seed": self.run.seed,
            "steps": self.done,
            "train_seconds": round(self.clock.wall_seconds, 3),
            "train_cpu_seconds": round(self.clock.cpu_seconds, 3),
        }
        for observer in self.observers:
            observer.finish(result)
        return result


def open_for_evaluation(run: Run) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    """What `fovea evaluate` needs: (policy, engine, held-out task, instruction). Raises UserError."""
    return _open_for_measuring(run, run.evaluation.split, EVALUATION_SEED + run.seed)


def open_for_filter(run: Run) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    """The same for `fovea filter`: a built-in task's training problems, those of the run's seed."""
    return _open_for_measuring(run, "train", run.seed)


def _open_for_measuring(
    run: Run, split: str, seed: int
) -> tuple[Policy, SharedPrefillEngine, Task, str | None]:
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    if run.data is None:
        task: Task = open_task(run.task, split, seed)
    else:
        task = _open(run, run.data, shuffle=False)
    policy = load_policy(
        run.model,
        device=run.device,
        dtype=run.dtype,
        download=run.download,
        reply_tokens=run.sampling.max_new_tokens,
    )
    return policy, SharedPrefillEngine(policy), task, instruction_of(run, task.kind)
