"""Watching a run: metrics that are never optimised, and a warning where the reward leaves them behind. No torch.

    watch = Watch(audits=("iou_50", "completion_tokens"))
    for warning in watch.step(step, metrics):
        print(warning.text)

The rule for an audit. A series is cut into blocks of 5 steps; ten points, each the mean of 1, 2, 4, … blocks, are a
window (50, 100, 200, … steps). A window warns when both are true, by the Mann-Kendall test on its ten points (Mann,
Econometrica 13, 1945; Kendall, 1975; exact null distribution) and by size:

    the reward rises      at most 5 of the 45 pairs of points fall   (p <= 4.7e-4)   and by 5 % of its largest point
    the audit worsens     at most 3 of the 45 pairs improve          (p <= 5.8e-5)   and by 10 % of its largest point

False alarms: if an audit only fluctuates (its points are exchangeable) a window warns with p <= 5.8e-5 even while the
reward rises for good; a run of 1,000 steps has fewer than 400 windows, so at most 2.3 % of such runs warn for an audit
(measured far lower, because windows overlap and the sizes count too: docs/rewards.md). A series with long memory, such
as a policy that wanders, is not exchangeable; the size is what keeps those quiet.
What goes wrong from the first steps on is seen sooner by comparing the last 20 steps with the first 20, from step 40 to
100: Welch's t (Biometrika 34, 1947) at least 4 for the reward and 5 for the audit, and the same sizes (13 comparisons
with p < 5e-5 each: fewer than 1 run in 1,500 by chance).
A third rule, "behind", warns when the reward rises by 0.2 over 100 steps or more and the audit's rise, with three
standard errors, stays under a tenth of that although the audit is below 0.9.

Not here: computing the metrics (`fovea.rollouts`, `fovea.rollout_health`), writing warnings (`fovea.training`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fovea.config import nearest
from fovea.rewards import REWARDS, is_reference
from fovea.rollout_health import HEALTH
from fovea.types import UserError

BLOCK = 5
"""Steps averaged into a block."""
POINTS = 10
"""Points of a window."""
REWARD_DISCORDANT = 5
AUDIT_DISCORDANT = 3
REARM = 50
"""Steps without the condition after which an alarm may sound again."""
RECENT = 20
"""Steps at the start and at the end that the alarms without an audit compare."""
FLOOD = 1.5
"""Boxes a true box, over the first `BLOCK` steps' figure, from which on they are a flood."""

Direction = Literal["high", "low", "steady"]
DIRECTIONS: Mapping[str, Direction] = {
    "truncated": "low",
    "unparsed": "low",
    "unparsed/missing": "low",
    "unparsed/unreadable": "low",
    "duplicates": "low",
    "box_count_error": "low",
    "reward_errors": "low",
    "reward_timeouts": "low",
    "completion_tokens": "steady",
    "completion_tokens_max": "steady",
    "box_count": "steady",
    "box_ratio": "low",  # a flood; how far the count is from right, either way, is box_count_error
    "od_ratio": "low",
    "entropy": "steady",
}
"""Which way is good; what is not named here (every reward, accuracy) is good when high."""

_PLAIN = ("accuracy", "truncated", "completion_tokens", "entropy", "reward_errors", "reward_timeouts")


@dataclass(frozen=True, kw_only=True, slots=True)
class Warned:
    """Something about the run that a person should look at.

    Example: Warned(step=240, name="audit:iou_50", text="…", numbers={"reward_from": 0.41, "reward_to": 0.66})
    """

    step: int
    name: str
    """`audit:NAME`, `behind:NAME`, `no_signal`, `length_drift`, `duplicates`, `truncated`, `unparsed`, `format_only`,
    `box_flood`, `reward_errors`."""
    text: str
    """One sentence with the numbers."""
    numbers: dict[str, float]

    def record(self) -> dict[str, Any]:
        """As an item of `"warnings"` in a step's record."""
        return {"name": self.name, "text": self.text, "numbers": self.numbers}


def check_audits(names: Sequence[str], functions: Sequence[str] = ()) -> None:
    """Raise UserError for an audit that is no reward, no function of the user's and no metric of a step."""
    known = [*REWARDS, *functions, *HEALTH, *_PLAIN]
    for name in names:
        if name not in known and not is_reference(name) and not name.startswith(("reward/", "reward_std/")):
            raise UserError(f"There is no audit {name!r}{nearest(name, known)}; known: {', '.join(known)}.")


# --- the tests --------------------------------------------------------------------------------------------


def discordant(values: Sequence[float]) -> int:
    """Pairs i < j with values[j] <= values[i]: 0 for a series that always rises, n(n - 1)/2 for one that never does.

    A tie counts as not rising, so a constant series is as far from a trend as can be. Mann-Kendall's statistic
    is S = n(n - 1)/2 - 2 · this where there are no ties.
    """
    return sum(values[j] <= values[i] for j in range(len(values)) for i in range(j))


def p_trend(pairs: int, n: int = POINTS) -> float:
    """P(at most `pairs` of the pairs of n exchangeable numbers are discordant), exact, in (0, 1].

    The number of permutations of n with k inversions follows from those of n - 1: the largest element adds 0 to
    n - 1 inversions (Kendall, Rank Correlation Methods, 1975). p_trend(5) = 4.7e-4, p_trend(3) = 5.8e-5.
    """
    counts = [1]
    for size in range(2, n + 1):
        grown = [0] * (len(counts) + size - 1)
        for inversions, count in enumerate(counts):
            for more in range(size):
                grown[inversions + more] += count
        counts = grown
    return sum(counts[: pairs + 1]) / math.factorial(n)


def fitted_change(values: Sequence[float]) -> tuple[float, float]:
    """(change over the window along the least-squares line, its standard error), n >= 3 points."""
    y = np.asarray(values, dtype=np.float64)
    x = np.arange(y.size) - (y.size - 1) / 2
    slope = float(x @ y / (x @ x))
    residuals = y - y.mean() - slope * x
    error = math.sqrt(float(residuals @ residuals) / (y.size - 2) / float(x @ x))
    return slope * (y.size - 1), error * (y.size - 1)


def rises(values: Sequence[float], most: int, share: float) -> bool:
    """Whether a window rises: at most `most` discordant pairs, and by `share` of its largest absolute value."""
    return discordant(values) <= most and fitted_change(values)[0] >= share * max(map(abs, values))


def diverges(reward: Sequence[float], audit: Sequence[float], direction: Direction) -> bool:
    """The rule of this module's docstring for one window of ten points each.

    A "steady" audit (a length, a count) worsens by changing to either side by half of its largest value.
    """
    if not rises(reward, REWARD_DISCORDANT, 0.05):
        return False
    down = [-value for value in audit]
    if direction == "steady":
        return any(rises(side, AUDIT_DISCORDANT, 0.5) for side in (audit, down))
    worse = down if direction == "high" else list(audit)
    floor = 0.02 if all(0 <= value <= 1 for value in audit) else 0.0
    return rises(worse, AUDIT_DISCORDANT, 0.1) and fitted_change(worse)[0] >= floor


def shifted(first: Sequence[float], last: Sequence[float], least: float, share: float) -> bool:
    """Whether `last` lies above `first`: by Welch's t of at least `least`, and by `share` of the larger mean.

    t = (m2 - m1) / sqrt(s1²/n1 + s2²/n2),   s² with divisor n - 1
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(last, dtype=np.float64)
    gap = float(b.mean() - a.mean())
    error = math.sqrt(float(a.var(ddof=1)) / a.size + float(b.var(ddof=1)) / b.size)
    return gap > 0 and gap >= least * error and gap >= share * max(abs(float(a.mean())), abs(float(b.mean())))


def departs(reward: Series, audit: Series, direction: Direction) -> bool:
    """`diverges` for the last 20 steps against the first 20, once they do not overlap."""
    if min(len(reward.recent), len(audit.recent)) < RECENT or not shifted(
        reward.first, reward.recent, 4.0, 0.05
    ):
        return False
    down = [-value for value in audit.first], [-value for value in audit.recent]
    up = audit.first, audit.recent
    if direction == "steady":
        return shifted(*up, 5.0, 0.5) or shifted(*down, 5.0, 0.5)
    fall = abs(sum(up[0]) - sum(up[1])) / RECENT
    unit = all(0 <= value <= 1 for value in (*up[0], *up[1]))
    return shifted(*(down if direction == "high" else up), 5.0, 0.1) and (not unit or fall >= 0.02)


def stays_behind(reward: Sequence[float], audit: Sequence[float]) -> bool:
    """Whether the reward rises by 0.2 while an audit in [0, 1], good when high, does not follow."""
    if not all(0 <= value <= 1 for value in audit) or audit[-1] >= 0.9:
        return False
    gain = fitted_change(reward)[0]
    change, error = fitted_change(audit)
    return gain >= 0.2 and rises(reward, REWARD_DISCORDANT, 0.05) and change + 3 * error < 0.1 * gain


# --- the series -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Series:
    """One metric over the run: block means, and the first and last values. All of it is JSON."""

    blocks: list[float | None] = field(default_factory=list)
    """Mean of each finished block; None where the metric was never there."""
    open: list[float] = field(default_factory=list)
    """Values of the block that is not finished."""
    first: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    def add(self, value: float | None, ends: bool) -> None:
        """A step's value (None: not there); `ends`: the step is the last one of its block."""
        if value is not None:
            self.open.append(value)
            self.recent = [*self.recent, value][-RECENT:]
            if len(self.first) < RECENT:
                self.first.append(value)
        if ends:
            self.blocks.append(sum(self.open) / len(self.open) if self.open else None)
            self.open = []

    def window(self, blocks_a_point: int) -> list[float] | None:
        """The last ten points of so many blocks each; None if there are not that many, or one is missing."""
        last = self.blocks[-POINTS * blocks_a_point :]
        if len(last) < POINTS * blocks_a_point or any(value is None for value in last):
            return None
        numbers = np.array(last, dtype=np.float64)
        return [float(point) for point in numbers.reshape(POINTS, blocks_a_point).mean(axis=1)]

    def both(self) -> tuple[float, float] | None:
        """(mean of the first values, mean of the last ones) once both are full and apart, else None."""
        if len(self.first) < RECENT or len(self.recent) < RECENT:
            return None
        return sum(self.first) / RECENT, sum(self.recent) / RECENT


_WATCHED = (
    "groups_without_signal",
    "groups_all_right",
    "completion_tokens",
    "duplicates",
    "truncated",
    "unparsed",
    "accuracy",
    "reward/format",
    "reward_failures",
    "box_ratio",
)


@dataclass(slots=True)
class Watch:
    """Follows a run step by step. `state` and `restore` make a resumed run warn at the same steps.

    `expected`: completions a step, to make a rate of `reward_errors`.
    """

    audits: Sequence[str] = ()
    expected: int = 0
    steps: int = 0
    series: dict[str, Series] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)
    """Name of a sounding alarm → the last step at which its condition held."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> tuple[Warned, ...]:
        """The warnings that begin with this step. `metrics`: its record; missing or null keys are passed over."""
        self.steps += 1
        ends = self.steps % BLOCK == 0
        values = {name: _number(metrics.get(name)) for name in ("reward_mean", *_WATCHED)}
        failures = (_number(metrics.get("reward_errors")), _number(metrics.get("reward_timeouts")))
        if self.expected and failures != (None, None):
            values["reward_failures"] = sum(x or 0.0 for x in failures) / self.expected
        values |= {f"audit:{name}": _number(find_metric(metrics, name)) for name in self.audits}
        for name, value in values.items():
            self.series.setdefault(name, Series()).add(value, ends)
        found = [*(self._audits(step) if ends else []), *self._alarms(step)]
        new = []
        for warned in found:
            if warned.name not in self.active:
                new.append(warned)
            self.active[warned.name] = step
        self.active = {name: last for name, last in self.active.items() if step - last < REARM}
        return tuple(new)

    def state(self) -> dict[str, Any]:
        """Everything `step` depends on, as plain JSON."""
        series = {
            name: {part: list(getattr(s, part)) for part in ("blocks", "open", "first", "recent")}
            for name, s in self.series.items()
        }
        return {"steps": self.steps, "active": dict(self.active), "series": series}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.steps = int(state["steps"])
        self.active = {name: int(step) for name, step in state["active"].items()}
        self.series = {
            name: Series(**{part: list(values) for part, values in parts.items()})
            for name, parts in state["series"].items()
        }

    def _audits(self, step: int) -> list[Warned]:
        """The rules for audits, for every window that ends with this block; the shortest window that warns counts."""
        found: dict[str, Warned] = {}
        blocks, size = len(self.series["reward_mean"].blocks), 1
        while size * POINTS <= blocks:
            reward = self.series["reward_mean"].window(size) if blocks % size == 0 else None
            for name in self.audits if reward is not None else ():
                audit = self.series[f"audit:{name}"].window(size)
                if audit is None or reward is None:
                    continue
                direction = DIRECTIONS.get(name, "high")
                if diverges(reward, audit, direction):
                    found.setdefault(name, _divergence(step, "audit", name, reward, audit, size))
                elif size > 1 and direction == "high" and stays_behind(reward, audit):
                    found.setdefault(name, _divergence(step, "behind", name, reward, audit, size))
            size *= 2
        reward_all = self.series["reward_mean"]
        early = 2 * RECENT <= self.steps <= 2 * BLOCK * POINTS  # later the windows see it, and see it end
        for name in self.audits if early else ():
            audit_all = self.series[f"audit:{name}"]
            if name not in found and departs(reward_all, audit_all, DIRECTIONS.get(name, "high")):
                ends = [
                    sum(part) / RECENT for one in (reward_all, audit_all) for part in (one.first, one.recent)
                ]
                found[name] = _divergence(step, "audit", name, ends[:2], ends[2:], 0)
        return list(found.values())

    def _alarms(self, step: int) -> list[Warned]:
        """What needs no audit: the last 20 steps against a bound, or against the first 20."""
        means = {name: self.series[name].both() for name in _WATCHED}
        found: list[Warned] = []

        def warn(name: str, metric: str, message: str) -> None:
            first, last = means[metric] or (math.nan, math.nan)
            text = message.format(first=first, last=last, n=RECENT)
            found.append(Warned(step=step, name=name, text=text, numbers={"first": first, "last": last}))

        right = (means["accuracy"] or (0.0, 0.0))[1]
        for name, (least, rise, message) in _BOUNDS.items():
            pair = means[name]
            if pair is not None and pair[1] >= least and pair[1] - pair[0] >= rise:
                if name == "duplicates" and right >= 0.8:
                    continue  # equal because right: nothing to worry about, `no_signal` says when to stop
                warn(_NAMES.get(name, name), name, message)
        length = means["completion_tokens"]
        if length and abs(length[1] - length[0]) >= 5 and not 0.5 <= length[1] / max(length[0], 1e-9) <= 2:
            warn("length_drift", "completion_tokens", _LENGTH)
        flood = _flood(self.series["box_ratio"], self.series["accuracy"])
        if flood is not None:
            text = _FLOODED.format(first=flood[0], last=flood[1], a=flood[2], b=flood[3], n=RECENT)
            numbers = {"first": flood[0], "last": flood[1]}
            found.append(Warned(step=step, name="box_flood", text=text, numbers=numbers))
        form, answers = means["reward/format"], means["accuracy"]
        if self.steps >= 100 and form and answers and form[1] >= 0.9 and form[1] - form[0] >= 0.3:
            spread = np.var(self.series["accuracy"].first) + np.var(self.series["accuracy"].recent)
            if answers[1] - answers[0] < 0.02 + 3 * math.sqrt(float(spread) / RECENT) and answers[1] < 0.5:
                warn("format_only", "reward/format", _FORMAT.format(a=answers[0], b=answers[1]))
        return found


def _flood(ratio: Series, accuracy: Series) -> tuple[float, float, float, float] | None:
    """(boxes a true box at the start and now, accuracy at the start and now) while boxes flood, else None.

    A flood: in the last 20 steps at least `FLOOD` times as many boxes a true box as in the first 5, more than one,
    and no more replies wholly right than then. It comes fast (docs/vlm-r1.md: within 20 steps), so the start is short.
    """
    if min(len(ratio.recent), len(accuracy.recent)) < RECENT:
        return None
    first, last = sum(ratio.first[:BLOCK]) / BLOCK, sum(ratio.recent) / RECENT
    right, now = sum(accuracy.first[:BLOCK]) / BLOCK, sum(accuracy.recent) / RECENT
    return (first, last, right, now) if last > 1 and last >= FLOOD * first and now <= right else None


# Metric → (mean of the last 20 steps at least, risen since the first 20 by at least, what to say).
_BOUNDS: Mapping[str, tuple[float, float, str]] = {
    "groups_without_signal": (
        0.9, -1.0,
        "In the last {n} steps {last:.0%} of the groups had equal rewards, so that nothing was learned from them; "
        "change the difficulty, the temperature or the reward.",
    ),
    "duplicates": (
        0.9, 0.1,
        "The replies of a group are nearly all equal ({first:.0%} at the start, {last:.0%} in the last {n} steps) and "
        "not right; raise the temperature or lower the learning rate.",
    ),
    "truncated": (
        0.5, 0.2,
        "Replies run into sampling.max_new_tokens without an end token: {last:.0%} in the last {n} steps, {first:.0%} "
        "at the start; raise the limit or penalise length.",
    ),
    "unparsed": (
        0.5, 0.2,
        "Answers cannot be read: {last:.0%} in the last {n} steps, {first:.0%} at the start; look at the replies.",
    ),
    "reward_failures": (
        0.05, -1.0,
        "Reward code failed on {last:.0%} of the completions of the last {n} steps; see reward_journal.jsonl.",
    ),
}  # fmt: skip
_NAMES = {"groups_without_signal": "no_signal", "reward_failures": "reward_errors"}
_LENGTH = (
    "The mean reply went from {first:.0f} tokens at the start to {last:.0f} in the last {n} steps; "
    "look at the replies."
)
_FLOODED = (
    "Replies name more and more boxes: {first:.2f} for each true one in the first 5 steps, {last:.2f} in the last {n}, "
    "and no more of them are right ({a:.2f} to {b:.2f}); the reward pays for boxes that are not there, od_f1 does not."
)
_FORMAT = (
    "Only the format is being learned: its reward went from {{first:.2f}} to {{last:.2f}} and accuracy from {a:.2f} to "
    "{b:.2f}; lower its weight, or make the problems easier."
)


def find_metric(metrics: Mapping[str, Any], name: str) -> Any:
    """The value of an audit in a step's record: a metric's own name, or a reward's (`reward/iou`, `reward/short`)."""
    for key in (name, f"reward/{name}", f"reward/{name.rpartition(':')[2]}"):
        if key in metrics:
            return metrics[key]
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _divergence(
    step: int, rule: str, name: str, reward: Sequence[float], audit: Sequence[float], size: int
) -> Warned:
    steps = BLOCK * POINTS * size
    when = f"Over the last {steps} steps" if steps else f"From the first {RECENT} steps to the last {RECENT}"
    verb = "moved the wrong way" if rule == "audit" else "stayed behind"
    text = (
        f"{when} the reward rose from {reward[0]:.3g} to {reward[-1]:.3g} while {name}, which is "
        f"not optimised, {verb}: {audit[0]:.3g} to {audit[-1]:.3g}; read the replies before you trust the reward."
    )
    numbers = {
        "steps": float(steps or step + 1),
        "reward_from": reward[0],
        "reward_to": reward[-1],
        "audit_from": audit[0],
        "audit_to": audit[-1],
    }
    return Warned(step=step, name=f"{rule}:{name}", text=text, numbers=numbers)
