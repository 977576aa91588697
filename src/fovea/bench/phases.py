"""`bench()`: rollouts and updates of the two ways, alternating, in CPU seconds of one thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fovea.bench.bound import flop_bound
from fovea.bench.case import Case, make_case, one_thread
from fovea.bench.ways import WAYS, fastest
from fovea.types import UserError

PHASES = tuple(WAYS)


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
    records = []
    with one_thread():
        for tokens in image_tokens:
            case = make_case(family, tokens, prompts, group, response_tokens, seed)
            bound = flop_bound(case)
            for phase in phases:
                shared, repeated = WAYS[phase]
                ours, theirs = fastest([shared, repeated], case, repeats, seconds_a_case)
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
