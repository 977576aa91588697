"""Questions about photographs: colour, brightness, sameness, quarters, turns, blur, and shapes pasted on them.

Few photographs give many pictures: crops of any place and scale, brightness and contrast changed. A photograph is in
one split, so the pictures of a test show nothing that was trained on. The answers come from the pixels or from
what was done to them; nothing was labelled by hand but which photographs have no upright.

Try it: python -c "from fovea.tasks.photos import *; scene(generator(0, 1), 'train').image.show()"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from fovea.boxes import look, place
from fovea.tasks import photographs
from fovea.tasks.photographs import NAMED, Window, generator, jitter, render, window
from fovea.tasks.questions import Asked, Question, where
from fovea.tasks.scenes import COLORS, SHAPES, Scene, Split, Thing, digit_stamps, shape_stamps

__all__ = ["FACTS", "QUESTIONS", "generator", "scene"]

FACTS: dict[str, tuple[str, ...]] = {
    "kind": (*SHAPES, *map(str, range(10))),
    "color": tuple(COLORS),
}

Size = tuple[int, int]
CORNERS = ("top left", "top right", "bottom left", "bottom right")
ORDINALS = ("first", "second", "third", "fourth")
_CHOICES = ", ".join(f"{letter} {corner}" for letter, corner in zip("ABCD", CORNERS))

# Seen from above, round or in space: a turned one cannot be told from an upright one.
_NO_UPRIGHT = {
    "abstract-spiral", "blue-periwinkle", "casa-mila", "comet", "crocodile", "earth-limb", "earthrise",
    "fig", "flower", "goldfish", "helix", "high-trestle-trail", "nail-clipper", "nebula", "paintbrushes",
    "perch", "piazza-gae-aulenti", "retina", "saturnian-profile", "solar-grill", "the-spices-of-life",
    "whirlpool",
}  # fmt: skip

_SIZES = (
    (64, 64),
    (64, 64),
    (64, 64),
    (48, 48),
    (48, 64),
    (64, 48),
    (80, 64),
    (64, 80),
    (80, 80),
    (96, 64),
    (96, 96),
)
_LARGE = ((128, 96), (96, 160), (160, 160), (192, 128), (224, 112), (320, 192))


def _size(rng: np.random.Generator) -> Size:
    """Mostly 48 to 96 pixels, one in twenty larger."""
    sizes = _LARGE if rng.random() < 0.05 else _SIZES
    return sizes[int(rng.integers(len(sizes)))]


def _pick(rng: np.random.Generator, split: Split, upright: bool = False) -> str:
    names = photographs.names(split)
    while True:
        name = names[int(rng.integers(len(names)))]
        if not (upright and name in _NO_UPRIGHT):
            return name


def _crop(
    rng: np.random.Generator, split: Split, size: Size, *, spread: float = 18.0, sharp: bool = False
) -> tuple[Window, Image.Image]:
    """A window of any photograph and its picture, not plain: grey levels spread (standard deviation) at least so
    far. `sharp`: at most slightly enlarged, and rich in detail."""
    while True:
        name = _pick(rng, split)
        width, height = photographs.load(name).size
        fit = min(width / size[0], height / size[1])
        least = min(0.95, max(0.35, (0.8 if sharp else 0.0) / fit))
        part = window(rng, name, size[0] / size[1], least)
        picture = render(part, size)
        if photographs.grey(picture).std() >= spread and not (sharp and photographs.detail(picture) < 14):
            return part, picture


def _whole(picture: Image.Image, image: int = 0) -> str:
    return look((0, 0, *picture.size), image)


def _quarter(corner: int, size: Size) -> tuple[int, int, int, int]:
    """The box of quarter 0 to 3 in the order of CORNERS."""
    w, h = size[0] // 2, size[1] // 2
    x, y = corner % 2 * w, corner // 2 * h
    return x, y, x + w, y + h


# --- one picture ------------------------------------------------------------------------------------------


def color(rng: np.random.Generator, split: Split) -> Asked:
    """Which of eight named colours covers half of the picture, no other more than a fifth? Equally likely each.

    Few photographs are cyan or purple: all hues of a crop of nearly one hue are turned together.
    """
    wanted = NAMED[int(rng.integers(len(NAMED)))]
    by_photo = photographs.plain_windows(split, wanted == "white")
    while True:
        windows = by_photo[int(rng.integers(len(by_photo)))]
        side = int(rng.choice([48, 64, 64, 64, 80, 96]))
        picture = jitter(rng, render(windows[int(rng.integers(len(windows)))], (side, side)), 0.5)
        if wanted != "white":
            picture = photographs.recolor(picture, wanted)
        if photographs.dominant(picture) == wanted:
            break
    share = photographs.color_shares(picture)[wanted]
    return Asked(
        images=(picture,),
        question="What is the main color of the photo?",
        answer=wanted,
        said=_whole(picture) + wanted,
        thought=f"{_whole(picture)}Most of the photo is {wanted}.",
        difficulty=float(np.clip(2 * (1 - share), 0, 1)),
    )


def brightest(rng: np.random.Generator, split: Split) -> Asked:
    """Which quarter is brightest, by 15 grey levels in the mean? Each as often."""
    wanted = int(rng.integers(4))
    while True:
        size = _size(rng)
        _, picture = _crop(rng, split, size)
        levels = photographs.grey(picture)
        means = [levels[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in (_quarter(i, size) for i in range(4))]
        second, first = sorted(means)[-2:]
        if first - second >= 15:
            best = int(np.argmax(means))
            if best % 2 != wanted % 2:  # a mirrored photograph is as natural
                picture, best = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), best ^ 1
            if best == wanted:
                break
    return Asked(
        images=(picture,),
        question=f"Which quarter of the photo is brightest? {_CHOICES}.",
        answer="ABCD"[wanted],
        said=look(_quarter(wanted, size)) + "ABCD"[wanted],
        thought=f"{look(_quarter(wanted, size))}The {CORNERS[wanted]} is brightest.",
        difficulty=float(np.clip(1 - (first - second - 15) / 60, 0, 1)),
    )


def rotation(rng: np.random.Generator, split: Split) -> Asked:
    """How far was an upright photograph turned clockwise? Large square crops."""
    turns = int(rng.integers(4))
    side = int(rng.choice([48, 64, 64, 64, 80, 96]))
    while True:
        picture = render(window(rng, _pick(rng, split, upright=True), 1.0, 0.75), (side, side))
        if photographs.grey(picture).std() >= 25:
            break
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = Image.fromarray(np.rot90(np.asarray(jitter(rng, picture)), -turns).copy())
    up = ("top", "right", "bottom", "left")[turns]
    return Asked(
        images=(picture,),
        question="How far is the photo turned clockwise? A 0, B 90, C 180, D 270 degrees.",
        answer="ABCD"[turns],
        said="ABCD"[turns],
        thought=f"What should be up is at the {up}.",
        difficulty=0.5,
    )


# --- shapes pasted on a photograph ------------------------------------------------------------------------


def _paste(
    rng: np.random.Generator,
    split: Split,
    size: Size,
    count: int,
    *,
    digits: float = 0.0,
    distinct: bool = False,
) -> Scene:
    """A crop with `count` things, 2 pixels apart, in colours that stand out where they are.

    `digits`: the share of handwritten digits instead of shapes; `distinct`: no shape twice.
    """
    canvas = np.asarray(_crop(rng, split, size)[1], np.float32).copy()
    things: list[Thing] = []
    shapes = [str(shape) for shape in rng.permutation(SHAPES)]
    largest = max(16, min(size) // (3 if count < 4 else 4))
    while len(things) < count:
        side = int(rng.integers(12, largest + 1))
        x, y = (int(rng.integers(0, extent - side + 1)) for extent in size)
        if any(
            x < b[2] + 2 and b[0] < x + side + 2 and y < b[3] + 2 and b[1] < y + side + 2
            for b in _boxes(things)
        ):
            largest = max(12, largest - 1)
            continue
        behind = canvas[y : y + side, x : x + side].mean((0, 1))
        far = [name for name, rgb in COLORS.items() if np.abs(np.array(rgb) - behind).sum() > 180]
        ink = far[int(rng.integers(len(far)))]
        if rng.random() < digits:
            stamp = replace(digit_stamps(split)(rng, behind, None, side), color=COLORS[ink])
            kind, label = stamp.label, stamp.label
        else:
            kind = shapes[len(things)] if distinct else str(rng.choice(SHAPES))
            label = f"{ink} {kind}"
            stamp = shape_stamps(split)(rng, behind, label, side)
        h, w = stamp.alpha.shape
        w, h = min(w, size[0] - x), min(h, size[1] - y)
        cut = canvas[y : y + h, x : x + w]
        cut += stamp.alpha[:h, :w, None] * (np.array(stamp.color, np.float32) - cut)
        things.append(Thing(label=label, box=(x, y, x + w, y + h), facts=(("kind", kind), ("color", ink))))
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return Scene(image=image, things=tuple(sorted(things, key=lambda thing: thing.box)))


def _boxes(things: Sequence[Thing]) -> list[tuple[int, int, int, int]]:
    return [thing.box for thing in things]


def scene(rng: np.random.Generator, split: Split) -> Scene:
    """A photograph with two to six shapes and handwritten digits: their kind and colour."""
    size = ((64, 64), (80, 64), (64, 80), (80, 80), (96, 64), (96, 96))[int(rng.integers(6))]
    return _paste(rng, split, size, int(rng.integers(2, 7 if size != (64, 64) else 5)), digits=0.4)


def find(rng: np.random.Generator, split: Split) -> Asked:
    """One to three different shapes on a photograph; the box of one."""
    count = int(rng.integers(1, 4))
    pasted = _paste(rng, split, _size(rng), count, distinct=True)
    thing = pasted.things[int(rng.integers(count))]
    shape = thing.label.split()[1]
    return Asked(
        images=(pasted.image,),
        question=f"Where is the {shape}? Answer with its box.",
        answer=thing.box,
        said=place(thing.box),
        thought=f"{look(thing.box)}The {thing.label} is at the {where(thing.box, pasted.image.size)}.",
        difficulty=(count - 1) / 2,
    )


def count(rng: np.random.Generator, split: Split) -> Asked:
    """One to four shapes on a photograph, any number equally likely."""
    number = int(rng.integers(1, 5))
    pasted = _paste(rng, split, _size(rng), number)
    return Asked(
        images=(pasted.image,),
        question="How many shapes are pasted on the photo?",
        answer=number,
        said=str(number),
        thought="I see: " + ", ".join(look(thing.box) + thing.label for thing in pasted.things) + ".",
        difficulty=(number - 1) / 3,
    )


# --- two pictures and more --------------------------------------------------------------------------------


def _pair_size(rng: np.random.Generator) -> Size:
    return ((64, 64), (64, 64), (48, 48), (64, 48), (48, 64), (80, 80))[int(rng.integers(6))]


def _overlap(a: Window, b: Window) -> float:
    """Intersection over union."""
    w = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    h = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    both = max(0.0, w) * max(0.0, h)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a.box, b.box))
    return both / (areas - both)


def same(rng: np.random.Generator, split: Split) -> Asked:
    """Are two pictures from one photograph? Yes: crops that overlap by 35 % or more, brightness changed.

    Half of the others are the one of six whose mean colour is nearest.
    """
    answer, size = ("yes" if rng.random() < 0.5 else "no"), _pair_size(rng)
    part, first = _crop(rng, split, size)
    if answer == "yes":
        other = window(rng, part.name, size[0] / size[1], 0.4)
        while not 0.35 <= _overlap(part, other) <= 0.9:
            other = window(rng, part.name, size[0] / size[1], 0.4)
        second = render(other, size)
    else:
        others: list[Image.Image] = []
        while len(others) < (6 if rng.random() < 0.5 or others else 1):
            other, picture = _crop(rng, split, size)
            if other.name != part.name:
                others.append(picture)
        mean = np.asarray(first, np.float32).mean((0, 1))
        second = min(
            others, key=lambda found: np.abs(np.asarray(found, np.float32).mean((0, 1)) - mean).sum()
        )
    pictures = (jitter(rng, first), jitter(rng, second, 1.5))
    return Asked(
        images=pictures,
        question="Do both pictures show the same photo?",
        answer=answer,
        said=_whole(pictures[1], 1) + answer,
        thought="The same things are in both." if answer == "yes" else "Other things are in the second.",
        difficulty=0.5,
    )


def quadrant(rng: np.random.Generator, split: Split) -> Asked:
    """The second picture is a quarter of the first, enlarged or not: which? The quarters differ clearly."""
    corner = int(rng.integers(4))
    while True:
        size = ((64, 64), (64, 64), (96, 64), (64, 96), (96, 96), (96, 96))[int(rng.integers(6))]
        part, picture = _crop(rng, split, size, spread=25)
        levels = np.asarray(picture.resize((16, 16), Image.Resampling.BOX), np.float32)
        quarters = [levels[y1:y2, x1:x2] for x1, y1, x2, y2 in (_quarter(i, (16, 16)) for i in range(4))]
        apart = min(
            float(np.abs(quarters[corner] - quarter).mean())
            for i, quarter in enumerate(quarters)
            if i != corner
        )
        if apart >= 25:
            break
    w, h = (part.box[2] - part.box[0]) / 2, (part.box[3] - part.box[1]) / 2
    x, y = part.box[0] + corner % 2 * w, part.box[1] + corner // 2 * h
    shown = size if rng.random() < 0.5 else (size[0] // 2, size[1] // 2)
    piece = render(Window(name=part.name, box=(x, y, x + w, y + h)), shown)
    box = _quarter(corner, size)
    return Asked(
        images=(picture, jitter(rng, piece, 0.3)),
        question=f"Which quarter of the first picture is the second picture? {_CHOICES}.",
        answer="ABCD"[corner],
        said=look(box) + "ABCD"[corner],
        thought=f"{look(box)}It is the {CORNERS[corner]}.",
        difficulty=float(np.clip(1 - (apart - 25) / 50, 0, 1)),
    )


def blurred(rng: np.random.Generator, split: Split) -> Asked:
    """One of two pictures was blurred (twice as little detail, at least): which? Half show one photograph twice."""
    index, size = int(rng.integers(2)), _pair_size(rng)
    while True:
        part, sharp = _crop(rng, split, size, sharp=True)
        other = render(part, size) if rng.random() < 0.5 else _crop(rng, split, size, sharp=True)[1]
        radius = float(rng.uniform(1.2, 3.0))
        soft = other.filter(ImageFilter.GaussianBlur(radius))
        if 2 * photographs.detail(soft) <= min(photographs.detail(other), photographs.detail(sharp)):
            break
    pictures = [jitter(rng, sharp), jitter(rng, soft)]
    pictures = pictures if index == 1 else pictures[::-1]
    return Asked(
        images=tuple(pictures),
        question="Which picture is blurred, the first or the second?",
        answer=ORDINALS[index],
        said=_whole(pictures[index], index) + ORDINALS[index],
        thought=f"{_whole(pictures[1 - index], 1 - index)}The {ORDINALS[1 - index]} picture is sharp.",
        difficulty=(3.0 - radius) / 1.8,
    )


def grey(rng: np.random.Generator, split: Split) -> Asked:
    """One of two to four pictures is a grey version of a colourful crop: which?"""
    number, size = int(rng.integers(2, 5)), _pair_size(rng)
    index = int(rng.integers(number))
    pictures: list[Image.Image] = []
    while len(pictures) < number:
        picture = jitter(rng, _crop(rng, split, size)[1])
        if photographs.chroma(picture) >= 35:
            pictures.append(picture.convert("L").convert("RGB") if len(pictures) == index else picture)
    return Asked(
        images=tuple(pictures),
        question="Which picture has no color?",
        answer=ORDINALS[index],
        said=_whole(pictures[index], index) + ORDINALS[index],
        thought=f"{_whole(pictures[index], index)}The {ORDINALS[index]} picture is grey.",
        difficulty=(number - 2) / 2,
    )


QUESTIONS: dict[str, Question] = {
    "photos/color": (color, "text", 1 / 8, "the colour of most of a photo, of eight"),
    "photos/brightest": (brightest, "choice", 1 / 4, "the brightest quarter of a photo"),
    "photos/same": (same, "text", 0.5, "are two pictures cut from one photo"),
    "photos/quadrant": (quadrant, "choice", 1 / 4, "which quarter of the first picture is the second"),
    "photos/rotation": (rotation, "choice", 1 / 4, "how far a photo is turned, in quarter turns"),
    "photos/find": (find, "box", 0.03, "the box of a shape pasted on a photo"),
    "photos/count": (count, "number", 1 / 4, "how many shapes are pasted on a photo, one to four"),
    "photos/blurred": (blurred, "text", 0.5, "which of two photos is blurred"),
    # always "first": (1/2 + 1/3 + 1/4) / 3, two to four pictures being equally likely
    "photos/grey": (grey, "text", 13 / 36, "which of two to four photos has no colour"),
}
