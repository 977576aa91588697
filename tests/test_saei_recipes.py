"""The recipe of SaEI's reconstruction on a miniature, its studies in small, and whether the attack does its work."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import save_miniature
from PIL import Image

from fovea.algorithms import algorithm_of
from fovea.config import load_run
from fovea.recipes.saei.attack import Setting, measure, summary, table
from fovea.recipes.saei.cost import measure as cost
from fovea.recipes.saei.study import ARMS, arm_of, metrics_of_arm, tables
from fovea.training import train

SMALL = [
    "steps=2", "prompts=2", "group=4", "sampling.max_new_tokens=8", "dtype=float32", "device=cpu", "threads=1",
    "evaluation.n=2", "evaluation.during=2", "evaluation.every=0", "algorithm.prompts_per_update=1", "save_every=0",
    "min_pixels=3136", "max_pixels=20000",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature and twenty problems with pictures, as math problems."""
    folder = tmp_path_factory.mktemp("saei")
    save_miniature(folder / "model")
    lines = []
    for i in range(20):
        noise = np.random.default_rng(i).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        asked = {"id": str(i), "image": f"{i}.png", "question": f"What is x in 2x = {i}?", "kind": "math"}
        lines.append(json.dumps(asked | {"answer": f"\\frac{{{i}}}{{2}}"}))
    (folder / "math.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_recipe_is_its_nearest_relative_s(place: Path, tmp_path: Path) -> None:
    """NoisyRollout for Geometry3K: 512 prompts, 6 + 6, mini-batches of 128, 1e-6, decay 0.01, no KL, frozen tower, an
    entropy bonus of 1e-3, λ = 30, γ = 40 of 60 steps."""
    run = load_run("saei_geometry3k")
    algorithm = algorithm_of(run)
    assert (run.model, run.freeze) == ("Qwen/Qwen2.5-VL-7B-Instruct", ("vision", "projector"))
    assert (run.prompts, run.group, run.steps, run.algorithm.prompts_per_update) == (512, 12, 60, 128)
    assert (run.optimizer.learning_rate, run.optimizer.weight_decay, run.optimizer.warmup_steps) == (
        1e-6,
        0.01,
        0,
    )
    assert (algorithm.beta, algorithm.clip_low, algorithm.clip_high) == (0.0, 0.2, 0.2)
    assert run.algorithm.entropy_bonus == 1e-3
    assert run.rewards == {"math": 0.9, "format_strict": 0.1}
    assert (run.intervention.share, run.intervention.ratio, run.intervention.baseline) == (
        0.5,
        "clean",
        "pooled",
    )
    assert run.intervention.middle * run.steps == pytest.approx(40)
    files = [f"data={place / 'math.jsonl'}", f"images={place}", f"model={place / 'model'}"]
    for name in ("egas", "noisy_rollout"):
        where = [f"run_dir={tmp_path / name}", f"intervention.name={name}"]
        result = train(load_run("saei_geometry3k", [*files, *where, *SMALL]))
        assert result["steps"] == 2
        steps = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(step["grad_norm"]) for step in steps)
        assert steps[0]["explore/skipped"] == 0


@pytest.fixture(scope="module")
def attacked() -> dict[str, Any]:
    return measure(
        Setting(model="fovea-tiny", task="digits/locate", n=16, group=4, draws=1, steps=3), say=lambda _: None
    )


def test_the_gradient_raises_the_entropy_and_a_coin_of_the_same_size_does_not(
    attacked: dict[str, Any],
) -> None:
    """256 problems are measured in recipes/saei (docs/saei.md); 16 suffice to see the difference."""
    small = attacked["gain"][1]
    fgsm, coin = np.array(small["fgsm"]), np.array(small["random_sign"])
    assert (fgsm > coin).mean() >= 0.75
    assert np.median(fgsm) > 0.02
    assert abs(np.median(coin)) < 0.01
    assert np.median(np.array(attacked["gain"][4]["pgd"]) - attacked["gain"][4]["fgsm"]) >= 0
    result = summary(attacked, "command")
    assert result["n"] == 16
    assert "| 4/255 |" in table(result)


def test_saturated_problems_are_apart(attacked: dict[str, Any]) -> None:
    some = attacked | {"entropy": [0.01, *attacked["entropy"][1:]]}
    result = summary(some, "command")
    assert result["open"] == 15
    assert result["radii"]["4"]["saturated"]["gain"]["fgsm"]["median"] == attacked["gain"][4]["fgsm"][0]


def test_the_cost_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cost(16, 1, ["egas"], prompts=2, group=4)
    assert found["egas"]["parts"]["attack"] > 0
    assert "attack" not in found["plain"]
    assert found["egas"]["ratio"] > 1


def test_every_arm_is_a_run_and_differs_from_grpo_in_its_intervention_alone() -> None:
    from fovea.config import Run

    plain = Run.model_validate(dict(arm_of("grpo", 0, [], 8).values))
    for name in ARMS:
        run = Run.model_validate(dict(arm_of(name, 0, ["steps=3"], 8).values))
        assert run.steps == 3
        same = run.model_copy(update={"intervention": plain.intervention, "steps": plain.steps})
        assert same == plain
        algorithm_of(run)


def test_differences_are_paired_by_seed() -> None:
    """Accuracy 0.5 and 0.6 against 0.4 and 0.6: differences 0.1 and 0, mean 0.05."""

    def curve(accuracy: float) -> dict[str, Any]:
        task = {"accuracy": {"mean": accuracy}, "looking": {"mean": accuracy}}
        ks = {k: {"mean": accuracy} for k in ("1", "8")}
        tasks = dict.fromkeys(("printed/locate", "shapes/locate", "photos/find"), task)
        return {
            "tasks": tasks | {"digits/locate": task | {"pass_at_k": ks}},
            "training": {"entropy": [1.0, 0.5]},
            "run": {"train_cpu_seconds": 1.0},
        }

    found = metrics_of_arm([curve(0.5), curve(0.6)], [curve(0.4), curve(0.6)])
    assert found["in_domain"]["mean"] == pytest.approx(0.55)
    assert found["in_domain"]["against_grpo"]["mean"] == pytest.approx(0.05)
    arms = {name: {"metrics": found} for name in ("grpo", "egas_band")}
    assert "| egas_band |" in tables({"arms": arms})
