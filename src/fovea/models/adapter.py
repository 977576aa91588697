"""What a model family is to Fovea: a `Family`, a frozen value of functions, one file a family.

`FAMILIES` in `fovea.models` is the one dict of them. What families share lives here: `Prompt`, the call of
the processor, M-RoPE positions (the one place where they are made) and box frames. Nothing is patched:
everything goes through public methods of the Hugging Face classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fovea.boxes import convert, convert_answer, fill
from fovea.models.attention import segments_of
from fovea.types import BoxFrame, Problem, UserError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompt:
    """A problem as the model reads it. Equal only to itself: identical objects are encoded once. Tensors on
    CPU."""

    problem: Problem
    """The problem with its answer, frame and target in the frame that the family speaks."""
    token_ids: Tensor
    """[P] long, image placeholders expanded."""
    positions: Tensor
    """[3, P] long: temporal, height and width rows of M-RoPE."""
    next_position: int
    """Position (all three rows) of the first completion token."""
    pixel_values: Tensor | None
    """[patches, patch dim] float, all pictures in order; None without pictures."""
    grids: Tensor
    """[pictures, 3] long: time, height and width in patches."""
    image_mask: Tensor
    """[P] bool: where a picture's features go."""
    resized: tuple[tuple[int, int], ...] = ()
    """(width, height) of each picture after the processor's resize, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The processor's output for one prompt."""

    token_ids: Tensor
    """[P] long."""
    token_types: Tensor
    """[P] long: 0 text, 1 image."""
    pixel_values: Tensor | None
    """[patches, patch dim] float."""
    grids: Tensor
    """[pictures, 3] long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFeatures:
    """What the vision tower says about packed pictures."""

    features: Tensor
    """[image tokens, width], one per merged patch."""
    deepstack: tuple[Tensor, ...] = ()
    """Per early text layer [image tokens, width], added after it (Qwen3-VL; empty elsewhere)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One model family. Every family file defines these functions under these names, in this order."""

    name: str
    """`model_type` of the Hugging Face config."""
    frame: BoxFrame
    """The frame in which the family writes boxes."""
    matches: Callable[[Any], bool]
    """(config) -> does this family serve it?"""
    render: Callable[[Any, Sequence[Image.Image], str], Rendered]
    """(processor, pictures, text) -> tokens and pixels, through the processor's own chat template."""
    media_ids: Callable[[Any], tuple[int, ...]]
    """(config) -> token ids that stand for pictures and are never sampled."""
    positions: Callable[[Any, Rendered], Tensor]
    """(model, rendered) -> [3, P] long."""
    resized: Callable[[Any, Tensor], tuple[int, int]]
    """(config, one picture's grid [3]) -> (width, height) in pixels after the processor's resize."""
    encode_images: Callable[[Any, Tensor, Tensor], ImageFeatures]
    """(model, pixel_values [patches, dim], grids [pictures, 3]) -> features; every picture once."""
    place: Callable[[Any, Tensor, Tensor, ImageFeatures | None], dict[str, Any]]
    """(model, token_ids [1, N], image_mask [1, N], features) -> keywords of the text model's forward."""
    text_model: Callable[[Any], Any]
    """(model) -> the decoder without its head."""
    lm_head: Callable[[Any], torch.nn.Linear]
    """(model) -> hidden states to logits."""
    freeze: Mapping[str, tuple[str, ...]]
    """Part ("vision", "text") -> prefixes of the parameter names that belong to it."""


def render_chat(processor: Any, images: Sequence[Image.Image], text: str) -> Rendered:
    """One user turn, pictures before the text, through the processor's chat template; placed once, by it.

    Raises UserError when the text itself holds a media token: it would be read as one more picture.
    """
    for name in ("image_token", "video_token", "vision_start_token", "vision_end_token"):
        token = getattr(processor, name, None) or f"<|{name.removesuffix('_token')}|>"
        if token in text:
            raise UserError(
                f"The question {text[:60]!r} contains the media token {token!r}; remove it, pictures are "
                "added from the problem's `images`."
            )
    content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    content.append({"type": "text", "text": text})
    chat = [{"role": "user", "content": content}]
    rendered = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    pictures = [image.convert("RGB") for image in images] or None
    out = processor(text=[rendered], images=pictures, return_tensors="pt")
    token_ids = out["input_ids"][0]
    if images and "mm_token_type_ids" not in out:
        raise UserError(
            "The model's processor gives no mm_token_type_ids, without which M-RoPE is wrong; update it."
        )
    return Rendered(
        token_ids=token_ids,
        token_types=out["mm_token_type_ids"][0].long() if images else torch.zeros_like(token_ids),
        pixel_values=out["pixel_values"] if images else None,
        grids=out["image_grid_thw"].long() if images else torch.zeros(0, 3, dtype=torch.long),
    )


def mrope_positions(inner: Any, rendered: Rendered) -> Tensor:
    """[3, P] long M-RoPE positions by the model's own rule (`get_rope_index`, which keeps no state)."""
    if len(rendered.grids) == 0:
        return torch.arange(len(rendered.token_ids)).expand(3, -1)
    positions, _ = inner.get_rope_index(
        rendered.token_ids[None], mm_token_type_ids=rendered.token_types[None], image_grid_thw=rendered.grids
    )
    return positions[:, 0]


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


def embed(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> Tensor:
    """Token embeddings with picture features put in their places. token_ids [1, N] -> [1, N, width]."""
    embeds = model.get_input_embeddings()(token_ids)
    if images is None:
        return embeds
    return embeds.masked_scatter(image_mask[..., None], images.features.to(embeds.dtype))


def speak(problem: Problem, frame: BoxFrame, resized: Sequence[tuple[int, int]]) -> Problem:
    """The problem in the frame of the model: boxes in the answer converted, `{box:…}` places in the target
    filled.

    `resized`: (width, height) of each picture after the processor's resize. Boxes belong to the picture
    `meta["box_image"]`, by default the first. Raises UserError for a box without a picture.
    """
    if problem.kind not in ("box", "objects"):
        return replace(problem, frame=frame)
    if not problem.images:
        raise UserError(
            f"Problem {problem.id} asks for a box but has no picture; add one or change its kind."
        )
    which = int(problem.meta.get("box_image", 0))
    size = problem.images[which].size

    def to_frame(box: Sequence[float]) -> tuple[float, ...]:
        return convert(box, problem.frame, frame, size, resized[which])

    return replace(
        problem,
        answer=convert_answer(problem.answer, problem.kind, to_frame),
        frame=frame,
        target=None if problem.target is None else fill(problem.target, to_frame, frame),
    )
