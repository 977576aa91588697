"""What a model family is to Fovea: a `Family`, a frozen value of functions, one file a family.

`FAMILIES` in `fovea.models` is the one dict of them. What families share lives here: `Prompt`, the call of
the processor, M-RoPE positions (the one place where they are made) and box frames. Nothing is patched:
everything goes through public methods of the Hugging Face classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fovea.boxes import convert, convert_answer, fill, unmarked
from fovea.models.attention import segments_of
from fovea.types import BoxFrame, Problem, UserError, picture_sizes


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


# Stands for the user's text while the template and the processor do their work; no text holds private-use
# characters in this order, and if one does nothing happens: the user's text is put in afterwards.
STAND_IN = "\ue0f0\ue0f1"


def render_chat(processor: Any, images: Sequence[Image.Image], text: str) -> Rendered:
    """One user turn, pictures before the text, through the processor's chat template; placed once, by it.

    Special tokens in `text` ("<|im_end|>", "<|image_pad|>") become ordinary text: the template and the processor
    never see the text, only `STAND_IN`, in whose place its tokens are put. For a text without special tokens the
    result is what the processor itself gives. Raises UserError where the tokenizer cannot do that.
    """
    content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    content.append({"type": "text", "text": STAND_IN})
    chat = [{"role": "user", "content": content}]
    rendered = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    pictures = [image.convert("RGB") for image in images]
    try:
        out = processor(text=[rendered], images=pictures or None, return_tensors="pt", verbose=False)
    except ValueError as error:  # sides that differ more than the family's resize can handle
        raise UserError(
            f"the model's processor refuses the pictures ({error}); cut or leave them out."
        ) from error
    if pictures and "mm_token_type_ids" not in out:
        raise UserError(
            "The model's processor gives no mm_token_type_ids, without which M-RoPE is wrong; update it."
        )
    before, middle, after = _put_in(processor.tokenizer, out["input_ids"][0].tolist(), text)
    token_ids = torch.tensor([*before, *middle, *after])
    token_types = torch.zeros_like(token_ids)
    if pictures:
        given = out["mm_token_type_ids"][0].long()
        token_types[: len(before)] = given[: len(before)]
        token_types[len(before) + len(middle) :] = given[len(given) - len(after) :]
    return Rendered(
        token_ids=token_ids,
        token_types=token_types,
        pixel_values=out["pixel_values"] if pictures else None,
        grids=out["image_grid_thw"].long() if pictures else torch.zeros(0, 3, dtype=torch.long),
    )


def _put_in(tokenizer: Any, ids: list[int], text: str) -> tuple[list[int], list[int], list[int]]:
    """The tokens before, around and after the user's text, which takes the place of `STAND_IN`.

    A tokenizer cuts at special tokens before anything else, so the stretch between the two special tokens around
    the text (in Qwen's template "user\\n" + text, or the text alone behind a picture) is tokenized by itself, and
    can be tokenized again with another text.
    """
    special = special_ids(tokenizer)
    edges = [-1, *(i for i, token in enumerate(ids) if token in special), len(ids)]
    for left, right in itertools.pairwise(edges):
        if right == left + 1:  # between two tokens of a picture
            continue
        stretch = tokenizer.decode(
            ids[left + 1 : right], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if stretch.count(STAND_IN) == 1:
            middle = tokenize_plain(tokenizer, stretch.replace(STAND_IN, text))
            return ids[: left + 1], middle, ids[right:]
    raise UserError(
        "The model's tokenizer or chat template changes private-use characters, so the question cannot be kept "
        "apart from the template; use a byte-level tokenizer."
    )


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokenizer's special tokens: turns, pictures, end of text."""
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def tokenize_plain(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text in which special tokens are nothing special: decoded they give the same characters.

    Raises UserError for text that is not Unicode (half a surrogate pair), and where the tokenizer has no such mode.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"The text {text[:60]!a} holds half of a surrogate pair at character {error.start}, which is not "
            "Unicode; remove it."
        ) from None
    tokens: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
        "input_ids"
    ]
    merged = special_ids(tokenizer).intersection(tokens)
    if merged:
        name = tokenizer.convert_ids_to_tokens(min(merged))
        raise UserError(
            f"The text {text[:60]!r} contains {name!r}, which this model's tokenizer cannot read as plain text; "
            "remove it."
        )
    return tokens


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
