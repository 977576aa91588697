"""Controllers of difficulty and mixtures: held in the band, the same when made again, refused where they do nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fovea.config import DifficultySection, Run
from fovea.tasks.curriculum import Controller, Curriculum, MixedTask
from fovea.tasks.opening import open_also, open_named
from fovea.training.problems import open_tasks
from fovea.types import Problem, UserError


def controller(**changes: object) -> Controller:
    return Controller(**({"low": 0.4, "high": 0.7, "change": 0.1, "window": 4, "levels": [0.5]} | changes))  # type: ignore[arg-type]


def test_decisions_by_hand() -> None:
    """window 4: three problems decide nothing; the fourth makes the mean (1 + 1 + 0 + 1) / 4 = 0.75 > 0.7: harder."""
    one = controller()
    one.observe([1.0, 1.0, 0.0], 3)
    assert one.levels == [0.5]
    one.observe([1.0], 4)
    assert (one.since, one.levels) == ([0, 4], [0.5, 0.6])
    one.observe([0.5, 0.5, 0.5, 0.5], 8)  # inside the band
    assert one.levels == [0.5, 0.6]
    one.observe([0.0] * 8, 16)  # one decision a step, however many problems it has
    assert (one.since, one.levels) == ([0, 4, 16], [0.5, 0.6, 0.5])
    assert [one.at(i) for i in (0, 3, 4, 15, 16, 999)] == [0.5, 0.5, 0.6, 0.6, 0.5, 0.5]


def test_the_level_stays_in_0_to_1_and_where_it_is_without_control() -> None:
    top, bottom, fixed = controller(levels=[0.95]), controller(levels=[0.05]), controller(control=False)
    for step in range(5):
        top.observe([1.0] * 4, step)
        bottom.observe([0.0] * 4, step)
        fixed.observe([1.0] * 4, step)
    assert (top.level, bottom.level, fixed.level) == (1.0, 0.0, 0.5)
    assert len(top.levels) == len(bottom.levels) == 2  # a change that changes nothing is not written down


@pytest.mark.parametrize("skill", [0.15, 0.5, 0.85])
def test_success_is_held_in_the_band(skill: float) -> None:
    """A policy that is right with probability 1 - level + (skill - 0.5): the band 0.4 to 0.7 is reached and kept."""
    rng = np.random.default_rng(0)
    one = controller(window=32, change=0.05, levels=[0.0 if skill > 0.5 else 1.0])
    shares = []
    for step in range(120):
        right = np.clip(1 - one.level + skill - 0.5, 0, 1)
        drawn = rng.binomial(8, right, 16) / 8
        one.observe(list(drawn), 16 * (step + 1))
        shares.append(drawn.mean())
    late = np.mean(shares[60:])
    assert 0.38 < late < 0.72, (late, one.level)
    assert len(set(one.levels)) > 2


def test_what_is_restored_goes_on_as_if_it_had_not_stopped() -> None:
    whole, first = controller(), controller()
    steps = [[1.0, 0.5], [1.0, 1.0], [0.0, 0.0, 0.0], [0.0], [0.5]]
    for place, success in enumerate(steps):
        whole.observe(success, place)
        if place < 2:
            first.observe(success, place)
    second = controller()
    second.restore(json.loads(json.dumps(first.state())))
    for place, success in enumerate(steps[2:], 2):
        second.observe(success, place)
    assert second == whole


def ssl_run(**changes: object) -> Run:
    return Run.model_validate({"task": "ssl/rotation", "pictures": {"side": 64}} | changes)


def test_a_changed_level_changes_what_follows_and_nothing_before() -> None:
    curriculum = Curriculum()
    task = open_named(
        ssl_run(difficulty={"control": True, "window": 2, "change": 0.5}), "train", 0, curriculum
    )
    before = task.take(0, 6)[0]
    metrics = curriculum.observe(before[:4], [1.0, 1.0, 1.0, 1.0], 4)
    assert metrics == {
        "success/ssl/rotation": 1.0,
        "problems/ssl/rotation": 4,
        "difficulty/ssl/rotation": 0.4,
    }
    after = task.take(0, 6)[0]
    assert [p.difficulty for p in after] == [0.4, 0.4, 0.4, 0.4, 0.9, 0.9]
    assert [p.images[0].tobytes() for p in after[:4]] == [p.images[0].tobytes() for p in before[:4]]
    assert "30" in after[5].question.split(":")[1]
    assert "30" not in before[5].question.split(":")[1].split(", ")


def test_a_mixture_has_its_shares_and_is_a_function_of_seed_and_index() -> None:
    mixture = {"digits/count": 3.0, "shapes/color": 1.0}
    task = open_named(Run(mixture=mixture), "train", 7)
    assert isinstance(task, MixedTask)
    problems = task.take(0, 400)[0]
    share = np.mean([problem.task == "digits/count" for problem in problems])
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 400)
    assert [task.take(i, 1)[0][0].id for i in range(20)] == [problem.id for problem in problems[:20]]
    assert len({problem.id for problem in problems}) == 400
    other = open_named(Run(mixture=mixture), "train", 8).take(0, 40)[0]
    assert [p.task for p in other] != [p.task for p in problems[:40]]
    assert task.kinds == ("number", "text")
    assert task.rewards == {"accuracy": 1.0, "format": 0.1}
    assert task.name == "digits/count+shapes/color"


def test_training_is_controlled_and_measuring_is_not() -> None:
    run = ssl_run(difficulty={"control": True, "window": 1, "level": 0.2})
    training, validation, held_out = open_tasks(run)
    parts: dict[str, Curriculum] = {"c": training.curriculum, "v": validation.curriculum}  # type: ignore[attr-defined]
    for part in parts.values():
        for _ in range(3):
            part.observe(training.take(0, 2)[0], [1.0, 1.0], 2)
    assert training.take(2, 1)[0][0].difficulty > 0.2
    assert validation.take(2, 1)[0][0].difficulty == held_out.take(2, 1)[0][0].difficulty == 0.2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "digits/count", "images": "x"}, "images=x would do nothing with digits/count"),
        ({"mixture": {"ssl/rotatoin": 1}}, "there is no such task .did you mean 'ssl/rotation'"),
        ({"task": "ssl/rotation", "task_options": {"ssl/jigsaw": {}}}, "task_options.ssl/jigsaw would do nothing"),
        ({"task": "ssl/rotation", "task_options": {"ssl/rotation": {"stp": 3}}}, "no option 'stp'"),
        ({"task": "ssl/rotation", "task_options": {"ssl/rotation": {"step": "x"}}}, "step='x' is not allowed"),
        ({"task": "ssl/rotation", "difficulty": {"levels": {"a": 0.1}}}, "difficulty.levels.a would do nothing"),
        ({"mixture": {"digits/count": 1, "digits/count@think": 1}}, "names a task twice"),
        ({"task": "ssl/rotation", "validation_images": "x"}, "needs images=FOLDER beside it"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_named(Run.model_validate(values), "train", 0)


@pytest.mark.parametrize(
    "section", [{"low": 0.7, "high": 0.4}, {"level": 1.2}, {"levels": {"ssl/rotation": 2}}]
)
def test_a_section_that_makes_no_sense_is_refused(section: dict) -> None:
    with pytest.raises(ValueError, match=r"below|less than or equal|0 to 1"):
        DifficultySection.model_validate(section)


def test_a_downstream_task_takes_what_concerns_it() -> None:
    run = ssl_run(
        images=None, difficulty={"levels": {"ssl/rotation": 0.9}}, evaluation={"also": "digits/count"}
    )
    problem: Problem = open_also(run, "digits/count", "test", 0).take(0, 1)[0][0]
    assert problem.task == "digits/count"
