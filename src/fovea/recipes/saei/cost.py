"""What a step with an attack costs beside a step of plain GRPO with as many completions: CPU seconds, one thread.

    fovea study saei/cost --out runs/saei/cost

Both sides take turns in one process with the same random weights and problems; the figure is the median over rounds of
the ratio of two neighbouring steps. The attack's own time is a part by itself; the rest of the difference is the second
encoding of the pictures and two shorter decodes instead of one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fovea.config import InterventionSection
from fovea.recipes.vlm_r1._arms import hardware
from fovea.runlog import write_json

WAYS = {
    "egas": InterventionSection(name="egas", measure_every=0),
    "pgd, 3 steps": InterventionSection(name="egas", attack_steps=3, measure_every=0),
    "random sign": InterventionSection(name="random_sign", measure_every=0),
    "egas, adversarial": InterventionSection(name="egas", ratio="adversarial", measure_every=0),
}


def measure(image_tokens: int, rounds: int, ways: list[str], prompts: int, group: int = 8) -> dict[str, Any]:
    """{"plain": parts, way: {"parts", "ratio", "ratios"}} at one picture size."""
    from fovea.bench.case import Work, mean_parts, one_thread
    from fovea.bench.ours import OurSteps

    work = Work(image_tokens=image_tokens, prompts=prompts, group=group)
    with one_thread():
        sides = {"plain": OurSteps(work)} | {way: OurSteps(work, intervention=WAYS[way]) for way in ways}
        problems = next(iter(sides.values())).problems(work.prompts)
        parts: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for index in range(rounds + 1):
            for name, side in sides.items():
                side.clock.take()
                side.step(index, problems)
                if index:  # the first step warms up
                    parts[name].append(side.clock.take())
    totals = {name: np.array([sum(one.values()) for one in each]) for name, each in parts.items()}
    found: dict[str, Any] = {"image_tokens": image_tokens, "plain": mean_parts(parts["plain"])}
    for way in ways:
        ratios = totals[way] / totals["plain"]
        found[way] = {
            "parts": mean_parts(parts[way]),
            "ratio": float(np.median(ratios)),
            "range": [float(ratios.min()), float(ratios.max())],
        }
    return found


def table(found: list[dict[str, Any]], ways: list[str]) -> str:
    """Markdown."""
    lines = [
        "| image tokens | way | whole step against plain GRPO | parts, CPU s a step |",
        "|---|---|---|---|",
    ]
    for one in found:
        lines.append(f"| {one['image_tokens']} | plain | 1 | {_parts(one['plain'])} |")
        for way in ways:
            low, high = one[way]["range"]
            lines.append(
                f"| {one['image_tokens']} | {way} | {one[way]['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
                f"{_parts(one[way]['parts'])} |"
            )
    return "\n".join(lines) + "\n"


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())


def main(argv: list[str]) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(prog="fovea study saei/cost", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="image tokens a picture")
    parser.add_argument("--prompts", type=int, default=16, help="problems a step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("runs/saei/cost"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    found = [measure(tokens, options.rounds, options.ways, options.prompts) for tokens in options.tokens]
    command = "fovea study saei/cost " + " ".join(argv)
    write_json(options.out / "results.json", {"command": command, "hardware": hardware(), "sizes": found})
    (options.out / "table.md").write_text(table(found, options.ways))
    print(table(found, options.ways))
