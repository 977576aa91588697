"""Before the first minute is spent: would a step of this run fit into memory, and which knob saves how much?

    check_memory(run, policy, prompts, reference=...)     refuses, warns or says nothing, as `preflight` in the recipe

Called when the policy is loaded and nothing else: optimizer state, masters and the reference are part of the question.
Not here: the figures (`fovea.training.memory`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fovea.config import Run
from fovea.models import Policy, Prompt
from fovea.training.memory import Estimate, Footprint, Plan, estimate, free_bytes, measure, plan_of
from fovea.types import UserError

MIB = 2**20
MARGIN = 1.15
"""The estimate is within a factor of 1.3 of what was measured; a run is refused when it misses by more than this."""


def check_memory(
    run: Run,
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    reference: bool,
    free: int | None = None,
    say: Callable[[str], None] = print,
) -> Estimate | None:
    """The estimate of a training step, or None with preflight=off or nothing known about the device's memory.

    `prompts`: the largest of the run. `reference`: its algorithm compares with a reference policy. `free`: bytes,
    default what `free_bytes` finds. Raises UserError with the table of knobs where the step would not fit (with
    preflight=warn the same text goes to `say`).
    """
    if run.preflight == "off" or not prompts:
        return None
    free = free_bytes(policy.device) if free is None else free
    foot, plan = measure(policy, prompts), plan_of(run, policy, reference=reference)
    found = estimate(foot, plan)
    if free is None or found.peak <= free * MARGIN:
        return found
    text = _refusal(run, found, free, savings(foot, plan, run))
    if run.preflight == "refuse":
        raise UserError(text)
    say(text)
    return found


def savings(foot: Footprint, plan: Plan, run: Run) -> list[tuple[str, int]]:
    """(knob, bytes that it saves of the peak), what saves most first; knobs that save nothing are left out."""
    before = estimate(foot, plan).peak
    found = [(knob, before - estimate(foot, other).peak) for knob, other in _knobs(foot, plan, run)]
    return sorted(((knob, saved) for knob, saved in found if saved > MIB / 10), key=lambda pair: -pair[1])


def _knobs(foot: Footprint, plan: Plan, run: Run) -> list[tuple[str, Plan]]:
    # a quarter of what one pass really holds
    held = min(plan.tokens_per_pass, plan.prompts * max(foot.prompt, plan.group * plan.reply))
    tokens = max(1, min(8192, held // 4))
    knobs = [
        (f"tokens_per_pass={tokens}", replace(plan, tokens_per_pass=tokens)),
        ("gradient_checkpointing=true", replace(plan, recompute=True)),
        (f"prompts={max(1, plan.prompts // 2)}", replace(plan, prompts=max(1, plan.prompts // 2))),
        (f"sampling.max_new_tokens={max(1, plan.reply // 2)}", replace(plan, reply=max(1, plan.reply // 2))),
    ]
    if plan.sampled and plan.group > 2:
        knobs.append((f"group={plan.group // 2}", replace(plan, group=plan.group // 2)))
    if plan.optimizer == "adamw":
        knobs.append(("optimizer.name=adafactor", replace(plan, optimizer="adafactor")))
        knobs.append(("optimizer.name=adamw_8bit", replace(plan, optimizer="adamw_8bit")))
    if foot.tower_trained:
        knobs.append(("freeze=[vision,projector]", replace(plan, blind=True)))
    if run.finetune.mode == "full":
        rank = run.finetune.rank
        knobs.append((f"finetune.mode=lora (rank {rank})", replace(plan, rank=rank, blind=True)))
    if run.dtype == "float32":
        knobs.append(("dtype=bfloat16", replace(plan, narrow=True)))
    return knobs


def _refusal(run: Run, found: Estimate, free: int, knobs: Sequence[tuple[str, int]]) -> str:
    """One sentence: what is needed, what is free, what takes most, and the table of knobs in its order."""
    parts = {**found.always, **found.phases[found.worst]}
    largest = sorted(((size, name) for name, size in parts.items() if size >= MIB), reverse=True)[:3]
    of = ", ".join(f"{name} {_mib(size)}" for size, name in largest)
    verdict = "would not fit" if run.preflight == "refuse" else "may not fit"
    saving = "; ".join(f"{knob} saves {_mib(saved)}" for knob, saved in knobs)
    return (
        f"The first step {verdict} into memory: it needs about {_mib(found.peak)} beside the weights and "
        f"{_mib(free)} are free (most in the {found.worst}: {of}); turn a knob: {saving}; "
        "or preflight=off to try anyway."
    )


def _mib(size: float) -> str:
    return f"{size / MIB:,.0f} MiB"
