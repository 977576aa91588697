"""Referring and detection: phrases mean one thing, by a second reading of their words; problems written as files."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.boxes import convert, fill, unmarked
from fovea.cli import main
from fovea.rewards import box_iou, correct
from fovea.rewards.functions import REWARDS
from fovea.tasks import LATER, SPLITS, STYLES, TASKS, corpus, detecting, open_data, open_task, referring
from fovea.tasks.chance import blind_chance
from fovea.tasks.records import finish, read_record
from fovea.tasks.referring import Expression, good, judge, referent, words
from fovea.tasks.scenes import COLORS, SHAPES, Thing, generator
from fovea.tasks.written import vlm_r1_record, write_task
from fovea.types import Problem, Task, UserError, picture_sizes

REFER, DETECT = sorted(referring.QUESTIONS), sorted(detecting.QUESTIONS)

# --- what a phrase means --------------------------------------------------------------------------------------


def thing(label: str, x: int, y: int, side: int = 10) -> Thing:
    """A square of ink around a centre."""
    half = side // 2
    return Thing(label=label, box=(x - half, y - half, x + half, y + half))


def test_judging_by_hand() -> None:
    star, left, right = (
        thing("red star", 40, 40),
        thing("red circle", 10, 40),
        thing("blue circle", 70, 42, 20),
    )
    things = (left, star, right)
    by = Expression(shape="circle", relations=(("left of", "star"),))
    assert [judge(by, one, things) for one in things] == [True, False, False]
    assert referent(by, things) is left
    assert words(by) == "the circle left of the star"
    # 6 pixels left of the star: neither left of it beyond doubt nor not left of it
    assert judge(by, thing("red circle", 34, 40), (*things, thing("red circle", 34, 40))) is None
    assert referent(by, (*things, thing("red circle", 34, 40))) is None
    # 10 left and 30 above is mostly above
    assert judge(by, thing("red circle", 30, 10), things) is None
    # a landmark that is there twice
    assert referent(by, (*things, thing("green star", 40, 80))) is None
    # 20² to 10² is fourfold; two that are alike leave no largest
    assert referent(Expression(shape="circle", extreme="largest"), things) is right
    assert (
        referent(Expression(shape="circle", extreme="largest"), (*things, thing("red circle", 40, 80, 18)))
        is None
    )
    assert referent(Expression(shape="circle", extreme="lowest"), things) is None  # 42 against 40
    assert referent(Expression(without=("red",)), things) is right
    assert referent(Expression(color="green"), things) is None
    assert referent(Expression(color="red"), things) is None


def test_no_part_of_a_good_phrase_is_idle() -> None:
    things = (thing("red circle", 10, 40), thing("red star", 40, 40), thing("blue circle", 70, 42))
    assert good(Expression(color="red", shape="circle"), things) is things[0]
    assert good(Expression(color="red", shape="circle", relations=(("left of", "star"),)), things) is None
    assert good(Expression(shape="circle", relations=(("left of", "star"),)), things) is things[0]
    # "the circle left of the blue circle": who is no landmark is the only circle left
    assert good(Expression(shape="circle", relations=(("left of", "blue circle"),)), things) is None
    assert (
        good(Expression(shape="star"), (things[1], thing("blue ring", 70, 70))) is None
    )  # nothing to confuse it with


def test_words() -> None:
    assert words(Expression(color="red", extreme="largest")) == "the largest red shape"
    assert words(Expression(shape="circle", without=("red",))) == "the circle that is not red"
    assert words(Expression(without=("red", "star"))) == "the shape that is neither red nor a star"
    two = Expression(color="red", shape="circle", relations=(("left of", "star"), ("below", "ring")))
    assert words(two) == "the red circle that is left of the star and below the ring"


def middle(one: dict[str, Any]) -> tuple[float, float]:
    x1, y1, x2, y2 = one["bbox_2d"]
    return (x1 + x2) / 2, (y1 + y2) / 2


def area(one: dict[str, Any]) -> float:
    x1, y1, x2, y2 = one["bbox_2d"]
    return float((x2 - x1) * (y2 - y1))


SIDE: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "left of": lambda a, b: middle(a)[0] < middle(b)[0],
    "right of": lambda a, b: middle(a)[0] > middle(b)[0],
    "above": lambda a, b: middle(a)[1] < middle(b)[1],
    "below": lambda a, b: middle(a)[1] > middle(b)[1],
}
KEY: dict[str, Callable[[dict[str, Any]], float]] = {
    "leftmost": lambda a: middle(a)[0],
    "rightmost": lambda a: -middle(a)[0],
    "highest": lambda a: middle(a)[1],
    "lowest": lambda a: -middle(a)[1],
    "smallest": area,
    "largest": lambda a: -area(a),
}


def meant(phrase: str, things: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that the words mean, read anew from left to right with plain comparisons, without margins of doubt."""
    said = phrase.removeprefix("the ").replace(" that is", "")
    said, _, nots = said.replace(" neither ", " not ").replace(" nor ", " or ").partition(" not ")
    relations = []
    for name in SIDE:
        before, found, after = said.partition(f" {name} the ")
        if found:
            landmark, _, rest = after.partition(" and ")
            relations.append((name, landmark))
            said = f"{before} {rest}" if rest else before.removesuffix(" and")
    tokens = said.split()
    extreme = [token for token in tokens if token in KEY]
    wanted = {token for token in tokens if token in COLORS or token in SHAPES}
    unwanted = {token for token in nots.split() if token in COLORS or token in SHAPES}
    found_things = [
        one
        for one in things
        if wanted <= set(one["label"].split()) and not unwanted & set(one["label"].split())
    ]
    for name, landmark in relations:
        marks = [one for one in things if set(landmark.split()) <= set(one["label"].split())]
        assert len(marks) == 1, (phrase, landmark)
        found_things = [one for one in found_things if one is not marks[0] and SIDE[name](one, marks[0])]
    if extreme:
        best = min(map(KEY[extreme[0]], found_things))
        found_things = [one for one in found_things if KEY[extreme[0]](one) == best]
    return found_things


@pytest.mark.parametrize("name", REFER)
def test_a_second_reading_of_the_words_finds_the_same_one_thing(name: str) -> None:
    for split in SPLITS:
        for problem in open_task(name, split, 1).take(0, 25)[0]:
            expression = problem.meta["expression"]
            assert problem.question == f"Where is {expression}? Answer with its box."
            found = meant(expression, problem.meta["things"])
            assert [tuple(one["bbox_2d"]) for one in found] == [problem.answer], expression


@pytest.mark.parametrize("name", REFER)
def test_something_else_shares_colour_or_shape(name: str) -> None:
    for problem in open_task(name, "train", 2).take(0, 40)[0]:
        things = problem.meta["things"]
        own = next(set(t["label"].split()) for t in things if tuple(t["bbox_2d"]) == problem.answer)
        others = [set(t["label"].split()) for t in things if tuple(t["bbox_2d"]) != problem.answer]
        assert any(own & other for other in others)


def test_types_and_sizes_are_as_described() -> None:
    types = Counter(p.meta["type"] for p in open_task("shapes/refer").take(0, 300)[0])
    assert set(types) == {"attribute", "extreme", "relation"}
    assert min(types.values()) > 70  # 100 each; 300 * 1/3 has a standard deviation of 8
    names = ("shapes/refer", "shapes/refer_clutter", "shapes/detect", "shapes/detect_clutter")
    counts = {name: [len(p.meta["things"]) for p in open_task(name).take(0, 40)[0]] for name in names}
    assert set(counts["shapes/refer"]) == {3, 4, 5}
    assert set(counts["shapes/refer_clutter"]) == {7, 8, 9}
    assert set(counts["shapes/detect"]) == {2, 3, 4, 5}
    assert set(counts["shapes/detect_clutter"]) == {6, 7, 8}

    def share(name: str) -> float:
        """Height of the thing over the picture's shorter side, mean."""
        problems = open_task(name).take(0, 60)[0]
        return float(np.mean([(p.answer[3] - p.answer[1]) / min(p.images[0].size) for p in problems]))

    assert share("shapes/refer_small") < 0.5 * share("shapes/refer")
    assert all(
        64 <= side <= 96 for p in open_task("shapes/refer").take(0, 60)[0] for side in p.images[0].size
    )


@pytest.mark.parametrize(
    "name", ["shapes/refer", "shapes/refer_photo", "shapes/detect", "shapes/detect_clutter"]
)
def test_every_colour_stands_out(name: str) -> None:
    """The ink is its colour's, the three pixels around are far from it: 120 levels over three channels."""
    for problem in open_task(name, "test", 1).take(0, 12)[0]:
        pixels = np.asarray(problem.images[0], float)
        for one in problem.meta["things"]:
            x1, y1, x2, y2 = one["bbox_2d"]
            ink = np.array(COLORS[one["label"].split()[0]])
            near = np.abs(pixels[y1:y2, x1:x2] - ink).sum(2) < 12
            assert near.mean() > 0.2
            around = np.zeros(pixels.shape[:2], bool)
            around[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3] = True
            around[y1:y2, x1:x2] = False
            assert np.abs(pixels[around].mean(0) - ink).sum() > 119


# --- detection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECT)
def test_detection_asks_for_some_and_for_what_is_nearly_there(name: str) -> None:
    problems = open_task(name, "validation", 2).take(0, 200)[0]
    for problem in problems:
        asked, present, absent = (problem.meta[key] for key in ("asked", "present", "absent"))
        labels = [one["label"] for one in problem.meta["things"]]
        assert problem.question.startswith(f"Detect: {', '.join(asked)}. ")
        assert sorted(present + absent) == sorted(asked) == sorted(set(asked))
        assert 2 <= len(asked) <= 4
        assert set(present) <= set(labels)
        assert not set(absent) & set(labels)
        assert 1 <= len(absent) <= (2 if present else 3)
        assert all(set(one.split()) & set(" ".join(labels).split()) for one in absent)
        assert max(Counter(labels).values()) <= 3
        wanted = [one for one in problem.meta["things"] if one["label"] in asked]
        assert problem.answer == wanted == sorted(wanted, key=lambda one: one["bbox_2d"])
        assert len(wanted) <= detecting.MOST_FOUND
        said = fill(problem.target or "", lambda box: box, "pixels")
        assert json.loads(said[len("<answer>") : -len("</answer>")].replace("None", "[]")) == wanted
    nothing = np.mean([not problem.answer for problem in problems])
    assert abs(nothing - 0.1) < 0.065  # 3 sigma of 200
    assert any(
        set(p.meta["things"][0]["label"].split()) and len(p.answer) < len(p.meta["things"]) for p in problems
    )


def test_nothing_there_is_said_and_graded() -> None:
    problem = next(p for p in open_task("shapes/detect@think").take(0, 100)[0] if not p.answer)
    assert unmarked(problem.target or "").endswith("</think><answer>None</answer>")
    assert correct(problem.target or "", problem)
    assert (problem.target or "").startswith("<think>I see: none. No ")


def test_replies_are_short() -> None:
    """Answers under 110 tokens of the embedded model's tokenizer, thoughts included under 128."""
    transformers = pytest.importorskip("transformers")
    from fovea.models.policy import TINY

    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    for style, most in (("answer", 110), ("think", 128)):
        for name in ("shapes/detect", "shapes/refer_clutter"):
            for problem in open_task(f"{name}@{style}").take(0, 60)[0]:
                size = problem.images[0].size
                reply = fill(
                    problem.target or "",
                    lambda box, size=size: convert(box, "pixels", "thousandths", size, size),
                    "thousandths",
                )
                assert len(tokenizer(reply)["input_ids"]) < most


# --- beside the weights that never saw them -------------------------------------------------------------------


def test_later_tasks_are_not_in_the_tokenizers_texts() -> None:
    assert {*REFER, *DETECT} == LATER
    assert set(TASKS) > LATER
    assert not any("Detect:" in text or "leftmost" in text for text in corpus(0, 2))


@pytest.mark.parametrize("name", ["shapes/refer", "shapes/refer_clutter", "shapes/refer_small"])
def test_chance_of_the_best_constant_box(name: str) -> None:
    """Of 200 problems: 2 sigma of p = 0.055 is 0.032. (All nine, 1,200 problems each: `fovea tasks check`.)"""
    problems = open_task(name, "train", 9).take(0, 200)[0]
    sizes = [problem.images[0].size for problem in problems]
    best = blind_chance(["box"] * len(problems), [problem.answer for problem in problems], sizes)
    assert abs(best - TASKS[name].chance) < 0.04


# --- problems as files ----------------------------------------------------------------------------------------


def both(task: Task, folder: Path, schema: str, n: int = 6) -> list[tuple[Problem, Problem]]:
    """(problem, the same read back)."""
    written = write_task(task, n, folder, schema)
    assert written.problems == n
    return list(zip(task.take(0, n)[0], open_data(written.file, shuffle=False).take(0, n)[0], strict=True))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    style = ("", "@think", "@boxed", "@json")[sorted(TASKS).index(name) % 4]
    for before, after in both(open_task(name + style, "test", 3), tmp_path / "plain", "plain", 3):
        assert (after.id, after.question, after.kind) == (before.id, before.question, before.kind)
        assert json.dumps(after.answer) == json.dumps(before.answer)
        assert [i.tobytes() for i in after.images] == [i.tobytes() for i in before.images]
        assert after.target == unmarked(before.target or "")
        assert after.difficulty == before.difficulty
    for before, after in both(open_task(name, "test", 3), tmp_path / "vlm_r1", "vlm_r1", 3):
        assert (after.id, after.question) == (before.id, before.question)
        assert (after.kind, json.dumps(after.answer)) == (before.kind, json.dumps(before.answer))
        assert [i.tobytes() for i in after.images] == [i.tobytes() for i in before.images]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_vlm_r1s_lines_are_of_the_tasks_own_kind_in_every_style(name: str) -> None:
    for style in STYLES:
        task = open_task(f"{name}@{style}", "train", 1)
        for before in task.take(0, 2)[0]:
            record = vlm_r1_record(before, [f"{k}.png" for k in range(len(before.images))])
            after = finish(
                read_record(json.loads(json.dumps(record))), task.name, 1, (), picture_sizes(before)
            )
            assert (after.kind, after.question) == (task.kind, before.question)
            assert json.dumps(after.answer) == json.dumps(before.answer)


@pytest.mark.parametrize(
    "name",
    [
        "graphs/neighbours",
        "graphs/text_neighbours",
        "printed/letter",
        "digits/read@json",
        "digits/read@boxed",
    ],
)
def test_a_file_of_vlm_r1s_schema_is_of_one_kind(name: str, tmp_path: Path) -> None:
    task = open_task(name)
    file = write_task(task, 24, tmp_path / "a", "vlm_r1").file
    assert open_data(file).kinds == (task.kind,)


def test_the_module_convert_does_not_take_the_place_of_the_function() -> None:
    importlib.import_module("fovea.tasks.convert")
    assert corpus(0, 1)


def test_vlm_r1s_schema_keeps_texts_that_look_like_something_else(tmp_path: Path) -> None:
    pairs = both(open_task("digits/read"), tmp_path / "a", "vlm_r1", 40)
    assert {after.meta["accu_reward_method"] for _, after in pairs} == {"all_match"}
    assert [(b.kind, b.answer) for b, _ in pairs] == [(a.kind, a.answer) for _, a in pairs]
    assert any(len(a.answer) == 1 for _, a in pairs)
    assert any(a.answer.startswith("0") for _, a in pairs)
    for before, after in pairs:
        reply = f"<answer>{before.answer}</answer>"
        assert REWARDS["accuracy"](reply, after) == REWARDS["exact"](reply, before) == 1
    text = replace(open_task("digits/locate").take(0, 1)[0][0], kind="text")
    for answer in ("7", "1.50", "012", "B", "[1, 2, 3, 4]", "none", "a cat", "B. a cat", "```json\n[]\n```"):
        record = vlm_r1_record(replace(text, answer=answer), ["a.png"])
        draft = read_record(record)
        assert (draft.kind, draft.answer) == ("text", answer)
        assert ("accu_reward_method" in record) == (answer not in ("none", "a cat", "B. a cat"))


def test_vlm_r1s_schema_to_the_letter(tmp_path: Path) -> None:
    file = write_task(open_task("digits/locate"), 2, tmp_path / "a", "vlm_r1").file
    first = json.loads(file.read_text().splitlines()[0])
    problem = open_task("digits/locate").take(0, 1)[0][0]
    x1, y1, x2, y2 = problem.answer
    assert first == {
        "id": "digits/locate:train:0:0",
        "image": "images/000000.png",
        "conversations": [
            {"from": "human", "value": f"<image>{problem.question}"},
            {"from": "gpt", "value": f"<answer> [{x1}, {y1}, {x2}, {y2}] </answer>"},
        ],
    }
    with Image.open(file.parent / first["image"]) as picture:
        assert picture.tobytes() == problem.images[0].tobytes()
    lines = write_task(open_task("shapes/detect"), 40, tmp_path / "b", "vlm_r1").file.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["accu_reward_method"] for record in records} == {"odLength"}
    said = [record["conversations"][1]["value"] for record in records]
    assert "<answer> None </answer>" in said
    assert all(one.startswith("<answer> ```json\n[{") for one in said if "None" not in one)
    panels = write_task(open_task("panels/which"), 1, tmp_path / "c", "vlm_r1").file.read_text()
    several = json.loads(panels)
    assert several["conversations"][0]["value"].startswith("<image>" * len(several["image"]) + "Which")
    assert (
        write_task(open_task("photos/rotation"), 1, tmp_path / "d", "vlm_r1").file.read_text().count('"mcq"')
        == 1
    )


def test_boxes_are_the_same_and_meta_is_kept(tmp_path: Path) -> None:
    for before, after in both(open_task("shapes/refer"), tmp_path / "a", "vlm_r1"):
        assert box_iou(tuple(after.answer), tuple(before.answer)) == 1
    for before, after in both(open_task("shapes/detect@think"), tmp_path / "b", "plain"):
        assert after.meta["asked"] == before.meta["asked"]
        assert correct(fill(after.target or "", lambda box: box, "pixels"), after)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    arguments = ["tasks", "write", "shapes/refer", "--n", "2", "--out"]
    assert main([*arguments, str(tmp_path / "full")]) == 2
    assert "is not empty; give a new folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*arguments, str(tmp_path / "empty"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 2
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["images", "shapes-refer.jsonl"]
    assert main([*arguments, str(tmp_path / "x"), "--schema", "coco"]) == 2
    assert "no schema 'coco'; known: plain, vlm_r1" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "full" / "notes.txt" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        name, kind, chance, size = "mine/broken", "text", 0.0, None

        def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
            good_one = open_task("shapes/exists").take(0, 1)[0][0]
            from dataclasses import replace

            return [good_one, replace(good_one, id="b", question="What is <image>?")][:n], n

    with pytest.raises(UserError, match="Problem b cannot be written in this schema"):
        write_task(Broken(), 2, tmp_path / "out", "vlm_r1")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_stages_never_hang_on_a_colour() -> None:
    """White on a white photograph is drawn anew until it stands out: any label is possible in every split."""
    from fovea.tasks.stages import Stage, draw

    for split in SPLITS:
        for color in COLORS:
            scene = draw(
                generator("hang", split, color), split, Stage(things=(1, 1), photo=True), [f"{color} ring"]
            )
            assert len(scene.things) == 1
