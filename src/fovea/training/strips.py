"""An episode as a film strip: a plain record a turn, with picture, thought, action, reward, value and advantage.

Not here: showing it (`fovea.viewer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fovea.runlog import RunLog
from fovea.types import Trajectory


def strip(
    log: RunLog, trajectory: Trajectory, advantages: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Records of a trajectory's turns, in order, with the keys of a completion's (`fovea.rollouts.shown`) and those of
    an episode. Pictures are written into the log's folder. `advantages`: of each turn; None where nothing was
    learned."""
    return [
        _frame(log, trajectory, i, None if advantages is None else advantages[i])
        for i in range(len(trajectory.turns))
    ]


def _frame(log: RunLog, trajectory: Trajectory, i: int, advantage: float | None) -> dict[str, Any]:
    turn = trajectory.turns[i]
    problem, values, last = turn.prompt.problem, turn.completion.values, i + 1 == len(trajectory.turns)
    return {
        "id": problem.id,
        "question": problem.question,
        # Named by what was shown, too: the same turn of the same episode differs before and after training.
        "pictures": log.pictures(replace(problem, id=f"{problem.id} {turn.anchor[:12]}")),
        "answer": None,
        "text": turn.completion.text,
        "stop": turn.completion.stop,
        "reward": turn.reward,
        "parts": dict(turn.parts),
        "advantage": advantage,
        "mean_log_prob": float(turn.completion.log_probs.mean()),
        "variant": turn.completion.variant,
        "policy_version": turn.completion.policy_version,
        "episode": trajectory.id,
        "turn": trajectory.first + i,
        "thought": turn.thought,
        "action": turn.action,
        "legal": turn.legal,
        "value": None if values is None else float(values[0]),
        "state": dict(turn.state),
        "terminated": last and trajectory.terminated,
        "cut_off": last and trajectory.truncated,
        "success": trajectory.success if last else None,
        "total": trajectory.total if last else None,
    }
