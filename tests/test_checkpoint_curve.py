"""A run along the way: start and checkpoints on several tasks, kept in the run folder, and the command line's table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fovea
from fovea import checkpoint_curve, cli
from fovea.checkpoint_curve import CACHE, curve_lines
from fovea.config import load_run
from fovea.tasks import open_task
from fovea.types import UserError

ALWAYS = ["method=sft", "steps=2", "prompts=2", "group=2", "sampling.max_new_tokens=4", "evaluation.samples=0",
          "threads=1", "evaluation.n=2", "evaluation.every=0", "save_every=1", "keep_checkpoints=5"]  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fovea.training import train

    folder = tmp_path_factory.mktemp("runs") / "short"
    train(load_run("quickstart", [*ALWAYS, f"run_dir={folder}"]))
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(model, task) of every evaluation that was really made."""
    found: list[tuple[str, str]] = []
    real = checkpoint_curve.measure

    def counted(run: Any, task: Any, **more: Any) -> Any:
        found.append((run.model, task.name))
        return real(run, task, **more)

    monkeypatch.setattr(checkpoint_curve, "measure", counted)
    return found


def test_start_and_checkpoints_once_each(run_folder: Path, measured: list[tuple[str, str]]) -> None:
    told: list[str] = []
    names = ["digits/locate", "digits/count"]
    record = fovea.evaluate_checkpoints(run_folder, tasks=names, evaluation={"n": 3}, say=told.append)
    assert [(row["step"], row["task"]) for row in record["rows"]] == [
        (step, name) for step in (0, 1, 2) for name in names
    ]
    assert record["tasks"] == names
    assert len(measured) == len(told) == 6
    assert measured[0][0] == "fovea-tiny"
    assert {row["n"] for row in record["rows"]} == {3}
    assert "iou" in record["rows"][0]["boxes"]
    again = fovea.evaluate_checkpoints(run_folder, tasks=names, evaluation={"n": 3})
    assert len(measured) == 6
    assert all(row["cached"] for row in again["rows"])
    assert [row["accuracy"] for row in again["rows"]] == [row["accuracy"] for row in record["rows"]]

    # What was cut off is measured again, what was whole is not; other settings are other figures.
    cache = run_folder / CACHE
    cache.write_bytes(cache.read_bytes()[:-20])
    fovea.evaluate_checkpoints(run_folder, tasks=names, evaluation={"n": 3})
    assert len(measured) == 7
    fovea.evaluate_checkpoints(run_folder, tasks="digits/count", evaluation={"n": 2})
    assert len(measured) == 10
    lines = curve_lines(record)
    assert lines[0].split() == [
        "step",
        "digits/locate",
        "accuracy",
        "looking",
        "digits/count",
        "accuracy",
        "looking",
    ]
    assert len(lines) == 4
    assert lines[1].startswith("0 ")


def test_the_start_is_what_evaluate_says(run_folder: Path) -> None:
    record = fovea.evaluate_checkpoints(run_folder, evaluation={"n": 3})
    last = fovea.evaluate(run_folder, evaluation={"n": 3})
    assert {key: record["rows"][-1][key] for key in last if key != "model"} == {
        key: last[key] for key in last if key != "model"
    }


def test_broken_checkpoints_are_passed_over(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run_folder, folder)
    (folder / CACHE).unlink(missing_ok=True)
    with (folder / "checkpoints" / "step_1" / "model" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    record = fovea.evaluate_checkpoints(folder, tasks="digits/count", evaluation={"n": 2})
    assert [row["step"] for row in record["rows"]] == [0, 2]
    assert "was changed" in record["passed_over"]["1"]
    assert "step 1 was passed over" in curve_lines(record)[-1]
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no whole checkpoint"):
        fovea.evaluate_checkpoints(folder)


def test_own_problems_and_wrong_names(run_folder: Path, measured: list[tuple[str, str]]) -> None:
    problems = open_task("digits/count", "test", 5).take(0, 3)[0]
    record = fovea.evaluate_checkpoints(run_folder, tasks=[problems])
    assert {(row["task"], row["n"], row["split"]) for row in record["rows"]} == {("digits/count", 2, "own")}
    with pytest.raises(UserError, match="digits/count"):
        fovea.evaluate_checkpoints(run_folder, tasks=["digits/locate", "digits/cuont"])
    assert len(measured) == 3  # refused before anything was measured


def test_held_out_lines_of_the_runs_own_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file without a separate one: every tenth line was held out, and those are what is measured."""
    from fovea.tasks.written import write_task
    from fovea.training import train

    file = write_task(open_task("digits/count", "train", 0), 30, tmp_path / "data").file
    folder = tmp_path / "run"
    train(load_run("quickstart", [*ALWAYS, f"data={file}", "steps=1", f"run_dir={folder}"]))
    record = fovea.evaluate_checkpoints(folder, evaluation={"n": "all"})
    assert {(row["split"], row["n"]) for row in record["rows"]} == {("held-out lines", 3)}
    # `fovea evaluate RUN` without --checkpoints asks the same lines.
    one = fovea.evaluate(folder, evaluation={"n": "all"})
    assert (one["split"], one["n"]) == ("held-out lines", 3)
    assert one["accuracy"] == record["rows"][-1]["accuracy"]
    assert cli.main(["evaluate", str(folder), "--n", "2", "--against", "fovea-tiny", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["split"], said["n"], said["comparison"]["n"]) == ("held-out lines", 2, 2)


def test_the_command(run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["evaluate", str(run_folder), "--checkpoints", "--task", "digits/count", "--n", "2"]
    assert cli.main(asked) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["step", "digits/count", "accuracy", "looking"]
    assert cli.main([*asked, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 3
    assert cli.main([*asked, "--out", "x.jsonl"]) == 2
    assert "--checkpoints takes neither" in capsys.readouterr().err

    two = [
        "evaluate",
        "fovea-tiny",
        "--task",
        "digits/count",
        "--task",
        "digits/locate",
        "--n",
        "2",
        "--json",
    ]
    out = tmp_path / "both.jsonl"
    assert cli.main([*two, "sampling.max_new_tokens=4", "--out", str(out)]) == 0
    both = json.loads(capsys.readouterr().out)
    assert [record["task"] for record in both["records"]] == ["digits/count", "digits/locate"]
    assert len(out.read_text().splitlines()) == 4
    assert cli.main([*two, "--against", "fovea-tiny"]) == 2
    assert "one --task" in capsys.readouterr().err


def test_all_of_a_task_without_end_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["evaluate", "--task", "digits/count", "--n", "all"]) == 2
    assert "has no end" in capsys.readouterr().err
    assert cli.main(["evaluate", "--task", "digits/count", "--n", "some"]) == 2
    assert "evaluation.n='some'" in capsys.readouterr().err
