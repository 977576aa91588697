"""The plots of docs/ssl4rl.md; they need matplotlib and are left out without it.

The study draws its own (`gains_plot`). Of finished runs, whose folders' names become the labels:

    python -m fovea.recipes.ssl4rl._plots quickstart OUT.png RUN [RUN ...]
    python -m fovea.recipes.ssl4rl._plots difficulty OUT.png RUN [RUN ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fovea.recipes.vlm_r1._plots import _pyplot

SEEDS = ("#1f6f8b", "#c1440e", "#5b8c5a", "#7a5c99", "#d99a1c")
"""Colours of runs."""
SMOOTH = 10
"""Steps of the running means."""

PANELS = {
    ("accuracy", "downstream"): "accuracy on tasks never trained",
    ("looking", "downstream"): "looking on tasks never trained",
    ("accuracy", "self-supervised"): "accuracy on the self-supervised tasks",
}


def gains_plot(result: Mapping[str, Any], path: Path) -> None:
    """Gain over the common start, a row an arm: a dot a seed, their mean with its 95 % interval over seeds."""
    pyplot = _pyplot()
    if pyplot is None:
        print("no plot: pip install matplotlib, then run the study's command again")
        return
    names = list(result["arms"])
    figure, axes = pyplot.subplots(
        1, len(PANELS), figsize=(11, 0.34 * len(names) + 1.4), layout="constrained", sharey=True
    )
    for ax, ((figure_of, group), title) in zip(axes, PANELS.items()):
        ax.axvline(0, color="#999999", linewidth=0.8)
        for row, name in enumerate(names):
            gain = result["arms"][name]["metrics"]["gain"][figure_of][group]
            ax.plot(gain["seeds"], [row] * len(gain["seeds"]), "o", color="#1f6f8b", alpha=0.4, markersize=4)
            if gain["ci95"] is not None and len(gain["seeds"]) > 2:  # of two it is wider than the plot
                ax.plot(gain["ci95"], [row, row], color="#c1440e", linewidth=1.5)
            ax.plot([gain["mean"]], [row], "|", color="#c1440e", markersize=10, markeredgewidth=2)
        ax.set_title(title, loc="left")
        ax.set_xlabel("gain over the start")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


# --- finished runs ---------------------------------------------------------------------------------------


def quickstart_plot(runs: Sequence[Path], path: Path) -> None:
    """Of finished runs of one recipe: reward by step (running mean); held-out accuracy and looking before and after."""
    pyplot = _pyplot()
    if pyplot is None:
        print("no plot: pip install matplotlib")
        return
    figure, (curve, bars) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for k, run in enumerate(runs):
        reward = np.array([step["reward_mean"] for step in _lines(run / "metrics.jsonl")])
        width = min(SMOOTH, len(reward))
        mean = np.convolve(reward, np.full(width, 1 / width), "valid")
        curve.plot(np.arange(width - 1, len(reward)) + 1, mean, color=SEEDS[k % len(SEEDS)], label=run.name)
        records = _lines(run / "evaluations.jsonl")
        ends = [next(one for one in records if one["phase"] == phase) for phase in ("before", "after")]
        for place, figure_of in enumerate(("accuracy", "looking")):
            for after, record in enumerate(ends):
                one = record[figure_of]
                x = place * 3 + after + (k - (len(runs) - 1) / 2) * 0.15
                bars.plot([x, x], one["ci95"], color=SEEDS[k % len(SEEDS)], linewidth=1)
                bars.plot([x], [one["mean"]], "o", color=SEEDS[k % len(SEEDS)], markersize=5)
    curve.set_title(f"reward while it trains (running mean of {SMOOTH} steps)", loc="left")
    curve.set_xlabel("step")
    curve.legend(frameon=False)
    bars.set_title("held-out pictures, greedy, 95 % intervals", loc="left")
    bars.set_xticks(
        [0, 1, 3, 4], ["accuracy\nbefore", "accuracy\nafter", "looking\nbefore", "looking\nafter"]
    )
    bars.set_ylim(0, None)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def difficulty_plot(runs: Sequence[Path], path: Path, band: tuple[float, float] = (0.4, 0.7)) -> None:
    """Of finished runs with `difficulty.control`: by step the share of right replies beside the band (running mean),
    and the difficulty. A line a task and run."""
    pyplot = _pyplot()
    if pyplot is None:
        print("no plot: pip install matplotlib")
        return
    figure, (share, level) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    share.axhspan(*band, color="#e4e4e4", linewidth=0)
    for k, run in enumerate(runs):
        steps = _lines(run / "metrics.jsonl")
        for task in sorted(key.removeprefix("success/") for key in steps[0] if key.startswith("success/")):
            asked = [step for step in steps if step.get(f"success/{task}") is not None]
            at = [step["step"] + 1 for step in asked]
            success = np.array([step[f"success/{task}"] for step in asked])
            width = min(SMOOTH, len(success))
            mean = np.convolve(success, np.full(width, 1 / width), "valid")
            share.plot(at[width - 1 :], mean, color=SEEDS[k % len(SEEDS)])
            difficulties = [step[f"difficulty/{task}"] for step in asked]
            level.plot(at, difficulties, color=SEEDS[k % len(SEEDS)], label=f"{run.name}: {task}")
    share.set_title(f"right replies (running mean of {SMOOTH} steps); band grey", loc="left")
    level.set_title("difficulty", loc="left")
    for ax in (share, level):
        ax.set_xlabel("step")
        ax.set_ylim(0, 1)
    level.legend(frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(argv: Sequence[str]) -> None:
    """KIND OUT.png RUN [RUN ...]; kinds: quickstart, difficulty."""
    kinds = {"quickstart": quickstart_plot, "difficulty": difficulty_plot}
    if len(argv) < 3 or argv[0] not in kinds:
        raise SystemExit(
            f"usage: python -m fovea.recipes.ssl4rl._plots {{{'|'.join(kinds)}}} OUT.png RUN [RUN ...]"
        )
    kinds[argv[0]]([Path(run) for run in argv[2:]], Path(argv[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
