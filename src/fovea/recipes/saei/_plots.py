"""The study's plot; it needs matplotlib, and is left out without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fovea.recipes.vlm_r1._plots import _pyplot


def entropy_plot(result: Mapping[str, Any], path: Path) -> None:
    """Entropy under the clean picture along training, mean over seeds; accuracy with its interval, a row an arm."""
    pyplot = _pyplot()
    if pyplot is None:
        print("no plot: pip install matplotlib, then run the study's command again")
        return
    names = list(result["arms"])
    colors = pyplot.get_cmap("tab20").colors
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=[1.6, 1, 1])
    for name, color in zip(names, colors):
        curves = [
            steps.get("explore/policy_entropy", steps["entropy"])
            for steps in result["arms"][name]["metrics"]["training"]
        ]
        mean = np.mean([np.array(curve, np.float64) for curve in curves], axis=0)
        axes[0].plot(_smooth(mean), color=color, label=name, linewidth=2.2 if name == "grpo" else 1.2)
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("nats a token")
    axes[0].set_title("policy entropy under the clean picture (5-step mean)", loc="left", fontsize=9)
    axes[0].legend(fontsize=6.5, ncols=2)
    for ax, figure_of in zip(axes[1:], ("in_domain", "out_of_domain")):
        for row, (name, color) in enumerate(zip(names, colors)):
            value = result["arms"][name]["metrics"][figure_of]
            ax.plot(value["seeds"], [row] * len(value["seeds"]), "o", color=color, alpha=0.6, markersize=4)
            if value["ci95"] is not None:
                ax.plot(value["ci95"], [row, row], color=color, linewidth=1.5)
            ax.plot([value["mean"]], [row], "|", color="black", markersize=9)
        ax.set_title(f"accuracy, {figure_of.replace('_', ' ')}", loc="left", fontsize=9)
        ax.invert_yaxis()
    axes[1].set_yticks(range(len(names)), names, fontsize=7)
    axes[2].set_yticks([])
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    return np.convolve(values, np.ones(width) / width, mode="valid")
