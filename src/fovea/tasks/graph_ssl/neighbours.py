"""`graph/neighbours`: which of the listed candidates are neighbours of a node? None of these edges is shown.

At most half of the candidates are; the others have as many visible edges, one by one, as a neighbour of a node.
"""

from __future__ import annotations

from math import comb

import numpy as np

from fovea.tasks.graph_ssl.ego import Names, Show, around, display, shown_edges
from fovea.tasks.graph_ssl.network import Part
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.spec import TRIES, Generator, step_of
from fovea.types import UserError

CANDIDATES = (3, 4, 5, 6)
"""How many candidates, easiest first."""


def chance(
    difficulty: float, *, show: Show = "text", names: Names = "real", edges: int = 0, candidates: int = 0
) -> float:
    """The number of neighbours is even over 1 … n // 2; the best set of a size is one of all of that size."""
    n = candidates or step_of(difficulty, CANDIDATES)
    return 1 / (n // 2) / min(comb(n, k) for k in range(1, n // 2 + 1))


def make(
    part: Part,
    rng: np.random.Generator,
    difficulty: float,
    *,
    show: Show = "text",
    names: Names = "real",
    edges: int = 0,
    candidates: int = 0,
) -> Asked:
    """`edges`: how many are shown at most (0: 6 to 12 by the difficulty). `candidates`: how many nodes are listed, 2 to
    7 (0: 3 to 6 by the difficulty)."""
    if candidates and not 2 <= candidates <= 7:
        raise UserError(
            f"Task 'graph/neighbours': candidates={candidates} is not 2 to 7; 0 means: by the difficulty."
        )
    most, n = shown_edges(difficulty, edges), candidates or step_of(difficulty, CANDIDATES)
    count = int(rng.integers(1, n // 2 + 1))
    node, true, others = _drawn(part, rng, count, n - count)
    listed = [*true, *others]
    hidden = {frozenset((node, other)) for other in listed}
    shown = around(part, rng, (node, *(listed[i] for i in rng.permutation(n))), most, hidden)
    ego = display(part, rng, (node, *listed), shown, show, names)
    called = [ego.named[listed[i]] for i in rng.permutation(n)]
    answer = [name for name in called if name in {ego.named[other] for other in true}]
    me = ego.named[node]
    return Asked(
        images=ego.images,
        question=f"{ego.told} Others are hidden. Which of {', '.join(called)} are neighbours of {me}?",
        answer=answer,
        said=", ".join(answer),
        thought=f"{me} is linked to {', '.join(ego.named[w] for w in ego.linked(node)) or 'nothing'}.",
        difficulty=difficulty,
        meta={"candidates": called, "node": node, "edges": [list(pair) for pair in ego.edges]},
    )


def _drawn(part: Part, rng: np.random.Generator, count: int, wrong: int) -> tuple[str, list[str], list[str]]:
    """A node of the split, `count` of its neighbours and `wrong` other nodes like its neighbours.

    The node keeps a visible edge, as does every neighbour. Raises UserError where the graph has no such node.
    """
    own = set(part.own)
    for _ in range(TRIES):
        node = part.own[int(rng.integers(len(part.own)))]
        near = [other for other in sorted(part.links[node]) if part.degree(other) > 1]
        if len(near) < count or len(part.links[node]) <= count:
            continue
        true = [near[i] for i in rng.choice(len(near), count, replace=False)]
        others: list[str] = []
        for _ in range(4 * wrong):
            like = near[int(rng.integers(len(near)))]
            alike = part.of_degree(part.degree(like) - 1, like in own)
            other = alike[int(rng.integers(len(alike)))] if alike else node
            if other != node and other not in part.links[node] and other not in others:
                others.append(other)
            if len(others) == wrong:
                return node, true, others
    raise UserError(
        f"Task 'graph/neighbours': none of {TRIES} nodes drawn from {part.network.name} ({part.split}) has {count} "
        f"neighbours and {wrong} nodes like them that are none; give a larger graph or fewer candidates."
    )


GENERATOR = Generator(
    make=make,
    kind="set",
    chance=chance,
    about="which of the listed nodes are neighbours of a node, of which a few other edges are shown",
    answer="names with commas between them",
    rewards={"set_f1": 1.0, "format": 0.1},
    shortcuts="listing everything earns 0; who lists all but one earns an F1 of about 0.5: "
    "reward_options.set_f1.exact=true pays for the whole set only; degrees are matched node by node; names as in "
    "graph/link",
)
