"""Sources of problems. `TASKS` is the list; `open_task` opens one, `open_data` a file of the user's.

Try it: `fovea tasks show digits/locate`
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from fovea.boxes import convert, fill
from fovea.tasks.jsonl import open_data
from fovea.tasks.questions import Ask, count_things, describe, locate_digit, locate_shape, read_digits
from fovea.tasks.scenes import (
    SPLITS,
    Split,
    StampSource,
    digit_stamps,
    generator,
    printed_stamps,
    shape_stamps,
)
from fovea.types import AnswerKind, Problem, Task, UserError

__all__ = ["SPLITS", "TASKS", "Split", "Task", "TaskSpec", "corpus", "open_data", "open_task"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """A question asked of one kind of picture."""

    about: str
    """One line for `fovea tasks list`."""
    kind: AnswerKind
    chance: float
    """Accuracy of the best reply that does not look at the picture (tests/test_tasks.py re-measures it)."""
    stamps: Callable[[Split], StampSource]
    ask: Ask


_HAND = "handwritten digits (UCI, 8x8 pixels enlarged)"
TASKS: dict[str, TaskSpec] = {
    "digits/locate": TaskSpec(
        about=f"the box of a named digit among two to four; {_HAND}",
        kind="box", chance=0.03, stamps=digit_stamps, ask=locate_digit,
    ),
    "digits/count": TaskSpec(
        about=f"how many digits, one to six; {_HAND}",
        kind="number", chance=1 / 6, stamps=digit_stamps, ask=count_things("digits"),
    ),
    "digits/read": TaskSpec(
        about=f"one to three digits from left to right; {_HAND}",
        kind="text", chance=1 / 30, stamps=digit_stamps, ask=read_digits,
    ),
    "digits/describe": TaskSpec(
        about=f"every digit with its box; {_HAND}",
        kind="objects", chance=0.0, stamps=digit_stamps, ask=describe,
    ),
    "printed/locate": TaskSpec(
        about="as digits/locate, with digits drawn from a font",
        kind="box", chance=0.03, stamps=printed_stamps, ask=locate_digit,
    ),
    "shapes/locate": TaskSpec(
        about="the box of a named shape among two to four",
        kind="box", chance=0.06, stamps=shape_stamps, ask=locate_shape,
    ),
    "shapes/count": TaskSpec(
        about="how many shapes, one to six",
        kind="number", chance=1 / 6, stamps=shape_stamps, ask=count_things("shapes"),
    ),
    "shapes/describe": TaskSpec(
        about="every coloured shape with its box",
        kind="objects", chance=0.0, stamps=shape_stamps, ask=describe,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneTask:
    """An endless task: problem i of a split is a function of (seed, i) alone."""

    name: str
    split: Split
    seed: int

    @property
    def kind(self) -> AnswerKind:
        return TASKS[self.name].kind

    @property
    def chance(self) -> float:
        return TASKS[self.name].chance

    @property
    def size(self) -> None:
        return None

    def problem(self, index: int) -> Problem:
        """Problem `index`, drawn anew."""
        spec = TASKS[self.name]
        rng = generator("problem", self.name, self.split, self.seed, index)
        asked = spec.ask(rng, spec.stamps(self.split), self.split)
        return Problem(
            id=f"{self.name}:{self.split}:{self.seed}:{index}",
            task=self.name,
            images=(asked.scene.image,),
            question=asked.question,
            answer=asked.answer,
            kind=spec.kind,
            difficulty=asked.difficulty,
            target=asked.target,
        )

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self.problem(index) for index in range(cursor, cursor + n)], cursor + n


def open_task(name: str, split: str = "train", seed: int = 0) -> Task:
    """A built-in task. Raises UserError for a name or split that does not exist."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"There is no task {name!r}{hint}; known: {', '.join(TASKS)}.")
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; known: {', '.join(SPLITS)}.")
    return SceneTask(name=name, split=split, seed=seed)


# Formats and words that the embedded model's tokenizer should write in few tokens although no task here uses
# them yet.
_FORMATS = (
    "<think>The picture shows a red circle and a blue square.</think><answer>42</answer>",
    '```json\n[{"bbox_2d": [12, 345, 678, 900], "label": "yellow star"}]\n```',
    "\\boxed{A}",
    "A, B, C, D",
    '{"thoughts": "the card is a ten of hearts, my sum is 17", "action": "stand"}',
    "Which picture was rotated? left right up down forward toggle pickup drop",
    "10 20 30 40 50 60 70 80 90 100 - + = * / ( ) [ ] ? ! : ; . ,",
    "The answer is yes. The answer is no. There are three edges: (0, 1), (1, 2), (2, 0).",
)


def corpus(seed: int, n: int = 100) -> list[str]:
    """Texts that a tokenizer for these tasks should cover: questions and replies of all tasks, and formats."""
    texts = list(_FORMATS) * 20
    for name in TASKS:
        for problem in open_task(name, "train", seed).take(0, n)[0]:
            size = problem.images[0].size

            def thousandths(box: tuple[float, ...], size: tuple[int, int] = size) -> tuple[float, ...]:
                return convert(box, "pixels", "thousandths", size, size)

            texts += [problem.question, fill(problem.target or "", thousandths, "thousandths")]
    return texts
