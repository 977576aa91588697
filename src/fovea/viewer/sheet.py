"""`fovea tasks show`: problems as plain facts, and drawn on one PNG with their true boxes and texts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fovea.boxes import fill
from fovea.runlog import jsonable
from fovea.types import Problem, UserError, picture_sizes
from fovea.viewer import as_text, visible

PICTURE, GAP, LINE, LETTERS = 236, 12, 15, 38
"""Pixels of a cell's picture, between cells, of a line of text; characters in a line."""
CELL = PICTURE + 2 * GAP
MOST_LINES = 14
"""Of question and truth each; the rest is cut with an ellipsis. `--json` has it whole."""
PAPER, INK, SOFT, EDGE, BOX = (255, 255, 255), (29, 33, 37), (98, 106, 114), (222, 226, 230), (14, 165, 190)


def facts(problem: Problem) -> dict[str, Any]:
    """What a problem is, as JSON; pictures by their sizes."""
    return {
        "id": problem.id,
        "task": problem.task,
        "kind": problem.kind,
        "question": problem.question,
        "answer": jsonable(problem.answer)[0],
        "frame": problem.frame,
        "difficulty": problem.difficulty,
        "sizes": [list(size) for size in picture_sizes(problem)],
        "target": None if problem.target is None else fill(problem.target, tuple, problem.frame),
    }


def draw_sheet(problems: Sequence[Problem], path: str | Path) -> None:
    """Write one PNG: pictures (side by side, up to nine), question and truth of every problem.

    As many columns as make the sheet about as wide as high, at most eight; rows are as high as their longest
    text. Raises UserError if the file cannot be written.
    """
    columns = min(8, max(1, min(len(problems), round(math.sqrt(1.6 * len(problems))))))
    texts = [_lines(problem) for problem in problems]
    rows = [range(start, min(start + columns, len(problems))) for start in range(0, len(problems), columns)]
    heights = [PICTURE + 3 * GAP + LINE * max(len(texts[i]) for i in row) for row in rows]
    sheet = Image.new("RGB", (columns * CELL, max(1, sum(heights))), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    top = 0
    for row, height in zip(rows, heights):
        for column, i in enumerate(row):
            left = column * CELL + GAP
            _paste(sheet, draw, problems[i], left, top + GAP)
            for j, (line, colour) in enumerate(texts[i]):
                draw.text((left, top + PICTURE + 2 * GAP + j * LINE - 4), line, fill=colour, font=font)
        top += height
        draw.line((0, top - 2, sheet.width, top - 2), fill=EDGE)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target, "PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give another --out.") from None


def _lines(problem: Problem) -> list[tuple[str, tuple[int, int, int]]]:
    """Question, truth and, where it says more than the truth, the teacher's reply; wrapped and cut."""
    asked = _wrapped(problem.question)
    truth = _wrapped(f"truth: {as_text(problem.answer)}")
    reply = fill(problem.target or "", lambda box: box, problem.frame)
    said = _wrapped(f"teacher: {reply}") if "<think>" in reply else []
    return [(line, INK) for line in asked] + [(line, SOFT) for line in truth + said]


def _wrapped(text: str) -> list[str]:
    lines = [
        part
        for line in visible(text, 1000).split("\n")
        for part in (textwrap.wrap(line, LETTERS) if line.strip() else [])
    ]
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "…"]


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, problem: Problem, left: int, top: int) -> None:
    """The problem's pictures in a square of `PICTURE` pixels: one alone, or up to nine in a grid of equal cells."""
    pictures = [problem.images[k] for k in range(min(9, len(problem.images)))]
    if not pictures:
        return
    columns = 2 if len(pictures) == 4 else min(len(pictures), 3)
    gap = 4 if len(pictures) > 1 else 0
    side = (PICTURE - gap * (columns - 1)) // columns
    rows = -(-len(pictures) // columns)
    high = (PICTURE - gap * (rows - 1)) // rows
    high = min(high, max(round(side * picture.height / picture.width) for picture in pictures))
    for k, picture in enumerate(pictures):
        scale = min(side / picture.width, high / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        x, y = left + (k % columns) * (side + gap), top + (k // columns) * (high + gap)
        # Small pictures keep their pixels: the reader should see what the model sees.
        resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        sheet.paste(picture.convert("RGB").resize(size, resample), (x, y))
        draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=EDGE)
        if problem.frame == "pixels" and k == int(problem.meta.get("box_image", 0)):
            for box in _boxes(problem):
                x1, y1, x2, y2 = (float(v) * scale for v in box)
                draw.rectangle((x + x1, y + y1, x + x2, y + y2), outline=BOX, width=2)


def _boxes(problem: Problem) -> list[Any]:
    if problem.kind == "box":
        return [problem.answer]
    return [thing["bbox_2d"] for thing in problem.answer] if problem.kind == "objects" else []
