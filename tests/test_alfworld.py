"""ALFWorld's adapters: the files of games, and the mode with pictures against a stand-in for the package.

The stand-in has the methods and the answers that alfworld 0.4.2's source has; it proves that the adapter fits what was
read there, not that THOR runs. Text mode is played by tests/alfworld_offline.py and, where the package is installed,
by tests/test_environments.py.
"""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fovea.types import UserError

pytest.importorskip("gymnasium")

from fovea.environments.alfworld import ALFWORLD_THOR, BUILT_IN, AlfThor, find_games, read_game
from fovea.environments.catalogue import find_game
from fovea.environments.check import check_environment


def test_the_games_that_come_with_the_package() -> None:
    names = {
        split: [path.name for path in find_games(BUILT_IN, split)]
        for split in ("train", "validation", "test")
    }
    assert names == {"train": ["mug.json"], "validation": ["spoon.json"], "test": ["apple.json"]}
    for split in names:
        game = json.loads(find_games(BUILT_IN, split)[0].read_text(encoding="utf-8"))
        text = "\n".join(game["problem"])
        assert text.count("(") == text.count(")")
        assert game["task"]
        assert game["walkthrough"][0].startswith("go to ")


def test_folders_are_found_by_either_name(tmp_path: Path) -> None:
    for folder in ("train/a", "valid_seen", "valid_unseen"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "game.tw-pddl").write_text(
            '{"pddl_domain": "d", "grammar": "g", "pddl_problem": "p", "solvable": true}'
        )
        (tmp_path / folder / "traj_data.json").write_text("{}")  # beside the games of ALFWorld's own data
    for split, where in (("train", "a"), ("validation", "valid_seen"), ("test", "valid_unseen")):
        (found,) = find_games(tmp_path, split)
        assert found.parent.name == where
        assert read_game(found) == {"pddl_domain": "d", "grammar": "g", "pddl_problem": "p"}
    assert len(find_games(tmp_path / "valid_seen", "train")) == 1  # a folder without splits


def test_files_that_are_no_games_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no games"):
        find_games(tmp_path, "train")
    for content, message in (
        ("{", "cannot be read as a game"),
        ("[]", "is no game"),
        ('{"task": "x"}', "is no game"),
    ):
        file = tmp_path / "one.json"
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            read_game(file)


class StandIn:
    """AlfredThorEnv as its source has it: batches of one, tasks drawn with the global `random`."""

    def __init__(self, config: Any, train_eval: str) -> None:
        self.config, self.train_eval = config, train_eval
        self.json_file_list = [f"{train_eval}/{i}/traj_data.json" for i in (2, 0, 1)]
        self.closed = False

    def init_env(self, batch_size: int) -> StandIn:
        assert batch_size == 1
        return self

    def reset(self) -> tuple[list[str], dict[str, Any]]:
        self.task, self.at = random.sample(self.json_file_list, k=1)[0], 0
        return [
            f"-= Welcome to TextWorld, ALFRED! =-\n\nA room.\n\nYour task is to: do {self.task}."
        ], self.infos()

    def step(self, actions: list[str]) -> tuple[list[str], None, list[bool], dict[str, Any]]:
        self.at += actions[0] == "go on"
        return [f"You are at {self.at}."], None, [self.at == 2], self.infos()

    def infos(self) -> dict[str, Any]:
        return {
            "admissible_commands": [["go on", "look", "help"]],
            "won": [self.at == 2],
            "goal_condition_success_rate": [self.at / 2],
            "extra.gamefile": ["somewhere"],
            "extra.expert_plan": [["go on"] if self.train_eval == "train" else []],
        }

    def get_frames(self) -> np.ndarray:
        """Blue, green, red; the agent sees red."""
        return np.tile(np.array([0, 40 * self.at, 255], np.uint8), (1, 300, 300, 1))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def thor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alfworld", "alfworld.agents", "alfworld.agents.environment"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.ModuleType("alfworld.agents.environment.alfred_thor_env")
    module.AlfredThorEnv = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("thor")
def test_the_adapter_with_pictures_fits_what_was_read() -> None:
    env = AlfThor(config={"some": "thing"})
    env.reset(seed=1)
    assert env.task.startswith("Your task is to: do train/")
    assert ALFWORLD_THOR.legal(env) == ("go on", "look")
    assert ALFWORLD_THOR.expert is not None
    assert ALFWORLD_THOR.expert(env) == "go on"
    assert ALFWORLD_THOR.pictures(env)[0].getpixel((0, 0)) == (255, 0, 0)
    assert env.step("look")[1:4] == (0.0, False, False)
    assert env.step("go on")[1:4] == (0.5, False, False)
    assert "After 'go on': You are at 1." in ALFWORLD_THOR.ask(env)
    assert env.step("go on")[1:4] == (51.0, True, False)
    assert ALFWORLD_THOR.won(env, 51.5, True)
    tasks = set()
    for seed in range(30):
        env.reset(seed=seed, options={"split": "test"})
        tasks.add(env.task)
        env.reset(seed=seed, options={"split": "test"})
        assert env.task in tasks
    assert len(tasks) == 3
    held = env._env
    env.close()
    assert held.closed


@pytest.mark.usefixtures("thor")
def test_the_adapter_with_pictures_keeps_what_a_game_promises(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("some: thing\n")
    report = check_environment(ALFWORLD_THOR, options={"config": str(file)}, texts=50)
    assert report.ok, report.text()
    with pytest.raises(UserError, match="needs config=FILE"):
        AlfThor()
    with pytest.raises(UserError, match="there is no file"):
        AlfThor(config=str(tmp_path / "other.yaml"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alfworld", None)
    game = find_game("alfworld")  # its words need no package
    env = game.make(**game.options)
    with pytest.raises(UserError, match=r"pip install 'fovea-rl\[alfworld\]'"):
        env.reset(seed=0)
    with pytest.raises(UserError, match=r"pip install 'fovea-rl\[alfworld\]'"):
        AlfThor(config={"some": "thing"})
