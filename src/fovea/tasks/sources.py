"""From a path to lines: which form a file or folder has, by its ending and by what it holds, and one reader for each.

    x.jsonl                           a problem a line, plain or VLM-R1's schema (`fovea.tasks.records`)
    x.json                            a list of such problems; COCO (`coco`); referring expressions (`refcoco`)
    x.parquet, a saved dataset, hub:  the extra [data] (`fovea.tasks.tables`)
    a folder with metadata.jsonl      JSONL whose "file_name" is the picture (the imagefolder convention)
    a folder of folders               one subfolder a class: "What is in the picture?"

`x.json@val` is the part val of a file that has parts. A reader yields records of the plain schema and nothing else,
so that what is trained on and what `fovea convert` writes are the same. Not here: checking them (`fovea.tasks.data`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fovea.config import ProblemsSection
from fovea.tasks.coco import read_coco
from fovea.tasks.jsonl import read_json, read_lines
from fovea.tasks.pictures import picture_files
from fovea.tasks.refcoco import is_expressions, is_refs, read_expressions, read_refs
from fovea.tasks.tables import HUB, is_saved_dataset, read_hub, read_table
from fovea.types import UserError

Files = str | Path | Sequence[str | Path]

PICKLES = (".p", ".pkl", ".pickle")
# What each form makes use of in a recipe's section `problems`; the rest is refused, not ignored.
_DRAWN = {"ask", "question", "negatives", "empty", "max_boxes", "min_area", "crowds", "seed"}
_PLAIN = {"kind", "frame", "resized"}
_USES: dict[str, set[str]] = {
    "a COCO file": _DRAWN,
    "a file of RefCOCO's refs": {"question", "instances"},
    "a file of referring expressions": {"question", "frame", "resized"},
    "a list of problems": _PLAIN,
    "a folder of classes": set(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where lines come from."""

    name: str
    """Of the task."""
    file: str
    """For messages."""
    folder: Path
    """What picture names are relative to."""
    lines: Iterable[tuple[int, Any]]
    """(number, parsed JSON or BadLine)."""
    unit: str = "line"
    lenient: bool = False
    """See `records.read_record`."""
    form: str = "a list of problems"
    """What it is, for messages."""
    notes: tuple[str, ...] = ()
    """What was left out and why, a clause each."""
    beside: tuple[str, ...] = ()
    """Other files that were read with it."""


def named_files(
    path: Files, images: Files | None, compat: str | None = None
) -> tuple[list[str], list[str] | None]:
    """(files, picture folders) as a recipe names them.

    With compat="vlm_r1" "a.jsonl:b.jsonl" are two files and "x/:y/" two folders, as the original splits them; without
    it a colon is part of a name. Raises UserError where their numbers differ.
    """
    files, folders = _several(path, compat), None if images is None else _several(images, compat)
    if compat is not None and folders is not None and len(folders) != len(files):
        raise UserError(
            f"data names {len(files)} files and images {len(folders)} folders; with compat={compat} give one "
            "folder for each file, colons between them."
        )
    return files, folders


def _several(names: Files, compat: str | None) -> list[str]:
    if not isinstance(names, str):
        return [str(names)] if isinstance(names, Path) else [str(name) for name in names]
    return names.split(":") if compat is not None and not names.startswith(HUB) else [names]


def open_sources(
    path: Files,
    images: Files | None = None,
    *,
    problems: ProblemsSection | None = None,
    strict: bool = True,
    download: bool = False,
) -> list[Source]:
    """`open_source` of each file; `images` is one folder for all or one for each. Raises UserError."""
    files = [path] if isinstance(path, str | Path) else list(path)
    folders = [images] * len(files) if images is None or isinstance(images, str | Path) else list(images)
    if not files:
        raise UserError("data names no file; give a file, a folder or a list of them.")
    if len(folders) == 1:
        folders *= len(files)
    if len(folders) != len(files):
        raise UserError(
            f"data names {len(files)} files and images {len(folders)} folders; give one folder for all or one for each."
        )
    return [
        open_source(file, folder, problems=problems, strict=strict, download=download)
        for file, folder in zip(files, folders)
    ]


def open_source(
    path: str | Path,
    images: str | Path | None = None,
    *,
    problems: ProblemsSection | None = None,
    strict: bool = True,
    download: bool = False,
) -> Source:
    """What the path holds. Raises UserError.

    `images`: what relative picture names start from; default: the file's own folder. `problems`: how annotations
    become problems; with `strict` an option that this form has no use for is refused. `download`: hub names may be
    fetched.
    """
    options = problems or ProblemsSection()
    if str(path).startswith(HUB):
        base = _base(images, Path("."))
        lines = read_hub(str(path), base, download=download)
        name = str(path).removeprefix(HUB).partition("@")[0].rpartition("/")[2]
        source = Source(name=name, file=str(path), folder=base, lines=lines, unit="row", lenient=True)
    else:
        file, part = parted(path)
        source = _of_path(file, part, _base(images, file if file.is_dir() else file.parent), options)
    if strict:
        _refuse_unused(source, options)
    if source.form == "a list of problems" and (options.kind or options.frame or options.resized):
        source = replace(source, lines=_declared(source.lines, options))
    return source


def parted(path: str | Path) -> tuple[Path, str | None]:
    """(file, part): `refs.json@val` names a part, unless a file is called so. Raises UserError if nothing is there."""
    file, part = Path(path), None
    try:
        there = file.exists()
        if not there and "@" in file.name:
            name, _, part = file.name.rpartition("@")
            file = file.with_name(name) if name else file
            there = file.exists()
    except OSError as error:
        raise UserError(f"{str(path)[:200]} cannot be opened ({error.strerror}); correct its name.") from None
    if not there:
        raise UserError(f"The data file {path} does not exist; correct its name.")
    return file, part


def _base(images: str | Path | None, default: Path) -> Path:
    base = default if images is None else Path(images)
    if not base.is_dir():
        raise UserError(f"The picture folder {base} does not exist; set images=FOLDER.")
    return base


def _of_path(file: Path, part: str | None, base: Path, options: ProblemsSection) -> Source:
    if (
        file.is_dir()
        and part is not None
        and (file / "dataset_dict.json").is_file()
        and (file / part).is_dir()
    ):
        return _folder(file / part, base)
    if file.suffix == ".json" and file.is_file():
        return _json(file, part, base, options)
    if part is not None:
        raise UserError(f"{file} has no parts to name with @{part}; leave @{part} away.")
    if file.is_dir():
        return _folder(file, base)
    if not file.is_file():
        raise UserError(f"{file} is not a file that can be read twice; write it to a JSONL file.")
    if file.suffix in PICKLES:
        raise UserError(
            f"{file} is a pickle, which can run any program when it is opened; if you trust it, convert it once: "
            f"python -c \"import json, pickle; json.dump(pickle.load(open('{file.name}', 'rb')), "
            f"open('{file.stem}.json', 'w'))\"."
        )
    if file.suffix == ".parquet":
        lines = read_table(file, base)
        return Source(name=file.stem, file=str(file), folder=base, lines=lines, unit="row", lenient=True)
    return Source(name=file.stem, file=str(file), folder=base, lines=_readable(file))


# --- a file that is one JSON value --------------------------------------------------------------------------


def _json(file: Path, part: str | None, base: Path, options: ProblemsSection) -> Source:
    value = _parsed(file)
    plain = Source(name=file.stem, file=str(file), folder=base, lines=())
    first = value[0] if isinstance(value, list) and value else None
    if is_refs(first):
        return _refs(value, plain, file, part, options)
    if part is not None:
        raise UserError(f"{file} has no parts to name with @{part}; leave @{part} away.")
    if value is None:
        return replace(plain, lines=_readable(file))
    if isinstance(value, dict):
        if {"annotations", "categories"} & set(value):
            lines, notes = read_coco(value, str(file), options)
            return replace(plain, lines=lines, unit="picture", form="a COCO file", notes=notes)
        if not {"question", "conversations"} & set(value):
            raise UserError(
                f"{file} is one JSON object with the keys {', '.join(sorted(map(str, value)))[:120] or 'none'}, which "
                "is no form that is known; write a list of problems, or COCO's images, annotations and categories."
            )
        value = [value]
    if not isinstance(value, list):
        raise UserError(
            f"{file} must hold a list of problems, not one {type(value).__name__}; write [{{…}}, …]."
        )
    if is_expressions(first):
        return replace(
            plain,
            lines=read_expressions(value, options),
            unit="entry",
            form="a file of referring expressions",
        )
    return replace(plain, lines=enumerate(value, 1), unit="entry")


def _parsed(file: Path) -> Any:
    try:
        return read_json(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); check its permissions.") from None


def _refs(refs: list[Any], plain: Source, file: Path, part: str | None, options: ProblemsSection) -> Source:
    where = Path(options.instances) if options.instances else file.with_name("instances.json")
    if not where.is_file():
        raise UserError(
            f"{file} names its boxes by ann_id, and {where} is not there; put instances.json beside it, or name it "
            "with problems.instances=FILE."
        )
    instances = _parsed(where)
    if not isinstance(instances, dict):
        raise UserError(f"{where} is no COCO file; name the instances that {file.name} belongs to.")
    lines = read_refs(refs, instances, str(file), str(where), part, options)
    name = f"{plain.name}@{part}" if part else plain.name
    return replace(
        plain, name=name, lines=lines, unit="ref", form="a file of RefCOCO's refs", beside=(str(where),)
    )


# --- files and folders of lines -----------------------------------------------------------------------------


def _readable(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from read_lines(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); check its permissions.") from None


def _folder(folder: Path, base: Path) -> Source:
    name = folder.resolve().name
    if is_saved_dataset(folder):
        lines = read_table(folder, base)
        return Source(name=folder.name, file=str(folder), folder=base, lines=lines, unit="row", lenient=True)
    listed = folder / "metadata.jsonl"
    if listed.is_file():
        named = ((number, _named(record)) for number, record in _readable(listed))
        return Source(name=name, file=str(listed), folder=base, lines=named)
    return Source(
        name=name,
        file=str(folder),
        folder=folder,
        lines=_classes(folder),
        unit="picture",
        form="a folder of classes",
    )


def _named(record: Any) -> Any:
    """`file_name` and `file_names` of the imagefolder convention as `images`."""
    if not isinstance(record, dict) or "conversations" in record:
        return record
    alias = {"file_name": "image", "file_names": "images"}
    return {alias.get(key, key): value for key, value in record.items()}


def _classes(folder: Path) -> list[tuple[int, Any]]:
    """A question for every picture of a folder with one subfolder a class. Raises UserError for any other folder."""
    paths = [path.relative_to(folder) for path in picture_files(folder)]
    names = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    if len(names) < 2 or any(len(path.parts) < 2 for path in paths):
        raise UserError(
            f"The folder {folder} holds pictures but no questions; add metadata.jsonl with file_name, question "
            "and answer, or one subfolder for each class."
        )
    question = f"What is in the picture? Answer with one of: {', '.join(names)}."
    return [
        (number, {"image": str(path), "question": question, "answer": path.parts[0], "kind": "text"})
        for number, path in enumerate(paths, 1)
    ]


# --- what the whole file declares ---------------------------------------------------------------------------


def _refuse_unused(source: Source, options: ProblemsSection) -> None:
    given = {key for key, value in options if value != ProblemsSection.model_fields[key].default}
    unused = sorted(given - _USES[source.form])
    if unused:
        used = ", ".join(sorted(_USES[source.form])) or "none"
        raise UserError(
            f"problems.{unused[0]} says nothing about {source.file}, which is {source.form} (it uses {used}); leave it "
            "away."
        )


def _declared(lines: Iterable[tuple[int, Any]], options: ProblemsSection) -> Iterator[tuple[int, Any]]:
    """Lines with the kind and frame of the whole file where they declare none."""
    for number, record in lines:
        if isinstance(record, dict):
            record = dict(record)
            if options.kind is not None and record.get("kind") is None:
                record["kind"] = options.kind
            if options.frame is not None and record.get("frame") is None:
                record["frame"] = options.frame
            if record.get("frame") == "resized" and record.get("resized") is None:
                record["resized"] = options.resized
        yield number, record


def is_lines(path: str | Path) -> bool:
    """Whether a file's own lines are its problems, so that some of them can be kept as they are."""
    file = Path(path)
    return file.is_file() and file.suffix not in (".parquet", ".json")
