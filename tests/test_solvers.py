"""The solvers find what was planted, and nothing where nothing is; their parts against values derived by hand."""

from __future__ import annotations

import builtins
import itertools

import numpy as np
import pytest
from PIL import Image

from fovea.recipes.ssl4rl._leaks import LEAKS, Planted
from fovea.rewards import correct
from fovea.tasks import solver_features, solver_orders, solver_views, solvers
from fovea.tasks.pool import BuiltIn
from fovea.types import Problem, UserError

SIDE = 48


def pools(split):
    return BuiltIn(split=split, side=SIDE)


# --- what is planted is found -----------------------------------------------------------------------------


SLOW = "edges that meet, jigsaw"  # many ways to read an order of four


@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(leak, marks=[pytest.mark.long] if leak == SLOW else [])
        for leak in LEAKS
        if leak != "size"
    ],
)
def test_a_planted_leak_is_found_by_its_solver(leak):
    which, opened = LEAKS[leak]
    score = solvers.fit_and_score(lambda split: opened(pools, split), which, 80, 50)
    assert score.accuracy >= score.chance + 0.2, score
    assert score.ci95[0] > score.chance


def test_the_leak_of_sizes_is_found_by_the_blind_solver_and_not_seen_in_colours():
    # The blind solver alone knows sizes; what the low-level one sees of a turned photograph by itself is little.
    opened = LEAKS["size"][1]
    tables = [solver_features.gather(opened(pools, split), 80) for split in ("train", "test")]
    assert solvers.score_tables(*tables, "blind", opened(pools, "test")).accuracy > 0.7
    assert solvers.score_tables(*tables, "low_level", opened(pools, "test")).accuracy < 0.6


def test_where_nothing_is_to_be_found_nothing_is_found():
    def noise(images, rng):
        pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        return (Image.fromarray(pixels),), "Which?", "ABCD"[int(rng.integers(4))]

    def opened(split):
        return Planted(name="noise", kind="choice", chance=0.25, split=split, pool=pools(split), make=noise)

    tables = [solver_features.gather(opened(split), 120) for split in ("train", "test")]
    for which in ("blind", "low_level"):
        score = solvers.score_tables(*tables, which, opened("test"))
        # 4 standard errors of sqrt(0.25 * 0.75 / 120) = 0.040
        assert abs(score.accuracy - 0.25) < 0.16, score


# --- kinds of answers -------------------------------------------------------------------------------------


def answered_by_size(kind, answers):
    """A task whose answer is told by the picture's width."""

    def make(images, rng):
        k = int(rng.integers(len(answers)))
        return (Image.new("RGB", (32 + 8 * k, 32), (90, 90, 90)),), "What?", answers[k]

    return lambda split: Planted(
        name="sized", kind=kind, chance=1 / len(answers), split=split, pool=pools(split), make=make
    )


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("number", [0, 90, 180.5]),
        ("text", ["top left", "none"]),
        ("choice", ["A", "C"]),
        ("order", [[2, 1, 3], [3, 1, 2], [1, 2, 3]]),
        ("set", [["os", "sys"], ["re", "os"]]),
        ("box", [[0, 0, 12, 12], [16, 16, 30, 30]]),
    ],
)
def test_every_kind_of_answer_is_predicted_and_judged_by_the_reward(kind, answers):
    score = solvers.fit_and_score(answered_by_size(kind, answers), "blind", 60, 30)
    assert score.accuracy > 0.9, score
    assert score.partial > 0.5  # a box that is right earns its IoU


def test_a_kind_without_a_solver_is_answered_by_the_most_frequent_answer():
    # Four of five answers are "x": a constant is right for 80 % in expectation, here counted.
    opened = answered_by_size("math", ["x", "x", "x", "x", "y"])
    test = solver_features.gather(opened("test"), 40)
    score = solvers.score_tables(solver_features.gather(opened("train"), 40), test, "blind", opened("test"))
    assert score.method == "constant"
    assert score.accuracy == sum(p.answer == "x" for p in test.problems) / 40


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("box", (1.5, 2.0, 9.0, 12.0)),
        ("order", [3, 1, 2]),
        ("set", ["os", "sys"]),
        ("choice", "B"),
        ("number", 2.5),
        ("text", "row 1, column 2"),
        ("objects", [{"bbox_2d": [1, 2, 9, 12], "label": "swapped"}]),
    ],
)
def test_a_prediction_becomes_a_reply_that_the_reward_reads(kind, answer):
    picture = Image.new("RGB", (20, 20))
    problem = Problem(id="1", task="t", images=(picture,), question="?", answer=answer, kind=kind)
    assert correct(solvers.reply_of(answer), problem)


# --- features ---------------------------------------------------------------------------------------------


def test_a_crop_is_found_pixel_by_pixel():
    whole = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.float32)
    part = whole[7:23, 31:55]
    # x 31 to 55 of 60, y 7 to 23 of 40
    assert solver_views.match(whole, part) == pytest.approx(
        (1.0, 31 / 60, 7 / 40, 55 / 60, 23 / 40), abs=1e-4
    )
    assert solver_views.match(part, whole) == (0.0, 0.0, 0.0, 0.0, 0.0)


def test_edges_go_on_where_a_picture_was_cut():
    # Levels rise by 1 a column and by 10 a row: the right half begins 1 above the left one's end.
    pixels = np.add.outer(10.0 * np.arange(8), np.arange(8))[..., None].repeat(3, 2).astype(np.float32)
    left, right = pixels[:, :4], pixels[:, 4:]
    edges = solver_views._edges([left, right])
    assert edges[0, 1, :3] == pytest.approx((1.0, 0.0, 0.0), abs=1e-3)  # plain, by slope, 1 - correlation
    assert edges[1, 0, 0] == pytest.approx(7.0)  # column 0 against column 7


def test_only_identical_pixels_survive_without_the_coarse_numbers():
    pairs = np.ones((1, 3, solver_views.PAIR), np.float32)
    pairs[0, :, 14] = (-1.0, 2.0, 30.0)  # of different sizes, the same pixels, other pixels
    pairs[0, :, 15] = (0.5, 0.99, 0.0)
    found = solver_views.without_coarse_pairs(pairs)[0]
    assert found[:, 14].tolist() == [0.0, 1.0, 0.0]
    assert found[0, 15:20].tolist() == [0.0] * 5
    assert found[1, 15:20].tolist() == pairs[0, 1, 15:20].tolist()
    assert (found[:, 10:13] == 0).all()
    assert (found[:, :10] == 1).all()


def test_the_blind_solver_sees_no_pixels():
    def make(level):
        def one(images, rng):
            shade = int(rng.integers(256)) if level is None else level
            return (Image.new("RGB", (32, 32), (shade,) * 3),), "What?", 1

        return Planted(name="flat", kind="number", chance=1.0, split="train", pool=pools("train"), make=one)

    dark, light = (solver_features.gather(make(level), 3) for level in (10, 240))
    assert dark.blind.views[..., :5].tolist() == light.blind.views[..., :5].tolist()
    assert dark.low_level.flat.tolist() != light.low_level.flat.tolist()


def test_a_table_is_the_same_after_a_file(tmp_path):
    table = solver_features.gather(LEAKS["edges that meet, strips"][1](pools, "train"), 6)
    solver_features.save(tmp_path / "t.npz", table)
    again = solver_features.load(tmp_path / "t.npz")
    assert [p.answer for p in again.problems] == [p.answer for p in table.problems]
    for name in ("flat", "views", "pairs", "count", "maps"):
        np.testing.assert_array_equal(getattr(again.low_level, name), getattr(table.low_level, name))


# --- orders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3, 6])
def test_the_beam_finds_what_all_orders_find(columns):
    rng, n = np.random.default_rng(3), 6
    for _ in range(10):
        one = rng.normal(size=(n, n))
        steps = [(0, 1)] * (columns > 1) + [(1, 0)] * (columns < n)
        two = {step: rng.normal(size=(n, n)) for step in steps}

        def worth(place, one=one, two=two):
            piece = np.argsort(place)
            total = one[piece, np.arange(n)].sum()
            for step, odds in two.items():
                for a, b in itertools.permutations(range(n), 2):
                    if (b // columns - a // columns, b % columns - a % columns) == step:
                        total += odds[piece[a], piece[b]]
            return total

        best = max(worth(np.array(order)) for order in itertools.permutations(range(n)))
        assert worth(solver_orders._decode_all(one, two, columns)) == pytest.approx(best)
        assert worth(solver_orders._decode_beam(one, two, columns)) > best - 2.0


def test_an_order_is_read_both_ways():
    # 3, 1, 2: the third piece comes first; so the first piece has place 1, the second 2, the third 0.
    problem = Problem(id="1", task="t", images=(), question="?", answer=[3, 1, 2], kind="order")
    read = solver_orders.reading_of([problem], inverse=False)
    assert read.places([problem]).tolist() == [[1, 2, 0]]
    assert read.answer(np.array([1, 2, 0])) == [3, 1, 2]
    inverse = solver_orders.reading_of([problem], inverse=True)
    assert inverse.answer(inverse.places([problem])[0]) == [3, 1, 2]


# --- the package ------------------------------------------------------------------------------------------


def test_without_scikit_learn_the_error_names_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'fovea-rl\[solvers\]'"):
        solvers.fit_and_score(answered_by_size("number", [1, 2]), "blind", 10, 10)
