"""What a run does about problems that cannot be shown to the model: stop, or skip, name and count.

Not here: how a bad one is found (`fovea.rollouts.gather`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fovea.config import Run
from fovea.models import Policy, Prompt
from fovea.rollouts import BadSample
from fovea.runlog import RunLog
from fovea.types import Problem, Task, UserError, picture_sizes

SCANNED = 4096
"""Problems of a finite task among which the largest are looked for before training starts."""


@dataclass(kw_only=True, slots=True)
class BadSamples:
    """The bad samples of a run so far. Example: BadSamples(log=log, skip=True, limit=100)"""

    log: RunLog
    skip: bool
    """Go on without them; else the first one ends the run."""
    limit: int
    """Even then the run ends at so many different ones."""
    ids: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, run: Run, log: RunLog) -> BadSamples:
        return cls(log=log, skip=run.on_bad_sample == "skip", limit=run.max_bad_samples)

    def note(self, bad: Sequence[BadSample], step: int) -> None:
        """Write each to bad_samples.jsonl the first time it is met. Raises UserError when the run must end."""
        for one in bad:
            if one.id not in self.ids:
                self.ids.add(one.id)
                self.log.bad_sample({"step": step, "id": one.id, "problem": one.error})
        if bad and not self.skip:
            raise UserError(
                f"{bad[0].error.rstrip('.')}; the run stopped at step {step} and its log is kept in "
                f"{self.log.folder} (on_bad_sample=skip goes on without such samples)."
            )
        if bad and len(self.ids) >= self.limit:
            raise UserError(
                f"{len(self.ids)} samples could not be used, the last one because: {bad[-1].error.rstrip('.')}; "
                f"the run stopped at step {step}: correct those listed in {self.log.folder / 'bad_samples.jsonl'}, "
                "or raise max_bad_samples."
            )


def largest_prompts(
    policy: Policy,
    task: Task,
    instruction: str | None,
    check: Callable[[Prompt], object] | None = None,
    *,
    skip: bool = False,
) -> list[Prompt]:
    """The problems of a task that are most likely too long, rendered before the first minute is spent.

    Of a finite task: the one with the longest question, the one with the most pixels and the one with the longest
    target among the first `SCANNED`; of an endless one the first. Raises UserError naming a problem that cannot be
    shown to the model, or leaves it out with `skip`.
    """
    prompts = []
    for problem in task.take(0, 1)[0] if task.size is None else _largest(task, min(task.size, SCANNED)):
        try:
            prompt = policy.prompt(problem, instruction)
            if check is not None:
                check(prompt)
        except UserError:
            if not skip:
                raise
        else:
            prompts.append(prompt)
    return prompts


def _largest(task: Task, n: int) -> list[Problem]:
    sizes: tuple[Callable[[Problem], int], ...] = (
        lambda problem: len(problem.question),
        lambda problem: sum(width * height for width, height in picture_sizes(problem)),
        lambda problem: len(problem.target or ""),
    )
    best: list[tuple[int, Problem] | None] = [None] * len(sizes)
    for position in range(0, n, 64):
        for problem in task.take(position, min(64, n - position))[0]:
            for i, size in enumerate(sizes):
                held = best[i]
                if held is None or size(problem) > held[0]:
                    best[i] = (size(problem), problem)
    return list({problem.id: problem for held in best if held is not None for problem in [held[1]]}.values())
