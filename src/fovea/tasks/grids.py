"""Questions about grid worlds: where the agent is, where it looks, what is ahead, which move is right.

Worlds belong to the split that their hash says. Rows and columns count from 1 at the top left in questions, from 0 in
the data. Not here: drawing (`grid_pictures`), and what a move does (the environments).

Try it: python -c "from fovea.tasks.grids import *; scene(np.random.default_rng(0), 'train').image.show()"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fovea.boxes import look, place
from fovea.tasks.grid_pictures import (
    COLORED,
    FACINGS,
    FRAME,
    KINDS,
    OBJECT_COLORS,
    STEPS,
    Agent,
    Canvas,
    GridStyle,
    Item,
    Position,
    World,
    random_style,
)
from fovea.tasks.questions import Asked, Question
from fovea.tasks.scenes import BACKGROUNDS, Scene, Split, Thing
from fovea.tasks.splits import split_of

FACTS: dict[str, tuple[str, ...]] = {"kind": KINDS, "color": OBJECT_COLORS, "facing": FACINGS}
"""What the vision tower is taught about a cell; the colour of the coloured kinds, the facing of a triangle."""


# Rows and columns, and the sizes of a cell at which nine in ten pictures stay within 96 pixels.
_EXTENTS = (3, 4, 5, 6)
_SIDES: dict[int, tuple[int, ...]] = {3: (16, 16, 24, 32), 4: (16, 16, 20, 24), 5: (16,), 6: (16,)}


def _shape(rng: np.random.Generator, smallest: int = 3) -> tuple[int, int]:
    """Rows and columns, independently from `smallest` to 6; one in 16 is 8 x 8."""
    if rng.random() < 1 / 16:
        return 8, 8
    rows, columns = rng.integers(smallest, 7, 2)
    return int(rows), int(columns)


def random_canvas(
    rng: np.random.Generator, split: Split, shape: tuple[int, int], facing: bool = False
) -> Canvas:
    """A manner of drawing for a world of this shape."""
    longest = max(shape)
    sides = _SIDES.get(longest, (16,))
    side = 24 if longest in (5, 6) and rng.random() < 0.08 else sides[int(rng.integers(len(sides)))]
    framed = longest * side + FRAME <= 96 and rng.random() < 0.3
    left, top = (int(offset) for offset in rng.integers(0, FRAME + 1, 2))
    return Canvas(
        style=random_style(rng, facing),
        side=side,
        origin=(left, top) if framed else None,
        pattern=int(rng.integers(*BACKGROUNDS[split])),
    )


# --- worlds -----------------------------------------------------------------------------------------------


def _world(
    rng: np.random.Generator,
    shape: tuple[int, int],
    style: GridStyle,
    *,
    agent: Agent | None = None,
    fixed: dict[Position, Item | None] | None = None,
    without: Sequence[str] = (),
    goal: bool = True,
    crowd: float = 0.35,
) -> World:
    """A random world: at most one goal, each coloured kind at most once, walls and hazards in between.

    `fixed` says what certain cells hold, `agent` who is where; kinds in `without` are not added. `crowd` is the share
    of the remaining cells that is filled.
    """
    rows, columns = shape
    cells: dict[Position, Item | None] = dict(fixed or {})
    free = [(r, c) for r in range(rows) for c in range(columns) if (r, c) not in cells]
    if agent is None:
        row, column = free[int(rng.integers(len(free)))]
        agent = Agent(row=row, column=column, facing=FACINGS[int(rng.integers(4))])
    free = [position for position in free if position != (agent.row, agent.column)]
    order = [free[int(i)] for i in rng.permutation(len(free))]
    there = {item.kind for item in cells.values() if item}
    wanted = ["goal"] if goal and "goal" not in there and "goal" not in without else []
    kinds = [kind for kind in COLORED if kind not in there and kind not in without]
    for kind in kinds:
        if rng.random() < 0.4:
            wanted.append(kind)
    hazard = "hole" if style.agent == "elf" else "lava"
    fillers = [kind for kind in ("wall", hazard) if kind not in without]
    for position in order[: max(1, round(crowd * len(order)))]:
        kind = wanted.pop(0) if wanted else fillers[int(rng.integers(len(fillers)))] if fillers else ""
        if kind:
            color = OBJECT_COLORS[int(rng.integers(len(OBJECT_COLORS)))] if kind in COLORED else ""
            cells[position] = Item(kind=kind, color=color)
    lines = tuple(tuple(cells.get((r, c)) for c in range(columns)) for r in range(rows))
    return World(cells=lines, agent=agent)


def _until(split: Split, make: Callable[[], World]) -> World:
    """The first world of `make` that belongs to the split."""
    while split_of((world := make()).content()) != split:
        pass
    return world


def _somewhere(rng: np.random.Generator, shape: tuple[int, int]) -> Position:
    return int(rng.integers(shape[0])), int(rng.integers(shape[1]))


def _said(position: Position) -> str:
    return f"row {position[0] + 1}, column {position[1] + 1}"


def _thing(canvas: Canvas, world: World, position: Position) -> Thing:
    """What stands at a position, as a label for the vision tower."""
    box = canvas.ink(world, position)
    if position == (world.agent.row, world.agent.column):
        facts = [("kind", "agent")]
        if canvas.style.agent == "triangle":
            facts.append(("facing", world.agent.facing))
        return Thing(label="agent", box=box, facts=tuple(facts))
    item = world.at(*position)
    assert item is not None
    color = (("color", item.color),) if item.color else ()
    return Thing(label=item.label, box=box, facts=(("kind", item.kind), *color))


def scene(rng: np.random.Generator, split: Split) -> Scene:
    """A crowded world, two thirds of its cells filled: every one is a label for the vision tower."""
    shape = _shape(rng)
    canvas = random_canvas(rng, split, shape)

    def make() -> World:
        count = int(rng.integers(2, 1 + shape[0] * shape[1] // 2))
        items = {
            _somewhere(rng, shape): Item(kind=str(rng.choice(COLORED)), color=str(rng.choice(OBJECT_COLORS)))
            for _ in range(count)
        }
        return _world(rng, shape, canvas.style, fixed={**items}, crowd=0.5)

    world = _until(split, make)
    things = [
        _thing(canvas, world, (r, c))
        for r in range(shape[0])
        for c in range(shape[1])
        if world.at(r, c) or (r, c) == (world.agent.row, world.agent.column)
    ]
    return Scene(image=canvas.picture(world), things=tuple(sorted(things, key=lambda thing: thing.box)))


# --- questions --------------------------------------------------------------------------------------------

_FROM = "Row 1, column 1 is at the top left."


def _size(shape: tuple[int, int]) -> float:
    """Difficulty by the number of cells: 3 x 3 is 0, 8 x 8 is 1."""
    return (shape[0] * shape[1] - 9) / 55


def agent_position(rng: np.random.Generator, split: Split) -> Asked:
    """In which row and column is the agent?"""
    shape = _shape(rng)
    canvas = random_canvas(rng, split, shape)
    row, column = at = _somewhere(rng, shape)
    facing = FACINGS[int(rng.integers(4))]
    agent = Agent(row=row, column=column, facing=facing)
    world = _until(split, lambda: _world(rng, shape, canvas.style, agent=agent))
    seen = look(canvas.ink(world, at))
    return Asked(
        images=(canvas.picture(world),),
        question=f"In which row and column is the agent? {_FROM}",
        answer=_said(at),
        said=seen + _said(at),
        thought=f"From the top the agent is {seen}number {row + 1}, from the left {seen}number {column + 1}.",
        difficulty=_size(shape),
    )


def goal_position(rng: np.random.Generator, split: Split) -> Asked:
    """In which row and column is the goal?"""
    shape = _shape(rng)
    canvas = random_canvas(rng, split, shape)
    row, column = at = _somewhere(rng, shape)
    world = _until(split, lambda: _world(rng, shape, canvas.style, fixed={at: Item(kind="goal")}))
    seen = look(canvas.ink(world, at))
    return Asked(
        images=(canvas.picture(world),),
        question=f"In which row and column is the goal? {_FROM}",
        answer=_said(at),
        said=seen + _said(at),
        thought=f"From the top the goal is {seen}number {row + 1}, from the left {seen}number {column + 1}.",
        difficulty=_size(shape),
    )


def agent_facing(rng: np.random.Generator, split: Split) -> Asked:
    """Which way does the triangle point?"""
    shape = _shape(rng)
    canvas = random_canvas(rng, split, shape, facing=True)
    row, column = at = _somewhere(rng, shape)
    agent = Agent(row=row, column=column, facing=FACINGS[int(rng.integers(4))])
    world = _until(split, lambda: _world(rng, shape, canvas.style, agent=agent))
    seen = look(canvas.ink(world, at))
    phrases = ("Which way does the agent face: up, down, left or right?", "Which way does the agent look?")
    return Asked(
        images=(canvas.picture(world),),
        question=phrases[int(rng.integers(2))],
        answer=agent.facing,
        said=seen + agent.facing,
        thought=f"The agent is in {seen}{_said(at)}; its tip points {seen}{agent.facing}.",
        difficulty=_size(shape),
    )


def thing_color(rng: np.random.Generator, split: Split) -> Asked:
    """What colour is the key, the ball, the box or the door?"""
    shape = _shape(rng)
    canvas = random_canvas(rng, split, shape)
    at = _somewhere(rng, shape)
    item = Item(kind=str(rng.choice(COLORED)), color=str(rng.choice(OBJECT_COLORS)))
    world = _until(split, lambda: _world(rng, shape, canvas.style, fixed={at: item}))
    seen = look(canvas.ink(world, at))
    return Asked(
        images=(canvas.picture(world),),
        question=f"What color is the {item.kind}?",
        answer=item.color,
        said=seen + item.color,
        thought=f"The {item.kind} is in {seen}{_said(at)} and it is {seen}{item.color}.",
        difficulty=_size(shape),
    )


def count_kind(rng: np.random.Generator, split: Split) -> Asked:
    """How many walls, balls, keys, boxes or doors, one to six?"""
    shape = _shape(rng, smallest=4)
    canvas = random_canvas(rng, split, shape)
    count, kind = int(rng.integers(1, 7)), str(rng.choice(("wall", "wall", *COLORED)))

    def make() -> World:
        chosen = rng.choice(shape[0] * shape[1], count, replace=False)
        items: dict[Position, Item | None] = {}
        for index in chosen:
            color = str(rng.choice(OBJECT_COLORS)) if kind in COLORED else ""
            items[divmod(int(index), shape[1])] = Item(kind=kind, color=color)
        return _world(rng, shape, canvas.style, fixed=items, without=(kind,), crowd=0.25)

    world = _until(split, make)
    rows = [row for row, _ in world.find(kind)]
    parts = [f"row {row + 1} has {rows.count(row)}" for row in sorted(set(rows))]
    plural = "boxes" if kind == "box" else f"{kind}s"
    return Asked(
        images=(canvas.picture(world),),
        question=f"How many {plural} are there?",
        answer=count,
        said=str(count),
        thought=", ".join(parts) + ".",
        difficulty=(count - 1) / 5,
    )


_AHEAD = ("floor", "wall", "lava", "goal", *COLORED)


def cell_ahead(rng: np.random.Generator, split: Split) -> Asked:
    """What is in front of the agent? Eight answers, equally likely."""
    shape = _shape(rng)
    canvas = random_canvas(rng, split, shape, facing=True)
    answer = _AHEAD[int(rng.integers(len(_AHEAD)))]
    facing = FACINGS[int(rng.integers(4))]
    (down, across), (rows, columns) = STEPS[facing], shape
    row = int(rng.integers(max(0, -down), rows - max(0, down)))
    column = int(rng.integers(max(0, -across), columns - max(0, across)))
    ahead = (row + down, column + across)
    color = str(rng.choice(OBJECT_COLORS)) if answer in COLORED else ""
    fixed = {ahead: None if answer == "floor" else Item(kind=answer, color=color)}
    agent = Agent(row=row, column=column, facing=facing)
    world = _until(split, lambda: _world(rng, shape, canvas.style, agent=agent, fixed=fixed, crowd=0.5))
    seen = look(canvas.ink(world, (row, column)))
    return Asked(
        images=(canvas.picture(world),),
        question="What is in front of the agent: floor, wall, lava, goal, key, ball, box or door?",
        answer=answer,
        said=look(canvas.cell(ahead)) + answer,
        thought=f"The agent faces {seen}{facing}. There is {look(canvas.cell(ahead))}{answer}.",
        difficulty=_size(shape),
    )


def move_to_goal(rng: np.random.Generator, split: Split) -> Asked:
    """Agent and goal share a row or a column with nothing in between; which move brings them closer?"""
    shape = _shape(rng)
    canvas = random_canvas(rng, split, shape)
    move = FACINGS[int(rng.integers(4))]
    (down, across), (rows, columns) = STEPS[move], shape
    steps = int(rng.integers(1, (rows if down else columns)))
    row = int(rng.integers(max(0, -down * steps), rows - max(0, down * steps)))
    column = int(rng.integers(max(0, -across * steps), columns - max(0, across * steps)))
    line = [(row + k * down, column + k * across) for k in range(1, steps + 1)]
    fixed: dict[Position, Item | None] = dict.fromkeys(line)
    fixed[line[-1]] = Item(kind="goal")

    def make() -> World:
        # which way it faces must not tell the answer
        agent = Agent(row=row, column=column, facing=FACINGS[int(rng.integers(4))])
        return _world(rng, shape, canvas.style, agent=agent, fixed=fixed)

    world = _until(split, make)
    seen, wanted = look(canvas.ink(world, (row, column))), look(canvas.ink(world, line[-1]))
    return Asked(
        images=(canvas.picture(world),),
        question="Which move brings the agent closer to the goal: up, down, left or right?",
        answer=move,
        said=move,
        thought=f"The agent is in {seen}{_said((row, column))}, the goal in {wanted}{_said(line[-1])}.",
        difficulty=_size(shape),
    )


def locate_thing(rng: np.random.Generator, split: Split) -> Asked:
    """Where is the agent, the goal, or the one thing of a coloured kind?"""
    shape = _shape(rng)
    canvas = random_canvas(rng, split, shape)
    at = _somewhere(rng, shape)
    kind = str(rng.choice(("agent", "goal", *COLORED)))
    item = Item(kind=kind, color=str(rng.choice(OBJECT_COLORS)) if kind in COLORED else "")

    def make() -> World:
        if kind == "agent":
            agent = Agent(row=at[0], column=at[1], facing=FACINGS[int(rng.integers(4))])
            return _world(rng, shape, canvas.style, agent=agent, crowd=0.45)
        return _world(rng, shape, canvas.style, fixed={at: item}, crowd=0.45)

    world = _until(split, make)
    box = canvas.ink(world, at)
    named = item.label if rng.random() < 0.5 else kind
    return Asked(
        images=(canvas.picture(world),),
        question=f"Where is the {named}? Answer with its box.",
        answer=list(box),
        said=place(box),
        thought=f"The {named} is in {look(box)}{_said(at)}.",
        difficulty=_size(shape),
    )


QUESTIONS: dict[str, Question] = {
    # a cell of the first three rows and columns is in every world; in 15 of 16 rows and columns are 3 to 6 each, and
    # the mean of 1 / (rows * columns) is the squared mean of 1/3 to 1/6
    "grids/agent": (agent_position, "text", 15 / 16 * 0.2375**2 + 1 / 16 / 64, "row and column of the agent"),
    "grids/goal": (goal_position, "text", 15 / 16 * 0.2375**2 + 1 / 16 / 64, "row and column of the goal"),
    "grids/facing": (agent_facing, "text", 1 / 4, "which way the agent faces"),
    "grids/color": (thing_color, "text", 1 / len(OBJECT_COLORS), "the colour of a thing"),
    "grids/count": (count_kind, "number", 1 / 6, "how many things of a kind, one to six"),
    "grids/ahead": (cell_ahead, "text", 1 / len(_AHEAD), "what is in front of the agent"),
    "grids/action": (move_to_goal, "text", 1 / 4, "the move towards a goal in the same row or column"),
    # simulated: the best of the boxes that occurred in 4,000 problems (tests/test_grids.py does it again)
    "grids/locate": (locate_thing, "box", 0.04, "the box of the agent, the goal or a thing"),
}
"""name -> (question, kind of its answer, chance of the best reply that does not look, one line)."""
