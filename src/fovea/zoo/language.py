"""Stages 3 and 4: the whole model learns to answer, and half of the middle layer's heads are taught where to look.

A tiny model that only learns to answer learns the form of the answers long before it looks (docs/lab-notes.md 2).
So the teacher's replies carry marks: here the reply is read off this place in this picture (`fovea.boxes.marks`).
At the token before a mark the attention scores of the taught heads must be highest at the place's cell.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from fovea.boxes import convert, fill, marks
from fovea.models.adapter import Prompt
from fovea.models.policy import Policy
from fovea.models.qwen_vision import grids_of
from fovea.models.shared_prefix import prefill
from fovea.tasks import STYLES, open_task
from fovea.tasks.scenes import generator
from fovea.types import Problem
from fovea.zoo.mixtures import mixture_at
from fovea.zoo.trainer import Stage, Trainer, share, total

STYLE_SHARES = {"answer": 0.70, "think": 0.14, "boxed": 0.08, "json": 0.08}
"""In which style a problem is asked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lesson:
    """A problem with its reply, as one row of tokens."""

    row: Prompt
    """Prompt and reply but for the reply's last token."""
    start: int
    """Position of the token that predicts the reply's first token."""
    reply: torch.Tensor
    """int64 [T]."""
    looks: tuple[tuple[int, int], ...]
    """(position of the token before a mark, index of the cell among the row's image tokens)."""


def mixed_problem(mixture: dict[str, float], stage: str, seed: int, index: int) -> Problem:
    """Problem `index` of a stage: task and style by their shares, then that task's problem of the train split."""
    rng = generator("zoo", stage, seed, index)
    names, shares = list(mixture), np.array(list(mixture.values()))
    name = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    style = list(STYLES)[int(rng.choice(len(STYLES), p=[STYLE_SHARES[style] for style in STYLES]))]
    return open_task(f"{name}@{style}", "train", seed + 1).take(index, 1)[0][0]


def lesson(policy: Policy, problem: Problem) -> Lesson:
    """Tokens of a problem and its reply, and where the reply's marks are."""
    prompt = policy.prompt(problem)
    which = int(problem.meta.get("box_image", 0))
    frame = policy.family.frame

    def to_frame(box: tuple[float, ...]) -> tuple[float, ...]:
        return convert(box, "pixels", frame, problem.images[which].size, prompt.resized[which])

    target = problem.target or ""
    text = fill(target, to_frame, frame)
    encoded = policy.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    reply = torch.tensor([*encoded["input_ids"], policy.eos_ids[0]])
    start, ends = len(prompt.token_ids) - 1, np.array([end for _, end in encoded["offset_mapping"]])
    merged = policy.model.config.vision_config.spatial_merge_size
    cells = [(int(h) // merged, int(w) // merged) for _, h, w in grids_of(prompt)]
    before = np.cumsum([0, *(rows * columns for rows, columns in cells)])
    looks = []
    for char, picture, (x1, y1, x2, y2) in marks(target, to_frame, frame, which):
        rows, columns = cells[picture]
        width, height = problem.images[picture].size
        column = min(columns - 1, max(0, int((x1 + x2) / 2 / width * columns)))
        row = min(rows - 1, max(0, int((y1 + y2) / 2 / height * rows)))
        token = int(np.searchsorted(ends, char, side="right"))  # the token that the character belongs to
        looks.append((start + token, int(before[picture]) + row * columns + column))
    return Lesson(row=_with_reply(prompt, reply[:-1]), start=start, reply=reply, looks=tuple(looks))


def _with_reply(prompt: Prompt, ids: torch.Tensor) -> Prompt:
    positions = (prompt.next_position + torch.arange(len(ids))).expand(len(prompt.positions), -1)
    return replace(
        prompt,
        token_ids=torch.cat([prompt.token_ids, ids]),
        positions=torch.cat([prompt.positions, positions], dim=1),
        next_position=prompt.next_position + len(ids),
        image_mask=torch.cat([prompt.image_mask, torch.zeros(len(ids), dtype=torch.bool)]),
    )


def hidden_states(
    policy: Policy, rows: list[Prompt]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(input of the middle layer, output of the last norm), each [all tokens, width], and the picture features
    [image tokens, width] or None, with gradient."""
    text = policy.family.text_model(policy.model)
    kept: dict[str, torch.Tensor] = {}
    hooks = [
        text.layers[len(text.layers) // 2].register_forward_pre_hook(
            lambda _, inputs: kept.__setitem__("middle", inputs[0])
        ),
        text.norm.register_forward_hook(lambda _module, _inputs, out: kept.__setitem__("last", out)),
        policy.model.model.visual.register_forward_hook(
            lambda _module, _inputs, out: kept.__setitem__("features", out.pooler_output)
        ),
    ]
    try:
        prefill(policy, rows)
    finally:
        for hook in hooks:
            hook.remove()
    return kept["middle"][0], kept["last"][0], kept.get("features")


def cell_places(rows: list[Prompt], merged: int) -> torch.Tensor:
    """float32 [image tokens, 2]: x and y of every cell's centre, 0 to 1 of its picture."""
    places = []
    for _, height, width in (grid for row in rows for grid in grids_of(row)):
        y, x = torch.meshgrid(torch.arange(height // merged), torch.arange(width // merged), indexing="ij")
        centre = torch.stack(
            [(x.flatten() + 0.5) / (width // merged), (y.flatten() + 0.5) / (height // merged)]
        )
        places.append(centre.T)
    return torch.cat(places)


def attention_scores(policy: Policy, middle: torch.Tensor, positions: torch.Tensor) -> Any:
    """Queries and keys, each [taught heads, tokens, head_dim], of the middle layer; queries already scaled."""
    text = policy.family.text_model(policy.model)
    layer = text.layers[len(text.layers) // 2]
    attn, x = layer.self_attn, layer.input_layernorm(middle)[None]
    q = attn.q_norm(attn.q_proj(x).unflatten(-1, (-1, attn.head_dim))).transpose(1, 2)
    k = attn.k_norm(attn.k_proj(x).unflatten(-1, (-1, attn.head_dim))).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *text.rotary_emb(x, positions[:, None]))
    taught = q.shape[1] // 2
    return q[0, :taught] * attn.scaling, k.repeat_interleave(attn.num_key_value_groups, 1)[0, :taught]


def looking_loss(
    policy: Policy, lessons: list[Lesson], middle: torch.Tensor
) -> tuple[torch.Tensor, int, int]:
    """(summed cross-entropy of the taught heads, mean over heads; marks; marks whose cell scores highest)."""
    positions = torch.cat([item.row.positions for item in lessons], dim=1)
    q, k = attention_scores(policy, middle, positions)
    loss, right, count, start = middle.new_zeros(()), 0, 0, 0
    for item in lessons:
        length = len(item.row.token_ids)
        if item.looks:
            asking = torch.tensor([token for token, _ in item.looks]) + start
            cells = torch.tensor([cell for _, cell in item.looks])
            scores = q[:, asking] @ k[:, start : start + length][:, item.row.image_mask].transpose(1, 2)
            loss = loss + F.cross_entropy(
                scores.flatten(0, 1), cells.repeat(len(scores)), reduction="sum"
            ) / len(scores)
            right += int((scores.detach().mean(0).argmax(-1) == cells).sum())
            count += len(cells)
        start += length
    return loss, count, right


def language_step(
    policy: Policy, problems: list[Problem], looking: float, place: torch.nn.Linear | None = None
) -> dict[str, float]:
    """Adds the gradient of: cross-entropy of the replies, mean over the tokens of all processes' problems, plus
    `looking` times that of the marks, mean over all marks, plus the error of `place`, a head that tells from a cell's
    features where in its picture it is, mean over the cells."""
    lessons = [lesson(policy, problem) for problem in problems]
    tokens = total(sum(len(item.reply) for item in lessons))
    asked = total(sum(len(item.looks) for item in lessons))
    rows = [item.row for item in lessons]
    middle, last, features = hidden_states(policy, rows)
    starts = np.cumsum([0, *(len(item.row.token_ids) for item in lessons)])
    where = torch.cat(
        [torch.arange(len(item.reply)) + item.start + int(start) for item, start in zip(lessons, starts)]
    )
    logits = policy.family.lm_head(policy.model)(last[where])
    spoken = F.cross_entropy(logits, torch.cat([item.reply for item in lessons]), reduction="sum") / tokens
    seen, _, right = looking_loss(policy, lessons, middle)
    seen = seen / max(1.0, asked)
    error = spoken.new_zeros(())
    cells = total(0 if features is None else len(features))
    if place is not None and features is not None:
        merged = policy.model.config.vision_config.spatial_merge_size
        error = (place(features) - cell_places(rows, merged)).abs().sum() / (2 * cells)
    (spoken + looking * seen + error).backward()
    return {
        "place_error": total(error.item()),
        "loss": total(spoken.item()),
        "looking_loss": total(seen.item()),
        "looks_right": total(right) / max(1.0, asked),
    }


def teach_language(
    policy: Policy,
    folder: Path,
    seed: int,
    name: str,
    stage: Stage,
    looking: float,
) -> None:
    """One language stage; all weights move."""
    modules: dict[str, torch.nn.Module] = {"model": policy.model}
    place = None
    if stage.places:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            modules["place"] = place = torch.nn.Linear(policy.model.config.text_config.hidden_size, 2)
    trainer = Trainer(folder, name, stage, modules)
    recent: list[dict[str, float]] = []
    while trainer.step < stage.steps:
        began = time.perf_counter()
        first = trainer.step * stage.batch
        mine = share(range(first, first + stage.batch))
        mixture = mixture_at(name, trainer.step)
        problems = [mixed_problem(mixture, name, seed, i) for i in mine]
        recent.append(language_step(policy, problems, looking, place))
        trainer.apply(time.perf_counter() - began)
        if trainer.step % 50 == 0:
            trainer.log(**{key: float(np.mean([line[key] for line in recent])) for key in recent[0]})
            recent = []
