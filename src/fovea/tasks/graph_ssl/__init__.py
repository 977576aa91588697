"""Self-supervised tasks on graphs: the graph is its own teacher. `GRAPH_TASKS` is the table.

SSL4RL's abstract says that it hides attributes, neighbours and links of graphs; its text and code for them could not be
obtained. **These tasks are a reconstruction**: questions, splits, graphs and difficulties are our choice.

Try it: python -c "from fovea.tasks.graph_ssl import *; print(open_graph_task('graph/link', graph='karate').problem(0))"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fovea.tasks.graph_ssl import attribute, link, neighbours
from fovea.tasks.graph_ssl.network import Network, Part, part
from fovea.tasks.graph_ssl.sources import open_graph
from fovea.tasks.scenes import SPLITS, Split
from fovea.tasks.ssl.spec import Generator, Options, check_options, problem_at
from fovea.tasks.styles import STYLES
from fovea.types import AnswerKind, Problem, UserError

__all__ = [
    "GRAPH",
    "GRAPH_TASKS",
    "LEVEL",
    "GraphTask",
    "Network",
    "Part",
    "open_graph",
    "open_graph_task",
    "part",
]

GRAPH_TASKS: Mapping[str, Generator] = {
    "graph/attribute": attribute.GENERATOR,
    "graph/class": attribute.CLASS,
    "graph/link": link.GENERATOR,
    "graph/neighbours": neighbours.GENERATOR,
}
"""Name → generator; its `make` takes a `Part` where a picture task's takes a pool."""

GRAPH = "python-imports"
"""The graph that is asked about where nobody gave one."""
LEVEL = 0.4
"""Difficulty of a task for which nobody gave one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphTask:
    """An endless task: problem i of a split is a function of (seed, i, difficulty) and of the graph."""

    name: str
    """As opened: "graph/link" or, in another style, "graph/link@think"."""
    seed: int
    part: Part
    level: Callable[[int], float]
    """Difficulty of problem i."""
    options: Options = field(default_factory=dict)

    @property
    def generator(self) -> Generator:
        return GRAPH_TASKS[self.name.partition("@")[0]]

    @property
    def split(self) -> Split:
        return self.part.split

    @property
    def kind(self) -> AnswerKind:
        return self.generator.kind

    @property
    def chance(self) -> float:
        """At the difficulty of problem 0."""
        return float(self.generator.chance(self.level(0), **self.options))

    @property
    def size(self) -> None:
        return None

    @property
    def rewards(self) -> Mapping[str, float]:
        """What a run takes where its recipe names none."""
        return self.generator.rewards

    @property
    def reward_options(self) -> Mapping[str, Options]:
        return self.generator.reward_options

    def problem(self, index: int) -> Problem:
        """Problem `index` at the difficulty that holds there."""
        return self.at(index, self.level(index))

    def at(self, index: int, difficulty: float) -> Problem:
        """Problem `index` at a difficulty. Raises UserError where the graph has no part that suits the question."""
        problem = problem_at(
            self.generator,
            self.part,
            name=self.name,
            split=self.split,
            seed=self.seed,
            index=index,
            difficulty=difficulty,
            options=self.options,
        )
        return replace(problem, meta={"graph": self.part.network.name} | problem.meta)

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self.problem(index) for index in range(cursor, cursor + n)], cursor + n


def open_graph_task(
    name: str,
    split: Split = "train",
    seed: int = 0,
    *,
    graph: str | Path | Network | Any = GRAPH,
    label: str | None = None,
    level: float | Callable[[int], float] = LEVEL,
    options: Options | None = None,
) -> GraphTask:
    """A task over a graph: a built-in one by name, a file or a networkx graph (`sources.open_graph`).

    `label`: the nodes' attribute that is the class. Raises UserError for a name, split or option that there is not, and
    for a graph that cannot be read or has too little for the question.
    """
    from fovea.config import nearest  # half of what `--help` would import

    base, at, style = name.partition("@")
    if base not in GRAPH_TASKS:
        raise UserError(
            f"There is no graph task {base!r}{nearest(base, list(GRAPH_TASKS))}; known: {', '.join(GRAPH_TASKS)}."
        )
    if at and style not in STYLES:
        raise UserError(f"Task {name!r}: there is no style {style!r}; known: {', '.join(STYLES)}.")
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; known: {', '.join(SPLITS)}.")
    held = check_options(base, GRAPH_TASKS[base], options)
    fixed = level if callable(level) else lambda _: level
    task = GraphTask(
        name=name, seed=seed, part=part(open_graph(graph, label=label), split), level=fixed, options=held
    )
    task.problem(0)  # what the graph lacks is said now
    return task
