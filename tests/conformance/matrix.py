"""The table family x check of docs/families.md: read, and written by the run of the tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

RAN: dict[tuple[str, str], bool] = {}
"""(family, check) -> passed, filled by the tests as they run."""

_BEGIN, _END = "<!-- matrix: written by tests/conformance -->", "<!-- end of matrix -->"
_SIGNS = {True: "✓", False: "✗"}


def read(page: Path) -> dict[tuple[str, str], bool]:
    """The cells of the page's table: checks are rows, families columns."""
    table = page.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if "|" in line
    ]
    if not lines:
        return {}
    families = [cell.strip("`") for cell in lines[0][1:]]
    return {
        (family, line[0]): sign == _SIGNS[True]
        for line in lines[2:]
        for family, sign in zip(families, line[1:], strict=True)
    }


def write(page: Path, families: Sequence[str], checks: Sequence[str]) -> None:
    """Put what ran into the page; every cell must have run."""
    head = ["check", *(f"`{family}`" for family in families)]
    rows = [[check, *(_SIGNS[RAN[family, check]] for family in families)] for check in checks]
    lines = [head, ["---", *[":-:"] * len(families)], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = page.read_text(encoding="utf-8")
    pattern = re.escape(_BEGIN) + ".*" + re.escape(_END)
    page.write_text(re.sub(pattern, f"{_BEGIN}\n{table}\n{_END}", text, flags=re.DOTALL), encoding="utf-8")
