"""The looking report: an engine that looks, one that does not, and one that only follows the question."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import loud_policy
from PIL import Image

from fovea.engines.scripted import ScriptedEngine
from fovea.evaluation import donors, evaluate, truth_text
from fovea.models.policy import Policy
from fovea.tasks import open_task
from fovea.types import Problem


@pytest.fixture(scope="module")
def qwen3() -> Policy:
    return loud_policy("qwen3_vl")


def count_reader(n: int) -> ScriptedEngine:
    """Counts perfectly by knowing every picture; "0" for a picture it has never seen (the grey one)."""
    known = {p.images[0].tobytes(): p.answer for p in open_task("digits/count", "test", 5).take(0, n)[0]}
    return ScriptedEngine(lambda p, _: f"<answer>{known.get(p.images[0].tobytes(), 0)}</answer>")


def test_who_looks_has_looking_and_follow_one(qwen3: Policy) -> None:
    task = open_task("digits/count", "test", 5)
    record = evaluate(qwen3, count_reader(24), task, 24, seed=0, max_new_tokens=64, samples=4, show=2)
    assert record["accuracy"]["mean"] == 1
    assert record["swapped"]["mean"] == 0  # a donor's count differs, and the reader reports the donor's
    assert record["looking"]["mean"] == 1
    assert record["follow"] == {"mean": 1.0, "ci95": record["follow"]["ci95"], "n": 24}
    assert record["blank"]["mean"] == 0
    assert record["pass_at_k"]["1"]["mean"] == record["pass_at_k"]["4"]["mean"] == 1
    json.dumps(record)


def test_who_does_not_look_has_looking_zero(qwen3: Policy) -> None:
    task = open_task("digits/count", "test", 5)
    blind = ScriptedEngine(lambda problem, sample: f"<answer>{3 + sample}</answer>")
    record = evaluate(qwen3, blind, task, 24, seed=0, max_new_tokens=64, samples=4)
    assert 0 < record["accuracy"]["mean"] < 0.5
    assert record["looking"] == {"mean": 0.0, "ci95": [0.0, 0.0], "n": 24}
    assert record["swapped"]["mean"] == record["accuracy"]["mean"] == record["blank"]["mean"]
    # samples say 3, 4, 5, 6: pass@4 is the share of counts 3 to 6, pass@1 a quarter of it
    assert record["pass_at_k"]["4"]["mean"] == pytest.approx(4 * record["pass_at_k"]["1"]["mean"])


def test_box_problems_are_answered_in_the_models_frame(qwen3: Policy) -> None:
    """Replies with the prompt's own truth (thousandths) are right, and boxes are shown in pixels of the picture."""
    task = open_task("digits/locate", "test", 5)
    engine = ScriptedEngine(lambda problem, _: f"<answer>{truth_text(problem)}</answer>")
    record = evaluate(qwen3, engine, task, 6, seed=0, max_new_tokens=200, show=6)
    assert record["accuracy"]["mean"] == 1
    for shown in record["shown"]:
        assert shown["predicted_box"] == pytest.approx(shown["truth_box"], abs=0.05)
        assert max(shown["truth_box"]) <= 64


def test_text_only_problems_have_no_looking(qwen3: Policy) -> None:
    class Sums:
        name, kind, chance = "sums", "number", 0.0

        def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
            problems = [
                Problem(
                    id=f"sums:{i}", task="sums", images=(), question=f"{i} + 1?", answer=i + 1, kind="number"
                )
                for i in range(cursor, cursor + n)
            ]
            return problems, cursor + n

    engine = ScriptedEngine(lambda problem, _: str(problem.answer))
    record = evaluate(qwen3, engine, Sums(), 5, seed=0, max_new_tokens=9, show=1)  # type: ignore[arg-type]
    assert record["accuracy"]["mean"] == 1
    for name in ("swapped", "looking", "follow", "blank"):
        assert record[name] == {"mean": None, "ci95": None, "n": 0}


def test_donors_have_the_same_size_and_another_answer() -> None:
    problems = open_task("digits/locate", "test", 5).take(0, 80)[0]
    problems[3] = replace(problems[3], images=(Image.new("RGB", (32, 32)),))
    swaps = {swap.index: swap for swap in donors(problems)}
    assert 3 not in swaps  # no other picture has its size
    assert len(swaps) == 79
    for swap in swaps.values():
        own, donor = problems[swap.index], problems[swap.donor]
        assert own.images[0].size == donor.images[0].size
        assert own.answer != donor.answer
        assert swap.same_question == (own.question == donor.question)
    assert sum(swap.same_question for swap in swaps.values()) > 70  # ten digits, 80 problems
