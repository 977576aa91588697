"""Problems made ahead are those that would have been made, errors included, and nothing waits when they are there."""

from __future__ import annotations

import threading
import time

import pytest

from fovea.training.ahead import Ahead
from fovea.types import Problem, UserError


class Counted:
    """A task that says who made what."""

    name, kind, chance, size = "counted", "number", 0.0, None

    def __init__(self) -> None:
        self.made: list[tuple[int, str]] = []

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        self.made += [(i, threading.current_thread().name) for i in range(cursor, cursor + n)]
        if cursor == 13:
            raise UserError("Problem 13 is bad.")
        problem = [
            Problem(id=f"{i}", task="counted", images=(), question="?", answer=i, kind="number")
            for i in range(cursor, cursor + n)
        ]
        return problem, cursor + n


@pytest.fixture
def ahead():
    made = Ahead(task=Counted())
    yield made
    made.close()


def test_what_was_begun_comes_from_the_thread_and_the_rest_at_once(ahead: Ahead) -> None:
    ahead.begin(4, 3)
    problems, cursor = ahead.take(4, 5)
    assert ([p.id for p in problems], cursor) == (["4", "5", "6", "7", "8"], 9)
    who = dict(ahead.task.made)
    assert [who[i].startswith("problems") for i in range(4, 9)] == [True, True, True, False, False]
    assert len(ahead.task.made) == 5  # none twice


def test_a_bad_problem_raises_where_it_is_taken(ahead: Ahead) -> None:
    ahead.begin(12, 2)
    assert ahead.take(12, 1)[0][0].id == "12"
    with pytest.raises(UserError, match="13 is bad"):
        ahead.take(13, 1)


def test_what_is_not_taken_is_forgotten(ahead: Ahead) -> None:
    ahead.begin(0, 2)
    ahead.begin(8, 1)
    time.sleep(0.05)
    assert ahead.take(8, 1)[0][0].id == "8"
    assert ahead.take(0, 1)[0][0].id == "0"
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("problems")]
