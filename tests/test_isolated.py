"""An environment in a process of its own: what hangs, dies or raises is named in time, and is brought back."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fovea.environments.catalogue import find_game
from fovea.environments.game import Game
from fovea.environments.isolated import EnvironmentFailed, Isolated, isolated
from fovea.types import UserError

pytest.importorskip("gymnasium")

FILE = '''
import os, re, time
import numpy as np
from fovea.environments.game import Game


class Trap:
    """Counts its steps. What its name says happens at some of them; `once` is a file that says that it did already."""

    def __init__(self, how="none", when=2, once="", at="step"):
        self.how, self.when, self.once, self.at, self.count = how, when, once, at, 0
        if at == "make":
            self.spring()

    def spring(self):
        if self.once and os.path.exists(self.once):
            return
        if self.once:
            open(self.once, "w").close()
        if self.how == "sleep":
            time.sleep(600)
        if self.how == "loop":
            while True:
                pass
        if self.how == "regex":
            re.match(r"(a|a)*b", "a" * 80)
        if self.how == "exit":
            os._exit(3)
        if self.how == "kill":
            os.kill(os.getpid(), 9)
        if self.how == "raise":
            raise ZeroDivisionError("in the midst")
        if self.how == "system_exit":
            raise SystemExit(4)
        if self.how == "memory":
            self.held = [bytearray(64 << 20) for _ in range(64)]

    def reset(self, *, seed=None, options=None):
        self.count = 0 if seed is None else seed % 7
        self.begun = self.count
        if self.at == "reset":
            self.spring()
        return self.count, {}

    def step(self, action):
        self.count += action
        if self.how == "random":
            self.count += os.urandom(4)[0]
        if self.at == "step" and self.count - self.begun == self.when:
            self.spring()
        return self.count, 1.0, self.count - self.begun >= 5, False, {}

    def close(self):
        pass


def read(env, legal, text):
    if text == "hang":
        while True:
            pass
    return text if text in legal else None


GAME = Game(
    name="trap",
    make=Trap,
    legal=lambda env: ("one", "two"),
    ask=lambda env: f"The count is {env.count}.",
    act=lambda env, name: {"one": 1, "two": 2}[name],
    read=read,
    pictures=lambda env: (),
    state=lambda env: {"count": env.count},
    thought=lambda env: f"{env.count}",
    expert=lambda env: "two",
    won=lambda env, total, terminated: terminated and total == 3,
    options={"how": "none", "when": 2, "once": "", "at": "step"},
)
'''


@pytest.fixture
def trap(tmp_path: Path) -> str:
    file = tmp_path / "trap.py"
    file.write_text(FILE)
    return f"{file}:GAME"


MADE: list[Isolated] = []


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def made(game: Game, **options: Any) -> Isolated:
    env = game.make(**{**game.options, **options})
    MADE.append(env)
    return env


def test_it_is_the_same_game(trap: str) -> None:
    game, here = isolated(trap), find_game(trap)
    there, inner = made(game), here.make()
    for env in (there, inner):
        env.reset(seed=3)
    assert game.legal(there) == here.legal(inner)
    assert game.ask(there) == here.ask(inner) == "The count is 3."
    assert game.state(there) == here.state(inner)
    assert game.thought(there) == "3"
    assert game.read(there, game.legal(there), "one") == "one"
    assert game.read(there, game.legal(there), "three") is None
    assert game.expert is not None
    assert game.expert(there) == "two"
    total = 0.0
    for name in ("two", "two", "one"):
        _, reward, terminated, truncated, _ = there.step(name)
        total += reward
    assert (terminated, truncated, there.steps) == (True, False, 3)
    assert game.won(there, total, terminated) is True
    assert game.won(there, 1.0, terminated) is False


def test_pictures_arrive_as_they_were() -> None:
    game, here = isolated("sokoban"), find_game("sokoban")
    there, inner = made(game), here.make()
    for env in (there, inner):
        env.reset(seed=2, options={"split": "test"})
    assert game.pictures(there) == here.pictures(inner)
    assert there.render() == here.pictures(inner)[0]


NAMED = {
    "sleep": ("timeout", r"did not answer within 1 s at step 1 \('one'\)"),
    "loop": ("timeout", r"did not answer within 1 s at step 1 \('one'\)"),
    "regex": ("timeout", r"did not answer within 1 s at step 1 \('one'\)"),
    "exit": ("died", r"ended its process \(.*3.*\) at step 1 \('one'\)"),
    "kill": ("died", r"ended its process \(.*(SIGKILL|9).*\) at step 1 \('one'\)"),
    "raise": ("raised", r"raised ZeroDivisionError: in the midst \(trap\.py:\d+\) at step 1 \('one'\)"),
    "system_exit": ("raised", r"raised SystemExit: 4 .*at step 1"),
}


@pytest.mark.parametrize("how", NAMED)
def test_what_goes_wrong_is_named_within_its_deadline(trap: str, how: str) -> None:
    kind, message = NAMED[how]
    game = isolated(trap, step_seconds=1)
    env = made(game, how=how)
    env.reset(seed=8, options={"split": "test"})
    env.step("one")
    began = time.monotonic()
    with pytest.raises(EnvironmentFailed) as failed:
        env.step("one")
    assert time.monotonic() - began < 10  # a second, and the end of a process on a busy machine
    assert (failed.value.kind, failed.value.step) == (kind, 1)
    assert "The environment trap (seed 8, split test)" in str(failed.value)
    assert re.search(message, str(failed.value)), failed.value
    with pytest.raises(UserError, match="its process is gone"):
        env.step("one")
    with pytest.raises(UserError, match="its process is gone"):
        game.read(env, ("one",), "one")
    env.reset(seed=9)  # a new process, without a word
    assert game.ask(env) == "The count is 2."


@pytest.mark.parametrize(("at", "where"), [("reset", "reset"), ("make", "making it")])
def test_resetting_and_making_have_deadlines(
    trap: str, at: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fovea.environments.isolated.START_LIMIT", 3.0)
    env = made(isolated(trap, reset_seconds=1), how="loop", at=at)
    with pytest.raises(EnvironmentFailed, match=rf"before the first step \({where}\)") as failed:
        env.reset(seed=0)
    assert (failed.value.kind, failed.value.step) == ("timeout", -1)
    env = made(isolated(trap), how="raise", at=at)
    with pytest.raises(EnvironmentFailed, match="raised ZeroDivisionError"):
        env.reset(seed=0)


def test_a_reader_that_hangs_is_named(trap: str) -> None:
    game = isolated(trap, step_seconds=1)
    env = made(game)
    env.reset(seed=1)
    with pytest.raises(EnvironmentFailed, match=r"did not answer within 1 s at step 0 \(read\)"):
        game.read(env, game.legal(env), "hang")
    env.restart()
    assert game.ask(env) == "The count is 1."


@pytest.mark.parametrize("how", ["exit", "loop"])
def test_a_restarted_one_stands_where_the_lost_one_stood(trap: str, how: str, tmp_path: Path) -> None:
    game = isolated(trap, step_seconds=1)
    env = made(game, how=how, when=3, once=str(tmp_path / f"once_{how}"))
    env.reset(seed=4)
    env.step("two")
    before, events = env.now, [list(event) for event in env.journal["events"]]
    with pytest.raises(EnvironmentFailed):
        env.step("one")
    env.restart()
    assert env.now == before
    assert env.journal["events"] == events
    assert env.step("one")[0] == 7  # as if nothing had been
    assert env.steps == 2


def test_it_may_try_again_by_itself(trap: str, tmp_path: Path) -> None:
    env = made(isolated(trap, step_seconds=1, retries=1), how="kill", when=3, once=str(tmp_path / "once"))
    env.reset(seed=4)
    env.step("two")
    assert env.step("one")[0] == 7
    assert env.worker.starts == 2
    env = made(isolated(trap, step_seconds=1, retries=2), how="exit")
    env.reset(seed=0)
    with pytest.raises(EnvironmentFailed, match="ended its process"):  # every time
        env.step("two")
    assert env.worker.starts == 3


def test_one_that_answers_otherwise_is_refused(trap: str) -> None:
    env = made(isolated(trap), how="random", when=1000)
    env.reset(seed=4)
    for _ in range(3):
        env.step("one")
    with pytest.raises(EnvironmentFailed, match="cannot be restored: at step"):
        env.restart()


def test_memory_is_limited(trap: str) -> None:
    env = made(isolated(trap, memory_bytes=1 << 30), how="memory")
    env.reset(seed=0)
    with pytest.raises(EnvironmentFailed, match=r"raised MemoryError.*at step 0|ended its process"):
        env.step("two")


def test_a_game_of_lambdas_can_be_sent() -> None:
    env = made(isolated(find_game("sokoban")), size=5)
    env.reset(seed=1)
    assert env.now.legal
    with pytest.raises(EnvironmentFailed, match=r"raised ValueError.*at step 0 \('sideways'\)"):
        env.step("sideways")


def test_what_cannot_be_done_is_refused(trap: str) -> None:
    import threading

    env = made(isolated(trap))
    with pytest.raises(UserError, match="nothing is shown before the first reset"):
        _ = env.now
    with pytest.raises(UserError, match="needs a seed"):
        env.reset()
    with pytest.raises(UserError, match="nothing to restart"):
        env.restart()
    lock = threading.Lock()
    game = Game(
        name="locked", make=lambda: lock, legal=lambda e: ("a",), ask=lambda e: "", act=lambda e, n: n
    )
    with pytest.raises(UserError, match="locked cannot be sent to a process of its own"):
        isolated(game)


def test_episodes_go_on_without_a_seed(trap: str) -> None:
    env = made(isolated(trap))
    env.reset(seed=4)
    env.step("one")
    env.reset()
    env.step("two")
    assert env.steps == 1
    assert [event[0] for event in env.journal["events"]] == ["reset", "step", "reset", "step"]
    before = env.now
    env.restart()
    assert env.now == before
