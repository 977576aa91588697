"""A jigsaw that is put together step by step: exchange parts, look closer, submit.

    swap 1 4     exchanges the parts at two places
    crop 3       shows the part at a place enlarged, beside the board, until the next action
    submit       ends the episode; the reward is the accuracy of `ssl/jigsaw`: 1 for the true order

The parts, their tints and hidden edges, and the pictures behind them are those of the self-supervised task
(`fovea.tasks.ssl.jigsaw`), which asks for the whole order in one reply. Places are numbered row by row from 1. After
`turns` replies the episode is cut off.

Importing this file imports gymnasium. Try it:

    from fovea.environments.jigsaw import JIGSAW
    env = JIGSAW.make(n=2); env.reset(seed=0); print(JIGSAW.ask(env), JIGSAW.expert(env))
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from fovea.environments.game import Game
from fovea.environments.generic import SPLITS
from fovea.rewards.routing import accuracy
from fovea.tasks import open_task
from fovea.tasks.ssl.pieces import board, piece
from fovea.types import UserError

_LONGEST = 40
"""Characters of an action: a longer text is none."""
_ACTION = re.compile(
    r"(?:swap[\s:(]++([0-9]{1,2})[\s,]++(?:(?:and|with)\s++)?([0-9]{1,2})|crop[\s:(]++([0-9]{1,2})|(submit))[\s).]*+",
    re.ASCII,
)


class JigsawDesk(gymnasium.Env):
    """The environment. Actions are numbered as in `names`. Example: JigsawDesk(n=3, side=144)

    `n` parts a side, `side` pixels of the board, `level` the task's difficulty, `turns` replies (0: n * n + 4; a board
    may need n * n - 1 exchanges and the submission).
    """

    def __init__(self, n: int = 2, side: int = 96, turns: int = 0, level: float = 0.4) -> None:
        if not 2 <= n <= 6 or not 48 <= side <= 1024 or turns < 0 or not 0 <= level <= 1:
            raise UserError(
                f"jigsaw: n={n}, side={side}, turns={turns}, level={level} do not fit; give n 2 to 6, side 48 to 1024, "
                "turns 0 or more and level 0 to 1."
            )
        self.n, self.side, self.turns, self.level = n, side, turns or n * n + 4, level
        places = range(1, n * n + 1)
        self.names = (
            *(f"swap {i} {j}" for i, j in itertools.combinations(places, 2)),
            *(f"crop {i}" for i in places),
            "submit",
        )
        self.action_space = gymnasium.spaces.Discrete(len(self.names))
        self.observation_space = gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8)
        self.render_mode = "rgb_array"
        self.problem: Any = None
        self.parts: list[int] = []
        """For each place, which of the problem's pictures lies there, from 0."""
        self.closer: int | None = None
        """Place whose part is shown enlarged, from 0."""
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        split = (options or {}).get("split", "train")
        if split not in SPLITS:
            raise UserError(f"jigsaw: there is no split {split!r}; known: {', '.join(SPLITS)}.")
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        task = open_task("ssl/jigsaw", split, drawn, level=self.level, options={"n": self.n})
        self.problem = task.take(0, 1)[0][0]
        self.parts, self.closer, self.steps = list(range(self.n**2)), None, 0
        return self.render(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        kind, *places = self.names[int(action)].split()
        self.steps += 1
        self.closer = None
        if kind == "submit":
            order = ", ".join(str(part + 1) for part in self.parts)
            reward = float(accuracy(f"<answer>{order}</answer>", self.problem))
            return self.render(), reward, True, False, {}
        if kind == "crop":
            self.closer = int(places[0]) - 1
        else:
            i, j = (int(place) - 1 for place in places)
            self.parts[i], self.parts[j] = self.parts[j], self.parts[i]
        return self.render(), 0.0, False, self.steps >= self.turns, {}

    @property
    def wrong(self) -> list[int]:
        """Places (from 0) whose part belongs elsewhere."""
        return [i for i, part in enumerate(self.parts) if part + 1 != self.problem.answer[i]]

    def pictures(self) -> tuple[Image.Image, ...]:
        """The board, and the part that was asked for."""
        size = piece(self.side, self.n)
        laid = [self.problem.images[part].resize((size, size)) for part in self.parts]
        whole = (board(laid, self.n, self.side),)
        if self.closer is None:
            return whole
        return (*whole, self.problem.images[self.parts[self.closer]].resize((self.side, self.side)))

    def render(self) -> Any:
        return np.asarray(self.pictures()[0])


# --- the game ---------------------------------------------------------------------------------------------


def read(env: Any, legal: tuple[str, ...], text: str) -> str | None:
    """The action that the text is: `swap 4 1` is `swap 1 4`; places must exist, and two be different."""
    found = _ACTION.fullmatch(text.strip().strip("\"'`").casefold()) if len(text) <= _LONGEST else None
    if found is None:
        return None
    first, second, closer, submit = found.groups()
    if submit:
        return "submit"
    name = f"crop {int(closer)}" if closer else "swap {} {}".format(*sorted((int(first), int(second))))
    return name if name in env.names else None


def _ask(env: Any) -> str:
    seen = "" if env.closer is None else f" The second picture is the part at place {env.closer + 1}."
    return (
        f"The parts of a picture of {env.n} rows and {env.n} columns are mixed. Bring each to its place. Places are "
        f"numbered row by row from 1 to {env.n**2}.{seen}\n"
        f"Actions: swap i j, crop i, submit. Replies left: {max(env.turns - env.steps, 0)}."
    )


def _expert(env: Any) -> str:
    """Brings the first wrong place its part, so n*n - 1 exchanges are enough; then submits. Cropping teaches it
    nothing."""
    wrong = env.wrong
    if not wrong:
        return "submit"
    here = wrong[0]
    there = env.parts.index(env.problem.answer[here] - 1)
    return "swap {} {}".format(*sorted((here + 1, there + 1)))


def _state(env: Any) -> dict[str, Any]:
    return {
        "problem": env.problem.id,
        "parts": [part + 1 for part in env.parts],
        "answer": list(env.problem.answer),
        "wrong": [place + 1 for place in env.wrong],
    }


def _thought(env: Any) -> str:
    if not env.wrong:
        return "Every part is in its place."
    return f"Wrong places: {', '.join(str(place + 1) for place in env.wrong)}."


def _reason(env: Any, best: str) -> str:
    return "The picture is whole." if best == "submit" else f"Place {env.wrong[0] + 1} gets its part."


JIGSAW = Game(
    name="jigsaw",
    make=JigsawDesk,
    legal=lambda env: env.names,
    ask=_ask,
    act=lambda env, said: env.names.index(said),
    read=read,
    pictures=lambda env: env.pictures(),
    # of an order that is nearly right some rewards pay a part; a success is the whole picture
    won=lambda env, total, terminated: terminated and total >= 1.0,
    state=_state,
    thought=_thought,
    expert=_expert,
    reason=_reason,
    max_turns=50,  # the environment cuts off by itself, after `turns`
    floor=0.021,  # n = 2,000, seeds 0 to n - 1 of the test split, default options
    ceiling=1.0,
    options={"n": 2, "side": 96, "turns": 0, "level": 0.4},
)
