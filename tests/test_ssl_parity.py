"""SSL4RL's tasks and the masked part: conventions by hand, balance, equal views, the options of the released code."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from fovea.rewards import weigh
from fovea.tasks import SSL
from fovea.tasks.pool import BuiltIn, Pool
from fovea.tasks.scenes import generator
from fovea.tasks.ssl import contrastive, jigsaw, open_ssl, rotation
from fovea.types import Problem, UserError

NAMES = ("ssl/rotation", "ssl/jigsaw", "ssl/contrastive", "ssl/position", "ssl/masked")
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """Small pictures in memory: cheap to draw from."""

    pictures: tuple[Image.Image, ...]
    side: int = 64
    source: str = "made pictures"

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, i: int) -> str:
        return str(i)

    def picture(self, i: int) -> Image.Image:
        return self.pictures[i]

    def depth(self, i: int) -> np.ndarray | None:
        return None

    def sequences(self) -> tuple[tuple[int, ...], ...]:
        return ()


@functools.cache
def blots(n: int = 6, size: tuple[int, int] = (96, 72)) -> Made:
    """Smooth random colours: nothing plain, no two places alike."""
    rng = np.random.default_rng(0)
    seeds = [rng.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(n)]
    return Made(
        pictures=tuple(Image.fromarray(seed).resize(size, Image.Resampling.BICUBIC) for seed in seeds)
    )


def take(name: str, count: int, level: float, pool: Pool | None = None, /, **options: Any) -> list[Problem]:
    pool = pool or BuiltIn(split="train", side=64)
    return open_ssl(name, seed=2, pool=pool, level=level, options=options).take(0, count)[0]


def replies(problem: Problem) -> Iterator[str]:
    """Everything that could be answered (of long orders: those with two numbers exchanged)."""
    chance = problem.meta["chance"]
    if problem.kind == "number":
        yield from (str(angle) for angle in range(0, 360, problem.meta["step"]))
    elif problem.kind == "choice":
        yield from "ABCDEFGH"[: round(1 / chance)]
    elif problem.kind == "order":
        truth = problem.answer
        yield ", ".join(map(str, truth))
        for a, b in itertools.combinations(range(len(truth)), 2):
            other = list(truth)
            other[a], other[b] = other[b], other[a]
            yield ", ".join(map(str, other))
    elif problem.task == "ssl/contrastive":
        yield from ("positive", "negative")
    elif problem.meta["n"] == 2:
        yield from ("top left", "top right", "bottom left", "bottom right")
    else:
        n = problem.meta["n"]
        yield from (f"row {r + 1}, column {c + 1}" for r in range(n) for c in range(n))


def score(problem: Problem, said: str) -> float:
    found = SSL[problem.task]
    total, _ = weigh([f"<answer>{said}</answer>"], problem, found.rewards, options=found.reward_options)
    return float(total[0]) / sum(found.rewards.values())


def grey(view: Image.Image) -> np.ndarray:
    return np.asarray(view.convert("L"), np.float32)


def apart(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(grey(a) - grey(b)).mean())


# --- of all five ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_truth_scores_one_and_every_other_answer_less(name: str) -> None:
    for level in LEVELS:
        for problem in take(name, 2, level):
            scores = {said: score(problem, said) for said in replies(problem)}
            best = [said for said, value in scores.items() if value == pytest.approx(1.0)]
            assert len(best) == 1
            assert max(scores.values()) <= 1.0
            truth = problem.answer if isinstance(problem.answer, list) else [problem.answer]
            assert best[0] == ", ".join(map(str, truth))
            assert problem.target == f"<answer>{best[0]}</answer>"
            assert problem.difficulty == level
            assert max(map(max, (i.size for i in problem.images))) <= 64
            assert len(problem.question.split()) <= 45


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ssl/rotation", {}),
        ("ssl/jigsaw", {}),
        ("ssl/contrastive", {"candidates": 2}),
        ("ssl/position", {}),
        ("ssl/masked", {"decoys": "mirrored", "candidates": 4}),
    ],
)
def test_answers_are_balanced_and_views_are_of_one_size(name: str, options: dict[str, Any]) -> None:
    """Within 4 standard deviations of a binomial; the jigsaw by where the first part goes (1 of 4)."""
    count = 160
    problems = take(name, count, 0.3, blots(), **options)
    said = Counter(str(p.answer[0] if isinstance(p.answer, list) else p.answer) for p in problems)
    p = 0.25 if name == "ssl/jigsaw" else problems[0].meta["chance"]
    assert len(said) == round(1 / p)
    spread = 4 * math.sqrt(count * p * (1 - p))
    assert all(abs(found - count * p) < spread for found in said.values()), said
    assert len({tuple(i.size for i in problem.images) for problem in problems}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_same_at_a_common_size(name: str) -> None:
    big = Made(pictures=blots(14, (640, 480)).pictures, side=448)
    for level in (0.0, 1.0):
        (problem,) = take(name, 1, level, big)
        sizes = [max(i.size) for i in problem.images]
        assert max(sizes) == (224 if name in ("ssl/jigsaw", "ssl/contrastive") else 448) or level == 1.0
        assert min(sizes) >= 112


@pytest.mark.parametrize("name", NAMES)
def test_harder_means_other_knobs(name: str) -> None:
    easy, hard = (take(name, 1, level)[0] for level in (0.0, 1.0))
    assert [i.tobytes() for i in easy.images] != [i.tobytes() for i in hard.images]
    if name != "ssl/contrastive":
        assert hard.meta["chance"] < easy.meta["chance"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ssl/rotation", {"step": 50}),
        ("ssl/rotation", {"overlap": 0.1}),
        ("ssl/jigsaw", {"n": 9}),
        ("ssl/jigsaw", {"gap": 0.9}),
        ("ssl/contrastive", {"changes": "none"}),
        ("ssl/position", {"n": 1}),
        ("ssl/masked", {"candidates": 20}),
        ("ssl/masked", {"paper": True}),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        take(name, 1, 0.5, **options)


def test_a_pool_of_plain_pictures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Made(pictures=(Image.new("RGB", (96, 96), (90, 90, 90)),) * 2)
    for name in NAMES:
        monkeypatch.setattr(f"fovea.tasks.{name.replace('/', '.')}.TRIES", 5)
        with pytest.raises(UserError, match=name):
            take(name, 1, 0.5, plain)


# --- rotation ---------------------------------------------------------------------------------------------


def test_a_quarter_turn_is_counter_clockwise_and_exact() -> None:
    """By hand: a bright top right corner is at the top left after 90 degrees counter-clockwise, at the bottom left
    after 180, at the bottom right after 270."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
    pixels[:32, 32:] += 150
    pool = Made(pictures=(Image.fromarray(pixels).resize((64, 64)),))
    corner = {0: (0, 1), 90: (0, 0), 180: (1, 0), 270: (1, 1)}
    seen = set()
    for problem in take("ssl/rotation", 12, 0.0, pool, paper=True):
        first, second = problem.images
        means = grey(second).reshape(2, 32, 2, 32).mean((1, 3))
        assert divmod(int(means.argmax()), 2) == corner[problem.answer]
        back = Image.fromarray(np.rot90(np.asarray(second), -problem.answer // 90))
        assert apart(back, first) < 8  # two JPEGs of noise; another turn is above 50
        seen.add(problem.answer)
    assert seen == {0, 90, 180, 270}


@pytest.mark.parametrize("step", [15, 30, 45])
def test_turning_back_by_the_answer_gives_the_first_view(step: int) -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    disc = x**2 + y**2 < 28**2
    for problem in take("ssl/rotation", 4, 0.5, blots(), step=step, overlap=1.0, jitter=0.0):
        first, second = problem.images
        away = {}
        for angle in range(0, 360, step):
            back = second.rotate(-angle, Image.Resampling.BICUBIC)
            away[angle] = float(np.abs(grey(back) - grey(first))[disc].mean())
        assert min(away, key=away.__getitem__) == problem.answer
        assert away[problem.answer] < 4
        assert grey(first).min() > 0 or first.getpixel((0, 0)) != (0, 0, 0)  # no black corners


def test_the_angle_does_not_show_in_how_sharp_a_view_is() -> None:
    """Noise of every direction alike, turned by 0 and by 45 degrees: equally blurred."""
    noise = np.random.default_rng(0).integers(0, 256, (97, 97, 3), dtype=np.uint8)
    picture, rng = Image.fromarray(noise), np.random.default_rng(1)
    energy = {
        turn: np.mean(
            [grey(rotation._turned(rng, picture, (0, 0, 97, 97), 64, turn, False)).var() for _ in range(24)]
        )
        for turn in (0.0, 45.0)
    }
    assert energy[45.0] == pytest.approx(energy[0.0], rel=0.06)


def test_whole_pictures_swap_their_sides_as_the_released_code_does() -> None:
    for problem in take("ssl/rotation", 8, 0.0, blots(), paper=True):
        first, second = (i.size for i in problem.images)
        assert first == (64, 48)
        assert second == (first if problem.answer % 180 == 0 else first[::-1])


# --- jigsaw -----------------------------------------------------------------------------------------------


class Fixed:
    """A generator whose permutation is known."""

    def __init__(self, order: list[int]) -> None:
        self.order, self.rng = order, generator("fixed")

    def permutation(self, n: int) -> np.ndarray:
        return np.array(self.order)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rng, name)


def test_the_order_names_the_part_of_each_place() -> None:
    """By hand: the parts shown are those of places 3, 1, 4, 2 (bottom left, top left, bottom right, top right). So
    place 1 holds part 2, place 2 part 4, place 3 part 1, place 4 part 3."""
    rng: Any = Fixed([2, 0, 3, 1])
    asked = jigsaw.make(blots(), rng, 0.0, n=2, gap=0.0, jitter=0.0, whole=True)
    assert asked.answer == [2, 4, 1, 3]
    assert asked.said == "2, 4, 1, 3"


@pytest.mark.parametrize("options", [{"paper": True}, {"n": 3, "gap": 0.0, "jitter": 0.0, "whole": True}])
def test_the_parts_in_the_said_order_are_the_picture(options: dict[str, Any]) -> None:
    for problem in take("ssl/jigsaw", 3, 0.0, blots(), **options):
        n = problem.meta["n"]
        assert len(problem.images) == n * n
        w, h = problem.images[0].size
        assert (w, h) == (37, 28)  # 32 x 24 and 21 x 16, enlarged to the least side

        def laid(
            order: list[int], problem: Problem = problem, n: int = n, w: int = w, h: int = h
        ) -> Image.Image:
            whole = Image.new("RGB", (n * w, n * h))
            for place, part in enumerate(order):
                whole.paste(problem.images[part - 1], (place % n * w, place // n * h))
            return whole

        picture = blots().picture(int(problem.meta["pictures"][0])).resize((n * w, n * h))
        right = apart(laid(problem.answer), picture)
        wrong = [list(one) for one in itertools.islice(itertools.permutations(problem.answer), 1, 24)]
        assert right < 4 < 6 < min(apart(laid(order), picture) for order in wrong)


def test_one_picture_of_numbered_parts_asks_the_same() -> None:
    for problem in take("ssl/jigsaw", 2, 0.0, single=True):
        assert len(problem.images) == 1
        assert problem.images[0].size == (64, 64)
        assert sorted(problem.answer) == [1, 2, 3, 4]
        assert "row by row" in problem.question
    big = Made(pictures=blots(6, (640, 480)).pictures, side=224)
    (problem,) = take("ssl/jigsaw", 1, 0.0, big, single=True)
    label = np.asarray(problem.images[0])[2:10, 2:10]  # at the corner of part 1, white on black
    assert label.min() < 30
    assert "numbered" in problem.question


def test_a_valid_order_is_needed_for_any_credit() -> None:
    (problem,) = take("ssl/jigsaw", 1, 0.0)
    farmed = [score(problem, said) for said in ("1, 1, 1, 1", "0, 1, 2, 3", "1, 2, 3, 4, 5", "")]
    assert max(farmed) <= 0.1 / 1.1 + 1e-9  # the format's part


# --- contrastive ------------------------------------------------------------------------------------------


def test_positive_means_one_photograph_shown_twice_and_never_the_same_pixels() -> None:
    for options in ({}, {"paper": True}, {"changes": "simclr_strong"}):
        for problem in take("ssl/contrastive", 12, 0.5, candidates=2, **options):
            a, b = problem.meta["pictures"]
            assert (a == b) == (problem.answer == "positive")
            assert problem.images[0].tobytes() != problem.images[1].tobytes()


def test_simclr_is_as_the_released_code_has_it() -> None:
    """augcfg.yaml and augcfg_strong.yaml (PKU-ML/SSL4RL): research notes, section 1.3."""
    one, two = contrastive.SIMCLR, contrastive.STRONG
    assert (one.least, one.most, one.jitter, one.hue) == (0.08, 1.0, 0.8, 0.2)
    assert (one.grey, one.blur, one.solarize, one.equalize, one.flip) == (0.2, 0.5, 0.0, 0.0, 0.5)
    assert (two.least, two.most, two.jitter, two.hue) == (0.08, 0.3, 0.8, 0.2)
    assert (two.grey, two.blur, two.solarize, two.equalize, two.flip) == (0.8, 0.8, 0.8, 0.8, 0.8)
    rng = np.random.default_rng(0)
    for _ in range(50):
        x1, y1, x2, y2 = contrastive._part(rng, (300, 200), two)
        w, h = x2 - x1, y2 - y1
        assert 0.08 <= w * h / 60000 <= 0.3 + 1e-9
        assert 0.75 <= w / h <= 4 / 3 + 1e-9
        assert x1 >= 0
        assert x2 <= 300
        assert y1 >= 0
        assert y2 <= 200


@pytest.mark.long
def test_how_like_the_colours_are_does_not_say_the_answer() -> None:
    """Area under the curve of "the nearer in colour, the more positive": 0.5 is chance."""

    def area(**options: Any) -> float:
        by: dict[str, list[float]] = {"positive": [], "negative": []}
        for problem in take("ssl/contrastive", 60, 0.2, strength=0.0, **options):
            a, b = (contrastive._colors(view.resize((48, 48))) for view in problem.images)
            by[problem.answer].append(float(np.abs(a - b).sum()))
        return float(np.mean([p < n for p in by["positive"] for n in by["negative"]]))

    assert area(candidates=1) > 0.75  # any two pictures
    assert area(candidates=16) < 0.7


# --- position ---------------------------------------------------------------------------------------------


def _best_place(first: Image.Image, part: Image.Image) -> tuple[float, float, float]:
    """(mean absolute difference, x, y) of where `part` fits best, pixel by pixel; its middle in shares."""
    whole, sought = grey(first), grey(part)
    h, w = sought.shape
    views = np.lib.stride_tricks.sliding_window_view(whole, (h, w))
    away = np.abs(views - sought).mean((2, 3))
    y, x = divmod(int(away.argmin()), away.shape[1])
    return float(away.min()), (x + w / 2) / first.width, (y + h / 2) / first.height


def test_the_cut_out_of_the_released_code_lies_where_the_answer_says() -> None:
    """Height and width 20 to 80 % of the quarter's, 32 x 24 pixels here, at the size that it has in the picture."""
    for problem in take("ssl/position", 16, 0.0, blots(), paper=True):
        first, part = problem.images
        assert first.size == (64, 48)
        assert 0.2 * 32 - 1 <= part.width <= 0.8 * 32 + 1
        assert 0.2 * 24 - 1 <= part.height <= 0.8 * 24 + 1
        away, x, y = _best_place(first, part)
        assert away < 5
        assert problem.answer == f"{('top', 'bottom')[y > 0.5]} {('left', 'right')[x > 0.5]}"


def test_the_enlarged_cut_out_lies_in_the_named_cell() -> None:
    for problem in take("ssl/position", 6, 0.5, blots(), n=3, part=0.9, jitter=0.0):
        first, part = problem.images
        assert first.size == (64, 64)
        assert part.size == (32, 32)
        side = round(64 / 3 * 0.9)
        _, x, y = _best_place(first, part.resize((side, side), Image.Resampling.BICUBIC))
        assert problem.answer == f"row {int(3 * y) + 1}, column {int(3 * x) + 1}"


# --- masked -----------------------------------------------------------------------------------------------


def _letters(problem: Problem) -> dict[str, Image.Image]:
    return dict(zip("ABCDEFGH", problem.images[1:]))


def test_the_true_candidate_goes_on_where_the_grey_square_ends() -> None:
    """Without gap and tint the true one is the one whose borders meet what lies around the square, nearly always."""
    right = 0
    for problem in take(
        "ssl/masked", 12, 0.0, decoys="mirrored", candidates=4, gap=0.0, jitter=0.0, match=0.0
    ):
        first = np.asarray(problem.images[0], np.float32)
        hidden = np.abs(first - 128).max(2) < 8
        rows, columns = np.flatnonzero(hidden.mean(1) > 0.2), np.flatnonzero(hidden.mean(0) > 0.2)
        y1, y2, x1, x2 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        away = {}
        for letter, view in _letters(problem).items():
            part = np.asarray(view.resize((x2 - x1, y2 - y1), Image.Resampling.BOX), np.float32)
            seams = []
            if y1 > 1:
                seams.append(np.abs(first[y1 - 2, x1:x2] - part[0]).mean())
            if y2 < 63:
                seams.append(np.abs(first[y2 + 1, x1:x2] - part[-1]).mean())
            if x1 > 1:
                seams.append(np.abs(first[y1:y2, x1 - 2] - part[:, 0]).mean())
            if x2 < 63:
                seams.append(np.abs(first[y1:y2, x2 + 1] - part[:, -1]).mean())
            away[letter] = float(np.mean(seams))
        right += min(away, key=away.__getitem__) == problem.answer
    assert right >= 10  # by chance 3


@pytest.mark.parametrize("decoys", ["mirrored", "turned"])
def test_candidates_come_in_pairs(decoys: str) -> None:
    """For every candidate there is one that is it, mirrored or turned: no candidate is the odd one."""
    changes = {
        "mirrored": [ImageOps.mirror],
        "turned": [lambda view, k=k: Image.fromarray(np.rot90(np.asarray(view), k)) for k in (1, 2, 3)],
    }[decoys]
    for problem in take("ssl/masked", 3, 0.5, decoys=decoys, candidates=4, jitter=0.0):
        views = list(problem.images[1:])
        for one in views:
            assert (
                min(apart(change(one), other) for change in changes for other in views if other is not one)
                < 4
            )


def test_the_grey_square_is_constant_and_larger_than_what_it_hides() -> None:
    for problem in take("ssl/masked", 4, 0.0, part=0.3, gap=0.25):
        first = np.asarray(problem.images[0], np.float32)
        hidden = np.abs(first - 128).max(2) < 10
        assert (
            hidden.sum() >= 0.85 * (0.3 * 1.5 * 64) ** 2
        )  # a quarter more on each side; JPEG blurs its border


def test_rotation_refuses_what_does_not_divide_the_circle() -> None:
    with pytest.raises(UserError, match="divisor of 360"):
        rotation.chance(0.5, step=70)
    assert rotation.chance(0.5, step=15) == 15 / 360
