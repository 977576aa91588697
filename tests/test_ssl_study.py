"""SSL4RL's study in miniature: its arms, its sums by hand, and one small arm that is really run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fovea.config import Run
from fovea.recipes.ssl4rl import solvers, study
from fovea.recipes.ssl4rl._arms import MODULE
from fovea.recipes.ssl4rl._plots import gains_plot
from fovea.recipes.ssl4rl._plots import main as plots_main
from fovea.recipes.vlm_r1._arms import curve_of, run_arms
from fovea.tasks import TASKS
from fovea.tasks.curriculum import Curriculum
from fovea.tasks.opening import open_named
from fovea.tasks.ssl import SSL
from fovea.types import UserError

DIAGNOSED = {"mixture": {"ssl/crop": 0.7, "ssl/odd": 0.3}, "difficulty": {"levels": {"ssl/crop": 0.6}}}


def test_every_arm_is_a_run_from_one_start_with_as_many_problems() -> None:
    arms = study.arms_of(list(study.trained()), [0, 1], "fovea-tiny", DIAGNOSED, [], None)
    assert len({arm.folder for mine in arms.values() for arm in mine}) == 2 * len(arms)
    for name, mine in arms.items():
        assert [arm.seed for arm in mine] == [0, 1]
        run = Run.model_validate(mine[0].values)
        assert (run.model, run.prompts * run.steps) == ("fovea-tiny", 24 * 70)
        task = open_named(run, "train", 0, Curriculum())
        assert task.take(0, 1)[0], name
        assert mine[0].measure == study.MEASURE
        assert not set(run.mixture or {run.task: 1.0}) & set(study.DOWNSTREAM), "downstream is never trained"
    hard = open_named(Run.model_validate(arms["find_hard"][0].values), "train", 0).take(0, 1)[0][0]
    easy = open_named(Run.model_validate(arms["find_easy"][0].values), "train", 0).take(0, 1)[0][0]
    assert (easy.meta["total"], hard.meta["total"]) == (1, 5)
    assert set(study.DOWNSTREAM) <= set(TASKS)
    assert {*study.MIXED, *study.INSIDE} <= set(SSL)


def test_keys_of_the_command_line_change_every_arm() -> None:
    words = ["images=photos", "steps=2", "optimizer.learning_rate=1.0e-5"]
    arms = study.arms_of(["jigsaw", "mismatched"], [0], "fovea-tiny", None, words, 4)
    for (arm,) in arms.values():
        assert (arm.values["images"], arm.values["steps"]) == ("photos", 2)
        assert arm.values["optimizer"] == {"learning_rate": 1e-5, "warmup_steps": 5}
        assert set(arm.measure.values()) == {4}
    assert study.BASE["optimizer"]["learning_rate"] == 1e-4  # the constant is not the copy


def figures(accuracy: float, looking: float | None) -> dict[str, Any]:
    interval = [0.0, 1.0]
    return {
        "n": 4, "chance": 0.25, "accuracy": {"mean": accuracy, "ci95": interval},
        "looking": {"mean": looking, "ci95": None if looking is None else interval},
    }  # fmt: skip


def curve(**accuracy: float) -> dict[str, Any]:
    tasks = {task: figures(0.2, 0.1) for task in study.MEASURE}
    tasks |= {name.replace("_", "/", 1): figures(value, value / 2) for name, value in accuracy.items()}
    point = {"step": 1, "tasks": tasks, "cpu_seconds": 1.0}
    return {"checkpoints": [point], "run": {"train_cpu_seconds": 9.0}, "training": {}}


def test_gains_are_paired_with_the_start_and_averaged_over_tasks_then_seeds() -> None:
    """photos/find: 0.2 → 0.5 and 0.2 → 0.8, of six tasks: means over tasks 0.05 and 0.1, over seeds 0.075.

    Standard deviation 0.0353553, t(0.975, 1) = 12.7062: half width 12.7062 · 0.0353553 / √2 = 0.317655.
    Looking: 0.1 → 0.25 and 0.1 → 0.4: 0.15 / 6 and 0.3 / 6, mean 0.0375.
    """
    found = study.metrics_of_arm([curve(photos_find=0.5), curve(photos_find=0.8)], curve())
    downstream = found["gain"]["accuracy"]["downstream"]
    assert downstream["seeds"] == pytest.approx([0.05, 0.1])
    assert downstream["mean"] == pytest.approx(0.075)
    assert downstream["ci95"] == pytest.approx([0.075 - 0.317655, 0.075 + 0.317655], abs=1e-4)
    assert found["gain"]["looking"]["downstream"]["mean"] == pytest.approx(0.0375)
    assert found["gain"]["accuracy"]["photos/find"]["mean"] == pytest.approx(0.45)
    assert found["gain"]["accuracy"]["self-supervised"]["mean"] == 0
    assert study.over_seeds([0.3]) == {"mean": 0.3, "ci95": None}


def test_tables_and_plot_are_made_of_what_results_json_holds(tmp_path: Path) -> None:
    arm = {"seeds": [0, 1], "metrics": study.metrics_of_arm([curve(photos_find=0.5)] * 2, curve())}
    start = curve()["checkpoints"][-1]["tasks"]
    result = json.loads(json.dumps({"arms": {"jigsaw": arm}, "start": {"tiny": start, "start": start}}))
    table = study.tables(result)
    assert (
        "| jigsaw | 2 | +0.050 [+0.050, +0.050] | +0.025 [+0.025, +0.025] | +0.000 [+0.000, +0.000] | 9 |"
        in table
    )
    pytest.importorskip("matplotlib")
    gains_plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, task = tmp_path / "seed 0", "ssl/overlay_find"
    run.mkdir()
    step = {"reward_mean": 0.5, f"success/{task}": 0.5, f"difficulty/{task}": 0.6}
    lines = [
        json.dumps({"step": k} | (step if k != 1 else step | {f"success/{task}": None})) for k in range(12)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    figure = {"mean": 0.3, "ci95": [0.2, 0.4]}
    phases = [
        json.dumps({"phase": p, "accuracy": figure, "looking": figure}) for p in ("before", "during", "after")
    ]
    (run / "evaluations.jsonl").write_text("\n".join(phases))
    for kind in ("quickstart", "difficulty"):
        plots_main([kind, str(tmp_path / f"{kind}.png"), str(run)])
        assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="usage"):
        plots_main(["curve", str(run)])


SMALL = ["steps=1", "prompts=2", "group=2", "sampling.max_new_tokens=8", "pictures.side=32"]


@pytest.mark.long
def test_an_arm_is_trained_and_measured_on_tasks_that_it_never_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes one would do; the mismatched arm has no pictures and is measured on them all the same."""
    monkeypatch.setattr(study, "MEASURE", {"ssl/crop": 2, "photos/find": 2})
    arms = study.arms_of(["mismatched"], [0], "fovea-tiny", None, SMALL, None)
    run_arms(tmp_path, arms["mismatched"], 1, MODULE)
    found = curve_of(tmp_path, arms["mismatched"][0])
    (point,) = found["checkpoints"]
    assert (point["step"], list(point["tasks"])) == (1, ["ssl/crop", "photos/find"])
    assert {one["n"] for one in point["tasks"].values()} == {2}
    assert len(found["training"]["reward_mean"]) == 1


def test_an_arm_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm 'jigsaws'"):
        study.main(["--out", str(tmp_path), "--arms", "jigsaws"])


def test_a_key_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no key 'stepps'"):
        study.main(["stepps=3", "--out", str(tmp_path)])


@pytest.mark.parametrize("words", [["--n", "0"], ["--level", "3"], ["--side", "4"], ["--train", "3"]])
def test_numbers_the_solver_table_cannot_use_are_refused(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match="--level 0 to 1"):
        solvers.main([*words, "--out", str(tmp_path / "out")])


@pytest.mark.long
def test_the_whole_study_on_next_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Start, diagnosis, two arms of two seeds; the second call measures nothing."""
    words = [*SMALL, "--out", str(tmp_path), "--seeds", "0", "1", "--n", "2", "--diagnose-n", "2"]
    study.main([*words, "--arms", "diagnosed", "jigsaw"])
    first = json.loads((tmp_path / "results.json").read_text())
    assert list(first["arms"]) == ["diagnosed", "jigsaw"]
    assert first["diagnosed"]["mixture"]
    capsys.readouterr()
    study.main([*words, "--arms", "diagnosed", "jigsaw"])
    assert json.loads((tmp_path / "results.json").read_text()) == first
    said = capsys.readouterr().out
    assert "| arm |" in said
    assert "seed0: " not in said, "an arm was run again"


def test_pictures_that_cannot_be_used_are_named_before_any_arm(tmp_path: Path) -> None:
    out, pictures = tmp_path / "out", tmp_path / "empty"
    pictures.mkdir()
    with pytest.raises(UserError, match="empty holds no pictures"):
        study.main([f"images={pictures}", "--out", str(out)])
    assert not out.exists()


def test_the_solver_table_names_unusable_pictures_and_measures_later_what_was_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pictures = tmp_path / "out", tmp_path / "empty"
    pictures.mkdir()
    with pytest.raises(UserError, match="empty holds no pictures"):
        solvers.main([f"images={pictures}", "--out", str(out)])
    assert not out.exists()
    out.mkdir()
    counts = {"train": 24, "test": 8}
    for name in ("ssl-overlay.json", "ssl-depth.json"):
        skipped = {"task": name, "n": counts, "skipped": "it was so the last time"}
        (out / name).write_text(json.dumps(skipped))
    small = ["--n", "8", "--train", "24", "--side", "48", "--out", str(out)]
    solvers.main([*small, "--tasks", "ssl/overlay", "ssl/depth"])
    assert "scores" in json.loads((out / "ssl-overlay.json").read_text())
    assert "depth maps" in json.loads((out / "ssl-depth.json").read_text())["skipped"]
    assert "not measured" in capsys.readouterr().out
