"""The model card: verdicts and chance by hand, a page from rows, and a real card that is stopped and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fovea import card
from fovea.card import CardSettings, card_markdown, constant_share, make_card, verdict
from fovea.statistics import proportion
from fovea.types import Problem, UserError


def problem(name: str, answer: Any, kind: Any, size: tuple[int, int] = (100, 100)) -> Problem:
    return Problem(
        id=name, task="t", images=(Image.new("RGB", size),), question="?", answer=answer, kind=kind
    )


def row(accuracy: tuple[float, float], looking: tuple[float, float] | None, chance: float) -> dict[str, Any]:
    return {
        "accuracy": {"mean": sum(accuracy) / 2, "ci95": list(accuracy)},
        "looking": {"mean": None, "ci95": None} if looking is None else {"mean": 0.1, "ci95": list(looking)},
        "chance": {"used": chance},
    }


def test_verdicts() -> None:
    assert verdict(row((0.71, 0.8), (0.01, 0.3), 0.5)) == (True, "")
    passed, why = verdict(row((0.69, 0.8), (0.0, 0.3), 0.5))
    assert not passed
    assert why == (
        "accuracy's lower end 0.690 is below chance + 0.20 = 0.700; looking's lower end 0.000 is not above 0"
    )
    assert verdict(row((0.9, 1.0), None, 0.0)) == (False, "no picture could be swapped")


def test_the_best_constant_reply() -> None:
    texts = [problem(str(i), answer, "text") for i, answer in enumerate(["red", "red", "Red", "blue"])]
    assert constant_share(texts) == 0.75  # as the checker counts: letters of any size
    numbers = [problem(str(i), answer, "number") for i, answer in enumerate([3, 3, 4, 5])]
    assert constant_share(numbers) == 0.5
    # As shares of their pictures the first two boxes are one, the third covers 80 % of it, the last is elsewhere.
    boxes = [((0, 0, 50, 50), (100, 100)), ((0, 0, 100, 50), (200, 100))]
    boxes += [((0, 0, 40, 50), (100, 100)), ((60, 60, 90, 90), (100, 100))]
    assert constant_share([problem(str(i), box, "box", size) for i, (box, size) in enumerate(boxes)]) == 0.75
    assert constant_share([]) == 0.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in a folder, with a record of its build."""
    from conftest import loud_policy

    folder = tmp_path_factory.mktemp("card") / "model"
    loud_policy("qwen3_vl").save(folder)
    build = {"seed": 7, "seconds": 90, "command": "make it", "mixtures": {"one": {"a/b": 3, "c/d": 1}}}
    (folder / "build.json").write_text(json.dumps(build))
    return folder


SMALL = CardSettings(n=4, samples=2, max_new_tokens=3)
NAMES = ["digits/count", "digits/locate"]


def test_a_card_is_made_and_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "CARD.md"
    new: list[str] = []
    made = make_card(str(model), out, SMALL, NAMES, told=lambda row: new.append(row["name"]))
    assert new == NAMES
    assert made == json.loads(out.with_suffix(".json").read_text())
    assert [skill["name"] for skill in made["skills"]] == NAMES
    assert (made["measured"], made["domains"], made["build"]["seed"]) == (2, 1, 7)
    for skill in made["skills"]:
        assert skill["n"] == 4
        assert {"accuracy", "swapped", "looking", "follow", "blank", "pass_at_k", "rewards"} <= set(skill)
        assert skill["chance"]["used"] >= skill["chance"]["declared"]
    page = out.read_text()
    assert "| one | a/b 75 %, c/d 25 % |" in page
    assert "of 2 with pictures pass" in page

    lines = out.with_suffix(".skills.jsonl")
    kept = lines.read_bytes()
    lines.write_bytes(kept[: kept.index(b"\n") + 20])  # stopped while the second skill was being written
    new.clear()
    again = make_card(str(model), out, SMALL, NAMES, told=lambda row: new.append(row["name"]))
    assert new == ["digits/locate"]
    drop = {"seconds"}
    for before, after in zip(made["skills"], again["skills"], strict=True):
        assert {k: v for k, v in before.items() if k not in drop} == {
            k: v for k, v in after.items() if k not in drop
        }
    new.clear()
    other = CardSettings(n=3, samples=2, max_new_tokens=3)
    make_card(str(model), out, other, NAMES[:1], told=lambda row: new.append(row["name"]))
    assert new == ["digits/count"]  # other settings: measured again


@pytest.mark.long
def test_processes_measure_the_same(model: Path, tmp_path: Path) -> None:
    one, two = (
        make_card(str(model), tmp_path / f"{n}.md", SMALL, NAMES, processes=n)["skills"] for n in (1, 2)
    )
    for a, b in zip(one, two, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_the_page_tells_the_three_kinds_of_skills_apart() -> None:
    def skill(name: str, passed: bool, text_only: bool) -> dict[str, Any]:
        share = proportion([True] * 9 + [False])
        nothing = {"mean": None, "ci95": None, "n": 0}
        shared = {"name": name, "n": 10, "text_only": text_only, "passed": passed, "why": "too low"}
        some = nothing if text_only else share | {"n": 6}
        shared |= dict.fromkeys(("swapped", "looking", "follow", "blank"), some)
        return shared | {"accuracy": share, "chance": {"used": 0.25}, "pass_at_k": {"1": share, "8": share}}

    skills = [skill("a/x", True, False), skill("b/y", False, False), skill("c/z", False, True)]
    page = card_markdown(
        {"model": "m", "bytes": 8, "weights_sha256": "0" * 64, "build": None, "seconds": 1.0}
        | {"measured": 3, "domains": 3, "skills": skills}
        | {"settings": {"n": 10, "samples": 8, "temperature": 1.0, "split": "test"}}
    )
    passed, rest = page.split("### Not passed")
    failed, texts = rest.split("### Without pictures")
    assert "a/x" in passed
    assert "b/y" in failed
    assert "too low" in failed
    assert "c/z" in texts
    assert "(n = 6)" in passed  # looking rests on fewer problems than accuracy
    assert "–" in texts
    assert "1 of 2 with pictures pass" in page


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task"):
        make_card("fovea-tiny", tmp_path / "c.md", SMALL, ["digits/cuont"])
    with pytest.raises(UserError, match=r"ends with \.md"):
        make_card("fovea-tiny", tmp_path / "c.txt", SMALL, NAMES)
    with pytest.raises(UserError, match="no model folder"):
        make_card(str(tmp_path), tmp_path / "c.md", SMALL, NAMES)
    assert card.model_folder("fovea-tiny").name == "tiny"
