"""Tasks: exact boxes, disjoint splits, reproducible problems, chance levels."""

from __future__ import annotations

import numpy as np
import pytest

from fovea.boxes import convert, fill, look, marks, place, write
from fovea.rewards import box_iou, correct, has_format
from fovea.tasks import STYLES, TASKS, corpus, open_task, printed
from fovea.tasks.fonts import font_names
from fovea.tasks.scenes import (
    BACKGROUNDS,
    DIGIT_SPLITS,
    SPLITS,
    Stamp,
    background,
    compose,
    digit_stamps,
    generator,
)
from fovea.types import UserError


@pytest.mark.parametrize("name", TASKS)
def test_problem_is_a_function_of_seed_and_index(name: str) -> None:
    task = open_task(name, "train", 3)
    together, cursor = task.take(5, 4)
    assert cursor == 9
    alone = open_task(name, "train", 3).take(7, 1)[0][0]
    assert [i.tobytes() for i in together[2].images] == [i.tobytes() for i in alone.images]
    assert (together[2].question, together[2].answer, together[2].id) == (
        alone.question,
        alone.answer,
        alone.id,
    )
    other = open_task(name, "train", 4).take(7, 1)[0][0]
    assert other.question != alone.question or other.images[0].tobytes() != alone.images[0].tobytes()


@pytest.mark.parametrize("name", TASKS)
def test_the_teachers_reply_is_right_in_every_style(name: str) -> None:
    for style in STYLES:
        for problem in open_task(f"{name}@{style}", "validation", 0).take(0, 8)[0]:
            reply = fill(problem.target or "", lambda box: box, "pixels")
            assert correct(reply, problem), (reply, problem.answer)
            assert has_format(reply) == (style in ("answer", "think")), reply
            assert 0 <= problem.difficulty <= 1


@pytest.mark.parametrize("name", TASKS)
def test_marks_lie_in_their_pictures_and_nothing_of_them_is_said(name: str) -> None:
    for problem in open_task(f"{name}@think", "train", 0).take(0, 8)[0]:
        target = problem.target or ""
        said = fill(target, lambda box: box, "pixels")
        assert "{" not in said.replace('{"', "")
        for char, picture, (x1, y1, x2, y2) in marks(target, lambda box: box, "pixels"):
            assert 0 <= char < len(said)
            width, height = problem.images[picture].size
            assert 0 <= (x1 + x2) / 2 <= width
            assert 0 <= (y1 + y2) / 2 <= height


def test_marks_by_hand() -> None:
    """`a{look}b{box}`: b is character 1; the box's text starts at 2, its numbers at 3, 6, 9 and 12."""
    text = f"a{look((1, 2, 3, 4), 1)}b{place((5, 6, 7, 8))}c{look((0, 0, 9, 9))}d"
    assert fill(text, lambda box: box, "pixels") == "ab[5, 6, 7, 8]cd"
    assert marks(text, lambda box: box, "pixels", box_image=2) == [
        (1, 1, (1, 2, 3, 4)),
        *((at, 2, (5, 6, 7, 8)) for at in (3, 6, 9, 12)),
        (15, 0, (0, 0, 9, 9)),
    ]


def test_pictures_are_small_but_not_all() -> None:
    sides = [
        max(image.size)
        for name in TASKS
        for problem in open_task(name, "train", 1).take(0, 30)[0]
        for image in problem.images
    ]
    assert np.mean(np.array(sides) <= 96) > 0.9
    assert max(sides) > 128
    assert max(len(p.images) for p in open_task("panels/which").take(0, 60)[0]) == 9


@pytest.mark.parametrize("name", ["printed/word", "printed/number", "printed/letter", "printed/labelled"])
def test_print_is_whole(name: str) -> None:
    for split in SPLITS:
        for problem in open_task(name, split, 3).take(0, 60)[0]:
            width, height = problem.images[0].size
            for _, _, (x1, y1, x2, y2) in marks(problem.target or "", tuple, "pixels"):
                assert -1 <= x1 < x2 <= width + 1
                assert -1 <= y1 < y2 <= height + 1


def test_fonts_and_words_of_the_splits_are_different_ones() -> None:
    for items in (
        [set(font_names(split)) for split in SPLITS],
        [set(printed._words(split)) for split in SPLITS],
    ):
        assert all(items)
        assert not items[0] & items[1] | items[0] & items[2] | items[1] & items[2]


def test_splits_share_nothing() -> None:
    for pools in (DIGIT_SPLITS, BACKGROUNDS):
        seen: set[int] = set()
        for split in SPLITS:
            pool = set(range(*pools[split]))
            assert pool
            assert not pool & seen
            seen |= pool
    assert DIGIT_SPLITS["test"][1] == 1797  # every digit of the data set is in exactly one split


def test_box_is_the_ink() -> None:
    """A black stamp on a white picture: the box must be the bounding box of the pixels that got darker."""

    def black(rng: np.random.Generator, behind: np.ndarray, label: str | None, side: int) -> Stamp:
        stamp = digit_stamps("train")(rng, behind, label, side)
        return Stamp(label=stamp.label, alpha=stamp.alpha, color=(0, 0, 0))

    plain = next(k for k in range(*BACKGROUNDS["train"]) if background(k, 8, 8).std() < 3)
    for i in range(20):
        rng = generator(1, i)
        scene = compose(rng, black, 1, split="train")
        x1, y1, x2, y2 = scene.things[0].box
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 64
        assert 8 <= y2 - y1 <= 40
    assert background(plain, 64, 48).shape == (48, 64, 3)


def test_things_do_not_overlap_and_are_read_from_left_to_right() -> None:
    for i in range(30):
        things = compose(generator(2, i), digit_stamps("train"), 5).things
        assert len(things) == 5
        assert list(things) == sorted(things, key=lambda thing: thing.box)
        for a in range(5):
            for b in range(a):
                assert box_iou(things[a].box, things[b].box) == 0


OWN = ("digits/", "shapes/", "printed/", "panels/")  # the other domains' tests measure theirs


@pytest.mark.parametrize(
    "name",
    [name for name, spec in TASKS.items() if name.startswith(OWN) and spec.kind in ("number", "text")],
)
def test_chance_of_the_best_constant_reply(name: str) -> None:
    """Declared chance = the accuracy of the most frequent answer; 800 problems: 3 sigma of p = 1/2 is 0.053."""
    answers = [str(problem.answer) for problem in open_task(name, "train", 9).take(0, 800)[0]]
    best = max(map(answers.count, set(answers))) / len(answers)
    assert abs(best - TASKS[name].chance) < 0.05


@pytest.mark.parametrize("name", ["digits/locate", "printed/locate", "shapes/locate"])
def test_chance_of_the_best_constant_box(name: str) -> None:
    problems = open_task(name, "train", 9).take(0, 1200)[0]
    boxes = np.array([p.answer for p in problems if p.images[0].size == (64, 64)], float)
    best = 0.0
    for side in (16, 20, 24, 28):
        for x in range(0, 64 - side, 4):
            for y in range(0, 64 - side, 4):
                guess = (float(x), float(y), float(x + side), float(y + side))
                best = max(best, float(np.mean([box_iou(guess, tuple(box)) > 0.5 for box in boxes])))
    assert abs(best - TASKS[name].chance) < 0.03


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'digits/locate'"):
        open_task("digit/locate")
    with pytest.raises(UserError, match="no style 'thinking'; known: answer, think"):
        open_task("digits/locate@thinking")
    with pytest.raises(UserError, match="known: train, validation, test"):
        open_task("digits/locate", "dev")


def test_frames_round_trip() -> None:
    box = (3.0, 5.0, 17.0, 40.0)
    for frame in ("pixels", "resized", "thousandths", "unit"):
        there = convert(box, "pixels", frame, (64, 48), (84, 56))  # type: ignore[arg-type]
        back = convert(there, frame, "pixels", (64, 48), (84, 56))  # type: ignore[arg-type]
        assert back == pytest.approx(box)
    # by hand: x = 16 of 64 is a quarter, y = 24 of 48 is a half
    assert convert((16, 24, 64, 48), "pixels", "thousandths", (64, 48), (0, 0)) == (
        250.0,
        500.0,
        1000.0,
        1000.0,
    )
    assert (
        fill(f"<answer>{place((16, 24, 64, 48))}</answer>", lambda b: b, "pixels")
        == "<answer>[16, 24, 64, 48]</answer>"
    )
    assert write((0.25, 0.5, 1, 1), "unit") == "[0.250, 0.500, 1.000, 1.000]"


def test_corpus_is_seeded() -> None:
    assert corpus(0, 3) == corpus(0, 3)
    assert "{box" not in " ".join(corpus(0, 3))
