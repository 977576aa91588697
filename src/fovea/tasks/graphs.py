"""Small drawn graphs: nodes as circles with a letter, edges as lines; and the same graphs as lists of edges.

Letters and edges decide the split by a hash (`fovea.tasks.splits`), so no graph is in two, drawn or written.
Not here: directed edges and weights.

Try it: python -c "from fovea.tasks.graphs import *; scene(generator(0, 1), 'train').image.show()"
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fovea.boxes import look, place
from fovea.tasks.fonts import font
from fovea.tasks.questions import Asked, Question, where
from fovea.tasks.scenes import Scene, Split, Thing, generator
from fovea.tasks.splits import split_of

__all__ = ["FACTS", "QUESTIONS", "Drawing", "Graph", "generator", "scene"]

LETTERS = "ABCDEFGH"
MOST = 6
FACTS: dict[str, tuple[str, ...]] = {"kind": tuple(LETTERS), "degree": tuple(map(str, range(MOST)))}

Edge = tuple[str, str]
Box = tuple[int, int, int, int]

_SIZES = ((96, 96), (96, 96), (96, 96), (80, 80), (96, 80), (80, 96))
_LARGE = ((128, 96), (128, 128), (96, 144), (160, 160))


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """Nodes and undirected edges. Example: Graph(nodes=("A", "C", "D"), edges=(("A", "C"),))"""

    nodes: tuple[str, ...]
    """Letters in alphabetical order."""
    edges: tuple[Edge, ...]
    """Pairs of letters, sorted, each pair sorted."""

    def neighbours(self, node: str) -> tuple[str, ...]:
        """In alphabetical order."""
        return tuple(sorted(a if b == node else b for a, b in self.edges if node in (a, b)))

    def linked(self, a: str, b: str) -> bool:
        return (min(a, b), max(a, b)) in self.edges

    def path(self, start: str, end: str) -> tuple[str, ...]:
        """A shortest path with both ends, the first in the alphabet of its length; empty if there is none."""
        paths: list[tuple[str, ...]] = [(start,)]
        seen = {start}
        for path in paths:  # grows while it is read: breadth first
            if path[-1] == end:
                return path
            for node in self.neighbours(path[-1]):
                if node not in seen:
                    seen.add(node)
                    paths.append((*path, node))
        return ()

    def key(self) -> str:
        """Its canonical text, which decides its split."""
        return "graph " + "".join(self.nodes) + ":" + ",".join(a + b for a, b in self.edges)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A graph as a picture."""

    graph: Graph
    image: Image.Image
    boxes: dict[str, Box]
    """The circle of each node."""

    def at(self, node: str) -> str:
        """The node's letter behind a mark of its place."""
        return look(self.boxes[node]) + node

    def between(self, a: str, b: str) -> str:
        """A mark of the place halfway between two nodes, as large as a node."""
        return look([(first + second) / 2 for first, second in zip(self.boxes[a], self.boxes[b])])


# --- which graph ------------------------------------------------------------------------------------------


def make(nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> Graph:
    """A graph in canonical order."""
    return Graph(nodes=tuple(sorted(nodes)), edges=tuple(sorted((min(a, b), max(a, b)) for a, b in edges)))


def _letters(rng: np.random.Generator, count: int) -> list[str]:
    return [LETTERS[i] for i in rng.permutation(len(LETTERS))[:count]]


def _random(rng: np.random.Generator, nodes: int, edges: int) -> Graph:
    letters = _letters(rng, nodes)
    pairs = list(itertools.combinations(letters, 2))
    return make(letters, [pairs[i] for i in rng.permutation(len(pairs))[:edges]])


def _any(rng: np.random.Generator) -> Graph:
    """Three to six nodes; neither empty nor complete; at most seven edges, so that a picture stays legible."""
    nodes = int(rng.integers(3, MOST + 1))
    return _random(rng, nodes, int(rng.integers(max(1, nodes - 3), min(7, nodes * (nodes - 1) // 2 - 1) + 1)))


def _with_degree(rng: np.random.Generator, degree: int) -> tuple[Graph, str]:
    """A graph and one of its nodes, which has exactly `degree` neighbours."""
    nodes = int(rng.integers(max(3, degree + 1), MOST + 1))
    letters = _letters(rng, nodes)
    pairs = list(itertools.combinations(letters[1:], 2))
    more = int(rng.integers(0, min(len(pairs), 4) + 1))
    edges = [(letters[0], other) for other in letters[1 : 1 + degree]]
    return make(letters, edges + [pairs[i] for i in rng.permutation(len(pairs))[:more]]), letters[0]


def _draw_until(
    rng: np.random.Generator, split: Split, propose: Callable[[], tuple[Graph, str]]
) -> tuple[Drawing, str]:
    """Propose (graph, node) until the graph is of the split and a clear picture of it was found."""
    while True:
        graph, node = propose()
        if split_of(graph.key()) == split:
            drawing = draw(rng, graph, split)
            if drawing is not None:
                return drawing, node


def _draw_any(rng: np.random.Generator, split: Split) -> Drawing:
    return _draw_until(rng, split, lambda: (_any(rng), ""))[0]


# --- drawing ----------------------------------------------------------------------------------------------


def draw(
    rng: np.random.Generator, graph: Graph, split: Split, size: tuple[int, int] | None = None
) -> Drawing | None:
    """The graph as a picture of `size` (width, height), or of a small one that is drawn; None where no clear placing
    was found in 40 tries.

    Circles keep 6 pixels apart, and no edge comes nearer than 4 pixels to a node that it does not end in.
    """
    sizes = (size,) if size else _LARGE if rng.random() < 0.08 else _SIZES
    width, height = sizes[int(rng.integers(len(sizes)))]
    radius = int(rng.integers(8, 10)) + (min(width, height) > 96) * int(rng.integers(0, 4))
    for _ in range(40):
        centers = _places(rng, graph.nodes, width, height, radius)
        if centers is not None and _clear(graph, centers, radius):
            image = _paint(rng, graph, centers, (width, height), radius, split)
            boxes = {n: (x - radius, y - radius, x + radius, y + radius) for n, (x, y) in centers.items()}
            return Drawing(graph=graph, image=image, boxes=boxes)
    return None


def _places(
    rng: np.random.Generator, nodes: tuple[str, ...], width: int, height: int, radius: int
) -> dict[str, tuple[int, int]] | None:
    """Centres on a jittered ring or anywhere; None if two circles come too near."""
    count, edge = len(nodes), radius + 2
    if rng.random() < 0.5:
        turn = (
            rng.uniform(0, 2 * np.pi) + np.arange(count) * 2 * np.pi / count + rng.uniform(-0.2, 0.2, count)
        )
        reach = rng.uniform(0.85, 1.0, count)
        x = width / 2 + np.cos(turn) * reach * (width / 2 - edge)
        y = height / 2 + np.sin(turn) * reach * (height / 2 - edge)
    else:
        x = rng.uniform(edge, width - edge, count)
        y = rng.uniform(edge, height - edge, count)
    spots = np.stack([x, y], 1).round().astype(int)
    apart = np.hypot(*(spots[:, None] - spots[None]).transpose(2, 0, 1)) + np.eye(count) * 1e9
    if apart.min() < 2 * radius + 6:
        return None
    return {nodes[i]: (int(spots[j, 0]), int(spots[j, 1])) for i, j in enumerate(rng.permutation(count))}


def _clear(graph: Graph, centers: dict[str, tuple[int, int]], radius: int) -> bool:
    """Whether every edge stays away from the nodes that it does not end in."""
    for a, b in graph.edges:
        (ax, ay), (bx, by) = centers[a], centers[b]
        length = (bx - ax) ** 2 + (by - ay) ** 2
        for node, (x, y) in centers.items():
            if node not in (a, b):
                along = min(1.0, max(0.0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length))
                nearest = np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay))
                if nearest < radius + 4:
                    return False
    return True


def _palette(
    rng: np.random.Generator,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(paper, line, circle, letter): lines stand out from paper, letters from circles; light or dark paper."""
    dark = rng.random() < 0.25
    paper = rng.integers(0, 60, 3) if dark else rng.integers(205, 256, 3)
    line = rng.integers(150, 256, 3) if dark else rng.integers(0, 110, 3)
    if rng.random() < 0.5:  # light circle, dark letter
        circle, letter = rng.integers(180, 256, 3), rng.integers(0, 70, 3)
    else:
        circle, letter = rng.integers(10, 120, 3), np.full(3, 255)
    return tuple(paper.tolist()), tuple(line.tolist()), tuple(circle.tolist()), tuple(letter.tolist())


def _paint(
    rng: np.random.Generator,
    graph: Graph,
    centers: dict[str, tuple[int, int]],
    size: tuple[int, int],
    radius: int,
    split: Split,
) -> Image.Image:
    """Lines and circles are drawn at twice the size and averaged down; letters at the final size."""
    paper, line, circle, letter = _palette(rng)
    canvas = Image.new("RGB", (2 * size[0], 2 * size[1]), paper)
    pen = ImageDraw.Draw(canvas)
    thick = int(rng.integers(4, 7))  # 2 to 3 pixels
    for a, b in graph.edges:
        pen.line([2 * v for v in (*centers[a], *centers[b])], fill=line, width=thick)
    for x, y in centers.values():
        around = (2 * (x - radius), 2 * (y - radius), 2 * (x + radius) - 1, 2 * (y + radius) - 1)
        pen.ellipse(around, fill=circle, outline=line, width=2)
    image = canvas.reduce(2)
    pen = ImageDraw.Draw(image)
    letters = font(split, rng, round(1.5 * radius))
    for node, (x, y) in centers.items():
        left, top, right, bottom = letters.getbbox(node)
        pen.text((x - (left + right) / 2, y - (top + bottom) / 2), node, fill=letter, font=letters)
    return image


def scene(rng: np.random.Generator, split: Split) -> Scene:
    """A graph whose nodes are the things: their letter and their degree."""
    drawing = _draw_any(rng, split)
    things = [
        Thing(
            label=node, box=box, facts=(("kind", node), ("degree", str(len(drawing.graph.neighbours(node)))))
        )
        for node, box in drawing.boxes.items()
    ]
    return Scene(image=drawing.image, things=tuple(sorted(things, key=lambda thing: thing.box)))


# --- questions about a picture ----------------------------------------------------------------------------


def _links(drawing: Drawing, node: str) -> str:
    """A thought: whom a node is linked to."""
    others = drawing.graph.neighbours(node)
    named = ", ".join(drawing.at(other) for other in others) if others else "nothing"
    return f"{drawing.at(node)} is linked to {named}."


def _pair(rng: np.random.Generator, graph: Graph, linked: bool) -> list[str]:
    pairs = [p for p in itertools.combinations(graph.nodes, 2) if graph.linked(*p) == linked]
    pair = list(pairs[int(rng.integers(len(pairs)))])
    return pair[::-1] if rng.random() < 0.5 else pair


def _crowd(graph: Graph) -> float:
    return (len(graph.nodes) - 3) / (MOST - 3)


def edge(rng: np.random.Generator, split: Split) -> Asked:
    """Is there an edge between two nodes? Yes as often as no."""
    answer = "yes" if rng.random() < 0.5 else "no"
    drawing = _draw_any(rng, split)
    a, b = _pair(rng, drawing.graph, answer == "yes")
    return Asked(
        images=(drawing.image,),
        question=f"Is there an edge between {a} and {b}?",
        answer=answer,
        said=drawing.between(a, b) + answer,
        thought=_links(drawing, a),
        difficulty=_crowd(drawing.graph),
    )


def neighbours(rng: np.random.Generator, split: Split) -> Asked:
    """One to three letters, in alphabetical order."""
    degree = int(rng.integers(1, 4))
    drawing, node = _draw_until(rng, split, lambda: _with_degree(rng, degree))
    others = drawing.graph.neighbours(node)
    return Asked(
        images=(drawing.image,),
        question=f"Which nodes are linked to {node}, in alphabetical order?",
        answer=", ".join(others),
        said=", ".join(drawing.at(other) for other in others),
        thought=f"{drawing.at(node)} has {degree} edge{'s' * (degree > 1)}.",
        difficulty=(degree - 1) / 2,
    )


def degree(rng: np.random.Generator, split: Split) -> Asked:
    """Zero to four edges, any number equally likely."""
    wanted = int(rng.integers(0, 5))
    drawing, node = _draw_until(rng, split, lambda: _with_degree(rng, wanted))
    return Asked(
        images=(drawing.image,),
        question=f"How many edges does {node} have?",
        answer=wanted,
        said=look(drawing.boxes[node]) + str(wanted),
        thought=_links(drawing, node),
        difficulty=wanted / 4,
    )


def nodes(rng: np.random.Generator, split: Split) -> Asked:
    """Three to six nodes, any number equally likely."""
    drawing = _counted(rng, split, lambda graph: len(graph.nodes), range(3, MOST + 1))
    return Asked(
        images=(drawing.image,),
        question="How many nodes are in the graph?",
        answer=len(drawing.graph.nodes),
        said=str(len(drawing.graph.nodes)),
        thought="I see: " + ", ".join(map(drawing.at, drawing.graph.nodes)) + ".",
        difficulty=_crowd(drawing.graph),
    )


def edges(rng: np.random.Generator, split: Split) -> Asked:
    """One to six edges, any number equally likely."""
    drawing = _counted(rng, split, lambda graph: len(graph.edges), range(1, 7))
    count = len(drawing.graph.edges)
    return Asked(
        images=(drawing.image,),
        question="How many edges are in the graph?",
        answer=count,
        said=str(count),
        thought="I see: "
        + ", ".join(f"{drawing.at(a)} {drawing.at(b)}" for a, b in drawing.graph.edges)
        + ".",
        difficulty=(count - 1) / 5,
    )


def _counted(rng: np.random.Generator, split: Split, count: Callable[[Graph], int], range_: range) -> Drawing:
    """A drawing whose count is exactly the one drawn first, so that every count is equally likely."""
    wanted = int(rng.choice(range_))
    while True:
        graph = _any(rng)
        if count(graph) == wanted and split_of(graph.key()) == split:
            drawing = draw(rng, graph, split)
            if drawing is not None:
                return drawing


def locate(rng: np.random.Generator, split: Split) -> Asked:
    """The box of a node's circle."""
    drawing = _draw_any(rng, split)
    node = drawing.graph.nodes[int(rng.integers(len(drawing.graph.nodes)))]
    box = drawing.boxes[node]
    return Asked(
        images=(drawing.image,),
        question=f"Where is the node {node}? Answer with its box.",
        answer=box,
        said=place(box),
        thought=f"{drawing.at(node)} is at the {where(box, drawing.image.size)}.",
        difficulty=_crowd(drawing.graph),
    )


def path(rng: np.random.Generator, split: Split) -> Asked:
    """Is there a path between two nodes? Yes (over one or more others) as often as no (both have edges)."""
    answer = "yes" if rng.random() < 0.5 else "no"
    while True:
        graph = _any(rng)
        if split_of(graph.key()) != split:
            continue
        pairs = [
            (a, b)
            for a, b in itertools.permutations(graph.nodes, 2)
            if graph.neighbours(a) and graph.neighbours(b) and not graph.linked(a, b)
            if bool(graph.path(a, b)) == (answer == "yes")
        ]
        drawing = draw(rng, graph, split) if pairs else None
        if drawing is not None:
            break
    a, b = pairs[int(rng.integers(len(pairs)))]
    way = graph.path(a, b)
    reached = way or tuple(node for node in graph.nodes if graph.path(a, node))
    named = ", ".join(map(drawing.at, reached))
    return Asked(
        images=(drawing.image,),
        question=f"Is there a path from {a} to {b}?",
        answer=answer,
        said=answer,
        thought=f"The path is {named}." if way else f"From {a} one reaches only {named}.",
        difficulty=_crowd(graph),
    )


# --- questions about a list of edges, without a picture ---------------------------------------------------


def written(rng: np.random.Generator, graph: Graph) -> str:
    """The edges in any order and direction: "(A, B), (C, B)"."""
    order = [graph.edges[i] for i in rng.permutation(len(graph.edges))]
    return ", ".join("({}, {})".format(*(e if rng.random() < 0.5 else e[::-1])) for e in order)


def text_edge(rng: np.random.Generator, split: Split) -> Asked:
    """As `edge`, from the list of edges."""
    answer = "yes" if rng.random() < 0.5 else "no"
    graph = _any(rng)
    while split_of(graph.key()) != split:
        graph = _any(rng)
    a, b = _pair(rng, graph, answer == "yes")
    others = ", ".join(graph.neighbours(a)) or "nothing"
    return Asked(
        images=(),
        question=f"The edges of a graph are {written(rng, graph)}. Is there an edge between {a} and {b}?",
        answer=answer,
        said=answer,
        thought=f"{a} is linked to {others}.",
        difficulty=(len(graph.edges) - 1) / 6,
    )


def text_neighbours(rng: np.random.Generator, split: Split) -> Asked:
    """As `neighbours`, from the list of edges."""
    degree = int(rng.integers(1, 4))
    graph, node = _with_degree(rng, degree)
    while split_of(graph.key()) != split:
        graph, node = _with_degree(rng, degree)
    others = ", ".join(graph.neighbours(node))
    return Asked(
        images=(),
        question=f"The edges of a graph are {written(rng, graph)}. "
        f"Which nodes are linked to {node}, in alphabetical order?",
        answer=others,
        said=others,
        thought=f"{node} has {degree} edge{'s' * (degree > 1)}.",
        difficulty=(degree - 1) / 2,
    )


QUESTIONS: dict[str, Question] = {
    "graphs/edge": (edge, "text", 0.5, "is there an edge between two nodes of a drawn graph"),
    # One of the seven other letters alone: P(one neighbour) / 7.
    "graphs/neighbours": (neighbours, "text", 1 / 21, "the nodes linked to a node, in alphabetical order"),
    "graphs/degree": (degree, "number", 1 / 5, "how many edges a node has, none to four"),
    "graphs/nodes": (nodes, "number", 1 / 4, "how many nodes, three to six"),
    "graphs/edges": (edges, "number", 1 / 6, "how many edges, one to six"),
    "graphs/locate": (locate, "box", 0.05, "the box of a node with a given letter"),
    "graphs/path": (path, "text", 0.5, "is there a path between two nodes that no edge joins"),
    "graphs/text_edge": (text_edge, "text", 0.5, "as graphs/edge, from a written list of edges; no picture"),
    # Without the list; with the list, any of the letters in it: the figure of who does not read.
    "graphs/text_neighbours": (
        text_neighbours,
        "text",
        1 / 21,
        "as graphs/neighbours, from a written list of edges",
    ),
}
