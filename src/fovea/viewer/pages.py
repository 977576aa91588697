"""The pages of `fovea view` as text: overview, rollouts, held out, run. What a page shows comes from one `RunFolder`.

Every page is rendered from the folder as it is now and can be asked for again. Everything that came from a model or a
data set goes through jinja2's autoescape and `visible`. Not here: HTTP, tokens and headers (`server`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml
from jinja2 import Environment
from markupsafe import Markup

from fovea.types import UserError
from fovea.viewer.charts import is_number
from fovea.viewer.curves import other_charts, run_charts
from fovea.viewer.display import clock
from fovea.viewer.follow import GroupPlace, RunFolder, StepIndex
from fovea.viewer.groups import SORTS, Sort, Wanted, choose, geometry, marks_of, sign, true_boxes
from fovea.viewer.pictures import draw, picture_path, png_size
from fovea.viewer.report import (
    basis_of,
    before_after,
    changed_of,
    comparisons,
    measure_rows,
    state_of,
    templates,
    title_of,
)
from fovea.viewer.strips import ENDINGS, is_turn, pairs_of, strips_of
from fovea.viewer.watch import loss_note, warnings_of

STRIP = 96
"""Groups in the strip above a group; more are reached by going on."""
MOST_PICTURES = 16
"""Pictures of one problem that are shown."""
QUIET_SECONDS = 120
"""An unfinished run that wrote nothing for so long is said to be quiet."""

NAVIGATION = (("", "Overview"), ("rollouts", "Rollouts"), ("held-out", "Held out"), ("run", "Run"))


class Pages:
    """The pages of one run folder. Each method gives HTML; `UserError` is one sentence for the reader of the page."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._templates: Environment = templates()
        self._templates.globals["link"] = link
        self._templates.filters["signed"] = lambda value: f"{value:+.3f}" if is_number(value) else "–"
        self._templates.filters["number"] = lambda value: f"{value:.3f}" if is_number(value) else "–"

    def overview(self) -> str:
        """Warnings, the table before and after, and curves of every metric."""
        folder = self.folder
        metrics, evaluations, run = folder.metrics(), folder.evaluations(), folder.run()
        before, after = before_after(evaluations)
        result = folder.result()
        charts = run_charts(run, metrics, evaluations)
        others, constant = other_charts(metrics, charts)
        return self._render(
            "overview.html.j2",
            "",
            warnings=warnings_of([*metrics, *evaluations]),
            loss_note=loss_note(run, metrics) if metrics else None,
            measures=measure_rows(before, after, result),
            basis=basis_of(before, result),
            after=after,
            charts=charts,
            others=others,
            constant=constant,
            broken_lines=folder.broken_lines(),
        )

    def held_out(self) -> str:
        """Held-out pictures, or episodes, before and after."""
        before, after = before_after(self.folder.evaluations())
        pairs = comparisons(self.folder.path, before, after, self._address)
        episodes = pairs_of(self.folder.path, before, after, self._address)
        return self._render("held_out.html.j2", "held-out", comparisons=pairs, episodes=episodes)

    def run(self) -> str:
        """The recipe, versions and command."""
        described, run = self.folder.described(), self.folder.run()
        versions = described.get("versions")
        host = described.get("host")
        resumes = described.get("resumes")
        resumes = [_mapping(one) for one in resumes] if isinstance(resumes, list) else []
        return self._render(
            "run.html.j2",
            "run",
            command=described.get("command"),
            versions=versions if isinstance(versions, dict) else {},
            git=described.get("git") if isinstance(described.get("git"), dict) else None,
            host=host if isinstance(host, dict) else {},
            resumes=[{"step": one.get("step"), "notes": one.get("notes") or []} for one in resumes],
            recipe=yaml.safe_dump(run, sort_keys=False, allow_unicode=True, width=100),
        )

    def rollouts(self, query: Mapping[str, str]) -> str:
        """One group of one step; `query` is that of the address (see `read_query`)."""
        steps = self.folder.steps()
        wanted, step, at = read_query(query)
        step = steps[-1] if step is None and steps else step
        index = None if step is None else self.folder.index(step)
        if index is None and step is not None:
            raise UserError(f"No completions of step {step} were written down; choose another step.")
        found = self.folder.search(index, wanted.text) if index and wanted.text else None
        chosen = choose(index, wanted, found) if index else []
        at = min(at, max(0, len(chosen) - 1))
        group = self._group(index, chosen[at], wanted) if index and chosen else None
        place = steps.index(step) if step in steps else 0
        return self._render(
            "rollouts.html.j2",
            "rollouts",
            steps=steps,
            step=step,
            earlier=steps[place - 1] if place > 0 else None,
            later=steps[place + 1] if place + 1 < len(steps) else None,
            at=at,
            count=len(chosen),
            total=len(index.groups) if index else 0,
            broken=index.broken if index else 0,
            strip=_strip(index, chosen, at) if index else [],
            group=group,
            wanted=wanted,
            keep=_kept(wanted),
            sorts=SORTS,
            endings=ENDINGS if index and any(group.ending for group in index.groups) else (),
        )

    def _group(self, index: StepIndex, which: int, wanted: Wanted) -> dict[str, Any]:
        """What the template shows of one group; cards in the order asked for, numbered as sampled."""
        records = self.folder.group(index, which)
        if not records:
            raise UserError("This group was rewritten while it was read; load the page again.")
        if is_turn(records[0]):
            return {"film": strips_of(self.folder.path, records, self._address)}
        parts = {name for record in records for name in _mapping(record.get("parts"))}
        most = max((abs(r["advantage"]) for r in records if is_number(r.get("advantage"))), default=0.0)
        figures, notes, small = self._figures(records)
        cards: list[dict[str, Any]] = [
            {
                "number": number,
                "record": record,
                "figure": small[number - 1],
                "sign": sign(record.get("advantage")),
                "share": abs(record["advantage"]) / most
                if most and is_number(record.get("advantage"))
                else 0,
                "parts": {name: _mapping(record.get("parts")).get(name) for name in sorted(parts)},
                "faded": not wanted.holds(record.get("reward")),
            }
            for number, record in enumerate(records, start=1)
        ]
        if wanted.sort == "advantage":
            cards.sort(key=lambda card: -_or_zero(card["record"].get("advantage")))
        changed = [changed_of(self.folder.path, record, self._address) for record in records]
        shown = next((one for one in changed if one), None)
        return {
            "film": [],
            "first": records[0],
            "cards": cards,
            "figures": figures,
            "notes": notes,
            "changed": shown,
        }

    def _figures(self, records: list[dict[str, Any]]) -> tuple[list[Markup], list[str], list[Markup | None]]:
        """The group's pictures, that which boxes refer to with all boxes; what could not be drawn, in sentences; and
        for every reply the picture with its own boxes and the true ones (None where there is no box to draw)."""
        figures: list[Markup] = []
        notes: list[str] = []
        small: list[Markup | None] = [None] * len(records)
        names = records[0].get("pictures")
        names = names if isinstance(names, list) else [names] if names else []
        box_image = records[0].get("box_image")
        boxed = box_image if isinstance(box_image, int) else 0
        for i, name in enumerate(names[:MOST_PICTURES]):
            path = picture_path(self.folder.path, name)
            size = png_size(path) if path else None
            if path is None or size is None:
                notes.append(f"picture {i + 1} is not in the run folder")
                continue
            place = geometry(records[0], size) if i == boxed else None
            marks = marks_of(records, place) if place else []
            address = self._address(path)
            figures.append(draw(address, place.size if place else size, marks))
            if place and place.trouble and any(true_boxes(record.get("answer")) for record in records):
                notes.append(place.trouble)
            if place and marks:
                own = [[m for m in marks if m.label in ("", str(n))] for n in range(1, len(records) + 1)]
                small = [draw(address, place.size, [replace(m, label="") for m in some]) for some in own]
        return figures, notes, small

    def error(self, sentence: str) -> str:
        """A page that says what is wrong."""
        return self._render("error.html.j2", None, sentence=sentence)

    def live(self) -> dict[str, Any]:
        """What the pages ask for every few seconds: whether anything changed, and how far the run is."""
        steps = self.folder.steps()
        return {
            "version": self.folder.version(),
            "state": self._state(),
            "shown_step": steps[-1] if steps else None,
        }

    def _state(self) -> str:
        result = self.folder.result()
        state = state_of(self.folder.run(), result, len(self.folder.metrics()))
        if result is None:
            try:
                quiet = time.time() - (self.folder.path / "metrics.jsonl").stat().st_mtime
            except OSError:
                return state
            if quiet > QUIET_SECONDS:
                return f"{state}, nothing written for {clock(quiet)}"
        return state

    def _address(self, path: Path) -> str:
        """Of a picture's file, relative to every page."""
        return quote(path.relative_to(self.folder.path.resolve()).as_posix())

    def _render(self, template: str, page: str | None, **context: Any) -> str:
        run = self.folder.run()
        return self._templates.get_template(template).render(
            title=title_of(run, self.folder.path),
            run_=run,
            folder=str(self.folder.path),
            page=page,
            navigation=NAVIGATION,
            live=self.live(),
            **context,
        )


def read_query(query: Mapping[str, str]) -> tuple[Wanted, int | None, int]:
    """What the rollouts page is asked for: filter, step (None: the newest) and place of the group in the list.

    Keys `step`, `group`, `low`, `high`, `q`, `end`, `sort`; empty ones count as absent. Raises UserError for a value
    that is no number where one is needed, or an unknown ending or sort.
    """
    values = {key: value.strip() for key, value in query.items() if value.strip()}
    sort = values.get("sort", "logged")
    if sort not in SORTS:
        raise UserError(f"sort={sort!r} is not known; choose one of {', '.join(SORTS)}.")
    ending = values.get("end", "")
    if ending and ending not in ENDINGS:
        raise UserError(f"end={ending!r} is not known; choose one of {', '.join(ENDINGS)}.")
    known: Sort = sort
    wanted = Wanted(
        low=_real("low", values.get("low")),
        high=_real("high", values.get("high")),
        text=values.get("q", "")[:200],
        ending=ending,
        sort=known,
    )
    step = _whole("step", values["step"]) if "step" in values else None
    return wanted, step, _whole("group", values.get("group", "0"))


def _real(name: str, text: str | None) -> float | None:
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = float("nan")
    if value is not None and not is_number(value):
        raise UserError(f"{name}={text!r} is not a number; leave the field empty for no limit.")
    return value


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UserError(f"{name}={text!r} is not a whole number.")
    return int(text)


def _kept(wanted: Wanted) -> dict[str, str]:
    """The filter as part of an address, so that going on keeps it."""
    limits = {"low": wanted.low, "high": wanted.high}
    kept = {key: f"{value:g}" for key, value in limits.items() if value is not None}
    if wanted.text:
        kept["q"] = wanted.text
    if wanted.ending:
        kept["end"] = wanted.ending
    return kept if wanted.sort == "logged" else kept | {"sort": wanted.sort}


def link(keep: Mapping[str, str], **more: Any) -> str:
    """The rollouts page with a filter and further keys."""
    return "rollouts?" + urlencode({**{key: str(value) for key, value in more.items()}, **keep})


def _strip(index: StepIndex, chosen: list[int], at: int) -> list[dict[str, Any]]:
    """The groups around the current one, each with its rewards as shares of the step's range (0 to 1)."""
    rewards = [r for group in index.groups for r in group.rewards if r is not None]
    low, high = min(rewards, default=0.0), max(rewards, default=1.0)
    begin = max(0, min(at - STRIP // 2, len(chosen) - STRIP))
    return [
        {"at": place, "id": index.groups[which].id, **_bar(index.groups[which], low, (high - low) or 1.0)}
        for place, which in enumerate(chosen[begin : begin + STRIP], start=begin)
    ]


def _bar(group: GroupPlace, low: float, span: float) -> dict[str, Any]:
    shares = [(reward - low) / span for reward in group.rewards if reward is not None]
    if not shares:
        return {"low": 0.0, "high": 0.0, "mean": None}
    return {"low": min(shares), "high": max(shares), "mean": sum(shares) / len(shares)}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _or_zero(value: Any) -> float:
    return float(value) if is_number(value) else 0.0
