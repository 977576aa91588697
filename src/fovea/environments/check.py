"""What a game promises, tried: `check_environment(game)` plays it and says in sentences what does not hold.

It is for games of one's own before they are trained on: a reset that is no function of its seed, an action that is
called legal and is refused, a reader that one reply in a thousand hangs. A check that finds nothing proves nothing
beyond what it tried; how much that was stands in the report.

Not here: an environment that may crash (`isolated.py`), training.

Try it: python -c "from fovea.environments.check import *; print(check_environment('sokoban').text())"
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fovea.environments.catalogue import find_game
from fovea.environments.deadline import TooLong, within
from fovea.environments.game import Game
from fovea.environments.hostile import hostile_texts
from fovea.environments.replay import Recorded, digest, restore
from fovea.types import RunFailed

READ_SECONDS = 0.005
"""Of reading one reply."""
SIDES = (8, 2048)
"""Pixels a side of a picture."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentReport:
    """What was tried and what was found.

    Example: EnvironmentReport(name="sokoban", faults=(), tried={"episodes": 6})
    """

    name: str
    faults: tuple[str, ...]
    """Sentences; empty: nothing was found."""
    tried: Mapping[str, float] = field(default_factory=dict)
    """How much was done, and what it took: episodes, steps, texts, milliseconds."""

    @property
    def ok(self) -> bool:
        return not self.faults

    def text(self) -> str:
        """For a terminal: one line a fault, and what was tried."""
        did = ", ".join(f"{name} {value:.4g}" for name, value in self.tried.items())
        head = f"{self.name}: {'nothing found' if self.ok else f'{len(self.faults)} faults'} ({did})"
        return "\n".join([head, *(f"  - {fault}" for fault in self.faults)])


class _Stop(Exception):
    """Something so wrong that nothing further can be tried; its sentence is noted already."""


@dataclass(slots=True)
class _Checking:
    """One check: what was found so far."""

    game: Game
    options: Mapping[str, Any]
    seconds: float
    faults: dict[str, str] = field(default_factory=dict)
    """Kind → the first sentence: a fault that shows at every step is said once."""
    tried: dict[str, float] = field(default_factory=dict)

    def note(self, kind: str, sentence: str) -> None:
        self.faults.setdefault(kind, sentence)

    def count(self, name: str, by: float = 1) -> None:
        self.tried[name] = self.tried.get(name, 0) + by

    @contextmanager
    def part(self, kind: str, what: str) -> Iterator[None]:
        """Whatever the game raises, or a deadline that it misses, is noted and ends this part."""
        try:
            with within(self.seconds):
                yield
        except _Stop:
            raise
        except TooLong:
            self.note(kind, f"{what} was not done after {self.seconds:g} s.")
            raise _Stop from None
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.note(kind, f"{what} raised {said}.")
            raise _Stop from None

    def make(self) -> Any:
        with self.part("make", "make(…)"):
            return self.game.make(**{**self.game.options, **self.options})

    def reset(self, env: Any, seed: int, split: str) -> Any:
        with self.part("reset", f"reset(seed={seed}, split={split!r})"):
            return env.reset(seed=seed, options={"split": split})

    def step(self, env: Any, name: str, where: str) -> tuple[float, bool, bool]:
        with self.part("step", f"The action {name!r}, legal {where}, "):
            _, reward, terminated, truncated, _ = env.step(self.game.act(inner(env), name))
        if not math.isfinite(float(reward)):
            self.note("reward", f"The reward of {name!r} {where} is {reward}, not a finite number.")
        return float(reward), bool(terminated), bool(truncated)

    def legal(self, env: Any, where: str) -> tuple[str, ...]:
        with self.part("legal", f"legal(env) {where}"):
            names = self.game.legal(inner(env))
        if not names:
            self.note("legal", f"No action is legal {where}, although the episode runs.")
            raise _Stop
        if len({name.casefold() for name in names}) < len(names):
            self.note("legal", f"Two legal actions have one name {where}: {', '.join(names)[:200]}.")
        return tuple(names)


def inner(env: Any) -> Any:
    """The environment that a game's functions are given."""
    return getattr(env, "unwrapped", env)


def shown(game: Game, env: Any) -> tuple[Any, ...]:
    """All that a model sees and may do now."""
    return (game.pictures(inner(env)), game.ask(inner(env)), game.legal(inner(env)))


def check_environment(
    game: Game | str,
    *,
    options: Mapping[str, Any] | None = None,
    episodes: int = 3,
    steps: int = 40,
    texts: int = 1000,
    seed: int = 0,
    seconds: float = 60.0,
) -> EnvironmentReport:
    """Play `episodes` of every split for at most `steps` steps with random legal actions, and more (see the file).

    `seconds`: how long one part may take before it counts as hanging (in the main thread of a POSIX system; elsewhere
    a hang is not cut off). Never raises for what the game does. Raises UserError for a game that cannot be found.
    """
    game = find_game(game) if isinstance(game, str) else game
    checking = _Checking(game=game, options=dict(options or {}), seconds=seconds)
    began = time.perf_counter()
    for part in (_resets, _episodes, _every_legal_action, _replays, _teacher, _reader):
        try:
            part(checking, seed=seed, episodes=episodes, steps=steps, texts=texts)
        except _Stop:
            continue
    checking.tried["seconds"] = time.perf_counter() - began
    return EnvironmentReport(
        name=game.name, faults=tuple(checking.faults.values()), tried=dict(checking.tried)
    )


# --- the parts --------------------------------------------------------------------------------------------


def _resets(c: _Checking, *, seed: int, **rest: int) -> None:
    """A reset is a function of (seed, split): again, after some steps, and in another environment."""
    env, other = c.make(), c.make()
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        seen = []
        for one, between in ((env, 3), (env, 0), (other, 0)):
            observation, _ = c.reset(one, seed, split)
            with c.part("shown", "What is shown after a reset"):
                seen.append(digest((observation, *shown(c.game, one))))
            for _ in range(between):
                names = c.legal(one, "after a reset")
                _, terminated, truncated = c.step(one, names[int(rng.integers(len(names)))], "after a reset")
                if terminated or truncated:
                    break
        if len(set(seen)) > 1:
            which = "again in the same environment" if seen[0] != seen[1] else "in another environment"
            c.note("reset", f"reset(seed={seed}, split={split!r}) is not the same {which}.")
        c.count("resets", len(seen))
    for one in (env, other):
        one.close()


def _episodes(c: _Checking, *, seed: int, episodes: int, steps: int, **rest: int) -> None:
    """Random episodes: what is shown, what is legal, what is won."""
    env, rng = c.make(), np.random.default_rng(seed)
    for split in SPLITS:
        for number in range(episodes):
            c.reset(env, seed + number, split)
            total, terminated, truncated, turn = 0.0, False, False, 0
            while not (terminated or truncated) and turn < min(steps, c.game.max_turns):
                where = f"at step {turn} of seed {seed + number} ({split})"
                _look(c, env, where)
                names = c.legal(env, where)
                began = time.perf_counter()
                reward, terminated, truncated = c.step(env, names[int(rng.integers(len(names)))], where)
                c.count("step_ms", 1000 * (time.perf_counter() - began))
                total, turn = total + reward, turn + 1
                _won(c, env, total, terminated, truncated, where)
            c.count("steps", turn)
            c.count("episodes")
            _look(c, env, f"after the end of seed {seed + number} ({split})")
    c.tried["step_ms"] = c.tried.get("step_ms", 0.0) / max(c.tried.get("steps", 1), 1)
    env.close()


def _won(c: _Checking, env: Any, total: float, terminated: bool, truncated: bool, where: str) -> None:
    with c.part("won", f"won(…) {where}"):
        won = bool(c.game.won(inner(env), total, terminated))
    if won and not (terminated or truncated):
        c.note("won", f"won(…) is true {where}, before the episode's end.")


def _look(c: _Checking, env: Any, where: str) -> None:
    """Pictures RGB and of a sane size, a text, a state that is plain JSON."""
    with c.part("pictures", f"pictures(env) {where}"):
        pictures = c.game.pictures(inner(env))
    for picture in pictures:
        if getattr(picture, "mode", None) != "RGB":
            c.note("pictures", f"A picture {where} is {getattr(picture, 'mode', type(picture))}, not RGB.")
        elif not all(SIDES[0] <= side <= SIDES[1] for side in picture.size):
            c.note(
                "pictures",
                f"A picture {where} has {picture.size} pixels; sides are to be {SIDES[0]} to {SIDES[1]}.",
            )
        else:
            c.tried["largest_side"] = max(c.tried.get("largest_side", 0), *picture.size)
    with c.part("ask", f"ask(env) {where}"):
        asked = c.game.ask(inner(env))
    if not isinstance(asked, str) or not asked.strip():
        c.note("ask", f"ask(env) {where} gave no text.")
    with c.part("state", f"state(env) or thought(env) {where}"):
        digest(c.game.state(inner(env)))
        if not isinstance(c.game.thought(inner(env)), str):
            c.note("thought", f"thought(env) {where} gave no text.")


def _every_legal_action(c: _Checking, *, seed: int, steps: int, **rest: int) -> None:
    """Every legal action of a few states is accepted, and read as itself."""
    rng = np.random.default_rng(seed + 1)
    env = c.make()
    way: list[str] = []
    for depth in (0, 2, 5):
        names = _stand(c, env, seed, way, "along a random episode")
        while names is not None and len(way) < min(depth, steps):
            way.append(names[int(rng.integers(len(names)))])
            names = _stand(c, env, seed, way, "along a random episode")
        if names is None:
            break
        where = f"at step {len(way)} of seed {seed} (train)"
        _names_are_read(c, env, names, where)
        chosen = names if len(names) <= 40 else [names[int(i)] for i in rng.permutation(len(names))[:40]]
        for name in chosen:
            if _stand(c, env, seed, way, where) is not None:
                c.step(env, name, where)
                c.count("legal_actions")
    if c.game.no_op is not None:
        _stand(c, env, seed, [], "after a reset")
        c.step(env, c.game.no_op, "as no_op")
    env.close()


def _stand(c: _Checking, env: Any, seed: int, way: Sequence[str], where: str) -> tuple[str, ...] | None:
    """Bring `env` to where `way` leads; the legal actions there, or None where the episode is over."""
    c.reset(env, seed, "train")
    for name in way:
        _, terminated, truncated = c.step(env, name, where)
        if terminated or truncated:
            return None
    return c.legal(env, where)


def _names_are_read(c: _Checking, env: Any, names: tuple[str, ...], where: str) -> None:
    for name in names:
        with c.part("read", f"read(env, legal, {name!r}) {where}"):
            found = c.game.read(inner(env), names, name)
        if found != name:
            c.note("read_names", f"The legal action {name!r} {where} is read as {found!r}.")


def _replays(c: _Checking, *, seed: int, steps: int, **rest: int) -> None:
    """An episode done again answers the same, step by step."""

    def show(env: Any) -> Any:
        return (c.game.pictures(inner(env)), c.game.ask(inner(env)))

    rng = np.random.default_rng(seed + 2)
    env = c.make()
    recorded = Recorded(env, id=c.game.name, kwargs={}, show=show)
    with c.part("replay", "Recording an episode"):
        recorded.reset(seed=seed, options={"split": "test"})
        for _ in range(min(steps, c.game.max_turns)):
            names = c.legal(env, "in a recorded episode")
            action = c.game.act(inner(env), names[int(rng.integers(len(names)))])
            _, _, terminated, truncated, _ = recorded.step(action)
            if terminated or truncated:
                break
    c.count("replayed", recorded.steps)
    try:
        with within(c.seconds):
            restore(recorded.state(), lambda name, **kwargs: c.make(), show=show).close()
    except RunFailed as error:
        c.note("replay", str(error))
    except TooLong:
        c.note("replay", f"Doing an episode again was not done after {c.seconds:g} s.")
    env.close()


def _teacher(c: _Checking, *, seed: int, episodes: int, **rest: int) -> None:
    """The expert's actions are legal, and its episodes' successes are counted."""
    if c.game.expert is None:
        return
    env, won = c.make(), 0
    for number in range(episodes):
        c.reset(env, seed + number, "validation")
        total, terminated, truncated = 0.0, False, False
        for turn in range(c.game.max_turns):
            where = f"at step {turn} of seed {seed + number} (validation)"
            names = c.legal(env, where)
            with c.part("expert", f"expert(env), or reason, {where}"):
                best = c.game.expert(inner(env))
                if c.game.reason is not None and not isinstance(c.game.reason(inner(env), best), str):
                    c.note("reason", f"reason(env, {best!r}) {where} gave no text.")
                found = best in names or c.game.read(inner(env), names, best) is not None
            if not found:
                c.note("expert", f"The expert says {best!r} {where}, which is not legal.")
                raise _Stop
            reward, terminated, truncated = c.step(env, best, where)
            total += reward
            if terminated or truncated:
                break
        won += bool(c.game.won(inner(env), total, terminated))
    c.tried["expert_success"] = won / max(episodes, 1)
    env.close()


def _reader(c: _Checking, *, seed: int, texts: int, **rest: int) -> None:
    """Hostile replies are read in time, as a name or None, and never raise."""
    env = c.make()
    c.reset(env, seed, "train")
    names = c.legal(env, "after a reset")
    slowest = 0.0
    for number, text in enumerate(hostile_texts(seed, texts, names)):
        what = f"read(env, legal, hostile text {number}, {text[:30]!r}…)"
        with c.part("read", what):
            found, took = _timed(partial(c.game.read, inner(env), names, text))
        slowest = max(slowest, took)
        if took > READ_SECONDS:
            c.note("read", f"{what} took {1000 * took:.1f} ms; {1000 * READ_SECONDS:g} are allowed.")
            raise _Stop
        if found is not None and not isinstance(found, str):
            c.note("read", f"{what} gave a {type(found).__name__}, neither a name nor None.")
        elif found is not None:
            with c.part("act", f"act(env, {found[:60]!r}), which {what} gave,"):
                c.game.act(inner(env), found)
        c.count("texts")
    c.tried["read_ms"] = 1000 * slowest
    env.close()


def _timed(read: Callable[[], Any]) -> tuple[Any, float]:
    """What `read` gives and the seconds it takes: the best of five, where the first was slow (other work, a pause)."""
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        found = read()
        best = min(best, time.perf_counter() - began)
        if best <= READ_SECONDS:
            break
    return found, best


def success(
    game: Game, policy: str, n: int, *, seed: int = 0, split: str = "test", **options: Any
) -> tuple[float, float]:
    """(share of successes, mean turns) of `n` episodes, seeds 0 to n - 1, by "random" legal actions or the "expert"."""
    env, rng = game.make(**{**game.options, **options}), np.random.default_rng(seed)
    won = turns = 0
    for number in range(n):
        env.reset(seed=number, options={"split": split})
        total, terminated, truncated, turn = 0.0, False, False, 0
        while not (terminated or truncated) and turn < game.max_turns:
            if policy == "expert" and game.expert is not None:
                name = game.expert(inner(env))
            else:
                names = game.legal(inner(env))
                name = names[int(rng.integers(len(names)))]
            _, reward, terminated, truncated, _ = env.step(game.act(inner(env), name))
            total, turn = total + float(reward), turn + 1
        won += bool(game.won(inner(env), total, bool(terminated)))
        turns += turn
    env.close()
    return won / n, turns / n
