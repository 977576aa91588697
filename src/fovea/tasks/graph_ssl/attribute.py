"""`graph/attribute`: a node's attribute is hidden, its neighbours' are shown: which one is it? And `graph/class`.

`graph/class` asks the same of the attribute that is the graph's class (`Network.label`); it is for measuring: node
classification, never trained where a study says so. The choices are drawn first, the truth evenly among them, then a
node that has it, so a value's share of the graph says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from fovea.tasks.graph_ssl.ego import CHOICES, LETTERS, Names, Show, around, display, shown_edges
from fovea.tasks.graph_ssl.network import Part
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.spec import Generator, step_of
from fovea.types import UserError

NUMBERS = (2, 3, 4)
"""How many choices, easiest first."""


def chance(
    difficulty: float,
    *,
    show: Show = "text",
    names: Names = "letters",
    edges: int = 0,
    choices: int = 0,
    attribute: str = "",
) -> float:
    return 1 / (choices or step_of(difficulty, NUMBERS))


def _maker(task: str, pick: Callable[[Part], str | None]) -> Callable[..., Asked]:
    """`make` of a task that asks for the attribute that `pick` names, unless the option does."""

    def make(
        part: Part,
        rng: np.random.Generator,
        difficulty: float,
        *,
        show: Show = "text",
        names: Names = "letters",
        edges: int = 0,
        choices: int = 0,
        attribute: str = "",
    ) -> Asked:
        """`edges`: how many are shown at most (0: 6 to 12 by the difficulty). `choices`: how many, 2 to 6 (0: 2 to 4 by
        the difficulty). `attribute`: another than the graph's own choice."""
        if choices and not 2 <= choices <= 6:
            raise UserError(f"Task {task!r}: choices={choices} is not 2 to 6; 0 means: by the difficulty.")
        values = _values(part, task, attribute or pick(part))
        offered, node = _drawn(part, rng, task, values, choices or step_of(difficulty, NUMBERS))
        shown = around(part, rng, (node,), shown_edges(difficulty, edges))
        ego = display(part, rng, (node,), shown, show, names, LETTERS[len(CHOICES) :])
        told = [
            f"{ego.named[other]} {values[other]}"
            for other in sorted(ego.named, key=ego.named.__getitem__)
            if other != node and other in values
        ]
        options = ", ".join(f"{letter}: {value}" for letter, value in zip(CHOICES, offered))
        answer = CHOICES[offered.index(values[node])]
        me = ego.named[node]
        near = [f"{ego.named[w]} {values[w]}" for w in ego.linked(node) if w in values]
        return Asked(
            images=ego.images,
            question=f"{ego.told} Known: {', '.join(told) or 'nothing'}. What is {me}? {options}.",
            answer=answer,
            said=answer,
            thought=f"{me} is linked to {', '.join(near) or 'nothing known'}.",
            difficulty=difficulty,
            meta={
                "node": node,
                "truth": values[node],
                "offered": offered,
                "near": [values[w] for w in ego.linked(node) if w in values],
                "edges": [list(pair) for pair in ego.edges],
            },
        )

    return make


def _values(part: Part, task: str, attribute: str | None) -> Mapping[str, str]:
    """Node → value of the attribute to ask for. Raises UserError where the graph has none."""
    known = part.network.attributes
    if attribute is None or attribute not in known:
        there = (
            f"known: {', '.join(known)}"
            if known
            else "it has none: give GraphML or a networkx graph with some"
        )
        what = f"no attribute {attribute!r}" if attribute else "no attribute to ask for"
        raise UserError(f"Task {task!r}: the graph {part.network.name} has {what} of nodes; {there}.")
    return known[attribute]


def _drawn(
    part: Part, rng: np.random.Generator, task: str, values: Mapping[str, str], n: int
) -> tuple[list[str], str]:
    """(n different values in random order, a node of the split that has one of them). Raises UserError."""
    having: dict[str, list[str]] = defaultdict(list)
    for node in part.own:
        if node in values:
            having[values[node]].append(node)
    if len(having) < n:
        raise UserError(
            f"Task {task!r}: nodes of {part.network.name} in the split {part.split!r} have {len(having)} different "
            f"values, fewer than the {n} choices; give task_options choices={max(2, len(having))} or another attribute."
        )
    names = sorted(having)
    offered = [names[i] for i in rng.choice(len(names), n, replace=False)]
    holders = having[offered[int(rng.integers(n))]]
    return offered, holders[int(rng.integers(len(holders)))]


def _generator(task: str, pick: Callable[[Part], str | None], about: str, shortcuts: str) -> Generator:
    return Generator(
        make=_maker(task, pick),
        kind="choice",
        chance=chance,
        about=about,
        answer="the letter of a choice",
        rewards={"choice": 1.0, "format": 0.1},
        shortcuts=shortcuts,
    )


GENERATOR = _generator(
    "graph/attribute",
    lambda part: part.network.attribute,
    "which attribute a node has, by the edges around it and its neighbours' attributes",
    "a value's share of the graph: the truth is drawn evenly among the choices; a node's name may give its value "
    "away, so nodes have letters unless names=real is given",
)
CLASS = _generator(
    "graph/class",
    lambda part: part.network.label,
    "which class a node has, by the edges around it and its neighbours' classes; for measuring, not for training",
    "as graph/attribute",
)
