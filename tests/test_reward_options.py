"""Options of rewards, `compat`, routing, and that they reach every place that scores."""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fovea import cli, rewards
from fovea.config import load_run
from fovea.rewards import REWARDS, make_scorer, score_json, weigh
from fovea.rewards.functions import check_weights
from fovea.rewards.options import PASSED, check_options, options_of, parameters_of, plain_sum, with_compat
from fovea.rewards.routing import BY_KIND, METHODS, accuracy, route, similarity
from fovea.runlog.describe import reproduce_command
from fovea.tasks import kinds
from fovea.types import Problem, UserError


def problem(answer: Any, kind: Any = "text", **meta: Any) -> Problem:
    return Problem(id="p", task="own", images=(), question="?", answer=answer, kind=kind, meta=meta)


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"repetitoin": {"n": 3}},
            r"no built-in reward 'repetitoin' \(did you mean 'repetition'\?\).*functools",
        ),
        ({"repetition": {"m": 3}}, "'repetition' has no option 'm'; known: n"),
        ({"cosine": {"max_token": 3}}, r"no option 'max_token' \(did you mean 'max_tokens'\?\)"),
        ({"cosine": {"tokens": 3}}, "no option 'tokens'"),
        ({"accuracy": {"options": {}}}, "no option 'options'"),
        ({"exact": {"n": 3}}, "it has none"),
        ({"repetition": {"n": "many"}}, r"reward_options\.repetition\.n='many' is not allowed: .*integer"),
        ({"repetition": {"n": True}}, "true or false"),
        ({"repetition": {"n": None}}, "is not allowed"),
        ({"numeric": {"relative": math.inf}}, "finite"),
        ({"iou": {"compat": "vlm_r2"}}, "vlm_r1"),
    ],
)
def test_what_is_no_option_is_refused(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_scorer({"format": 1.0}, options=options)
    with pytest.raises(UserError, match=message):
        weigh(["x"], problem("x"), {"format": 1.0}, options=options)


def test_options_are_read_as_the_function_wants_them() -> None:
    given = {
        "repetition": {"n": "3"},
        "numeric": {"relative": 1},
        "od_f1": {"soft": True},
        "iou": {"compat": None},
    }
    found = check_options(REWARDS, given)
    assert found == {
        "repetition": {"n": 3},
        "numeric": {"relative": 1.0},
        "od_f1": {"soft": True},
        "iou": {"compat": None},
    }
    assert check_options(REWARDS, None) == {}


def test_every_reward_has_the_agreed_form() -> None:
    """(text, problem, *, option=default): described by its docstring, options by keyword with a default."""
    for name, function in REWARDS.items():
        assert (function.__doc__ or "").strip(), name
        for option, parameter in parameters_of(function).items():
            assert parameter.kind is parameter.KEYWORD_ONLY, (name, option)
            assert parameter.default is not parameter.empty, (name, option)
            assert option not in PASSED or parameter.default is None, (name, option)
        check_options(REWARDS, {name: options_of(function)})


def test_options_change_values_and_tokens_arrive() -> None:
    near = problem(100, "number")
    assert weigh(["101"], near, {"numeric": 1.0})[0] == 0
    assert weigh(["101"], near, {"numeric": 1.0}, options={"numeric": {"relative": 0.02}})[0] == 1
    short_long = weigh(["100", "100"], near, {"cosine": 1.0}, tokens=[0, 1024])[0]
    np.testing.assert_allclose(short_long, [1.0, 0.5])
    halved = weigh(["100"], near, {"cosine": 1.0}, options={"cosine": {"max_tokens": 64}}, tokens=[64])[0]
    np.testing.assert_allclose(halved, [0.5])
    with make_scorer({"cosine": 1.0}, options={"cosine": {"max_tokens": 2}}) as scorer:
        ids = [[1, 2], [1]]
        np.testing.assert_allclose(
            scorer.weigh(["100"] * 2, near, step=0, token_ids=ids).rewards, [0.5, 0.75]
        )


# --- compat ---------------------------------------------------------------------------------------------------


def test_compat_reaches_every_reward_that_has_it_and_drops_weights() -> None:
    found = with_compat(REWARDS, {"iou": {"compat": None}, "repetition": {"n": 2}}, "vlm_r1")
    assert found["iou"] == {"compat": None}, "one that is told otherwise stays right"
    having = {name for name, function in REWARDS.items() if "compat" in options_of(function)}
    assert {name for name, given in found.items() if given.get("compat") == "vlm_r1"} == having - {"iou"}
    assert {"format_strict", "cosine", "yes_no", "choice", "od_map", "accuracy"} <= having
    assert plain_sum({"a": 0.5, "b": 0.0, "c": -1.0}, "vlm_r1") == {"a": 1.0, "b": 0.0, "c": 1.0}
    assert plain_sum({"a": 0.5}, None) == {"a": 0.5}


def test_compat_of_a_group() -> None:
    weights, of = {"yes_no": 0.5, "format_strict": 0.1}, problem("no")
    text = "<think>a</think><answer>I know</answer>"
    assert weigh([text], of, weights)[0] == pytest.approx([0.1]), "`know` says nothing"
    assert weigh([text], of, weights, compat="vlm_r1")[0].tolist() == [2.0], (
        "k-no-w is no, and weights are not read"
    )
    with make_scorer(weights, audits=("exact",), compat="vlm_r1") as scorer:
        scores = scorer.weigh([text], of, step=0)
    assert scores.rewards.tolist() == [2.0]
    assert scores.parts["exact"].tolist() == [0.0], "an audit stays one"


@pytest.mark.parametrize(
    ("reply", "right", "original"),
    [
        ("<answer>[0, 0, 10, 10]</answer>", 1.0, 1.0),
        ("[0, 0, 10, 10]", 1.0, 0.0),
        ("<answer>[0.0, 0, 10, 10]</answer>", 1.0, 0.0),
        ("<answer>[0, 0, 10, 5]</answer><answer>[0, 0, 10, 10]</answer>", 1.0, 0.5),
        ("<answer>[9, 0, 19, 10]</answer>", 10 / 190, 0.0),
        ("<answer>[8, 0, 18, 10]</answer>", 20 / 180, 20 / 180),
        ("<answer>", 0.0, 0.0),
        ("</answer><answer>[0, 0, 10, 10]", 1.0, 0.0),
    ],
)
def test_iou_as_the_original(reply: str, right: float, original: float) -> None:
    of = problem([0, 0, 10, 10], "box")
    assert REWARDS["iou"](reply, of) == pytest.approx(right)
    assert REWARDS["iou"](reply, of, compat="vlm_r1") == pytest.approx(original)


def test_run_keys_and_the_command_that_repeats_them() -> None:
    overrides = [
        "compat=vlm_r1",
        "reward_options.cosine.max_tokens=64",
        "reward_options.judge={url: 'http://x/v1'}",
    ]
    run = load_run("quickstart", overrides)
    assert run.compat == "vlm_r1"
    assert run.reward_options == {"cosine": {"max_tokens": 64}, "judge": {"url": "http://x/v1"}}
    command = reproduce_command(run)
    assert "compat=vlm_r1" in command
    assert "max_tokens" in command
    with pytest.raises(UserError, match="compat"):
        load_run("quickstart", ["compat=trl"])
    with pytest.raises(UserError, match="reward_options"):
        load_run("quickstart", ["reward_options.iou=3"])


# --- routing --------------------------------------------------------------------------------------------------

THING = {"bbox_2d": [0, 0, 10, 10], "label": "cat"}
TWO = json.dumps([THING, {"bbox_2d": [20, 20, 30, 30], "label": "cat"}])
ROUTED = [
    ("B", "choice", "mcq", "(B)", 1.0),
    ("yes", "text", "yes_no", "Yes, there is.", 1.0),
    ("Operation No Response", "text", "all_match", "operation no response.", 1.0),
    ("\\frac{1}{2}", "math", "math", "0.5", 1.0),
    ([0, 0, 10, 10], "box", "rec", "[0, 0, 10, 5]", 0.5),
    ([0, 0, 10, 10], "box", "iou", "[0, 0, 10, 5]", 0.5),
    ([THING], "objects", "od_ap50", TWO, 1.0),
    ([THING], "objects", "odLength", TWO, 0.5),
    ([THING], "objects", "map", TWO, 1.0),
    ([THING], "objects", "weighted_sum", TWO, 0.7 + 0.3 * 0.75),
    ([THING], "objects", None, TWO, 2 / 3),
    ("red", "text", None, "Red.", 1.0),
    ("red", "text", "default", "Red.", 1.0),
    (3, "number", None, "3.0", 1.0),
    ([0, 0, 10, 10], "box", None, "[0, 0, 10, 5]", 0.5),
    ([3, 1, 2], "order", None, "3 1 2", 1.0),
    (["os", "sys"], "set", None, "os", 2 / 3),
]


@pytest.mark.parametrize(("answer", "kind", "method", "reply", "value"), ROUTED)
def test_accuracy_scores_each_problem_its_own_way(
    answer: Any, kind: Any, method: str | None, reply: str, value: float
) -> None:
    of = problem(answer, kind) if method is None else problem(answer, kind, accu_reward_method=method)
    assert accuracy(f"<answer>{reply}</answer>", of) == pytest.approx(value)
    (total,), parts = weigh([f"<answer>{reply}</answer>"], of, {"accuracy": 2.0})
    assert (total, parts["accuracy"][0]) == pytest.approx((2 * value, value))


def test_accuracy_hands_on_options_and_compat() -> None:
    near = problem(100, "number")
    assert weigh(["101"], near, {"accuracy": 1.0}, options={"numeric": {"relative": 0.02}})[0] == 1
    know = problem("no", accu_reward_method="yes_no")
    assert weigh(["I know"], know, {"accuracy": 1.0})[0] == 0
    assert weigh(["I know"], know, {"accuracy": 1.0}, options={"accuracy": {"compat": "vlm_r1"}})[0] == 1


def test_methods_and_kinds_agree_with_the_data_reader() -> None:
    assert {name: kind for name, (_, kind) in METHODS.items()} == dict(kinds.METHODS)
    assert {reward for reward, _ in METHODS.values() if reward} | set(BY_KIND.values()) <= set(REWARDS)
    assert route(problem("x", accu_reward_method="llm")) == "judge"
    with pytest.raises(UserError, match=r"'mqc' \(did you mean 'mcq'\?\); known: default"):
        accuracy("x", problem("x", accu_reward_method="mqc"))
    with pytest.raises(UserError, match="known: default"):
        accuracy("x", problem("x", accu_reward_method=["mcq"]))
    with pytest.raises(UserError, match="is off until"):
        accuracy("x", problem("x", accu_reward_method="llm"))
    assert rewards.measurable(["accuracy", "judge", "iou"], problem("x", accu_reward_method="llm")) == ["iou"]
    check_weights({"accuracy": 1.0})


@pytest.mark.parametrize(
    ("answer", "reply", "value"),
    [
        ("3 cats", "<answer>3 cats</answer>", 1.0),
        (3, "<answer>3.0</answer>", 1.0),
        (3, "<answer>4</answer>", 0.0),
        ("3 cats", "3 dogs", similarity("3 dogs", "3 cats")),
        ("A: red", "<answer>it is A.</answer>", 1.0),
        ("A: red", "<answer>it is B.</answer>", 0.0),
        ("hello", "hallo", 0.8),
        ("hello", "<answer>Hello.</answer>", 1.0),
        ("hello", "x" * 20_000, 0.0),
    ],
)
def test_default_of_the_original_pays_partial_credit(answer: Any, reply: str, value: float) -> None:
    of = problem(answer, "number" if isinstance(answer, int) else "text")
    assert accuracy(reply, of, compat="vlm_r1") == pytest.approx(value)


def test_similarity_against_the_table_method() -> None:
    """LCS by dynamic programming on random texts; figures of `Levenshtein.ratio` from its documentation."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        a, b = ("".join(draw.choice(list("abcd"), draw.integers(0, 12))) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        expected = 1.0 if not a + b else 2 * table[-1][-1] / (len(a) + len(b))
        assert similarity(a, b) == pytest.approx(expected)
    assert similarity("Hello world!", "Holly grail!") == pytest.approx(0.583333, abs=1e-6)
    began = time.perf_counter()
    similarity("ab" * 5000, "word " * 20)
    assert time.perf_counter() - began < 0.1


# --- one reply by hand ----------------------------------------------------------------------------------------


def test_score_with_options() -> None:
    assert score_json("numeric", "100", "101", options=["relative=0.02"])["reward"] == 1
    assert score_json("numeric=2,format=1", "100", "101", options=["numeric.absolute=1"])["reward"] == 2
    assert score_json("numeric", "100", "101", meta_json='{"tolerance": 1}')["reward"] == 1
    assert score_json("cosine", "3", "3", tokens=512)["reward"] == pytest.approx(0.75)
    assert score_json("yes_no", '"no"', "know", compat="vlm_r1")["reward"] == 1
    assert score_json("math", '"\\\\frac12"', "0.5", "math")["reward"] == 1
    listed = {item["name"]: item for item in rewards.list_rewards()}
    assert set(listed) == set(REWARDS)
    assert listed["repetition"]["options"] == {"n": 6}
    assert all(item["about"].endswith((".", ")")) for item in listed.values()), "a first sentence each"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": ["relative"]}, "is not key=value"),
        ({"options": ["relativ=1"]}, r"no option 'relativ' \(did you mean 'relative'\?\)"),
        ({"options": ["iuo.compat=vlm_r1"]}, "no built-in reward 'iuo'"),
        ({"compat": "r1"}, "no compat 'r1'"),
        ({"meta_json": "[1]"}, "must be a JSON object"),
        ({"meta_json": "{"}, "--meta '{' is not JSON"),
        ({"meta_json": '{"tolerance": "wide"}'}, "tolerance of problem score"),
    ],
)
def test_score_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_json("numeric", "100", "101", **given)


PAGE = (Path(__file__).parent.parent / "docs" / "rewards.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\$ fovea (score .*)\n((?:(?!\$ |```).*\n)+)", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("command", "output"), EXAMPLES)
def test_the_page_shows_what_is_printed(
    command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(shlex.split(command)) == 0
    assert capsys.readouterr().out == output


def test_the_page_has_every_reward_with_its_options() -> None:
    assert len(EXAMPLES) == 15
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| ([^|]*)\|$", PAGE.partition("### ")[0], re.MULTILINE))
    assert sorted(rows) == sorted(REWARDS)
    for name, shown in rows.items():
        assert set(re.findall(r"`(\w+)`", shown)) == set(options_of(REWARDS[name])), name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["numeric", "--answer", "3", "--option", "relative=-1"], "relative of the reward 'numeric' is -1"),
        (
            ["numeric", "--answer", "3", "--option", "absolute=-0.5"],
            "absolute of the reward 'numeric' is -0.5",
        ),
        (["iou", "--answer", "[10,10,0,0]"], "x1 < x2 and y1 < y2 as the true answer"),
        (["iou_50", "--answer", "[0,0,0,9]"], "x1 < x2 and y1 < y2 as the true answer"),
        (["od_f1", "--answer", '[{"bbox_2d": [9, 0, 1, 5], "label": "a"}]'], "x1 < x2 and y1 < y2"),
        (
            ["od_map", "--compat", "vlm_r1", "--answer", '[{"bbox_2d": [0, 0, 0, 5], "label": "a"}]'],
            "y1 < y2",
        ),
        (
            ["numeric", "--answer", "3", "--option", "iou.compat=vlm_r1"],
            "--option iou would do nothing: iou is",
        ),
        (["numeric", "--answer", "3", "--compat", "vlm_r1"], "--compat vlm_r1 would do nothing: numeric has"),
    ],
)
def test_settings_and_truths_that_cannot_be_meant_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert cli.main(["score", *words, "--completion", "4"]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_options_of_a_reward_that_nobody_computes_are_refused() -> None:
    options = {"cosine": {"max_tokens": 64}}
    with pytest.raises(UserError, match=r"reward_options\.cosine would do nothing: cosine is not among"):
        make_scorer({"iou": 1.0}, options=options)
    make_scorer({"iou": 1.0}, audits=["cosine"], options=options).close()
    make_scorer({"accuracy": 1.0}, options={"numeric": {"absolute": 1.0}}).close()  # it hands them on
    with pytest.raises(UserError, match="cosine is not among"):
        make_scorer({"accuracy": 1.0}, options=options)


def test_tolerances_are_checked_before_the_first_step() -> None:
    problem = Problem(id="q", task="q", images=(), question="?", answer=3, kind="number")
    says = "relative of the reward 'numeric' is"
    options = {"numeric": {"relative": -1.0}}
    with make_scorer({"numeric": 1.0}, options=options) as scorer, pytest.raises(UserError, match=says):
        scorer.check([problem])
