"""The library against `recipes/one_file_grpo.py`: plain transformers, everything repeated, no shared prefix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fovea.config import load_run
from fovea.models.policy import TINY
from fovea.models.reference import make_reference
from fovea.recipes.one_file_grpo import one_file_grpo
from fovea.training.opening import open_session
from fovea.training.steps import rl_step
from fovea.types import Completion, Sampling


class Recorder:
    """An engine that keeps what another one sampled."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.completions: list[list[Completion]] = []

    def generate(
        self, prompts: Sequence[Any], group: int, sampling: Sampling, **how: Any
    ) -> list[tuple[Completion, ...]]:
        groups = self._engine.generate(prompts, group, sampling, **how)
        self.completions.append([completion for replies in groups for completion in replies])
        return groups

    def load_weights(self, policy: Any) -> None:
        self._engine.load_weights(policy)


@pytest.mark.parametrize(
    ("steps", "mu", "beta"), [(1, 1, 0.0), pytest.param(5, 2, 0.04, marks=pytest.mark.long)]
)
def test_the_library_equals_the_one_file(tmp_path: Path, steps: int, mu: int, beta: float) -> None:
    """Log-probs of every sampled token, gradient norms, and the weights after five steps, each step on the weights of
    the last. The second case has ratios that are not 1 and a reference: its loss is not zero by construction."""
    slow, model = one_file_grpo(
        str(TINY), steps=steps, prompts=2, group=3, seed=5, rate=5e-5, mu=mu, beta=beta
    )
    run = load_run(
        "quickstart",
        [
            "steps=5", "prompts=2", "group=3", "seed=5", "optimizer={learning_rate: 5e-5}", f"run_dir={tmp_path / 'r'}",
            "rewards={iou: 1.0, format: 0.1}", "sampling.max_new_tokens=32", "show_every=0",
            f"algorithm={{name: grpo, updates_per_rollout: {mu}, beta: {beta}}}",
        ],
    )  # fmt: skip
    assert sum(record["reward_mean"] for record in slow) > 0.1  # some replies were worth something
    with open_session(run) as session:
        before = {name: p.detach().clone() for name, p in session.policy.model.named_parameters()}
        recorder = Recorder(session.engine)
        session.engine = recorder  # type: ignore[assignment]
        session.reference = make_reference(session.policy)
        for step, theirs in enumerate(slow):
            ours, _ = rl_step(session, step)
            replies = recorder.completions[step]
            for completion, tokens, log_probs in zip(
                replies, theirs["tokens"], theirs["log_probs"], strict=True
            ):
                np.testing.assert_array_equal(completion.token_ids, tokens)
                excess = np.abs(completion.log_probs - log_probs) / np.maximum(1, np.abs(log_probs))
                assert excess.max() <= 1e-5, (step, excess.max())
            assert ours["reward_mean"] == pytest.approx(theirs["reward_mean"], rel=1e-9)
            assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(np.mean(theirs["grad_norms"]), rel=1e-4)
            assert ours["loss"] == pytest.approx(np.mean(theirs["losses"]), abs=1e-6)
            assert ours["updates"] == mu
            if beta:
                assert theirs["kl"] > 0 or step == 0
        weights = dict(model.named_parameters())
        ours_now = dict(session.policy.model.named_parameters())
        moved = torch.stack([(weights[name] - before[name]).norm() for name in weights]).norm()
        apart = torch.stack([(weights[name] - ours_now[name]).norm() for name in weights]).norm()
        # Adam divides by the gradient's own size, so that a weight whose gradient is rounding alone moves by rounding.
        assert float(apart.detach()) <= 1e-2 * float(moved.detach())
