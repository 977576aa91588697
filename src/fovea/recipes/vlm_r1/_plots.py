"""The studies' plots; they need matplotlib (extra `dev`) and are left out without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMOOTH = 5
"""Steps of the running mean in plots of training."""
COLORS = {
    "od_ap50": "#c1440e", "od_map": "#d99a1c", "od_length": "#5b8c5a", "od_weighted": "#7a5c99", "od_f1": "#1f6f8b",
}  # fmt: skip


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return pyplot


def hacking_plot(result: dict[str, Any], path: Path) -> None:
    """Four panels along training, one colour a reward: mean over seeds, a thin line a seed."""
    pyplot = _pyplot()
    if pyplot is None:
        print("no plot: pip install matplotlib, then run the study's command again")
        return
    panels = {
        "reward_mean": "the arm's own reward",
        "reward/od_f1": "order-independent F1 (od_f1)",
        "reward/od_ratio": "predicted / true boxes",
        "completion_tokens": "tokens a reply",
    }
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for ax, (key, title) in zip(axes.flat, panels.items()):
        for name, arm in result["arms"].items():
            runs = [_smooth(run) for run in arm["metrics"]["training"][key]]
            steps = np.arange(len(runs[0])) + SMOOTH
            for run in runs:
                ax.plot(steps, run, color=COLORS.get(name), alpha=0.25, linewidth=0.8)
            ax.plot(steps, np.mean(runs, axis=0), color=COLORS.get(name), linewidth=2, label=name)
        ax.set_title(title, loc="left")
        ax.set_xlabel("step")
    seeds = len(next(iter(result["arms"].values()))["seeds"])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(
        f"Trained on five detection rewards, beta 0; seeds: {seeds}; sampled replies, running mean of {SMOOTH} steps"
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def grounding_plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy over CPU seconds, RL beside SFT, a panel a task; a line a seed."""
    pyplot = _pyplot()
    if pyplot is None:
        return
    tasks = list(result["arms"]["rl"]["metrics"]["curve"][0][0]["tasks"])
    figure, axes = pyplot.subplots(
        2, (len(tasks) + 1) // 2, figsize=(11, 5.5), layout="constrained", sharex=True
    )
    for ax, task in zip(axes.flat, tasks):
        for name, color in (("rl", "#1f6f8b"), ("sft", "#c1440e")):
            for curve in result["arms"][name]["metrics"]["curve"]:
                accuracies = [point["tasks"][task]["accuracy"]["mean"] for point in curve]
                ax.plot(
                    [point["cpu_seconds"] for point in curve], accuracies, color=color, marker=".", alpha=0.7
                )
        ax.set_title(task, loc="left")
        ax.set_ylim(0, 1)
    for ax in axes.flat[len(tasks) :]:
        ax.axis("off")
    lines = [
        pyplot.Line2D([], [], color=color, label=name)
        for name, color in (("RL", "#1f6f8b"), ("SFT", "#c1440e"))
    ]
    axes.flat[-1].legend(handles=lines, frameon=False, loc="center")
    figure.supxlabel("CPU seconds of training")
    figure.supylabel("greedy accuracy (IoU > 0.5)")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _smooth(values: Sequence[float]) -> np.ndarray:
    return np.convolve(values, np.ones(SMOOTH) / SMOOTH, mode="valid")
