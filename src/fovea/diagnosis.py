"""What a model does not see yet, and what to train it on: success and looking on every self-supervised task.

Measured on pictures of the validation split (the test split is for results), for every task at a few difficulties,
easiest first; where a task is at chance, harder problems are not asked. Then `propose` says what to train on:

    success   s        mean over problems of the share of right sampled replies
    above     a        (s - chance) / (1 - chance)
    variance  v        mean over problems of k/(k - 1) p(1 - p), p the share of k right replies: what GRPO learns from
    looking   l        greedy accuracy less the accuracy under another problem's pictures, as a share of 1 - chance
    at chance          neither s nor l is above its chance level (chance, 0) by its 95 % interval

    difficulty of a task   among those with v > 0, not at chance if there are any: a nearest to the controller's band
                           (0.4 to 0.7); of equally near ones a nearest to its middle, then the easier one
    weight of a task       v (1 - l), l cut to 0..1: large where rewards differ and the model does not look
    left out               tasks whose replies are all right or all wrong at every difficulty (v = 0)
    at chance everywhere   what may be learned from lucky hits only: together `AT_CHANCE` of the mixture

The rule is our choice; that tasks must be neither too easy nor too hard is SSL4RL's finding. Not here: changing
difficulties while training (`fovea.tasks.curriculum`), which the written recipe turns on.

Try it: `fovea diagnose fovea-tiny images=FOLDER pictures.side=64 --task ssl/crop --task ssl/flip --n 32`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fovea.config import DifficultySection, Run, nearest
from fovea.engines import Engine
from fovea.evaluation import evaluate
from fovea.models import Policy
from fovea.outcomes import Outcome
from fovea.runlog import write_atomically
from fovea.statistics import average
from fovea.tasks.opening import pool_of
from fovea.tasks.ssl import SSL, SslTask, open_ssl
from fovea.tasks.ssl.spec import check_options
from fovea.training.problems import EVALUATION_SEED, instruction_of, open_model
from fovea.types import UserError

DIFFICULTIES = (0.1, 0.5, 0.9)
AT_CHANCE = 0.2
"""Share of the mixture of all tasks together on which the model is at chance, where there are others."""

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One task at one difficulty.

    Example: Measured(task="ssl/crop", difficulty=0.1, n=64, chance=0.2, accuracy=0.7, sampled=0.6, looking=0.5,
    variance=0.15, at_chance=False)
    """

    task: str
    difficulty: float
    n: int
    """Problems."""
    chance: float
    accuracy: float
    """Of greedy replies."""
    sampled: float
    """Mean success of sampled replies."""
    looking: float | None
    """None where no problem could be shown another one's pictures."""
    variance: float
    """Mean over problems of the variance of a sampled reply's being right, 0 to 0.25."""
    at_chance: bool
    intervals: dict[str, Any] = field(default_factory=dict)
    """95 % of accuracy, sampled and looking."""

    @property
    def above(self) -> float:
        """Sampled success above chance as a share of what there is above chance; below 0 for worse than chance."""
        return (self.sampled - self.chance) / (1 - self.chance)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What to train on. Example: Proposal(mixture={"ssl/crop": 1.0}, levels={"ssl/crop": 0.5}, left_out={})"""

    mixture: dict[str, float]
    """Task → share of the problems, together 1 but for rounding."""
    levels: dict[str, float]
    """Task → difficulty to begin at."""
    left_out: dict[str, str]
    """Task → why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What was measured, what could not be, and what follows."""

    measured: tuple[Measured, ...]
    skipped: dict[str, str]
    """Task → why it could not be asked of these pictures."""
    proposal: Proposal

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        measured = [asdict(one) | {"above_chance": one.above} for one in self.measured]
        return {"measured": measured, "skipped": self.skipped} | asdict(self.proposal)


# --- the rule --------------------------------------------------------------------------------------------------


def propose(measured: Sequence[Measured], low: float = 0.4, high: float = 0.7) -> Proposal:
    """The mixture and difficulties that the module's docstring describes. `low`, `high`: the band."""
    by_task: dict[str, list[Measured]] = {}
    for one in measured:
        by_task.setdefault(one.task, []).append(one)
    chosen: dict[str, Measured] = {}
    left_out = {}
    for task, found in by_task.items():
        usable = [one for one in found if one.variance > 0 and _weight(one) > 0]
        if usable:
            chosen[task] = _nearest_to_band(usable, low, high)
        else:
            left_out[task] = _why_left_out(found)
    seen = {task: one for task, one in chosen.items() if not one.at_chance}
    blind = {task: one for task, one in chosen.items() if one.at_chance}
    rest = AT_CHANCE if seen and blind else 1.0
    mixture = _shares(seen, 1.0 - AT_CHANCE if blind else 1.0) | _shares(blind, rest)
    return Proposal(
        mixture={task: mixture[task] for task in chosen},
        levels={task: one.difficulty for task, one in chosen.items()},
        left_out=left_out,
    )


def _nearest_to_band(usable: Sequence[Measured], low: float, high: float) -> Measured:
    seeing = [one for one in usable if not one.at_chance] or usable

    def distance(one: Measured) -> tuple[float, float, float]:
        outside = max(low - one.above, one.above - high, 0.0)
        return round(outside, 9), round(abs(one.above - (low + high) / 2), 9), one.difficulty

    return min(seeing, key=distance)


def _weight(one: Measured) -> float:
    looking = 0.0 if one.looking is None else one.looking / (1 - one.chance)
    return one.variance * (1 - min(1.0, max(0.0, looking)))


def _shares(chosen: dict[str, Measured], together: float) -> dict[str, float]:
    total = sum(map(_weight, chosen.values()))
    return {task: max(0.001, round(together * _weight(one) / total, 3)) for task, one in chosen.items()}


def _why_left_out(found: Sequence[Measured]) -> str:
    if all(one.sampled == 0 for one in found):
        return "never right: no reward to learn from; easier problems, or supervised training first"
    if all(one.sampled == 1 for one in found):
        return "always right, at every difficulty: nothing is left to learn"
    return "every problem is always right or always wrong: replies to one problem do not differ"


# --- measuring -------------------------------------------------------------------------------------------------


def diagnose(
    run: Run,
    names: Sequence[str] = (),
    *,
    n: int = 64,
    samples: int = 4,
    difficulties: Sequence[float] = DIFFICULTIES,
    say: Say | None = None,
) -> Diagnosis:
    """Measure the run's model on tasks (default: all) over the run's pictures; `samples` >= 2 replies a problem.

    A pure function of the model, the pictures and the run's seed. `say` is told each line of the table as it is
    measured. Raises UserError for what would do nothing, and if no task can be asked.
    """
    check_settings(run, names)
    pool = pool_of(run, "validation")
    model = open_model(run)
    measured: list[Measured] = []
    skipped: dict[str, str] = {}
    for name in names or SSL:
        for difficulty in sorted(difficulties):
            try:
                task = open_ssl(
                    name, "validation", EVALUATION_SEED + run.seed, pool=pool, level=difficulty,
                    options=run.task_options.get(name),
                )  # fmt: skip
                found = _measure(run, model, task, difficulty, n, samples)
            except UserError as error:  # the pictures do not suit it
                skipped.setdefault(name, str(error))
                break
            measured.append(found)
            if say is not None:
                say(measured_line(found))
            if found.at_chance:
                break
    if not measured:
        raise UserError(f"No task can be asked of these pictures: {next(iter(skipped.values()))}")
    return Diagnosis(
        measured=tuple(measured),
        skipped={name: why for name, why in skipped.items() if all(one.task != name for one in measured)},
        proposal=propose(measured, run.difficulty.low, run.difficulty.high),
    )


def check_settings(run: Run, names: Sequence[str]) -> None:
    """Raise UserError for a task that does not exist and for settings that would do nothing."""
    for name in names:
        if name not in SSL:
            raise UserError(
                f"There is no self-supervised task {name!r}{nearest(name, list(SSL))}; known: {', '.join(SSL)}."
            )
    for name, given in run.task_options.items():
        if name not in (names or SSL):
            raise UserError(f"task_options.{name} would do nothing: the task is not among those diagnosed.")
        check_options(name, SSL[name], given)
    idle = [
        key
        for key, given in (
            ("mixture", run.mixture),
            ("data", run.data),
            ("difficulty.levels", run.difficulty.levels),
        )
        if given
    ]
    if idle:
        raise UserError(
            f"{idle[0]} would do nothing: fovea diagnose proposes tasks and difficulties; leave it away (--task names "
            "the tasks to measure)."
        )


def _measure(
    run: Run, model: tuple[Policy, Engine], task: SslTask, difficulty: float, n: int, samples: int
) -> Measured:
    policy, engine = model
    outcomes: list[Outcome] = []
    record = evaluate(
        policy,
        engine,
        task,
        n,
        seed=run.seed,
        max_new_tokens=run.sampling.max_new_tokens,
        instruction=instruction_of(run, task),
        samples=samples,
        temperature=run.sampling.temperature,
        rewards=(),
        outcomes=outcomes,
    )
    shares = [sum(one.samples) / samples for one in outcomes]
    sampled, looking = average(shares, run.seed), record["looking"]
    lowest = looking["ci95"][0] if looking["ci95"] is not None else -math.inf
    return Measured(
        task=task.name,
        difficulty=difficulty,
        n=len(outcomes),
        chance=task.chance,
        accuracy=record["accuracy"]["mean"],
        sampled=sampled["mean"],
        looking=looking["mean"],
        variance=sum(p * (1 - p) for p in shares) * samples / (samples - 1) / len(shares),
        at_chance=sampled["ci95"][0] <= task.chance and lowest <= 0,
        intervals={
            "accuracy": record["accuracy"]["ci95"],
            "sampled": sampled["ci95"],
            "looking": looking["ci95"],
        },
    )


# --- what is written -------------------------------------------------------------------------------------------


def measured_line(one: Measured) -> str:
    """A line of the table."""
    looking = "   –" if one.looking is None else f"{one.looking:+.2f}"
    state = "at chance" if one.at_chance else ""
    return (
        f"{one.task:<16} difficulty {one.difficulty:<4g} chance {one.chance:<6.3f} greedy {one.accuracy:.2f}  "
        f"sampled {one.sampled:.2f}  looking {looking}  variance {one.variance:.3f}  {state}".rstrip()
    )


def proposal_lines(diagnosis: Diagnosis) -> list[str]:
    """What is proposed, what is left out and what was skipped, for people."""
    found = diagnosis.proposal
    lines = [
        f"train   {task:<16} share {share:<6.3f} difficulty {found.levels[task]:g}"
        for task, share in sorted(found.mixture.items(), key=lambda item: -item[1])
    ]
    lines += [f"not     {task:<16} {why}" for task, why in found.left_out.items()]
    return lines + [f"skipped {task:<16} {why}" for task, why in diagnosis.skipped.items()]


def recipe_of(run: Run, proposal: Proposal) -> dict[str, Any]:
    """The run as it was asked for, with the proposed mixture and difficulties, under control; no pictures named."""
    own = ("recipe", "run_dir", "images", "validation_images", "task", "mixture")
    values = run.model_dump(mode="json", exclude_defaults=True, exclude=set(own))
    options = {task: given for task, given in run.task_options.items() if task in proposal.mixture and given}
    values |= {"model": run.model, "mixture": proposal.mixture, "task_options": options}
    section = DifficultySection(**run.difficulty.model_dump() | {"control": True, "levels": proposal.levels})
    values["difficulty"] = section.model_dump(mode="json", exclude_defaults=True)
    values["pictures"] = values.get("pictures", {}) | {"side": run.pictures.side}
    return {key: value for key, value in values.items() if value != {}}


def check_out(out: Path) -> None:
    """Raise UserError, before anything is measured, if the recipe could not be written there."""
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out} is to be a recipe; give --out a name that ends in .yaml.")
    if out.exists():
        raise UserError(f"{out} exists already; choose another name with --out, or delete it.")
    if not out.parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}; make it.")


def write_recipe(out: Path, run: Run, diagnosis: Diagnosis) -> None:
    """A recipe that `fovea train OUT images=FOLDER` runs. Raises UserError if nothing is worth training on."""
    proposal = diagnosis.proposal
    if not proposal.mixture:
        raise UserError(
            f"No recipe is written to {out}: no task has replies that differ in their reward ("
            f"{'; '.join(f'{task}: {why}' for task, why in proposal.left_out.items())})."
        )
    head = [f"Proposed by fovea diagnose {run.model} (seed {run.seed}): fovea train {out} images=FOLDER"]
    head += [f"  measured: {measured_line(one)}" for one in diagnosis.measured]
    head += [f"  left out: {task}, {why}" for task, why in (proposal.left_out | diagnosis.skipped).items()]
    comments = "".join(f"# {_one_line(line)}\n" for line in head)
    text = yaml.safe_dump(recipe_of(run, proposal), sort_keys=False, allow_unicode=True, width=110)
    try:
        write_atomically(out, (comments + text).encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); choose another --out."
        ) from None


def _one_line(text: str) -> str:
    return text[: len(text) - len(text.lstrip())] + " ".join(text.split())
