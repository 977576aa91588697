"""The desk with crop and zoom, and the jigsaw: what is read, what is shown, what is paid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.tasks import open_task
from fovea.types import Problem, UserError

pytest.importorskip("gymnasium")

from fovea.environments.jigsaw import JIGSAW, JigsawDesk
from fovea.environments.jigsaw import read as read_move
from fovea.environments.tools import ZOOM, ToolDesk, read


class OneProblem:
    """A task with one problem."""

    name, kind, chance, size = "one", "text", 0.0, 1

    def __init__(self, image: Image.Image, answer: Any, kind: str = "text") -> None:
        self.problem = Problem(
            id="one",
            task="one",
            images=(image,),
            question="What?",
            answer=answer,
            kind=kind,  # type: ignore[arg-type]
        )

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self.problem] * n, cursor + n


def desk(**options: Any) -> ToolDesk:
    env = ToolDesk(**options)
    env.reset(seed=0)
    return env


# --- crop, zoom, answer -----------------------------------------------------------------------------------

READ = {
    "crop 0 0 50 100": "crop 0 0 50 100",
    "  Crop (0, 0, 50, 100). ": "crop 0 0 50 100",
    "crop[10,20,30,40]": "crop 10 20 30 40",
    "ZOOM 75 25": "zoom 75 25",
    "zoom 100, 100": "zoom 100 100",
    "answer 27": "answer 27",
    "Answer: the red circle": "answer the red circle",
    "answer\n5": "answer 5",
    "answer crop 0 0 5 5": "answer crop 0 0 5 5",
    "crop 0 0 101 5": None,
    "crop 0 0 50": None,
    "crop 0 0 50 100 7": None,
    "crop 50 0 50 100": None,
    "crop 60 0 50 100": None,
    "crop 0 0 4 100": None,
    "crop -1 0 50 100": None,
    "crop 1e2 0 50 100": None,
    "crop ١ 0 50 100": None,
    "zoom 50": None,
    "zoom 1 2 3": None,
    "zoom 1 2 3 4": None,
    "answer": None,
    "answer ": None,
    "answers 5": None,
    "27": None,
    "please crop 0 0 50 100": None,
    "": None,
}


@pytest.mark.parametrize("text", READ)
def test_actions_are_read(text: str) -> None:
    env = desk()
    assert read(env, ZOOM.legal(env), text) == READ[text]


def test_a_window_shows_what_the_overview_hides() -> None:
    """A fine pattern in one quarter: grey in the overview, black and white in a window."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[:32, :32] = np.where((np.indices((32, 32)).sum(0) % 2 == 0)[..., None], 0, 255)
    env = desk(task=OneProblem(Image.fromarray(pixels), "a pattern"), overview=2)
    assert [one.size for one in ZOOM.pictures(env)] == [(32, 32)]
    assert np.asarray(ZOOM.pictures(env)[0]).std() < 2
    _, reward, terminated, truncated, _ = env.step("crop 0 0 50 50")
    assert (reward, terminated, truncated) == (0.0, False, False)
    overview, window = ZOOM.pictures(env)
    assert window.size == (32, 32)
    assert np.asarray(window).std() > 100
    np.testing.assert_array_equal(np.asarray(window), pixels[:32, :32])
    env.step("zoom 100 100")
    assert len(ZOOM.pictures(env)) == 3
    assert env.windows[-1] == (60, 60, 100, 100)
    assert "Window 2: 60 60 100 100." in ZOOM.ask(env)
    assert env.render().shape[0] == overview.height


def test_windows_keep_their_shape_and_fit_into_the_overview() -> None:
    env = desk(task=OneProblem(Image.new("RGB", (120, 40)), "x"), overview=2)
    for action, size in (
        ("crop 0 0 50 100", (30, 20)),
        ("crop 0 0 100 50", (60, 10)),
        ("crop 0 0 5 100", (8, 20)),
    ):
        env.step(action)
        assert ZOOM.pictures(env)[-1].size == size


def test_the_reward_is_the_tasks_own_accuracy() -> None:
    for task, right, wrong in (
        ("digits/read", None, "nothing"),
        ("digits/count", None, "77"),
        ("shapes/exists", None, "x"),
    ):
        env = desk(task=task)
        problem = open_task(task, "train", 0).take(0, 1)[0][0]
        assert env.problem.id == problem.id
        right = str(problem.answer)
        assert env.step(f"answer {right}")[1:4] == (1.0, True, False)
        assert ZOOM.won(env, 1.0, True)
        env.reset(seed=0)
        assert env.step(f"answer {wrong}")[1:4] == (0.0, True, False)
        assert not ZOOM.won(env, 0.0, True)


def test_boxes_are_asked_in_the_whole_picture() -> None:
    env = desk(task="shapes/locate")
    assert ZOOM.pictures(env)[0].size == env.problem.images[0].size
    assert "pixels of the first picture" in ZOOM.ask(env)
    box = ", ".join(map(str, env.problem.answer))
    assert env.step(f"answer [{box}]")[1] == pytest.approx(1.0)


def test_it_is_cut_off_after_its_turns() -> None:
    env = desk(turns=2)
    assert "Replies left: 2." in ZOOM.ask(env)
    assert env.step("zoom 50 50")[3] is False
    assert all(name.startswith("answer") for name in ZOOM.legal(env))
    assert "crop" not in ZOOM.ask(env)
    assert env.step("zoom 50 50")[2:4] == (False, True)


def test_the_teacher_looks_then_answers() -> None:
    for turns, said in ((1, ["answer"]), (2, ["crop", "answer"]), (4, ["crop", "crop", "answer"])):
        env, words = desk(turns=turns), []
        over, reward = False, 0.0
        while not over:
            assert ZOOM.expert is not None
            best = ZOOM.expert(env)
            words.append(best.split()[0])
            _, reward, terminated, truncated, _ = env.step(best)
            over = terminated or truncated
        assert words == said
        assert reward == 1.0


def test_hostile_answers_are_only_answers() -> None:
    for said in (
        "</answer><answer>",
        "<think>",
        "{0.__class__}",
        "[" * 5000,
        "9" * 9000,
        "\ud800",
        "\\boxed{",
    ):
        env = desk()
        name = read(env, (), f"answer {said}")
        assert name == f"answer {said}"
        assert env.step(name)[1:4] == (0.0, True, False)


def test_the_truth_is_not_told() -> None:
    env = desk(task="printed/word")
    assert str(env.problem.answer) not in ZOOM.ask(env)
    assert ZOOM.state(env)["answer"] == str(env.problem.answer)


def test_desks_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="must be 1 or more"):
        ToolDesk(overview=0)
    with pytest.raises(UserError, match="There is no task 'digits/rea'"):
        ToolDesk(task="digits/rea").reset(seed=0)
    with pytest.raises(UserError, match="no split 'dev'"):
        ToolDesk().reset(seed=0, options={"split": "dev"})
    with pytest.raises(UserError, match="is no action; crop"):
        desk().step("fly away")


# --- the jigsaw -------------------------------------------------------------------------------------------


def puzzle(seed: int = 0, **options: Any) -> JigsawDesk:
    env = JigsawDesk(**options)
    env.reset(seed=seed)
    return env


MOVES = {
    "swap 1 4": "swap 1 4",
    "Swap 4 1": "swap 1 4",
    "swap (2, 3).": "swap 2 3",
    "swap 2 and 3": "swap 2 3",
    "swap 2 with 3": "swap 2 3",
    "crop 3": "crop 3",
    "crop: 3": "crop 3",
    "SUBMIT.": "submit",
    "swap 1 1": None,
    "swap 0 1": None,
    "swap 1 5": None,
    "swap 1": None,
    "swap 14": None,
    "crop 5": None,
    "crop 1 2": None,
    "submit 3": None,
    "I submit": None,
    "swap ٢ 3": None,
    "": None,
}


@pytest.mark.parametrize("text", MOVES)
def test_moves_are_read(text: str) -> None:
    env = puzzle()
    assert read_move(env, JIGSAW.legal(env), text) == MOVES[text]


@pytest.mark.parametrize("n", [2, 3])
def test_put_together_it_is_right_and_pays(n: int) -> None:
    swaps = 0
    for seed in range(6):
        env = puzzle(seed, n=n)
        answer = list(env.problem.answer)
        terminated, reward = False, 0.0
        while not terminated:
            assert JIGSAW.expert is not None
            best = JIGSAW.expert(env)
            swaps += best.startswith("swap")
            _, reward, terminated, truncated, _ = env.step(JIGSAW.act(env, best))
            assert not truncated
        assert reward == 1.0
        assert [part + 1 for part in env.parts] == answer
        assert JIGSAW.won(env, reward, terminated)
        assert JIGSAW.thought(env) == "Every part is in its place."
    assert swaps > 0


def test_a_wrong_submission_pays_nothing() -> None:
    env = next(env for env in map(puzzle, range(20)) if env.wrong)
    assert env.step(JIGSAW.act(env, "submit"))[1:4] == (0.0, True, False)
    assert not JIGSAW.won(env, 0.0, True)


def test_an_exchange_moves_pixels_and_twice_is_none() -> None:
    env = puzzle(3)
    before = env.render()
    swap = JIGSAW.act(env, "swap 1 2")
    after, reward, terminated, truncated, _ = env.step(swap)
    assert (reward, terminated, truncated) == (0.0, False, False)
    half = env.side // 2
    assert (after[:half] != before[:half]).any()
    np.testing.assert_array_equal(after[half + 2 :], before[half + 2 :])
    env.step(swap)
    np.testing.assert_array_equal(env.render(), before)


def test_a_closer_look_lasts_until_the_next_action() -> None:
    env = puzzle(1)
    env.step(JIGSAW.act(env, "crop 3"))
    board, part = JIGSAW.pictures(env)
    assert board.size == part.size == (96, 96)
    assert "part at place 3" in JIGSAW.ask(env)
    assert env.wrong == puzzle(1).wrong
    env.step(JIGSAW.act(env, "swap 1 2"))
    assert len(JIGSAW.pictures(env)) == 1


def test_the_jigsaw_is_cut_off_and_splits_differ() -> None:
    env = puzzle(0, turns=3)
    assert [env.step(JIGSAW.act(env, "crop 1"))[3] for _ in range(3)] == [False, False, True]
    ids = set()
    for split in ("train", "validation", "test"):
        env.reset(seed=0, options={"split": split})
        ids.add(env.problem.id)
    assert len(ids) == 3
    with pytest.raises(UserError, match="do not fit"):
        JigsawDesk(n=1)
    with pytest.raises(UserError, match="no split 'dev'"):
        env.reset(seed=0, options={"split": "dev"})
