"""Qwen3-VL (arXiv:2511.21631): DeepStack features into the early text layers, boxes in thousandths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

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
    return config.model_type == "qwen3_vl"


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
    plan = vision_plan(visual, grids, None, None)
    out = visual(pixel_values.to(visual.dtype), grid_thw=grids, **plan)
    return ImageFeatures(features=out.pooler_output, deepstack=tuple(out.deepstack_features))


def place(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> dict[str, Any]:
    embeds = embed(model, token_ids, image_mask, images)
    if images is None:
        return {"inputs_embeds": embeds}
    return {
        "inputs_embeds": embeds,
        "visual_pos_masks": image_mask,
        "deepstack_visual_embeds": list(images.deepstack),
    }


def text_model(model: Any) -> Any:
    return model.model.language_model


def lm_head(model: Any) -> torch.nn.Linear:
    return model.lm_head


FAMILY = Family(
    name="qwen3_vl",
    frame="thousandths",
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
