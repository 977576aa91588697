"""Pictures at the resolution the model sees, and gradients to their pixels.

A *canvas* is a picture as uint8 RGB [H, W, 3] at model-input resolution: after the processor's resize, before its
rescaling, normalisation, tiles and patches. The processor resizes a canvas to itself, so that what is changed in it is
changed in the model's input and nowhere else, and any engine that takes pictures can be given one.

    canvases(policy, prompt)                      the prompt's pictures as canvases
    on_canvas(policy, prompt, canvases)           the same prompt, shown these
    pull_back(policy, canvases, d_pixels)         a gradient to `pixel_values` as one to the canvases

Gradients go through the family's own image processor (torchvision's operations are differentiable): mean and standard
deviation, patches and duplicated temporal patches (whose gradients add up) are undone by it alone. Of a family with
tiles the thumbnail of the whole picture is resized from the canvas: its *value* is that of the rounded uint8 path, its
*gradient* that of the same resize without rounding (a straight-through estimator); a canvas pixel gets the sum of what
its tile and the thumbnail say. Tiles and frames that only pad have no canvas pixel and so never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

from fovea.models.adapter import Prompt
from fovea.models.policy import Policy
from fovea.types import Problem, UserError

Canvas = np.ndarray
"""uint8 [H, W, 3]."""

_PIXELS = "pixel_values"


def canvases(policy: Policy, prompt: Prompt) -> tuple[Canvas, ...]:
    """The prompt's pictures at model-input resolution. Empty without pictures.

    Raises UserError for a processor whose resize has no fixed point for a picture.
    """
    pictures = [image.convert("RGB") for image in prompt.problem.images]
    return tuple(_canvas(policy, image, len(pictures), prompt.problem) for image in pictures)


def _canvas(policy: Policy, image: Image.Image, count: int, problem: Problem) -> Canvas:
    processor = policy.processor.image_processor
    size = image.size
    for _ in range(4):
        before, size = size, policy.family.canvas(policy.processor, size, count)
        if size == before:
            break
    else:
        raise UserError(
            f"Problem {problem.id}: the processor of {policy.family.name} resizes a picture of {image.size} anew each "
            "time, so that no picture at its resolution can be changed; use another size, or no intervention."
        )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    resized = TorchvisionBackend.resize(
        processor, pixels, SizeDict(height=size[1], width=size[0]), resample=processor.resample
    )
    return resized.permute(1, 2, 0).contiguous().numpy()


def on_canvas(
    policy: Policy,
    prompt: Prompt,
    pictures: Sequence[Canvas | Tensor],
    *,
    instruction: str | None = None,
    leaf: bool = False,
) -> Prompt:
    """The prompt with other pictures of the same sizes: uint8 canvases, or float tensors [3, H, W] in 0 to 255 on the
    way of an attack. Answer and frame stay those of `prompt`.

    `leaf`: its `pixel_values` take a gradient. `instruction`: that of the prompt, for families whose tokens follow from
    a picture's exact size.
    """
    if not pictures:
        return prompt
    processed = _processed(policy, pictures)
    pixels = processed[_PIXELS].reshape(prompt.media[_PIXELS].shape).detach()
    sizes = tuple(
        (int(p.shape[-1]), int(p.shape[-2])) if isinstance(p, Tensor) else p.shape[1::-1] for p in pictures
    )
    shown: Prompt = prompt
    if "image_sizes" in prompt.media and not _same_sizes(prompt, sizes):
        images = tuple(Image.fromarray(_uint8(picture)) for picture in pictures)
        again = policy.prompt(replace(prompt.problem, images=images), instruction)
        shown = replace(again, problem=prompt.problem)
        pixels = pixels.reshape(shown.media[_PIXELS].shape)
    return replace(shown, media=dict(shown.media) | {_PIXELS: pixels.requires_grad_(leaf)})


def _same_sizes(prompt: Prompt, sizes: Sequence[tuple[int, ...]]) -> bool:
    """LLaVA-OneVision cuts the padding off by the size that the picture had before its resize."""
    return prompt.media["image_sizes"].tolist() == [[h, w] for w, h in sizes]


def pull_back(policy: Policy, pictures: Sequence[Canvas | Tensor], gradient: Tensor) -> list[Tensor]:
    """`gradient`, of `pixel_values` in the shape that `on_canvas` gives them, as one of every picture: float32
    [3, H, W] each, in units of one step of 255."""
    leaves = [_float(picture).requires_grad_() for picture in pictures]
    with torch.enable_grad():
        pixels = _processed(policy, leaves)[_PIXELS]
        found = torch.autograd.grad(pixels, leaves, gradient.reshape(pixels.shape).to(pixels))
    return list(found)


def _processed(policy: Policy, pictures: Sequence[Canvas | Tensor]) -> Any:
    given = [p if isinstance(p, Tensor) else torch.from_numpy(p).permute(2, 0, 1) for p in pictures]
    return policy.processor.image_processor(images=[given], return_tensors="pt")


def _float(picture: Canvas | Tensor) -> Tensor:
    if isinstance(picture, Tensor):
        return picture.detach().clone()
    return torch.from_numpy(picture).permute(2, 0, 1).float().contiguous()


def _uint8(picture: Canvas | Tensor) -> Canvas:
    if isinstance(picture, np.ndarray):
        return picture
    return picture.detach().round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
