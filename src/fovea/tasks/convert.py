"""The problems of any file as lines of the plain schema: what training reads, written down. Behind `fovea convert`.

Pictures stay where they are and are named (relative to OUT where they lie beside it, else absolute); those in the cells
of a table are copied, byte for byte and equal ones once, into the folder OUT_pictures. The same problems are read
back, and the same ones are held out.

Not here: built-in tasks as files (`fovea.tasks.written`).
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from fovea.runlog import to_json
from fovea.tasks.data import DataTask
from fovea.tasks.pictures import FileRef, Ref
from fovea.tasks.records import Row, to_problem
from fovea.tasks.written import plain_record
from fovea.types import Problem, UserError

OWN = ("source", "line", "pictures")
"""Entries of `meta` that say where a problem of a file came from; not the user's."""


def check_new(out: Path) -> None:
    """Raises UserError if `out` exists or its folder does not."""
    if out.exists():
        raise UserError(f"{out} exists already; choose another name with --out, or delete it.")
    if not out.absolute().parent.is_dir():
        raise UserError(
            f"The folder {out.absolute().parent} does not exist; make it, or choose another with --out."
        )


def write_plain(task: DataTask, out: Path) -> dict[str, Any]:
    """Write all problems of a task to the new file `out`. Returns {"out", "problems", "kinds", "pictures", "notes"}.

    Raises UserError if `out` exists or cannot be written; then nothing is left behind, pictures aside.
    """
    check_new(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    counts: dict[str, int] = {}
    pictures: set[str] = set()
    copied: dict[bytes, str] = {}
    try:
        with temporary.open("wb") as file:
            for row in task.rows:
                names = [picture_name(ref, out, copied) for ref in row.refs]
                pictures.update(names)
                counts[row.kind] = counts.get(row.kind, 0) + 1
                file.write((to_json(line_of(row, names)) + "\n").encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); choose another place with --out."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return {
        "out": str(out),
        "problems": len(task.rows),
        "kinds": counts,
        "pictures": len(pictures),
        "notes": list(task.notes),
    }


def line_of(row: Row, names: list[str]) -> dict[str, Any]:
    """A checked line as a record of the plain schema, its pictures under `names`."""
    return plain_record(own_meta(to_problem(row, "")), names)


def own_meta(problem: Problem) -> Problem:
    """The problem without what `meta` says of its file."""
    return replace(problem, meta={key: value for key, value in problem.meta.items() if key not in OWN})


def picture_name(ref: Ref, out: Path, copied: dict[bytes, str]) -> str:
    """The name under which a line of `out` finds a picture; one in a table is copied out first.

    `copied`: digest → name of those that were; a picture that every row holds again stays one (`data.groups_of`).
    """
    if isinstance(ref, FileRef):
        path, folder = Path(ref.path).absolute(), out.absolute().parent
        # normpath, not resolve: a link beside OUT to pictures elsewhere stays that link
        inside = Path(os.path.normpath(path))
        return inside.relative_to(folder).as_posix() if inside.is_relative_to(folder) else str(inside)
    with ref.open() as stream:
        data = stream.read()
    digest = hashlib.sha256(data).digest()
    if digest in copied:
        return copied[digest]
    folder = out.with_name(f"{out.stem}_pictures")
    folder.mkdir(exist_ok=True)
    name = folder / f"{ref.row:07d}-{ref.column}-{ref.item}{_suffix(data)}"
    name.write_bytes(data)
    return copied.setdefault(digest, f"{folder.name}/{name.name}")


def _suffix(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:  # was decoded when the table was read
        return {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}.get(
            str(image.format), f".{str(image.format).lower()}"
        )
