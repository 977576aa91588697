"""The study's plot; it needs matplotlib, and is left out without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fovea.recipes.vlm_r1._plots import _pyplot

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
            if gain["ci95"] is not None:
                ax.plot(gain["ci95"], [row, row], color="#c1440e", linewidth=1.5)
            ax.plot([gain["mean"]], [row], "|", color="#c1440e", markersize=10, markeredgewidth=2)
        ax.set_title(title, loc="left")
        ax.set_xlabel("gain over the start")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
