"""A picture of the step records: how many times faster over G and over R with the bound, and where the time goes.

Plain SVG that a browser and a README show as it is. Try: `fovea bench --against trl --curves --plot bench.svg`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from fovea.types import UserError

_WIDTH, _HEIGHT = 340.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 12.0, 40.0, 40.0
_INK, _SOFT, _RULE, _PAPER = "#1c1f24", "#6b7280", "#e3e5e8", "#ffffff"
_OURS, _BOUND = "#2457c5", "#9aa3ad"
_PARTS = {
    "image and text": "#c9a227",
    "generate": "#2457c5",
    "loss forward": "#3c9d74",
    "backward": "#c2543f",
    "forward and backward": "#8a5a9e",
    "optimizer": "#4b5563",
    "other": "#b9c0c8",
}


def curves_svg(records: Sequence[dict[str, Any]]) -> str:
    """SVG text of step records (`bench_against_trl`, `bench_curves`). Raises UserError when there is none."""
    steps = [record for record in records if record.get("phase") == "step"]
    if not steps:
        raise UserError("There is no record of a step to draw; run `fovea bench --against trl` first.")
    panels = [
        panel
        for panel in (_curve(steps, "group", "G"), _curve(steps, "response_tokens", "R"), _parts(steps))
        if panel
    ]
    width = _WIDTH * len(panels)
    placed = "".join(
        f'<g transform="translate({i * _WIDTH:g} 0)">{panel}</g>' for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {_HEIGHT:g}" width="{width:g}" '
        f'height="{_HEIGHT:g}" font-family="system-ui, sans-serif" font-size="11" role="img">'
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>{placed}</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = _SOFT, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}"{more}>{escape(text)}</text>'


def _curve(steps: Sequence[dict[str, Any]], key: str, letter: str) -> str:
    """Ratio and bound over `key`, of those records that differ in it alone; empty when fewer than three do."""
    records = _longest_series(steps, key)
    if len(records) < 3:
        return ""
    xs = [math.log2(record[key]) for record in records]
    top = max(max(record["ratio"], record["bound"]) for record in records)
    ceiling = max(2, math.ceil(top / 2) * 2)

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - xs[0]) / (xs[-1] - xs[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - y / ceiling * (
            _HEIGHT - _TOP - _BOTTOM
        )

    other = ("response_tokens", "R") if key == "group" else ("group", "G")
    head = f"times faster than TRL over {letter}"
    fixed = (
        f"{records[0]['image_tokens']} image tokens, {records[0]['prompts']} prompts, "
        f"{other[1]} = {records[0][other[0]]}"
    )
    marks = [_text(_LEFT, 16, head, colour=_INK, more=' font-weight="600"'), _text(_LEFT, 30, fixed)]
    for tick in range(0, ceiling + 1, max(1, ceiling // 4)):
        y = place(xs[0], tick)[1]
        marks.append(
            f'<line x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_RULE}"/>'
        )
        marks.append(_text(_LEFT - 6, y + 4, f"{tick}×", "end"))
    for x, record in zip(xs, records, strict=True):
        marks.append(_text(place(x, 0)[0], _HEIGHT - _BOTTOM + 16, str(record[key]), "middle"))
    marks.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, letter, "middle"))
    bound = [place(x, record["bound"]) for x, record in zip(xs, records, strict=True)]
    ratio = [place(x, record["ratio"]) for x, record in zip(xs, records, strict=True)]
    marks += [_line(bound, _BOUND, ' stroke-dasharray="4 3"'), _line(ratio, _OURS)]
    marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_OURS}"/>' for x, y in ratio]
    x = _WIDTH - _RIGHT
    marks.append(_text(x, 16, "bound", "end"))
    marks.append(_line([(x - 56, 12), (x - 36, 12)], _BOUND, ' stroke-dasharray="4 3"'))
    marks.append(_text(x, 30, "measured", "end", _OURS))
    marks.append(_line([(x - 76, 26), (x - 56, 26)], _OURS))
    return "".join(marks)


def _longest_series(steps: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The largest set of records that differ in `key` alone, ascending in it."""
    fixed = [k for k in ("image_tokens", "prompts", "group", "response_tokens", "family") if k != key]
    sets: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in steps:
        sets.setdefault(tuple(record[k] for k in fixed), []).append(record)
    most = max(len(chosen) for chosen in sets.values())
    largest = next(chosen for chosen in sets.values() if len(chosen) == most)
    return sorted(largest, key=lambda record: int(record[key]))


def _line(points: Sequence[tuple[float, float]], colour: str, more: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{more}/>'


def _parts(steps: Sequence[dict[str, Any]]) -> str:
    """One step's CPU seconds by part, TRL's above ours, as shares of TRL's step, one pair a picture size."""
    records = _longest_series(steps, "image_tokens")
    left, width = 62.0, _WIDTH - 62.0 - _RIGHT
    marks = [
        _text(_RIGHT, 16, "where a step's CPU seconds go", colour=_INK, more=' font-weight="600"'),
        _text(
            _RIGHT,
            30,
            f"TRL's step = full width; G = {records[0]['group']}, R = {records[0]['response_tokens']}",
        ),
    ]
    y = _TOP + 6.0
    named: dict[str, bool] = {}
    for record in records:
        whole = record["trl_median_cpu_seconds"]
        marks.append(
            _text(_RIGHT, y + 8, f"{record['image_tokens']} image tokens, TRL {whole:.3g} s", colour=_INK)
        )
        y += 13
        for side in ("trl_parts", "parts"):
            marks.append(_text(left - 6, y + 10, "TRL" if side == "trl_parts" else "Fovea", "end"))
            marks += _bar(record[side], whole, (left, y, width), named.__setitem__)
            y += 15
        y += 6
    x, y = _RIGHT, _HEIGHT - 24.0
    for name in named:
        if x + 14 + 5 * len(name) > _WIDTH:
            x, y = _RIGHT, y + 14
        marks.append(f'<rect x="{x:g}" y="{y - 8:g}" width="8" height="8" fill="{_PARTS[name]}"/>')
        marks.append(_text(x + 11, y, name, more=' font-size="10"'))
        x += 22 + 5 * len(name)
    return "".join(marks)


def _bar(
    parts: dict[str, float],
    whole: float,
    place: tuple[float, float, float],
    seen: Callable[[str, bool], None],
) -> list[str]:
    left, y, width = place
    marks = []
    for name, colour in _PARTS.items():
        size = parts.get(name, 0.0) / whole * width
        if size > 0:
            marks.append(f'<rect x="{left:.1f}" y="{y:g}" width="{size:.1f}" height="12" fill="{colour}"/>')
            left += size
            seen(name, True)
    return marks
