"""VLM-R1's studies in miniature: their problems, what counts as hacked, and an arm that is really run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fovea.models import load_policy
from fovea.models.policy import TINY
from fovea.recipes.vlm_r1._arms import Arm, curve_of, metrics_of, run_arms
from fovea.recipes.vlm_r1._naming import naming, naming_figures
from fovea.recipes.vlm_r1._sizes import write_size
from fovea.recipes.vlm_r1._tasks import DIGITS, FLAWED, MIXTURES, open_study_task
from fovea.recipes.vlm_r1.hacking import verdict
from fovea.rewards import correct
from fovea.tasks import open_task

NAMES = [*DIGITS, *MIXTURES, *FLAWED, "digits/detect"]


@pytest.mark.parametrize("name", NAMES)
def test_problems_are_a_function_of_seed_and_index(name: str) -> None:
    task = open_study_task(name, "train", 3)
    (alone,), _ = task.take(7, 1)
    together, cursor = task.take(4, 6)
    assert cursor == 10
    assert (together[3].question, together[3].answer, together[3].target) == (
        alone.question, alone.answer, alone.target,
    )  # fmt: skip
    assert together[3].images[0].tobytes() == alone.images[0].tobytes()
    assert (
        open_study_task(name, "train", 4).take(7, 1)[0][0].answer != alone.answer or name == "digits/detect"
    )


def test_a_relation_means_one_digit() -> None:
    """Left of N: nothing else is left of it. The answer's box ends left of the middle of the other digit."""
    for problem in open_study_task("digits/relation", "test", 0).take(0, 40)[0]:
        described = problem.question.split()
        assert described[4] in ("left", "right")
        assert problem.answer[0] < problem.answer[2] <= problem.images[0].size[0]


def test_noise_is_in_the_stated_share_and_nowhere_else() -> None:
    noisy, clean = open_study_task("digits/noisy", "train", 0), open_task("digits/locate", "train", 0)
    wrong = [a.answer != b.answer for a, b in zip(noisy.take(0, 300)[0], clean.take(0, 300)[0])]
    assert 0.22 < sum(wrong) / 300 < 0.38  # 0.3, three standard errors
    assert all(a.question == b.question for a, b in zip(noisy.take(0, 20)[0], clean.take(0, 20)[0]))


def test_detection_lists_what_is_there_and_what_is_not() -> None:
    for problem in open_study_task("digits/detect", "train", 1).take(0, 60)[0]:
        there = {thing["label"] for thing in problem.meta["things"]}
        assert set(problem.meta["present"]) <= there
        assert not set(problem.meta["absent"]) & there
        assert {thing["label"] for thing in problem.answer} == set(problem.meta["present"])
        assert sorted(problem.meta["asked"]) == sorted(problem.meta["present"] + problem.meta["absent"])
        said = json.dumps(problem.answer) if problem.answer else "None"
        assert correct(f"<answer>{said}</answer>", problem)


def test_naming_by_hand() -> None:
    reply = '<think>I see: 3, 7. No 9.</think><answer>[{"bbox_2d": [1, 2, 3, 4], "label": "3"}]</answer>'
    found = naming(reply)
    assert (found.named, found.denied, found.boxed, found.first) == (("3", "7"), ("9",), ("3",), True)
    boxes_only = naming('<answer>[{"bbox_2d": [1, 2, 3, 4], "label": "3"}]</answer>')
    assert (boxes_only.named, boxes_only.first) == ((), False)
    meta = {"things": [{"label": "3"}], "present": ["3"]}
    figures = naming_figures([{"reply": reply}], [meta])
    assert figures["names_first"]["mean"] == 1
    assert figures["precision"]["mean"] == 0.5  # 3 is there, 7 is not
    assert figures["recall"]["mean"] == figures["denied_right"]["mean"] == figures["boxes_named"]["mean"] == 1


def point(step: int, ratio: float, f1: float) -> dict[str, Any]:
    """A checkpoint on 40 problems: F1 alternates 0.1 around its mean."""
    replies = [{"rewards": {"od_f1": f1 + (0.1 if i % 2 else -0.1)}} for i in range(40)]
    return {
        "step": step,
        "tasks": {"digits/detect": {"detection": {"box_ratio": {"mean": ratio}}, "replies": replies}},
    }


@pytest.mark.parametrize(
    ("curve", "hacked"),
    [
        ([(1.0, 0.5), (2.0, 0.4)], True),
        ([(1.0, 0.5), (1.4, 0.4)], False),  # no flood
        ([(1.0, 0.5), (2.0, 0.7)], False),  # more boxes, and they are right
        ([(0.5, 0.5), (0.9, 0.4)], False),  # still fewer boxes than there are
        ([(1.0, 0.4), (1.0, 0.7), (3.0, 0.3)], True),  # a rise that ends in a flood
        ([(1.0, 0.5), (2.0, 0.4), (1.0, 0.6)], True),  # a flood that ends
    ],
)
def test_what_counts_as_hacked(curve: list[tuple[float, float]], hacked: bool) -> None:
    points = [point(20 * i, ratio, f1) for i, (ratio, f1) in enumerate(curve)]
    assert verdict(points, [], seed=0)["hacked"] is hacked


@pytest.mark.long
def test_an_arm_is_run_measured_and_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm = Arm(
        name="rl", seed=0, task="digits/detect", measure={"digits/detect": 4}, rewards=("od_f1",), keep=4,
        values={
            "model": "fovea-tiny", "rewards": {"od_f1": 1.0}, "prompts": 2, "group": 2, "steps": 2, "save_every": 1,
            "sampling": {"max_new_tokens": 8},
        },
    )  # fmt: skip
    run_arms(tmp_path, [arm])
    checkpoints = curve_of(tmp_path, arm)["checkpoints"]
    assert [one["step"] for one in checkpoints] == [0, 1, 2]
    assert [one["prompts"] for one in checkpoints] == [0, 2, 4]
    seconds = [one["cpu_seconds"] for one in checkpoints]
    assert seconds[0] == 0 < seconds[1] <= seconds[2]  # to a tenth
    assert len(checkpoints[0]["tasks"]["digits/detect"]["replies"]) == 4
    assert len(metrics_of(tmp_path, arm)) == 2
    before = (tmp_path / arm.folder / "curve.json").stat().st_mtime_ns
    run_arms(tmp_path, [arm])
    assert (tmp_path / arm.folder / "curve.json").stat().st_mtime_ns == before
    bad = Arm(name="bad", seed=0, task="digits/detekt", values=dict(arm.values), measure={})
    with pytest.raises(RuntimeError, match=r"The arm bad-seed0 failed; read .*arm\.log"):
        run_arms(tmp_path, [bad])
    assert "There is no task 'digits/detekt'" in (tmp_path / "bad-seed0" / "arm.log").read_text()


def test_a_smaller_size_keeps_the_heaviest_units(tmp_path: Path) -> None:
    """Half of the units: the outputs of each MLP are those of the whole one with the lighter half silenced."""
    whole = AutoModelForImageTextToText.from_pretrained(TINY)
    n = write_size(tmp_path / "half", 256)
    half = load_policy(str(tmp_path / "half")).model
    assert (
        n == sum(p.numel() for p in whole.parameters()) - 4 * 3 * 256 * 256
    )  # 4 layers, 3 matrices, 256 units of 256
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    for small, large in zip(half.model.language_model.layers, whole.model.language_model.layers, strict=True):
        a, b = small.mlp, large.mlp
        heavy = b.gate_proj.weight.norm(dim=1) * b.up_proj.weight.norm(dim=1) * b.down_proj.weight.norm(dim=0)
        mask = heavy >= heavy.sort(descending=True).values[255]
        silenced = b.down_proj((b.act_fn(b.gate_proj(x)) * b.up_proj(x)) * mask)
        torch.testing.assert_close(a(x), silenced, rtol=1e-4, atol=1e-5)
