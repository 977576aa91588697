"""Grid worlds as data, and drawing them in three manners. No questions, no moves.

`draw_grid` draws like MiniGrid (dark floor, a triangle that faces somewhere), like FrozenLake (ice, holes, a round
elf) or on plain tiles. Rows and columns count from 0 at the top left.

Try it: python -c "from fovea.tasks.grid_pictures import *; draw_grid([[None, Item(kind='goal')]],
Agent(row=0, column=0), side=64).show()"
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from fovea.tasks.scenes import COLORS, background

FACINGS = ("up", "right", "down", "left")
STEPS: dict[str, tuple[int, int]] = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
"""(rows, columns) of one step."""
COLORED = ("key", "ball", "box", "door")
"""Kinds that have a colour."""
KINDS = ("agent", "wall", "goal", "lava", "hole", *COLORED)
OBJECT_COLORS = tuple(name for name in COLORS if name != "white")  # white is lost on ice
RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]
Position = tuple[int, int]
"""(row, column), from 0 at the top left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What stands in a cell. Example: Item(kind="key", color="red")"""

    kind: str
    """One of KINDS but "agent"."""
    color: str = ""
    """One of OBJECT_COLORS for the kinds in COLORED, else empty."""

    @property
    def label(self) -> str:
        return f"{self.color} {self.kind}".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Agent:
    """Who walks. Example: Agent(row=0, column=2, facing="left")"""

    row: int
    column: int
    facing: str = "right"
    """One of FACINGS; an elf is drawn without it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A grid and the agent in it."""

    cells: tuple[tuple[Item | None, ...], ...]
    """Rows of cells; None is floor."""
    agent: Agent

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        return len(self.cells), len(self.cells[0])

    def at(self, row: int, column: int) -> Item | None:
        return self.cells[row][column]

    def find(self, kind: str) -> list[Position]:
        """Where things of a kind stand, row by row."""
        return [
            (row, column)
            for row, cells in enumerate(self.cells)
            for column, item in enumerate(cells)
            if item and item.kind == kind
        ]

    def content(self) -> str:
        """Its canonical text, by which it belongs to a split."""
        cells = "/".join(",".join(item.label if item else "" for item in row) for row in self.cells)
        return f"{cells} {self.agent.row} {self.agent.column} {self.agent.facing}"


@dataclass(frozen=True, kw_only=True, slots=True)
class GridStyle:
    """How a world is drawn."""

    floor: RGB = (20, 20, 24)
    line: RGB = (70, 70, 76)
    wall: Literal["stone", "bricks", "rock"] = "stone"
    goal: Literal["square", "flag", "star"] = "square"
    agent: Literal["triangle", "elf"] = "triangle"
    agent_color: RGB = (225, 40, 40)
    outline: bool = False
    """Dark rims around coloured things, for light floors."""


# --- drawing: every kind is a sprite, drawn large once, averaged down and kept --------------------------------

_ZOOM = 64  # pixels of a cell while drawing
_DARK: RGB = (40, 36, 40)
_Painter = Callable[[ImageDraw.ImageDraw, RGB, RGB | None], None]
"""(canvas of 64 x 64, colour, rim or None)"""


def _key(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    for grow, ink in ((3, rim), (0, color)):
        if ink is not None:
            draw.rectangle([27 - grow, 26, 37 + grow, 60 + grow], fill=ink)
            draw.rectangle([27, 44 - grow, 52 + grow, 60 + grow], fill=ink)
            draw.ellipse([16 - grow, 4 - grow, 48 + grow, 36 + grow], fill=ink)
    draw.rectangle([37 + 3 * bool(rim), 50, 52, 53], fill=(0, 0, 0, 0))
    draw.ellipse([26, 14, 38, 26], fill=rim or (0, 0, 0, 0))


def _ball(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.ellipse([7, 7, 56, 56], fill=color, outline=rim, width=4)
    draw.ellipse([18, 16, 30, 28], fill=tuple(min(255, value + 90) for value in color))


def _box(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.rectangle([6, 6, 57, 57], outline=rim or color, width=12)
    draw.rectangle([8, 8, 55, 55], outline=color, width=9)
    draw.rectangle([8, 28, 55, 36], fill=color)


def _door(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.rectangle([2, 2, 61, 61], fill=color, outline=rim)
    draw.rectangle([2, 2, 61, 61], outline=tuple(value // 3 for value in color), width=5)
    draw.rectangle([12, 12, 51, 51], outline=tuple(value // 3 for value in color), width=4)
    draw.ellipse([36, 27, 47, 38], fill=(20, 20, 20))


def _lava(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.rectangle([0, 0, 63, 63], fill=(255, 116, 20))
    for y in (12, 32, 52):
        wave = [(x, y + 5 * np.sin(x / 63 * 4 * np.pi)) for x in range(-4, 68, 2)]
        draw.line([(float(a), float(b)) for a, b in wave], fill=(110, 24, 0), width=6)


def _hole(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.ellipse([4, 8, 59, 57], fill=(120, 150, 176))
    draw.ellipse([8, 14, 55, 55], fill=(14, 30, 52))


def _stone(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.rectangle([0, 0, 63, 63], fill=(128, 128, 132))
    draw.line([(0, 63), (0, 0), (63, 0)], fill=(170, 170, 174), width=8)
    draw.line([(63, 0), (63, 63), (0, 63)], fill=(88, 88, 92), width=8)


def _bricks(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.rectangle([0, 0, 63, 63], fill=(132, 84, 70))
    for row in range(3):
        y = row * 21
        draw.line([(0, y), (63, y)], fill=(70, 44, 38), width=5)
        for x in (32,) if row % 2 else (8, 56):
            draw.line([(x, y), (x, y + 21)], fill=(70, 44, 38), width=5)


def _rock(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.polygon(
        [(2, 60), (8, 24), (24, 4), (46, 8), (60, 30), (62, 60)], fill=(104, 104, 108), outline=_DARK
    )
    draw.polygon([(14, 30), (26, 12), (42, 14), (34, 30)], fill=(150, 150, 154))


def _goal_square(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.rectangle([0, 0, 63, 63], fill=(60, 200, 70))


def _goal_flag(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.rectangle([12, 4, 20, 61], fill=(70, 50, 36))
    draw.polygon([(20, 4), (60, 19), (20, 36)], fill=(40, 170, 60), outline=rim)
    draw.rectangle([5, 55, 28, 61], fill=(70, 50, 36))


def _goal_star(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 32.0, 15.0)
    points = [(float(32 + r * np.cos(t)), float(34 + r * np.sin(t))) for t, r in zip(turn, radius)]
    draw.polygon(points, fill=(250, 210, 50), outline=(120, 80, 0), width=4)


def _triangle(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.polygon([(4, 6), (61, 32), (4, 57)], fill=color, outline=rim, width=4)


def _elf(draw: ImageDraw.ImageDraw, color: RGB, rim: RGB | None) -> None:
    draw.ellipse([12, 30, 51, 62], fill=color, outline=_DARK, width=2)
    draw.ellipse([16, 14, 47, 45], fill=(246, 206, 170), outline=_DARK, width=2)
    draw.polygon([(12, 22), (32, 0), (51, 22)], fill=color, outline=_DARK, width=2)
    draw.ellipse([22, 26, 28, 33], fill=(20, 20, 20))
    draw.ellipse([35, 26, 41, 33], fill=(20, 20, 20))


_PAINTERS: dict[str, _Painter] = {
    "key": _key, "ball": _ball, "box": _box, "door": _door, "lava": _lava, "hole": _hole,
    "stone": _stone, "bricks": _bricks, "rock": _rock,
    "square": _goal_square, "flag": _goal_flag, "star": _goal_star,
    "triangle": _triangle, "elf": _elf,
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _sprite(look: str, color: RGB, outline: bool, side: int, turn: int = 0) -> tuple[Image.Image, Box]:
    """(RGBA [side, side], box of its ink within the cell); `turn` quarters clockwise."""
    canvas = Image.new("RGBA", (_ZOOM, _ZOOM), (*color, 0))
    _PAINTERS[look](ImageDraw.Draw(canvas), color, _DARK if outline else None)
    canvas = canvas.rotate(-90 * turn)
    premultiplied = canvas.convert("RGBa").resize((side, side), Image.Resampling.BOX)
    small = premultiplied.convert("RGBA")
    ink = small.getchannel("A").point(lambda value: 255 * (value > 76)).getbbox()
    assert ink is not None
    return small, ink


def _sprite_of(item: Item, style: GridStyle, side: int) -> tuple[Image.Image, Box]:
    drawn = {"wall": style.wall, "goal": style.goal}.get(item.kind, item.kind)
    return _sprite(drawn, COLORS.get(item.color, (0, 0, 0)), style.outline, side)


def _agent_sprite(agent: Agent, style: GridStyle, side: int) -> tuple[Image.Image, Box]:
    turn = FACINGS.index(agent.facing) - 1 if style.agent == "triangle" else 0
    return _sprite(style.agent, style.agent_color, style.outline, side, turn)


def draw_grid(
    cells: Sequence[Sequence[Item | None]],
    agent: Agent | None,
    *,
    side: int = 16,
    style: GridStyle | None = None,
) -> Image.Image:
    """RGB picture of `side` pixels a cell: floor, things, then the agent (None draws no agent).

    Rows of equal length; `side` from 12 up is legible. The agent may stand on a goal, a door or in a hole.
    """
    style = style or GridStyle()
    rows, columns = len(cells), len(cells[0])
    image = Image.new("RGB", (columns * side, rows * side), style.floor)
    draw = ImageDraw.Draw(image)
    for x in range(0, columns * side, side):
        draw.line([(x, 0), (x, rows * side)], fill=style.line)
    for y in range(0, rows * side, side):
        draw.line([(0, y), (columns * side, y)], fill=style.line)
    for row, line in enumerate(cells):
        for column, item in enumerate(line):
            if item is not None:
                sprite = _sprite_of(item, style, side)[0]
                image.paste(sprite, (column * side, row * side), sprite)
    if agent is not None:
        sprite = _agent_sprite(agent, style, side)[0]
        image.paste(sprite, (agent.column * side, agent.row * side), sprite)
    return image


# --- a picture of a world ---------------------------------------------------------------------------------


FRAME = 16
"""Pixels by which a picture with a background is wider and higher than its grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """How a world becomes a picture: style, size of a cell, and where the grid begins."""

    style: GridStyle
    side: int
    """Pixels of a cell."""
    origin: tuple[int, int] | None = None
    """(x, y) of the grid in a picture FRAME pixels wider and higher than it; None: the grid fills the picture."""
    pattern: int = 0
    """Which background is seen around it."""

    def picture(self, world: World) -> Image.Image:
        grid = draw_grid(world.cells, world.agent, side=self.side, style=self.style)
        if self.origin is None:
            return grid
        framed = Image.fromarray(background(self.pattern, grid.width + FRAME, grid.height + FRAME))
        framed.paste(grid, self.origin)
        return framed

    def cell(self, position: Position) -> Box:
        """The whole cell in pixels."""
        left, top = self.origin or (0, 0)
        x, y = left + position[1] * self.side, top + position[0] * self.side
        return x, y, x + self.side, y + self.side

    def ink(self, world: World, position: Position) -> Box:
        """The box of what is drawn in a cell: the agent if it is there, else the thing."""
        x, y = self.cell(position)[:2]
        item = world.at(*position)
        if position == (world.agent.row, world.agent.column):
            ink = _agent_sprite(world.agent, self.style, self.side)[1]
        else:
            assert item is not None
            ink = _sprite_of(item, self.style, self.side)[1]
        return x + ink[0], y + ink[1], x + ink[2], y + ink[3]


def _shade(rng: np.random.Generator, color: RGB, by: int) -> RGB:
    shift = rng.integers(-by, by + 1, 3)
    red, green, blue = (max(0, min(255, value + int(s))) for value, s in zip(color, shift))
    return red, green, blue


def random_style(rng: np.random.Generator, facing: bool) -> GridStyle:
    """One of the three manners with its colours shifted; `facing` leaves out the elf, who looks at us."""
    manner = rng.random() * (0.7 if facing else 1.0)
    colors = [COLORS[name] for name in ("red", "blue", "purple", "green", "orange")]
    color = colors[int(rng.integers(len(colors)))]
    if manner < 0.4:  # like MiniGrid
        agent = (225, 40, 40) if rng.random() < 0.5 else color
        return GridStyle(
            floor=_shade(rng, (24, 24, 28), 16), line=_shade(rng, (76, 76, 82), 16), agent_color=agent
        )
    if manner < 0.7:  # plain tiles
        wall: Literal["stone", "bricks"] = "bricks" if rng.random() < 0.7 else "stone"
        floor = _shade(rng, ((226, 222, 210), (206, 216, 200), (222, 214, 226))[int(rng.integers(3))], 12)
        return GridStyle(
            floor=floor,
            line=_shade(rng, (168, 164, 158), 16),
            wall=wall,
            goal="star",
            agent_color=color,
            outline=True,
        )
    return GridStyle(  # like FrozenLake
        floor=_shade(rng, (214, 234, 246), 8), line=_shade(rng, (168, 196, 216), 10), wall="rock", goal="flag",
        agent="elf", agent_color=color, outline=True,
    )  # fmt: skip
