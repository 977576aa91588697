"""COCO's average precision of one picture whose boxes all score the same, number for number as pycocotools has it.

Only arithmetic on boxes that were read already. Not here: reading a reply and what an empty truth is worth
(`detection.py`), figures of a whole data set with intervals (`fovea.detection_metrics`).

Try it: `average_precision([("cat", (0, 0, 9, 9))], [Truth(label="cat", box=(0, 0, 9, 9))], (0.5,))` gives 1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from fovea.rewards.answers import Box

COCO_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""IoU thresholds of COCO's mAP, .50:.05:.95, as pycocotools makes them (`linspace`: the last bit matters)."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision."""

MAX_DETECTIONS = 100
"""Boxes of one label that count, the first ones: COCO's `maxDets`."""

LARGEST_AREA = 1e10
"""COCO's area range "all" is 0 to 100,000²; what lies outside (swapped corners: below 0) is neither right nor wrong."""

_TINY = float(np.spacing(1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """One true thing.

    Example: Truth(label="cat", box=(0, 0, 9, 9))
    """

    label: str
    """Compared by equality with those of the predictions."""
    box: Box
    """(x1, y1, x2, y2)."""
    crowd: bool = False
    """Whether it marks many things at once (COCO's `iscrowd`): nothing to find, and boxes inside it are not wrong."""


_Wire: TypeAlias = tuple[float, float, float, float, float, float, float]
"""x, y, width, height, right, bottom, area."""

_Match: TypeAlias = tuple[bool, float, int, bool]
"""ignored, minus IoU, minus index of the truth, crowd: sorted, the match that COCO takes stands first."""


def average_precision(
    predicted: Sequence[tuple[str, Box]],
    true: Sequence[Truth],
    thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> float | None:
    """Mean of the average precision over true labels and IoU thresholds, in [0, 1]; None if there is nothing to find.

        AP(label, t) = 1/101 · Σ_{r = 0, .01, …, 1}  max { TP_i / i :  TP_i / n >= r }

    where i counts the label's predictions in the order in which they were written (COCO's stable sort of equal
    scores), TP_i those among the first i that take a true box with IoU >= t, and n the true boxes. Each
    prediction takes the free true box of largest IoU (of equals the last), a crowd only if there is none.
    Predictions of labels that are not true have no part in it, so they are free, and so is whatever comes after the
    last right one: hence `od_length` and `od_f1`. Source: pycocotools `COCOeval` with one image, all scores 1,
    maxDets 100, area "all"; a label whose true boxes are all crowds does not count.
    """
    of_label: dict[str, list[Box]] = {truth.label: [] for truth in true}
    for label, box in predicted:
        if label in of_label:
            of_label[label].append(box)
    values: list[float] = []
    for label, boxes in of_label.items():
        values += _label_precisions(boxes, [truth for truth in true if truth.label == label], thresholds)
    return sum(values) / len(values) if values else None


def _label_precisions(boxes: list[Box], truths: list[Truth], thresholds: Sequence[float]) -> list[float]:
    """Average precision at each threshold; [] if no box of the label is to be found."""
    wires = [_wire(truth.box) for truth in truths]
    ignored = [truth.crowd or _out_of_range(wire) for truth, wire in zip(truths, wires)]
    n = ignored.count(False)
    if n == 0:
        return []
    places = [
        (wire, ignore, truth.crowd, -i) for i, (wire, ignore, truth) in enumerate(zip(wires, ignored, truths))
    ]
    predictions = [_wire(box) for box in boxes[:MAX_DETECTIONS]]
    matches = [_matches(wire, places) for wire in predictions]
    uncounted = [_out_of_range(wire) for wire in predictions]
    values: list[float] = []
    passing_before = -1
    for t in thresholds:
        floor = min(t, 1 - 1e-10)
        passing = sum(-match[1] >= floor for row in matches for match in row)
        # The same pairs fit as at the lower threshold, so the same are taken.
        values.append(values[-1] if passing == passing_before else _ap(matches, uncounted, n, floor))
        passing_before = passing
    return values


def _matches(wire: _Wire, places: list[tuple[_Wire, bool, bool, int]]) -> list[_Match]:
    """The true boxes that overlap a prediction at all, best first."""
    x, y, width, height, right, bottom, area = wire
    if width <= 0 or height <= 0:
        return []
    found: list[_Match] = []
    for (tx, ty, _, _, tright, tbottom, tarea), ignore, crowd, place in places:
        w = (right if right < tright else tright) - (x if x > tx else tx)
        if w <= 0:
            continue
        h = (bottom if bottom < tbottom else tbottom) - (y if y > ty else ty)
        if h <= 0:
            continue
        union = area if crowd else area + tarea - w * h
        if union > 0:  # boxes of 1e-300 underflow
            found.append((ignore, -(w * h / union), place, crowd))
    found.sort()
    return found


def _ap(matches: list[list[_Match]], uncounted: list[bool], n: int, floor: float) -> float:
    """Average precision at one threshold: COCO's greedy matching, then the envelope read at 101 recalls."""
    taken: set[int] = set()
    hits: list[float] = []
    seen = 0
    for row, out in zip(matches, uncounted):
        match = next((m for m in row if -m[1] >= floor and (m[3] or m[2] not in taken)), None)
        if match is not None:
            taken.add(match[2])
            if match[0]:
                continue
        elif out:
            continue
        seen += 1
        if match is not None:
            hits.append((len(hits) + 1) / (seen + _TINY))
    best = total = 0.0
    # Between two right predictions precision only falls, so the envelope is made at the right ones alone.
    for precision, reads in zip(reversed(hits), reversed(_reads(n)[: len(hits)])):
        best = max(best, precision)
        total += reads * best
    return total / len(RECALLS)


@lru_cache(maxsize=1024)
def _reads(n: int) -> tuple[int, ...]:
    """How many of the 101 recalls are first reached with the k-th of n true boxes, for k = 1 … n."""
    first = np.searchsorted(np.arange(1, n + 1) / n, RECALLS, side="left")
    return tuple(np.bincount(first, minlength=n).tolist())


def _wire(box: Box) -> _Wire:
    """COCO's files hold x, y, width, height, so its corners are sums again: the last bit of an IoU depends on it."""
    x, y = float(box[0]), float(box[1])
    width, height = box[2] - x, box[3] - y
    return x, y, width, height, width + x, height + y, width * height


def _out_of_range(wire: _Wire) -> bool:
    return wire[6] < 0 or wire[6] > LARGEST_AREA
