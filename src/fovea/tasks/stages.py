"""Where shapes stand to be told apart: how many, how large, on a pattern or a photograph; every colour stands out.

Not here: what is asked of them (`referring`, `detecting`), how things are placed and drawn (`scenes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fovea.tasks import photographs
from fovea.tasks.questions import sides
from fovea.tasks.scenes import COLORS, SHAPES, Scene, Split, Thing, compose, shape_stamps

Size = tuple[int, int]

SIZES: tuple[Size, ...] = ((64, 64), (80, 64), (64, 80), (80, 80), (96, 64), (64, 96), (96, 96))
LARGE: tuple[Size, ...] = ((128, 96), (96, 128), (128, 128))

CONTRAST = 120
"""Least distance of a colour from what surrounds it, summed over red, green and blue. (Red and orange: 128.)"""
PLAIN = 18.0
"""Photographs whose grey levels spread less (standard deviation) are no change from a pattern."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What the pictures of a task are like. Example: Stage(things=(3, 5))"""

    things: tuple[int, int]
    """Fewest and most."""
    sizes: tuple[Size, ...] = SIZES
    """Width and height in pixels, each as often."""
    side: tuple[int, int] | None = None
    """Least and largest height of a thing in pixels; None: as suits the picture."""
    photo: bool = False
    """On a crop of a photograph of the split instead of a pattern."""

    def crowding(self, count: int) -> float:
        """0 for the fewest things to 1 for the most."""
        fewest, most = self.things
        return (count - fewest) / max(1, most - fewest)


def some_labels(rng: np.random.Generator, count: int) -> list[str]:
    """Labels of `count` things from two or three colours and two or three shapes, so that many share one."""
    colors = [str(name) for name in rng.choice(list(COLORS), int(rng.integers(2, 4)), replace=False)]
    shapes = [str(name) for name in rng.choice(SHAPES, int(rng.integers(2, 4)), replace=False)]
    return [f"{colors[rng.integers(len(colors))]} {shapes[rng.integers(len(shapes))]}" for _ in range(count)]


def draw(rng: np.random.Generator, split: Split, stage: Stage, labels: list[str]) -> Scene:
    """A scene of these things in which every colour stands out from what is around it. `rng` decides the rest."""
    while True:
        size = stage.sizes[int(rng.integers(len(stage.sizes)))]
        scene = compose(
            rng,
            shape_stamps(split),
            len(labels),
            labels=labels,
            split=split,
            size=size,
            side=stage.side or sides(size, 12),
            behind=photo_behind(rng, split, size) if stage.photo else None,
        )
        pixels = np.asarray(scene.image, np.float32)
        if all(_stands_out(pixels, thing) for thing in scene.things):
            return scene


def listing(things: Sequence[Thing]) -> list[dict[str, Any]]:
    """Things as answers of kind "objects" write them: [{"bbox_2d": [x1, y1, x2, y2], "label": "red circle"}, …]."""
    return [{"bbox_2d": list(thing.box), "label": thing.label} for thing in things]


def photo_behind(rng: np.random.Generator, split: Split, size: Size) -> np.ndarray:
    """uint8 [height, width, 3]: a crop of one of the split's photographs, not plain."""
    names = photographs.names(split)
    while True:
        name = names[int(rng.integers(len(names)))]
        part = photographs.window(rng, name, size[0] / size[1])
        picture = photographs.jitter(rng, photographs.render(part, size))
        if photographs.grey(picture).std() >= PLAIN:
            return np.asarray(picture)


def _stands_out(pixels: np.ndarray, thing: Thing) -> bool:
    """Whether a thing's colour is far from the mean of the three pixels around its box."""
    x1, y1, x2, y2 = thing.box
    outer = pixels[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3]
    inner = pixels[y1:y2, x1:x2]
    around = outer.sum((0, 1)) - inner.sum((0, 1))
    count = outer.shape[0] * outer.shape[1] - inner.shape[0] * inner.shape[1]
    if count == 0:  # it fills the picture
        return True
    color = np.array(COLORS[thing.label.split()[0]], np.float32)
    return float(np.abs(color - around / count).sum()) >= CONTRAST
