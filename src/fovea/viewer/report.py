"""`write_report(RUN)`: one self-contained HTML page that shows a run, finished or not.

Curves are inline SVG and pictures data URIs; the page has no script, makes no request and forbids both in its
content security policy. Everything that came from a model or a data set goes through jinja2's autoescape.
Not here: any measuring. The page shows what the run folder says.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fovea.runlog import read_run, write_atomically
from fovea.viewer import as_text, visible
from fovea.viewer.display import clock, interval

SHOWN_PICTURES = 24
SHOWN_PROBLEMS = 6
# A page of many photographs should still open: larger files are named instead of embedded.
LARGEST_PICTURE = 4_000_000

# Measures of an evaluation record: key, what it means.
MEASURES = (
    ("accuracy", "greedy replies that are right"),
    ("looking", "accuracy minus accuracy with another problem's picture"),
    ("swapped", "accuracy with another problem's picture, against the own truth"),
    ("follow", "replies to the swapped picture that are right about that picture"),
    ("blank", "accuracy with a blank picture"),
    ("truncated", "greedy replies cut at the length limit"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve. Example: Series(name="iou", points=[(0, 0.4), (1, 0.5)])."""

    name: str
    points: list[tuple[float, float]]
    """(step, value), finite, in order of step."""
    intervals: list[tuple[float, float]] | None = None
    """If given, the points are drawn as dots with these (low, high) whiskers instead of a line."""


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises UserError if the folder is not a run folder or holds broken JSON.
    """
    path = Path(run_folder) / "report.html"
    write_atomically(path, render_report(run_folder).encode("utf-8"))
    return path


def render_report(run_folder: str | Path) -> str:
    """The page as a string; see `write_report`."""
    record = read_run(run_folder)
    described, result = record["run"], record["result"]
    run = described["run"] if isinstance(described.get("run"), dict) else described
    before, after = _before_after(record["evaluations"])
    versions = {name: value for name, value in (described.get("versions") or {}).items() if value}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = lambda value: visible(as_text(value))
    return environment.get_template("report.html.j2").render(
        title=_title(run, record["folder"]),
        run=run,
        folder=str(run.get("run_dir") or record["folder"]),
        state=_state(record),
        measures=_measures(before, after, result),
        n=(result or before or {}).get("n"),
        chance=(result or before or {}).get("chance"),
        before=before,
        after=after,
        charts=_charts(record["metrics"], record["evaluations"]),
        comparisons=_comparisons(record["folder"], before, after),
        replies=_replies(record["folder"], record["shown"]),
        shown_step=record["shown_step"],
        recipe=yaml.safe_dump(run, sort_keys=False, allow_unicode=True, width=100),
        versions=versions,
        git=described.get("git"),
        host=described.get("host") or {},
        command=described.get("command"),
        broken_lines=record["broken_lines"],
    )


def _title(run: dict[str, Any], folder: Path) -> str:
    return f"{Path(str(run.get('recipe') or folder.name)).stem} · {run.get('data') or run.get('task', '')}"


def _state(record: dict[str, Any]) -> str:
    result, steps = record["result"], len(record["metrics"])
    if result is not None:
        spent = clock(result.get("train_seconds"))
        return f"finished: {result.get('steps', steps)} steps in {spent} of training"
    total = (record["run"].get("run") or record["run"]).get("steps")
    return f"unfinished: {steps} of {total} steps" if total is not None else f"unfinished: {steps} steps"


def _before_after(
    evaluations: Sequence[dict[str, Any]],
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The first record and, once there is another, the last; a record's own phase goes before its place."""
    by_phase = {record.get("phase"): record for record in evaluations}
    before = by_phase.get("before") or (evaluations[0] if evaluations else None)
    after = by_phase.get("after") or (evaluations[-1] if len(evaluations) > 1 else None)
    return before, after


# Numbers before and after.


def _measures(
    before: dict[str, Any] | None, after: dict[str, Any] | None, result: dict[str, Any] | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    records = {"before": measures_of(before or {}), "after": measures_of(after or {})}
    meanings = {label: meaning for record in records.values() for label, meaning, _ in record}
    if result:  # it is the contract; evaluations alone may be of another n on the way
        meanings.setdefault("accuracy", MEASURES[0][1])
    for label, meaning in meanings.items():
        sides = {
            side: next((v for name, _, v in record if name == label), None)
            for side, record in records.items()
        }
        if result and label == "accuracy":
            sides = {side: result.get(side) or sides[side] for side in sides}
        summaries = {side: _summary(value) for side, value in sides.items()}
        if any(summaries.values()):
            rows.append({"label": label, "meaning": meaning, **summaries})
    # One axis for all rows, so that they can be compared: from -100 % where a difference is below 0.
    means = [
        row[side][key] for row in rows for side in ("before", "after") if row[side] for key in ("mean", "low")
    ]
    left = -1.0 if any(value is not None and value < -0.02 for value in means) else 0.0
    return [
        row | {"left": left, "figure": _interval_figure(row["before"], row["after"], left)} for row in rows
    ]


def measures_of(record: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(label, meaning, {"mean", "ci95"}) of all that an evaluation record measured, accuracy first."""
    found = [(key, meaning, record[key]) for key, meaning in MEASURES if record.get(key)]
    for name, value in (record.get("rewards") or {}).items():
        found.append((f"reward {name}", "mean reward of greedy replies", value))
    for k, value in (record.get("pass_at_k") or {}).items():
        found.append((f"pass@{k}", f"at least one of {k} sampled replies is right", value))
    return found


def measure_lines(record: dict[str, Any]) -> list[str]:
    """`measures_of` for a terminal: label, mean and interval, on how many where not on all, meaning."""
    lines = []
    for label, meaning, value in measures_of(record):
        n = value.get("n")
        on = "" if n is None or n == record.get("n") else f" (n = {n})"
        lines.append(f"{label:<16}{interval(value):<26}{meaning}{on}")
    return lines


def _summary(value: Any) -> dict[str, Any] | None:
    """`{"mean", "ci95"}`, a bare number, or None, as mean, low, high and its text."""
    if isinstance(value, (int, float)):
        value = {"mean": value}
    if not isinstance(value, dict) or value.get("mean") is None:
        return None
    low, high = value.get("ci95") or (None, None)
    text = f"{100 * value['mean']:.1f} %"
    span = f"{100 * low:.1f} to {100 * high:.1f}" if low is not None and high is not None else ""
    return {"mean": value["mean"], "low": low, "high": high, "text": text, "span": span}


def _interval_figure(before: dict[str, Any] | None, after: dict[str, Any] | None, left: float) -> Markup:
    """Two 95 % intervals under each other on the axis from `left` (0 or -1) to 1; 0 is marked."""

    def x(value: float) -> float:
        return round(6 + 228 * (min(1.0, max(left, value)) - left) / (1 - left), 1)

    ticks = [left + (1 - left) * i / 4 for i in range(5)]
    parts = [f'<line class="grid" x1="{x(t)}" x2="{x(t)}" y1="2" y2="34"/>' for t in ticks]
    if left < 0:
        parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="2" y2="34"/>')
    for side, name, y in ((before, "before", 11), (after, "after", 25)):
        if side is None:
            continue
        if side["low"] is not None and side["high"] is not None:
            parts.append(
                f'<line class="{name}" x1="{x(side["low"])}" x2="{x(side["high"])}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="{name}" cx="{x(side["mean"])}" cy="{y}" r="4.5"/>')
    return Markup(f'<svg class="interval" viewBox="0 0 240 36" role="img">{"".join(parts)}</svg>')


# Curves.


def _charts(metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Title, legend and SVG of every chart that has data."""
    parts = list(dict.fromkeys(key for record in metrics for key in record if key.startswith("reward/")))
    held_out = [r for r in evaluations if (_summary(r.get("accuracy")) or {}).get("low") is not None]
    wanted = [
        ("reward by part", ["reward_mean", *parts]),
        ("accuracy", ["accuracy"]),
        ("entropy (nats a token)", ["entropy"]),
        ("reply length (tokens)", ["completion_tokens"]),
        ("gradient norm", ["grad_norm"]),
        ("groups skipped", ["groups_skipped"]),
    ]
    charts = []
    for title, keys in wanted:
        series = [Series(name=_series_name(key), points=_points(metrics, key)) for key in keys]
        series = [s for s in series if s.points]
        if title == "accuracy" and held_out:
            points = [(float(r.get("step", 0)), float(r["accuracy"]["mean"])) for r in held_out]
            intervals = [(float(r["accuracy"]["ci95"][0]), float(r["accuracy"]["ci95"][1])) for r in held_out]
            series.append(Series(name="held out, greedy", points=points, intervals=intervals))
        if series:
            charts.append(
                {"title": title, "names": [s.name for s in series], "svg": chart_svg(title, series)}
            )
    return charts


def _series_name(key: str) -> str:
    return {"reward_mean": "total", "accuracy": "sampled in training"}.get(key, key.removeprefix("reward/"))


def _points(metrics: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(record.get("step", i), record.get(key)) for i, record in enumerate(metrics)]
    return [(float(x), float(y)) for x, y in pairs if y is not None and math.isfinite(y)]


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Exponential mean, weight 2/(span+1) on the newest value, bias-corrected as Adam's moments are."""
    keep, mean, weight, means = 1 - 2 / (span + 1), 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(mean / weight)
    return means


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that cover [low, high]; at least two."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = (0.0, 1.0) if high == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [round(i * size, 12) for i in range(first, last + 1)]


def chart_svg(title: str, series: Sequence[Series], width: int = 360, height: int = 190) -> Markup:
    """A line chart; colours are the page's classes c0, c1, …. Long lines are smoothed over a faint one."""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [
        y for s in series for pair in s.intervals or [] for y in pair
    ]
    ticks = nice_ticks(min(ys), max(ys))
    left, right, top, bottom = 46.0, width - 10.0, 8.0, height - 24.0
    x_low, x_span = min(xs), (max(xs) - min(xs)) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        share = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return round(left + (x - x_low) / x_span * (right - left), 1), round(
            bottom - share * (bottom - top), 1
        )

    parts = [f"<title>{escape(title)}</title>"]
    for tick in ticks:
        y = place(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 3.5}" text-anchor="end">{tick:g}</text>')
    for x, anchor in ((x_low, "start"), (max(xs), "end")):
        if anchor == "start" or max(xs) > x_low:
            parts.append(
                f'<text x="{place(x, ticks[0])[0]}" y="{height - 8}" text-anchor="{anchor}">step {x:g}</text>'
            )
    for i, s in enumerate(series):
        parts += _series_marks(s, i % 6, place)
    return Markup(f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>')


def _series_marks(series: Series, colour: int, place: Any) -> list[str]:
    if series.intervals is not None:
        marks = []
        for (x, y), (low, high) in zip(series.points, series.intervals):
            (cx, cy), top, bottom = place(x, y), place(x, high)[1], place(x, low)[1]
            marks.append(f'<line class="c{colour} whisker" x1="{cx}" x2="{cx}" y1="{top}" y2="{bottom}"/>')
            marks.append(f'<circle class="c{colour} dot" cx="{cx}" cy="{cy}" r="3.5"/>')
        return marks

    def line(points: list[tuple[float, float]], more: str) -> str:
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
        return f'<polyline class="c{colour} {more}" points="{path}"/>'

    if len(series.points) == 1:
        cx, cy = place(*series.points[0])
        return [f'<circle class="c{colour} dot" cx="{cx}" cy="{cy}" r="3"/>']
    if len(series.points) < 12:
        return [line(series.points, "line")]
    span = max(5, len(series.points) // 15)
    means = smooth([y for _, y in series.points], span)
    smoothed = [(x, mean) for (x, _), mean in zip(series.points, means)]
    return [line(series.points, "raw"), line(smoothed, "line")]


# Pictures and replies.


def _comparisons(
    folder: Path, before: dict[str, Any] | None, after: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Held-out problems shown in the first record, each beside the same problem in the last one."""
    first = {str(item.get("id")): item for item in (before or {}).get("shown") or []}
    last = {str(item.get("id")): item for item in (after or {}).get("shown") or []}
    pairs = []
    for key in list(dict.fromkeys([*first, *last]))[:SHOWN_PICTURES]:
        item = first.get(key) or last[key]
        sides = [("before", first.get(key)), ("after", last.get(key))]
        pairs.append(
            {
                "question": item.get("question", ""),
                "truth": item.get("truth_text") or item.get("truth"),
                "sides": [
                    {"name": name, "figure": picture_svg(folder, side), **side}
                    for name, side in sides
                    if side
                ],
            }
        )
    return pairs


def picture_svg(folder: Path, item: dict[str, Any]) -> Markup | None:
    """The picture with its predicted and its true box (dashed); None if it is not in the run folder."""
    uri = _data_uri(folder, item.get("picture"))
    if uri is None:
        return None
    width, height = (float(v) for v in item.get("size") or (1, 1))
    marks = [f'<image href="{uri}" width="{width:g}" height="{height:g}" preserveAspectRatio="none"/>']
    halos, boxes = [], []
    for key, name in (("predicted_box", "predicted"), ("truth_box", "true")):
        box = item.get(key)
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)):
            continue
        # Replies are hostile: a box of 1e300 pixels is drawn at the border.
        x1, x2 = sorted(min(max(float(v), -width), 2 * width) for v in (box[0], box[2]))
        y1, y2 = sorted(min(max(float(v), -height), 2 * height) for v in (box[1], box[3]))
        shape = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"'
        halos.append(f'<rect class="halo" {shape}/>')
        boxes.append(f'<rect class="{name}" {shape}/>')
    # The dashed true box is drawn last: where both agree, the predicted one shows between the dashes.
    marks += halos + boxes
    return Markup(
        f'<svg class="picture" viewBox="0 0 {width:g} {height:g}" role="img">{"".join(marks)}</svg>'
    )


def _data_uri(folder: Path, name: Any) -> str | None:
    """A PNG of the run folder as a data URI. Anything outside the folder, absent, huge or not PNG: None."""
    if isinstance(name, list):
        name = name[0] if name else None
    if not isinstance(name, str):
        return None
    path = (folder / name).resolve()
    if (
        not path.is_relative_to(folder.resolve())
        or not path.is_file()
        or path.stat().st_size > LARGEST_PICTURE
    ):
        return None
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG"):
        return None
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _replies(folder: Path, shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shown completions, those of one problem together under its picture."""
    problems: dict[str, dict[str, Any]] = {}
    for item in shown:
        key = str(item.get("id"))
        if key not in problems and len(problems) == SHOWN_PROBLEMS:
            break
        about = {"question": item.get("question", ""), "answer": item.get("answer"), "replies": []}
        problem = problems.setdefault(key, about | {"uri": _data_uri(folder, item.get("pictures"))})
        reply = {"text": item.get("text", ""), "reward": item.get("reward"), "parts": item.get("parts") or {}}
        problem["replies"].append(reply)
    return list(problems.values())
