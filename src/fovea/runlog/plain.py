"""Values as plain JSON, and files written whole: what everything that is kept on disk goes through."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def jsonable(value: Any) -> tuple[Any, dict[str, str]]:
    """`value` as plain JSON types, and why some numbers became null.

    NumPy scalars and arrays become numbers and lists, tuples lists, paths strings. JSON has no NaN and no
    infinity: such a number becomes null and its dotted path is named in the second result, for example
    `{"grad_norm": "nan"}`. Raises TypeError for anything else that JSON does not know (a programmer's error).
    """
    reasons: dict[str, str] = {}
    return _clean(value, "", reasons), reasons


def _clean(value: Any, where: str, reasons: dict[str, str]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        reasons[where] = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    inside = f"{where}." if where else ""
    if isinstance(value, Mapping):
        return {str(key): _clean(item, f"{inside}{key}", reasons) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_clean(item, f"{inside}{i}", reasons) for i, item in enumerate(value)]
    raise TypeError(f"{where or 'value'}: {type(value).__name__} cannot be written as JSON")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """One JSON text without NaN; keys keep their order, floats are written by `repr` (shortest exact form).

    If the outermost value is an object, numbers that had to become null are listed in its `null_reasons`.
    """
    clean, reasons = jsonable(value)
    if reasons and isinstance(clean, dict):
        clean["null_reasons"] = reasons
    text = json.dumps(clean, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: decoders of byte-level tokens can produce one
        text = json.dumps(clean, indent=indent, ensure_ascii=True, allow_nan=False)
    return text


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a whole file so that a reader (or a power cut) sees the old one or the new one, never a half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_up(folder: Path) -> None:
    """Give the files below `folder` the rights that new files get here: safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as an indented JSON file that ends with a newline, atomically."""
    write_atomically(path, (to_json(value, indent=2) + "\n").encode("utf-8"))
