"""Qwen2.5-VL (arXiv:2502.13923): windowed vision attention, boxes in pixels of the resized picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from fovea.models.adapter import Family, ImageFeatures, embed
from fovea.models.canvas_sizes import grid_canvas
from fovea.models.qwen_vision import FREEZE, media_ids, positions, render, vision_plan
from fovea.models.resolution import cap_grid


def matches(config: Any) -> bool:
    return config.model_type == "qwen2_5_vl"


def encode_images(model: Any, media: Mapping[str, Tensor]) -> ImageFeatures:
    visual, grids = model.model.visual, media["image_grid_thw"]
    index, windows = get_vision_window_index(
        grids,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    plan = vision_plan(visual, grids, windows, visual.fullatt_block_indexes)
    # the tower must not split by windows either: our attention function does
    plan |= {"window_index": index.to(grids.device), "cu_window_seqlens": plan["cu_seqlens"]}
    out = visual(media["pixel_values"].to(visual.dtype), grid_thw=grids, **plan)
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
    encode_images=encode_images,
    place=place,
    text_model=text_model,
    lm_head=lm_head,
    freeze=FREEZE,
    cap=cap_grid,
    canvas=grid_canvas,
)
