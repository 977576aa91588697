"""The bench measures the two ways on the same work and reports in the agreed form."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fovea.bench import (
    Work,
    against_trl,
    bench,
    bench_against_trl,
    bench_curves,
    bench_memory,
    curves_svg,
    flop_bound,
    make_case,
    repeated_update,
    shared_update,
)
from fovea.bench.case import PartClock, full_length
from fovea.bench.ours import OurSteps
from fovea.cli import main
from fovea.types import UserError

TRL = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the extra `bench`")
SMALL = Work(image_tokens=16, prompts=2, group=4, response_tokens=4)


def test_records_have_the_agreed_keys_and_sharing_wins() -> None:
    records = bench(image_tokens=(64,), prompts=1, group=4, response_tokens=4, repeats=1)
    assert [r["phase"] for r in records] == ["rollout", "update"]
    for record in records:
        assert {
            "model",
            "phase",
            "image_tokens",
            "group",
            "response_tokens",
            "against",
            "ratio",
            "bound",
        } <= set(record)
        assert record["image_tokens"] == 64
        assert record["bound"] > 3
        # loose on purpose: a shared machine; `fovea bench` shows the figures
        assert record["ratio"] > 1


def test_both_ways_compute_the_same_gradient() -> None:
    case = make_case("qwen3_vl", 16, 2, 3, 5)
    shared_update(case)
    repeated_update(case)
    ours = dict(case.policy.model.named_parameters())
    # the bench's plain way does not ban tokens; banned logits carry little of a random model's probability
    for name, parameter in case.plain.named_parameters():
        if "lm_head" not in name:
            assert parameter.grad is not None
            mine = ours[name].grad
            assert mine is not None
            assert (
                torch.nn.functional.cosine_similarity(mine.flatten(), parameter.grad.flatten(), dim=0) > 0.99
            )


def test_bound_grows_with_the_picture_towards_the_group() -> None:
    bounds = [flop_bound(make_case("qwen2_5_vl", tokens, 1, 8, 8)) for tokens in (16, 64, 256)]
    assert 1 < bounds[0] < bounds[1] < bounds[2] < 8


@pytest.mark.long
def test_memory_is_measured_in_fresh_processes() -> None:
    record = bench_memory(image_tokens=16, group=2, response_tokens=256, tokens_per_pass=64)
    assert record["shared_memory_growth_mib"] > 0
    assert record["repeated_memory_growth_mib"] > record["shared_memory_growth_mib"]


def test_unknown_phase_is_refused() -> None:
    with pytest.raises(UserError, match="no bench phase"):
        bench(["nap"])


def spend(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_parts_of_a_clock_are_exclusive() -> None:
    clock = PartClock()
    with clock.part("outer"):
        spend(0.02)
        with clock.part("inner"):
            spend(0.05)
    spend(0.05)  # in no part
    taken = clock.take()
    assert 0.02 <= taken["outer"] < 0.04
    assert 0.05 <= taken["inner"] < 0.07
    assert clock.take() == {}


def test_our_step_samples_full_replies_and_changes_the_weights() -> None:
    ours = OurSteps(SMALL)
    before = against_trl.fingerprint(ours.policy.model)
    assert ours.step(0, ours.problems(2)) == 2 * 4 * 4
    after = against_trl.fingerprint(ours.policy.model)
    assert all(before[name] != after[name] for name in before if name.endswith("proj.weight"))
    parts = ours.clock.take()
    assert {"image and text", "generate", "forward and backward", "optimizer"} <= set(parts)


def test_records_are_found_again_and_a_stopped_bench_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(work: Work, *_: Any) -> dict[str, Any]:
        measured.append(work)
        return {"ratio": 2.0, "bound": 2.5}

    monkeypatch.setattr(against_trl, "need_trl", lambda: "1.16.0")
    monkeypatch.setattr(against_trl, "best_settings", lambda *_: against_trl.TrlSettings())
    monkeypatch.setattr(against_trl, "compare_steps", measure)
    out = tmp_path / "results" / "bench.json"
    bench_curves(groups=(2, 4), response_tokens=(), out=out)
    assert [work.group for work in measured] == [2, 4]
    rows = bench_curves(groups=(2, 4, 8), response_tokens=(32, 64), out=out)
    assert [(work.group, work.response_tokens) for work in measured] == [(2, 32), (4, 32), (8, 32), (8, 64)]
    assert rows == json.loads(out.read_text())["records"]
    assert not list(tmp_path.rglob("*.part"))
    assert len(bench_curves(groups=(16,), response_tokens=(), seconds=0.0, out=out)) == 4
    out.write_text("[1, 2")
    with pytest.raises(UserError, match="holds no bench results"):
        bench_curves(groups=(2,), response_tokens=(), out=out)


def step_record(**changes: Any) -> dict[str, Any]:
    record = {"phase": "step", "ratio": 4.0, "bound": 4.5, "trl_median_cpu_seconds": 3.0, **SMALL.record()}
    parts = {"generate": 0.3, "forward and backward": 0.4}
    return record | {"parts": parts, "trl_parts": {"generate": 1.0, "backward": 2.0}} | changes


def test_curves_are_drawn_with_the_bound() -> None:
    records = [step_record(group=g, ratio=g / 2) for g in (2, 4, 8)]
    records += [step_record(response_tokens=r) for r in (16, 64)]
    text = curves_svg(records)
    svg = ElementTree.fromstring(text)
    circles = [element for element in svg.iter() if element.tag.endswith("circle")]
    assert len(circles) == 3 + 3  # over G, and over R with the record that both have
    assert "bound" in text
    assert "nan" not in text
    with pytest.raises(UserError, match="no record of a step"):
        curves_svg([{"phase": "memory"}])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--against", "verl"], "known: trl"),
        (["--against", "trl", "--phase", "rollout"], "whole steps"),
        (["--curves"], "--against trl"),
        (["--image-tokens", "64,-1"], "whole numbers"),
    ],
)
def test_the_command_says_what_is_wrong(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 2
    assert says in capsys.readouterr().err


def test_without_trl_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"fovea-rl\[bench\]"):
        bench_against_trl()


@TRL
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_tiny_case_against_trl(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    rows = bench_against_trl(image_tokens=(16,), work=SMALL, repeats=1, out=out)
    (step,) = (row for row in rows if row["phase"] == "step")
    assert step["sampled_tokens_a_step"] == 32
    assert step["ratio"] > 1
    assert {"image and text", "generate", "loss forward", "backward", "optimizer"} <= set(step["trl_parts"])
    total = sum(step["trl_parts"].values())
    assert np.isclose(total, step["trl_cpu_seconds"], rtol=0.01)
    (memory,) = (row for row in rows if row["phase"] == "memory")
    assert memory["growth_mib"] > 0
    assert memory["trl_growth_mib"] > memory["growth_mib"]
    tried = [row["settings"] for row in rows if row["phase"] == "settings"]
    assert step["settings"] in tried
    assert "<svg" in curves_svg(rows)
    again = bench_against_trl(image_tokens=(16,), work=SMALL, repeats=1, out=out, seconds=1e9)
    assert again == rows


@TRL
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_sides_that_do_different_work_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Work(**SMALL.record() | {"response_tokens": 3})
    monkeypatch.setattr(
        OurSteps,
        "step",
        lambda self, index, problems: short.sequences * full_length(self.policy, short).max_new_tokens,
    )
    with pytest.raises(RuntimeError, match="different sampled tokens"):
        against_trl.compare_steps(SMALL, against_trl.TrlSettings(sequences_at_once=8), 1, 60.0)
