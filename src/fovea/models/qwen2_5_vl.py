"""Qwen2.5-VL (arXiv:2502.13923): windowed vision attention, boxes in pixels of the resized picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from fovea.models.adapter import (
    Family,
    ImageFeatures,
    Rendered,
    embed,
    mrope_positions,
    render_chat,
    vision_plan,
)


def matches(config: Any) -> bool:
    return config.model_type == "qwen2_5_vl"


def render(processor: Any, images: Sequence[Image.Image], text: str) -> Rendered:
    return render_chat(processor, images, text)


def media_ids(config: Any) -> tuple[int, ...]:
    return (
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )


def positions(model: Any, rendered: Rendered) -> Tensor:
    return mrope_positions(model.model, rendered)


def resized(config: Any, grid: Tensor) -> tuple[int, int]:
    patch = config.vision_config.patch_size
    return int(grid[2]) * patch, int(grid[1]) * patch


def encode_images(model: Any, pixel_values: Tensor, grids: Tensor) -> ImageFeatures:
    visual = model.model.visual
    index, windows = get_vision_window_index(
        grids,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    plan = vision_plan(visual, grids, windows, visual.fullatt_block_indexes)
    # the tower must not split by windows either: our attention function does
    plan |= {"window_index": index.to(grids.device), "cu_window_seqlens": plan["cu_seqlens"]}
    out = visual(pixel_values.to(visual.dtype), grid_thw=grids, **plan)
    return ImageFeatures(features=out.pooler_output)


def place(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> dict[str, Any]:
    return {"inputs_embeds": embed(model, token_ids, image_mask, images)}


def text_model(model: Any) -> Any:
    return model.model.language_model


def lm_head(model: Any) -> torch.nn.Linear:
    return model.lm_head


FAMILY = Family(
    name="qwen2_5_vl",
    frame="resized",
    matches=matches,
    render=render,
    media_ids=media_ids,
    positions=positions,
    resized=resized,
    encode_images=encode_images,
    place=place,
    text_model=text_model,
    lm_head=lm_head,
    freeze={"vision": ("model.visual.",), "text": ("model.language_model.", "lm_head.")},
)
