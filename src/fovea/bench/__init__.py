"""Measure sharing the prefix against the plain repeated way, side by side, in CPU seconds of one thread.

`bench()` times a rollout (sampling G replies a prompt) and an update (forward and backward, no optimizer) on
a random model: ours, and plain transformers on G copies of every prompt. `bench_memory()` compares peak
memory in fresh processes. `bench_against_trl()` times whole steps, from the raw picture to the optimizer step,
beside TRL's GRPOTrainer. Beside each ratio stands the bound, the ratio of the two ways' floating-point
operations. Process time and alternating repeats, because benches share their machine. Try: `fovea bench`.
"""

from fovea.bench.against_trl import IMAGE_TOKENS, bench_against_trl, bench_curves
from fovea.bench.bound import flop_bound
from fovea.bench.case import Case, Work, make_case
from fovea.bench.curves import curves_svg
from fovea.bench.memory import bench_memory, memory_child, peak_memory
from fovea.bench.phases import PHASES, bench
from fovea.bench.ways import (
    repeated_rollout,
    repeated_update,
    shared_rollout,
    shared_update,
)

__all__ = [
    "IMAGE_TOKENS",
    "PHASES",
    "Case",
    "Work",
    "bench",
    "bench_against_trl",
    "bench_curves",
    "bench_memory",
    "curves_svg",
    "flop_bound",
    "make_case",
    "memory_child",
    "peak_memory",
    "repeated_rollout",
    "repeated_update",
    "shared_rollout",
    "shared_update",
]
