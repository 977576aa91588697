"""InternVL in its Hugging Face form (arXiv:2504.10479): square tiles and a thumbnail, boxes in thousandths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fovea.models.adapter import Family, ImageFeatures, Pictures, Rendered, embed, plain_positions
from fovea.models.canvas_sizes import tile_canvas
from fovea.models.rendering import render_chat, runs
from fovea.models.resolution import cap_tiles


def matches(config: Any) -> bool:
    return config.model_type == "internvl"


def render(processor: Any, images: Sequence[Image.Image], text: str) -> Rendered:
    return render_chat(processor, images, text, unpack)


def unpack(processor: Any, out: Any, images: Sequence[Image.Image]) -> Pictures:
    """pixel_values [tiles, 3, side, side]. A picture's tiles are one run of image tokens between its tags."""
    tokens = tuple(stop - start for start, stop in runs(out["input_ids"][0] == processor.image_token_id))
    return Pictures(
        media={"pixel_values": out["pixel_values"]},
        rows={"pixel_values": tuple(n // processor.image_seq_length for n in tokens)},
        tokens=tokens,
        resized=tuple(image.size for image in images),
    )


def media_ids(config: Any) -> tuple[int, ...]:
    return (config.image_token_id,)


def encode_images(model: Any, media: Mapping[str, Tensor]) -> ImageFeatures:
    out = model.model.get_image_features(pixel_values=media["pixel_values"])
    return ImageFeatures(features=out.pooler_output.flatten(0, 1))


def place(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> dict[str, Any]:
    return {"inputs_embeds": embed(model, token_ids, image_mask, images)}


def text_model(model: Any) -> Any:
    return model.model.language_model


def lm_head(model: Any) -> torch.nn.Linear:
    return model.lm_head


FAMILY = Family(
    name="internvl",
    frame="thousandths",
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
    cap=cap_tiles,
    canvas=tile_canvas,
)
