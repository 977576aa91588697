"""Which split a drawn thing belongs to when there is no pool to divide: its content decides, by a hash."""

from __future__ import annotations

import zlib

from fovea.tasks.scenes import Split


def split_of(content: str) -> Split:
    """The one split that may show `content` (its canonical text): 70 % train, 10 % validation, 20 % test.

    A pure function of the text, the same on every machine. A problem is drawn anew until it falls into the
    split that was asked for, so no content is in two.
    """
    tenth = zlib.crc32(content.encode()) % 10
    return "train" if tenth < 7 else "validation" if tenth < 8 else "test"
