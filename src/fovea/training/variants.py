"""The forward variants of a step: the prompts under which completions are scored again, for loss terms.

    variants_of(policy, run, step, instruction)      {"masked": prompt -> prompt}; empty where no term asks

A variant is a function of (run's seed, step, problem), so that a resumed run makes the same ones. Not here: who scores
(`update`), what a term makes of it (`fovea.algorithms`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fovea.algorithms import MASKED
from fovea.config import Run
from fovea.interventions.noise import PAPO_SIDE, blocks_masked, generator
from fovea.models import Policy, Prompt
from fovea.models.canvas import canvases, on_canvas
from fovea.training.update import Variants


@dataclass(frozen=True, kw_only=True, slots=True)
class Masked:
    """The prompt with blocks of its pictures black; one without pictures is itself. Made once for a prompt object."""

    policy: Policy
    share: float
    """Probability with which a block of 14 x 14 pixels, at model-input resolution, is black: 0 to 1."""
    seed: int
    step: int
    instruction: str | None = None
    """That of the run's prompts."""
    made: dict[int, tuple[Prompt, Prompt]] = field(default_factory=dict, repr=False)
    """By the identity of a prompt: it (which must live as long as its identity is a key) and its masked one."""

    def __call__(self, prompt: Prompt) -> Prompt:
        """Raises UserError for a picture that has no canvas."""
        if not prompt.picture_tokens:
            return prompt
        if id(prompt) not in self.made:
            rng = generator(self.seed, self.step, prompt.problem.id, purpose="papo")
            pictures = [
                blocks_masked(canvas, PAPO_SIDE, self.share, rng) for canvas in canvases(self.policy, prompt)
            ]
            masked = on_canvas(self.policy, prompt, pictures, instruction=self.instruction)
            self.made[id(prompt)] = (prompt, masked)
        return self.made[id(prompt)][1]


def variants_of(policy: Policy, run: Run, step: int, instruction: str | None) -> Variants:
    """What the recipe's loss terms ask for, of one step."""
    if run.algorithm.papo == 0:
        return {}
    share = run.algorithm.papo_mask
    return {MASKED: Masked(policy=policy, share=share, seed=run.seed, step=step, instruction=instruction)}
