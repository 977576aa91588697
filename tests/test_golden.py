"""Ten updates of a small seeded model, against recorded log-probs, gradient norms and weight norms.

Replies are fixed texts, not samples, so that no rounding can flip a token. The tolerance is for processors and
library versions; a change of the mathematics is orders of magnitude larger. Record anew, after a change that is
meant: `python tests/test_golden.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import loud_policy

from fovea.algorithms import ALGORITHMS
from fovea.config import load_run
from fovea.models.shared_prefix import score
from fovea.rewards import weigh
from fovea.rollouts import to_samples
from fovea.tasks import open_task
from fovea.training.optim import make_optimizer
from fovea.training.update import update
from fovea.types import Completion, Group, Sampling

FILE = Path(__file__).parent / "golden" / "ten_steps.json"
REPLIES = (
    "<answer>[100, 100, 500, 500]</answer>",
    "<answer>[400, 300, 900, 800]</answer>",
    "[5]",
    "<answer>7",
)


def ten_steps(family: str) -> list[dict[str, float]]:
    policy = loud_policy(family, seed=3)
    run = load_run("quickstart", ["steps=10", "optimizer={learning_rate: 1.0e-3, schedule: linear}"])
    optimizer = make_optimizer(policy, run.optimizer)
    task, algorithm, records = open_task("digits/locate", "train", 0), ALGORITHMS["grpo"], []
    for step in range(10):
        groups = []
        for problem in task.take(2 * step, 2)[0]:
            prompt = policy.prompt(problem)
            tokens = [policy.encode_reply(text) for text in REPLIES]
            flat, _ = score(policy, [prompt], [(0, ids) for ids in tokens], Sampling())
            old = np.split(flat.numpy(), np.cumsum([len(ids) for ids in tokens])[:-1])
            completions = tuple(
                Completion(token_ids=ids, log_probs=lp, text=text, stop="eos")
                for ids, lp, text in zip(tokens, old, REPLIES, strict=True)
            )
            rewards, parts = weigh(REPLIES, prompt.problem, {"iou": 1.0, "format": 0.1})
            groups.append(
                Group(
                    problem=prompt.problem,
                    prompt=prompt,
                    completions=completions,
                    rewards=rewards,
                    parts=parts,
                )
            )
        samples = to_samples(groups, algorithm, 32)
        report = update(policy, optimizer, samples, algorithm, Sampling(), run, step)
        weights = torch.stack([p.detach().norm() for p in policy.model.parameters()]).norm()
        log_prob = np.concatenate([c.log_probs for group in groups for c in group.completions]).mean()
        records.append(
            {"log_prob": float(log_prob), "grad_norm": report["grad_norm"], "weight_norm": float(weights)}
        )
    return records


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_ten_steps(family: str) -> None:
    expected = json.loads(FILE.read_text())[family]
    for step, (now, then) in enumerate(zip(ten_steps(family), expected, strict=True)):
        for name, value in then.items():
            assert now[name] == pytest.approx(value, rel=2e-3), (step, name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    record = {family: ten_steps(family) for family in ("qwen2_5_vl", "qwen3_vl")}
    FILE.write_text(json.dumps(record, indent=1) + "\n")
