"""`check_task` and `fovea tasks check`: built-in tasks are sound, planted faults are found, figures by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fovea.cli import main
from fovea.tasks import TASKS, check_task, open_task
from fovea.tasks.chance import best_box, blind_chance
from fovea.types import Problem, UserError
from fovea.viewer.sheet import draw_sheet


@pytest.mark.parametrize("name", sorted(TASKS))
def test_built_in_tasks_are_sound(name: str) -> None:
    report = check_task(name, 25)
    assert report.n == 25
    assert not report.bad, [str(finding) for finding in report.bad]


@dataclass(frozen=True, kw_only=True, slots=True)
class Faulty:
    """A built-in task with one thing changed in problem 2."""

    change: dict[str, object]
    name: str = "shapes/locate"
    kind: str = "box"
    chance: float = 0.06
    size: None = None

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        problems, after = open_task("shapes/locate").take(cursor, n)
        change = {key: value(n) if callable(value) else value for key, value in self.change.items()}
        return [replace(p, **change) if p.id.endswith(":2") else p for p in problems], after


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"question": lambda n: f"Where? {n}"}, "another problem when it is taken again"),
        ({"id": "shapes/locate:train:0:1"}, "is that of problem 1"),
        ({"answer": (0, 0, 900, 900)}, "outside its picture"),
        ({"answer": {1, 2}}, "does not fit kind 'box'"),
        ({"answer": (1, 1, 3, 3)}, "is wrong by the checker"),
        ({"target": "the box is {box:1,2,3,4}"}, "wrong by the checker"),
        ({"difficulty": 2.0}, "has difficulty 2.0"),
        ({"question": " "}, "has no question"),
        ({"kind": "text", "answer": "x", "target": None}, "is of kind 'text'"),
        ({"meta": {"accu_reward_method": "yes_no"}}, "Reward 'yes_no' needs a text"),
        ({"meta": {"accu_reward_method": "foo"}}, "has the accu_reward_method 'foo'"),
    ],
)
def test_planted_faults_are_found(change: dict[str, object], what: str) -> None:
    report = check_task(Faulty(change=change), 6)  # type: ignore[arg-type]
    assert [finding.line for finding in report.bad] == [2]
    assert what in str(report.bad[0])
    assert str(report.bad[0]).startswith("shapes/locate, problem 2: ")


def test_a_correct_reply_without_the_format_is_found() -> None:
    class Bare(Faulty):
        def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
            problems, after = open_task("shapes/count").take(cursor, n)
            return [replace(p, target=str(p.answer)) for p in problems], after

    report = check_task(Bare(change={}, kind="number", chance=0.5), 3)  # type: ignore[arg-type]
    assert "does not earn the full reward (format 0)" in str(report.bad[0])


def test_a_declared_chance_that_is_too_low_is_found() -> None:
    class Constant(Faulty):
        def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
            problems, after = open_task("shapes/count").take(cursor, n)
            return [replace(p, answer=3, target="<answer>3</answer>") for p in problems], after

    report = check_task(Constant(change={}, kind="number", chance=1 / 6), 60)  # type: ignore[arg-type]
    assert report.chance == 1.0
    assert "declares chance 0.167, but one constant reply is right 1 of the time" in str(report.bad[0])


def test_blind_chance_by_hand() -> None:
    assert blind_chance([], [], []) == 0
    assert blind_chance(["text"] * 4, ["a", "A ", "b", "c"], [None] * 4) == 0.5  # "A " is "a" to the checker
    assert blind_chance(["number"] * 3, [1, 1.0, 2], [None] * 3) == pytest.approx(2 / 3)
    # Three equal boxes in shares of their pictures, one elsewhere; the choice "B" once.
    kinds, answers = (
        ["box"] * 4 + ["choice"],
        [(0, 0, 50, 50), (0, 0, 5, 5), (0, 0, 50, 5), (90, 90, 99, 99), "B"],
    )
    sizes = [(100, 100), (10, 10), (100, 10), (100, 100), None]
    assert blind_chance(kinds, answers, sizes) == pytest.approx(3 / 5)
    # IoU of exactly one half is not above it: [0, 1] x [0, 1] against [0, 1/2] x [0, 1].
    halves = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]])
    assert best_box(halves) == 0.5


def bad_file(folder: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    (folder / "zero.png").write_bytes(b"")
    lines = [
        {"id": "1", "images": ["a.png"], "question": "Which colour?", "answer": "red"},
        {"id": "1", "images": ["a.png"], "question": "Which colour?", "answer": "red"},
        {"images": ["zero.png"], "question": "Which colour?", "answer": "red"},
        {
            "images": ["a.png"],
            "question": "Which colour?",
            "answer": "red",
            "target": "<answer>blue</answer>",
        },
        {"images": ["a.png"], "question": "Where?", "answer": [0, 0, 80, 20]},
        {"id": "6", "images": ["a.png"], "question": "Which colour?", "answer": "red"},
    ]
    path = folder / "my.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\nnot json\n")
    return path


def test_all_bad_lines_of_a_file_in_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bad_file(tmp_path)
    report = check_task(path)
    assert report.n == 7
    assert [finding.line for finding in report.bad] == [2, 3, 4, 5, 7]
    assert report.chance == 1.0
    code = main(["tasks", "check", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 2
    assert found["n"] == 7
    assert found["chance"] == 1.0
    assert [set(bad) for bad in found["bad"]] == [{"file", "line", "problem", "fix"}] * 5
    assert all(bad["file"] == str(path) and bad["problem"] and bad["fix"] for bad in found["bad"])
    assert main(["tasks", "check", str(path)]) == 2
    shown = capsys.readouterr()
    assert "my.jsonl, line 2: the id '1' is already that of line 1; give each its own." in shown.out
    assert "7 samples, 5 bad" in shown.out
    assert "Traceback" not in shown.err


def test_a_tolerance_that_is_none_is_one_finding_of_many(tmp_path: Path) -> None:
    path = bad_file(tmp_path)
    line = {"images": ["a.png"], "question": "How many?", "answer": 3, "meta": {"tolerance": "x"}}
    path.write_text(json.dumps(line) + "\n" + path.read_text())
    bad = check_task(path).bad
    assert [finding.line for finding in bad] == [1, 3, 4, 5, 6, 8]
    assert str(bad[0]).startswith(f"{path}, line 1: The tolerance of problem my:1 is 'x'; give meta")


def test_a_part_of_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"question": ["2 + 2?", "2 + 3?"], "answer": ["4", "5"]})
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "dsd")
    assert [check_task(f"{tmp_path / 'dsd'}@{part}").n for part in ("train", "test")] == [2, 1]
    with pytest.raises(UserError, match="has no parts to name with @val"):
        check_task(f"{tmp_path / 'dsd'}@val")


def test_good_things_are_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    path = tmp_path / "my.jsonl"
    path.write_text('{"images": ["a.png"], "question": "Which colour?", "answer": "red"}\n')
    assert main(["tasks", "check", str(path)]) == 0
    assert main(["tasks", "check", "shapes/locate", "--n", "5", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["declared_chance"] == TASKS["shapes/locate"].chance


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_a_sheet_of_any_number_of_problems(tmp_path: Path, count: int) -> None:
    """Problem i has i mod 11 pictures; the sheet is not much higher than wide, and each first picture is on it."""
    problems = [
        Problem(
            id=str(i), task="t", images=tuple(Image.new("RGB", (9, 12), (i, 200, 7)) for _ in range(i % 11)),
            question="word " * 200 if i == 1 else "Where?", answer=i, kind="number",
        )
        for i in range(count)
    ]  # fmt: skip
    draw_sheet(problems, tmp_path / "s.png")
    sheet = Image.open(tmp_path / "s.png")
    assert sheet.height <= 2.5 * sheet.width
    colours = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert {(i, 200, 7) for i in range(count) if i % 11} <= colours
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"s.png cannot be written"):
        draw_sheet(problems, tmp_path / "file" / "s.png")


def test_a_name_that_is_neither_task_nor_file() -> None:
    with pytest.raises(UserError, match="did you mean 'shapes/locate'"):
        check_task("shapes/lokate")
    with pytest.raises(UserError, match=r"data file nowhere.jsonl does not exist"):
        check_task("nowhere.jsonl")
