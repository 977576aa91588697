"""Whole steps against TRL's GRPOTrainer: the same weights, pictures, prompts and reply lengths, one thread, in turn.

One step is everything from the decoded picture to the changed weights: processor, sampling, rewards, loss,
backward, clipping, AdamW. What is compared is checked first: equal weights, equal prompt tokens, equal numbers of
sampled tokens, weights changed on both sides. Records go to a file one by one, so that a run that was stopped goes
on where it was. Try: `fovea bench --against trl`.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fovea.bench.bound import flop_bound
from fovea.bench.case import Work, make_case, mean_parts, one_thread
from fovea.bench.memory import step_memory
from fovea.bench.ours import OurSteps
from fovea.bench.theirs import TheirSteps, TrlSettings, need_trl
from fovea.bench.ways import TOKENS_PER_PASS
from fovea.types import UserError

IMAGE_TOKENS = (64, 256, 1024)
GROUPS = (2, 4, 8, 16, 32)
RESPONSE_TOKENS = (16, 32, 64, 128, 256, 512)
CURVE_IMAGE_TOKENS = 256

_AT_ONCE = (32, 8, 4, 2)
"""Sequences a micro-batch that are tried for TRL."""
_LONG_STEP = 8.0
"""CPU seconds."""
_OTHER_SETTINGS: tuple[dict[str, Any], ...] = ({"optimizer": "adamw_torch"}, {"attention": "eager"})


@dataclass(kw_only=True, slots=True)
class Budget:
    """CPU seconds that may be spent, those of child processes included; checked before a case begins."""

    seconds: float
    began: float = field(default_factory=lambda: sum(os.times()[:4]))

    @property
    def spent(self) -> bool:
        return sum(os.times()[:4]) - self.began >= self.seconds


class Results:
    """Records in a JSON file, found again by what was asked. Without a file they live in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        if path is not None and path.is_file():
            self.records = _read_records(path)

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        return next((r for r in self.records if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Keep a record, and write the whole file anew beside the old one, which it then replaces."""
        self.records.append(record)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".part")
            text = json.dumps({"machine": machine(), "records": self.records}, indent=1)
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, self.path)
        return record


def _read_records(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["records"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} holds no bench results; name another file or remove it.") from None


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import version

    names = ("fovea-rl", "torch", "transformers", "trl")
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else ""
    return {"cpu": model, "cores": os.cpu_count(), "threads": 1} | {name: version(name) for name in names}


def bench_against_trl(
    *,
    image_tokens: Sequence[int] = IMAGE_TOKENS,
    work: Work | None = None,
    repeats: int = 3,
    seconds: float = 1800.0,
    seconds_a_case: float = 240.0,
    memory: bool = True,
    out: Path | None = None,
    told: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """For each picture size: TRL's fastest settings, the ratio of a step's CPU seconds, peak memory above the idle
    model.

    `seconds`: no case begins once so many CPU seconds are spent. `out`: a JSON file that is continued. `told` hears
    every new record. Raises UserError when TRL is not installed.
    """
    need_trl()
    base, results, budget = work or Work(), Results(out), Budget(seconds=seconds)
    with one_thread():
        for tokens in image_tokens:
            here = replace(base, image_tokens=tokens)
            jobs = [lambda here=here: step_record(here, results, budget, repeats, seconds_a_case, told)]
            if memory:
                jobs.append(lambda here=here: memory_record(here, results, told))
            for job in jobs:
                if budget.spent:
                    return results.records
                job()
    return results.records


def bench_curves(
    *,
    groups: Sequence[int] = GROUPS,
    response_tokens: Sequence[int] = RESPONSE_TOKENS,
    work: Work | None = None,
    repeats: int = 2,
    seconds: float = 3600.0,
    seconds_a_case: float = 120.0,
    out: Path | None = None,
    told: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Step records over the group's size, and over the replies' length, with the bound of each."""
    need_trl()
    base = work or Work(image_tokens=CURVE_IMAGE_TOKENS)
    results, budget = Results(out), Budget(seconds=seconds)
    works = [replace(base, group=g) for g in groups] + [
        replace(base, response_tokens=r) for r in response_tokens
    ]
    with one_thread():
        for work_ in dict.fromkeys(works):
            if budget.spent:
                break
            step_record(work_, results, budget, repeats, seconds_a_case, told)
    return results.records


# ---------------------------------------------------------------- TRL at its best


def best_settings(work: Work, results: Results, told: Callable[[dict[str, Any]], None]) -> TrlSettings:
    """The fastest of the tried settings at this picture size, by one warm step each at G = 8 and R = 32.

    The micro-batch is tried at every picture size; optimizer and attention at the smallest, on the best micro-batch.
    """
    # long replies and large groups take the settings of the size that is cheap to try
    small = Work(image_tokens=work.image_tokens, prompts=work.prompts, family=work.family, seed=work.seed)
    sizes = [size for size in _AT_ONCE if small.sequences % size == 0]
    tried = [try_settings(small, TrlSettings(sequences_at_once=n), results, told) for n in sizes]
    best = min(tried, key=lambda record: record["trl_cpu_seconds"])
    settings = TrlSettings(**best["settings"])
    if work.image_tokens <= min(IMAGE_TOKENS):
        others = [
            try_settings(small, replace(settings, **change), results, told) for change in _OTHER_SETTINGS
        ]
        best = min([best, *others], key=lambda record: record["trl_cpu_seconds"])
        settings = TrlSettings(**best["settings"])
    return replace(settings, sequences_at_once=math.gcd(settings.sequences_at_once, work.sequences))


def try_settings(
    work: Work, settings: TrlSettings, results: Results, told: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """CPU seconds of TRL's second step under these settings, of its first if that is long."""
    key = {"phase": "settings", **work.record(), "settings": settings.record()}
    found = results.find(key)
    if found is not None:
        return found
    theirs = TheirSteps(work, settings)
    # a warm-up of long steps would cost more than it tells
    theirs.run(OurSteps(work).problems(2 * work.prompts), lambda index: theirs.seconds[0] < _LONG_STEP)
    record = results.add({**key, "trl_cpu_seconds": round(theirs.seconds[-1], 4)})
    told(record)
    return record


# ---------------------------------------------------------------- the comparison


def step_record(
    work: Work,
    results: Results,
    budget: Budget,
    repeats: int,
    seconds_a_case: float,
    told: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The record of one situation: found in the results, or measured."""
    key = {"phase": "step", "against": "trl", **work.record()}
    found = results.find(key)
    if found is not None:
        return found
    settings = best_settings(work, results, told)
    times = compare_steps(work, settings, repeats, seconds_a_case)
    record = results.add({**key, **times, "settings": settings.record()})
    told(record)
    return record


def compare_steps(work: Work, settings: TrlSettings, repeats: int, seconds: float) -> dict[str, Any]:
    """One warm-up of each side, then up to `repeats` steps in turn, fewer once `seconds` are spent.

    Raises RuntimeError when the two sides did not do the same work.
    """
    ours = OurSteps(work)
    theirs = TheirSteps(work, settings)
    started_from = fingerprint(ours.policy.model)
    _same("weights at the start", started_from, fingerprint(theirs.model))
    problems = ours.problems((repeats + 1) * work.prompts)
    taken: dict[str, list[float]] = {"ours": []}
    parts: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    began = time.process_time()

    def each(index: int) -> bool:
        parts["trl"].append(theirs.clock.take())
        batch = problems[index * work.prompts : (index + 1) * work.prompts]
        ours.clock.take()
        since = time.process_time()
        sampled = ours.step(index, batch)
        taken["ours"].append(time.process_time() - since)
        parts["ours"].append(ours.clock.take())
        _same("sampled tokens", sampled, theirs.sampled[-1])
        prompts = [ours.policy.prompt(problem).token_ids.tolist() for problem in batch]
        _same("prompt tokens", [ids for ids in prompts for _ in range(work.group)], theirs.prompt_ids)
        return index == 0 or time.process_time() - began < seconds

    theirs.run(problems, each)
    taken["trl"] = theirs.seconds
    for name, model in (("ours", ours.policy.model), ("TRL's", theirs.model)):
        if fingerprint(model) == started_from:
            raise RuntimeError(f"the optimizer step of {name} changed no weights")
    return _times(work, taken, parts)


def _times(
    work: Work, taken: dict[str, list[float]], parts: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    counted = {name: values[1:] or values for name, values in taken.items()}
    fastest = {name: min(values) for name, values in counted.items()}
    median = {name: statistics.median(values) for name, values in counted.items()}
    tokens = work.sequences * work.response_tokens
    return {
        "ratio": round(fastest["trl"] / fastest["ours"], 2),
        "ratio_of_medians": round(median["trl"] / median["ours"], 2),
        "bound": round(step_bound(work), 2),
        "repeats": len(counted["ours"]),
        "cpu_seconds": round(fastest["ours"], 4),
        "trl_cpu_seconds": round(fastest["trl"], 4),
        "median_cpu_seconds": round(median["ours"], 4),
        "trl_median_cpu_seconds": round(median["trl"], 4),
        "parts": _with_rest(parts["ours"][1:] or parts["ours"], counted["ours"]),
        "trl_parts": _with_rest(parts["trl"][1:] or parts["trl"], counted["trl"]),
        "sampled_tokens_a_step": tokens,
        "tokens_per_pass": TOKENS_PER_PASS,
    }


def _with_rest(parts: list[dict[str, float]], totals: list[float]) -> dict[str, float]:
    """Mean seconds by part; what no part booked counts as "other"."""
    means = mean_parts(parts)
    rest = statistics.fmean(totals) - sum(means.values())
    return means | {"other": round(means.get("other", 0.0) + rest, 4)}


def step_bound(work: Work) -> float:
    """The ratio of floating-point operations, the same in sampling and in the update (`flop_bound`).

    Of sharing the prefix alone: TRL's own extras (it processes the picture twice for every sample) are not in it.
    """
    return flop_bound(
        make_case(work.family, work.image_tokens, 1, work.group, work.response_tokens, work.seed)
    )


def _same(what: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise RuntimeError(f"the two sides do not do the same work: different {what}")


@torch.no_grad()
def fingerprint(model: Any) -> dict[str, tuple[float, float]]:
    """Sum and sum of squares of every tensor, in float64: equal for equal weights."""

    def sums(tensor: Tensor) -> tuple[float, float]:
        wide = tensor.double()
        return float(wide.sum()), float((wide * wide).sum())

    return {name: sums(parameter) for name, parameter in model.named_parameters()}


# ---------------------------------------------------------------- memory


def memory_record(work: Work, results: Results, told: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Peak memory above the idle model of two steps, in fresh processes: ours, TRL at its fastest, TRL at its
    smallest (one sequence at a time, gradient checkpointing)."""
    key = {"phase": "memory", "against": "trl", **work.record()}
    found = results.find(key)
    if found is not None:
        return found
    fastest = best_settings(work, results, told)
    smallest = TrlSettings(sequences_at_once=1, gradient_checkpointing=True)
    ours = step_memory(work, None)
    best, small = (step_memory(work, settings.record()) for settings in (fastest, smallest))
    record = {
        **key,
        "growth_mib": ours["growth"],
        "trl_growth_mib": best["growth"],
        "trl_smallest_growth_mib": small["growth"],
        "memory_ratio": round(best["growth"] / ours["growth"], 2),
        "memory_ratio_smallest": round(small["growth"] / ours["growth"], 2),
        "idle_mib": ours["idle"],
        "trl_idle_mib": best["idle"],
        "settings": fastest.record(),
    }
    results.add(record)
    told(record)
    return record
