"""The memory of a step: the estimate against a measured peak, what is refused, and what each knob saves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loud_policy, picture, problem

from fovea.config import Run, load_run
from fovea.models import Prompt
from fovea.models.policy import Policy, make_policy
from fovea.training.memory import Footprint, _groups_left, estimate, free_bytes, measure, plan_of
from fovea.training.preflight import MIB, check_memory, savings
from fovea.types import UserError


def run_of(*overrides: str) -> Run:
    return load_run("quickstart", ["prompts=4", "group=4", "sampling.max_new_tokens=32", *overrides])


def subject(**how: Any) -> tuple[Policy, list[Prompt]]:
    policy = loud_policy("qwen2_5_vl")
    policy = make_policy(policy.model, policy.processor, **how)
    return policy, [policy.prompt(problem("one", (picture(140, 140, 1),), "Where is it?"))]


@pytest.fixture(scope="module")
def foot() -> Footprint:
    policy, prompts = subject()
    return measure(policy, prompts)


# ---------------------------------------------------------------- what is measured


def test_the_footprint_is_the_models(foot: Footprint) -> None:
    policy, prompts = subject()
    model = policy.model
    assert sum(foot.trained.values()) == sum(p.numel() for p in model.parameters())
    assert foot.copied == 4 * sum(foot.trained.values())
    assert foot.prompt == len(prompts[0].token_ids)
    assert foot.pictured == int(prompts[0].image_mask.sum()) == 25
    # 3 layers, keys and values, 1 head of 64, float32
    assert foot.kv == 3 * 2 * 1 * 64 * 4
    assert foot.layers == 3
    assert foot.tower_layers == 4
    assert foot.kept > foot.kept_recomputed > foot.kv
    assert all(p.grad is None for p in model.parameters())


def test_what_is_frozen_costs_less(foot: Footprint) -> None:
    frozen = measure(*subject(freeze=("vision", "projector")))
    assert set(frozen.trained) == {"text"}
    assert not frozen.tower_trained
    plan = plan_of(run_of(), subject()[0], reference=False)
    assert estimate(frozen, plan).peak < estimate(foot, plan).peak
    # the table's promise, made before, is what comes of it
    promised = estimate(foot, replace(plan, blind=True)).peak
    assert estimate(frozen, plan).peak == pytest.approx(promised, rel=0.05)


def test_every_knob_that_should_save_does(foot: Footprint) -> None:
    policy, _ = subject()
    run = run_of("prompts=16", "group=8")
    plan = plan_of(run, policy, reference=True)
    before = estimate(foot, plan)
    assert before.always["reference copy"] == foot.copied
    for other in (
        replace(plan, recompute=True),
        replace(plan, optimizer="adafactor"),
        replace(plan, reference=False),
        replace(plan, tokens_per_pass=256),
        replace(plan, narrow=True),
        replace(plan, rank=16, cpu=False),
    ):
        assert estimate(foot, other).peak < before.peak
    knobs = savings(foot, plan, run)
    assert [saved for _, saved in knobs] == sorted((saved for _, saved in knobs), reverse=True)
    assert {"gradient_checkpointing=true", "optimizer.name=adamw_8bit"} <= {k for k, _ in knobs}


def test_sft_has_no_rollout(foot: Footprint) -> None:
    plan = plan_of(run_of("method=sft"), subject()[0], reference=False)
    assert "rollout" not in estimate(foot, plan).phases
    assert plan.group == 1


# ---------------------------------------------------------------- refusing


def test_a_step_that_does_not_fit_is_refused_with_what_each_knob_saves() -> None:
    policy, prompts = subject()
    with pytest.raises(UserError) as error:
        check_memory(run_of("prompts=16"), policy, prompts, reference=False, free=8 * MIB)
    text = str(error.value)
    assert text.startswith("The first step would not fit into memory: it needs about ")
    assert " beside the weights and 8 MiB are free" in text
    assert "\n" not in text
    assert re.search(r"turn a knob: .*gradient_checkpointing=true saves \d+ MiB; ", text)
    assert text.endswith("; or preflight=off to try anyway.")


def test_it_only_warns_or_keeps_silent_where_the_recipe_says_so() -> None:
    policy, prompts = subject()
    said: list[str] = []
    check_memory(run_of("preflight=warn"), policy, prompts, reference=False, free=8 * MIB, say=said.append)
    assert len(said) == 1
    assert "may not fit into memory" in said[0]
    off = check_memory(run_of("preflight=off"), policy, prompts, reference=False, free=0)
    assert off is None
    fits = check_memory(run_of(), policy, prompts, reference=False, say=said.append)
    assert fits is not None
    assert len(said) == 1


def test_limits_of_containers_are_seen(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/box/inner\n")
    for folder, limit in (("box", "1000000000"), ("box/inner", "max")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "memory.max").write_text(limit)
        (tmp_path / folder / "memory.current").write_text("400000000")
        (tmp_path / folder / "memory.stat").write_text("anon 1\ninactive_file 100000000\n")
    assert _groups_left(tmp_path, own) == [700000000]
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("9223372036854771712")  # v1's way to say none
    (old / "memory.usage_in_bytes").write_text("5")
    (old / "memory.stat").write_text("total_inactive_file 1\n")
    assert _groups_left(tmp_path, own) == [700000000]
    assert (free_bytes(torch.device("cpu")) or 0) > 0


# ---------------------------------------------------------------- against a measured peak

# Two steps in a process of its own; the second one has the optimizer's state from the start.
MEASURED = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
from conftest import picture, problem
from fovea.config import load_run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models import backward
from fovea.models.construct import random_policy_parts
from fovea.models.policy import make_policy
from fovea.training.memory import estimate, measure, plan_of
from fovea.training.optim import clip_gradients, make_optimizer
from fovea.types import Sampling

def resident(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) * 1024

run = load_run("quickstart", ["prompts=4", "group=8", "sampling.max_new_tokens=32", *sys.argv[1:]])
policy = make_policy(*random_policy_parts("qwen2_5_vl", 0), finetune=run.finetune,
                     gradient_checkpointing=run.gradient_checkpointing)
prompts = [policy.prompt(problem(str(i), (picture(224, 224, i),), "Where?")) for i in range(run.prompts)]
expected = estimate(measure(policy, prompts), plan_of(run, policy, reference=False)).peak
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
optimizer, engine = make_optimizer(policy, run.optimizer), SharedPrefillEngine(policy)
sampling = Sampling(max_new_tokens=32)
for step in range(2):
    engine.generate(prompts, run.group, sampling, seed=(0, step))
    allowed = np.setdiff1d(np.arange(300), policy.bans(sampling))
    rows = [(i, allowed[:32]) for i in range(run.prompts) for _ in range(run.group)]
    optimizer.zero_grad(set_to_none=True)
    backward(policy, prompts, rows, sampling, lambda i, l, e: l.sum() / 100, run.tokens_per_pass)
    clip_gradients(optimizer, 1.0)
    optimizer.step()
print(json.dumps([expected, resident("VmHWM") - before]))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], marks=pytest.mark.long, id="plain"),
        pytest.param(["gradient_checkpointing=true"], marks=pytest.mark.long, id="recomputed"),
        pytest.param(["finetune.mode=lora"], marks=pytest.mark.long, id="lora"),
        pytest.param(["tokens_per_pass=256"], marks=pytest.mark.long, id="passes"),
    ],
)
def test_the_estimate_is_near_the_peak(overrides: list[str]) -> None:
    paths = os.pathsep.join(path for path in (str(Path(__file__).parent), *sys.path) if path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *overrides],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    expected, peak = json.loads(done.stdout.splitlines()[-1])
    assert 1 / 1.35 < expected / peak < 1.35
