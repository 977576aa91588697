"""Sokoban, drawn small: boxes are pushed onto goals, never pulled. Boards are made here, none is shipped.

A board is made backwards: every box stands on its goal, and the player walks about and *pulls* boxes. A pull undone is
a push, so every board can be solved. A board belongs to the split that the hash of its text says: no board of the test
split is ever trained on.

Rewards as in Racanière et al. 2017 (arXiv:1707.06203, appendix on Sokoban): -0.1 a move, +1 a box onto a goal, -1 a box
off one, +10 when all are on. The teacher is a breadth-first search over moves, so its way is a shortest one.

Importing this file imports gymnasium. Try it:

    from fovea.environments.sokoban import SOKOBAN
    env = SOKOBAN.make(size=6, boxes=1); env.reset(seed=0); print(env.text())
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from fovea.environments.game import Game
from fovea.environments.generic import SPLITS, listed
from fovea.tasks.splits import split_of
from fovea.types import UserError

Cell = tuple[int, int]
MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_NAMES = tuple(MOVES)
STEP, ON, OFF, SOLVED = -0.1, 1.0, -1.0, 10.0
TRIES = 20_000
"""Boards that are drawn for one that suits."""
SEARCH_LIMIT = 100_000
"""States after which the teacher gives up; boards of 6 x 6 with two boxes have at most 1,920."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """What does not move.

    Example: Board(size=4, walls=frozenset({(0, 0)}), goals=frozenset({(1, 2)}))
    """

    size: int
    """Cells a side, the wall around it included."""
    walls: frozenset[Cell]
    """(row, column) of every cell that nothing enters, the frame included."""
    goals: frozenset[Cell]
    """As many as there are boxes."""


class Position(NamedTuple):
    """What moves. Example: Position(player=(1, 1), boxes=frozenset({(2, 2)}))"""

    player: Cell
    boxes: frozenset[Cell]


def moved(board: Board, now: Position, name: str) -> Position | None:
    """The position after a move; None where a wall, or a box that cannot be pushed, is in the way."""
    dr, dc = MOVES[name]
    to = (now.player[0] + dr, now.player[1] + dc)
    if to in board.walls:
        return None
    if to not in now.boxes:
        return Position(to, now.boxes)
    beyond = (to[0] + dr, to[1] + dc)
    if beyond in board.walls or beyond in now.boxes:
        return None
    return Position(to, (now.boxes - {to}) | {beyond})


@functools.lru_cache(maxsize=4096)
def solution(board: Board, now: Position) -> tuple[str, ...] | None:
    """A shortest list of moves that solves the board; None where there is none within `SEARCH_LIMIT` states."""
    came: dict[Position, tuple[Position, str] | None] = {now: None}
    todo = deque([now])
    while todo and len(came) < SEARCH_LIMIT:
        here = todo.popleft()
        if here.boxes == board.goals:
            way = []
            while (step := came[here]) is not None:
                here = step[0]
                way.append(step[1])
            return tuple(reversed(way))
        for name in _NAMES:
            after = moved(board, here, name)
            if after is not None and after not in came:
                came[after] = (here, name)
                todo.append(after)
    return None


# --- making boards ----------------------------------------------------------------------------------------


def written(board: Board, now: Position) -> str:
    """The board as text: # wall, . goal, $ box, * box on a goal, @ player, + player on a goal."""
    signs = {False: {"": " ", "box": "$", "player": "@"}, True: {"": ".", "box": "*", "player": "+"}}
    lines = []
    for r in range(board.size):
        line = ""
        for c in range(board.size):
            held = "box" if (r, c) in now.boxes else "player" if (r, c) == now.player else ""
            line += "#" if (r, c) in board.walls else signs[(r, c) in board.goals][held]
        lines.append(line)
    return "\n".join(lines)


def _room(rng: np.random.Generator, size: int) -> tuple[frozenset[Cell], list[Cell]]:
    """Walls, and the largest set of connected free cells; what is cut off becomes wall."""
    cells = [(r, c) for r in range(1, size - 1) for c in range(1, size - 1)]
    free = {cell for cell in cells if rng.random() > 0.15}
    best: set[Cell] = set()
    rest = set(free)
    while rest:
        part, todo = set[Cell](), [min(rest)]
        while todo:
            r, c = todo.pop()
            if (r, c) in rest:
                rest.discard((r, c))
                part.add((r, c))
                todo += [(r + dr, c + dc) for dr, dc in MOVES.values()]
        best = max(best, part, key=len)
    everything = {(r, c) for r in range(size) for c in range(size)}
    return frozenset(everything - best), sorted(best)


def _pulled(rng: np.random.Generator, board: Board, now: Position, steps: int) -> Position:
    """Random steps backwards, each with a pull where a box is behind the player."""
    for _ in range(steps):
        dr, dc = MOVES[_NAMES[int(rng.integers(4))]]
        r, c = now.player
        to, behind = (r + dr, c + dc), (r - dr, c - dc)
        if to in board.walls or to in now.boxes:
            continue
        pulls = behind in now.boxes and rng.random() < 0.8
        boxes = (now.boxes - {behind}) | {now.player} if pulls else now.boxes
        now = Position(to, boxes)
    return now


def _too_near(board: Board, start: Position, least: int) -> bool:
    """Whether fewer than `least` moves solve it."""
    seen, edge = {start}, [start]
    for _ in range(least - 1):
        found = [moved(board, now, name) for now in edge for name in _NAMES]
        edge = [one for one in dict.fromkeys(found) if one is not None and one not in seen]
        seen.update(edge)
        if any(one.boxes == board.goals for one in edge):
            return True
    return False


def make_board(
    rng: np.random.Generator, size: int, boxes: int, split: str, least: int = 1
) -> tuple[Board, Position]:
    """A board of the split and where it begins: no box on a goal, every one can be brought there, in `least` moves or
    more. Raises UserError where such boards are too rare."""
    for _ in range(TRIES):
        walls, free = _room(rng, size)
        if len(free) < 2 * boxes + 2:
            continue
        order = [free[int(i)] for i in rng.permutation(len(free))]
        board = Board(size=size, walls=walls, goals=frozenset(order[:boxes]))
        now = _pulled(rng, board, Position(order[boxes], board.goals), 10 * size * boxes)
        stuck = all(moved(board, now, name) is None for name in _NAMES)
        if stuck or now.boxes & board.goals or split_of(written(board, now)) != split:
            continue
        if not _too_near(board, now, least):
            return board, now
    raise UserError(
        f"sokoban: no board of size {size} with {boxes} boxes and {least} moves or more was found; lower `least`."
    )


# --- the environment --------------------------------------------------------------------------------------

_COLORS: dict[str, tuple[int, int, int]] = {
    "wall": (92, 92, 104),
    "floor": (236, 228, 208),
    "goal": (214, 62, 62),
    "box": (166, 112, 56),
    "done": (58, 150, 74),
    "player": (46, 92, 190),
}


class Sokoban(gymnasium.Env):
    """A plain environment: four moves, a board of `size` x `size` cells, `tile` pixels a cell, uint8 RGB.

    `least`: moves of the shortest solution, at least. Example: Sokoban(size=6, boxes=2)
    """

    def __init__(self, size: int = 6, boxes: int = 1, tile: int = 16, least: int = 4) -> None:
        if not 5 <= size <= 16 or not 1 <= boxes <= (size - 2) ** 2 // 5 or not 4 <= tile <= 64:
            raise UserError(
                f"sokoban: size={size}, boxes={boxes}, tile={tile} do not fit; give size 5 to 16, tile 4 to 64 and at "
                "most a box for five inner cells."
            )
        self.size, self.boxes, self.tile, self.least = size, boxes, tile, least
        self.action_space = gymnasium.spaces.Discrete(4)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size * tile, size * tile, 3), np.uint8)
        self.render_mode = "rgb_array"
        self.board = Board(size=size, walls=frozenset(), goals=frozenset())
        self.now = Position((0, 0), frozenset())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        split = (options or {}).get("split", "train")
        if split not in SPLITS:
            raise UserError(f"sokoban: there is no split {split!r}; known: {', '.join(SPLITS)}.")
        self.board, self.now = make_board(self.np_random, self.size, self.boxes, split, self.least)
        return self.render(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self.now
        self.now = moved(self.board, before, _NAMES[int(action)]) or before
        gained = len(self.now.boxes & self.board.goals) - len(before.boxes & self.board.goals)
        solved = self.now.boxes == self.board.goals
        reward = STEP + (ON * gained if gained > 0 else -OFF * gained) + SOLVED * solved
        return self.render(), reward, solved, False, {}

    def text(self) -> str:
        return written(self.board, self.now)

    def render(self) -> Any:
        t = self.tile
        picture = np.empty((self.size * t, self.size * t, 3), np.uint8)
        for r in range(self.size):
            for c in range(self.size):
                picture[r * t : (r + 1) * t, c * t : (c + 1) * t] = self._tile((r, c))
        return picture

    def _tile(self, cell: Cell) -> np.ndarray:
        t, goal = self.tile, cell in self.board.goals
        if cell in self.board.walls:
            return np.full((t, t, 3), _COLORS["wall"], np.uint8)
        drawn = np.full((t, t, 3), _COLORS["floor"], np.uint8)
        y, x = np.mgrid[:t, :t] - (t - 1) / 2
        if goal:  # a cross that shows under the player, too
            drawn[np.abs(np.abs(x) - np.abs(y)) < t / 8] = _COLORS["goal"]
        if cell in self.now.boxes:
            drawn[np.maximum(np.abs(x), np.abs(y)) < 0.4 * t] = _COLORS["done" if goal else "box"]
            drawn[np.maximum(np.abs(x), np.abs(y)) < 0.2 * t] = _COLORS["goal" if goal else "floor"]
        elif cell == self.now.player:
            drawn[x**2 + y**2 < (0.36 * t) ** 2] = _COLORS["player"]
        return drawn


# --- the game ---------------------------------------------------------------------------------------------


def _legal(env: Any) -> tuple[str, ...]:
    return tuple(name for name in _NAMES if moved(env.board, env.now, name) is not None)


def _ask(env: Any) -> str:
    rules = "Push every box (brown) onto a goal (red cross). You are the blue disc; boxes cannot be pulled."
    return f"{rules}\n{listed(_legal(env))}"


def _cells(cells: frozenset[Cell]) -> list[list[int]]:
    return [list(cell) for cell in sorted(cells)]


def _state(env: Any) -> dict[str, Any]:
    now = {"player": list(env.now.player), "boxes": _cells(env.now.boxes), "goals": _cells(env.board.goals)}
    return now | {"board": env.text()}


def _thought(env: Any) -> str:
    def at(cells: Any) -> str:
        return " and ".join(f"row {r + 1}, column {c + 1}" for r, c in sorted(cells))

    plural = "es" * (len(env.now.boxes) > 1), "s" * (len(env.board.goals) > 1)
    return (
        f"I am at {at([env.now.player])}. Box{plural[0]} at {at(env.now.boxes)}. "
        f"Goal{plural[1]} at {at(env.board.goals)}."
    )


def _expert(env: Any) -> str:
    """The first move of a shortest solution; on a board that is lost every move is as good as another."""
    way = solution(env.board, env.now)
    return way[0] if way else _legal(env)[0]


def _reason(env: Any, best: str) -> str:
    after = moved(env.board, env.now, best)
    if after is not None and after.boxes != env.now.boxes:
        return f"Push the box {best}."
    return f"Walk {best} to get behind the box."


SOKOBAN = Game(
    name="sokoban",
    make=Sokoban,
    legal=_legal,
    ask=_ask,
    act=lambda env, said: _NAMES.index(said),
    won=lambda env, total, terminated: terminated,
    state=_state,
    thought=_thought,
    expert=_expert,
    reason=_reason,
    max_turns=30,
    floor=0.147,  # n = 2,000, seeds 0 to n - 1 of the test split, default options
    ceiling=1.0,
    options={"size": 6, "boxes": 1, "tile": 16, "least": 4},
)
