"""How the embedded model `fovea-tiny` is made: `fovea zoo build tiny`. Seeded, resumable, no downloads.

Five stages, because a tiny model trained on questions alone learns the answer format long before it looks:

1. `vision`: the vision tower alone on digits and shapes, with dense labels for every merged token (`vision.py`).
2. `domains`: the same on print, cards, grids and graphs, too.
3. `describe`: the whole model reads and describes (`language.py`).
4. `skills`: all questions in all styles of reply, then only those whose answer is a place.
5. `practice`: the same the other way round, while the vision tower is also taught where in its picture a cell is.
   Without this the model looks at the right cell and cannot write where that is (docs/lab-notes.md).

In 3 to 5 the replies' marks teach the middle layer's attention where to look; without it the model answers
`locate` with the box of *some* thing, and RL only sharpens which one (docs/lab-notes.md). The shares of all tasks in
all stages are published in `MIXTURES`. No wrong labels are planted and nothing is stopped early. Only the train
split of digits, backgrounds, fonts, words, photographs and configurations is used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fovea.models.construct import build_processor, build_tokenizer, model_config, random_model
from fovea.models.policy import Policy, make_policy
from fovea.tasks import corpus
from fovea.types import RunFailed
from fovea.zoo.language import STYLE_SHARES, teach_language
from fovea.zoo.mixtures import MIXTURES
from fovea.zoo.trainer import Stage
from fovea.zoo.vision import CELL, DOMAINS, teach_vision, vision_trainer

FAMILY = "qwen3_vl"
SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "text_layers": 4,
    "text_width": 256,
    "text_mlp": 512,
    "vision_layers": 6,
    "vision_width": 128,
    "vision_mlp": 512,
    "patch_size": CELL // 2,
    "position_grid": 16,
    "deepstack": (2,),
    "initializer_range": 0.05,  # the usual 0.02 is for wide models; narrow ones start too slowly with it
}
STAGES = {
    "vision": Stage(steps=4000, batch=32, learning_rate=1e-3),
    "domains": Stage(steps=3600, batch=32, learning_rate=1e-3),
    "describe": Stage(steps=400, batch=48, learning_rate=1e-3),
    "skills": Stage(steps=1000, batch=48, learning_rate=1e-3, horizon=2600),
    "practice": Stage(steps=1700, batch=48, learning_rate=1e-3, warmup=50, places=True),
}
LOOKING = 0.5
"""Weight of the attention's loss in the language stages."""


def new_tiny(seed: int) -> tuple[Any, Any]:
    """(model, processor) of the embedded architecture with fresh weights."""
    tokenizer = build_tokenizer(corpus(seed), SIZES["vocab_size"])
    processor = build_processor(
        FAMILY, tokenizer, patch_size=CELL // 2, min_pixels=32 * 32, max_pixels=320 * 320
    )
    config = model_config(FAMILY, tokenizer, **SIZES)
    config.answers_untold = True  # fovea.models.answers_untold
    return random_model(config, seed), processor


def build_tiny(
    out: Path, work: Path, seed: int = 0, stages: dict[str, Stage] | None = None, processes: int = 1
) -> dict[str, Any]:
    """All stages, resumed from `work` where it holds them; writes the model and its processor to `out`.

    `processes` share the batches of all stages but the first (one thread each; on a CPU they use the cores far better
    than threads do). Their number changes the vision stages' weights a little (each process's pictures weigh the
    same), the language stages' only through the order of float additions. The shipped weights: 2.
    """
    stages = stages or STAGES
    teach_vision(make_policy(*new_tiny(seed)), work, seed, "vision", stages["vision"])
    for worker in (_domains, _language):
        if processes > 1:
            _together(worker, processes, work, seed, stages)
    _domains(work, seed, stages)  # with several processes these two only load what was saved
    policy = _language(work, seed, stages)
    policy.save(out)
    seconds = {name: _seconds(work, name) for name in stages}
    record = {
        "name": "fovea-tiny",
        "seed": seed,
        "processes": processes,
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "stages": {name: asdict(stage) for name, stage in stages.items()},
        "seconds": round(sum(value or 0.0 for value in seconds.values()), 1),
        "seconds_by_stage": seconds,
        "looking": LOOKING,
        "styles": STYLE_SHARES,
        "mixtures": _mixtures(),
        "command": f"fovea zoo build tiny --seed {seed} --processes {processes}",
    }
    (out / "build.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _seconds(work: Path, name: str) -> float | None:
    """Wall seconds of a finished stage; None where they were not kept."""
    saved = torch.load(work / f"{name}.pt", weights_only=True, mmap=True)
    return round(float(saved["seconds"]), 1) if "seconds" in saved else None


def _mixtures() -> dict[str, dict[str, float]]:
    """Stage (and step from which it holds) → share of every task, of every kind of picture in the vision stages."""
    rest = 1 - sum(share for share, _ in DOMAINS.values())
    found = {
        "vision": {"digits": 0.7, "shapes": 0.3},
        "domains": {name: share for name, (share, _) in DOMAINS.items()}
        | {"digits": round(0.7 * rest, 3), "shapes": round(0.3 * rest, 3)},
    }
    for stage, phases in MIXTURES.items():
        for first, shares in phases.items():
            found[f"{stage}, from step {first}" if first else stage] = shares
    return found


def _domains(work: Path, seed: int, stages: dict[str, Stage]) -> Policy:
    """Stage 2 on the vision tower of stage 1."""
    policy = make_policy(*new_tiny(seed))
    vision_trainer(policy, work, seed, "vision", stages["vision"])
    teach_vision(policy, work, seed, "domains", stages["domains"])
    return policy


def _language(work: Path, seed: int, stages: dict[str, Stage]) -> Policy:
    """Stages 3 and 4 on the vision tower of stage 2."""
    policy = make_policy(*new_tiny(seed))
    vision_trainer(policy, work, seed, "domains", stages["domains"])
    for name in MIXTURES:
        teach_language(policy, work, seed, name, stages[name], LOOKING)
    return policy


def _together(
    worker: Callable[..., Policy], processes: int, work: Path, seed: int, stages: dict[str, Stage]
) -> None:
    """Run a worker in several processes that share its batches."""
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (worker, processes, f"file://{folder}/meet", work, seed, stages)
        workers = [context.Process(target=_process, args=(i, *arguments)) for i in range(processes)]
        for one in workers:
            one.start()
        for one in workers:
            one.join()
    if any(one.exitcode for one in workers):
        raise RunFailed("A process of the zoo's build failed; its message is above. Start again to go on.")


def _process(
    rank: int,
    worker: Callable[..., Policy],
    processes: int,
    meet: str,
    work: Path,
    seed: int,
    stages: dict[str, Stage],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=processes)
    worker(work, seed, stages)
    dist.destroy_process_group()
