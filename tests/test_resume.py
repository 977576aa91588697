"""Going on with a run: equal to never having stopped, strict about what it loads, clear about what it cannot do."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loud_policy
from kill_harness import curriculum, differences, everything, exploring, lora, perception
from safetensors.torch import load_file, save_file

from fovea import checkpoints
from fovea.config import Run, load_run
from fovea.runlog import RunLog, write_json
from fovea.training import Stopped, resume, train
from fovea.training.stopping import best_of, no_longer_rises
from fovea.types import Problem, RunFailed, UserError

HARNESS = Path(__file__).parent / "kill_harness.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    loud_policy("qwen2_5_vl").save(path)
    return path


def short(model: Path, run_dir: Path, *overrides: str) -> Run:
    sizes = ["steps=4", "prompts=2", "group=4", "sampling.max_new_tokens=6", "save_every=1", "method=sft"]
    rate = ["optimizer.learning_rate=0.003", "threads=1"]
    evaluation = ["evaluation.n=4", "evaluation.during=2", "evaluation.every=2", "evaluation.samples=0"]
    return load_run(
        "quickstart", [f"model={model}", f"run_dir={run_dir}", *sizes, *rate, *evaluation, *overrides]
    )


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(short(model, folder))
    return folder


class Failing:
    """An observer that fails at a step, as a full disk or a lost connection would."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.at, self.error = step, error

    def start(self, run: dict[str, Any]) -> None: ...
    def evaluation(self, record: dict[str, Any]) -> None: ...
    def finish(self, result: dict[str, Any]) -> None: ...
    def step(self, metrics: dict[str, Any], shown: list[dict[str, Any]]) -> None:
        if metrics["step"] == self.at:
            raise self.error


def interrupted(model: Path, folder: Path, *overrides: str) -> Path:
    """The same run, dead in its third step: metrics.jsonl has its line, no checkpoint knows it."""
    with pytest.raises(ZeroDivisionError):
        train(short(model, folder, *overrides), [Failing(2, ZeroDivisionError())])
    assert checkpoints.newest(folder) == folder / "checkpoints" / "step_2"
    return folder


def test_a_resumed_run_is_the_run_that_never_stopped(model: Path, whole: Path, tmp_path: Path) -> None:
    folder = interrupted(model, tmp_path / "r")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    result = resume(folder)
    assert result["steps"] == 4
    assert list(differences(whole, folder)) == []
    described = json.loads((folder / "run.json").read_text())
    assert [entry["step"] for entry in described["resumes"]] == [2]
    with pytest.raises(UserError, match=r"is finished \(4 steps\); add steps=N"):
        resume(folder)
    with pytest.raises(UserError, match=r"is finished \(4 steps\)"):
        resume(folder, ["steps=3"])


def test_a_finished_run_is_prolonged(model: Path, whole: Path, tmp_path: Path) -> None:
    train(short(model, tmp_path / "r", "steps=2"))
    resume(tmp_path / "r", ["steps=4"])
    found = list(differences(whole, tmp_path / "r"))
    # a run of two steps measured nothing on the way at its end, its prolongation does
    assert found == []


def test_without_a_checkpoint_it_begins_again(model: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(short(model, tmp_path / "r", "save_every=0"), [Failing(1, ZeroDivisionError())])
    assert checkpoints.newest(tmp_path / "r") is None
    resume(tmp_path / "r", ["save_every=1"])
    assert list(differences(whole, tmp_path / "r")) == []


def test_what_is_half_written_or_broken_is_passed_over(model: Path, whole: Path, tmp_path: Path) -> None:
    folder = interrupted(model, tmp_path / "r")
    shutil.copytree(folder / "checkpoints" / "step_2", folder / "checkpoints" / ".step_3.partial")
    (folder / "checkpoints" / "step_2" / "optimizer.pt").write_bytes(b"half")
    (folder / "rollouts" / ".step_000002.jsonl.17.tmp").write_bytes(b"half")
    resume(folder)
    assert list(differences(whole, folder)) == []
    entry = json.loads((folder / "run.json").read_text())["resumes"][0]
    assert entry["step"] == 1
    assert "optimizer.pt is missing or was changed" in entry["notes"][0]
    assert not (folder / "checkpoints" / ".step_3.partial").exists()


def tampered(folder: Path, change: Any) -> Path:
    """The newest checkpoint with its weights changed and its file hashes made to fit."""
    newest = folder / "checkpoints" / "step_2"
    weights = load_file(newest / "model" / "model.safetensors")
    change(weights)
    save_file(weights, newest / "model" / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((newest / "manifest.json").read_text())
    name = "model/model.safetensors"
    manifest["files"][name] = checkpoints._digest(newest / name)
    write_json(newest / "manifest.json", manifest)
    return folder


def test_loading_is_strict_and_names_the_tensor(model: Path, tmp_path: Path) -> None:
    folder = interrupted(model, tmp_path / "r")
    name = "model.layers.1.mlp.up_proj.weight"
    shutil.copytree(folder, tmp_path / "lost")
    with pytest.raises(UserError, match=r"tensors are missing .*layers\.1\.mlp\.up_proj\.weight"):
        resume(tampered(tmp_path / "lost", lambda weights: weights.pop(name)))
    shutil.copytree(folder, tmp_path / "changed")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight was not restored"):
        resume(tampered(tmp_path / "changed", lambda weights: weights[name].add_(1e-6)))
    manifest = tmp_path / "r" / "checkpoints" / "step_2" / "manifest.json"
    held = json.loads(manifest.read_text())
    held["weights"]["model.nowhere.weight"] = "0" * 64
    write_json(manifest, held)
    with pytest.raises(UserError, match=r"model\.nowhere\.weight was saved but is not in the model"):
        resume(folder)


def test_an_optimizer_of_another_shape_is_refused(model: Path, tmp_path: Path) -> None:
    folder = interrupted(model, tmp_path / "r")
    newest = folder / "checkpoints" / "step_2"
    state = torch.load(newest / "optimizer.pt", weights_only=True)
    name = sorted(state["weights"])[3]
    del state["weights"][name], state["state"][name]
    torch.save(state, newest / "optimizer.pt")
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["optimizer.pt"] = checkpoints._digest(newest / "optimizer.pt")
    write_json(newest / "manifest.json", manifest)
    with pytest.raises(UserError, match=rf"optimizer\.pt does not fit .*tensor {re.escape(name)} is missing"):
        resume(folder)


def test_what_cannot_change_and_what_is_not_a_run(model: Path, tmp_path: Path) -> None:
    folder = interrupted(model, tmp_path / "r")
    with pytest.raises(UserError, match="seed cannot change in a run that goes on"):
        resume(folder, ["seed=1"])
    with pytest.raises(UserError, match=r"no run\.json"):
        resume(tmp_path)
    values = json.loads((folder / "run.json").read_text())
    values["run"]["optimizer"]["schedule"] = "cosine"
    write_json(folder / "run.json", values)
    with pytest.raises(UserError, match="would change the cosine learning-rate schedule"):
        resume(folder, ["steps=9"])


def test_a_folder_that_is_being_written_is_refused(model: Path, tmp_path: Path) -> None:
    folder = interrupted(model, tmp_path / "r")
    with RunLog(folder, resume=True), pytest.raises(UserError, match="Another process is writing"):
        resume(folder)


def test_a_full_disk_loses_nothing_that_was_saved(model: Path, whole: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the same errors come out of the same calls."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from fovea.training import loop, setup; import fovea.checkpoints as c\n"
        f"sys.path.insert(0, {str(HARNESS.parent)!r})\n"
        "from test_resume import short\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "class Full:\n"
        "    def start(self, run): pass\n"
        "    def evaluation(self, record): pass\n"
        "    def finish(self, result): pass\n"
        "    def step(self, metrics, shown):\n"
        "        if metrics['step'] == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))\n"
        f"loop.train(short(Path({str(model)!r}), Path({str(tmp_path / 'r')!r})), [Full()])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "The checkpoint of step 3 cannot be written" in done.stderr
    assert "the last whole checkpoint is step_2" in done.stderr
    folder = tmp_path / "r"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir() if p.is_dir()) == ["step_1", "step_2"]
    resume(folder)
    assert list(differences(whole, folder)) == []


def test_checkpoints_are_pruned_but_not_the_best(model: Path, tmp_path: Path) -> None:
    train(short(model, tmp_path / "r", "evaluation.every=1", "keep_checkpoints=1", "steps=4"))
    kept = sorted(path.name for path in (tmp_path / "r" / "checkpoints").glob("step_*"))
    best = json.loads((tmp_path / "r" / "checkpoints" / "best.json").read_text())
    assert best["metric"] == "accuracy"
    # equal figures everywhere (a random model is never right): the first is the best
    assert kept == ["step_1", "step_4"]
    assert best["step"] == 1


def test_patience_ends_a_run_and_says_so(model: Path, tmp_path: Path) -> None:
    run = short(model, tmp_path / "r", "evaluation.every=1", "evaluation.patience=2", "steps=50")
    result = train(run)
    assert (result["steps"], result["ended_by"], result["best_step"]) == (3, "patience", 1)


def test_patience_and_best_by_hand() -> None:
    records = [{"accuracy": {"mean": value}} for value in (0.1, 0.3, 0.2, 0.3)]
    assert best_of(records, "accuracy") is records[1]  # the earlier of equals
    assert no_longer_rises(records, "accuracy", 2)  # 0.2 and 0.3 stayed at or below 0.3
    assert not no_longer_rises(records[:3], "accuracy", 2)  # 0.3 is above 0.1
    assert not no_longer_rises(records, "accuracy", 0)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("evaluation.metric=acuracy", "did you mean 'accuracy'"),
        ("evaluation={patience: 2, every: 0}", "give evaluation.every=N"),
        ("reference_sync_steps=2", "give algorithm.beta"),
        ("algorithm={clip_cov: 0.1, kl_cov: 0.1}", "cov"),
    ],
)
def test_what_would_fail_late_or_do_nothing_is_refused_at_once(
    model: Path, tmp_path: Path, override: str, what: str
) -> None:
    with pytest.raises(UserError, match=what):
        train(short(model, tmp_path / "r", override))
    assert not (tmp_path / "r").exists()


def test_a_broken_checkpoint_never_costs_a_good_one(model: Path, whole: Path, tmp_path: Path) -> None:
    """It is not counted among those that are kept: with keep_checkpoints=1 the newest good one would have gone."""
    folder = interrupted(model, tmp_path / "r", "keep_checkpoints=1", "evaluation.every=0")
    shutil.copytree(folder / "checkpoints" / "step_2", folder / "checkpoints" / "step_9")
    (folder / "checkpoints" / "step_9" / "optimizer.pt").write_bytes(b"half")
    with pytest.raises(ZeroDivisionError):
        resume(folder, observers=[Failing(3, ZeroDivisionError())])
    assert sorted(path.name for path in (folder / "checkpoints").glob("step_*")) == [
        "step_3",
        "step_9.broken",
    ]
    resume(folder)
    assert sorted(path.name for path in (folder / "checkpoints").glob("step_*")) == [
        "step_4",
        "step_9.broken",
    ]


class Drawing:
    """A task whose problems draw from the global generator, as a careless user's would, and that may fail."""

    name, kind, chance, size = "drawing", "text", 0.0, None

    def __init__(self, fail_at: int | None = None, error: Exception | None = None) -> None:
        self.fail_at, self.error = fail_at, error or RunFailed("the camera is gone.")

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        random.random()
        if self.fail_at is not None and cursor >= self.fail_at:
            raise self.error
        made = [
            Problem(id=str(i), task="drawing", images=(), question="?", answer="a", kind="text", target="a b")
            for i in range(cursor, cursor + n)
        ]
        return made, cursor + n


def test_a_step_that_fails_is_saved_as_it_began(model: Path, tmp_path: Path) -> None:
    """The generators and the logs of the last whole step, not of the moment of the failure."""
    seen = []
    for name, fail in (("whole", None), ("failed", 4)):
        folder = tmp_path / name
        run = short(model, folder, "evaluation.every=0", "save_every=0", "task=drawing")
        held = Drawing()
        if fail is None:
            train(run, tasks=(Drawing(), held, held))
        else:
            with pytest.raises(RunFailed, match=r"camera is gone\. Step 2 is saved"):
                train(run, tasks=(Drawing(fail), held, held))
            with (folder / "metrics.jsonl").open("a") as log:
                log.write('{"step": 2, "half')  # a disk that was full in the middle of a line
            resume(folder, tasks=(Drawing(), held, held))
        newest = checkpoints.newest_whole(folder)[0]
        assert newest is not None
        seen.append(newest.state["random"]["python"]["numbers"].tolist())
    assert list(differences(tmp_path / "whole", tmp_path / "failed")) == []
    assert seen[0] == seen[1]


def test_a_bad_sample_that_was_mended_leaves_no_line(model: Path, tmp_path: Path) -> None:
    """What the failed step logged is not part of the step before it."""
    folder, held = tmp_path / "r", Drawing()
    run = short(model, folder, "evaluation.every=0", "save_every=0", "task=drawing")
    with pytest.raises(UserError, match=r"the picture is torn.*Step 2 is saved"):
        train(run, tasks=(Drawing(4, UserError("the picture is torn.")), held, held))
    assert len((folder / "bad_samples.jsonl").read_text().splitlines()) == 2  # a step is two
    resume(folder, tasks=(Drawing(), held, held))
    assert not (folder / "bad_samples.jsonl").exists()


def test_other_problems_are_refused(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "my.jsonl"
    lines = [{"question": f"Say {i}", "answer": "x", "target": "x"} for i in range(30)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = short(model, tmp_path / "r", f"data={data}", "evaluation.every=0")
    with pytest.raises(ZeroDivisionError):
        train(run, [Failing(2, ZeroDivisionError())])
    data.write_text("".join(json.dumps(line | {"answer": "y"}) + "\n" for line in lines))
    logged = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"training problems are not those that .* began with"):
        resume(tmp_path / "r")
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == logged  # what is refused loses nothing


def test_checkpoints_that_are_gone_are_said(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    train(short(model, folder, "steps=2"))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="its checkpoints are gone"):
        resume(folder, ["steps=3"])
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_new_run_does_not_inherit_a_reward_journal(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "reward_journal.jsonl").write_text("not a journal\n")
    train(short(model, folder, "steps=1", "evaluation.every=0"))
    assert not (folder / "reward_journal.jsonl").exists()


def test_files_have_the_rights_that_new_files_get(model: Path, tmp_path: Path) -> None:
    train(short(model, tmp_path / "r", "steps=1", "evaluation.every=0"))
    mask = os.umask(0)
    os.umask(mask)
    weights = tmp_path / "r" / "checkpoints" / "step_1" / "model" / "model.safetensors"
    assert weights.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    model: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "r"
    run = short(model, folder, "save_every=0", "steps=400")
    overrides = json.dumps(run.model_dump(mode="json") | {"recipe": ""})
    (tmp_path / "mine.yaml").write_text(overrides)
    command = [sys.executable, "-m", "fovea", "train", str(tmp_path / "mine.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        metrics, began = folder / "metrics.jsonl", time.monotonic()
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() - began < 100:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + number, errors
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert f"Stopped by {name} after step" in errors
    assert f"fovea train --resume {folder}" in errors
    assert "Traceback" not in errors
    saved, _ = checkpoints.newest_whole(folder)
    assert saved is not None
    assert saved.step == len(metrics.read_text().splitlines())


def test_nonfinite_steps_are_counted_and_end_the_run(model: Path, tmp_path: Path) -> None:
    """A learning rate that destroys the weights: no step is done with them, and the run ends by its limit."""
    run = short(
        model,
        tmp_path / "r",
        "optimizer.learning_rate=1e20",
        "steps=30",
        "max_nonfinite=3",
        "evaluation.every=0",
    )
    with pytest.raises(RunFailed, match="not finite in 3 steps in a row"):
        train(run)
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("nonfinite", 0) for line in lines[-3:]] == [1, 1, 1]


def test_a_signal_while_an_evaluation_is_written_loses_nothing(
    model: Path, whole: Path, tmp_path: Path
) -> None:
    class Asking(Failing):
        def evaluation(self, record: dict[str, Any]) -> None:
            if record["phase"] == "during":
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="Stopped by SIGTERM after step 2"):
        train(short(model, tmp_path / "r"), [Asking(-1, ValueError())])
    assert (tmp_path / "r" / "checkpoints" / "best.json").exists()
    resume(tmp_path / "r")
    assert list(differences(whole, tmp_path / "r")) == []


@pytest.mark.parametrize("kind", [everything, lora, perception, curriculum, exploring])
def test_all_that_remembers_goes_on(kind: Callable[[Path], Run], tmp_path: Path) -> None:
    """Replay, a moving reference, an audit, mini-batches, an adapter with masters: without a kill, so in seconds."""
    run = kind(tmp_path).model_copy(update={"steps": 4})
    train(run.model_copy(update={"run_dir": str(tmp_path / "whole")}))
    with pytest.raises(ZeroDivisionError):
        train(run.model_copy(update={"run_dir": str(tmp_path / "r")}), [Failing(3, ZeroDivisionError())])
    resume(tmp_path / "r")
    assert list(differences(tmp_path / "whole", tmp_path / "r")) == []


def test_state_holds_arrays_anywhere(tmp_path: Path) -> None:
    state = {"a": [1, {"b": np.arange(3, dtype=np.uint32)}], "c": np.zeros((0, 2)), "d": "text"}
    policy = loud_policy("qwen2_5_vl")
    with RunLog(tmp_path) as log:
        folder = checkpoints.save(log, policy, None, 1, state)
    read = checkpoints.read(folder).state
    assert np.array_equal(read["a"][1]["b"], np.arange(3))
    assert read["a"][1]["b"].dtype == np.uint32
    assert read["c"].shape == (0, 2)
    assert (read["a"][0], read["d"]) == (1, "text")


def test_killed_anywhere_it_goes_on_to_the_byte(tmp_path: Path) -> None:
    """Three instants; more of each kind of run are in the long test."""
    assert _harness(tmp_path, kills=2, runs=["tiny-rl"])["equal"] == 2


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_kills_of_each_run(tmp_path: Path) -> None:
    """Thirty of each by hand (docs/resuming.md); fewer here, for there are six kinds of runs."""
    record = _harness(tmp_path, kills=12, runs=None)
    assert record["equal"] == record["n"] >= 72


def _harness(folder: Path, kills: int, runs: list[str] | None) -> dict[str, Any]:
    names = [] if runs is None else ["--runs", *runs]
    out = folder / "killed.json"
    command = [sys.executable, str(HARNESS), "--kills", str(kills), "--out", str(out), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert out.exists(), done.stdout + done.stderr
    record: dict[str, Any] = json.loads(out.read_text())
    assert done.returncode == 0, record
    return record
