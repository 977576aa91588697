"""Pictures of a run folder with boxes drawn over them, as inline SVG; and which files may be shown at all.

The picture is referred to by an address that the caller chooses: a data URI in the report, a path of the server in
`fovea view`. Boxes come in pixels of the original picture. Not here: reading a box out of a reply.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup, escape

PNG = b"\x89PNG\r\n\x1a\n"

Kind = Literal["predicted", "true", "plus", "minus", "zero"]
"""Class of a drawn box: a prediction, a truth, or a prediction by the sign of its advantage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One box over a picture. Example: Mark(box=(12, 8, 30, 31), kind="plus", label="3")."""

    box: Sequence[float]
    """(x1, y1, x2, y2) in pixels of the original picture, corners in any order, any finite numbers."""
    kind: Kind
    label: str = ""
    """Drawn at the upper left corner, and what scripts find the box by; empty: none."""


def picture_path(folder: Path, name: Any, largest: int | None = None) -> Path | None:
    """The PNG file that `name` (relative to the run folder) is, or None.

    None for anything that is not text, leaves the folder (`..`, a link, an absolute path), is absent, no regular file,
    not PNG, or larger than `largest` bytes. Names come out of records: they are as hostile as a reply.
    """
    if not isinstance(name, str) or "\0" in name:
        return None
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        if largest is not None and path.stat().st_size > largest:
            return None
        with path.open("rb") as file:
            return path if file.read(len(PNG)) == PNG else None
    except (OSError, RuntimeError, ValueError):  # name too long, a loop of links, a lone surrogate
        return None


def data_uri(path: Path) -> str:
    """The file as `data:image/png;base64,…`."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def png_size(path: Path) -> tuple[int, int] | None:
    """(width, height) by the PNG's header; None if it has none."""
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", head[16:24])
    return (width, height) if width and height else None


def draw(address: str, size: tuple[float, float], marks: Sequence[Mark]) -> Markup:
    """The picture at `address` with `marks` over it; the drawing's units are pixels of the original picture.

    Dashed true boxes are drawn last: where both agree, the prediction shows between the dashes.
    """
    width, height = size
    parts = [
        f'<image href="{escape(address)}" width="{width:g}" height="{height:g}" preserveAspectRatio="none"/>'
    ]
    halos, boxes, labels = [], [], []
    letters = (
        max(size) / 22
    )  # of the label, in the drawing's units: the picture fills the same place on the page
    for mark in sorted(marks, key=lambda mark: mark.kind == "true"):
        # Replies are hostile: a box of 1e300 pixels is drawn at the border.
        x1, x2 = sorted(min(max(float(v), -width), 2 * width) for v in (mark.box[0], mark.box[2]))
        y1, y2 = sorted(min(max(float(v), -height), 2 * height) for v in (mark.box[1], mark.box[3]))
        shape = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"'
        number = f' data-reply="{escape(mark.label)}"' if mark.label else ""
        halos.append(f'<rect class="halo" {shape}{number}/>')
        boxes.append(f'<rect class="{mark.kind}" {shape}{number}/>')
        if mark.label:
            x, y = min(max(x1, 0), width - letters), min(max(y1 - letters / 4, letters), height)
            place = f'x="{x:.4g}" y="{y:.4g}" font-size="{letters:.3g}"'
            labels.append(f'<text class="label" {place}{number}>{escape(mark.label)}</text>')
    inside = "".join(parts + halos + boxes + labels)
    return Markup(f'<svg class="picture" viewBox="0 0 {width:g} {height:g}" role="img">{inside}</svg>')
