"""The blind guesser: the accuracy of the best single reply to all problems, measured.

It sees neither picture nor question, so it is a lower bound of what language alone can do; swapped pictures
(`fovea.evaluation`) measure the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fovea.rewards.answers import normal_text

CELLS = 16
"""Corners of the guessed boxes lie on a grid of so many cells a side."""
MOST = 512
"""Boxes that the grid is tried on (evenly spread over the problems); 18,496 guesses each."""


def blind_chance(
    kinds: Sequence[str], answers: Sequence[Any], sizes: Sequence[tuple[int, int] | None]
) -> float:
    """Share of problems that the best constant reply gets right, 0 to 1; 0.0 for no problems.

    `sizes`: of the picture that a box belongs to, (width, height); None for other kinds. Boxes are guessed in
    shares of width and height on a grid, right at IoU > 0.5 as in `fovea.rewards.correct`.
    """
    if not kinds:
        return 0.0
    texts = Counter(_key(kind, answer) for kind, answer in zip(kinds, answers) if kind != "box")
    most = max(texts.values(), default=0) / len(kinds)
    boxes = [
        np.asarray(answer, dtype=np.float64) / (*size, *size)
        for kind, answer, size in zip(kinds, answers, sizes)
        if kind == "box" and size is not None
    ]
    if not boxes:
        return most
    return max(most, best_box(np.stack(boxes)) * len(boxes) / len(kinds))


def _key(kind: str, answer: Any) -> tuple[str, str]:
    if kind == "objects":
        return kind, json.dumps(answer, sort_keys=True)
    if kind == "set":
        return kind, json.dumps(sorted({normal_text(str(name)) for name in answer}))
    return kind, repr(float(answer)) if kind == "number" else normal_text(str(answer))


def best_box(box_N4: np.ndarray) -> float:
    """Largest share of the boxes [N, 4] (x1, y1, x2, y2 in 0 to 1) that one box of the grid meets with IoU > 0.5."""
    box_N4 = box_N4[:: -(-len(box_N4) // MOST)]
    spans = np.array([(a, b) for a in range(CELLS) for b in range(a + 1, CELLS + 1)]) / CELLS  # [S, 2]
    # Overlap and length by axis: a guess is a pair of spans, so S values an axis stand for S² guesses.
    over_x, over_y = (
        np.clip(np.minimum(spans[:, 1:], box_N4[:, k + 2]) - np.maximum(spans[:, :1], box_N4[:, k]), 0, None)
        for k in (0, 1)
    )  # [S, N] each
    length_S = spans[:, 1] - spans[:, 0]
    area_N = (box_N4[:, 2] - box_N4[:, 0]) * (box_N4[:, 3] - box_N4[:, 1])
    best = 0.0
    for over_N, length in zip(over_x, length_S):
        inter_SN = over_y * over_N
        # IoU > 1/2 exactly when three times the intersection is above the sum of the areas.
        right = 3 * inter_SN > (length * length_S)[:, None] + area_N
        best = max(best, float(right.mean(axis=1).max()))
    return best
