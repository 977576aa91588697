"""The size that a picture has once the processor resized it, by the processor's own rules.

One function a kind of family, each `Family.canvas`: (processor, (width, height), pictures of the prompt) -> (width,
height) in pixels. Applied to its own result it changes nothing (`fovea.models.canvas` checks that).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.idefics3.image_processing_idefics3 import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

Size = tuple[int, int]


def square_canvas(processor: Any, size: Size, count: int) -> Size:
    """Families whose pictures all become one size."""
    to = processor.image_processor.size
    return int(to["width"]), int(to["height"])


def grid_canvas(processor: Any, size: Size, count: int) -> Size:
    """Families that resize freely to whole patches (Qwen)."""
    images = processor.image_processor
    height, width = smart_resize(
        size[1],
        size[0],
        factor=images.patch_size * images.merge_size,
        min_pixels=images.size["shortest_edge"],
        max_pixels=images.size["longest_edge"],
    )
    return int(width), int(height)


def tile_canvas(processor: Any, size: Size, count: int) -> Size:
    """InternVL: as many square tiles as fit the aspect ratio."""
    images = processor.image_processor
    if not images.crop_to_patches:
        return square_canvas(processor, size, count)
    side = (int(images.size["height"]), int(images.size["width"]))
    columns, rows = get_optimal_tiled_canvas((size[1], size[0]), side, images.min_patches, images.max_patches)
    return columns * side[1], rows * side[0]


def edge_canvas(processor: Any, size: Size, count: int) -> Size:
    """Idefics3 and SmolVLM: the longest edge to its length, then both up to whole tiles."""
    images = processor.image_processor
    side = int(images.max_image_size["longest_edge"])
    if not images.do_image_splitting:
        return side, side
    picture = torch.empty(3, size[1], size[0], device="meta")
    height, width = get_resize_output_image_size(picture, images.size["longest_edge"])
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / aspect) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * aspect) / side) * side
    return width, height


def padded_canvas(processor: Any, size: Size, count: int) -> Size:
    """LLaVA-OneVision: a single picture fills the best of its resolutions in one direction and is padded in the other;
    of several each is padded to a square, which becomes one tile."""
    images = processor.image_processor
    if count > 1:
        side, longest = square_canvas(processor, size, count)[0], max(size)
        return max(1, round(size[0] * side / longest)), max(1, round(size[1] * side / longest))
    best = select_best_resolution((size[1], size[0]), images.image_grid_pinpoints)
    picture = torch.empty(3, size[1], size[0], device="meta")
    height, width = get_patch_output_size(picture, best, input_data_format=ChannelDimension.FIRST)
    return int(width), int(height)
