"""Schedules, groups, float32 masters, strict state: what training needs around library optimizers."""

from __future__ import annotations

import importlib.util
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loud_policy
from hypothesis import given
from hypothesis import strategies as st

from fovea.config import OptimizerSection
from fovea.models.policy import Policy, make_policy
from fovea.training.optim import (
    OPTIMIZERS,
    TrainOptimizer,
    clip_gradients,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from fovea.types import UserError

SIZES: dict[str, Any] = {
    "text_layers": 1,
    "text_width": 64,
    "text_mlp": 64,
    "heads": 2,
    "kv_heads": 1,
    "vision_layers": 1,
    "vision_width": 32,
    "vision_mlp": 32,
    "vision_heads": 2,
}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
NAMES = [
    name
    if not name.endswith("8bit")
    else pytest.param(name, marks=[needs_bitsandbytes, pytest.mark.filterwarnings("ignore")])
    for name in OPTIMIZERS
]


def small(dtype: torch.dtype = torch.float32, **how: Any) -> Policy:
    policy = loud_policy("qwen2_5_vl", **SIZES)
    return make_policy(policy.model.to(dtype), policy.processor, **how)


def section(**keys: Any) -> OptimizerSection:
    return OptimizerSection(**({"learning_rate": 1e-3, "weight_decay": 0.01} | keys))


def push(policy: Policy, seed: int) -> None:
    """Random gradients on everything that is trained."""
    noise = torch.Generator().manual_seed(seed)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=noise).to(parameter.dtype)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint writes and reads it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # warm-up of 2: 1/2, 1; the other 8 steps begin at d = 0
        ({"schedule": "constant", "warmup_steps": 2}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        # down to 0.5 and not to 0: 0.5 + 0.5 (1 - d)
        (
            {"schedule": "linear", "min_ratio": 0.5},
            [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55],
        ),
        ({"schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]),
        # the last half of the steps: (1 - d) / 0.5
        ({"schedule": "wsd", "decay_ratio": 0.5}, [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
    ],
)
def test_schedules(keys: dict[str, Any], expected: list[float]) -> None:
    found = [learning_rate(section(learning_rate=1.0, **keys), step, 10) for step in range(10)]
    assert found == pytest.approx(expected)


@given(
    st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    st.floats(0, 1),
    st.integers(0, 20),
    st.integers(0, 60),
    st.integers(1, 50),
)
def test_no_schedule_leaves_its_bounds(
    schedule: Any, least: float, warmup: int, step: int, steps: int
) -> None:
    one = section(learning_rate=2.0, schedule=schedule, min_ratio=least, warmup_steps=warmup)
    rate = learning_rate(one, step, steps)
    assert 0 <= rate <= 2 + 1e-12
    assert step < warmup or rate >= 2 * least - 1e-12


# ---------------------------------------------------------------- groups


def test_matrices_decay_vectors_do_not_and_the_tower_has_its_own_rate() -> None:
    policy = small()
    optimizer = make_optimizer(policy, section(vision_learning_rate=1e-4))
    set_learning_rate(optimizer, 1e-2)
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(policy.model.parameters()))
    for name, parameter in policy.model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-3 if "visual" in name else 1e-2)
    before = weights(policy)
    push(policy, 0)
    optimizer.step()  # the first step of AdamW moves each number by its rate
    moved = {n: float((p.detach() - before[n]).abs().median()) for n, p in policy.model.named_parameters()}
    for name, distance in moved.items():
        assert distance == pytest.approx(1e-3 if "visual" in name else 1e-2, rel=0.05), name


def test_adamw_is_torchs_to_the_bit() -> None:
    policy, plain = small(), small()
    optimizer = make_optimizer(policy, section())
    trained = list(plain.model.parameters())
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999))
    for step in range(3):
        for one, stepped in ((policy, optimizer), (plain, theirs)):
            push(one, step)
            stepped.step()
    expected = weights(plain)
    assert all(torch.equal(p, expected[name]) for name, p in weights(policy).items())


def test_muon_takes_hidden_matrices_only() -> None:
    policy = small()
    optimizer = make_optimizer(policy, section(name="muon"))
    push(policy, 0)
    optimizer.step()
    by_muon = {n for n, entries in optimizer.state_dict()["state"].items() if "momentum_buffer" in entries}
    shapes = {n: p.ndim for n, p in policy.model.named_parameters()}
    assert by_muon == {
        n for n, ndim in shapes.items() if ndim == 2 and "embed_tokens" not in n and n != "lm_head.weight"
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_downhill(name: str) -> None:
    policy = small()
    optimizer = make_optimizer(policy, section(name=name, learning_rate=0.02))
    start = sum(float((p.detach() ** 2).sum()) for p in policy.model.parameters())
    for _ in range(5):  # the loss is half the sum of squares
        for parameter in policy.model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
    assert sum(float((p.detach() ** 2).sum()) for p in policy.model.parameters()) < 0.99 * start


def test_float16_and_nothing_to_train_are_refused() -> None:
    with pytest.raises(UserError, match="dtype=float16 cannot be trained"):
        make_optimizer(small(torch.float16), section())
    with pytest.raises(UserError, match="Everything is frozen"):
        make_optimizer(small(freeze=("vision", "projector", "text")), section())


# ---------------------------------------------------------------- float32 masters


def test_updates_below_the_resolution_of_bfloat16_are_not_lost() -> None:
    # near 1 bfloat16 has steps of 2^-8 = 0.0039; one update is 1e-4, and 200 of them are 0.02
    for masters, expected in ((True, 0.98), (False, 1.0)):
        policy = small(torch.bfloat16)
        weight = policy.model.lm_head.weight
        with torch.no_grad():
            weight.fill_(1.0)
        optimizer = make_optimizer(
            policy, section(learning_rate=1e-4, weight_decay=0.0, master_weights=masters)
        )
        for _ in range(200):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        assert weight.dtype == torch.bfloat16
        assert float(weight.detach().float().mean()) == pytest.approx(expected, abs=0.003)


def test_masters_follow_what_float32_training_does() -> None:
    narrow = small(torch.bfloat16)
    wide = small(torch.bfloat16)
    make_policy(wide.model.float(), wide.processor)
    both = [(one, make_optimizer(one, section(learning_rate=1e-2))) for one in (narrow, wide)]
    for step in range(5):
        for one, optimizer in both:
            noise = np.random.default_rng(step)
            for parameter in one.model.parameters():
                drawn = torch.from_numpy(noise.standard_normal(parameter.shape, dtype=np.float32)).bfloat16()
                parameter.grad = drawn.to(parameter.dtype)
            optimizer.step()
    masters = both[0][1].state_dict()["masters"]
    for name, parameter in wide.model.named_parameters():
        assert torch.equal(masters[name], parameter.detach())
        assert torch.equal(dict(narrow.model.named_parameters())[name], parameter.detach().bfloat16())
    assert all(m.grad is None for m in masters.values())


# ---------------------------------------------------------------- strict state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_optimizer_goes_on_to_the_bit(name: str, dtype: torch.dtype) -> None:
    policy = small(dtype)
    optimizer = make_optimizer(policy, section(name=name))
    for step in range(2):
        push(policy, step)
        optimizer.step()
    again = small(dtype)
    with torch.no_grad():
        for mine, saved in zip(again.model.parameters(), policy.model.parameters(), strict=True):
            mine.copy_(saved)
    resumed = make_optimizer(again, section(name=name))
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for step in range(2, 4):
        for one, stepped in ((policy, optimizer), (again, resumed)):
            push(one, step)
            stepped.step()
    expected = weights(policy)
    assert all(torch.equal(p, expected[n]) for n, p in weights(again).items())
    first, second = optimizer.state_dict(), resumed.state_dict()
    assert first["state"].keys() == second["state"].keys()
    assert all(torch.equal(x, second["masters"][n]) for n, x in first["masters"].items())


def stepped(dtype: torch.dtype = torch.bfloat16) -> tuple[TrainOptimizer, dict[str, Any]]:
    policy = small(dtype)
    optimizer = make_optimizer(policy, section())
    push(policy, 0)
    optimizer.step()
    return optimizer, through_a_file(optimizer.state_dict())


NAME = "lm_head.weight"


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda s: s.update(optimizer="muon"), "The optimizer adamw is missing from"),
        (lambda s: s["weights"].pop(NAME), f"The tensor {NAME} is missing from"),
        (lambda s: s["weights"].update(extra=[1]), "The tensor extra is unexpected in"),
        (lambda s: s["weights"].update({NAME: [1, 2]}), rf"tensor {NAME} has the shape \[1, 2\] in the file"),
        (lambda s: s["state"].update(extra={}), "The state of the tensor extra is unexpected"),
        (lambda s: s["state"][NAME].pop("exp_avg"), f"entry 'exp_avg' is missing from .* tensor {NAME}"),
        (lambda s: s["state"][NAME].update(more=1), f"entry 'more' is unexpected in .* tensor {NAME}"),
        (
            lambda s: s["state"][NAME].update(exp_avg=torch.zeros(3)),
            rf"'exp_avg' of the tensor {NAME} has the shape \[3\]",
        ),
        (lambda s: s["masters"].pop(NAME), f"float32 master of the tensor {NAME} is missing"),
        (lambda s: s["masters"].update({NAME: torch.zeros(2)}), f"float32 master of the tensor {NAME} is"),
        (lambda s: s["masters"][NAME].add_(1.0), f"master of the tensor {NAME} does not round to the weight"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(spoil: Any, match: str) -> None:
    optimizer, state = stepped()
    spoil(state)
    with pytest.raises(UserError, match=match):
        optimizer.load_state_dict(state)


# ---------------------------------------------------------------- clipping


def test_clipping_is_torchs_and_adds_bfloat16_squares_in_float32() -> None:
    policy, plain = small(), small()
    optimizer = make_optimizer(policy, section())
    for limit in (1e6, 0.5):
        push(policy, 1)
        push(plain, 1)
        norm = clip_gradients(optimizer, limit)
        assert norm == pytest.approx(
            float(torch.nn.utils.clip_grad_norm_(plain.model.parameters(), limit)), rel=1e-6
        )
        for mine, theirs in zip(policy.model.parameters(), plain.model.parameters(), strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-6)
    narrow = small(torch.bfloat16)
    push(narrow, 1)
    exact = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in narrow.model.parameters()))  # type: ignore[union-attr]
    assert clip_gradients(make_optimizer(narrow, section()), 1e6) == pytest.approx(exact, rel=1e-5)


def test_a_norm_that_is_not_finite_scales_nothing() -> None:
    policy = small()
    optimizer = make_optimizer(policy, section())
    assert clip_gradients(optimizer, 1.0) == 0.0
    push(policy, 0)
    gradient = policy.model.lm_head.weight.grad
    gradient[0, 0] = torch.inf
    before = gradient.clone()
    assert clip_gradients(optimizer, 1.0) == math.inf
    assert torch.equal(gradient, before)
