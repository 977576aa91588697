"""GRPO on one page, without abstractions: the documentation of the loop, and its oracle (same seed, same losses).

Plain transformers, the picture repeated for every reply, every token's forward from scratch: slow on purpose and
easy to check. Only problems, rewards and the sampling noise come from fovea.

    fovea study one_file_grpo --steps 2 --prompts 2 --group 4
"""

from __future__ import annotations

import argparse
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


def one_file_grpo(
    model_folder: str, steps: int, prompts: int, group: int, seed: int, rate: float, budget: int = 32
) -> list[dict[str, Any]]:
    """Losses, gradient norms, mean rewards and the last weights' norm, one record a step."""
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model_folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=0.0)
    task, config, end = (
        open_task("digits/locate", "train", seed),
        model.config,
        processor.tokenizer.eos_token_id,
    )
    banned = [
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    ]
    records = []

    for step in range(steps):
        # 1. Prompts. Each picture is repeated `group` times: this is what the library does not do.
        problems, _ = task.take(step * prompts, prompts)
        rows = [problem for problem in problems for _ in range(group)]
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": p.question}]}]
            for p in rows
        ]
        texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        inputs = processor(text=texts, images=[p.images[0] for p in rows], padding=True, padding_side="left",
                           return_tensors="pt")  # fmt: skip
        pictures = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
        ids, mask, types = inputs["input_ids"], inputs["attention_mask"], inputs["mm_token_type_ids"]
        prompt_length = ids.shape[1]

        def logits_of(
            ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor, pictures: Any
        ) -> torch.Tensor:
            positions, _ = model.model.get_rope_index(
                ids, mm_token_type_ids=types, image_grid_thw=pictures["image_grid_thw"], attention_mask=mask
            )
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, **pictures).logits
            logits[..., banned] = torch.finfo(torch.float32).min / 2
            return logits

        # 2. Replies, a token at a time, everything from scratch.
        keys = row_keys([p.id for p in rows], [i % group for i in range(len(rows))], (seed, step, 0))
        done = torch.zeros(len(rows), dtype=torch.bool)
        with torch.no_grad():
            for token in range(budget):
                chances = (
                    logits_of(ids, mask, types, pictures)[:, -1].softmax(-1).cumsum(-1, dtype=torch.float64)
                )
                noise = torch.from_numpy(uniforms(keys, token))[:, None]
                chosen = torch.searchsorted(chances, noise * chances[:, -1:], right=True)[:, 0]
                chosen[done] = processor.tokenizer.pad_token_id
                ids = torch.cat([ids, chosen[:, None]], 1)
                mask = torch.cat([mask, (~done)[:, None].long()], 1)
                types = torch.cat([types, torch.zeros_like(chosen)[:, None]], 1)
                done |= chosen == end
                if done.all():
                    break
        said, counted = ids[:, prompt_length:], mask[:, prompt_length:].float()

        # 3. Rewards: IoU in the family's frame (thousandths of width and height), and a tenth for the format.
        rewards = np.zeros(len(rows))
        for i, problem in enumerate(rows):
            text = processor.tokenizer.decode([t for t in said[i][counted[i] > 0].tolist() if t != end])
            size = problem.images[0].size
            truth = convert(problem.answer, "pixels", "thousandths", size, size)
            box = read_box(answer_of(text))
            rewards[i] = (box_iou(box, truth) if box else 0.0) + 0.1 * has_format(text)

        # 4. Advantages: (r - mean) / (std + 1e-4) in each group of one problem; 0 where all are equal.
        by_group = rewards.reshape(prompts, group)
        centred = by_group - by_group.mean(1, keepdims=True)
        advantages = centred / (by_group.std(1, ddof=1, keepdims=True) + 1e-4)
        advantages[(by_group == by_group[:, :1]).all(1)] = 0
        advantage = torch.from_numpy(advantages.reshape(-1, 1)).float()

        # 5. The loss: mean over a reply's tokens, then over replies. One update a rollout: the ratio is exactly 1.
        logits = logits_of(ids, mask, types, pictures)[:, prompt_length - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, said[..., None])[..., 0]
        ratio = (log_probs - log_probs.detach()).exp()
        per_token = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        loss = ((per_token * counted).sum(1) / counted.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        weights = torch.stack([p.detach().norm() for p in model.parameters()]).norm()
        records.append({"step": step, "loss": loss.item(), "grad_norm": norm.item(), "reward_mean": rewards.mean(),
                        "entropy": -(log_probs * counted).sum().item() / counted.sum().item(),
                        "weight_norm": weights.item()})  # fmt: skip
        print(json.dumps(records[-1]), flush=True)
    return records


def main(argv: list[str]) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="fovea study one_file_grpo", description=__doc__)
    parser.add_argument("--model", default=str(TINY), help="model folder")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    options = parser.parse_args(argv)
    one_file_grpo(
        options.model, options.steps, options.prompts, options.group, options.seed, options.learning_rate
    )
