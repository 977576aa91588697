"""Parquet files and saved Hugging Face datasets as lines of data; the extra `[data]`.

The table stays on disk (memory-mapped Arrow; the `datasets` library writes a parquet file once into its own cache
for that), so that any row can be read in any order. Columns: those of `fovea.tasks.records` (`problem` and
`solution` are read as `question` and `answer`, `qid` as `id`); texts and numbers in others are kept as `meta`
(ViRL39K's pass rates, for example), the rest is ignored. A picture is a cell of bytes, {"bytes", "path"}, a file
name, or a list of those.

`hub:OWNER/NAME@SPLIT` is a dataset of the Hugging Face hub, fetched by `datasets` into its own cache; only with
download=true. Not here: what a row means (`fovea.tasks.records`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fovea.tasks.kinds import BadLine
from fovea.tasks.pictures import BadPicture, CellRef, FileRef, Ref
from fovea.tasks.records import KEYS
from fovea.types import UserError

ALIASES = {"problem": "question", "solution": "answer", "qid": "id"}
HUB = "hub:"
LONGEST_TEXT = 10_000
"""A longer text in a column of another name is not kept: it is a picture in base64 or a whole page."""
PICTURES = ("image", "images")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table on disk, by name: pickles in a few bytes and is opened once a process."""

    path: str
    stamp: int
    """Time of its last change, so that a table that was written anew is opened anew."""

    def picture_bytes(self, row: int, column: str, item: int) -> bytes:
        """The bytes of one picture. Raises BadPicture."""
        cell = _dataset(self.path, self.stamp)[row][column]
        cell = cell[item] if isinstance(cell, list) else cell
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise BadPicture(f"the picture in column {column!r} has no bytes", "write the table again")
        return data


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_table(path: Path, folder: Path) -> Iterator[tuple[int, Any]]:
    """(row number from 1, record or BadLine); pictures are references, file names relative to `folder`.

    Raises UserError if the extra is missing or the table cannot be read.
    """
    return _records(_table(path), folder)


def _table(path: Path) -> Table:
    head = path / "state.json" if path.is_dir() else path
    if (path / "dataset_dict.json").is_file():
        parts = sorted(part.name for part in path.iterdir() if (part / "state.json").is_file())
        raise UserError(
            f"{path} holds several parts ({', '.join(parts)}); name one, for example {path / (parts or ['train'])[0]}."
        )
    return Table(path=str(path), stamp=head.stat().st_mtime_ns)


def read_hub(name: str, folder: Path, *, download: bool) -> Iterator[tuple[int, Any]]:
    """As `read_table`, of `hub:OWNER/NAME` or `hub:OWNER/NAME@SPLIT` (default: train). Raises UserError."""
    return _records(_hub_table(name, download), folder)


def _hub_table(name: str, download: bool) -> Table:
    if not re.fullmatch(r"hub:\w[\w.-]*/\w[\w.-]*(@\w[\w.-]*)?", name):
        raise UserError(f"{name[:200]!r} names no dataset; write hub:OWNER/NAME or hub:OWNER/NAME@SPLIT.")
    if not download:
        raise UserError(f"{name} would be fetched from the Hugging Face hub; allow it with download=true.")
    return Table(path=name, stamp=0)


def read_cells(path: str | Path, *, download: bool = False) -> Iterator[tuple[str, Ref | BadLine]]:
    """(name, picture or what is wrong) of every picture in a table's one column of pictures, no other column read.

    `path` may be hub:OWNER/NAME@SPLIT. The column is that of pictures (or of bytes), `image` or `images` where there
    are several. Raises UserError as `read_table`, and for no or more such columns.
    """
    hub = str(path).startswith(HUB)
    table = _hub_table(str(path), download) if hub else _table(Path(path))
    dataset = _dataset(table.path, table.stamp)
    found = [name for name, feature in dataset.features.items() if _holds_pictures(feature)]
    named = [name for name in PICTURES if name in found] or found
    if len(named) != 1:
        raise UserError(
            f"{table.path} has {'no column' if not named else 'several columns'} of pictures "
            f"({', '.join(named or dataset.column_names)[:200] or 'none at all'}); name one of them image."
        )
    chosen, folder = dataset.select_columns(named), Path(".") if hub else Path(path).parent
    for row in range(len(chosen)):
        label = f"row {row + 1:06d}"
        try:
            refs = _refs(chosen[row][named[0]], table, row, named[0], folder)
        except BadLine as error:
            yield label, error
            continue
        yield from ((f"{label}#{item + 1}" if item else label, ref) for item, ref in enumerate(refs))


def _holds_pictures(feature: Any) -> bool:
    """Whether a column's cells are pictures, bytes, or lists of those."""
    import datasets

    inner = getattr(feature, "feature", feature)
    if isinstance(feature, dict):  # a struct {"bytes", "path"} that a parquet file without metadata has
        inner = feature.get("bytes")
    return isinstance(inner, datasets.Image) or str(getattr(inner, "dtype", "")) in ("binary", "large_binary")


def _records(table: Table, folder: Path) -> Iterator[tuple[int, Any]]:
    dataset = _dataset(table.path, table.stamp)
    columns = set(dataset.column_names)
    wanted = columns & (KEYS | {"conversations"})
    renamed = {old: new for old, new in ALIASES.items() if old in columns and new not in columns}
    if not wanted - {"id"} and not set(renamed) - {"qid"}:
        raise UserError(
            f"{table.path} has no column of problems (only {', '.join(sorted(columns))[:200] or 'none at all'}); "
            "name them image, question and answer."
        )
    return _rows(dataset, sorted(wanted | set(renamed) | _plain(dataset)), renamed, table, folder)


def _plain(dataset: Any) -> set[str]:
    """The columns of texts, numbers and truth values."""
    dtypes = {name: str(getattr(feature, "dtype", "")) for name, feature in dataset.features.items()}
    plain = ("string", "large_string", "int", "uint", "float", "bool")
    return {name for name, dtype in dtypes.items() if dtype.startswith(plain)}


def _rows(
    dataset: Any, columns: list[str], renamed: dict[str, str], table: Table, folder: Path
) -> Iterator[tuple[int, Any]]:
    known = KEYS | {"conversations"} | set(renamed)
    chosen = dataset.select_columns(columns)
    for row in range(len(chosen)):
        cells = {
            renamed.get(key, key): value
            for key, value in chosen[row].items()
            if value is not None and (key in known or _worth_keeping(value))
        }
        if isinstance(cells.get("conversations"), dict):  # a list of structs, transposed by old `datasets`
            cells["conversations"] = [
                dict(zip(cells["conversations"], values)) for values in zip(*cells["conversations"].values())
            ]
        try:
            for column in PICTURES:
                if column in cells:
                    cells[column] = _refs(cells[column], table, row, column, folder)
        except BadLine as error:
            yield row + 1, error
            continue
        yield row + 1, cells


def _worth_keeping(value: Any) -> bool:
    """Whether a cell of a column of another name is kept: no endless text, no NaN (which is no JSON)."""
    return len(value) <= LONGEST_TEXT if isinstance(value, str) else value == value


def _refs(cell: Any, table: Table, row: int, column: str, folder: Path) -> list[Ref]:
    refs: list[Ref] = []
    for item, value in enumerate(cell if isinstance(cell, list) else [cell]):
        path = value.get("path") if isinstance(value, dict) else value
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            refs.append(CellRef(table=table, row=row, column=column, item=item))
        elif isinstance(path, str) and path:
            refs.append(FileRef(path=str(folder / path)))
        else:
            raise BadLine(
                f"column {column!r} holds no picture", "store bytes, {'bytes', 'path'} or a file name"
            )
    return refs


@lru_cache(maxsize=8)
def _dataset(path: str, stamp: int) -> Any:
    """The table, pictures left as bytes. Raises UserError."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{path} needs the extra [data]; install it with pip install 'fovea-rl[data]', or write JSONL."
        ) from None
    try:
        if path.startswith(HUB):
            name, _, split = path.removeprefix(HUB).partition("@")
            found = datasets.load_dataset(name, split=split or "train")
            return found.cast(datasets.Features({k: _undecoded(v) for k, v in found.features.items()}))
        with _silent(datasets):
            saved = Path(path).is_dir()
            found = datasets.load_from_disk(path) if saved else datasets.Dataset.from_parquet(path)
            return found.cast(datasets.Features({k: _undecoded(v) for k, v in found.features.items()}))
    # A broken file fails as ArrowInvalid, DatasetGenerationError, OSError, KeyError, TypeError or JSONDecodeError.
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:160] or type(cause).__name__
        if path.startswith(HUB):
            raise UserError(f"{path} cannot be fetched ({reason}); correct its name or its split.") from None
        kind = "saved dataset" if Path(path).is_dir() else "parquet"
        raise UserError(f"{path} cannot be read as {kind} ({reason}); write it again.") from None


def _undecoded(feature: Any) -> Any:
    """The feature with pictures as {"bytes", "path"} instead of decoded ones."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = getattr(feature, "feature", None)
    if inner is not None and isinstance(inner, datasets.Image):
        return type(feature)(datasets.Image(decode=False))
    return feature


@contextmanager
def _silent(datasets: Any) -> Iterator[None]:
    """No progress bars and no log lines of `datasets` between our lines: what fails is told by our own sentence."""
    bars, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
