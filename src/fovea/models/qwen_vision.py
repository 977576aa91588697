"""What the Qwen-VL families share: packed patches with a grid a picture, M-RoPE positions (the one place where
they are made), and vision towers that attend in runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fovea.models.adapter import Pictures, Prompt, Rendered
from fovea.models.attention import segments_of
from fovea.models.rendering import render_chat

FREEZE = {
    "vision": ("model.visual.",),
    "projector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "text": ("model.language_model.", "lm_head."),
}


def render(processor: Any, images: Sequence[Image.Image], text: str) -> Rendered:
    return render_chat(processor, images, text, unpack)


def unpack(processor: Any, out: Any, images: Sequence[Image.Image]) -> Pictures:
    """pixel_values [patches, patch dim] and image_grid_thw [pictures, 3]: time, height, width in patches."""
    grids = out["image_grid_thw"].long()
    patches = tuple(grids.prod(-1).tolist())
    merge, patch = processor.image_processor.merge_size, processor.image_processor.patch_size
    return Pictures(
        media={"pixel_values": out["pixel_values"], "image_grid_thw": grids},
        rows={"pixel_values": patches, "image_grid_thw": (1,) * len(grids)},
        tokens=tuple(n // merge**2 for n in patches),
        resized=tuple((int(w) * patch, int(h) * patch) for _, h, w in grids.tolist()),
    )


def grids_of(prompt: Prompt) -> list[tuple[int, int, int]]:
    """(time, height, width) in patches of each picture of a prompt; empty without pictures."""
    return [tuple(grid) for grid in prompt.media["image_grid_thw"].tolist()] if prompt.media else []


def media_ids(config: Any) -> tuple[int, ...]:
    return (
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )


def positions(model: Any, rendered: Rendered) -> Tensor:
    """[3, P] long M-RoPE positions by the model's own rule (`get_rope_index`, which keeps no state)."""
    if not rendered.pictures.media:
        return torch.arange(len(rendered.token_ids)).expand(3, -1)
    found, _ = model.model.get_rope_index(
        rendered.token_ids[None],
        mm_token_type_ids=rendered.image_mask.long()[None],
        image_grid_thw=rendered.pictures.media["image_grid_thw"],
    )
    return found[:, 0]


def vision_lengths(grids: Tensor) -> list[int]:
    """Patches of each picture frame, in packed order; a frame attends to itself only."""
    return [int(h) * int(w) for t, h, w in grids.tolist() for _ in range(int(t))]


def vision_plan(
    visual: Any, grids: Tensor, windows: Tensor | None, full_layers: Sequence[int] | None
) -> dict[str, Any]:
    """Keywords for the vision tower's forward that batch pictures (and windows) of one size in one kernel
    call.

    transformers' non-flash path loops over `cu_seqlens` in Python; it is given one run [0, N] and our
    attention function splits it. `windows`: [w + 1] cumulative; `full_layers`: layers without windows (None:
    all).
    """
    device = grids.device
    lengths = vision_lengths(grids)
    whole = segments_of(lengths, device)
    if windows is None or full_layers is None:
        segments = {block.attn: whole for block in visual.blocks}
    else:
        parts = segments_of((windows[1:] - windows[:-1]).tolist(), device)
        segments = {
            block.attn: whole if layer in full_layers else parts for layer, block in enumerate(visual.blocks)
        }
    everything = torch.tensor([0, sum(lengths)], dtype=torch.int32, device=device)
    return {"cu_seqlens": everything, "vision_segments": segments}
