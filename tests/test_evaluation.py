"""The looking report: an engine that looks, one that does not, and one that only follows the question."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loud_policy
from PIL import Image

from fovea import cli, evaluation
from fovea.config import Run
from fovea.engines.scripted import ScriptedEngine
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.evaluation import Exam, donors, evaluate, examine, in_pieces, truth_text
from fovea.models.policy import Policy
from fovea.outcomes import Outcome, Swapped, compare, read_outcomes, summarize, write_outcomes
from fovea.rewards import correct
from fovea.statistics import proportion
from fovea.tasks import open_task
from fovea.tasks.own import ProblemList
from fovea.training.optim import make_optimizer
from fovea.training.update import sft_update
from fovea.types import Problem, Sampling, UserError


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


class Recording:
    """An engine that notes how many prompts it was given at once."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.sizes = engine, list[int]()

    def generate(self, prompts: Any, group: int, sampling: Sampling, **more: Any) -> Any:
        self.sizes.append(len(prompts))
        return self.engine.generate(prompts, group, sampling, **more)


def test_pieces_change_nothing(qwen3: Policy) -> None:
    """A real engine: greedy, sampled, swapped and blank replies in pieces of 4 are those of one piece of 13."""
    problems = open_task("digits/count", "test", 5).take(0, 13)[0]
    whole, pieces = (
        examine(
            qwen3,
            SharedPrefillEngine(qwen3),
            problems,
            Exam(seed=0, max_new_tokens=3, samples=2, at_once=at_once),
        )
        for at_once in (13, 4)
    )
    assert whole == pieces
    assert any(outcome.swapped is not None for outcome in whole)
    engine = Recording(count_reader(13))
    examine(qwen3, engine, problems, Exam(seed=0, max_new_tokens=9, samples=2, at_once=4))
    # greedy and sampled replies of 4 + 4 + 4 + 1 problems; then swapped, then blank ones that differ
    assert engine.sizes[:8] == [4, 4] * 3 + [1, 1]
    different = len({(problem.question, problem.images[0].size) for problem in problems})
    swaps = len(donors(problems))
    assert sum(engine.sizes[8:]) == swaps + different < 2 * 13
    assert max(engine.sizes) == 4


def test_pieces_are_bounded_in_pixels() -> None:
    def sized(side: int) -> Problem:
        image = Image.new("RGB", (side, side))
        return Problem(id="p", task="t", images=(image,), question="?", answer=1, kind="number")

    problems = [sized(1000)] * 20 + [sized(3000)] + [sized(10)] * 5
    assert [len(piece) for piece in in_pieces(problems, 128)] == [8, 8, 4, 1, 5]
    assert [len(piece) for piece in in_pieces(problems[:5], 2)] == [2, 2, 1]


def test_all_pictures_of_a_problem_are_swapped_for_those_of_one_donor() -> None:
    def sums(i: int, sizes: tuple[int, ...], answer: int) -> Problem:
        images = tuple(Image.new("RGB", (size, 8), (i, i, i)) for size in sizes)
        return Problem(id=str(i), task="t", images=images, question="?", answer=answer, kind="number")

    problems = [sums(0, (8, 9), 1), sums(1, (9, 8), 2), sums(2, (8,), 3), sums(3, (8, 9), 4), sums(4, (), 5)]
    # 0 and 3 have the same sizes in the same order; 1 has them in another order, 2 has one picture, 4 none
    assert [(s.index, s.donor) for s in donors(problems)] == [(0, 3), (3, 0)]
    # A truth that the checker cannot tell apart is no donor.
    assert donors([sums(0, (8,), 3), replace(sums(1, (8,), 3), answer="3.0")]) == []


def test_donors_are_those_of_the_plain_search() -> None:
    def plain(problems: list[Problem]) -> list[tuple[int, int]]:
        found = []
        for i, own in enumerate(problems):
            others = [(i + k) % len(problems) for k in range(1, len(problems))]
            fit = [
                j for j in others
                if problems[j].images[0].size == own.images[0].size
                and not correct(f"<answer>{truth_text(own)}</answer>", problems[j])
            ]  # fmt: skip
            same = [j for j in fit if problems[j].question == own.question]
            if fit:
                found.append((i, (same or fit)[0]))
        return found

    for name in ("digits/count", "digits/locate", "digits/read"):
        problems = open_task(name, "test", 6).take(0, 60)[0]
        assert [(s.index, s.donor) for s in donors(problems)] == plain(problems)


def test_donors_take_time_in_proportion_to_n(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 problems, all but one with one truth, or all with boxes that the checker calls equal."""
    image, asked = Image.new("RGB", (8, 8)), [0]

    def counted(text: str, problem: Problem) -> bool:
        asked[0] += 1
        return correct(text, problem)

    monkeypatch.setattr(evaluation, "correct", counted)
    same = [
        Problem(id=str(i), task="t", images=(image,), question="?", answer=int(i == 4000), kind="number")
        for i in range(5000)
    ]
    assert len(donors(same)) == 5000
    assert asked[0] <= 2 * 5000
    near = [replace(same[i], answer=(0, 0, 100, 100 + i / 1000), kind="box") for i in range(1000)]
    asked[0] = 0
    assert donors(near) == []
    assert asked[0] <= 2 * evaluation.CANDIDATES * 1000


def test_the_record_has_rewards_by_part_and_what_was_cut(qwen3: Policy) -> None:
    """Of four counts the engine tells every other one, without tags, and runs out of room at the others."""
    problems = open_task("digits/count", "test", 5).take(0, 4)[0]
    order = {problem.id: i for i, problem in enumerate(problems)}
    engine = ScriptedEngine(
        lambda problem, _: str(problem.answer) if order[problem.id] % 2 else "<answer>" + "9" * 40
    )
    found: list[Outcome] = []
    task = open_task("digits/count", "test", 5)
    record = evaluate(qwen3, engine, task, 4, seed=0, max_new_tokens=20, look=False, outcomes=found)
    assert record["accuracy"]["mean"] == record["rewards"]["numeric"]["mean"] == 0.5
    assert record["rewards"]["format"] == {"mean": 0.0, "ci95": record["rewards"]["format"]["ci95"]}
    assert record["truncated"]["mean"] == 0.5
    assert "looking" not in record
    assert [outcome.truncated for outcome in found] == [True, False, True, False]
    assert all(outcome.swapped is None and outcome.blank is None for outcome in found)


def test_problems_that_have_different_rewards_are_summed_up(qwen3: Policy) -> None:
    """What asks a judge has no `accuracy` here; each kind has its own default reward. Neither may depend on the
    order of the file, nor end an evaluation."""
    counts = open_task("digits/count", "test", 5).take(0, 3)[0]
    problems = [
        replace(counts[0], kind="text", answer="a cat", meta={"accu_reward_method": "llm"}),
        counts[1],
        replace(counts[2], kind="text", answer="three"),
    ]
    engine = ScriptedEngine(lambda problem, _: f"<answer>{problem.answer}</answer>")
    for order in (problems, problems[1:] + problems[:1], problems[::-1]):
        task = ProblemList(name="mixed", problems=tuple(order), shuffle=False)
        how: dict[str, Any] = {"seed": 0, "max_new_tokens": 20, "look": False}
        asked = evaluate(qwen3, engine, task, 3, rewards=["accuracy", "format"], **how)["rewards"]
        assert (asked["accuracy"]["mean"], asked["accuracy"]["n"]) == (1.0, 2)
        assert asked["format"]["mean"] == 1.0
        assert "n" not in asked["format"]  # all have it
        own = evaluate(qwen3, engine, task, 3, **how)["rewards"]
        assert {name: (own[name]["mean"], own[name].get("n")) for name in own} == {
            "numeric": (1.0, 1), "exact": (1.0, 2), "format": (1.0, None),
        }  # fmt: skip
    judged = summarize([outcome("1", True, rewards={})], seed=0, look=False)
    assert judged["rewards"] == {}


def test_a_label_that_is_there_is_not_absent(qwen3: Policy) -> None:
    """A file may name under `absent` another spelling of what is there; a right reply raises no false alarm."""
    (problem,) = open_task("shapes/detect", "test", 5).take(0, 1)[0]
    there = problem.answer[0]["label"]
    problem = replace(problem, meta=problem.meta | {"absent": [f" {str(there).upper()}", "zebra"]})
    found: list[Outcome] = []
    task = ProblemList(name="one", problems=(problem,), shuffle=False)
    engine = ScriptedEngine(lambda problem, _: f"<answer>{truth_text(problem)}</answer>")
    how: dict[str, Any] = {"seed": 0, "max_new_tokens": 400, "look": False}
    record = evaluate(qwen3, engine, task, 1, outcomes=found, **how)
    assert found[0].absent == ("zebra",)
    assert (record["detection"]["f1"]["mean"], record["detection"]["false_alarms"]["mean"]) == (1.0, 0.0)


@pytest.mark.long
def test_a_planted_cheat_is_seen() -> None:
    """A real model is trained on the pictures of other problems: it can learn how to answer and what is frequent,
    not how to look. Accuracy alone does not tell; looking's interval contains 0 and follow's contains chance."""
    policy = loud_policy("qwen3_vl", patch_size=8)
    with torch.no_grad():  # back to a usual size, to learn in few steps
        for name, parameter in policy.model.named_parameters():
            if parameter.ndim > 1:
                parameter.div_(4.0 if "visual" not in name else 2.0)
    run = Run(method="sft", steps=40, optimizer={"learning_rate": 3e-3, "warmup_steps": 4})  # type: ignore[arg-type]
    optimizer = make_optimizer(policy, run.optimizer)
    task = open_task("digits/count", "train", 9)
    for step in range(run.steps):
        problems = task.take(16 * step, 16)[0]
        shuffled = [
            replace(problem, images=other.images)
            for problem, other in zip(problems, problems[1:] + problems[:1])
        ]
        sft_update(policy, optimizer, [policy.prompt(problem) for problem in shuffled], run, step)
    record = evaluate(
        policy,
        SharedPrefillEngine(policy),
        open_task("digits/count", "test", 9),
        200,
        seed=0,
        max_new_tokens=16,
    )
    assert record["rewards"]["format"]["mean"] > 0.9  # it has learnt to answer,
    low, high = record["accuracy"]["ci95"]
    assert low <= 1 / 6 <= high  # as well as one can without looking
    low, high = record["looking"]["ci95"]
    assert low <= 0 <= high
    assert record["looking"]["n"] > 190
    low, high = record["follow"]["ci95"]
    assert low <= 1 / 6 <= high


# --- outcomes ----------------------------------------------------------------------------------------------------


def outcome(name: str, right: bool, **more: Any) -> Outcome:
    values: dict[str, Any] = {"question": "?", "truth": 1, "pictures": 1, "reply": "1", "truncated": False}
    return Outcome(id=name, correct=right, **(values | {"rewards": {"exact": float(right)}} | more))


def test_two_models_are_compared_in_pairs() -> None:
    """a is right on 1 to 6, b on 1, 2 and 7: both 2, only a 4, only b 1, neither 3; difference (6 - 3) / 10;
    McNemar's p of 1 in 5: 2 · (1 + 5) / 2^5."""
    a = [outcome(str(i), i <= 6) for i in range(1, 11)]
    b = [outcome(str(i), i in (1, 2, 7)) for i in range(10, 0, -1)]  # the order does not matter
    found = compare(a, [*b, outcome("11", True)], seed=0)
    assert found["counts"] == {"both": 2, "only_a": 4, "only_b": 1, "neither": 3}
    assert found["a"] == proportion([True] * 6 + [False] * 4)
    assert found["difference"]["mean"] == pytest.approx(0.3)
    assert found["mcnemar_p"] == 12 / 32
    assert (found["n"], found["unmatched"]) == (10, 1)
    assert found["pass_at_k"] == {}
    mirrored = compare(b, a, seed=0)
    assert mirrored["difference"]["mean"] == pytest.approx(-0.3)
    assert mirrored["mcnemar_p"] == found["mcnemar_p"]
    sampled = compare(
        [outcome("x", True, samples=(True, True)), outcome("y", True, samples=(True, False))],
        [outcome("x", True, samples=(False, True)), outcome("y", True, samples=(False, False))],
        seed=0,
    )
    assert sampled["pass_at_k"]["1"]["mean"] == 0.5
    assert sampled["pass_at_k"]["2"]["mean"] == 0.5
    with pytest.raises(UserError, match="no problem in common"):
        compare(a, [outcome("zero", True)], seed=0)
    with pytest.raises(UserError, match="Problem 1 differs"):
        compare(a, [outcome("1", True, truth=2)], seed=0)


def test_outcomes_are_written_and_read_again(tmp_path: Path) -> None:
    swapped = Swapped(donor="b", same_question=True, reply="\ud83d\u2028x", correct=False, follow=True)
    kept = [
        outcome("a", True, swapped=swapped, blank=False, samples=(True, False)),
        outcome("b", False, truth=[1, 2.5, 3, 4]),
    ]
    path = tmp_path / "new" / "outcomes.jsonl"
    write_outcomes(path, kept)
    assert read_outcomes(path) == kept
    assert summarize(kept, 0)["looking"]["n"] == 1
    assert summarize([], 0)["accuracy"] == {"mean": None, "ci95": None}
    good = path.read_bytes()
    for bad in (b"{}", b"[]", b'{"id": 1', b"\xff", b"[" * 100_000, good.replace(b"true", b'"yes"', 1)):
        path.write_bytes(good + bad)
        with pytest.raises(UserError, match=r"outcomes\.jsonl:3 is not an outcome"):
            read_outcomes(path)
    path.write_bytes(b"\n")
    with pytest.raises(UserError, match="holds no outcomes"):
        read_outcomes(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_outcomes(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_outcomes(path / "below", kept)


def test_the_command_measures_writes_and_compares(
    qwen3: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(tmp_path / "model"), str(tmp_path / "a.jsonl")
    qwen3.save(model)

    def fovea(*arguments: str) -> Any:
        assert cli.main(["evaluate", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    small = ("--task", "digits/count", "sampling.max_new_tokens=3")
    first = fovea(model, *small, "--n", "4", "--samples", "2", "--temperature", "0.7", "--out", out)
    assert (first["n"], first["temperature"], first["samples"]) == (4, 0.7, 2)
    both = fovea(model, *small, "--n", "3", "--against", model)
    assert both["comparison"]["n"] == 3
    assert both["comparison"]["difference"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    stored = fovea(out, "--against", out)
    assert stored["looking"] == first["looking"]
    assert stored["comparison"]["counts"]["only_a"] == 0
    assert cli.main(["evaluate", out, "--against", model]) == 2
    assert "can only be compared with another file" in capsys.readouterr().err
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "?", "answer": 1}\n')
    for arguments, says in (
        (["--data", str(data), "--task", "digits/count"], "leave one away"),
        ([model, *small, "--out", str(data)], "holds no outcomes"),
        ([model, *small, "--out", str(tmp_path)], "cannot be written"),
        ([model, *small, "--n", "99999", "--against", "nowhere"], "no model folder 'nowhere'"),
        ([model, *small, "--n", "99999", "--against", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    ):
        assert cli.main(["evaluate", *arguments]) == 2  # at once, before any model is asked
        assert says in capsys.readouterr().err
    assert data.read_text() == '{"question": "?", "answer": 1}\n'
    assert cli.main(["evaluate", out, "--n", "3"]) == 2
    assert "was measured already" in capsys.readouterr().err
