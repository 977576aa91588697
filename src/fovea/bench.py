"""Measure sharing the prefix against the plain repeated way, side by side, in CPU seconds of one thread.

`bench()` times a rollout (sampling G replies a prompt) and an update (forward and backward, no optimizer) on
a random model: ours, and plain transformers on G copies of every prompt. `bench_memory()` compares peak
memory in fresh processes. Beside each ratio stands the bound, the ratio of the two ways' floating-point
operations. Process time and the fastest of alternating repeats, because benches share their machine. Try:
`fovea bench`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models.adapter import Prompt, vision_lengths
from fovea.models.construct import random_policy_parts
from fovea.models.policy import Policy, make_policy
from fovea.models.shared_prefix import Row, backward
from fovea.types import Problem, Sampling, UserError

PHASES = ("rollout", "update", "step")

# Text 4 layers x 256, 4 heads on 2, vision 4 layers x 128, vocabulary 1024: 4.6 million weights as
# Qwen2.5-VL.
_SIZES = {"text_mlp": 544}
# Longest sum of tokens that the repeated way's update takes at once: it has to fit in memory.
_REPEATED_TOKENS = 16384
# A pass whose activations stay near the processor's caches is fastest on a CPU.
_TOKENS_PER_PASS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measured situation: the same weights twice, and prompts of one size."""

    policy: Policy
    """Ours."""
    plain: Any
    """The same weights in an untouched Hugging Face model with sdpa attention."""
    prompts: list[Prompt]
    group: int
    rows: list[Row]
    """`group` completions a prompt, by prompt, all of `response_tokens` tokens."""
    sampling: Sampling


def bench(
    phases: Sequence[str] = ("rollout", "update"),
    *,
    image_tokens: Sequence[int] = (64, 256, 1024),
    prompts: int = 4,
    group: int = 8,
    response_tokens: int = 32,
    family: str = "qwen2_5_vl",
    repeats: int = 3,
    seconds_a_case: float = 60.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One record a phase and picture size: model, phase, image_tokens, group, response_tokens, against,
    ratio, bound.

    A case is repeated `repeats` times, fewer once `seconds_a_case` are spent. Raises UserError for an unknown
    phase.
    """
    unknown = [phase for phase in phases if phase not in PHASES]
    if unknown:
        raise UserError(f"There is no bench phase {unknown[0]!r}; phases: {', '.join(PHASES)}.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        records = []
        for tokens in image_tokens:
            case = make_case(family, tokens, prompts, group, response_tokens, seed)
            bound = flop_bound(case)
            for phase in phases:
                shared, repeated = WAYS[phase]
                ours, theirs = _fastest([shared, repeated], case, repeats, seconds_a_case)
                records.append(
                    {
                        **_about(case, phase, response_tokens),
                        "ratio": round(theirs / ours, 2),
                        "bound": round(bound, 2),
                        "shared_cpu_seconds": round(ours, 4),
                        "repeated_cpu_seconds": round(theirs, 4),
                    }
                )
        return records
    finally:
        torch.set_num_threads(threads)


def _about(case: Case, phase: str, response_tokens: int) -> dict[str, Any]:
    weights = sum(p.numel() for p in case.plain.parameters())
    return {
        "model": f"random-{case.policy.family.name}-{weights / 1e6:.1f}M",
        "phase": phase,
        "image_tokens": int(case.prompts[0].image_mask.sum()),
        "prompts": len(case.prompts),
        "group": case.group,
        "response_tokens": response_tokens,
        "against": "repeated",
    }


def make_case(
    family: str, image_tokens: int, prompts: int, group: int, response_tokens: int, seed: int = 0
) -> Case:
    """A random model of the default size, `prompts` square pictures of about `image_tokens` merged tokens."""
    model, processor = random_policy_parts(family, seed, **_SIZES)
    plain, _ = random_policy_parts(family, seed, **_SIZES)
    policy = make_policy(model, processor)
    draw = np.random.default_rng(seed)
    vision = model.config.vision_config
    side = max(1, round(math.sqrt(image_tokens))) * vision.patch_size * vision.spatial_merge_size
    made = []
    for i in range(prompts):
        picture = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        question = "Where is the red circle? Answer with its box."
        made.append(
            Problem(id=str(i), task="bench", images=(picture,), question=question, answer="", kind="text")
        )
    # no reply may end early: every way does the same work
    sampling = Sampling(max_new_tokens=response_tokens, bans=policy.eos_ids)
    allowed = np.setdiff1d(np.arange(model.config.text_config.vocab_size), policy.bans(sampling))
    rows = [(i, draw.choice(allowed, response_tokens)) for i in range(prompts) for _ in range(group)]
    return Case(
        policy=policy,
        plain=plain,
        prompts=[policy.prompt(problem) for problem in made],
        group=group,
        rows=rows,
        sampling=sampling,
    )


# ---------------------------------------------------------------- the two ways


def shared_rollout(case: Case) -> None:
    SharedPrefillEngine(case.policy).generate(case.prompts, case.group, case.sampling, seed=(0, 0))


def repeated_rollout(case: Case) -> None:
    """transformers' `generate` on every prompt `group` times, in one batch."""
    with torch.no_grad():
        case.plain.generate(
            **_copies(case, [(i, np.zeros(0, dtype=np.int64)) for i, _ in case.rows]),
            do_sample=True,
            top_k=0,
            max_new_tokens=case.sampling.max_new_tokens,
            min_new_tokens=case.sampling.max_new_tokens,
        )


def shared_update(case: Case, tokens_per_pass: int = _TOKENS_PER_PASS) -> None:
    case.policy.model.zero_grad(set_to_none=True)
    backward(
        case.policy,
        case.prompts,
        case.rows,
        case.sampling,
        lambda index, log_probs, entropy: -log_probs.sum(),
        tokens_per_pass,
    )


def repeated_update(case: Case, rows_at_once: int | None = None) -> None:
    """Forward and backward of every row with its own copy of the prompt; log-probs of completion tokens
    only."""
    case.plain.zero_grad(set_to_none=True)
    length = len(case.prompts[0].token_ids) + len(case.rows[0][1])
    at_once = rows_at_once or max(case.group, _REPEATED_TOKENS // length // case.group * case.group)
    for start in range(0, len(case.rows), at_once):
        rows = case.rows[start : start + at_once]
        taken = torch.from_numpy(np.stack([tokens for _, tokens in rows]))
        kept = taken.shape[1] + 1
        logits = case.plain(**_copies(case, rows), logits_to_keep=kept, use_cache=False).logits[:, :-1]
        log_probs = logits.float().log_softmax(-1).gather(-1, taken[..., None])
        (-log_probs.sum()).backward()


def _both(*ways: Callable[[Case], None]) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        for way in ways:
            way(case)

    return run


WAYS: dict[str, tuple[Callable[[Case], None], Callable[[Case], None]]] = {
    "rollout": (shared_rollout, repeated_rollout),
    "update": (shared_update, repeated_update),
    "step": (_both(shared_rollout, shared_update), _both(repeated_rollout, repeated_update)),
}


def _copies(case: Case, rows: Sequence[Row]) -> dict[str, Tensor]:
    """The inputs of a plain forward: each row has its own copy of the prompt (all of one length) and
    picture."""
    prompts = [case.prompts[i] for i, _ in rows]
    ids = torch.stack(
        [torch.cat([p.token_ids, torch.from_numpy(t)]) for p, (_, t) in zip(prompts, rows, strict=True)]
    )
    types = torch.zeros_like(ids)
    types[:, : len(prompts[0].token_ids)] = torch.stack([p.image_mask for p in prompts]).long()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": types,
        "pixel_values": torch.cat([p.pixel_values for p in prompts if p.pixel_values is not None]),
        "image_grid_thw": torch.cat([p.grids for p in prompts]),
    }


def _fastest(ways: Sequence[Callable[[Case], None]], case: Case, repeats: int, seconds: float) -> list[float]:
    """Fewest CPU seconds of each way over alternating repeats."""
    best = [math.inf] * len(ways)
    spent = 0.0
    for repeat in range(repeats):
        if repeat > 0 and spent > seconds:
            break
        for i, way in enumerate(ways):
            started = time.process_time()
            way(case)
            took = time.process_time() - started
            best[i] = min(best[i], took)
            spent += took
    return best


# ---------------------------------------------------------------- the bound


def flop_bound(case: Case) -> float:
    """Repeated over shared floating-point operations of a forward pass (a backward doubles both).

    Per prompt, vision V, prompt P tokens, G completions of R tokens, t per token and h per head position, and
    attention a(n, m) of n queries to m keys: G (V + (P + R) t + R h + a_causal(P + R)) over
    V + P t + a_causal(P) + G (R (t + h) + a(R, P) + a_causal(R)).
    """
    config, prompt = case.plain.config, case.prompts[0]
    text = case.plain.model.language_model
    p, r, g = len(prompt.token_ids), len(case.rows[0][1]), case.group
    per_token = 2 * _matrices(text.layers)
    per_head = 2 * case.plain.lm_head.weight.numel()
    layer = text.layers[0].self_attn
    pair = 4 * config.text_config.num_attention_heads * layer.head_dim * len(text.layers)
    vision = _vision_flops(case.plain.model.visual, prompt.grids)

    def causal(n: int) -> float:
        return pair * n * (n + 1) / 2

    repeated = g * (vision + (p + r) * per_token + r * per_head + causal(p + r))
    completions = g * (r * (per_token + per_head) + pair * r * p + causal(r))
    return repeated / (vision + p * per_token + causal(p) + completions)


def _vision_flops(visual: Any, grids: Tensor) -> float:
    lengths = vision_lengths(grids)
    patches = sum(lengths)
    merged = patches // visual.spatial_merge_size**2
    linear = 2 * patches * (_matrices(visual.blocks) + _matrices(visual.patch_embed))
    mergers = [m for name, m in visual.named_children() if "merger" in name]
    linear += 2 * merged * sum(_matrices(merger) for merger in mergers)
    width = visual.config.hidden_size
    attention = 0.0
    full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
    window = (getattr(visual, "window_size", 0) // visual.patch_size) ** 2
    for layer in range(len(visual.blocks)):
        attention += sum(4 * width * n * (n if layer in full else min(n, window)) for n in lengths)
    return linear + attention


def _matrices(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


# ---------------------------------------------------------------- memory


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


def _measure_memory(settings: dict[str, Any]) -> dict[str, float]:
    program = "import sys; from fovea.bench import memory_child; print(memory_child(sys.argv[1]))"
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
