"""Families and the policy: prompts, frames, refusals, the plain transformers layout on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, different_problems, loud_policy, picture
from transformers import AutoModelForImageTextToText, AutoProcessor

from fovea.boxes import place
from fovea.models.attention import segments_of
from fovea.models.cascade import row_groups
from fovea.models.policy import Policy, load_policy, make_policy
from fovea.models.qwen_vision import grids_of
from fovea.models.shared_prefix import score
from fovea.types import Problem, Sampling, UserError


def box_problem(frame: str = "pixels") -> Problem:
    # 100 x 50 pixels: a processor that works in steps of 28 must resize it
    answer = {"pixels": (10, 5, 60, 30), "unit": (0.1, 0.1, 0.6, 0.6), "thousandths": (100, 100, 600, 600)}[
        frame
    ]
    return Problem(
        id="b",
        task="t",
        images=(picture(100, 50, 0),),
        question="Where?",
        answer=answer,
        kind="box",
        frame=frame,  # type: ignore[arg-type]
        target=f"<answer>{place(answer)}</answer>",
    )


def test_prompt_has_places_for_every_image_token(policy: Policy) -> None:
    for one in different_problems():
        prompt = policy.prompt(one)
        merged = sum(height * width // 4 for _, height, width in grids_of(prompt))
        assert int(prompt.image_mask.sum()) == merged
        assert prompt.positions.shape == (3, len(prompt.token_ids))
        assert prompt.next_position == int(prompt.positions.max()) + 1
        assert (not prompt.media) == (not one.images)


def test_images_come_before_the_question_and_the_instruction_after(policy: Policy) -> None:
    prompt = policy.prompt(different_problems()[2], "Answer briefly.")
    text = policy.processor.tokenizer.decode(prompt.token_ids)
    assert text.index("<|vision_end|>") < text.index("Which of the two") < text.index("Answer briefly.")
    assert text.count("<|vision_start|>") == 2
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("frame", ["pixels", "unit", "thousandths"])
def test_boxes_are_told_in_the_family_s_frame(policy: Policy, frame: str) -> None:
    prompt = policy.prompt(box_problem(frame))
    if policy.family.name == "qwen3_vl":
        size: tuple[int, int] = (1000, 1000)
    else:
        _, height, width = grids_of(prompt)[0]
        size = (width * 14, height * 14)
        assert size != (100, 50), "the picture must have been resized for this to prove anything"
    expected = tuple(s * f for s, f in zip(size * 2, (0.1, 0.1, 0.6, 0.6)))
    assert prompt.problem.answer == pytest.approx(expected)
    assert prompt.problem.frame == policy.family.frame
    numbers = ", ".join(str(round(x)) for x in prompt.problem.answer)
    assert prompt.problem.target == f"<answer>[{numbers}]</answer>"


def test_boxes_of_several_objects_are_converted(policy: Policy) -> None:
    things = [{"bbox_2d": (10, 5, 60, 30), "label": "dog"}, {"bbox_2d": (0, 0, 100, 50), "label": "cat"}]
    one = policy.prompt(replace(box_problem(), kind="objects", answer=things)).problem
    single = policy.prompt(box_problem()).problem
    assert one.answer[0] == {"bbox_2d": single.answer, "label": "dog"}
    assert one.answer[1]["label"] == "cat"


def test_other_answers_and_other_braces_are_left_alone(policy: Policy) -> None:
    one = replace(different_problems()[0], target='{"boxes": {}} {box}')
    assert policy.prompt(one).problem.target == '{"boxes": {}} {box}'
    assert policy.prompt(one).problem.answer == "1"


def test_box_without_a_picture_is_refused(policy: Policy) -> None:
    with pytest.raises(UserError, match="no picture"):
        policy.prompt(replace(box_problem(), images=()))


def test_reply_round_trip(policy: Policy) -> None:
    tokens = policy.encode_reply("<answer>[1, 2]</answer>")
    assert tokens.dtype == np.int64
    assert tokens[-1] in policy.eos_ids
    assert policy.decode(tokens) == "<answer>[1, 2]</answer>"
    assert policy.decode(tokens[:-1]) == "<answer>[1, 2]</answer>"
    assert len(policy.encode_reply("")) == 1


def test_save_and_load_with_the_auto_classes(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    again = load_policy(str(tmp_path), device="cpu")
    for name, weight in policy.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], weight, rtol=0, atol=0)
    prompts = [[p.prompt(x) for x in different_problems()] for p in (policy, again)]
    rows = [(0, policy.encode_reply("three")), (2, policy.encode_reply("the left one"))]
    ours, theirs = score(policy, prompts[0], rows, Sampling()), score(again, prompts[1], rows, Sampling())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is type(policy.model)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(policy.processor)


def test_what_cannot_be_loaded_says_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="download=true"):
        load_policy("Nobody/Nothing")
    with pytest.raises(UserError, match=r"config\.json"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_cannot_be_trained_right_are_refused(family: str) -> None:
    policy = loud_policy(family)
    with pytest.raises(UserError, match="names no part"):
        make_policy(policy.model, policy.processor, freeze=("hands",))
    policy.model.config.text_config.attention_dropout = 0.1
    with pytest.raises(UserError, match=r"attention_dropout=0\.1"):
        make_policy(policy.model, policy.processor)
    policy.model.config.text_config.attention_dropout = 0.0
    policy.model.config.model_type = "llava"
    with pytest.raises(UserError, match="supported: qwen2_vl, qwen2_5_vl, qwen3_vl"):
        make_policy(policy.model, policy.processor)


def test_freezing_a_part(policy: Policy) -> None:
    make_policy(policy.model, policy.processor, freeze=("vision",))
    for name, parameter in policy.model.named_parameters():
        tower = name.startswith("model.visual.") and "merger" not in name
        assert parameter.requires_grad != tower
    make_policy(policy.model, policy.processor, freeze=("vision", "projector"))
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad != name.startswith("model.visual.")
    assert not policy.model.training


def test_without_a_plan_attention_is_plain_sdpa(policy: Policy) -> None:
    twin = loud_policy(policy.family.name).model
    twin.set_attn_implementation("sdpa")
    prompt = policy.prompt(different_problems()[0])
    inputs = {
        "input_ids": prompt.token_ids[None],
        "mm_token_type_ids": prompt.image_mask.long()[None],
        **prompt.media,
    }
    with torch.no_grad():
        assert torch.equal(policy.model(**inputs).logits, twin(**inputs).logits)


def test_layouts_by_hand() -> None:
    cpu = torch.device("cpu")
    mixed = segments_of([2, 1, 2], cpu)
    assert [(n, length, p.tolist()) for n, length, p in mixed.groups if p is not None] == [
        (2, 2, [0, 1, 3, 4]),
        (1, 1, [2]),
    ]
    assert mixed.inverse is not None
    assert mixed.inverse.tolist() == [0, 1, 4, 2, 3]
    (padded,) = row_groups([2, 3], cpu)
    assert (padded.rows, padded.width, padded.source) == (2, 3, None)
    assert padded.slot is not None
    assert padded.slot.tolist() == [0, 1, 3, 4, 5]
    assert len(row_groups([3, 100, 4], cpu)) == 2
