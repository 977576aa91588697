"""The rewards of a run: built-in ones in this process, the user's own in killable workers, added up by weight.

    with make_scorer({"iou": 1.0, "my_rewards.py:short": 0.2}, journal=folder / "reward_journal.jsonl") as scorer:
        scores = scorer.weigh(texts, problem, step=3)

Not here: a user's function (`loading.py`, `calls.py`), killing it (`workers.py`), advantages (`fovea.algorithms`).
"""

from __future__ import annotations

import math
import queue
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from fovea.rewards.calls import Batch
from fovea.rewards.functions import REWARDS, asks_outside, check_weights, is_reference, weigh
from fovea.rewards.journal import HEAD, Entry, Journal, RewardEvent, hash_texts
from fovea.rewards.judge import judge_of
from fovea.rewards.loading import Fault, Source
from fovea.rewards.matching import Compat
from fovea.rewards.options import Options, plain_sum, with_compat
from fovea.rewards.routing import check_used
from fovea.rewards.workers import Search, Worker, default_memory
from fovea.types import Problem, RunFailed, UserError, occurrences


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One group to score.

    Example: Job(texts=("<answer>3</answer>", "?"), problem=problem)
    """

    texts: tuple[str, ...]
    problem: Problem
    token_ids: tuple[tuple[int, ...], ...] | None = None
    """Beside `texts`, for functions that read `completion_ids`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What the replies to one problem are worth."""

    rewards: np.ndarray
    """float64 [G]: Σ weight · part over the parts that scored the completion; NaN where none did."""
    parts: dict[str, np.ndarray]
    """Name → float64 [G], unweighted; NaN where a function returned None. The entries of a breakdown follow as
    `name/entry` and have no weight."""
    events: tuple[RewardEvent, ...]
    """Completions on which a reward failed (with on_error="zero")."""
    metrics: dict[str, float]
    """What functions gave to `log_metric`."""
    rescued: tuple[tuple[str, str], ...] = ()
    """(name, a sentence) of each function whose call for the group failed, although none of its replies alone does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerSettings:
    """How a run treats reward code; the names of the recipe's keys are given in the texts."""

    seed: int = 0
    steps: int = 0
    timeout: float = 30.0
    """`reward_timeout`: seconds one function may take for one group."""
    on_error: Literal["stop", "zero"] = "stop"
    """`on_reward_error`: whether a failure ends the run or gives the completion `error_value`."""
    error_value: float = 0.0
    """`reward_on_error`."""
    workers: int = 1
    """`reward_workers`: groups scored at the same time."""
    memory_bytes: int | None = None
    """`reward_memory_gb`; None: half of the machine's."""
    form: Literal["auto", "text", "chat"] = "auto"
    """`reward_completions`: how TRL functions get completions."""


@dataclass(kw_only=True)
class Scorer:
    """Scores groups. Made by `make_scorer`, used as a context manager: the workers end with it.

    Starts nothing until `check` or the first group, and never a process when every reward is built in.
    """

    weights: Mapping[str, float]
    """Every reward that is computed; weight 0: only shown (an audit)."""
    sources: tuple[Source, ...]
    settings: ScorerSettings
    journal: Journal
    options: Options = field(default_factory=dict)
    """Of the built-in rewards, checked (`options.with_compat`)."""
    counts: dict[str, float] = field(default_factory=dict)
    _workers: list[Worker] = field(default_factory=list)
    _logged: dict[str, list[float]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._own = {source.name for source in self.sources}
        self._short = short_names(list(self.weights))
        memory = self.settings.memory_bytes if self.settings.memory_bytes is not None else default_memory()
        if self.sources:
            self._workers = [
                Worker(sources=self.sources, form=self.settings.form, memory_bytes=memory)
                for _ in range(self.settings.workers)
            ]

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and close the journal."""
        for worker in self._workers:
            worker.kill()
        self.journal.close()

    def check(self, problems: Sequence[Problem]) -> None:
        """Before the first step: every function loads and fits these problems (one of each kind is enough).

        Raises UserError: a file or function that is not there, a signature that fits neither form, a column that
        the problems do not have, a built-in reward for other answers. No function of the user's is called.
        """
        for problem in problems:
            if inside := self._inside(problem):
                weigh([""], problem, inside, options=self.options)
            for name in self._own:
                lacking, there = self._workers[0].missing_columns(name, problem)
                if lacking:
                    raise UserError(
                        f"The reward {name!r} needs {', '.join(lacking)}, which problems of {problem.task} do not "
                        f"have; rename the parameter to one of {', '.join(there)}, or give it a default."
                    )

    def _inside(self, problem: Problem) -> dict[str, float]:
        """The weights of the rewards that this process computes for a problem."""
        return {name: weight for name, weight in self.weights.items() if not self._outside(name, problem)}

    def _outside(self, name: str, problem: Problem) -> bool:
        """Whether a worker computes it: functions of the user's, `judge`, and `accuracy` where the judge decides."""
        return name in self._own and (name not in REWARDS or asks_outside(name, problem))

    def describe(self) -> dict[str, dict[str, str]]:
        """Name → {"style", "form", "code"} of the user's functions (after `check`), for run.json."""
        return {name: dict(facts) for worker in self._workers[:1] for name, facts in worker.facts.items()}

    def weigh(
        self,
        texts: Sequence[str],
        problem: Problem,
        *,
        step: int,
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> Scores:
        """Score one group. Raises UserError (a function cannot be used) and RunFailed (it failed; on_error="stop")."""
        ids = None if token_ids is None else tuple(tuple(int(i) for i in row) for row in token_ids)
        return self.weigh_all([Job(texts=tuple(texts), problem=problem, token_ids=ids)], step=step)[0]

    def weigh_all(self, jobs: Sequence[Job], *, step: int) -> list[Scores]:
        """Score the groups of a step, `workers` at a time; results in the order of `jobs`, whatever ends first."""
        times = occurrences(job.problem.id for job in jobs)
        if not self.sources or len(self._workers) == 1:
            worker = self._workers[0] if self._workers else None
            found = [self._score(job, n, step, worker) for job, n in zip(jobs, times, strict=True)]
        else:
            free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
            for worker in self._workers:
                free.put(worker)

            def one(job: Job, n: int) -> tuple[Scores, list[Entry]]:
                worker = free.get()
                try:
                    return self._score(job, n, step, worker)
                finally:
                    free.put(worker)

            with ThreadPoolExecutor(len(self._workers)) as threads:
                found = list(threads.map(one, jobs, times))
        self.journal.add([entry for _, failed in found for entry in failed])
        for scores, _ in found:
            self._count(scores)
        return [scores for scores, _ in found]

    def take_metrics(self) -> dict[str, float]:
        """Counts and logged metrics since the last call; empty when every reward is built in.

        `reward_timeouts`, `reward_errors` (every other failure; all of a group that could be scored in pieces only),
        `reward_unscored` (completions that no function scored), and `reward/NAME` for what functions gave to
        `log_metric`.
        """
        if not self.sources:
            return {}
        counts = {"reward_timeouts": 0.0, "reward_errors": 0.0, "reward_unscored": 0.0} | self.counts
        logged = {f"reward/{name}": float(np.mean(numbers)) for name, numbers in self._logged.items()}
        self.counts, self._logged = {}, {}
        return {name: int(number) for name, number in counts.items()} | logged

    def _count(self, scores: Scores) -> None:
        for event in scores.events:
            name = "reward_timeouts" if event.kind == "timeout" else "reward_errors"
            self.counts[name] = self.counts.get(name, 0.0) + 1
        for name, sentence in scores.rescued:
            self.counts["reward_errors"] = self.counts.get("reward_errors", 0.0) + len(scores.rewards)
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        lost = int(np.isnan(scores.rewards).sum())
        self.counts["reward_unscored"] = self.counts.get("reward_unscored", 0.0) + lost
        for name, number in scores.metrics.items():
            self._logged.setdefault(name, []).append(number)

    def _score(
        self, job: Job, occurrence: int, step: int, worker: Worker | None
    ) -> tuple[Scores, list[Entry]]:
        parts: dict[str, np.ndarray] = {}
        details: dict[str, np.ndarray] = {}
        metrics: dict[str, float] = {}
        failed: list[Entry] = []
        rescued: list[tuple[str, str]] = []
        tokens = None if job.token_ids is None else [len(ids) for ids in job.token_ids]
        built: dict[str, np.ndarray] = {}
        if inside := self._inside(job.problem):
            built = weigh(job.texts, job.problem, inside, options=self.options, tokens=tokens)[1]
        for name in self.weights:
            if name in inside:
                parts[name] = built[name]
                continue
            assert worker is not None, "a function of the user's has a worker"
            entry, fault = self._resolve(name, job, occurrence, step, worker)
            if fault is not None:
                rescued.append((name, _rescued(name, job, step, fault)))
            short = self._short[name]
            parts[short] = np.array([math.nan if v is None else v for v in entry.values], dtype=np.float64)
            details |= {f"{short}/{key}": np.array(column) for key, column in entry.parts.items()}
            metrics |= entry.metrics
            failed += [entry] if entry.events else []
        weight_K = np.array(list(self.weights.values()))
        scores = Scores(
            rewards=nan_sum(weight_K, np.stack(list(parts.values()))),
            parts=parts | details,
            events=tuple(event for entry in failed for event in entry.events),
            metrics=metrics,
            rescued=tuple(rescued),
        )
        return scores, failed

    def _resolve(
        self, name: str, job: Job, occurrence: int, step: int, worker: Worker
    ) -> tuple[Entry, Fault | None]:
        """What one function gives to a group, from the journal, else by calling it; and `Resolved.rescued`."""
        worker.start()
        code, texts = worker.facts[name]["code"], hash_texts(job.texts)
        known = self.journal.find((step, job.problem.id, name, texts, code, occurrence))
        if known is not None:
            return known, None
        settings = self.settings
        batch = Batch(
            texts=job.texts,
            token_ids=job.token_ids or tuple(() for _ in job.texts),
            problem=job.problem,
            step=step,
            steps=settings.steps,
            seed=settings.seed,
        )
        stop = settings.on_error == "stop"
        search = Search(worker=worker, name=name, batch=batch, limit=settings.timeout, first_only=stop)
        resolved = search.run()
        faults = {i: value for i, value in enumerate(resolved.values) if isinstance(value, Fault)}
        events = tuple(self._event(name, job, step, i, fault) for i, fault in faults.items())
        entry = Entry(
            step=step,
            problem=job.problem.id,
            reward=name,
            texts=texts,
            code=code,
            values=tuple(settings.error_value if isinstance(v, Fault) else v for v in resolved.values),
            parts=resolved.parts,
            metrics=resolved.metrics,
            events=events,
            occurrence=occurrence,
        )
        return entry, resolved.rescued

    def _event(self, name: str, job: Job, step: int, i: int, fault: Fault) -> RewardEvent:
        """What a fault becomes. With on_error="stop" raises RunFailed, or UserError where the settings are at fault."""
        event = RewardEvent(
            step=step,
            reward=name,
            problem=job.problem.id,
            sample=i,
            kind=fault.kind,
            detail=fault.detail,
            value=self.settings.error_value,
            text_head=job.texts[i][:HEAD],
        )
        if self.settings.on_error == "stop":
            fix = fault.fix or ("see to the judge" if name in REWARDS else "correct the function")
            failure = RunFailed if fault.fix is None else UserError
            raise failure(
                f"{event.sentence()}; {fix}, or set on_reward_error=zero to count such completions "
                f"as {self.settings.error_value:g}."
            )
        return event


def _rescued(name: str, job: Job, step: int, fault: Fault) -> str:
    return (
        f"The reward {name!r} {'raised ' * (fault.kind == 'raised')}{fault.detail} when called for the "
        f"{len(job.texts)} replies of problem {job.problem.id} in step {step}, and worked only on fewer or single "
        "replies; correct the function (further groups like this are counted in reward_errors)."
    )


def nan_sum(weight_K: np.ndarray, part_KG: np.ndarray) -> np.ndarray:
    """Weighted sums float64 [G] of parts [K, G] in which NaN means "not scored by this function".

        r_i = Σ_{k scored i} w_k · part_{k,i},   NaN where no k with w_k ≠ 0 scored i           TRL 1.16, GRPOTrainer

    Left to right like `functions.weigh`, so that adding an audit (weight 0) leaves every bit as it was.
    """
    total_G = np.zeros(part_KG.shape[1], dtype=np.float64)
    scored_G = np.zeros(part_KG.shape[1], dtype=bool)
    for weight, part_G in zip(weight_K, part_KG, strict=True):
        if weight != 0:
            there_G = ~np.isnan(part_G)
            total_G[there_G] += weight * part_G[there_G]
            scored_G |= there_G
    if not weight_K.any():
        scored_G[:] = True  # nothing is rewarded: 0, as the built-in rewards have it
    total_G[~scored_G] = math.nan
    return total_G


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Name of each reward in metrics and parts: `path/file.py:brief` → "brief", unless another one has that name."""
    tails = [name.rpartition(":")[2] for name in names]
    return {
        name: tail if tails.count(tail) == 1 and tail not in REWARDS else name
        for name, tail in zip(names, tails, strict=True)
    }


def make_scorer(
    weights: Mapping[str, float],
    functions: Mapping[str, Callable[..., Any]] | None = None,
    *,
    audits: Sequence[str] = (),
    settings: ScorerSettings | None = None,
    journal: Path | None = None,
    options: Options | None = None,
    compat: Compat = None,
) -> Scorer:
    """The scorer of a run.

    `weights`: name → weight; a name is a built-in reward, `path/file.py:function`, `package.module:function` or a key
    of `functions` (any callable of either signature, closures included). `audits`: more rewards by name that are
    computed and never rewarded (names that are no reward are left to `fovea.audits`). `journal`: see `journal.py`.
    `options`, `compat`: of built-in rewards, as in `functions.weigh`.
    Raises UserError for an unknown name or option, options of a reward that is not computed, a weight that is not
    finite and a function that cannot be pickled.
    """
    given = dict(functions or {})
    clash = sorted(set(given) & set(REWARDS))
    if clash:
        raise UserError(f"{clash[0]!r} is a built-in reward; give the function another name.")
    check_weights(weights, known=tuple(given))
    extra = [name for name in audits if name in REWARDS or name in given or is_reference(name)]
    every = dict(weights) | {name: 0.0 for name in extra if name not in weights}
    known = with_compat(REWARDS, options, compat)
    check_used(options or {}, every)
    asked = known.get("judge", {})
    sources = []
    for name in every:
        if name in given:
            sources.append(Source(name=name, pickled=_pickled(name, given[name])))
        elif name not in REWARDS:
            sources.append(Source(name=name))
        elif name == "judge" or (name == "accuracy" and asked.get("url")):
            judge_of(asked)  # refused here rather than in the worker
            sources.append(Source(name=name, options=dict(asked)))
    return Scorer(
        weights=plain_sum(every, compat),
        sources=tuple(sources),
        settings=settings or ScorerSettings(),
        journal=Journal(journal),
        options=known,
    )


def _pickled(name: str, function: Callable[..., Any]) -> bytes:
    import cloudpickle  # only runs with functions of their own pay for it

    try:
        return cloudpickle.dumps(function)
    except Exception as error:
        raise UserError(
            f"The reward {name!r} cannot be sent to its worker process ({type(error).__name__}: {error}); let it open "
            "files, locks and models itself instead of taking them from outside."
        ) from None
