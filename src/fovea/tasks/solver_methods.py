"""The methods of the solvers: `(what is seen, problems) → (what is seen, problems) → answers`, a table by kind.

Classification over the answer, a scorer of candidates, sets by their members; each with gradient-boosted trees
and with a linear model of scikit-learn, and the best constant answer. A method that does not fit a task raises
`NotApplicable`. Which is used is chosen by `fovea.tasks.solvers`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fovea.tasks.solver_features import Seen
from fovea.types import Problem, UserError

Predict = Callable[[Seen, Sequence[Problem]], list[Any]]
Method = Callable[[Seen, Sequence[Problem]], Predict]
Classify = Callable[[np.ndarray], np.ndarray]
"""Features [N, D] → probabilities [N, classes]."""

CLASSES = 64
"""More different answers than that are no classes."""
ROWS = 24_000
"""Rows that a classifier is fitted to at most."""


class NotApplicable(Exception):
    """The method does not fit the task."""


def need_sklearn() -> None:
    """Raise UserError without scikit-learn."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError("The solvers need scikit-learn: pip install 'fovea-rl[solvers]'.") from None


# --- classifiers ------------------------------------------------------------------------------------------


def fit_classes(model: str, x: np.ndarray, y: np.ndarray, classes: int) -> Classify:
    """Fit "trees" or "linear" to features [N, D] (NaN: unknown) and labels [N] in 0 to classes - 1."""
    if len(x) > ROWS:
        some = np.random.default_rng(0).choice(len(x), ROWS, replace=False)
        x, y = x[some], y[some]
    known = np.unique(y)
    kept = np.flatnonzero(np.nanmax(x, 0, initial=-np.inf) > np.nanmin(x, 0, initial=np.inf))
    if len(known) < 2 or not len(kept):
        share = np.bincount(y, minlength=classes) / len(y)
        return lambda rows: np.tile(share, (len(rows), 1))
    x = x[:, kept]
    middle, spread = np.nanmean(x, 0), np.nanstd(x, 0) + 1e-6

    def ready(rows: np.ndarray) -> np.ndarray:
        if model == "trees":
            return rows
        return np.clip(np.nan_to_num((rows - middle) / spread), -8, 8)

    fitted = _model(model, len(known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: the validation part judges it
        fitted.fit(ready(x), y)

    def classify(rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), classes))
        found[:, known] = fitted.predict_proba(ready(rows[:, kept]))
        return found

    return classify


def _model(model: str, classes: int) -> Any:
    if model == "linear":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=0.05, max_iter=150)
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=80 if classes <= 4 else 30,
        max_leaf_nodes=15,
        max_bins=31,  # with this and the next several times as fast, and no worse
        max_features=0.3,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )


# --- one answer -------------------------------------------------------------------------------------------


def key(problem: Problem) -> str:
    return json.dumps(problem.answer)


def constant(seen: Seen, problems: Sequence[Problem]) -> Predict:
    """The most frequent answer."""
    best = json.loads(Counter(map(key, problems)).most_common(1)[0][0])
    return lambda _, asked: [best] * len(asked)


def classes(model: str, seen: Seen, problems: Sequence[Problem]) -> Predict:
    """The answer as a class of the flat features."""
    names = sorted(set(map(key, problems)))
    if len(names) > CLASSES:
        raise NotApplicable
    y = np.array([names.index(key(problem)) for problem in problems])
    classify = fit_classes(model, seen.flat, y, len(names))
    return lambda other, asked: [json.loads(names[k]) for k in classify(other.flat).argmax(1)]


_OPTION = re.compile(r"(?:^|[\s(])\(?([A-H])[.):]\s*([^;,\n?]+)")


def _options(problem: Problem) -> dict[str, str]:
    """Letter → what the question says it stands for."""
    return {letter: text.strip().rstrip(".") for letter, text in _OPTION.findall(problem.question)}


def options(model: str, seen: Seen, problems: Sequence[Problem]) -> Predict:
    """Of a choice whose letters stand for texts: the text as a class, then its letter."""
    truths = [_options(problem).get(str(problem.answer)) for problem in problems]
    names = sorted({truth for truth in truths if truth is not None})
    if None in truths or not 2 <= len(names) <= CLASSES:
        raise NotApplicable
    y = np.array([names.index(str(truth)) for truth in truths])
    classify = fit_classes(model, seen.flat, y, len(names))

    def predict(other: Seen, asked: Sequence[Problem]) -> list[Any]:
        found = []
        for row, problem in zip(classify(other.flat), asked):
            likely = {
                letter: row[names.index(text)] if text in names else 0.0
                for letter, text in _options(problem).items()
            }
            found.append(max(likely, key=lambda letter: likely[letter]) if likely else "A")
        return found

    return predict


# --- candidates -------------------------------------------------------------------------------------------


def indexed(answers: Sequence[Any]) -> tuple[list[Any], int]:
    """(names of the candidates in order, how many) where answers number or letter them. Raises NotApplicable."""
    texts = {str(answer) for answer in answers}
    for names in ([chr(65 + k) for k in range(16)], list(range(1, 17))):
        places = [k for k, name in enumerate(names) if str(name) in texts]
        if len(places) == len(texts) and max(places, default=0) + 1 >= 2:
            return names[: max(places) + 1], max(places) + 1
    raise NotApplicable


def candidate_features(seen: Seen, k: int) -> np.ndarray:
    """float32 [N, k, G] of the last `k` views of each problem: their own numbers, against the candidates' mean
    and by rank; likeness to the others; likeness to the last two views before them."""
    if seen.count.min() < k:
        raise NotApplicable
    rows = np.arange(len(seen.count))[:, None]
    at = seen.count[:, None] - k + np.arange(k)  # [N, k]
    own = seen.views[rows, at]
    found = [own, own - own.mean(1, keepdims=True), _ranks(own)]
    found.append(np.broadcast_to(np.eye(k, dtype=np.float32), (len(own), k, k)))
    if seen.pairs.shape[-1]:
        pairs = seen.pairs[rows[:, :, None], at[:, :, None], at[:, None, :]].copy()  # [N, k, k, E]
        pairs[:, np.arange(k), np.arange(k)] = np.nan
        for axis in (1, 2):
            mean = np.nanmean(pairs, axis)
            found += [mean, _ranks(mean), np.nanmin(pairs, axis)]
        for back in range(1, 1 + min(2, int(seen.count.min()) - k)):
            context = at[:, :1] - back
            for between in (seen.pairs[rows, context, at], seen.pairs[rows, at, context]):
                found += [between, between - between.mean(1, keepdims=True), _ranks(between)]
    return np.concatenate(found, -1).astype(np.float32)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Place of each candidate among the candidates, [N, k, G], smallest 0."""
    return values.argsort(1, kind="stable").argsort(1, kind="stable").astype(np.float32)


def candidates(model: str, seen: Seen, problems: Sequence[Problem]) -> Predict:
    """Which of the numbered views is the true one: each is scored against its context and the others."""
    names, k = indexed([problem.answer for problem in problems])
    x = candidate_features(seen, k)
    true = np.array([[str(name) == str(problem.answer) for name in names] for problem in problems])
    classify = fit_classes(model, x.reshape(-1, x.shape[-1]), true.ravel().astype(int), 2)

    def predict(other: Seen, asked: Sequence[Problem]) -> list[Any]:
        score = classify(candidate_features(other, k).reshape(-1, x.shape[-1]))[:, 1].reshape(-1, k)
        return [names[best] for best in score.argmax(1)]

    return predict


# --- sets -------------------------------------------------------------------------------------------------


def members(model: str, by_view: bool, seen: Seen, problems: Sequence[Problem]) -> Predict:
    """Each name is in the set or not, by the flat features or by its view; the likeliest, as many as is usual."""
    names = sorted({str(name) for problem in problems for name in problem.answer}, key=lambda n: (len(n), n))
    if len(names) > CLASSES:
        raise NotApplicable
    usual = Counter(len(problem.answer) for problem in problems).most_common(1)[0][0]
    if by_view:
        listed, k = indexed(names)
        names = [str(name) for name in listed]
    true = np.array([[name in map(str, problem.answer) for name in names] for problem in problems]).astype(
        int
    )
    if by_view:
        x = candidate_features(seen, k)
        one = fit_classes(model, x.reshape(-1, x.shape[-1]), true.ravel(), 2)
    else:
        many = [fit_classes(model, seen.flat, column, 2) for column in true.T]

    def predict(other: Seen, asked: Sequence[Problem]) -> list[Any]:
        if by_view:
            score = one(candidate_features(other, k).reshape(-1, x.shape[-1]))[:, 1].reshape(-1, k)
        else:
            score = np.stack([classify(other.flat)[:, 1] for classify in many], 1)
        return [[names[j] for j in sorted(row.argsort()[::-1][:usual])] for row in score]

    return predict
