"""LLaVA-OneVision (arXiv:2408.03326): a single picture becomes any-resolution tiles whose rows end in
`image_newline`; of several, each is one square. Boxes in parts of width and height.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fovea.models.adapter import Family, ImageFeatures, Pictures, Rendered, embed, plain_positions
from fovea.models.canvas_sizes import padded_canvas
from fovea.models.rendering import render_chat
from fovea.models.resolution import cap_canvases


def matches(config: Any) -> bool:
    return config.model_type == "llava_onevision"


def render(processor: Any, images: Sequence[Image.Image], text: str) -> Rendered:
    return render_chat(processor, images, text, unpack)


def unpack(processor: Any, out: Any, images: Sequence[Image.Image]) -> Pictures:
    """pixel_values [tiles, 3, side, side], image_sizes [pictures, 2] (height, width), tiles [pictures]."""
    pixels, count = out["pixel_values"], len(images)
    # alone a picture has all image tokens; several have as many each, for all are one square
    tokens = int((out["input_ids"][0] == processor.image_token_id).sum()) // count
    return Pictures(
        media={
            "pixel_values": pixels.flatten(0, 1),
            "image_sizes": torch.as_tensor(out["image_sizes"]).long(),
            "tiles": torch.full((count,), pixels.shape[1]),
        },
        rows={
            "pixel_values": (pixels.shape[1],) * count,
            "image_sizes": (1,) * count,
            "tiles": (1,) * count,
        },
        tokens=(tokens,) * count,
        resized=tuple(image.size for image in images),
    )


def media_ids(config: Any) -> tuple[int, ...]:
    return (config.image_token_id, config.video_token_id)


def encode_images(model: Any, media: Mapping[str, Tensor]) -> ImageFeatures:
    """As `get_image_features` of the model, which tells squares from tiles by the size of a whole prompt and so
    cannot encode a picture of several by itself."""
    inner, config = model.model, model.config
    out = inner.vision_tower(media["pixel_values"].to(inner.dtype), output_hidden_states=True)
    layers = config.vision_feature_layer
    chosen = [out.hidden_states[i] for i in ([layers] if isinstance(layers, int) else layers)]
    features = torch.cat(chosen, dim=-1)
    if config.vision_feature_select_strategy == "default":
        features = features[:, 1:]
    by_picture = inner.multi_modal_projector(features).split(media["tiles"].tolist())
    packed, _ = inner.pack_image_features(
        by_picture,
        media["image_sizes"].tolist(),
        image_newline=inner.image_newline,
        vision_aspect_ratio=config.vision_aspect_ratio,
    )
    return ImageFeatures(features=torch.cat(packed))


def place(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> dict[str, Any]:
    return {"inputs_embeds": embed(model, token_ids, image_mask, images)}


def text_model(model: Any) -> Any:
    return model.model.language_model


def lm_head(model: Any) -> torch.nn.Linear:
    return model.lm_head


FAMILY = Family(
    name="llava_onevision",
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
        "vision": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.", "model.image_newline"),
        "text": ("model.language_model.", "lm_head."),
    },
    cap=cap_canvases,
    canvas=padded_canvas,
)
