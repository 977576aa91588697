"""How the embedded model is made: dense labels by hand, the mixture, a stage that resumes where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fovea import zoo
from fovea.boxes import fill
from fovea.models.policy import Policy, make_policy
from fovea.tasks import open_task
from fovea.tasks.scenes import Scene, Thing, generator
from fovea.zoo import language, vision
from fovea.zoo.language import mixed_problem
from fovea.zoo.mixtures import mixture_at
from fovea.zoo.trainer import Stage, Trainer


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
    scene = Scene(image=Image.new("RGB", (64, 64)), things=things)
    targets = vision.dense_targets([scene], vision.FIRST_FACTS)
    assert targets.present.nonzero()[:, 0].tolist() == [3, 9]
    assert targets.facts["kind"][9] == 3
    assert targets.facts["color"][9] == -100
    assert vision.FIRST_FACTS["kind"][int(targets.facts["kind"][3])] == "star"
    assert targets.box[9].tolist() == [-0.5, -0.5, 0.5, 0.5]
    # the star: cell 3 has its centre at (56, 8)
    assert targets.box[3].tolist() == [-0.5, -0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("stage", "step"), [(name, step) for name, at in zoo.MIXTURES.items() for step in at]
)
def test_mixture_is_kept_and_only_trains_on_the_train_split(stage: str, step: int) -> None:
    mixture = mixture_at(stage, step)
    problems = [mixed_problem(mixture, stage, 0, i) for i in range(600)]
    names, styles = zip(*(problem.task.split("@") for problem in problems))
    for name, share in mixture.items():
        assert abs(names.count(name) / 600 - share) < 0.06  # 3 sigma at a share of 0.4
    for style, share in zoo.STYLE_SHARES.items():
        assert abs(styles.count(style) / 600 - share) < 0.06
    assert all(":train:" in problem.id for problem in problems)
    assert "printed/locate" not in names
    assert sum(mixture.values()) == pytest.approx(1)


def test_characters_have_two_slots_by_the_half_of_the_cell() -> None:
    """A cell is 16 pixels wide: centre x = 20 is in the left half of cell 1, x = 28 in its right half."""
    things = (
        Thing(label="4", box=(17, 4, 23, 12), facts=(("char", "4"),)),
        Thing(label="T", box=(25, 4, 31, 12), facts=(("char", "T"),)),
    )
    targets = vision.dense_targets([Scene(image=Image.new("RGB", (48, 16)), things=things)], vision.FACTS)
    chars = vision.FACTS["char0"]
    assert chars[int(targets.facts["char0"][1])] == "4"
    assert chars[int(targets.facts["char1"][1])] == "T"
    assert int(targets.facts["char0"][0]) == -100


@pytest.mark.parametrize("name", vision.DOMAINS)
def test_every_fact_of_a_domain_is_known_to_the_head(name: str) -> None:
    scenes = [vision.DOMAINS[name][1](generator(name, i), "train") for i in range(30)]
    targets = vision.dense_targets(scenes, vision.FACTS)
    assert targets.present.sum() > 30
    assert targets.color.shape == (len(targets.present), 3)


def test_phases_of_a_stage_hold_from_their_step_on() -> None:
    assert mixture_at("practice", 0) == mixture_at("practice", 799) != mixture_at("practice", 800)
    assert mixture_at("practice", 800) == mixture_at("skills", 0)


def test_places_of_cells_by_hand(policy: Policy) -> None:
    """A picture of 64 x 32 pixels has 4 x 2 cells: x at 1/8, 3/8, 5/8 and 7/8 of its width, y at 1/4 and 3/4."""
    problem = open_task("digits/read", "train", 1).take(0, 1)[0][0]
    wide = replace(problem, images=(Image.new("RGB", (64, 32)),), target="<answer>1</answer>")
    places = language.cell_places([policy.prompt(wide)], 2)
    assert places.tolist() == [[x, y] for y in (0.25, 0.75) for x in (0.125, 0.375, 0.625, 0.875)]


def test_lessons_look_before_what_is_read_off(policy: Policy) -> None:
    """digits/read: the token before each digit looks at that digit's cell of 4 x 4."""
    problem = open_task("digits/read", "train", 1).take(0, 1)[0][0]
    made = language.lesson(policy, problem)
    ids = [*made.row.token_ids.tolist(), int(made.reply[-1])]
    digits = problem.answer.split(", ")
    assert [policy.decode([ids[at + 1]]) for at, _ in made.looks] == digits
    assert len({cell for _, cell in made.looks}) == len(digits)
    assert all(0 <= cell < 16 for _, cell in made.looks)
    assert made.reply.tolist() == policy.encode_reply(fill(problem.target or "", tuple, "pixels")).tolist()


def test_taught_scores_are_those_of_the_models_own_attention(policy: Policy) -> None:
    """q·k of the taught heads by hand = the weights that eager attention gives, up to the softmax."""
    problem = open_task("digits/locate", "train", 1).take(0, 1)[0][0]
    made = language.lesson(policy, problem)
    text = policy.family.text_model(policy.model)
    seen: dict[str, torch.Tensor] = {}
    layer = text.layers[len(text.layers) // 2].self_attn
    hooks = [
        layer.q_norm.register_forward_hook(lambda m, i, out: seen.__setitem__("q", out)),
        layer.k_norm.register_forward_hook(lambda m, i, out: seen.__setitem__("k", out)),
    ]
    with torch.no_grad():
        middle, _, _ = language.hidden_states(policy, [made.row])
        for hook in hooks:
            hook.remove()
        q, k = language.attention_scores(policy, middle, made.row.positions)
    # RoPE keeps lengths: norms of the queries and keys are those inside the layer
    inside = seen["q"].reshape(len(made.row.token_ids), -1, layer.head_dim).norm(dim=-1)
    assert torch.allclose(q.norm(dim=-1).T / layer.scaling, inside[:, : len(q)], rtol=1e-4)
    assert k.shape == q.shape


@pytest.mark.long
def test_a_stage_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    ends = []
    for name, pauses in (("whole", (4,)), ("stopped", (2, 4))):
        for steps in pauses:
            policy = make_policy(*zoo.new_tiny(0))
            stage = Stage(steps=4, batch=2, learning_rate=1e-3, warmup=2)
            trainer = Trainer(tmp_path / name, "skills", stage, {"model": policy.model}, save_every=2)
            while trainer.step < steps:
                first = 2 * trainer.step
                problems = [mixed_problem(mixture_at("skills", 0), "skills", 0, first + i) for i in range(2)]
                language.language_step(policy, problems, 0.5)
                trainer.apply()
        ends.append(torch.cat([p.detach().flatten() for p in policy.model.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.long
def test_processes_share_a_build_and_agree_with_one(tmp_path: Path) -> None:
    """All stages, two steps each, alone and with two processes: the same language stages on the same vision tower."""
    stages = {name: Stage(steps=2, batch=4, learning_rate=1e-4, warmup=1) for name in zoo.STAGES}
    zoo.build_tiny(tmp_path / "1", tmp_path / "work1", 0, stages, 1)
    (tmp_path / "work2").mkdir()
    for name in ("vision", "domains"):  # shared: their losses are means over each process's pictures
        (tmp_path / "work2" / f"{name}.pt").write_bytes((tmp_path / "work1" / f"{name}.pt").read_bytes())
    zoo.build_tiny(tmp_path / "2", tmp_path / "work2", 0, stages, 2)
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
