"""What a run needs, opened once: policy, tasks, engine, optimizer, log; and what it leaves behind.

Everything that decides how a run goes on is in `Session.state`: a checkpoint holds that, the weights, the optimizer and
the random generators, and nothing else is needed. It is taken between two steps, so that a step that fails half-way
leaves the state before it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import torch

from fovea import checkpoints
from fovea.audits import Watch
from fovea.config import Run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.evaluation import evaluate
from fovea.models import Policy, Prompt
from fovea.models.reference import Reference
from fovea.phases import CLEAN, Explorer
from fovea.rewards import REWARDS, correct
from fovea.rewards.scorer import Scorer
from fovea.rollouts import BadSample, gather, without_bad
from fovea.rollouts.episodes import Stage
from fovea.runlog import RunLog, describe_run
from fovea.tasks.curriculum import MixedTask
from fovea.training.ahead import Ahead
from fovea.training.bad_samples import BadSamples
from fovea.training.environment import has_environment, measure_episodes
from fovea.training.problems import EVALUATION_SEED, at_most, instruction_of
from fovea.training.stopping import best_of, no_longer_rises, value_of
from fovea.training.strips import strip
from fovea.types import Group, Observer, RunFailed, Sampling, Task, UserError


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


class Stateful(Protocol):
    """A part of a run that remembers: a replay buffer, a controller, an audit. Its state goes into checkpoints."""

    def state(self) -> dict[str, Any]:
        """Plain JSON in which NumPy arrays may stand; never changed afterwards."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


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
    scorer: Scorer
    watch: Watch
    observers: Sequence[Observer]
    problems: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the training, validation and held-out problems."""
    downstream: Mapping[str, Task] = field(default_factory=dict)
    """Held-out problems of tasks that are not trained on, measured before and after (`evaluation.also`)."""
    reference: Reference | None = None
    """What a KL term compares the policy with; None where there is none."""
    explorer: Explorer | None = None
    """Samples groups in two phases; None where the recipe names no intervention."""
    stage: Stage | None = None
    """The episodes that are learned from; None where the recipe names no environment."""
    parts: dict[str, Stateful] = field(default_factory=dict)
    """Whatever remembers something from step to step, by name (`watch` and `replay`, so far)."""
    cursor: int = 0
    """Where the next step's problems begin; `take` moves it."""
    done: int = 0
    """Steps done."""
    nonfinite: int = 0
    """Steps in a row that were skipped because a loss or gradient was not finite."""
    clock: Clock = field(default_factory=Clock)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Every evaluation so far, in order."""
    _boundary: dict[str, Any] = field(default_factory=dict)
    _logged: dict[str, int] = field(default_factory=dict)
    _saved: int | None = None
    _waited: float = 0.0
    _ahead: Ahead | None = None

    def __enter__(self) -> Session:
        if self.run.deterministic:
            torch.use_deterministic_algorithms(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ahead is not None:
            self._ahead.close()
        if self.stage is not None:
            self.stage.close()
        self.scorer.close()
        self.log.close()
        if self.run.deterministic:
            torch.use_deterministic_algorithms(False)

    # ---------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides weights, optimizer and the reference."""
        return {
            "problems": dict(self.problems),
            "cursor": self.cursor,
            "done": self.done,
            "nonfinite": self.nonfinite,
            "bad_ids": sorted(self.bad.ids),
            "wall_seconds": self.clock.wall_seconds,
            "cpu_seconds": self.clock.cpu_seconds,
            "evaluations": list(self.evaluations),
            "parts": {name: part.state() for name, part in self.parts.items()},
            "policy_version": self.policy.version,
            "random": checkpoints.random_state(),
        }

    def _at_boundary(self) -> None:
        """Between two steps, everything of the last one written: what a checkpoint made from now on holds."""
        self._boundary, self._logged = self.state(), self.log.offsets()

    def begin(self, saved: checkpoints.Saved | None, resume: bool) -> None:
        """Put back what was saved, cut the logs back to it, and tell the observers. Raises UserError before anything of
        the run folder is touched."""
        asked = {"rewards": dict(self.rewards), "instruction": self.instruction}
        described = describe_run(self.run) | asked | {"reward_functions": self.scorer.describe()}
        if saved is not None:
            for which, digest in saved.state["problems"].items():
                if self.problems.get(which) != digest:
                    raise UserError(
                        f"The {which} problems are not those that {self.log.folder} began with (other lines, answers "
                        "or pictures); put the old ones back, or start a new run from its newest model."
                    )
            checkpoints.restore(saved, self.policy, self.optimizer)
            state = saved.state
            self.cursor, self.done, self.nonfinite = state["cursor"], state["done"], state["nonfinite"]
            self.bad.ids.update(state["bad_ids"])
            self.clock = Clock(wall_seconds=state["wall_seconds"], cpu_seconds=state["cpu_seconds"])
            self.evaluations = list(state["evaluations"])
            for name, part in self.parts.items():
                part.restore(state["parts"][name])
            if self.reference is not None:
                self.reference.load_state_dict(state["reference"])
            self._saved = self.done
        else:
            checkpoints.seed_random(self.run.seed)
        if resume:
            self.log.truncate({} if saved is None else saved.logs)
            described = self.log.resumed(described, self.done)
        if self.log.notes:
            described["notes"] = list(self.log.notes)
        for observer in self.observers:
            observer.start(described)
        self._at_boundary()
        for record in self.evaluations:
            for observer in self.observers:
                if observer is not self.log:  # it holds them already
                    observer.evaluation(record)

    def save(self) -> None:
        """A checkpoint of the last whole step, unless it is there. Nothing before the first step, or if the weights
        are beyond the last whole one."""
        state = self._boundary
        beyond = self.policy.version != state["policy_version"]
        if state["done"] in (0, self._saved) or beyond:
            return
        # taken now, not at every step, because it may be large; it changes at the end of steps only
        reference = {} if self.reference is None else self.reference.state_dict()
        whole = state | {"reference": reference}
        checkpoints.save(self.log, self.policy, self.optimizer, state["done"], whole, logs=self._logged)
        self._saved = state["done"]
        best = self.best()
        also = [self._saved] if best is None else [self._saved, best["step"]]
        checkpoints.prune(self.log.folder, self.run.keep_checkpoints, also)

    @property
    def saved(self) -> int | None:
        """Steps that the newest checkpoint of this run holds; None without one."""
        return self._saved

    # ---------------------------------------------------------------- steps

    def over(self) -> bool:
        """Whether no further step is to be done."""
        return self.ended_by() is not None

    def ended_by(self) -> str | None:
        """Why the run is over: "steps", "cpu_seconds" or "patience"; None while it is not."""
        if self.done >= self.run.steps:
            return "steps"
        if self.run.cpu_seconds is not None and self.clock.cpu_seconds >= self.run.cpu_seconds:
            return "cpu_seconds"
        section = self.run.evaluation
        if no_longer_rises(self._on_the_way(), section.metric, section.patience):
            return "patience"
        return None

    def take(
        self, check: Callable[[Prompt], object] | None = None, n: int | None = None
    ) -> tuple[tuple[Prompt, ...], dict[str, int]]:
        """The next problems (a step's `prompts`, or `n`) as prompts, without the bad ones, and how many those were,
        as a metric.

        Raises UserError when a bad sample ends the run.
        """
        found = gather(
            self._ahead or self.task, self.cursor, n or self.run.prompts, self.policy, self.instruction, check
        )
        self.cursor = found.cursor
        self._waited += found.seconds
        self.note(found.bad)
        return found.prompts, {"bad_samples": len(found.bad)}

    def look_ahead(self) -> None:
        """Begin to make the next step's problems; after the last decision that they depend on.

        Only of the built-in tasks that are made from pictures and graphs: a user's own may draw from the global random
        generators, whose state between two steps is what a resumed run goes on with.
        """
        if not isinstance(self.task, MixedTask):
            return
        if self._ahead is None:
            self._ahead = Ahead(task=self.task)
        if self.done + 1 < self.run.steps:
            self._ahead.begin(self.cursor, self.run.prompts)

    def observe(self, groups: Sequence[Group]) -> dict[str, float | int]:
        """Tell the controllers of the tasks' difficulty what came of the step's groups; their metrics, by task."""
        curriculum: Any = self.parts.get("curriculum")
        if curriculum is None:
            return {}
        problems, shares = [group.problem for group in groups], [success(group) for group in groups]
        return dict(curriculum.observe(problems, shares, self.cursor))

    def note(self, bad: Sequence[BadSample]) -> None:
        """Record bad samples. Raises UserError when they end the run."""
        self.bad.note(bad, self.done)

    def record(self, metrics: dict[str, Any], examples: list[dict[str, Any]]) -> None:
        """A step is done: one line of metrics.jsonl. Raises RunFailed after too many steps that were not finite."""
        step, self.done = self.done, self.done + 1
        warned = [warning.record() for warning in self.watch.step(step, metrics)]
        metrics = metrics | ({"warnings": warned} if warned else {})
        every = self.run.reference_sync_steps
        if self.reference is not None and every and self.done % every == 0:
            self.reference.sync()
        seconds = self.clock.last_seconds
        waited, self._waited = self._waited, 0.0
        timing = {
            "seconds": seconds,
            "data_seconds": waited,
            "tokens_per_seconds": metrics["tokens"] / max(seconds, 1e-9),
        }
        cache = self.policy.vision_cache
        if cache.hits:  # like times not part of what a resumed run repeats: it begins with an empty cache
            timing |= {"vision_memory_hits": cache.hits, "vision_memory_misses": cache.misses}
        for observer in self.observers:
            observer.step({"step": step} | metrics | timing, examples)
        self.nonfinite = self.nonfinite + 1 if metrics.get("nonfinite") else 0
        self._at_boundary()
        if self.nonfinite >= self.run.max_nonfinite:
            raise RunFailed(
                f"The loss or the gradient was not finite in {self.nonfinite} steps in a row, up to step {step}; "
                "the weights are those before these steps. Start a new run with a lower optimizer.learning_rate, from "
                "the saved model if you like (model=RUN/checkpoints/step_N/model)."
            )

    # ---------------------------------------------------------------- evaluations

    def due(self) -> str | None:
        """The evaluation that stands before the next step: "before", "during" or None."""
        every, last = self.run.evaluation.every, self.evaluations[-1] if self.evaluations else None
        if self.done == 0:
            return None if last else "before"
        on_the_way = every > 0 and self.done % every == 0 and self.done < self.run.steps
        return "during" if on_the_way and (last is None or last["step"] != self.done) else None

    def evaluate(
        self, phase: str, at_once: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    ) -> None:
        """One line of evaluations.jsonl: the held-out split before and after, the validation split on the way.

        `at_once`: inside it a signal may interrupt, for nothing is remembered yet.
        """
        section, during = self.run.evaluation, phase == "during"
        name = "validation" if during else section.split
        split = "held-out lines" if self.run.data is not None else name
        head = {"step": self.done, "phase": phase, "split": split}
        with at_once():
            try:
                record = head | self._measure(during)
            except UserError as error:
                self._leave_out_bad(during, error)
                record = head | self._measure(during)
        if during and value_of(record, section.metric) is None:
            known = ", ".join(key for key in record if value_of(record, key) is not None)
            raise UserError(f"evaluation.metric={section.metric!r} is not in an evaluation; known: {known}.")
        self.evaluations.append(record)
        for observer in self.observers:
            observer.evaluation(record)
        self._at_boundary()
        if during and self.best() is record:
            self.save()
            value = value_of(record, section.metric)
            self.log.best({"step": self.done, "metric": section.metric, "value": value, "split": split})

    def best(self) -> Mapping[str, Any] | None:
        """The evaluation on the way with the highest `evaluation.metric`; its checkpoint is kept."""
        return best_of(self._on_the_way(), self.run.evaluation.metric)

    def _on_the_way(self) -> list[dict[str, Any]]:
        return [record for record in self.evaluations if record["phase"] == "during"]

    def _measure(self, during: bool) -> dict[str, Any]:
        played = has_environment(self.run)
        record = self._measure_episodes(during) if played else self._measure_questions(during)
        return record if during or not self.downstream else record | {"also": self._also()}

    def _measure_questions(self, during: bool) -> dict[str, Any]:
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
            rewards=tuple(name for name in self.rewards if name in REWARDS),
            options=self.scorer.options,
            show=0 if during else 12,
            keep=self.log.pictures,
        )

    def _measure_episodes(self, during: bool) -> dict[str, Any]:
        section, task = self.run.evaluation, self.validation if during else self.held_out
        return measure_episodes(
            self.run,
            self.policy,
            self.engine,
            self.instruction,
            at_most(section.during if during else section.n, task),
            split="validation" if during else section.split,
            seed=EVALUATION_SEED,
            samples=0 if during else section.samples,
            look=not during,
            keep=lambda episode: strip(self.log, episode),
            show=0 if during else 4,
        )

    def _also(self) -> dict[str, Any]:
        """Task → accuracy and looking on problems that are not trained on, with their own default rewards."""
        found = {}
        for name, task in self.downstream.items():
            found[name] = evaluate(
                self.policy,
                self.engine,
                task,
                at_most(self.run.evaluation.also_n, task),
                seed=self.run.seed,
                max_new_tokens=self.run.sampling.max_new_tokens,
                instruction=instruction_of(self.run, task),
            )
            found[name].pop("shown")
        return found

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

    def finish(self) -> dict[str, Any]:
        """The before/after table of the run, written to result.json. Point estimates of `looking` and the like:
        their intervals are in evaluations.jsonl."""
        before, after, best = self.evaluations[0], self.evaluations[-1], self.best()
        result = {name: before[name] for name in ("task", "split", "n", "chance")}
        result |= {"metric": "accuracy", "before": before["accuracy"], "after": after["accuracy"]}
        for name in ("looking", "swapped", "follow", "blank", "return"):
            if name not in before or name not in after:
                continue
            result[name] = {"before": before[name]["mean"], "after": after[name]["mean"]}
        if "pass_at_k" in before:
            result["pass_at_k"] = {"before": before["pass_at_k"], "after": after["pass_at_k"]}
        if self.downstream:
            result["also"] = {
                name: _both(before["also"][name], after["also"][name]) for name in self.downstream
            }
        result |= {
            "method": self.run.method,
            "seed": self.run.seed,
            "steps": self.done,
            "ended_by": self.ended_by(),
            "best_step": None if best is None else best["step"],
            "train_seconds": round(self.clock.wall_seconds, 3),
            "train_cpu_seconds": round(self.clock.cpu_seconds, 3),
        }
        for observer in self.observers:
            observer.finish(result)
        return result


def _both(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """One task's accuracy and looking, before and after: {"n", "chance", "accuracy", "looking"}."""
    looking = {"before": before["looking"]["mean"], "after": after["looking"]["mean"]}
    accuracy = {"before": before["accuracy"], "after": after["accuracy"]}
    return {"n": before["n"], "chance": before["chance"], "accuracy": accuracy, "looking": looking}


def success(group: Group) -> float:
    """Share of right replies, 0 to 1, of those that were sampled under the pictures as they are: what an intervention
    does to the others says nothing about how difficult the problem is."""
    own = [reply for reply in group.completions if reply.variant == CLEAN]
    return sum(correct(reply.text, group.problem) for reply in own) / len(own)
