"""Files of annotations as problems: VLM-R1's JSONL in several files, COCO, RefCOCO, tables of mathematics, frames.

Every file is written by the test, its pictures drawn, and read by the same door as training and `fovea convert`.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from transformers import AutoConfig

from fovea import cli
from fovea.config import ProblemsSection, Run, load_run
from fovea.evaluation import truth_text
from fovea.filtering import record_of
from fovea.models import answers_untold
from fovea.models.policy import TINY
from fovea.models.rendering import asked
from fovea.rewards import correct
from fovea.rewards.answers import normal_text
from fovea.rollout_health import parse
from fovea.tasks import check_task, open_data, open_task
from fovea.tasks.chance import blind_chance
from fovea.tasks.check import _reply, wrong_field
from fovea.tasks.coco import COUNT_QUESTION, OVD_QUESTION, REC_QUESTION
from fovea.tasks.convert import write_plain
from fovea.tasks.data import DataTask, groups_of, part_of, read_data, split
from fovea.tasks.kinds import is_mathematical, said, unboxed
from fovea.tasks.own import ProblemList, problem_list
from fovea.tasks.sources import named_files
from fovea.tasks.written import write_task
from fovea.training.problems import INSTRUCTIONS, NAMED, THINK, fingerprint, instruction_of, open_tasks
from fovea.types import Problem, UserError

RED, BLUE = (220, 30, 30), (30, 30, 220)


def draw(path: Path, *boxes: tuple[float, float, float, float], size: tuple[int, int] = (100, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, "white")
    for k, box in enumerate(boxes):
        ImageDraw.Draw(picture).rectangle(box, fill=(RED, BLUE)[k % 2])
    picture.save(path)


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def lines(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def turns(name: str, question: str, answer: str, **more: object) -> dict[str, Any]:
    said = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    return {"id": 1, "image": name, "conversations": said} | more


def all_of(task: DataTask) -> list[Problem]:
    return task.take(0, task.size)[0]


def opened(path: Any, images: Any = None, **options: Any) -> list[Problem]:
    return all_of(open_data(path, images, shuffle=False, problems=ProblemsSection(**options)))


def refused(path: Any, images: Any = None, **options: Any) -> str:
    with pytest.raises(UserError) as found:
        open_data(path, images, problems=ProblemsSection(**options))
    message = str(found.value)
    assert "\n" not in message
    assert message.endswith((".", "fovea tasks check names all)"))
    return message


# --- several files, each with its pictures ------------------------------------------------------------------


def two_files(folder: Path) -> tuple[list[str], list[str]]:
    draw(folder / "x" / "p.png", (10, 10, 50, 40))
    draw(folder / "y" / "p.png", (20, 10, 90, 50))
    a = lines(folder / "a.jsonl", turns("p.png", "Where?", "[10, 10, 50, 40]", accu_reward_method="iou"))
    b = lines(
        folder / "b.jsonl",
        turns("p.png", "Blue?", "no", accu_reward_method="yes_no"),
        turns("p.png", "Which?", "B", accu_reward_method="mcq") | {"id": 2},
        turns("p.png", "Solve.", "\\frac{1}{2}", accu_reward_method="math") | {"id": 3},
        turns("p.png", "Detect.", "None", accu_reward_method="odLength") | {"id": 4},
    )
    return [str(a), str(b)], [str(folder / "x"), str(folder / "y")]


def test_several_files_with_their_folders_and_methods(tmp_path: Path) -> None:
    files, folders = two_files(tmp_path)
    task = open_data(files, folders, shuffle=False)
    problems = all_of(task)
    assert [p.id for p in problems] == ["a/1", "b/1", "2", "3", "4"]  # only the id that both have is changed
    assert [p.kind for p in problems] == ["box", "text", "choice", "math", "objects"]
    assert [p.meta["accu_reward_method"] for p in problems] == ["iou", "yes_no", "mcq", "math", "odLength"]
    assert problems[0].images[0].getpixel((15, 15)) == RED
    assert problems[1].images[0].getpixel((15, 15)) == (255, 255, 255)
    assert problems[1].meta["source"] == f"{files[1]}, line 1"
    assert (task.name, task.files, task.file) == ("a+b", tuple(files), f"{files[0]} and {files[1]}")
    assert len(all_of(open_data(files, folders[:1]))) == 5  # one folder for all


def test_one_file_twice_gives_different_ids(tmp_path: Path) -> None:
    files, folders = two_files(tmp_path)
    problems = all_of(open_data([files[0], files[0]], folders[0], shuffle=False))
    assert [p.id for p in problems] == ["a#1/1", "a#2/1"]


def test_colons_are_names_unless_the_original_is_asked_for(tmp_path: Path) -> None:
    files, folders = two_files(tmp_path)
    colon = ":".join(files)
    assert named_files(colon, ":".join(folders), "vlm_r1") == (files, folders)
    assert named_files("C:/a.jsonl", None) == (["C:/a.jsonl"], None)
    with pytest.raises(
        UserError, match="data names 2 files and images 1 folders; with compat=vlm_r1 give one"
    ):
        named_files(colon, "x", "vlm_r1")
    assert "does not exist" in refused(colon)
    run = Run(data=colon, images=":".join(folders), validation_data=files[1] + ":" + files[1], compat="vlm_r1",
              rewards={"accuracy": 1.0})  # fmt: skip
    train, held, _ = open_tasks(run)
    assert (train.size, held.size) == (5, 8)


def test_bad_lines_of_several_files_are_named(tmp_path: Path) -> None:
    files, folders = two_files(tmp_path)
    (tmp_path / "y" / "p.png").unlink()
    rows, bad = read_data(files, folders)
    assert len(rows) == 1
    assert str(bad[0]).startswith(f"{files[1]}, line 1: the picture {folders[1]}/p.png does not exist")
    with pytest.raises(UserError, match="data names 2 files and images 3 folders"):
        open_data(files, [*folders, folders[0]])
    with pytest.raises(UserError, match="data names no file"):
        open_data([])
    with pytest.raises(UserError, match=r"data=\[\] is not allowed"):
        load_run("quickstart", ["data=[]"])
    run = load_run("quickstart", [f"data=[{files[0]},{files[1]}]", f"images=[{folders[0]},{folders[1]}]"])
    assert (run.data, run.images) == (tuple(files), tuple(folders))


def test_the_fingerprint_covers_every_file(tmp_path: Path) -> None:
    files, folders = two_files(tmp_path)
    before = fingerprint(open_data(files, folders))
    assert before == fingerprint(open_data(files, folders))
    text = Path(files[1]).read_text()
    Path(files[1]).write_text(text.replace("Blue?", "Blue ?"))
    assert fingerprint(open_data(files, folders)) != before


def test_a_json_list_holds_the_same_records(tmp_path: Path) -> None:
    draw(tmp_path / "p.png")
    plain: dict[str, Any] = {"image": "p.png", "question": "Where?", "answer": [1, 2, 30, 40]}
    path = write(tmp_path / "a.json", [plain, turns("p.png", "Where?", "[10, 10, 50, 40]")])
    assert [p.answer for p in opened(path)] == [(1, 2, 30, 40), (10, 10, 50, 40)]
    assert opened(path)[1].meta["source"] == f"{path}, entry 2"
    assert [p.answer for p in opened(write(tmp_path / "b.json", plain))] == [(1, 2, 30, 40)]
    assert len(opened(lines(tmp_path / "c.json", plain, plain))) == 2  # JSONL by another name
    write(tmp_path / "a.json", [plain, plain | {"image": "q.png"}])
    assert f"{path}, entry 2: the picture" in refused(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[1, 2", r"is not JSON \(Expecting .* at line 1, column 6\)"),
        (b'{"a": 1}', "is one JSON object with the keys a, which is no form that is known"),
        (b"3", "must hold a list of problems, not one int"),
        (b"[]", "holds no problems"),
        (b"[3]", "entry 1: must be an object"),
        (b'[{"question": "?", "answer": NaN}]', "NaN is not a JSON number"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"\xff\xfe[\x00", "is UTF-16"),
        (b'["\xfc"]', "is not UTF-8"),
    ],
)
def test_bad_json_files(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=what):
        open_data(path)


# --- COCO ---------------------------------------------------------------------------------------------------


def coco(folder: Path, **changes: Any) -> Path:
    """Four pictures: two cats and a dog; a dog; a crowd of birds and a cat; nothing."""
    draw(folder / "pics" / "1.png", (10, 10, 30, 30), (40, 10, 60, 30))
    for i in (2, 3, 4):
        draw(folder / "pics" / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 60} for i in (1, 2, 3, 4)]
    boxes: list[tuple[int, int, Any, int]] = [
        (1, 1, [10, 10, 20, 20], 0), (1, 1, [40, 10, 20, 20], 0), (1, 2, [70, 5, 25.5, 40], 0),
        (2, 2, [5, 5, 50, 50], 0), (3, 3, [0, 0, 100, 30], 1), (3, 3, [0, 0, 10, 10], 0), (3, 1, [50, 20, 4, 4], 0),
    ]  # fmt: skip
    annotations = [
        {
            "id": k,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "iscrowd": crowd,
            "area": box[2] * box[3],
        }
        for k, (image, category, box, crowd) in enumerate(boxes, 1)
    ]
    categories = [{"id": k, "name": name} for k, name in ((1, "cat"), (2, "dog"), (3, "bird"), (4, "car"))]
    whole = {"info": {}, "images": images, "annotations": annotations, "categories": categories} | changes
    return write(folder / "instances.json", whole)


def test_detection_asks_for_what_is_there_and_some_that_is_not(tmp_path: Path) -> None:
    task = open_data(coco(tmp_path), tmp_path / "pics", shuffle=False)
    first, second, third = all_of(task)
    assert {p.kind for p in all_of(task)} == {"objects"}
    assert sorted(map(tuple, (t["bbox_2d"] for t in first.answer))) == [
        (10, 10, 30, 30), (40, 10, 60, 30), (70, 5, 95.5, 45),
    ]  # fmt: skip
    assert sorted(t["label"] for t in first.answer) == ["cat", "cat", "dog"]
    assert first.meta["absent"] == ["bird"]  # cars are in no picture, so that none is a negative
    assert set(first.meta["asked"]) == {"cat", "dog", "bird"}
    assert first.question == OVD_QUESTION.replace("{targets}", ", ".join(first.meta["asked"]))
    assert (first.id, first.meta["source"]) == ("1", f"{tmp_path}/instances.json, picture 1")
    assert set(second.meta["absent"]) <= {"cat", "bird"}
    assert third.meta["asked"].count("bird") == 0  # a crowd of birds: neither asked nor absent
    assert [t["label"] for t in third.answer] == ["cat"]
    assert sorted(task.notes) == [
        f"{tmp_path}/instances.json: 1 categories of pictures are not asked: a crowd box",
        f"{tmp_path}/instances.json: 1 pictures have nothing that can be asked",
    ]


def test_negatives_are_a_function_of_seed_and_picture(tmp_path: Path) -> None:
    path, pics = coco(tmp_path), tmp_path / "pics"
    asked_for = [tuple(p.meta["asked"]) for p in opened(path, pics)]
    assert asked_for == [tuple(p.meta["asked"]) for p in opened(path, pics)]
    orders = {tuple(opened(path, pics, seed=seed)[0].meta["asked"]) for seed in range(12)}
    assert len(orders) > 3  # the order is drawn
    fewer = json.loads(path.read_text())
    fewer["images"] = fewer["images"][1:]
    again = opened(write(tmp_path / "fewer.json", fewer), pics, negatives=(0, 0))
    assert [p.meta["asked"] for p in again] == [["dog"], ["cat"]]
    assert all(not p.meta["absent"] for p in again)
    for k in range(5):
        counts = {len(p.meta["absent"]) for p in opened(path, pics, negatives=(2, 2), seed=k)}
        assert counts <= {1, 2}  # as many as there are


def test_empty_truths(tmp_path: Path) -> None:
    task = open_data(coco(tmp_path), tmp_path / "pics", shuffle=False, problems=ProblemsSection(empty=1.0))
    problems = all_of(task)
    assert [p.id for p in problems] == ["1", "2", "3", "4"]  # the picture without boxes too
    assert [p.answer for p in problems] == [[], [], [], []]
    assert all(p.meta["asked"] == p.meta["absent"] or len(p.meta["asked"]) > 1 for p in problems)
    assert all(p.target == "<answer>None</answer>" for p in problems)
    assert "bird" not in problems[2].meta["asked"]


def test_crowds_sizes_and_counts(tmp_path: Path) -> None:
    path, pics = coco(tmp_path), tmp_path / "pics"
    kept = opened(path, pics, crowds="keep")[2]
    birds = [t for t in kept.answer if t["label"] == "bird"]
    assert birds == [
        {"bbox_2d": [0, 0, 100, 30], "label": "bird", "iscrowd": 1},
        {"bbox_2d": [0, 0, 10, 10], "label": "bird"},
    ]
    assert "0,0,100,30" not in str(kept.target)  # a teacher does not write a crowd
    assert {t["label"] for t in opened(path, pics, max_boxes=1)[0].answer} == {"dog"}
    assert [p.id for p in opened(path, pics, min_area=100)] == ["1", "2"]
    degenerate = json.loads(path.read_text())
    degenerate["annotations"][3]["bbox"] = [5, 5, 0, 7]
    task = open_data(write(path, degenerate), pics)
    assert any("a box without width or height" in note for note in task.notes)


def test_one_box_and_counting(tmp_path: Path) -> None:
    path, pics = coco(tmp_path), tmp_path / "pics"
    ones = opened(path, pics, ask="rec")
    assert [(p.id, p.answer) for p in ones] == [
        ("1:dog", (70, 5, 95.5, 45)), ("2:dog", (5, 5, 55, 55)), ("3:cat", (50, 20, 54, 24)),
    ]  # fmt: skip
    assert ones[0].question == REC_QUESTION.replace("{query}", "dog")
    counted = opened(path, pics, ask="count")
    assert [(p.id, p.answer) for p in counted] == [("1:cat", 2), ("1:dog", 1), ("2:dog", 1), ("3:cat", 1)]
    assert counted[0].question == COUNT_QUESTION.replace("{category}", "cat")
    assert 0 in [p.answer for p in opened(path, pics, ask="count", empty=1.0)]
    own = opened(path, pics, ask="rec", question="{query}? {x} <image>")
    assert own[0].question == "dog? {x} <image>"  # one placeholder, and no other braces
    told = refused(path, pics, ask="count", question="How many?")
    assert "has no {category}" in told


def test_boxes_follow_pictures_that_were_resized(tmp_path: Path) -> None:
    path = coco(tmp_path)
    draw(tmp_path / "pics" / "2.png", size=(50, 30))
    assert opened(path, tmp_path / "pics", ask="rec")[1].answer == (2.5, 2.5, 27.5, 27.5)
    draw(tmp_path / "pics" / "2.png", size=(60, 100))
    told = refused(path, tmp_path / "pics", ask="rec")
    assert (
        "picture 2: boxes are declared in a picture of 100 x 60 pixels, but the picture (upright) has" in told
    )


def test_known_absences_of_lvis(tmp_path: Path) -> None:
    whole = json.loads(coco(tmp_path).read_text())
    for image in whole["images"]:
        image |= {"neg_category_ids": [4], "not_exhaustive_category_ids": [2]}
    problems = opened(write(tmp_path / "lvis.json", whole), tmp_path / "pics", negatives=(3, 3))
    assert [sorted(p.meta["asked"]) for p in problems] == [["car", "cat"], ["car", "cat"]]


def test_categories_that_rewards_do_not_tell_apart_are_one(tmp_path: Path) -> None:
    whole = json.loads(coco(tmp_path).read_text())
    whole["categories"] += [{"id": 5, "name": "Cat "}, {"id": 6, "name": "DOG"}, {"id": 7, "name": "Bird"}]
    whole["annotations"][1]["category_id"] = 5  # the second cat
    for image in whole["images"]:
        image["neg_category_ids"] = [4, 5, 7]  # cars; of cats and birds only one spelling
    pics = tmp_path / "pics"
    task = open_data(write(tmp_path / "lvis.json", whole), pics, problems=ProblemsSection(negatives=(9, 9)))
    assert [sorted(row.meta["asked"]) for row in task.rows] == [
        ["car", "cat", "dog"],
        ["car", "dog"],
        ["car", "cat"],
    ]
    assert any(
        "3 categories are called as another, up to case and white space" in note for note in task.notes
    )
    for image in whole["images"]:
        del image["neg_category_ids"]
    for seed in range(5):
        for problem in opened(write(tmp_path / "c.json", whole), pics, negatives=(9, 9), seed=seed):
            there = {normal_text(thing["label"]) for thing in problem.answer}
            assert not there & {normal_text(label) for label in problem.meta["absent"]}
            assert len({normal_text(label) for label in problem.meta["asked"]}) == len(problem.meta["asked"])
    counted = opened(tmp_path / "c.json", pics, ask="count")
    assert (counted[0].id, counted[0].answer) == ("1:cat", 2)
    assert [p.id for p in opened(tmp_path / "c.json", pics, ask="rec")] == ["1:dog", "2:dog", "3:cat"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images": None}, 'has no list "images"; a COCO file holds the lists'),
        ({"annotations": [3]}, 'must hold a list of objects under "annotations"'),
        ({"categories": [{"id": 1}]}, "category 1 needs an id and a name"),
        ({"categories": [{"id": 9, "name": "x"}]}, "picture 1: annotation 1 has the category_id 1; use one"),
        ({"images": [{"id": 1}]}, 'picture 1: its "file_name" is null'),
        ({"images": [{"id": 1.5, "file_name": "1.png"}]}, 'picture 1: its "id" is 1.5'),
        ({"images": [{"id": 1, "file_name": "9.png"}]}, "picture 1: the picture .*9.png does not exist"),
        ({"images": [{"id": 1, "file_name": "1.png"}] * 2}, "picture 2: the id 1 is already that of picture 1"),
        ({"images": []}, "gives no problems with problems.ask=ovd; 7 boxes belong to pictures"),
        ({"annotations": [{"image_id": 1, "bbox": [1, 2], "category_id": 1}]},
         r'annotation number 1 has the "bbox" \[1, 2\]; write \[x, y, width, height\]'),
        ({"annotations": [{"id": 7, "image_id": 1, "bbox": [90, 2, 40, 10], "category_id": 1}]},
         r"picture 1: the box \[90.0, 2.0, 130.0, 12.0\] \(x1, y1, x2, y2\) is outside its picture of 100 x 60 "
         r"pixels; correct its bbox \[x, y, width, height\]\.$"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 1, "name": "cow"}]},
         "category 3 has the id 1, which is already that of category 1; give each its own"),
    ],
)  # fmt: skip
def test_bad_coco_files(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        open_data(coco(tmp_path, **changes), tmp_path / "pics")


def test_options_that_a_form_does_not_use_are_refused(tmp_path: Path) -> None:
    path = coco(tmp_path)
    told = refused(path, tmp_path / "pics", frame="unit")
    assert "problems.frame says nothing about" in told
    assert "which is a COCO file" in told
    draw(tmp_path / "p.png")
    plain = lines(tmp_path / "a.jsonl", {"image": "p.png", "question": "?", "answer": 1})
    assert "problems.ask says nothing about" in refused(plain, ask="rec")
    assert open_data(plain, problems=ProblemsSection(ask="rec"), strict=False).size == 1  # a held-out file
    assert "has no parts to name with @val" in refused(f"{plain}@val")


def test_whole_pictures_are_held_out(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": "p.png"} for i in range(30)]
    for image in images:
        image["file_name"] = f"{image['id']}.png"
        draw(tmp_path / str(image["file_name"]), size=(20, 20))
    boxes = [
        {"id": 2 * i + k, "image_id": i, "category_id": k, "bbox": [1, 1, 8, 8]}
        for i in range(30)
        for k in (0, 1)
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    path = write(tmp_path / "c.json", {"images": images, "annotations": boxes, "categories": categories})
    task = open_data(path, problems=ProblemsSection(ask="rec"))
    train, held = part_of(task, "train"), part_of(task, "heldout")
    assert (train.size, held.size) == (54, 6)
    assert not {p.meta["image_id"] for p in all_of(train)} & {p.meta["image_id"] for p in all_of(held)}
    parts = open_tasks(Run(data=str(path), problems=ProblemsSection(ask="rec")))
    assert [part.size for part in parts] == [54, 6, 6]
    write_plain(task, tmp_path / "plain.jsonl")
    assert [r.id for r in part_of(open_data(tmp_path / "plain.jsonl"), "heldout").rows] == [
        r.id for r in held.rows
    ]


def of_one_file(folder: Path, n: int = 20, each: int = 3) -> Path:
    """VLM-R1's lines: `each` expressions about each of `n` pictures, the second ones after all the first."""
    for i in range(n):
        draw(folder / "p" / f"{i}.png", size=(20, 20))
    return lines(
        folder / "rec.jsonl",
        *(
            turns(f"p/{i}.png", f"Thing {i}, wording {k}?", "[1, 2, 10, 12]") | {"id": f"{i}-{k}"}
            for k in range(each)
            for i in range(n)
        ),
    )


def test_no_picture_is_both_trained_on_and_held_out(tmp_path: Path) -> None:
    path = of_one_file(tmp_path, n=21)
    wanted = {f"{i}-{k}" for i in (9, 19) for k in range(3)}
    train, held = split(open_data(path))
    assert {row.id for row in held.rows} == wanted
    assert (train.size, held.size) == (57, 6)
    assert [part_of(open_data(path), "train").rows, part_of(open_data(path), "heldout").rows] == [
        train.rows,
        held.rows,
    ]
    # the same pictures under other names: through a link, and by another way to the folder
    (tmp_path / "link").symlink_to(tmp_path / "p")
    for i in range(21):
        (tmp_path / f"{i}.png").symlink_to(tmp_path / "p" / f"{i}.png")
    for other in ("link/{}.png", "{}.png", "p/../p/{}.png", f"{tmp_path}/p/{{}}.png"):
        more = [
            {"id": f"m{i}", "image": other.format(i), "question": "?", "answer": 1}
            for i in reversed(range(21))
        ]
        both = open_data([str(path), str(lines(tmp_path / "more.jsonl", *more))])
        assert {row.id for row in split(both)[1].rows} == wanted | {"m9", "m19"}


def test_lines_that_share_any_picture_stay_together(tmp_path: Path) -> None:
    for i in range(30):
        draw(tmp_path / f"{i}.png", size=(20, 20))
    records: list[dict[str, Any]] = [
        {"images": [f"{i}.png"], "question": "?", "answer": 1} for i in range(20)
    ]
    records[3] = {"question": "words only", "answer": 1}
    records[19]["images"] = ["20.png", "0.png"]  # one with line 0, though its first picture is not
    records += [
        {"images": ["9.png", "29.png"], "question": "?", "answer": 1},
        {"images": ["29.png"], "question": "?", "answer": 1},  # with line 9 through the one before
        {"question": "words only", "answer": 1},
    ]
    task = open_data(lines(tmp_path / "a.jsonl", *(r | {"id": i} for i, r in enumerate(records))))
    assert groups_of(task.rows) == [*range(19), 0, 9, 9, 19]
    assert [row.id for row in split(task)[1].rows] == ["9", "20", "21", "22"]


def test_of_few_pictures_one_is_held_out(tmp_path: Path) -> None:
    train, held = split(open_data(of_one_file(tmp_path, n=5)))
    assert [row.id for row in held.rows] == ["4-0", "4-1", "4-2"]
    assert train.size == 12
    for i in range(3):
        draw(tmp_path / f"{i}.png", size=(20, 20))
    asked = [
        {"id": k, "image": f"{i}.png", "question": "?", "answer": 1}
        for k, i in enumerate([0] * 5 + [1] + [2] * 5)
    ]
    assert [row.id for row in split(open_data(lines(tmp_path / "a.jsonl", *asked)))[1].rows] == [
        "5"
    ]  # the smallest


def test_a_picture_in_many_cells_of_a_table_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="extra [data]")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {
        "image": [png((20 + i // 2, 10)) for i in range(40)],
        "question": [f"{i}?" for i in range(40)],
        "answer": ["7"] * 40,
        "id": list(range(40)),
    }
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "t.parquet")
    held = split(open_data(tmp_path / "t.parquet"))[1]
    assert [row.id for row in held.rows] == ["18", "19", "38", "39"]
    done = write_plain(open_data(tmp_path / "t.parquet"), tmp_path / "o.jsonl")
    assert (done["pictures"], len(list((tmp_path / "o_pictures").iterdir()))) == (20, 20)
    again = split(open_data(tmp_path / "o.jsonl"))[1]
    assert [row.id for row in again.rows] == ["18", "19", "38", "39"]


# --- RefCOCO ------------------------------------------------------------------------------------------------


def test_flat_referring_expressions(tmp_path: Path) -> None:
    draw(tmp_path / "t" / "p.png", (10, 10, 30, 30))
    path = write(
        tmp_path / "rec.json",
        [
            {"image": "t/p.png", "problem": "Please provide the box: the red square.", "solution": [10, 10, 30, 30],
             "normal_caption": "the red square", "normalized_solution": [100, 166, 300, 500], "dataset": "refcoco"},
            {"file_name": "t/p.png", "sentence": "the square", "bbox": [10, 10, 20, 20]},
            {"img_path": "t/p.png", "sentences": [{"sent": "a"}, {"sent": "b"}], "solution": "[1, 2, 3, 4]"},
        ],
    )  # fmt: skip
    problems = opened(path)
    assert [p.question for p in problems] == [
        "Please provide the box: the red square.",
        *(REC_QUESTION.replace("{query}", query) for query in ("the square", "a", "b")),
    ]
    assert [p.answer for p in problems] == [(10, 10, 30, 30), (10, 10, 30, 30), (1, 2, 3, 4), (1, 2, 3, 4)]
    assert (problems[0].meta["query"], problems[0].meta["dataset"]) == ("the red square", "refcoco")
    assert opened(path, question="Where is {query}?")[0].question == "Where is the red square?"
    assert refused(path, question="Where?").startswith("problems.question='Where?' has no {query}")
    unit = write(
        tmp_path / "unit.json", [{"image": "t/p.png", "sentence": "x", "solution": [0.1, 0.5, 0.3, 1]}]
    )
    assert opened(unit, frame="unit")[0].answer == pytest.approx((10, 30, 30, 60))


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"sentence": "x", "solution": [1, 2, 3, 4]}, "entry 2: names no picture under image, file_name"),
        (
            {"image": "p.png", "sentence": "x"},
            "entry 2: holds no box under solution, bbox_2d, answer or bbox",
        ),
        (
            {"image": "p.png", "solution": [1, 2, 3, 4]},
            "entry 2: holds no words under problem or normal_caption",
        ),
        ({"image": "p.png", "solution": [1, 2, 3, 4], "sentences": [3]}, "entry 2: has the sentence 3"),
        ({"image": "p.png", "sentence": "x", "solution": [1, 2, 300, 4]}, "entry 2: the box .* is outside"),
        (
            {"image": "q.png", "sentence": "x", "solution": [1, 2, 3, 4]},
            "entry 2: the picture .* does not exist",
        ),
        (3, "entry 2: must be an object"),
        (
            {"image": "p.png", "sentence": "x", "bbox": [1, 2, 3]},
            r'entry 2: its "bbox" \[1, 2, 3\] is no box; write four numbers, \[x, y, width, height\]',
        ),
        (
            {"image": "p.png", "sentence": "x", "solution": "left"},
            r'entry 2: its "solution" "left" is no box; write four numbers, \[x1, y1, x2, y2\]',
        ),
    ],
)
def test_bad_referring_expressions(tmp_path: Path, entry: object, what: str) -> None:
    draw(tmp_path / "p.png")
    good = {"image": "p.png", "sentence": "x", "solution": [1, 2, 3, 4]}
    with pytest.raises(UserError, match=what):
        open_data(write(tmp_path / "rec.json", [good, entry]))


def test_the_first_entry_may_be_the_bad_one(tmp_path: Path) -> None:
    draw(tmp_path / "p.png")
    path = write(tmp_path / "rec.json", [{"file_name": "p.png", "sentence": "a", "bbox": [1, 2, 3]}] * 2)
    assert 'entry 1: its "bbox" [1, 2, 3] is no box' in refused(path)


def refs_of(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    coco(folder)
    refs: list[dict[str, Any]] = [
        {"ref_id": 5, "ann_id": 3, "image_id": 1, "split": "train", "file_name": "1_3.png", "category_id": 2,
         "sentences": [{"sent": "the dog", "raw": "The dog!"}, {"sent": "right animal"}]},
        {"ref_id": 6, "ann_id": 4, "image_id": 2, "split": "val", "sentences": [{"sent": "big dog"}]},
    ]  # fmt: skip
    return write(folder / "refs(unc).json", refs), refs


def test_refs_point_into_instances(tmp_path: Path) -> None:
    path, _ = refs_of(tmp_path)
    problems = opened(f"{path}@train", tmp_path / "pics")
    assert [(p.id, p.answer) for p in problems] == [("5:0", (70, 5, 95.5, 45)), ("5:1", (70, 5, 95.5, 45))]
    assert problems[0].question == REC_QUESTION.replace("{query}", "the dog")
    assert problems[0].meta["source"] == f"{path}, ref 1"
    assert [p.id for p in opened(f"{path}@val", tmp_path / "pics")] == ["6:0"]
    assert "holds the splits train, val; name one, for example" in refused(path, tmp_path / "pics")
    assert "has no split 'testA'; it holds train, val" in refused(f"{path}@testA", tmp_path / "pics")
    moved = (tmp_path / "instances.json").rename(tmp_path / "all.json")
    assert "instances.json is not there; put instances.json beside it" in refused(
        f"{path}@val", tmp_path / "pics"
    )
    assert len(opened(f"{path}@val", tmp_path / "pics", instances=str(moved))) == 1


def test_the_fingerprint_covers_the_instances_of_refs(tmp_path: Path) -> None:
    path, _ = refs_of(tmp_path)

    def found(**options: Any) -> str:
        return fingerprint(open_data(f"{path}@train", tmp_path / "pics", problems=ProblemsSection(**options)))

    before = found()
    whole = json.loads((tmp_path / "instances.json").read_text())
    assert found(instances=str(write(tmp_path / "all.json", whole))) == before
    whole["annotations"][6]["bbox"] = [0, 0, 5, 5]  # of no ref of this part
    write(tmp_path / "instances.json", whole)
    assert found() != before
    assert found() == found(instances=str(tmp_path / "instances.json"))


def test_bad_refs(tmp_path: Path) -> None:
    path, refs = refs_of(tmp_path)
    for change, what in (
        ({"ann_id": 99}, "ref 2: its ann_id 99 is not in"),
        ({"image_id": 99}, "ref 2: its image_id 99 is not in"),
        ({"sentences": []}, "ref 2: needs ann_id, image_id and sentences"),
        ({"sentences": [{"sent": " "}]}, "ref 2: has the sentence"),
    ):
        write(path, [refs[0], refs[1] | change])
        assert what in refused(f"{path}@val", tmp_path / "pics")
    for none in (None, ""):  # belongs to no part, so that every part says so
        write(path, [*refs, refs[1] | {"ref_id": 7, "split": none}])
        assert 'ref 3: has no split; write "split": "train"' in refused(f"{path}@train", tmp_path / "pics")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(Bomb()))
    told = refused(tmp_path / "refs(unc).p")
    assert "is a pickle, which can run any program when it is opened" in told
    assert "json.dump(pickle.load(open('refs(unc).p', 'rb'))" in told
    assert not (tmp_path / "ran").exists()


# --- tables of mathematics ----------------------------------------------------------------------------------


def png(size: tuple[int, int] = (20, 10)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "green").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["parquet", "saved", "parts"])
def test_geometry3k(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="extra [data]")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    answers = ["3", "2 \\sqrt { 221 }", "B", "45^\\circ", "2x+1"]
    columns = {
        "images": [[{"bytes": png(), "path": None}]] * 5,
        "problem": ["<image>Find x.", "<image>Find y.", "Which?", "<image>\nAngle?", "Is <image> f(x)?"],
        "answer": answers,
    }
    table = datasets.Dataset.from_dict(columns)
    path = tmp_path / ("geo.parquet" if form == "parquet" else "geo")
    if form == "parquet":
        table.to_parquet(path)
    elif form == "saved":
        table.save_to_disk(path)
    else:
        datasets.DatasetDict({"train": table.select([0]), "test": table}).save_to_disk(path)
        assert len(opened(f"{path}@train")) == 1
        path = Path(f"{path}@test")
    problems = opened(path)
    assert [p.kind for p in problems] == ["number", "math", "choice", "math", "math"]
    assert [p.answer for p in problems] == [3, *answers[1:]]
    assert [p.question for p in problems] == ["Find x.", "Find y.", "Which?", "Angle?", "Is Picture 1 f(x)?"]
    assert [p.kind for p in opened(path, kind="math")] == ["math"] * 5
    assert opened(path, kind="math")[0].answer == "3"
    assert [p.kind for p in opened(path, kind="text")] == ["text"] * 5


def test_virl39k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="extra [data]")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    draw(tmp_path / "images" / "a.png")
    answers = ["\\boxed{A}", "\\boxed{3.50}", "\\boxed{\\frac{1}{2}}", "\\boxed{Tuesday}", "\\boxed{1,200}"]
    columns = {
        "question": ["<image>\nWhat?"] * 5, "answer": answers, "image": [["images/a.png"]] * 5,
        "qid": [f"q{i}" for i in range(5)], "PassRate_32BTrained": [0.5, 0.25, 1.0, 0.0, float("nan")],
        "category": ["geometry"] * 5, "steps": [[1]] * 5, "page": ["x" * 20_000] * 5,
    }  # fmt: skip
    path = tmp_path / "virl.parquet"
    datasets.Dataset.from_dict(columns).to_parquet(path)
    problems = opened(path)
    assert [(p.kind, p.answer) for p in problems] == [
        ("choice", "A"), ("number", 3.5), ("math", "\\frac{1}{2}"), ("text", "Tuesday"), ("number", 1200),
    ]  # fmt: skip
    assert problems[0].id == "q0"
    kept = {key for key in problems[1].meta if key not in ("source", "line", "pictures")}
    assert kept == {"PassRate_32BTrained", "category"}  # no list, no page
    assert problems[1].meta["PassRate_32BTrained"] == 0.25
    assert "PassRate_32BTrained" not in problems[4].meta  # NaN is no JSON
    assert opened(path, kind="math")[1].answer == "3.50"  # as it is written
    datasets.Dataset.from_dict(columns | {"question": ["<image><image>?"] * 5}).to_parquet(
        tmp_path / "b.parquet"
    )
    assert "b.parquet, row 1: the question has 2 <image> but the line names 1" in refused(
        tmp_path / "b.parquet"
    )


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("\\boxed{A}", "A"), ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"), ("\\boxed{1} and \\boxed{2}",) * 2,
        ("\\boxed{}",) * 2, ("x \\boxed{1}",) * 2, ("\\boxed{{}",) * 2, ("plain",) * 2,
    ],
)  # fmt: skip
def test_unboxed(text: str, inner: str) -> None:
    assert unboxed(text) == inner


def test_what_is_mathematics() -> None:
    for text in ("\\frac{1}{2}", "x^2", "3/4", "2x+1", "45°", "x = 3", "√2", "35%", "y<2"):
        assert is_mathematical(text), text
    for text in ("a cat", "yes", "no. 3 is red", "Tuesday", "10 red and blue", "north-east", "A and C"):
        assert not is_mathematical(text), text
    assert said("1,200", loose=True) == 1200
    assert said("1,200") == "1,200"


def test_hub_names_are_fetched_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = refused("hub:hiyouga/geometry3k@test")
    assert (
        told
        == "hub:hiyouga/geometry3k@test would be fetched from the Hugging Face hub; allow it with download=true."
    )
    assert "names no dataset; write hub:OWNER/NAME" in refused("hub:../x")
    datasets = pytest.importorskip("datasets", reason="extra [data]")
    asked_for = []

    def load(name: str, *, split: str) -> Any:  # stands for the network
        asked_for.append((name, split))
        return datasets.Dataset.from_dict({"question": ["2 + 2?"], "answer": ["4"]})

    monkeypatch.setattr("datasets.load_dataset", load)
    from fovea.tasks.tables import _dataset

    _dataset.cache_clear()
    task = open_data("hub:hiyouga/geometry3k@test", download=True)
    assert (all_of(task)[0].answer, task.name) == (4, "geometry3k")
    assert asked_for == [("hiyouga/geometry3k", "test")]


# --- frames, prompts, both doors ----------------------------------------------------------------------------


def test_every_frame_can_be_declared_by_line_and_by_file(tmp_path: Path) -> None:
    draw(tmp_path / "p.png")
    boxes = {"pixels": [10, 30, 50, 60], "unit": [0.1, 0.5, 0.5, 1], "thousandths": [100, 500, 500, 1000]}
    boxes["resized"] = [20, 60, 100, 120]
    for frame, box in boxes.items():
        size = {"resized": [200, 120]} if frame == "resized" else {}
        record = {"image": "p.png", "question": "?", "answer": box}
        by_line = opened(lines(tmp_path / "a.jsonl", record | {"frame": frame} | size))
        by_file = opened(lines(tmp_path / "b.jsonl", record), frame=frame, **size)
        assert by_line[0].answer == pytest.approx((10, 30, 50, 60)), frame
        assert by_file[0].answer == by_line[0].answer
    path = lines(
        tmp_path / "c.jsonl", {"image": "p.png", "question": "?", "answer": [1, 2, 3, 4], "frame": "resized"}
    )
    assert 'needs the size that boxes refer to, but "resized" is null' in refused(path)
    assert opened(path, resized=(100, 60))[0].answer == (1, 2, 3, 4)
    with pytest.raises(UserError, match="write \\[width, height\\] in pixels"):
        load_run("quickstart", ["problems.resized=[0, 3]"])


def test_instructions() -> None:
    assert asked("Where?", None) == "Where?"
    assert asked("Where?", "Think.") == "Where?\nThink."
    assert asked("{x} {question}", "A {y} {question} B {question}") == "A {y} {x} {question} B {question}"
    assert instruction_of(Run(instruction="think"), "box") == THINK
    assert (
        instruction_of(Run(instruction="think_json"), "box")
        == f"{THINK} Output the final answer in JSON format."
    )
    assert instruction_of(Run(instruction="plain"), "math") == INSTRUCTIONS["math"]
    assert instruction_of(Run(instruction=""), "box") is None
    assert instruction_of(Run(), "box") is None
    assert instruction_of(Run(data="x.jsonl", model="m"), "choice") == INSTRUCTIONS["choice"]
    assert instruction_of(Run(instruction="Say {question}!"), "box") == "Say {question}!"
    assert asked("Detect.", NAMED["think_first"]).endswith("</answer>\nDetect.")


def test_a_model_that_knows_the_form_of_answers_is_not_told(tmp_path: Path) -> None:
    """The mark is in config.json, which transformers keeps when it saves the model; an adapter names its base."""
    for model in ("fovea-tiny", str(TINY)):
        assert instruction_of(Run(data="x.jsonl", model=model), "box") is None
        assert (
            instruction_of(Run(data="x.jsonl", model=model, instruction="plain"), "box")
            == INSTRUCTIONS["box"]
        )
    AutoConfig.from_pretrained(TINY).save_pretrained(tmp_path / "saved")
    assert answers_untold(str(tmp_path / "saved"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    lora = {
        "base_model_name_or_path": "fovea-tiny",
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": "q_proj",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(lora))
    assert answers_untold(str(adapter))
    for text in ("{}", "[]", "no JSON", '{"answers_untold": "yes"}'):
        (tmp_path / "config.json").write_text(text)
        assert not answers_untold(str(tmp_path))
    problems = ProblemList(name="mine", problems=tuple(open_task("digits/locate", "train", 0).take(0, 2)[0]))
    assert instruction_of(Run(), problems) is None
    assert instruction_of(Run(model="another"), problems) == INSTRUCTIONS["box"]


def test_several_kinds_need_a_reward_for_all_and_get_their_own_instruction(tmp_path: Path) -> None:
    files, folders = two_files(tmp_path)
    with pytest.raises(
        UserError, match=r"mixes answers of the kinds box, text, choice, math, objects.* set rewards\.acc"
    ):
        open_tasks(Run(data=tuple(files), images=tuple(folders), validation_data=tuple(files)))
    run = Run(
        data=tuple(files), images=tuple(folders), validation_data=tuple(files), rewards={"accuracy": 1.0}
    )
    task, held, _ = open_tasks(run)
    assert instruction_of(run, task) is None
    for problem in held.take(0, 5)[0]:
        assert not problem.question.endswith(INSTRUCTIONS[problem.kind])  # fovea-tiny is told nothing
    another = run.model_copy(update={"model": "m"})
    task, held, _ = open_tasks(another)
    assert instruction_of(another, task) is None
    for problem in held.take(0, 5)[0]:
        assert problem.question.endswith(f"\n{INSTRUCTIONS[problem.kind]}")
    think = run.model_copy(update={"instruction": "think"})
    task, held, _ = open_tasks(think)
    assert instruction_of(think, task) == THINK
    assert held.take(0, 1)[0][0].question == "Where?"


def forms(folder: Path) -> list[tuple[str, str, list[str]]]:
    """(file, pictures, options) of one file a form."""
    path, _ = refs_of(folder)
    pics = str(folder / "pics")
    flat = write(folder / "flat.json", [{"image": "1.png", "sentence": "cat", "solution": [10, 10, 30, 30]}])
    two = lines(folder / "v.jsonl", turns("1.png", "Where?", "[10, 10, 30, 30]", accu_reward_method="rec"))
    return [
        (str(folder / "instances.json"), pics, []),
        (str(folder / "instances.json"), pics, ["problems.crowds=keep", "problems.empty=0.5"]),
        (str(folder / "instances.json"), pics, ["problems.ask=rec"]),
        (str(folder / "instances.json"), pics, ["problems.ask=count"]),
        (f"{path}@train", pics, []),
        (str(flat), pics, []),
        (f"[{flat},{two}]", pics, []),
    ]


def test_convert_writes_what_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, (file, pics, options) in enumerate(forms(tmp_path)):
        out = tmp_path / f"out{k}.jsonl"
        assert cli.main(["convert", file, "--images", pics, "--out", str(out), *options]) == 0, (
            capsys.readouterr().err
        )
        assert "written" in capsys.readouterr().out
        run = load_run("quickstart", [f"data={file}", f"images={pics}", *options])
        data = run.data if isinstance(run.data, str) else list(run.data or ())
        ours = all_of(open_data(data, run.images, problems=run.problems, shuffle=False))
        again = all_of(open_data(out, shuffle=False))
        for a, b in zip(ours, again, strict=True):
            assert (a.id, a.question, a.answer, a.kind, a.target) == (
                b.id,
                b.question,
                b.answer,
                b.kind,
                b.target,
            )
            assert [x.tobytes() for x in a.images] == [x.tobytes() for x in b.images]
            mine = {key: value for key, value in a.meta.items() if key not in ("source", "line", "pictures")}
            assert mine.items() <= b.meta.items()
    assert not Path(
        json.loads(out.read_text().splitlines()[0])["image"]
    ).is_absolute()  # the pictures lie beside it
    assert cli.main(["convert", file, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_convert_takes_pictures_out_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="extra [data]")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {"image": [png()], "question": ["?"], "answer": ["[1, 2, 10, 8]"], "rate": [0.5]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "t.parquet")
    assert cli.main(["convert", str(tmp_path / "t.parquet"), "--out", str(tmp_path / "o.jsonl")]) == 0
    (record,) = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert (tmp_path / record["image"]).read_bytes() == png()
    assert record["meta"] == {"rate": 0.5}
    assert opened(tmp_path / "o.jsonl")[0].answer == (1, 2, 10, 8)


def test_every_form_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, pics, options in forms(tmp_path):
        capsys.readouterr()
        code = cli.main(["tasks", "check", file, "--images", pics, *options, "--json"])
        report = json.loads(capsys.readouterr().out)
        assert (code, report["bad"]) == (0, []), (file, options)
        assert report["n"] > 0
    assert cli.main(["tasks", "check", str(tmp_path / "instances.json"), "--images", pics]) == 0
    assert "categories of pictures are not asked: a crowd box" in capsys.readouterr().out
    report = check_task(tmp_path / "instances.json", images=tmp_path)  # the wrong folder
    assert len(report.bad) == 3
    assert (
        cli.main(["tasks", "show", str(tmp_path / "instances.json"), "--images", pics, "problems.ask=rec"])
        == 0
    )
    assert "1:dog" in capsys.readouterr().out
    assert (
        cli.main(["tasks", "check", str(tmp_path / "instances.json"), "--images", pics, "problems.aks=rec"])
        == 2
    )
    assert "did you mean 'ask'" in capsys.readouterr().err


def test_the_teachers_reply_is_right_for_every_form(tmp_path: Path) -> None:
    for file, pics, options in forms(tmp_path)[:-1]:
        run = load_run("quickstart", [f"data={file}", f"images={pics}", *options])
        for problem in all_of(open_data(str(run.data), run.images, problems=run.problems)):
            assert correct(_reply(problem), problem), (problem.target, problem.answer)


# --- orders and sets ------------------------------------------------------------------------------------------

ORDER = {"question": "In which order?", "answer": [3, 1, 2], "kind": "order"}
SET = {"question": "Which are imported?", "answer": ["os", "a, b"], "kind": "set"}


def listed(folder: Path) -> Path:
    """One line of each kind in each schema; a set with a comma in a name."""
    draw(folder / "1.png", (10, 10, 50, 40))
    return lines(
        folder / "lists.jsonl",
        ORDER | {"image": "1.png"},
        SET | {"meta": {"candidates": ["os", "sys", "a, b"]}},
        turns("1.png", "In which order?", "<answer> 3,1,2 </answer>", kind="order"),
        turns("1.png", "Which are imported?", '["os", "a, b"]', kind="set") | {"id": 2},
        turns("1.png", "Which are imported?", "os; sys", kind="set") | {"id": 3},
    )


def test_orders_and_sets_are_read_checked_and_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path)
    task = open_data(path, shuffle=False)
    problems = all_of(task)
    assert task.kinds == ("order", "set")
    assert [p.answer for p in problems] == [
        [3, 1, 2],
        ["os", "a, b"],
        [3, 1, 2],
        ["os", "a, b"],
        ["os", "sys"],
    ]
    assert [p.target for p in problems[:2]] == ["<answer>3, 1, 2</answer>", '<answer>["os", "a, b"]</answer>']
    assert all(correct(p.target or "", p) for p in problems)
    assert all(correct(truth_text(p), p) for p in problems)
    assert [parse(p.target or "", p) for p in problems] == ["read"] * 5
    assert [parse("the first one [1]", p) for p in problems[:2]] == ["unreadable", "read"]
    assert cli.main(["tasks", "check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bad"] == []
    again = all_of(open_data(write_plain(task, tmp_path / "o.jsonl")["out"], shuffle=False))
    kept = [(p.question, p.answer, p.kind, p.target) for p in problems]
    assert [(p.question, p.answer, p.kind, p.target) for p in again] == kept
    filtered = lines(tmp_path / "f.jsonl", *(record_of(p, []) for p in problems))
    assert [
        (p.question, p.answer, p.kind, p.target) for p in all_of(open_data(filtered, shuffle=False))
    ] == kept
    assert [problem_list("mine", [p]).kind for p in problems[:2]] == ["order", "set"]


@pytest.mark.parametrize("schema", ["plain", "vlm_r1"])
def test_orders_and_sets_are_written_in_both_schemas(tmp_path: Path, schema: str) -> None:
    task = open_data(listed(tmp_path), shuffle=False)
    written = write_task(task, 5, tmp_path / "out", schema)
    for a, b in zip(all_of(task), all_of(open_data(written.file, shuffle=False)), strict=True):
        assert (a.id, a.question, a.answer, a.kind) == (b.id, b.question, b.answer, b.kind)
    numbers = problem_list("n", [replace(all_of(task)[1], answer=[1, 2], meta={}, target=None)])
    if schema == "vlm_r1":  # where a number is a text
        with pytest.raises(UserError, match="would not be read back as it is"):
            write_task(numbers, 1, tmp_path / "n", schema)
    else:
        assert all_of(open_data(write_task(numbers, 1, tmp_path / "n").file))[0].answer == [1, 2]


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (ORDER | {"answer": [3, 3, 1]}, "[3, 3, 1] does not fit kind 'order'; write different whole numbers"),
        (ORDER | {"answer": [1, -2]}, "does not fit kind 'order'"),
        (ORDER | {"answer": [1.5, 2]}, "does not fit kind 'order'"),
        (ORDER | {"answer": "first, then second"}, "does not fit kind 'order'"),
        (ORDER | {"answer": []}, "does not fit kind 'order'"),
        (SET | {"answer": []}, "does not fit kind 'set'; write a list of names"),
        (SET | {"answer": ["os", " "]}, "does not fit kind 'set'"),
        (SET | {"answer": ["os", ["sys"]]}, "does not fit kind 'set'"),
        (SET | {"answer": ["\ud800"]}, "half a character"),
        (SET | {"meta": {"candidates": ["os", "sys"]}}, 'needs names out of meta["candidates"]'),
        ({"question": "?", "answer": [3, 1, 2]}, "does not fit kind 'text'"),
    ],
)
def test_bad_orders_and_sets(tmp_path: Path, record: dict[str, Any], what: str) -> None:
    assert what in refused(lines(tmp_path / "bad.jsonl", record))


def test_orders_of_a_column_of_text(tmp_path: Path) -> None:
    """As SSL4RL's parquet files have them: "3,1,2"."""
    datasets = pytest.importorskip("datasets", reason="extra [data]")
    columns = {"image": [png()] * 2, "question": ["?", "?"], "answer": ["3,1,2", "[2, 1, 3, 4]"]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "t.parquet")
    problems = opened(tmp_path / "t.parquet", kind="order")
    assert [p.answer for p in problems] == [[3, 1, 2], [2, 1, 3, 4]]
    assert {p.kind for p in problems} == {"order"}


def test_a_problem_of_ones_own_whose_order_or_set_is_none() -> None:
    good = Problem(id="7", task="t", images=(), question="?", answer=[3, 1, 2], kind="order")
    assert wrong_field(good) is None
    assert wrong_field(replace(good, answer=("os", "sys"), kind="set")) is None
    for answer, kind, fix in (([1, 1], "order", "different whole numbers"), ([], "set", "a list of names")):
        found = wrong_field(replace(good, answer=answer, kind=kind))
        assert found is not None
        assert fix in found[1]


def test_the_best_blind_set_does_not_depend_on_its_order() -> None:
    """Two of three truths are the same set."""
    truths = [["os", "sys"], ["Sys", "os"], ["re"]]
    assert blind_chance(["set"] * 3, truths, [None] * 3) == pytest.approx(2 / 3)
    assert blind_chance(["order"] * 2, [[1, 2], [2, 1]], [None] * 2) == 0.5
