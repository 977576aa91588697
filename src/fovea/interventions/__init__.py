"""What may change the pictures that a policy explores with, and when. Pure functions and values, no torch.

    intervention_of(run.intervention)     the `Intervention` that a recipe names, or None

Adversarial pictures (`attack`, `selection`, `control`) are SaEI, *reconstructed* (docs/saei.md); the neighbours
(`neighbours`, `noise`) follow their papers and code. Not here: who samples under the changed pictures
(`fovea.phases`) and under which picture a completion is trained (`fovea.rollouts`).
"""

from __future__ import annotations

from fovea.config import InterventionSection
from fovea.interventions.attack import Attack, egas
from fovea.interventions.control import EpsilonControl
from fovea.interventions.neighbours import STRENGTHS, each_picture, hidden, noised, signs, told, turned
from fovea.interventions.schedules import factor
from fovea.interventions.selection import Selector, select
from fovea.interventions.slot import Answer, Ask, Changed, Intervention, Moment, Pixels, Seen

__all__ = [
    "Answer",
    "Ask",
    "Attack",
    "Changed",
    "EpsilonControl",
    "Intervention",
    "Moment",
    "Pixels",
    "Seen",
    "Selector",
    "active",
    "intervention_of",
    "moment_of",
    "select",
]


def intervention_of(section: InterventionSection) -> Intervention | None:
    """The intervention that the section names; None for "none"."""
    name = section.name
    strength = STRENGTHS.get(name, 0.0) if section.strength is None else section.strength
    if name == "egas":
        return Intervention(
            name=name, change=egas(_selector(section), _attack(section)), asks=True, ball=True
        )
    changes = {
        "noisy_rollout": each_picture(noised(strength)),
        "rotation": each_picture(turned(strength), moves=True),
        "occlusion": each_picture(hidden(strength)),
        "random_sign": each_picture(signs),
        "share": told,
    }
    if name == "none":
        return None
    return Intervention(name=name, change=changes[name], ball=name == "random_sign")


def _selector(section: InterventionSection) -> Selector:
    low, high = section.band
    return Selector(kind=section.select, fraction=section.fraction, low=low, high=high, scope=section.scope)


def _attack(section: InterventionSection) -> Attack:
    return Attack(
        steps=section.attack_steps,
        step_size=section.attack_step_size,
        restarts=section.restarts,
        random_start=section.random_start,
        guard=section.guard,
    )


def moment_of(
    section: InterventionSection, seed: int, step: int, steps: int, epsilon: float | None = None
) -> Moment:
    """Where the run is. `epsilon`: the controller's, in 1/255; default: the section's. Rounded down, into the ball; a
    hundredth of a step is forgiven, for a sigmoid is never quite 1."""
    left = factor(section.schedule, step, steps, steepness=section.steepness, middle=section.middle)
    radius = section.epsilon if epsilon is None else epsilon
    return Moment(seed=seed, step=step, epsilon=int(radius * left + 0.01), factor=left)


def active(intervention: Intervention, moment: Moment) -> bool:
    """Whether a second phase can differ: an ε below 1/255 survives no uint8, a strength of 0 changes nothing."""
    return moment.epsilon >= 1 if intervention.ball else moment.factor > 1e-3
