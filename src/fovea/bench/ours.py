"""Our whole step for the bench: raw pictures → prompts → replies → advantages → backward → AdamW.

The same functions in the same order as a run's step, without logs. The reward is the bench's own, so that no
group is without signal (our update leaves such groups out, TRL's computes them).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fovea.algorithms import algorithm_of
from fovea.bench.case import SIZES, PartClock, Work, full_length, make_problems
from fovea.bench.ways import TOKENS_PER_PASS
from fovea.config import InterventionSection, OptimizerSection, Run, SamplingSection
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.interventions import Changed, Moment, Pixels, Seen
from fovea.models.construct import random_policy_parts
from fovea.models.kept import keeping
from fovea.models.policy import make_policy
from fovea.phases import Explorer, plain
from fovea.rollouts import rollout_metrics, to_samples
from fovea.training.exploring import open_explorer
from fovea.training.optim import make_optimizer
from fovea.training.update import one_step, update
from fovea.types import Group, Problem

LEARNING_RATE = 1e-5


def bench_reward(text: str) -> float:
    """A number in [0, 1) that differs from reply to reply: advantages are not zero. Says nothing about the text."""
    return zlib.crc32(text.encode("utf-8", errors="replace")) / 2**32


class OurSteps:
    """A random policy and its optimizer; `step(i, problems)` does one step of GRPO."""

    def __init__(
        self,
        work: Work,
        tokens_per_pass: int = TOKENS_PER_PASS,
        intervention: InterventionSection | None = None,
    ) -> None:
        model, processor = random_policy_parts(work.family, work.seed, **SIZES)
        self.work = work
        self.policy = make_policy(model, processor)
        self.clock = PartClock()
        self.run = Run(
            prompts=work.prompts,
            group=work.group,
            tokens_per_pass=tokens_per_pass,
            sampling=SamplingSection(max_new_tokens=work.response_tokens),
            optimizer=OptimizerSection(learning_rate=LEARNING_RATE),
            intervention=intervention or InterventionSection(),
        )
        self._explorer = self._open_explorer()
        self._sampling = full_length(self.policy, work)
        self._engine = SharedPrefillEngine(self.policy)
        self._optimizer = make_optimizer(self.policy, self.run.optimizer)
        time_optimizer(self._optimizer, self.clock)

    def _open_explorer(self) -> Explorer | None:
        """The run's, with the time of the intervention as a part of its own."""
        explorer = open_explorer(self.run, self.policy, None)
        if explorer is None:
            return None
        change = explorer.intervention.change

        def timed(seen: Sequence[Seen], pixels: Pixels, moment: Moment) -> list[Changed]:
            with self.clock.part("attack"):
                return change(seen, pixels, moment)

        explorer.intervention = replace(explorer.intervention, change=timed)
        return explorer

    def problems(self, count: int) -> list[Problem]:
        return make_problems(self.work, self.policy.model.config, count)

    def step(self, index: int, problems: Sequence[Problem]) -> int:
        """One step; parts of its CPU seconds go to `clock`. Returns the number of sampled tokens."""
        algorithm = algorithm_of(self.run)
        with self.clock.part("image and text"):
            prompts = [self.policy.prompt(problem) for problem in problems]
        with self.clock.part("generate"), keeping(self.policy, self.run.tokens_per_pass):
            sample = plain if self._explorer is None else self._explorer.draw
            drawn = sample(prompts, self._engine, self.work.group, self._sampling, seed=(0, index))
        with self.clock.part("other"):
            groups = []
            for prompt, completions, variants in zip(
                drawn.prompts, drawn.replies, drawn.variants, strict=True
            ):
                rewards = np.array([bench_reward(completion.text) for completion in completions])
                groups.append(
                    Group(
                        problem=prompt.problem,
                        prompt=prompt,
                        completions=completions,
                        rewards=rewards,
                        parts={"bench": rewards},
                        variants=variants,
                    )
                )
            samples = to_samples(groups, algorithm, self.work.response_tokens)
        with self.clock.part("forward and backward"):
            first = one_step(self.run, algorithm)
            update(
                self.policy, self._optimizer, samples, algorithm, self._sampling, self.run, index, first=first
            )
        with self.clock.part("other"):
            tokens = int(rollout_metrics(groups)["tokens"])
        return tokens


def time_optimizer(optimizer: torch.optim.Optimizer, clock: PartClock) -> None:
    """Book the optimizer's own step as a part, through its public hooks."""
    opened: list[Any] = []

    def before(*_: Any) -> None:
        part = clock.part("optimizer")
        part.__enter__()
        opened.append(part)

    def after(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
