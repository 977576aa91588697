"""The library against `recipes/one_file_grpo.py`: plain transformers, everything repeated, no shared prefix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fovea.config import load_run
from fovea.models.policy import TINY
from fovea.recipes.one_file_grpo import one_file_grpo
from fovea.training import train


def test_same_seed_same_losses(tmp_path: Path) -> None:
    """Two steps. The loss of one update a rollout is zero by construction, so gradients, rewards, the entropy of
    what was sampled and the weights' norm are compared; the second step sees the weights of the first."""
    slow = one_file_grpo(str(TINY), steps=2, prompts=3, group=4, seed=5, rate=5e-5)
    overrides = ["steps=2", "prompts=3", "group=4", "seed=5", "evaluation.n=2", "evaluation.samples=0"]
    overrides += [
        "optimizer={learning_rate: 5e-5}",
        "rewards={iou: 1.0, format: 0.1}",
        f"run_dir={tmp_path / 'r'}",
    ]
    train(load_run("quickstart", overrides))
    fast = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["reward_mean"] for line in slow) > 0.2  # some replies were worth something
    for theirs, ours in zip(slow, fast, strict=True):
        assert ours["reward_mean"] == pytest.approx(theirs["reward_mean"], rel=1e-9)
        assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    weights = load_file(tmp_path / "r" / "checkpoints" / "step_2" / "model" / "model.safetensors")
    norm = torch.stack([weight.norm() for weight in weights.values()]).norm()
    assert float(norm) == pytest.approx(slow[-1]["weight_norm"], rel=1e-6)
