"""Attention that is not plainly causal: sliding windows and picture blocks, against dense masks and plain
transformers, values and gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conformance.subject import NONE, ONE, TWO, WIDE, Subject, plain_log_probs
from conftest import (
    assert_gradients_close,
    assert_log_probs_close,
    gradients,
    loud_policy,
    picture,
    ragged_rows,
)
from torch import Tensor

from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models import blocks, tiles
from fovea.models.attention import attend_segments, segments_of
from fovea.models.cascade import AttendPlan, row_groups
from fovea.models.construct import random_policy_parts
from fovea.models.policy import Policy, make_policy
from fovea.models.shared_prefix import backward, runs, score
from fovea.types import Sampling, UserError

SAMPLING = Sampling(temperature=0.8, max_new_tokens=30)
SMALL = {"text_layers": 3, "text_width": 64, "text_mlp": 96, "heads": 2, "kv_heads": 1, "head_dim": 16}
SMALL |= {"vision_layers": 1, "vision_width": 32, "vision_mlp": 48, "vision_heads": 2}
LENGTHS = (5, 1, 17, 26, 2, 12, 9)
LIKE = torch.zeros(0, dtype=torch.float64)


def seen(length: int, inside: tuple[tuple[int, int], ...], window: int | None) -> Tensor:
    """[length, length] bool by definition: causal or the same picture block, and not behind the window."""
    q, k = torch.arange(length)[:, None], torch.arange(length)
    visible = k <= q
    for a, b in inside:
        visible = visible | ((q >= a) & (q < b) & (k >= a) & (k < b))
    return visible if window is None else visible & (k > q - window)


def tile_sees(tile: tiles.Tile, length: int) -> Tensor:
    visible = torch.zeros(length, length, dtype=torch.bool)
    part = torch.ones(tile.stop - tile.start, tile.high - tile.low, dtype=torch.bool)
    if tile.causal:
        part = part.tril()
    if tile.mask is not None:
        part = part & (tile.mask[0, 0] == 0)
    visible[tile.start : tile.stop, tile.low : tile.high] = part
    return visible


@pytest.mark.parametrize("window", [None, 1, 2, 5, 30, 100])
@pytest.mark.parametrize("inside", [(), ((0, 4),), ((3, 9), (10, 11), (20, 31)), ((25, 40),)])
def test_tiles_are_the_definition(
    inside: tuple[tuple[int, int], ...], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE", 7)
    made = tiles.causal_tiles(40, inside, window, LIKE)
    assert [q for tile in made for q in range(tile.start, tile.stop)] == list(range(40)), "each query once"
    assert torch.equal(sum(tile_sees(tile, 40).int() for tile in made), seen(40, inside, window).int())
    assert all(tile.mask is None or tile.mask.numel() <= 40 * 16 for tile in made), "no mask of 40 x 40"


@pytest.mark.parametrize("window", [None, 1, 2, 5, 18, 19, 300])
def test_prefix_tiles_are_the_definition(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 5)
    prefix, steps = 13, torch.cat([torch.arange(n) for n in (6, 1, 9, 2)])
    visible = torch.zeros(len(steps), prefix, dtype=torch.int)
    for tile in tiles.prefix_tiles(prefix, steps, window, LIKE):
        queries = torch.arange(len(steps)) if tile.queries is None else tile.queries
        part = torch.ones(len(queries), prefix - tile.low, dtype=torch.int)
        visible[queries, tile.low :] += part if tile.mask is None else (tile.mask[0, 0] == 0).int()
        assert visible[queries].any(-1).all(), "a tile asks nobody who sees nothing"
    whole = seen(prefix + 9, (), window)
    assert torch.equal(visible, torch.stack([whole[prefix + int(t), :prefix] for t in steps]).int())


def dense(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 14, 25])
def test_the_cascade_is_dense_attention(
    window: int | None, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts, ragged completions; window 1 sees no prefix at all, and no gradient reaches it."""
    monkeypatch.setattr(tiles, "TILE", 5)
    monkeypatch.setattr(blocks, "_CPU_KERNELS", kernels and blocks._CPU_KERNELS)
    draw = torch.Generator().manual_seed(0)

    def leaf(heads: int, n: int) -> Tensor:
        return torch.randn(1, heads, n, 8, generator=draw, dtype=torch.float64).requires_grad_()

    prompts, lengths, of = (9, 4), (3, 11, 1, 7, 20), (0, 0, 0, 1, 1)
    prefix = [(leaf(2, p), leaf(2, p)) for p in prompts]
    q, k, v = leaf(4, sum(lengths)), leaf(2, sum(lengths)), leaf(2, sum(lengths))
    plan = AttendPlan(
        lengths=lengths,
        spans=((0, 15), (15, 42)),
        rows=row_groups(lengths, torch.device("cpu")),
        prefix_keys={0: tuple(pair[0] for pair in prefix)},
        prefix_values={0: tuple(pair[1] for pair in prefix)},
    )
    ours = plan.attend(0, q, k, v, 0.4, window)
    parts = []
    start = 0
    for prompt, n in zip(of, lengths, strict=True):
        own = slice(start, start + n)
        keys = torch.cat([prefix[prompt][0], k[:, :, own]], dim=2)
        values = torch.cat([prefix[prompt][1], v[:, :, own]], dim=2)
        visible = seen(prompts[prompt] + n, (), window)[prompts[prompt] :]
        parts.append(dense(q[:, :, own], keys, values, visible, 0.4))
        start += n
    theirs = torch.cat(parts, dim=2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    weights = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    leaves = [q, k, v, *(x for pair in prefix for x in pair)]
    for mine, true in zip(
        torch.autograd.grad(ours, leaves, weights), torch.autograd.grad(theirs, leaves, weights), strict=True
    ):
        torch.testing.assert_close(mine, true, rtol=0, atol=1e-12)
        assert window != 1 or mine.shape[2] == 42 or not mine.any()


@pytest.mark.parametrize("window", [None, 4, 11])
def test_prompts_with_picture_blocks_are_dense_attention(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE", 5)
    lengths, inside = (17, 9, 17), (((2, 8), (9, 12)), (), ((2, 8), (9, 12)))
    q, k, v = (torch.randn(1, heads, 43, 8, dtype=torch.float64) for heads in (4, 2, 2))
    segments = segments_of(lengths, torch.device("cpu"), inside)
    assert len(segments.groups) == 2
    made = [
        tiles.causal_tiles(length, held, window, q)
        for (_, length, _), held in zip(segments.groups, segments.blocks, strict=True)
    ]
    ours = attend_segments(q, k, v, segments, causal=True, scale=0.4, tiles=made)
    parts = zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), lengths, inside, strict=True)
    theirs = [dense(q_, k_, v_, seen(n, held, window), 0.4) for q_, k_, v_, n, held in parts]
    torch.testing.assert_close(ours, torch.cat(theirs, dim=2), rtol=0, atol=1e-13)


def test_runs() -> None:
    assert runs(torch.tensor([False, True, True, False, True])) == ((1, 3), (4, 5))
    assert runs(torch.tensor([False, False])) == ()


# ---------------------------------------------------------------- whole models


def windowed(window: int, dtype: torch.dtype = torch.float64) -> Policy:
    """A loud random Gemma 3 with another window: two windowed layers around a global one."""
    policy = loud_policy("gemma3", **SMALL)
    policy.model.config.text_config.sliding_window = window
    for layer in policy.model.model.language_model.layers:
        attn = layer.self_attn
        attn.sliding_window = window if attn.is_sliding else None
    policy.model.to(dtype)
    return policy


def twin(policy: Policy) -> Subject:
    plain = copy.deepcopy(policy.model)
    plain.set_attn_implementation("sdpa")
    return Subject(policy=policy, plain=plain, processor=policy.processor, folder="")


def weighted(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
    weights = torch.cos(index.to(log_probs.dtype))
    return (weights * log_probs - 0.3 * weights.square() * entropy).sum()


def check_against_plain(policy: Policy, tolerance: float) -> None:
    one = twin(policy)
    problems = [ONE, NONE, TWO, WIDE]
    rows = ragged_rows(policy, len(problems), LENGTHS)
    prompts = one.prompts(problems)
    log_probs, entropy = plain_log_probs(one, problems, rows, SAMPLING)
    assert log_probs.std() > 0.5, "the check means nothing if all log-probs are alike"
    weighted(torch.arange(len(log_probs)), log_probs, entropy).backward()
    plain = {n: p.grad.clone() for n, p in one.plain.named_parameters() if p.grad is not None}
    for tokens_per_pass in (8192, 6):
        ours, our_entropy = score(policy, prompts, rows, SAMPLING, tokens_per_pass=tokens_per_pass)
        assert_log_probs_close(ours, log_probs.detach(), tolerance)
        assert_log_probs_close(our_entropy, entropy.detach(), tolerance)
        backward(policy, prompts, rows, SAMPLING, weighted, tokens_per_pass)
        assert_gradients_close(gradients(policy), plain, max(tolerance, 1e-5))


@pytest.mark.parametrize("window", [1, 5, 16, 4096])
def test_gemma3_is_plain_transformers_under_every_window(window: int) -> None:
    """1: no prefix at all; 5: less than a picture; 16: some of the prompt; 4096: everything."""
    check_against_plain(windowed(window), 2e-6)  # its norms are float32 whatever the weights are


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("window", [1, 5, 16, 4096])
def test_generation_under_a_window_is_scoring(
    window: int, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_CPU_KERNELS", kernels and blocks._CPU_KERNELS)
    policy = windowed(window)
    prompts = [policy.prompt(p) for p in (ONE, NONE, TWO)]
    groups = SharedPrefillEngine(policy).generate(prompts, 3, SAMPLING, seed=(0, 0))
    rows = [(i, c.token_ids) for i, group in enumerate(groups) for c in group]
    assert max(len(tokens) for _, tokens in rows) == 30
    said = torch.from_numpy(np.concatenate([c.log_probs for group in groups for c in group]))
    assert_log_probs_close(said, score(policy, prompts, rows, SAMPLING)[0].float(), 1e-6)


def test_windows_and_picture_blocks_matter() -> None:
    """The same checks fail with another window, and where picture tokens do not see each other."""
    policy = windowed(5)
    one = twin(policy)
    rows = ragged_rows(policy, 1, (12, 9))
    with torch.no_grad():
        theirs, _ = plain_log_probs(one, [ONE], rows, SAMPLING)
    causal = replace(policy.family, picture_blocks=False)
    for other in (windowed(6), make_policy(policy.model, policy.processor)):
        other.family = causal if other.model is policy.model else other.family
        ours, _ = score(other, [other.prompt(ONE)], rows, SAMPLING)
        with pytest.raises(AssertionError, match="log-probs differ"):
            assert_log_probs_close(ours, theirs, 1e-4)


def test_windows_in_a_family_with_ordinary_prompts() -> None:
    """Qwen2.5-VL has windows in its upper layers if its config says so; M-RoPE positions are not their measure."""
    model, processor = random_policy_parts("qwen2_5_vl", **(SMALL | {"head_dim": 32}))
    text = model.config.text_config
    text.use_sliding_window, text.sliding_window = True, 7
    text.layer_types = ["full_attention", "sliding_attention", "sliding_attention"]
    windowed_model = type(model)(model.config)
    windowed_model.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in windowed_model.parameters():
            parameter.mul_(4.0 if parameter.ndim == 2 else 1.0)
    policy = make_policy(windowed_model.double().eval(), processor)
    layers = policy.model.model.language_model.layers
    assert [layer.self_attn.sliding_window for layer in layers] == [None, 7, 7]
    check_against_plain(policy, 2e-6)


def test_pictures_of_any_size_take_the_same_tokens() -> None:
    """Pan-and-scan stays off, also where the image processor's own settings ask for it."""
    policy = windowed(16, torch.float32)
    policy.processor.image_processor.do_pan_and_scan = True
    prompt = policy.prompt(replace(TWO, images=(picture(60, 60, 1), picture(180, 60, 2))))
    each = policy.processor.image_seq_length
    assert prompt.picture_tokens == (each, each)
    assert [b - a for a, b in runs(prompt.image_mask)] == [each, each]
    assert prompt.resized == ((56, 56), (56, 56))


@pytest.mark.parametrize("name", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_capped_logits_are_refused(name: str) -> None:
    policy = windowed(16)
    setattr(policy.model.config.text_config, name, 30.0)
    with pytest.raises(UserError, match=f"{name}=30.0, which is not supported; set it to null"):
        make_policy(policy.model, policy.processor)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_bfloat16_goes_all_the_way(family: str) -> None:
    """Half of the digits, the same distribution: log-probs near those of float32."""
    policy = loud_policy(family, **(SMALL | {"head_dim": 32}))
    problems, rows = [ONE, NONE], ragged_rows(policy, 2, (9, 14))
    prompts = [policy.prompt(p) for p in problems]
    exact, _ = score(policy, prompts, rows, SAMPLING)
    policy.model.bfloat16()
    rough, _ = score(policy, prompts, rows, SAMPLING, tokens_per_pass=6)
    assert rough.dtype == torch.float32
    assert float((rough - exact).abs().mean()) < 0.15
    backward(policy, prompts, rows, SAMPLING, weighted, 6)
    assert all(torch.isfinite(g).all() for g in gradients(policy).values())
    said = SharedPrefillEngine(policy).generate(prompts, 2, SAMPLING, seed=(0, 0))
    assert all(np.isfinite(c.log_probs).all() for group in said for c in group)
