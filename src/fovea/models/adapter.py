"""What a model family is to Fovea: a `Family`, a frozen value of functions, one file a family.

`FAMILIES` in `fovea.models` is the one dict of them. What families share lives here: `Prompt`, its pictures'
tensors, the call of the language model on packed tokens, and box frames; the chat template is in `rendering.py`,
what only the Qwen towers share in `qwen_vision.py`. Nothing is patched: everything goes through public methods of
the Hugging Face classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fovea.boxes import convert, convert_answer, fill, unmarked
from fovea.models.attention import Plan
from fovea.models.canvas_sizes import square_canvas
from fovea.models.resolution import one_size
from fovea.types import BoxFrame, Problem, UserError, picture_sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """What the processor made of a prompt's pictures, in their order. All empty without pictures."""

    media: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors, each concatenable along dim 0 over pictures, patches or tiles. The pixels are "pixel_values"."""
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """For every key of `media`, how many of its rows belong to each picture."""
    tokens: tuple[int, ...] = ()
    """Image tokens of each picture: rows of `ImageFeatures.features`."""
    resized: tuple[tuple[int, int], ...] = ()
    """(width, height) of each picture after the processor's resize, in pixels (of the picture itself where a
    family cuts it into tiles)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompt:
    """A problem as the model reads it. Equal only to itself: identical objects are encoded once. Tensors on
    CPU."""

    problem: Problem
    """The problem with its answer, frame and target in the frame that the family speaks."""
    token_ids: Tensor
    """[P] long, image placeholders expanded."""
    positions: Tensor
    """[R, P] long: temporal, height and width rows of M-RoPE (R = 3), or the place (R = 1)."""
    next_position: int
    """Position (all rows) of the first completion token."""
    image_mask: Tensor
    """[P] bool: where the pictures' features go."""
    media: Mapping[str, Tensor] = field(default_factory=dict)
    """As `Pictures.media`; empty without pictures."""
    picture_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """As `Pictures.rows`."""
    picture_tokens: tuple[int, ...] = ()
    """As `Pictures.tokens`."""
    resized: tuple[tuple[int, int], ...] = ()
    """As `Pictures.resized`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The processor's output for one prompt."""

    token_ids: Tensor
    """[P] long."""
    image_mask: Tensor
    """[P] bool: image tokens that the processor placed."""
    pictures: Pictures
    """The pictures' tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFeatures:
    """What the vision tower and its projector say about pictures, ready for the language model."""

    features: Tensor
    """[image tokens, width], all pictures in order."""
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
    """(model, rendered) -> [R, P] long."""
    encode_images: Callable[[Any, Mapping[str, Tensor]], ImageFeatures]
    """(model, media of any number of pictures) -> features; every picture by itself, once."""
    place: Callable[[Any, Tensor, Tensor, ImageFeatures | None], dict[str, Any]]
    """(model, token_ids [1, N], image_mask [1, N], features) -> keywords of the text model's forward."""
    text_model: Callable[[Any], Any]
    """(model) -> the decoder without its head."""
    lm_head: Callable[[Any], torch.nn.Linear]
    """(model) -> hidden states to logits."""
    freeze: Mapping[str, tuple[str, ...]]
    """Part ("vision", "projector", "text") -> prefixes of the parameter names that belong to it."""
    cap: Callable[[Any, Any, int | None, int | None], None] = one_size
    """(config, processor, min_pixels, max_pixels): puts caps on the size of pictures into both, in place."""
    canvas: Callable[[Any, tuple[int, int], int], tuple[int, int]] = square_canvas
    """(processor, (width, height), pictures of the prompt) -> (width, height) of a picture that the processor resized,
    before tiles and patches (`canvas.py`)."""
    picture_blocks: bool = False
    """The tokens of a picture see all of each other in the language model (Gemma 3)."""
    recurrent_layers: Callable[[Any], Sequence[torch.nn.Module]] | None = None
    """(model) -> its recurrent layers, in a family that has such (`recurrent.py`)."""

    @property
    def recurrent(self) -> bool:
        """The language model has layers whose rows must be laid out side by side."""
        return self.recurrent_layers is not None


# ---------------------------------------------------------------- pictures


def split_media(prompt: Prompt) -> list[dict[str, Tensor]]:
    """The media of each picture of a prompt by itself: views, what `encode_images` takes."""
    cut = {key: prompt.media[key].split(list(rows)) for key, rows in prompt.picture_rows.items()}
    return [{key: cut[key][i] for key in cut} for i in range(len(prompt.picture_tokens))]


def join_media(parts: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Media of several pictures or prompts as one, on `device`. All have the same keys; empty ones are left out."""
    filled = [part for part in parts if part]
    return {
        key: torch.cat([part[key] for part in filled]).to(device) for key in (filled[0] if filled else ())
    }


def split_features(images: ImageFeatures, tokens: Sequence[int]) -> list[ImageFeatures]:
    """The features of each picture, `tokens` long: views."""
    sizes = list(tokens)
    deep = [layer.split(sizes) for layer in images.deepstack]
    return [
        ImageFeatures(features=part, deepstack=tuple(layer[i] for layer in deep))
        for i, part in enumerate(images.features.split(sizes))
    ]


def join_features(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    """The inverse of `split_features`; at least one part."""
    return ImageFeatures(
        features=torch.cat([part.features for part in parts]),
        deepstack=tuple(
            torch.cat(layers) for layers in zip(*(part.deepstack for part in parts), strict=True)
        ),
    )


def embed(model: Any, token_ids: Tensor, image_mask: Tensor, images: ImageFeatures | None) -> Tensor:
    """Token embeddings with picture features put in their places. token_ids [1, N] -> [1, N, width]."""
    embeds = model.get_input_embeddings()(token_ids)
    if images is None:
        return embeds
    return embeds.masked_scatter(image_mask[..., None], images.features.to(embeds.dtype))


# ---------------------------------------------------------------- the language model


def run_text(family: Family, model: Any, inputs: Mapping[str, Any], positions: Tensor, plan: Plan) -> Tensor:
    """Hidden states [N, width] of packed tokens that attend as `plan` says: every call of the language model.

    `inputs`: what `Family.place` gives. `positions`: [R, N]; M-RoPE models take [3, 1, N], others [1, N].
    """
    where = positions[:, None] if len(positions) > 1 else positions
    out = family.text_model(model)(
        **inputs,
        position_ids=where,
        # a mask of four axes is taken as finished; without one transformers builds [1, 1, N, N], which nobody reads
        attention_mask=torch.zeros(1, 1, 1, 1, device=where.device),
        use_cache=False,
        shared_prefix=plan,
    )
    return out.last_hidden_state[0]


def plain_positions(model: Any, rendered: Rendered) -> Tensor:
    """[1, P] long: 0, 1, 2, ..., for families whose language model has ordinary one-dimensional positions."""
    return torch.arange(len(rendered.token_ids))[None]


# ---------------------------------------------------------------- boxes


def speak(problem: Problem, frame: BoxFrame, resized: Sequence[tuple[int, int]]) -> Problem:
    """The problem in the frame of the model: boxes in the answer converted, `{box:…}` places in the target
    filled.

    `resized`: (width, height) of each picture after the processor's resize. Boxes belong to the picture
    `meta["box_image"]`, by default the first. Raises UserError for a box without a picture.
    """
    if problem.kind not in ("box", "objects"):
        target = None if problem.target is None else unmarked(problem.target)
        return replace(problem, frame=frame, target=target)
    if not problem.images:
        raise UserError(
            f"Problem {problem.id} asks for a box but has no picture; add one or change its kind."
        )
    which = int(problem.meta.get("box_image", 0))
    size = picture_sizes(problem)[which]

    def to_frame(box: Sequence[float]) -> tuple[float, ...]:
        return convert(box, problem.frame, frame, size, resized[which])

    return replace(
        problem,
        answer=convert_answer(problem.answer, problem.kind, to_frame),
        frame=frame,
        target=None if problem.target is None else fill(problem.target, to_frame, frame),
    )
