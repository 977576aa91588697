"""Random models of both families, prompts that differ in everything, and the plain repeated forward as
oracle."""

from __future__ import annotations

import os

# With other load on the cores two spinning OpenMP threads are 5 to 30 times slower; must precede torch's
# import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fovea.models.adapter import join_media
from fovea.models.construct import random_policy_parts
from fovea.models.policy import Policy, make_policy
from fovea.types import Problem, Sampling

FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loud_policy(family: str, seed: int = 0, **sizes: Any) -> Policy:
    """A random policy whose weights are scaled up until its log-probs really vary (std > 1)."""
    small = {
        "text_layers": 3,
        "text_width": 128,
        "text_mlp": 192,
        "heads": 2,
        "kv_heads": 1,
        "vision_width": 64,
    }
    small |= {"vision_layers": 4, "vision_mlp": 96, "vision_heads": 2}
    model, processor = random_policy_parts(family, seed, **(small | sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0 if "visual" not in name else 2.0)
    return make_policy(model, processor)


@pytest.fixture(params=FAMILIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    """A fresh loud random policy of each family."""
    return loud_policy(request.param)


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def problem(name: str, images: tuple[Image.Image, ...], question: str) -> Problem:
    return Problem(id=name, task="test", images=images, question=question, answer="1", kind="text")


def different_problems() -> list[Problem]:
    """Text only, two pictures of different sizes, one large picture, one wide one: ragged in every way."""
    return [
        problem("one", (picture(84, 140, 1),), "Where is the red circle?"),
        problem("none", (), "How many?"),
        problem("two", (picture(56, 56, 2), picture(196, 84, 3)), "Which of the two is bigger, please?"),
        problem("wide", (picture(280, 140, 4),), "What?"),
    ]


def ragged_rows(
    policy: Policy, prompts: int, lengths: tuple[int, ...], seed: int = 0
) -> list[tuple[int, np.ndarray]]:
    """Rows of `lengths`, dealt to the prompts in turn, tokens that may be sampled."""
    draw = np.random.default_rng(seed)
    allowed = np.setdiff1d(np.arange(300), policy.bans(Sampling()))
    return [(i % prompts, draw.choice(allowed, length).astype(np.int64)) for i, length in enumerate(lengths)]


def plain_inputs(
    policy: Policy, problems: list[Problem], rows: list[tuple[int, np.ndarray]]
) -> dict[str, Tensor]:
    """What plain Hugging Face code would feed: every row a full copy of its prompt, left-padded."""
    prompts = [policy.prompt(problem) for problem in problems]
    width = max(len(prompts[i].token_ids) + len(tokens) for i, tokens in rows)
    ids = torch.full((len(rows), width), policy.pad_id)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for r, (i, tokens) in enumerate(rows):
        whole = torch.cat([prompts[i].token_ids, torch.from_numpy(tokens)])
        ids[r, width - len(whole) :] = whole
        mask[r, width - len(whole) :] = 1
        start = width - len(whole)
        types[r, start : start + len(prompts[i].token_ids)] = prompts[i].image_mask.long()
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
    return inputs | join_media([prompts[i].media for i, _ in rows], torch.device("cpu"))


def plain_log_probs(
    policy: Policy, problems: list[Problem], rows: list[tuple[int, np.ndarray]], sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """(log_probs, entropy) of all rows' tokens by one repeated Hugging Face forward with plain sdpa."""
    inputs = plain_inputs(policy, problems, rows)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(next(policy.model.parameters()).dtype)
    logits = policy.model(**inputs).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / (sampling.temperature or 1.0)
    logits[..., list(policy.bans(sampling))] = -torch.inf
    log_p = logits.log_softmax(-1)
    taken, entropies = [], []
    for r, (_, tokens) in enumerate(rows):
        own = log_p[r, -len(tokens) - 1 : -1]
        taken.append(own.gather(-1, torch.from_numpy(tokens)[:, None])[:, 0])
        entropies.append(-(own.exp() * own.masked_fill(own == -torch.inf, 0)).sum(-1))
    return torch.cat(taken), torch.cat(entropies)


def gradients(policy: Policy) -> dict[str, Tensor]:
    """The accumulated gradients by name, which are then cleared."""
    found = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad(set_to_none=True)
    return found


def assert_log_probs_close(ours: Tensor, theirs: Tensor, tolerance: float = 2e-6) -> None:
    """|difference| <= tolerance * max(1, |log-prob|), docs/architecture.md section 8."""
    excess = (ours - theirs).abs() / theirs.abs().clamp(min=1.0)
    assert excess.max() <= tolerance, f"log-probs differ by {excess.max():.2e}"


def assert_gradients_close(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5
) -> None:
    """Per tensor: norm of the difference <= tolerance * (norm + 1e-4 * norm of everything)."""
    assert ours.keys() == theirs.keys()
    whole = torch.stack([g.norm() for g in theirs.values()]).norm()
    ratios = {n: float((ours[n] - g).norm() / (g.norm() + 1e-4 * whole)) for n, g in theirs.items()}
    worst = max(ratios, key=ratios.__getitem__)
    assert ratios[worst] <= tolerance, f"gradient of {worst} differs by {ratios[worst]:.2e}"


Gradients = Callable[[Policy], dict[str, Tensor]]
