"""The two ways of a rollout and of an update: the prefix once a group, and plain transformers on G copies of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fovea.bench.case import Case
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models.adapter import join_media
from fovea.models.shared_prefix import Row, backward

# Longest sum of tokens that the repeated way's update takes at once: it has to fit in memory.
_REPEATED_TOKENS = 16384
TOKENS_PER_PASS = 2048
"""Of our updates. On a CPU the speed hardly depends on it (1,024 to 8,192: 5 %), the memory does."""


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


def shared_update(case: Case, tokens_per_pass: int = TOKENS_PER_PASS) -> None:
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
        **join_media([p.media for p in prompts], torch.device("cpu")),
    }


def fastest(ways: Sequence[Callable[[Case], None]], case: Case, repeats: int, seconds: float) -> list[float]:
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
