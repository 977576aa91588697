"""The recipes of RL4VLM and its successor on a miniature, and their studies in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from miniature import save_miniature

from fovea.algorithms import algorithm_of
from fovea.config import load_run
from fovea.recipes.rl4vlm._arms import MODULE
from fovea.recipes.rl4vlm.study import ARMS, STARTS, arm_of, read, start_of
from fovea.recipes.rl4vlm.throughput import measure
from fovea.recipes.vlm_r1._arms import curve_of, run_arms
from fovea.training import train

SMALL = [
    "steps=2", "prompts=2", "environment.turns=2", "sampling.max_new_tokens=8", "dtype=float32", "device=cpu",
    "threads=1", "evaluation.n=2", "save_every=0", "algorithm.prompts_per_update=2", "environment.options.side=64",
    "evaluation.every=0", "min_pixels=3136", "max_pixels=20000", "finetune.rank=2", "finetune.alpha=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_miniature(tmp_path_factory.mktemp("rl4vlm") / "model")


def test_the_recipe_is_the_papers() -> None:
    run = load_run("rl4vlm/number_line")
    algorithm = algorithm_of(run)
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.value_clip) == (0.1, 0.1, 0.1)
    assert (algorithm.gamma, algorithm.gae_lambda, algorithm.thought_weight) == (0.9, 0.95, 0.5)
    assert (algorithm.beta, algorithm.value_coefficient, algorithm.stop_gradient) == (0.0, 0.5, False)
    assert (run.sampling.temperature, run.sampling.max_new_tokens) == (0.2, 256)
    assert run.prompts * run.environment.turns == 512
    assert (run.algorithm.updates_per_rollout, run.algorithm.prompts_per_update) == (4, 128)
    assert (run.finetune.rank, run.finetune.alpha, run.critic.hidden) == (128, 256, (1024, 512))
    successor = algorithm_of(load_run("rl4vlm/vl_dac"))
    assert (successor.ratio, successor.estimator, successor.stop_gradient) == ("token", "turn", True)
    assert (successor.beta, successor.value_coefficient, successor.value_warmup) == (0.05, 0.15, 2)


@pytest.mark.parametrize("recipe", ["rl4vlm/number_line", "rl4vlm/vl_dac"])
def test_recipes_run_on_a_miniature(recipe: str, model: Path, tmp_path: Path) -> None:
    result = train(load_run(recipe, [f"model={model}", f"run_dir={tmp_path / 'run'}", *SMALL]))
    assert result["steps"] == 2
    assert result["task"] == "number_line"


def test_the_quickstart_and_its_cold_start(tmp_path: Path) -> None:
    short = ["steps=1", "prompts=2", "threads=1", "evaluation.n=2", "evaluation.every=0"]
    train(load_run("number_line_sft", [f"run_dir={tmp_path / 'sft'}", *short]))
    start = tmp_path / "sft" / "checkpoints" / "step_1" / "model"
    result = train(load_run("number_line", [f"model={start}", f"run_dir={tmp_path / 'run'}", *short]))
    assert result["method"] == "rl"


@pytest.mark.long
def test_the_study_in_small(tmp_path: Path) -> None:
    tiny = ["steps=1", "prompts=2", "algorithm.prompts_per_update=2", "sampling.max_new_tokens=8"]
    start = start_of("nl_format", 2)
    start = replace(start, values=dict(start.values) | {"steps": 1, "prompts": 2})
    run_arms(tmp_path, [start], 1, MODULE)
    arms = [arm_of(name, 0, tmp_path, tiny, 2) for name in ("nl_ppo", "nl_vl_dac", "nl_grpo")]
    run_arms(tmp_path, arms, 1, MODULE)
    found = read([curve_of(tmp_path, arms[0])])
    assert found["tasks"]["test"]["n"] == 2
    assert {"accuracy", "return", "sampled"} <= set(found["tasks"]["test"])


def test_every_arm_has_a_start() -> None:
    assert {start for start, _ in ARMS.values()} <= set(STARTS)


def test_throughput_counts_what_it_says() -> None:
    found = measure(side_by_side=3, turns=1, rounds=1, tokens=3)
    assert (found["image_tokens"], found["new_tokens"], found["steps_a_round"]) == (16, 3, 3)
    assert found["ratio"] > 0
