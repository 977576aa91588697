"""The neighbours of EgAS in the same slot: changes of the picture that no policy is asked about.

noisy_rollout   NoisyRollout's diffusion noise (arXiv:2504.13055), strength α_0 = 500
rotation        its rotation, at most 15 degrees
occlusion       its occlusion, a share of the picture
random_sign     ±ε at random: the control that an attack of the same ε must beat
share           R1-ShareVL's changes, told to the model (arXiv:2505.16673)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fovea.interventions.noise import (
    diffusion_noise,
    generator,
    occluded,
    random_sign,
    rotated,
    told_change,
)
from fovea.interventions.slot import Changed, Moment, Pixels, Seen
from fovea.types import Problem

Draw = Callable[[np.ndarray, Moment, np.random.Generator], np.ndarray]
"""A canvas, where in the run, randomness of this problem -> another canvas of the same size."""

STRENGTHS = {"noisy_rollout": 500.0, "rotation": 15.0, "occlusion": 0.1}
"""What each has where the recipe says nothing: NoisyRollout's for Geometry3K, its degrees; the share is our choice."""


def each_picture(
    draw: Draw, *, moves: bool = False
) -> Callable[[Sequence[Seen], Pixels, Moment], list[Changed]]:
    """A `change` that treats every picture by itself. `moves`: things lie elsewhere afterwards."""

    def change(seen: Sequence[Seen], pixels: Pixels, moment: Moment) -> list[Changed]:
        return [_one(one, draw, moves, moment) for one in seen]

    return change


def _one(one: Seen, draw: Draw, moves: bool, moment: Moment) -> Changed:
    if not one.canvases:
        return Changed(skipped="no_picture")
    if moves and not may_move(one.problem):
        return Changed(skipped="moves_the_answer")
    rng = _generator(one, moment)
    return Changed(canvases=tuple(draw(canvas, moment, rng) for canvas in one.canvases))


def _generator(one: Seen, moment: Moment) -> np.random.Generator:
    again = f" {moment.draw}" if moment.draw else ""
    return generator(moment.seed, moment.step, one.problem.id, one.occurrence, purpose=f"intervention{again}")


def noised(strength: float) -> Draw:
    """Diffusion noise of level int(strength · factor). NoisyRollout anneals to level 0, whose noise is 1.3 of 255."""
    return lambda canvas, moment, rng: diffusion_noise(canvas, int(strength * moment.factor), rng)


def signs(canvas: np.ndarray, moment: Moment, rng: np.random.Generator) -> np.ndarray:
    return random_sign(canvas, moment.epsilon, rng)


def turned(degrees: float) -> Draw:
    """Uniform in ±degrees · factor."""
    return lambda canvas, moment, rng: rotated(
        canvas, float(rng.uniform(-1.0, 1.0)) * degrees * moment.factor
    )


def hidden(share: float) -> Draw:
    return lambda canvas, moment, rng: occluded(canvas, share * moment.factor, rng)


def told(seen: Sequence[Seen], pixels: Pixels, moment: Moment) -> list[Changed]:
    """R1-ShareVL-style: the first picture of three problems in ten is changed and the question says how; the others are
    skipped as unchanged."""
    found = []
    for one in seen:
        if not one.canvases:
            found.append(Changed(skipped="no_picture"))
            continue
        rng = _generator(one, moment)
        first, sentence = told_change(one.canvases[0], rng, moves=may_move(one.problem))
        if sentence is None:
            found.append(Changed(skipped="unchanged"))
            continue
        if len(one.canvases) > 1:
            sentence = f"This is about the first picture: {sentence}"
        found.append(Changed(canvases=(first, *one.canvases[1:]), text=sentence))
    return found


def may_move(problem: Problem) -> bool:
    """Whether the answer stays right when the picture is turned or flipped, as far as a problem's kind says so.

    A box and the like do not, nor do self-supervised problems, which ask how a picture was changed. A question about
    left and right in words is not recognised: use noise there.
    """
    return problem.kind not in ("box", "objects") and not problem.task.startswith("ssl/")
