"""The live terminal display of a run: an `Observer` built on rich, and a plain one-line-a-step form of it.

Shows what is there: any metric may be missing. Model output is shown as text, never as markup or escapes.
Try it: `fovea train quickstart`, or `fovea train quickstart | cat` for the plain form.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fovea.viewer import as_text, asked_of, visible
from fovea.viewer.charts import is_number
from fovea.viewer.strips import is_turn
from fovea.viewer.watch import Warned, loss_note, no_signal_in_loss, warnings_of, watch_keys

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*%#"

# Metric key, label, format. Rewards by part follow `reward_mean`; a key that a run does not log is left out.
ROWS = (
    ("reward_mean", "reward", "{:.3f}"),
    ("reward_std", "reward spread", "{:.3f}"),
    ("accuracy", "accuracy (sampled)", "{:.3f}"),
    ("success", "success (sampled)", "{:.3f}"),
    ("return", "return", "{:.3g}"),
    ("episode_turns", "turns an episode", "{:.1f}"),
    ("invalid", "invalid actions", "{:.3f}"),
    ("value_loss", "value loss", "{:.3g}"),
    ("explained_variance", "explained variance", "{:.3f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("completion_tokens", "reply tokens", "{:.1f}"),
    ("truncated", "truncated", "{:.3g}"),
    ("groups_skipped", "groups skipped", "{:.0f}"),
    ("grad_norm", "gradient norm", "{:.3g}"),
    ("clip_fraction", "clipped tokens", "{:.3g}"),
    ("loss", "loss", "{:.4g}"),
    ("learning_rate", "learning rate", "{:.2e}"),
    ("tokens_per_second", "tokens/s", "{:.0f}"),
)
SHOWN_WARNINGS = 3


def sparkline(values: Iterable[float | None], width: int, blocks: str = BLOCKS) -> str:
    """The last values as one character each, from lowest to highest block; longer histories are averaged.

    Values that are None or not finite are left out. A flat history is a flat line.
    """
    kept = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not kept or width < 1:
        return ""
    count = min(width, len(kept))
    edges = [round(i * len(kept) / count) for i in range(count + 1)]
    means = [sum(kept[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return blocks[0] * count
    top = len(blocks) - 1
    return "".join(blocks[round((v - low) / (high - low) * top)] for v in means)


def clock(seconds: float | None) -> str:
    """`75.3` as `1:15`; None as `–:––`."""
    if seconds is None or not math.isfinite(seconds):
        return "–:––"
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def tokens_per_second(metrics: dict[str, Any]) -> float | None:
    """As logged, or sampled tokens over the step's seconds; None if neither is there."""
    for key in ("tokens_per_seconds", "tokens_per_second"):
        if metrics.get(key) is not None:
            return float(metrics[key])
    tokens, seconds = metrics.get("tokens"), metrics.get("seconds")
    return tokens / seconds if tokens and seconds else None


def describe_evaluation(record: dict[str, Any]) -> str:
    """One line: `before training: accuracy 0.402 [0.360, 0.445] · looking 0.21 · n = 512`."""
    step = record.get("step")
    phase = {"before": "before training", "after": "after training"}.get(
        str(record.get("phase")), f"after {step} step" + ("" if step == 1 else "s")
    )
    parts = [f"accuracy {interval(record.get('accuracy'))}"]
    if is_of_episodes(record):
        parts = [f"success {interval(record.get('accuracy'))}", f"return {interval(record.get('return'))}"]
    if record.get("looking"):
        parts.append(f"looking {interval(record['looking'])}")
    parts.append(f"n = {record.get('n', '?')}")
    return f"{phase}: " + " · ".join(parts)


def interval(summary: dict[str, Any] | None) -> str:
    """`{"mean", "ci95"}` as `0.402 [0.360, 0.445]`; `–` where it is undefined."""
    if not summary or summary.get("mean") is None:
        return "–"
    low, high = summary.get("ci95") or (None, None)
    return f"{summary['mean']:.3f}" + (
        f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    )


def comparison_lines(comparison: dict[str, Any] | None) -> list[str]:
    """What `fovea.outcomes.compare` found, as a few lines; none where nothing was compared."""
    if comparison is None:
        return []
    counts = comparison["counts"]
    lines = [
        f"against {comparison['against']} on the same {comparison['n']} problems"
        + (f" ({comparison['unmatched']} in one of the two only)" if comparison["unmatched"] else ""),
        f"{'accuracy':<16}{interval(comparison['a'])}  against  {interval(comparison['b'])}",
        f"{'difference':<16}{interval(comparison['difference'])}  McNemar's exact p = {comparison['mcnemar_p']:.3g}",
        f"{'right':<16}both {counts['both']}, only this {counts['only_a']}, only the other {counts['only_b']}, "
        f"neither {counts['neither']}",
    ]
    return lines + [
        f"{'pass@' + k + ' differs':<16}{interval(value)}" for k, value in comparison["pass_at_k"].items()
    ]


def is_of_episodes(record: Mapping[str, Any]) -> bool:
    """Whether an evaluation's record or a result is that of episodes: `accuracy` is their success then."""
    return "return" in record


def guesses(record: Mapping[str, Any]) -> str:
    """`random actions 0.281, the best policy 1.000`: between which two the success of episodes lies, where known."""
    known = (("random actions", record.get("chance")), ("the best policy", record.get("ceiling")))
    return ", ".join(f"{label} {value:.3f}" for label, value in known if is_number(value))


def describe_result(
    result: dict[str, Any], folder: str | None, evaluation: Mapping[str, Any] | None = None
) -> list[str]:
    """The last lines of a run. `evaluation`: one of its records, for what the result does not say of episodes."""
    steps, seconds = result.get("steps", "?"), result.get("train_seconds")
    lines = [
        f"{result.get('task', 'run')}: {steps} steps in {clock(seconds)}, n = {result.get('n', '?')} held out"
    ]
    before, after = result.get("before"), result.get("after")
    if is_of_episodes(result):
        between = guesses({**(evaluation or {}), **result})
        lines.append(
            f"success   {interval(before)}  →  {interval(after)}" + (f"  ({between})" if between else "")
        )
        total = result["return"]
        lines.append(f"return    {_looking(total.get('before'))}  →  {_looking(total.get('after'))}")
    elif before or after:
        lines.append(f"accuracy  {interval(before)}  →  {interval(after)}")
    looking = result.get("looking") or {}
    if looking.get("before") is not None or looking.get("after") is not None:
        lines.append(f"looking   {_looking(looking.get('before'))}  →  {_looking(looking.get('after'))}")
    for name, both in (result.get("also") or {}).items():
        accuracy, looked = both["accuracy"], both["looking"]
        lines.append(
            f"{name} (not trained, n = {both['n']})  accuracy {interval(accuracy['before'])}  →  "
            f"{interval(accuracy['after'])}, looking {_looking(looked['before'])}  →  {_looking(looked['after'])}"
        )
    if folder:
        lines.append(f"run folder {folder}")
    return lines


def _looking(value: Any) -> str:
    if isinstance(value, dict):
        return interval(value)
    return "–" if value is None else f"{float(value):.3f}"


class LiveDisplay:
    """Watches a run in the terminal; an `Observer` and a context manager.

    Arguments: `console` where to draw (default: standard output), `quiet` draws nothing, `plain` forces
    one line a step (default: where the console is no terminal), at most every `line_seconds`.

    Leave the `with` block (or call `close`) so that the terminal is given back when a run fails.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        quiet: bool = False,
        plain: bool | None = None,
        line_seconds: float = 2.0,
    ) -> None:
        self.console = console or Console(highlight=False)
        self.quiet = quiet
        self.plain = (
            (not self.console.is_terminal or self.console.is_dumb_terminal) if plain is None else plain
        )
        self.line_seconds = line_seconds
        self.run: dict[str, Any] = {}
        self.folder: str | None = None
        self.history: list[dict[str, Any]] = []
        self.sample: dict[str, Any] | None = None
        self.evaluations: list[dict[str, Any]] = []
        self.warned: list[Warned] = []
        self.doing = "loading"
        self._live: Live | None = None
        self._started = time.monotonic()
        self._last_line = -math.inf

    # The four calls of an Observer.

    def start(self, run: dict[str, Any]) -> None:
        """`run` is run.json's content or the resolved recipe itself."""
        self.open(run)
        self.doing = "measuring the held-out accuracy before training"
        if self.plain and not self.quiet:
            self._print(f"fovea {self._title()}")
        for note in run.get("notes") or []:  # a checkpoint passed over, memory that may not be enough
            if not self.quiet:
                self._print(f"note: {note}")
        resumes = run.get("resumes")
        if resumes and not self.quiet:
            self._print(f"going on after step {resumes[-1].get('step')}")

    def open(self, run: dict[str, Any]) -> None:
        """Show the first frame before anything is loaded (a terminal only). `start` does so too."""
        self.run = run["run"] if isinstance(run.get("run"), dict) else run
        folder = run.get("folder") or self.run.get("run_dir")
        self.folder = str(folder) if folder else self.folder
        if self._live is None and not (self.plain or self.quiet):
            # Two frames a second keep the clock going and cost training next to nothing.
            self._live = Live(self, console=self.console, refresh_per_second=2, vertical_overflow="crop")
            self._live.start()

    def step(self, metrics: dict[str, Any], shown: list[dict[str, Any]]) -> None:
        self.history.append(metrics | {"tokens_per_second": tokens_per_second(metrics)})
        self.doing = ""
        if shown:
            self.sample = shown[-1]
        known = {warned.text for warned in self.warned}
        if metrics.get("warnings"):
            self.warned = warnings_of(self.history)
        if self.plain and not self.quiet:
            for warned in self.warned:
                if warned.text not in known:
                    self._print(f"warning: {warned.text}")
            self._step_line(metrics)
            if len(self.history) == 1 and (note := loss_note(self.run, self.history)):
                self._print(note)

    def evaluation(self, record: dict[str, Any]) -> None:
        self.evaluations.append(record)
        self.doing = "training" if record.get("phase") != "after" else ""
        if self.plain and not self.quiet:
            self._print(describe_evaluation(record))

    def finish(self, result: dict[str, Any]) -> None:
        self.doing = "finished"
        self.close()
        if not self.quiet:
            for line in describe_result(result, self.folder, next(iter(self.evaluations), None)):
                self._print(line)

    def close(self) -> None:
        """Give the terminal back, leaving the last picture on it. May be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None and kind is not None and not self.history:
            self._live.transient = True  # nothing was trained: the error stands alone
        self.close()

    # Plain form.

    def _print(self, line: str) -> None:
        # soft_wrap: a redirected line is never broken. Text: no markup in it is obeyed.
        self.console.print(Text(visible(line)), soft_wrap=True)

    def _step_line(self, metrics: dict[str, Any]) -> None:
        now = time.monotonic()
        done, total = self._progress()
        if done not in (1, total) and now - self._last_line < self.line_seconds:
            return
        self._last_line = now
        parts = [f"step {done}/{total}" if total else f"step {done}"]
        shown = {
            *(
                "reward_mean",
                "accuracy",
                "entropy",
                "completion_tokens",
                "groups_skipped",
                "tokens_per_second",
                *("success", "return", "invalid"),
            ),
            *(watch_keys(self.run) if no_signal_in_loss(self.run, self.history[-1:]) else ("loss",)),
        }
        latest = self.history[-1]
        if "success" in latest:  # the same number, by its own name
            shown.discard("accuracy")
        for key, label, form in ROWS:
            if key in shown and latest.get(key) is not None:
                parts.append(f"{label} {form.format(latest[key])}")
        self._print("  ".join([*parts, f"ETA {clock(self._eta())}"]))

    # Progress.

    def _progress(self) -> tuple[int, int | None]:
        done = int(self.history[-1].get("step", len(self.history) - 1)) + 1 if self.history else 0
        total = self.run.get("steps")
        return done, int(total) if total is not None else None

    def _spent(self) -> float:
        return sum(float(m.get("seconds") or 0) for m in self.history)

    def _budget(self) -> float:
        """Seconds of training after which the run stops (CPU seconds taken as wall); 0: no limit."""
        return float(self.run.get("cpu_seconds") or self.run.get("train_seconds") or 0)

    def _fraction(self) -> float | None:
        """How far the run is: by steps or by seconds, whichever ends it first; None if unknown."""
        done, total = self._progress()
        shares = [done / total] if total else []
        if self._budget():
            shares.append(self._spent() / self._budget())
        return min(1.0, max(shares)) if shares else None

    def _eta(self) -> float | None:
        """Seconds left by the mean of the last twenty steps, which follows a change of reply length."""
        done, total = self._progress()
        recent = [float(m["seconds"]) for m in self.history[-20:] if m.get("seconds") is not None]
        left = []
        if total is not None and recent:
            left.append((total - done) * sum(recent) / len(recent))
        if self._budget() and recent:
            left.append(self._budget() - self._spent())
        return max(0.0, min(left)) if left else None

    # Live form: rich calls this from its refresh thread, so lists are only read here, only appended to above.

    def __rich__(self) -> RenderableType:
        width = self.console.width
        warnings = [
            Text(f"! {visible(warned.text, 400)}", style="bold yellow")
            for warned in self.warned[:SHOWN_WARNINGS]
        ]
        parts: list[RenderableType] = [self._header(), *warnings, self._bar(width), self._table(width)]
        if note := loss_note(self.run, self.history) if self.history else None:
            parts.append(Text(note, style="dim"))
        if self.sample is not None and self.console.height >= 24:
            parts.append(self._sample_panel(self.sample))
        for record in self.evaluations[:1] + self.evaluations[1:][-1:]:
            parts.append(Text(describe_evaluation(record), style="cyan"))
        return Group(*parts)

    def _title(self) -> str:
        recipe = Path(str(self.run.get("recipe") or "run")).stem
        model, data = self.run.get("model", "?"), asked_of(self.run)
        title = f"{recipe} · {model} · {data}"
        return f"{title} · {self.folder}" if self.folder else title

    def _header(self) -> Text:
        text = Text(overflow="ellipsis", no_wrap=True)
        return text.append("fovea ", style="bold cyan").append(visible(self._title()))

    def _bar(self, width: int) -> RenderableType:
        done, total = self._progress()
        fraction = self._fraction()
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(
            total=1.0, completed=fraction or 0.0, width=None, complete_style="cyan", finished_style="green"
        )
        elapsed = clock(time.monotonic() - self._started)
        right = f"{elapsed}, ETA {clock(self._eta())}" if width >= 60 else elapsed
        grid.add_row(f"step {done}/{total}" if total is not None else f"step {done}", bar, right)
        if self.doing and self.doing != "finished":
            return Group(grid, Text(f"{self.doing} …", style="dim", overflow="ellipsis", no_wrap=True))
        return grid

    def _table(self, width: int) -> RenderableType:
        if not self.history:
            return Text("")
        latest = self.history[-1]
        blocks = ASCII_BLOCKS if self.console.options.ascii_only else BLOCKS
        room = max(8, min(48, width - 40))
        table = Table(box=None, padding=(0, 1), show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=22)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        for key, label, form in self._rows(latest):
            value = latest.get(key)
            shown = "–" if value is None else form.format(value)
            main = key in ("reward_mean", "accuracy", "success")
            style = "bold" if main else "default"
            line = sparkline((m.get(key) for m in self.history[-400:]), room, blocks)
            table.add_row(
                Text(label, style=style),
                Text(shown, style=style),
                Text(line, style="cyan" if main else "dim cyan"),
            )
        return table

    def _rows(self, latest: dict[str, Any]) -> list[tuple[str, str, str]]:
        rows = []
        left_out = {"loss"} if no_signal_in_loss(self.run, self.history[-1:]) else set()
        if "success" in latest:
            left_out.add("accuracy")
        if "clip_fraction" not in watch_keys(self.run):
            left_out.add("clip_fraction")
        for key, label, form in ROWS:
            if key in left_out:
                continue
            if any(m.get(key) is not None for m in (self.history[0], latest)):
                rows.append((key, label, form))
            if key == "reward_mean":
                parts = [k for k in latest if k.startswith("reward/")]
                rows += [(k, "  " + visible(k.removeprefix("reward/"), 18), "{:.3f}") for k in parts]
        return rows

    def _sample_panel(self, sample: dict[str, Any]) -> RenderableType:
        text = Text(overflow="fold")
        truth = ("truth  ", sample.get("answer", sample.get("truth")), "default")
        if is_turn(sample):
            done = as_text(sample.get("action") or "nothing")
            truth = (
                "done   ",
                done if sample.get("legal") else f"{done} (no legal action was said)",
                "default",
            )
        for label, value, style in (
            ("asked  ", sample.get("question"), "default"),
            ("reply  ", sample.get("text", sample.get("reply")), "bold"),
            truth,
        ):
            flat = visible(as_text(value), 400).replace("\n", " ⏎ ")
            text.append(label, style="dim").append(flat + "\n", style=style)
        text.append("reward ", style="dim")
        reward = sample.get("reward")
        text.append("–" if reward is None else f"{float(reward):.3f}", style="bold")
        for name, value in (sample.get("parts") or {}).items():
            text.append(
                f"  {visible(str(name), 20)} {'–' if value is None else format(float(value), '.3f')}",
                style="dim",
            )
        return Panel(text, title="one sampled reply", title_align="left", border_style="dim", expand=True)
