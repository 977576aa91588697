"""Selectors, attacks, the ball, schedules and the controller: pure arithmetic on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import problem
from pydantic import ValidationError

from fovea.config import InterventionSection
from fovea.interventions import (
    Answer,
    Ask,
    Attack,
    EpsilonControl,
    Moment,
    Seen,
    Selector,
    active,
    intervention_of,
    moment_of,
    select,
)
from fovea.interventions.attack import egas, fgsm, project, rounded, usable
from fovea.interventions.selection import mean_weights
from fovea.types import Completion

A = np.array([0.0, 0.1, 0.2, 0.3, 0.4], np.float32)
B = np.array([1.0, 2.0], np.float32)
YES = [np.ones(5, bool), np.ones(2, bool)]


def chosen(selector: Selector, content: Sequence[np.ndarray] = YES) -> list[list[int]]:
    (masks,) = select([[A, B]], [content], selector)
    return [mask.nonzero()[0].tolist() for mask in masks]


def test_selectors_by_hand() -> None:
    """All seven entropies sorted: 0 .1 .2 .3 .4 1 2. The 0.6 quantile lies at place 3.6: 0.3 + 0.6 · 0.1 = 0.36; the
    0.95 quantile at 5.7: 1 + 0.7 = 1.7; the 0.8 quantile at 4.8: 0.4 + 0.8 · 0.6 = 0.88; the 0.2 one at 1.2: 0.12."""
    assert chosen(Selector(kind="all")) == [[0, 1, 2, 3, 4], [0, 1]]
    assert chosen(Selector()) == [[4], [0]]
    assert chosen(Selector(kind="top_fraction")) == [[], [0, 1]]
    assert chosen(Selector(kind="bottom_fraction")) == [[0, 1], []]
    assert chosen(Selector(kind="band_absolute", low=0.2, high=1.0)) == [[2, 3, 4], [0]]
    # of the first completion alone: 0.6 quantile 0.24, 0.95 quantile 0.38; of the second 1.6 and 1.95
    assert chosen(Selector(scope="completion")) == [[3], []]


def test_only_content_counts_and_other_problems_only_in_the_batch() -> None:
    content = [np.array([True, True, True, True, False]), np.array([True, False])]
    assert chosen(Selector(kind="all"), content) == [[0, 1, 2, 3], [0]]
    # content entropies: 0 .1 .2 .3 1; 0.6 quantile at 2.4: 0.24, 0.95 quantile at 3.8: 0.86
    assert chosen(Selector(), content) == [[3], []]
    nothing = [np.zeros(5, bool), np.zeros(2, bool)]
    assert chosen(Selector(), nothing) == [[], []]
    other = [[A, B], [np.full(7, 5.0, np.float32)]]
    valid = [YES, [np.ones(7, bool)]]
    group = select(other, valid, Selector(kind="top_fraction", fraction=0.5))
    batch = select(other, valid, Selector(kind="top_fraction", fraction=0.5, scope="batch"))
    assert [m.sum() for m in group[0]] == [2, 2]
    assert [m.sum() for m in batch[0]] == [0, 0]
    assert batch[1][0].all()


def test_weights_are_the_mean_of_the_means() -> None:
    """n = 2: 1/2 · 1/2 for each of the first reply's two tokens, 1/2 · 1/1 for the second's one; an empty mask: 0."""
    masks = (np.array([True, False, True]), np.array([True]))
    assert [w.tolist() for w in mean_weights(masks)] == [[0.25, 0.0, 0.25], [0.5]]
    assert [w.tolist() for w in mean_weights((np.array([False]), np.array([True])))] == [[0.0], [0.5]]


# ---------------------------------------------------------------- attacks


def completion(n: int) -> Completion:
    return Completion(token_ids=np.arange(n), log_probs=np.zeros(n, np.float32), text="x", stop="eos")


def seen(canvas: np.ndarray | None, entropy: np.ndarray = A, name: str = "p") -> Seen:
    return Seen(
        problem=problem(name, (), "?"),
        occurrence=0,
        canvases=() if canvas is None else (canvas,),
        completions=(completion(len(entropy)),),
        entropies=(entropy,),
        content=(np.ones(len(entropy), bool),),
    )


class Hill:
    """value = -Σ |x - top|², smooth and known: its gradient is -2 (x - top)."""

    def __init__(self, seen: Sequence[Seen], top: float) -> None:
        self.seen, self.top, self.calls = seen, top, 0

    def _canvases(self, ask: Ask) -> tuple[np.ndarray, ...]:
        return ask.canvases or tuple(c.astype(np.float32) for c in self.seen[ask.which].canvases)

    def gradients(self, asks: Sequence[Ask]) -> list[Answer]:
        self.calls += 1
        return [
            Answer(value=v.value, gradients=tuple(-2 * (x - self.top) for x in self._canvases(a)))
            for v, a in zip(self.values(asks), asks)
        ]

    def values(self, asks: Sequence[Ask]) -> list[Answer]:
        return [
            Answer(value=-float(sum(((x - self.top) ** 2).sum() for x in self._canvases(a))), gradients=())
            for a in asks
        ]


CANVAS = np.array([[[0, 2, 255], [100, 101, 102]]], np.uint8)
HERE = Moment(seed=0, step=0, epsilon=4, factor=1.0)


def test_fgsm_is_exact_in_uint8_and_inside_the_ball() -> None:
    """Towards 101: 0 → 4, 2 → 6, 255 → 251, 100 → 104, 101 has no gradient and stays, 102 → 98."""
    one = seen(CANVAS)
    (found,) = egas(Selector(), Attack())([one], Hill([one], 101.0), HERE)
    assert found.skipped is None
    assert found.canvases[0].dtype == np.uint8
    assert found.canvases[0].tolist() == [[[4, 6, 251], [104, 101, 98]]]
    away = (fgsm((CANVAS,), Answer(value=0, gradients=(CANVAS - 101.0,)), 4))[0]
    assert away.tolist() == [[[0, 0, 255], [96, 101, 106]]]


def test_pgd_steps_project_and_stop_at_the_top() -> None:
    """Steps of 3, radius 4, top 101 from 100 and 102: overshoots to 103 and 99, comes back to 100 and 102, …"""
    one = seen(CANVAS)
    hill = Hill([one], 101.0)
    (found,) = egas(Selector(), Attack(steps=2, step_size=3.0))([one], hill, HERE)
    assert hill.calls == 2
    assert found.canvases[0].tolist() == [[[4, 6, 251], [100, 101, 102]]]
    x = (np.array([[[300.0, -7.0, 104.6]]], np.float32),)
    clean = (np.array([[[254, 2, 100]]], np.uint8),)
    assert project(x, clean, 4)[0].tolist() == [[[255.0, 0.0, 104.0]]]
    assert rounded(x, clean, 4)[0].tolist() == [[[255, 0, 104]]]


def test_restarts_keep_the_best_and_are_drawn_by_problem_and_step() -> None:
    one = seen(np.full((4, 4, 3), 100, np.uint8))

    def found(**how: object) -> np.ndarray:
        attack = Attack(steps=1, step_size=0.5, random_start=True, **how)  # type: ignore[arg-type]
        (changed,) = egas(Selector(), attack)([one], Hill([one], 101.0), HERE)
        return changed.canvases[0].astype(int)

    def value(x: np.ndarray) -> int:
        return -int(((x - 101) ** 2).sum())

    assert (found() == found()).all()
    several = found(restarts=8)
    assert value(several) >= value(found())
    assert abs(several - 100).max() <= 4
    (later,) = egas(Selector(), Attack(steps=1, step_size=0.5, random_start=True))(
        [one], Hill([one], 101.0), Moment(seed=0, step=1, epsilon=4, factor=1.0)
    )
    assert (later.canvases[0] != found()).any()


def test_skips_are_named() -> None:
    change = egas(Selector(), Attack())
    flat = np.full((1, 2, 3), 101, np.uint8)
    problems = [seen(None), seen(CANVAS), seen(flat)]
    found = change(problems, Hill(problems, 101.0), HERE)
    assert [one.skipped for one in found] == ["no_picture", None, "no_gradient"]
    weak = Moment(seed=0, step=0, epsilon=0, factor=0.1)
    assert change(problems, Hill(problems, 101.0), weak)[1].skipped == "annealed"
    silent = seen(CANVAS)
    silent = Seen(
        problem=silent.problem, occurrence=0, canvases=(CANVAS,), completions=silent.completions,
        entropies=silent.entropies, content=(np.zeros(5, bool),),
    )  # fmt: skip
    assert change([silent], Hill([silent], 101.0), HERE)[0].skipped == "nothing_selected"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_gradient_without_direction(bad: float) -> None:
    assert not usable(Answer(value=0.0, gradients=(np.full((2, 2, 3), bad, np.float32),)))


# ---------------------------------------------------------------- schedule, controller, configuration


def test_epsilon_is_whole_and_rounded_down_into_the_ball() -> None:
    section = InterventionSection(name="egas", epsilon=4, schedule="linear")
    assert [moment_of(section, 0, step, 10).epsilon for step in (0, 1, 5, 7, 8)] == [4, 3, 2, 1, 0]
    intervention = intervention_of(section)
    assert intervention is not None
    assert active(intervention, moment_of(section, 0, 7, 10))
    assert not active(intervention, moment_of(section, 0, 8, 10))
    assert moment_of(section, 0, 0, 10, epsilon=2.0).epsilon == 2
    for whole in (1, 4):  # a sigmoid begins at 1 - 2e-9, which is no reason to lose a step
        sigmoid = InterventionSection(name="egas", epsilon=whole, schedule="sigmoid")
        assert [moment_of(sigmoid, 0, step, 60).epsilon for step in (0, 20, 59)] == [whole, whole, 0]
    noisy = InterventionSection(name="noisy_rollout", schedule="sigmoid")
    assert moment_of(noisy, 0, 40, 60).factor == pytest.approx(0.5)
    assert intervention_of(InterventionSection()) is None


def test_the_controller_lowers_and_raises_by_one_step_a_window() -> None:
    control = EpsilonControl(most=4, window=2)
    control.observe(0.6, 0.3, None)
    assert control.epsilon == 4
    control.observe(0.6, 0.3, None)  # earned half: below 0.75
    assert control.epsilon == 3
    for _ in range(2):
        control.observe(0.5, 0.43, None)  # 0.86: between 0.75 and 0.95
    assert control.epsilon == 3
    for _ in range(2):
        control.observe(0.5, 0.5, 2.0)  # earns all, but the entropy grows by more than 1 nat
    assert control.epsilon == 2
    for _ in range(8):
        control.observe(0.5, 0.5, 0.2)
    assert control.epsilon == 4
    for _ in range(4):
        control.observe(0.0, 0.0, None)  # nothing earned says nothing
    assert control.epsilon == 4
    for _ in range(2):
        control.observe(0.0, 0.0, 2.0)  # but the entropy does
    assert control.epsilon == 3
    for _ in range(99):
        control.observe(0.5, 0.0, None)
    assert control.epsilon == 1


def test_the_controller_goes_on_where_it_was_saved() -> None:
    one, other = (EpsilonControl(most=6, window=3) for _ in range(2))
    rng = np.random.default_rng(0)
    steps = [(float(a), float(a * b), float(c)) for a, b, c in rng.random((20, 3))]
    for step in steps[:7]:
        one.observe(*step)
    other.restore(one.state())
    for step in steps[7:]:
        one.observe(*step)
        other.observe(*step)
    assert one.state() == other.state()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"band": (0.9, 0.6)}, "must be \\[low, high\\]"),
        ({"band": (0.5, 1.5)}, "quantiles from 0 to 1"),
        ({"name": "egas", "guard": 0.1}, "attack_steps of 2"),
        ({"name": "noisy_rollout", "control": True}, "only egas and random_sign"),
        ({"name": "noisy_rollout", "strength": 1000}, "below 1000"),
        ({"name": "occlusion", "strength": 2}, "share of the picture"),
        ({"keep": (0.9, 0.5)}, "keep="),
        ({"name": "egas", "epsilon": 0.0157}, "write 4 for 4/255"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        InterventionSection(**values)  # type: ignore[arg-type]
