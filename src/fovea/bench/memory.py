"""Peak resident memory of an update, or of whole steps, each way in a fresh process."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fovea.bench.case import SIZES, Work, make_case, make_problems
from fovea.bench.ways import repeated_update, shared_update
from fovea.models.construct import random_policy_parts


def bench_memory(
    *,
    image_tokens: int = 64,
    group: int = 8,
    response_tokens: int = 2048,
    tokens_per_pass: int = 512,
    family: str = "qwen2_5_vl",
) -> dict[str, Any]:
    """Peak resident memory of one update, each way in a fresh process: ours with `tokens_per_pass` tokens a
    pass against plain training with one completion a micro-batch. `growth` is what the update added to the
    loaded model.
    """
    settings = {
        "family": family,
        "image_tokens": image_tokens,
        "group": group,
        "response_tokens": response_tokens,
        "tokens_per_pass": tokens_per_pass,
    }
    shared, repeated = (_measure_memory({**settings, "way": way}) for way in ("shared", "repeated"))
    return {
        "phase": "update",
        **settings,
        "against": "repeated, one completion a micro-batch",
        "shared_memory_mib": shared["peak"],
        "repeated_memory_mib": repeated["peak"],
        "shared_memory_growth_mib": shared["growth"],
        "repeated_memory_growth_mib": repeated["growth"],
        "memory_growth_ratio": round(repeated["growth"] / max(shared["growth"], 1e-9), 2),
        "shared_cpu_seconds": shared["cpu_seconds"],
        "repeated_cpu_seconds": repeated["cpu_seconds"],
    }


def step_memory(work: Work, trl: dict[str, Any] | None) -> dict[str, float]:
    """MiB of a fresh process that does two whole steps (the second has AdamW's moments): `idle` with the model
    loaded, and `growth`, how far it rose above that. `trl`: settings of TRL (`TrlSettings`); None: ours."""
    return _child("step_memory_child", {"work": work.record(), "trl": trl})


def step_memory_child(text: str) -> str:
    """`step_memory` in this process. JSON both ways."""
    from fovea.bench.ours import OurSteps
    from fovea.bench.theirs import TheirSteps, TrlSettings

    settings = json.loads(text)
    torch.set_num_threads(1)
    work = Work(**settings["work"])
    problems = make_problems(
        work, random_policy_parts(work.family, work.seed, **SIZES)[0].config, 2 * work.prompts
    )
    idle = 0.0

    def begin() -> None:
        nonlocal idle
        idle = restart_peak()

    if settings["trl"] is None:
        ours = OurSteps(work)
        begin()
        for index in range(2):
            ours.step(index, problems[index * work.prompts : (index + 1) * work.prompts])
    else:
        TheirSteps(work, TrlSettings(**settings["trl"])).run(problems, lambda index: True, begin)
    peak = peak_memory()
    return json.dumps({"peak": round(peak, 1), "idle": round(idle, 1), "growth": round(peak - idle, 1)})


def restart_peak() -> float:
    """Resident MiB now; from here on `peak_memory` says the highest since (Linux; elsewhere since the start)."""
    gc.collect()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return peak_memory()


def _measure_memory(settings: dict[str, Any]) -> dict[str, float]:
    return _child("memory_child", settings)


def _child(function: str, settings: dict[str, Any]) -> dict[str, float]:
    """The JSON that a function of this module prints in a fresh process."""
    program = f"import sys; from fovea.bench.memory import {function} as do; print(do(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(settings)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the memory measurement failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def memory_child(text: str) -> str:
    """One update in this process; MiB at its highest, and above what the loaded model already took. JSON both
    ways."""
    settings = json.loads(text)
    torch.set_num_threads(1)
    case = make_case(
        settings["family"], settings["image_tokens"], 1, settings["group"], settings["response_tokens"]
    )
    before = peak_memory()
    started = time.process_time()
    if settings["way"] == "shared":
        shared_update(case, settings["tokens_per_pass"])
    else:
        repeated_update(case, rows_at_once=1)
    peak = peak_memory()
    seconds = time.process_time() - started
    return json.dumps(
        {"peak": round(peak, 1), "growth": round(peak - before, 1), "cpu_seconds": round(seconds, 2)}
    )


def peak_memory() -> float:
    """Highest resident memory of this process so far, MiB.

    Linux keeps ru_maxrss across exec, so a child would inherit its parent's peak; VmHWM starts anew.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource  # not on Windows, where only this measurement is missing

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
