"""ALFWorld: household tasks (Shridhar et al. 2021, arXiv:2010.03768). Text mode offline; THOR mode never run here.

`AlfWorld` steps one game at a time in TextWorld's PDDL engine, in this process, without ALFWorld's data set and
without a network. A game is a file, either of two kinds:

    game.tw-pddl    as ALFWorld writes it: {"pddl_domain", "grammar", "pddl_problem", …}
    NAME.json       {"task": text, "problem": lines of a PDDL problem, "walkthrough": commands}; domain and grammar are
                    those that come with the package. Three such games, one a split, are in fovea/recipes/rl4vlm.

`games` is a folder of them, searched to any depth; where it has a folder for the split (`train`, `validation` or
`valid_seen`, `test` or `valid_unseen`) only that one. Reward: 1 when the task is done. The commands that are possible
now are listed, as ALFWorld does. The teacher is the engine's own planner, asked anew at every step.

`AlfThor` is the mode with pictures (ai2thor 2.1.0). It needs a display and a download at run time; it was written
against the source of alfworld 0.4.2 and has NEVER been run by this project.

The package `alfworld` (extra `alfworld`) is MIT; it builds jericho and fast-downward-textworld (GPL) from source.

Try it: python tests/alfworld_offline.py
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from fovea.environments.game import Game, rendered
from fovea.environments.generic import split_seed
from fovea.types import UserError

BUILT_IN = Path(__file__).parent.parent / "recipes" / "rl4vlm" / "alfworld_game"
_FOLDERS = {"train": ("train",), "validation": ("validation", "valid_seen"), "test": ("test", "valid_unseen")}
_THOR_SPLITS = {"train": "train", "validation": "eval_in_distribution", "test": "eval_out_of_distribution"}
_TASK = "Your task is to:"


def find_games(games: str | Path, split: str) -> list[Path]:
    """The game files of a split, sorted. Raises UserError where there are none."""
    folder = Path(games)
    own = next((folder / name for name in _FOLDERS[split] if (folder / name).is_dir()), folder)
    found = sorted(own.rglob("*.tw-pddl")) or sorted(own.rglob("*.json"))
    if not found:
        raise UserError(f"alfworld: {folder} has no games (*.tw-pddl or *.json) for the split {split}.")
    return found


def read_game(path: Path) -> dict[str, str]:
    """What TextWorld loads: pddl_domain, grammar and pddl_problem. Raises UserError for a file that is no game."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"alfworld: {path.name} cannot be read as a game: {error}.") from error
    if isinstance(data, dict) and {"pddl_domain", "grammar", "pddl_problem"} <= set(data):
        return {name: str(data[name]) for name in ("pddl_domain", "grammar", "pddl_problem")}
    if not isinstance(data, dict) or not {"task", "problem"} <= set(data):
        raise UserError(
            f"alfworld: {path.name} is no game; it needs pddl_domain, grammar and pddl_problem, or task and problem."
        )
    info = _package("alfworld.info")
    grammar = Path(info.ALFRED_TWL2_PATH).read_text(encoding="utf-8")
    return {
        "pddl_domain": Path(info.ALFRED_PDDL_PATH).read_text(encoding="utf-8"),
        "grammar": grammar.replace("UNKNOWN GOAL", str(data["task"])),
        "pddl_problem": "\n".join(data["problem"]),
    }


def _package(module: str) -> Any:
    """A module of alfworld or TextWorld. Raises UserError, naming the extra, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"alfworld needs the module {error.name or module}; pip install 'fovea-rl[alfworld]'."
        ) from error


class _Told(gymnasium.Env):
    """What both modes have in common: the task, what was last said, and the commands that are possible now."""

    task: str = ""
    said: str = ""
    last: str = ""
    """The last command, "" at the beginning."""
    commands: tuple[str, ...] = ()

    def _begin(self, text: str) -> None:
        before, _, task = text.partition(_TASK)
        self.task, self.last = f"{_TASK} {task.strip()}", ""
        self.said = before.removeprefix("-= Welcome to TextWorld, ALFRED! =-").strip()


class AlfWorld(_Told):
    """One text game after another. Example: AlfWorld(games="my_games")"""

    def __init__(self, games: str | Path = BUILT_IN, max_steps: int = 50) -> None:
        self.games, self.max_steps = games, max_steps
        # commands are words; the space is only to say so to learners that ask
        self.action_space = gymnasium.spaces.Text(200)
        self.observation_space = gymnasium.spaces.Text(10_000)
        self.render_mode = "ansi"
        self.file = Path()
        self.steps = 0
        self._engine: Any = None
        self._state: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        split = (options or {}).get("split", "train")
        drawn = int(self.np_random.integers(2**31)) if seed is None else split_seed(seed, split)
        files = find_games(self.games, split)
        self.file = files[drawn % len(files)]
        self._engine = self._load(read_game(self.file))
        self._state = self._engine.reset()
        self.steps = 0
        self._begin(self._state.feedback)
        self._note()
        return self.said, {"game": self.file.name}

    def _load(self, game: dict[str, str]) -> Any:
        names = _package("alfworld.agents.environment.alfred_tw_env")
        textworld, pddl = _package("textworld"), _package("textworld.envs.pddl.pddl")
        wanted = textworld.EnvInfos(won=True, admissible_commands=True, policy_commands=True)
        engine = names.AlfredDemangler(pddl.PddlEnv(wanted), shuffle=False)
        engine.load(game)
        return engine

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._state, _, _ = self._engine.step(str(action))
        self.steps += 1
        self.said, self.last = self._state.feedback, str(action)
        self._note()
        won = bool(self._state["won"])
        return self.said, float(won), won, self.steps >= self.max_steps and not won, {"won": won}

    def _note(self) -> None:
        # "help" lists commands, which the text does already
        self.commands = tuple(name for name in self._state["admissible_commands"] if name != "help")

    def plan(self) -> tuple[str, ...]:
        """The planner's commands from here to the goal; () where it finds none."""
        return tuple(self._state["policy_commands"] or ())

    def render(self) -> Any:
        return self.said


class AlfThor(_Told):
    """The mode with pictures, NEVER RUN by this project. Example: AlfThor(config="base_config.yaml")

    `config` is ALFWorld's own YAML file or its content. Reward as RL4VLM's code has it: 50 when the task is done, plus
    the share of its conditions that hold now, at every step.
    """

    def __init__(self, config: str | Path | dict[str, Any] = "", max_steps: int = 50) -> None:
        if not config:
            raise UserError(
                "alfworld in THOR mode needs config=FILE, ALFWorld's base_config.yaml with its data."
            )
        self.config = config if isinstance(config, dict) else _yaml(Path(config))
        self.max_steps, self.steps = max_steps, 0
        self._make: Any = _package("alfworld.agents.environment.alfred_thor_env").AlfredThorEnv
        self._running: dict[str, tuple[Any, list[str]]] = {}
        self._env: Any = None
        self._plan: Sequence[str] = ()
        self.action_space = gymnasium.spaces.Text(200)
        self.observation_space = gymnasium.spaces.Box(0, 255, (300, 300, 3), np.uint8)
        self.render_mode = "rgb_array"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        split = (options or {}).get("split", "train")
        drawn = int(self.np_random.integers(2**31)) if seed is None else split_seed(seed, split)
        if split not in self._running:
            env = self._make(self.config, train_eval=_THOR_SPLITS[split]).init_env(batch_size=1)
            self._running[split] = (env, sorted(env.json_file_list))
        self._env, files = self._running[split]
        # it draws a task with the global `random`, which no seed of ours reaches; a list of one leaves no choice
        self._env.json_file_list = [files[drawn % len(files)]]
        said, infos = self._env.reset()
        self.steps = 0
        self._begin(said[0])
        self._note(infos)
        return self.render(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        said, _, dones, infos = self._env.step([str(action)])
        self.steps += 1
        self.said, self.last = said[0], str(action)
        self._note(infos)
        won = bool(infos["won"][0])
        reward = 50.0 * won + float(infos["goal_condition_success_rate"][0])
        over = bool(dones[0]) or self.steps >= self.max_steps
        return self.render(), reward, won, over and not won, {"won": won}

    def _note(self, infos: dict[str, Any]) -> None:
        self.commands = tuple(name for name in infos["admissible_commands"][0] if name != "help")
        self._plan = infos["extra.expert_plan"][0] or ()

    def plan(self) -> tuple[str, ...]:
        """The hand-written expert's next command (train split only)."""
        return tuple(self._plan)

    def render(self) -> Any:
        # get_frames gives blue, green, red, as OpenCV wants it
        return np.ascontiguousarray(self._env.get_frames()[0][..., ::-1])

    def close(self) -> None:
        for env, _ in self._running.values():
            env.close()


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise UserError(f"alfworld: there is no file {path}; give config=FILE, ALFWorld's base_config.yaml.")
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


# --- the games --------------------------------------------------------------------------------------------


def _ask(env: Any) -> str:
    before = f"After '{env.last}': " if env.last else ""
    return f"{env.task}\n{before}{env.said}\nActions: {'; '.join(env.commands)}."


def _expert(env: Any) -> str:
    """The planner's next command; "look" (which is always possible and changes nothing) where it has none."""
    return next((name for name in env.plan() if name in env.commands), "look")


ALFWORLD = Game(
    name="alfworld",
    make=AlfWorld,
    legal=lambda env: env.commands,
    ask=_ask,
    act=lambda env, said: said,
    pictures=lambda env: (),
    state=lambda env: {"task": env.task, "said": env.said, "plan": list(env.plan())},
    thought=lambda env: env.said,
    expert=_expert,
    reason=lambda env, best: f"{env.task.removeprefix(_TASK).strip().capitalize()} Next: {best}.",
    won=lambda env, total, terminated: terminated and total > 0,
    max_turns=50,
    no_op="look",
    floor=0.04,  # n = 100, seeds 0 to n - 1 of the test split's one game (standard error 0.02)
    ceiling=1.0,
    options={"games": str(BUILT_IN), "max_steps": 50},
)

ALFWORLD_THOR = Game(
    name="alfworld_thor",
    make=AlfThor,
    legal=lambda env: env.commands,
    ask=_ask,
    act=lambda env, said: said,
    pictures=rendered,
    state=lambda env: {"task": env.task, "said": env.said},
    expert=_expert,
    won=lambda env, total, terminated: terminated,
    max_turns=50,
    no_op="look",
    options={"config": "", "max_steps": 50},
)
