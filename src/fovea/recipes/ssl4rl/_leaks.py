"""Self-supervised tasks with a shortcut planted into them: what the solvers must find. Not in the table of tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from fovea.tasks.pool import Pool
from fovea.tasks.scenes import Split, generator
from fovea.tasks.solvers import Which
from fovea.tasks.ssl import SslTask, open_ssl
from fovea.tasks.ssl.views import draw, finish, render, tint, window
from fovea.types import AnswerKind, Problem, Task

Pools = Callable[[Split], Pool]

ANGLES = (0, 15, 30, 45)
PLACES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """An endless task of one function."""

    name: str
    kind: AnswerKind
    chance: float
    split: Split
    pool: Pool
    make: Callable[[Pool, np.random.Generator], tuple[tuple[Image.Image, ...], str, Any]]
    size: None = None

    def problem(self, index: int) -> Problem:
        rng = generator("planted", self.name, self.split, index)
        images, question, answer = self.make(self.pool, rng)
        key = f"{self.name}:{self.split}:{index}"
        return Problem(
            id=key, task=self.name, images=images, question=question, answer=answer, kind=self.kind
        )

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self.problem(index) for index in range(cursor, cursor + n)], cursor + n


def _square(images: Pool, rng: np.random.Generator) -> Image.Image:
    picture = images.picture(draw(rng, images)[0])
    return render(picture, window(rng, picture.size), (images.side, images.side))


def _sized(images: Pool, rng: np.random.Generator) -> tuple[tuple[Image.Image, ...], str, Any]:
    """A turned picture that is shown the larger the farther it was turned."""
    turn = int(rng.integers(4))
    side = images.side + 2 * turn
    turned = Image.fromarray(np.rot90(np.asarray(_square(images, rng)), turn).copy()).resize((side, side))
    return finish(rng, [turned]), "By how many degrees was the picture turned: 0, 90, 180, 270?", 90 * turn


def _cornered(images: Pool, rng: np.random.Generator) -> tuple[tuple[Image.Image, ...], str, Any]:
    """A turned picture whose corners are black."""
    angle = ANGLES[int(rng.integers(len(ANGLES)))]
    turned = _square(images, rng).rotate(angle, Image.Resampling.BICUBIC)
    views = finish(rng, [tint(rng, turned, 0.5)])
    return views, "By how many degrees was the picture turned: 0, 15, 30, 45?", angle


def _copied(images: Pool, rng: np.random.Generator) -> tuple[tuple[Image.Image, ...], str, Any]:
    """A quarter's part as it is, pixel by pixel."""
    place, side = int(rng.integers(4)), images.side
    whole, part = _square(images, rng), side * 3 // 8
    x, y = ((place % 2, place // 2)[k] * side // 2 + int(rng.integers(side // 2 - part + 1)) for k in (0, 1))
    views = finish(rng, [whole, whole.crop((x, y, x + part, y + part))])
    return views, "From which quarter of the first picture is the second?", PLACES[place]


def _planted(name: str, kind: AnswerKind, make: Callable[..., Any], pools: Pools, split: Split) -> Task:
    return Planted(name=name, kind=kind, chance=0.25, split=split, pool=pools(split), make=make)


def _built_in(name: str, options: Mapping[str, Any], pools: Pools, split: Split) -> Task:
    """One of the table, unprotected."""
    task: SslTask = open_ssl(name, split, pool=pools(split), options=options)
    return replace(task, name=name)


LEAKS: Mapping[str, tuple[Which, Callable[[Pools, Split], Task]]] = {
    "size": ("blind", functools.partial(_planted, "leak/size", "number", _sized)),
    "black corners": ("low_level", functools.partial(_planted, "leak/corners", "number", _cornered)),
    "edges that meet, jigsaw": (
        "low_level",
        functools.partial(_built_in, "ssl/jigsaw", {"n": 2, "gap": 0.0, "jitter": 0.0}),
    ),
    "edges that meet, strips": (
        "low_level",
        functools.partial(_built_in, "ssl/strips", {"n": 2, "gap": 0.0, "jitter": 0.0}),
    ),
    "identical crop": ("low_level", functools.partial(_planted, "leak/copy", "text", _copied)),
}
"""Name → (the solver that must find it, (pools, split) → the task)."""
