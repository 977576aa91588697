"""What a self-supervised question is: one value a generator, and how its options are checked.

A generator's file has `chance`, `make` and `GENERATOR`, in this order. `make(images, rng, difficulty, *,
option=default)` draws a problem's pictures from a pool and asks; every random choice comes from `rng`, so that a
problem is a function of (seed, i, difficulty). `chance(difficulty, *, …)` takes the same options. Defaults are
the hardened ones; the options of the released SSL4RL code are `GENERATOR.paper`. Sources of pictures are no part
of a generator (`pool.py`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints

from fovea.tasks.pool import Pool
from fovea.tasks.questions import Asked
from fovea.tasks.scenes import generator
from fovea.tasks.styles import styled
from fovea.types import AnswerKind, Problem, UserError

T = TypeVar("T")

TRIES = 200
"""Pictures that a generator draws before it says that the pool does not suit it."""

Options = Mapping[str, Any]
"""Option of a generator → value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generator:
    """A question that a picture answers itself.

    Example: Generator(make=make, kind="number", chance=chance, about="how far was it turned", answer="0, 90, 180 or
    270", rewards={"numeric": 1.0, "format": 0.1}, shortcuts="…")
    """

    make: Callable[..., Asked]
    """`(images, rng, difficulty, *, option=default, …)` → pictures, question, answer. Raises UserError if no
    picture of the pool suits it."""
    kind: AnswerKind
    chance: Callable[..., float]
    """`(difficulty, *, option=default, …)` → accuracy of the best reply that does not look, 0 to 1."""
    about: str
    """One line for `fovea tasks list`."""
    answer: str
    """What a reply must be, one clause."""
    rewards: Mapping[str, float]
    """Reward → weight that a run takes where its recipe names none."""
    shortcuts: str
    """What could be answered by without seeing what is meant, and what closes it."""
    reward_options: Mapping[str, Options] = field(default_factory=dict)
    """Options of those rewards."""
    paper: Options | None = None
    """Options with which it does what the released SSL4RL code does; None: it is not among its tasks."""
    needs: Literal["pictures", "depth", "frames"] = "pictures"
    """What the pool must have: depth maps, or sequences of frames."""


@functools.cache
def _parameters(make: Callable[..., Asked]) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(make).parameters.items())[3:])


def options_of(generator: Generator) -> dict[str, Any]:
    """Name → default of each option of a generator."""
    return {name: one.default for name, one in _parameters(generator.make).items()}


def check_options(name: str, generator: Generator, given: Options | None) -> dict[str, Any]:
    """The options as the generator wants them; `paper=true` stands for those of `Generator.paper`, which others beside
    it change. Raises UserError for one that it has not, or of another type."""
    from pydantic import TypeAdapter, ValidationError  # half of what `--help` would import

    from fovea.config import nearest

    known = options_of(generator)
    hints = get_type_hints(generator.make)
    found: dict[str, Any] = {}
    for option, value in _with_paper(name, generator, given or {}).items():
        if option not in known:
            there = f"known: {', '.join(known)}" if known else "it has none"
            raise UserError(f"Task {name!r} has no option {option!r}{nearest(option, list(known))}; {there}.")
        try:
            found[option] = TypeAdapter(hints[option]).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"].lower()
            raise UserError(f"task_options.{name}.{option}={value!r} is not allowed: {said}.") from None
    return found


def _with_paper(name: str, generator: Generator, given: Options) -> Options:
    """The options with `paper=true` written out. Raises UserError for a generator that the paper's code has not."""
    own = dict(given)
    wanted = own.pop("paper", False)
    if not isinstance(wanted, bool):
        raise UserError(f"task_options.{name}.paper={wanted!r} is not allowed; give true, or leave it away.")
    if not wanted:
        return own
    if generator.paper is None:
        raise UserError(
            f"task_options.{name}.paper=true: the task is not among those of SSL4RL's released code; leave it away."
        )
    return dict(generator.paper) | own


def step_of(difficulty: float, values: Sequence[T]) -> T:
    """The value of a difficulty 0 to 1 among `values`, easiest first, each for an equal part of the range.

    Example: step_of(0.5, [2, 3, 4]) == 3
    """
    return values[min(int(difficulty * len(values)), len(values) - 1)]


def knob(
    option: str, given: float | None, difficulty: float, easy: float, hard: float, within: tuple[float, float]
) -> float:
    """The option as given, else what the difficulty makes of it, linear from `easy` to `hard`. Raises UserError for
    one that is not `within` (low, high).

    Example: knob("share", None, 0.5, 0.6, 0.2, (0.1, 0.7)) == 0.4
    """
    low, high = within
    if given is not None and not low <= given <= high:
        raise UserError(f"The option {option} is {given:g}; give a number from {low:g} to {high:g}.")
    return easy + (hard - easy) * difficulty if given is None else given


def whole(option: str, given: int, difficulty: float, values: Sequence[int], within: tuple[int, int]) -> int:
    """The option as given, or for 0 what the difficulty makes of it among `values` (`step_of`). Raises UserError for
    one that is not `within` (low, high).

    Example: whole("n", 0, 0.5, (2, 3, 4), (2, 6)) == 3
    """
    low, high = within
    if given and not low <= given <= high:
        raise UserError(
            f"The option {option} is {given}; give a whole number from {low} to {high}, or 0 for what the difficulty "
            "makes of it."
        )
    return given or step_of(difficulty, values)


def unsuitable(name: str, images: Pool, why: str) -> UserError:
    """What a generator raises after `TRIES` pictures."""
    return UserError(
        f"Task {name!r}: none of {TRIES} pictures drawn from {images.source} suits it ({why}); give a folder with "
        "other pictures (images=FOLDER) or leave this task away."
    )


def problem_at(
    made: Generator,
    source: Any,
    *,
    name: str,
    split: str,
    seed: int,
    index: int,
    difficulty: float,
    options: Options,
) -> Problem:
    """Problem `index` of a task, asked of a pool or of a part of a graph: a function of (seed, index, difficulty).

    `name`: as opened, with a style or without, which changes the words and not the pictures. Raises what `make` raises.
    """
    base, _, style = name.partition("@")
    asked = made.make(source, generator("problem", base, split, seed, index), difficulty, **options)
    question, target = styled(asked, made.kind, style or "answer")
    chance = float(made.chance(difficulty, **options))
    return Problem(
        id=f"{name}:{split}:{seed}:{index}",
        task=name,
        images=asked.images,
        question=question,
        answer=asked.answer,
        kind=made.kind,
        difficulty=difficulty,
        target=target,
        meta={"box_image": asked.box_image, "chance": chance} | asked.meta,
    )
