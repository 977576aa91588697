"""The writer of a run folder, and what may become one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from PIL import Image

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

from fovea.runlog.plain import to_json, write_atomically, write_json
from fovea.types import Problem, RunFailed, UserError

LOGS = ("metrics.jsonl", "evaluations.jsonl")
BAD_SAMPLES = "bad_samples.jsonl"
REWARD_JOURNAL = "reward_journal.jsonl"
"""Rewards that failed. Never cut back to a checkpoint: a resumed run takes from it what the process before it waited
for, so that a time-out happens once. A new run begins without it."""
# Pictures are kept to be looked at: a larger one is scaled down to this side (records carry the true size).
LONGEST_SIDE = 1024


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
        self.notes: list[str] = []
        """What the run should tell its observers of how it was continued: checkpoints that were passed over."""
        check_run_folder(self.folder, resume=resume)
        with _writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = _lock(self.folder)
            if not resume:
                self._remove_logs()
            for name in ("rollouts", "pictures", "checkpoints"):
                (self.folder / name).mkdir(exist_ok=True)
            for half in (*self.folder.glob(".*.tmp"), *self.folder.glob("*/.*.tmp")):
                half.unlink(missing_ok=True)  # of a process that was killed while it wrote (we hold the lock)
            self._files: dict[str, BinaryIO] = {name: (self.folder / name).open("ab") for name in LOGS}
        for name in (*LOGS, BAD_SAMPLES):
            if (self.folder / name).exists():
                _drop_half_line(self.folder / name)
        self._sizes = self._measure()

    def _remove_logs(self) -> None:
        names = (*LOGS, BAD_SAMPLES, REWARD_JOURNAL, "run.json", "report.html", "checkpoints/best.json")
        stale = [self.folder / name for name in names]
        for path in (*stale, *(self.folder / "rollouts").glob("step_*.jsonl")):
            path.unlink(missing_ok=True)

    def resumed(self, run: dict[str, Any], step: int) -> dict[str, Any]:
        """What run.json holds after a resume at `step`: what it held, the recipe as it is now, and that it was."""
        (self.folder / "result.json").unlink(missing_ok=True)
        held = _read_json(self.folder / "run.json")
        entry = {
            key: run[key] for key in ("versions", "git", "host", "argv", "started_seconds") if key in run
        }
        code = held.get("reward_functions")
        for name, facts in run.get("reward_functions", {}).items():
            if isinstance(code, dict) and isinstance(code.get(name), dict) and code[name] != facts:
                self.notes.append(
                    f"The reward {name} is not the code that the run began with; it is used as it is now."
                )
        before: Any = held.get("run")
        before = before if isinstance(before, dict) else {}
        changed = {key: value for key, value in run["run"].items() if before.get(key) != value}
        resumes = [*held.get("resumes", []), {"step": step, "changed": changed, **entry, "notes": self.notes}]
        now = {key: run[key] for key in ("run", "command", "reward_functions") if key in run}
        return run | held | now | {"resumes": resumes}

    # The four calls of an Observer.

    def start(self, run: dict[str, Any]) -> None:
        """Write run.json; `run` is what `describe_run` gives (any JSON object is taken as it is)."""
        with _writable(self.folder):
            write_json(self.folder / "run.json", run)

    def step(self, metrics: dict[str, Any], shown: list[dict[str, Any]]) -> None:
        """Append a line to metrics.jsonl and, if any, write the shown completions of `metrics["step"]`."""
        if shown:
            name = f"rollouts/step_{int(metrics['step']):06d}.jsonl"
            lines = "".join(to_json(record) + "\n" for record in shown).encode("utf-8")
            with _written(self.folder / name):
                write_atomically(self.folder / name, lines)
            self._sizes[name] = len(lines)
        self._append("metrics.jsonl", metrics)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Append a line to evaluations.jsonl."""
        self._append("evaluations.jsonl", record)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: from now on the run counts as finished."""
        with _written(self.folder / "result.json"):
            write_json(self.folder / "result.json", result)

    def best(self, record: dict[str, Any]) -> None:
        """Write checkpoints/best.json: which step, by which figure."""
        with _written(self.folder / "checkpoints" / "best.json"):
            write_json(self.folder / "checkpoints" / "best.json", record)

    def bad_sample(self, record: dict[str, Any]) -> None:
        """Append a line to bad_samples.jsonl: `step`, `id` and `problem`, one sentence."""
        with _written(self.folder / BAD_SAMPLES), (self.folder / BAD_SAMPLES).open("ab") as file:
            line = (to_json(record) + "\n").encode("utf-8")
            file.write(line)
        self._sizes[BAD_SAMPLES] = self._sizes.get(BAD_SAMPLES, 0) + len(line)

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
                with _written(self.folder / name):
                    _write_png(self.folder / name, image)
            names.append(name)
        return names

    def offsets(self) -> dict[str, int]:
        """Bytes of the whole lines of every log so far (path relative to the folder), to be kept in a checkpoint."""
        return dict(self._sizes)

    def sync(self) -> None:
        """Returns when the logs are on the disk, so that a checkpoint that records their bytes is never ahead."""
        for name in (*LOGS, BAD_SAMPLES, "rollouts"):
            if (self.folder / name).exists():
                descriptor = os.open(self.folder / name, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _measure(self) -> dict[str, int]:
        paths = [self.folder / name for name in LOGS]
        paths += sorted((self.folder / "rollouts").glob("step_*.jsonl"))
        paths += [path for path in [self.folder / BAD_SAMPLES] if path.exists()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}

    def truncate(self, offsets: Mapping[str, int]) -> None:
        """Cut every log back to `offsets` and remove logs that did not exist then.

        Raises UserError as `check` does, before anything is cut.
        """
        self.check(offsets)
        for name in self._measure():
            keep = offsets.get(name, 0)
            if keep == 0 and name not in LOGS:
                (self.folder / name).unlink(missing_ok=True)
            else:
                os.truncate(self.folder / name, keep)
        self._sizes = self._measure()

    def check(self, offsets: Mapping[str, int]) -> None:
        """Raises UserError if a log is shorter than its offset: then the folder is not the one that was saved.

        Files of shown rollouts may be gone: someone made room.
        """
        sizes = self._measure()
        for name, keep in offsets.items():
            size = sizes.get(name, 0)
            if size < keep and not (name not in sizes and name.startswith("rollouts/")):
                raise UserError(
                    f"{self.folder / name} holds {size} bytes but the checkpoint recorded {keep}; "
                    "continue from an older checkpoint or restore the file."
                )

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
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
        line = (to_json(record) + "\n").encode("utf-8")
        with _written(self.folder / name):
            file.write(line)
            file.flush()
        self._sizes[name] += len(line)


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


def _lock(folder: Path) -> int:
    """A descriptor whose lock says that a process writes this folder. It goes when the process does, however."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    if fcntl is None:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"Another process is writing {folder} (a run that has not ended?); wait for it or choose another run_dir."
        ) from None
    except OSError:  # a file system without locks
        pass
    return descriptor


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none or it is broken."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


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
