"""The study's results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIGURES = ("accuracy", "return", "looking", "thought_follows", "invalid")


def tables(result: Mapping[str, Any]) -> str:
    """One table of the cold starts and the arms: held-out success and its kin, mean [95 % interval]."""
    lines = [
        "| | game | seeds | success, greedy | sampled | return | looking | thought follows "
        "| invalid | CPU s |",
        "|---" * 10 + "|",
    ]
    for kind in ("starts", "arms"):
        lines += [_row(name, found) for name, found in result[kind].items()]
    return "\n".join(lines) + "\n"


def _row(name: str, found: Mapping[str, Any]) -> str:
    test = found["tasks"]["test"]
    cells = [name, found["game"], str(len(found.get("seeds", [0])))]
    cells += [_cell(test, "accuracy"), _cell(test, "sampled")]
    cells += [_cell(test, figure) for figure in ("return", "looking", "thought_follows", "invalid")]
    seconds = found["train_cpu_seconds"]
    return f"| {' | '.join([*cells, f'{sum(seconds) / len(seconds):.0f}'])} |"


def _cell(task: Mapping[str, Any], figure: str) -> str:
    """Over seeds; of a single run the interval over its episodes where there is one."""
    value = task.get(figure)
    if value is None:
        return ""
    interval = value["ci95"]
    if interval is None and figure == "accuracy":
        interval = task["ci95_of_each"][0]
    if interval is None:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
