"""JSON files: lines of a JSONL file, each with its number (what is no JSON is a `BadLine`), and one value a file.

Not here: what an object must hold (`fovea.tasks.records`), opening a task of them (`fovea.tasks.data`).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from fovea.tasks.kinds import BadLine
from fovea.types import UserError

LINE_BYTES = 16_000_000
"""A longer line is refused without being read whole: a file without line ends must not fill the memory."""


def read_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, parsed JSON or BadLine), blank lines left out. Raises OSError if it cannot be read."""
    with file.open("rb") as stream:
        for number, line in _bounded(stream):
            if line is None:
                yield number, BadLine(f"longer than {LINE_BYTES:,} bytes", "write one JSON object a line")
                continue
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                yield number, BadLine("the file is UTF-16", "save it as UTF-8")
                return  # every further line would be called bad, for the same one reason
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                try:
                    yield number, parse(line)
                except BadLine as error:
                    yield number, error


def read_json(file: Path) -> Any:
    """The one JSON value that a file is, or None where it holds a value a line (JSONL by another name).

    The file is parsed whole: a COCO file of 528 MB took 31 CPU seconds and 2.4 GB of memory.
    Raises UserError for anything else, naming the place, and OSError if it cannot be read.
    """
    data = file.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{file} is UTF-16; save it as UTF-8.")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start + 1}); save it as UTF-8.") from None
    del data
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        if _one_a_line(text):
            return None
        raise UserError(
            f"{file} is not JSON ({error.msg} at line {error.lineno}, column {error.colno}); write it again."
        ) from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply; write flat objects.") from None
    except ValueError as error:  # NaN (below); a number of more than 4,300 digits
        if _one_a_line(text):
            return None
        raise UserError(
            f"{file} is not JSON ({str(error).split(';')[0][:80]}); write finite numbers."
        ) from None


def _one_a_line(text: str) -> bool:
    """Whether the first line that is not blank is a whole JSON object, or there is none at all."""
    first = next((line for line in text[:LINE_BYTES].splitlines() if line.strip()), "{}")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _bounded(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(number, line), None instead of a line that is too long."""
    number = 0
    while line := stream.readline(LINE_BYTES + 1):
        number += 1
        if len(line) <= LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(LINE_BYTES)
        yield number, None


def parse(line: bytes) -> Any:
    """One line as JSON. Raises BadLine."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLine(
            f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1})",
            "save the file as UTF-8",
        ) from None
    text = text.rstrip()  # else what is missing at the end is missing at column 1 of a next line
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        end = ", where the line ends" if error.pos >= len(text) else ""
        raise BadLine(
            f"not JSON ({error.msg} at column {error.pos + 1}{end})", "write one whole object on every line"
        ) from None
    except RecursionError:
        raise BadLine("nested too deeply", "write one flat object a line") from None
    except ValueError as error:  # NaN (below); a number of more than 4,300 digits
        raise BadLine(f"not JSON ({str(error).split(';')[0][:80]})", "write finite numbers") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
