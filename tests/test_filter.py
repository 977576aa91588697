"""`fovea filter`: what is kept is the user's own line, what is dropped is named, a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import loud_policy
from PIL import Image

from fovea.cli import main
from fovea.engines.scripted import ScriptedEngine
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.filtering import check_bounds, filter_problems, judge, record_of
from fovea.models.policy import Policy, load_policy
from fovea.tasks import open_data, open_task
from fovea.types import Problem, Sampling, UserError
from fovea.viewer.sheet import facts

SETTINGS = {"model": "random"}


def write_data(folder: Path, n: int = 9) -> Path:
    """Lines whose spelling must survive: keys in any order, spaces, CRLF, blank lines, no newline at the end."""
    Image.fromarray(np.full((28, 28, 3), 90, np.uint8)).save(folder / "a.png")
    lines = [
        f'{{"answer":  "{i}", "kind": "text", "question": "Caf\\u00e9 {i}?", "id": "p{i}", "image": "a.png" }}'
        + ("\r\n" if i % 2 else "\n\n")
        for i in range(n)
    ]
    path = folder / "my.jsonl"
    path.write_bytes("".join(lines).rstrip().encode())
    return path


def sometimes(problem: Problem, sample: int) -> str:
    """Right in as many of the samples as the problem's answer says."""
    return f"<answer>{problem.answer if sample < int(problem.answer) else 'no'}</answer>"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return loud_policy("qwen3_vl")


def run_filter(policy: Policy, data: Path, out: Path, engine: Any = None, **changes: Any) -> dict[str, Any]:
    task = open_data(str(data), shuffle=False)
    arguments: dict[str, Any] = {"source": data, "settings": SETTINGS, "samples": 8} | changes
    return filter_problems(policy, engine or ScriptedEngine(sometimes), task, task.size, out, **arguments)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_kept_lines_are_the_files_own_and_dropped_ones_say_why(policy: Policy, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    summary = run_filter(policy, data, tmp_path / "kept.jsonl")
    original = data.read_bytes().splitlines(keepends=True)
    own = [line for line in original if line.strip()]
    assert (tmp_path / "kept.jsonl").read_bytes() == b"".join(own[1:8])
    dropped = records(tmp_path / "dropped.jsonl")
    assert [(line["id"], line["pass_rate"], line["reason"]) for line in dropped] == [
        ("p0", 0.0, "never solved"),
        ("p8", 1.0, "always solved"),
    ]
    assert dropped[1]["source"].endswith(f"my.jsonl, line {len(original)}")
    assert summary["n"] == 9
    assert summary["kept"] == 7
    assert summary["dropped"] == {"always solved": 1, "never solved": 1}
    assert [bin["problems"] for bin in summary["histogram"]] == [1] * 9
    assert summary["pass_rate_mean"] == 0.5
    assert not (tmp_path / "kept.jsonl.progress").exists()
    assert open_data(str(tmp_path / "kept.jsonl"), shuffle=False).size == 7


def test_bounds_are_exclusive(policy: Policy, tmp_path: Path) -> None:
    summary = run_filter(policy, write_data(tmp_path), tmp_path / "k.jsonl", low=0.25, high=0.75)
    assert [line["id"] for line in records(tmp_path / "k.jsonl")] == ["p3", "p4", "p5"]
    assert summary["dropped"] == {
        "always solved": 1,
        "never solved": 1,
        "pass rate not above 0.25": 2,
        "pass rate not below 0.75": 2,
    }
    with pytest.raises(UserError, match="No pass rate of 2 samples"):
        check_bounds(2, 0.5, 1.0)


def test_a_bad_sample_is_dropped_by_name(policy: Policy, tmp_path: Path) -> None:
    data = write_data(tmp_path, 4)
    task = open_data(str(data), shuffle=False)
    (tmp_path / "a.png").unlink()
    summary = filter_problems(
        policy, ScriptedEngine(sometimes), task, 4, tmp_path / "k.jsonl", source=data, settings=SETTINGS
    )
    assert summary["dropped"] == {"bad sample": 4}
    assert summary["pass_rate_mean"] is None
    first = records(tmp_path / "dropped.jsonl")[0]
    assert first["pass_rate"] is None
    assert "a.png" in first["problem"]


def test_a_stopped_filter_goes_on_where_it_was(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fovea.filtering.PROBLEMS_AT_ONCE", 2)
    data, asked = write_data(tmp_path), list[str]()

    class Stops(ScriptedEngine):
        def generate(self, prompts: Any, *arguments: Any, **named: Any) -> Any:
            asked.extend(prompt.problem.id for prompt in prompts)
            if asked == ["p0", "p1", "p2", "p3", "p4", "p5"]:
                raise KeyboardInterrupt
            return super().generate(prompts, *arguments, **named)

    whole = run_filter(policy, data, tmp_path / "a" / "kept.jsonl")
    out = tmp_path / "b" / "kept.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_filter(policy, data, out, Stops(sometimes))
    with out.with_name("kept.jsonl.progress").open("ab") as file:
        file.write(b'{"position": 4, "i')  # killed while it wrote
    assert not out.exists()
    asked.clear()
    again = run_filter(policy, data, out, Stops(sometimes))
    assert asked == ["p4", "p5", "p6", "p7", "p8"], "what was judged is not asked again"
    assert whole | {"out": "", "dropped_file": ""} == again | {"out": "", "dropped_file": ""}
    for name in ("kept.jsonl", "dropped.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_progress_of_other_settings_is_begun_anew(policy: Policy, tmp_path: Path) -> None:
    data, out = write_data(tmp_path, 2), tmp_path / "kept.jsonl"
    foreign = [{"model": "another"}, {"position": 0, "id": "p0", "samples": 8, "passes": 4, "error": None}]
    out.with_name("kept.jsonl.progress").write_text("".join(json.dumps(line) + "\n" for line in foreign))
    run_filter(policy, data, out)
    assert [line["id"] for line in records(out)] == ["p1"]


def test_problems_of_a_task_can_be_trained_on(tmp_path: Path) -> None:
    policy, task = load_policy("fovea-tiny", device="cpu"), open_task("digits/locate", "train", 3)
    engine, sampling = SharedPrefillEngine(policy), Sampling(max_new_tokens=32)
    summary = filter_problems(
        policy, engine, task, 6, tmp_path / "k.jsonl", source=None, settings={}, samples=4, low=-1, high=2,
        sampling=sampling,
    )  # fmt: skip
    assert summary["kept"] == 6
    again = open_data(str(tmp_path / "k.jsonl"), shuffle=False).take(0, 6)[0]
    for ours, theirs in zip(task.take(0, 6)[0], again):
        assert (ours.id, ours.question, ours.answer, ours.kind) == (
            theirs.id, theirs.question, tuple(theirs.answer), theirs.kind,
        )  # fmt: skip
        assert np.array_equal(np.asarray(ours.images[0]), np.asarray(theirs.images[0]))
        prompts = [policy.prompt(one) for one in (ours, theirs)]
        assert prompts[0].problem.target == prompts[1].problem.target
    # the same seed, asked in two pieces: the same verdicts
    named: dict[str, Any] = {"samples": 4, "sampling": sampling, "seed": 0}
    pieces = [
        *judge(policy, engine, task, range(4), **named),
        *judge(policy, engine, task, range(4, 6), **named),
    ]
    counts = [round(bin["pass_rate"] * 4) for bin in summary["histogram"] for _ in range(bin["problems"])]
    assert sorted(verdict.passes for verdict in pieces) == counts


def test_the_command_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "kept.jsonl")]
    small = ["--n", "4", "--samples", "2", "sampling.max_new_tokens=32", "threads=1"]
    assert main(["filter", "digits/locate", *out, *small, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["n"] == 4
    assert summary["kept"] + sum(summary["dropped"].values()) == 4
    assert len(records(tmp_path / "dropped.jsonl")) == 4 - summary["kept"]
    (tmp_path / "dropped.jsonl").unlink()
    elsewhere = ["--out", str(tmp_path / "new.jsonl")]
    for arguments, message in [
        (["digits/locate", *out], "exists already"),
        (["digits/locat", *elsewhere], "did you mean 'digits/locate'"),
        (["digits/locate", *elsewhere, "--low", "0.9"], "No pass rate of 8 samples"),
        (["digits/locate", *elsewhere, "--model", "nowhere"], "no model folder"),
        (["digits/locate", "--out", str(tmp_path / "kept.jsonl" / "x")], "cannot be written"),
        (["digits/locate", "--out", str(tmp_path / "dropped.jsonl")], "where the dropped problems go"),
    ]:
        assert main(["filter", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1


def test_marks_of_where_to_look_stay_out_of_written_lines() -> None:
    """digits/read's teacher marks where each digit is read off; a file for users holds the reply alone."""
    problem = open_task("digits/read", "train", 0).take(0, 1)[0][0]
    assert "{look:" in (problem.target or "")
    assert record_of(problem, ["a.png"])["target"] == f"<answer>{problem.answer}</answer>"
    assert facts(problem)["target"] == f"<answer>{problem.answer}</answer>"
