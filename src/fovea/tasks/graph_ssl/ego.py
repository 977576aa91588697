"""The few edges around the asked nodes that a question shows: which ones, under which names, written or drawn.

What is shown depends on the split's visible graph without the hidden edges alone, never on the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from fovea.tasks import graphs
from fovea.tasks.graph_ssl.network import Pair, Part
from fovea.types import UserError

Show = Literal["text", "picture"]
Names = Literal["real", "letters", "ordered"]
"""The graph's own names; random letters; or letters in the order of the search (A is the first asked node), with the
edges written in this order, too: for models that cannot look up a name."""

FEWEST, MOST = 6, 12
"""Edges that are shown at difficulty 0 and 1."""
LIMIT = 18
"""Most edges for which there are letters enough."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICES = "ABCDEF"
"""Letters of the choices; where there are choices, no node is called so."""
_SIDES = (160, 224, 320, 448, 640)
_UNFIT = frozenset(",;()\n\r")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ego:
    """A part of a graph, shown. `named` maps a node to what it is called in the question."""

    edges: tuple[Pair, ...]
    """By the graph's own names."""
    named: Mapping[str, str]
    images: tuple[Image.Image, ...]
    told: str
    """The sentence in the question that shows the edges, or says that the picture does."""

    def linked(self, node: str) -> list[str]:
        """The nodes that a shown edge joins with `node`, by the graph's own names."""
        return sorted(b if a == node else a for a, b in self.edges if node in (a, b))


def shown_edges(difficulty: float, edges: int) -> int:
    """How many edges a question shows at most: `edges`, or 0 for by the difficulty. Raises UserError."""
    if not 0 <= edges <= LIMIT:
        raise UserError(
            f"A graph task's option edges={edges} is not 0 to {LIMIT}; 0 means: by the difficulty."
        )
    return edges or FEWEST + round(difficulty * (MOST - FEWEST))


def shared(part: Part, a: str, b: str) -> frozenset[str]:
    """The common neighbours of two nodes in what the split sees."""
    return part.links[a] & part.links[b] - {a, b}


def around(
    part: Part,
    rng: np.random.Generator,
    roots: Sequence[str],
    most: int,
    hidden: Collection[frozenset[str]] = (),
) -> list[Pair]:
    """At most `most` visible edges around the roots, none of them hidden, in the order in which they were chosen.

    First, for up to two thirds of them, the ways of two steps from the first root to the others; then one edge a root
    in turn; then edges among the nodes that are shown.
    """
    found: list[Pair] = []
    taken: set[frozenset[str]] = set(hidden)

    def take(a: str, b: str) -> None:
        if len(found) < most and frozenset((a, b)) not in taken:
            taken.add(frozenset((a, b)))
            found.append((a, b))

    first, others = roots[0], roots[1:]
    neighbours = {root: _shuffled(rng, part.links[root], taken, root) for root in roots}
    between = [
        w for w in neighbours[first] if w not in roots and any(w in part.links[root] for root in others)
    ]
    for w in between:
        ends = [root for root in others if w in part.links[root]]
        if len(found) + 1 + len(ends) <= 2 * most // 3:
            take(first, w)
            for root in ends:
                take(w, root)
    for node, w in _in_turn(neighbours):
        take(node, w)
    nodes = dict.fromkeys(node for pair in found for node in pair)
    for a in nodes:
        for b in sorted(part.links[a]):
            if b in nodes:
                take(a, b)
    return found


def _shuffled(
    rng: np.random.Generator, nodes: Collection[str], taken: Collection[frozenset[str]], root: str
) -> list[str]:
    order = sorted(node for node in nodes if frozenset((root, node)) not in taken)
    return [order[i] for i in rng.permutation(len(order))]


def _in_turn(neighbours: Mapping[str, Sequence[str]]) -> Iterator[Pair]:
    """(root, neighbour): the first of every root, then the second of every root, …"""
    for rank in range(max(map(len, neighbours.values()), default=0)):
        for root, mine in neighbours.items():
            if rank < len(mine):
                yield root, mine[rank]


def display(
    part: Part,
    rng: np.random.Generator,
    roots: Sequence[str],
    edges: Sequence[Pair],
    show: Show,
    names: Names,
    letters: str = LETTERS,
) -> Ego:
    """The edges written or drawn, the nodes under their own names or under letters, in random order unless `ordered`.

    A drawing always has letters; with `names="real"` the question says what each stands for. Raises UserError for names
    that would make a question ambiguous.
    """
    nodes = list(dict.fromkeys([*roots, *(node for pair in edges for node in pair)]))
    assert len(nodes) <= len(letters), "more nodes than letters"
    ordered = names == "ordered"
    places = range(len(nodes)) if ordered else rng.permutation(len(nodes))
    called = {node: letters[i] for node, i in zip(nodes, places)}
    order = list(edges) if ordered else [edges[i] for i in rng.permutation(len(edges))]
    if names == "real":
        _refuse_names(part, nodes)
    if show == "text":
        named = {node: node for node in nodes} if names == "real" else called
        pairs = ((named[a], named[b]) for a, b in order)
        if ordered:
            pairs = ((min(pair), max(pair)) for pair in pairs)
        else:
            pairs = (pair if rng.random() < 0.5 else pair[::-1] for pair in pairs)
        written = ", ".join(f"({a}, {b})" for a, b in pairs)
        return Ego(edges=tuple(order), named=named, images=(), told=f"Some edges of a graph are {written}.")
    image = _drawn(part, rng, called, order)
    legend = ""
    if names == "real":
        legend = (
            " "
            + ", ".join(f"{called[node]} is {node}" for node in sorted(nodes, key=called.__getitem__))
            + "."
        )
    told = f"The picture shows some edges of a graph.{legend}"
    return Ego(edges=tuple(order), named=called, images=(image,), told=told)


def _drawn(
    part: Part, rng: np.random.Generator, called: Mapping[str, str], edges: Sequence[Pair]
) -> Image.Image:
    """The edges drawn by `fovea.tasks.graphs`, as small as they are clear."""
    graph = graphs.make(called.values(), [(called[a], called[b]) for a, b in edges])
    while True:  # ends: nodes are small and placed anew each time, from ring to random
        for side in _SIDES:
            drawing = graphs.draw(rng, graph, part.split, (side, side))
            if drawing is not None:
                return drawing.image


def _refuse_names(part: Part, nodes: Sequence[str]) -> None:
    bad = next((node for node in nodes if _UNFIT & set(node) or len(node) > 80), None)
    if bad is not None:
        raise UserError(
            f"The graph {part.network.name}: the name {bad[:40]!r} has a comma, semicolon, bracket or line break, or "
            "more than 80 characters, which a question cannot show; give task_options names=letters or rename the node."
        )
