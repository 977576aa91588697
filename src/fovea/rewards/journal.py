"""`reward_journal.jsonl`: what a group was worth in which a reward failed, so that a resumed run takes the same values.

A time-out depends on the machine's load: a resumed run that scores the same replies again might not time out. So
every group in which a failure became a number is written here, and on the disk, before its rewards are used; a
resumed run looks here first and neither waits nor writes the line twice. Unlike the other logs this file is NOT cut
back to the checkpoint: its lines after the checkpoint are the ones that the repeated steps need. A half-written last
line is cut off when the file is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from fovea.rewards.loading import FaultKind
from fovea.types import RunFailed, UserError

NAME = "reward_journal.jsonl"
HEAD = 80
"""Characters of a reply that an event shows."""

Key: TypeAlias = tuple[int, str, str, str, str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardEvent:
    """A completion on which a reward failed.

    Example: RewardEvent(step=3, reward="rewards.py:slow", problem="digits/locate:train:0:7", sample=2,
    kind="timeout", detail="took longer than 30 s", value=0.0, text_head="<answer>[")
    """

    step: int
    reward: str
    problem: str
    sample: int
    """Place in the group, from 0."""
    kind: FaultKind
    detail: str
    value: float
    """What the completion got from this reward instead."""
    text_head: str

    def sentence(self) -> str:
        """What happened, to what, without a full stop."""
        return (
            f"The reward {self.reward!r} {'raised ' * (self.kind == 'raised')}{self.detail} on completion "
            f"{self.sample} of problem {self.problem} in step {self.step}, which begins {self.text_head!r}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What one reward gave to one group in which it failed at least once: a line of the file."""

    step: int
    problem: str
    reward: str
    texts: str
    """`hash_texts` of the group."""
    code: str
    """`loading.Loaded.code`: a corrected function is asked again."""
    values: tuple[float | None, ...]
    """[G]; None: not scored."""
    parts: dict[str, tuple[float, ...]]
    metrics: dict[str, float]
    events: tuple[RewardEvent, ...]
    occurrence: int = 0
    """Which of the step's groups for this problem, where a small data set has it twice in a step."""

    @property
    def key(self) -> Key:
        return self.step, self.problem, self.reward, self.texts, self.code, self.occurrence


def hash_texts(texts: Sequence[str]) -> str:
    """16 hexadecimal digits of the SHA-256 of the replies in order (lone surrogates included)."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


class Journal:
    """The entries of a run folder: remembered by key, appended durably. Without a path, in memory only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._entries: dict[Key, Entry] = {}
        self._file: BinaryIO | None = None
        if path is not None and path.exists():
            self._recover(path)

    def find(self, key: Key) -> Entry | None:
        """The entry that was recorded under this key, in this process or before it."""
        return self._entries.get(key)

    def add(self, entries: Sequence[Entry]) -> None:
        """Record the new ones of these entries; returns when they are on the disk."""
        new = {entry.key: entry for entry in entries if entry.key not in self._entries}
        self._entries |= new
        if self.path is None or not new:
            return
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab")  # noqa: SIM115  closed in close()
            self._file.write(b"".join(_line(entry) for entry in new.values()))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunFailed(f"{self.path} cannot be written any more ({error.strerror or error}).") from error

    def close(self) -> None:
        """Close the file; the entries stay known."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _recover(self, path: Path) -> None:
        """Read the whole lines, cut off a last one that was not finished."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
                file.flush()
                os.fsync(file.fileno())
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = _entry(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number} is not a line of the reward journal; delete that line, or the file to "
                    "have failed groups scored again."
                ) from None
            self._entries[entry.key] = entry


def _line(entry: Entry) -> bytes:
    record = asdict(entry)
    record["parts"] = {name: [_or_null(x) for x in column] for name, column in entry.parts.items()}
    record["metrics"] = {name: _or_null(x) for name, x in entry.metrics.items()}
    if entry.occurrence == 0:  # nearly always; older lines do not have it either
        del record["occurrence"]
    return (json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def _or_null(number: float) -> float | None:
    return None if math.isnan(number) else number


def _entry(record: dict[str, Any]) -> Entry:
    return Entry(
        step=int(record["step"]),
        problem=str(record["problem"]),
        reward=str(record["reward"]),
        texts=str(record["texts"]),
        code=str(record["code"]),
        values=tuple(None if value is None else float(value) for value in record["values"]),
        parts={name: tuple(_or_nan(x) for x in column) for name, column in record["parts"].items()},
        metrics={name: _or_nan(x) for name, x in record["metrics"].items()},
        events=tuple(
            RewardEvent(
                step=int(event["step"]),
                reward=str(event["reward"]),
                problem=str(event["problem"]),
                sample=int(event["sample"]),
                kind=cast(FaultKind, event["kind"]),
                detail=str(event["detail"]),
                value=float(event["value"]),
                text_head=str(event["text_head"]),
            )
            for event in record["events"]
        ),
        occurrence=int(record.get("occurrence", 0)),
    )


def _or_nan(number: Any) -> float:
    return math.nan if number is None else float(number)
