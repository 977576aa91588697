"""Qwen3-VL (arXiv:2511.21631): DeepStack features into the early text layers, boxes in thousandths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fovea.models.adapter import Family, ImageFeatures, embed
from fovea.models.canvas_sizes import grid_canvas
from fovea.models.qwen_vision import FREEZE, media_ids, positions, render, vision_plan
from fovea.models.resolution import cap_grid


def matches(config: Any) -> bool:
    return config.model_type == "qwen3_vl"


def encode_images(model: Any, media: Mapping[str, Tensor]) -> ImageFeatures:
    visual, grids = model.model.visual, media["image_grid_thw"]
    plan = vision_plan(visual, grids, None, None)
    out = visual(media["pixel_values"].to(visual.dtype), grid_thw=grids, **plan)
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
    encode_images=encode_images,
    place=place,
    text_model=text_model,
    lm_head=lm_head,
    freeze=FREEZE,
    cap=cap_grid,
    canvas=grid_canvas,
)
