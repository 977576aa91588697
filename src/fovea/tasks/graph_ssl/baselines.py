"""What a link can be guessed by without a model: nothing, degrees, common neighbours, Adamic-Adar, families of names.

Each is a score of a pair; the threshold and the direction are fitted on problems of the training part and measured on
held-out ones. Scores see the split's whole visible graph without the hidden edge, but for `shown`, which sees the
edges that the question shows. Also the vote of the neighbours for `graph/class` and `graph/attribute`.

Try it: python -m fovea.tasks.graph_ssl.baselines
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fovea.statistics import proportion
from fovea.tasks.graph_ssl import GraphTask, open_graph_task
from fovea.tasks.graph_ssl.ego import shared
from fovea.tasks.graph_ssl.network import Part
from fovea.types import Problem

Score = Callable[[Part, Problem], float]


def blind(part: Part, problem: Problem) -> float:
    return 0.0


def degree(part: Part, problem: Problem) -> float:
    """Preferential attachment: the product of the visible degrees, the hidden edge not counted."""
    a, b = problem.meta["pair"]
    linked = b in part.links[a]
    return float((part.degree(a) - linked) * (part.degree(b) - linked))


def common(part: Part, problem: Problem) -> float:
    """How many neighbours both have."""
    return float(len(shared(part, *problem.meta["pair"])))


def adamic_adar(part: Part, problem: Problem) -> float:
    """Σ 1 / log(degree) over the common neighbours (Adamic and Adar, Social Networks 25, 2003)."""
    return sum(1 / math.log(part.degree(w)) for w in sorted(shared(part, *problem.meta["pair"])))


def shown(part: Part, problem: Problem) -> float:
    """How many neighbours both have among the edges of the question."""
    return float(problem.meta["common"])


def family(part: Part, problem: Problem) -> float:
    """How many parts, from the left, two dotted names share; never seen under `names="letters"`."""
    a, b = (name.split(".") for name in problem.meta["pair"])
    same = [x == y for x, y in zip(a, b)]
    return float(same.index(False) if False in same else len(same))


SCORES: Mapping[str, Score] = {
    "blind": blind,
    "degree": degree,
    "common neighbours": common,
    "Adamic-Adar": adamic_adar,
    "common neighbours among the shown edges": shown,
    "family of names": family,
}


def fitted(scores: Sequence[float], truths: Sequence[bool]) -> tuple[float, int]:
    """(threshold, direction) with the best accuracy of `direction * (score - threshold) > 0`, the first of equals.

    Example: fitted([0, 0, 2, 3], [False, False, True, True]) == (1.0, 1)
    """
    values = np.unique(scores)
    between = (values[:-1] + values[1:]) / 2
    best = (-1.0, 0.0, 1)
    for threshold in [values[0] - 1, *between]:
        right = float(np.mean((np.asarray(scores) > threshold) == np.asarray(truths)))
        for accuracy, direction in ((right, 1), (1 - right, -1)):
            if accuracy > best[0]:
                best = (accuracy, float(threshold), direction)
    return best[1], best[2]


def link_baselines(train: GraphTask, held: GraphTask, n: int = 1000) -> dict[str, Any]:
    """Name → {"accuracy": {"mean", "ci95"}, "train_accuracy", "threshold", "direction"} over `n` problems each, and how
    many different pairs the held-out ones are."""
    taken = {"train": train.take(0, n)[0], "held": held.take(0, n)[0]}
    truth = {key: [problem.answer == "yes" for problem in problems] for key, problems in taken.items()}
    found: dict[str, Any] = {}
    for name, score in SCORES.items():
        seen = [score(train.part, problem) for problem in taken["train"]]
        threshold, direction = fitted(seen, truth["train"])
        value = [score(held.part, problem) for problem in taken["held"]]
        right = [
            [(direction * (s - threshold) > 0) == true for s, true in zip(scores, truth[key])]
            for key, scores in (("held", value), ("train", seen))
        ]
        found[name] = {
            "accuracy": proportion(right[0]),
            "train_accuracy": float(np.mean(right[1])),
            "threshold": threshold,
            "direction": direction,
        }
    pairs = {frozenset(problem.meta["pair"]) for problem in taken["held"]}
    return {"graph": held.part.network.about, "n": n, "different_pairs": len(pairs), "baselines": found}


def choice_baselines(train: GraphTask, held: GraphTask, n: int = 1000) -> dict[str, Any]:
    """Name → {"accuracy"} for `graph/class` and `graph/attribute`: the letter that is most often right in training,
    and the offered value that most of the shown neighbours have (the first of equals)."""
    most = Counter(problem.answer for problem in train.take(0, n)[0]).most_common(1)[0][0]
    problems = held.take(0, n)[0]
    found = {
        "blind": [problem.answer == most for problem in problems],
        "vote of the neighbours": [_voted(problem) == problem.meta["truth"] for problem in problems],
    }
    accuracy = {name: {"accuracy": proportion(right)} for name, right in found.items()}
    nodes = {problem.meta["node"] for problem in problems}
    return {"graph": held.part.network.about, "n": n, "different_nodes": len(nodes), "baselines": accuracy}


def _voted(problem: Problem) -> str:
    votes = Counter(problem.meta["near"])
    return max(problem.meta["offered"], key=votes.__getitem__)


def main() -> None:
    for name, measure in (
        ("graph/link", link_baselines),
        ("graph/class", choice_baselines),
        ("graph/attribute", choice_baselines),
    ):
        found = measure(open_graph_task(name, "train", 0), open_graph_task(name, "test", 1_000_003))
        print(name, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
