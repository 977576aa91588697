"""Self-supervised tasks: a picture is its own teacher. `SSL` is the table; `open_ssl` asks one of them of a pool.

Try it: `fovea tasks show ssl/rotation --out sheet.png images=FOLDER`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fovea.tasks.pool import BuiltIn, Pool
from fovea.tasks.scenes import Split
from fovea.tasks.ssl import (
    contrastive,
    correspond,
    crop,
    depth,
    flip,
    flip_patch,
    frames,
    jigsaw,
    masked,
    odd,
    overlay,
    overlay_find,
    position,
    rotation,
    similar,
    strips,
    swap,
    tiles,
    transform,
)
from fovea.tasks.ssl.spec import Generator, Options, check_options, problem_at
from fovea.types import AnswerKind, Problem, UserError

SSL: dict[str, Generator] = {
    "ssl/rotation": rotation.GENERATOR,
    "ssl/jigsaw": jigsaw.GENERATOR,
    "ssl/contrastive": contrastive.GENERATOR,
    "ssl/position": position.GENERATOR,
    "ssl/masked": masked.GENERATOR,
    "ssl/flip": flip.GENERATOR,
    "ssl/flip_patch": flip_patch.GENERATOR,
    "ssl/strips": strips.GENERATOR,
    "ssl/tiles": tiles.GENERATOR,
    "ssl/swap": swap.GENERATOR,
    "ssl/odd": odd.GENERATOR,
    "ssl/overlay": overlay.GENERATOR,
    "ssl/overlay_find": overlay_find.GENERATOR,
    "ssl/crop": crop.GENERATOR,
    "ssl/correspond": correspond.GENERATOR,
    "ssl/similar": similar.GENERATOR,
    "ssl/transform": transform.GENERATOR,
    "ssl/depth": depth.GENERATOR,
    "ssl/frames": frames.GENERATOR,
}
"""Name → generator."""

LEVEL = 0.4
"""Difficulty of a task for which nobody gave one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SslTask:
    """An endless task: problem i of a split is a function of (seed, i, difficulty) and of the pool."""

    name: str
    """As opened: "ssl/rotation" or, in another style, "ssl/rotation@think"."""
    split: Split
    seed: int
    pool: Pool
    level: Callable[[int], float]
    """Difficulty of problem i; a constant, or what a controller has decided (`fovea.tasks.curriculum`)."""
    options: Options = field(default_factory=dict)

    @property
    def generator(self) -> Generator:
        return SSL[self.name.partition("@")[0]]

    @property
    def kind(self) -> AnswerKind:
        return self.generator.kind

    @property
    def chance(self) -> float:
        """At the difficulty of problem 0."""
        return float(self.generator.chance(self.level(0), **self.options))

    @property
    def size(self) -> None:
        return None

    @property
    def rewards(self) -> Mapping[str, float]:
        """What a run takes where its recipe names none."""
        return self.generator.rewards

    @property
    def reward_options(self) -> Mapping[str, Options]:
        return self.generator.reward_options

    def problem(self, index: int) -> Problem:
        """Problem `index` at the difficulty that holds there."""
        return self.at(index, self.level(index))

    def at(self, index: int, difficulty: float) -> Problem:
        """Problem `index` at a difficulty. Raises UserError where no picture of the pool suits the question."""
        return problem_at(
            self.generator,
            self.pool,
            name=self.name,
            split=self.split,
            seed=self.seed,
            index=index,
            difficulty=difficulty,
            options=self.options,
        )

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        return [self.problem(index) for index in range(cursor, cursor + n)], cursor + n


def open_ssl(
    name: str,
    split: Split = "train",
    seed: int = 0,
    *,
    pool: Pool | None = None,
    level: float | Callable[[int], float] = LEVEL,
    options: Mapping[str, Any] | None = None,
) -> SslTask:
    """A self-supervised task over a pool, by default the photographs in the package. Raises UserError for an
    unknown option, and for a pool that lacks what the task needs."""
    base = name.partition("@")[0]
    found, held = SSL[base], pool or BuiltIn(split=split)
    if found.needs == "depth" and not any(held.depth(i) is not None for i in range(min(len(held), 8))):
        raise UserError(
            f"Task {base!r} needs depth maps, which {held.source} has none of (docs/ssl4rl.md says how)."
        )
    if found.needs == "frames" and not held.sequences():
        raise UserError(
            f"Task {base!r} needs sequences of frames, which {held.source} has none of (docs/ssl4rl.md says how)."
        )
    fixed = level if callable(level) else lambda _: level
    return SslTask(
        name=name,
        split=split,
        seed=seed,
        pool=held,
        level=fixed,
        options=check_options(base, found, options),
    )
