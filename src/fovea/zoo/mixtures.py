"""Which share of its problems each language stage takes from which task. Published in the model card."""

from __future__ import annotations

DESCRIBE = {
    "digits/describe": 0.18,
    "digits/read": 0.10,
    "shapes/describe": 0.14,
    "shapes/color": 0.05,
    "printed/number": 0.10,
    "printed/word": 0.08,
    "printed/letter": 0.05,
    "cards/name": 0.06,
    "cards/hand": 0.08,
    "grids/agent": 0.05,
    "grids/color": 0.05,
    "panels/show": 0.06,
}
"""Reading and describing, before anything must be looked up or put together."""

_SKILLS = {
    # What the quickstart asks for, digits/locate, is rare on purpose: RL needs something to draw out.
    "digits/locate": 3.5, "digits/describe": 5.0, "digits/read": 4.0, "digits/count": 3.0, "digits/largest": 2.0,
    "digits/sum": 2.0,
    "shapes/locate": 5.5, "shapes/describe": 3.0, "shapes/count": 2.5, "shapes/color": 3.0, "shapes/exists": 2.0,
    "shapes/left_of": 2.0, "shapes/count_color": 2.0,
    "printed/number": 3.5, "printed/word": 3.5, "printed/letter": 2.0, "printed/labelled": 3.0,
    "cards/name": 3.0, "cards/hand": 3.5, "cards/total": 2.0, "cards/count": 1.5, "cards/locate": 2.5,
    "cards/suit": 2.0, "cards/action": 2.0, "cards/compare": 1.5,
    "grids/agent": 3.0, "grids/goal": 2.0, "grids/facing": 2.0, "grids/color": 2.0, "grids/count": 1.5,
    "grids/ahead": 2.0, "grids/action": 2.0, "grids/locate": 2.5,
    "graphs/edge": 2.0, "graphs/neighbours": 2.0, "graphs/degree": 1.5, "graphs/nodes": 1.0, "graphs/edges": 0.5,
    "graphs/locate": 2.0, "graphs/path": 0.5, "graphs/text_edge": 0.7, "graphs/text_neighbours": 1.0,
    "panels/which": 3.0, "panels/show": 2.0, "panels/same": 1.0, "panels/odd": 1.5, "panels/count": 1.0,
    "photos/color": 1.0, "photos/brightest": 1.0, "photos/same": 1.0, "photos/quadrant": 1.0, "photos/rotation": 0.7,
    "photos/find": 2.0, "photos/count": 1.0, "photos/blurred": 1.0, "photos/grey": 1.0,
}  # fmt: skip
SKILLS = {name: part / sum(_SKILLS.values()) for name, part in _SKILLS.items()}

PLACES = {
    "digits/describe": 0.20,
    "shapes/describe": 0.18,
    "shapes/locate": 0.15,
    "grids/agent": 0.10,
    "grids/locate": 0.10,
    "photos/find": 0.07,
    "digits/locate": 0.05,
    "grids/goal": 0.05,
    "cards/locate": 0.05,
    "graphs/locate": 0.05,
}
"""Only questions whose answer says where something is: what is looked at rightly must also be written rightly."""

BOTH = {name: 0.5 * SKILLS.get(name, 0.0) + 0.5 * PLACES.get(name, 0.0) for name in SKILLS}

MIXTURES: dict[str, dict[int, dict[str, float]]] = {
    "describe": {0: DESCRIBE},
    "skills": {0: SKILLS, 600: PLACES},
    "practice": {0: BOTH, 800: SKILLS},
}
"""Stage → step from which it holds → task → share. `printed/locate` is in none: later work measures generalisation
on it."""


def mixture_at(stage: str, step: int) -> dict[str, float]:
    """The shares that hold at a step of a stage."""
    phases = MIXTURES[stage]
    return phases[max(first for first in phases if first <= step)]
