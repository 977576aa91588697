"""A graph to ask about, and the part of it that each split may see.

The split is inductive and by nodes: a hash of its name puts a node into train (70 %), validation (10 %) or test
(20 %). Training sees the graph of its own nodes only; validation sees train's and its own; test sees everything. An
edge is asked about in the split of its later node, so an edge of validation or test has at least one end that
training has never seen, and no question of theirs was ever shown or asked before.

Not here: where graphs come from (`builtin.py`, `sources.py`), what is asked (`link.py` and its siblings).
"""

from __future__ import annotations

import bisect
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fovea.tasks.scenes import SPLITS, Split
from fovea.tasks.splits import split_of
from fovea.types import UserError

Pair = tuple[str, str]
Links = Mapping[str, frozenset[str]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Network:
    """An undirected graph with names. Example: network("mine", "friends", [("Ann", "Bob")], {})"""

    name: str
    about: str
    """For messages and records: what it is and on what it depends."""
    links: Links
    """Node → its neighbours; no node without an edge, none its own neighbour. In alphabetical order."""
    attributes: Mapping[str, Mapping[str, str]]
    """Attribute → node → value; a node may lack one."""
    attribute: str | None
    """Which attribute `graph/attribute` hides where nobody says."""
    label: str | None
    """Which attribute is the class that `graph/class` asks for; never shown otherwise."""

    @property
    def edges(self) -> list[Pair]:
        """Every edge once, both ends and all edges in alphabetical order."""
        return [(a, b) for a, others in self.links.items() for b in sorted(others) if a < b]


def network(
    name: str,
    about: str,
    edges: Iterable[Pair],
    attributes: Mapping[str, Mapping[str, str]],
    *,
    attribute: str | None = None,
    label: str | None = None,
) -> Network:
    """A graph of these edges: direction, repetition and loops are dropped. Raises UserError if none is left."""
    held: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        if a != b:
            held[a].add(b)
            held[b].add(a)
    if not held:
        raise UserError(f"The graph {name} has no edge between two different nodes; give one that has.")
    links = {node: frozenset(held[node]) for node in sorted(held)}
    kept = {
        key: {node: values[node] for node in links if node in values}
        for key, values in sorted(attributes.items())
    }
    return Network(name=name, about=about, links=links, attributes=kept, attribute=attribute, label=label)


@functools.lru_cache(maxsize=65536)
def split_of_node(node: str) -> Split:
    return split_of(f"node {node}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """What one split sees of a graph."""

    network: Network
    split: Split
    links: Links
    """Among visible nodes only."""
    own: tuple[str, ...]
    """The split's own nodes that have a visible edge, in alphabetical order."""
    pairs: tuple[Pair, ...]
    """Edges that are asked about: (one of `own`, the other end); the first in the alphabet is first."""
    degrees: Mapping[bool, tuple[tuple[int, str], ...]] = field(repr=False)
    """Whether a node is one of `own` → (degree, node), sorted: for finding nodes of a degree."""

    def degree(self, node: str) -> int:
        """Visible edges of a node."""
        return len(self.links[node])

    def of_degree(self, degree: int, own: bool) -> list[str]:
        """Nodes of a degree, or from 10 on of at most a tenth more or less; in a fixed order."""
        slack = degree // 10
        column = self.degrees[own]
        start = bisect.bisect_left(column, (degree - slack, ""))
        end = bisect.bisect_left(column, (degree + slack + 1, ""))
        return [node for _, node in column[start:end]]


@functools.lru_cache(maxsize=64)
def part(network: Network, split: Split) -> Part:
    """The part of a graph that a split sees. Raises UserError where it has no edge of its own to ask about."""
    visible = SPLITS[: SPLITS.index(split) + 1]
    seen = {node for node in network.links if split_of_node(node) in visible}
    links = {node: others & seen for node, others in network.links.items() if node in seen}
    links = {node: others for node, others in links.items() if others}
    own = tuple(node for node in links if split_of_node(node) == split)
    mine = set(own)
    pairs = tuple(
        (a, b) for a, others in links.items() for b in sorted(others) if a < b and (a in mine or b in mine)
    )
    if not pairs:
        raise UserError(
            f"The graph {network.name} has {len(network.links)} nodes, none of them with an edge in the split "
            f"{split!r}; give a larger graph."
        )
    held: dict[bool, list[tuple[int, str]]] = {True: [], False: []}
    for node, others in links.items():
        held[node in mine].append((len(others), node))
    degrees = {key: tuple(sorted(values)) for key, values in held.items()}
    return Part(network=network, split=split, links=links, own=own, pairs=pairs, degrees=degrees)
