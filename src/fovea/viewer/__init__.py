"""What the user sees of a run: `LiveDisplay` in the terminal while it goes, `write_report` as HTML after it.

Reads run folders and an observer's records only; nothing below needs it, and torch is never imported.
"""

from __future__ import annotations

import unicodedata

__all__ = ["visible"]


def visible(text: str, limit: int = 2000) -> str:
    """Model output made safe to show: control and invisible formatting characters become `\\x1b`-like text.

    Newlines stay, tabs become a space. Longer text is cut at `limit` characters with an ellipsis. Escaping
    for HTML or for rich's markup is *not* done here: the template and `rich.text.Text` do that.
    """
    cut = text[:limit]
    shown = "".join(map(_visible_character, cut))
    return shown + "…" if len(text) > limit else shown


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
