"""Reading a run folder while it is written: logs by what was added, shown completions by their place in the file.

    folder = RunFolder("runs/quickstart-seed0")
    folder.metrics()                      # all records so far; the next call reads only what was added
    index = folder.index(step=10)         # groups of one step, with the offset of every completion
    folder.group(index, 0)                # the records of one group, read from their offsets

Nothing holds the texts of more than one group; a run of 100,000 completions costs as much as its index. Lines that
are half-written or broken are counted and left out. How the files are laid out is decided in `fovea.runlog`.
Not here: anything about pages.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea.types import UserError
from fovea.viewer.charts import is_number
from fovea.viewer.strips import ending_of, is_turn

KEPT_ROWS = 200_000
"""Completions whose places are kept in memory, over all indexed steps (about 100 bytes each)."""

_GUARD = 64
"""Bytes before the read position that must still be there; else the file was cut back and grew again (a resume)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPlace:
    """Where the completions of one problem, or the turns of one episode, stand in a rollouts file.

    Example: GroupPlace(id="digits/locate:train:0:7", offsets=(0, 460), rewards=(1.0, 0.1), advantages=(1.0, -1.0))
    """

    id: str
    """The problem's id, as written: hostile text."""
    offsets: tuple[int, ...]
    """Byte at which the line of each completion begins."""
    rewards: tuple[float | None, ...]
    advantages: tuple[float | None, ...]
    ending: str = ""
    """Of an episode: how its last turn ends (`fovea.viewer.strips.ENDINGS`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepIndex:
    """The groups of one shown step, in the order in which they first appear."""

    step: int
    path: Path
    groups: tuple[GroupPlace, ...]
    broken: int
    """Lines that were no JSON object."""

    @property
    def rows(self) -> int:
        return sum(len(group.offsets) for group in self.groups)


class Tail:
    """The records of a growing JSONL file. `read` returns all of them and parses only what was added.

    A file that was cut back (a run resumed from an earlier checkpoint) is read again from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.broken = 0
        self._at = 0
        self._before = b""

    def read(self) -> list[dict[str, Any]]:
        try:
            file = self.path.open("rb")
        except OSError:
            self._restart()
            return self.records
        with file:
            file.seek(max(0, self._at - len(self._before)))
            if file.read(len(self._before)) != self._before:
                self._restart()
                file.seek(0)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]  # what follows the last newline is being written
        for line in whole.split(b"\n"):
            if line.strip():
                record = parse(line)
                if record is None:
                    self.broken += 1
                else:
                    self.records.append(record)
        self._at += len(whole)
        self._before = (self._before + whole)[-_GUARD:]
        return self.records

    def _restart(self) -> None:
        self.records, self.broken, self._at, self._before = [], 0, 0, b""


def parse(line: bytes) -> dict[str, Any] | None:
    """One line as a JSON object; None if it is anything else, however deep or broken."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class RunFolder:
    """One run folder, finished or not, read again as it grows. Safe to call from several threads.

    Raises UserError if there is no run.json.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        if not (self.path / "run.json").is_file():
            raise UserError(
                f"{folder} is not a run folder (it has no run.json); give one written by `fovea train`."
            )
        self._lock = threading.Lock()
        self._metrics = Tail(self.path / "metrics.jsonl")
        self._evaluations = Tail(self.path / "evaluations.jsonl")
        self._indexes: OrderedDict[int, tuple[tuple[int, int], StepIndex]] = OrderedDict()

    def described(self) -> dict[str, Any]:
        """run.json; empty while it cannot be read."""
        return self._object("run.json") or {}

    def run(self) -> dict[str, Any]:
        """The resolved recipe in run.json."""
        described = self.described()
        return described["run"] if isinstance(described.get("run"), dict) else described

    def result(self) -> dict[str, Any] | None:
        """result.json; None while the run is not finished."""
        return self._object("result.json")

    def metrics(self) -> list[dict[str, Any]]:
        """The step records so far."""
        with self._lock:
            return list(self._metrics.read())

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluation records so far."""
        with self._lock:
            return list(self._evaluations.read())

    def broken_lines(self) -> int:
        """Lines of the two logs that could not be read, so far."""
        return self._metrics.broken + self._evaluations.broken

    def steps(self) -> list[int]:
        """Steps of which completions were written down, in order."""
        names = (path.stem.removeprefix("step_") for path in (self.path / "rollouts").glob("step_*.jsonl"))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def version(self) -> str:
        """A text that changes whenever anything a page shows has changed; costs a few `stat` calls."""
        steps = self.steps()
        newest = [f"rollouts/step_{steps[-1]:06d}.jsonl"] if steps else []
        names = ("run.json", "metrics.jsonl", "evaluations.jsonl", "result.json", *newest)
        stats = [_stat(self.path / name) for name in names]
        return f"{len(steps)}." + ".".join(f"{size:x}-{time:x}" for size, time in stats)

    def index(self, step: int) -> StepIndex | None:
        """Where the completions of a step are; None if the step has none. One read through one file."""
        path = self.path / "rollouts" / f"step_{step:06d}.jsonl"
        stamp = _stat(path)
        if stamp == (0, 0):
            return None
        with self._lock:
            kept = self._indexes.pop(step, None)
            entry = kept if kept is not None and kept[0] == stamp else (stamp, _index(path, step))
            self._indexes[step] = entry
            while len(self._indexes) > 1 and sum(i.rows for _, i in self._indexes.values()) > KEPT_ROWS:
                self._indexes.popitem(last=False)
        return entry[1]

    def group(self, index: StepIndex, which: int) -> list[dict[str, Any]]:
        """The records of one group of an index, in the order in which they were sampled."""
        records = []
        with index.path.open("rb") as file:
            for offset in index.groups[which].offsets:
                file.seek(offset)
                record = parse(file.readline())
                if record is not None:
                    records.append(record)
        return records

    def search(self, index: StepIndex, text: str) -> set[str]:
        """Ids of the groups in which `text` occurs, in any case, in a reply, the question or the id."""
        wanted = text.casefold()
        found = set()
        for _, record in _lines(index.path):
            if record is None or (key := _key(record)) in found:
                continue
            if any(wanted in str(record.get(name, "")).casefold() for name in ("text", "question", "id")):
                found.add(key)
        return found

    def _object(self, name: str) -> dict[str, Any] | None:
        try:
            return parse((self.path / name).read_bytes())
        except OSError:
            return None


def _index(path: Path, step: int) -> StepIndex:
    rows: dict[str, list[tuple[int, float | None, float | None]]] = {}
    endings: dict[str, str] = {}
    broken = 0
    for offset, record in _lines(path):
        if record is None:
            broken += 1
            continue
        row = (offset, _number(record.get("reward")), _number(record.get("advantage")))
        key = _key(record)
        rows.setdefault(key, []).append(row)
        if is_turn(record):
            endings[key] = ending_of(record)
    groups = []
    for key, group in rows.items():
        offsets, rewards, advantages = zip(*group)
        end = endings.get(key, "")
        groups.append(GroupPlace(id=key, offsets=offsets, rewards=rewards, advantages=advantages, ending=end))
    return StepIndex(step=step, path=path, groups=tuple(groups), broken=broken)


def _key(record: dict[str, Any]) -> str:
    """What a record stands together with: the turns of an episode, the completions of a problem."""
    return str(record["episode"] if is_turn(record) else record.get("id"))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(offset, record) of every whole line; None for one that is no JSON object."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and line.strip():
                yield offset, parse(line)
            offset += len(line)


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _stat(path: Path) -> tuple[int, int]:
    """(bytes, time of change), (0, 0) if there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
