"""`graph/link`: is there an edge between two nodes, whose edge, if any, is hidden? Yes as often as no.

Yes is an edge of the split (`Part.pairs`), no a pair without one whose two nodes have, one by one, as many visible
edges as those of an edge drawn the same way: its degrees say nothing. Both answers are drawn from the same edges,
so hubs that no other node resembles (`sys`) are asked about in neither.
"""

from __future__ import annotations

import numpy as np

from fovea.tasks.graph_ssl.ego import Names, Show, around, display, shared, shown_edges
from fovea.tasks.graph_ssl.network import Pair, Part
from fovea.tasks.questions import Asked
from fovea.tasks.ssl.spec import TRIES, Generator
from fovea.types import UserError


def chance(
    difficulty: float, *, show: Show = "text", names: Names = "real", edges: int = 0, hard: float = -1.0
) -> float:
    return 0.5


def make(
    part: Part,
    rng: np.random.Generator,
    difficulty: float,
    *,
    show: Show = "text",
    names: Names = "real",
    edges: int = 0,
    hard: float = -1.0,
) -> Asked:
    """`edges`: how many are shown at most (0: 6 to 12 by the difficulty). `hard`: share of the pairs without an edge
    that must have a common neighbour (-1: a quarter of the difficulty)."""
    most = shown_edges(difficulty, edges)
    yes = rng.random() < 0.5
    near = rng.random() < (difficulty / 4 if hard < 0 else hard)
    a, b = _pair(part, rng, yes, near)
    if rng.random() < 0.5:
        a, b = b, a
    shown = around(part, rng, (a, b), most, {frozenset((a, b))})
    ego = display(part, rng, (a, b), shown, show, names)
    both = sorted(ego.named[node] for node in set(ego.linked(a)) & set(ego.linked(b)))
    listed = [
        f"{ego.named[node]} is linked to {', '.join(sorted(ego.named[w] for w in ego.linked(node)))}."
        for node in (a, b)
    ]
    answer = "yes" if yes else "no"
    first, second = ego.named[a], ego.named[b]
    return Asked(
        images=ego.images,
        question=f"{ego.told} One may be hidden. Is there an edge between {first} and {second}?",
        answer=answer,
        said=answer,
        thought=f"{' '.join(listed)} Both to {', '.join(both) or 'nothing'}.",
        difficulty=difficulty,
        meta={"pair": [a, b], "edges": [list(pair) for pair in ego.edges], "common": len(both)},
    )


def _pair(part: Part, rng: np.random.Generator, yes: bool, near: bool) -> Pair:
    """An edge of the split, or a pair without one that resembles an edge. Raises UserError where there is none."""
    own = set(part.own)
    for _ in range(TRIES):
        a, b = part.pairs[int(rng.integers(len(part.pairs)))]
        if min(part.degree(a), part.degree(b)) < 2:  # nothing would be left to show of it
            continue
        other = _unlinked(part, rng, (a, b), own, near)
        if other is not None:
            return (a, b) if yes else other
    raise UserError(
        f"Task 'graph/link': none of {TRIES} edges drawn from {part.network.name} ({part.split}) has a pair of nodes "
        "without an edge that resembles it; give a larger graph."
    )


def _unlinked(part: Part, rng: np.random.Generator, pair: Pair, own: set[str], near: bool) -> Pair | None:
    """Two nodes without an edge, each with one visible edge less than its counterpart, whose edge will be hidden."""
    first, second = (part.of_degree(part.degree(node) - 1, node in own) for node in pair)
    if not first or not second:
        return None
    for _ in range(20):
        a = first[int(rng.integers(len(first)))]
        if near:
            reach = {far for w in part.links[a] for far in part.links[w]}
            held = [node for node in second if node in reach]
        else:
            held = second
        if held:
            b = held[int(rng.integers(len(held)))]
            if a != b and b not in part.links[a] and (not near or shared(part, a, b)):
                return a, b
    return None


GENERATOR = Generator(
    make=make,
    kind="text",
    chance=chance,
    about="is there an edge between two nodes of a graph, of which a few edges around them are shown",
    answer="yes or no",
    rewards={"exact": 1.0, "format": 0.1},
    shortcuts="degrees: pairs without an edge are matched node by node; names of one family (email.message, "
    "email.charset) are often linked: names=letters takes them away",
)
