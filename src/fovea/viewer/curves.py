"""Which curves are drawn of a run, and under which names: training's metrics, held-out measurements with intervals.

The report shows those that tell most, the overview of `fovea view` all others, too. Not here: drawing (`charts`).
"""

from __future__ import annotations

from typing import Any

from fovea.viewer import visible
from fovea.viewer.charts import Series, chart_svg, points_of
from fovea.viewer.display import is_of_episodes
from fovea.viewer.watch import no_signal_in_loss, watch_keys

_GAINS = ["explore/entropy_gain_selected", "explore/entropy_gain_unselected"]
_NAMES = {
    "reward_mean": "total",
    "accuracy": "sampled in training",
    "entropy": "of all that was sampled",
    "explore/policy_entropy": "under the clean picture",
    "success": "sampled in training",
    "thought_entropy": "of thoughts",
    "action_entropy": "of actions",
}


def run_charts(
    run: dict[str, Any], metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Title, legend and SVG of the charts that tell most about a run, as far as there is data."""
    parts = list(dict.fromkeys(key for record in metrics for key in record if key.startswith("reward/")))
    held_out = [record for record in evaluations if _has_interval(record.get("accuracy"))]
    looking = [record for record in evaluations if _has_interval(record.get("looking"))]
    watched = watch_keys(run)
    played = any("success" in record for record in metrics) or any(map(is_of_episodes, evaluations))
    skips = any(record.get("groups_skipped") for record in metrics)
    wanted = [
        ("reward by part", ["reward_mean", *parts]),
        ("success", ["success"]) if played else ("accuracy", ["accuracy"]),
        ("return of an episode", ["return"]),
        ("looking (held out)", []),
        ("reward spread of turns" if played else "reward spread in a group", ["reward_std"]),
        ("entropy (nats a token)", ["entropy", "explore/policy_entropy"]),
        ("reward by half: clean and changed picture", ["explore/reward_clean", "explore/reward_changed"]),
        ("entropy gained under the changed picture (nats)", _GAINS),
        ("largest change of a pixel (1/255)", ["explore/epsilon"]),
        ("reply length (tokens)", ["completion_tokens"]),
        ("gradient norm", ["grad_norm"]),
        ("turns of an episode", ["episode_turns"]),
        ("replies without a legal action (share)", ["invalid"]),
        ("entropy by part (nats a token)", ["thought_entropy", "action_entropy"] if played else []),
        ("different thoughts (share)", ["thought_distinct"]),
        ("value loss", ["value_loss"]),
        ("variance explained (share)", ["explained_variance"]),
        ("groups skipped", ["groups_skipped"] if skips or not played else []),
        ("clipped tokens (share)", ["clip_fraction"] if "clip_fraction" in watched else []),
        ("loss", [] if no_signal_in_loss(run, metrics[-1:]) else ["loss"]),
    ]
    charts = []
    for title, keys in wanted:
        series = [Series(name=_series_name(key), points=points_of(metrics, key)) for key in keys]
        series = [s for s in series if s.points]
        if title in ("accuracy", "success") and held_out:
            series.append(_held_out("held out, greedy", held_out, "accuracy"))
        if title.startswith("looking") and looking:
            series.append(_held_out("looking", looking, "looking"))
        if series:  # a step's accuracy is its success, where there are episodes
            charts.append(_chart(title, series, [*keys, "accuracy"] if title == "success" else keys))
    return charts


def other_charts(
    metrics: list[dict[str, Any]], shown: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A chart of every metric that `shown` leaves out, by name; and those that never changed, with their value."""
    done = {"step"}.union(*(chart["keys"] for chart in shown))
    keys = sorted({key for record in metrics for key in record} - done)
    charts: list[dict[str, Any]] = []
    constant: dict[str, float] = {}
    for key in keys:
        points = points_of(metrics, key)
        values = {y for _, y in points}
        if len(values) == 1:
            constant[key] = values.pop()
        elif values:
            charts.append(_chart(visible(key, 60), [Series(name=key, points=points)], [key]))
    return charts, constant


def _chart(title: str, series: list[Series], keys: list[str]) -> dict[str, Any]:
    return {"title": title, "names": [s.name for s in series], "svg": chart_svg(title, series), "keys": keys}


def _held_out(name: str, records: list[dict[str, Any]], key: str) -> Series:
    points = [(float(r.get("step", 0)), float(r[key]["mean"])) for r in records]
    intervals = [(float(r[key]["ci95"][0]), float(r[key]["ci95"][1])) for r in records]
    return Series(name=name, points=points, intervals=intervals)


def _has_interval(summary: Any) -> bool:
    """Whether it is `{"mean", "ci95"}` with numbers."""
    if not isinstance(summary, dict):
        return False
    low, high = summary.get("ci95") or (None, None)
    return all(value is not None for value in (summary.get("mean"), low, high))


def _series_name(key: str) -> str:
    plain = (
        key.removeprefix("reward/").removeprefix("explore/").removeprefix("entropy_gain_").replace("_", " ")
    )
    return _NAMES.get(key, plain if key.startswith("explore/") else key.removeprefix("reward/"))
