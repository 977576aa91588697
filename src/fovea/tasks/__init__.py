"""Sources of problems. `TASKS` is the list; `open_task` opens one, `open_data` a file of the user's.

Try it: `fovea tasks show digits/locate`
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fovea.boxes import convert as convert_box  # fovea.tasks.convert is a module of this package
from fovea.boxes import fill
from fovea.tasks import cards, detecting, graphs, grids, panels, photos, printed, referring
from fovea.tasks.check import Report, check_task
from fovea.tasks.data import open_data
from fovea.tasks.pictures import open_pictures
from fovea.tasks.pool import Pool
from fovea.tasks.questions import (
    Ask,
    Question,
    color_of,
    count_color,
    count_things,
    describe,
    exists,
    largest,
    left_of,
    locate_digit,
    locate_shape,
    read_digits,
    total,
)
from fovea.tasks.scenes import SPLITS, Split, digit_stamps, generator, printed_stamps, shape_stamps
from fovea.tasks.ssl import LEVEL, SSL, open_ssl
from fovea.tasks.styles import STYLES, styled
from fovea.types import AnswerKind, Problem, Task, UserError

__all__ = [
    "LATER", "SPLITS", "SSL", "STYLES", "TASKS", "Report", "Split", "Task", "TaskSpec",
    "check_task", "corpus", "open_data", "open_pictures", "open_task",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """A question asked of one kind of picture."""

    ask: Ask
    kind: AnswerKind
    chance: float
    """Accuracy of the best reply that does not look at the picture (tests/test_tasks.py re-measures it)."""
    about: str
    """One line for `fovea tasks list`."""


_HAND = "handwritten digits (UCI, 8x8 pixels enlarged)"
_SCENES: dict[str, Question] = {
    "digits/locate": (locate_digit(digit_stamps), "box", 0.03, f"the box of a digit among two to four; {_HAND}"),
    "digits/count": (count_things("digits", digit_stamps), "number", 1 / 6, f"how many digits, one to six; {_HAND}"),
    "digits/read": (read_digits(digit_stamps), "text", 1 / 30, f"one to three digits from left to right; {_HAND}"),
    "digits/describe": (describe(digit_stamps), "objects", 0.0, f"every digit with its box; {_HAND}"),
    # always "9": P(9 is among 2 or 3 of 10) = (0.2 + 0.3) / 2
    "digits/largest": (largest(digit_stamps), "number", 0.25, f"the largest of two or three digits; {_HAND}"),
    "digits/sum": (total(digit_stamps), "number", 0.1, f"the sum of two digits; {_HAND}"),
    "printed/locate": (
        locate_digit(printed_stamps), "box", 0.03, "as digits/locate, with digits drawn from a font; never trained",
    ),
    "shapes/locate": (locate_shape(shape_stamps), "box", 0.06, "the box of a shape among two to four"),
    "shapes/count": (count_things("shapes", shape_stamps), "number", 1 / 6, "how many shapes, one to six"),
    "shapes/describe": (describe(shape_stamps), "objects", 0.0, "every coloured shape with its box"),
    "shapes/color": (partial(color_of, stamps=shape_stamps), "text", 0.14, "the colour of a shape among two to four"),
    "shapes/exists": (partial(exists, stamps=shape_stamps), "text", 0.5, "is there a shape of this colour"),
    "shapes/left_of": (partial(left_of, stamps=shape_stamps), "text", 0.5, "is a shape left of another"),
    "shapes/count_color": (partial(count_color, stamps=shape_stamps), "number", 0.25, "how many have one colour"),
}  # fmt: skip
_QUESTIONS = (
    _SCENES | printed.QUESTIONS | cards.QUESTIONS | grids.QUESTIONS | graphs.QUESTIONS | panels.QUESTIONS
) | photos.QUESTIONS
LATER = frozenset(referring.QUESTIONS | detecting.QUESTIONS)
"""Tasks that came after the embedded model's weights: not in their mixtures, nor in the texts of their tokenizer
(`corpus`), nor in their card, which says so."""
_QUESTIONS |= referring.QUESTIONS | detecting.QUESTIONS
TASKS: dict[str, TaskSpec] = {
    name: TaskSpec(ask=ask, kind=kind, chance=chance, about=about)
    for name, (ask, kind, chance, about) in sorted(_QUESTIONS.items())
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneTask:
    """An endless task: problem i of a split is a function of (seed, i) alone."""

    name: str
    """As opened: "digits/read" or, in another style, "digits/read@think"."""
    split: Split
    seed: int

    @property
    def kind(self) -> AnswerKind:
        return self._spec.kind

    @property
    def chance(self) -> float:
        return self._spec.chance

    @property
    def size(self) -> None:
        return None

    @property
    def _spec(self) -> TaskSpec:
        return TASKS[self.name.partition("@")[0]]

    def problem(self, index: int) -> Problem:
        """Problem `index`, drawn anew. The style changes the words, not the pictures."""
        name, _, style = self.name.partition("@")
        spec = TASKS[name]
        rng = generator("problem", name, self.split, self.seed, index)
        asked = spec.ask(rng, self.split)
        question, target = styled(asked, spec.kind, style or "answer")
        return Problem(
            id=f"{self.name}:{self.split}:{self.seed}:{index}",
            task=self.name,
            images=asked.images,
            question=question,
            answer=asked.answer,
            kind=spec.kind,
            difficulty=asked.difficulty,
            target=target,
            meta={"box_image": asked.box_image} | asked.meta,
        )

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self.problem(index) for index in range(cursor, cursor + n)], cursor + n


def open_task(
    name: str,
    split: str = "train",
    seed: int = 0,
    *,
    pool: Pool | None = None,
    level: float | Callable[[int], float] = LEVEL,
    options: Mapping[str, Any] | None = None,
) -> Task:
    """A built-in task, "digits/read" or with a style "digits/read@think".

    `pool`, `level` and `options` belong to self-supervised tasks (`fovea.tasks.ssl`): the pictures, the difficulty (of
    problem i, or one for all), the options of the generator.
    Raises UserError for a name, style or split that does not exist.
    """
    base, at, style = name.partition("@")
    if base not in TASKS and base not in SSL:
        known = [*TASKS, *SSL]
        near = difflib.get_close_matches(base, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"There is no task {base!r}{hint}; `fovea tasks list` names all {len(known)}.")
    if at and style not in STYLES:
        raise UserError(f"Task {name!r}: there is no style {style!r}; known: {', '.join(STYLES)}.")
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; known: {', '.join(SPLITS)}.")
    if base in SSL:
        return open_ssl(name, split, seed, pool=pool, level=level, options=options)
    return SceneTask(name=name, split=split, seed=seed)


# Words that the embedded model's tokenizer should write in few tokens although no task here uses them yet.
_FORMATS = (
    '```json\n[{"bbox_2d": [12, 345, 678, 900], "label": "yellow star"}]\n```',
    "A, B, C, D",
    '{"thoughts": "the card is a ten of hearts, my sum is 17", "action": "stand"}',
    "Which picture was rotated? left right up down forward toggle pickup drop turn",
    "10 20 30 40 50 60 70 80 90 100 - + = * / ( ) [ ] ? ! : ; . ,",
    "target current formula value number append next move action think answer",
)


def corpus(seed: int, n: int = 16) -> list[str]:
    """Texts that a tokenizer for these tasks should cover: questions and replies in all styles, `LATER` tasks aside."""
    texts = list(_FORMATS) * 20
    for name in (name for name in TASKS if name not in LATER):
        for style in STYLES:
            for problem in open_task(f"{name}@{style}", "train", seed).take(0, n)[0]:
                size = problem.images[0].size if problem.images else (64, 64)

                def thousandths(box: tuple[float, ...], size: tuple[int, int] = size) -> tuple[float, ...]:
                    return convert_box(box, "pixels", "thousandths", size, size)

                texts.append(problem.question)
                if name != "printed/word":  # words are to be written letter by letter, as they are read
                    texts.append(fill(problem.target or "", thousandths, "thousandths"))
    return texts
