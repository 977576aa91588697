"""The solver's methods for orders: which piece goes where, by what it is and by what its borders go on in.

A piece is one of the last n views. `unary`: a classifier says how likely each place is for a piece; `edges`: two
more say how likely one piece is right of another, or below. An order is decoded from both: the Hungarian
algorithm without edges, all permutations up to 6 pieces, a beam beyond.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from fovea.tasks.solver_features import Seen
from fovea.tasks.solver_methods import (
    Classify,
    Method,
    NotApplicable,
    Predict,
    candidate_features,
    fit_classes,
)
from fovea.tasks.solver_views import DOWN, RIGHT
from fovea.types import Problem

BEAM = 48
"""Partial orders that are kept where there are too many to try all."""
FEW = 200
"""Numbers up to which trees are fitted for every place."""
LITTLE = 0.3
"""Weight of what a piece is beside what its edges say."""
ALL = 6
"""Pieces up to which all orders are tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How an answer is read. Example: Reading(inverse=False, base=1, n=4): place p holds piece answer[p] - 1."""

    inverse: bool
    """The answer lists the place of each piece, not the piece of each place."""
    base: int
    """The smallest number."""
    n: int

    def places(self, problems: Sequence[Problem]) -> np.ndarray:
        """int64 [N, n]: the place of each piece."""
        answers = np.array([problem.answer for problem in problems]) - self.base
        return answers if self.inverse else answers.argsort(1)

    def answer(self, place: np.ndarray) -> list[int]:
        """The answer that puts piece k to `place[k]`."""
        return [int(v) + self.base for v in (place if self.inverse else place.argsort())]


def reading_of(problems: Sequence[Problem], inverse: bool) -> Reading:
    """Raises NotApplicable where the answers are not permutations of the same numbers."""
    kinds = {tuple(sorted(problem.answer)) for problem in problems}
    first = min(kinds)
    if len(kinds) > 1 or first != tuple(range(first[0], first[0] + len(first))):
        raise NotApplicable
    return Reading(inverse=inverse, base=first[0], n=len(first))


def per_place(model: str, seen: Seen, problems: Sequence[Problem]) -> Predict:
    """A classifier of the flat features for each place of the answer, decoded by the Hungarian algorithm."""
    if model == "trees" and seen.flat.shape[1] > FEW:
        raise NotApplicable  # minutes, for nothing that pieces do not say
    read = reading_of(problems, inverse=True)
    places = read.places(problems)
    fitted = [fit_classes(model, seen.flat, column, read.n) for column in places.T]

    def predict(other: Seen, asked: Sequence[Problem]) -> list[Any]:
        score = np.log(np.stack([classify(other.flat) for classify in fitted], 1) + 1e-6)
        return [read.answer(linear_sum_assignment(-rows)[1]) for rows in score]

    return predict


def by_piece(
    model: str, inverse: bool, layout: str, unary: bool, seen: Seen, problems: Sequence[Problem]
) -> Predict:
    """Orders of pieces by their own numbers (`unary`), their edges (`layout`: "none", "row", "column", "grid"), or
    both."""
    read = reading_of(problems, inverse)
    rows, columns = _layout(layout, read.n, problems[0].meta)
    places = read.places(problems)
    if seen.count.min() < read.n:
        raise NotApplicable
    own = _fit_unary(model, seen, places) if unary else None
    edges: list[tuple[tuple[int, int], Classify]] = []
    for step in (((0, 1),) if columns > 1 else ()) + (((1, 0),) if rows > 1 else ()):
        if layout != "none":
            edges.append((step, _fit_edges(seen, places, step, columns)))

    def predict(other: Seen, asked: Sequence[Problem]) -> list[Any]:
        n = read.n
        one = np.zeros((len(asked), n, n))
        if own is not None:
            x = candidate_features(other, n)
            one = np.log(own(x.reshape(-1, x.shape[-1])) + 1e-6).reshape(-1, n, n)
            one = LITTLE * one if edges else one
        if not edges:
            return [read.answer(linear_sum_assignment(-score)[1]) for score in one]
        two = {step: _odds(classify, other, n) for step, classify in edges}
        decode = _decode_all if n <= ALL else _decode_beam
        return [
            read.answer(decode(one[i], {step: odds[i] for step, odds in two.items()}, columns))
            for i in range(len(asked))
        ]

    return predict


def _layout(layout: str, n: int, meta: dict[str, Any]) -> tuple[int, int]:
    """(rows, columns); of a "grid" as the problem says, else a square."""
    side = meta.get("columns", math.isqrt(n))
    if layout == "grid" and (not 1 < side < n or n % side):
        raise NotApplicable
    return {"none": (1, n), "row": (1, n), "column": (n, 1), "grid": (n // side, side)}[layout]


def _fit_unary(model: str, seen: Seen, places: np.ndarray) -> Classify:
    x = candidate_features(seen, places.shape[1])
    return fit_classes(model, x.reshape(-1, x.shape[-1]), places.ravel(), places.shape[1])


def _edge_features(seen: Seen, n: int) -> np.ndarray:
    """[N, n, n, G]: of piece a and piece b; the border numbers also by rank among all b, and among all a."""
    at = seen.count[:, None] - n + np.arange(n)
    rows = np.arange(len(at))[:, None, None]
    pairs = seen.pairs[rows, at[:, :, None], at[:, None, :]].copy()
    if not pairs.shape[-1]:
        raise NotApplicable
    borders = pairs[..., RIGHT.start : DOWN.stop].copy()
    borders[:, np.arange(n), np.arange(n)] = 1e4  # no piece is beside itself
    ranks = [borders.argsort(axis).argsort(axis) for axis in (1, 2)]
    least = [np.minimum(borders - borders.min(axis, keepdims=True), 1e3) for axis in (1, 2)]
    return np.concatenate([pairs, pairs.swapaxes(1, 2)[..., :6], *ranks, *least], -1).astype(np.float32)


def _fit_edges(seen: Seen, places: np.ndarray, step: tuple[int, int], columns: int) -> Classify:
    """A classifier of (a, b): 1 where b lies one `step` (rows, columns) from a."""
    n = places.shape[1]
    row, column = places // columns, places % columns
    beside = (row[:, None, :] - row[:, :, None] == step[0]) & (
        column[:, None, :] - column[:, :, None] == step[1]
    )
    x, other = _edge_features(seen, n), ~np.eye(n, dtype=bool)
    return fit_classes("trees", x[:, other].reshape(-1, x.shape[-1]), beside[:, other].ravel().astype(int), 2)


def _odds(classify: Classify, seen: Seen, n: int) -> np.ndarray:
    """Log-odds [N, n, n] that b lies beside a."""
    x = _edge_features(seen, n)
    p = classify(x.reshape(-1, x.shape[-1]))[:, 1].reshape(len(x), n, n).clip(1e-4, 1 - 1e-4)
    return np.asarray(np.log(p / (1 - p)))


@functools.cache
def _orders(n: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(n))))


Odds = dict[tuple[int, int], np.ndarray]


def _decode_all(one: np.ndarray, two: Odds, columns: int) -> np.ndarray:
    """The place of each piece in the best of all orders."""
    orders, n = _orders(len(one)), len(one)  # [n!, n]: the piece of each place
    score = one[orders, np.arange(n)].sum(1)
    for place, (step, odds) in itertools.product(range(n), two.items()):
        beyond = _next(place, step, n, columns)
        if beyond is not None:
            score = score + odds[orders[:, place], orders[:, beyond]]
    return np.asarray(orders[score.argmax()].argsort())


def _next(place: int, step: tuple[int, int], n: int, columns: int) -> int | None:
    """The place one step from `place`, None outside."""
    row, column = place // columns + step[0], place % columns + step[1]
    return row * columns + column if column < columns and row * columns + column < n else None


def _decode_beam(one: np.ndarray, two: Odds, columns: int) -> np.ndarray:
    """The same by a beam over the places, row by row."""
    n = len(one)
    beam, score = np.zeros((1, 0), int), np.zeros(1)
    for place in range(n):
        grown = score[:, None] + one[:, place][None]
        for step, odds in two.items():
            row, column = place // columns - step[0], place % columns - step[1]
            if row >= 0 and column >= 0:
                grown = grown + odds[beam[:, row * columns + column]]
        np.put_along_axis(grown, beam, -np.inf, 1)
        best = np.argsort(-grown, axis=None)[:BEAM]
        best = best[np.isfinite(grown.ravel()[best])]
        beam = np.concatenate([beam[best // n], (best % n)[:, None]], 1)
        score = grown.ravel()[best]
    return np.asarray(beam[0].argsort())


def order_methods() -> dict[str, Method]:
    """Name → method."""
    found: dict[str, Method] = {
        f"per place, {model}": functools.partial(per_place, model) for model in ("linear", "trees")
    }
    for inverse in (False, True):
        told = "places of pieces" if inverse else "pieces of places"
        for model in ("linear", "trees"):
            found[f"{told}, unary {model}"] = functools.partial(by_piece, model, inverse, "none", True)
        for layout in ("row", "column", "grid") if not inverse else ():
            found[f"{told}, edges {layout}"] = functools.partial(by_piece, "trees", inverse, layout, False)
            found[f"{told}, edges {layout} and unary"] = functools.partial(
                by_piece, "linear", inverse, layout, True
            )
    return found
