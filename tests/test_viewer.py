"""The live display and the report: they show what is there and never obey what a model wrote."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fovea.config import Run
from fovea.runlog import RunLog, describe_run
from fovea.types import Problem, UserError
from fovea.viewer import as_text, visible
from fovea.viewer.charts import nice_ticks, smooth
from fovea.viewer.display import LiveDisplay, clock, interval, sparkline
from fovea.viewer.report import picture_svg, render_report, write_report

HOSTILE = "<answer>[1, 2, 3, 4]</answer><script>alert(1)</script>[bold red]\x1b[2J\u202e{{ 7*7 }}\ud800"


def metrics(step: int, share: float, rng: np.random.Generator) -> dict:
    return {
        "step": step,
        "reward_mean": 0.4 + 0.3 * share + rng.normal(0, 0.02),
        "reward/iou": 0.35 + 0.3 * share + rng.normal(0, 0.02),
        "reward/format": min(1.0, 0.9 + 0.1 * share),
        "accuracy": 0.3 + 0.3 * share + rng.normal(0, 0.03),
        "entropy": 0.9 - 0.5 * share + rng.normal(0, 0.02),
        "completion_tokens": 18 + rng.normal(0, 0.3),
        "truncated": 0,
        "groups_skipped": int(rng.integers(0, 5)),
        "grad_norm": 1 + rng.random(),
        "learning_rate": 5e-5,
        "loss": float("nan") if step == 3 else 0.01,
        "tokens": 2300,
        "seconds": 1.4,
    }


def evaluation(log: RunLog, step: int, phase: str, accuracy: float, *, pictures: int) -> dict:
    rng = np.random.default_rng(7)
    shown = []
    for i in range(pictures):
        small = Image.fromarray(rng.integers(60, 200, (8, 8, 3), dtype=np.uint8))
        picture = small.resize((96, 64), Image.Resampling.BICUBIC)
        x, y = (int(v) for v in rng.integers(4, 40, 2))
        picture.paste((250, 240, 230), (x, y, x + 18, y + 20))
        problem = Problem(
            id=f"t:{i}",
            task="t",
            images=(picture,),
            question=f"Where is the digit {i}?",
            answer=None,
            kind="box",
        )
        off = int(rng.integers(2, 14))
        off = 1 if phase == "after" else off
        predicted = [x + off, y - off, x + 18 + off, y + 20]
        shown.append(
            {
                "id": problem.id,
                "picture": log.pictures(problem)[0],
                "size": [96, 64],
                "question": problem.question,
                "kind": "box",
                "frame": "pixels",
                "truth": [x, y, x + 18, y + 20],
                "truth_text": f"[{x}, {y}, {x + 18}, {y + 20}]",
                "reply": HOSTILE if i == 0 else f"<answer>{predicted}</answer>",
                "correct": phase == "after" and i != 0,
                "truth_box": [x, y, x + 18, y + 20],
                "predicted_box": None if i == 0 else predicted,
            }
        )

    def summary(mean: float) -> dict:
        return {"mean": mean, "ci95": [mean - 0.043, mean + 0.043]}

    return {
        "step": step,
        "phase": phase,
        "task": "digits/locate",
        "split": "test",
        "n": 512,
        "accuracy": summary(accuracy),
        "swapped": summary(0.07),
        "looking": summary(accuracy - 0.07),
        "follow": summary(accuracy - 0.02),
        "blank": summary(0.05),
        "shown": shown,
    }


def write_run(folder: Path, *, steps: int = 60, finished: bool = True, pictures: int = 6) -> Path:
    """A synthetic run, written as a real one is, with hostile replies in it."""
    rng = np.random.default_rng(0)
    run = Run(recipe="quickstart", task="digits/locate", steps=60, run_dir="runs/quickstart-seed0")
    with RunLog(folder) as log:
        log.start(describe_run(run))
        log.evaluation(evaluation(log, 0, "before", 0.402, pictures=pictures))
        image = Image.new("RGB", (30, 20))
        picture = log.pictures(
            Problem(id="t:0", task="t", images=(image,), question="", answer=0, kind="number")
        )
        for step in range(steps):
            shown = [
                {"id": "t:0", "question": "Where?", "answer": [1, 2, 3, 4],
                 "pictures": picture, "text": HOSTILE,
                 "reward": 0.5, "parts": {"iou": 0.4, "format": 1.0}, "advantage": 1.0}
            ] * 3  # fmt: skip
            log.step(metrics(step, step / 60, rng), shown if step % 10 == 0 else [])
            if step == 30:
                log.evaluation(evaluation(log, 30, "during", 0.5, pictures=0))
        if finished:
            log.evaluation(evaluation(log, steps, "after", 0.583, pictures=pictures))
            log.finish(
                {"task": "digits/locate", "metric": "accuracy", "n": 512,
                 "before": {"mean": 0.402, "ci95": [0.36, 0.445]},
                 "after": {"mean": 0.583, "ci95": [0.54, 0.625]},
                 "looking": {"before": 0.332, "after": 0.513}, "steps": steps, "train_seconds": 280.4}
            )  # fmt: skip
    return folder


class Page(HTMLParser):
    """Collects tags and every address that a browser could follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def test_the_report_is_self_contained_and_obeys_no_reply(tmp_path):
    path = write_report(write_run(tmp_path / "run"))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.handlers == []
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "url(" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text
    assert "\x1b" not in text
    assert "\\x1b[2J\\u202e" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_the_report_shows_the_result_the_curves_the_pictures_and_the_recipe(tmp_path):
    text = render_report(write_run(tmp_path / "run"))
    assert "40.2 %" in text
    assert "58.3 %" in text
    assert "36.0 to 44.5" in text
    assert "looking" in text
    for title in ("reward by part", "accuracy", "entropy", "reply length", "gradient norm"):
        assert f"<h3>{title}" in text
    assert text.count('class="picture"') == 12  # six problems, before and after
    assert text.count('rect class="true"') == 12
    assert text.count('rect class="predicted"') == 10  # the hostile reply has no box
    assert "learning_rate: 1.0e-06" in text
    assert "fovea train quickstart" in text
    assert "finished: 60 steps in 4:40" in text
    for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        xml.etree.ElementTree.fromstring(figure)  # well-formed; raises if not


def test_the_report_of_an_unfinished_run_and_of_one_that_has_just_started(tmp_path):
    text = render_report(write_run(tmp_path / "a", steps=7, finished=False))
    assert "unfinished: 7 of 60 steps" in text
    assert "40.2 %" in text
    with RunLog(tmp_path / "b") as log:
        log.start({"run": {"recipe": "r"}})
    assert "No evaluation has been recorded yet" in render_report(tmp_path / "b")
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path / "nowhere")


def test_a_picture_outside_the_run_folder_is_not_embedded_and_a_wild_box_is_bounded(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    run = tmp_path / "run"
    (run / "pictures").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(run / "pictures" / "a.png")
    (run / "pictures" / "b.png").write_text("not a png")
    for name in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "pictures/none.png",
        "pictures/b.png",
        None,
        7,
    ):
        assert picture_svg(run, {"picture": name, "size": [4, 4]}) is None
    svg = picture_svg(
        run, {"picture": "pictures/a.png", "size": [4, 4], "predicted_box": [9, 1e300, -1e300, 2]}
    )
    assert svg is not None
    numbers = [
        float(v)
        for v in re.findall(r'rect class="predicted" x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', svg)[
            0
        ]
    ]
    assert numbers == [-4, 2, 12, 6]
    assert "predicted" not in (
        picture_svg(run, {"picture": "pictures/a.png", "size": [4, 4], "predicted_box": ["a"] * 4}) or ""
    )


def test_ticks_are_round_and_cover_the_data():
    assert nice_ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    # rough step 0.07: the next of 1, 2, 2.5, 5, 10 times 0.01 is 0.1
    assert nice_ticks(0.31, 0.59) == [0.3, 0.4, 0.5, 0.6]
    for low, high in (
        (0.0, 0.0),
        (5.0, 5.0),
        (-3.0, 1e6),
        (1e-9, 2e-9),
        (-2.0, -2.0),
        (2e-13, 2.2e-13),
        (0, 1e-299),
    ):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert len(ticks) >= 2
        assert ticks[-1] > ticks[0]
        assert len(ticks) < 9
    assert nice_ticks(-1e308, 1e308)[-1] <= 1e301  # drawn at the border, no overflow


def test_smoothing_is_a_bias_corrected_exponential_mean():
    # span 3: newest weight 1/2. 1; (1/2·1·1/2 + 1/2·3)/(3/4) = 7/3; constants stay constant.
    assert smooth([1.0, 3.0], 3) == pytest.approx([1.0, 7 / 3])
    assert smooth([2.0] * 9, 5) == pytest.approx([2.0] * 9)


def test_sparklines_average_long_histories_and_skip_holes():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([1, None, float("nan"), 1], 9) == "▁▁"
    assert sparkline([], 5) == ""
    assert (clock(75.9), clock(3661), clock(None), clock(float("nan"))) == ("1:15", "1:01:01", "–:––", "–:––")
    assert interval({"mean": 0.5, "ci95": [0.4, 0.6]}) == "0.500 [0.400, 0.600]"
    assert interval(None) == interval({"mean": None}) == "–"


def test_visible_disarms_controls_and_keeps_text():
    assert visible("a\tb\nü漢") == "a b\nü漢"
    assert visible("\x1b[2J\u202e\ud800\u2028\x00") == "\\x1b[2J\\u202e\\ud800\\u2028\\x00"
    assert visible("x" * 30, 10) == "x" * 10 + "…"


def test_truths_are_shown_short():
    assert as_text((796.875, 3.0, 1)) == "[796.88, 3, 1]"
    assert as_text([{"label": "ü", "bbox_2d": [1.5]}]) == '[{"label": "ü", "bbox_2d": [1.5]}]'
    assert as_text("a\n") == "a\n"
    assert as_text(None) == "null"


def watch(display: LiveDisplay, steps: int = 5) -> None:
    rng = np.random.default_rng(0)
    display.start(
        {"run": {"recipe": "quickstart", "model": "fovea-tiny", "task": "digits/locate", "steps": steps}}
    )
    summary = {"mean": 0.4, "ci95": [0.36, 0.44]}
    display.evaluation({"step": 0, "phase": "before", "accuracy": summary, "looking": None, "n": 512})
    for step in range(steps):
        sample = {"question": "Where?", "text": HOSTILE, "answer": 3, "reward": None, "parts": {"iou": 0.5}}
        display.step(metrics(step, step / steps, rng), [sample])


@pytest.mark.parametrize("width", [20, 60, 100, 200])
def test_the_live_display_fits_any_terminal_and_shows_replies_as_text(width):
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, height=50, force_terminal=True, color_system=None, _environ={}
    )
    with LiveDisplay(console=console) as display:
        watch(display)
        with console.capture() as capture:
            console.print(display)
    frame = capture.get()
    assert max(map(len, frame.splitlines())) <= width
    if width >= 60:
        assert "step 5/5" in frame
        assert "iou" in frame
        assert "entropy" in frame
        assert "<script>alert(1)" in frame.replace("\n", "")
    assert "\x1b[2J" not in stream.getvalue()
    assert "\\x1b[2J" in frame or width < 60
    display.finish({"task": "t", "steps": 5, "train_seconds": 7.0})
    assert "5 steps in 0:07" in stream.getvalue()


@pytest.mark.parametrize("plain", [True, False])
def test_warnings_come_first_and_a_loss_without_meaning_is_replaced(plain):
    stream = io.StringIO()
    terminal = {"force_terminal": True, "color_system": None, "_environ": {}}
    console = Console(file=stream, width=100, height=50, **({} if plain else terminal))
    with LiveDisplay(console=console, plain=plain, line_seconds=0) as display:
        algorithm = {"name": "grpo", "updates_per_rollout": 1}
        display.start({"run": {"recipe": "r", "task": "t", "steps": 9, "algorithm": algorithm}})
        for step in range(3):
            record = {"step": step, "reward_mean": 0.5, "reward_std": 0.2, "grad_norm": 1.5, "loss": 3e-8}
            record |= {"clip_fraction": 0.0}
            display.step(record | ({"warnings": [f"audit:f1 {HOSTILE}"]} if step else {}), [])
        with console.capture() as capture:
            console.print(display)
    text = stream.getvalue() if plain else capture.get()
    assert "The loss is 0 by construction" in text
    assert "gradient norm" in text
    assert "reward spread" in text
    assert "clipped" not in text
    assert "loss 3e-08" not in " ".join(text.split())
    assert "\x1b" not in text
    if plain:
        assert text.count("warning: audit:f1") == 1
    else:
        assert text.index("! audit:f1") < text.index("step 3/9")


def test_plain_lines_where_the_output_is_no_terminal():
    stream = io.StringIO()
    display = LiveDisplay(console=Console(file=stream, width=60), line_seconds=3600)
    watch(display)
    display.finish(
        {"task": "t", "n": 9, "before": {"mean": 0.4, "ci95": [0.3, 0.5]},
         "after": {"mean": 0.6, "ci95": None},
         "looking": {"before": None, "after": 0.3}, "steps": 5, "train_seconds": 61}
    )  # fmt: skip
    lines = stream.getvalue().splitlines()
    assert lines[0] == "fovea quickstart · fovea-tiny · digits/locate"
    assert lines[1] == "before training: accuracy 0.400 [0.360, 0.440] · n = 512"
    # The first and the last step, for an hour between lines has not passed.
    assert [line.split("  ")[0] for line in lines[2:4]] == ["step 1/5", "step 5/5"]
    assert lines[4:] == [
        "t: 5 steps in 1:01, n = 9 held out",
        "accuracy  0.400 [0.300, 0.500]  →  0.600",
        "looking   –  →  0.300",
    ]
    assert "\x1b" not in stream.getvalue()


def test_quiet_is_silent_and_eta_follows_the_nearer_limit():
    stream = io.StringIO()
    display = LiveDisplay(console=Console(file=stream), quiet=True)
    watch(display)
    display.finish({})
    assert stream.getvalue() == ""
    display = LiveDisplay(console=Console(file=io.StringIO()))
    display.start({"steps": 100, "train_seconds": 10})
    for step in range(4):
        display.step({"step": step, "seconds": 2.0}, [])
    assert display._eta() == pytest.approx(2.0)  # 96 steps would take 192 s, but 10 - 8 s are left
    assert display._fraction() == pytest.approx(0.8)


def test_an_ascii_terminal_gets_ascii_curves():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="replace")
    console = Console(file=stream, width=80, force_terminal=True, color_system=None, _environ={})
    with LiveDisplay(console=console) as display:
        watch(display)
    stream.flush()
    assert b"reward" in raw.getvalue()


def test_the_viewer_never_imports_torch():
    code = "import sys, fovea.viewer.display, fovea.viewer.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
