"""Episodes in the terminal, the report and the pages: film strips that show what was done and obey no reply."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from starlette.testclient import TestClient

from fovea.config import Run
from fovea.runlog import RunLog, describe_run
from fovea.types import UserError
from fovea.viewer import asked_of
from fovea.viewer.curves import run_charts
from fovea.viewer.display import LiveDisplay, describe_evaluation
from fovea.viewer.follow import RunFolder
from fovea.viewer.pages import Pages, read_query
from fovea.viewer.report import basis_of, measure_rows, measures_of, render_report
from fovea.viewer.server import build_app
from fovea.viewer.strips import MOST_FRAMES, ending_of, episodes_of, signed, strips_of

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e{{ 7*7 }}</pre>\ud800"
SUMMARY = {"mean": 0.5, "ci95": [0.3, 0.7]}


def turn(episode: str, number: int, **more: object) -> dict:
    """A turn's record, as `fovea.training.strips` writes it."""
    return {
        "id": f"{episode}#{number}",
        "question": "Move the number.",
        "pictures": ["pictures/a.png"],
        "answer": None,
        "text": "<think>current 3, target 5</think><answer>+</answer>",
        "stop": "eos",
        "reward": 0.0,
        "parts": {"environment": 0.0},
        "advantage": 0.0,
        "mean_log_prob": -0.1,
        "variant": "clean",
        "policy_version": 0,
        "episode": episode,
        "turn": number,
        "thought": "current 3, target 5",
        "action": "+",
        "legal": True,
        "value": 0.25,
        "state": {"current": 3, "target": 5},
        "terminated": False,
        "cut_off": False,
        "success": None,
        "total": None,
    } | more


def won(episode: str, **more: object) -> list[dict]:
    end = {"terminated": True, "success": True, "total": 1.0, "reward": 1.0}
    return [turn(episode, 0), turn(episode, 1, **(end | more))]


def hostile(episode: str) -> list[dict]:
    """An episode whose reply, thought, action, state and names are an attack, and which was cut off."""
    return [
        turn(episode, 4, thought=HOSTILE, action=HOSTILE, state={HOSTILE: HOSTILE}, question=HOSTILE),
        turn(
            episode,
            5,
            text=HOSTILE,
            legal=False,
            action="-",
            thought="",
            parts={"environment": -1.0, HOSTILE: 0.5},
            reward=-0.5,
            advantage=-2.0,
            cut_off=True,
            success=False,
            total=-4.0,
        ),
    ]


def evaluation(phase: str, shown: list[dict], **more: object) -> dict:
    return {
        "step": 0 if phase == "before" else 9,
        "phase": phase,
        "task": "number_line",
        "n": 40,
        "chance": 0.28125,
        "ceiling": 1.0,
        "accuracy": SUMMARY,
        "return": {"mean": -6.5, "ci95": [-9.0, -4.0]},
        "turns": {"mean": 7.8, "ci95": [6.0, 9.0]},
        "invalid": SUMMARY,
        "truncated": SUMMARY,
        "looking": SUMMARY,
        "thought_follows": SUMMARY,
        "rewards": {},
        "shown": shown,
    } | more


METRICS = {
    "reward_mean": -0.1,
    "accuracy": 0.5,
    "success": 0.5,
    "return": -1.5,
    "episode_turns": 4.5,
    "invalid": 0.0625,
    "thought_entropy": 0.2,
    "action_entropy": 0.3,
    "thought_distinct": 0.8,
    "value_loss": 0.4,
    "explained_variance": 0.1,
    "loss": 0.08,
    "grad_norm": 1.0,
    "groups_skipped": 0,
}
RUN = {
    "recipe": "mine.yaml",
    "steps": 3,
    "environment": {"name": "number_line"},
    "algorithm": {"name": "vl_dac", "beta": 0.0},
}


def write_run(folder: Path, shown: list[dict] | None = None) -> Path:
    with RunLog(folder) as log:
        log.start(describe_run(Run(**RUN)))
        Image.new("RGB", (64, 48), (90, 120, 60)).save(folder / "pictures" / "a.png")
        log.evaluation(evaluation("before", hostile("number_line:test:1:0") + won("number_line:test:1:1")))
        for step in range(3):
            default = won("number_line:train:0:2") + hostile("number_line:train:0:7")
            log.step(METRICS | {"step": step}, default if shown is None else shown)
        log.evaluation(evaluation("after", won("number_line:test:1:0") + won("number_line:test:1:1")))
        log.finish(
            {"task": "number_line", "n": 40, "chance": 0.28125, "metric": "accuracy", "before": SUMMARY,
             "after": SUMMARY, "return": {"before": -6.5, "after": 0.5}, "steps": 3, "train_seconds": 9.0}
        )  # fmt: skip
    return folder


class Page(HTMLParser):
    """Tags, and what a browser could follow or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name == "src"]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("episodes") / "run")


def read(folder: Path, path: str, status: int = 200) -> str:
    client = TestClient(build_app(Pages(RunFolder(folder)), "t"), base_url="http://127.0.0.1")
    answer = client.get(f"/t/{path}")
    assert answer.status_code == status, answer.text[:300]
    return answer.text


# ---------------------------------------------------------------- records


def test_how_an_episode_ends_is_read_from_its_last_turn():
    assert ending_of(turn("e", 0)) == "goes on"
    assert ending_of(turn("e", 0, terminated=True, success=True)) == "success"
    assert ending_of(turn("e", 0, terminated=True, success=False)) == "failed"
    assert ending_of(turn("e", 0, cut_off=True, success=False)) == "cut off"
    # a game may call an episode that was cut off a success
    assert ending_of(turn("e", 0, cut_off=True, success=True)) == "success"
    assert ending_of({"success": "yes", "cut_off": 1}) == "goes on"


def test_turns_are_put_together_by_episode_and_a_turn_that_comes_again_begins_another():
    records = [turn("a", 0), turn("a", 1), turn("b", 3), turn("a", 2), turn("a", 0), {"id": "no turn"}]
    found = [[(one["episode"], one["turn"]) for one in some] for some in episodes_of(records)]
    assert found == [[("a", 0), ("a", 1)], [("b", 3)], [("a", 2)], [("a", 0)]]


def test_numbers_are_short_and_signed():
    assert [signed(v) for v in (1.0, -0.5, 0.12345, 0, -0.0001)] == ["+1", "−0.5", "+0.123", "0", "0"]
    assert [signed(v) for v in (123456.5, -1e300)] == ["+1.23e+05", "−1e+300"]
    assert [signed(v) for v in (None, "1", True, float("nan"), float("inf"))] == [""] * 5


def test_records_of_any_shape_make_a_strip(tmp_path):
    odd = [
        turn(
            "e", 0, pictures=None, parts=None, state=None, thought=None, action=None, legal="yes", value="x"
        ),
        turn("e", 1, pictures=[7, "../../etc/passwd", "pictures/none.png"], parts=[1], advantage="big"),
        turn("e", 2, action={"a": 1.0}, reward=None, question=None, text=None, advantage=1e300),
    ]
    (strip,) = strips_of(tmp_path, odd, str)
    assert [frame["legal"] for frame in strip["frames"]] == [False, True, True]
    assert strip["frames"][0]["action"] is None
    assert strip["frames"][1]["pictures"] == [None, None, None]
    assert strip["frames"][2]["action"] == '{"a": 1}'
    assert [frame["share"] for frame in strip["frames"]] == [0, 0, 1]
    text = render_report(write_run(tmp_path / "run", odd))
    assert "done instead: nothing" in text
    assert "picture not in the run folder" in text
    assert "passwd" not in text


def test_a_long_episode_is_cut(tmp_path):
    (strip,) = strips_of(tmp_path, [turn("e", i) for i in range(MOST_FRAMES + 5)], str)
    assert (len(strip["frames"]), strip["left_out"], strip["turns"]) == (MOST_FRAMES, 5, MOST_FRAMES + 5)
    assert strip["ending"] == "goes on"


# ---------------------------------------------------------------- the report


def test_the_report_has_strips_before_and_after_and_of_training(folder):
    text = render_report(folder)
    assert text.count('class="film"') == 6  # two held-out episodes twice, two of the last step
    assert text.count('<li class="frame') == 12
    assert text.count('<li class="frame illegal"') == 2
    assert "no legal action; done instead: <code>-</code>" in text
    first = text.index("number_line:test:1:0")
    sides = text[first : text.index("number_line:test:1:1")]
    assert sides.index("k-before") < sides.index("cut off") < sides.index("k-after") < sides.index("success")
    assert "return −4" in sides
    assert "turns 5 to 6" in sides
    assert "current 3, target 5" in text
    assert "advantage" in text
    assert "Sampled replies" not in text
    assert "Held-out pictures" not in text


def test_the_report_obeys_no_reply(folder):
    text = render_report(folder)
    page = Page(text)
    assert "script" not in page.tags
    assert page.handlers == []
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "{{ 7*7 }}" in text
    assert "\\x1b[2J\\u202e" in text
    assert not re.search("[\x1b\u202e]", text)
    text.encode("utf-8")  # the lone surrogate is gone


def test_the_report_measures_episodes_by_their_names(folder):
    text = render_report(folder)
    assert "<title>mine · number_line · fovea</title>" in text
    assert "on 40 held-out episodes, greedy, 95 % intervals; random legal actions: 28.1 %" in text
    assert "the best policy: 100.0 %" in text
    assert "a guess that does not look" not in text
    for label in ("success", "looking", "thought follows", "invalid", "cut off", "return", "turns"):
        assert f"<strong>{label}</strong>" in text
    assert "-6.50" in text
    for title in ("success", "return of an episode", "turns of an episode", "replies without a legal action",
                  "entropy by part", "different thoughts", "value loss", "variance explained", "loss"):  # fmt: skip
        assert f"<h3>{title}" in text
    assert "<h3>accuracy" not in text


def test_a_return_is_no_share_and_does_not_stretch_the_axis():
    rows = {
        row["label"]: row for row in measure_rows(evaluation("before", []), evaluation("after", []), None)
    }
    assert rows["return"]["before"]["text"] == "-6.50"
    assert rows["return"]["before"]["span"] == "-9.00 to -4.00"
    assert rows["return"]["figure"] == ""
    assert rows["success"]["before"]["text"] == "50.0 %"
    assert all(row["left"] == 0 for row in rows.values())
    assert [label for label, _, _ in measures_of({"accuracy": SUMMARY})] == ["accuracy"]
    assert basis_of(None, None) == ""
    assert basis_of({"n": 5, "chance": None, "ceiling": None, "return": SUMMARY}, None) == (
        "on 5 held-out episodes, greedy, 95 % intervals"
    )


def test_curves_of_a_run_without_episodes_stay_as_they_were():
    titles = [
        chart["title"] for chart in run_charts({}, [{"step": 0, "accuracy": 0.5, "reward_std": 1.0}], [])
    ]
    assert titles == ["accuracy", "reward spread in a group"]
    taught = run_charts({}, [{"step": 0, "loss": 1.0, "groups_skipped": 0}], [evaluation("before", [])])
    assert [chart["title"] for chart in taught] == ["success", "looking (held out)", "loss"]  # of `fovea sft`


def test_a_report_of_many_pictures_stays_small(folder, monkeypatch):
    size = (folder / "pictures" / "a.png").stat().st_size
    monkeypatch.setattr("fovea.viewer.report.EMBEDDED", 3 * size)
    text = render_report(folder)
    assert text.count("<img") == 6  # three of the held-out strips, three of training's
    assert text.count("picture left out") == 6


# ---------------------------------------------------------------- the pages


def test_the_rollouts_page_shows_an_episode_at_a_time(folder):
    text = read(folder, "rollouts?step=2")
    assert "episode 1 of 2" in text
    assert text.count('class="film"') == 1
    assert "number_line:train:0:2" in text
    assert 'src="pictures/a.png"' in text
    second = read(folder, "rollouts?step=2&group=1")
    assert "cut off" in second
    assert "alert(1)&lt;/script&gt;" in second
    assert "script" not in Page(second).tags[Page(second).tags.index("main") :]
    assert Page(second).handlers == []
    assert not re.search("[\x1b\u202e]", second)


def test_episodes_can_be_filtered_by_their_end(folder):
    text = read(folder, "rollouts?step=2&end=cut+off")
    assert "episode 1 of 1" in text
    assert "number_line:train:0:7" in text
    assert "None of the 2 episodes" in read(folder, "rollouts?step=2&end=failed")
    assert "is not known" in read(folder, "rollouts?end=lost", 404)
    assert "episode 1 of 1" in read(folder, "rollouts?step=2&q=alert")  # one of its turns says so
    with pytest.raises(UserError, match="choose one of success, failed, cut off, goes on"):
        read_query({"end": "x"})


def test_the_held_out_page_and_the_overview_speak_of_episodes(folder):
    text = read(folder, "held-out")
    assert "Held-out episodes, before and after" in text
    assert text.count('class="film"') == 4
    assert "random legal actions: 28.1 %" in read(folder, "./")


# ---------------------------------------------------------------- the terminal


def watched(plain: bool) -> str:
    stream = io.StringIO()
    terminal = {} if plain else {"force_terminal": True, "color_system": None, "_environ": {}}
    console = Console(file=stream, width=150, height=60, **terminal)
    with LiveDisplay(console=console, plain=plain, line_seconds=0) as display:
        display.start({"run": RUN | {"method": "rl", "model": "fovea-tiny", "task": "digits/locate"}})
        display.evaluation(evaluation("before", []))
        for step in range(3):
            display.step(METRICS | {"step": step, "seconds": 1.0}, hostile("number_line:train:0:7"))
        with console.capture() as capture:
            console.print(display)
        display.finish(
            {"task": "number_line", "n": 40, "chance": 0.28125, "before": SUMMARY, "after": SUMMARY,
             "return": {"before": -6.5, "after": 0.5}, "steps": 3, "train_seconds": 9.0}
        )  # fmt: skip
    return stream.getvalue() if plain else capture.get()


def test_the_plain_display_names_the_game_and_what_its_episodes_did():
    text = watched(plain=True)
    assert "mine · fovea-tiny · number_line" in text
    assert "digits/locate" not in text
    assert "success (sampled) 0.500  return -1.5  invalid actions 0.062" in text
    assert "accuracy" not in text
    assert "before training: success 0.500 [0.300, 0.700] · return -6.500 [-9.000, -4.000]" in text
    assert "success   0.500 [0.300, 0.700]  →  0.500 [0.300, 0.700]" in text
    assert "(random actions 0.281, the best policy 1.000)" in text
    assert "return    -6.500  →  0.500" in text
    assert "by construction" not in text  # a critic's loss says something
    assert "loss 0.08" in text


def test_the_live_display_shows_a_turn_as_text():
    text = watched(plain=False)
    assert "success (sampled)" in text
    assert "value loss" in text
    assert "explained variance" in text
    assert "no legal action was said" in text
    assert "\x1b[2J" not in text
    assert "\\x1b[2J" in text


def test_other_runs_keep_their_names():
    assert asked_of({"task": "digits/locate", "environment": {"name": "none"}}) == "digits/locate"
    assert asked_of({"task": "t", "environment": None}) == "t"
    assert asked_of({"environment": {"name": "points24"}, "task": "digits/locate"}) == "points24"
    assert describe_evaluation({"accuracy": SUMMARY, "n": 3}).endswith(
        "accuracy 0.500 [0.300, 0.700] · n = 3"
    )


# ---------------------------------------------------------------- pictures


def test_a_turn_seen_twice_in_two_states_has_two_pictures(tmp_path):
    """The held-out episodes before and after training have the same names and other states."""
    from fovea.training.strips import strip

    with RunLog(tmp_path / "run") as log:
        log.start(describe_run(Run(**RUN)))
        names = [strip(log, trajectory(colour))[0]["pictures"] for colour in ((255, 0, 0), (0, 0, 255))]
        again = strip(log, trajectory((255, 0, 0)))[0]["pictures"]
    assert names[0] != names[1]
    assert again == names[0]
    pixels = []
    for name in names:
        with Image.open(tmp_path / "run" / name[0]) as image:
            pixels.append(image.getpixel((0, 0)))
    assert pixels == [(255, 0, 0), (0, 0, 255)]


def trajectory(colour: tuple[int, int, int]):
    from fovea.environments.replay import digest
    from fovea.types import Completion, Problem, Trajectory, Turn

    image = Image.new("RGB", (4, 4), colour)
    problem = Problem(id="g:test:1:0#0", task="g", images=(image,), question="?", answer="", kind="text")
    completion = Completion(
        token_ids=np.array([1]), text="+", log_probs=np.array([-0.1], dtype=np.float32), stop="eos"
    )
    one = Turn(
        prompt=SimpleNamespace(problem=problem), completion=completion, reward=0.0, action="+", legal=True,
        action_start=0, thought="", parts={}, anchor=digest((image, "?"))
    )  # fmt: skip
    return Trajectory(id="g:test:1:0", turns=(one,), terminated=True, truncated=False, success=False)
