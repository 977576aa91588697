"""One group of shown completions as a page needs it: which groups are asked for, their boxes in the picture's frame.

Pure functions over the records of a rollouts file (`fovea.rollouts` writes them). Truth and reply are in the frame
that the model speaks, the picture is drawn in pixels of the original: `fovea.boxes` converts. Geometry comes from the
record (`size`, `resized`, `box_image`: the original and the processor's size of the picture that boxes refer to)
or, without them, from the picture's file. Where neither tells, no box is drawn and the page says why.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fovea.boxes import Size, convert
from fovea.rewards.answers import answer_of, box_from, read_box, read_objects
from fovea.runlog import LONGEST_SIDE
from fovea.viewer.charts import is_number
from fovea.viewer.follow import GroupPlace, StepIndex
from fovea.viewer.pictures import Kind, Mark

FRAMES = ("pixels", "resized", "thousandths", "unit")
MOST_MARKS = 200
"""Boxes drawn over one picture: a reply may list thousands."""

Sort = Literal["logged", "advantage", "spread", "reward", "reward-low"]

SORTS: dict[Sort, str] = {
    "logged": "as logged",
    "advantage": "largest advantage",
    "spread": "widest rewards",
    "reward": "best reward",
    "reward-low": "worst reward",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which groups of a step are asked for, and in which order. Example: Wanted(low=0.5, sort="advantage")."""

    low: float | None = None
    """Groups with at least one reward of this or more."""
    high: float | None = None
    """… and, of the same completion, of this or less."""
    text: str = ""
    """Groups in which this occurs."""
    ending: str = ""
    """Episodes that end so (`fovea.viewer.strips.ENDINGS`); empty: any."""
    sort: Sort = "logged"

    def holds(self, reward: Any) -> bool:
        """Whether a completion's reward is in the range. Without a range every completion is, with one only numbers."""
        if self.low is None and self.high is None:
            return True
        if not is_number(reward):
            return False
        return (self.low is None or reward >= self.low) and (self.high is None or reward <= self.high)


def choose(index: StepIndex, wanted: Wanted, found: Collection[str] | None) -> list[int]:
    """Places in `index.groups` of what is asked for, in order. `found`: ids where the text occurs; None: all."""
    places = [
        i
        for i, group in enumerate(index.groups)
        if (found is None or group.id in found)
        and wanted.ending in ("", group.ending)
        and any(map(wanted.holds, group.rewards))
    ]
    if wanted.sort == "logged":
        return places
    key = _SORT_KEYS[wanted.sort]
    return sorted(places, key=lambda i: key(index.groups[i]))


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(group: GroupPlace, empty: float) -> float:
    rewards = _numbers(group.rewards)
    return statistics.fmean(rewards) if rewards else empty


_SORT_KEYS: dict[Sort, Callable[[GroupPlace], float]] = {
    "advantage": lambda group: -max(map(abs, _numbers(group.advantages)), default=0.0),
    "spread": lambda group: -spread(group),
    "reward": lambda group: -_mean(group, float("-inf")),
    "reward-low": lambda group: _mean(group, float("inf")),
}


def spread(group: GroupPlace) -> float:
    """Largest minus smallest reward of a group; 0 where nothing can be learned from it."""
    rewards = _numbers(group.rewards)
    return max(rewards) - min(rewards) if rewards else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What is needed to place a box of a record on its picture, in pixels of the original."""

    size: Size
    """Of the original picture: the drawing's units."""
    resized: Size | None
    """What the processor made of it; None if the record does not say."""
    frame: str
    known: bool
    """Whether `size` is the original's for sure; else only its aspect is."""

    @property
    def trouble(self) -> str | None:
        """Why boxes cannot be placed; None if they can."""
        if self.frame not in FRAMES:
            return f"boxes are in the unknown frame {self.frame!r}"
        if self.frame == "resized" and self.resized is None:
            return "boxes are in pixels of the resized picture, whose size the record does not hold"
        if self.frame == "pixels" and not self.known:
            return "boxes are in pixels of the original picture, whose size the record does not hold"
        return None

    def to_pixels(self, box: Sequence[float]) -> tuple[float, float, float, float] | None:
        """A box of the record's frame in pixels of the original; None if it cannot be placed."""
        if self.trouble is not None:
            return None
        return convert(box, self.frame, "pixels", self.size, self.resized or self.size)  # type: ignore[arg-type]


def geometry(record: dict[str, Any], file_size: Size) -> Geometry:
    """Of a record whose picture's file measures `file_size`. Files are scaled down to `LONGEST_SIDE`, never up."""
    size = _size(record.get("size"))
    return Geometry(
        size=size or file_size,
        resized=_size(record.get("resized")),
        frame=str(record.get("frame", "pixels")),
        known=size is not None or max(file_size) < LONGEST_SIDE,
    )


def _size(value: Any) -> Size | None:
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not all(is_number(v) and v >= 1 for v in value)
    ):
        return None
    return int(value[0]), int(value[1])


def true_boxes(answer: Any) -> list[Sequence[float]]:
    """The boxes of a truth, in its frame: one, those of a list of objects, or none."""
    if isinstance(answer, list) and any(isinstance(item, dict) for item in answer):
        boxes = [box_from(item.get("bbox_2d")) for item in answer[:MOST_MARKS] if isinstance(item, dict)]
        return [box for box in boxes if box is not None]
    box = box_from(answer)
    return [box] if box is not None else []


def reply_boxes(text: Any, answer: Any) -> list[Sequence[float]]:
    """The boxes of a reply, read as the rewards read them: of a list of objects all, else the first; () if none."""
    if not isinstance(text, str) or not true_boxes(answer):
        return []
    if isinstance(answer, list) and any(isinstance(item, dict) for item in answer):
        things = read_objects(answer_of(text)) or []
        return [box for box, _ in things[:MOST_MARKS] if box is not None]
    box = read_box(answer_of(text))
    return [box] if box is not None else []


def sign(advantage: Any) -> Kind:
    """The class of a reply by its advantage: "plus", "minus" or "zero"."""
    if not is_number(advantage) or advantage == 0:
        return "zero"
    return "plus" if advantage > 0 else "minus"


def marks_of(records: Sequence[dict[str, Any]], place: Geometry) -> list[Mark]:
    """The true boxes and those of every reply, numbered from 1 in the order of `records`."""
    marks: list[Mark] = []
    for number, record in enumerate(records, start=1):
        for box in reply_boxes(record.get("text"), record.get("answer")):
            pixels = place.to_pixels(box)
            if pixels is not None and len(marks) < MOST_MARKS:
                marks.append(Mark(box=pixels, kind=sign(record.get("advantage")), label=str(number)))
    for box in true_boxes(records[0].get("answer")) if records else []:
        pixels = place.to_pixels(box)
        if pixels is not None:
            marks.append(Mark(box=pixels, kind="true"))
    return marks
