"""From a question and its pictures to tokens: the processor's chat template, with the user's text kept apart.

Special tokens in the user's text never become special: the template and the processor see `STAND_IN`, in whose
place the text's tokens are put. Not here: what a family makes of the pictures (its own file).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from PIL import Image
from torch import Tensor

from fovea.models.adapter import Pictures, Rendered
from fovea.types import UserError

# Stands for the user's text while the template and the processor do their work; no text holds private-use
# characters in this order, and if one does nothing happens: the user's text is put in afterwards.
STAND_IN = "\ue0f0\ue0f1"

Unpack = Callable[[Any, Any, Sequence[Image.Image]], Pictures]
"""(processor, its output for one prompt, pictures) -> the pictures' tensors, row by row."""


def render_chat(
    processor: Any, images: Sequence[Image.Image], text: str, unpack: Unpack, *, image: int | None = None
) -> Rendered:
    """One user turn, pictures before the text, through the processor's chat template; placed once, by it.

    Special tokens in `text` ("<|im_end|>", "<|image_pad|>") become ordinary text: the template and the processor
    never see the text, only `STAND_IN`, in whose place its tokens are put. For a text without special tokens the
    result is what the processor itself gives. The image mask marks the family's image token where the processor
    put it (`image`, by default the processor's own), never in the text. Raises UserError where the tokenizer cannot
    do that.
    """
    content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    content.append({"type": "text", "text": STAND_IN})
    chat = [{"role": "user", "content": content}]
    rendered = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    pictures = [image.convert("RGB") for image in images]
    try:
        # a list a prompt: LLaVA-OneVision would take a flat list for several prompts and tile every picture
        out = processor(
            text=[rendered], images=[pictures] if pictures else None, return_tensors="pt", verbose=False
        )
    except ValueError as error:  # sides that differ more than the family's resize can handle
        raise UserError(
            f"the model's processor refuses the pictures ({error}); cut or leave them out."
        ) from error
    before, middle, after = _put_in(processor.tokenizer, out["input_ids"][0].tolist(), text)
    image = processor.image_token_id if image is None else image
    if image in middle:  # a tokenizer in which the image token is not marked as special
        raise UserError(
            f"The text {text[:60]!r} holds the model's image token, which its tokenizer cannot read as plain text; "
            "remove it."
        )
    token_ids = torch.tensor([*before, *middle, *after])
    unpacked = unpack(processor, out, pictures) if pictures else Pictures()
    mask = token_ids == image
    assert int(mask.sum()) == sum(unpacked.tokens), "as many places as features"
    return Rendered(token_ids=token_ids, image_mask=mask, pictures=unpacked)


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
        if stretch.count(STAND_IN) == 1 and tokenize_plain(tokenizer, stretch) == ids[left + 1 : right]:
            middle = tokenize_plain(tokenizer, stretch.replace(STAND_IN, text))
            return ids[: left + 1], middle, ids[right:]
    raise UserError(
        "The model's tokenizer or chat template changes private-use characters or cuts text by what stands before "
        "it, so the question cannot be kept apart from the template; use a byte-level tokenizer."
    )


def asked(question: str, instruction: str | None) -> str:
    """The text of a prompt: the question, the instruction on a line of its own; or around the question, where the
    instruction says `{question}`.

    One replacement and no formatting: braces in either text are text.

    Example: asked("Where?", "Think. {question}") == "Think. Where?"
    """
    if instruction is None:
        return question
    before, place, after = instruction.partition("{question}")
    return f"{before}{question}{after}" if place else f"{question}\n{instruction}"


def runs(mask: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of every run of True in mask [P], in order.

    Example: runs(tensor([True, False, True, True])) == [(0, 1), (2, 4)]
    """
    edges = torch.nn.functional.pad(mask.long(), (1, 1)).diff()
    starts, stops = (torch.nonzero(edges == sign)[:, 0].tolist() for sign in (1, -1))
    return list(zip(starts, stops, strict=True))


def reply_end(processor: Any) -> int | None:
    """The token with which the chat template ends a reply: the first special one behind it; None if there is none."""
    said = [{"type": "text", "text": STAND_IN}]
    chat = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    try:
        whole = processor.apply_chat_template(chat, tokenize=False)
    except TemplateError:  # a template for questions only
        return None
    behind = processor.tokenizer(whole.rpartition(STAND_IN)[2], add_special_tokens=False)["input_ids"]
    special = special_ids(processor.tokenizer)
    return next((token for token in behind if token in special), None)


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
