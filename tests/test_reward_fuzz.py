"""Model-like garbage against every parser and every reward: no exception, nothing for nothing, no slow reply.

Parametrised over the tables, so that a new reward is covered the moment it is listed.
`FOVEA_FUZZ=20000 pytest tests/test_reward_fuzz.py` runs the fuzzing at length.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timing import best_time

from fovea.rewards import (
    REWARDS,
    answers,
    box_iou,
    functions,
    matching,
    mathematics,
    routing,
    sequences,
    wording,
)
from fovea.rewards.options import parameters_of
from fovea.types import AnswerKind, Problem, UserError

FUZZ = int(os.environ.get("FOVEA_FUZZ", "40"))
FUZZING = settings(
    max_examples=FUZZ,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
SLOW = {"math", "accuracy", "equal", "cosine"}
"""These may ask SymPy: a quarter of the examples."""


def fuzz(name: str, test: Callable[[str], None]) -> None:
    """Run a test on garbage."""
    examples = max(FUZZ // 4, 10) if name in SLOW else FUZZ
    settings(FUZZING, max_examples=examples)(given(GARBAGE)(test))()


SLOWEST = 0.010
"""Seconds of CPU time that a completion of 100 KB may take, on the machine of `timing.COUNTING`."""

# --- garbage ----------------------------------------------------------------------------------------------

TAGS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<answer",
    "answer>",
    "<Answer>",
    "</think",
    "<|im_end|>",
)
FENCES = ("```json", "```", "```json\n", "\n```", "`", "~~~")
JSON = (
    '"bbox_2d"',
    '"bbox_2d": [',
    '"label"',
    '"label": "dog"',
    '{"bbox_2d": [1, 2, 3, 4], "label": "dog"}',
    "null",
    "[]",
)
JSON += (
    '{"answer": ',
    '"action"',
    "{}",
    "[[1, 2, 3, 4], [5, 6, 7",
    "[1, 2, 3, 4]",
    "[1,2,3,4]",
    "[1, 2, 3",
    ", 4]",
    "true",
)
SIGNS = (
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    ",",
    ":",
    ";",
    ".",
    "-",
    "+",
    "/",
    "%",
    "$",
    "^",
    "_",
    "!",
    "|",
    '"',
    "'",
    "\\",
    "=",
)
SPACES = (
    " ",
    "\n",
    "\t",
    "\r\n",
    "\x00",
    "\x0b",
    "\x1f",
    "\u00a0",
    "\u2028",
    "\u200b",
    "\ufeff",
    "\ud800",
    "\u202e",
)
NUMBERS = (
    "0",
    "1",
    "12",
    "-3.5",
    "1e9",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "9" * 50,
    "9" * 5000,
    "1,234",
    "1,2345",
)
NUMBERS += ("0x1f", "1_000", "\u0663", "\uff17", "\u2212", "\u00bd", "1e-400", "00", "1.2.3", ".", "45 %")
WORDS = (
    "B",
    "(B)",
    "A.",
    "no",
    "know",
    "dog",
    "None",
    "none",
    "the",
    "answer",
    "B. bear",
    "Yes"[:2],
    "\u0130",
    "\u00df",
    "\ufdfa",
)
MATHS = (
    "\\boxed{",
    "\\frac",
    "\\frac{1}{2}",
    "\\sqrt{",
    "\\left(",
    "\\right)",
    "x^2",
    "^{",
    "\\begin{pmatrix}",
    "&",
    "\\\\",
    "\\int",
)
MATHS += ("\\text{", "9^9", "\\infty", "\\{", "\\}", "!!", "\\binom", "\\pi", "$$", "\\(", "\\)", "**")
MARKS = ("e\u0301", "\u0301" * 40, "\u0323\u0307" * 20, "\U0001f600", "\u0915\u094d")
PIECE = st.sampled_from(TAGS + FENCES + JSON + SIGNS + SPACES + NUMBERS + WORDS + MATHS + MARKS)
SOUP = st.lists(PIECE, max_size=30).map("".join)
REPEATED = st.tuples(PIECE, st.integers(2, 300), PIECE).map(lambda parts: parts[0] * parts[1] + parts[2])
BOXES = st.lists(
    st.floats() | st.integers() | st.none() | st.booleans() | st.text(max_size=3), min_size=3, max_size=5
)
THINGS = st.fixed_dictionaries(
    {"bbox_2d": BOXES}, optional={"label": st.text(max_size=5) | st.none() | st.integers()}
)
VALUES = st.recursive(
    st.none() | st.floats() | THINGS | BOXES, lambda inner: st.lists(inner, max_size=4), max_leaves=8
)
CONTENT = st.one_of(SOUP, REPEATED, st.text(), VALUES.map(json.dumps))
WRAPPED = st.tuples(CONTENT, CONTENT).map(
    lambda parts: f"<think>{parts[0]}</think><answer>{parts[1]}</answer>"
)
FENCED = VALUES.map(lambda value: f"<answer>```json\n{json.dumps(value)}\n```</answer>")
GARBAGE = st.one_of(CONTENT, WRAPPED, FENCED, CONTENT.map(lambda text: f"<answer>{text}</answer>"))

# --- truths that the garbage cannot say -------------------------------------------------------------------


def problem(answer: Any, kind: AnswerKind, **meta: Any) -> Problem:
    return Problem(id="f:0", task="f", images=(), question="?", answer=answer, kind=kind, meta=meta)


THING = {"bbox_2d": [7351, 7352, 7951, 7952], "label": "zebra"}
# The problem, and the text without which nothing can say its answer.
TRUTHS: tuple[tuple[Problem, str], ...] = (
    (problem((7351, 7352, 7951, 7952), "box"), ""),
    (problem([THING, THING | {"label": "zebra foal"}], "objects"), "zebra"),
    (problem("yes", "text", accu_reward_method="yes_no"), "yes"),
    (problem("zebra", "text"), "zebra"),
    (problem(7351, "number"), "7351"),
    (problem("Q", "choice"), "q"),
    (problem("7351", "math"), "7351"),
    (problem([735, 736, 737], "order"), "735"),
    (problem(["zebra", "okapi"], "set", candidates=["dog", "zebra", "okapi", "b"]), "zebra"),
)
NOT_SCORES = {
    "format",
    "format_strict",
    "format_json",
    "format_boxes",
    "cosine",
    "repetition",
}  # of the wording
NOT_SCORES |= {"od_ratio"}  # predicted / true boxes: a count for audits
ASKS_A_SERVER = {"judge"}
COMPAT: tuple[Literal["vlm_r1"] | None, ...] = (None, "vlm_r1")


def fitting(name: str) -> list[tuple[Problem, str]]:
    """The problems whose truth this reward takes; a reward that takes none of them needs one more here."""
    found = []
    for of, needed in TRUTHS:
        try:
            REWARDS[name]("", of)
        except UserError:
            continue
        found.append((of, needed))
    assert found, f"no problem of TRUTHS fits the reward {name!r}"
    return found


def says_it(text: str, of: Problem, needed: str) -> bool:
    """Whether a text may hold the true answer: its word, or for a box one that overlaps the true one."""
    if of.kind != "box":
        return needed in answers.normal_text(text) or needed in text.lower()
    box = answers.read_box(answers.answer_of(text))
    return box is not None and box_iou(box, of.answer) > 0


NAMES = [name for name in REWARDS if name not in ASKS_A_SERVER]


@pytest.mark.parametrize("name", NAMES)
def test_no_reward_raises_and_nothing_earns_nothing_by_fuzzing(name: str) -> None:
    function = REWARDS[name]
    problems = fitting(name)

    def check(text: str) -> None:
        for of, needed in problems:
            reward = function(text, of)
            assert math.isfinite(reward)
            if name not in NOT_SCORES and not says_it(text, of, needed):
                assert reward <= function("", of), of.kind
            if "compat" in parameters_of(function):
                # What it pays is the original's affair.
                assert math.isfinite(function(text, of, compat="vlm_r1"))

    fuzz(name, check)


PARSERS: dict[str, Callable[[str], Any]] = {
    **{
        name: getattr(answers, name)
        for name in (
            "has_format",
            "answer_of",
            "value_of",
            "read_box",
            "read_objects",
            "read_number",
            "read_choice",
        )
    },
    "normal_text": answers.normal_text,
    "json_value": answers.json_value,
    "clean_text": matching.clean_text,
    "first_block": matching.first_block,
    "last_block": matching.last_block,
    "guess_choice": matching.guess_choice,
    "equal": lambda text: mathematics.equal(text, "\\frac{7351}{2}"),
    "normal_latex": mathematics.normal_latex,
    "plain": mathematics.plain,
    "readable": mathematics.readable,
    "read_order": sequences.read_order,
    "read_set": sequences.read_set,
    "pieces_of": sequences.pieces_of,
    "similarity": lambda text: routing.similarity(text[: answers.ANSWER_LIMIT], "zebra crossing"),
}


@pytest.mark.parametrize("name", PARSERS)
def test_no_parser_raises_by_fuzzing(name: str) -> None:
    def check(text: str) -> None:
        PARSERS[name](text)

    fuzz(name, check)


def test_every_parser_of_a_reply_is_fuzzed() -> None:
    takes_values = {"thing_from", "boxes_from", "box_from", "finite", "is_empty"}
    public = {
        name
        for name, function in inspect.getmembers(answers, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == answers.__name__
    }
    assert public - takes_values <= set(PARSERS)


@FUZZING
@given(value=VALUES)
def test_parsed_json_is_never_too_strange_by_fuzzing(value: Any) -> None:
    for function in (answers.thing_from, answers.boxes_from, answers.box_from, answers.finite):
        function(value)


# --- 100 KB -----------------------------------------------------------------------------------------------

SIZE = 100_000
OPENINGS = (*TAGS[:4], "```json", "```", *JSON[:5], "\\boxed{", "\\frac{1}{", "\\text{", "^{", "[", "[1")
OPENINGS += ("[1,2,3,", "[ ", "{", "{[", '{"a":', "}", '"', "\\", "$", "(", "|")
RUNS = (
    "1",
    ",234",
    "1,234,",
    "1.",
    "1e",
    "-",
    "9 ",
    "a",
    "a ",
    "yes ",
    "know",
    "B. ",
    "A,B!",
    " ",
    "x\n",
    " \n",
)
STRANGE = ("e\u0301", "\u0301", "\u0323\u0307", "\ufdfa", "\u0130", "\u2028", "\u0663", "\x00")
PAIRS = ("<answer>x</answer>", "<think></think>", "</think> <answer>", "</think>  ", "```json```")
DISTINCT = " ".join(str(i) for i in range(20_000))
FAMILIES: dict[str, str] = {
    repr(piece)[:24]: piece * (SIZE // len(piece))
    for piece in dict.fromkeys((*OPENINGS, *RUNS, *STRANGE, *PAIRS))
}
FAMILIES |= {
    "distinct words": DISTINCT[:SIZE],
    "thousands, then one digit more": "1" + ",234" * (SIZE // 4) + "5",
    "true things": "[" + (json.dumps(THING) + ",") * (SIZE // 70) + json.dumps(THING) + "]",
    "false things": "["
    + ",".join(json.dumps(THING | {"bbox_2d": [i, 0, i + 9, 9]}) for i in range(1400))
    + "]",
    "bare boxes": json.dumps([[i, 0, i + 9, 9] for i in range(4000)]),
    "deep list": "[" * (SIZE // 2) + "]" * (SIZE // 2),
    "names": "zebra, " * (SIZE // 7),
    "different names": ",".join(str(i) for i in range(20_000))[:SIZE],
    "a list of numbers": json.dumps([1] * (SIZE // 3)),
    "one string": json.dumps("\\" * (SIZE // 2)),
    "long joint": "<think></think>" + " " * SIZE + "<answer>",
}


def inside(text: str) -> str:
    """The longest beginning that is still an answer, behind a thought that makes the reply 100 KB long."""
    answer = text[: answers.ANSWER_LIMIT]
    if text.startswith("[{") and text.endswith("]"):
        answer = answer[: answer.rfind("},") + 1] + "]"
    return f"<think>{text[: SIZE - len(answer)]}</think><answer>{answer}</answer>"


@pytest.mark.parametrize("name", NAMES)
def test_no_reply_of_100_kb_takes_a_reward_10_ms(name: str) -> None:
    function = REWARDS[name]
    asked = COMPAT if "compat" in parameters_of(function) else (None,)
    for compat in asked:
        options = {"compat": compat} if compat else {}
        for of, _ in fitting(name):
            function(
                "<answer>[1, 2, 3, 4] x+7352=y</answer>", of, **options
            )  # what is imported at the first call
            for family, text in FAMILIES.items():
                for reply in (text, inside(text)):
                    seconds = best_time(
                        lambda reply=reply, of=of, options=options: function(reply, of, **options),
                        SLOWEST,
                    )
                    assert seconds < SLOWEST, (of.kind, family, reply is text, compat, seconds)


@pytest.mark.parametrize("name", PARSERS)
def test_no_text_of_100_kb_takes_a_parser_10_ms(name: str) -> None:
    PARSERS[name]("x+7352=y")
    for family, text in FAMILIES.items():
        for piece in (text, text[: answers.ANSWER_LIMIT]):
            seconds = best_time(lambda piece=piece: PARSERS[name](piece), SLOWEST)
            assert seconds < SLOWEST, (family, len(piece), seconds)


def test_the_tables_name_what_exists() -> None:
    assert set(REWARDS) >= NOT_SCORES | ASKS_A_SERVER
    assert functions.REWARDS is REWARDS
    assert wording.COUNTED_TOKENS > wording.COUNTED_WORDS
