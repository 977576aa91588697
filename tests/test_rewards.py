"""Rewards: golden cases with their derivation, hostile text, and properties of IoU."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea import rewards
from fovea.rewards import answers
from fovea.types import AnswerKind, Problem, RunFailed, UserError


def problem(answer: Any, kind: AnswerKind) -> Problem:
    return Problem(id="t:0", task="t", images=(), question="?", answer=answer, kind=kind)


# Derandomised: the same examples on every machine, so a failure can be repeated.
REPEATABLE = settings(derandomize=True, deadline=None)

BOX = problem((0, 0, 10, 10), "box")
TEXT = problem("a Red  Circle.", "text")
NUMBER = problem(1234.5, "number")
CHOICE = problem("B", "choice")
RED, BLUE = (
    {"bbox_2d": [x, 0, x + 10, 10], "label": label} for x, label in ((0, "red circle"), (20, "blue square"))
)
OBJECTS = problem([RED, BLUE], "objects")
EVERY = {"box": BOX, "text": TEXT, "number": NUMBER, "choice": CHOICE, "objects": OBJECTS}


def score(name: str, text: str, of: Problem) -> float:
    return rewards.REWARDS[name](text, of)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>3</answer>", 1),
        ("<think>two and one</think><answer>3</answer>", 1),
        ("  <think>\n</think>\n\n<answer>[1, 2]\n</answer>\n", 1),
        ("<think>a < b</think> <answer>a > b</answer>", 1),
        ("3", 0),
        ("", 0),
        ("<answer></answer>", 0),
        ("<answer> </answer>", 0),
        ("<answer>3</answer>.", 0),
        ("It is <answer>3</answer>", 0),
        ("<answer>3<answer>4</answer>", 0),
        ("<answer>3</answer><answer>4</answer>", 0),
        ("<think>x<answer>3</answer>", 0),
        ("<think>x<answer>3</answer></think>", 0),
        ("<answer>3</answer><think>x</think>", 0),
        ("<think>x</think><think>y</think><answer>3</answer>", 0),
        ("<think>x</think> so <answer>3</answer>", 0),
        ("<answer><think>x</think>3</answer>", 0),
        ("</think>x<think><answer>3</answer>", 0),
        ("</answer>3<answer>", 0),
        ("<Answer>3</Answer>", 0),
    ],
)
def test_format(text: str, value: int) -> None:
    assert score("format", text, BOX) == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 3 </answer>", "3"),
        ("<answer>3</answer> no: <answer>4</answer> done", "4"),
        ("<answer>3<answer>4</answer>", "4"),
        ("<think><answer>3</answer></think>", "3"),
        ("<answer>3", "3"),
        ("</answer><answer>3", "3"),
        ("<think>one</think> 3", "3"),
        ("3", "3"),
        ("<think>it is 3", None),
        ("<answer></answer>", None),
        ("", None),
        ("<answer>" + "x" * answers.ANSWER_LIMIT + "y</answer>", None),
    ],
)
def test_answer_of(text: str, answer: str | None) -> None:
    assert rewards.answer_of(text) == answer


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("the box [1.5,-2, 3e1 , .5] and [5, 6, 7, 8]", (1.5, -2, 30, 0.5)),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "x"}', (1, 2, 3, 4)),
        ('```json\n[{"label": [9, 9, 9, 9], "bbox_2d": [1, 2, 3, 4]}]\n```', (1, 2, 3, 4)),
        ('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]', (1, 2, 3, 4)),
        ('{"a": {"bbox_2d": [1, 2, 3, 4]}, "bbox_2d_": 0}', (1, 2, 3, 4)),
        ('so: {"bbox_2d": [1, 2, 3, 4]', (1, 2, 3, 4)),  # broken JSON: the bracketed four numbers count
        ("[4, 3, 2, 1]", (4, 3, 2, 1)),
        ("[1, 2, 3]", None),
        ("[1, 2, 3, 4, 5]", None),
        ("(1, 2, 3, 4)", None),
        ("[1, 2, 3, NaN]", None),
        ('{"bbox_2d": [1, 2, 3, NaN]}', None),
        ('{"bbox_2d": [1, 2, 3, Infinity]}', None),
        ('{"bbox_2d": [1, 2, 3, true]}', None),
        ('{"bbox_2d": [1, 2, 3, 1e999], "x": [1, 2, 3, 4]}', None),
        ('{"bbox_2d": [1, 2, 3, ' + "9" * 400 + "]}", None),
        ("[1, 2, 3, 1e999]", None),
        ("1 2 3 4", None),
        (None, None),
    ],
)
def test_read_box(answer: str | None, box: tuple[float, ...] | None) -> None:
    assert rewards.read_box(answer) == box


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3", 3),
        ("-3.5", -3.5),
        ("\u22123", -3),
        ("1,234.5", 1234.5),
        ("12,345,678", 12345678),
        ("$1,200.", 1200),
        ("There are 3 digits", 3),
        ("2e3", 2000),
        ("+.5", 0.5),
        ("50%", 50),
        ("3 of 4", None),
        ("1/2", None),
        ("2-3", None),
        ("1,23", None),
        ("1,2345", None),
        ("1234,567", None),
        ("1.2.3", None),
        ("three", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("\u0663", None),  # ARABIC-INDIC DIGIT THREE: only ASCII digits are read
        ("", None),
        (None, None),
    ],
)
def test_read_number(answer: str | None, number: float | None) -> None:
    assert rewards.read_number(answer) == number


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *[(form, "B") for form in ("B", "(B)", "B)", "B.", "b", " B \n")],
        *[
            (form, None)
            for form in ("BC", "(B", "B or C", "Bear", "The answer is B", "B. bear", "", "2", "\u0412")
        ],
    ],
)
def test_read_choice(answer: str, letter: str | None) -> None:
    assert rewards.read_choice(answer) == letter


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),  # 50 / (100 + 50 - 50)
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),  # overlap 1, union 4 + 4 - 1
        ((0, 0, 2, 2), (2, 0, 4, 2), 0),  # they share an edge, no area
        ((0, 0, 2, 2), (5, 5, 6, 6), 0),
        ((0, 0, 1, 1), (0.25, 0.25, 0.75, 0.75), 0.25),
        ((0, 0, 0, 10), (0, 0, 10, 10), 0),  # degenerate
        ((10, 10, 0, 0), (0, 0, 10, 10), 0),  # swapped corners are not repaired
        ((-1e308, -1e308, 1e308, 1e308), (0, 0, 1, 1), 0),  # areas overflow
        ((0, 0, 1e-200, 1e-200), (0, 0, 1e-200, 1e-200), 0),  # areas underflow
    ],
)
def test_box_iou(a: answers.Box, b: answers.Box, value: float) -> None:
    assert rewards.box_iou(a, b) == pytest.approx(value, abs=1e-15)


def test_iou_rewards_take_the_first_box_and_one_half_is_not_enough() -> None:
    half = "<answer>[0, 0, 10, 5]</answer>"
    assert score("iou", half, BOX) == 0.5
    assert score("iou_50", half, BOX) == 0
    assert score("iou_50", "<answer>[0, 0, 10, 5.1]</answer>", BOX) == 1
    assert score("iou", "<answer>[5, 5, 5, 5] [0, 0, 10, 10]</answer>", BOX) == 0
    assert score("iou", "<answer>no box</answer>", BOX) == 0


def test_equalities() -> None:
    assert score("exact", '<answer>"A red\tcircle"</answer>', TEXT) == 1
    assert score("exact", "<answer>a red circle and a square</answer>", TEXT) == 0
    assert score("exact", "<answer>７</answer>", problem(7, "text")) == 1  # NFKC: full-width seven
    assert score("numeric", "<answer>1,234.5</answer>", NUMBER) == 1
    assert score("numeric", "<answer>1234.501</answer>", NUMBER) == 1  # 8.1e-7 of the truth away
    assert score("numeric", "<answer>1234.502</answer>", NUMBER) == 0  # 1.6e-6 away
    assert score("numeric", "<answer>1e-9</answer>", problem(0, "number")) == 0  # only zero equals zero
    assert score("numeric", "<answer>1234.5 or 3</answer>", NUMBER) == 0
    assert score("choice", "<answer>(b)</answer>", CHOICE) == 1
    assert score("choice", "<answer>A or B</answer>", CHOICE) == 0
    assert score("choice", "<answer>A</answer>", problem("(A)", "choice")) == 1


@pytest.mark.parametrize(
    ("things", "value"),
    [
        ([RED, BLUE], 1),
        ([BLUE, RED], 1),  # whatever the order
        ([{**RED, "label": "Red  Circle."}, BLUE], 1),
        (RED, 2 / 3),  # one object without a list: 2·1 / (1 + 2)
        ([RED, RED, BLUE], 4 / 5),  # a duplicate: 2·2 / (3 + 2)
        ([RED, {**BLUE, "label": "blue circle"}], 1 / 2),  # 2·1 / (2 + 2)
        ([RED, {**BLUE, "bbox_2d": [20, 0, 25, 10]}], 1 / 2),  # IoU of exactly one half is not enough
        ([RED, BLUE, 7], 4 / 5),  # a thing that is no labelled box was still said
        ([RED, {"bbox_2d": [20, 0, 30, "10"], "label": "blue square"}], 1 / 2),
        ([RED, {**BLUE, "label": None}], 1 / 2),
        ([], 0),
        ("red circle", 0),
        (None, 0),
    ],
)
def test_objects(things: Any, value: float) -> None:
    text = f"<answer>{json.dumps(things)}</answer>"
    assert score("objects", text, OBJECTS) == pytest.approx(value)
    assert rewards.correct(text, OBJECTS) is (value == 1)
    assert score("objects", f"```json\n{json.dumps(things)}\n```", OBJECTS) == pytest.approx(value)


def test_objects_takes_the_largest_matching() -> None:
    # Truths t0 = [0, 10], t1 = [3, 13] (by 10 high). p0 = [1, 11] fits both (IoU 9/11, 8/12); p1 = [-2, 8]
    # fits only t0 (8/12; with t1 5/15). Taking the best pair (p0, t0) first would leave t1 without a partner.
    def thing(x: int) -> dict[str, Any]:
        return {"bbox_2d": [x, 0, x + 10, 10], "label": "a"}

    of = problem([thing(0), thing(3)], "objects")
    for things in ([thing(1), thing(-2)], [thing(-2), thing(1)]):
        assert score("objects", json.dumps(things), of) == 1


def test_objects_edges() -> None:
    assert score("objects", "[]", problem([], "objects")) == 1
    assert score("objects", json.dumps([RED]), problem([], "objects")) == 0
    with pytest.raises(UserError, match="needs a list of"):
        score("objects", "[]", problem([{"bbox_2d": [1, 2, 3], "label": "x"}], "objects"))
    with pytest.raises(UserError, match="needs a list of"):
        score("objects", "[]", BOX)


@pytest.mark.parametrize(
    ("text", "of", "value"),
    [
        ("[0, 0, 10, 9]", BOX, True),  # accuracy asks for the answer; the format has its own reward
        ("<think>hm</think>[0, 0, 10, 9]", BOX, True),
        ("<think>[0, 0, 10, 9]", BOX, False),
        ("<answer>[0, 0, 10, 5]</answer>", BOX, False),
        ("<answer>a red circle</answer>", TEXT, True),
        ("1234.5", NUMBER, True),
        ("B", CHOICE, True),
        ("Because", CHOICE, False),
    ],
)
def test_correct(text: str, of: Problem, value: bool) -> None:
    assert rewards.correct(text, of) is value


def test_weigh_keeps_the_breakdown() -> None:
    texts = ["<answer>[0, 0, 10, 5]</answer>", "[0, 0, 10, 10]", "no"]
    total_G, parts = rewards.weigh(texts, BOX, {"iou": 2.0, "format": 0.1, "iou_50": 0.0})
    np.testing.assert_allclose(total_G, [2 * 0.5 + 0.1, 2.0, 0.0], rtol=1e-15)
    assert total_G.dtype == np.float64
    assert {name: list(part_G) for name, part_G in parts.items()} == {
        "iou": [0.5, 1, 0],
        "format": [1, 0, 0],
        "iou_50": [0, 1, 0],
    }


@pytest.mark.parametrize("kind", list(EVERY))
def test_default_rewards_score_a_perfect_reply_highest(kind: AnswerKind) -> None:
    of = EVERY[kind]
    truth = of.answer if isinstance(of.answer, str) else json.dumps(of.answer)
    weights = rewards.default_rewards(kind)
    total_G, _ = rewards.weigh([f"<answer>{truth}</answer>", truth, "?"], of, weights)
    np.testing.assert_allclose(total_G, [1.1, 1.0, 0.0])
    weights["iou"] = 99.0
    assert rewards.default_rewards(kind).get("iou") != 99.0, "a caller must not change the table"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"iuo": 1.0}, "did you mean 'iou'"),
        ({}, "No reward"),
        ({"iou": math.nan}, "finite"),
        ({"iou": math.inf}, "finite"),
        ({"numeric": 1.0}, "needs one finite number"),
        ({"choice": 1.0}, "needs one letter"),
        ({"exact": 1.0}, "needs a text"),
    ],
)
def test_bad_weights_are_the_users_error(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rewards.weigh(["x"], BOX, weights)


def test_a_bad_box_is_the_users_error_and_a_bad_reward_function_a_failed_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match=r"t:0 is \[1, 2\]"):
        rewards.weigh(["x"], problem([1, 2], "box"), {"iou": 1.0})
    monkeypatch.setitem(rewards.REWARDS, "broken", lambda text, problem: math.nan)
    with pytest.raises(RunFailed, match="broken"):
        rewards.weigh(["x"], BOX, {"broken": 1.0})


def test_score_json() -> None:
    perfect = "<answer>[0, 0, 10, 10]</answer>"
    assert rewards.score_json("iou", "[0, 0, 10, 10]", perfect) == {"reward": 1.0, "parts": {"iou": 1.0}}
    weighted = rewards.score_json("iou=1, format=0.5", "[0, 0, 10, 10]", "[0, 0, 10, 5]")
    assert weighted == {"reward": 0.5, "parts": {"iou": 0.5, "format": 0.0}}
    assert rewards.score_json("numeric", "3", "3")["reward"] == 1
    assert rewards.score_json("choice", '"B"', "(B)")["reward"] == 1
    assert rewards.score_json("exact", '"red"', "Red.")["reward"] == 1
    assert rewards.score_json("objects", json.dumps([RED]), json.dumps([RED]))["reward"] == 1
    json.dumps(weighted)


@pytest.mark.parametrize(
    ("name", "answer", "kind", "message"),
    [
        ("iou", "[0, 0", None, "not JSON"),
        ("exact", "red", None, "both quotes"),
        ("iou", "3", None, "four finite numbers"),
        ("iou", "[0, 0, 1, NaN]", None, "four finite numbers"),
        ("iou=x", "3", None, "NAME=WEIGHT"),
        ("iou,", "3", None, "no reward ''"),
        ("exakt", "3", None, "did you mean 'exact'"),
        ("iou", "[0, 0, 1, 1]", "bocks", "no kind"),
        ("numeric", "true", None, "one finite number"),
        ("exact", "[" * 100_000, None, "not JSON"),
    ],
)
def test_score_json_refuses(name: str, answer: str, kind: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rewards.score_json(name, answer, "x", kind)


# Text made of the pieces that the parsers look for breaks them sooner than uniform noise does.
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "```json", "```", '"bbox_2d"')
SIGNS = ("[", "]", ",", "{", "}", ":", "-", ".", "(", ")", " ", "\n", "\x00", "\ud800")
WORDS = ("1", "e9", "1e999", "NaN", "B", "null", "\u0663", "9" * 50)
PIECES = st.sampled_from(TAGS + SIGNS + WORDS)
HOSTILE = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))


@settings(REPEATABLE, max_examples=300)
@given(HOSTILE)
def test_no_text_raises_and_every_reward_is_in_the_unit_interval(text: str) -> None:
    for kind, of in EVERY.items():
        weights = dict.fromkeys(rewards.default_rewards(of.kind), 1.0)
        for name, part_G in rewards.weigh([text], of, weights)[1].items():
            assert 0 <= part_G[0] <= 1, (kind, name)
        rewards.correct(text, of)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "<answer>" + "[" * 9_000 + "</answer>",
        '<answer>{"bbox_2d": ' + "[" * 9_000 + "</answer>",
        "<answer>" + "1" * 9_000 + "</answer>",
        "<answer>" + "[1" * 4_000 + "</answer>",
        "<answer>[" + " " * 9_000 + "</answer>",
        "<answer>" + "1," * 4_000 + "</answer>",
        "<answer>" + "```" * 3_000 + '"bbox_2d"</answer>',
        "<answer>[" + '{"bbox_2d":[0,0,9,9],"label":"red circle"},' * 200 + "0]</answer>",
        "<think>" * 30_000,
        "<answer>" * 30_000 + "</answer>" * 30_000,
    ],
)
def test_long_hostile_text_is_fast(text: str) -> None:
    start = time.process_time()
    for of in EVERY.values():
        rewards.weigh([text], of, rewards.default_rewards(of.kind))
    assert time.process_time() - start < 1


COORDINATE = st.floats(-1e6, 1e6)
BOXES = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE)


@REPEATABLE
@given(BOXES, BOXES)
def test_iou_is_symmetric_and_bounded(a: answers.Box, b: answers.Box) -> None:
    value = rewards.box_iou(a, b)
    assert 0 <= value <= 1
    assert value == rewards.box_iou(b, a)


@REPEATABLE
@given(BOXES)
def test_iou_with_itself_is_one_where_there_is_area(a: answers.Box) -> None:
    area = (a[2] - a[0]) * (a[3] - a[1])
    assert rewards.box_iou(a, a) == (1.0 if a[2] > a[0] and a[3] > a[1] and area > 0 else 0.0)


SIDE = st.integers(0, 4096)
GRID = st.tuples(SIDE, SIDE, SIDE, SIDE)


@REPEATABLE
@given(GRID, GRID, st.integers(-8, 8), st.integers(-1000, 1000))
def test_iou_does_not_change_with_scale_or_shift(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int], power: int, shift: int
) -> None:
    # Whole coordinates, a power of two and a whole shift are exact in float64, so equality is too.
    def moved(box: tuple[int, int, int, int]) -> answers.Box:
        x1, y1, x2, y2 = ((c + shift) * 2.0**power for c in box)
        return x1, y1, x2, y2

    assert rewards.box_iou(moved(a), moved(b)) == rewards.box_iou(a, b)


@REPEATABLE
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_printed_number_is_read_back(value: float) -> None:
    assert rewards.read_number(repr(value)) == value
    assert score("numeric", f"<answer>{value!r}</answer>", problem(value, "number")) == 1


@REPEATABLE
@given(st.integers(-(10**15), 10**15))
def test_thousands_separators_are_read(value: int) -> None:
    assert rewards.read_number(f"{value:,}") == value
