"""Does the attack work for the reason claimed? Entropy gained by a gradient against that gained by a coin, equal ε.

    fovea study saei/attack --n 256 --out runs/saei/attack

For every problem the policy samples completions, a band of their tokens is selected (TsEC, the default), and the mean
entropy of those tokens is measured under the clean picture and under others of the same L∞ radius: one FGSM step, PGD,
random signs (the mean of several draws). Paired by problem. Problems whose selected entropy is below 0.05 nat
are reported apart: there is nothing left to steer. Beside it, what completions sampled under each picture earn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fovea.recipes.vlm_r1._arms import hardware
from fovea.runlog import write_json
from fovea.statistics import wilson

SATURATED = 0.05
"""Nats: selected entropy below which a problem is reported apart."""
RADII = (1, 2, 4, 8)
WAYS = ("fgsm", "pgd", "random_sign")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is measured. `split` is never the one that arms are compared on."""

    model: str
    task: str
    n: int
    group: int = 6
    seed: int = 0
    draws: int = 3
    steps: int = 4
    """Of PGD."""
    batch: int = 16


def measure(setting: Setting, say: Callable[[str], None] = print) -> dict[str, Any]:
    """{"entropy": [n], "gain": {radius: {way: [n]}}, "reward": {"clean": [n], radius: {way: [n]}}}."""
    from fovea.engines.shared_prefill import SharedPrefillEngine
    from fovea.models import load_policy
    from fovea.tasks import open_task

    policy = load_policy(setting.model)
    engine = SharedPrefillEngine(policy)
    task = open_task(setting.task, "validation", setting.seed)
    found: dict[str, Any] = {"entropy": [], "gain": {}, "reward": {"clean": []}}
    for start in range(0, setting.n, setting.batch):
        problems, _ = task.take(start, min(setting.batch, setting.n - start))
        _batch(setting, policy, engine, problems, found)
        say(f"{start + len(problems)} of {setting.n} problems")
    return found


def _batch(
    setting: Setting, policy: Any, engine: Any, problems: Sequence[Any], found: dict[str, Any]
) -> None:
    from fovea.interventions import Attack, Moment, Seen, Selector
    from fovea.interventions.attack import egas
    from fovea.interventions.neighbours import each_picture, signs
    from fovea.interventions.selection import mean_weights, select
    from fovea.interventions.slot import Ask
    from fovea.models.canvas import canvases, on_canvas
    from fovea.models.pixels import PolicyPixels
    from fovea.phases import content
    from fovea.types import Sampling

    sampling = Sampling(max_new_tokens=32)
    first = [policy.prompt(problem) for problem in problems]
    pictures = [canvases(policy, prompt) for prompt in first]
    shown = [on_canvas(policy, prompt, own, leaf=True) for prompt, own in zip(first, pictures)]
    replies = engine.generate(shown, setting.group, sampling, seed=(setting.seed, 0), entropies=True)
    seen = [
        Seen(
            problem=prompt.problem, occurrence=0, canvases=own, completions=group,
            entropies=tuple(reply.entropies for reply in group),
            content=tuple(content(policy, reply) for reply in group),
        )
        for prompt, own, group in zip(shown, pictures, replies, strict=True)
    ]  # fmt: skip
    pixels = PolicyPixels(policy=policy, prompts=shown, seen=seen, sampling=sampling, tokens_per_pass=4096)
    masks = select([one.entropies for one in seen], [one.content for one in seen], Selector())

    def values(canvas: Sequence[Sequence[np.ndarray]] | None) -> np.ndarray:
        asks = [
            Ask(
                which=i, weights=mean_weights(masks[i]), canvases=None if canvas is None else tuple(canvas[i])
            )
            for i in range(len(seen))
        ]
        return np.array([answer.value for answer in pixels.values(asks)])

    clean = values(None)
    found["entropy"] += clean.tolist()
    found["reward"]["clean"] += [_earned(policy, group, one) for group, one in zip(replies, problems)]
    changes = {
        "fgsm": [egas(Selector(), Attack())],
        "pgd": [egas(Selector(), Attack(steps=setting.steps))],
        "random_sign": [each_picture(signs)] * setting.draws,
    }
    for radius in RADII:
        for way, each in changes.items():
            gains, rewards = [], []
            for draw, change in enumerate(each):
                moment = Moment(seed=setting.seed, step=draw, epsilon=radius, factor=1.0)
                changed = change(seen, pixels, moment)
                other = [c.canvases or own for c, own in zip(changed, pictures)]
                gains.append(values(other) - clean)
                if draw == 0:
                    prompts = [on_canvas(policy, prompt, own) for prompt, own in zip(first, other)]
                    again = engine.generate(prompts, setting.group, sampling, seed=(setting.seed, 1))
                    rewards = [_earned(policy, group, one) for group, one in zip(again, problems)]
            found["gain"].setdefault(radius, {}).setdefault(way, []).extend(np.mean(gains, axis=0).tolist())
            found["reward"].setdefault(radius, {}).setdefault(way, []).extend(rewards)


def _earned(policy: Any, group: Sequence[Any], problem: Any) -> float:
    """Share of right replies."""
    from fovea.models.adapter import Prompt
    from fovea.rewards import correct

    prompt: Prompt = policy.prompt(problem)
    return float(np.mean([correct(reply.text, prompt.problem) for reply in group]))


# --- what came of it -------------------------------------------------------------------------------------------------


def summary(found: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Per radius and kind of problem: medians with 95 % bootstrap intervals, and how often the gradient wins."""
    entropy = np.array(found["entropy"])
    open_ = entropy >= SATURATED
    result: dict[str, Any] = {
        "study": "saei/attack", "command": command, "hardware": hardware(), "n": len(entropy),
        "open": int(open_.sum()), "median_entropy": float(np.median(entropy)),
        "reward_clean": _mean(found["reward"]["clean"]), "radii": {},
    }  # fmt: skip
    for radius, ways in found["gain"].items():
        gains = {way: np.array(values) for way, values in ways.items()}
        row: dict[str, Any] = {"reward": {w: _mean(v) for w, v in found["reward"][radius].items()}}
        for kind, chosen in (("open", open_), ("saturated", ~open_)):
            if not chosen.any():
                continue
            fgsm, pgd, coin = (gains[way][chosen] for way in WAYS)
            row[kind] = {
                "gain": {way: _median(gains[way][chosen]) for way in WAYS},
                "fgsm_above_random": _share(fgsm > coin),
                "fgsm_minus_random": _median(fgsm - coin),
                "pgd_minus_fgsm": _median(pgd - fgsm),
            }
        result["radii"][str(radius)] = row
    return result


def _median(values: np.ndarray, draws: int = 2000) -> dict[str, Any]:
    """Median with a bootstrap interval over problems (percentiles; seed 0)."""
    rng = np.random.default_rng(0)
    medians = np.median(values[rng.integers(0, len(values), (draws, len(values)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"median": float(np.median(values)), "ci95": [float(low), float(high)]}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _share(true: np.ndarray) -> dict[str, Any]:
    low, high = wilson(int(true.sum()), len(true))
    return {"share": float(true.mean()), "ci95": [low, high]}


def table(result: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{result['n']} problems, {result['open']} of them with a selected entropy of {SATURATED} nat or more "
        f"(median of all {result['median_entropy']:.2f}).",
        "",
        "| ε | gain FGSM | gain PGD | gain random sign | FGSM above random | FGSM - random | right: clean / FGSM / PGD "
        "/ random |",
        "|---|---|---|---|---|---|---|",
    ]
    for radius, row in result["radii"].items():
        one = row["open"]
        cells = [_cell(one["gain"][way]) for way in WAYS]
        share = one["fgsm_above_random"]
        cells.append(f"{share['share']:.1%} [{share['ci95'][0]:.1%}, {share['ci95'][1]:.1%}]")
        cells.append(_cell(one["fgsm_minus_random"]))
        right = [result["reward_clean"], *(row["reward"][way] for way in WAYS)]
        cells.append(" / ".join(f"{value:.2f}" for value in right))
        lines.append(f"| {radius}/255 | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Mapping[str, Any]) -> str:
    return f"{value['median']:+.3f} [{value['ci95'][0]:+.3f}, {value['ci95'][1]:+.3f}]"


def main(argv: list[str]) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(prog="fovea study saei/attack", description=__doc__)
    parser.add_argument("--model", default="fovea-tiny")
    parser.add_argument("--task", default="digits/locate")
    parser.add_argument("--n", type=int, default=256, help="problems of the validation split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/saei/attack"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(model=options.model, task=options.task, n=options.n, seed=options.seed)
    found = measure(setting)
    write_json(options.out / "problems.json", found)
    result = summary(found, "fovea study saei/attack " + " ".join(argv))
    write_json(options.out / "results.json", result)
    (options.out / "table.md").write_text(table(result))
    print(table(result))
