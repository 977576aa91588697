"""What the commands share: options, and printing that survives any text and any reader."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fovea.config import Run

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing while it runs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the recipe, e.g. steps=10.", show_default=False
    ),
]
Recipe = Annotated[
    str, typer.Argument(help="A name from `fovea recipes` or the path of a .yaml file.", show_default=False)
]


class ReaderLeft(Exception):
    """Nobody reads standard output any more: `fovea tasks list | head -1`."""


def run_of(command: str, values: dict[str, Any], overrides: list[str] | None) -> Run:
    """The run of a command without a recipe. Its data and images may be lists in brackets. Raises UserError."""
    from pydantic import ValidationError

    from fovea.config import Run, apply_override, explain
    from fovea.types import UserError

    values = {"recipe": command} | values
    values |= {key: as_listed(values[key]) for key in ("data", "images") if key in values}
    for override in overrides or []:
        apply_override(values, override)
    try:
        return Run.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, command)) from None


def as_listed(paths: str | None) -> Any:
    """What an option names: a path as it is, and `[a.jsonl, b.jsonl]` as the list that it is as key=value."""
    from fovea.config import apply_override

    if paths is None or not paths.startswith("["):
        return paths
    values: dict[str, Any] = {}
    apply_override(values, f"paths={paths}")
    return values["paths"]


def may_be_data(name: str) -> bool:
    """Whether a name can only be one of data: a path that exists, `file@part`, a hub name, several files."""
    from pathlib import Path

    whole, at, _ = name.rpartition("@")
    several = name.startswith(("hub:", "[")) or (":" in name and Path(name.split(":")[0]).exists())
    return several or Path(name).exists() or bool(at and Path(whole).exists())


def still_libraries(run: Run) -> None:
    """No progress bars of transformers between our lines, except for a download, which is worth one."""
    from transformers.utils.logging import disable_progress_bar

    if not run.download:
        disable_progress_bar()


def print_text(text: str) -> None:
    """Text that may hold anything (names of files, questions) on any terminal encoding."""
    from fovea.viewer import visible

    encoding = sys.stdout.encoding or "utf-8"
    write(visible(text, 100_000).encode(encoding, "replace").decode(encoding))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows of texts in columns as wide as their longest cell, and two spaces; the last is not padded."""
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)][:-1]
    for row in rows:
        print_text("".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) + row[-1])


def print_json(value: Any) -> None:
    from fovea.runlog import to_json

    write(to_json(value, indent=2))


def write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise ReaderLeft from None
