"""The Python API: every example of its page runs, and what is given wrongly is one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture

import fovea
from fovea.api import as_overrides, read_rewards, run_to_evaluate
from fovea.config import Run
from fovea.tasks.own import check_own_task, split_problems
from fovea.types import Problem, UserError

PAGE = Path(__file__).parent.parent / "docs" / "python-api.md"


def test_every_example_of_the_page_runs(tmp_path: Path) -> None:
    """In order, in one process, in an empty folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folders = {path.name for path in (tmp_path / "runs").iterdir()}
    assert {"first", "seed1", "seed2", "mine", "squares", "brighter", "watched"} <= folders
    for path in (tmp_path / "runs").iterdir():
        assert (path / "result.json").is_file()
        assert (path / "report.html").is_file()
    lines = done.stdout.splitlines()
    assert "finished after 1 steps" in lines
    assert any(line.startswith("accuracy ") for line in lines)
    assert "did you mean 'steps'?" in lines[-3]
    assert "rewards['iou']" in lines[-2]
    assert "did you mean 'digits/locate'?" in lines[-1]
    mine = [json.loads(line) for line in (tmp_path / "runs/mine/evaluations.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in mine if line["phase"] != "during"] == ["before", "after"]
    squares = json.loads((tmp_path / "runs/squares/run.json").read_text())
    assert squares["run"]["task"] == "squares"
    assert squares["instruction"] is None  # fovea-tiny knows how to write answers


def test_the_package_is_light_and_lists_its_names() -> None:
    code = (
        "import sys, fovea; assert set(fovea.__all__) <= set(dir(fovea)); fovea.Problem; fovea.load_run;"
        "[getattr(fovea, name) for name in fovea.__all__]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        fovea.trian  # noqa: B018


def short(text: str, problem: Problem) -> float:
    return float(len(text) < 40)


def test_rewards_in_every_form() -> None:
    assert read_rewards(None) == (None, {})
    assert read_rewards("iou") == ({"iou": 1.0}, {})
    assert read_rewards(short) == ({"short": 1.0}, {"short": short})
    assert read_rewards(["iou", short]) == ({"iou": 1.0, "short": 1.0}, {"short": short})
    given = {"iou": 2, "a": short, "b": (short, 0.5)}
    assert read_rewards(given) == ({"iou": 2.0, "a": 1.0, "b": 0.5}, {"a": short, "b": short})
    anonymous: Callable[..., float] = lambda text, problem: 0.0  # noqa: E731
    assert list(read_rewards(anonymous)[1]) == ["reward"]


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        (3, "not a function"),
        ([], "empty"),
        ({"iou": "much"}, r"rewards\['iou'\] is 'much'"),
        ({"iou": True}, "give a weight"),
        ({"a": (short, "x")}, "pair"),
        ({"iou": short}, "built-in reward 'iou'"),
        ([short, short], "Two rewards"),
    ],
)
def test_rewards_that_are_none(rewards: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_rewards(rewards)


def test_overrides_keep_their_values() -> None:
    given = {"steps": 3, "optimizer": {"learning_rate": 1e-05}, "data": None, "run_dir": "2025-01-31"}
    given |= {"instruction": "", "model": "C:/x: y", "rewards": {"a.b": 1.0}}  # type: ignore[dict-item]
    run = fovea.load_run("quickstart", as_overrides(given))
    assert (run.steps, run.optimizer.learning_rate, run.data) == (3, 1e-05, None)
    assert (run.run_dir, run.instruction, run.model, run.rewards) == (
        "2025-01-31",
        "",
        "C:/x: y",
        {"a.b": 1.0},
    )
    with pytest.raises(UserError, match=r"steps: .*object"):
        as_overrides({"steps": object()})


def problem(i: int, **changes: Any) -> Problem:
    values: dict[str, Any] = {"id": str(i), "task": "mine", "question": "?", "answer": i, "kind": "number"}
    return Problem(**{"images": (picture(28, 28, i),)} | values | changes)


def test_lists_are_split_and_taken_in_epochs() -> None:
    problems = [problem(i) for i in range(20)]
    kept, held = split_problems("mine", problems, seed=4)
    assert [p.id for p in held.problems] == ["9", "19"]
    assert held.take(1, 2)[0] == [problems[19], problems[9]]
    first, cursor = kept.take(0, 18)
    assert sorted(int(p.id) for p in first) == [i for i in range(20) if i not in (9, 19)]
    assert [p.id for p in first] != [p.id for p in kept.take(cursor, 18)[0]]
    assert kept.take(5, 3)[0] == kept.take(3, 5)[0][2:]
    assert kept.take(0, 18)[0] != split_problems("mine", problems, seed=5)[0].take(0, 18)[0]


BOX: dict[str, Any] = {"kind": "box"}
THING: dict[str, Any] = {"kind": "objects"}


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": "cat.png"}, r"images is the str 'cat.png'; open it: images=\(PIL.Image.open"),
        ({"images": ("cat.png",)}, r"images\[0\] is the str 'cat.png'; open it"),
        ({"images": (Path("cat.png"),)}, r"images\[0\] is .*; open it"),
        ({"images": (np.zeros((4, 4, 3)),)}, r"images\[0\] is the ndarray .*fromarray"),
        ({"images": None}, "images is None; give a tuple"),
        ({"images": (None,)}, r"images\[0\] is None; give a tuple"),
        ({"images": picture(28, 28, 0)}, r"images is the Image .*images=\(picture,\)"),
        ({"answer": None}, "answer is None, which does not fit kind 'number'; give one finite"),
        ({"answer": "x"}, "answer is the str 'x', which does not fit kind 'number'"),
        ({"answer": True}, "answer is the bool True"),
        ({"answer": float("nan")}, "answer is the float nan"),
        ({"answer": Unprintable()}, "answer is a Unprintable, which"),
        ({"kind": "choice", "answer": "AB"}, "'AB', which does not fit kind 'choice'; give one letter"),
        ({"kind": "choice", "answer": None}, "answer is None, which does not fit kind 'choice'"),
        ({"kind": "text", "answer": None}, "answer is None, which does not fit kind 'text'"),
        ({"kind": "text", "answer": " "}, "give a text that is not empty"),
        (BOX | {"answer": "[1, 2, 3, 4]"}, "does not fit kind 'box'; give four plain numbers"),
        (BOX | {"answer": (1, 2, 3)}, "does not fit kind 'box'"),
        (BOX | {"answer": None}, "does not fit kind 'box'"),
        (
            BOX | {"answer": (1, 2, 3, 4), "images": ()},
            r"images is the tuple \(\); give the picture that the box",
        ),
        (
            BOX | {"answer": (1, 2, 3, 4), "meta": {"box_image": 3}},
            r"meta.*box_image.* is the int 3; .* 0 to 0",
        ),
        (THING | {"answer": "cat"}, "does not fit kind 'objects'; give a list"),
        (THING | {"answer": [{"box": [1, 2, 3, 4], "label": "cat"}]}, "does not fit kind 'objects'"),
        (THING | {"answer": [{"bbox_2d": [1, 2, 3, 4]}]}, "does not fit kind 'objects'"),
        ({"kind": "pose"}, "kind is the str 'pose'; give one of box"),
        ({"kind": ["box"]}, "kind is the list"),
        ({"frame": "percent"}, "frame is the str 'percent'; give one of pixels"),
        ({"question": 5}, "question is the int 5; give a text"),
        ({"question": None}, "question is None; give a text"),
        ({"id": 5}, "id is the int 5; give a text"),
        ({"id": ["5"]}, "id is the list"),
        ({"task": None}, "task is None; give a text"),
        ({"difficulty": "easy"}, "difficulty is the str 'easy'; give a number from 0 to 1"),
        ({"difficulty": None}, "difficulty is None"),
        ({"meta": None}, "meta is None; give a dict"),
        ({"target": 3}, "target is the int 3; give the reply as a text"),
    ],
)
def test_a_field_of_a_wrong_type_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    wrong = problem(3, **changes)
    own = "" if "id" in changes else r"\(id '3'\) "
    with pytest.raises(UserError, match=f"^mine, problem 3: {own}.*{said}") as found:
        split_problems("mine", [*(problem(i) for i in range(3)), wrong, *(problem(i) for i in range(4, 12))])
    assert "\n" not in str(found.value)

    def take(self: Any, cursor: int, n: int) -> Any:
        return [problem(i) if i != 3 else wrong for i in range(cursor, cursor + n)], cursor + n

    with pytest.raises(UserError, match=said):
        check_own_task(changed(take=take))


def test_answers_that_are_good_stay_good() -> None:
    for kind, answer in (("number", "3"), ("number", 2.5), ("choice", "(b)"), ("text", 7), ("objects", [])):
        split_problems("mine", [problem(i, kind=kind, answer=answer) for i in range(10)])


class Watcher:
    def start(self, run: Any) -> None: ...
    def step(self, metrics: Any, shown: Any) -> None: ...
    def evaluation(self, record: Any) -> None: ...


@pytest.mark.parametrize(
    ("observers", "said"),
    [
        (None, "observers is None; give a list"),
        (Watcher(), "observers is a Watcher; give a list"),
        ([None], r"observers\[0\] is None; give an object with the methods start, step, evaluation, finish"),
        ([Watcher], r"observers\[0\] is a type; give an object"),
        (
            [Watcher()],
            r"observers\[0\] is a Watcher and has no method 'finish'; add def finish\(self, result\)",
        ),
    ],
)
def test_an_observer_that_is_none_is_said(observers: Any, said: str, tmp_path: Path) -> None:
    for call in (fovea.train, fovea.resume):
        with pytest.raises(UserError, match=said):
            call(str(tmp_path / "run"), observers=observers)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_asks_for_what_only_python_has(tmp_path: Path) -> None:
    for name, changes, said in (
        ("a", {"task": "squares"}, r"a task of your own, 'squares'; give task="),
        (
            "b",
            {"rewards": {"iou": 1.0, "mine": 1.0}},
            "a function of your own as the reward 'mine'; give rewards=",
        ),
    ):
        run = Run(recipe="quickstart", run_dir=str(tmp_path / name)).model_copy(update=changes)
        (tmp_path / name).mkdir()
        record = {"schema": 1, "run": run.model_dump(mode="json")}
        (tmp_path / name / "run.json").write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(UserError, match=said):
            fovea.resume(tmp_path / name)


def test_numbers_of_numpy_sets_and_nan() -> None:
    given = {
        "steps": np.int64(3),
        "optimizer": {"learning_rate": np.float32(0.5)},
        "freeze": {"vision", "text"},
    }
    assert as_overrides(given) == ["steps=3", "optimizer.learning_rate=0.5", 'freeze=["text", "vision"]']
    assert read_rewards({"iou": np.float32(0.5), "exact": np.int64(2)}) == ({"iou": 0.5, "exact": 2.0}, {})
    with pytest.raises(UserError, match=r"^The weight of rewards\['iou'\] is NaN; give a finite number"):
        read_rewards({"iou": float("nan")})
    with pytest.raises(UserError, match="is infinite"):
        read_rewards({"iou": np.float32("inf")})
    with pytest.raises(UserError, match=r"^optimizer.learning_rate is NaN; give a finite number\.$"):
        as_overrides({"optimizer": {"learning_rate": float("nan")}})
    with pytest.raises(UserError, match=r"freeze: .*give a number, a text, a list"):
        as_overrides({"freeze": {"vision", 3}})


@pytest.mark.parametrize(
    ("problems", "held_out", "said"),
    [
        ([], None, "empty"),
        ([problem(0)], None, "none can be held out"),
        ([problem(0)], [problem(0)], "trained on and held out"),
        (["x"] * 10, None, "problem 0: it is a str"),
        ([problem(i % 5) for i in range(10)], None, "problem 5: the id '0' is that of problem 0"),
        ([problem(0, kind="box", answer=(0, 0, 99, 9))], [problem(1)], "outside its picture"),
        ([problem(0), problem(1, kind="text", answer="a")], [problem(2)], "declare one kind"),
    ],
)
def test_lists_that_cannot_be_used(problems: Any, held_out: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        split_problems("mine", problems, held_out)


class Good:
    name: Any = "good"
    kind: Any = "number"
    chance: Any = 0.5
    size: Any = None

    def take(self, cursor: int, n: int) -> Any:
        return [problem(i) for i in range(cursor, cursor + n)], cursor + n


class Finite(Good):
    size = 3

    def take(self, cursor: int, n: int) -> Any:
        return [problem(i % 3) for i in range(cursor, cursor + n)], cursor + n


def test_a_task_is_any_object_with_the_methods() -> None:
    for task in (Good(), Finite()):
        assert check_own_task(task) is task


def changed(base: type[Good] = Good, **attributes: Any) -> Any:
    return type("Mine", (base,), attributes)()


def broken(self: Any, cursor: int, n: int) -> Any:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (object(), "task=object has no attribute 'name'"),
        (changed(name=""), "name is ''; it must be a text"),
        (changed(kind="pose"), "kind is 'pose'; it must be one of box, text"),
        (changed(kind=lambda self: "box"), "kind is a method"),
        (changed(chance=50), "chance is 50; it must be a number of 0 to 1"),
        (changed(size=0), "size is 0; it must be how many"),
        (changed(take=None), r"no method take\(cursor, n\)"),
        (changed(take=broken), r"take\(0, 2\) failed with KeyError: 'x'; it must return"),
        (changed(take=lambda self, cursor, n: [problem(0)]), "returned a list; it must"),
        (changed(take=lambda self, cursor, n: ([1, 2], 2)), "no list of fovea.Problem"),
        (changed(take=lambda self, cursor, n: ([problem(0)], 2)), "returned 1 problems"),
        (changed(take=lambda self, cursor, n: ([problem(i) for i in range(n)], None)), "the cursor None"),
        (changed(take=lambda self, cursor, n: ([problem(i) for i in range(n)], 0)), "when it is taken again"),
        (changed(size=3), None),  # goes on after its last problem with others: its own affair
        (changed(Finite, take=lambda self, c, n: ([problem(i) for i in range(c, min(c + n, 3))], c + n)),
         r"take\(3, 1\) returned 0 problems.*begin anew after the last problem"),
        (changed(kind="text"), "of kind 'number', the task of kind 'text'"),
    ],
)  # fmt: skip
def test_what_a_task_lacks_is_said(task: Any, said: str | None) -> None:
    if said is None:
        check_own_task(task)
        return
    with pytest.raises(UserError, match=said):
        check_own_task(task)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": Good()}, "needs held-out problems"),
        ({"validation": [problem(0)]}, "belongs to a task of your own"),
        ({"task": Good(), "validation": changed(kind="pose")}, "validation=Mine: kind"),
        ({"task": [problem(i) for i in range(10)], "validation": Good()}, "must be one, too"),
        ({"task": Good(), "data": "x.jsonl", "validation": Good(), "rewards": {"nope": 1.0}}, "nope"),
        ({"steps": -1}, "steps=-1"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_written(
    given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        fovea.train("quickstart", **given, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_is_changed_like_a_recipe(tmp_path: Path) -> None:
    run = Run(recipe="mine", rewards={"iou": 1.0})
    with pytest.raises(UserError, match=r"there is no key 'stepz' \(did you mean 'steps'\?\)"):
        fovea.train(run, stepz=3)
    with pytest.raises(UserError, match="There is no task 'nope'"):
        fovea.train(run, task="nope", run_dir=str(tmp_path))
    assert run_to_evaluate("fovea-tiny", ["task=cards/name"]).rewards == {}
