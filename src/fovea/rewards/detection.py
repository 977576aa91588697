"""Rewards of a list of labelled boxes: VLM-R1's four, and `od_f1` of our own that cannot be farmed.

Each takes (reply, problem of kind "objects") and never raises on any reply. Rules for all of them: the answer is
a JSON list (`answers.read_objects`), or the word None, which says that nothing is there; an item that is not a
labelled box was said all the same; an answer that cannot be read is 0, whatever the truth; nothing true and nothing
predicted is 1, one of the two empty is 0 (pycocotools has -1 where nothing is true). Labels are compared as
`answers.normal_text`. A true item with "iscrowd": 1 is nothing to find; only average precision forgives boxes in it.

`compat="vlm_r1"` reads and counts as VLM-R1's code does, its mistakes included (`od_map`, `od_weighted`).

Try it: `fovea score od_f1 --answer '[{"bbox_2d": [0, 0, 9, 9], "label": "cat"}]' --completion '[]'` gives 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from fovea.rewards import answers
from fovea.rewards.answers import Box, Thing
from fovea.rewards.average_precision import COCO_THRESHOLDS, Truth, average_precision
from fovea.rewards.basics import box_iou
from fovea.rewards.matching import Compat, clean_text, last_block, refuse
from fovea.types import Problem, UserError

POSITION, COMPLETENESS = 0.7, 0.3
"""Weights of `od_weighted` (VLM-R1 `detection_score`; its weight of the labels is 0)."""

_WANTED = 'a list of {"bbox_2d": [x1, y1, x2, y2], "label": text} with x1 < x2 and y1 < y2'


def od_map(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """COCO's mAP of one reply, in [0, 1]: AP averaged over true labels and IoU .50:.05:.95, every score 1.

        mAP = mean_label mean_t AP(label, t)              `average_precision`; VLM-R1 `map_reward`, method od_ap

    It depends on the order of the boxes and forgives what follows the last right one: a reply with three right
    boxes and then 21 wrong ones has 1.000. That is how COCO counts; use `od_length` or `od_f1` for training.
    `compat="vlm_r1"`, the original's mistakes: no answer tags is 0; the boxes are those of the last ```` ```json ````
    fence of the last answer, and one that is missing or cannot be parsed is an empty list, so under an
    empty truth any words in answer tags have 1; labels are compared letter by letter; crowds are ordinary things.
    """
    return _precision("od_map", text, problem, COCO_THRESHOLDS, compat)[0]


def od_ap50(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """COCO's AP50 of one reply, in [0, 1]: as `od_map` with the one IoU threshold 0.5, and as easily farmed."""
    return _precision("od_ap50", text, problem, COCO_THRESHOLDS[:1], compat)[0]


def od_length(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """mAP times a penalty on too many boxes, in [0, 1].

        odLength = mAP · min(1, N_true / N_predicted)                        VLM-R1 (arXiv 2504.07615), eq. 7-8

    N_predicted counts every item of the list, those of labels that are not true and those that are no labelled
    boxes too. `compat="vlm_r1"`: as in `od_map`.
    """
    value, predicted, true = _precision("od_length", text, problem, COCO_THRESHOLDS, compat)
    return value * min(1.0, true / predicted) if predicted else value


def od_weighted(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """VLM-R1's weighted sum of position and completeness, in [0, 1].

        0.7 · Σ IoU / N_true  +  0.3 · (1 - (missed / N_true + false / N_predicted) / 2)          `detection_score`

    The sum goes over pairs of equal label and IoU >= 0.5, each box in one pair at most, chosen so that it is
    largest. `compat="vlm_r1"`, the original's mistakes: pairs are made greedily by IoU whatever the labels, and one
    of different labels earns no position but counts as complete; overlaps at most a pixel wide are 0; the first fence
    of the answer counts; a box without a label has that of the pair before (the original crashes where there is
    none: here 0).
    """
    if compat == "vlm_r1":
        _true_things("od_weighted", problem)
        return _original_weighted(text, problem.answer)
    _check_compat(compat)
    truth = set(
        _countable(_true_things("od_weighted", problem))
    )  # as in od_f1, what is there twice is one thing
    things = said_objects(text)
    if not things or not truth:
        return _empty(things, truth)
    gains = matched(things, truth, iou=0.5)
    missed, false = len(truth) - len(gains), len(things) - len(gains)
    completeness = 1 - (missed / len(truth) + false / len(things)) / 2
    return min(1.0, POSITION * math.fsum(gains) / len(truth) + COMPLETENESS * completeness)


def od_f1(text: str, problem: Problem, *, iou: float = 0.5, soft: bool = False) -> float:
    """F1 of the labelled boxes by one-to-one matching, in [0, 1]: whatever their order, and not to be farmed.

        F1 = 2 M / (P + N)               soft:  2 Σ_{matched} IoU / (P + N)

    P counts every item of the reply, N the different true things, M the largest number of disjoint pairs with
    equal label and IoU >= `iou` (Hungarian algorithm: Kuhn 1955; `scipy.optimize.linear_sum_assignment`). Exact
    duplicates of label and box are taken out before matching, so they are only false positives; those of the
    truth are one thing. `soft` gives every pair its IoU instead of 1 and takes the matching of largest sum.

    What cannot be gained (tests/test_detection_rewards.py), for P + N > 0:
    (a) Adding a box that fits no true thing of its label (IoU < `iou`, or a label that is not there): no pair is
        new, so M stays and P grows; the value falls, or stays 0. Under an empty truth 1 falls to 0.
    (b) Repeating a box: M is made without repeats and stays, P grows; as (a).
    (c) Dropping a matched box that no other can replace takes M to M - 1: 2(M-1)/(P+N-1) < 2M/(P+N), as this is
        M < P + N and M <= min(P, N). Soft, where no two boxes fit one thing: the box had gain g >= `iou`, and
        (S-g)/(P+N-1) <= S/(P+N) as long as g >= S/(P+N), which is at most 1/2: so for `iou` >= 0.5. (A matched
        box that another can replace was one of two for the same thing: that one too many is a false positive.)
    (d) Reordering: boxes and things are sorted before matching, and the sum is exactly rounded: the same bits.

    Raises UserError for an `iou` outside [0.1, 1].
    """
    if not 0.1 <= iou <= 1:
        raise UserError(
            f"The option iou of reward 'od_f1' is {iou}; give a number from 0.1 to 1, for example 0.5."
        )
    return _f1("od_f1", text, problem, iou, soft)


def objects(text: str, problem: Problem) -> float:
    """`od_f1` with IoU > 0.5: what "correct" means for a list of objects, in [0, 1]."""
    return _f1("objects", text, problem, math.nextafter(0.5, 1), soft=False)


def _f1(reward: str, text: str, problem: Problem, iou: float, soft: bool) -> float:
    truth = _countable(_true_things(reward, problem))
    things = said_objects(text)
    if not things or not truth:
        return _empty(things, truth)
    gains = matched(things, truth, iou=iou, soft=soft)
    return 2 * (math.fsum(gains) if soft else len(gains)) / (len(things) + len(set(truth)))


def od_ratio(text: str, problem: Problem) -> float:
    """Predicted over true boxes, 0 or more: a figure for audits, not a reward (a hacked reward drives it up).

    Every item of the reply counts as predicted; an answer that cannot be read predicts nothing. With nothing true it
    is 1 + predicted.
    """
    truth = _countable(_true_things("od_ratio", problem))
    predicted = len(said_objects(text) or ())
    return predicted / len(truth) if truth else 1.0 + predicted


def said_objects(text: str) -> list[Thing] | None:
    """The things a reply names, in its order: [] for the word None; None if no list of boxes can be read."""
    value = answers.value_of(text)
    things = answers.read_objects(value)
    if things is None and value is not None and answers.normal_text(value) == "none":
        return []
    return things


def matched(
    things: Sequence[Thing], truth: Iterable[tuple[str, Box]], *, iou: float, soft: bool = True
) -> list[float]:
    """IoU of each pair of the best one-to-one matching of equal labels, all >= `iou`, in a canonical order.

    Best is the largest sum of IoU, or with `soft=False` the largest number of pairs. Duplicates are left out on both
    sides. Does not depend on the order of `things` or `truth`.
    """
    boxes_of: dict[str, list[Box]] = {}
    for label, box in sorted({(label, box) for box, label in things if box is not None}):
        boxes_of.setdefault(label, []).append(box)
    true_of: dict[str, list[Box]] = {}
    for label, box in sorted(set(truth)):
        true_of.setdefault(label, []).append(box)
    found: list[float] = []
    for label, true_boxes in true_of.items():
        fits = [
            (row, column, overlap)
            for row, box in enumerate(boxes_of.get(label, ()))
            for column, true_box in enumerate(true_boxes)
            if (overlap := box_iou(box, true_box)) >= iou
        ]
        found += _assigned(fits, soft)
    return found


def _assigned(fits: list[tuple[int, int, float]], soft: bool) -> list[float]:
    """IoU of the pairs chosen among those that fit: (row, column, IoU)."""
    rows = {row: i for i, row in enumerate(sorted({fit[0] for fit in fits}))}
    columns = {column: i for i, column in enumerate(sorted({fit[1] for fit in fits}))}
    if len(rows) == len(columns) == len(fits):  # no two pairs share a box
        return [overlap for _, _, overlap in fits]
    # Here, because it takes longer to import than all of fovea.rewards and is seldom needed.
    from scipy.optimize import linear_sum_assignment

    gains, overlaps = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)))
    for row, column, overlap in fits:
        place = rows[row], columns[column]
        overlaps[place], gains[place] = overlap, overlap if soft else 1.0
    chosen = overlaps[linear_sum_assignment(gains, maximize=True)]
    return [float(overlap) for overlap in chosen if overlap > 0]


def _true_things(reward: str, problem: Problem) -> list[Truth]:
    """The truth with labels as `normal_text`. Raises UserError if it is not a list of labelled boxes."""
    if not isinstance(problem.answer, list | tuple):
        refuse(reward, problem, _WANTED)
    truth = []
    for item in problem.answer:
        box, label = answers.thing_from(item)
        if box is None or answers.is_empty(box):
            refuse(reward, problem, _WANTED)
        truth.append(Truth(label=label, box=box, crowd=bool(item.get("iscrowd", 0))))
    return truth


def _countable(truth: list[Truth]) -> list[tuple[str, Box]]:
    return [(thing.label, thing.box) for thing in truth if not thing.crowd]


def _empty(things: Sequence[Any] | None, truth: Collection[Any]) -> float:
    """The value where nothing is predicted, nothing is true, or nothing could be read (None)."""
    return float(things is not None and not things and not truth)


def _precision(
    reward: str, text: str, problem: Problem, thresholds: Sequence[float], compat: Compat
) -> tuple[float, int, int]:
    """(average precision, predicted items, true things)."""
    truth = _true_things(reward, problem)
    if compat == "vlm_r1":
        return _original_precision(text, problem.answer, truth, thresholds)
    _check_compat(compat)
    things = said_objects(text)
    predicted, true = len(things or ()), sum(not thing.crowd for thing in truth)
    if not things or not true:
        return _empty(things, range(true)), predicted, true
    boxes = [(label, box) for box, label in things if box is not None]
    # None: every true box lies outside COCO's range of areas, so that nothing can be found.
    return average_precision(boxes, truth, thresholds) or 0.0, predicted, true


def _check_compat(compat: Any) -> None:
    if compat is not None:
        raise UserError(f"compat is {compat!r}; give 'vlm_r1', or leave it out for the right value.")


# From here on: what VLM-R1 does.


def _original_precision(
    text: str, answer: Sequence[dict[str, Any]], truth: list[Truth], thresholds: Sequence[float]
) -> tuple[float, int, int]:
    """`od_reward` and `odLength_reward`: (average precision, predicted items, true items)."""
    blocks = _between(text, "<answer>", "</answer>")
    if not blocks or len(blocks[-1]) > answers.ANSWER_LIMIT:
        return 0.0, 0, len(truth)
    items = _listed(_between(blocks[-1], "```json", "```")[-1:])
    if not items or not truth:
        return float(not items and not truth), len(items), len(truth)
    exact = [Truth(label=item["label"], box=thing.box) for item, thing in zip(answer, truth)]
    boxes = [
        (item["label"], box)
        for item in items
        if (box := _four(item)) is not None and isinstance(item.get("label"), str)
    ]
    return average_precision(boxes, exact, thresholds) or 0.0, len(items), len(truth)


def _original_weighted(text: str, answer: Sequence[dict[str, Any]]) -> float:
    """`detection_score` with its defaults. Labels compare in lower case, because `clean_text` takes the whole reply."""
    block = last_block(text)
    if len(block) > answers.ANSWER_LIMIT:
        return 0.0
    items = _listed(_between(clean_text(block), "```json", "```")[:1])
    if not items or not answer:
        return float(not items and not answer)
    boxes = [_four(item) for item in items]
    pairs = [
        (-overlap, row, column)
        for row, box in enumerate(boxes)
        if box is not None
        for column, thing in enumerate(answer)
        if (overlap := _pixel_iou(box, thing["bbox_2d"])) >= 0.5
    ]
    rows: set[int] = set()
    columns: set[int] = set()
    position = 0.0
    label: str | None = None
    for overlap, row, column in sorted(pairs):  # the largest first; of equals the first box
        if row in rows or column in columns:
            continue
        rows.add(row)
        columns.add(column)
        own = items[row].get("label")
        if isinstance(own, str):  # else a typo there keeps the label of the pair before
            label = own.lower()
        if label is None:
            return 0.0
        position -= overlap if label == answer[column]["label"].lower() else 0.0
    missed, false = len(answer) - len(columns), len(items) - len(rows)
    completeness = 1 - (missed / len(answer) + false / len(items)) / 2
    return min(1.0, POSITION * position / len(answer) + COMPLETENESS * completeness)


def _pixel_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """The original's IoU: that of edges, but 0 for an overlap of one pixel or less in width or height."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 1 or height <= 1:
        return 0.0
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if math.isfinite(union) and union > 0 else 0.0


def _four(item: Any) -> Box | None:
    """The first four numbers under `bbox_2d` of an object, or None. True and False are numbers there."""
    box = item.get("bbox_2d") if isinstance(item, dict) else None
    if not isinstance(box, list) or len(box) < 4:
        return None
    return answers.box_from([int(number) if isinstance(number, bool) else number for number in box[:4]])


def _listed(fences: list[str]) -> list[Any]:
    """The items of the one fence given: of an object its keys, of a text its letters; [] for what is no JSON."""
    try:
        value = json.loads(fences[0].strip()) if fences else []
    except (ValueError, RecursionError):
        return []
    return list(value) if isinstance(value, list | dict | str) else []


def _between(text: str, opening: str, closing: str) -> list[str]:
    """What the regular expression `opening(.*?)closing` finds in a text, in linear time."""
    found = []
    at = text.find(opening)
    while at >= 0:
        end = text.find(closing, at + len(opening))
        if end < 0:
            break
        found.append(text[at + len(opening) : end])
        at = text.find(opening, end + len(closing))
    return found
