"""The command line: exit codes, streams, one-line errors, JSON that is only JSON, and instant help."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fovea import cli
from fovea.config import Run
from fovea.runlog import RunLog, describe_run, newest_model
from fovea.tasks import SSL, TASKS
from fovea.tasks.graph_ssl import GRAPH_TASKS
from fovea.types import RunFailed, UserError


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `fovea ARGUMENTS`, in this process."""
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which bad input is refused."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("fovea: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def process(*arguments: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fovea", *arguments], capture_output=True, text=True, **more)


def test_help_names_every_command_and_never_loads_torch(capsys):
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    for name in cli.COMMANDS:
        assert name in out
    assert run(capsys)[1] == out
    code = "import sys\nfrom fovea.cli import main\nmain(['--help'])\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_help_takes_less_than_half_a_second_of_cpu():
    """CPU seconds of the fastest of three, for other work on the machine stretches the wall clock."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(3):
        before = spent()
        assert process("--help").returncode == 0
        times.append(spent() - before)
    assert min(times) < 0.5


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(capsys, name):
    code, out, err = run(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert "Usage" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Name a recipe"),
        (["train", "quickstrat"], "There is no recipe 'quickstrat'"),
        (["train", "quickstart", "--unknown"], "No such option"),
        (["tasks"], "Missing command"),
        (["tasks", "show"], "Name one task"),
        (["tasks", "show", "digits/lokate"], "did you mean 'digits/locate'"),
        (["tasks", "show", "digits/locate", "--n", "0"], "'--n'"),
        (["tasks", "show", "digits/locate", "--n", "many"], "'--n'"),
        (["tasks", "show", "digits/locate", "--n", "9999", "--out", "x.png"], "at most 512 problems"),
        (["tasks", "show", "--data", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["score", "iou", "--answer", "[1,", "--completion", "x"], "is not JSON"),
        (["score", "iuo", "--answer", "[1,2,3,4]", "--completion", "x"], "iou"),
        (["score", "iou", "--answer", "[1,2,3,4]"], "--completion"),
        (["report", "nowhere"], "not a run folder"),
        (["study", "nothing"], "no study 'nothing'"),
        (["evaluate", "fovea-tiny", "evaluation.smaples=3"], "did you mean 'samples'"),
        (["evaluate", "--n", "0"], "evaluation.n=0"),
        (["evaluate", "nodots"], "no model folder 'nodots'"),
    ],
)
def test_bad_input_is_one_line_on_standard_error_and_exit_code_2(capsys, arguments, says):
    assert says in refused(capsys, *arguments)


def test_score_prints_only_json(capsys):
    reply = "<answer>[0, 0, 10, 10]</answer>"
    code, out, err = run(
        capsys, "score", "iou=1,format=0.5", "--answer", "[0,0,10,20]", "--completion", reply, "--json"
    )
    assert (code, err) == (0, "")
    # IoU 100 / 200, and the format is right: 1 · 0.5 + 0.5 · 1
    assert json.loads(out) == {"reward": 1.0, "parts": {"iou": 0.5, "format": 1.0}}
    assert (
        run(capsys, "score", "iou", "--answer", "[0,0,10,20]", "--completion", reply)[1]
        == "reward 0.5\n  iou 0.5\n"
    )


def test_tasks_are_listed_shown_and_drawn(capsys, tmp_path):
    code, out, _ = run(capsys, "tasks", "list", "--json")
    listed = {item["name"]: item for item in json.loads(out)}
    assert code == 0
    assert {"digits/locate", "digits/count", "digits/read", "shapes/describe"} <= set(listed)
    assert "digits/locate" in run(capsys, "tasks", "list")[1]
    sheet = tmp_path / "new" / "sheet.png"
    code, out, err = run(capsys, "tasks", "show", "digits/locate", "--n", "4", "--out", str(sheet), "--json")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert len(shown) == 4
    assert len(shown[0]["answer"]) == 4
    with Image.open(sheet) as image:
        assert image.width == 3 * 260
    again = json.loads(run(capsys, "tasks", "show", "digits/locate", "--n", "4", "--json")[1])
    assert again == shown
    assert (
        json.loads(run(capsys, "tasks", "show", "digits/locate", "--seed", "1", "--json")[1])[0] != shown[0]
    )
    for name in set(listed) - {"ssl/depth", "ssl/frames"}:  # they need other pictures
        small = ["pictures.side=64"] if name.startswith("ssl/") else []
        assert run(capsys, "tasks", "show", name, "--n", "2", "--out", str(sheet), *small)[0] == 0


def test_the_users_data_is_shown_too(capsys, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    data = tmp_path / "my.jsonl"
    data.write_text('{"image": "a.png", "question": "How many\\u001b[31m?", "answer": 3}\n')
    out = run(capsys, "tasks", "show", "--data", str(data), "--n", "1", "--out", str(tmp_path / "s.png"))[1]
    assert "How many\\x1b[31m?" in out
    assert "truth  3" in out
    assert run(capsys, "tasks", "show", str(data))[1] == run(capsys, "tasks", "show", "--data", str(data))[1]
    assert out.count("truth") == 1  # a file of one line is shown once, whatever --n
    assert run(capsys, "tasks", "show", str(data), "--n", "9")[1].count("truth") == 1


def test_recipes_are_listed(capsys):
    code, out, err = run(capsys, "recipes", "--json")
    assert (code, err) == (0, "")
    assert all({"name", "kind", "about", "task", "model"} == set(item) for item in json.loads(out))
    assert all(item["kind"] in ("rl", "sft", "study") for item in json.loads(out))


def test_failures_exit_with_1_and_one_line_unless_debug_is_asked_for(capsys, monkeypatch):
    def fail(error: BaseException):
        def command() -> None:
            raise error

        monkeypatch.setitem(cli.COMMANDS, "recipes", command)

    fail(RunFailed("The loss became nan at step 3."))
    code, out, err = run(capsys, "recipes")
    assert (code, out) == (1, "")
    assert err == "fovea: The loss became nan at step 3. (fovea --debug … shows the trace.)\n"
    fail(KeyError("lost\nlines"))
    code, _, err = run(capsys, "recipes")
    assert code == 1
    assert err.count("\n") == 1
    assert "KeyError" in err
    with pytest.raises(KeyError):
        cli.main(["--debug", "recipes"])
    fail(KeyboardInterrupt())
    assert run(capsys, "recipes") == (130, "", "fovea: Interrupted.\n")


def test_the_process_returns_the_codes_and_keeps_the_streams_apart():
    done = process("train", "nothing.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    done = process("tasks", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    json.loads(done.stdout)
    # A terminal that knows ASCII only still gets an answer.
    done = process("tasks", "list", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0


def test_a_reader_that_leaves_is_no_error():
    child = subprocess.Popen(
        [sys.executable, "-m", "fovea", "tasks", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait(timeout=60) == 141
    assert errors == b""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of seconds on a random model of the embedded architecture."""
    from fovea.zoo import new_tiny

    folder = tmp_path_factory.mktemp("cli")
    model, processor = new_tiny(0)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    path = folder / "small.yaml"
    path.write_text(
        f"model: {folder / 'model'}\nprompts: 1\ngroup: 2\nsteps: 2\nshow_every: 1\nthreads: 1\n"
        "sampling: {max_new_tokens: 4}\nevaluation: {n: 4}\n"
    )
    return path


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_run_from_the_command_to_the_report(capsys, recipe, command):
    folder = recipe.parent / command
    code, out, err = run(capsys, command, str(recipe), f"run_dir={folder}", "--json", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((folder / "result.json").read_text())
    assert json.loads(out)["method"] == ("sft" if command == "sft" else "rl")
    assert "finished: 2 steps" in (folder / "report.html").read_text(encoding="utf-8")
    assert f"run_dir={folder}" in (folder / "run.json").read_text()
    assert "already holds a finished run" in refused(
        capsys, command, str(recipe), f"run_dir={folder}", "--quiet"
    )
    code, out, err = run(capsys, "evaluate", str(folder), "--n", "3", "--task", "digits/count", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["n"], record["task"], record["split"]) == (3, "digits/count", "test")
    assert set(record) >= {"accuracy", "swapped", "looking", "follow", "blank"}


def test_without_json_the_run_is_told_in_plain_lines(capsys, recipe):
    code, out, err = run(capsys, "train", str(recipe), f"run_dir={recipe.parent / 'told'}", "steps=1")
    assert (code, err) == (0, "")
    assert "step 1/1" in out
    assert out.splitlines()[-2].startswith("report ")
    assert out.splitlines()[-1].startswith("look closer: fovea view ")
    # A wrong model is found out before a run folder is made.
    nowhere = recipe.parent / "nowhere"
    refused(capsys, "train", str(recipe), f"run_dir={nowhere}", "model=none")
    assert not nowhere.exists()


def test_doctor_says_what_is_here(capsys):
    code, out, err = run(capsys, "doctor", "--json")
    assert err == ""
    found = json.loads(out)
    assert code == (0 if found["ok"] else 1)
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "torch", "transformers", "threads", "memory", "disk", "fovea-tiny"} <= set(checks)
    assert all(set(check) == {"name", "status", "detail", "fix"} for check in checks.values())
    assert all(check["fix"] for check in checks.values() if check["status"] != "ok")
    assert checks["torch"]["status"] == "ok"


def test_report_and_the_model_of_a_run(capsys, tmp_path):
    with RunLog(tmp_path / "run") as log:
        log.start(describe_run(Run(recipe="quickstart", steps=3)))
    code, out, _ = run(capsys, "report", str(tmp_path / "run"))
    assert code == 0
    assert Path(out.strip()).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "has saved no model yet" in refused(capsys, "evaluate", str(tmp_path / "run"))
    for step in (9, 10):
        folder = tmp_path / "run" / "checkpoints" / f"step_{step}" / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert newest_model(tmp_path / "run") == folder
    # Held-out means held out: of a run's own training file only the lines that it held out, unless it is named.
    with RunLog(tmp_path / "run", resume=True) as log:
        log.start(describe_run(Run(recipe="quickstart", data="mine.jsonl")))
    assert "mine.jsonl does not exist" in refused(capsys, "evaluate", str(tmp_path / "run"))
    assert "was trained on mine.jsonl; name held-out" in refused(
        capsys, "evaluate", str(tmp_path / "run"), "data=null"
    )
    assert "mine.jsonl does not exist" in refused(
        capsys, "evaluate", str(tmp_path / "run"), "--data", "mine.jsonl"
    )
    with pytest.raises(UserError):
        newest_model(tmp_path)


def test_a_domain_shows_all_its_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "tasks", "show", "cards", "--n", "1", "--json")
    assert code == 0
    assert [item["task"] for item in json.loads(out)] == [name for name in TASKS if name.startswith("cards/")]


def test_several_files_and_folders_in_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "x.png")
        line = {"id": name, "image": "x.png", "question": "?", "answer": [1, 2, 30, 40]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    files, folders = f"[{tmp_path}/a.jsonl,{tmp_path}/b.jsonl]", f"[{tmp_path}/a, {tmp_path}/b]"
    out = tmp_path / "out.jsonl"
    code, _, err = run(capsys, "convert", files, "--images", folders, "--out", str(out))
    assert (code, err) == (0, "")
    assert len(out.read_text().splitlines()) == 2
    assert run(capsys, "tasks", "check", files, "--images", folders)[0] == 0
    code, said, err = run(capsys, "tasks", "show", "--data", files, "--images", folders, "--json")
    assert (code, err, len(json.loads(said))) == (0, "", 2)
    code, said, err = run(capsys, "evaluate", "--data", files, "--images", folders, "--json", "--n", "all")
    assert (code, json.loads(said)["n"]) == (0, 2), err


@pytest.mark.parametrize("command", [["convert"], ["tasks", "show"], ["tasks", "check"]])
def test_keys_that_a_command_does_not_use_are_refused(capsys, tmp_path, command):
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": 2}\n')
    assert "steps would do nothing in this command" in refused(capsys, *command, str(file), "steps=10")
    if command[0] == "tasks":
        assert "problems.ask would do nothing" in refused(
            capsys, *command, "digits/count", "problems.ask=rec"
        )


@pytest.mark.parametrize("name", ["vlm_r1/hacking", "vlm_r1/grounding", "quickstart_study", "one_file_grpo"])
def test_help_after_a_studys_name_is_the_studys(capsys, name):
    with pytest.raises(SystemExit) as ended:
        cli.main(["study", name, "--help"])
    assert ended.value.code == 0
    assert f"fovea study {name}" in capsys.readouterr().out


def test_columns_never_touch(capsys):
    code, out, _ = run(capsys, "tasks", "list")
    assert code == 0
    starts = {line.index("  chance ") for line in out.splitlines()}
    assert len(starts) == 1
    known = TASKS | SSL | dict(GRAPH_TASKS)
    kinds = {spec.kind for spec in known.values()}
    assert all(line.split()[0] in known and line.split()[1] in kinds for line in out.splitlines())


def test_a_long_measure_is_apart_from_its_value():
    from fovea.viewer.report import measure_lines

    value = {"mean": 0.5, "ci95": [0.4, 0.6]}
    lines = measure_lines({"n": 4, "rewards": {"od_weighted_and_more": value, "iou": value}})
    assert [line.index("0.500 [") for line in lines] == [len("reward od_weighted_and_more") + 2] * 2
