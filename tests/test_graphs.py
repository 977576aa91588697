"""Drawn graphs: answers against an adjacency matrix, pixels against edges, splits, chance."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fovea.tasks import graphs
from fovea.tasks.scenes import SPLITS, generator
from fovea.tasks.splits import split_of

DRAWN = [name for name in graphs.QUESTIONS if "/text_" not in name]
MARK = re.compile(r"\{(?:look:\d+,|box:)([-\d.,]+)\}")
LOOK = re.compile(r"\{look:[-\d.,]+\}")


@pytest.fixture
def drawings(monkeypatch):
    """Every drawing that a question made, the shown one last."""
    made = []
    draw = graphs.draw

    def record(rng, graph, split):
        drawing = draw(rng, graph, split)
        made.extend([drawing] if drawing else [])
        return drawing

    monkeypatch.setattr(graphs, "draw", record)
    return made


def matrix(edges):
    """bool [8, 8] over A to H."""
    joined = np.zeros((8, 8), bool)
    for a, b in edges:
        i, j = graphs.LETTERS.index(a), graphs.LETTERS.index(b)
        joined[i, j] = joined[j, i] = True
    return joined


def expected(name, question, nodes, edges):
    """The answer, from an adjacency matrix and the letters in the question."""
    joined = matrix(edges)
    asked = [graphs.LETTERS.index(letter) for letter in re.findall(r"\b([A-H])\b", question.split("?")[0])]
    skill = name.split("/")[1].removeprefix("text_")
    if skill in ("nodes", "edges"):
        return len(nodes) if skill == "nodes" else int(joined.sum()) // 2
    if skill == "neighbours":
        return ", ".join(graphs.LETTERS[i] for i in np.flatnonzero(joined[asked[-1]]))
    if skill == "degree":
        return int(joined[asked[-1]].sum())
    if skill == "edge":
        return "yes" if joined[asked[-2], asked[-1]] else "no"
    reach = np.linalg.matrix_power(joined.astype(int) + np.eye(8, dtype=int), 8)
    return "yes" if reach[asked[-2], asked[-1]] else "no"


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "graphs/locate"])
def test_answers_follow_from_the_drawn_graph(name, drawings):
    for i in range(40):
        asked = graphs.QUESTIONS[name][0](generator(name, i), "train")
        shown = drawings[-1].graph
        assert asked.images[0] is drawings[-1].image
        assert asked.answer == expected(name, asked.question, shown.nodes, shown.edges)
        assert LOOK.sub("", asked.said) == str(asked.answer)


def test_locate_gives_the_box_of_the_letter(drawings):
    for i in range(60):
        asked = graphs.locate(generator("locate", i), "test")
        letter = re.search(r"node ([A-H])\?", asked.question)[1]
        assert asked.answer == drawings[-1].boxes[letter]


@pytest.mark.parametrize("name", ["graphs/text_edge", "graphs/text_neighbours"])
def test_answers_follow_from_the_written_edges(name):
    for i in range(200):
        asked = graphs.QUESTIONS[name][0](generator(name, i), "train")
        listed, rest = asked.question.split(". ", 1)
        edges = re.findall(r"\(([A-H]), ([A-H])\)", listed)
        assert asked.images == ()
        assert asked.answer == expected(name, rest, (), edges)


def test_lines_are_where_the_edges_are():
    """Between two circles the paper is nowhere visible along an edge, and visible where there is none."""
    for i in range(60):
        rng = generator("lines", i)
        drawing = graphs._draw_any(rng, "train")
        pixels = np.asarray(drawing.image, int)
        centers = {n: np.array([(b[0] + b[2]) / 2, (b[1] + b[3]) / 2]) for n, b in drawing.boxes.items()}
        radius = (drawing.boxes[drawing.graph.nodes[0]][2] - drawing.boxes[drawing.graph.nodes[0]][0]) / 2
        paper = Counter(map(tuple, pixels.reshape(-1, 3))).most_common(1)[0][0]
        for a, b in itertools.combinations(drawing.graph.nodes, 2):
            gap = np.linalg.norm(centers[b] - centers[a])
            along = np.linspace((radius + 1) / gap, 1 - (radius + 1) / gap, 20)[:, None]
            x, y = (centers[a] + along * (centers[b] - centers[a])).astype(int).T
            paper_seen = (np.abs(pixels[y, x] - paper).sum(1) == 0).any()
            assert paper_seen != drawing.graph.linked(a, b), (i, a, b)


def test_circles_keep_apart_and_edges_pass_no_node(drawings):
    for i in range(40):
        scene = graphs.scene(generator("apart", i), "train")
        drawing = drawings[-1]
        centers = {n: complex(b[0] + b[2], b[1] + b[3]) / 2 for n, b in drawing.boxes.items()}
        radius = (scene.things[0].box[2] - scene.things[0].box[0]) / 2
        for a, b in itertools.combinations(centers, 2):
            assert abs(centers[a] - centers[b]) >= 2 * radius + 6
        for a, b in drawing.graph.edges:
            points = centers[a] + np.linspace(0, 1, 50) * (centers[b] - centers[a])
            assert all(np.abs(points - c).min() > radius + 3.5 for n, c in centers.items() if n not in (a, b))


@pytest.mark.parametrize("name", list(graphs.QUESTIONS))
def test_the_same_generator_draws_the_same_and_marks_are_inside(name):
    for i in range(8):
        one, two = (graphs.QUESTIONS[name][0](generator(name, i), "train") for _ in range(2))
        assert (one.question, one.answer, one.said, one.thought) == (
            two.question,
            two.answer,
            two.said,
            two.thought,
        )
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in two.images]
        for mark in MARK.findall(one.said + one.thought):
            x1, y1, x2, y2 = map(float, mark.split(","))
            assert 0 <= x1 < x2 <= one.images[0].width
            assert 0 <= y1 < y2 <= one.images[0].height
        assert 0 <= one.difficulty <= 1
        assert LOOK.sub("", one.thought)


@pytest.mark.parametrize("split", SPLITS)
def test_a_graph_is_in_one_split_however_it_is_shown(split, drawings):
    for name, (ask, *_) in graphs.QUESTIONS.items():
        for i in range(6):
            asked = ask(generator(name, i), split)
            if asked.images:
                assert split_of(drawings[-1].graph.key()) == split
            else:  # every node of the list is known, one without edges is not: find it among the possible ones
                edges = re.findall(r"\(([A-H]), ([A-H])\)", asked.question)
                listed = sorted({letter for edge in edges for letter in edge})
                others = [letter for letter in graphs.LETTERS if letter not in listed]
                possible = (
                    graphs.make([*listed, *more], edges).key()
                    for n in range(graphs.MOST + 1 - len(listed))
                    for more in itertools.combinations(others, n)
                )
                assert any(split_of(key) == split for key in possible)


def test_scene_facts_are_the_closed_sets(drawings):
    for i in range(40):
        scene = graphs.scene(generator("facts", i), "validation")
        joined = matrix(drawings[-1].graph.edges)
        for thing in scene.things:
            facts = dict(thing.facts)
            assert all(value in graphs.FACTS[name] for name, value in facts.items())
            assert facts == {
                "kind": thing.label,
                "degree": str(joined[graphs.LETTERS.index(thing.label)].sum()),
            }


@pytest.mark.parametrize(
    "name", [name for name, question in graphs.QUESTIONS.items() if question[1] != "box"]
)
def test_chance_is_what_the_best_constant_reply_scores(name, monkeypatch):
    """Within four standard deviations. Nothing is painted: the answers do not depend on it."""
    monkeypatch.setattr(graphs, "_paint", lambda *_: Image.new("RGB", (96, 96)))
    n, chance = 500, graphs.QUESTIONS[name][2]
    asked = [graphs.QUESTIONS[name][0](generator("chance", name, i), "train") for i in range(n)]
    best = Counter(str(a.answer) for a in asked).most_common(1)[0][1] / n
    assert abs(best - chance) < 4 * np.sqrt(chance * (1 - chance) / n) + 0.01
