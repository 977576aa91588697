"""EgAS: pictures under which the completions that were just sampled have a higher entropy. A *reconstruction*.

SaEI's page says that the entropy of the sampled responses is the objective and that its gradient attacks the picture;
kind of attack, radius, steps and everything else could not be found (docs/saei.md). The default is one FGSM step
(arXiv:1412.6572) of 4/255. PGD (arXiv:1706.06083) takes several, projects, and may start at random.

The ball is the L∞ ball of whole steps of 1/255 around the clean canvas, cut to 0..255. What is handed back is uint8:
FGSM with a whole ε loses nothing to rounding, PGD rounds at its end and projects again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fovea.interventions.noise import generator
from fovea.interventions.selection import Selector, mean_weights, select
from fovea.interventions.slot import Answer, Ask, Changed, Moment, Pixels, Seen, Skip

Pictures = tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """How the ball is searched. Example: Attack(steps=3, step_size=2.0, restarts=2, random_start=True)"""

    steps: int = 1
    """1 with a step of ε is FGSM."""
    step_size: float | None = None
    """In 1/255; None: ε for one step, else 2.5 ε / steps, which reaches every point of the ball from every other one
    (Madry et al.'s rule)."""
    restarts: int = 1
    """Searches a problem; the one of highest value counts."""
    random_start: bool = False
    """Whether the first search, too, begins at a random point of the ball. The others always do."""
    guard: float = 0.0
    """Weight of the mean KL on the tokens that are not selected. It has no gradient at the clean picture, so it needs
    more than one step."""


def egas(selector: Selector, attack: Attack) -> Callable[[Sequence[Seen], Pixels, Moment], list[Changed]]:
    """The `change` of an `Intervention`."""

    def change(seen: Sequence[Seen], pixels: Pixels, moment: Moment) -> list[Changed]:
        masks = select([one.entropies for one in seen], [one.content for one in seen], selector)
        found = {
            i: Changed(skipped=skip, masks=masks[i])
            for i, one in enumerate(seen)
            if (skip := _skip(one, masks[i], moment)) is not None
        }
        asks = [
            Ask(which=i, weights=mean_weights(masks[i]), guards=_guards(masks[i], attack.guard))
            for i in range(len(seen))
            if i not in found
        ]
        for ask, pictures in zip(asks, _search(seen, asks, pixels, attack, moment), strict=True):
            i = ask.which
            skipped: Skip | None = "no_gradient" if pictures is None else None
            found[i] = Changed(canvases=pictures or (), skipped=skipped, masks=masks[i])
        return [found[i] for i in range(len(seen))]

    return change


def _skip(one: Seen, masks: Sequence[np.ndarray], moment: Moment) -> Skip | None:
    if not one.canvases:
        return "no_picture"
    if moment.epsilon < 1:
        return "annealed"
    return None if any(mask.any() for mask in masks) else "nothing_selected"


def _guards(masks: Sequence[np.ndarray], weight: float) -> Pictures | None:
    """The KL's weights: a mean over the tokens that are not selected."""
    others = max(1, sum(int((~mask).sum()) for mask in masks))
    return tuple((~mask * (weight / others)).astype(np.float32) for mask in masks) if weight > 0 else None


# ---------------------------------------------------------------- the search


def _search(
    seen: Sequence[Seen], asks: Sequence[Ask], pixels: Pixels, attack: Attack, moment: Moment
) -> list[Pictures | None]:
    """For every ask uint8 pictures in the ball, or None where there was no gradient to follow."""
    if not asks:
        return []
    clean = [seen[ask.which].canvases for ask in asks]
    if attack.steps == 1 and attack.restarts == 1 and not attack.random_start and attack.step_size is None:
        answers = pixels.gradients(asks)
        return [fgsm(c, a, moment.epsilon) if usable(a) else None for c, a in zip(clean, answers)]
    best: list[tuple[float, Pictures | None]] = [(-np.inf, None)] * len(asks)
    for restart in range(attack.restarts):
        found = _descend(seen, asks, pixels, attack, moment, restart)
        if attack.restarts == 1:
            return found
        alive = [(i, ask, p) for i, (ask, p) in enumerate(zip(asks, found)) if p is not None]
        shown = [replace(ask, canvases=_floats(pictures)) for _, ask, pictures in alive]
        for (i, _, pictures), answer in zip(alive, pixels.values(shown), strict=True):
            if answer.value > best[i][0]:
                best[i] = (answer.value, pictures)
    return [pictures for _, pictures in best]


def _descend(
    seen: Sequence[Seen], asks: Sequence[Ask], pixels: Pixels, attack: Attack, moment: Moment, restart: int
) -> list[Pictures | None]:
    """One search of all problems side by side (an ascent, in truth)."""
    epsilon = moment.epsilon
    size = attack.step_size or (float(epsilon) if attack.steps == 1 else 2.5 * epsilon / attack.steps)
    clean = [seen[ask.which].canvases for ask in asks]
    now = [_floats(pictures) for pictures in clean]
    if attack.random_start or restart:
        now = [
            tuple(x + rng.uniform(-epsilon, epsilon, x.shape).astype(np.float32) for x in pictures)
            for pictures, rng in zip(now, _generators(seen, asks, moment, restart))
        ]
        now = [project(pictures, c, epsilon) for pictures, c in zip(now, clean)]
    alive = [True] * len(asks)
    for step in range(attack.steps):
        first = step == 0 and not (attack.random_start or restart)
        shown = [ask if first else replace(ask, canvases=p) for ask, p in zip(asks, now)]
        for i, answer in enumerate(pixels.gradients(shown)):
            alive[i] = alive[i] and usable(answer)
            if alive[i]:
                moved = tuple(x + size * np.sign(g) for x, g in zip(now[i], answer.gradients))
                now[i] = project(moved, clean[i], epsilon)
    return [rounded(p, c, epsilon) if ok else None for p, c, ok in zip(now, clean, alive)]


def _generators(
    seen: Sequence[Seen], asks: Sequence[Ask], moment: Moment, restart: int
) -> list[np.random.Generator]:
    chosen = [seen[ask.which] for ask in asks]
    return [
        generator(
            moment.seed, moment.step, one.problem.id, one.occurrence, purpose=f"pgd {restart} {moment.draw}"
        )
        for one in chosen
    ]


def fgsm(clean: Pictures, answer: Answer, epsilon: int) -> Pictures:
    """uint8: clip(x + ε sign(g), 0, 255), equation 1 of arXiv:1412.6572 with ε in whole steps. A pixel without
    gradient stays."""
    return tuple(
        np.clip(c.astype(np.int16) + epsilon * np.sign(g).astype(np.int16), 0, 255).astype(np.uint8)
        for c, g in zip(clean, answer.gradients, strict=True)
    )


def project(pictures: Pictures, clean: Pictures, epsilon: int) -> Pictures:
    """float32: the nearest point of the ball that is a picture."""
    whole = [c.astype(np.float32) for c in clean]
    return tuple(
        np.clip(np.clip(x, c - epsilon, c + epsilon), 0, 255).astype(np.float32)
        for x, c in zip(pictures, whole)
    )


def rounded(pictures: Pictures, clean: Pictures, epsilon: int) -> Pictures:
    """uint8, in the ball: the centre and radius are whole, so rounding a point inside stays inside; projected again
    all the same."""
    whole = project(tuple(np.rint(x) for x in pictures), clean, epsilon)
    return tuple(x.astype(np.uint8) for x in whole)


def usable(answer: Answer) -> bool:
    """Whether there is a direction: every gradient finite, one of them not all zero."""
    finite = all(np.isfinite(g).all() for g in answer.gradients)
    return finite and any(g.any() for g in answer.gradients)


def _floats(pictures: Pictures) -> Pictures:
    return tuple(x.astype(np.float32) for x in pictures)
