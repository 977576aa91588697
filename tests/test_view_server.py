"""`fovea view`: pages from a run folder, for its owner only, whatever stands in it and however far it is written."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from starlette.testclient import TestClient

from fovea.config import Run
from fovea.runlog import RunLog, describe_run
from fovea.types import UserError
from fovea.viewer.charts import is_number, points_of, thin
from fovea.viewer.follow import RunFolder, Tail
from fovea.viewer.groups import Geometry, Wanted, geometry, marks_of, reply_boxes, true_boxes
from fovea.viewer.pages import Pages, read_query
from fovea.viewer.pictures import Mark, draw, picture_path, png_size
from fovea.viewer.server import HEADERS, build_app, check_host, listen, serve
from fovea.viewer.watch import loss_note, no_signal_in_loss, warnings_of, watch_keys

TOKEN = "a-token"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e{{ 7*7 }}</pre>\ud800"


def record(problem: str = "t:0", **more: object) -> dict:
    return {
        "id": problem,
        "question": "Where is it?",
        "pictures": ["pictures/a.png"],
        "answer": [250, 500, 500, 1000],
        "frame": "thousandths",
        "text": "<answer>[250, 500, 750, 1000]</answer>",
        "stop": "eos",
        "reward": 0.5,
        "parts": {"iou": 0.5, "format": 1.0},
        "advantage": 0.25,
        "mean_log_prob": -0.4,
    } | more


def write_run(
    folder: Path, *, steps: int = 12, shown: dict[int, list[dict]] | None = None, **run: object
) -> Path:
    with RunLog(folder) as log:
        log.start(describe_run(Run(recipe="quickstart", steps=60, **run)))
        Image.new("RGB", (80, 40), (90, 120, 60)).save(folder / "pictures" / "a.png")
        summary = {"mean": 0.4, "ci95": [0.36, 0.44]}
        log.evaluation({"step": 0, "phase": "before", "n": 512, "accuracy": summary, "looking": summary})
        for step in range(steps):
            metrics = {
                "step": step,
                "reward_mean": step / 60,
                "reward/iou": 0.1,
                "loss": 1e-9,
                "grad_norm": 1.0 + step,
            }
            if step == 7:
                metrics["warnings"] = [f"audit:length {HOSTILE}"]
            log.step(metrics, (shown or {}).get(step, []))
    return folder


def client_of(folder: Path, **options: object) -> TestClient:
    app = build_app(Pages(RunFolder(folder)), TOKEN, ("127.0.0.1", "localhost", "::1"))
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=True, **options)


def get(client: TestClient, path: str, status: int = 200) -> str:
    answer = client.get(f"/{TOKEN}/{path}")
    assert answer.status_code == status, (path, answer.text[:300])
    return answer.text


class Page(HTMLParser):
    """Collects what a browser could follow or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.tags: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self._script = tag == "script"
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "formaction"):
                self.addresses.append(value or "")
            if name.startswith("on") or name == "style":
                self.inline.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.inline.append(data)


def check_page(text: str) -> Page:
    page = Page(text)
    assert page.inline == []  # the content security policy would refuse it
    assert page.tags.count("script") == 1
    for address in page.addresses:
        assert not re.match(r"[a-z]+:|//|/", address), address  # relative, so below the token
    for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        xml.etree.ElementTree.fromstring(figure)
    return page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    replies = [
        record(
            "t:0",
            text=HOSTILE,
            reward=0.0,
            advantage=-1.0,
            parts={"iou": 0.0, HOSTILE: float("nan")},
            stop="length",
        ),
        record("t:0", reward=1.0, advantage=1.0),
        record(
            "t:1", question=HOSTILE, pictures=["pictures/a.png", "../run.json"], reward=0.75, advantage=0.0
        ),
        record(HOSTILE, answer=None, frame="moon", pictures=[], reward=None, advantage=None, text="a cat"),
    ]
    return write_run(tmp_path / "run", shown={0: [record()], 10: replies})


def test_every_page_opens_and_loads_nothing_from_elsewhere(folder):
    client = client_of(folder)
    for path in ("", "rollouts", "rollouts?group=1", "rollouts?group=2", "held-out", "run"):
        check_page(get(client, path))
    overview = get(client, "")
    assert overview.index("audit:length") < overview.index("accuracy")  # warnings first
    assert "at step 7" in overview
    assert "The loss is 0 by construction" in overview
    assert "unfinished: 12 of 60 steps" in overview
    assert "40.0 %" in overview
    assert "36.0 to 44.0" in overview
    for title in ("reward by part", "gradient norm"):
        assert f"<h3>{title}" in overview
    assert "reward/iou" not in overview  # it is part of the first chart
    assert "fovea train quickstart" in get(client, "run")
    assert json.loads(get(client, "live.json"))["shown_step"] == 10
    for name in ("style.css", "pages.css", "pages.js"):
        assert "http" not in get(client, name)


def test_what_a_model_wrote_is_shown_and_never_obeyed(folder):
    client = client_of(folder)
    for path in ("", "rollouts", "rollouts?group=1", "rollouts?group=2", "rollouts?q=%3Cscript%3E"):
        text = get(client, path)
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "{{ 7*7 }}" in text or "49" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in get(client, "rollouts")


def test_a_group_side_by_side_with_boxes_in_the_pictures_frame(folder):
    text = get(client_of(folder), "rollouts?step=10")
    assert "group 1 of 3" in text
    assert text.count('class="card reply-card') == 2
    for shown in ("-1.000", "+1.000", "0.500", "format", "length", "mean log-prob", "-0.400"):
        assert shown in text
    # The picture is 80 by 40: 250 of 1000 is 20 pixels across, 500 is 20 pixels down.
    assert 'rect class="true" x="20" y="20" width="20" height="20"' in text
    assert 'rect class="plus" x="20" y="20" width="40" height="20" data-reply="2"' in text
    assert 'href="pictures/a.png"' in text
    assert "picture 2 is not in the run folder" in get(client_of(folder), "rollouts?step=10&group=1")


def test_filter_sort_and_search(folder):
    client = client_of(folder)
    assert "group 1 of 1" in get(client, "rollouts?low=0.9")
    assert "faded" in get(client, "rollouts?low=0.9")
    assert "group 1 of 2" in get(client, "rollouts?low=0.6&high=2")
    assert "None of the 3 groups" in get(client, "rollouts?low=5")
    assert "group 1 of 1" in get(client, "rollouts?q=A+CAT")
    assert "None of the 3 groups" in get(client, "rollouts?q=dog")
    text = get(client, "rollouts?sort=advantage")
    assert text.index('aria-label="reply 2"') < text.index('aria-label="reply 1"')
    assert "group 3 of 3" in get(client, "rollouts?group=99")  # the last one: a filter made the list shorter
    assert "earlier" in get(client, "rollouts?step=10")
    for query, sentence in (
        ("low=abc", "low=&#39;abc&#39; is not a number"),
        ("high=nan", "is not a number"),
        ("sort=no", "is not known"),
        ("step=1", "No completions of step 1"),
        ("step=../../x", "is not a whole number"),
        ("step=-1", "is not a whole number"),
        ("step=" + "9" * 30, "is not a whole number"),
        ("group=%00", "is not a whole number"),
    ):
        assert sentence in get(client, f"rollouts?{query}", 404)
    assert read_query({"low": " ", "q": " x "}) == (Wanted(text="x"), None, 0)


def test_the_token_and_the_host_are_needed(folder):
    client = client_of(folder)
    for path in ("/", "/rollouts", "/wrong/", f"/{TOKEN}x/", f"//{TOKEN}/", "/live.json", "/%ed%a0%80/"):
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code == 404, path
        assert "t:0" not in answer.text
    assert client.get(f"/{TOKEN}/").status_code == 200
    for host, status in (("localhost:1", 200), ("[::1]:1", 200), ("evil.example", 400), ("", 400)):
        assert client.get(f"/{TOKEN}/", headers={"host": host}).status_code == status
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, f"/{TOKEN}/").status_code == 405
    assert client.head(f"/{TOKEN}/").status_code == 200


def test_every_answer_has_a_strict_policy(folder):
    client = client_of(folder)
    for path in (
        f"/{TOKEN}/",
        f"/{TOKEN}/rollouts",
        f"/{TOKEN}/pictures/a.png",
        f"/{TOKEN}/no",
        "/wrong/",
        f"/{TOKEN}",
    ):
        headers = client.get(path, follow_redirects=False).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        for name in set(HEADERS) - {"cache-control"}:
            assert name in headers
    described = json.loads((folder / "run.json").read_text())
    described["resumes"] = [{"step": 4, "notes": [f"passed over step_6 {HOSTILE}"]}, 7]
    (folder / "run.json").write_text(json.dumps(described))
    assert "passed over step_6 &lt;script&gt;" in get(client, "run")
    broken = build_app(Pages(RunFolder(folder)), TOKEN)
    (folder / "run.json").write_text("[" * 100_000)  # too deep for the parser
    assert TestClient(broken).get(f"/{TOKEN}/").status_code == 200


HOSTILE_NAMES = (
    "../run.json", "..%2frun.json", "%2e%2e/run.json", "..%5crun.json", "....//run.json", "%2fetc%2fpasswd",
    "a.png/../../run.json", "link.png", "outside.png", "fake.png", "folder.png", "loop.png", "a.png%00", "%00",
    "x" * 5000, ".", "..", "a.png/", "~", "%ff%fe", "queue.png",
)  # fmt: skip


def test_only_pictures_of_the_run_are_served(folder, tmp_path):
    pictures = folder / "pictures"
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    Image.new("RGB", (2, 2)).save(folder / "inside.png")
    (pictures / "link.png").symlink_to(tmp_path / "secret.png")
    (pictures / "outside.png").symlink_to(folder / "inside.png")
    (pictures / "loop.png").symlink_to(pictures / "loop.png")
    (pictures / "fake.png").write_text("no picture")
    (pictures / "folder.png").mkdir()
    os.mkfifo(pictures / "queue.png")  # opening it would wait for ever
    client = client_of(folder)
    answer = client.get(f"/{TOKEN}/pictures/a.png")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG")
    for name in HOSTILE_NAMES:
        answer = client.get(f"/{TOKEN}/pictures/{name}", follow_redirects=False)
        assert answer.status_code in (404, 307), name
        assert not answer.content.startswith(b"\x89PNG")
    for name in ("run.json", "metrics.jsonl", "base.html.j2", "..%2f..%2fpages.py", "report.html.j2"):
        assert client.get(f"/{TOKEN}/{name}").status_code == 404
    for name in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "pictures/link.png",
        None,
        7,
        "a\0",
        "\ud800",
        "x" * 9999,
    ):
        assert picture_path(folder, name) is None


def test_a_run_that_is_being_written(tmp_path):
    folder = tmp_path / "run"
    with RunLog(folder) as log:
        log.start({"run": {"recipe": "r", "steps": 9}})
        client = client_of(folder)
        assert "No step has been logged yet" in get(client, "")
        assert "No completions have been written down yet" in get(client, "rollouts")
        assert "No held-out pictures" in get(client, "held-out")
        get(client, "run")
        before = json.loads(get(client, "live.json"))["version"]
        log.step({"step": 0, "reward_mean": 0.5}, [record(pictures=[])])
    assert json.loads(get(client, "live.json"))["version"] != before
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "reward_mean": 0.7, "warnings": ["h')
    assert "unfinished: 1 of 9 steps" in get(client, "")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'alf"]}\n[1]\nnonsense\n' + b"[" * 50_000 + b"\n")
    text = get(client, "")
    assert "unfinished: 2 of 9 steps" in text
    assert "half" in text
    assert "3 log line(s) could not be read" in text
    with (folder / "rollouts" / "step_000000.jsonl").open("ab") as file:
        file.write(b"7\n{broken\n" + json.dumps(record()).encode()[:40])
    text = get(client, "rollouts")
    assert text.count('class="card reply-card') == 1
    assert "2 line(s) of this step could not be read" in text
    (folder / "rollouts" / "step_000003.jsonl").write_text("")
    (folder / "rollouts" / "step_x.jsonl").write_text("")
    assert "holds no whole line" in get(client, "rollouts")
    (folder / "result.json").write_text('{"steps": 9, "train_seconds": 61}')
    assert "finished: 9 steps in 1:01" in get(client, "")
    os.utime(folder / "metrics.jsonl", (1, 1))
    (folder / "result.json").unlink()
    assert "nothing written for" in get(client, "")


def test_records_of_any_shape_make_a_page(tmp_path):
    odd = [
        {},
        {"id": 7, "text": 3, "parts": [1], "pictures": 5, "reward": "high", "advantage": True, "stop": None},
        record("big", reward=10**400, advantage=-(10**400), size=["a", 2], box_image="x", text=None, question=None),
        record("wild", text="<answer>[1e300, -1e300, 5, 5]</answer>", size=[80, 40]),
        record("frame", frame="resized"),
        record("objects", answer=[{"bbox_2d": [0, 0, 10, 10], "label": "a"}, 7],
               text='[{"bbox_2d": [1,1,2,2], "label": "a"}]'),
    ]  # fmt: skip
    folder = write_run(tmp_path / "run", steps=3)
    lines = "".join(json.dumps(item) + "\n" for item in odd)
    (folder / "rollouts" / "step_000000.jsonl").write_text(lines)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": "x", "reward_mean": null, "odd": [1], "big": 1' + "0" * 400 + ', "warnings": 5}\n'
        )
        file.write('{"step": 9, "warnings": [{"name": "audit:x", "message": "fell"}, 7, null]}\n')
    client = client_of(folder)
    assert "audit:x: fell" in get(client, "")
    for at in range(len(odd)):
        check_page(get(client, f"rollouts?group={at}"))
    assert "whose size the record does not hold" in get(client, "rollouts?group=4")
    assert 'x="-80"' not in get(client, "rollouts?group=4")
    for sort in ("advantage", "spread", "reward", "reward-low"):
        get(client, f"rollouts?sort={sort}&low=0")


def test_a_hundred_thousand_completions(tmp_path):
    """One huge step and many others: pages stay quick and only one group's texts are in memory."""
    folder = write_run(tmp_path / "run", steps=1)
    text = "<answer>[1, 2, 3, 4]</answer>" + "x" * 300
    for step, groups in ((0, 6250), (1, 6250)):
        rng = np.random.default_rng(step)
        with (folder / "rollouts" / f"step_{step:06d}.jsonl").open("w") as file:
            for g in range(groups):
                for reward in rng.random(8):
                    file.write(json.dumps(record(f"t:{g}", text=text, reward=float(reward))) + "\n")
    size = sum(path.stat().st_size for path in (folder / "rollouts").iterdir())
    assert size > 50_000_000
    client = client_of(folder)
    tracemalloc.start()
    try:
        began = time.perf_counter()
        assert "group 6001 of 6250" in get(client, "rollouts?step=1&group=6000")
        first = time.perf_counter() - began
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    began = time.perf_counter()
    for at in (0, 17, 6249):
        assert "t:" in get(client, f"rollouts?step=1&group={at}&sort=spread&low=0.2")
    again = (time.perf_counter() - began) / 3
    began = time.perf_counter()
    assert "group 1 of 1" in get(client, "rollouts?step=0&q=t:6249")
    search = time.perf_counter() - began
    print(
        f"first {first:.2f} s (traced), again {again:.3f} s, other step and search {search:.2f} s, {peak / 1e6:.1f} MB"
    )
    assert peak < 25e6  # a third of one file
    assert first < 20
    assert again < 1
    assert search < 10


def test_the_tail_follows_a_file_that_grows_and_one_that_is_cut_back(tmp_path):
    path = tmp_path / "m.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert tail.read() == [{"a": 1}, {"a": 2}]
    with path.open("a") as file:
        file.write(": 3}\n")
    assert [item["a"] for item in tail.read()] == [1, 2, 3]
    path.write_text('{"a": 1}\n{"b": 222222222222222222222222}\n{"a": 9}\n')  # a resume: cut back, grown past
    assert [list(item.items()) for item in tail.read()][1] == [("b", 222222222222222222222222)]
    path.write_text('{"a": 1}\n')
    assert tail.read() == [{"a": 1}]
    path.unlink()
    assert tail.read() == []


def test_boxes_are_placed_by_frame_or_not_at_all():
    def box(frame: str, file_size: tuple[int, int], **more: object) -> object:
        return geometry({"frame": frame, **more}, file_size).to_pixels((0.25, 0.5, 0.5, 1))

    assert box("unit", (80, 40)) == (20, 20, 40, 40)
    assert box("pixels", (80, 40)) == (0.25, 0.5, 0.5, 1)
    # Kept at 1024 pixels it may have been larger: only a recorded size tells.
    assert box("pixels", (1024, 40)) is None
    assert box("pixels", (1024, 40), size=[1024, 40]) == (0.25, 0.5, 0.5, 1)
    assert box("resized", (80, 40)) is None
    assert box("resized", (80, 40), size=[80, 40], resized=[160, 80]) == (0.125, 0.25, 0.25, 0.5)
    assert box("moon", (80, 40)) is None
    assert geometry({"frame": "unit", "size": [800, 400]}, (80, 40)).size == (800, 400)
    assert true_boxes([1, 2, 3, 4]) == [(1, 2, 3, 4)]
    assert true_boxes("text") == true_boxes(None) == true_boxes(7) == []
    assert reply_boxes("[5, 6, 7, 8]", [1, 2, 3, 4]) == [(5, 6, 7, 8)]
    assert reply_boxes("[5, 6, 7, 8]", "a word") == []  # a number list in a text answer is no box
    place = Geometry(size=(10, 10), resized=None, frame="pixels", known=True)
    thing = (
        '{"bbox_2d":[0,0,1,1],"label":"a"}'  # 250 of them are still an answer: less than 10,000 characters
    )
    many = record(text=f"[{','.join([thing] * 250)}]", answer=[json.loads(thing)])
    assert len(marks_of([many], place)) == 201


def test_small_pieces(tmp_path):
    assert [is_number(v) for v in (1, 0.5, True, None, "1", float("nan"), 10**400)] == [
        True,
        True,
        *[False] * 5,
    ]
    assert thin([(i, float(i)) for i in range(10)], 5) == [(1, 0.5), (3, 2.5), (5, 4.5), (7, 6.5), (9, 8.5)]
    assert points_of([{"step": 4, "a": 1}, {"step": None, "a": 1}, {"a": None}], "a") == [(4.0, 1.0)]
    svg = draw('a"b.png', (10, 20), [Mark(box=(9, 9, 1, 1), kind="plus", label="<1>")])
    assert 'href="a&#34;b.png"' in svg
    assert "&lt;1&gt;" in svg
    assert 'x="1" y="1" width="8" height="8"' in svg
    (tmp_path / "x").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert png_size(tmp_path / "x") is None
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path)


def test_where_the_loss_says_nothing_what_to_watch_is_said():
    def run(method: str = "rl", **algorithm: object) -> dict:
        return {"method": method, "algorithm": {"name": "grpo", "updates_per_rollout": 1} | algorithm}

    small, large = [{"loss": 1e-8}, {"loss": None}], [{"loss": 1e-8}, {"loss": 0.02}]
    assert "is 0 by construction" in str(loss_note(run(), small))
    assert "says nothing about learning" in str(loss_note(run(name="dapo"), large))
    assert loss_note(run(), [{"loss": None}]) is None
    for other in (
        run("sft"),
        run(updates_per_rollout=2),
        run(beta=0.1),
        run(prompts_per_update=4),
        run(replay=9),
        {},
    ):
        assert not no_signal_in_loss(other)
        assert loss_note(other, small) is None
    assert no_signal_in_loss(run(beta=0.1, kl_in="reward"))
    assert "clip_fraction" in watch_keys(run(updates_per_rollout=2))
    assert "clip_fraction" not in watch_keys(run())
    warned = warnings_of(
        [{"step": 1, "warnings": ["a", "b"]}, {"step": 4, "warnings": ["a"]}, {"warnings": "no"}]
    )
    assert [(w.text, w.first, w.last, w.times) for w in warned] == [("a", 1, 4, 2), ("b", 1, 1, 1)]


def test_hosts_and_ports(tmp_path):
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert check_host(host, False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(UserError, match="--allow-remote"):
            check_host(host, False)
    assert not check_host("0.0.0.0", True)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="--port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="not a run folder"):
        serve(tmp_path, browser=False)


def test_the_command_serves_until_it_is_interrupted(folder):
    code = "import sys; from fovea.cli.viewing import view; import typer; typer.run(view)"
    command = [sys.executable, "-c", code, str(folder), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()  # printed first
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", url)
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b"quickstart" in answer.read()
        process.send_signal(2)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def test_the_command_can_still_write_the_report(folder, capsys):
    app = typer.Typer()
    from fovea.cli.viewing import view

    app.command()(view)
    assert not app([str(folder), "--report"], standalone_mode=False)
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.index("audit:length") < text.index("Result")
    assert "The loss is 0 by construction" in text
    assert "<script>" not in text


def test_pages_can_be_read_from_several_threads(folder):
    client, errors = client_of(folder), []

    def read() -> None:
        try:
            for _ in range(5):
                get(client, "rollouts?step=10")
                get(client, "")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_server_never_imports_torch():
    code = "import sys, fovea.viewer.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
