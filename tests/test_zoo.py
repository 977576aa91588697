"""How the embedded model is made: dense labels by hand, the mixture, a stage that resumes where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fovea import zoo
from fovea.models.policy import Policy, make_policy
from fovea.tasks.scenes import Scene, Thing


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(*zoo.new_tiny(0))


def test_the_architecture_is_what_later_work_needs(policy: Policy) -> None:
    config = policy.model.config
    assert 4 * sum(p.numel() for p in policy.model.parameters()) < 20_000_000
    assert config.text_config.max_position_embeddings >= 8192
    assert config.text_config.head_dim == 64
    assert not config.tie_word_embeddings
    assert policy.model.lm_head.weight is not policy.model.get_input_embeddings().weight


@pytest.mark.parametrize(("width", "height"), [(32, 32), (320, 320), (48, 160)])
def test_native_resolutions(policy: Policy, width: int, height: int) -> None:
    """A picture whose sides are multiples of 16 pixels is not resized: one token for 16 x 16 pixels."""
    inputs = policy.processor.image_processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, height // 8, width // 8]]


def test_dense_targets_by_hand() -> None:
    """64 x 64 has 4 x 4 cells of 16 pixels. The 3 has its centre at (24, 40): column 1, row 2, cell 9; cell centre
    (24, 40), so its corners are (16 - 24)/16 = -0.5, (32 - 40)/16 = -0.5, +0.5, +0.5."""
    things = (Thing(label="3", box=(16, 32, 32, 48)), Thing(label="blue star", box=(48, 0, 64, 8)))
    targets = zoo.dense_targets([Scene(image=Image.new("RGB", (64, 64)), things=things)])
    assert targets.present.nonzero()[:, 0].tolist() == [3, 9]
    assert targets.kind[9] == 3
    assert targets.color[9] == -100
    assert zoo.CLASSES[int(targets.kind[3])] == "star"
    assert targets.box[9].tolist() == [-0.5, -0.5, 0.5, 0.5]
    # the star: cell 3 has its centre at (56, 8)
    assert targets.box[3].tolist() == [-0.5, -0.5, 0.5, 0.0]


@pytest.mark.parametrize("stage", zoo.MIXTURES)
def test_mixture_is_kept_and_only_trains_on_the_train_split(stage: str) -> None:
    mixture = zoo.MIXTURES[stage]
    problems = [zoo.mixed_problem(mixture, stage, 0, i) for i in range(600)]
    for name, share in mixture.items():
        seen = np.mean([problem.task == name for problem in problems])
        assert abs(seen - share) < 0.06  # 3 sigma at a share of 0.4
    assert all(":train:" in problem.id for problem in problems)
    assert not any(problem.task.startswith("printed") for problem in problems)
    assert sum(mixture.values()) == pytest.approx(1)


def test_a_stage_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    ends = []
    for name, pauses in (("whole", (4,)), ("stopped", (2, 4))):
        for steps in pauses:
            policy = make_policy(*zoo.new_tiny(0))
            stage = zoo.Stage(steps=4, batch=2, learning_rate=1e-3, warmup=2)
            trainer = zoo.Trainer(tmp_path / name, "skills", stage, {"model": policy.model}, save_every=2)
            while trainer.step < steps:
                problems = [
                    zoo.mixed_problem(zoo.SKILLS, "skills", 0, 2 * trainer.step + i) for i in range(2)
                ]
                zoo.language_step(policy, problems)
                trainer.apply()
        ends.append(torch.cat([p.detach().flatten() for p in policy.model.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.long
def test_processes_share_a_build_and_agree_with_one(tmp_path: Path) -> None:
    """All stages, two steps each, alone and with two processes: up to `skills` the same weights."""
    stages = {name: zoo.Stage(steps=2, batch=4, learning_rate=1e-4, warmup=1) for name in zoo.STAGES}
    for processes in (1, 2):
        zoo.build_tiny(tmp_path / f"{processes}", tmp_path / f"work{processes}", 0, stages, processes)
    assert (tmp_path / "2" / "model.safetensors").is_file()
    one, two = (
        torch.load(tmp_path / f"work{n}" / "skills.pt", weights_only=True)["modules"]["model"] for n in (1, 2)
    )
    fresh = make_policy(*zoo.new_tiny(0))
    moved = dict(fresh.model.named_parameters())["lm_head.weight"]
    assert not torch.equal(one["lm_head.weight"], moved)
    for name, weight in one.items():
        # Adam's first steps are the sign of the gradient: a rounding of a tiny one may flip it (2 steps of 1e-4)
        assert (weight - two[name]).abs().mean() < 1e-5, name
