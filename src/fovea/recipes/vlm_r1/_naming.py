"""The aha moment, measured: does a reply name what is there before it boxes it, and is what it names there?

VLM-R1 reports that with odLength the model "first states which of the listed targets are present" (paper, section
5.3.1), from one figure. Here: a reply's thought is searched for the labels of the vocabulary (digits), in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fovea.rewards.answers import answer_of, read_objects
from fovea.statistics import average, proportion

_LABEL = re.compile(r"\b[0-9]\b")
_DENIED = re.compile(r"\bno\s+$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """What one reply names. Example: Naming(named=("7",), denied=(), boxed=("7",), first=True)"""

    named: tuple[str, ...]
    """Labels said to be there, before any box, in order."""
    denied: tuple[str, ...]
    """Labels said not to be there ("No 3.")."""
    boxed: tuple[str, ...]
    """Labels of the boxes."""
    first: bool
    """Whether a name comes before the first box."""


def naming(reply: str) -> Naming:
    """Names of a reply up to its first box, and the labels of its boxes. Linear in its length; never raises."""
    head = reply.partition('"bbox_2d"')[0]
    thought = head.partition("<answer>")[0]
    named: list[str] = []
    denied: list[str] = []
    for match in _LABEL.finditer(thought):
        says_no = _DENIED.search(thought[max(0, match.start() - 8) : match.start()]) is not None
        (denied if says_no else named).append(match[0])
    things = read_objects(answer_of(reply)) or []
    boxed = tuple(label for box, label in things if box is not None)
    return Naming(named=tuple(named), denied=tuple(denied), boxed=boxed, first=bool(named or denied))


def naming_figures(
    replies: Sequence[Mapping[str, Any]], asked: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Means with 95 % intervals over problems. `replies`: outcomes; `asked`: the `meta` of their problems.

    names_first    share of the replies that name (or deny) something before the first box
    precision      of the names said to be there: share of different ones that are in the picture; replies that name
    recall         of the asked classes that are there: share named; replies that name
    denied_right   of the classes denied: share that is really absent; replies that deny
    boxes_named    of the boxes: share whose label was named before; replies that name and box
    """
    rows: dict[str, list[float]] = {key: [] for key in ("precision", "recall", "denied_right", "boxes_named")}
    first: list[bool] = []
    for outcome, meta in zip(replies, asked, strict=True):
        found = naming(str(outcome["reply"]))
        there = {thing["label"] for thing in meta["things"]}
        first.append(found.first)
        if found.named:
            rows["precision"].append(len(set(found.named) & there) / len(set(found.named)))
            if meta["present"]:
                wanted = set(meta["present"])
                rows["recall"].append(len(wanted & set(found.named)) / len(wanted))
            if found.boxed:
                rows["boxes_named"].append(sum(b in found.named for b in found.boxed) / len(found.boxed))
        if found.denied:
            rows["denied_right"].append(sum(name not in there for name in found.denied) / len(found.denied))
    means = {
        name: average(values, 0) | {"n": len(values)} if values else None for name, values in rows.items()
    }
    return {"names_first": proportion(first) | {"n": len(first)}} | means
