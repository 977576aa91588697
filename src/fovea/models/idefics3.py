"""Idefics3 (arXiv:2408.12637) and SmolVLM (arXiv:2504.05299): square tiles with row and column tags, then the whole
picture. Two names of one family: the classes differ in nothing that is used here.

No frame for boxes is documented for either; parts of width and height are the choice here, as in the later
fine-tunes of SmolVLM for screens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fovea.models.adapter import Family, ImageFeatures, Pictures, Rendered, embed, plain_positions
from fovea.models.canvas_sizes import edge_canvas
from fovea.models.rendering import render_chat, runs
from fovea.models.resolution import cap_edge


def matches(config: Any) -> bool:
    return config.model_type == "idefics3"


def render(processor: Any, images: Sequence[Image.Image], text: str) -> Rendered:
    return render_chat(processor, images, text, unpack)


def unpack(processor: Any, out: Any, images: Sequence[Image.Image]) -> Pictures:
    """pixel_values [tiles, 3, side, side] and pixel_attention_mask [tiles, side, side]. Every tile is one run of image
    tokens behind a tag; the last tile of a picture is the whole picture, whose tag tells pictures apart."""
    ids = out["input_ids"][0]
    whole = processor.tokenizer.convert_tokens_to_ids("<global-img>")
    places = runs(ids == processor.image_token_id)
    ends = [i + 1 for i, (start, _) in enumerate(places) if int(ids[start - 1]) == whole]
    tiles = tuple(end - start for start, end in itertools.pairwise([0, *ends]))
    media = {name: out[name][0] for name in ("pixel_values", "pixel_attention_mask") if name in out}
    return Pictures(
        media=media,
        rows=dict.fromkeys(media, tiles),
        tokens=tuple(n * processor.image_seq_len for n in tiles),
        resized=tuple(image.size for image in images),
    )


def media_ids(config: Any) -> tuple[int, ...]:
    return (config.image_token_id,)


def encode_images(model: Any, media: Mapping[str, Tensor]) -> ImageFeatures:
    """As `get_image_features` of the model, which drops a tile whose values are all 0 after its tokens are placed."""
    inner, pixels = model.model, media["pixel_values"]
    patches = None
    if "pixel_attention_mask" in media:
        size = model.config.vision_config.patch_size
        seen = media["pixel_attention_mask"].unfold(1, size, size).unfold(2, size, size)
        patches = seen.sum((-1, -2)) > 0
    out = inner.vision_model(pixel_values=pixels.to(inner.dtype), patch_attention_mask=patches)
    return ImageFeatures(features=inner.connector(out.last_hidden_state).flatten(0, 1))


def place(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> dict[str, Any]:
    return {"inputs_embeds": embed(model, token_ids, image_mask, images)}


def text_model(model: Any) -> Any:
    return model.model.text_model


def lm_head(model: Any) -> torch.nn.Linear:
    return model.lm_head


FAMILY = Family(
    name="idefics3",
    frame="unit",
    matches=matches,
    render=render,
    media_ids=media_ids,
    positions=plain_positions,
    encode_images=encode_images,
    place=place,
    text_model=text_model,
    lm_head=lm_head,
    freeze={
        "vision": ("model.vision_model.",),
        "projector": ("model.connector.",),
        "text": ("model.text_model.", "lm_head."),
    },
    cap=cap_edge,
    canvas=edge_canvas,
)

SMOLVLM = replace(FAMILY, name="smolvlm", matches=lambda config: config.model_type == "smolvlm")
