"""GRPO in one file, without abstractions: the documentation of the loop, and its oracle (same seed, same weights).

Plain transformers, the picture repeated for every reply, every token's forward from scratch: slow on purpose and
easy to check. Only problems, reading an answer, and the sampling noise come from fovea.

    J = mean over prompts and replies of  1/|o| Σ_t [ min(ρ_t A, clip(ρ_t, 1-ε, 1+ε) A) - β k3_t ]
    A = (r - mean(r)) / (std(r) + 1e-4) in its group,  ρ_t = π(o_t) / π_old(o_t),  k3 = e^d - d - 1,  d = log π_ref/π

(DeepSeekMath, arXiv:2402.03300, equations 3 and 4.) Each rollout is learned from μ times: π_old is the policy that
sampled, π_ref the model before the first step. Try it:

    fovea study one_file_grpo --steps 2 --prompts 2 --group 4 --mu 2 --beta 0.04
"""

from __future__ import annotations

import argparse
import copy
import json
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from fovea.boxes import convert
from fovea.engines.shared_prefill import row_keys, uniforms
from fovea.models.policy import TINY
from fovea.rewards import box_iou, has_format
from fovea.rewards.answers import answer_of, read_box
from fovea.tasks import open_task

BUDGET = 32
"""Most tokens of a reply."""
CLIP = 0.2
"""ε."""
MAX_NORM = 1.0
"""Gradients are scaled down to this norm."""


def one_file_grpo(
    model_folder: str,
    steps: int,
    prompts: int,
    group: int,
    seed: int,
    rate: float,
    mu: int = 1,
    beta: float = 0.0,
) -> tuple[list[dict[str, Any]], Any]:
    """(one record a step, the trained model).

    A record holds the losses and gradient norms of the μ updates, mean reward, entropy and KL, the weights' norm, and
    of every reply its tokens and their log-probs under the policy that sampled it.
    """
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32).eval()
    reference = copy.deepcopy(model).requires_grad_(False)
    processor = AutoProcessor.from_pretrained(model_folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=0.0)
    task = open_task("digits/locate", "train", seed)
    end, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id

    # Tokens that stand for pictures may never be sampled: a reply that holds one cannot be read back. Every log-prob
    # below is of the distribution without them, while sampling and while learning.
    config = model.config
    banned = [config.image_token_id, config.video_token_id]
    banned += [config.vision_start_token_id, config.vision_end_token_id]
    records = []

    for step in range(steps):
        # ------------------------------------------------------------ 1. prompts
        # Each picture is repeated `group` times: this is what the library does not do.
        problems, _ = task.take(step * prompts, prompts)
        rows = [problem for problem in problems for _ in range(group)]
        texts = []
        for problem in rows:
            content = [{"type": "image"}, {"type": "text", "text": problem.question}]
            chat = [{"role": "user", "content": content}]
            texts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
        inputs = processor(
            text=texts,
            images=[problem.images[0] for problem in rows],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        types = inputs[
            "mm_token_type_ids"
        ]  # without it the positions of picture tokens are silently one-dimensional
        prompt_length = ids.shape[1]

        # ------------------------------------------------------------ 2. replies
        # A token at a time, everything from scratch. A reply's noise depends on (seed, step, problem, reply, token)
        # and on nothing else: the token is the first whose cumulated probability exceeds the uniform number.
        keys = row_keys([p.id for p in rows], [i % group for i in range(len(rows))], (seed, step, 0))
        done = torch.zeros(len(rows), dtype=torch.bool)
        with torch.no_grad():
            for token in range(BUDGET):
                logits = logits_of(model, ids, mask, types, pixels, grids, banned)[:, -1]
                cumulated = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
                noise = torch.from_numpy(uniforms(keys, token))[:, None]
                chosen = torch.searchsorted(cumulated, noise * cumulated[:, -1:], right=True)[:, 0]
                chosen[done] = pad
                ids = torch.cat([ids, chosen[:, None]], 1)
                mask = torch.cat([mask, (~done)[:, None].long()], 1)
                types = torch.cat([types, torch.zeros_like(chosen)[:, None]], 1)
                done |= chosen == end
                if done.all():
                    break
        said = ids[:, prompt_length:]
        counted = mask[:, prompt_length:].float()  # 1 up to and including the end token

        # ------------------------------------------------------------ 3. rewards
        # IoU in the family's frame (thousandths of width and height), and a tenth for the format.
        rewards = np.zeros(len(rows))
        for i, problem in enumerate(rows):
            kept = said[i][counted[i] > 0].tolist()
            text = processor.tokenizer.decode([t for t in kept if t != end])
            size = problem.images[0].size
            truth = convert(problem.answer, "pixels", "thousandths", size, size)
            box = read_box(answer_of(text))
            overlap = box_iou(box, truth) if box else 0.0
            rewards[i] = overlap + 0.1 * has_format(text)

        # ------------------------------------------------------------ 4. advantages
        # In each group of replies to one problem; exactly 0 where all rewards are equal.
        by_group = rewards.reshape(prompts, group)
        centred = by_group - by_group.mean(1, keepdims=True)
        advantages = centred / (by_group.std(1, ddof=1, keepdims=True) + 1e-4)
        advantages[(by_group == by_group[:, :1]).all(1)] = 0
        advantage = torch.from_numpy(advantages.reshape(-1, 1)).float()

        # ------------------------------------------------------------ 5. what the replies are compared with
        # π_old is the policy before the first of the μ updates, π_ref the model before the first step.
        with torch.no_grad():
            old = log_probs_of(model, ids, mask, types, pixels, grids, banned, said)
            if beta > 0:
                fixed = log_probs_of(reference, ids, mask, types, pixels, grids, banned, said)

        # ------------------------------------------------------------ 6. μ updates
        losses, norms, divergence = [], [], torch.zeros(())
        for _ in range(mu):
            log_probs = log_probs_of(model, ids, mask, types, pixels, grids, banned, said)

            # In the first update the ratio is 1 and the clip does nothing; its gradient is still A ∇log π.
            ratio = (log_probs - old).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            per_token = -torch.minimum(ratio * advantage, clipped * advantage)

            # k3: never negative, and without bias where the replies are the policy's own.
            if beta > 0:
                difference = fixed - log_probs
                divergence = difference.exp() - difference - 1
                per_token = per_token + beta * divergence

            # The denominators of GRPO: a mean over a reply's tokens, then over replies. A group without signal counts.
            loss = ((per_token * counted).sum(1) / counted.sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
            losses.append(loss.item())
            optimizer.step()

        # ------------------------------------------------------------ 7. the record
        total = counted.sum().item()
        rows_of_tokens = [row[keep > 0] for row, keep in zip(said, counted, strict=True)]
        rows_of_log_probs = [row[keep > 0] for row, keep in zip(old, counted, strict=True)]
        records.append(
            {
                "step": step,
                "losses": losses,
                "grad_norms": norms,
                "reward_mean": rewards.mean(),
                "entropy": -(old * counted).sum().item() / total,
                "kl": (divergence.detach() * counted).sum().item() / total,
                "weight_norm": torch.stack([p.detach().norm() for p in model.parameters()]).norm().item(),
                "tokens": [row.numpy() for row in rows_of_tokens],
                "log_probs": [row.numpy() for row in rows_of_log_probs],
            }
        )
        shown = {name: value for name, value in records[-1].items() if name not in ("tokens", "log_probs")}
        print(json.dumps(shown), flush=True)
    return records, model


def logits_of(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    types: torch.Tensor,
    pixels: torch.Tensor,
    grids: torch.Tensor,
    banned: list[int],
) -> torch.Tensor:
    """[rows, tokens, vocabulary] of prompts and replies together, picture tokens impossible.

    Positions are computed here and handed over: a model that computes its own keeps them from call to call.
    """
    positions, _ = model.model.get_rope_index(
        ids, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=mask
    )
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        pixel_values=pixels,
        image_grid_thw=grids,
    ).logits
    logits[..., banned] = torch.finfo(torch.float32).min / 2
    return logits


def log_probs_of(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    types: torch.Tensor,
    pixels: torch.Tensor,
    grids: torch.Tensor,
    banned: list[int],
    said: torch.Tensor,
) -> torch.Tensor:
    """[rows, reply tokens]: the logits at a position predict the token after it."""
    logits = logits_of(model, ids, mask, types, pixels, grids, banned)
    predicting = logits[:, -said.shape[1] - 1 : -1]
    return predicting.log_softmax(-1).gather(-1, said[..., None])[..., 0]


def main(argv: list[str]) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="fovea study one_file_grpo", description=__doc__)
    parser.add_argument("--model", default=str(TINY), help="model folder")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--mu", type=int, default=1, help="updates a rollout")
    parser.add_argument("--beta", type=float, default=0.0, help="weight of the KL to the model at the start")
    options = parser.parse_args(argv)
    one_file_grpo(
        options.model,
        options.steps,
        options.prompts,
        options.group,
        options.seed,
        options.learning_rate,
        options.mu,
        options.beta,
    )
