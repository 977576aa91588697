"""Reward code that hangs, dies, raises or returns nonsense: named, bounded, journalled, replayed. Real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fovea import rewards
from fovea.rewards.journal import NAME, Journal, hash_texts
from fovea.rewards.scorer import Job, Scorer, ScorerSettings, make_scorer
from fovea.types import Problem, RunFailed, UserError

PROBLEM = Problem(id="t:0", task="t", images=(), question="?", answer="a", kind="text")

# BAD in a reply makes a function misbehave. What is behind `trap` stands in the source, so nothing runs here.
MODULE = """
import os, random, re, signal, subprocess, sys, time

def forever(text, problem):
    while "BAD" in text: pass
    return 1.0

def regex(completions, **kwargs):
    for text in completions:
        if "BAD" in text: re.match(r"(a+)+$", "a" * 60 + "b")
    return [1.0] * len(completions)

def child(text, problem):
    if "BAD" in text:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.run(["sleep", "98765"])
    return 1.0

def leave(text, problem):
    if "BAD" in text: os._exit(3)
    return 1.0

def bomb(text, problem):
    kept = []
    while "BAD" in text: kept.append(bytearray(50_000_000))
    return 1.0

def raises(completions, **kwargs):
    return [1.0 / ("BAD" not in text) for text in completions]

def stops(text, problem):
    if "BAD" in text: raise SystemExit(1)
    return 1.0

def nan(text, problem):
    return float("nan") if "BAD" in text else 1.0

def text(text, problem):
    return "high" if "BAD" in text else 1.0

def length(completions, **kwargs):
    return [1.0 for text in completions if "BAD" not in text]

def longer(completions, **kwargs):
    return [1.0] * max(5, len(completions))

def once(completions, **kwargs):
    return {1.0 for _ in completions}

def single(completions, **kwargs):
    (text,) = completions
    return [1.0]

KEPT = []

def grows(text, problem):
    if "MORE" in text: KEPT.append(bytearray(b"x") * 350_000_000)
    return float(len(KEPT))

def no_reward(text, problem):
    return {"score_": 1.0} if "BAD" in text else 1.0

def slow(completions, **kwargs):
    time.sleep(0.25 * len(completions) ** 2.7)
    return [1.0] * len(completions)

def draws(completions, **kwargs):
    import numpy
    return [random.random() + numpy.random.rand() + len({"a", "b", "c"}) for _ in completions]

def set_order(text, problem):
    return float("".join({"0", "1", "2", "3", "4", "5"}))

def where(text, problem):
    return float(os.getpid())

def torch_free(text, problem):
    return float("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("user") / "bad.py"
    path.write_text(MODULE, encoding="utf-8")
    return str(path)


def scorer_of(module: str, name: str, journal: Path | None = None, **settings: object) -> Scorer:
    made = ScorerSettings(**({"timeout": 0.8, "on_error": "zero", "error_value": -1.0} | settings))  # type: ignore[arg-type]
    return make_scorer({f"{module}:{name}": 1.0}, settings=made, journal=journal)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("forever", "timeout"),
        ("regex", "timeout"),
        ("child", "timeout"),
        ("leave", "died"),
        ("bomb", "raised"),
        ("raises", "raised"),
        ("stops", "raised"),
        ("nan", "not_finite"),
        ("text", "type"),
    ],
)
def test_the_guilty_completion_is_found_and_named(module: str, name: str, kind: str) -> None:
    texts = ["good", "good", "fine", "this is BAD"]
    memory, limit = 1_000_000_000, 0.8 if kind == "timeout" else 5.0
    with scorer_of(module, name, memory_bytes=memory, timeout=limit) as scorer:
        began = time.monotonic()
        scores = scorer.weigh(texts, PROBLEM, step=2)
        assert time.monotonic() - began < 15
        assert scores.rewards.tolist() == [1, 1, 1, -1]
        (event,) = scores.events
        assert (event.kind, event.sample, event.problem, event.step) == (kind, 3, "t:0", 2)
        assert "completion 3 of problem t:0 in step 2, which begins 'this is BAD'" in event.sentence()
        metrics = scorer.take_metrics()
        assert metrics["reward_timeouts"] == (kind == "timeout")
        assert metrics["reward_errors"] == (kind != "timeout")
    assert "98765" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_a_list_that_fits_no_group_is_nobodys_alone(module: str) -> None:
    """Not halved down to single replies, which it may fit by accident."""
    for name, kind, said, metric in (
        ("length", "length", "returned 3 values for 4 completions", 4),
        ("longer", "length", "returned 5 values for 4 completions", 4),
        ("once", "type", "returned set {1.0}, not a list of numbers", 4),
    ):
        with scorer_of(module, name) as scorer:
            scores = scorer.weigh(["good", "good", "fine", "BAD"], PROBLEM, step=0)
            assert scores.rewards.tolist() == [-1] * 4
            assert {(event.kind, event.detail) for event in scores.events} == {(kind, said)}
            assert scorer.take_metrics()["reward_errors"] == metric
    with (
        scorer_of(module, "longer", on_error="stop") as scorer,
        pytest.raises(RunFailed, match="5 values for 4"),
    ):
        scorer.weigh(["a", "b", "c", "d"], PROBLEM, step=0)


def test_a_function_that_works_on_single_replies_only_is_named_and_counted(module: str) -> None:
    with scorer_of(module, "single", on_error="stop") as scorer:
        with pytest.warns(
            RuntimeWarning, match=r"raised ValueError: .* worked only on fewer or single replies"
        ):
            assert scorer.weigh(["a", "b", "c"], PROBLEM, step=0).rewards.tolist() == [1, 1, 1]
        scorer.weigh(["a", "b"], PROBLEM, step=1)  # said once, counted always
        assert scorer.take_metrics()["reward_errors"] == 5


def test_a_worker_that_grows_keeps_its_functions(module: str) -> None:
    """loky puts a bare process in the place of one that grew by 300 MB, looking once a second."""
    with scorer_of(module, "grows", timeout=5.0, on_error="stop") as scorer:
        for step, (text, count) in enumerate([("a", 0), ("MORE", 1), ("a", 1), ("a", 1)]):
            assert scorer.weigh([text, "b"], PROBLEM, step=step).rewards.tolist() == [count, count]
            time.sleep(1.05)
        assert scorer._workers[0].starts == 1


def test_a_worker_without_its_functions_is_started_again(module: str) -> None:
    with scorer_of(module, "raises", on_error="stop") as scorer:
        scorer.check([PROBLEM])
        worker = scorer._workers[0]
        worker._executor.submit(_forget).result(10)
        assert scorer.weigh(["a", "b"], PROBLEM, step=0).rewards.tolist() == [1, 1]
        assert worker.starts == 2
        worker._executor.submit(_forget).result(10)
        scorer.check([PROBLEM])
        assert worker.starts == 3


def _forget() -> None:
    from fovea.rewards import loading

    loading.LOADED.clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there a worker knows what it has")
def test_too_little_memory_is_said_before_the_run(module: str) -> None:
    with scorer_of(module, "nan", memory_bytes=int(0.0001 * 2**30)) as scorer:
        with pytest.raises(
            UserError, match=r"^reward_memory_gb=0.0001 is too small: a worker needs 0\.\d+ GB"
        ) as found:
            scorer.check([PROBLEM])
        assert "bad.py" not in str(found.value)


def test_messages_have_one_verb(module: str) -> None:
    with scorer_of(module, "no_reward") as scorer:
        (event,) = scorer.weigh(["a", "BAD"], PROBLEM, step=0).events
        assert ":no_reward' returned a dict without the key 'reward'" in event.sentence()
    with scorer_of(module, "nan", on_error="stop") as scorer:
        unsendable = replace(PROBLEM, meta={"lock": threading.Lock()})
        with pytest.raises(RunFailed, match=r":nan' raised an error on the way to its worker: .*pickle"):
            scorer.weigh(["a"], unsendable, step=0)


def test_a_time_out_stops_the_run_within_its_limit(module: str) -> None:
    with scorer_of(module, "forever", on_error="stop") as scorer:
        began = time.monotonic()
        with pytest.raises(
            RunFailed, match=r"took longer than .* on completion 1 .*set on_reward_error=zero"
        ):
            scorer.weigh(["a", "BAD", "BAD", "b"], PROBLEM, step=0)
        assert time.monotonic() - began < 8


def test_slow_is_not_guilty_and_all_guilty_is_bounded(module: str) -> None:
    with scorer_of(module, "slow", timeout=1.2) as scorer:  # two together take too long, neither alone does
        assert scorer.weigh(["x", "x"], PROBLEM, step=0).events == ()
    with scorer_of(module, "forever", timeout=0.2) as scorer:
        began = time.monotonic()
        scores = scorer.weigh(["BAD"] * 4, PROBLEM, step=0)
        assert len(scores.events) == 4
        # At most 5 limits of calls; the rest is starting workers, which is not counted.
        assert time.monotonic() - began < 5 * 0.2 + 2 * scorer._workers[0].starts


def test_the_journal_is_replayed_without_waiting(module: str, tmp_path: Path) -> None:
    path, texts = tmp_path / NAME, ["a", "BAD one"]
    with scorer_of(module, "regex", path) as scorer:
        first = scorer.weigh(texts, PROBLEM, step=4)
        written = path.read_bytes()
        assert written.count(b"\n") == 1
    path.write_bytes(written + b'{"step": 5, "problem"')  # killed in the middle of a line
    with scorer_of(module, "regex", path) as scorer:
        scorer.check([PROBLEM])
        began = time.monotonic()
        again = scorer.weigh(texts, PROBLEM, step=4)
        assert time.monotonic() - began < 0.5, "a replayed time-out must not be waited for"
        assert again.events == first.events
        np.testing.assert_array_equal(again.rewards, first.rewards)
        assert scorer.take_metrics() == {"reward_timeouts": 1, "reward_errors": 0, "reward_unscored": 0}
        assert path.read_bytes() == written
    path.write_bytes(b"nonsense\n")
    with pytest.raises(UserError, match="line 1 is not a line of the reward journal"):
        scorer_of(module, "regex", path)


def test_a_problem_twice_in_a_step_has_a_line_each(tmp_path: Path) -> None:
    """The same replies to the same problem: the first two scorings fail, the third does not. Resuming finds both."""
    source, path = tmp_path / "own.py", tmp_path / NAME
    source.write_text(
        "calls = []\ndef f(text, problem):\n    calls.append(1)\n    return 1 / (len(calls) // 9)\n",
        encoding="utf-8",
    )
    jobs = [Job(texts=("a",), problem=PROBLEM)] * 2
    with scorer_of(str(source), "f", path, timeout=20) as scorer:
        first = [scores.events for scores in scorer.weigh_all(jobs, step=0)]
    assert [len(events) for events in first] == [1, 1]
    lines = path.read_bytes().splitlines()
    assert [b"occurrence" in line for line in lines] == [False, True], (
        "the first one's line is as it always was"
    )
    journal = Journal(path)
    keys = [(0, "t:0", f"{source}:f", hash_texts(["a"]), json.loads(lines[0])["code"], n) for n in (0, 1, 2)]
    found = [journal.find(key) for key in keys]
    assert [None if entry is None else entry.key for entry in found] == [keys[0], keys[1], None]


def test_a_corrected_function_is_asked_again(tmp_path: Path) -> None:
    source, path = tmp_path / "own.py", tmp_path / NAME
    source.write_text("def f(text, problem): return 1 / len(text)\n", encoding="utf-8")
    with scorer_of(str(source), "f", path) as scorer:
        assert scorer.weigh(["", "a"], PROBLEM, step=0).rewards.tolist() == [-1, 1]
        assert scorer.weigh(["", "a"], PROBLEM, step=0).events, "replayed"
        assert scorer.weigh(["", "a"], PROBLEM, step=1).events, "another step is another line"
        assert path.read_bytes().count(b"\n") == 2
    source.write_text("def f(text, problem): return 1 / max(1, len(text))\n", encoding="utf-8")
    with scorer_of(str(source), "f", path) as scorer:
        assert scorer.weigh(["", "a"], PROBLEM, step=0).rewards.tolist() == [1, 1]


def test_random_rewards_are_a_function_of_seed_step_and_problem(module: str) -> None:
    problems = [
        Problem(id=f"t:{i}", task="t", images=(), question="", answer="", kind="text") for i in range(3)
    ]
    jobs = [Job(texts=("x", "y"), problem=problem) for problem in problems]
    state = random.getstate()
    found = []
    for workers, order in ((1, jobs), (2, jobs[::-1])):
        with scorer_of(module, "draws", timeout=20, workers=workers) as scorer:
            scores = scorer.weigh_all(order, step=1)
            found.append({job.problem.id: s.rewards.tolist() for job, s in zip(order, scores)})
            later = scorer.weigh_all(jobs[:1], step=2)[0].rewards.tolist()
    assert found[0] == found[1]
    assert len({tuple(values) for values in [*found[0].values(), later]}) == 4
    assert random.getstate() == state, "this process has drawn nothing"


def test_workers_do_not_differ(module: str) -> None:
    weights = {f"{module}:{name}": 1.0 for name in ("set_order", "where", "torch_free")}
    seen = []
    for _ in range(2):
        with make_scorer(weights) as scorer:
            seen.append(scorer.weigh(["x"], PROBLEM, step=0).parts)
    assert seen[0]["set_order"] == seen[1]["set_order"], "the order of a set depends on the process"
    assert seen[0]["where"] != seen[1]["where"]
    assert seen[0]["torch_free"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_signals_for_the_run_do_not_end_its_workers(module: str) -> None:
    with scorer_of(module, "where", timeout=20) as scorer:
        worker = scorer.weigh(["x"], PROBLEM, step=0).rewards[0]
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(int(worker), number)
        assert scorer.weigh(["x"], PROBLEM, step=1).rewards[0] == worker


ORPHAN = """
import os, sys, threading, time
from fovea.rewards.scorer import ScorerSettings, make_scorer
from fovea.types import Problem
problem = Problem(id="t:0", task="t", images=(), question="", answer="", kind="text")
scorer = make_scorer({sys.argv[1]: 1.0}, settings=ScorerSettings(timeout=60))
print(int(scorer.weigh(["x"], problem, step=0).rewards[0]), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_workers_end_when_the_run_is_killed(module: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, f"{module}:where"], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
        run.wait()
    for _ in range(60):
        time.sleep(0.1)
        if not _alive(worker):
            return
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its run")


def _alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


HOSTILE = {
    "open tags": "<answer>" * 12_500,
    "closing tags": "</think>" * 12_500,
    "pairs": "<think></think><answer></answer>" * 3_000,
    "digits": "<answer>" + "1" * 100_000,
    "short digits": "<answer>" + "1" * 9_900 + "</answer>",
    "thousands": "<answer>" + "1,111" * 1_950 + "</answer>",
    "half boxes": "<answer>" + "[1, 2, 3, " * 980 + "</answer>",
    "spaces": "<answer>[" + " " * 9_900 + "</answer>",
    "all spaces": " " * 100_000,
    "nested": '<answer>"bbox_2d"' + "[" * 9_900 + "</answer>",
    "objects": "<answer>" + '{"bbox_2d":[1,2,3,4],"label":"a"},' * 285 + "</answer>",
    "list": "<answer>[" + ",".join(['{"bbox_2d":[1,2,3,4],"label":"a"}'] * 280) + "]</answer>",
    "fences": "<answer>" + "```json" * 1_400 + "</answer>",
    "braces": "\\boxed{" * 14_000,
    "deep braces": "<answer>\\boxed{" + "{" * 9_900 + "</answer>",
    "unicode": "<answer>" + "\ufdfa" * 9_900 + "</answer>",
    "combining": "a" + "\u0301" * 100_000,
    "long combining": "<answer>a" + "\u0316\u0301" * 4_900 + "</answer>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_built_in_rewards_are_bounded(name: str) -> None:
    """They run in the run's own process: 100 kB of anything takes under 50 ms of CPU (best of 3, all rewards)."""
    text = HOSTILE[name]
    truths = {
        "box": ([1, 2, 3, 4], ("iou", "iou_50")),
        "text": ("a", ("exact", "format")),
        "number": (3, ("numeric",)),
        "choice": ("B", ("choice",)),
        "objects": ([{"bbox_2d": [1, 2, 3, 4], "label": "a"}] * 20, ("objects",)),
    }
    for kind, (answer, names) in truths.items():
        problem = Problem(id="p", task="t", images=(), question="", answer=answer, kind=kind)  # type: ignore[arg-type]
        for reward in names:
            spent = []
            for _ in range(3):
                began = time.process_time()
                rewards.REWARDS[reward](text, problem)
                spent.append(time.process_time() - began)
            assert min(spent) < 0.05, f"{reward} took {min(spent):.3f} s"
