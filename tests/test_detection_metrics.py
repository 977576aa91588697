"""Figures of boxes over a set: by hand, and against pycocotools' own accumulation."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fovea import detection_metrics
from fovea.detection_metrics import (
    Seen,
    average_precision,
    coco_matches,
    drawn,
    f1,
    greedy_hits,
    mean_average_precision,
    nms_by_truth,
    seen,
    summarize_boxes,
    summarize_detection,
)
from fovea.outcomes import Outcome, Swapped, read_outcomes, summarize, write_outcomes
from fovea.types import UserError

A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (0.0, 20.0, 10.0, 30.0)
ELSEWHERE = (50.0, 50.0, 60.0, 60.0)
NEAR_A = (0.0, 0.0, 10.0, 8.0)  # IoU 0.8 with A


def ones(n: int) -> np.ndarray:
    return np.ones((1, n), dtype=np.int64)


# --- by hand ---------------------------------------------------------------------------------------------------


def test_map_of_two_pictures_by_hand() -> None:
    """Boxes in order: hit (IoU 1), miss, hit (IoU 0.8); two truths.

    t <= 0.8 (7 of 10 thresholds): hits at 1 and 3, precision 1 and 2/3, recall .5 and 1. The recalls 0 to .5 are 51
    of 101, the others 50: AP = (51 + 50 · 2/3) / 101. Above: one hit of two truths, AP = 51 / 101.
    """
    pictures = [
        Seen(truth=((A, "x"),), said=((A, "x"), (ELSEWHERE, "x"))),
        Seen(truth=((A, "x"),), said=((NEAR_A, "x"), (B, "unknown"))),  # a label true nowhere has no part
    ]
    map_B, ap50_B = mean_average_precision(coco_matches(pictures), ones(2))
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert ap50_B[0] == pytest.approx(low, abs=1e-12)
    assert map_B[0] == pytest.approx(0.7 * low + 0.3 * high, abs=1e-12)


def test_one_to_one_and_in_order() -> None:
    once = Seen(truth=((A, "x"), (B, "y")), said=((NEAR_A, "x"), (A, "x"), (B, "y"), (B, "x"), (None, "")))
    # The first of the two boxes at A takes the truth; a right box with the wrong label and a broken item hit nothing.
    assert greedy_hits(once) == 2
    assert f1(once) == 2 * 2 / (5 + 2)
    assert f1(replace(once, said=tuple(reversed(once.said or ())))) == f1(once)
    # Greedy in the order of the reply, not the best assignment: the first box takes the truth that the second needs.
    left, right = (0.0, 0.0, 10.0, 10.0), (4.0, 0.0, 14.0, 10.0)
    middle, far = (1.0, 0.0, 11.0, 10.0), (-3.0, 0.0, 7.0, 10.0)
    greedy = Seen(truth=((left, "x"), (right, "x")), said=((middle, "x"), (far, "x")))
    assert greedy_hits(greedy) == 1  # `middle` takes `left` (IoU 9/11); `far` reaches `left` alone
    assert f1(greedy) == 1.0  # `middle` could have had `right` (IoU 7/13)
    assert [f1(Seen(truth=(), said=said)) for said in ((), ((A, "x"),), None)] == [1.0, 0.0, 0.0]
    assert f1(Seen(truth=((A, "x"),), said=())) == 0.0


def test_nms_keeps_the_last_of_those_on_one_truth() -> None:
    """OVDEval's script: class-agnostic, and with equal scores its reversed sort takes the last."""
    picture = Seen(
        truth=((A, "x"), (B, "y")), said=((A, "x"), (ELSEWHERE, "x"), (A, "z"), (NEAR_A, "x"), (None, ""))
    )
    assert nms_by_truth(picture).said == ((ELSEWHERE, "x"), (NEAR_A, "x"), (None, ""))
    twins = ((0.0, 0.0, 10.0, 10.0), (1.0, 0.0, 11.0, 10.0))
    both = Seen(truth=((twins[0], "x"), (twins[1], "x")), said=((twins[0], "x"), (twins[1], "x")))
    assert nms_by_truth(both).said == ((twins[1], "x"),)  # the last wins at both truths
    assert nms_by_truth(Seen(truth=(), said=((A, "x"),))).said == ((A, "x"),)


def test_the_record_by_hand() -> None:
    pictures = [
        Seen(truth=((A, "x"), (B, "y")), said=((A, "x"), (C, "z")), absent=("z", "w")),
        Seen(truth=((A, "x"),), said=None, absent=("w",)),
    ]
    record = summarize_detection(pictures, seed=0, resamples=50)
    assert {key: record[key]["mean"] for key in ("greedy_precision", "greedy_recall", "box_ratio", "f1")} == {
        "greedy_precision": 1 / 2,
        "greedy_recall": 1 / 3,
        "box_ratio": 2 / 3,
        "f1": pytest.approx((2 / 4 + 0) / 2),
    }
    assert record["false_alarms"]["mean"] == 1 / 3  # z of z, w, w
    assert record["false_alarm_pictures"]["mean"] == record["unreadable"]["mean"] == 0.5
    # x: one hit of two truths, 51 / 101; y: nothing
    assert record["map"]["mean"] == record["nms_ap"]["mean"] == pytest.approx(51 / 202)
    assert (record["n"], record["categories"], record["without"]) == (2, 2, None)
    for key in ("map", "f1", "greedy_recall", "box_ratio", "false_alarms"):
        low, high = record[key]["ci95"]
        assert low <= record[key]["mean"] <= high
    json.dumps(record)


def test_what_is_undefined_is_null() -> None:
    record = summarize_detection([Seen(truth=(), said=())], seed=0, resamples=20)
    for key in ("map", "ap50", "nms_ap", "greedy_precision", "greedy_recall", "box_ratio", "false_alarms"):
        assert record[key] == {"mean": None, "ci95": None}
    assert record["f1"]["mean"] == 1.0


def test_looking_is_own_minus_swapped() -> None:
    own = [Seen(truth=((A, "x"),), said=((A, "x"),)) for _ in range(6)]
    wrong = [replace(one, said=((B, "x"),)) for one in own]
    record = summarize_detection(own, [*wrong[:5], None], wrong, seed=0, resamples=50)
    assert record["swapped"]["n"] == record["looking"]["n"] == 5
    assert record["looking"]["map"]["mean"] == pytest.approx(1.0)
    assert record["swapped"]["map"]["mean"] == record["blank"]["f1"]["mean"] == 0.0
    same = summarize_detection(own, own, seed=0, resamples=50)
    assert same["looking"]["f1"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert "blank" not in same


def test_boxes_by_hand() -> None:
    record = summarize_boxes([A, A, A], [A, NEAR_A, None], [(B,), None, (None,)], seed=0)
    assert record["iou"]["mean"] == pytest.approx(1.8 / 3)
    assert record["accuracy_75"]["mean"] == pytest.approx(2 / 3)
    assert record["swapped"]["n"] == record["looking"]["n"] == 2
    assert record["looking"]["iou"]["mean"] == pytest.approx(0.5)


# --- against pycocotools ---------------------------------------------------------------------------------------


def sets(seed: int, pictures: int, labels: int) -> list[Seen]:
    """Random pictures: doubles, wrong labels, labels true nowhere, crowds, empty truths, unreadable replies."""
    rng = np.random.default_rng(seed)

    def box() -> tuple[float, float, float, float]:
        (x, y), (w, h) = rng.integers(0, 40, 2), rng.integers(4, 20, 2)
        return float(x), float(y), float(x + w), float(y + h)

    found = []
    for _ in range(pictures):
        truth = [(box(), f"c{rng.integers(labels)}") for _ in range(rng.integers(0, 5))]
        crowds = [(box(), f"c{rng.integers(labels)}") for _ in range(rng.integers(0, 2))]
        said: list[Any] = [(box(), f"c{rng.integers(labels + 2)}") for _ in range(rng.integers(0, 3))]
        for (x1, y1, x2, y2), label in truth * int(rng.integers(1, 3)):
            dx, dy = rng.integers(-2, 3, 2)
            said.append(((x1 + dx, y1 + dy, x2 + dx, y2 + dy), label))
        order = rng.permutation(len(said))
        found.append(
            Seen(
                truth=tuple(truth),
                crowds=tuple(crowds),
                said=tuple(said[i] for i in order) if rng.random() < 0.9 else None,
            )
        )
    return found


def oracle(pictures: list[Seen]) -> tuple[float, float]:
    """(mAP, AP50) by pycocotools from end to end: loadRes, evaluate, accumulate, summarize."""
    names = sorted({label for p in pictures for _, label in p.truth})
    truths, results = [], []
    for image, picture in enumerate(pictures):
        for crowd, part in enumerate((picture.truth, picture.crowds)):
            for (x1, y1, x2, y2), label in part:
                if label in names:
                    truths.append(
                        {"id": len(truths) + 1, "image_id": image, "category_id": names.index(label),
                         "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": crowd}
                    )  # fmt: skip
        for box, label in picture.said or ():
            if label in names and box is not None:
                x1, y1, x2, y2 = box
                results.append({"image_id": image, "category_id": names.index(label),
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1.0})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(pictures))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
            "annotations": truths,
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0]), float(run.stats[1])


@pytest.mark.parametrize("seed", range(6))
def test_map_is_that_of_pycocotools(seed: int) -> None:
    pictures = sets(seed, pictures=15, labels=4)
    map_B, ap50_B = mean_average_precision(coco_matches(pictures), ones(len(pictures)))
    assert (map_B[0], ap50_B[0]) == pytest.approx(oracle(pictures), abs=1e-9)


def test_a_picture_drawn_k_times_is_k_pictures() -> None:
    """Counts against a set that is written out, picture by picture: equal where each picture has one box a label."""
    pictures = [replace(p, said=p.said and p.said[:1], truth=p.truth[:1]) for p in sets(9, 12, 2)]
    counts = drawn(len(pictures), seed=3, resamples=4)
    map_B, _ = mean_average_precision(coco_matches(pictures), counts)
    for row, value in zip(counts, map_B):
        written = [picture for picture, times in zip(pictures, row) for _ in range(times)]
        assert value == pytest.approx(mean_average_precision(coco_matches(written), ones(len(written)))[0][0])


def test_intervals_hold_the_figure_they_are_of() -> None:
    """Drawn sets have a higher mAP than their own; the interval is moved back. Few truths a category: worst case."""
    record = summarize_detection(sets(4, 60, 20), seed=0, resamples=200)
    for key in ("map", "ap50", "nms_ap"):
        low, high = record[key]["ci95"]
        assert low < record[key]["mean"] < high


def test_an_empty_category_in_a_drawing_has_no_part() -> None:
    pictures = [Seen(truth=((A, "x"),), said=((A, "x"),)), Seen(truth=((A, "y"),), said=())]
    matches = coco_matches(pictures)
    counts = np.array([[1, 1], [2, 0], [0, 2]])
    assert np.isnan(average_precision(matches[0], counts)[2]).all()
    assert mean_average_precision(matches, counts)[0] == pytest.approx([0.5, 1.0, 0.0])


# --- in the record ---------------------------------------------------------------------------------------------


def outcome(**changes: Any) -> Outcome:
    thing = {"bbox_2d": list(A), "label": "Red cat"}
    values: dict[str, Any] = {
        "id": "p0", "question": "?", "truth": [thing], "pictures": 1, "reply": "", "correct": True,
        "truncated": False, "rewards": {}, "kind": "objects", "predicted": [thing], "absent": ("dog",),
        "blank": False, "blank_predicted": [],
        "swapped": Swapped(donor="p1", same_question=True, reply="", correct=False, follow=None, predicted=None),
    }  # fmt: skip
    return Outcome(**(values | changes))


def test_outcomes_are_written_read_and_summed_up(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    box = outcome(
        id="p1", kind="box", truth=list(A), predicted=list(NEAR_A), absent=None, blank_predicted=None
    )
    write_outcomes(path, [outcome(), box])
    again = read_outcomes(path)
    assert again == [outcome(), box]
    record = summarize(again, 0)
    assert record["detection"]["looking"]["f1"]["mean"] == 1.0
    assert record["detection"]["map"]["mean"] == pytest.approx(1.0)
    assert record["detection"]["n"] == record["boxes"]["n"] == 1
    assert record["boxes"]["iou"]["mean"] == pytest.approx(0.8)
    assert "swapped" not in summarize(again, 0, look=False)["detection"]


def test_files_of_before_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    old = asdict(outcome())
    for key in ("kind", "predicted", "blank_predicted", "absent"):
        del old[key]
    del old["swapped"]["predicted"]
    path.write_text(json.dumps(old) + "\n")
    assert "detection" not in summarize(read_outcomes(path), 0)
    for broken in ({"truth": 3}, {"truth": [{"label": "x"}]}, {"predicted": 7}, {"kind": "box"}):
        path.write_text(json.dumps(asdict(outcome()) | broken) + "\n")
        with pytest.raises(UserError, match="is not an outcome"):
            read_outcomes(path)


def test_without_pycocotools_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection_metrics, "has_pycocotools", lambda: False)
    record = summarize([outcome()], 0)["detection"]
    assert record["map"] == record["nms_ap"] == {"mean": None, "ci95": None}
    assert record["f1"]["mean"] == 1.0
    assert "pip install" in record["without"]


def test_plain_json_as_seen() -> None:
    truth = [{"bbox_2d": A, "label": "Red Cat."}, {"bbox_2d": B, "label": "x", "iscrowd": 1}]
    assert seen(truth, [{"bbox_2d": None, "label": "x"}, 3], ["Dog"]) == Seen(
        truth=((A, "red cat"),), crowds=((B, "x"),), said=((None, ""), (None, "")), absent=("dog",)
    )
