"""MiniGrid and BabyAI worlds by their id, drawn from above with small tiles; the mission is in the text.

The symbolic 7 x 7 x 3 array that MiniGrid calls an image is never shown: it is a code, not a picture. What a model
sees is what a human would, `render()` at `tile_size` pixels a cell.

The teacher of BabyAI missions is the package's own `BabyAIBot`. It has a memory of what was seen, so it is asked
along a copy of the episode, made and advanced when a teacher is asked for: the running environment is never touched.

Importing this file imports gymnasium and minigrid (extra `envs`). Try it:

    from fovea.environments.minigrid import MINIGRID
    env = MINIGRID.make(id="BabyAI-GoToLocal-v0"); env.reset(seed=0); print(MINIGRID.ask(env), MINIGRID.expert(env))
"""

from __future__ import annotations

from typing import Any

import minigrid  # noqa: F401  (registers its ids)
from minigrid.envs.babyai.core import roomgrid_level

from fovea.environments.game import Game
from fovea.environments.generic import Kept, listed
from fovea.types import UserError

ACTIONS = ("left", "right", "forward", "pick up", "drop", "toggle", "done")
# BabyAI tells standard output of every world that it draws and discards; nobody asked, and a display may run there.
vars(roomgrid_level)["print"] = lambda *words, **how: None
_FACING = ("right", "down", "left", "up")


class MiniGridWorld(Kept):
    """A MiniGrid environment by id. Example: MiniGridWorld("BabyAI-GoToLocal-v0", tile_size=8)

    `highlight` marks the cells that the agent sees, as MiniGrid does by default.
    """

    def __init__(
        self, id: str = "BabyAI-GoToLocal-v0", tile_size: int = 12, highlight: bool = False, **options: Any
    ) -> None:
        if not 4 <= tile_size <= 64:
            raise UserError(f"minigrid: tile_size is {tile_size}; give 4 to 64 pixels.")
        super().__init__(id, tile_size=tile_size, highlight=highlight, **options)
        self.kwargs = {"id": id, "tile_size": tile_size, "highlight": highlight, **options}
        self._done: list[int] = []
        self._begun: tuple[int, dict[str, Any]] = (0, {})
        self._guide: _Guide | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        # always a seed of its own, so that the teacher's copy can begin where this episode did
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._done, self._begun, self._guide = [], (seed, dict(options or {})), None
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._done.append(int(action))
        return super().step(action)

    def advice(self) -> int | None:
        """The bot's next action; None where it gives up. Raises UserError where the mission is not BabyAI's."""
        if not hasattr(self.core, "instrs"):
            raise UserError(f"BabyAIBot plans BabyAI missions only; {self.id} has no teacher.")
        if self._guide is None:
            seed, options = self._begun
            self._guide = _Guide(MiniGridWorld(**self.kwargs), seed, options)
        return self._guide.follow(self._done)


class _Guide:
    """The bot beside a copy of the episode, as far as it was played."""

    def __init__(self, copy: MiniGridWorld, seed: int, options: dict[str, Any]) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        copy.reset(seed=seed, options=options)
        self.copy, self.played = copy, 0
        self.bot: Any = BabyAIBot(copy.core)
        self.next = self._asked(None)

    def follow(self, actions: list[int]) -> int | None:
        for action in actions[self.played :]:
            self.copy.step(action)
            self.played += 1
            self.next = self._asked(action)
        return self.next

    def _asked(self, action: int | None) -> int | None:
        if self.bot is None:
            return None
        try:
            taken = None if action is None else self.copy.core.actions(action)
            return int(self.bot.replan(taken))
        except Exception:  # its own assertions, DisappearedBoxError: it has no plan any more, whatever comes
            self.bot = None
            return None


def _ask(env: Any) -> str:
    about = "You are the red triangle and look where it points. Left and right turn you."
    return f"Mission: {env.core.mission}. {about}\n{listed(ACTIONS)}"


def _state(env: Any) -> dict[str, Any]:
    column, row = (int(one) for one in env.core.agent_pos)
    held = env.core.carrying
    things = [
        [thing.color, thing.type, j // env.core.grid.width, j % env.core.grid.width]
        for j, thing in enumerate(env.core.grid.grid)
        if thing is not None and thing.type != "wall"
    ]
    return {
        "mission": env.core.mission,
        "row": row,
        "column": column,
        "facing": _FACING[int(env.core.agent_dir)],
        "carrying": None if held is None else f"{held.color} {held.type}",
        "things": things,
    }


def _thought(env: Any) -> str:
    state = _state(env)
    ahead = env.core.grid.get(*env.core.front_pos)
    what = (
        "nothing"
        if ahead is None
        else "a wall"
        if ahead.type == "wall"
        else f"the {ahead.color} {ahead.type}"
    )
    return f"I am in row {state['row'] + 1}, column {state['column'] + 1}, facing {state['facing']}; ahead is {what}."


def _expert(env: Any) -> str:
    """What the bot would do; "done" (which changes nothing) where it has given up."""
    found = env.advice()
    return ACTIONS[found] if found is not None else "done"


def _reason(env: Any, best: str) -> str:
    steps = {"forward": "the way ahead is right", "left": "turn towards it", "right": "turn towards it"}
    return f"To {env.core.mission}: {steps.get(best, best)}."


MINIGRID = Game(
    name="minigrid",
    make=MiniGridWorld,
    legal=lambda env: ACTIONS,
    ask=_ask,
    act=lambda env, said: ACTIONS.index(said),
    state=_state,
    thought=_thought,
    expert=_expert,
    reason=_reason,
    max_turns=64,
    no_op="done",
    floor=0.266,  # n = 2,000, seeds 0 to n - 1 of the test split; of the default id, as the ceiling
    ceiling=1.0,
    options={"id": "BabyAI-GoToLocal-v0", "tile_size": 12, "highlight": False},
)
