"""The recipes for Qwen2.5-VL-3B, each run for two steps on a miniature behind the published model's processor settings.

Only sizes are overridden (model, steps, prompts, group, reply length, evaluation, float type): that all else went into
the run as it is written in the recipe is compared key by key. Not shown here: that they learn anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import GRID, MEAN, PIXELS, SPECIAL, STD, SYSTEM, WINDOW, miniature, save_miniature
from PIL import Image, ImageDraw
from transformers import Qwen2VLImageProcessor

from fovea.algorithms import algorithm_of
from fovea.config import RECIPES, Run, load_run, recipe_names
from fovea.rewards import REWARDS
from fovea.runlog import reproduce_command, run_folder
from fovea.tasks import open_data
from fovea.training import train
from fovea.training.problems import instruction_of

ROOT = Path(__file__).parent.parent
MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
NAMES = [name for name in recipe_names() if name.startswith("vlm_r1/")]
PICTURES = ((640, 480), (480, 640), (500, 375), (333, 500), (612, 612))
"""Sizes as they are in COCO."""
FREE = {
    "model", "data", "images", "run_dir", "steps", "prompts", "group", "dtype", "device", "threads", "sampling",
    "evaluation",
}  # fmt: skip
"""Keys that a dry run may change; of `sampling` and `evaluation` the sizes in them."""
SMALL = [
    "steps=2", "prompts=2", "group=2", "sampling.max_new_tokens=8", "dtype=float32", "device=cpu", "threads=1",
    "evaluation.n=2", "evaluation.during=2",
]  # fmt: skip
ASKED = "Please provide the bounding box coordinates of the region this sentence describes: {}."
DETECT = (
    "Please carefully check the image and detect the following objects: {}. Output each detected target's bbox "
    "coordinates in JSON format. If there are no such targets in the image, simply respond with None."
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, pictures of real sizes and one VLM-R1 file of each kind."""
    folder = tmp_path_factory.mktemp("vlm_r1")
    save_miniature(folder / "model")
    (folder / "coco").mkdir()
    boxes = [draw(folder / "coco" / f"{i}.jpg", size, i) for i, size in enumerate(PICTURES)]
    for kind, make in LINES.items():
        lines = [line(i, *make(i, boxes[i % len(boxes)])) for i in range(20)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    return folder


def draw(path: Path, size: tuple[int, int], seed: int) -> list[int]:
    """A photograph-like picture with one filled box; the box, in its pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    box = [size[0] // 5, size[1] // 4, size[0] * 3 // 5, size[1] * 2 // 3]
    ImageDraw.Draw(image).rectangle(box, fill="red")
    image.save(path, quality=90)
    return box


def line(i: int, asked: str, answer: Any, method: str | None = None) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>{asked}"}, {"from": "gpt", "value": answer}]
    made = {"id": i, "image": f"{i % len(PICTURES)}.jpg", "conversations": turns}
    return made | ({"accu_reward_method": method} if method else {})


def rec(i: int, box: list[int]) -> tuple[str, Any]:
    return ASKED.format(f"the red block number {i}"), box


def ovd(i: int, box: list[int]) -> tuple[str, Any, str]:
    there = json.dumps([{"bbox_2d": box, "label": "red block"}])
    return DETECT.format("red block, giraffe"), "None" if i % 5 == 4 else f"```json\n{there}\n```", "odLength"


def vqa(i: int, box: list[int]) -> tuple[str, Any, str]:
    return [
        ("Is there a red block?", "yes", "yes_no"),
        ("How many red blocks are there?", "1", "default"),
        ("Which colour has the block? A. red B. blue", "A", "mcq"),
        ("What is wrong with the page?", "Operation No Response", "all_match"),
    ][i % 4]  # type: ignore[return-value]


def mathematics(i: int, box: list[int]) -> tuple[str, Any, str]:
    return f"Which share of the picture is x in 2x = {i}?", f"\\frac{{{i}}}{{2}}", "math"


LINES: dict[str, Any] = {"rec": rec, "ovd": ovd, "vqa": vqa, "math": mathematics}


def dry_run(name: str, shared: Path, run_dir: Path) -> tuple[Run, dict[str, Any]]:
    """(the recipe as written, what the run said at its end)."""
    kind = name.removeprefix("vlm_r1/").partition("_")[0]
    paths = [f"model={shared / 'model'}", f"data={shared / kind}.jsonl", f"images={shared / 'coco'}"]
    return load_run(name), train(load_run(name, [*paths, f"run_dir={run_dir}", *SMALL]))


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_as_it_is_written(name: str, shared: Path, tmp_path: Path) -> None:
    missing = [reward for reward in load_run(name).rewards if reward not in REWARDS]
    assert not missing, f"{name} names rewards that do not exist: {missing}"
    written, result = dry_run(name, shared, tmp_path / "run")
    did = json.loads((tmp_path / "run" / "run.json").read_text())
    ours, theirs = (dict(flat(values)) for values in (did["run"], written.model_dump(mode="json")))
    changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert {key.partition(".")[0] for key in changed} <= FREE
    assert not changed & {"sampling.temperature", "evaluation.every", "evaluation.split"}
    assert result["steps"] == 2
    steps = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(step["grad_norm"]) for step in steps)
    if written.method == "rl":
        assert ("kl" in steps[0]) == (algorithm_of(written).beta > 0)
        rolled = (tmp_path / "run" / "rollouts" / "step_000000.jsonl").read_text().splitlines()
        shown = json.loads(rolled[0])
        assert set(shown["parts"]) == {*written.rewards, *(set(written.audits) & set(REWARDS))}
        assert shown["frame"] == "resized"
    saved = tmp_path / "run" / "checkpoints" / "step_2" / "model"
    assert (saved / "adapter_config.json").is_file() == (written.finetune.mode == "lora")


def test_there_is_a_recipe_for_each_task_and_baseline() -> None:
    assert {load_run(name).model for name in NAMES} == {MODEL}
    assert {name.partition("/")[2] for name in NAMES} == {
        "rec", "rec_lora", "rec_sft", "ovd", "ovd_lora", "vqa", "math",
    }  # fmt: skip
    for name in NAMES:
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# "), "the first comment is what `fovea recipes` says"
        assert "ownload" in text
        assert "several nodes is not there yet" in text


def blocks(language: str) -> list[str]:
    """Code of docs/vlm-r1.md."""
    page = (ROOT / "docs" / "vlm-r1.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_the_page_s_training_commands_are_runs() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    found = [
        shlex.split(line) for line in lines if line.startswith(("fovea train vlm_r1/", "fovea sft vlm_r1/"))
    ]
    assert {words[2] for words in found} == set(NAMES)
    for words in found:
        run = load_run(words[2], words[3:])
        assert run.download
        assert run.rewards == load_run(words[2]).rewards
        assert (run.method == "sft") == (words[1] == "sft")


def test_the_page_s_script_reads_ovdeval_s_form(tmp_path: Path) -> None:
    """Two pictures, as the data set describes its files; the names asked give away nothing by their order."""
    Image.new("RGB", (340, 254)).save(tmp_path / "a.jpg")
    Image.new("RGB", (100, 100)).save(tmp_path / "b.jpg")
    categories = [{"id": 0, "name": "screen on"}, {"id": 1, "name": "a screen off"}]
    pictures = [
        {
            "file_name": "a.jpg",
            "id": 0,
            "width": 340,
            "height": 254,
            "text": ["screen on"],
            "neg_text": ["a screen off"],
        },
        {"file_name": "b.jpg", "id": 1, "width": 100, "height": 100, "text": [], "neg_text": ["screen on"]},
    ]
    boxes = [
        {"id": 0, "bbox": [111, 117, 99, 75], "category_id": 0, "image_id": 0, "iscrowd": 0, "area": 7425}
    ]
    file = tmp_path / "screens.json"
    file.write_text(json.dumps({"categories": categories, "annotations": boxes, "images": pictures}))
    (script,) = blocks("python")
    (tmp_path / "ovdeval.py").write_text(script)
    subprocess.run([sys.executable, "ovdeval.py", "screens.json", "out.jsonl"], cwd=tmp_path, check=True)
    first, second = open_data(str(tmp_path / "out.jsonl"), None, shuffle=False).take(0, 2)[0]
    assert first.answer == [{"bbox_2d": [111, 117, 210, 192], "label": "screen on"}]
    assert "objects: a screen off, screen on. Output" in first.question
    assert (second.kind, second.answer, second.meta["absent"]) == ("objects", [], ["screen on"])


def test_an_installed_package_has_them(tmp_path: Path) -> None:
    """A wheel is built from what would be packed and unpacked elsewhere, which is what installing one does."""
    version = importlib.metadata.version("setuptools")
    if int(version.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {version} is too old to build the package (it needs 77)")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)
    build = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    elsewhere = tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(elsewhere)
    ask = (
        "import fovea.config as c; names = c.recipe_names(); [c.load_run(name) for name in names]; "
        "print(c.RECIPES); print(*names)"
    )
    there = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(elsewhere)},
    )
    where, names = there.stdout.splitlines()
    assert Path(where).is_relative_to(elsewhere)
    assert names.split() == recipe_names()


def test_the_settings_are_the_paper_s() -> None:
    """16 prompts x 8, 500 steps, and what differs between the recipes."""
    for name in NAMES:
        run = load_run(name)
        assert (run.dtype, run.steps) == ("bfloat16", 500)
        assert (run.prompts, run.min_pixels, run.max_pixels) == (16, 3136, 12845056)
        assert run.gradient_checkpointing
        assert (run.optimizer.name, run.optimizer.weight_decay) == ("adamw", 0.0)
        assert (run.optimizer.max_grad_norm, run.optimizer.schedule) == (1.0, "linear")
        assert set(run.rewards.values()) == {1.0}, "the original sums its rewards"
        lora = name.endswith("_lora")
        assert run.finetune.mode == ("lora" if lora else "full")
        assert run.optimizer.learning_rate == (1e-5 if lora else 1e-6)
        assert run.freeze == (("vision", "projector") if lora else ())
        if lora:
            assert (run.finetune.rank, run.finetune.alpha) == (64, 128)
        if run.method == "rl":
            algorithm = algorithm_of(run)
            assert (run.group, run.sampling.temperature, run.sampling.max_new_tokens) == (8, 1.0, 2048)
            assert (algorithm.beta, algorithm.kl) == (0.0 if "/ovd" in name else 0.04, "k3")
            assert (algorithm.clip_low, algorithm.clip_high, algorithm.std_eps) == (0.2, 0.2, 1e-4)
            assert (algorithm.denominator, run.algorithm.updates_per_rollout) == ("sequence_mean", 1)


def test_a_recipe_for_files_keeps_its_rewards_for_another_file() -> None:
    run = load_run("vlm_r1/rec", ["data=mine.jsonl", "images=pictures"])
    assert run.rewards == {"iou": 1.0, "format_boxes": 1.0}
    assert str(run_folder(run)) == "runs/vlm_r1-rec-seed0"
    command = reproduce_command(run)
    assert command == "fovea train vlm_r1/rec data=mine.jsonl images=pictures"
    bare = load_run("vlm_r1/rec", ["data=mine.jsonl", "rewards={}"])
    assert load_run("vlm_r1/rec", command_words(bare)) == bare
    other = load_run("vlm_r1/rec", ["data=null", "task=digits/count"])
    assert other.rewards == {}


def command_words(run: Run) -> list[str]:
    return shlex.split(reproduce_command(run))[3:]


def test_the_miniature_has_the_published_processor_s_settings() -> None:
    policy = miniature()
    images = policy.processor.image_processor
    assert {name: getattr(images, name) for name in GRID} == GRID
    assert dict(images.size) == PIXELS
    assert (tuple(images.image_mean), tuple(images.image_std)) == (MEAN, STD)
    theirs = Qwen2VLImageProcessor()  # transformers' defaults are that model's, the largest size apart
    for name in (
        "patch_size",
        "merge_size",
        "temporal_patch_size",
        "resample",
        "do_convert_rgb",
        "rescale_factor",
    ):
        assert getattr(images, name) == getattr(theirs, name)
    assert (tuple(theirs.image_mean), tuple(theirs.image_std)) == (MEAN, STD)
    assert policy.model.config.vision_config.window_size == WINDOW
    assert policy.model.lm_head.weight is policy.model.get_input_embeddings().weight
    assert policy.family.frame == "resized"
    known = policy.processor.tokenizer.get_added_vocab()
    assert set(SPECIAL) <= set(known)
    assert [policy.decode([i]) for i in policy.eos_ids] == ["", ""]


def test_a_prompt_is_written_as_the_published_template_writes_it(shared: Path) -> None:
    """A 640 x 480 picture becomes 644 x 476: 46 x 34 patches, 391 tokens."""
    run = load_run("vlm_r1/rec")
    task = open_data(str(shared / "rec.jsonl"), str(shared / "coco"), shuffle=False)
    first = task.take(0, 1)[0][0]
    policy = miniature()
    instruction = instruction_of(run, "box")
    prompt = policy.prompt(first, instruction)
    assert prompt.resized == ((644, 476),)
    assert prompt.picture_tokens == (391,)
    assert prompt.problem.frame == "resized"
    text = policy.processor.tokenizer.decode(prompt.token_ids)
    picture = "<|vision_start|>" + "<|image_pad|>" * 391 + "<|vision_end|>"
    assert text.startswith(f"{SYSTEM}<|im_start|>user\n{picture}{first.question}")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "First output the thinking process in <think> </think> tags" in text
