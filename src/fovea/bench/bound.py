"""How much faster sharing could be: the ratio of the two ways' floating-point operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fovea.bench.case import Case
from fovea.models.qwen_vision import vision_lengths


def flop_bound(case: Case) -> float:
    """Repeated over shared floating-point operations of a forward pass (a backward doubles both).

    Per prompt, vision V, prompt P tokens, G completions of R tokens, t per token and h per head position, and
    attention a(n, m) of n queries to m keys: G (V + (P + R) t + R h + a_causal(P + R)) over
    V + P t + a_causal(P) + G (R (t + h) + a(R, P) + a_causal(R)).
    """
    config, prompt = case.plain.config, case.prompts[0]
    text = case.plain.model.language_model
    p, r, g = len(prompt.token_ids), len(case.rows[0][1]), case.group
    per_token = 2 * _matrices(text.layers)
    per_head = 2 * case.plain.lm_head.weight.numel()
    layer = text.layers[0].self_attn
    pair = 4 * config.text_config.num_attention_heads * layer.head_dim * len(text.layers)
    vision = _vision_flops(case.plain.model.visual, prompt.media["image_grid_thw"])

    def causal(n: int) -> float:
        return pair * n * (n + 1) / 2

    repeated = g * (vision + (p + r) * per_token + r * per_head + causal(p + r))
    completions = g * (r * (per_token + per_head) + pair * r * p + causal(r))
    return repeated / (vision + p * per_token + causal(p) + completions)


def _vision_flops(visual: Any, grids: Tensor) -> float:
    lengths = vision_lengths(grids)
    patches = sum(lengths)
    merged = patches // visual.spatial_merge_size**2
    linear = 2 * patches * (_matrices(visual.blocks) + _matrices(visual.patch_embed))
    mergers = [m for name, m in visual.named_children() if "merger" in name]
    linear += 2 * merged * sum(_matrices(merger) for merger in mergers)
    width = visual.config.hidden_size
    attention = 0.0
    full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
    window = (getattr(visual, "window_size", 0) // visual.patch_size) ** 2
    for layer in range(len(visual.blocks)):
        attention += sum(4 * width * n * (n if layer in full else min(n, window)) for n in lengths)
    return linear + attention


def _matrices(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)
