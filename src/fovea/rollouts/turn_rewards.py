"""Further rewards of a turn, from what the reply says about the state: the hook for world models.

A function `(text, *, before, after) -> float` is told the reply and, as the environment tells them ("state", "thought",
"legal_actions"), the states before and after it. The two built in read the thought:

    state        1 where the thought holds the true transcription of the state (VAGEN's state estimation,
                 arXiv:2510.16907, with the game's own truth in the place of its judge)
    prediction   1 where <prediction> </prediction> in the reply holds that of the next state (its transition modelling)

Try it: state("<think>current 3, target 5</think><answer>+</answer>", before={"thought": "current 3, target 5"},
after={}) == 1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fovea.environments.replies import LONGEST, between, read_reply


class TurnReward(Protocol):
    """Deterministic, never raises on any text."""

    def __call__(self, text: str, *, before: Mapping[str, Any], after: Mapping[str, Any]) -> float: ...


def state(text: str, *, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """1 where the thought holds the state's transcription, else 0."""
    thought = read_reply(text).thought or read_reply(text, "json").thought
    return float(_holds(thought, before))


def prediction(text: str, *, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """1 where the reply predicts the next state's transcription, else 0."""
    said = between(text[:LONGEST], "<prediction>", "</prediction>")
    return float(said is not None and _holds(said, after))


def _holds(said: str, info: Mapping[str, Any]) -> bool:
    wanted = _plain(str(info.get("thought", "")))
    return bool(wanted) and wanted in _plain(said)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


TURN_REWARDS: dict[str, TurnReward] = {"state": state, "prediction": prediction}
