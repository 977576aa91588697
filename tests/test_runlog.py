"""The run folder: what is written can be read, cut, and never holds NaN or a half line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fovea import runlog
from fovea.config import Run
from fovea.runlog import RunLog, describe_run, jsonable, read_run, reproduce_command, to_json, write_json
from fovea.types import Problem, UserError


def problem(id: str = "t:0", size: tuple[int, int] = (8, 6), images: int = 1) -> Problem:
    pictures = tuple(Image.new("RGB", size, (40 * i, 80, 120)) for i in range(images))
    return Problem(id=id, task="t", images=pictures, question="?", answer=1, kind="number")


def lines(path: Path) -> list[dict]:
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n") if line]


def test_numpy_and_tuples_become_plain_json_and_nan_becomes_null_with_its_reason():
    value = {
        "a": np.float32(0.5),
        "b": np.array([1, 2]),
        "c": (1, Path("x/y")),
        "d": {"loss": float("nan"), "list": [1.0, float("-inf")]},
        "e": np.bool_(True),
    }
    clean, reasons = jsonable(value)
    expected = {"a": 0.5, "b": [1, 2], "c": [1, "x/y"], "d": {"loss": None, "list": [1.0, None]}, "e": True}
    assert clean == expected
    assert reasons == {"d.loss": "nan", "d.list.1": "-inf"}
    assert json.loads(to_json(value)) == clean | {"null_reasons": reasons}
    with pytest.raises(TypeError, match=r"f\.g: object"):
        jsonable({"f": {"g": object()}})


def test_floats_are_written_shortest_and_exactly_and_keys_keep_their_order():
    assert (
        to_json({"z": 0.1, "a": 1 / 3, "big": 1e300}) == '{"z": 0.1, "a": 0.3333333333333333, "big": 1e+300}'
    )


def test_hostile_text_survives_as_one_line():
    text = "é\u2028\n\x1b[31m\ud800"
    line = to_json({"text": text})
    assert "\n" not in line
    assert json.loads(line.encode("utf-8"))["text"] == text


def test_write_json_is_atomic_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(runlog.plain.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_run_is_written_line_by_line_and_read_back(tmp_path):
    with RunLog(tmp_path / "run") as log:
        log.start({"run": {"steps": 2}})
        log.evaluation({"step": 0, "phase": "before"})
        log.step({"step": 0, "reward_mean": 0.5}, [{"id": "a"}, {"id": "b"}])
        # Every line is on its way to the disk when the call returns: a killed process loses nothing.
        assert lines(log.folder / "metrics.jsonl") == [{"step": 0, "reward_mean": 0.5}]
        unfinished = read_run(log.folder)
        assert unfinished["result"] is None
        assert unfinished["shown"] == [{"id": "a"}, {"id": "b"}]
        log.step({"step": 1, "reward_mean": 0.6}, [])
        log.finish({"steps": 2})
    record = read_run(log.folder)
    assert [m["step"] for m in record["metrics"]] == [0, 1]
    assert record["result"] == {"steps": 2}
    assert record["shown_step"] == 0
    assert record["broken_lines"] == 0


def test_pictures_are_written_once_with_safe_names_and_a_bounded_side(tmp_path):
    with RunLog(tmp_path) as log:
        names = log.pictures(problem("../../etc/passwd:1", images=2))
        assert len(names) == 2
        assert all(
            name.startswith("pictures/") and ".." not in name and name.count("/") == 1 for name in names
        )
        before = (tmp_path / names[0]).stat().st_mtime_ns
        assert log.pictures(problem("../../etc/passwd:1", images=2)) == names
        assert (tmp_path / names[0]).stat().st_mtime_ns == before
        # Ids that are equal after cleaning are still two files.
        assert log.pictures(problem("a/b"))[0] != log.pictures(problem("a-b"))[0]
        with Image.open(tmp_path / log.pictures(problem("big", (3000, 1500)))[0]) as kept:
            assert kept.size == (1024, 512)
        assert log.pictures(problem("none", images=0)) == []


def test_offsets_and_truncate_restore_the_logs_to_the_byte(tmp_path):
    with RunLog(tmp_path) as log:
        log.start({})
        log.step({"step": 0}, [{"id": "a"}])
        log.evaluation({"step": 1})
        offsets = log.offsets()
        kept = {name: (tmp_path / name).read_bytes() for name in offsets}
        log.step({"step": 1}, [{"id": "b"}])
        log.evaluation({"step": 2})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "rew')  # killed while writing
    assert [m["step"] for m in read_run(tmp_path)["metrics"]] == [0, 1]
    with RunLog(tmp_path, resume=True) as log:
        assert [m["step"] for m in lines(tmp_path / "metrics.jsonl")] == [0, 1]
        log.truncate(json.loads(json.dumps(offsets)))
        assert {name: (tmp_path / name).read_bytes() for name in log.offsets()} == kept
        log.step({"step": 1, "again": True}, [])
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 0}, {"step": 1, "again": True}]
    with RunLog(tmp_path, resume=True) as log, pytest.raises(UserError, match="older checkpoint"):
        log.truncate({"metrics.jsonl": 10_000})


def test_a_folder_worth_keeping_is_refused_and_an_interrupted_start_is_not(tmp_path):
    with RunLog(tmp_path / "run") as log:
        log.start({})
        log.step({"step": 0}, [{"id": "a"}])
    with RunLog(tmp_path / "run") as log:
        assert log.offsets() == {"metrics.jsonl": 0, "evaluations.jsonl": 0}
        (log.folder / "checkpoints" / "step_1").mkdir()
    with pytest.raises(UserError, match=r"unfinished run with checkpoints.*run_dir="):
        RunLog(tmp_path / "run")
    with RunLog(tmp_path / "run", resume=True) as log:
        log.finish({})
    with pytest.raises(UserError, match=r"finished run.*run_dir="):
        RunLog(tmp_path / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        RunLog(tmp_path / "file")
    with pytest.raises(UserError, match="is a file"):
        RunLog(tmp_path / "file" / "inside")


def test_reading_is_tolerant_of_broken_lines_but_not_of_another_folder(tmp_path):
    with pytest.raises(UserError, match=r"not a run folder.*run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\nnot json\n[1]\n\xff\n{"step": 1}\n{"step"')
    record = read_run(tmp_path)
    assert [m["step"] for m in record["metrics"]] == [0, 1]
    assert record["broken_lines"] == 3
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_run(tmp_path)


def test_the_description_reproduces_the_run(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("steps: 7\nrewards: {iou: 1.0}\n")
    from fovea.config import load_run

    overrides = [
        "rewards.iou=2",
        "model='7'",
        "seed=3",
        "optimizer.learning_rate=0.001",
        "freeze=[vision]",
        "instruction='Be brief: now.'",
        "group=4",
    ]
    run = load_run(str(recipe), overrides)
    described = describe_run(run)
    command = shlex.split(described["command"])
    assert command[:3] == ["fovea", "train", str(recipe)]
    assert load_run(command[2], command[3:]) == run
    assert len(command) == 3 + len(overrides)
    assert described["run"]["seed"] == 3
    assert described["versions"]["torch"]
    json.dumps(described, allow_nan=False)
    assert runlog.run_folder(run) == Path("runs/mine-seed3")
    # A run built in code has no recipe file: everything that differs from the defaults is spelt out.
    assert "steps=3" in reproduce_command(Run(steps=3))


def test_git_state_is_of_the_checkout_that_holds_the_code_or_nothing(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    assert runlog.git_state(tmp_path) is None
