"""The prompts' forward pass of a rollout, kept with its graph for the update that follows.

The first update after a rollout sees the weights that sampled, so the prompts that the engine encoded need not be
encoded again: `backward` takes the graph from here. Rollout, update: one forward through the vision tower and the
prompts instead of two, with the same bits.

    with keeping(policy, run.tokens_per_pass):
        groups = collect(...)
    update(...)

What is kept takes the memory that the update would take for the same prompts; nothing is kept that the update would
not encode in one go (more than `tokens` prompt tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fovea.models.adapter import Prompt
    from fovea.models.policy import Policy


@dataclass(kw_only=True, slots=True)
class Kept:
    """At most one packed set of prompts."""

    tokens: int = 0
    """Most prompt tokens that are kept; 0: nothing is."""
    version: int = -1
    """Of the policy, when they were encoded."""
    prompts: tuple[Prompt, ...] = ()
    prefix: Any = None
    """Their `Prefix`, with its graph."""

    def wants(self, prompts: Sequence[Prompt]) -> bool:
        """Whether these are to be kept: the first set of a rollout that is small enough."""
        return self.prefix is None and sum(len(prompt.token_ids) for prompt in prompts) <= self.tokens

    def put(self, version: int, prompts: Sequence[Prompt], prefix: Any) -> None:
        self.version, self.prompts, self.prefix = version, tuple(prompts), prefix

    def take(
        self, version: int, prompts: Sequence[Prompt], *, keep: bool = False
    ) -> tuple[Any, tuple[int, ...]] | None:
        """(prefix, place of each prompt in it), once, or with `keep` again; None where encoding anew is right or
        cheaper.

        A backward pass through all that was kept costs two forward passes through it, so it pays while the wanted
        prompts are two thirds of it or more.
        """
        held, prefix, same = self.prompts, self.prefix, self.version == version
        if not keep:
            self.drop()
        place = {id(prompt): i for i, prompt in enumerate(held)}
        if prefix is None or not same or any(id(prompt) not in place for prompt in prompts):
            return None
        wanted = sum(len(prompt.token_ids) for prompt in prompts)
        if 3 * wanted < 2 * sum(len(prompt.token_ids) for prompt in held):
            return None
        return prefix, tuple(place[id(prompt)] for prompt in prompts)

    def drop(self) -> None:
        self.prompts, self.prefix = (), None


@contextmanager
def keeping(policy: Policy, tokens: int) -> Iterator[None]:
    """Rollouts inside keep up to `tokens` prompt tokens for the next `backward`."""
    policy.kept.drop()
    policy.kept.tokens = tokens
    try:
        yield
    finally:
        policy.kept.tokens = 0
