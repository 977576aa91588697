"""The loop: both methods run on a random model, equal seeds write equal logs, the user's file runs through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loud_policy
from PIL import Image
from safetensors.torch import load_file

from fovea import checkpoints
from fovea.algorithms import ALGORITHMS
from fovea.config import Run, load_run
from fovea.models.policy import Policy
from fovea.models.shared_prefix import score
from fovea.rollouts import rollout_metrics, to_samples
from fovea.runlog import RunLog
from fovea.training import train
from fovea.training.optim import learning_rate, make_optimizer
from fovea.training.update import update
from fovea.types import Completion, Group, Problem, Sampling, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2.5-VL as a model folder (its boxes are in resized pixels, its patches 14)."""
    path = tmp_path_factory.mktemp("model")
    loud_policy("qwen2_5_vl").save(path)
    return path


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k and "memory" not in k} for line in lines]


def short(folder: Path, run_dir: Path, *overrides: str) -> Run:
    always = ["steps=2", "prompts=2", "group=4", "sampling.max_new_tokens=6", "show_every=1"]
    evaluation = ["evaluation.n=4", "evaluation.during=2", "evaluation.every=1", "evaluation.samples=2"]
    return load_run("quickstart", [f"model={folder}", f"run_dir={run_dir}", *always, *evaluation, *overrides])


def write_numbers(folder: Path, n: int = 30) -> Path:
    """A file whose numeric answers are anything: a random model's replies hold one number now and then."""
    for i in range(n):
        Image.fromarray(np.full((28 + i, 56, 3), 8 * i % 256, np.uint8)).save(folder / f"{i}.png")
    lines = [{"image": f"{i}.png", "question": f"Picture {i}?", "answer": "x"} for i in range(n)]
    path = folder / "my.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_users_file_runs_twice_with_equal_logs(folder: Path, tmp_path: Path) -> None:
    data = write_numbers(tmp_path)
    seen = []
    for name in ("a", "b"):
        result = train(short(folder, tmp_path / name, f"data={data}", "rewards={exact: 1}", "evaluation.n=3"))
        seen.append(metrics_of(tmp_path / name))
        assert result["n"] == 3
        assert result["steps"] == 2
        assert {"task", "metric", "before", "after", "looking", "train_seconds"} <= set(result)
    assert seen[0] == seen[1]
    wanted = {"step", "reward_mean", "entropy", "completion_tokens", "groups_skipped", "grad_norm"}
    assert wanted <= set(seen[0][0])
    rollouts = (tmp_path / "a" / "rollouts" / "step_000000.jsonl").read_text().splitlines()
    assert len(rollouts) == 8  # two problems of `show_groups`
    assert (tmp_path / "a" / json.loads(rollouts[0])["pictures"][0]).is_file()
    phases = [
        json.loads(line)["phase"] for line in (tmp_path / "a" / "evaluations.jsonl").read_text().splitlines()
    ]
    assert phases == ["before", "during", "after"]


def test_another_seed_draws_something_else(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(short(folder, tmp_path / str(seed), f"seed={seed}", "steps=1", "evaluation.samples=0"))
    assert metrics_of(tmp_path / "0") != metrics_of(tmp_path / "1")


def test_sft_learns_its_replies_and_its_checkpoint_is_the_model(folder: Path, tmp_path: Path) -> None:
    run = short(
        folder, tmp_path / "sft", "method=sft", "steps=8", "optimizer.learning_rate=0.003", "save_every=4"
    )
    train(run)
    losses = [line["loss"] for line in metrics_of(tmp_path / "sft")]
    assert np.mean(losses[-2:]) < 0.7 * np.mean(losses[:2])
    saved = checkpoints.newest(tmp_path / "sft")
    assert saved is not None
    assert saved.name == "step_8"
    assert {path.name for path in saved.parent.glob("step_*")} == {
        "step_1",
        "step_4",
        "step_8",
    }  # 1: the best
    assert (
        checkpoints.read(saved).logs["metrics.jsonl"] == (tmp_path / "sft" / "metrics.jsonl").stat().st_size
    )
    weights = load_file(saved / "model" / "model.safetensors")
    before = load_file(folder / "model.safetensors")
    assert weights.keys() == before.keys()
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    (saved / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json is missing or was changed"):
        checkpoints.read(saved)


def test_cpu_budget_ends_a_run(folder: Path, tmp_path: Path) -> None:
    result = train(short(folder, tmp_path / "r", "method=sft", "steps=1000", "cpu_seconds=0.5"))
    assert 1 <= result["steps"] < 1000
    assert result["train_cpu_seconds"] >= 0.5


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("task=digits/locat", "did you mean 'digits/locate'"),
        ("rewards={iuo: 1}", "no reward 'iuo'"),
        ("rewards={choice: 1}", "Reward 'choice' needs"),
        ("model=nowhere", "no model folder 'nowhere'"),
        ("algorithm.name=grop", "did you mean 'grpo'"),
        ("data=nowhere.jsonl", r"data file nowhere\.jsonl does not exist"),
    ],
)
def test_bad_names_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, override: str, what: str
) -> None:
    with pytest.raises(UserError, match=what):
        train(short(folder, tmp_path / "r", override))
    assert not (tmp_path / "r").exists()


def test_learning_rate_by_hand() -> None:
    section = load_run(
        "quickstart", ["optimizer={learning_rate: 1.0, warmup_steps: 2, schedule: linear}"]
    ).optimizer
    # warm-up 1/2, 2/2; then 8 steps down: 1, 7/8, …, 1/8
    assert [learning_rate(section, step, 10) for step in (0, 1, 2, 3, 9)] == [0.5, 1.0, 1.0, 0.875, 0.125]


# --- one update, piece by piece ---------------------------------------------------------------------------


@pytest.fixture
def qwen3() -> Policy:
    return loud_policy("qwen3_vl")


def groups_of(policy: Policy, rewards: list[list[float]]) -> list[Group]:
    groups = []
    for g, reward in enumerate(rewards):
        image = Image.new("RGB", (56, 56), (40 * g, 0, 90))
        problem = Problem(id=str(g), task="t", images=(image,), question="?", answer="x", kind="text")
        prompt = policy.prompt(problem)
        tokens = [policy.encode_reply("abc"[: 1 + i % 3]) for i in range(len(reward))]
        flat, _ = score(policy, [prompt], [(0, ids) for ids in tokens], Sampling())
        old = np.split(flat.numpy(), np.cumsum([len(ids) for ids in tokens])[:-1])
        completions = tuple(
            Completion(token_ids=ids, log_probs=log_probs, text="", stop="eos")
            for ids, log_probs in zip(tokens, old, strict=True)
        )
        groups.append(
            Group(problem=problem, prompt=prompt, completions=completions,
                  rewards=np.array(reward), parts={"exact": np.array(reward)})
        )  # fmt: skip
    return groups


def test_groups_without_signal_are_skipped_but_counted(qwen3: Policy) -> None:
    """Half of the groups without signal: the same gradient as the other half alone, halved (GRPO divides by groups)."""
    run = load_run("quickstart", ["optimizer.max_grad_norm=1e9", "optimizer.learning_rate=1e-30"])
    norms = []
    for rewards in ([[0, 1, 1, 0], [1, 0, 0, 0]], [[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]):
        groups = groups_of(qwen3, rewards)  # type: ignore[arg-type]
        samples = to_samples(groups, ALGORITHMS["grpo"], 32)
        optimizer = torch.optim.SGD(qwen3.model.parameters(), lr=0.0)
        report = update(qwen3, optimizer, samples, ALGORITHMS["grpo"], Sampling(), run.model_copy(), 0)
        norms.append(report["grad_norm"])
        assert report["rows_skipped"] == 4 * (len(rewards) - 2)
        assert rollout_metrics(groups)["groups_skipped"] == len(rewards) - 2
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0] / 2, rel=1e-5)


def test_a_step_without_any_signal_changes_nothing(qwen3: Policy) -> None:
    run = load_run("quickstart")
    optimizer = make_optimizer(qwen3, run.optimizer)
    before = [p.clone() for p in qwen3.model.parameters()]
    samples = to_samples(groups_of(qwen3, [[1, 1]]), ALGORITHMS["grpo"], 32)
    report = update(qwen3, optimizer, samples, ALGORITHMS["grpo"], Sampling(), run, 0)
    assert report["grad_norm"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, qwen3.model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_skips_the_step_and_keeps_the_weights(qwen3: Policy) -> None:
    run = load_run("quickstart")
    groups = groups_of(qwen3, [[0, 1]])
    samples = to_samples(groups, ALGORITHMS["grpo"], 32)
    with torch.no_grad():
        qwen3.model.lm_head.weight[5] = float("inf")
    before = qwen3.model.model.language_model.norm.weight.clone()
    optimizer = make_optimizer(qwen3, run.optimizer)
    report = update(qwen3, optimizer, samples, ALGORITHMS["grpo"], Sampling(), run, 0)
    assert (report["nonfinite"], report["updates"], report["loss"]) == (1, 0, None)
    assert qwen3.version == 0
    assert all(p.grad is None for p in qwen3.model.parameters())
    assert torch.equal(before, qwen3.model.model.language_model.norm.weight)


def test_a_finished_run_folder_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    with RunLog(tmp_path / "r") as log:
        log.finish({"task": "x"})
    with pytest.raises(UserError, match="already holds a finished run"):
        train(short(folder, tmp_path / "r"))
