"""Graphs of the user's: edge lists, GraphML and networkx graphs; `open_graph` opens these and the built-in ones.

An edge list has two names a line, with a comma between them (.csv) or white space (.txt, .edges); a third column
(a weight) is not used, lines that begin with # or % are comments. GraphML keeps its nodes' attributes. Direction,
weights, repeated edges and loops are dropped.

Try it: python -c "from fovea.tasks.graph_ssl.sources import *; print(open_graph('karate').about)"
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fovea.tasks.graph_ssl.builtin import BUILTIN
from fovea.tasks.graph_ssl.network import Network, Pair, network
from fovea.types import UserError

ENDINGS = (".txt", ".edges", ".csv", ".graphml")
LARGEST = 256 * 2**20
"""Bytes of a file that is read."""
_HEADERS = {"source", "target", "src", "dst", "from", "to", "node1", "node2"}
_CLASSES = ("class", "label", "club", "category")
"""Attributes that are taken for the class where nobody names one, in this order."""


def open_graph(graph: str | Path | Network | Any, *, label: str | None = None) -> Network:
    """A graph by name (`BUILTIN`), from a file, or a networkx graph; a `Network` is given back.

    `label`: which attribute is the class. Raises UserError for what is none of these and for a file that is not right.
    """
    if isinstance(graph, Network):
        return _relabelled(graph, label)
    if not isinstance(graph, str | Path):
        if hasattr(graph, "edges") and hasattr(graph, "nodes"):
            return from_networkx(graph, label=label)
        raise UserError(
            f"A graph cannot be a {type(graph).__name__}; give a name, a file or a networkx graph."
        )
    if str(graph) in BUILTIN:
        return _relabelled(BUILTIN[str(graph)](), label)
    path = Path(graph)
    if not path.is_file():
        raise UserError(
            f"graph={graph} is neither a file nor one of {', '.join(BUILTIN)}; give one of these or a file that ends "
            f"in {', '.join(ENDINGS)}."
        )
    stamp = path.stat()
    return _read(path, stamp.st_mtime_ns, stamp.st_size, label)


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int, label: str | None) -> Network:
    """A file's graph; training and held-out problems of a run share it."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path}: a graph's file ends in {', '.join(ENDINGS)}; rename or convert it.")
    if size > LARGEST:
        raise UserError(
            f"{path} has {size:,} bytes, more than the {LARGEST:,} that are read; give a smaller part."
        )
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as UTF-8 text ({type(error).__name__}); save it as UTF-8."
        ) from None
    if path.suffix.lower() == ".graphml":
        return from_networkx(
            _graphml(path, text), name=path.name, about=f"the graph of {path.name}", label=label
        )
    edges = list(_edges(path, text))
    if not edges:
        raise UserError(f"{path} holds no edge; write two names a line, for example: Ann,Bob")
    return _relabelled(network(path.name, f"the edges of {path.name}", edges, {}), label)


def _edges(path: Path, text: str) -> Iterator[Pair]:
    """The edges of a list. Raises UserError naming the line."""
    comma = path.suffix.lower() == ".csv"
    rows = (
        csv.reader(io.StringIO(text, newline="")) if comma else (line.split() for line in text.splitlines())
    )
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith(("#", "%")):
                continue
            if len(cells) not in (2, 3) or not cells[0] or not cells[1]:
                between = "a comma" if comma else "white space"
                raise UserError(
                    f"{path}, line {number}: not two names with {between} between them ({len(cells)} columns); write "
                    f"for example {'Ann,Bob' if comma else 'Ann Bob'}, names without spaces."
                )
            if number == 1 and comma and {cells[0].lower(), cells[1].lower()} <= _HEADERS:
                continue
            yield cells[0], cells[1]
    except csv.Error as error:
        raise UserError(f"{path}, line {number + 1}: not CSV ({error}); quote names with commas.") from None


def _graphml(path: Path, text: str) -> Any:
    """The networkx graph of a GraphML file, whose entities are never expanded. Raises UserError."""
    import networkx

    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(
            f"{path} declares a document type, which GraphML has none of; delete the <!DOCTYPE …> lines."
        )
    try:
        return networkx.parse_graphml(text.partition("?>")[2] if text.startswith("<?xml") else text)
    except Exception as error:  # networkx lets KeyError, ValueError, its own and the parser's errors through
        said = str(error).strip() or type(error).__name__
        raise UserError(f"{path} is not GraphML that networkx reads ({said}); export it anew.") from None


def from_networkx(
    graph: Any, *, name: str = "graph", about: str = "a networkx graph", label: str | None = None
) -> Network:
    """A networkx graph, its nodes' names and attributes as text. Raises UserError where two names become the same."""
    names = {node: str(node) for node in graph.nodes}
    if len(set(names.values())) < len(names):
        raise UserError(f"The graph {name} has two nodes that are written alike (1 and '1'?); rename one.")
    attributes: dict[str, dict[str, str]] = {}
    for node, given in graph.nodes(data=True):
        for key, value in given.items():
            if isinstance(value, str | int | bool) and str(value).strip():
                attributes.setdefault(str(key), {})[names[node]] = str(value).strip()
    edges = ((names[a], names[b]) for a, b in graph.edges())
    return _relabelled(network(name, about, edges, attributes), label)


def _relabelled(graph: Network, label: str | None) -> Network:
    """The graph with its class and the attribute to hide chosen: as named, else by `_CLASSES`, else what is left."""
    known: Mapping[str, Mapping[str, str]] = graph.attributes
    if label is not None and label not in known:
        there = ", ".join(known) if known else "it has none: give GraphML or a networkx graph with some"
        raise UserError(f"The graph {graph.name} has no attribute {label!r} of nodes; known: {there}.")
    if label in (None, graph.label) and graph.label is not None:
        return graph
    found = label or next((key for key in _CLASSES if key in known), None)
    hidden = next((key for key in known if key != found), None)
    return Network(
        name=graph.name, about=graph.about, links=graph.links, attributes=known, attribute=hidden, label=found
    )
