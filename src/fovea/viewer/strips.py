"""Episodes as film strips: what a page needs to show the turns that a run wrote down, frame by frame.

Reads records of turns (`fovea.training.strips` writes them: a completion's keys and those of an episode). Records are
hostile: a reply is anything, and a foreign file may hold any value under any key. The template escapes; what is no
number is left out here. Not here: pages, and which episodes are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from fovea.viewer import as_text
from fovea.viewer.charts import is_number
from fovea.viewer.pictures import picture_path, png_size

LARGEST_PICTURE = 4_000_000
"""Bytes; a larger file is left out of a strip."""
MOST_FRAMES = 64
"""Of one strip; an episode of a thousand turns must not make a page that does not open."""
SMALL = 150
"""Pixels; pictures below keep their pixels when they are enlarged."""

Ending = Literal["success", "failed", "cut off", "goes on"]
"""How an episode ends in the records: by success, by the rules, by too many turns, or not yet."""
ENDINGS: tuple[Ending, ...] = get_args(Ending)


def is_turn(record: Mapping[str, Any]) -> bool:
    """Whether a record is a turn of an episode."""
    return isinstance(record.get("episode"), str) and is_number(record.get("turn"))


def ending_of(last: Mapping[str, Any]) -> Ending:
    """How an episode ends, by the record of its last turn."""
    if last.get("success") is True:
        return "success"
    if last.get("cut_off") is True:
        return "cut off"
    return "failed" if last.get("terminated") is True or last.get("success") is False else "goes on"


def episodes_of(records: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The turns among some records, those of one episode together, in the order of the records."""
    found: list[list[Mapping[str, Any]]] = []
    for record in filter(is_turn, records):
        before = found[-1][-1] if found else None
        follows = before is not None and before["episode"] == record["episode"]
        if before is not None and follows and before["turn"] < record["turn"]:
            found[-1].append(record)
        else:
            found.append([record])
    return found


def strips_of(
    folder: Path,
    records: Iterable[Mapping[str, Any]],
    address: Callable[[Path], str],
    most: int | None = None,
) -> list[dict[str, Any]]:
    """The episodes among some records as a template shows them. `address`: how a page refers to a picture's file, empty
    where it is to be left out; `most`: so many episodes."""
    return [_strip(folder, turns, address) for turns in episodes_of(records)[:most]]


def pairs_of(
    folder: Path,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    address: Callable[[Path], str],
) -> list[list[dict[str, Any]]]:
    """The episodes that two evaluations' records show, each with its strips: before and after, as far as there are."""
    sides = {}
    for name, record in (("before", before), ("after", after)):
        shown = (record or {}).get("shown")
        turns = [one for one in shown if isinstance(one, dict)] if isinstance(shown, list) else []
        sides[name] = {strip["id"]: strip | {"side": name} for strip in strips_of(folder, turns, address)}
    keys = dict.fromkeys([*sides["before"], *sides["after"]])
    return [[side[key] for side in sides.values() if key in side] for key in keys]


def _strip(
    folder: Path, turns: Sequence[Mapping[str, Any]], address: Callable[[Path], str]
) -> dict[str, Any]:
    last, shown = turns[-1], turns[:MOST_FRAMES]
    most = max((abs(t["advantage"]) for t in turns if is_number(t.get("advantage"))), default=0.0)
    frames = [_frame(folder, turn, address, most) for turn in shown]
    for frame, earlier in zip(frames[1:], frames):
        frame["again"] = frame["question"] == earlier["question"]  # said once where every turn asks the same
    return {
        "id": last["episode"],
        "side": "",
        "frames": frames,
        "left_out": len(turns) - len(shown),
        "first": int(turns[0]["turn"]) + 1,
        "turns": len(turns),
        "ending": ending_of(last),
        "total": signed(last.get("total")),
        "one_question": all(frame["again"] for frame in frames[1:]),
    }


def _frame(
    folder: Path, turn: Mapping[str, Any], address: Callable[[Path], str], most: float
) -> dict[str, Any]:
    names = turn.get("pictures")
    paths = (
        [picture_path(folder, name, LARGEST_PICTURE) for name in names if name]
        if isinstance(names, list)
        else []
    )
    parts, state, action = turn.get("parts"), turn.get("state"), turn.get("action")
    given = turn.get("advantage")
    advantage = given if is_number(given) else 0.0
    return {
        "number": int(turn["turn"]) + 1,
        "pictures": [
            {"address": address(path), "small": max(png_size(path) or (0, 0)) <= SMALL} if path else None
            for path in paths
        ],
        "question": turn.get("question", ""),
        "again": False,
        "thought": turn.get("thought") or "",
        "action": None if action is None else as_text(action),
        "legal": turn.get("legal") is True,
        "reply": turn.get("text", ""),
        "cut": turn.get("stop") == "length",
        "reward": signed(turn.get("reward")),
        # A single part is the reward itself.
        "parts": {str(name): signed(value) for name, value in parts.items()}
        if isinstance(parts, dict) and len(parts) > 1
        else {},
        "value": signed(turn.get("value")),
        "advantage": signed(given),
        "sign": "zero" if advantage == 0 else "plus" if advantage > 0 else "minus",
        "share": abs(advantage) / most if most else 0.0,
        "state": ", ".join(f"{key} {as_text(value)}" for key, value in state.items())
        if isinstance(state, dict)
        else "",
    }


def signed(value: Any) -> str:
    """A number with its sign, as short as it is exact to three places; empty for anything else."""
    if not is_number(value):
        return ""
    short = f"{value:+.3g}" if abs(value) >= 1e5 else f"{value:+.3f}".rstrip("0").rstrip(".")
    return "0" if short in ("+0", "-0") else short.replace("-", "−")
