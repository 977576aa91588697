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
    axes[0, 0].legend(frameon=False)
    seeds = len(next(iter(result["arms"].values()))["seeds"])
    figure.suptitle(f"Five detection rewards, beta 0, {seeds} seeds each (running mean of {SMOOTH} steps)")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _smooth(values: Sequence[float]) -> np.ndarray:
    return np.convolve(values, np.ones(SMOOTH) / SMOOTH, mode="valid")
