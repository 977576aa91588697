"""Grid worlds: the answers follow from the world that was drawn, boxes are the ink, splits share no world."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.tasks.chance import blind_chance
from fovea.tasks.grid_pictures import (
    COLORED,
    FACINGS,
    KINDS,
    OBJECT_COLORS,
    Agent,
    Canvas,
    GridStyle,
    Item,
    World,
    draw_grid,
)
from fovea.tasks.grids import FACTS, QUESTIONS, scene
from fovea.tasks.questions import Asked
from fovea.tasks.scenes import SPLITS, Split, generator
from fovea.tasks.splits import split_of

MARK = re.compile(r"\{(?:look:\d+,|box:)([\d.,]+)\}")
Drawn = list[tuple[Canvas, World]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The worlds that `Canvas.picture`, which runs as it is, was given."""
    seen: Drawn = []
    picture = Canvas.picture

    def record(canvas: Canvas, world: World) -> Image.Image:
        seen.append((canvas, world))
        return picture(canvas, world)

    monkeypatch.setattr(Canvas, "picture", record)
    return seen


def ask(name: str, index: int, split: Split = "train") -> Asked:
    return QUESTIONS[name][0](generator("test-grids", name, split, index), split)


def matrix(world: World) -> list[list[str]]:
    """Rows of labels; the agent is "agent", floor is "floor"."""
    lines = [[item.label if item else "floor" for item in row] for row in world.cells]
    assert lines[world.agent.row][world.agent.column] == "floor"
    lines[world.agent.row][world.agent.column] = "agent"
    return lines


def places(lines: list[list[str]], name: str) -> list[tuple[int, int]]:
    return [
        (r, c)
        for r, line in enumerate(lines)
        for c, label in enumerate(line)
        if label == name or label.split()[-1] == name
    ]


def expected(name: str, canvas: Canvas, world: World, asked: Asked) -> Any:
    """The answer, from the labels in the grid and the question alone."""
    lines = matrix(world)
    ((row, column),) = places(lines, "agent")
    if name in ("grids/agent", "grids/goal"):
        ((r, c),) = places(lines, name.split("/")[1])
        return f"row {r + 1}, column {c + 1}"
    if name == "grids/facing":
        assert canvas.style.agent == "triangle"
        return world.agent.facing
    if name == "grids/color":
        ((r, c),) = places(lines, asked.question.removeprefix("What color is the ").removesuffix("?"))
        return lines[r][c].split()[0]
    if name == "grids/count":
        noun = asked.question.split()[2]
        return len(places(lines, "box" if noun == "boxes" else noun.removesuffix("s")))
    if name == "grids/ahead":
        assert canvas.style.agent == "triangle"
        r, c = {
            "up": (row - 1, column),
            "down": (row + 1, column),
            "left": (row, column - 1),
            "right": (row, column + 1),
        }[world.agent.facing]
        assert r >= 0
        assert c >= 0
        return lines[r][c].split()[-1]
    if name == "grids/action":
        ((r, c),) = places(lines, "goal")
        assert (r == row) != (c == column)
        between = (
            [lines[row][k] for k in range(min(c, column) + 1, max(c, column))]
            if r == row
            else [lines[k][column] for k in range(min(r, row) + 1, max(r, row))]
        )
        assert set(between) <= {"floor"}
        return ("left" if c < column else "right") if r == row else ("up" if r < row else "down")
    ((r, c),) = places(lines, asked.question.removeprefix("Where is the ").partition("?")[0])
    return list(canvas.ink(world, (r, c)))


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_follow_from_the_world(name: str, drawn: Drawn) -> None:
    for index in range(60):
        split = SPLITS[index % 3]
        asked = ask(name, index, split)
        canvas, world = drawn[-1]
        assert asked.answer == expected(name, canvas, world, asked)
        assert split_of(world.content()) == split
        assert asked.thought
        assert 0 <= asked.difficulty <= 1
        width, height = asked.images[0].size
        for numbers in MARK.findall(asked.said + asked.thought):
            x1, y1, x2, y2 = map(float, numbers.split(","))
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
        if QUESTIONS[name][1] != "box":
            assert MARK.sub("", asked.said) == str(asked.answer)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_problem_is_a_function_of_the_generator(name: str) -> None:
    first, again, other = ask(name, 3), ask(name, 3), ask(name, 4)
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert (first.question, first.answer, first.said) == (again.question, again.answer, again.said)
    assert first.images[0].tobytes() != other.images[0].tobytes()


@pytest.mark.parametrize("name", QUESTIONS)
def test_chance_of_the_best_constant_reply(name: str) -> None:
    _, kind, chance, _ = QUESTIONS[name]
    asked = [ask(name, index) for index in range(600)]
    sizes = [one.images[0].size if kind == "box" else None for one in asked]
    measured = blind_chance([kind] * len(asked), [one.answer for one in asked], sizes)
    slack = 4 * np.sqrt(chance * (1 - chance) / len(asked))
    assert chance - slack <= measured <= chance + slack + 0.01  # the best of many constants is lucky too


def test_the_box_is_the_ink() -> None:
    """Against a picture without the thing: the box holds all pixels that changed much, and no empty rim."""
    floor = line = (240, 240, 236)  # on which every rim stands out
    styles = (
        GridStyle(floor=floor, line=line),
        GridStyle(floor=floor, line=line, wall="bricks", goal="star", outline=True),
        GridStyle(floor=floor, line=line, wall="rock", goal="flag", agent="elf", outline=True),
    )
    empty: list[list[Item | None]] = [[None] * 3 for _ in range(3)]
    for style in styles:
        for side in (16, 24):
            canvas = Canvas(style=style, side=side)
            for kind in KINDS:
                cells = [list(row) for row in empty]
                if kind != "agent":
                    cells[1][2] = Item(kind=kind, color="purple" if kind in COLORED else "")
                agent = Agent(row=1, column=2, facing="up") if kind == "agent" else Agent(row=0, column=0)
                world = World(cells=tuple(map(tuple, cells)), agent=agent)
                bare = draw_grid(empty, None if kind == "agent" else agent, side=side, style=style)
                full = canvas.picture(world)
                change = np.abs(np.asarray(full, np.int16) - np.asarray(bare, np.int16)).max(2)
                ys, xs = np.nonzero(change > 60)
                x1, y1, x2, y2 = canvas.ink(world, (1, 2))
                assert 2 * side <= x1 < x2 <= 3 * side
                assert side <= y1 < y2 <= 2 * side
                assert x1 - 1 <= xs.min() <= x1 + 2
                assert x2 - 3 <= xs.max() <= x2
                assert y1 - 1 <= ys.min() <= y1 + 2
                assert y2 - 3 <= ys.max() <= y2
                assert max(x2 - x1, y2 - y1) >= 0.7 * side


def test_facings_and_colours_can_be_seen() -> None:
    """The triangle's broad side is behind it; things of two colours differ."""
    empty = [[None]]
    for side in (16, 24):
        behind = {"right": "[:, :4]", "left": "[:, -4:]", "down": "[:4]", "up": "[-4:]"}
        pictures = {
            facing: np.asarray(draw_grid(empty, Agent(row=0, column=0, facing=facing), side=side), np.int16)
            for facing in FACINGS
        }
        for facing, picture in pictures.items():
            red = picture[..., 0] - picture[..., 1] > 90
            parts = {"[:, :4]": red[:, :4], "[:, -4:]": red[:, -4:], "[:4]": red[:4], "[-4:]": red[-4:]}
            assert max(parts, key=lambda name: parts[name].sum()) == behind[facing]
    for kind in COLORED:
        seen = [
            np.asarray(draw_grid([[Item(kind=kind, color=color)]], None), np.int16) for color in OBJECT_COLORS
        ]
        for index, first in enumerate(seen):
            for second in seen[:index]:
                assert (np.abs(first - second).max(2) > 51).sum() >= 25


def test_scenes_are_labelled_with_facts_of_the_lists() -> None:
    kinds = set()
    for index in range(90):
        drawn = scene(generator("scene", index), SPLITS[index % 3])
        width, height = drawn.image.size
        assert list(drawn.things) == sorted(drawn.things, key=lambda thing: thing.box)
        assert sum(thing.label == "agent" for thing in drawn.things) == 1
        for thing in drawn.things:
            assert 0 <= thing.box[0] < thing.box[2] <= width
            assert 0 <= thing.box[1] < thing.box[3] <= height
            facts = dict(thing.facts)
            kinds.add(facts["kind"])
            assert all(value in FACTS[name] for name, value in facts.items())
            assert thing.label == f"{facts.get('color', '')} {facts['kind']}".strip()
    assert kinds == set(KINDS)


def test_most_pictures_are_small() -> None:
    longest = [max(ask(name, index).images[0].size) for name in QUESTIONS for index in range(40)]
    assert np.mean(np.array(longest) <= 96) > 0.85
    assert max(longest) <= 320
