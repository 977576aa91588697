"""The bench measures the two ways on the same work and reports in the agreed form."""

from __future__ import annotations

import pytest
import torch

from fovea.bench import bench, bench_memory, flop_bound, make_case, repeated_update, shared_update
from fovea.types import UserError


def test_records_have_the_agreed_keys_and_sharing_wins() -> None:
    records = bench(image_tokens=(64,), prompts=1, group=4, response_tokens=4, repeats=1)
    assert [r["phase"] for r in records] == ["rollout", "update"]
    for record in records:
        assert {
            "model",
            "phase",
            "image_tokens",
            "group",
            "response_tokens",
            "against",
            "ratio",
            "bound",
        } <= set(record)
        assert record["image_tokens"] == 64
        assert record["bound"] > 3
        # loose on purpose: a shared machine; `fovea bench` shows the figures
        assert record["ratio"] > 1


def test_both_ways_compute_the_same_gradient() -> None:
    case = make_case("qwen3_vl", 16, 2, 3, 5)
    shared_update(case)
    repeated_update(case)
    ours = dict(case.policy.model.named_parameters())
    # the bench's plain way does not ban tokens; banned logits carry little of a random model's probability
    for name, parameter in case.plain.named_parameters():
        if "lm_head" not in name:
            assert parameter.grad is not None
            mine = ours[name].grad
            assert mine is not None
            assert (
                torch.nn.functional.cosine_similarity(mine.flatten(), parameter.grad.flatten(), dim=0) > 0.99
            )


def test_bound_grows_with_the_picture_towards_the_group() -> None:
    bounds = [flop_bound(make_case("qwen2_5_vl", tokens, 1, 8, 8)) for tokens in (16, 64, 256)]
    assert 1 < bounds[0] < bounds[1] < bounds[2] < 8


@pytest.mark.long
def test_memory_is_measured_in_fresh_processes() -> None:
    record = bench_memory(image_tokens=16, group=2, response_tokens=256, tokens_per_pass=64)
    assert record["shared_memory_growth_mib"] > 0
    assert record["repeated_memory_growth_mib"] > record["shared_memory_growth_mib"]


def test_unknown_phase_is_refused() -> None:
    with pytest.raises(UserError, match="no bench phase"):
        bench(["nap"])
