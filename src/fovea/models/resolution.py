"""How large pictures may become: `min_pixels` and `max_pixels` of a recipe, put into a processor's public attributes.

One function a kind of family, each `Family.cap`: (config, processor, min_pixels, max_pixels) -> None, in place, so that
saving the model saves the caps. None leaves the processor's own value.
"""

from __future__ import annotations

import math
from typing import Any

from fovea.types import UserError


def one_size(config: Any, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Families whose pictures all become one size: any cap is refused."""
    if min_pixels is not None or max_pixels is not None:
        raise UserError(
            f"min_pixels and max_pixels do not apply to the family {config.model_type!r}, whose pictures all become "
            "one size; leave them out."
        )


def cap_grid(config: Any, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Families that resize freely (Qwen): both caps, in pixels of the resized picture."""
    images = processor.image_processor
    size = dict(images.size)
    caps = {"shortest_edge": min_pixels, "longest_edge": max_pixels}  # their names; both are areas
    size |= {edge: pixels for edge, pixels in caps.items() if pixels is not None}
    least = (images.patch_size * images.merge_size) ** 2
    if size["longest_edge"] < least:
        raise UserError(
            f"max_pixels={max_pixels} is less than one image token of this model; give {least} or more."
        )
    if size["shortest_edge"] > size["longest_edge"]:
        raise UserError(
            f"min_pixels is {size['shortest_edge']} and max_pixels {size['longest_edge']} (the processor's own where "
            "the recipe has none); make min_pixels the smaller one."
        )
    images.size = type(images.size)(**size)


def cap_tiles(config: Any, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """InternVL: the number of tiles."""
    images = processor.image_processor
    found = tile_budget(config, images.size["height"], min_pixels, max_pixels)
    if found is not None:
        images.max_patches = found
        images.min_patches = min(images.min_patches, found)


def cap_edge(config: Any, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Idefics3 and SmolVLM: the longest edge, a whole number of tiles."""
    images = processor.image_processor
    side = images.max_image_size["longest_edge"]
    found = tile_budget(config, side, min_pixels, max_pixels)
    if found is not None:
        images.size = type(images.size)(longest_edge=math.isqrt(found) * side)


def cap_canvases(config: Any, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """LLaVA-OneVision: the canvases that a single picture may take. The model reads them from its own config, which
    therefore follows the processor."""
    images = processor.image_processor
    found = tile_budget(config, config.vision_config.image_size, min_pixels, max_pixels)
    if found is not None:
        largest = found * config.vision_config.image_size**2
        images.image_grid_pinpoints = [
            [height, width] for height, width in images.image_grid_pinpoints if height * width <= largest
        ]
        if not images.image_grid_pinpoints:
            raise UserError(f"max_pixels={max_pixels} leaves no canvas of this model; give a larger value.")
    config.image_grid_pinpoints = [list(canvas) for canvas in images.image_grid_pinpoints]


def tile_budget(config: Any, side: int, min_pixels: int | None, max_pixels: int | None) -> int | None:
    """Tiles of `side` x `side` that `max_pixels` pays for; None without a cap. Raises UserError for less than one, and
    for `min_pixels`, which has no meaning where pictures are cut into tiles."""
    if min_pixels is not None:
        raise UserError(
            f"min_pixels does not apply to the family {config.model_type!r}, which cuts pictures into tiles of one "
            "size; leave it out."
        )
    if max_pixels is not None and max_pixels < side**2:
        raise UserError(
            f"max_pixels={max_pixels} is less than one tile of {side} x {side}; give {side**2} or more."
        )
    return None if max_pixels is None else max_pixels // side**2
