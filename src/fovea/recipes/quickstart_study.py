"""What the quickstart's RL does, beside SFT from the same weights at equal CPU seconds, and pass@8.

    fovea study quickstart_study --out runs/quickstart_study --seeds 3

For every seed: the quickstart recipe; then `fovea sft` on the same training problems until it has used as many
CPU seconds as RL did. All arms answer the same 512 held-out problems before and after (digits and backgrounds that
never occur in training), and as many scenes drawn with a font, which no stage has ever seen. Finished arms are not
run again, so an interrupted study goes on. Writes study.json and study.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fovea.checkpoints import newest
from fovea.config import load_run
from fovea.evaluation import evaluate
from fovea.runlog import write_json
from fovea.statistics import bootstrap_ci
from fovea.training import open_for_evaluation, train

SFT = ["method=sft", "prompts=64", "steps=100000"]
"""The reply tokens of 64 problems a step; stopped by its CPU budget, not by its steps."""


def arm(out: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """The result of one arm, from its run folder if it is finished."""
    folder = out / name
    if not (folder / "result.json").is_file():
        print(f"{name}: {' '.join(overrides)}", flush=True)
        train(load_run("quickstart", [f"run_dir={folder}", *overrides]))
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def printed(out: Path, name: str, model: str, n: int) -> dict[str, Any]:
    """Accuracy on scenes drawn with a font, from the file if it was measured."""
    path = out / f"{name}-printed.json"
    if not path.is_file():
        run = load_run("quickstart", ["task=printed/locate", f"model={model}"])
        policy, engine, task, instruction = open_for_evaluation(run)
        write_json(
            path,
            evaluate(
                policy,
                engine,
                task,
                n,
                seed=0,
                max_new_tokens=run.sampling.max_new_tokens,
                instruction=instruction,
            ),
        )
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def row(
    arm: str, seed: int | None, result: dict[str, Any], phase: str, fonts: dict[str, Any]
) -> dict[str, Any]:
    """One line of the table, from a run's result and its measurement on printed digits."""
    trained = phase == "after"
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": result[phase],
        "looking": result["looking"][phase],
        "sampled": result["pass_at_k"][phase]["1"],
        "pass_at_8": result["pass_at_k"][phase]["8"],
        "printed": {key: fonts[key] for key in ("accuracy", "looking", "n")},
        "steps": result["steps"] if trained else 0,
        "train_cpu_seconds": result["train_cpu_seconds"] if trained else 0.0,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The study's table; brackets are 95 % intervals over problems."""
    lines = [
        "| arm | seed | steps | CPU s | accuracy | looking | sampled (pass@1) | pass@8 | printed accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def cell(value: dict[str, Any]) -> str:
        low, high = value["ci95"]
        return f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]"

    for r in rows:
        seed = "" if r["seed"] is None else r["seed"]
        lines.append(
            f"| {r['arm']} | {seed} | {r['steps']} | {r['train_cpu_seconds']:.0f} | {cell(r['accuracy'])} "
            f"| {r['looking']:.3f} | {cell(r['sampled'])} | {cell(r['pass_at_8'])} | {cell(r['printed']['accuracy'])} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Run the study, or finish it."""
    parser = argparse.ArgumentParser(prog="fovea study quickstart_study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart_study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sft-seeds", type=int, help="how many of the seeds get an SFT arm; default: all")
    parser.add_argument("--n", type=int, default=512, help="held-out problems")
    parser.add_argument("overrides", nargs="*", help="key=value for every arm")
    options = parser.parse_args(argv)
    n, extra = options.n, [f"evaluation.n={options.n}", *options.overrides]
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        rl = arm(options.out, f"rl-seed{seed}", [f"seed={seed}", *extra])
        cpu = rl["train_cpu_seconds"]
        arms = {f"rl-seed{seed}": rl}
        if seed < (options.seeds if options.sft_seeds is None else options.sft_seeds):
            overrides = [f"seed={seed}", *SFT, f"cpu_seconds={cpu}", *extra]
            arms[f"sft-seed{seed}"] = arm(options.out, f"sft-seed{seed}", overrides)
        if not rows:
            fonts = printed(options.out, "before", load_run("quickstart", extra).model, n)
            rows.append(row("before", None, rl, "before", fonts))
        for name, result in arms.items():
            checkpoint = newest(options.out / name)
            assert checkpoint is not None, "a finished run has a checkpoint"
            fonts = printed(options.out, name, str(checkpoint / "model"), n)
            rows.append(row(name.partition("-")[0], seed, result, "after", fonts))
    write_json(options.out / "study.json", {"n": n, "seeds": options.seeds, "rows": rows})
    (options.out / "study.md").write_text(markdown(rows))
    print(markdown(rows))
    for name in ("rl", "sft"):
        gains = [r["accuracy"]["mean"] - rows[0]["accuracy"]["mean"] for r in rows if r["arm"] == name]
        if len(gains) > 1:
            low, high = bootstrap_ci(gains, seed=0)
            print(
                f"{name}: accuracy gain {sum(gains) / len(gains):+.3f}, over seeds [{low:+.3f}, {high:+.3f}]"
            )
