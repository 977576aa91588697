"""Curves as inline SVG without a library: lines, dots with whiskers, round ticks. Colours are the page's classes.

Used by `report.html` and by the pages of `fovea view`. Not here: which curves a page shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

from markupsafe import Markup, escape

MOST_POINTS = 600
"""A longer curve is drawn as the means of so many stretches of it: a page of 100,000 steps opens, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve. Example: Series(name="iou", points=[(0, 0.4), (1, 0.5)])."""

    name: str
    points: list[tuple[float, float]]
    """(step, value), finite, in order of step."""
    intervals: list[tuple[float, float]] | None = None
    """If given, the points are drawn as dots with these (low, high) whiskers instead of a line."""


def points_of(records: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of every record where `key` is a finite number, thinned to `MOST_POINTS`."""
    pairs = [(record.get("step", i), record.get(key)) for i, record in enumerate(records)]
    return thin([(float(x), float(y)) for x, y in pairs if is_number(x) and is_number(y)])


def is_number(value: Any) -> TypeGuard[int | float]:
    """A finite int or float; logs may hold anything, true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON knows no largest integer, floats do
        return False


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means over equal stretches, the last one at the last point's place."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    return [(points[b - 1][0], sum(y for _, y in points[a:b]) / (b - a)) for a, b in pairwise(edges)]


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Exponential mean, weight 2/(span+1) on the newest value, bias-corrected as Adam's moments are."""
    keep, mean, weight, means = 1 - 2 / (span + 1), 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(mean / weight)
    return means


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that cover [low, high]; at least two."""
    low, high = max(low, -1e300), min(high, 1e300)  # their difference stays finite
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high - low < 1e-300:
        middle = abs(high) if abs(high) > 1e-290 else 0.0
        low, high = (low - middle / 2, high + middle / 2) if middle else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [float(f"{i * size:.12g}") for i in range(first, last + 1)]


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
