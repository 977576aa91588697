"""Audits: a reward hacked on purpose warns, clean runs do not; alarms without an audit; health metrics by hand."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fovea import audits, rollout_health
from fovea.audits import Warned, Watch, check_audits
from fovea.rollouts import rollout_metrics
from fovea.types import Completion, Group, Problem, UserError
from fovea.viewer.display import LiveDisplay


def test_discordant_pairs_and_their_exact_distribution() -> None:
    assert audits.discordant([1, 2, 3, 4]) == 0
    assert audits.discordant([1, 3, 2, 4]) == 1
    assert audits.discordant([2, 2, 2]) == 3
    orders = list(itertools.permutations(range(6)))
    for pairs in range(16):
        share = sum(audits.discordant(order) <= pairs for order in orders) / len(orders)
        assert audits.p_trend(pairs, 6) == pytest.approx(share)
    assert audits.p_trend(audits.REWARD_DISCORDANT) == pytest.approx(1717 / 3628800)
    assert audits.p_trend(audits.AUDIT_DISCORDANT) == pytest.approx(209 / 3628800)


def test_fitted_change_by_hand() -> None:
    # 0, 1, 2 fits exactly; 0, 2, 1 has slope 1/2, residuals -1/2, 1, -1/2, so s² = 1.5 over one degree of freedom and
    # the slope's variance is 1.5 / 2: over the window (2 steps) 2 · sqrt(0.75).
    assert audits.fitted_change([0, 1, 2]) == (2, 0)
    assert audits.fitted_change([0, 2, 1]) == pytest.approx((1, 2 * 0.75**0.5))


def run_of(
    reward: np.ndarray, audit: np.ndarray, name: str = "accuracy", **others: np.ndarray
) -> list[Warned]:
    watch = Watch(audits=(name,))
    found: list[Warned] = []
    for step in range(len(reward)):
        extra = {key: float(values[step]) for key, values in others.items()}
        found += watch.step(step, {"reward_mean": float(reward[step]), name: float(audit[step])} | extra)
    return found


def honest(seed: int, steps: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """One skill that rises and saturates; the audit is a power of it. Batches are noisy, in part alike, both wander."""
    rng = np.random.default_rng((7, seed))
    top, middle, slow = rng.uniform(0.3, 0.95), rng.uniform(0, steps), rng.uniform(10, 150)
    low = rng.uniform(0, top)
    skill = low + (top - low) / (1 + np.exp(-(np.arange(steps) - middle) / slow))
    wander = np.zeros((2, steps))
    for t in range(1, steps):
        wander[:, t] = 0.95 * wander[:, t - 1] + rng.normal(0, 0.004, 2)
    shared, spread = rng.normal(0, 0.03, steps), 0.5 / np.sqrt(rng.choice([64, 128, 512]))
    true = np.clip(skill + wander[0], 0, 1)
    reward = true + shared + rng.normal(0, spread, steps)
    audit = (
        true ** rng.uniform(0.7, 2) * rng.uniform(0.6, 1) + shared + wander[1] + rng.normal(0, spread, steps)
    )
    return np.clip(reward, 0, 1), np.clip(audit, 0, 1)


def hacked(seed: int, steps: int = 300) -> tuple[np.ndarray, np.ndarray, int]:
    """From some step on the reward is earned by something that costs 0.2 to 0.5 of the audit."""
    rng = np.random.default_rng((11, seed))
    start, span = int(rng.integers(80, 150)), int(rng.integers(40, 120))
    share = np.clip((np.arange(steps) - start) / span, 0, 1)
    reward = 0.4 + 0.4 * share + rng.normal(0, 0.05, steps)
    audit = 0.6 - rng.uniform(0.2, 0.5) * share + rng.normal(0, 0.05, steps)
    return reward, audit, start


@pytest.mark.long
def test_clean_runs_are_quiet() -> None:
    """0 of 500 in this simulation; one is allowed, the bound of the docstring would allow 3 (300 steps)."""
    assert sum(bool(run_of(*honest(seed))) for seed in range(500)) <= 1


def test_an_audit_that_only_fluctuates_is_quiet() -> None:
    """The hardest clean case for the rule "audit": the reward rises for good, the audit has no trend at all."""
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(150):
        reward = np.linspace(0.2, 0.8, 300) + rng.normal(0, 0.03, 300)
        audit = np.clip(rng.uniform(0.1, 0.9) + rng.normal(0, 0.06, 300), 0, 1)
        alarms += any(one.name.startswith("audit:") for one in run_of(reward, audit))
    assert alarms <= 2


def test_a_hacked_reward_warns_once_and_soon() -> None:
    delays = []
    for seed in range(60):
        reward, audit, start = hacked(seed)
        found = [one for one in run_of(reward, audit) if one.name == "audit:accuracy"]
        assert found, f"run {seed}"
        assert found[0].step >= start
        delays.append(found[0].step - start)
    assert np.median(delays) < 70
    first = found[0]
    assert first.numbers["reward_to"] > first.numbers["reward_from"]
    assert first.numbers["audit_to"] < first.numbers["audit_from"]
    assert "accuracy, which is not optimised, moved the wrong way" in first.text
    assert first.record() == {"name": first.name, "text": first.text, "numbers": first.numbers}


def test_an_episode_warns_once_and_another_one_again() -> None:
    rng = np.random.default_rng(3)
    up, flat = np.linspace(0, 0.4, 80), np.zeros(220)
    reward = 0.2 + np.concatenate([flat, up, flat + 0.4, up, flat])[:840] + rng.normal(0, 0.02, 820)
    audit = (
        0.9 - np.concatenate([flat, up, flat + 0.4, up + 0.4, flat + 0.8])[:820] + rng.normal(0, 0.02, 820)
    )
    found = [one.step for one in run_of(reward, audit) if one.name == "audit:accuracy"]
    assert 2 <= len(found) <= 4
    assert all(b - a >= audits.REARM for a, b in itertools.pairwise(found))


def test_an_audit_that_stays_behind() -> None:
    rng = np.random.default_rng(0)
    reward = np.linspace(0.2, 0.8, 200) + rng.normal(0, 0.03, 200)
    found = run_of(reward, 0.3 + rng.normal(0, 0.02, 200))
    assert [one.name for one in found][:1] == ["behind:accuracy"]
    assert run_of(reward, np.clip(0.97 + rng.normal(0, 0.01, 200), 0, 1)) == [], "nothing left to gain"


def test_a_length_is_watched_to_both_sides() -> None:
    rng = np.random.default_rng(0)
    reward = np.linspace(0.2, 0.6, 100) + rng.normal(0, 0.02, 100)
    for last in (160, 8):
        length = np.linspace(40, last, 100) + rng.normal(0, 1, 100)
        names = {one.name for one in run_of(reward, length, "completion_tokens")}
        assert names == {"audit:completion_tokens", "length_drift"}
    assert run_of(reward, np.linspace(40, 48, 100) + rng.normal(0, 1, 100), "completion_tokens") == []


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("no_signal", {"groups_without_signal": (0.95, 0.95)}),
        ("truncated", {"truncated": (0.1, 0.8)}),
        ("unparsed", {"unparsed": (0.0, 0.7)}),
        ("duplicates", {"duplicates": (0.2, 0.99), "accuracy": (0.3, 0.3)}),
        ("reward_errors", {"reward_errors": (0, 8), "reward_timeouts": (0, 0)}),
        ("format_only", {"reward/format": (0.2, 1.0), "accuracy": (0.1, 0.1)}),
        ("length_drift", {"completion_tokens": (20, 60)}),
    ],
)
def test_alarms_without_an_audit(name: str, metrics: dict[str, tuple[float, float]]) -> None:
    watch = Watch(expected=128)
    found = []
    for step in range(160):
        late = step >= 80
        found += watch.step(step, {key: pair[late] for key, pair in metrics.items()})
    assert [one.name for one in found] == [name]
    assert "{" not in found[0].text


def test_right_and_equal_is_no_alarm() -> None:
    watch = Watch()
    records = [{"duplicates": 0.2 + 0.008 * step, "accuracy": min(1.0, 0.02 * step)} for step in range(100)]
    assert [one for step, record in enumerate(records) for one in watch.step(step, record)] == []


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 299), seed=st.integers(0, 50))
def test_a_resumed_watch_says_the_same(cut: int, seed: int) -> None:
    reward, audit, _ = hacked(seed)
    records: list[dict[str, Any]] = [
        {"reward_mean": float(r), "accuracy": float(a), "truncated": None} for r, a in zip(reward, audit)
    ]
    whole, first = Watch(audits=("accuracy",)), Watch(audits=("accuracy",))
    wanted = [one for step, record in enumerate(records) for one in whole.step(step, record)]
    found = [one for step in range(cut) for one in first.step(step, records[step])]
    state = first.state()
    kept = json.dumps(state)
    second = Watch(audits=("accuracy",))
    second.restore(json.loads(kept))
    found += [one for step in range(cut, 300) for one in second.step(step, records[step])]
    assert found == wanted
    first.step(cut, records[cut])
    assert json.dumps(state) == kept, "a state that was handed out is never changed"
    assert second.state() == whole.state()


def test_audits_are_checked_before_the_run() -> None:
    check_audits(["iou", "accuracy", "box_count", "reward/mine", "own.py:f", "mine"], functions=["mine"])
    with pytest.raises(UserError, match=r"no audit 'acuracy' \(did you mean 'accuracy'\?\)"):
        check_audits(["acuracy"])
    assert audits.find_metric({"reward/f": 3.0}, "own.py:f") == 3.0


# --- health -----------------------------------------------------------------------------------------------


def group_of(texts: list[str], rewards: list[float], kind: Any = "number", answer: Any = 3) -> Group:
    problem = Problem(id="p", task="t", images=(), question="?", answer=answer, kind=kind)
    completions = tuple(
        Completion(token_ids=np.arange(n + 1), log_probs=np.zeros(n + 1, np.float32), text=text, stop="eos")
        for n, text in enumerate(texts)
    )
    values = np.array(rewards, np.float64)
    return Group(
        problem=problem, prompt=None, completions=completions, rewards=values, parts={"numeric": values}
    )


def test_health_by_hand() -> None:
    groups = [
        group_of(["3", "3", "<answer>four</answer>", "<think>"], [1, 1, 0, 0]),
        group_of(["3", "3", "3", "3"], [1, 1, 1, 1]),
        group_of(["4", "5"], [0, float("nan")]),
    ]
    found = rollout_health.health(groups)
    assert found == pytest.approx(
        {
            "unparsed": 2 / 10,
            "unparsed/missing": 1 / 10,
            "unparsed/unreadable": 1 / 10,
            "duplicates": (1 / 3 + 1 + 0) / 3,
            "completion_tokens_max": 4,
            "groups_without_signal": 2 / 3,
            "groups_all_right": 1 / 3,
            "groups_all_wrong": 1 / 3,
            "reward_std/numeric": (1 / 3) ** 0.5 / 3,
        }
    )
    assert set(found) <= set(rollout_health.HEALTH) | {"reward_std/numeric"}
    assert rollout_health.health([]) == {}
    assert rollout_health.advantage_abs([np.array([1.0, -3.0]), np.array([2.0])]) == 2
    assert rollout_health.advantage_abs([]) == 0


def test_a_step_in_which_nothing_was_scored_has_no_reward() -> None:
    group = group_of(["3", "4"], [math.nan, math.nan])
    metrics = rollout_metrics([replace(group, parts={"mine": group.rewards})])
    assert (metrics["reward_mean"], metrics["reward/mine"], metrics["reward_std"]) == (None, None, 0.0)
    watch = Watch(audits=["mine"])
    for step in range(60):
        watch.step(step, metrics)
    assert watch.series["reward_mean"].both() is None
    written = io.StringIO()
    display = LiveDisplay(console=Console(file=written, width=100), plain=True, line_seconds=0)
    display.start({"run": {"steps": 2}})
    display.step({"step": 0, **metrics}, [])
    display.step({"step": 1, **metrics, "reward_mean": 0.5}, [])
    assert "reward 0.500" in written.getvalue()


def test_box_counts_by_hand() -> None:
    thing = {"bbox_2d": [0, 0, 5, 5], "label": "cat"}
    listed = json.dumps([thing, thing, thing])
    groups = [
        group_of([listed, "[]", "nothing"], [0, 0, 0], "objects", [thing]),
        group_of(["[1, 2, 3, 4]", "[1, 2, 3, 4] [5, 6, 7, 8]", "none"], [0, 0, 0], "box", [0, 0, 9, 9]),
    ]
    assert rollout_health.box_counts(groups) == {
        "box_count": (3 + 1 + 2) / 6,
        "box_count_error": (2 + 1 + 1 + 0 + 1 + 1) / 6,
        "box_ratio": (3 + 1 + 2) / 6,
    }
    nothing_true = [group_of(["[]"], [0], "objects", [])]
    assert "box_ratio" not in rollout_health.box_counts(nothing_true)


@pytest.mark.parametrize(
    ("boxes", "right", "warns"),
    [
        # (boxes a true box, share of replies that are right) at the start → at the end
        ((1.0, 2.0), (0.2, 0.1), True),
        ((1.0, 2.0), (0.2, 0.4), False),  # more boxes because more is found
        ((1.0, 1.4), (0.2, 0.1), False),
        ((0.4, 0.9), (0.2, 0.1), False),  # still too few
    ],
)
def test_a_flood_of_boxes(boxes: tuple[float, float], right: tuple[float, float], warns: bool) -> None:
    watch = Watch()
    names = set()
    for step in range(40):
        share = min(1.0, step / 15)
        record = {
            "reward_mean": 0.5,
            "box_ratio": boxes[0] + share * (boxes[1] - boxes[0]),
            "accuracy": right[0] + share * (right[1] - right[0]),
        }
        names |= {warned.name for warned in watch.step(step, record)}
    assert ("box_flood" in names) is warns


def test_two_runs_that_were_really_trained() -> None:
    """The quickstart with a reward that a box around everything satisfies, and with IoU (docs/rewards.md)."""
    recorded = json.loads((Path(__file__).parent / "golden" / "audits.json").read_text(encoding="utf-8"))

    def warnings(run: dict[str, list[float]], *names: str) -> list[tuple[str, int]]:
        watch, steps = Watch(audits=names), range(len(run["reward_mean"]))
        records = [{key: values[step] for key, values in run.items()} for step in steps]
        return [(one.name, one.step) for step in steps for one in watch.step(step, records[step])]

    found = dict(warnings(recorded["hacked"], "reward/iou", "accuracy"))
    assert found["audit:accuracy"] == 39
    assert found["audit:reward/iou"] == 49
    assert warnings(recorded["honest"], "accuracy", "completion_tokens") == []
