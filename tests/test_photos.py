"""Photographs: licences, splits, and answers recomputed from the pixels."""

from __future__ import annotations

import colorsys
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageStat

from fovea.tasks import photographs, photos
from fovea.tasks.scenes import COLORS, DATA, SPLITS, generator

FREE = {"public domain", "CC0-1.0", "CC-BY-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0"}
LOOK = re.compile(r"\{look:(\d+),([-\d.,]+)\}")


def ask(name, i, split="train"):
    return photos.QUESTIONS[f"photos/{name}"][0](generator(name, i), split)


def quarters(picture):
    """Top left, top right, bottom left, bottom right."""
    w, h = picture.width // 2, picture.height // 2
    return [picture.crop((x, y, x + w, y + h)) for y in (0, h) for x in (0, w)]


def test_every_photograph_has_an_author_and_a_free_licence():
    table = (DATA / "photos.LICENSE").read_text(encoding="utf-8").partition("name | file | package")[2]
    rows = [line.split(" | ") for line in table.splitlines()[1:]]
    with zipfile.ZipFile(DATA / "photos.zip") as archive:
        assert sorted(f"{row[0]}.webp" for row in rows) == sorted(archive.namelist())
    assert all(len(row) in (5, 6) and all(row) and row[4] in FREE for row in rows)
    assert (DATA / "photos.zip").stat().st_size < 1_500_000


def test_a_photograph_is_in_one_split():
    by_split = {split: set(photographs.names(split)) for split in SPLITS}
    together = [name for names in by_split.values() for name in names]
    assert len(together) == len(set(together)) == 60
    assert {split: len(names) for split, names in by_split.items()} == {
        "train": 42,
        "validation": 6,
        "test": 12,
    }
    assert all(max(photographs.load(name).size) == 224 for name in together)


@pytest.mark.parametrize("split", SPLITS)
def test_questions_show_only_photographs_of_their_split(split, monkeypatch):
    used, load = set(), photographs.load
    monkeypatch.setattr(photographs, "load", lambda name: used.add(name) or load(name))
    for name in photos.QUESTIONS:
        for i in range(3):
            photos.QUESTIONS[name][0](generator(name, i), split)
    for i in range(5):
        photos.scene(generator("scene", i), split)
    assert used <= set(photographs.names(split))


@pytest.mark.parametrize("name", list(photos.QUESTIONS))
def test_the_same_generator_draws_the_same_and_marks_are_inside(name):
    for i in range(5):
        one, two = (photos.QUESTIONS[name][0](generator(name, i), "train") for _ in range(2))
        assert (one.question, one.answer, one.said, one.thought) == (
            two.question,
            two.answer,
            two.said,
            two.thought,
        )
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in two.images]
        for image, mark in LOOK.findall(one.said + one.thought):
            x1, y1, x2, y2 = map(float, mark.split(","))
            assert 0 <= x1 < x2 <= one.images[int(image)].width
            assert 0 <= y1 < y2 <= one.images[int(image)].height
        assert 0 <= one.difficulty <= 1
        assert LOOK.sub("", one.thought)
        if photos.QUESTIONS[name][1] != "box":
            assert LOOK.sub("", one.said) == str(one.answer)


def test_the_main_color_covers_half_of_the_pixels():
    """Counted with the standard library's HSV, between the middles of the gaps between the named hues."""
    ends = {"red": (346, 14), "orange": (14, 43), "yellow": (43, 72), "green": (72, 162), "cyan": (162, 200),
            "blue": (200, 257), "purple": (257, 328)}  # fmt: skip
    for i in range(24):
        asked = ask("color", i)
        pixels = np.asarray(asked.images[0].resize((16, 16), Image.Resampling.NEAREST)).reshape(-1, 3) / 255
        hits = 0
        for hue, saturation, value in (colorsys.rgb_to_hsv(*pixel) for pixel in pixels.tolist()):
            if asked.answer == "white":
                hits += saturation < 0.15 and value > 0.8
            else:
                low, high = ends[asked.answer]
                hits += saturation > 0.3 and (hue * 360 - low) % 360 < (high - low) % 360
        assert hits / len(pixels) > 0.45, (i, asked.answer, hits / len(pixels))


def test_the_brightest_quarter_is_brightest():
    for i in range(20):
        asked = ask("brightest", i)
        means = [ImageStat.Stat(quarter.convert("L")).mean[0] for quarter in quarters(asked.images[0])]
        assert "ABCD"[int(np.argmax(means))] == asked.answer
        assert sorted(means)[-1] - sorted(means)[-2] >= 15


def test_the_quadrant_is_the_one_that_looks_like_it():
    for i in range(20):
        asked = ask("quadrant", i)
        small = [np.asarray(p.resize((8, 8), Image.Resampling.BOX), float) for p in quarters(asked.images[0])]
        shown = np.asarray(asked.images[1].resize((8, 8), Image.Resampling.BOX), float)
        assert "ABCD"[int(np.argmin([np.abs(part - shown).mean() for part in small]))] == asked.answer


def test_turning_back_by_the_answer_gives_the_upright_crop(monkeypatch):
    shown, draw = [], photos.render
    monkeypatch.setattr(photos, "render", lambda part, size: shown.append(draw(part, size)) or shown[-1])
    for i in range(15):
        asked = ask("rotation", i)
        upright = np.asarray(shown[-1].convert("L"), float)
        alike = []
        for turns in range(4):
            back = np.rot90(np.asarray(asked.images[0].convert("L"), float), turns)
            alike.append(
                max(np.corrcoef(back.ravel(), up.ravel())[0, 1] for up in (upright, upright[:, ::-1]))
            )
        assert "ABCD"[int(np.argmax(alike))] == asked.answer
        assert max(alike) > 0.97


def test_same_means_the_same_photograph(monkeypatch):
    parts, draw = [], photos.render
    by_picture = {}

    def render(part, size):
        picture = draw(part, size)
        by_picture[id(picture)] = part.name
        parts.append(picture)  # keeps its id its own
        return picture

    shown, change = [], photos.jitter
    monkeypatch.setattr(photos, "render", render)
    monkeypatch.setattr(
        photos, "jitter", lambda rng, p, s=1.0: shown.append(by_picture[id(p)]) or change(rng, p, s)
    )
    for i in range(20):
        asked = ask("same", i)
        assert asked.answer == ("yes" if shown[-1] == shown[-2] else "no")


def test_blurred_and_grey_pictures_are():
    for i in range(15):
        asked = ask("blurred", i)
        steps = [np.abs(np.diff(np.asarray(p.convert("L"), float), axis=1)).mean() for p in asked.images]
        assert asked.answer == photos.ORDINALS[int(np.argmin(steps))]
        asked = ask("grey", i)
        spread = [np.ptp(np.asarray(p, int), axis=2).mean() for p in asked.images]
        assert [photos.ORDINALS[j] for j, value in enumerate(spread) if value == 0] == [asked.answer]
        assert sorted(spread)[1] > 25


@pytest.mark.parametrize("name", ["find", "count"])
def test_pasted_shapes_have_their_colors_in_their_boxes(name):
    """At least a tenth of the box is ink, and no two boxes touch."""
    for i in range(20):
        asked = ask(name, i, "test")
        pixels = np.asarray(asked.images[0], int)
        boxes = [tuple(map(int, mark.split(","))) for _, mark in LOOK.findall(asked.thought)]
        colors = re.findall("|".join(COLORS), asked.thought)
        assert len(boxes) == len(colors) == (asked.answer if name == "count" else 1)
        for (x1, y1, x2, y2), color in zip(boxes, colors, strict=True):
            near = np.abs(pixels[y1:y2, x1:x2] - COLORS[color]).sum(2) < 12
            assert near.mean() > 0.1
        for j, one in enumerate(boxes):
            assert all(
                one[2] <= o[0] or o[2] <= one[0] or one[3] <= o[1] or o[3] <= one[1] for o in boxes[j + 1 :]
            )
        if name == "find":
            assert boxes == [asked.answer]


def test_scene_facts_are_in_the_closed_sets():
    for i in range(15):
        scene = photos.scene(generator("scene", i), "train")
        assert min(scene.image.size) >= 64
        assert 2 <= len(scene.things) <= 6
        for thing in scene.things:
            assert all(value in photos.FACTS[name] for name, value in thing.facts)
            assert 0 <= thing.box[0] < thing.box[2] <= scene.image.width
            assert 0 <= thing.box[1] < thing.box[3] <= scene.image.height


@pytest.mark.parametrize(
    "name", [name for name, question in photos.QUESTIONS.items() if question[1] != "box"]
)
def test_chance_is_what_the_best_constant_reply_scores(name):
    n, chance = 150, photos.QUESTIONS[name][2]
    answers = [str(photos.QUESTIONS[name][0](generator("chance", name, i), "test").answer) for i in range(n)]
    best = Counter(answers).most_common(1)[0][1] / n
    assert abs(best - chance) < 4 * np.sqrt(chance * (1 - chance) / n) + 0.02
