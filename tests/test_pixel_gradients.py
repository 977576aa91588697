"""Gradients to the pixels: against plain autograd through transformers' own model, and against finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conformance.subject import NONE, TWO, WIDE, Subject, converted, subject
from torch import Tensor

from fovea.config import FinetuneSection
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models import Policy, Prompt, backward, score, shared_prefix
from fovea.models.canvas import canvases, on_canvas, pull_back
from fovea.models.kept import keeping
from fovea.models.pixel_gradients import picture_gradients
from fovea.models.policy import make_policy
from fovea.models.recompute import enable_recompute
from fovea.types import Sampling

FAMILIES = ["qwen2_5_vl", "qwen3_vl", "smolvlm", "llava_onevision"]
SAMPLING = Sampling(max_new_tokens=5, temperature=0.7)
Row = tuple[int, np.ndarray]


class Case:
    """Two prompts on their canvases, three replies each, and a weight for every token."""

    def __init__(self, one: Subject, dtype: torch.dtype = torch.float64) -> None:
        self.one = converted(one, dtype)
        self.policy: Policy = self.one.policy
        first = self.one.prompts([WIDE, TWO])
        self.canvases = [canvases(self.policy, prompt) for prompt in first]
        self.prompts = [
            on_canvas(self.policy, prompt, shown, leaf=True) for prompt, shown in zip(first, self.canvases)
        ]
        rng = np.random.default_rng(0)
        bans = set(self.policy.bans(SAMPLING))
        ids = [i for i in range(20, 60) if i not in bans]
        self.rows: list[Row] = [(i, rng.choice(ids, size=n)) for i in (0, 1) for n in (3, 5, 1)]
        self.weights = torch.from_numpy(rng.uniform(0.1, 1.0, sum(len(t) for _, t in self.rows)))

    def loss(self, index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        return (self.weights[index].to(entropy) * entropy).sum()

    def gradients(self, prompts: list[Prompt] | None = None, passes: int = 8192) -> list[Tensor]:
        """Of the canvases, all pictures of both prompts."""
        prompts = prompts or self.prompts
        found = picture_gradients(self.policy, prompts, self.rows, SAMPLING, self.loss, passes)
        pulled = [pull_back(self.policy, c, g) for c, g in zip(self.canvases, found) if g is not None]
        return [gradient for one in pulled for gradient in one]

    def value(self, shown: list[list[Tensor]]) -> float:
        """Of the loss when the canvases become these: thumbnails keep the rounding that they have, as the
        straight-through gradient takes it."""
        prompts = []
        for prompt, before, after in zip(self.prompts, floats(self), shown):
            moved, still = (on_canvas(self.policy, prompt, x).media["pixel_values"] for x in (after, before))
            pixels = prompt.media["pixel_values"].detach().double() + (moved.double() - still.double())
            prompts.append(replace(prompt, media=dict(prompt.media) | {"pixel_values": pixels}))
        _, entropy = score(self.policy, prompts, self.rows, SAMPLING)
        return float((self.weights.to(entropy) * entropy).sum())


def floats(case: Case) -> list[list[Tensor]]:
    return [[torch.from_numpy(c).permute(2, 0, 1).float() for c in one] for one in case.canvases]


def plain_gradients(case: Case) -> list[Tensor]:
    """Every reply by itself behind its prompt, through transformers' own model; pixels through its own processor."""
    model, processor, policy = case.one.plain, case.one.processor, case.policy
    bans = torch.tensor(policy.bans(SAMPLING))
    leaves = [[x.requires_grad_() for x in one] for one in floats(case)]
    whole = [[torch.tensor(c).permute(2, 0, 1) for c in one] for one in case.canvases]
    total, at = torch.zeros((), dtype=torch.float64), 0
    for which, tokens in case.rows:
        prompt = case.prompts[which]
        pixels = processor.image_processor(images=[leaves[which]], return_tensors="pt")
        inputs: dict[str, Any] = {k: v for k, v in pixels.items() if isinstance(v, Tensor)}
        ids = torch.cat([prompt.token_ids, torch.from_numpy(tokens)])[None]
        extra = {}
        if len(prompt.positions) > 1:
            seen = torch.nn.functional.pad(prompt.image_mask, (0, len(tokens)))
            extra["mm_token_type_ids"] = seen.long()[None]
        # straight-through: the value is that of the uint8 path, whose thumbnails are rounded
        rounded = processor.image_processor(images=[whole[which]], return_tensors="pt")["pixel_values"]
        through = inputs["pixel_values"]
        inputs["pixel_values"] = (through + (rounded - through).detach()).to(torch.float64)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, **extra).logits[0]
        n = len(tokens)
        chosen = logits[-n - 1 : -1].double() / SAMPLING.temperature
        chosen = chosen.index_fill(-1, bans, -torch.inf)
        probabilities = torch.softmax(chosen, -1)
        entropy = -(probabilities * torch.log(probabilities.clamp(min=1e-300))).sum(-1)
        total = total + (case.weights[at : at + n] * entropy).sum()
        at += n
    return list(torch.autograd.grad(total, [x for one in leaves for x in one]))


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_plain_autograd_through_transformers(family: str) -> None:
    case = Case(subject(family))
    ours = case.gradients()
    assert len(ours) == 3
    close(ours, plain_gradients(case))


@pytest.mark.parametrize("family", FAMILIES)
def test_along_the_sign_against_central_differences(family: str) -> None:
    """(L(x + h s) - L(x - h s)) / 2h with s = sign(g) is Σ|g|; h swept, the best one counts: too large a step meets
    curvature, too small a one the float32 in which processors, norms and RoPE work."""
    case = Case(subject(family))
    found = case.gradients()
    expected = sum(float(g.abs().sum()) for g in found)
    flat = [x for one in floats(case) for x in one]
    counts = [len(one) for one in case.canvases]
    errors = []
    for h in (2.0**-k for k in range(2, 12)):  # exact in float32
        values = []
        for side in (1.0, -1.0):
            moved = [x + side * h * g.sign() for x, g in zip(flat, found)]
            values.append(case.value([moved[: counts[0]], moved[counts[0] :]]))
        errors.append(abs((values[0] - values[1]) / (2 * h) - expected) / expected)
    assert min(errors) < 1e-3, errors


def close(ours: list[Tensor], theirs: list[Tensor], bound: float = 1e-5) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert float(other.abs().max()) > 0
        assert float((mine - other).abs().max()) <= bound * float(other.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["checkpointing", "lora", "frozen", "cut"])
def test_the_same_with_checkpointing_adapters_frozen_parts_and_cut_replies(family: str, how: str) -> None:
    one = subject(family)
    case = Case(one)
    expected = plain_gradients(case)
    policy = case.policy
    if how == "checkpointing":
        enable_recompute(policy.model)
        case.policy = replace(policy, recompute=True)
    elif how == "frozen":
        for parameter in policy.model.parameters():
            parameter.requires_grad_(False)
    elif how == "lora":  # fresh adapters change nothing: B is zero
        section = FinetuneSection(mode="lora", rank=2)
        case.policy = make_policy(policy.model, policy.processor, finetune=section, seed=0)
        case.policy.model.to(torch.float64)
    before = {name: p.requires_grad for name, p in case.policy.model.named_parameters()}
    close(case.gradients(passes=2 if how == "cut" else 8192), expected)
    after = case.policy.model.named_parameters()
    assert all(p.grad is None and p.requires_grad == before[name] for name, p in after)
    assert not any(module.training for module in case.policy.model.modules())


def test_the_graph_of_the_rollout_serves_attack_and_update(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = shared_prefix.prefill

    def prefill(policy: Policy, prompts: list[Prompt]) -> shared_prefix.Prefix:
        calls.append(len(prompts))
        return real(policy, prompts)

    monkeypatch.setattr(shared_prefix, "prefill", prefill)
    case = Case(subject("qwen2_5_vl"), torch.float32)
    anew = case.gradients()
    assert calls == [2]
    with keeping(case.policy, 8192):
        SharedPrefillEngine(case.policy).generate(case.prompts, 2, SAMPLING, seed=(0, 0))
    close(case.gradients(), anew, 1e-4)
    close(case.gradients(), anew, 1e-4)  # the graph is still there
    assert calls == [2, 2]

    def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        return -log_probs.sum()

    found = []
    for _ in range(2):  # with the kept graph, then encoded anew
        case.policy.model.zero_grad(set_to_none=True)
        backward(case.policy, case.prompts, case.rows, SAMPLING, loss)
        found.append(
            {n: p.grad.clone() for n, p in case.policy.model.named_parameters() if p.grad is not None}
        )
    assert calls == [2, 2, 2]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def test_temporal_copies_stay_equal_and_padding_stays_black() -> None:
    """Qwen repeats a still picture in time; SmolVLM pads a prompt's pictures to as many frames, all zero."""
    case = Case(subject("qwen2_5_vl"), torch.float32)
    (gradient, *_) = case.gradients()
    nudged = case.canvases[0][0].astype(int) + 4 * gradient.sign().permute(1, 2, 0).numpy().astype(int)
    shown = on_canvas(case.policy, case.prompts[0], [nudged.clip(0, 255).astype(np.uint8)])
    patches = shown.media["pixel_values"].reshape(-1, 3, 2, 14 * 14)
    assert torch.equal(patches[:, :, 0], patches[:, :, 1])
    assert not torch.equal(shown.media["pixel_values"], case.prompts[0].media["pixel_values"])

    small = Case(subject("llava_onevision"), torch.float32)
    black = [c * 0 + 255 for c in small.canvases[0]]
    white = on_canvas(small.policy, small.prompts[0], black).media["pixel_values"]
    plain = small.prompts[0].media["pixel_values"]
    padding = (plain == plain.amin()) & (white == plain.amin())
    height, width = small.canvases[0][0].shape[:2]
    assert int(padding[1:].any(1).sum()) == (len(plain) - 1) * 56 * 56 - height * width


def test_text_alone_has_no_pixels_and_pixels_that_take_no_gradient_are_refused() -> None:
    case = Case(subject("qwen2_5_vl"), torch.float32)
    prompt = case.one.prompts([NONE])[0]
    rows = [(0, case.rows[0][1])]
    assert canvases(case.policy, prompt) == ()
    assert picture_gradients(case.policy, [prompt], rows, SAMPLING, case.loss) == [None]
    plain = case.one.prompts([WIDE])[0]
    with pytest.raises(ValueError, match="leaf=True"):
        picture_gradients(case.policy, [plain], rows, SAMPLING, case.loss)
