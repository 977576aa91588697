"""The verifier of orders and sets: what each answer earns, derived by hand, and that nothing is earned by farming.

`python tests/test_sequence_rewards.py` prints the measured table.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.rewards import REWARDS, correct, score_json, weigh
from fovea.rewards.sequences import (
    LARGEST,
    is_names,
    is_order,
    order,
    read_order,
    read_set,
    set_exact,
    set_f1,
    write_list,
)
from fovea.tasks.questions import Asked
from fovea.tasks.styles import STYLES, styled
from fovea.types import AnswerKind, Problem, UserError

TILES = (4, 9, 25)
"""2x2, 3x3 and 5x5."""
SSL4RL: dict[str, Any] = {"partial": True, "gate": False}
"""The released scorer (reward_score/jigsaw.py): the share of the list's places that hold the true number."""
HARDENED: dict[str, Any] = {"partial": True, "chance": True}
JIGSAW: dict[str, Any] = {"partial": True, "gamma": 0.2}
"""Visual Jigsaw."""


def problem(answer: Any, kind: AnswerKind = "order", **meta: Any) -> Problem:
    return Problem(id="t:0", task="t", images=(), question="?", answer=answer, kind=kind, meta=meta)


def asked(tiles: int) -> Problem:
    """A true order without a fixed point: 2, 3, …, n, 1."""
    return problem([*range(2, tiles + 1), 1])


def say(numbers: Any) -> str:
    return f"<answer>{', '.join(map(str, numbers))}</answer>"


# --- reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["3, 1, 2, 4", "3,1,2,4", "3 1 2 4", "[3,1,2,4]", "3,1,2,4.", "(3; 1; 2; 4)", "[3, 1, 2, 4].", " 3\n1\n2\n4 ",
     "```json\n[3, 1, 2, 4]\n```", '{"answer": [3, 1, 2, 4]}', '{"answer": "3, 1, 2, 4"}', "\\boxed{3, 1, 2, 4}",
     "03, 1, 2, 4"],
)  # fmt: skip
def test_an_order_is_read(text: str) -> None:
    for reply in (text, f"<answer>{text}</answer>", f"<think>1, 2, 3, 4?</think><answer>{text}</answer>"):
        assert order(reply, problem([3, 1, 2, 4])) == 1, reply


@pytest.mark.parametrize(
    "text",
    ["", "3, 1, 2, 4,", ", 3, 1", "3,,1,2,4", "3-1-2-4", "3 > 1 > 2 > 4", "3.1.2.4", "-3, 1, 2, 4", "+3, 1, 2, 4",
     "3.0, 1, 2, 4", "3, 1, 2, four", "the order is 3, 1, 2, 4", "3, 1, 2, 4 or 1, 2, 3, 4", "3124", "[3, 1, 2, 4",
     "[[3, 1, 2, 4]]", "[3, 1, 2, 4)", "3, 1, 2, 4..", "[]", "[true, 1, 2]", "[3.0, 1, 2]", "[1000, 1]", "[-1, 2]",
     "1e0, 2", "\u0663, \u0661", "\uff13, 1", "3, 1, 2, 4%", '["3", "1"]', '{"order": [3, 1]}', "1, " * 4000],
)  # fmt: skip
def test_anything_else_is_no_order(text: str) -> None:
    assert read_order(text) is None
    for options in ({}, SSL4RL, HARDENED, JIGSAW):
        assert order(f"<answer>{text}</answer>", problem([3, 1, 2, 4]), **options) == 0


# --- the verifier table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", TILES)
def test_only_a_permutation_earns_anything(tiles: int) -> None:
    of, true = asked(tiles), list(asked(tiles).answer)
    invalid = {
        "farming": [true[0]] * tiles,
        "a duplicate": [true[0], *true[:-1]],
        "one place right, then a duplicate": [true[0], true[0], *true[2:]],
        "out of range": [*true[:-1], tiles + 1],
        "from 0": [n - 1 for n in true],
        "too few": true[:-1],
        "one": true[:1],
        "too many": [*true, 1],
        "twice": true + true,
        "negative": [-true[0], *true[1:]],
    }
    for name, numbers in invalid.items():
        for options in ({}, {"partial": True}, JIGSAW, HARDENED, {"chance": True}):
            assert order(say(numbers), of, **options) == 0, (name, options)
        assert not correct(say(numbers), of), name
    for options in ({}, {"partial": True}, JIGSAW, HARDENED, SSL4RL, {"chance": True}):
        assert order(say(true), of, **options) == 1
    assert correct(say(true), of)


@pytest.mark.parametrize("tiles", TILES)
def test_partial_credit_by_hand(tiles: int) -> None:
    """Two numbers swapped: n - 2 of n places are right.

    partial (n - 2) / n; gamma 0.2 of that; less chance ((n - 2) / n - 1 / n) / (1 - 1 / n) = (n - 3) / (n - 1).
    """
    of, true = asked(tiles), list(asked(tiles).answer)
    swapped = say([true[1], true[0], *true[2:]])
    assert order(swapped, of) == 0
    assert order(swapped, of, gamma=0.2) == 0  # no partial credit was asked for
    assert order(swapped, of, partial=True) == pytest.approx((tiles - 2) / tiles)
    assert order(swapped, of, **JIGSAW) == pytest.approx(0.2 * (tiles - 2) / tiles)
    assert order(swapped, of, **HARDENED) == pytest.approx((tiles - 3) / (tiles - 1))
    assert not correct(swapped, of)
    # No place right (all moved by one): nothing.
    assert order(say([*true[1:], true[0]]), of, partial=True) == 0


def every_order(tiles: int) -> np.ndarray:
    """int [n!, n]: all permutations of 1 to n; beyond n = 4, 4,000 drawn ones."""
    if math.factorial(tiles) <= 24:
        return np.array(list(itertools.permutations(range(1, tiles + 1))))
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(tiles) + 1 for _ in range(4000)])


def mean(tiles: int, **options: Any) -> float:
    """Mean reward of replies that are random permutations."""
    return float(np.mean([order(say(said), asked(tiles), **options) for said in every_order(tiles).tolist()]))


@pytest.mark.parametrize(("tiles", "expected"), [(4, 0.25), (9, 1 / 9), (25, 1 / 25)])
def test_a_random_permutation_earns_one_place(tiles: int, expected: float) -> None:
    """A place holds the true number in 1 of n permutations, so n / n = 1 place is right on average: 1 / n in all,
    0.25, 1/9, 1/25. The number right has variance 1 (n ≥ 2), so the standard error of 4,000
    draws is 0.0158 / n.

    gamma 0.2 for n = 4: 0.2 / 4 + 0.8 / 24 = 0.08333: one of the 24 is all right and earns 1 instead of 0.2.
    """
    off = 0 if tiles == 4 else 4 * 0.0158 / tiles
    assert mean(tiles, partial=True) == pytest.approx(expected, abs=off + 1e-12)
    assert mean(tiles, **SSL4RL) == mean(tiles, partial=True)
    gamma = 0.2 / tiles + 0.8 / math.factorial(tiles)
    assert mean(tiles, **JIGSAW) == pytest.approx(gamma, abs=off + 1e-12)
    assert mean(tiles) == pytest.approx(1 / math.factorial(tiles), abs=1e-4)


def test_chance_takes_off_what_a_random_permutation_earns() -> None:
    """Of the 24 permutations of four 9, 8, 6 and 1 have 0, 1, 2 and 4 places right (rencontres numbers).

    With `chance` they earn 0, 0, (2/4 - 1/4) / (3/4) = 1/3 and 1: a mean of (6/3 + 1) / 24 = 1/8, where without
    the cut at 0 it would be 0: (9 · -1/3 + 0 + 6/3 + 1) / 24 = 0.
    """
    of = asked(4)
    earned = sorted(order(say(said), of, **HARDENED) for said in every_order(4).tolist())
    assert earned == pytest.approx([0] * 17 + [1 / 3] * 6 + [1])
    assert mean(4, **HARDENED) == pytest.approx(1 / 8)
    raw = [order(say(said), of, partial=True) for said in every_order(4).tolist()]
    assert np.mean([(r - 0.25) / 0.75 for r in raw]) == pytest.approx(0)


def test_chance_knows_gamma_and_what_is_exact() -> None:
    """c = g / n + (1 - g) / n!: for gamma 0.2 and n = 4 1/12, so two places right, 0.1, earn (0.1 - 1/12) / (11/12) =
    1/55; without partial credit c = 1/24 and only the true order earns, 1."""
    two = say([2, 3, 1, 4])
    assert order(two, asked(4), chance=True, **JIGSAW) == pytest.approx(1 / 55)
    assert order(say([2, 4, 1, 3]), asked(4), chance=True, **JIGSAW) == 0  # one place right
    assert order(two, asked(4), chance=True) == 0
    assert order(say([7]), problem([7]), **HARDENED) == 1  # n = 1: there is nothing to guess
    long = problem(list(range(LARGEST + 1)))
    assert order(say(long.answer), long, **HARDENED) == 1
    assert order(say([1, 0, *range(2, LARGEST + 1)]), long, **HARDENED) == pytest.approx(997 / 999)


def blind_mean(said: tuple[int, ...], **options: Any) -> float:
    """What one reply earns on average over all true orders of its length."""
    places = range(1, len(said) + 1)
    return float(
        np.mean([order(say(said), problem(list(true)), **options) for true in itertools.permutations(places)])
    )


def test_no_blind_reply_beats_a_permutation() -> None:
    """All 4^4 lists of four numbers, valid or not, over all 24 truths.

    With the gate only permutations earn. Without it every list earns 1/4 or less before chance is taken off (a place
    is right in 1 of 4 truths), and afterwards `1, 1, 1, 1` exactly nothing: one place is right, never more. Lists
    that hedge (1, 1, 2, 2) earn less than permutations: none is ever wholly right.
    """
    best = blind_mean((1, 2, 3, 4), **HARDENED)
    assert best == pytest.approx(1 / 8)
    for said in itertools.product(range(1, 5), repeat=4):
        valid = len(set(said)) == 4
        assert blind_mean(said, **HARDENED) == (pytest.approx(best) if valid else 0)
        assert blind_mean(said, **SSL4RL) == pytest.approx(0.25)
        ungated = blind_mean(said, **SSL4RL, chance=True)
        assert ungated == pytest.approx(best) if valid else ungated < best
    assert blind_mean((1, 1, 1, 1), **SSL4RL, chance=True) == 0


@pytest.mark.parametrize("tiles", TILES)
def test_farming_is_what_the_released_scorer_pays_for(tiles: int) -> None:
    """`k, k, …, k` has one place right whatever the truth: 1 / n for certain, as much as a random permutation."""
    of = asked(tiles)
    for number in range(1, tiles + 1):
        assert order(say([number] * tiles), of, **SSL4RL) == 1 / tiles
        assert order(say([number] * tiles), of, **SSL4RL, chance=True) == 0
        assert order(say([number] * tiles), of, partial=True) == 0


def test_the_released_scorer() -> None:
    """Share of the places of the list that hold the true number; what follows is ignored, what lacks is wrong."""
    of = problem([3, 1, 2, 4])
    for said, value in (
        ([3, 1, 2, 4], 1),
        ([3, 1, 2, 4, 9, 9], 1),
        ([3, 1, 2], 3 / 4),
        ([3], 1 / 4),
        ([3, 3, 3, 3], 1 / 4),
        ([3, 1, 4, 2], 2 / 4),
        ([3, 1, 7, 4], 3 / 4),
        ([1, 3, 4, 2], 0),
    ):
        assert order(say(said), of, **SSL4RL) == value, said
    assert order(say([3, 1, 2, 4, 9]), of, gate=False) == 1
    assert order(say([3, 1, 2]), of, gate=False) == 0


@pytest.mark.parametrize(
    "answer", [[], [1, 1, 2], [1, -2], [1, 1000], [1.0, 2.0], [True, 2], "1, 2", 3, None, {}]
)
def test_truths_that_are_no_order_are_refused(answer: Any) -> None:
    assert not is_order(answer)
    with pytest.raises(UserError, match="needs a list of different whole numbers from 0 to 999"):
        order("1, 2", problem(answer))


def test_a_gamma_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UserError, match="gamma of the reward 'order' is 2"):
        order("1", problem([1]), gamma=2)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*"0123456789,; \n[]().-", "10", ", "]), max_size=12).map("".join))
def test_whatever_is_said_earns_0_to_1_and_a_gate_only_takes(text: str) -> None:
    of = problem([2, 3, 1])
    for options in ({}, {"partial": True}, JIGSAW, HARDENED):
        gated, free = (order(text, of, gate=gate, **options) for gate in (True, False))
        assert gated in (0, free)
        assert 0 <= free <= 1
    assert order(text, of) == float(read_order(text.strip()) == [2, 3, 1])


# --- sets -------------------------------------------------------------------------------------------------

SET = problem(["os", "sys", "re"], "set")
AMONG = problem(["os", "sys"], "set", candidates=[*"abcdef", "os", "sys"])
"""2 of 8 candidates."""


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("os, sys, re", 1),
        ("re; OS\nsys.", 1),
        ('["os", "sys", "re"]', 1),
        ("['os', 'sys', 're']", 1),
        ("```json\n[\"re\", \"os\", \"sys\"]\n```", 1),
        ('{"answer": ["os", "sys", "re"]}', 1),
        ("os, os, sys, re, re", 1),  # a set says a name once
        ("os", 2 * 1 / (1 + 3)),
        ("os, sys", 2 * 2 / (2 + 3)),
        ("os, sys, re, json", 2 * 3 / (4 + 3)),
        ("os, json", 2 * 1 / (2 + 3)),
        ("json", 0),
        ("os sys re", 0),  # one name
        ("the names are os, sys", 2 * 1 / (2 + 3)),
        ("[]", 0),
        ("", 0),
        (", ,", 0),
        ("none", 0),
        ('[["os"], ["sys"]]', 0),
        ('["os", true]', 0),
        ('["os", 1.5]', 0),
        ('{"os": 1, "sys": 2}', 0),
        (", ".join(["os", "sys", "re"] + [str(i) for i in range(LARGEST)]), 0),
    ],
)  # fmt: skip
def test_f1_by_hand(said: str, value: float) -> None:
    reply = f"<answer>{said}</answer>"
    assert set_f1(reply, SET) == pytest.approx(value)
    assert set_f1(reply, SET, exact=True) == set_exact(reply, SET) == float(value == 1)
    assert correct(reply, SET) == (value == 1)


def test_listing_everything_earns_nothing() -> None:
    """2 of 8 candidates: listing all has F1 2 · 2 / (8 + 2) = 0.4, all but a wrong one 2 · 2 / (7 + 2) = 4/9.

    The gate takes the first, `chance` the second but for (4/9 - 0.4) / 0.6 = 2/27.
    """
    names = AMONG.meta["candidates"]
    everything = f"<answer>{', '.join(names)}</answer>"
    assert set_f1(everything, problem(["os", "sys"], "set")) == pytest.approx(0.4)  # no candidates are known
    nearly = f"<answer>{', '.join(names[1:])}</answer>"
    for options in ({}, {"chance": True}, {"exact": True}):
        assert set_f1(everything, AMONG, **options) == 0
        assert set_f1(f"{everything[:-9]}, more, and more</answer>", AMONG, **options) == 0
        assert set_f1("<answer>os, sys</answer>", AMONG, **options) == 1
    assert set_f1("<answer>os, sys, 1, 2, 3, 4, 5, 6</answer>", AMONG) == 0  # as many as there are
    assert set_f1(nearly, AMONG) == pytest.approx(4 / 9)
    assert set_f1(nearly, AMONG, chance=True) == pytest.approx(2 / 27)
    half = "<answer>os, a</answer>"  # F1 2 / 4, so (0.5 - 0.4) / 0.6 = 1/6
    assert set_f1(half, AMONG, chance=True) == pytest.approx(1 / 6)
    # Where everything is true, everything is right.
    full = problem(["os", "sys"], "set", candidates=["sys", "os"])
    for options in ({}, {"chance": True}):
        assert set_f1("<answer>os, sys</answer>", full, **options) == 1
    assert set_f1("<answer>os</answer>", full) == pytest.approx(2 / 3)
    assert set_f1("<answer>os</answer>", full, chance=True) == 0


def test_listing_everything_is_the_best_blind_f1() -> None:
    """Over all 28 true pairs of 8 candidates the mean F1 of a reply of j names is 2 · (2 j / 8) / (j + 2), which grows
    with j to 0.4; so what `chance` takes off is the most that a blind reply earns."""
    names = [f"n{i}" for i in range(8)]
    pairs = [problem(list(pair), "set") for pair in itertools.combinations(names, 2)]
    means = []
    for j in range(1, 9):
        reply = f"<answer>{', '.join(names[:j])}</answer>"
        means.append(np.mean([set_f1(reply, of) for of in pairs]))
        assert means[-1] == pytest.approx(2 * (2 * j / 8) / (j + 2))
    assert means == sorted(means)
    assert means[-1] == pytest.approx(0.4)


@pytest.mark.parametrize(
    "answer", [[], ["os", " "], ["os", None], [True], "os", {"os"}, 3, ["."], ["a"] * 1000]
)
def test_truths_that_are_no_set_are_refused(answer: Any) -> None:
    assert not is_names(answer)
    with pytest.raises(UserError, match="needs a list of names"):
        set_f1("os", problem(answer, "set"))


def test_candidates_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(UserError, match=r'needs names out of meta\["candidates"\]'):
        set_f1("os", problem(["os"], "set", candidates=["sys", "re"]))
    with pytest.raises(UserError, match="needs the candidates of problem t:0"):
        set_f1("os", SET, chance=True)


# --- writing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [["os", "sys"], [3, 1, 2], ["a, b", "c"], ["[x]"], ['say "hi"', "b;c"], ["\u00e9", "x\ny"], ["7"], ["[1", "2]"]],
)  # fmt: skip
def test_what_is_written_is_read_back(names: list[str | int]) -> None:
    of = problem(names, "set")
    assert set_f1(f"<answer>{write_list(names)}</answer>", of) == 1
    for style in STYLES:
        written = Asked(images=(), question="?", answer=names, said=write_list(names))
        assert set_f1(styled(written, "set", style)[1], of) == 1, style


def test_an_order_is_right_in_every_style() -> None:
    written = Asked(images=(), question="?", answer=[3, 1, 2], said=write_list([3, 1, 2]))
    assert written.said == "3, 1, 2"
    for style in STYLES:
        assert order(styled(written, "order", style)[1], problem([3, 1, 2])) == 1, style
    assert write_list(["os", "sys"]) == "os, sys"
    assert json.loads(write_list(["a, b", "c"])) == ["a, b", "c"]
    assert read_set(write_list(["a, b", "c"])) == frozenset({"a, b", "c"})


def test_options_arrive_from_outside() -> None:
    of = problem([3, 1, 2, 4])
    (earned,), _ = weigh(["3, 3, 3, 3"], of, {"order": 1.0}, options={"order": SSL4RL})
    assert earned == 0.25
    assert REWARDS["order"] is order
    assert (
        score_json("order", "[3, 1, 2, 4]", "3, 1, 4, 2", "order", options=["partial=true"])["reward"] == 0.5
    )
    assert score_json("accuracy", "[3, 1, 2]", "3, 1, 2")["reward"] == 1  # the kind is inferred
    assert score_json("accuracy", '["os", "sys"]', "sys, os")["reward"] == 1
    given = score_json(
        "set_f1", '["os"]', "a", "set", options=["chance=true"], meta_json='{"candidates": ["os", "a"]}'
    )
    assert given["reward"] == 0


# --- the table in numbers ---------------------------------------------------------------------------------


def table() -> str:
    """Markdown: mean reward of replies over 2,016 true orders (2x2: all 24, 84 times each), by the reward's options."""
    columns: dict[str, dict[str, Any]] = {
        "exact (default)": {}, "SSL4RL": SSL4RL, "partial, gate": {"partial": True}, "Visual Jigsaw": JIGSAW,
        "hardened (gate, chance)": HARDENED, "chance without gate": SSL4RL | {"chance": True},
    }  # fmt: skip
    lines = [f"| tiles | reply | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for tiles in TILES:
        truths = (every_order(tiles).tolist() * (84 if tiles == 4 else 1))[:2016]
        guesses = np.random.default_rng(1).permuted(np.array(truths), axis=1).tolist()
        replies: dict[str, Any] = {
            "the truth": lambda t, i: t,
            "two numbers swapped": lambda t, i: [t[1], t[0], *t[2:]],
            "a random permutation": lambda t, i, g=guesses: g[i],
            "1, 2, 3, …, always": lambda t, i: range(1, len(t) + 1),
            "1, 1, 1, …": lambda t, i: [1] * len(t),
            "half 1, half 2": lambda t, i: [1 + (k >= len(t) // 2) for k in range(len(t))],
            "all right but a number twice": lambda t, i: [*t[:-1], t[0]],
            "all right but one out of range": lambda t, i: [*t[:-1], len(t) + 1],
            "one too few": lambda t, i: t[:-1],
            "one too many": lambda t, i: [*t, 1],
            "counted from 0": lambda t, i: [n - 1 for n in t],
            "a sign before it": lambda t, i: [f"-{t[0]}", *t[1:]],
            "words around it": lambda t, i: ["the order is", *t],
        }
        for name, reply in replies.items():
            earned = [
                np.mean([order(say(reply(t, i)), problem(t), **options) for i, t in enumerate(truths)])
                for options in columns.values()
            ]
            lines.append(f"| {tiles} | {name} | {' | '.join(f'{value:.3f}' for value in earned)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
