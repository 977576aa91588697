"""Our whole step for the bench: raw pictures → prompts → replies → advantages → backward → AdamW.

The same functions in the same order as a run's step, without logs. The reward is the bench's own, so that no
group is without signal (our update leaves such groups out, TRL's computes them).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fovea.algorithms import find_algorithm
from fovea.bench.case import SIZES, PartClock, Work, full_length, make_problems
from fovea.bench.ways import TOKENS_PER_PASS
from fovea.config import OptimizerSection, Run, SamplingSection
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models.construct import random_policy_parts
from fovea.models.kept import keeping
from fovea.models.policy import make_policy
from fovea.rollouts import rollout_metrics, to_samples
from fovea.training.optim import make_optimizer
from fovea.training.update import update
from fovea.types import Group, Problem

LEARNING_RATE = 1e-5


def bench_reward(text: str) -> float:
    """A number in [0, 1) that differs from reply to reply: advantages are not zero. Says nothing about the text."""
    return zlib.crc32(text.encode("utf-8", errors="replace")) / 2**32


class OurSteps:
    """A random policy and its optimizer; `step(i, problems)` does one step of GRPO."""

    def __init__(self, work: Work, tokens_per_pass: int = TOKENS_PER_PASS) -> None:
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
        )
        self._sampling = full_length(self.policy, work)
        self._engine = SharedPrefillEngine(self.policy)
        self._optimizer = make_optimizer(self.policy, self.run.optimizer)
        time_optimizer(self._optimizer, self.clock)

    def problems(self, count: int) -> list[Problem]:
        return make_problems(self.work, self.policy.model.config, count)

    def step(self, index: int, problems: Sequence[Problem]) -> int:
        """One step; parts of its CPU seconds go to `clock`. Returns the number of sampled tokens."""
        algorithm = find_algorithm("grpo")
        with self.clock.part("image and text"):
            prompts = [self.policy.prompt(problem) for problem in problems]
        with self.clock.part("generate"), keeping(self.policy, self.run.tokens_per_pass):
            replies = self._engine.generate(prompts, self.work.group, self._sampling, seed=(0, index))
        with self.clock.part("other"):
            groups = []
            for prompt, completions in zip(prompts, replies, strict=True):
                rewards = np.array([bench_reward(completion.text) for completion in completions])
                groups.append(
                    Group(
                        problem=prompt.problem,
                        prompt=prompt,
                        completions=completions,
                        rewards=rewards,
                        parts={"bench": rewards},
                    )
                )
            samples = to_samples(groups, algorithm, self.work.response_tokens)
        with self.clock.part("forward and backward"):
            update(self.policy, self._optimizer, samples, algorithm, self._sampling, self.run, index)
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
