"""Link prediction learnt from a graph alone: imports among Python's modules, text, fovea-tiny. In miniature.

    fovea study ssl4rl/graphs --out runs/ssl4rl/graphs --seeds 0 1 2

Nodes are letters in the order of the search from the two asked ones (`names=ordered`; in random order fovea-tiny
cannot look them up: graphs/text_edge in its card is at chance), so only structure can be read. RL on the answer
(`rl`) and SFT on the answers that the graph writes itself (`sft`) see as many training problems. Both are measured on
the same held-out pairs, each with an end that training never saw, and on what was never trained: another graph, and
node classification. A reconstruction: SSL4RL's graph part could not be obtained, and the design is ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fovea.recipes.vlm_r1._arms import HELD_OUT_SEED, Arm, curve_of, do_arm, hardware, run_arms
from fovea.runlog import write_json
from fovea.tasks.graph_ssl import GRAPH, GraphTask, open_graph_task
from fovea.tasks.graph_ssl.baselines import choice_baselines, link_baselines

ORDERED = {"names": "ordered"}
STUDIED: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "link": ("graph/link", GRAPH, ORDERED),
    "link, another graph": ("graph/link", "packages", ORDERED),
    "class": ("graph/class", GRAPH, ORDERED | {"choices": 3}),
}
"""Name in the study → (task, graph, options)."""
MEASURE = {"link": 1000, "link, another graph": 300, "class": 256}
RATES = {"sft": 3e-4, "rl": 1e-4}
"""Method → learning rate; not tuned."""

BASE: dict[str, Any] = {
    "model": "fovea-tiny",
    "rewards": {"exact": 1.0, "format": 0.1},
    "steps": 40,
    "save_every": 40,
    "prompts": 32,
    "group": 8,
    "tokens_per_pass": 4096,
    "sampling": {"max_new_tokens": 12},
    "algorithm": {"name": "grpo"},
}


def open_studied(name: str, split: Any, seed: int) -> GraphTask:
    """A task of `STUDIED`."""
    task, graph, options = STUDIED[name]
    return open_graph_task(task, split, seed, graph=graph, options=options)


def all_arms(seeds: Sequence[int]) -> list[Arm]:
    """From fovea-tiny: SFT and RL."""
    arms = []
    for seed in seeds:
        for name, rate in RATES.items():
            optimizer = {"learning_rate": rate, "warmup_steps": 5}
            values = BASE | {"method": name, "optimizer": optimizer}
            start = name == "sft" and seed == seeds[0]  # fovea-tiny is the same for all
            arms.append(Arm(name=name, seed=seed, task="link", values=values, measure=MEASURE, start=start))
    return arms


# --- what came of it ------------------------------------------------------------------------------------------------


def summary(out: Path, seeds: Sequence[int], command: str) -> dict[str, Any]:
    """What results.json holds."""
    arms: dict[str, list[Arm]] = {}
    for arm in all_arms(seeds):
        arms.setdefault(arm.name, []).append(arm)
    about = {"study": "ssl4rl/graphs", "command": command, "hardware": hardware()}
    return about | {
        "baselines": baselines(),
        "arms": {name: _seeds(out, mine) for name, mine in arms.items()},
    }


def baselines() -> dict[str, Any]:
    """What is reached without a model, on the very problems that the arms are measured on."""
    found = {}
    for name, n in MEASURE.items():
        held = open_studied(name, "test", HELD_OUT_SEED)
        measure = choice_baselines if name == "class" else link_baselines
        found[name] = measure(open_studied(name, "train", 0), held, n)
    return found


def _seeds(out: Path, arms: Sequence[Arm]) -> dict[str, Any]:
    """{"seeds", "metrics": {"curve": a list a seed of {"step", "prompts", "cpu_seconds", "tasks"}, "settings"}}."""
    curves = []
    for arm in arms:
        points = curve_of(out, arm)["checkpoints"]
        kept = ("accuracy", "format", "n", "chance")
        curves.append(
            [
                point
                | {
                    "tasks": {
                        task: {key: record[key] for key in kept if key in record}
                        for task, record in point["tasks"].items()
                    }
                }
                for point in points
            ]
        )
    settings = {key: arms[0].values[key] for key in ("method", "steps", "prompts", "optimizer")}
    return {"seeds": [arm.seed for arm in arms], "metrics": {"curve": curves, "settings": settings}}


def table(result: Mapping[str, Any]) -> str:
    """Accuracy at the end of each arm: mean over seeds, each seed with its 95 % interval; and the baselines."""
    lines = ["| | task | accuracy | by seed (95 % Wilson) |", "|---|---|---|---|"]
    for task, held in result["baselines"].items():
        for name, one in held["baselines"].items():
            lines.append(
                f"| {name} | {task} | {one['accuracy']['mean']:.3f} | {_interval(one['accuracy'])} |"
            )
    arms = result["arms"]
    rows = [("fovea-tiny", arms["sft"], 0), *((name, arm, -1) for name, arm in arms.items())]
    for name, arm, at in rows:
        ends = [curve[at]["tasks"] for curve in arm["metrics"]["curve"]]
        for task in ends[0]:
            found = [end[task]["accuracy"] for end in (ends[:1] if at == 0 else ends)]
            mean = float(np.mean([one["mean"] for one in found]))
            each = "; ".join(f"{one['mean']:.3f} {_interval(one)}" for one in found)
            lines.append(f"| {name} | {task} | {mean:.3f} | {each} |")
    return "\n".join(lines) + "\n"


def _interval(accuracy: Mapping[str, Any]) -> str:
    low, high = accuracy["ci95"]
    return f"[{low:.3f}, {high:.3f}]"


def main(argv: list[str]) -> None:
    """Run the study, or finish it."""
    parser = argparse.ArgumentParser(prog="fovea study ssl4rl/graphs", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ssl4rl/graphs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    out, seeds, jobs = options.out, options.seeds, options.jobs
    run_arms(out, all_arms(seeds), jobs, __name__)
    result = summary(out, seeds, " ".join(["fovea study ssl4rl/graphs", *argv]))
    write_json(out / "results.json", result)
    (out / "tables.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    do_arm(Path(sys.argv[1]), open_studied)
