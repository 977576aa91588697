"""A pool: the pictures that self-supervised problems are made of, those of one split, by number.

Not here: where they come from and how they are checked (`fovea.tasks.pool_sources`), what is asked
(`fovea.tasks.ssl`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from fovea.tasks import photographs
from fovea.tasks.scenes import Split

SIDE = 448
"""Longest side in pixels of a picture that a problem shows, unless the recipe says otherwise."""


class Pool(Protocol):
    """Pictures of one split, near-duplicates removed. Deterministic: number i is the same picture in every
    process."""

    @property
    def source(self) -> str:
        """For messages: the folder, archive or data set."""
        ...

    @property
    def side(self) -> int:
        """Longest side in pixels of a picture that a problem shows; generators make no larger ones."""
        ...

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """A name that stays the same wherever the pool lies, for messages and `meta`."""
        ...

    def picture(self, i: int) -> Image.Image:
        """RGB, upright by EXIF, scaled down under the pixel cap. Shared: copy before drawing. Raises UserError."""
        ...

    def depth(self, i: int) -> np.ndarray | None:
        """float32 [height, width] of `picture(i)`, larger is farther, NaN unknown; None where none is supplied."""
        ...

    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Frame sequences in order, as numbers of pictures; empty where the pool has none.

        Frames other than a sequence's first have numbers from `len` on: who draws below `len` draws no two of one.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltIn:
    """The photographs in the package (`fovea.tasks.photographs`), at most 224 pixels a side."""

    split: Split
    side: int = SIDE
    source: str = "the photographs in the package"

    def __len__(self) -> int:
        return len(photographs.names(self.split))

    def name(self, i: int) -> str:
        return photographs.names(self.split)[i]

    def picture(self, i: int) -> Image.Image:
        return photographs.load(self.name(i))

    def depth(self, i: int) -> np.ndarray | None:
        return None

    def sequences(self) -> tuple[tuple[int, ...], ...]:
        return ()
