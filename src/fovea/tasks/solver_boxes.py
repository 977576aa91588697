"""The solver's methods for boxes: the best constant, regression, where a picture lies in another, a scorer of windows.

A window is scored by what is inside it, by what is around it, by the steps along its border, and against the
other picture where there is one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fovea.tasks.solver_features import Seen
from fovea.tasks.solver_methods import ROWS, NotApplicable, Predict, fit_classes
from fovea.tasks.solver_views import CELLS, MATCH
from fovea.types import Problem

STRIDE = 2
"""Cells between two windows."""
RIM = 2
"""Cells around a window that count as around it."""


def _picture(problem: Problem) -> tuple[float, float]:
    return tuple(problem.meta["sizes"][int(problem.meta.get("box_image", 0))])


def _shares(problems: Sequence[Problem]) -> np.ndarray:
    """Boxes in shares of their picture, [N, 4]."""
    return np.array([np.array(p.answer, float) / (*_picture(p), *_picture(p)) for p in problems])


def _pixels(boxes: np.ndarray, problems: Sequence[Problem]) -> list[Any]:
    return [
        tuple(round(float(v), 1) for v in box * (*_picture(p), *_picture(p)))
        for box, p in zip(boxes, problems)
    ]


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes [..., 4] with boxes [..., 4], broadcast."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.clip(sides, 0, None).prod(-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).clip(0).prod(-1) for x in (a, b))
    return np.asarray(inter / np.maximum(area_a + area_b - inter, 1e-9))


def box_constant(seen: Seen, problems: Sequence[Problem]) -> Predict:
    """The one box, of the true ones and their means, that is right most often."""
    truth = _shares(problems)
    tried = truth[:300]
    tried = np.concatenate([tried, (tried + truth.mean(0)) / 2, truth.mean(0)[None]])
    best = tried[(overlap(tried[:, None], truth[None]) > 0.5).mean(1).argmax()]
    return lambda _, asked: _pixels(np.tile(best, (len(asked), 1)), asked)


def box_regression(model: str, seen: Seen, problems: Sequence[Problem]) -> Predict:
    """Centre and sides by regression on the flat features."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import Ridge

    x, truth = np.nan_to_num(seen.flat), _shares(problems)
    middle, spread = x.mean(0), x.std(0) + 1e-6
    sides = np.concatenate([(truth[:, :2] + truth[:, 2:]) / 2, truth[:, 2:] - truth[:, :2]], 1)
    make = functools.partial(Ridge, 100.0)
    if model == "trees":
        make = functools.partial(
            HistGradientBoostingRegressor,
            max_iter=80,
            max_leaf_nodes=15,
            random_state=0,
            early_stopping=False,
        )
    fitted = [make().fit((x - middle) / spread, column) for column in sides.T]

    def predict(other: Seen, asked: Sequence[Problem]) -> list[Any]:
        rows = np.clip((np.nan_to_num(other.flat) - middle) / spread, -8, 8)
        x, y, w, h = (one.predict(rows) for one in fitted)
        w, h = np.maximum(w, 0.01), np.maximum(h, 0.01)
        return _pixels(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1), asked)

    return predict


def box_match(pair: tuple[int, int], seen: Seen, problems: Sequence[Problem]) -> Predict:
    """Where one picture lies in another pixel by pixel."""
    if not seen.pairs.shape[-1] or max(pair) >= seen.pairs.shape[1]:
        raise NotApplicable
    return lambda other, asked: _pixels(other.pairs[:, pair[0], pair[1], MATCH][:, 1:].astype(float), asked)


# --- windows ----------------------------------------------------------------------------------------------


def box_windows(model: str, seen: Seen, problems: Sequence[Problem]) -> Predict:
    """The window that is likeliest to be the true box; of "objects" as many that do not overlap as is usual."""
    if not seen.maps.shape[1]:
        raise NotApplicable
    truths = [_truths(problem) for problem in problems]
    sides = np.concatenate(truths)
    sides = np.unique(np.quantile(sides[:, 2:] - sides[:, :2], (0.25, 0.5, 0.75), axis=0).round(2), axis=0)
    windows = _windows(sides)
    x, y = [], []
    rng = np.random.default_rng(0)
    for i, truth in enumerate(truths):
        right = np.any(overlap(windows[:, None], truth[None]) > 0.5, axis=1)
        some = np.flatnonzero(right | (rng.random(len(right)) < ROWS / len(truths) / len(right)))
        x.append(_numbers(seen, i, windows, problems[i])[some])
        y.append(right[some])
    classify = fit_classes(model, np.concatenate(x), np.concatenate(y).astype(int), 2)
    usual = round(float(np.median([len(truth) for truth in truths])))

    def predict(other: Seen, asked: Sequence[Problem]) -> list[Any]:
        found = []
        for i, problem in enumerate(asked):
            score = classify(_numbers(other, i, windows, problem))[:, 1]
            boxes = [windows[k] for k in _apart(windows, score, usual)]
            pixels = _pixels(np.array(boxes), [problem] * len(boxes))
            found.append(pixels[0] if problem.kind == "box" else _named(pixels, problems[0]))
        return found

    return predict


def _truths(problem: Problem) -> np.ndarray:
    """Boxes in shares of their picture, [K, 4]."""
    boxes = [problem.answer] if problem.kind == "box" else [thing["bbox_2d"] for thing in problem.answer]
    return np.array(boxes, float).reshape(-1, 4) / (*_picture(problem), *_picture(problem))


def _named(boxes: Sequence[Any], example: Problem) -> list[dict[str, Any]]:
    return [{"bbox_2d": list(box), "label": thing["label"]} for box, thing in zip(boxes, example.answer)]


def _windows(sides: np.ndarray) -> np.ndarray:
    """Boxes [K, 4] in shares, corners on cells."""
    found = []
    for w, h in np.maximum(1, (sides * CELLS).round().astype(int)):
        for top in range(0, CELLS - h + 1, STRIDE):
            found += [(left, top, left + w, top + h) for left in range(0, CELLS - w + 1, STRIDE)]
    return np.array(found) / CELLS


def _apart(windows: np.ndarray, score: np.ndarray, n: int) -> list[int]:
    """The best `n` windows that hardly overlap."""
    found: list[int] = []
    for k in np.argsort(-score):
        if all(overlap(windows[k], windows[other]) < 0.1 for other in found):
            found.append(int(k))
        if len(found) == n:
            break
    return found


def _numbers(seen: Seen, i: int, windows: np.ndarray, problem: Problem) -> np.ndarray:
    """Features [K, G] of the windows in problem i."""
    layers = seen.maps[i].astype(np.float64)
    sums = np.pad(layers.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    box = (windows * CELLS).round().astype(int)

    def total(x1: Any, y1: Any, x2: Any, y2: Any) -> tuple[np.ndarray, np.ndarray]:
        x1, y1, x2, y2 = (np.clip(v, 0, CELLS) for v in (x1, y1, x2, y2))
        area = (x2 - x1) * (y2 - y1)
        return sums[:, y2, x2] - sums[:, y1, x2] - sums[:, y2, x1] + sums[:, y1, x1], area

    x1, y1, x2, y2 = box.T
    inner, area = total(x1, y1, x2, y2)
    outer, wide = total(x1 - RIM, y1 - RIM, x2 + RIM, y2 + RIM)
    inside, around = inner / area, (outer - inner) / np.maximum(wide - area, 1)
    rims = []
    for layer, spans in (
        (4, ((x1, y1, x1 + 1, y2), (x2, y1, x2 + 1, y2))),
        (5, ((x1, y1, x2, y1 + 1), (x1, y2, x2, y2 + 1))),
    ):
        for span in spans:
            over, size = total(*span)
            rims.append(over[layer] / np.maximum(size, 1) - inside[layer])
    steps = np.sort(np.stack(rims), 0)
    apart = np.abs(inside - around)
    found = [inside, inside - around, apart, steps, steps.sum(0, keepdims=True), _place(apart), _place(steps)]
    if seen.count[i] == 2 and seen.views.shape[1] >= 2:  # the other picture, whole
        other = 1 - int(problem.meta.get("box_image", 0))
        mean, spread = seen.views[i, other, :3], seen.views[i, other, 3:6].mean()
        unlike = np.abs(inside[:4] - np.array([*mean, spread])[:, None])
        away = unlike[:3].mean(0, keepdims=True)
        found += [unlike, away, _place(unlike), _place(away)]
    return np.concatenate(found).T.astype(np.float32)


def _place(values: np.ndarray) -> np.ndarray:
    """Rank of each window among all, 0 to 1, [G, K]."""
    return values.argsort(1).argsort(1) / values.shape[1]
