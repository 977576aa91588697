"""Gemma 3 (arXiv:2503.19786): square pictures through SigLIP, picture tokens that see each other, and layers with a
sliding window between global ones.

The two masks that this takes are made of tiles (`tiles.py`); the two rotary frequencies are transformers' business.
Pan-and-scan (crops of a long picture beside it) stays off: transformers' processor does it only when a call asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fovea.models.adapter import (
    Family,
    ImageFeatures,
    Pictures,
    Rendered,
    embed,
    plain_positions,
)
from fovea.models.rendering import render_chat


def matches(config: Any) -> bool:
    return config.model_type == "gemma3"


def render(processor: Any, images: Sequence[Image.Image], text: str) -> Rendered:
    # the processor's own `image_token_id` is the token that begins a picture, not the one in whose place features go
    return render_chat(processor, images, text, unpack, image=processor.tokenizer.image_token_id)


def unpack(processor: Any, out: Any, images: Sequence[Image.Image]) -> Pictures:
    """pixel_values [pictures, 3, side, side]."""
    pixels = out["pixel_values"]
    assert len(pixels) == len(images), "no crops"
    height, width = (int(side) for side in pixels.shape[-2:])
    return Pictures(
        media={"pixel_values": pixels},
        rows={"pixel_values": (1,) * len(images)},
        tokens=(processor.image_seq_length,) * len(images),
        resized=((width, height),) * len(images),
    )


def media_ids(config: Any) -> tuple[int, ...]:
    return (config.image_token_id, config.boi_token_id, config.eoi_token_id)


def encode_images(model: Any, media: Mapping[str, Tensor]) -> ImageFeatures:
    pixels = media["pixel_values"].to(next(model.model.vision_tower.parameters()).dtype)
    out = model.model.get_image_features(pixels, return_dict=True)
    return ImageFeatures(features=out.pooler_output.flatten(0, 1))


def place(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> dict[str, Any]:
    # published configs may put the picture's token behind the end of the embedding; its row is overwritten anyway
    return {"inputs_embeds": embed(model, token_ids.masked_fill(image_mask, 0), image_mask, images)}


def text_model(model: Any) -> Any:
    return model.model.language_model


def lm_head(model: Any) -> torch.nn.Linear:
    return model.lm_head


FAMILY = Family(
    name="gemma3",
    frame="thousandths",  # not documented by its publisher; the habit of its larger sibling Gemini
    matches=matches,
    render=render,
    media_ids=media_ids,
    positions=plain_positions,
    encode_images=encode_images,
    place=place,
    text_model=text_model,
    lm_head=lm_head,
    freeze={
        "vision": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.",),
        "text": ("model.language_model.", "lm_head."),
    },
    picture_blocks=True,
)
