"""`fovea tasks show`: problems as plain facts, and drawn on one PNG with their true boxes and texts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fovea.runlog import jsonable
from fovea.types import Problem
from fovea.viewer import as_text, visible

CELL, PICTURE, LINE = 260, 236, 15
PAPER, INK, SOFT, BOX = (255, 255, 255), (29, 33, 37), (98, 106, 114), (14, 165, 190)


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
        "sizes": [list(image.size) for image in problem.images],
        "target": problem.target,
    }


def draw_sheet(problems: Sequence[Problem], path: str | Path) -> None:
    """Write one PNG with the first picture, question and truth of every problem, three in a row."""
    columns = min(3, max(1, len(problems)))
    texts = [_lines(problem) for problem in problems]
    height = PICTURE + 24 + LINE * max((len(lines) for lines in texts), default=1)
    rows = -(-len(problems) // columns)
    sheet = Image.new("RGB", (columns * CELL, max(1, rows) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for i, (problem, lines) in enumerate(zip(problems, texts)):
        left, top = (i % columns) * CELL + 12, (i // columns) * height + 12
        if problem.images:
            _paste(sheet, draw, problem, left, top)
        for j, (line, colour) in enumerate(lines):
            draw.text((left, top + PICTURE + 4 + j * LINE), line, fill=colour, font=font)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, "PNG")


def _lines(problem: Problem) -> list[tuple[str, tuple[int, int, int]]]:
    asked = textwrap.wrap(visible(problem.question, 300), 38)
    truth = textwrap.wrap(visible(f"truth: {as_text(problem.answer)}", 200), 38)
    return [(line, INK) for line in asked] + [(line, SOFT) for line in truth]


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, problem: Problem, left: int, top: int) -> None:
    picture = problem.images[0]
    scale = min(PICTURE / picture.width, PICTURE / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Small pictures keep their pixels: the reader should see what the model sees.
    sheet.paste(
        picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS), (left, top)
    )
    if problem.kind == "box" and problem.frame == "pixels":
        x1, y1, x2, y2 = (float(v) * scale for v in problem.answer)
        draw.rectangle((left + x1, top + y1, left + x2, top + y2), outline=BOX, width=2)
