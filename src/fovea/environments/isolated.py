"""A game whose environment runs in a killable process of its own, with deadlines.

    game = isolated("my/games.py:MAZE", step_seconds=5)
    env = game.make(); env.reset(seed=3); env.step("left")

Emulators crash, simulators hang, and C++ takes the whole program with it. Here that costs one process and is named:
which environment, which seed, which step. What was done before is in the journal (`replay.py`), so `restart` brings a
fresh process to where the lost one stood, and is refused where it answers otherwise.

All of the game runs in the process: also `read`, whose input is a model's, and the teacher. The processes are those of
reward functions (`fovea.rewards.workers`): a clean interpreter, no fork of a program with threads, killed as a tree.

A game given by its name is found again over there; a `Game` itself is sent by cloudpickle, which takes lambdas, but no
module that only this process can import: then give the path of its file.

Not here: what else a game promises (`check.py`).
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from fovea.environments.catalogue import find_game
from fovea.environments.game import Game
from fovea.environments.replay import Recorded, restore
from fovea.rewards.loading import Fault, describe
from fovea.rewards.workers import START_LIMIT, Worker
from fovea.types import RunFailed, UserError


class EnvironmentFailed(RunFailed):
    """An environment crashed, hung or raised. The message says which, with what seed, at which step."""

    def __init__(self, message: str, *, kind: str, step: int) -> None:
        super().__init__(message)
        self.kind = kind
        """"timeout", "died" or "raised"."""
        self.step = step
        """Actions since the last reset when it happened; -1 while making or resetting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What the process says after a reset or a step.

    Example: Shown(answer=(None, 0.0, False, False), legal=("left",), text="…", images=(), event=["step", 0, "…"])
    """

    answer: tuple[Any, float, bool, bool]
    """Observation, reward, terminated, truncated."""
    legal: tuple[str, ...]
    """Names of the legal actions; none after the end."""
    text: str
    """What the game asks."""
    images: tuple[Image.Image, ...]
    """What the game shows."""
    event: list[Any]
    """The journal's newest entry."""


def isolated(
    game: Game | str,
    *,
    reset_seconds: float = 60.0,
    step_seconds: float = 10.0,
    retries: int = 0,
    memory_bytes: int | None = None,
) -> Game:
    """The same game, its environment in a process of its own.

    `retries`: how often a hang or crash within one step is answered with a new process, brought to the same place by
    the journal. `memory_bytes`: of the process, beyond which its allocations fail.
    """
    found = find_game(game) if isinstance(game, str) else game
    source = game if isinstance(game, str) else _pickled(game)

    def make(**options: Any) -> Isolated:
        return Isolated(
            name=found.name,
            source=source,
            options=options,
            reset_seconds=reset_seconds,
            step_seconds=step_seconds,
            retries=retries,
            worker=Worker(sources=(), memory_bytes=memory_bytes),
        )

    def asked(what: str) -> Callable[..., Any]:
        return lambda env, *arguments: env.query(what, *arguments)

    return replace(
        found,
        make=make,
        legal=lambda env: env.now.legal,
        ask=lambda env: env.now.text,
        act=lambda env, name: name,
        pictures=lambda env: env.now.images,
        read=asked("read"),
        won=asked("won"),
        state=asked("state"),
        thought=asked("thought"),
        expert=asked("expert") if found.expert is not None else None,
        reason=asked("reason") if found.reason is not None else None,
    )


def _pickled(game: Game) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(game))
    except Exception as error:
        raise UserError(
            f"The game {game.name} cannot be sent to a process of its own ({describe(error)}); give its name or "
            "path/file.py:NAME instead."
        ) from error


@dataclass(slots=True)
class Isolated:
    """The proxy: gymnasium's API, but that an action is the *name* of a legal action. Made by `isolated`."""

    name: str
    source: str | bytes
    options: Mapping[str, Any]
    reset_seconds: float
    step_seconds: float
    retries: int
    worker: Worker
    journal: dict[str, Any] = field(default_factory=dict)
    """As `Recorded.state` gives it, but kept on this side: the other one may be lost at any time."""
    _now: Shown | None = None
    _open: bool = False
    _seed: int | None = None
    _split: str = "train"

    @property
    def now(self) -> Shown:
        if self._now is None:
            raise UserError(f"{self.name}: nothing is shown before the first reset; call reset(seed=0).")
        return self._now

    @property
    def steps(self) -> int:
        """Actions since the last reset."""
        events = self.journal.get("events", [])
        last = max((i for i, event in enumerate(events) if event[0] == "reset"), default=-1)
        return len(events) - 1 - last

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """A new episode; after a failure in a new process. Raises EnvironmentFailed."""
        if not self._open:
            if seed is None:
                raise UserError(f"{self.name}: the first reset of a process needs a seed; reset(seed=0).")
            self._begin(None)
        if seed is not None:
            self._seed, self._split = seed, str((options or {}).get("split", "train"))
            self.journal["events"] = []
        self._take(self._call("reset", self.reset_seconds, -1, do_reset, seed, options))
        return self.now.answer[0], {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Do the legal action of that name. Raises EnvironmentFailed; `restart` then goes back to before it."""
        if not self._open:
            raise UserError(f"{self.name}: its process is gone; call restart() or reset(seed=…).")
        for left in range(self.retries, -1, -1):
            try:
                self._take(self._call(repr(action), self.step_seconds, self.steps, do_step, action))
                break
            except EnvironmentFailed as failed:
                if failed.kind == "raised" or not left:  # what raised once will raise again
                    raise
                self.restart()
        return (*self.now.answer, {})

    def query(self, what: str, *arguments: Any) -> Any:
        """What the game's function of that name gives over there."""
        if not self._open:
            raise UserError(f"{self.name}: its process is gone; call restart() or reset(seed=…).")
        return self._call(what, self.step_seconds, self.steps, do_query, what, arguments)

    def restart(self) -> None:
        """A fresh process, brought by the journal to where the last good answer was given. Raises EnvironmentFailed
        where it does not answer the same, and UserError before the first reset."""
        if not self.journal.get("events"):
            raise UserError(f"{self.name}: there is nothing to restart; call reset(seed=0).")
        self.close()
        self._begin(self.journal)

    def render(self) -> Any:
        return self.now.images[0] if self.now.images else None

    def close(self) -> None:
        self._open = False
        self.worker.kill()

    def _begin(self, journal: dict[str, Any] | None) -> None:
        steps = len(journal["events"]) if journal else 0
        limit = START_LIMIT + self.reset_seconds + steps * self.step_seconds
        found = self._call("making it", limit, -1, do_open, self.source, dict(self.options), journal)
        if journal is None:
            self.journal = found
        else:
            self._now = found
        self._open = True

    def _take(self, shown: Shown) -> None:
        self._now = shown
        self.journal["events"].append(shown.event)

    def _call(self, what: str, limit: float, step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        self.worker.start()
        result = self.worker.run(limit, guarded, 2 * limit + 10, function, *arguments)
        if not isinstance(result, Fault):
            return result
        self.close()  # whatever it was, nobody knows what state it left
        where = f"at step {step}" if step >= 0 else "before the first step"
        seed = f"seed {self._seed}, split {self._split}" if self._seed is not None else "not reset yet"
        did = {"timeout": f"did not answer within {limit:g} s", "died": result.detail}
        how = did.get(result.kind, f"raised {result.detail}")
        message = f"The environment {self.name} ({seed}) {how} {where} ({what})."
        raise EnvironmentFailed(message, kind=result.kind, step=step)


# --- in the process ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Held:
    game: Game
    recorded: Recorded

    @property
    def inner(self) -> Any:
        return getattr(self.recorded.env, "unwrapped", self.recorded.env)


_HELD: list[_Held] = []
"""The one environment of this process."""


def guarded(lifetime: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` gives, or the fault of what it raised. The process ends itself after `lifetime` seconds, for the
    case that the one that would have killed it is gone."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(lifetime, exit=True, file=nowhere)
        try:
            return function(*arguments)
        except BaseException as error:
            return Fault(kind="raised", detail=describe(error))
        finally:
            faulthandler.cancel_dump_traceback_later()


def do_open(source: str | bytes, options: dict[str, Any], journal: dict[str, Any] | None) -> Any:
    """Make the environment; its empty journal, or, with a journal, what it shows where that ends."""
    if isinstance(source, bytes):
        import cloudpickle

        game: Game = cloudpickle.loads(source)  # our own, from the process that started this one
    else:
        game = find_game(source)

    def show(env: Any) -> Any:
        inner = getattr(env, "unwrapped", env)
        return (game.pictures(inner), game.ask(inner))

    _HELD.clear()
    if journal is None:
        made = game.make(**options)
        _HELD.append(_Held(game, Recorded(made, id=game.name, kwargs=options, show=show)))
        return _HELD[0].recorded.state()
    again = restore(journal, lambda name, **kwargs: game.make(**kwargs), show=show)
    _HELD.append(_Held(game, again))
    return _shown()


def do_reset(seed: int | None, options: dict[str, Any] | None) -> Shown:
    _HELD[0].recorded.reset(seed=seed, options=options)
    return _shown()


def do_step(name: str) -> Shown:
    held = _HELD[0]
    held.recorded.step(held.game.act(held.inner, name))
    return _shown()


def do_query(what: str, arguments: tuple[Any, ...]) -> Any:
    held = _HELD[0]
    found = getattr(held.game, what)(held.inner, *arguments)
    return dict(found) if isinstance(found, Mapping) else found


def _shown() -> Shown:
    held = _HELD[0]
    last = held.recorded.last
    assert last is not None, "after a reset"
    over = last[2] or last[3]
    return Shown(
        answer=last[:4],
        legal=() if over else tuple(held.game.legal(held.inner)),
        text=held.game.ask(held.inner),
        images=tuple(image.copy() for image in held.game.pictures(held.inner)),
        event=held.recorded.state()["events"][-1],
    )
