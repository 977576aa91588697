"""The optimizer and the two update steps (policy gradient, cross-entropy) over the same shared-prefix backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fovea.algorithms import Algorithm, RatioSums, ratio_sums, token_loss
from fovea.config import OptimizerSection, Run
from fovea.models import Policy, Prompt, backward
from fovea.types import RunFailed, Sample, Sampling


def make_optimizer(policy: Policy, section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over what is not frozen; no weight decay on vectors (norms, biases)."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=section.learning_rate, betas=(0.9, section.beta2))


def learning_rate(section: OptimizerSection, step: int, steps: int) -> float:
    """Linear warm-up to the peak, then constant, linear or cosine decay to zero at `steps`."""
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.learning_rate
    done = (step - section.warmup_steps) / max(1, steps - section.warmup_steps)
    left = 1 - done if section.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return section.learning_rate * max(0.0, left)


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    algorithm: Algorithm,
    sampling: Sampling,
    run: Run,
    step: int,
) -> dict[str, float]:
    """`updates_per_rollout` optimizer steps on one step's samples. Returns the step's metrics.

    A row whose every loss weight or advantage is zero gives no gradient and is not computed; it stays in the
    denominators (they are in `Sample.weights`) and is counted in `rows_skipped`.
    """
    kept = [s for s in samples if bool((s.weights * s.advantage).any())]
    metrics: dict[str, float] = {"rows_skipped": len(samples) - len(kept)}
    prompts, rows = _rows([(sample.trained_prompt, sample.token_ids) for sample in kept])
    old = _flat(policy, [sample.old_log_probs for sample in kept])
    advantages = _flat(policy, [sample.advantage for sample in kept])
    weights = _flat(policy, [sample.weights for sample in kept])
    for _ in range(run.algorithm.updates_per_rollout):
        zero = torch.zeros((), device=policy.device)
        sums = RatioSums(clipped=zero, kl=zero, tokens=zero)

        def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
            nonlocal sums
            mask = (weights[index] > 0).float()
            sums = sums + ratio_sums(log_probs, old[index], advantages[index], mask, algorithm)
            return token_loss(log_probs, old[index], advantages[index], weights[index], algorithm).sum()

        metrics |= _optimizer_step(policy, optimizer, prompts, rows, sampling, loss, run, step)
        metrics |= sums.means()
    return metrics


def sft_update(
    policy: Policy, optimizer: torch.optim.Optimizer, prompts: Sequence[Prompt], run: Run, step: int
) -> dict[str, float]:
    """One step of cross-entropy on the prompts' `target` replies: the mean over all reply tokens of the step."""
    targets = [policy.encode_target(prompt) for prompt in prompts]
    tokens = sum(map(len, targets))
    distinct, rows = _rows(list(zip(prompts, targets, strict=True)))

    def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        return -log_probs.sum() / tokens

    metrics = _optimizer_step(policy, optimizer, distinct, rows, Sampling(), loss, run, step)
    return metrics | {"completion_tokens": tokens / len(targets), "tokens": tokens}


def _optimizer_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    prompts: Sequence[Prompt],
    rows: Sequence[tuple[int, np.ndarray]],
    sampling: Sampling,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    run: Run,
    step: int,
) -> dict[str, float]:
    """Backward, clip, step. Raises RunFailed when the loss or the gradient is not finite: the weights stay."""
    rate = learning_rate(run.optimizer, step, run.steps)
    optimizer.zero_grad(set_to_none=True)
    value = backward(policy, prompts, rows, sampling, loss, run.tokens_per_pass)
    trained: list[Any] = [
        p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, run.optimizer.max_grad_norm)) if trained else 0.0
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise RunFailed(
            f"Step {step}: loss {value} and gradient norm {norm} are not finite; lower the learning rate."
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    policy.version += 1
    return {"loss": value, "grad_norm": norm, "learning_rate": rate}


def _rows(pairs: Sequence[tuple[Prompt, np.ndarray]]) -> tuple[list[Prompt], list[tuple[int, np.ndarray]]]:
    """Distinct prompts (by identity) and rows that point at them."""
    distinct = list({id(prompt): prompt for prompt, _ in pairs}.values())
    place = {id(prompt): i for i, prompt in enumerate(distinct)}
    return distinct, [(place[id(prompt)], tokens) for prompt, tokens in pairs]


def _flat(policy: Policy, parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *parts])).to(policy.device)
