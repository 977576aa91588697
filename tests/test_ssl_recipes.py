"""The presets for self-supervised training of Qwen2.5-VL-3B, each run for two steps on a miniature of that family.

As in `test_vlm_r1_recipes`: only sizes are overridden. Not shown here: that they learn anything.
"""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from miniature import save_miniature

from fovea.algorithms import algorithm_of
from fovea.config import RECIPES, Run, load_run
from fovea.rewards import weigh
from fovea.tasks.opening import open_named
from fovea.tasks.ssl import SSL
from fovea.training import train
from fovea.types import UserError

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
SMALL = [
    "steps=2", "prompts=2", "group=2", "sampling.max_new_tokens=8", "dtype=float32", "device=cpu", "threads=1",
    "evaluation.n=2", "evaluation.during=2", "evaluation.every=0", "gradient_checkpointing=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_miniature(tmp_path_factory.mktemp("ssl") / "model")


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / name).read_text().splitlines()]


def other_tasks() -> list[list[str]]:
    """What the comments of ssl4rl_paper say to write for another task, as overrides."""
    text = (RECIPES / "ssl4rl_paper.yaml").read_text(encoding="utf-8")
    found = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#   fovea train")]
    return [shlex.split(line)[3:] for line in found if " task=" in line]


def test_parity_is_that_of_the_released_code(model: Path, tmp_path: Path) -> None:
    """512 prompts x 5 in mini-batches of 128, 300 steps, KL 0.01 in the loss (k3), token mean, no reward for format."""
    run = load_run("ssl4rl_paper")
    algorithm = algorithm_of(run)
    assert (run.model, run.task, run.task_options) == (
        MODEL,
        "ssl/position",
        {"ssl/position": {"paper": True}},
    )
    assert (run.prompts, run.group, run.steps, run.algorithm.prompts_per_update) == (512, 5, 300, 128)
    assert (algorithm.scale, algorithm.denominator) == ("group_std", "token_mean")
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.delta) == (0.2, 0.2, 3.0)
    assert (algorithm.beta, algorithm.kl, algorithm.kl_in) == (0.01, "k3", "loss")
    assert (run.optimizer.learning_rate, run.optimizer.weight_decay) == (1e-6, 0.01)
    assert (run.optimizer.schedule, run.optimizer.warmup_steps, run.optimizer.max_grad_norm) == (
        "constant",
        0,
        1,
    )
    assert (run.sampling.temperature, run.sampling.max_new_tokens) == (1.0, 2048)
    assert run.rewards == {"accuracy": 1.0}
    small = ["algorithm.prompts_per_update=1", "save_every=0"]
    place = [f"model={model}", f"run_dir={tmp_path / 'run'}"]
    result = train(load_run("ssl4rl_paper", [*place, *SMALL, *small]))
    assert (result["task"], result["steps"]) == ("ssl/position", 2)
    steps = lines(tmp_path / "run", "metrics.jsonl")
    assert [step["updates"] for step in steps] == [2, 2]  # two mini-batches a step
    assert all(math.isfinite(step["grad_norm"]) and "kl" in step for step in steps)
    assert "difficulty/ssl/position" in steps[0]


def test_another_task_of_the_paper_is_one_command() -> None:
    """Options of the released builders, exact match, and for the jigsaw the share of places that are right, no gate."""
    runs = {run.task: run for run in (load_run("ssl4rl_paper", words) for words in other_tasks())}
    assert set(runs) == {"ssl/rotation", "ssl/contrastive", "ssl/jigsaw", "ssl/masked"}
    for name, run in runs.items():
        task = open_named(run.model_copy(update={"images": None}), "train", 0)
        (problem,) = task.take(0, 1)[0]
        assert task.tasks[0].options == dict(SSL[name].paper or {})  # type: ignore[attr-defined]
        assert run.rewards == {"accuracy": 1.0}
        if name == "ssl/jigsaw":
            assert sorted(problem.answer) == [1, 2, 3, 4]
            farmed, _ = weigh(
                ["<answer>1, 1, 1, 1</answer>"], problem, run.rewards, options=run.reward_options
            )
            assert farmed == pytest.approx([0.25])  # one place in four is right, whatever the truth


def test_hardened_pays_nothing_for_what_is_no_permutation() -> None:
    """Two of four places right: 0.2 · 2/4 = 0.1, less chance c = 0.2/4 + 0.8/24: (0.1 - c)/(1 - c) = 0.01818."""
    run = load_run("ssl_hardened")
    alone = load_run("ssl_hardened", ["task=ssl/jigsaw", "task_options={ssl/jigsaw: {n: 2}}"])
    (problem,) = open_named(alone, "train", 0).take(0, 1)[0]
    a, b, c, d = problem.answer
    replies = {f"{a}, {b}, {c}, {d}": 1.0, f"{a}, {b}, {d}, {c}": 0.0181818, "1, 1, 1, 1": 0.0}
    for reply, reward in replies.items():
        got = weigh([f"<answer>{reply}</answer>"], problem, {"accuracy": 1.0}, options=run.reward_options)[0]
        assert got == pytest.approx([reward], abs=1e-6)


def test_hardened_runs_as_it_is_written(model: Path, tmp_path: Path) -> None:
    run = load_run("ssl_hardened")
    assert (run.model, run.group, run.algorithm.beta) == (MODEL, 8, 0.0)
    assert run.difficulty.control
    assert len(run.mixture) > 8
    assert run.max_pixels == 512 * 28 * 28
    assert not any(run.task_options.values()), "the generators' defaults are the hardened options"
    # few problems a step of eleven tasks: window=1 lets the controllers decide after every one
    more = ["evaluation.also=[photos/find]", "evaluation.also_n=2", "difficulty.window=1", "save_every=0"]
    place = [f"model={model}", f"run_dir={tmp_path / 'run'}"]
    result = train(load_run("ssl_hardened", [*place, *SMALL, *more]))
    assert list(result["also"]) == ["photos/find"]
    steps = lines(tmp_path / "run", "metrics.jsonl")
    levels = {key: step[key] for step in steps for key in step if key.startswith("difficulty/")}
    assert levels, "no task under control"
    assert set(levels.values()) <= {0.2, 0.1}  # a random model is never right, so it gets easier


@pytest.mark.parametrize("name", ["ssl4rl_paper", "ssl_hardened"])
def test_a_preset_says_what_it_is(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Qwen2.5-VL-3B ")
    assert "several nodes is not there yet" in text
    assert "our choice" in text or "our reconstruction" in text


def test_paper_options_are_the_paper_s_tasks_only() -> None:
    run = Run(task="ssl/crop", task_options={"ssl/crop": {"paper": True}})
    with pytest.raises(UserError, match="not among those of SSL4RL's released code"):
        open_named(run, "train", 0)
    wrong = Run(task="ssl/jigsaw", task_options={"ssl/jigsaw": {"paper": 1}})
    with pytest.raises(UserError, match=r"paper=1 is not allowed; give true"):
        open_named(wrong, "train", 0)
    own = Run(task="ssl/jigsaw", task_options={"ssl/jigsaw": {"paper": True, "n": 3}})
    assert open_named(own, "train", 0).tasks[0].options["n"] == 3  # type: ignore[attr-defined]
