"""Boxes from a data set's frame to pixels, to the frame the family speaks, to text, and back, for every family.

The processor alone decides a prompt's frame, so no model is needed: what it really did is read off its own output (the
grid of patches, the tiles), not off what the family file says.

The bound. A written number is the nearest multiple of the frame's step: 1 for pixels, resized pixels and thousandths,
0.001 for parts. So it is at most half a step off, and a step is (picture's side) / (frame's side) pixels long: a
coordinate comes back within step / 2 * side / frame's side pixels. Floats add less than 1e-9 of the side.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from conformance.subject import plain_prompt, subject
from conftest import picture
from PIL import Image

from fovea.boxes import convert, place, scale, write
from fovea.models.adapter import speak
from fovea.models.construct import build_processor, build_tokenizer
from fovea.models.families import FAMILIES
from fovea.models.resolution import cap_grid, one_size
from fovea.rewards import answers
from fovea.rewards.functions import REWARDS, box_iou
from fovea.tasks import open_data
from fovea.types import BoxFrame, Problem

SIZES = ((64, 64), (640, 480), (333, 500), (1280, 720), (31, 97))
FRAMES: tuple[BoxFrame, ...] = get_args(BoxFrame)
SMALL = 128 * 128
"""A cap that every family can keep: larger than a tile, smaller than most of the pictures."""
CAPS: tuple[dict[str, int | None], ...] = (
    {"min_pixels": None, "max_pixels": None},
    {"min_pixels": None, "max_pixels": SMALL},
    {"min_pixels": 200 * 200, "max_pixels": None},
)
DECLARED = (644, 476)
"""What a data set may have resized a 640 x 480 picture to before it was annotated."""


@functools.cache
def processor_of(family: str, min_pixels: int | None, max_pixels: int | None) -> Any:
    """The family's own processor with caps as a run puts them in."""
    made = build_processor(family, build_tokenizer(family=family))
    tower = SimpleNamespace(image_size=56)
    config = SimpleNamespace(model_type=family, vision_config=tower, image_grid_pinpoints=None)
    FAMILIES[family].cap(config, made, min_pixels, max_pixels)
    return made


def caps_of(family: str) -> list[dict[str, int | None]]:
    """Families of one size know no caps, those with tiles no smallest size."""
    cap = FAMILIES[family].cap
    return [dict(c) for c in CAPS[: 1 if cap is one_size else 3 if cap is cap_grid else 2]]


CASES = [
    pytest.param(
        family, size, caps, id=f"{family}-{size[0]}x{size[1]}-{caps['min_pixels']}-{caps['max_pixels']}"
    )
    for family in FAMILIES
    for size in SIZES
    for caps in caps_of(family)
]


def boxes_in(size: tuple[int, int]) -> list[tuple[float, ...]]:
    """The whole picture, its corners and edges, and random boxes of whole and of broken pixels."""
    width, height = size
    draw = np.random.default_rng(width * 10_007 + height)
    found: list[tuple[float, ...]] = [
        (0, 0, width, height),
        (0, 0, width / 3, height / 7),
        (width - 9, height - 11, width, height),
    ]
    for whole in (True, False) * 4:
        xs, ys = (np.sort(draw.uniform(0, side, 2)) for side in size)
        box = [float(xs[0]), float(ys[0]), float(xs[1]), float(ys[1])]
        found.append(tuple(float(round(v)) for v in box) if whole else tuple(box))
    return found


def problem_of(box: Sequence[float], image: Image.Image, frame: BoxFrame = "pixels") -> Problem:
    return Problem(
        id="one",
        task="test",
        images=(image,),
        question="Where?",
        answer=tuple(box),
        kind="box",
        frame=frame,
        target=f"<answer>{place(box)}</answer>",
    )


def bounds(frame: BoxFrame, size: tuple[int, int], resized: tuple[int, int]) -> tuple[float, float]:
    """How far a written x and y may be off, in pixels."""
    step = 0.001 if frame == "unit" else 1.0
    x, y = (step / 2 * side / whole + 1e-9 * side for side, whole in zip(size, scale(frame, size, resized)))
    return x, y


def really(family: str, processor: Any, image: Image.Image) -> dict[str, Any]:
    """What the image processor itself says of a picture: its grid in pixels, or its tiles."""
    images = processor.image_processor
    out = images(images=[[image]] if family in ("idefics3", "smolvlm") else [image], return_tensors="pt")
    if "image_grid_thw" in out:
        _, rows, columns = out["image_grid_thw"][0].tolist()
        return {"resized": (columns * images.patch_size, rows * images.patch_size)}
    shape = tuple(out["pixel_values"].shape)
    if family == "gemma3":
        return {"resized": (shape[-1], shape[-2])}
    return {"resized": image.size, "tiles": shape[0] if len(shape) == 4 else shape[1]}


@pytest.mark.parametrize(("family", "size", "caps"), CASES)
def test_the_resized_picture_is_the_one_the_processor_made(
    family: str, size: tuple[int, int], caps: dict[str, int | None]
) -> None:
    processor = processor_of(family, **caps)
    image = picture(*size, 0)
    pictures = FAMILIES[family].render(processor, [image], "Where?").pictures
    did = really(family, processor, image)
    assert pictures.resized == (did["resized"],)
    if "tiles" in did:
        assert pictures.rows["pixel_values"] == (did["tiles"],)
    if caps["max_pixels"] is not None and FAMILIES[family].cap is cap_grid:
        assert did["resized"][0] * did["resized"][1] <= SMALL


@pytest.mark.parametrize(("family", "size", "caps"), CASES)
def test_a_box_survives_being_written_by_the_model(
    family: str, size: tuple[int, int], caps: dict[str, int | None]
) -> None:
    """From each frame that a problem may be in: to the family's, to text, read again, back to pixels."""
    processor, native = processor_of(family, **caps), FAMILIES[family].frame
    image = picture(*size, 0)
    (resized,) = FAMILIES[family].render(processor, [image], "Where?").pictures.resized
    allowed = bounds(native, size, resized)
    for box, declared in itertools.product(boxes_in(size), FRAMES):
        asked = problem_of(convert(box, "pixels", declared, size, resized), image, declared)
        spoken = speak(asked, native, (resized,))
        assert spoken.frame == native
        exact = convert(box, "pixels", native, size, resized)
        assert np.allclose(spoken.answer, exact, rtol=1e-12, atol=1e-9)
        text = f"<answer>{write(spoken.answer, native)}</answer>"
        said = answers.read_box(answers.answer_of(text))
        assert said is not None
        back = convert(said, native, "pixels", size, resized)
        assert all(abs(b - t) <= allowed[i % 2] for i, (b, t) in enumerate(zip(back, box)))
        # the teacher's reply is the same text, but for the six digits that a place keeps
        taught = answers.read_box(answers.answer_of(spoken.target or ""))
        assert taught is not None
        assert np.allclose(taught, said, atol=1.001 if native != "unit" else 0.001001)


@pytest.mark.parametrize(("family", "size", "caps"), CASES)
def test_the_overlap_is_that_of_pixels(
    family: str, size: tuple[int, int], caps: dict[str, int | None]
) -> None:
    """A frame stretches both boxes alike, so IoU is the same number in all of them; and the reward, which sees text in
    the model's frame, is the IoU of what is written."""
    processor, native = processor_of(family, **caps), FAMILIES[family].frame
    image = picture(*size, 0)
    (resized,) = FAMILIES[family].render(processor, [image], "Where?").pictures.resized
    boxes = boxes_in(size)
    for truth, guess in itertools.pairwise(boxes):
        pixels = box_iou(truth, guess)  # type: ignore[arg-type]
        spoken = speak(problem_of(truth, image), native, (resized,))
        there = convert(guess, "pixels", native, size, resized)
        assert box_iou(spoken.answer, there) == pytest.approx(pixels, abs=1e-9)
        written = write(there, native)
        back = convert(json.loads(written), native, "pixels", size, resized)
        if truth[0] < truth[2] and truth[1] < truth[3]:  # an empty truth is refused
            reward = REWARDS["iou"](f"<answer>{written}</answer>", spoken)
            assert reward == pytest.approx(box_iou(truth, back), abs=1e-9)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_holds_the_box_in_the_frame_of_the_saved_processor(family: str) -> None:
    """The whole way that training goes, beside what the processor loaded again from the model's folder makes of it."""
    one = subject(family)
    size, box = (333, 500), (40.0, 60.0, 300.0, 410.0)
    asked = problem_of(box, picture(*size, 3))
    prompt, plain = one.policy.prompt(asked), plain_prompt(one, asked)
    (resized,) = prompt.resized
    if "image_grid_thw" in plain:
        _, rows, columns = plain["image_grid_thw"][0].tolist()
        patch = one.processor.image_processor.patch_size
        assert resized == (columns * patch, rows * patch)
    assert resized == really(family, one.processor, asked.images[0])["resized"]
    assert prompt.problem.frame == FAMILIES[family].frame
    exact = convert(box, "pixels", prompt.problem.frame, size, resized)
    assert np.allclose(prompt.problem.answer, exact, rtol=1e-12)
    assert prompt.problem.target == f"<answer>{write(exact, prompt.problem.frame)}</answer>"


def test_labelled_boxes_are_converted_like_single_ones() -> None:
    image, native = picture(640, 480, 0), FAMILIES["qwen2_5_vl"].frame
    things = [{"bbox_2d": box, "label": str(i)} for i, box in enumerate(boxes_in((640, 480)))]
    asked = replace(problem_of((0, 0, 1, 1), image), kind="objects", answer=things, target=None)
    spoken = speak(asked, native, (DECLARED,))
    for thing, before in zip(spoken.answer, things):
        assert thing["label"] == before["label"]
        assert thing["bbox_2d"] == convert(before["bbox_2d"], "pixels", native, (640, 480), DECLARED)


def test_the_picture_that_a_box_belongs_to_gives_its_frame() -> None:
    """Two pictures of different sizes: the box of the second is stretched by the second's grid."""
    processor = processor_of("qwen2_5_vl", None, None)
    images = (picture(640, 480, 0), picture(333, 500, 1))
    resized = FAMILIES["qwen2_5_vl"].render(processor, images, "Where?").pictures.resized
    box = (30.0, 50.0, 300.0, 450.0)
    asked = replace(problem_of(box, images[0]), images=images, meta={"box_image": 1})
    assert speak(asked, "resized", resized).answer == convert(
        box, "pixels", "resized", (333, 500), resized[1]
    )


@pytest.mark.parametrize("declared", FRAMES)
def test_a_file_s_frame_becomes_pixels(declared: BoxFrame, tmp_path: Path) -> None:
    """All four frames that a data set may declare, through the reader of files; "resized" names its size."""
    size = (640, 480)
    picture(*size, 0).save(tmp_path / "one.png")
    boxes = boxes_in(size)
    with (tmp_path / "my.jsonl").open("w") as file:
        for box in boxes:
            answer = list(convert(box, "pixels", declared, size, DECLARED))
            line = {"image": "one.png", "question": "Where?", "answer": answer, "frame": declared}
            line |= {"resized": list(DECLARED)} if declared == "resized" else {}
            file.write(json.dumps(line) + "\n")
    task = open_data(str(tmp_path / "my.jsonl"), None, shuffle=False)
    for problem, box in zip(task.take(0, len(boxes))[0], boxes):
        assert problem.frame == "pixels"
        assert np.allclose(problem.answer, box, rtol=1e-9, atol=1e-6)
