"""NumberLine: move a number to a target, one to the left or right at a time.

The picture shows the target and the current number. Action 0 is "-", 1 is "+", clamped at both ends. Reward 1 and
the end on reaching the target, -1 for a move that does not bring the number nearer, else 0; cut off after twice
`max_position` moves (10). Success is a return above 0: no wrong move.

`fixed`: start and target are any two different numbers; some ordered pairs begin episodes of the test split or the
validation split only (`hold_out`):

    pairs    nine of the 30; every number is still met in training with targets, and as a target with starts, on each
             side that the line has. A training episode that began elsewhere may come through a held-out pair
    starts   nine, the first draw; it happens to leave the target 1 with starts below it alone
    states   nine that lie so that no right move of a training episode leads through one: the harder question, whether
             what was learned about other numbers is true of these
    none     nothing is held out but fonts
`paper`: the original's draw, in which a target that equals the start becomes (target + 1) mod `max_position`.

Try it: python -c "from fovea.environments.cards.number_line import *; print(NumberLine().reset(seed=0)[1])"
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal

from PIL import Image

from fovea.environments.cards import drawing
from fovea.environments.cards.table import PictureGame, Step
from fovea.environments.game import Game
from fovea.tasks.scenes import Split
from fovea.types import UserError

Pair = tuple[int, int]
"""Start and target."""

HoldOut = Literal["pairs", "starts", "states", "none"]

HELD_OUT: dict[HoldOut, dict[Split, tuple[Pair, ...]]] = {
    "pairs": {
        # as "starts", of default_rng(1): the first seed whose training pairs have both sides of every number
        "test": ((4, 1), (3, 1), (1, 3), (0, 2), (0, 4), (5, 3)),
        "validation": ((3, 0), (2, 1), (5, 0)),
    },
    "starts": {
        # places 0 to 5 and 6 to 8 of np.random.default_rng(0).permutation(30) in `pairs("none")`: not chosen by results
        "test": ((0, 3), (2, 1), (5, 1), (4, 1), (2, 0), (0, 5)),
        "validation": ((5, 3), (3, 1), (4, 3)),
    },
    "states": {
        "test": ((0, 1), (0, 2), (0, 3), (5, 4), (5, 3), (5, 1)),
        "validation": ((0, 4), (1, 3), (4, 3)),
    },
    "none": {},
}
"""Of max_position 5. "states": half of the test pairs go up, half down. A state (number, target) is passed rightly only
from the next number farther from the target; of every pair there that one is held out too, or beyond the line's end."""


def pairs(split: Split | None, max_position: int = 5, hold_out: HoldOut = "pairs") -> tuple[Pair, ...]:
    """The pairs that begin a split's episodes; None: all, nothing held out."""
    line = range(max_position + 1)
    everything = tuple((start, target) for start in line for target in line if start != target)
    away = HELD_OUT[hold_out]
    if split is None or not away:
        return everything
    if split in away:
        return away[split]
    held = {pair for some in away.values() for pair in some}
    return tuple(pair for pair in everything if pair not in held)


def paper_pairs(max_position: int = 5) -> tuple[Pair, ...]:
    """The original's draw: every start with every target, the equal ones moved."""
    line = range(max_position + 1)
    return tuple((s, t if s != t else (t + 1) % max_position) for s in line for t in line)


def random_success(starts: Iterable[Pair], max_position: int = 5) -> Fraction:
    """Exact success of uniformly random moves, over equally likely starts.

    A Markov chain over (number, whether all moves were right) for as many moves as an episode has.
    """
    starts = tuple(starts)
    won = Fraction(0)
    for start, target in starts:
        here = {start: Fraction(1, len(starts))}  # chance of being here without a wrong move
        for _ in range(2 * max_position):
            after: dict[int, Fraction] = {}
            for number, chance in here.items():
                for step in (-1, 1):
                    moved = min(max(number + step, 0), max_position)
                    if moved == target:
                        won += chance / 2
                    elif abs(moved - target) < abs(number - target):
                        after[moved] = after.get(moved, Fraction(0)) + chance / 2
            here = after
    return won


class NumberLine(PictureGame):
    """The number line. Example: NumberLine(side=64), NumberLine(preset="paper")"""

    names = ("-", "+")

    def __init__(self, *, max_position: int = 5, hold_out: HoldOut = "pairs", **shared: Any) -> None:
        """`shared`: preset, side, wording, render_mode. `hold_out` is the preset `fixed`'s and knows max_position 5."""
        if hold_out not in HELD_OUT:
            raise UserError(f"hold_out must be one of {', '.join(HELD_OUT)}, not {str(hold_out)[:40]!r}.")
        super().__init__(**shared)
        if type(max_position) is not int or not 1 < max_position < 100:
            raise UserError(
                f"max_position must be a whole number from 2 to 99, not {str(max_position)[:40]!r}."
            )
        self.hold_out: HoldOut = hold_out if self.preset == "fixed" else "none"
        if self.hold_out != "none" and max_position != 5:
            raise UserError(f"hold_out is for max_position 5, not {max_position}: set hold_out to none.")
        self.max_position = max_position
        self.current = self.target = self.moves = 0

    def _begin(self) -> None:
        if self.preset == "paper":
            starts = paper_pairs(self.max_position)
        else:
            starts = pairs(self.split, self.max_position, self.hold_out)
        self.current, self.target = starts[int(self.np_random.integers(len(starts)))]
        self.moves = 0

    def step(self, action: int) -> Step:
        name = self._check(action)
        before = abs(self.current - self.target)
        moved = self.current + (1 if name == "+" else -1)
        self.current = min(max(moved, 0), self.max_position)
        self.moves += 1
        reached = self.current == self.target
        reward = 1.0 if reached else 0.0 if abs(self.current - self.target) < before else -1.0
        return self._answer(
            reward, terminated=reached, truncated=not reached and self.moves >= 2 * self.max_position
        )

    def info(self) -> dict[str, Any]:
        return {"current": self.current, "target": self.target}

    def _draw(self) -> Image.Image:
        if self.preset == "paper":
            return drawing.paper_numbers(self.size[0], self.current, self.target)
        return drawing.numbers(self.look, self.size, self.current, self.target)


# --- how it is spoken of ---------------------------------------------------------------------------------------


def ask(env: Any) -> str:
    if env.wording == "short":
        return "Move the current number to the target. Actions: - or +."
    return (
        "You are playing a game called number line. The picture shows a target number and a current number, "
        f"both from 0 to {env.max_position}. Your moves must bring the current number to the target number. "
        "There are two moves: '-' makes the current number smaller by one, '+' makes it larger by one. "
        "First read both numbers, then think about which move brings the current number nearer to the target."
    )


def expert(env: Any) -> str:
    return "+" if env.current < env.target else "-"


def reason(env: Any, name: str) -> str:
    return f"{env.current} is {'below' if env.current < env.target else 'above'} {env.target}"


GAME = Game(
    name="number_line",
    make=NumberLine,
    legal=lambda env: env.legal(),
    ask=ask,
    act=lambda env, name: env.names.index(name),
    state=lambda env: env.info(),
    thought=lambda env: f"current {env.current}, target {env.target}",
    expert=expert,
    reason=reason,
    max_turns=10,
    # random_success, exact, on the test pairs: 19/96 of "pairs", 35/192 of "starts", 9/32 of "states"; 26.9 % on all,
    # 28.3 % in `paper`
    floor=19 / 96,
    ceiling=1.0,
    options={"preset": "fixed", "side": 300, "max_position": 5, "hold_out": "pairs", "wording": "short"},
)
