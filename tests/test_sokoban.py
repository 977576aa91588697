"""Sokoban: boards that can be solved, of their split, and a teacher whose way is shortest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fovea.tasks.splits import split_of
from fovea.types import UserError

pytest.importorskip("gymnasium")

from fovea.environments.sokoban import (
    MOVES,
    SOKOBAN,
    Board,
    Position,
    Sokoban,
    moved,
    solution,
    written,
)


def board_of(text: str) -> tuple[Board, Position]:
    """Read what `written` writes."""
    cells = {(r, c): sign for r, line in enumerate(text.split("\n")) for c, sign in enumerate(line)}
    place = {
        name: frozenset(at for at, sign in cells.items() if sign in signs) for name, signs in SIGNS.items()
    }
    board = Board(size=len(text.split("\n")), walls=place["walls"], goals=place["goals"])
    return board, Position(next(iter(place["player"])), place["boxes"])


SIGNS = {"walls": "#", "goals": ".*+", "boxes": "$*", "player": "@+"}
WALL = "#####\n"


def played(env: Any, names: tuple[str, ...]) -> tuple[float, bool]:
    total, terminated = 0.0, False
    for name in names:
        _, reward, terminated, _, _ = env.step(SOKOBAN.act(env, name))
        total += reward
    return total, terminated


@pytest.mark.parametrize(("size", "boxes"), [(5, 1), (6, 1), (6, 2), (7, 2)])
def test_every_board_can_be_solved_as_the_teacher_says(size: int, boxes: int) -> None:
    env = Sokoban(size=size, boxes=boxes)
    for seed in range(12):
        env.reset(seed=seed)
        way = solution(env.board, env.now)
        assert way is not None
        assert len(way) >= 4
        assert not env.now.boxes & env.board.goals
        assert len(env.now.boxes) == len(env.board.goals) == boxes
        total, terminated = played(env, way)
        assert terminated
        assert SOKOBAN.won(env, total, terminated)


def test_boards_belong_to_their_split_and_are_shared_by_none() -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        env = Sokoban()
        for seed in range(40):
            env.reset(seed=seed, options={"split": split})
            assert split_of(env.text()) == split
            seen.setdefault(split, set()).add(env.text())
    assert len(seen["train"]) > 35
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]


def test_a_reset_is_a_function_of_seed_and_split_and_goes_on_without_one() -> None:
    one, two = Sokoban(), Sokoban()
    for split in ("train", "test"):
        texts = []
        for env in (one, two):
            env.reset(seed=5, options={"split": split})
            first = env.text()
            env.reset(options={"split": split})
            texts.append((first, env.text()))
        assert texts[0] == texts[1]
        assert texts[0][0] != texts[0][1]


def test_what_a_move_does() -> None:
    board, start = board_of(WALL + "#@$.#\n#   #\n#  ##\n" + WALL.strip())
    assert written(board, start) == WALL + "#@$.#\n#   #\n#  ##\n" + WALL.strip()
    pushed = moved(board, start, "right")
    assert pushed is not None
    assert pushed == Position((1, 2), frozenset({(1, 3)}))
    assert moved(board, pushed, "right") is None  # a box against the wall
    assert moved(board, start, "up") is None
    walked = moved(board, start, "down")
    assert walked == Position((2, 1), start.boxes)
    two, here = board_of(WALL + "#@$$#\n#...#\n#   #\n" + WALL.strip())
    assert moved(two, here, "right") is None  # two boxes in a row


def test_the_teacher_finds_a_shortest_way() -> None:
    """Against an exhaustive search that knows nothing of it: iterative deepening over moves."""

    def reaches(board: Board, now: Position, left: int) -> bool:
        if now.boxes == board.goals:
            return True
        after = [moved(board, now, name) for name in MOVES] if left else []
        return any(one is not None and reaches(board, one, left - 1) for one in after)

    env = Sokoban(size=5, boxes=1)
    for seed in range(8):
        env.reset(seed=seed)
        way = solution(env.board, env.now)
        assert way is not None
        if len(way) <= 8:
            assert not reaches(env.board, env.now, len(way) - 1)


def test_a_lost_board_has_no_solution_but_a_legal_answer() -> None:
    board, now = board_of("#####\n#$ .#\n#  @#\n#   #\n#####")
    assert solution(board, now) is None
    env = Sokoban(size=5)
    env.reset(seed=0)
    env.board, env.now = board, now
    assert SOKOBAN.expert is not None
    assert SOKOBAN.expert(env) in SOKOBAN.legal(env)


def test_rewards_are_those_that_are_written() -> None:
    env = Sokoban(size=5)
    env.reset(seed=0)
    env.board, env.now = board_of("#####\n#@$.#\n#   #\n#   #\n#####")
    assert env.step(3)[1:3] == (pytest.approx(-0.1 + 1 + 10), True)
    env.board, env.now = board_of("#####\n#@*.#\n#$  #\n#   #\n#####")  # off one goal, onto the other
    assert env.step(3)[1:3] == (pytest.approx(-0.1), False)
    env.board, env.now = board_of("#####\n#@* #\n#$. #\n#   #\n#####")
    assert env.step(3)[1:3] == (pytest.approx(-0.1 - 1), False)
    assert env.step(0)[1:3] == (
        pytest.approx(-0.1),
        False,
    )  # against the wall: nothing but the cost of a move


def test_legal_moves_are_those_that_change_something() -> None:
    env = Sokoban(size=6, boxes=2)
    for seed in range(10):
        env.reset(seed=seed)
        before = env.text()
        legal = SOKOBAN.legal(env)
        assert legal
        for name in MOVES:
            env.reset(seed=seed)
            env.step(SOKOBAN.act(env, name) if name in legal else list(MOVES).index(name))
            assert (env.text() != before) == (name in legal)


def test_the_picture_tells_all_positions_apart() -> None:
    """What stands where can be read off the picture: different boards never look alike."""
    env = Sokoban(size=5, tile=8)
    seen: dict[bytes, str] = {}
    for seed in range(30):
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        for _ in range(8):
            picture = env.render()
            assert picture.dtype == np.uint8
            assert picture.shape == (40, 40, 3)
            assert seen.setdefault(picture.tobytes(), env.text()) == env.text()
            env.step(int(rng.integers(4)))
    assert len(set(seen.values())) == len(seen)


def test_what_is_said_is_true() -> None:
    env = Sokoban(size=6, boxes=2)
    env.reset(seed=3)
    state = SOKOBAN.state(env)
    assert state["board"] == env.text()
    assert len(state["boxes"]) == len(state["goals"]) == 2
    thought = SOKOBAN.thought(env)
    assert f"row {env.now.player[0] + 1}, column {env.now.player[1] + 1}" in thought
    assert "Boxes" in thought
    assert SOKOBAN.reason is not None
    board, now = board_of("#####\n#@$.#\n#   #\n#   #\n#####")
    env.board, env.now = board, now
    assert SOKOBAN.reason(env, "right") == "Push the box right."
    assert SOKOBAN.reason(env, "down").startswith("Walk down")


@pytest.mark.parametrize(
    "options", [{"size": 4}, {"boxes": 0}, {"size": 5, "boxes": 3}, {"tile": 2}, {"size": 40}]
)
def test_boards_that_cannot_be_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="do not fit"):
        Sokoban(**options)


def test_boards_that_are_too_rare_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fovea.environments.sokoban.TRIES", 200)
    with pytest.raises(UserError, match="no board of size 5"):
        Sokoban(size=5, least=60).reset(seed=0)
    with pytest.raises(UserError, match="no split 'dev'"):
        Sokoban().reset(seed=0, options={"split": "dev"})
