"""Figures of boxes over a whole set: COCO mAP, NMS-AP, F1, greedy precision and recall, false alarms; mean IoU.

A reply has no scores, so all its boxes score the same and count in the order in which they were written. Matching is
pycocotools' (extra `eval`; without it mAP and NMS-AP are null and `without` says how to get it); adding matches up is
done here, because an interval needs it a thousand times. Every interval is a 95 % percentile bootstrap over pictures,
and one drawing of pictures serves all figures and passes, so that differences are paired. Average precision takes
maxima, so drawn sets lie above their own on average; intervals are moved down by that bias.

Not here: asking a model (`fovea.evaluation`), rewards of one reply (`fovea.rewards`). More: docs/evaluation.md.

Try it: `summarize_detection([Seen(truth=(((0, 0, 9, 9), "cat"),), said=())], seed=0)["greedy_recall"]`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fovea.rewards.answers import Box, Thing, box_from, normal_text, thing_from
from fovea.rewards.basics import box_iou
from fovea.rewards.detection import matched
from fovea.statistics import average, difference, proportion

RESAMPLES = 1000
"""Drawings of pictures of an interval here."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
"""COCO's (`cocoeval.Params`)."""

MOST = 100
"""Boxes of a category in a picture that count for mAP: COCO's `maxDets`."""

WITHOUT = "mAP and NMS-AP need pycocotools: pip install 'fovea-rl[eval]'"

LOOKED_AT = ("map", "ap50", "nms_ap", "f1")
"""Figures whose fall under another picture is reported as `looking`."""

_AT_ONCE = 2_000_000
"""Numbers held at once while matches are added up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One picture: what is there and what was said to be there, boxes in one frame.

    Example: Seen(truth=(((0, 0, 9, 9), "cat"),), said=(((0, 0, 9, 8), "cat"),), absent=("dog",))
    """

    truth: tuple[tuple[Box, str], ...]
    """(box, label as `normal_text`), those that are to be found."""
    said: tuple[Thing, ...] | None
    """In the order of the reply; (None, "") for an item that is no labelled box; None: no list could be read."""
    absent: tuple[str, ...] | None = None
    """Labels that were asked for and are not there; None where it is not known what was asked."""
    crowds: tuple[tuple[Box, str], ...] = ()
    """True items with "iscrowd": nothing to find, and average precision forgives boxes inside them."""


def seen(truth: Sequence[dict[str, Any]], said: Sequence[Any] | None, absent: Sequence[str] | None) -> Seen:
    """Plain JSON as `Seen`: lists of {"bbox_2d": box or None, "label": text}, labels as they were written."""
    true: tuple[list[tuple[Box, str]], list[tuple[Box, str]]] = ([], [])
    for item in truth:
        box, label = thing_from(item)
        if box is not None:
            true[bool(item.get("iscrowd"))].append((box, label))
    return Seen(
        truth=tuple(true[False]),
        crowds=tuple(true[True]),
        said=None if said is None else tuple(thing_from(item) for item in said),
        absent=None if absent is None else tuple(normal_text(label) for label in absent),
    )


# --- one picture -----------------------------------------------------------------------------------------------


def f1(picture: Seen) -> float:
    """The `od_f1` reward of a reply that says these boxes, in [0, 1]: order does not matter, doubles are errors."""
    if not picture.said or not picture.truth:
        return float(picture.said is not None and not picture.said and not picture.truth)
    pairs = matched(picture.said, [(label, box) for box, label in picture.truth], iou=0.5, soft=False)
    return 2 * len(pairs) / (len(picture.said) + len(set(picture.truth)))


def greedy_hits(picture: Seen, threshold: float = 0.5) -> int:
    """How many said boxes find a truth, one to one, in the order in which they were said.

    Each takes the truth of its own label that overlaps it most among those that are free, if IoU >= `threshold`.
    """
    free = list(picture.truth)
    hits = 0
    for box, label in picture.said or ():
        fits = [
            (box_iou(box, there), i)
            for i, (there, name) in enumerate(free)
            if box is not None and name == label
        ]
        best, i = max(fits, key=lambda fit: (fit[0], -fit[1]), default=(0.0, -1))
        if best >= threshold:
            free.pop(i)
            hits += 1
    return hits


def nms_by_truth(picture: Seen, threshold: float = 0.5) -> Seen:
    """OVDEval's NMS: of the boxes that overlap a truth by IoU > `threshold`, whatever their labels, one is left.

    The one with the highest score; with equal scores its `eval.py` (github.com/om-ai-lab/OVDEval) sorts upwards and
    takes the last, so the last one said stays. A box that stays for one truth stays, even if another removes it.
    """
    if not picture.said:
        return picture
    keep, remove = set[int](), set[int]()
    for there, _ in picture.truth:
        near = [
            i
            for i, (box, _) in enumerate(picture.said)
            if box is not None and box_iou(box, there) > threshold
        ]
        keep.update(near[-1:])
        remove.update(near[:-1])
    left = tuple(thing for i, thing in enumerate(picture.said) if i in keep or i not in remove)
    return replace(picture, said=left)


# --- average precision over a set ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """COCO's matches of one category, boxes in the order of pictures and, in a picture, of the reply."""

    hit: np.ndarray
    """bool [T, D]: whether box d has a truth at threshold t."""
    counts: np.ndarray
    """bool [T, D]: whether it counts; one that lies in a crowd does not."""
    picture: np.ndarray
    """int64 [D]: the picture of each box."""
    truths: np.ndarray
    """int64 [n]: truths of the category in each picture; their sum is >= 1."""


def has_pycocotools() -> bool:
    return importlib.util.find_spec("pycocotools") is not None


def coco_matches(pictures: Sequence[Seen]) -> list[Matches]:
    """`Matches` of every category that is true somewhere, by pycocotools' `COCOeval.evaluate`, area "all".

    Boxes of labels that are true nowhere in the set have no part in COCO's mAP. A box without area is a miss.
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        names = sorted({label for picture in pictures for _, label in picture.truth})
        ids = {name: i for i, name in enumerate(names)}
        truths = _coco([(picture.truth, picture.crowds) for picture in pictures], ids)
        said = _coco([(picture.said or (), ()) for picture in pictures], ids)
        pairs = _pairs(truths.dataset["annotations"] + said.dataset["annotations"])
        found = []
        for category in range(len(names)):
            run = COCOeval(truths, said, "bbox")
            run.params.catIds, run.params.imgIds = [category], sorted(pairs[category])
            run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0.0, 1e10]], ["all"], [MOST]
            run.evaluate()
            found.append(_matches(run.evalImgs, len(pictures)))
    return found


def _coco(things: Sequence[tuple[Sequence[Thing], Sequence[Thing]]], ids: dict[str, int]) -> Any:
    """A `COCO` of (things, crowds) a picture whose label is in `ids`; picture and category ids from 0, boxes from 1."""
    from pycocotools.coco import COCO

    boxes = [  # cut at what no picture has: the area of 1e300 is infinite
        (image, ids[label], crowd, np.clip(box, -1e6, 1e6).tolist())
        for image, picture in enumerate(things)
        for crowd, part in enumerate(picture)
        for box, label in part
        if box is not None and label in ids
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(len(things))],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": (xywh := [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]),
                "area": min(xywh[2] * xywh[3], 1e10),  # COCO's range "all" ends there
                "iscrowd": crowd,
                "score": 1.0,
            }
            for number, (image, category, crowd, (x1, y1, x2, y2)) in enumerate(boxes, 1)
        ],
    }
    coco.createIndex()
    return coco


def _pairs(annotations: Sequence[dict[str, Any]]) -> dict[int, set[int]]:
    """Category -> pictures in which it is true or was said: time grows with these, not with their product."""
    pairs: dict[int, set[int]] = {}
    for one in annotations:
        pairs.setdefault(one["category_id"], set()).add(one["image_id"])
    return pairs


def _matches(evaluated: Sequence[dict[str, Any] | None], n: int) -> Matches:
    whole = [one for one in evaluated if one is not None]
    truths = np.zeros(n, dtype=np.int64)
    for one in whole:
        truths[one["image_id"]] = np.count_nonzero(one["gtIgnore"] == 0)
    counts = np.concatenate([~one["dtIgnore"].astype(bool) for one in whole], axis=1)
    return Matches(
        hit=np.concatenate([one["dtMatches"] > 0 for one in whole], axis=1) & counts,
        counts=counts,
        picture=np.repeat(
            np.array([one["image_id"] for one in whole], dtype=np.int64),
            [len(one["dtIds"]) for one in whole],
        ),
        truths=truths,
    )


def average_precision(matches: Matches, counts_BN: np.ndarray) -> np.ndarray:
    """AP of one category, float64 [B, T] in [0, 1], where picture i is there `counts_BN[b, i]` times; NaN: no truth.

        AP_t = 1/101 Σ_{r in 0, .01, …, 1} max_{k: recall_k >= r} precision_k      COCO (`cocoeval.accumulate`)

    precision_k and recall_k are those of the first k boxes. With every count 1 this is COCO's figure; a picture that
    is there twice has each of its boxes twice, in its place.
    """
    truths_B = counts_BN @ matches.truths
    all_BD = counts_BN[:, matches.picture].astype(np.float64)
    found = np.zeros((len(counts_BN), len(matches.hit)))
    kept: dict[bytes, int] = {}  # thresholds with the same matches have the same AP
    for t, (hit_D, counts_D) in enumerate(zip(matches.hit, matches.counts)):
        same = kept.setdefault(hit_D.tobytes() + counts_D.tobytes(), t)
        if same != t:
            found[:, t] = found[:, same]
            continue
        hits_BD, said_BD = np.cumsum(all_BD * hit_D, axis=1), np.cumsum(all_BD * counts_D, axis=1)
        # The best precision from here on changes, and recall rises, at hits only.
        precision_BH = (hits_BD / (said_BD + np.spacing(1)))[:, hit_D]
        best_BH = np.maximum.accumulate(precision_BH[:, ::-1], axis=1)[:, ::-1]
        recall_BH = hits_BD[:, hit_D] / np.maximum(truths_B, 1)[:, None]
        reached_BH = np.searchsorted(RECALLS, recall_BH, side="right")
        found[:, t] = (best_BH * np.diff(reached_BH, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    found[truths_B == 0] = np.nan
    return found


def mean_average_precision(
    matches: Sequence[Matches], counts_BN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(mAP, AP50), float64 [B] each: means over the categories that have a truth; NaN where none has."""
    totals_BT = np.zeros((len(counts_BN), len(IOU_THRESHOLDS)))
    categories_B = np.zeros(len(counts_BN))
    for one in matches:
        rows = max(1, _AT_ONCE // max(1, len(one.picture)))
        for start in range(0, len(counts_BN), rows):
            part = average_precision(one, counts_BN[start : start + rows])
            there = ~np.isnan(part[:, 0])
            totals_BT[start : start + rows] += np.where(there[:, None], part, 0.0)
            categories_B[start : start + rows] += there
    with np.errstate(invalid="ignore"):
        means_BT = totals_BT / categories_B[:, None]
    return means_BT.mean(axis=1), means_BT[:, 0]


# --- figures of a set ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counted:
    """What the figures of one pass are made of: float64 [n] each, and the matches (None without pycocotools)."""

    f1: np.ndarray
    hits: np.ndarray
    said: np.ndarray
    true: np.ndarray
    unreadable: np.ndarray
    invented: np.ndarray
    """1 where a box has a label that is not in the picture."""
    absent: np.ndarray
    """Labels asked for that are not there; 0 where unknown."""
    alarms: np.ndarray
    """Those of them that were given a box."""
    matches: list[Matches] | None
    after_nms: list[Matches] | None


def _count(pictures: Sequence[Seen]) -> _Counted:
    labels = [{label for box, label in p.said or () if box is not None} for p in pictures]
    there = [{label for _, label in (*p.truth, *p.crowds)} for p in pictures]
    absent = [set(p.absent or ()) for p in pictures]
    usable = has_pycocotools() and any(p.truth for p in pictures)

    def numbers(values: Any) -> np.ndarray:
        return np.array(list(values), dtype=np.float64)

    return _Counted(
        f1=numbers(f1(p) for p in pictures),
        hits=numbers(greedy_hits(p) for p in pictures),
        said=numbers(len(p.said or ()) for p in pictures),
        true=numbers(len(p.truth) for p in pictures),
        unreadable=numbers(p.said is None for p in pictures),
        invented=numbers(bool(said - true) for said, true in zip(labels, there)),
        absent=numbers(len(names) for names in absent),
        alarms=numbers(len(names & said) for names, said in zip(absent, labels)),
        matches=coco_matches(pictures) if usable else None,
        after_nms=coco_matches([nms_by_truth(p) for p in pictures]) if usable else None,
    )


def _figures(of: _Counted, counts_BN: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure, float64 [B]; NaN where it is undefined (nothing said, nothing true, nothing absent asked)."""
    nothing = np.full(len(counts_BN), np.nan)
    map_B, ap50_B = (
        mean_average_precision(of.matches, counts_BN) if of.matches is not None else (nothing,) * 2
    )
    nms_B = mean_average_precision(of.after_nms, counts_BN)[0] if of.after_nms is not None else nothing
    with np.errstate(invalid="ignore", divide="ignore"):
        said_B, true_B = counts_BN @ of.said, counts_BN @ of.true
        return {
            "map": map_B,
            "ap50": ap50_B,
            "nms_ap": nms_B,
            "f1": (counts_BN @ of.f1) / counts_BN.sum(axis=1),
            "greedy_precision": (counts_BN @ of.hits) / said_B,
            "greedy_recall": (counts_BN @ of.hits) / true_B,
            "box_ratio": np.where(true_B > 0, said_B / true_B, np.nan),
            "false_alarms": (counts_BN @ of.alarms) / (counts_BN @ of.absent),
        }


def drawn(n: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """int64 [1 + resamples, n]: how often each picture is there; first once each, then n drawn with replacement."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n), dtype=np.int64), draws.astype(np.int64)])


def _interval(values_B: np.ndarray, within: tuple[float, float]) -> dict[str, Any]:
    """{"mean", "ci95"} of a figure and its drawings; both None where it is undefined, as drawings may be.

        ci95 = quantiles_{2.5 %, 97.5 %}(drawings) - (mean(drawings) - figure), cut at `within`

    The subtracted bias (Efron & Tibshirani 1993, chapter 10) is near 0 for shares; for average precision it is not.
    """
    if np.isnan(values_B[0]):
        return {"mean": None, "ci95": None}
    others = values_B[1:][~np.isnan(values_B[1:])]
    if others.size == 0:
        others = values_B[:1]
    ends = np.quantile(others, [0.025, 0.975]) - (others.mean() - values_B[0])
    return {"mean": float(values_B[0]), "ci95": [float(end) for end in np.clip(ends, *within)]}


def _record(of: _Counted, figures: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(of.f1)}
    found |= {
        name: _interval(values, (0.0, math.inf if name == "box_ratio" else 1.0))
        for name, values in figures.items()
    }
    # Pictures are independent and each is a hit or a miss: Wilson's interval has a width where the bootstrap has none.
    found["f1"] = average(of.f1, seed)
    found["false_alarm_pictures"] = proportion(of.invented)
    found["unreadable"] = proportion(of.unreadable)
    return found


def summarize_detection(
    own: Sequence[Seen],
    swapped: Sequence[Seen | None] | None = None,
    blank: Sequence[Seen | None] | None = None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """All figures of the pictures `own` [n >= 1] with intervals, JSON-ready; `swapped` and `blank` [n]: the same
    problems under another or a grey picture, judged by the own truth, None where a problem has no such pass.

    Keys: n, map, ap50, nms_ap, f1, greedy_precision, greedy_recall, box_ratio (boxes said / boxes true), false_alarms
    (labels asked for in vain that got a box / all such labels), false_alarm_pictures (share with a box of a label that
    is not there), unreadable, each {"mean", "ci95"} and null where undefined; categories, resamples, `without` (what
    is missing and how to get it, or None); `swapped` and `blank` with the same keys, and `looking`, own - swapped.
    """
    counted = _count(own)
    figures = _figures(counted, drawn(len(own), seed, resamples))
    record = _record(counted, figures, seed)
    record |= {
        "categories": len({label for picture in own for _, label in picture.truth}),
        "resamples": resamples,
        "without": None if has_pycocotools() else WITHOUT,
    }
    for name, others in (("swapped", swapped), ("blank", blank)):
        if others is None:
            continue
        pairs = [(mine, other) for mine, other in zip(own, others, strict=True) if other is not None]
        record[name] = {"n": len(pairs)}
        if not pairs:
            continue
        other_counted = _count([other for _, other in pairs])
        counts = drawn(len(pairs), seed, resamples)
        under = _figures(other_counted, counts)
        record[name] = _record(other_counted, under, seed)
        if name == "swapped":
            mine = figures if len(pairs) == len(own) else _figures(_count([one for one, _ in pairs]), counts)
            looking = {key: _interval(mine[key] - under[key], (-1.0, 1.0)) for key in LOOKED_AT}
            record["looking"] = {"n": len(pairs)} | looking
    return record


# --- one box a picture -----------------------------------------------------------------------------------------


def summarize_boxes(
    truths: Sequence[Sequence[float]],
    own: Sequence[Any],
    swapped: Sequence[Any] | None = None,
    blank: Sequence[Any] | None = None,
    *,
    seed: int,
) -> dict[str, Any]:
    """IoU of one box a picture [n >= 1]: mean `iou`, and `accuracy_75`, the share above 0.75 (above 0.5 is accuracy).

    Boxes are [x1, y1, x2, y2], None where none could be read (IoU 0). `swapped` and `blank`: (box or None,) under
    another or a grey picture; None where a problem has no such pass. Keys: n, iou, accuracy_75; swapped and blank
    with the same; looking, own - swapped, paired.
    """
    overlap = [_overlap(box, truth) for box, truth in zip(own, truths, strict=True)]
    record = _of_boxes(overlap, seed)
    for name, others in (("swapped", swapped), ("blank", blank)):
        if others is None:
            continue
        pairs = [
            (overlap[i], _overlap(other[0], truths[i])) for i, other in enumerate(others) if other is not None
        ]
        under = [b for _, b in pairs]
        record[name] = _of_boxes(under, seed)
        if name == "swapped":
            mine = [a for a, _ in pairs]
            record["looking"] = {
                "n": len(pairs),
                "iou": difference(mine, under, seed),
                "accuracy_75": difference(_above(mine), _above(under), seed),
            }
    return record


def _overlap(box: Any, truth: Sequence[float]) -> float:
    said, there = box_from(box), box_from(list(truth))
    return box_iou(said, there) if said is not None and there is not None else 0.0


def _above(overlaps: Sequence[float]) -> list[float]:
    return [float(value > 0.75) for value in overlaps]


def _of_boxes(overlaps: Sequence[float], seed: int) -> dict[str, Any]:
    return {
        "n": len(overlaps),
        "iou": average(overlaps, seed),
        "accuracy_75": average(_above(overlaps), seed),
    }
