"""What is measured on both sides: one model twice, prompts of one size, replies of one length, one clock."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fovea.models.adapter import Prompt
from fovea.models.construct import random_policy_parts
from fovea.models.policy import Policy, make_policy
from fovea.models.shared_prefix import Row
from fovea.types import Problem, Sampling

# Text 4 layers x 256, 4 heads on 2, vision 4 layers x 128, vocabulary 1024: 4.6 million weights as
# Qwen2.5-VL.
SIZES = {"text_mlp": 544}

QUESTION = "Where is the red circle? Answer with its box."


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One situation as plain numbers.

    Example: Work(image_tokens=256, prompts=4, group=8, response_tokens=32)
    """

    image_tokens: int = 64
    """Merged tokens of each (square) picture; rounded to a square."""
    prompts: int = 4
    """Prompts a step, one picture each."""
    group: int = 8
    """Replies a prompt (G)."""
    response_tokens: int = 32
    """Tokens of every reply (R): no reply may end early."""
    family: str = "qwen2_5_vl"
    """A family of `fovea.models.construct`."""
    seed: int = 0
    """Of weights and pictures."""

    @property
    def sequences(self) -> int:
        return self.prompts * self.group

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measured situation: the same weights twice, and prompts of one size."""

    policy: Policy
    """Ours."""
    plain: Any
    """The same weights in an untouched Hugging Face model with sdpa attention."""
    prompts: list[Prompt]
    group: int
    rows: list[Row]
    """`group` completions a prompt, by prompt, all of `response_tokens` tokens."""
    sampling: Sampling


def make_case(
    family: str, image_tokens: int, prompts: int, group: int, response_tokens: int, seed: int = 0
) -> Case:
    """A random model of the default size, `prompts` square pictures of about `image_tokens` merged tokens."""
    work = Work(
        family=family,
        image_tokens=image_tokens,
        prompts=prompts,
        group=group,
        response_tokens=response_tokens,
        seed=seed,
    )
    model, processor = random_policy_parts(family, seed, **SIZES)
    plain, _ = random_policy_parts(family, seed, **SIZES)
    policy = make_policy(model, processor)
    sampling = full_length(policy, work)
    allowed = np.setdiff1d(np.arange(model.config.text_config.vocab_size), policy.bans(sampling))
    draw = np.random.default_rng((seed, 1))
    return Case(
        policy=policy,
        plain=plain,
        prompts=[policy.prompt(problem) for problem in make_problems(work, model.config, prompts)],
        group=group,
        rows=[(i, draw.choice(allowed, response_tokens)) for i in range(prompts) for _ in range(group)],
        sampling=sampling,
    )


def make_problems(work: Work, config: Any, count: int) -> list[Problem]:
    """`count` problems, each with a square noise picture that needs no resize. `config`: the model's."""
    draw = np.random.default_rng((work.seed, 0))
    vision = config.vision_config
    side = max(1, round(math.sqrt(work.image_tokens))) * vision.patch_size * vision.spatial_merge_size
    return [
        Problem(
            id=str(i),
            task="bench",
            images=(Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)),),
            question=QUESTION,
            answer="",
            kind="text",
        )
        for i in range(count)
    ]


def full_length(policy: Policy, work: Work) -> Sampling:
    """Sampling in which no reply may end early, so that every way does the same work."""
    return Sampling(max_new_tokens=work.response_tokens, bans=policy.eos_ids)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class PartClock:
    """CPU seconds of this process by part. Parts nest; a part's seconds are its own, without those inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """The seconds since the last call, and start anew."""
        self._book()
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken

    def _book(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def mean_parts(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean seconds by part over steps."""
    names = list(dict.fromkeys(name for parts in steps for name in parts))
    return {name: round(sum(p.get(name, 0.0) for p in steps) / len(steps), 4) for name in names}
