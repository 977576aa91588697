"""What holds of every self-supervised task: repeatable, its own truth is right in every style, nothing leaks out."""

from __future__ import annotations

import functools
import json

import pytest
from test_ssl_views import pool_of

from fovea.boxes import fill, unmarked
from fovea.rewards import correct, has_format, weigh
from fovea.tasks import SSL, STYLES, check_task
from fovea.tasks.ssl import SslTask, open_ssl
from fovea.tasks.ssl.spec import check_options, options_of
from fovea.types import Problem

SIDE, LEVELS = 64, (0.1, 0.9)


@functools.cache
def opened(name: str, level: float, seed: int = 3) -> SslTask:
    return open_ssl(name, seed=seed, pool=pool_of(name.partition("@")[0], SIDE), level=level)


@functools.cache
def first(name: str, level: float) -> tuple[Problem, ...]:
    return tuple(opened(name, level).take(0, 3)[0])


def written(problem: Problem) -> str:
    return fill(problem.target or "", lambda box: box, "pixels")


@pytest.mark.parametrize("name", SSL)
def test_problem_is_a_function_of_seed_index_and_difficulty(name: str) -> None:
    a, b = first(name, 0.1)[2], opened(name, 0.1).problem(2)
    assert [i.tobytes() for i in a.images] == [i.tobytes() for i in b.images]
    assert (a.question, a.answer, a.id, a.target, a.meta) == (b.question, b.answer, b.id, b.target, b.meta)
    other = opened(name, 0.1, seed=4).problem(2)
    assert [i.tobytes() for i in other.images] != [i.tobytes() for i in a.images]
    assert (a.difficulty, first(name, 0.9)[2].difficulty) == LEVELS


@pytest.mark.parametrize("name", SSL)
def test_truth_earns_all_there_is(name: str) -> None:
    found = SSL[name]
    assert set(found.reward_options) <= set(found.rewards)
    for problem in (*first(name, 0.1), *first(name, 0.9)):
        total, _ = weigh([written(problem)], problem, found.rewards, options=found.reward_options)
        assert total[0] == pytest.approx(sum(found.rewards.values())), (written(problem), problem.answer)


@pytest.mark.parametrize("name", SSL)
def test_the_teachers_reply_is_right_in_every_style(name: str) -> None:
    for style in STYLES:
        problem = opened(f"{name}@{style}", 0.4).problem(0)
        assert correct(written(problem), problem), (written(problem), problem.answer)
        assert has_format(written(problem)) == (style in ("answer", "think"))


@pytest.mark.parametrize("name", SSL)
def test_pictures_fit_and_the_question_is_plain(name: str) -> None:
    for level in LEVELS:
        for problem in first(name, level):
            assert problem.images
            assert all(max(i.size) <= SIDE and i.mode == "RGB" for i in problem.images)
            assert len(problem.question.split()) <= 60
            assert "{" not in problem.question
            assert (problem.target or "") == unmarked(problem.target or "")
            assert 0 < problem.meta["chance"] < 1
            assert 0 < opened(name, level).chance < 1
            json.dumps(problem.meta)


@pytest.mark.parametrize("name", SSL)
def test_check_finds_nothing_wrong(name: str) -> None:
    assert check_task(opened(name, 0.4, seed=5), 3).bad == ()


@pytest.mark.parametrize("name", SSL)
def test_chance_takes_the_options_of_make(name: str) -> None:
    found, given = SSL[name], options_of(SSL[name])
    assert check_options(name, found, given) == given  # every default is of its own declared type
    chances = [found.chance(level / 4, **given) for level in range(5)]
    assert 0 < chances[-1] <= chances[0] < 1  # no easier to guess where it is harder
    assert found.about
    assert found.answer
    assert found.shortcuts
    if found.paper is not None:
        assert set(check_options(name, found, {"paper": True})) == set(found.paper)
