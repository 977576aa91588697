"""Self-supervised tasks of pieces and patches: the answer undoes what was done, whatever is ambiguous is refused."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fovea.boxes import fill
from fovea.rewards import correct, weigh
from fovea.tasks.pool import BuiltIn
from fovea.tasks.scenes import COLORS
from fovea.tasks.ssl import SSL, SslTask, open_ssl
from fovea.tasks.ssl.flip import WAYS, mirrored
from fovea.tasks.ssl.patches import blind_one, blind_two, paste, squares
from fovea.tasks.ssl.pieces import in_one_order, line, piece
from fovea.types import Problem, UserError

NAMES = ("flip", "flip_patch", "strips", "tiles", "swap", "odd", "overlay")
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A pool of given pictures. Example: Drawn(pictures=(picture,), side=64)"""

    pictures: Sequence[Image.Image]
    side: int = 64
    source: str = "the test"

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


def texture(seed: int, side: int = 240, cells: int = 14) -> np.ndarray:
    """uint8 [side, side]: smooth noise of full contrast."""
    noise = np.random.default_rng(seed).integers(0, 2, (cells, cells)) * 255
    small = Image.fromarray(noise.astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


@functools.cache
def placed(seed: int = 0, side: int = 240) -> Image.Image:
    """Red says how far right a pixel was, blue how far down, green is texture."""
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    red, blue = np.broadcast_to(ramp, (side, side)), np.broadcast_to(ramp[:, None], (side, side))
    return Image.fromarray(np.stack([red, texture(seed, side), blue], 2))


POSITIONS = Drawn(pictures=tuple(placed(seed) for seed in range(6)), side=64)


def task(name: str, level: float = 0.4, pool: Any = None, **options: Any) -> SslTask:
    held = pool if pool is not None else BuiltIn(split="train", side=64)
    return open_ssl(f"ssl/{name}", pool=held, level=level, options=options)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32)


def reply(problem: Problem) -> str:
    return fill(problem.target or "", lambda box: box, "pixels")


def wrong(problem: Problem) -> list[str]:
    """Answers of the right form that are not right."""
    answer = problem.answer
    if problem.kind == "order":
        others = [o for o in itertools.islice(itertools.permutations(answer), 6) if list(o) != answer]
        return [*(", ".join(map(str, o)) for o in others), ", ".join(["1"] * len(answer)), ""]
    if problem.kind == "number":
        return [str(answer + 1), str(answer - 1), "many"]
    if problem.kind == "text":
        return [way for way in WAYS if way != answer]
    if problem.kind == "box":
        x1, y1, x2, y2 = answer
        return [str([x1 + (x2 - x1) // 2, y1, x2 + (x2 - x1) // 2, y2]), "[0, 0, 64, 64]"]
    one = [dict(answer[0])]
    return [
        json.dumps(one),
        json.dumps(one * 2),
        json.dumps([{**thing, "label": "moved"} for thing in answer]),
    ]


# --- for all of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_is_a_function_of_seed_number_and_difficulty(name: str) -> None:
    one, same = task(name, 0.6).take(0, 4)[0], task(name, 0.6).take(0, 4)[0]
    for a, b in zip(one, same):
        assert (a.id, a.question, a.answer, a.meta, a.target) == (
            b.id,
            b.question,
            b.answer,
            b.meta,
            b.target,
        )
        assert [p.tobytes() for p in a.images] == [p.tobytes() for p in b.images]
    assert len({p.images[0].tobytes() for p in one}) == 4


@pytest.mark.parametrize("side", [64, 448])
@pytest.mark.parametrize("name", NAMES)
def test_the_truth_earns_everything_and_others_less(name: str, side: int) -> None:
    spec = SSL[f"ssl/{name}"]
    most = sum(spec.rewards.values())
    for level in LEVELS if side == 64 else (0.0, 1.0):
        for problem in task(name, level, BuiltIn(split="train", side=side)).take(0, 1 if side > 64 else 3)[0]:
            assert correct(reply(problem), problem)
            texts = [reply(problem), *(f"<answer>{text}</answer>" for text in wrong(problem))]
            total, _ = weigh(texts, problem, spec.rewards, options=spec.reward_options)
            assert total[0] == pytest.approx(most)
            assert (total[1:] < most - 0.05).all(), (problem.id, total)
            assert not any(correct(text, problem) for text in texts[1:])
            assert all(image.mode == "RGB" and max(image.size) <= side for image in problem.images)
            assert len(problem.question.split()) < 40
            assert 0 < problem.meta["chance"] <= 0.5


@pytest.mark.parametrize("name", NAMES)
def test_size_and_number_of_pictures_say_nothing(name: str) -> None:
    found = task(name, 0.6).take(0, 12)[0]
    assert {tuple(image.size for image in problem.images) for problem in found} == {
        ((64, 64),) * (2 if name == "flip" else 1)
    }


@pytest.mark.parametrize(
    ("name", "level", "outcomes"),
    [("flip", 0.6, 3), ("flip_patch", 0.1, 4), ("strips", 0.4, 6), ("tiles", 0.1, 24), ("overlay", 0.4, 4)],
)
def test_every_answer_is_equally_likely(name: str, level: float, outcomes: int) -> None:
    n = 96
    counted = Counter(str(problem.answer) for problem in task(name, level).take(0, n)[0])
    # Chi-square with outcomes - 1 degrees of freedom: mean k, variance 2k; five standard deviations above.
    expected, k = n / outcomes, outcomes - 1
    off = sum((count - expected) ** 2 / expected for count in counted.values())
    off += expected * (outcomes - len(counted))
    assert len(counted) <= outcomes
    assert off < k + 5 * math.sqrt(2 * k), counted


def test_the_difficulty_turns_the_knobs() -> None:
    big = BuiltIn(split="train", side=448)
    at = {name: [task(name, level, big).problem(0).meta for level in (0.0, 1.0)] for name in NAMES}
    assert [m["n"] for m in at["strips"]] == [2, 5]
    assert [m["n"] for m in at["flip_patch"]] == [2, 4]
    assert [(m["columns"], m["rows"]) for m in at["tiles"]] == [(2, 2), (3, 3)]
    assert [m["ways"] for m in at["flip"]] == [2, 4]
    assert [len(m["decoys"]) for name in ("odd", "swap") for m in at[name]] == [1, 2, 0, 2]
    assert [m["total"] for m in at["overlay"]] == [4, 12]
    # Five strips of 64 pixels would be 11 pixels wide; three are 20, and the chance is that of three.
    fitting = task("strips", 1.0).problem(0)
    assert fitting.meta["n"] == 3
    assert fitting.meta["chance"] == pytest.approx(1 / 6)


# --- the answer undoes what was done ----------------------------------------------------------------------


def undone(problem: Problem, columns: int, rows: int, order: Sequence[int]) -> np.ndarray:
    """The picture that comes of laying the board's pieces in an order, without gaps."""
    side = problem.images[0].width
    w, h, between = piece(side, columns), piece(side, rows), line(side)
    left, top = ((side - n * p - (n - 1) * between) // 2 for n, p in ((columns, w), (rows, h)))
    board = pixels(problem.images[0])
    pieces = []
    for number in order:
        column, row = (number - 1) % columns, (number - 1) // columns
        x, y = left + column * (w + between), top + row * (h + between)
        pieces.append(board[y : y + h, x : x + w])
    lines = [np.concatenate(pieces[r * columns : (r + 1) * columns], 1) for r in range(rows)]
    return np.concatenate(lines, 0)


def is_in_place(picture: np.ndarray) -> bool:
    """Whether red grows from left to right and blue from top to bottom, steadily: nowhere a step of 20 levels
    (the whole range is 255 over 64 pixels, 4 a pixel; a swapped piece of at least 20 pixels is 80 off)."""
    across, down = np.diff(picture[..., 0].mean(0)), np.diff(picture[..., 2].mean(1))
    return bool(
        max(np.abs(across).max(), np.abs(down).max()) < 20 and across.sum() > 100 and down.sum() > 100
    )


@pytest.mark.parametrize(
    ("name", "columns", "rows", "options"),
    [
        ("strips", 3, 1, {"n": 3, "cuts": "vertical"}),
        ("strips", 1, 2, {"n": 2, "cuts": "horizontal"}),
        ("tiles", 2, 2, {"columns": 2, "rows": 2, "masked": False}),
        ("tiles", 3, 2, {"columns": 3, "rows": 2, "masked": False}),
    ],
)
def test_the_order_gives_back_the_picture(
    name: str, columns: int, rows: int, options: dict[str, Any]
) -> None:
    for problem in task(name, 0.5, POSITIONS, gap=0.0, jitter=0.0, **options).take(0, 6)[0]:
        assert is_in_place(undone(problem, columns, rows, problem.answer))
        other = [*problem.answer[1:], problem.answer[0]]
        assert not is_in_place(undone(problem, columns, rows, other))


def test_one_tile_is_masked_and_its_number_still_counts() -> None:
    problem = task("tiles", 0.1, POSITIONS, gap=0.0, jitter=0.0).problem(1)
    # Tiles are 31 pixels with a gap of 2; centres at 15 and 48. Only a masked one is grey (128, 128, 128).
    board = pixels(problem.images[0])
    grey = [np.abs(board[y - 8 : y + 8, x - 8 : x + 8] - 128).max() < 4 for y in (15, 48) for x in (15, 48)]
    assert sum(grey) == 1
    assert sorted(problem.answer) == [1, 2, 3, 4]


def test_what_lies_between_pieces_is_hidden() -> None:
    # Red grows by 255 / 240 a pixel of the source; a window of at least 0.8 * 240 pixels in two strips with a gap of
    # half: each shows half of its cell, so both together at most half of the window's red, 127 levels, and some.
    for problem in task("strips", 0.5, POSITIONS, n=2, cuts="vertical", gap=0.5, jitter=0.0).take(0, 6)[0]:
        picture = undone(problem, 2, 1, problem.answer)[..., 0].mean(0)
        shown = (picture[30] - picture[0]) + (picture[61] - picture[31])
        assert 80 < shown < 135


def test_mirroring_back_gives_the_first_view() -> None:
    for problem in task("flip", 0.9, shift=0.0, jitter=0.0).take(0, 8)[0]:
        first, second = problem.images
        off = {way: np.abs(pixels(mirrored(second, way)) - pixels(first)).mean() for way in WAYS}
        assert min(off, key=lambda way: float(off[way])) == problem.answer
        assert off[problem.answer] < 6
        assert sorted(off.values())[1] > 10


def test_only_the_flipped_tile_runs_backwards() -> None:
    for problem in task("flip_patch", 0.4, POSITIONS, n=3, gap=0.0, jitter=0.0).take(0, 8)[0]:
        board, backwards = pixels(problem.images[0]), []
        for k in range(9):
            x, y = k % 3 * 22, k // 3 * 22  # tiles of 20 pixels, gaps of 2
            tile = board[y : y + 20, x : x + 20]
            right = tile[:, 12:18, 0].mean() > tile[:, 2:8, 0].mean()
            down = tile[12:18, :, 2].mean() > tile[2:8, :, 2].mean()
            backwards += [] if right and down else [k + 1]
        assert backwards == [problem.answer]


def test_swapping_back_gives_the_picture() -> None:
    plain = {"match": 0.0, "jitter": 0.0, "decoys": 0, "border": 0.0}
    for problem in task("swap", 0.2, POSITIONS, **plain).take(0, 6)[0]:
        before = pixels(problem.images[0])
        after = before.copy()
        (ax, ay, bx, by), (cx, cy, dx, dy) = (thing["bbox_2d"] for thing in problem.answer)
        assert (bx - ax, by - ay) == (dx - cx, dy - cy)
        after[ay:by, ax:bx], after[cy:dy, cx:dx] = before[cy:dy, cx:dx], before[ay:by, ax:bx]
        assert _off_plane(after) < 8 < 20 < _off_plane(before)  # not 0: JPEG, and the resample's overshoot


def _off_plane(picture: np.ndarray) -> float:
    """Mean distance of red and blue from the best linear function of the place: 0 in `placed`."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    terms = np.stack([np.ones(x.size), x.ravel(), y.ravel()], 1)
    flat = picture[..., [0, 2]].reshape(-1, 2)
    return float(np.abs(flat - terms @ np.linalg.lstsq(terms, flat, rcond=None)[0]).mean())


@pytest.mark.parametrize("decoys", [0, 2])
def test_the_foreign_patch_lies_exactly_in_its_box(decoys: int) -> None:
    # One picture has no blue, the other nothing but full blue: whatever is otherwise than most is foreign.
    def picture(seed: int, blue: int) -> Image.Image:
        green = texture(seed)
        return Image.fromarray(np.stack([green, green, np.full_like(green, blue)], 2))

    pool = Drawn(pictures=(picture(0, 0), picture(1, 255)))
    options = {"match": 0.0, "jitter": 0.0, "border": 0.0, "share": 0.32, "decoys": decoys}
    for problem in task("odd", 0.2, pool, **options).take(0, 6)[0]:
        foreign = pixels(problem.images[0])[..., 2] > 128
        foreign = ~foreign if foreign.mean() > 0.5 else foreign
        rows, columns = np.flatnonzero(foreign.any(1)), np.flatnonzero(foreign.any(0))
        box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        assert np.abs(np.array(box) - problem.answer).max() <= 1  # JPEG blurs the edge
        assert foreign.sum() == pytest.approx(20 * 20, abs=45)
        assert len(problem.meta["decoys"]) == decoys


def test_the_foreign_patch_has_no_sharper_border_than_decoys() -> None:
    hits = []
    for problem in task("odd", 0.6).take(0, 48)[0]:
        grey = np.asarray(problem.images[0].convert("L"), np.float32)
        steep = np.hypot(*np.gradient(grey))
        found = []
        for x1, y1, x2, y2 in (problem.answer, *problem.meta["decoys"]):
            rim = np.zeros(grey.shape, bool)
            rim[y1:y2, x1:x2] = True
            rim[y1 + 3 : y2 - 3, x1 + 3 : x2 - 3] = False
            found.append(steep[rim].mean())
        hits.append(int(np.argmax(found)) == 0)
    # One of three; three standard errors of 48 are 0.2. Decoys moved by a tenth of their side gave 0.53.
    assert len(found) == 3
    assert np.mean(hits) < 1 / 3 + 0.2


def test_pasting_changes_the_square_and_nothing_else() -> None:
    whole, patch = Image.new("RGB", (40, 40), (50, 50, 50)), Image.new("RGB", (20, 20), (250, 250, 250))
    hard, soft = whole.copy(), whole.copy()
    paste(hard, patch, (10, 5, 30, 25), 0.0)
    paste(soft, patch, (10, 5, 30, 25), 0.25)
    inside = np.zeros((40, 40), bool)
    inside[5:25, 10:30] = True
    assert ((pixels(hard) == 250).all(2) == inside).all()
    assert ((pixels(hard) == 50).all(2) == ~inside).all()
    assert (pixels(soft)[~inside] == 50).all()
    assert (pixels(soft)[10:20, 15:25] == 250).all()
    # A border of 5 pixels: alpha 0.1, 0.3, 0.5, 0.7, 0.9, so 50 + 200 * alpha along the middle row.
    assert pixels(soft)[15, 10:15, 0] == pytest.approx([70, 110, 150, 190, 230], abs=2)


def test_shapes_are_as_many_as_said_and_colours_do_not_tell() -> None:
    grey = Image.fromarray(np.repeat((120 + texture(3) // 32)[..., None], 3, 2))
    asked_squares = 0
    for problem in task("overlay", 0.9, Drawn(pictures=(grey,), side=128), tints=0.0).take(0, 40)[0]:
        color, shape = problem.question.rstrip("s?").split()[-2:]
        near = np.abs(pixels(problem.images[0]) - COLORS[color]).max(2) < 36
        labels, _ = ndimage.label(ndimage.binary_opening(near))
        fills = [
            (labels[found] == k + 1).mean()
            for k, found in enumerate(ndimage.find_objects(labels))
            if (labels[found] == k + 1).sum() > 30
        ]
        assert len(fills) == 5  # of the colour there are `most`, whatever the answer
        if shape == "square":
            asked_squares += 1
            assert sum(fill > 0.9 for fill in fills) == problem.answer  # circle pi / 4, others less
    assert asked_squares >= 2


# --- what is refused --------------------------------------------------------------------------------------

FLAT = Drawn(pictures=tuple(Image.new("RGB", (120, 120), (level,) * 3) for level in (60, 120, 180)))


@pytest.mark.parametrize("name", ["flip", "flip_patch", "strips", "tiles", "swap", "odd"])
def test_plain_pictures_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="none of 200 pictures"):
        task(name, 0.3, FLAT).problem(0)


def test_symmetric_and_repeating_pictures_are_refused() -> None:
    quarter = texture(5, 120)
    half = np.concatenate([quarter, quarter[:, ::-1]], 1)
    stripes = np.broadcast_to(np.arange(240) // 8 % 2 * 255, (240, 240))
    for name, drawn in (
        ("flip", stripes.T),
        ("strips", stripes.T),
        ("tiles", stripes),
        ("flip_patch", stripes),
    ):
        pool = Drawn(pictures=(Image.fromarray(drawn.astype(np.uint8)).convert("RGB"),))
        options = {"strips": {"cuts": "vertical"}, "flip_patch": {"way": "upside-down"}}.get(name, {})
        with pytest.raises(UserError, match="none of 200 pictures"):
            task(name, 0.3, pool, **options).problem(0)
    # Two halves that mirror each other fit in both orders: their outer edges are as alike as their inner ones.
    mirrored_halves = Image.fromarray(half).convert("RGB")
    assert not in_one_order(mirrored_halves, (0, 0, 240, 120), 2, 1)
    assert in_one_order(placed(), (0, 0, 240, 240), 2, 1)


def test_squares_that_would_fit_each_other_are_not_exchanged() -> None:
    stripes = Image.fromarray(np.broadcast_to((np.arange(240) // 4 % 2 * 255).astype(np.uint8), (240, 240)))
    with pytest.raises(UserError, match="fit"):
        task("swap", 0.3, Drawn(pictures=(stripes.convert("RGB"),))).problem(0)


def test_a_pool_of_one_picture_has_nothing_foreign() -> None:
    with pytest.raises(UserError, match="ssl/odd"):
        task("odd", 0.3, Drawn(pictures=(placed(),))).problem(0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flip", {"ways": 5}),
        ("flip", {"shift": 0.9}),
        ("flip_patch", {"n": 1}),
        ("strips", {"n": 99}),
        ("tiles", {"columns": -1}),
        ("odd", {"share": 0.9}),
        ("swap", {"decoys": 9}),
        ("overlay", {"most": -2}),
    ],
)
def test_options_out_of_range_say_what_is_allowed(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"option {next(iter(options))} is .*; give a "):
        task(name, 0.4, **options).problem(0)


# --- patches lie anywhere ---------------------------------------------------------------------------------


def test_squares_do_not_touch_and_crowded_ones_are_refused() -> None:
    for seed in range(20):
        found = squares(np.random.default_rng(seed), 64, 20, 3)
        for a, b in itertools.combinations(found, 2):
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
        assert all(min(box) >= 0 and max(box) <= 64 and box[2] - box[0] == 20 for box in found)
    with pytest.raises(UserError, match="fewer decoys"):
        squares(np.random.default_rng(0), 64, 32, 4)


def test_the_blind_chance_of_a_box() -> None:
    # One square of share s anywhere: a guess of its size in the middle meets it with IoU > 1/2 where
    # (1 - u)(1 - v) > 2/3, u and v the distances / side: an area of 4 (1/3 - 2/3 ln 1.5) = 0.252 s² of (1 - s)².
    # For s = 0.4 that is 0.112. A larger guess does better: at most 1.5 times the area.
    assert 0.112 - 0.03 < blind_one(0.4, 1) < 0.112 * 1.8
    assert blind_two(0.25, 2) < blind_one(0.25, 2) < blind_one(0.4, 2)


@pytest.mark.parametrize(("name", "least"), [("flip_patch", 0.2), ("strips", 0.35), ("tiles", 0.2)])
def test_a_fifth_of_a_piece_is_hidden_even_where_it_is_easiest(name: str, least: float) -> None:
    """With 4 to 20 % hidden the borders alone put pieces in order: ssl/strips 0.76 of 0.17, ssl/tiles 0.31 of 0.001."""
    assert [task(name, level, POSITIONS).problem(0).meta["gap"] for level in (0.0, 1.0)] == [least, 0.5]
