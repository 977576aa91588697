"""Features of pictures that a frozen vision tower has seen, kept for the rest of the run.

A picture is known by its content: a hash of the tensors that the processor made of it. It is encoded by itself, so
that what is kept does not depend on the pictures it came with: a resumed run begins with an empty cache and still
computes the same bits. The cache is out of use (never wrong) while anything outside the language model takes
gradients or the pixels do, and it is emptied when a weight or buffer of the tower changes (`_usable` says by what
changes are seen).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fovea.models.adapter import (
    Family,
    ImageFeatures,
    Prompt,
    join_features,
    join_media,
    split_media,
)


@dataclass(kw_only=True, slots=True)
class VisionCache:
    """Least recently used pictures leave first. Features lie on the CPU in the type the tower gave them."""

    budget: int = 2**30
    """Bytes; 0 keeps nothing."""
    hits: int = 0
    """Pictures found."""
    misses: int = 0
    """Pictures that had to be encoded while the cache was in use."""
    held: int = 0
    """Bytes held now."""
    entries: OrderedDict[bytes, ImageFeatures] = field(default_factory=OrderedDict, repr=False)
    stamp: Any = field(default=None, repr=False)
    """What the tower's weights were when the entries were made."""

    def encode(
        self, family: Family, model: Any, prompts: Sequence[Prompt], device: torch.device
    ) -> ImageFeatures | None:
        """Features of all pictures of the prompts, in order; None without pictures."""
        if not any(prompt.media for prompt in prompts):
            return None
        stamp = self._usable(family, model, prompts)
        if stamp is None:
            return family.encode_images(model, join_media([prompt.media for prompt in prompts], device))
        if stamp != self.stamp:
            self.clear()
            self.stamp = stamp
        media = [one for prompt in prompts if prompt.media for one in split_media(prompt)]
        found = [self._one(family, model, one, device) for one in media]
        return found[0] if len(found) == 1 else join_features(found)

    def clear(self) -> None:
        """Forget all pictures; the counters stay."""
        self.entries.clear()
        self.held = 0

    def _one(
        self, family: Family, model: Any, media: Mapping[str, Tensor], device: torch.device
    ) -> ImageFeatures:
        key = picture_key(media)
        known = self.entries.get(key)
        if known is not None:
            self.hits += 1
            self.entries.move_to_end(key)
            return _to(known, device)
        self.misses += 1
        with torch.no_grad():
            made = family.encode_images(model, {name: x.to(device) for name, x in media.items()})
        size = sum(x.nbytes for x in (made.features, *made.deepstack))
        if size <= self.budget:
            self.entries[key] = _to(made, torch.device("cpu"))
            self.held += size
        while self.held > self.budget:
            _, old = self.entries.popitem(last=False)
            self.held -= sum(x.nbytes for x in (old.features, *old.deepstack))
        return made

    def _usable(self, family: Family, model: Any, prompts: Sequence[Prompt]) -> Any:
        """A stamp of the tower's weights; None where the cache must not be used."""
        if self.budget <= 0 or any(x.requires_grad for prompt in prompts for x in prompt.media.values()):
            return None
        spoken = (family.text_model(model), family.lm_head(model), model.get_input_embeddings())
        language = {id(p) for module in spoken for p in module.parameters()}
        tower = [p for p in model.parameters() if id(p) not in language]
        if any(p.requires_grad for p in tower):
            return None
        inner = {id(b) for module in spoken for b in module.buffers()}
        held = [*tower, *(b for b in model.buffers() if id(b) not in inner)]
        # The version counter goes up with every change in place of the tensor itself, loading weights included, and
        # the address changes with new storage. A write in place through an alias with a counter of its own
        # (`p.data.mul_(2)`, NumPy) is not seen: after one call `clear`.
        return tuple((x.data_ptr(), None if x.is_inference() else x._version) for x in held)


def picture_key(media: Mapping[str, Tensor]) -> bytes:
    """32 bytes that differ for different tensors, shapes and types of one picture's media."""
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(media):
        x = media[name].detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _to(images: ImageFeatures, device: torch.device) -> ImageFeatures:
    return ImageFeatures(
        features=images.features.to(device), deepstack=tuple(x.to(device) for x in images.deepstack)
    )
