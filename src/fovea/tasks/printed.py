"""Printed text in several fonts: numbers, words, labelled numbers. The fonts of the splits are different ones."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from fovea.boxes import look
from fovea.tasks.fonts import font, load, pick
from fovea.tasks.questions import Asked, Question
from fovea.tasks.scenes import BACKGROUNDS, Scene, Split, Thing, background, generator, ink_color

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CHARACTERS = (*map(str, range(10)), *LETTERS, *"abcdefghijklmnopqrstuvwxyz")
FACTS = {"char": CHARACTERS}
NAMES = ("target", "current", "score", "level", "speed", "time")
_WORDS = (
    "ant ape arm bag bat bed bee box boy bus cab can cap car cat cow cup day dog ear egg eye fan fig fly "
    "fox fun gas gem gun ham hat hen hut ice ink jam jar jet key kid lap leg lid lip log man map mat mud "
    "nut oak oil owl pan paw pen pie pig pin pot rat red rug sea sky sun tap tea tie toy van wax web zoo "
    "ball bank bear bell bird blue boat bone book cake coat coin cold door duck face farm fire fish flag "
    "foot frog game gate gift girl goat gold hand hill home horn iron king kite lake lamp leaf lion milk "
    "moon nail nest nose park path pear pipe pond rain ring road rock roof room rose salt sand seed ship "
    "shoe snow sock soup star tail tent tree vase wall wind wolf wood "
)
WORDS = tuple(_WORDS.split())


def word_of(split: Split, rng: np.random.Generator) -> str:
    """A word of the split: every word belongs to one, by a hash of its letters (70, 10 and 20 percent)."""
    return str(rng.choice(_words(split)))


@functools.cache
def _words(split: Split) -> tuple[str, ...]:
    def part(word: str) -> Split:
        u = generator("word", word).random()
        return "train" if u < 0.7 else "validation" if u < 0.8 else "test"

    return tuple(word for word in WORDS if part(word) == split)


def write(
    rng: np.random.Generator, canvas: Image.Image, text: str, corner: tuple[int, int], size: int, split: Split
) -> tuple[Thing, ...]:
    """Draw `text` with its top left near `corner`, whole: moved or made smaller where it would leave the picture.

    One Thing a character, boxes of its ink.
    """
    name = pick(split, rng)
    while True:
        letters = load(name, size)
        x1, y1, x2, y2 = letters.getbbox(text)
        wide, high = math.ceil(x2 - x1), math.ceil(y2 - y1)
        if (wide <= canvas.width - 2 and high <= canvas.height - 2) or size <= 8:
            break
        size -= 1
    corner = (
        max(0, min(corner[0], canvas.width - 1 - wide)),
        max(0, min(corner[1], canvas.height - 1 - high)),
    )
    behind = np.asarray(canvas.resize((1, 1), Image.Resampling.BOX), np.float32)[0, 0]
    draw = ImageDraw.Draw(canvas)
    at = corner[0] - x1, corner[1] - y1
    draw.text(at, text, fill=ink_color(rng, behind), font=letters)
    things = []
    for i, char in enumerate(text):
        if char == " ":
            continue
        left = at[0] + letters.getlength(text[:i])
        a, b, c, d = letters.getbbox(char)
        box = (round(left + a), round(at[1] + b), round(left + c), round(at[1] + d))
        things.append(Thing(label=char, box=box, facts=(("char", char),)))
    return tuple(things)


def _paper(rng: np.random.Generator, split: Split, size: tuple[int, int]) -> Image.Image:
    start, stop = BACKGROUNDS[split]
    if rng.random() < 0.4:  # most print is on plain paper
        return Image.new("RGB", size, tuple(int(v) for v in rng.integers(200, 256, 3)))
    return Image.fromarray(background(int(rng.integers(start, stop)), *size))


def _one_line(
    rng: np.random.Generator, split: Split, text: str, size: tuple[int, int]
) -> tuple[Image.Image, tuple[Thing, ...]]:
    """`text` somewhere in a picture of `size`, as large as a random choice lets it be."""
    canvas = _paper(rng, split, size)
    em = int(rng.integers(15, 25))
    while True:
        x1, y1, x2, y2 = font(split, np.random.default_rng(0), em).getbbox(text)
        if (x2 - x1 <= size[0] * 0.85 and y2 - y1 <= size[1] - 4) or em <= 10:
            break
        em -= 1
    wide, high = int((x2 - x1) * 1.12), y2 - y1
    corner = (
        int(rng.integers(1, max(2, size[0] - wide))),
        int(rng.integers(1, max(2, int(size[1] - high - 1)))),
    )
    return canvas, write(rng, canvas, text, corner, em, split)


def _around(things: tuple[Thing, ...]) -> tuple[int, int, int, int]:
    boxes = np.array([thing.box for thing in things])
    x1, y1 = boxes[:, :2].min(0)
    x2, y2 = boxes[:, 2:].max(0)
    return int(x1), int(y1), int(x2), int(y2)


def number(rng: np.random.Generator, split: Split) -> Asked:
    """A printed number of one to three digits."""
    digits = int(rng.integers(1, 4))
    low, high = ((0, 10), (10, 100), (100, 1000))[digits - 1]
    value = int(rng.integers(low, high))
    size = ((48, 32), (64, 32), (64, 48), (64, 64), (96, 48))[int(rng.integers(5))]
    image, things = _one_line(rng, split, str(value), size)
    said = "".join(look(thing.box) + thing.label for thing in things)
    return Asked(
        images=(image,),
        question="Which number is printed in the picture?",
        answer=value,
        said=said,
        thought=f"It has {digits} digits.",
        difficulty=(digits - 1) / 2,
    )


def word(rng: np.random.Generator, split: Split) -> Asked:
    """A printed word of three or four letters; the words of the splits are different ones."""
    text = word_of(split, rng)
    shown = text.upper() if rng.random() < 0.5 else text
    size = ((64, 32), (64, 48), (80, 32), (96, 48), (64, 64))[int(rng.integers(5))]
    image, things = _one_line(rng, split, shown, size)
    said = "".join(look(thing.box) + thing.label.lower() for thing in things)
    return Asked(
        images=(image,),
        question="Which word is printed in the picture?",
        answer=text,
        said=said,
        thought=f"It has {len(text)} letters.",
        difficulty=float(len(text) > 3),
    )


def letter(rng: np.random.Generator, split: Split) -> Asked:
    """One capital letter."""
    text = str(rng.choice(LETTERS))
    image, things = _one_line(
        rng, split, text, ((32, 32), (48, 48), (64, 64), (48, 32))[int(rng.integers(4))]
    )
    return Asked(
        images=(image,),
        question="Which letter is printed in the picture?",
        answer=text,
        said=look(things[0].box) + text,
        thought=f"{look(things[0].box)}It is a capital letter.",
    )


def labelled(rng: np.random.Generator, split: Split) -> Asked:
    """Two lines "NAME: NUMBER"; what is one of the numbers (0 to 9)?"""
    names = [str(name) for name in rng.choice(NAMES, 2, replace=False)]
    values = [int(rng.integers(10)) for _ in names]
    image = _paper(rng, split, (96, 48))
    em = int(rng.integers(12, 15))
    tops = [int(rng.integers(3, 7)), int(rng.integers(26, 30))]
    lines = []
    for name, value, top in zip(names, values, tops):
        state = rng.bit_generator.state  # both lines in one font and one colour
        lines.append(write(rng, image, f"{name}: {value}", (4, top), em, split))
        rng.bit_generator.state = state
    rng.random()
    asked = int(rng.integers(2))
    box = lines[asked][-1].box
    return Asked(
        images=(image,),
        question=f"What is the {names[asked]}?",
        answer=values[asked],
        said=look(box) + str(values[asked]),
        thought=f"{look(_around(lines[asked][:2]))}It is in the {('first', 'second')[asked]} line.",
    )


def scene(rng: np.random.Generator, split: Split) -> Scene:
    """Lines of random characters, words and numbers; one Thing a character."""
    size = ((64, 64), (96, 64), (96, 96), (64, 48))[int(rng.integers(4))]
    image = _paper(rng, split, size)
    things: list[Thing] = []
    top = int(rng.integers(1, 6))
    while True:
        em = int(rng.integers(12, 26))
        if top + em > size[1]:
            break
        x = int(rng.integers(1, 16))
        kind = rng.integers(3)
        if kind == 0:
            text = "".join(rng.choice(CHARACTERS, int(rng.integers(1, 6))))
        elif kind == 1:
            text = str(rng.integers(0, 10000))
        else:
            text = word_of(split, rng)
            text = text.upper() if rng.random() < 0.5 else text
        letters = font(split, np.random.default_rng(0), em)
        while text and letters.getlength(text) * 1.12 + x > size[0]:
            text = text[:-1]
        if text:
            things += write(rng, image, text, (x, top), em, split)
        top += em + int(rng.integers(0, 6))
    return Scene(image=image, things=tuple(sorted(things, key=lambda thing: thing.box)))


QUESTIONS: dict[str, Question] = {
    # the best constant number is a digit: one third of the numbers have one digit, each of ten
    "printed/number": (
        number,
        "number",
        1 / 30,
        "a number of one to three digits; fonts of its own in each split",
    ),
    "printed/word": (
        word,
        "text",
        0.03,
        "a word of three or four letters; fonts and words of its own in each split",
    ),
    "printed/letter": (letter, "text", 1 / 26, "one capital letter"),
    "printed/labelled": (labelled, "number", 0.1, "two labelled numbers, one is asked for"),
}
