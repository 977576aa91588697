"""Self-supervised tasks on graphs: what a split sees, what is hidden, what earns nothing, what a bad file is told."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest

from fovea.rewards import correct
from fovea.rewards.sequences import set_f1
from fovea.tasks.graph_ssl import GRAPH_TASKS, Network, open_graph, open_graph_task, part
from fovea.tasks.graph_ssl.baselines import adamic_adar, common, degree, fitted, link_baselines
from fovea.tasks.graph_ssl.builtin import BUILTIN, imports_of
from fovea.tasks.graph_ssl.ego import around
from fovea.tasks.graph_ssl.network import network, split_of_node
from fovea.tasks.scenes import SPLITS
from fovea.types import UserError


@pytest.fixture(scope="module")
def villages() -> Network:
    """240 people in 8 villages; friends are mostly of one village. Names and attributes as a file would have them."""
    made = networkx.Graph()
    rng = np.random.default_rng(0)
    for i in range(240):
        made.add_node(f"p{i}", village=f"village {i % 8}", mood=("calm", "loud", "odd")[i % 3])
    for a in range(240):
        for b in range(a):
            if rng.random() < (0.3 if a % 8 == b % 8 else 0.005):
                made.add_edge(f"p{a}", f"p{b}")
    return open_graph(made, label="village")


@pytest.mark.parametrize("name", GRAPH_TASKS)
@pytest.mark.parametrize("options", [{}, {"show": "picture"}], ids=["text", "picture"])
def test_a_problem_is_a_function_of_seed_and_index(name: str, options: Any, villages: Network) -> None:
    task = open_graph_task(name, "test", 3, graph=villages, options=options)
    (alone,), _ = task.take(7, 1)
    together, cursor = task.take(4, 6)
    assert cursor == 10
    assert (together[3].question, together[3].answer, together[3].target, together[3].meta) == (
        alone.question, alone.answer, alone.target, alone.meta,
    )  # fmt: skip
    assert len(alone.images) == ("show" in options)
    assert [a.tobytes() for a in alone.images] == [b.tobytes() for b in together[3].images]
    assert open_graph_task(name, "test", 4, graph=villages).take(7, 1)[0][0].question != alone.question


@pytest.mark.parametrize("name", GRAPH_TASKS)
@pytest.mark.parametrize("names", ["real", "letters", "ordered"])
def test_the_teacher_is_right_and_others_are_not(name: str, names: str, villages: Network) -> None:
    """The truth scores 1 in every style; a truth of another problem, where it differs, scores less."""
    for style in ("", "@think", "@boxed", "@json"):
        task = open_graph_task(name + style, "train", 0, graph=villages, options={"names": names})
        problems = task.take(0, 20)[0]
        for one, other in itertools.pairwise(problems):
            assert correct(one.target or "", one)
            assert correct(other.target or "", one) == (
                sorted(one.answer) == sorted(other.answer)
                if one.kind == "set"
                else one.answer == other.answer
            )


def test_training_never_sees_what_is_asked_later(villages: Network) -> None:
    """Every edge is asked in exactly one split; what a split shows are edges among its visible nodes."""
    asked = [set(part(villages, split).pairs) for split in SPLITS]
    assert set().union(*asked) == set(villages.edges)
    assert sum(map(len, asked)) == len(villages.edges)
    train = {node for node in villages.links if split_of_node(node) == "train"}
    for split, at in zip(SPLITS, range(3)):
        for problem in open_graph_task("graph/link", split, 0, graph=villages).take(0, 80)[0]:
            a, b = problem.meta["pair"]
            assert (b in villages.links[a]) == (problem.answer == "yes")
            assert [a, b] not in problem.meta["edges"]
            assert [b, a] not in problem.meta["edges"]
            for x, y in problem.meta["edges"]:
                assert y in villages.links[x]
                assert {split_of_node(x), split_of_node(y)} <= set(SPLITS[: at + 1])
            assert split == "train" or not {a, b} <= train  # one end at least is new
            if problem.answer == "yes":
                assert tuple(sorted((a, b))) in asked[at]


def test_links_are_balanced_and_degrees_say_nothing(villages: Network) -> None:
    """600 answers: half are yes within 4 standard errors (0.0204 each); mean degrees of yes (less the hidden edge) and
    of no agree within a tenth."""
    task = open_graph_task("graph/link", "test", 1, graph=villages)
    problems = task.take(0, 600)[0]
    yes = [problem for problem in problems if problem.answer == "yes"]
    assert abs(len(yes) / 600 - 0.5) < 0.082
    mean = {
        answer: np.mean([degree(task.part, p) for p in problems if p.answer == answer])
        for answer in ("yes", "no")
    }
    assert mean["yes"] == pytest.approx(mean["no"], rel=0.1)


def test_baselines_find_villages_and_no_more(villages: Network) -> None:
    """Nine common friends inside a village, hardly one outside: structure must be far above chance, degree must not."""
    pair = [open_graph_task("graph/link", split, 5, graph=villages) for split in ("train", "test")]
    found = link_baselines(pair[0], pair[1], 400)
    mean = {name: one["accuracy"]["mean"] for name, one in found["baselines"].items()}
    assert abs(mean["blind"] - 0.5) < 0.1
    assert mean["degree"] < 0.6
    assert mean["common neighbours"] > 0.8
    assert mean["Adamic-Adar"] > 0.8
    low, high = found["baselines"]["blind"]["accuracy"]["ci95"]
    assert low < mean["blind"] < high
    assert found["different_pairs"] > 250


def test_scores_of_a_pair_by_hand() -> None:
    """a-b joined, both to c (degree 3: a, b, d) and d only to c. Without the hidden edge a-b both have one neighbour:
    degree 1 * 1, one in common, 1/log 3. All nodes in one part, whatever their hash."""
    small = network("small", "small", [("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")], {})
    held = part(small, "test") if any(split_of_node(n) == "test" for n in "abcd") else part(small, "train")
    from dataclasses import replace

    held = replace(held, links=small.links)
    problem: Any = type("P", (), {"meta": {"pair": ["a", "b"]}})
    assert degree(held, problem) == 1
    assert common(held, problem) == 1
    assert adamic_adar(held, problem) == pytest.approx(1 / np.log(3))
    assert fitted([0, 0, 2, 3], [False, False, True, True]) == (1.0, 1)
    assert fitted([5, 4, 1], [False, False, True]) == (2.5, -1)


def test_listing_everything_scores_nothing(villages: Network) -> None:
    task = open_graph_task("graph/neighbours", "train", 0, graph=villages, level=1.0)
    for problem in task.take(0, 60)[0]:
        candidates = problem.meta["candidates"]
        assert len(candidates) == 6
        assert 1 <= len(problem.answer) <= 3
        assert set_f1(f"<answer>{', '.join(candidates)}</answer>", problem) == 0
        assert set_f1(f"<answer>{', '.join([*candidates, 'another'])}</answer>", problem) == 0
        assert set_f1(problem.target or "", problem) == 1
        node = problem.meta["node"]
        for x, y in problem.meta["edges"]:
            assert node not in (x, y) or not {x, y} & set(candidates)
        for name in candidates:  # real names
            assert (name in villages.links[node]) == (name in problem.answer)


def test_chance_is_what_the_best_constant_gets(villages: Network) -> None:
    """Neighbours of n = 4: one or two are right, evenly: 1/2 * 1/4 with one of the four; of 6:
    1/3 * 1/6. Choices: the truth is even over the letters: 3 letters, 1/3 within 4 standard errors of 400 problems."""
    chance = GRAPH_TASKS["graph/neighbours"].chance
    assert chance(0.4) == pytest.approx(1 / 8)
    assert chance(1.0) == pytest.approx(1 / 18)
    for name in ("graph/class", "graph/attribute"):
        problems = open_graph_task(name, "train", 0, graph=villages).take(0, 400)[0]
        shares = Counter(problem.answer for problem in problems)
        assert set(shares) == {"A", "B", "C"}
        assert max(shares.values()) / 400 < 1 / 3 + 4 * 0.0236


def test_the_asked_attribute_is_never_shown(villages: Network) -> None:
    for problem in open_graph_task("graph/class", "test", 0, graph=villages).take(0, 100)[0]:
        me = problem.question.partition("What is ")[2].partition("?")[0]
        known = problem.question.partition("Known: ")[2].partition(" What is")[0]
        assert f"{me} village" not in known
        assert problem.meta["node"] not in problem.question
        assert villages.attributes["village"][problem.meta["node"]] == problem.meta["truth"]


def test_ordered_letters_follow_the_search(villages: Network) -> None:
    """The asked nodes are A and B; a common neighbour, where one is shown, is C and has the first two edges; every edge
    has the earlier letter first, and letters come up in their order."""
    task = open_graph_task("graph/link", "train", 0, graph=villages, options={"names": "ordered"})
    for problem in task.take(0, 60)[0]:
        assert problem.question.endswith("Is there an edge between A and B?")
        written = problem.question.partition(" are (")[2].partition("). One")[0]
        pairs = [tuple(pair.split(", ")) for pair in written.split("), (")]
        assert all(a < b for a, b in pairs)
        assert (pairs[:2] == [("A", "C"), ("B", "C")]) == (problem.meta["common"] > 0)
        fresh = list(dict.fromkeys(name for pair in pairs for name in pair if name > "B"))
        assert fresh == sorted(fresh)


def test_difficulty_is_the_number_of_edges(villages: Network) -> None:
    for level, most in ((0.0, 6), (1.0, 12)):
        problems = open_graph_task("graph/link", "train", 0, graph=villages, level=level).take(0, 50)[0]
        assert max(len(problem.meta["edges"]) for problem in problems) == most
        assert all(problem.difficulty == level for problem in problems)


def test_common_neighbours_come_first() -> None:
    """Six of the edges' twelve places are for three common neighbours; a and b have ten more each."""
    edges = [(x, w) for w in ("u", "v", "w") for x in ("a", "b")]
    edges += [(x, f"{x}{i}") for x in ("a", "b") for i in range(10)]
    made = network("m", "m", edges, {})
    held: Any = type("Part", (), {"links": made.links})
    for seed in range(5):
        found = {frozenset(e) for e in around(held, np.random.default_rng(seed), ("a", "b"), 12)}
        assert len(found) == 12
        assert {frozenset((x, w)) for w in "uvw" for x in "ab"} <= found


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.csv", "Ann,Bob\nAnn\n", "line 2: not two names with a comma"),
        ("g.txt", "# list\nAnn Bob\nAnn Bob Cid Dan\n", "line 3: not two names with white space"),
        ("g.edges", "# nothing\n", "holds no edge"),
        ("g.txt", "Ann Ann\n", "no edge between two different nodes"),
        ("g.graphml", "<graphml><graph>", "is not GraphML"),
        ("g.graphml", '<!DOCTYPE x [<!ENTITY a "b">]><graphml/>', "declares a document type"),
        ("g.json", "{}", "a graph's file ends in"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        open_graph(path)


def test_files_of_three_kinds_hold_the_same_graph(tmp_path: Path, villages: Network) -> None:
    pairs = villages.edges
    (tmp_path / "g.csv").write_text("source,target\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    (tmp_path / "g.txt").write_text("% weights\n" + "".join(f"{b}\t{a} 1.5\n" for a, b in pairs))
    made = networkx.Graph(pairs)
    networkx.set_node_attributes(made, {node: {"class": "x"} for node in made})
    networkx.write_graphml(made, tmp_path / "g.graphml")
    graphs = [open_graph(tmp_path / name) for name in ("g.csv", "g.txt", "g.graphml")]
    assert [graph.edges for graph in graphs] == [pairs] * 3
    assert graphs[2].label == "class"
    one, other = (open_graph_task("graph/link", "test", 0, graph=graph).problem(3) for graph in graphs[:2])
    assert (one.question, one.answer) == (other.question, other.answer)
    with pytest.raises(UserError, match="no attribute to ask for"):
        open_graph_task("graph/attribute", graph=graphs[0])
    with pytest.raises(UserError, match="has no attribute 'age'"):
        open_graph(tmp_path / "g.csv", label="age")


def test_what_cannot_be_asked_is_said(villages: Network) -> None:
    with pytest.raises(UserError, match="did you mean"):
        open_graph_task("graph/links", graph=villages)
    with pytest.raises(UserError, match="no option 'nmaes'"):
        open_graph_task("graph/link", graph=villages, options={"nmaes": "letters"})
    with pytest.raises(UserError, match="names='digits' is not allowed"):
        open_graph_task("graph/link", graph=villages, options={"names": "digits"})
    with pytest.raises(UserError, match="edges=40 is not 0 to 18"):
        open_graph_task("graph/link", graph=villages, options={"edges": 40})
    with pytest.raises(UserError, match="fewer than the 3 choices; give task_options choices=2"):
        open_graph_task("graph/class", graph="karate")
    with pytest.raises(UserError, match="neither a file nor one of python-imports"):
        open_graph("nowhere.csv")
    with pytest.raises(UserError, match="give a larger graph"):
        open_graph_task("graph/link", graph=networkx.path_graph(3))
    odd = networkx.Graph(
        [(f"a,{i}", f"b,{i + 1}") for i in range(60)] + [(f"a,{i}", f"b,{i}") for i in range(60)]
    )
    odd.add_edges_from([(f"b,{i}", f"b,{i + 2}") for i in range(58)])
    with pytest.raises(UserError, match="names=letters"):
        open_graph_task("graph/link", graph=odd)
    assert open_graph_task("graph/link", graph=odd, options={"names": "letters"}).problem(0)


def test_pictures_of_the_largest_question_are_drawn(villages: Network) -> None:
    task = open_graph_task("graph/link", "test", 0, graph=villages, options={"show": "picture", "edges": 18})
    sizes = {problem.images[0].size for problem in task.take(0, 4)[0]}
    assert sizes <= {(side, side) for side in (160, 224, 320, 448, 640)}


@pytest.mark.parametrize("name", ["packages", "karate", "les-miserables", "florentine"])
def test_built_in_graphs_open(name: str) -> None:
    graph = open_graph(name)
    assert len(graph.edges) >= 15
    assert graph.edges == BUILTIN[name]().edges
    assert all(a in graph.links[b] for a, b in graph.edges)


def test_sources_are_parsed_and_not_run(tmp_path: Path) -> None:
    """By hand: pack/__init__ imports fast; pack.inner imports pack (`.`), pack.sub.deep (`.sub`) and, in a function,
    fast; pack.sub.deep imports pack.inner (`..`); a broken file and tests import nothing; nothing is executed."""
    sources = {
        "pack/__init__.py": "import fast\nraise SystemExit\n",
        "pack/inner.py": "from . import name\nfrom .sub import deep\ndef f():\n  if 1:\n    import fast, other\n",
        "pack/sub/__init__.py": "class A: pass\n",
        "pack/sub/deep.py": "from ..inner import f\n",
        "broken.py": "import pack\nprint 1\n",
        "test/t.py": "import pack\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    edges, attributes = imports_of(tmp_path, {"fast", "test"})
    assert edges == {
        ("pack", "fast"), ("pack.inner", "pack"), ("pack.inner", "pack.sub.deep"), ("pack.inner", "fast"),
        ("pack.sub.deep", "pack.inner"),
    }  # fmt: skip
    assert attributes["kind"] == {
        "pack": "package", "pack.inner": "module", "pack.sub": "package", "pack.sub.deep": "module",
        "broken": "module", "fast": "C",
    }  # fmt: skip
    assert attributes["defines"] == {
        "pack": "neither", "pack.inner": "functions", "pack.sub": "classes", "pack.sub.deep": "neither",
    }  # fmt: skip
    assert attributes["package"] == {}  # four modules are fewer than ten


@pytest.mark.long
def test_imports_of_python() -> None:
    """json/decoder.py begins with `from json import scanner`, and its C scanner is imported in a try."""
    graph = open_graph("python-imports")
    assert "json.scanner" in graph.links["json.decoder"]
    assert "_json" in graph.links["json.scanner"]
    assert "asyncio.events" in graph.links["asyncio.base_events"]  # relative: from . import events
    assert graph.attributes["kind"]["_json"] == "C"
    assert graph.attributes["kind"]["json"] == "package"
    assert graph.attributes["package"]["asyncio.events"] == "asyncio"
    assert len(graph.links) > 500
    problems = open_graph_task("graph/link", "test", 1_000_003, graph=graph).take(0, 1000)[0]
    assert len({frozenset(problem.meta["pair"]) for problem in problems}) >= 500
