"""Solvers that do not look: how much of a task its question, files, colours and borders give away.

`fit_and_score` fits a solver to problems of the split "train" and scores it on problems made of other pictures (the
split "test"): "blind" knows text, sizes and bytes; "low_level" statistics of colour and sharpness, borders, and
identical pixels; "coarse" also thumbnails and where colours lie, which is looking, if only a little
(`fovea.tasks.solver_features`). Several methods are tried; a part of the training problems chooses. Every
prediction becomes a reply that `fovea.rewards.correct` judges, as it judges models. Needs scikit-learn.
Not here: the methods (`fovea.tasks.solver_methods`, for orders `fovea.tasks.solver_orders`).

Try it: `fovea study ssl4rl/solvers images=FOLDER --n 1000 --out runs/solvers`
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fovea.rewards import correct, default_rewards, weigh
from fovea.statistics import wilson
from fovea.tasks.scenes import Split
from fovea.tasks.solver_boxes import box_constant, box_match, box_regression, box_windows
from fovea.tasks.solver_features import Seen, Table, gather
from fovea.tasks.solver_methods import (
    Method,
    NotApplicable,
    Predict,
    candidates,
    classes,
    constant,
    members,
    need_sklearn,
    options,
)
from fovea.tasks.solver_orders import order_methods
from fovea.types import AnswerKind, Problem, Task

Which = Literal["blind", "low_level", "coarse"]
WHICH: tuple[Which, ...] = ("blind", "low_level", "coarse")
FACTS = 50
"""Problems of a check that are made twice."""
Factory = Callable[[Split], Task]
"""Split → the task over that split's pictures."""


def _both(name: str, method: Callable[..., Predict], *given: Any) -> dict[str, Method]:
    return {f"{name}, {model}": functools.partial(method, model, *given) for model in ("linear", "trees")}


_CONSTANT: dict[str, Method] = {"constant": constant}
_SINGLE = _CONSTANT | _both("classes", classes) | _both("candidates", candidates)
_MATCHES: dict[str, Method] = {
    f"match {a} {b}": functools.partial(box_match, (a, b)) for a, b in ((0, 1), (1, 0))
}

METHODS: Mapping[AnswerKind, Mapping[str, Method]] = {
    "text": _SINGLE,
    "number": _SINGLE,
    "choice": _SINGLE | _both("options", options),
    "order": _CONSTANT | order_methods(),
    "set": _CONSTANT | _both("members", members, False) | _both("members by view", members, True),
    "box": {"constant": box_constant}
    | _both("regression", box_regression)
    | _both("windows", box_windows)
    | _MATCHES,
    "objects": _CONSTANT | _both("windows", box_windows),
    "math": _CONSTANT,
}
"""Kind of answer → name → method."""

VALIDATION = 0.25
"""Of the training problems, for choosing a method."""
SCOUTED = 500
"""Training problems on which all methods are tried; the best `KEPT` of them are tried on all."""
KEPT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a solver reaches on held-out problems.

    Example: Score(which="blind", accuracy=0.26, ci95=(0.25, 0.27), n=4000, chance=0.25, partial=0.26,
    method="constant")
    """

    which: str
    accuracy: float
    """Share of the held-out problems that `fovea.rewards.correct` calls right."""
    ci95: tuple[float, float]
    """Wilson's interval. Problems share pictures, which it does not know of."""
    n: int
    chance: float
    """The mean of the problems' own figures (`Problem.meta["chance"]`), else the task's."""
    partial: float
    """Mean reward without the part for the format, in shares of the full one."""
    method: str
    """The one that the training problems chose."""

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {"ci95": list(self.ci95)}


def fit_and_score(task_factory: Factory, which: Which, n_train: int, n_test: int) -> Score:
    """Fit a solver to the first `n_train` problems of the split "train", score it on the first `n_test` of "test".

    Raises UserError without scikit-learn.
    """
    need_sklearn()
    test = task_factory("test")
    return score_tables(gather(task_factory("train"), n_train), gather(test, n_test), which, test)


def score_tables(train: Table, test: Table, which: Which, task: Task) -> Score:
    """The same of problems that are there already; `task` says chance and reward."""
    need_sklearn()
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    kind = train.problems[0].kind
    train_seen, test_seen = getattr(train, which), getattr(test, which)
    with threadpool_limits(1):  # threads that spin on a busy machine are many times slower
        name, method = choose(METHODS[kind], train_seen, train.problems)
        answers = method(train_seen, train.problems)(test_seen, test.problems)
    replies = [reply_of(answer) for answer in answers]
    right = [correct(reply, problem) for reply, problem in zip(replies, test.problems, strict=True)]
    weights = {k: v for k, v in getattr(task, "rewards", default_rewards(kind)).items() if k != "format"}
    options = getattr(task, "reward_options", None)
    earned = [
        float(weigh([reply], problem, weights, options=options)[0][0]) / sum(weights.values())
        for reply, problem in zip(replies, test.problems)
    ]
    return Score(
        which=which,
        accuracy=sum(right) / len(right),
        ci95=wilson(sum(right), len(right)),
        n=len(right),
        chance=float(np.mean([problem.meta.get("chance", task.chance) for problem in test.problems])),
        partial=float(np.mean(earned)),
        method=name,
    )


def check_solvers(task_factory: Factory, n: int = 400) -> dict[str, Any]:
    """What `fovea tasks check ssl/NAME --json` adds: the solvers on `n` held-out problems after as many for fitting,
    and of the first `FACTS` of the split "train" whether each is the same when made again, whether its truth earns
    the full reward. Raises UserError without scikit-learn.

    Example: {"blind": {"accuracy": 0.25, "ci95": [0.21, 0.29], "n": 400, "chance": 0.25}, "low_level": {…},
    "coarse": {…}, "truth_scores_one": True, "deterministic": True}
    """
    from fovea.tasks.check import facts_of, wrong_reward

    need_sklearn()
    train, test = task_factory("train"), task_factory("test")
    problems, _ = train.take(0, FACTS)
    again = [train.take(index, 1)[0][0] for index in range(FACTS)]
    found: dict[str, Any] = {}
    tables = gather(train, n), gather(test, n)
    for which in WHICH:
        score = score_tables(*tables, which, test).record()
        found[which] = {name: score[name] for name in ("accuracy", "ci95", "n", "chance")}
    found["truth_scores_one"] = not any(list(wrong_reward(problem)) for problem in problems)
    found["deterministic"] = all(facts_of(a) == facts_of(b) for a, b in zip(problems, again))
    return found


def reply_of(answer: Any) -> str:
    """The answer as a model would write it."""
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        return f"<answer>{json.dumps(answer)}</answer>"
    if isinstance(answer, list | tuple):
        brackets = isinstance(answer, tuple)
        inner = ", ".join(map(str, answer))
        return f"<answer>[{inner}]</answer>" if brackets else f"<answer>{inner}</answer>"
    return f"<answer>{answer}</answer>"


def choose(methods: Mapping[str, Method], seen: Seen, problems: Sequence[Problem]) -> tuple[str, Method]:
    """The method that is right most often on a held-out part of these problems; the first of equals.

    All are tried on `SCOUTED` problems, the best `KEPT` then on all.
    """
    found = _ranked(methods, seen, problems, min(len(problems), SCOUTED))
    if len(problems) > SCOUTED:
        found = _ranked({name: methods[name] for name in found[:KEPT]}, seen, problems, len(problems))
    return found[0], methods[found[0]]


def _ranked(methods: Mapping[str, Method], seen: Seen, problems: Sequence[Problem], n: int) -> list[str]:
    """Names of the methods that apply, best first, fitted to (1 - VALIDATION) n problems."""
    held = max(1, round(n * VALIDATION))
    fitted, left = np.arange(n - held), np.arange(n - held, n)
    parts = [(seen.take(part), [problems[int(i)] for i in part]) for part in (fitted, left)]
    scores: dict[str, float] = {}
    for name, method in methods.items():
        try:
            answers = method(*parts[0])(*parts[1])
        except NotApplicable:
            continue
        right = [correct(reply_of(a), p) for a, p in zip(answers, parts[1][1], strict=True)]
        scores[name] = sum(right) / len(right)
    return sorted(scores, key=lambda name: -scores[name])
