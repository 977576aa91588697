"""A question about a picture, with tools: the reply may ask for a closer look before it answers.

    crop 0 0 50 100     left, top, right, bottom of a window, in percent of the picture's width and height
    zoom 75 25          a window of two fifths of the sides around that point, in percent
    answer 27           ends the episode; the reward is the accuracy of the task that the problem is from

The picture is first shown `overview` times smaller, every window as large as that overview, from the whole picture: a
window shows details that the overview does not, and one of everything shows nothing new. All windows that were asked
for stay in view, so that nothing need be remembered. After `turns` replies the episode is cut off.

The problems are those of any task (`fovea.tasks`), by its name, or a `Task` object. Coordinates are percents and not
pixels, so that they mean the same whatever a model's processor makes of the picture.

Not here: pictures that answer by themselves (`jigsaw.py`), rewards for looking (there are none: only the answer pays).

Try it:

    from fovea.environments.tools import ZOOM
    env = ZOOM.make(task="digits/read"); env.reset(seed=0); print(ZOOM.ask(env), ZOOM.read(env, (), "Crop 0,0, 50,100"))
"""

from __future__ import annotations

import re
from typing import Any, Literal

import gymnasium
import numpy as np
from PIL import Image

from fovea.environments.game import Game
from fovea.environments.generic import SPLITS
from fovea.rewards.answers import ANSWER_LIMIT
from fovea.rewards.routing import accuracy
from fovea.tasks import open_task
from fovea.types import Problem, Task, UserError

Window = tuple[int, int, int, int]
"""Percent: left, top, right, bottom."""

LEAST = 5
"""Percent of a side that a window has at least."""
REACH = 20
"""Percent of a side that `zoom` shows to each side of its point."""
_FRAMED = ("box", "objects")
# Four numbers and a name are short; a longer text is no window, and is not searched.
_LONGEST = 80
_FORMS = "crop x1 y1 x2 y2, zoom x y or answer TEXT"
_ANSWER = re.compile(r"answer(?::|\s)\s*+", re.IGNORECASE | re.ASCII)
_WINDOW = re.compile(r"(crop|zoom)[\s:(\[]++([0-9]{1,3})((?:[\s,]++[0-9]{1,3}){1,3})[\s)\].]*+", re.ASCII)


class ToolDesk(gymnasium.Env):
    """The environment. An action is its text, "crop 0 0 50 100" or "answer 7". Example: ToolDesk(task="digits/sum")"""

    def __init__(self, task: str | Task = "digits/read", overview: int = 2, turns: int = 4) -> None:
        if overview < 1 or turns < 1:
            raise UserError(f"zoom: overview={overview} and turns={turns} must be 1 or more.")
        self.task, self.overview, self.turns = task, overview, turns
        self.action_space = gymnasium.spaces.Text(200)  # nearly: answers may hold any character
        self.observation_space = gymnasium.spaces.Text(10_000)
        self.render_mode = "rgb_array"
        self.problem: Any = None
        self.windows: list[Window] = []
        self.said: str | None = None
        """The answer that was given."""
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        split = (options or {}).get("split", "train")
        if split not in SPLITS:
            raise UserError(f"zoom: there is no split {split!r}; known: {', '.join(SPLITS)}.")
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        self.problem = self._problem(split, drawn)
        if not self.problem.images:
            raise UserError(f"zoom: the problems of {self.problem.task} have no picture to look at.")
        self.windows, self.said, self.steps = [], None, 0
        return self.problem.question, {}

    def _problem(self, split: str, seed: int) -> Problem:
        if isinstance(self.task, str):
            return open_task(self.task, split, seed).take(0, 1)[0][0]
        size = (
            self.task.size
        )  # a task object has a split and a seed already: `seed` says which of its problems
        return self.task.take(seed % size if size else seed, 1)[0][0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        parts = _parts(str(action))
        if parts is None:
            raise UserError(f"zoom: {str(action)[:60]!r} is no action; {_FORMS}.")
        self.steps += 1
        if parts[0] == "answer":
            self.said = parts[1]
            reward = float(accuracy(f"<answer>{self.said}</answer>", self.problem))
            return self.problem.question, reward, True, False, {}
        self.windows.append(parts[1])
        return self.problem.question, 0.0, False, self.steps >= self.turns, {}

    @property
    def shrunk(self) -> int:
        """How many times smaller the overview is: not where the answer is a box, which is in the picture's pixels."""
        return 1 if self.problem.kind in _FRAMED else self.overview

    def pictures(self) -> tuple[Image.Image, ...]:
        """The problem's pictures, the first as an overview, and every window."""
        first, *others = self.problem.images
        small = first.reduce(self.shrunk) if self.shrunk > 1 else first.copy()
        return (small, *others, *(self._seen(first, window, small.size) for window in self.windows))

    def _seen(self, picture: Image.Image, window: Window, room: tuple[int, int]) -> Image.Image:
        """A window, as large as it can be within the overview's size."""
        width, height = picture.size
        box = (
            window[0] * width / 100,
            window[1] * height / 100,
            window[2] * width / 100,
            window[3] * height / 100,
        )
        scale = min(room[0] / (box[2] - box[0]), room[1] / (box[3] - box[1]))
        size = max(8, round((box[2] - box[0]) * scale)), max(8, round((box[3] - box[1]) * scale))
        return picture.resize(size, Image.Resampling.BICUBIC, box=box)

    def render(self) -> Any:
        """All that is shown, from left to right."""
        shown = self.pictures()
        whole = Image.new("RGB", (sum(one.width for one in shown), max(one.height for one in shown)))
        x = 0
        for one in shown:
            whole.paste(one, (x, 0))
            x += one.width
        return np.asarray(whole)


# --- actions ----------------------------------------------------------------------------------------------


def _window(kind: str, numbers: tuple[int, ...]) -> Window | None:
    """The window that is meant, at least `LEAST` percent a side, within the picture; None for one that is none."""
    if kind == "zoom":
        if len(numbers) != 2 or max(numbers) > 100:
            return None
        x, y = (min(max(number, REACH), 100 - REACH) for number in numbers)
        return x - REACH, y - REACH, x + REACH, y + REACH
    if len(numbers) != 4 or max(numbers) > 100:
        return None
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2) if x2 - x1 >= LEAST and y2 - y1 >= LEAST else None


def _parts(text: str) -> tuple[Literal["answer"], str] | tuple[Literal["look"], Window] | None:
    """What an action says; None for a text that is none."""
    text = text.strip()
    answer = _ANSWER.match(text)
    if answer is not None:
        said = text[answer.end() :].strip()
        return ("answer", said) if said and len(said) <= ANSWER_LIMIT else None
    found = _look(text)
    return None if found is None else ("look", found[2])


def _look(text: str) -> tuple[str, tuple[int, ...], Window] | None:
    """The tool, its numbers and the window that they mean."""
    found = _WINDOW.fullmatch(text.casefold()) if len(text) <= _LONGEST else None
    if found is None:
        return None
    numbers = tuple(int(one) for one in re.findall(r"[0-9]+", f"{found[2]} {found[3]}"))
    window = _window(found[1], numbers)
    return None if window is None else (found[1], numbers, window)


def read(env: Any, legal: tuple[str, ...], text: str) -> str | None:
    """The action in its canonical form: `Crop (0, 0, 50, 50)` is `crop 0 0 50 50`; an answer is kept as it is."""
    parts = _parts(text)
    if parts is None:
        return None
    if parts[0] == "answer":
        return f"answer {parts[1]}"
    found = _look(text.strip())
    return None if found is None else f"{found[0]} {' '.join(map(str, found[1]))}"


_HALVES = ("crop 0 0 60 100", "crop 40 0 100 100", "crop 0 0 100 60", "crop 0 40 100 100")
_POINTS = tuple(f"zoom {x} {y}" for y in (25, 75) for x in (25, 75))
_GUESSES = {
    "choice": ("A", "B", "C", "D"),
    "number": tuple(map(str, range(10))),
    "text": (*map(str, range(10)), "yes", "no"),
}


def _legal(env: Any) -> tuple[str, ...]:
    """Some of them: halves, quarters, and short answers of the problem's kind."""
    guesses = tuple(f"answer {one}" for one in _GUESSES.get(env.problem.kind, ("nothing",)))
    return (*_HALVES, *_POINTS, *guesses) if env.steps + 1 < env.turns else guesses


def _ask(env: Any) -> str:
    left = env.turns - env.steps
    frame = " Boxes are in pixels of the first picture." if env.problem.kind in _FRAMED else ""
    seen = "".join(f" Window {i + 1}: {' '.join(map(str, w))}." for i, w in enumerate(env.windows))
    tools = "crop x1 y1 x2 y2 (a closer look at a window, in percent of width and height), zoom x y, "
    return (
        f"{env.problem.question}{frame}{seen}\n"
        f"Actions: {tools if left > 1 else ''}answer TEXT. Replies left: {max(left, 0)}."
    )


# --- the teacher ------------------------------------------------------------------------------------------


def _said(problem: Problem) -> str:
    """The truth as a reply would say it."""
    truth = problem.answer
    return ", ".join(map(str, truth)) if isinstance(truth, list | tuple) else str(truth)


def _expert(env: Any) -> str:
    """Looks at both halves along the longer side while there are replies left for it, then answers."""
    width, height = env.problem.images[0].size
    halves = _HALVES[:2] if width >= height else _HALVES[2:]
    looks = min(len(halves), env.turns - 1)
    return halves[env.steps] if env.steps < looks else f"answer {_said(env.problem)}"


def _reason(env: Any, best: str) -> str:
    return "That is what the windows show." if best.startswith("answer") else "A closer look at this part."


def _thought(env: Any) -> str:
    count = len(env.windows)
    return f"I see the overview and {count} window{'s' * (count != 1)}."


def _state(env: Any) -> dict[str, Any]:
    problem = env.problem
    return {
        "problem": problem.id,
        "answer": _said(problem),
        "windows": [list(window) for window in env.windows],
        "said": env.said,
    }


ZOOM = Game(
    name="zoom",
    make=ToolDesk,
    legal=_legal,
    ask=_ask,
    act=lambda env, said: said,
    read=read,
    pictures=lambda env: env.pictures(),
    # some rewards give credit for being near; a success is a right answer
    won=lambda env, total, terminated: terminated and total >= 1.0,
    state=_state,
    thought=_thought,
    expert=_expert,
    reason=_reason,
    max_turns=50,  # the environment cuts off by itself, after `turns`
    floor=0.025,  # n = 10,000, seeds 0 to n - 1 of the test split, default options
    ceiling=1.0,
    options={"task": "digits/read", "overview": 2, "turns": 4},
)
