"""A tiny loud model of one family, and the same weights as plain transformers sees them.

The plain twin is what the Auto classes load from the folder that `Policy.save` wrote, with transformers' own
attention, fed by the reloaded processor: nothing of Fovea is in it.
"""

from __future__ import annotations

import atexit
import copy
import functools
import inspect
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from conftest import loud_policy, picture, problem
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from fovea.models.adapter import Prompt
from fovea.models.policy import Policy, make_policy
from fovea.types import Problem, Sampling

SIZES: dict[str, Any] = {
    "text_layers": 2,
    "text_width": 64,
    "text_mlp": 96,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "vision_layers": 2,
    "vision_width": 32,
    "vision_mlp": 64,
    "vision_heads": 2,
    "deepstack": (0, 1),
}

ONE = problem("one", (picture(84, 140, 1),), "Where is the red circle?")
NONE = problem("none", (), "How many?")
TWO = problem("two", (picture(56, 56, 2), picture(196, 84, 3)), "Which of the two is bigger, please?")
WIDE = problem("wide", (picture(280, 112, 4),), "What?")
TALL = problem("tall", (picture(70, 210, 5),), "And this one?")

Row = tuple[int, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subject:
    """One family under test. Checks leave weights as they are."""

    policy: Policy
    plain: Any
    """The reloaded model with transformers' `sdpa`."""
    processor: Any
    """The reloaded processor."""
    folder: str

    def prompts(self, problems: Sequence[Problem]) -> list[Prompt]:
        return [self.policy.prompt(one) for one in problems]


@functools.cache
def subject(family: str) -> Subject:
    policy = loud_policy(family, **SIZES)
    folder = tempfile.mkdtemp(prefix=f"fovea-{family}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    policy.save(folder)
    plain = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa")
    return Subject(
        policy=policy, plain=plain.eval(), processor=AutoProcessor.from_pretrained(folder), folder=folder
    )


def converted(one: Subject, dtype: torch.dtype) -> Subject:
    """The same in another float type; gradients that it leaves behind are its own."""
    models = [copy.deepcopy(model).to(dtype) for model in (one.policy.model, one.plain)]
    return replace(one, policy=make_policy(models[0], one.policy.processor), plain=models[1])


def plain_prompt(one: Subject, asked: Problem) -> dict[str, Tensor]:
    """What the family's processor makes of a problem, special tokens of the chat template included."""
    content = [{"type": "image"} for _ in asked.images] + [{"type": "text", "text": asked.question}]
    chat = [{"role": "user", "content": content}]
    text = one.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    images = [list(asked.images)] if asked.images else None
    return dict(one.processor(text=[text], images=images, return_tensors="pt", return_mm_token_type_ids=True))


def plain_inputs(one: Subject, problems: Sequence[Problem], rows: Sequence[Row]) -> dict[str, Tensor]:
    """A left-padded batch: every row a full copy of its prompt (pictures included) with its tokens behind."""
    made = [plain_prompt(one, asked) for asked in problems]
    whole = [torch.cat([made[i]["input_ids"][0], torch.from_numpy(tokens)]) for i, tokens in rows]
    width = max(map(len, whole))
    pad = one.policy.pad_id
    batch = {
        "input_ids": torch.stack([torch.nn.functional.pad(x, (width - len(x), 0), value=pad) for x in whole]),
        "attention_mask": torch.stack(
            [torch.nn.functional.pad(torch.ones_like(x), (width - len(x), 0)) for x in whole]
        ),
    }
    known = inspect.signature(one.plain.forward).parameters
    for key in {"mm_token_type_ids", "token_type_ids"} & known.keys() & made[0].keys():
        types = [
            torch.nn.functional.pad(made[i][key][0], (width - len(made[i][key][0]) - len(t), len(t)))
            for i, t in rows
        ]
        batch[key] = torch.stack(types)
    shown = [made[i] for i, _ in rows if problems[i].images]
    for key in (shown[0].keys() & known.keys()) - batch.keys() if shown else ():
        batch[key] = _together([one_prompt[key] for one_prompt in shown])
    return batch


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenated along dim 0; tiles (dim 1) are filled up with zeros, as the processors do."""
    tensors = [torch.as_tensor(x) for x in tensors]
    if tensors[0].ndim < 4:
        return torch.cat(tensors)
    most = max(x.shape[1] for x in tensors)
    return torch.cat(
        [torch.cat([x, x.new_zeros(len(x), most - x.shape[1], *x.shape[2:])], 1) for x in tensors]
    )


def plain_log_probs(
    one: Subject, problems: Sequence[Problem], rows: Sequence[Row], sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """(log_probs, entropy) of all rows' tokens by one repeated forward of plain transformers."""
    inputs = plain_inputs(one, problems, rows)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(next(one.plain.parameters()).dtype)
    logits = one.plain(**inputs).logits / (sampling.temperature or 1.0)
    logits[..., list(one.policy.bans(sampling))] = -torch.inf
    log_p = logits.log_softmax(-1)
    taken, entropies = [], []
    for r, (_, tokens) in enumerate(rows):
        own = log_p[r, -len(tokens) - 1 : -1]
        taken.append(own.gather(-1, torch.from_numpy(tokens)[:, None])[:, 0])
        entropies.append(-(own.exp() * own.masked_fill(own == -torch.inf, 0)).sum(-1))
    return torch.cat(taken), torch.cat(entropies)
