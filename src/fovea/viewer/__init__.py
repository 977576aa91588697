"""What the user sees of a run: `LiveDisplay` in the terminal while it goes, `write_report` as one HTML file after it,
`serve` as pages in the browser at any time.

Reads run folders and an observer's records only; nothing below needs it, and torch is never imported.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

__all__ = ["as_text", "asked_of", "visible"]


def visible(text: str, limit: int = 2000) -> str:
    """Model output made safe to show: control and invisible formatting characters become `\\x1b`-like text.

    Newlines stay, tabs become a space. Longer text is cut at `limit` characters with an ellipsis. Escaping
    for HTML or for rich's markup is *not* done here: the template and `rich.text.Text` do that.
    """
    cut = text[:limit]
    shown = "".join(map(_visible_character, cut))
    return shown + "…" if len(text) > limit else shown


def asked_of(run: Mapping[str, Any]) -> str:
    """What a recorded run was trained on: its game, its files, its mixture or its task."""
    environment = run.get("environment")
    game = environment.get("name") if isinstance(environment, Mapping) else None
    if isinstance(game, str) and game != "none":
        return game
    return str(run.get("data") or "+".join(run.get("mixture") or ()) or run.get("task", "?"))


def as_text(value: Any) -> str:
    """A question, reply or truth as text: strings as they are, anything else as JSON with short numbers."""
    return value if isinstance(value, str) else json.dumps(_short(value), ensure_ascii=False, default=str)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e9 else round(value, 2)
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    return {key: _short(item) for key, item in value.items()} if isinstance(value, dict) else value


def _visible_character(character: str) -> str:
    if character == "\n":
        return character
    if character == "\t":
        return " "
    # Cc: terminal escapes. Cf: reorders text (U+202E) or hides (U+200B). Cs: lone surrogates, which cannot be
    # encoded. Zl, Zp: line separators that some terminals obey.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return character
