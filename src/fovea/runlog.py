"""The run folder: one place that decides how a run is written down, and reads it back.

    runs/quickstart-seed0/
      run.json             resolved recipe, command, versions, git state, host
      metrics.jsonl        a line a training step
      rollouts/step_000010.jsonl   the completions shown at that step
      pictures/*.png       one per shown problem, written once
      evaluations.jsonl    a line an evaluation
      bad_samples.jsonl    problems that could not be shown to the model; only if there were any
      checkpoints/         (written by training)
      report.html          (written by the viewer)
      result.json          before and after; its presence means the run finished

Everything is JSON that another program can read without fovea. Equal runs write equal `metrics.jsonl`,
keys that contain `seconds` or `memory` aside. This file decides *how* things are written, never *what*:
the set of metrics belongs to training, and the viewer shows those that are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import yaml
from PIL import Image

import fovea
from fovea.config import Run, load_run
from fovea.types import Problem, RunFailed, UserError

LOGS = ("metrics.jsonl", "evaluations.jsonl")
BAD_SAMPLES = "bad_samples.jsonl"
PACKAGES = ("torch", "torchvision", "transformers", "numpy", "pillow", "safetensors", "pydantic")
# Pictures are kept to be looked at: a larger one is scaled down to this side (records carry the true size).
LONGEST_SIDE = 1024


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


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as an indented JSON file that ends with a newline, atomically."""
    write_atomically(path, (to_json(value, indent=2) + "\n").encode("utf-8"))


class RunLog:
    """The writer of one run folder; also an `Observer`.

    Example:
        with RunLog("runs/try") as log:
            log.start(describe_run(run))
            log.step({"step": 0, "reward_mean": 0.5, "seconds": 1.2}, shown=[])
            log.finish(result)

    `resume=False` starts a new run. A folder that holds a finished run, or checkpoints, is refused with a
    UserError; the logs of an interrupted run without a checkpoint are removed, for nothing could continue it.
    `resume=True` keeps the logs and drops a half-written last line; then call `truncate` with a checkpoint's
    offsets.
    """

    def __init__(self, folder: str | Path, *, resume: bool = False) -> None:
        self.folder = Path(folder)
        check_run_folder(self.folder, resume=resume)
        with _writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._remove_logs()
            for name in ("rollouts", "pictures", "checkpoints"):
                (self.folder / name).mkdir(exist_ok=True)
            self._files: dict[str, BinaryIO] = {name: (self.folder / name).open("ab") for name in LOGS}
        for name in (*LOGS, BAD_SAMPLES):
            if (self.folder / name).exists():
                _drop_half_line(self.folder / name)

    def _remove_logs(self) -> None:
        stale = [self.folder / name for name in (*LOGS, BAD_SAMPLES, "run.json", "report.html")]
        for path in (*stale, *(self.folder / "rollouts").glob("step_*.jsonl")):
            path.unlink(missing_ok=True)

    # The four calls of an Observer.

    def start(self, run: dict[str, Any]) -> None:
        """Write run.json; `run` is what `describe_run` gives (any JSON object is taken as it is)."""
        with _writable(self.folder):
            write_json(self.folder / "run.json", run)

    def step(self, metrics: dict[str, Any], shown: list[dict[str, Any]]) -> None:
        """Append a line to metrics.jsonl and, if any, write the shown completions of `metrics["step"]`."""
        if shown:
            name = f"rollouts/step_{int(metrics['step']):06d}.jsonl"
            lines = "".join(to_json(record) + "\n" for record in shown)
            write_atomically(self.folder / name, lines.encode("utf-8"))
        self._append("metrics.jsonl", metrics)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Append a line to evaluations.jsonl."""
        self._append("evaluations.jsonl", record)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: from now on the run counts as finished."""
        write_json(self.folder / "result.json", result)

    def bad_sample(self, record: dict[str, Any]) -> None:
        """Append a line to bad_samples.jsonl: `step`, `id` and `problem`, one sentence."""
        with _written(self.folder / BAD_SAMPLES), (self.folder / BAD_SAMPLES).open("ab") as file:
            file.write((to_json(record) + "\n").encode("utf-8"))

    def pictures(self, problem: Problem) -> list[str]:
        """Write the problem's pictures once as PNG; their paths relative to the run folder, in order.

        A side above 1024 pixels is scaled down: boxes in records refer to the recorded original size.
        """
        digest = hashlib.sha256(problem.id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        stem = f"{re.sub(r'[^A-Za-z0-9]+', '-', problem.id).strip('-')[-60:]}-{digest}"
        names = []
        for i, image in enumerate(problem.images):
            name = f"pictures/{stem}-{i}.png" if i else f"pictures/{stem}.png"
            if not (self.folder / name).exists():
                _write_png(self.folder / name, image)
            names.append(name)
        return names

    def offsets(self) -> dict[str, int]:
        """Bytes of every log so far (path relative to the folder), to be kept in a checkpoint."""
        paths = [self.folder / name for name in LOGS]
        paths += sorted((self.folder / "rollouts").glob("step_*.jsonl"))
        paths += [path for path in [self.folder / BAD_SAMPLES] if path.exists()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}

    def truncate(self, offsets: Mapping[str, int]) -> None:
        """Cut every log back to `offsets` and remove logs that did not exist then.

        Raises UserError if a log is shorter than its offset: then the folder is not the one that was saved.
        """
        for name, size in self.offsets().items():
            keep = offsets.get(name, 0)
            if size < keep:
                raise UserError(
                    f"{self.folder / name} holds {size} bytes but the checkpoint recorded {keep}; "
                    "continue from an older checkpoint or restore the file."
                )
            if keep == 0 and name not in LOGS:
                (self.folder / name).unlink()
            else:
                os.truncate(self.folder / name, keep)

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # every line was flushed or its failure raised
                file.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, name: str, record: dict[str, Any]) -> None:
        file = self._files[name]
        with _written(self.folder / name):
            file.write((to_json(record) + "\n").encode("utf-8"))
            file.flush()


def check_run_folder(folder: str | Path, *, resume: bool = False) -> None:
    """Refuse a place that a run cannot or must not be written to, before anything slow is done; nothing stays.

    Raises UserError for a file in the way, a folder that cannot be written, one that is finished or (unless
    `resume`) holds checkpoints.
    """
    folder = Path(folder)
    fix = "choose another folder with run_dir=FOLDER"
    with _writable(folder):  # a name can be too long even to ask for
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        where = "is a file" if there == folder else f"cannot be made: {there} is a file"
        raise UserError(f"The run folder {folder} {where}; {fix}.")
    if not resume:
        if (folder / "result.json").exists():
            raise UserError(
                f"{folder} already holds a finished run; {fix}, or delete this one to start over."
            )
        if any((folder / "checkpoints").glob("step_*")):
            raise UserError(
                f"{folder} holds an unfinished run with checkpoints; {fix}, or delete this one to start over."
            )
    with _writable(folder):  # permission bits lie (root, network disks): try it, with as much as a log needs
        write_atomically(there / f".fovea-{os.getpid()}", bytes(4096))
        (there / f".fovea-{os.getpid()}").unlink()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise UserError(f"The run folder {folder} {why}; choose another with run_dir=FOLDER.") from None


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """A log that could be written before cannot be now: the machine's fault, not the user's input."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{path} cannot be written any more ({error.strerror or error}).") from error


def _write_png(path: Path, image: Image.Image) -> None:
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _drop_half_line(path: Path) -> None:
    """Remove what follows the last newline: the process died while writing it."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def read_run(folder: str | Path) -> dict[str, Any]:
    """All that a run folder says, finished or not, as plain dicts.

    Keys: folder (Path), run (run.json), metrics and evaluations (lists of records), shown (records of the
    newest rollouts file), shown_step, result (None while unfinished), broken_lines (how many were not JSON).
    Raises UserError if there is no run.json.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise UserError(
            f"{folder} is not a run folder (it has no run.json); give one written by `fovea train`."
        )
    broken: list[str] = []
    rollouts = sorted((folder / "rollouts").glob("step_*.jsonl"))
    newest = rollouts[-1] if rollouts else None
    return {
        "folder": folder,
        "run": _read_object(folder / "run.json") or {},
        "metrics": list(_read_lines(folder / "metrics.jsonl", broken)),
        "evaluations": list(_read_lines(folder / "evaluations.jsonl", broken)),
        "shown": list(_read_lines(newest, broken)) if newest else [],
        "shown_step": int(newest.stem.removeprefix("step_")) if newest else None,
        "result": _read_object(folder / "result.json"),
        "broken_lines": len(broken),
    }


def newest_model(folder: str | Path) -> Path:
    """The model folder of a run's newest checkpoint: `checkpoints/step_N`, or `model` in it.

    Raises UserError if the run has saved none.
    """
    steps = [path for path in (Path(folder) / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
    for step in sorted(steps, key=lambda path: int(path.name[5:]), reverse=True):
        for path in (step / "model", step):
            if (path / "config.json").is_file():
                return path
    raise UserError(f"The run {folder} has saved no model yet; train on, or save earlier with save_every=N.")


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise UserError(f"{path} is not valid JSON ({error}); restore or delete it.") from None
    return value if isinstance(value, dict) else {}


def _read_lines(path: Path, broken: list[str]) -> Iterator[dict[str, Any]]:
    """Records of a JSONL file; a line that is not a JSON object is noted in `broken` and left out."""
    if not path.is_file():
        return
    # Split at \n only: U+2028 and its like are ordinary characters of a JSON string. What follows the last
    # newline is a line that is being written, or was when the process died.
    for line in path.read_bytes().split(b"\n")[:-1]:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            yield record
        else:
            broken.append(path.name)


def run_folder(run: Run) -> Path:
    """Where a run is written: its `run_dir`, or runs/RECIPE-seedSEED."""
    return Path(run.run_dir or f"runs/{Path(run.recipe).stem or 'run'}-seed{run.seed}")


def describe_run(run: Run) -> dict[str, Any]:
    """What run.json holds: the resolved recipe and all that is needed to do it again."""
    return {
        "command": reproduce_command(run),
        "run": run.model_dump(mode="json"),
        "versions": {"fovea": fovea.__version__, "python": platform.python_version()} | _versions(),
        "git": git_state(Path(fovea.__file__).parent),
        "host": _host(),
        "argv": sys.argv,
        "started_seconds": time.time(),
    }


def reproduce_command(run: Run) -> str:
    """The shortest `fovea train RECIPE key=value …` that resolves to the same run."""
    try:
        base = load_run(run.recipe)
    except UserError:  # built in code or the file is gone: everything that differs from the defaults
        base = Run(recipe=run.recipe)
    ours, theirs = run.model_dump(mode="json"), base.model_dump(mode="json")
    if (run.task, run.data) != (
        base.task,
        base.data,
    ):  # then the recipe's rewards hold only where they are named
        theirs["rewards"] = {"": 0} if run.rewards else {}
    overrides = list(_differences(ours, theirs, ""))
    return shlex.join(["fovea", "train", run.recipe or "RECIPE", *overrides])


def _differences(values: dict[str, Any], base: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        other = base.get(key)
        if isinstance(value, dict) and isinstance(other, dict) and set(other) <= set(value):
            yield from _differences(value, other, f"{prefix}{key}.")
        elif value != other and f"{prefix}{key}" != "recipe":
            yield f"{prefix}{key}={_as_yaml(value)}"


def _as_yaml(value: Any) -> str:
    """The value as an override is read: plain text where YAML gives the same text back, JSON otherwise."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return value
        except (yaml.YAMLError, ValueError):
            pass
    return json.dumps(value, ensure_ascii=False)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds `folder`, and whether tracked files differ; None outside one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # A package installed inside somebody else's repository (a .venv in it) is not that repository's code.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _host() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
