"""The user's files: both schemas, tables, folders; every mistake named in one pass; fuzzed; flat memory.

`FOVEA_FUZZ=20000 pytest tests/test_data.py -k fuzz` runs the fuzzing at length (the default is a few hundred).
"""

from __future__ import annotations

import io
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fovea.rewards.matching import Compat
from fovea.rewards.routing import accuracy
from fovea.tasks import open_data
from fovea.tasks.data import read_data
from fovea.tasks.jsonl import read_lines
from fovea.tasks.kinds import BadLine
from fovea.tasks.pictures import CACHE, BadPicture, FileRef, decode, read_size, verify
from fovea.tasks.records import read_record, without_placeholders
from fovea.types import Problem, UserError, picture_sizes

FUZZ = int(os.environ.get("FOVEA_FUZZ", "150"))
FUZZING = settings(
    max_examples=FUZZ,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def data_file(folder: Path, *records: object) -> Path:
    Image.new("RGB", (100, 50), "red").save(folder / "a.png")
    path = folder / "my.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


def good(**changes: object) -> dict[str, object]:
    return {"image": "a.png", "question": "Where?", "answer": [10, 10, 50, 40]} | changes


def vlm_r1(asked: str, said: object, image: object = "a.png", **more: object) -> dict[str, object]:
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    return {"id": 1, "image": image, "conversations": turns} | more


def only(folder: Path, record: object) -> Problem:
    return open_data(data_file(folder, record)).take(0, 1)[0][0]


# --- the plain schema -------------------------------------------------------------------------------------


def test_data_kinds_and_frames(tmp_path: Path) -> None:
    path = data_file(
        tmp_path,
        good(),
        good(answer=[0.1, 0.2, 0.5, 0.8], frame="unit"),
        good(answer=3, question="How many?"),
        good(answer="B", question="Which?"),
        {"question": "What?", "answer": "a red field", "images": ["a.png", "a.png"]},
        {"question": "2 + 2?", "answer": 4},
        good(answer=[{"bbox_2d": [0, 0, 500, 1000], "label": "half"}], frame="thousandths"),
    )
    task = open_data(str(path), shuffle=False)
    problems, _ = task.take(0, 7)
    assert [p.kind for p in problems] == ["box", "box", "number", "choice", "text", "number", "objects"]
    assert problems[1].answer == pytest.approx((10, 10, 50, 40))  # 0.1 of 100 pixels, 0.2 of 50
    assert [len(p.images) for p in problems] == [1, 1, 1, 1, 2, 0, 1]
    assert picture_sizes(problems[4]) == ((100, 50), (100, 50))
    assert problems[6].answer == [{"bbox_2d": [0, 0, 50, 50], "label": "half"}]
    assert problems[0].meta["source"] == f"{path}, line 1"
    assert task.kinds == ("box", "number", "choice", "text", "objects")
    assert all(isinstance(p, Problem) for p in problems)


def test_a_placeholder_is_literal_text_in_the_plain_schema(tmp_path: Path) -> None:
    assert only(tmp_path, good(question="Is <image> a tag?", answer="yes")).question == "Is <image> a tag?"


def test_boxes_refer_to_the_upright_picture(tmp_path: Path) -> None:
    path = data_file(tmp_path, {"image": "t.jpg", "question": "?", "answer": [0, 60, 40, 90]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "t.jpg", exif=exif)  # upright: 50 wide, 100 high
    problem = open_data(path).take(0, 1)[0][0]
    assert picture_sizes(problem) == ((50, 100),)
    assert problem.images[0].size == (50, 100)
    data_file(tmp_path, {"image": "t.jpg", "question": "?", "answer": [60, 0, 90, 40]})
    with pytest.raises(UserError, match="outside its picture of 50 x 100"):
        open_data(path)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: must be an object"),
        ("[" * 100_000, "line 2: nested too deeply"),
        ('{"a": ' * 100_000, "line 2: nested too deeply"),
        ("9" * 5000, r"line 2: not JSON \(Exceeds the limit"),
        (good(image="b.png"), "line 2: the picture .*b.png does not exist; set images="),
        (good(image="\x1b[2J.png"), r"line 2: the picture '.*\\x1b.2J.png' does not exist"),
        (good(image="."), "line 2: the picture .* is not a file"),
        (good(image="my.jsonl"), "line 2: the picture .*my.jsonl is not a picture"),
        (good(images=["a.png"]), 'both "image" and "images"'),
        (good(image=3), '"images" must be a list of file names'),
        (good(image=[]), "has a box but no picture"),
        (good(answer=[50, 10, 10, 40]), "must have x1 < x2"),
        (good(answer=[10, 10, 10, 40]), "must have x1 < x2"),
        (good(answer=[10, 10, 102, 40]), "outside its picture of 100 x 50 pixels"),
        (good(answer=[-2, 10, 50, 40]), "outside its picture"),
        (good(answer=[100, 100, 500, 400]), "say in which frame"),
        (good(answer=[0.1, 0.1, 1.2, 0.4], frame="unit"), "outside its picture"),
        (good(frame="resized"), '"frame" "resized" needs the size'),
        (good(image=["a.png", "a.png"]), "say which one it belongs to"),
        (good(image=["a.png", "a.png"], box_image=2), '"box_image" is 2'),
        (good(anwser=3), 'unknown key "anwser"'),
        (good(question=" "), '"question" must be'),
        (good(question="\ud800"), "half a character"),
        ({"question": "x"}, '"answer" is missing'),
        (good(answer=None), '"answer" is missing'),
        (good(answer=""), "does not fit kind 'text'"),
        (good(answer=True), "does not fit"),
        (good(answer={"a": 1}), "does not fit"),
        (good(kind="number"), "does not fit kind 'number'"),
        (good(kind="colour"), '"kind" "colour" is unknown'),
        (good(kind=["box"]), '"kind" .* is unknown'),
        (good(answer=float("nan")), "NaN is not a JSON number"),
        ('{"image": "a.png", "question": "?", "answer": 1e999}', "does not fit"),
        (good(answer=10**400), "does not fit"),
        (good(difficulty="hard"), '"difficulty" is "hard"'),
        (good(target=3), '"target" must be a text'),
        (good(id=[1]), '"id" must be a text'),
        # a truth that the line's own reward cannot judge
        (good(answer="x", accu_reward_method="yes_no"), "line 2: Reward 'yes_no' needs .* is 'x'; correct the answer"),
        (good(answer="x", meta={"accu_reward_method": "yes_no"}), "line 2: Reward 'yes_no' needs"),
        (good(answer="yes and no", kind="text", accu_reward_method="yes_no"), "line 2: Reward 'yes_no' needs"),
        (good(answer="cat", kind="text", accu_reward_method="mcq"), "line 2: Reward 'choice' needs"),
        (good(kind="box", accu_reward_method="odLength"), "line 2: Reward 'od_length' needs"),
        (good(answer="x", meta={"accu_reward_method": "foo"}), '"accu_reward_method" "foo" is unknown'),
        (good(answer="x", meta={"accu_reward_method": ["llm"]}), '"accu_reward_method" .* is unknown'),
        (good(answer="x", accu_reward_method="llm", meta={"accu_reward_method": "math"}), "keep one of them"),
        (good(answer=3, meta={"tolerance": "x"}), "line 2: The tolerance of problem .* is 'x'; give meta"),
        (good(answer=3, meta={"tolerance": -1, "accu_reward_method": "llm"}, kind="number"), "line 2: The tolerance"),
        # lists that are meant as labelled boxes: which item lacks what
        (good(answer=[{"bbox_2d": [1, 2, 3, 4]}]), 'item 1 of the answer has no "label"; write what is in'),
        (good(answer=[{"bbox_2d": [1, 2, 3, 4], "label": 3}]), 'item 1 of the answer has the "label" 3'),
        (good(answer=[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [1, 2, 3], "label": "b"}]),
         r'item 2 of the answer has the "bbox_2d" \[1, 2, 3\]; write four numbers'),
        (good(answer=[{"label": "a"}], kind="objects"), 'item 1 of the answer has no "bbox_2d"'),
        (good(answer=[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, 7]), "item 2 of the answer is 7; write"),
        (vlm_r1("<image>Find all.", '```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```'), 'item 1 .* has no "label"'),
        # what is missing at the end is missing there
        ('{"question": "?", "answer": 3', "Expecting ',' delimiter at column 30, where the line ends"),
        ('{"question": "?" "answer": 3}', r"Expecting ',' delimiter at column 18\)"),
    ],
)  # fmt: skip
def test_bad_lines_say_where_and_why(tmp_path: Path, record: object, what: str) -> None:
    path = data_file(tmp_path, good(), record)
    with pytest.raises(UserError, match=what):
        open_data(str(path))


def test_all_bad_lines_are_found_in_one_pass(tmp_path: Path) -> None:
    path = data_file(tmp_path, "x", good(id="7"), good(answer=[0, 0, 200, 9]), good(id=7), good())
    rows, bad = read_data(path)
    assert [row.number for row in rows] == [2, 5]
    assert [finding.line for finding in bad] == [1, 3, 4]
    assert str(bad[2]) == f"{path}, line 4: the id '7' is already that of line 2; give each its own."
    with pytest.raises(
        UserError, match=r"line 1: not JSON .*\(2 more bad lines; fovea tasks check names all\)"
    ):
        open_data(path)


def test_broken_pictures_are_found_before_the_first_problem(tmp_path: Path) -> None:
    path = data_file(tmp_path, good(), good(image="t.jpg"))
    Image.effect_noise((300, 200), 50).save(tmp_path / "t.jpg")
    whole = (tmp_path / "t.jpg").read_bytes()
    (tmp_path / "t.jpg").write_bytes(whole[:-2000])
    with pytest.raises(
        UserError, match=r"line 2: the picture .*t.jpg cannot be read \(.*truncated.*\); copy or"
    ):
        open_data(path)
    late = open_data(path, shuffle=False, verify=False).take(0, 2)[0]  # headers only
    with pytest.raises(UserError, match=r"my.jsonl, line 2 \(problem my:2\): the picture"):
        late[1].images[0]


def test_empty_and_strange_files(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    for content in (b"", b"\n \n", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"my.jsonl: holds no problems"):
            open_data(path)
    path.write_bytes(json.dumps({"question": "ü?", "answer": 1}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(UserError, match=r"line 1: not UTF-8 \(byte 0xfc"):
        open_data(path)
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "?", "answer": 1}\r\n')  # as Windows editors save it
    assert open_data(path).size == 1
    path.write_text('{"question": "?", "answer": 1}\n' * 3, encoding="utf-16")
    assert [str(finding) for finding in read_data(path)[1]] == [
        f"{path}, line 1: the file is UTF-16; save it as UTF-8."
    ]
    with pytest.raises(UserError, match=r"data file .*nowhere.jsonl does not exist"):
        open_data(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"picture folder .* does not exist"):
        open_data(path, tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="not a file that can be read twice"):
        open_data(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="holds no pictures"):
        open_data((tmp_path / "empty").mkdir() or tmp_path / "empty")


def test_a_line_without_an_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fovea.tasks.jsonl.LINE_BYTES", 50)
    path = tmp_path / "my.jsonl"
    path.write_text('{"a": 1}\n' + "x" * 200 + '\n{"a": 2}\n' + "y" * 120)
    found = list(read_lines(path))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [isinstance(value, BadLine) for _, value in found] == [False, True, False, True]


def test_every_tenth_line_is_held_out_and_epochs_are_permutations(tmp_path: Path) -> None:
    for i in range(20):
        Image.new("RGB", (100, 50), "red").save(tmp_path / f"{i}.png")
    path = data_file(tmp_path, *(good(id=str(i), image=f"{i}.png") for i in range(20)))
    train = open_data(str(path), part="train", seed=1)
    held = open_data(str(path), part="heldout", shuffle=False)
    assert [p.id for p in held.take(0, 2)[0]] == ["9", "19"]
    first = [p.id for p in train.take(0, 18)[0]]
    second = [p.id for p in train.take(18, 18)[0]]
    assert sorted(first) == sorted(second) == sorted(str(i) for i in range(20) if i % 10 != 9)
    assert first != second
    assert [p.id for p in train.take(3, 2)[0]] == first[3:5]
    with pytest.raises(UserError, match="at least 10"):
        open_data(str(data_file(tmp_path, good(), good())), part="heldout")
    alone = data_file(tmp_path, *(good(id=str(i)) for i in range(20)))
    with pytest.raises(
        UserError, match="asks everything about one picture, or about pictures that its lines share"
    ):
        open_data(str(alone), part="heldout")
    words = data_file(tmp_path, *({"id": str(i), "question": "?", "answer": 1} for i in range(20)))
    assert [row.id for row in open_data(str(words), part="heldout").rows] == ["9", "19"]


def test_chance_is_measured(tmp_path: Path) -> None:
    records = [{"question": str(i), "answer": "yes" if i % 4 else "no"} for i in range(8)]
    assert open_data(data_file(tmp_path, *records)).chance == 0.75


# --- VLM-R1's schema --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("<image>Where is the cat?", "Where is the cat?"),
        ("<image>\n<image> Which differs?", "Which differs?"),
        ("Where?\n<image>", "Where?"),
        ("Where?\n<image>\n<image>\n", "Where?"),
        ("<image>\nIs it as in <image>?", "Is it as in Picture 2?"),
        ("First: <image> second: <image> Same?", "First: Picture 1 second: Picture 2 Same?"),
        ("Is this <image>", "Is this Picture 1"),
        ("nothing", "nothing"),
    ],
)
def test_placeholders(text: str, after: str) -> None:
    assert without_placeholders(text) == after


@pytest.mark.parametrize(
    ("said", "more", "kind", "answer"),
    [
        ("[10, 20, 50, 40]", {}, "box", (10, 20, 50, 40)),
        ([10, 20, 50, 40], {}, "box", (10, 20, 50, 40)),
        ("<answer> [10, 20, 50, 40] </answer>", {"accu_reward_method": "iou"}, "box", (10, 20, 50, 40)),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]\n```', {"accu_reward_method": "odLength"},
         "objects", [{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]),
        ("None", {"accu_reward_method": "od_ap50"}, "objects", []),
        ("3", {}, "number", 3),
        ("-2.5", {}, "number", -2.5),
        ("B", {"accu_reward_method": "mcq"}, "choice", "B"),
        ("<think>it purrs</think><answer>a cat</answer>", {}, "text", "a cat"),
        ("yes", {"accu_reward_method": "yes_no"}, "text", "yes"),
        *[(said, {"accu_reward_method": "mcq"}, "choice", "B") for said in (
            "b", "B.", "B)", "(b)", " (B) ", "B:", "B. a cat", "b. a\ncat", "B) 3", "(B) a cat", "(B)a", "B. C",
            "<answer> B. a cat </answer>")],
        ("B. a cat", {}, "text", "B. a cat"),
        # as it is written, where the method compares texts
        ("1.50", {"accu_reward_method": "all_match"}, "text", "1.50"),
        ("<answer> 007 </answer>", {"accu_reward_method": "all_match"}, "text", "007"),
        ("B", {"accu_reward_method": "all_match"}, "text", "B"),
        ("[1,2, 3, 4]", {"accu_reward_method": "all_match"}, "text", "[1,2, 3, 4]"),
        ([1, 2, 3, 4], {"accu_reward_method": "all_match"}, "text", "[1, 2, 3, 4]"),
        ([1, 2, 3, 4], {"accu_reward_method": "llm"}, "text", "[1, 2, 3, 4]"),
        ([1, "é"], {"accu_reward_method": "llm"}, "text", '[1, "é"]'),
        ([1, 2, 3, 4], {"accu_reward_method": "math"}, "math", "[1, 2, 3, 4]"),
        ("[1,2, 3, 4]", {"accu_reward_method": "math"}, "math", "[1,2, 3, 4]"),
        ("1.50", {"accu_reward_method": "math"}, "math", "1.50"),
        (1.5, {"accu_reward_method": "all_match"}, "text", "1.5"),
        ("7", {"kind": "text"}, "text", "7"),
        ("[1, 2, 3, 4]", {"kind": "text"}, "text", "[1, 2, 3, 4]"),
    ],
)  # fmt: skip
def test_vlm_r1_answers(
    tmp_path: Path, said: object, more: dict[str, Any], kind: str, answer: object
) -> None:
    problem = only(tmp_path, vlm_r1("<image>Where?", said, **more))
    assert (problem.kind, problem.answer, problem.question, problem.id) == (kind, answer, "Where?", "1")
    assert problem.meta.get("accu_reward_method") == more.get("accu_reward_method")
    if "think" in str(said):
        assert problem.target == said


@pytest.mark.parametrize("said", ["1.50", "[1, 2, 3, 4]", [1, 2, 3, 4], "7", "B"])
@pytest.mark.parametrize("compat", [None, "vlm_r1"])
def test_what_all_match_is_given_equals_itself(tmp_path: Path, said: object, compat: Compat) -> None:
    problem = only(tmp_path, vlm_r1("What?", said, accu_reward_method="all_match"))
    assert accuracy(f"<answer>{said}</answer>", problem, compat=compat) == 1
    assert accuracy("<answer>1.5</answer>", problem, compat=compat) == 0
    assert problem.target == f"<answer>{said}</answer>"


@pytest.mark.parametrize("answer", ["7", "1.50", "B", "[1, 2, 3, 4]", "none", "\\boxed{3}"])
def test_a_text_that_is_declared_stays_a_text(tmp_path: Path, answer: str) -> None:
    problem = only(tmp_path, good(answer=answer, kind="text"))
    assert (problem.kind, problem.answer) == ("text", answer)
    by_method = only(tmp_path, good(answer=answer, accu_reward_method="all_match"))
    assert (by_method.kind, by_method.answer) == ("text", answer)
    draft = read_record(good(answer=answer, kind="text"), lenient=True)  # of a table, which unboxes
    assert (draft.kind, draft.answer) == ("text", "3" if "boxed" in answer else answer)


def test_vlm_r1_pictures(tmp_path: Path) -> None:
    assert len(only(tmp_path, vlm_r1("<image><image>Same?", "yes", ["a.png", "a.png"])).images) == 2
    assert len(only(tmp_path, vlm_r1("Same?", "yes", ["a.png", "a.png"])).images) == 2  # none: pictures first
    text_only = vlm_r1("2 + 2?", "4") | {"image": None}
    assert len(only(tmp_path, text_only).images) == 0


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (vlm_r1("<image><image>Where?", "x"), "has 2 <image> but the line names 1 pictures"),
        (vlm_r1("<image>", "x"), '"value" must be a text'),
        (vlm_r1("Where?", None), "value\" is missing"),
        (vlm_r1("Where?", "x", accu_reward_method="vibes"), '"accu_reward_method" "vibes" is unknown'),
        *[(vlm_r1("Where?", said, accu_reward_method="mcq"), "does not fit kind 'choice'")
          for said in ("a cat", "xy", "A. C.", "(A)(C)", "U.S.", "12", [1, 2])],
        (vlm_r1("Where?", True, accu_reward_method="all_match"), "does not fit kind 'text'"),
        (vlm_r1("Where?", [1, 2, 3], kind="text"), "does not fit kind 'text'"),
        (vlm_r1("Where?", "[0, 0, 200, 20]"), "outside its picture"),
        ({"conversations": []}, "must hold two turns"),
        ({"conversations": [1, 2]}, "must hold two turns"),
        ({"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}, "human"),
    ],
)  # fmt: skip
def test_bad_vlm_r1_lines(tmp_path: Path, record: object, what: str) -> None:
    with pytest.raises(UserError, match=f"my.jsonl, line 1: .*{what}"):
        open_data(data_file(tmp_path, record))


# --- folders and tables -----------------------------------------------------------------------------------


def test_a_folder_with_metadata_and_one_with_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (9, 8)).save(tmp_path / "pets" / name / "1.png")
    task = open_data(tmp_path / "pets", shuffle=False)
    assert [(p.question, p.answer) for p in task.take(0, 2)[0]] == [
        ("What is in the picture? Answer with one of: cat, dog.", "cat"),
        ("What is in the picture? Answer with one of: cat, dog.", "dog"),
    ]
    with pytest.raises(UserError, match=r"holds pictures but no questions; add metadata.jsonl"):
        open_data(tmp_path / "pets" / "cat")
    (tmp_path / "pets" / "metadata.jsonl").write_text(
        '{"file_name": "cat/1.png", "question": "?", "answer": 2}\n'
    )
    (problem,) = open_data(tmp_path / "pets").take(0, 1)[0]
    assert (problem.answer, picture_sizes(problem)) == (2, ((9, 8),))
    (tmp_path / "pets" / "metadata.jsonl").write_text(
        '{"file_name": "cat/2.png", "question": "?", "answer": 2}\n'
    )
    with pytest.raises(UserError, match=r"metadata.jsonl, line 1: the picture .*cat/2.png does not exist"):
        open_data(tmp_path / "pets")


def png(seed: int, size: tuple[int, int] = (30, 20)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_tables(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", reason="extra [data]")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Image.new("RGB", (12, 10)).save(tmp_path / "b.png")
    columns = {
        "image": [{"bytes": png(i), "path": None} for i in range(3)]
        + [{"bytes": None, "path": str(tmp_path / "b.png")}],
        "problem": ["Where?", "How many?", "Which?", "What?"],
        "solution": ["<answer>[1, 2, 20, 15]</answer>", "3", "B", "noise"],
        "extra": [1, 2, 3, 4],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    path = tmp_path / ("x.parquet" if form == "parquet" else "x")
    table.to_parquet(path) if form == "parquet" else table.save_to_disk(path)
    capfd.readouterr()
    task = open_data(path, tmp_path, shuffle=False)
    assert capfd.readouterr().err == ""  # no progress bars between our lines
    problems = task.take(0, 4)[0]
    assert [p.kind for p in problems] == ["box", "number", "choice", "text"]
    assert problems[0].answer == (1, 2, 20, 15)
    assert [picture_sizes(p) for p in problems] == [((30, 20),)] * 3 + [((12, 10),)]
    CACHE.clear()
    assert problems[1].images[0].tobytes() == Image.open(io.BytesIO(png(1))).tobytes()
    import pickle

    assert pickle.loads(pickle.dumps(problems[2])).images[0].tobytes() == problems[2].images[0].tobytes()


def test_bad_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", reason="extra [data]")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match=r"x.parquet cannot be read as parquet"):
        open_data(tmp_path / "x.parquet")
    assert capfd.readouterr().err == ""  # the sentence, and no log line of `datasets` beside it
    datasets.Dataset.from_dict({"pic": ["a"], "q": ["b"]}).to_parquet(tmp_path / "z.parquet")
    with pytest.raises(UserError, match=r"z.parquet has no column of problems \(only pic, q\); name them"):
        open_data(tmp_path / "z.parquet")
    columns = {"images": [[png(0)], [png(1)[:300]], [b""]], "question": ["?"] * 3, "answer": ["a", "b", "c"]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "y.parquet")
    rows, bad = read_data(tmp_path / "y.parquet")
    assert [row.number for row in rows] == [1]
    assert [finding.line for finding in bad] == [2, 3]
    assert "y.parquet, row 2: the picture in column 'images' cannot be read" in str(bad[0])
    both = datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match=r"holds several parts \(train\); name one, for example .*both/train"):
        open_data(tmp_path / "both")


def test_a_missing_extra_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "z.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        UserError, match=r"needs the extra \[data\]; install it with pip install 'fovea-rl\[data\]'"
    ):
        open_data(tmp_path / "z.parquet")


# --- fuzzing ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (100, 50), "red").save(folder / "a.png")
    return folder


_LINES = [
    good(),
    good(id="x", kind="box", frame="thousandths", difficulty=0.5, target="<answer>{box:1,2,3,4}</answer>"),
    {"images": ["a.png", "a.png"], "question": "Same?", "answer": "yes"},
    {"image": "a.png", "question": "All?", "answer": [{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]},
    {"question": "2 + 2?", "answer": 4},
    vlm_r1("<image>Where?", "[10, 20, 50, 40]"),
    vlm_r1("<image>\nas in <image>?", '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "c"}]\n```', ["a.png"] * 2,
           accu_reward_method="odLength"),
]  # fmt: skip
_STRANGE: list[Any] = [
    None, True, "", "\ud800", "a\0b", "../" * 50, "x" * 5000, "<image>", 0, -1, 10**400, 1e308, 5e-324, [], {}, [[]],
    [[[]]], {"bbox_2d": None}, [1, 2, 3], [1, 2, 3, "4"], [3, 3, 3, 3], "NaN", "None", "[1,2,3,4]", "```json", "\u202e",
    "/dev/zero", "/", ".", "C:\\a.png", [None], ["a.png", 3], [{"from": "human"}], [{"from": [], "value": {}}] * 2,
]  # fmt: skip
_BYTES = [
    b"\xff",
    b"\0",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\u",
    b"\n",
    b"\r",
    b",",
    b"1e999",
    b"NaN",
    b"\xef\xbb\xbf",
]


def mutate_json(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """The value with one place, somewhere, replaced, removed, doubled or renamed."""
    if rng.random() < 0.3 or not isinstance(value, dict | list) or not value or depth > 6:
        return rng.choice(_STRANGE)
    if isinstance(value, list):
        out = list(value)
        i = rng.randrange(len(out))
        out[i] = mutate_json(out[i], rng, depth + 1)
        return out if rng.random() < 0.8 else out[:i] + out[i + 1 :] if rng.random() < 0.5 else out + out
    out = dict(value)
    key = rng.choice(list(out))
    kind = rng.random()
    if kind < 0.6:
        out[key] = mutate_json(out[key], rng, depth + 1)
    elif kind < 0.8:
        del out[key]
    else:
        out[rng.choice(["image", "images", "kind", "frame", "id", "x", "box_image", "target"])] = rng.choice(
            _STRANGE
        )
    return out


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four places changed, inserted, removed, repeated or the end cut off."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + rng.choice(_BYTES) + data[at:]
        elif kind == 2:
            data = data[:at] + data[at + rng.randint(1, 40) :]
        elif kind == 3:
            data = data[:at]
        else:
            data = data[:at] + data[at : at + 30] * rng.randint(2, 200) + data[at:]
    return data


WORST = {"seconds": 0.0}


def timed(began: float) -> None:
    """A hang is a second of this thread's CPU: the wall clock belongs to whatever else runs on the machine."""
    spent = time.process_time() - began
    WORST["seconds"] = max(WORST["seconds"], spent)
    assert spent < 1.0, f"{spent:.2f} s"


@FUZZING
@given(seed=st.integers(0, 2**64), whole=st.booleans())
def test_fuzz_lines(fuzz_folder: Path, seed: int, whole: bool) -> None:
    """Changed JSON and changed bytes: a problem or a finding that names file and line, nothing else."""
    rng = random.Random(seed)
    lines = [rng.choice(_LINES) for _ in range(3)]
    if whole:
        data = "\n".join(json.dumps(mutate_json(line, rng)) for line in lines).encode(
            "utf-8", "surrogatepass"
        )
    else:
        data = mutate_bytes("\n".join(json.dumps(line) for line in lines).encode(), rng)
    path = fuzz_folder / "my.jsonl"
    path.write_bytes(data)
    began = time.process_time()
    rows, bad = read_data(path)
    for finding in bad:
        assert finding.line is not None or not rows
        assert str(finding).startswith(f"{path}, line {finding.line}: " if finding.line else f"{path}: ")
        assert finding.problem
        assert finding.fix
        str(finding).encode("utf-8", "replace")
    if bad:
        with pytest.raises(UserError, match=r"my.jsonl"):
            open_data(path)
    else:
        for problem in open_data(path).take(0, len(rows))[0]:
            assert [image.size for image in problem.images] == list(picture_sizes(problem))
            json.dumps(problem.answer, allow_nan=False)
            problem.question.encode()
    timed(began)


def says_what_and_how(error: BadLine | BadPicture) -> None:
    assert error.problem
    assert error.fix


def _samples() -> list[bytes]:
    """One small picture in every format that a mutation can start from."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = []
    for options in (
        {"format": "PNG", "exif": exif}, {"format": "JPEG", "exif": exif}, {"format": "JPEG", "progressive": True},
        {"format": "WEBP", "exif": exif}, {"format": "GIF"}, {"format": "BMP"}, {"format": "TIFF"},
        {"format": "TIFF", "compression": "tiff_lzw"}, {"format": "PPM"}, {"format": "JPEG2000"},
    ):  # fmt: skip
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1"):
            stream = io.BytesIO()
            try:
                pixels.convert(mode).save(stream, **options)
            except (OSError, ValueError):
                continue  # this format has no such mode
            made.append(stream.getvalue())
    return made


SAMPLES = _samples()


@FUZZING
@given(seed=st.integers(0, 2**64))
def test_fuzz_pictures(fuzz_folder: Path, seed: int) -> None:
    """Changed pictures: pixels or BadPicture; a header that is accepted gives the size that decoding gives."""
    rng = random.Random(seed)
    path = fuzz_folder / "p.bin"
    path.write_bytes(mutate_bytes(rng.choice(SAMPLES), rng))
    ref = FileRef(path=str(path))
    began = time.process_time()
    try:
        size = read_size(ref, 4)
        verified = verify(ref, 4)
        picture = decode(ref, 4)
    except BadPicture as error:
        says_what_and_how(error)
    else:
        assert picture.mode == "RGB"
        assert picture.size == size == verified
    timed(began)


@FUZZING
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    ),
    key=st.sampled_from(
        ["image", "images", "question", "answer", "kind", "frame", "target", "id", "conversations"]
    ),
    lenient=st.booleans(),
)
def test_fuzz_values(value: Any, key: str, lenient: bool) -> None:
    """Any JSON value at any key: a draft or BadLine."""
    for record in (value, good(**{key: value})):
        try:
            read_record(record, lenient=lenient)
        except BadLine as error:
            says_what_and_how(error)


# --- memory -----------------------------------------------------------------------------------------------


def resident_megabytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def make_large(folder: Path, pictures: int, lines: int) -> Path:
    """`lines` problems over `pictures` 1-megapixel JPEGs."""
    rng = np.random.default_rng(0)
    for i in range(pictures):
        coarse = Image.fromarray(rng.integers(0, 256, (25, 40, 3), dtype=np.uint8))
        coarse.resize((1250, 800), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=85)
    records = (
        {"id": str(i), "images": [f"{i % pictures}.jpg"], "question": "Which?", "answer": "ABCD"[i % 4]}
        for i in range(lines)
    )
    path = folder / "large.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def memory_over(path: Path, marks: tuple[int, ...], batch: int = 16) -> list[float]:
    """RSS in MB after taking and decoding so many problems, in batches as training does."""
    task = open_data(path, seed=1, verify=False)
    found = []
    for cursor in range(0, marks[-1], batch):
        for problem in task.take(cursor, batch)[0]:
            assert problem.images[0].getpixel((0, 0)) is not None
        if cursor + batch in marks:
            found.append(resident_megabytes())
    return found


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cache at 8 pictures, 480 decoded 1-megapixel pictures (4 MB each) take no more than 160 did."""
    CACHE.clear()
    monkeypatch.setattr(CACHE, "limit", 32_000_000)
    early, late = memory_over(make_large(tmp_path, 24, 480), (160, 480))
    CACHE.clear()
    assert late <= 1.05 * early, (early, late)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_flat_over_20_000_problems(tmp_path: Path) -> None:
    CACHE.clear()
    found = memory_over(make_large(tmp_path, 400, 20_000), (1_008, 10_000, 20_000))
    print(f"RSS in MB after 1,008 / 10,000 / 20,000 problems: {found}")
    CACHE.clear()
    assert max(found) <= 1.05 * min(found), found
