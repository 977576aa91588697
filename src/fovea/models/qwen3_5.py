"""Qwen3.5: three of four layers are gated delta nets with a recurrent state (`recurrent.py`), the vision tower is
Qwen3-VL's without DeepStack, boxes in thousandths. One file for the dense model and the mixture of experts, whose
functions are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fovea.models.adapter import Family, ImageFeatures, embed
from fovea.models.canvas_sizes import grid_canvas
from fovea.models.qwen_vision import FREEZE, media_ids, positions, render, vision_plan
from fovea.models.resolution import cap_grid


def matches(config: Any) -> bool:
    return config.model_type == "qwen3_5"


def matches_moe(config: Any) -> bool:
    return config.model_type == "qwen3_5_moe"


def encode_images(model: Any, media: Mapping[str, Tensor]) -> ImageFeatures:
    visual, grids = model.model.visual, media["image_grid_thw"]
    plan = vision_plan(visual, grids, None, None)
    out = visual(media["pixel_values"].to(visual.dtype), grid_thw=grids, **plan)
    return ImageFeatures(features=out.pooler_output)


def place(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> dict[str, Any]:
    return {"inputs_embeds": embed(model, token_ids, image_mask, images)}


def text_model(model: Any) -> Any:
    return model.model.language_model


def lm_head(model: Any) -> torch.nn.Linear:
    return model.lm_head


def recurrent_layers(model: Any) -> Sequence[torch.nn.Module]:
    return [layer.linear_attn for layer in text_model(model).layers if hasattr(layer, "linear_attn")]


FAMILY = Family(
    name="qwen3_5",
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
    recurrent_layers=recurrent_layers,
)

MOE = Family(
    name="qwen3_5_moe",
    frame="thousandths",
    matches=matches_moe,
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
    recurrent_layers=recurrent_layers,
)
