"""Pictures that a frozen tower has seen are not encoded again, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import assert_gradients_close, gradients, loud_policy, picture, problem, ragged_rows
from torch import Tensor

from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models.adapter import Prompt
from fovea.models.pixel_gradients import picture_gradients
from fovea.models.policy import Policy, make_policy
from fovea.models.shared_prefix import backward, score
from fovea.models.vision_cache import VisionCache, picture_key
from fovea.types import Sampling

SAMPLING = Sampling(max_new_tokens=4)
SMALL = {"text_layers": 2, "text_width": 64, "text_mlp": 96, "heads": 2, "kv_heads": 1, "head_dim": 32}
SMALL |= {"vision_layers": 2, "vision_width": 32, "vision_mlp": 64, "vision_heads": 2, "deepstack": (0, 1)}
FROZEN = ("vision", "projector")


def frozen(family: str = "qwen3_vl", parts: tuple[str, ...] = FROZEN) -> Policy:
    base = loud_policy(family, **SMALL)
    return make_policy(base.model, base.processor, freeze=parts)


def counted(policy: Policy) -> list[int]:
    """The rows of pixels in every call of the tower from now on."""
    calls: list[int] = []

    def encode(model: Any, media: Any) -> Any:
        calls.append(len(media["pixel_values"]))
        return family.encode_images(model, media)

    family = policy.family
    policy.family = replace(family, encode_images=encode)
    return calls


def prompts(policy: Policy, seeds: tuple[int, ...] = (1, 2)) -> list[Prompt]:
    shown = [problem(f"p{seed}", (picture(56, 84, seed),), "What?") for seed in seeds]
    return [policy.prompt(p) for p in (*shown, problem("none", (), "Why?"))]


def total(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
    return log_probs.sum()


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "qwen2_5_vl"])
def test_every_picture_is_encoded_once_and_numbers_stay(family: str) -> None:
    policy = frozen(family)
    without = make_policy(loud_policy(family, **SMALL).model, policy.processor, freeze=FROZEN)
    without.vision_cache.budget = 0
    calls = counted(policy)
    shown, rows = prompts(policy), ragged_rows(policy, 3, (4, 7, 5))
    SharedPrefillEngine(policy).generate(shown, 2, SAMPLING, seed=(0, 0))
    for _ in range(2):  # other objects, equal pictures, another order
        again = prompts(policy, (2, 1))
        ours, _ = score(policy, [again[1], again[0], again[2]], rows, SAMPLING)
        backward(policy, shown, rows, SAMPLING, total)
    assert len(calls) == 2
    cache = policy.vision_cache
    assert (cache.misses, cache.hits) == (2, 8)
    theirs, _ = score(without, shown, rows, SAMPLING)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    gradients(policy)
    backward(policy, shown, rows, SAMPLING, total)
    backward(without, shown, rows, SAMPLING, total)
    assert_gradients_close(gradients(policy), gradients(without))


@pytest.mark.parametrize("trained", [(), ("vision",), ("projector",), ("text",)])
def test_it_is_off_while_anything_of_the_tower_trains(trained: tuple[str, ...]) -> None:
    policy = frozen(parts=trained)
    calls = counted(policy)
    for _ in range(2):
        score(policy, prompts(policy), ragged_rows(policy, 2, (4, 7)), SAMPLING)
    assert len(calls) == 2
    assert (policy.vision_cache.hits, policy.vision_cache.held) == (0, 0)


def test_it_is_off_for_pixels_that_take_a_gradient() -> None:
    policy = frozen()
    prompt = prompts(policy)[0]
    pixels = prompt.media["pixel_values"].clone().requires_grad_()
    attacked = replace(prompt, media={**prompt.media, "pixel_values": pixels})
    rows = ragged_rows(policy, 1, (4,))
    (gradient,) = picture_gradients(policy, [attacked], rows, SAMPLING, total)
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert policy.vision_cache.misses == 0
    backward(
        policy, [attacked], rows, SAMPLING, total
    )  # trains weights: what an attack asked costs it nothing
    assert pixels.grad is None
    assert policy.vision_cache.misses == 0


def test_changed_weights_empty_it() -> None:
    policy = frozen()
    shown, rows = prompts(policy), ragged_rows(policy, 2, (4, 7))
    before, _ = score(policy, shown, rows, SAMPLING)
    policy.model.load_state_dict(loud_policy("qwen3_vl", 1, **SMALL).model.state_dict())
    policy.vision_cache.hits = 0
    after, _ = score(policy, shown, rows, SAMPLING)
    assert policy.vision_cache.hits == 0
    fresh = make_policy(loud_policy("qwen3_vl", 1, **SMALL).model, policy.processor, freeze=FROZEN)
    assert torch.equal(after, score(fresh, shown, rows, SAMPLING)[0])
    assert not torch.equal(before, after)


def test_a_changed_buffer_empties_it() -> None:
    policy = frozen("qwen2_5_vl")
    shown, rows = prompts(policy), ragged_rows(policy, 2, (4, 7))
    score(policy, shown, rows, SAMPLING)
    with torch.no_grad():
        for name, buffer in policy.model.named_buffers():
            if "visual" in name:
                buffer.mul_(2)
    policy.vision_cache.hits = 0
    after, _ = score(policy, shown, rows, SAMPLING)
    assert policy.vision_cache.hits == 0
    policy.vision_cache.clear()
    assert torch.equal(score(policy, shown, rows, SAMPLING)[0], after)


def test_the_least_recently_used_leave_first() -> None:
    policy = frozen()
    calls = counted(policy)
    one = prompts(policy, (1,))[0]
    rows = [(0, tokens) for _, tokens in ragged_rows(policy, 1, (4,))]

    def show(seed: int) -> int:
        before = len(calls)
        score(policy, [prompts(policy, (seed,))[0]], rows, SAMPLING)
        return len(calls) - before

    assert show(1) == 1
    each = policy.vision_cache.held
    assert each == one.picture_tokens[0] * 64 * 4 * 3, "features and two layers of DeepStack, float32"
    policy.vision_cache.budget = 2 * each
    assert [show(2), show(1), show(3), show(1), show(2)] == [1, 0, 1, 0, 1]
    assert policy.vision_cache.held == 2 * each
    policy.vision_cache.budget = each - 1
    assert [show(5), show(5)] == [1, 1]
    assert policy.vision_cache.held == 0


def test_what_is_kept_does_not_depend_on_the_company() -> None:
    """So a resumed run, whose cache is empty, computes the same bits."""
    one, other = frozen(), frozen()
    rows = ragged_rows(one, 2, (4, 7))
    score(one, prompts(one, (1, 2)), rows, SAMPLING)
    score(other, prompts(other, (3, 2)), rows, SAMPLING)
    same = one.vision_cache.entries.keys() & other.vision_cache.entries.keys()
    assert len(same) == 1
    for key in same:
        assert torch.equal(one.vision_cache.entries[key].features, other.vision_cache.entries[key].features)


def test_a_picture_is_known_by_everything_that_the_tower_sees() -> None:
    pixels, grid = torch.arange(12.0).reshape(3, 4), torch.tensor([[1, 1, 3]])
    media = {"pixel_values": pixels, "image_grid_thw": grid}
    same = {"image_grid_thw": grid.clone(), "pixel_values": pixels.clone()}
    others = [
        {**media, "pixel_values": pixels.reshape(4, 3)},
        {**media, "pixel_values": pixels.to(torch.bfloat16)},
        {**media, "pixel_values": pixels + 1e-6},
        {**media, "image_grid_thw": torch.tensor([[1, 3, 1]])},
    ]
    assert picture_key(media) == picture_key(same)
    assert len({picture_key(x) for x in (media, *others)}) == 5
    assert VisionCache().budget == 2**30
