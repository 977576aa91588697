"""Boxes have a declared frame; this is the one place that converts between frames and writes them as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from fovea.types import BoxFrame

Size = tuple[int, int]
"""(width, height) in pixels."""

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2)."""

# In a target text a box stands as {box:12,8,30,31}, in the problem's own frame, until the model's is known.
_NUMBERS = ",".join([r"(-?[\d.]+)"] * 4)
_PLACE = re.compile(rf"\{{box:{_NUMBERS}\}}")
_MARK = re.compile(rf"\{{(?:box:|look:(\d+),){_NUMBERS}\}}")
_LOOK = re.compile(r"\{look:[^}]*\}")


def scale(frame: BoxFrame, size: Size, resized: Size) -> tuple[float, float]:
    """Width and height of a whole picture in `frame`. `resized`: what the processor made of `size`."""
    whole = {"pixels": size, "resized": resized, "thousandths": (1000, 1000), "unit": (1, 1)}
    width, height = whole[frame]
    return float(width), float(height)


def convert(box: Sequence[float], source: BoxFrame, target: BoxFrame, size: Size, resized: Size) -> Box:
    """(x1, y1, x2, y2) from one frame to another; exact up to float rounding, no clipping."""
    sx, sy = scale(source, size, resized)
    tx, ty = scale(target, size, resized)
    x1, y1, x2, y2 = box
    return x1 * tx / sx, y1 * ty / sy, x2 * tx / sx, y2 * ty / sy


def place(box: Sequence[float]) -> str:
    """The placeholder of a pixel box in a target text."""
    return "{box:" + ",".join(f"{value:g}" for value in box) + "}"


def look(box: Sequence[float], image: int = 0) -> str:
    """A mark in a target text: what follows can be read off this pixel box of picture `image`. It is not written;
    the embedded model's build teaches attention with it."""
    return "{look:" + ",".join(f"{value:g}" for value in (image, *box)) + "}"


def write(box: Sequence[float], frame: BoxFrame) -> str:
    """As models write it: whole numbers, except in the unit frame (three decimals)."""
    numbers = [f"{value:.3f}" for value in box] if frame == "unit" else [str(round(value)) for value in box]
    return "[" + ", ".join(numbers) + "]"


def fill(text: str, to_frame: Callable[[tuple[float, ...]], tuple[float, ...]], frame: BoxFrame) -> str:
    """Replace every box placeholder in `text` by the box in `frame`; `look` marks are taken out."""

    def replace(match: re.Match[str]) -> str:
        return write(to_frame(tuple(float(value) for value in match.groups())), frame)

    return _PLACE.sub(replace, unmarked(text))


def unmarked(text: str) -> str:
    """`text` without its `look` marks; places of boxes stay."""
    return _LOOK.sub("", text)


def marks(
    text: str, to_frame: Callable[[tuple[float, ...]], tuple[float, ...]], frame: BoxFrame, box_image: int = 0
) -> list[tuple[int, int, Box]]:
    """Where `fill`'s text is read off a picture: (character, picture, box in the placeholders' own frame).

    For a box these are the first characters of its four numbers, for a `look` the next character.
    """
    found, at, last = [], 0, 0
    for match in _MARK.finditer(text):
        at += match.start() - last
        last = match.end()
        x1, y1, x2, y2 = (float(value) for value in match.groups()[1:])
        if match[1] is None:
            written = write(to_frame((x1, y1, x2, y2)), frame)
            found += [(at + n.start(), box_image, (x1, y1, x2, y2)) for n in re.finditer(r"[-\d.]+", written)]
            at += len(written)
        else:
            found.append((at, int(match[1]), (x1, y1, x2, y2)))
    return found


def convert_answer(answer: Any, kind: str, to_frame: Callable[[Sequence[float]], tuple[float, ...]]) -> Any:
    """The truth of a problem in another frame: boxes are converted, everything else is returned as it is."""
    if kind == "box":
        return to_frame(answer)
    if kind == "objects":
        return [{**thing, "bbox_2d": to_frame(thing["bbox_2d"])} for thing in answer]
    return answer
