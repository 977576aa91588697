"""Caps on the size of pictures, the token that ends a reply, and processors that cannot be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture, problem

from fovea.models.construct import random_policy_parts
from fovea.models.families import FAMILIES
from fovea.models.policy import load_policy, make_policy
from fovea.models.resolution import one_size
from fovea.types import UserError

SIZES: dict[str, Any] = {
    "text_layers": 1, "text_width": 32, "text_mlp": 32, "heads": 1, "kv_heads": 1, "head_dim": 32,
    "vision_layers": 2, "vision_width": 32, "vision_mlp": 32, "vision_heads": 1, "deepstack": (0,),
}  # fmt: skip
LARGE = problem("large", (picture(220, 170, 0),), "Where?")
SMALL = problem("small", (picture(30, 40, 1),), "Where?")
CAPPED = sorted(name for name, family in FAMILIES.items() if family.cap is not one_size)
GRIDS = [name for name in CAPPED if name.startswith("qwen")]
TILED = [name for name in CAPPED if name not in GRIDS]


def tiny(family: str, **caps: int) -> Any:
    return make_policy(*random_policy_parts(family, **SIZES), **caps)


@pytest.mark.parametrize("family", CAPPED)
def test_a_cap_makes_fewer_tokens_and_is_saved(family: str, tmp_path: Path) -> None:
    """Fewer tokens than the processor's own, scoring still works, and the saved model sees the same pictures."""
    free, capped = tiny(family), tiny(family, max_pixels=2 * 56 * 56)
    before, after = (sum(p.prompt(LARGE).picture_tokens) for p in (free, capped))
    assert after < before
    capped.save(tmp_path)
    again = load_policy(str(tmp_path), device="cpu").prompt(LARGE)
    assert sum(again.picture_tokens) == after
    features = capped.family.encode_images(capped.model, again.media).features
    assert len(features) == after


@pytest.mark.parametrize("family", GRIDS)
def test_qwen_s_caps_are_areas(family: str) -> None:
    policy = tiny(family, min_pixels=100 * 100, max_pixels=160 * 160)
    for one in (SMALL, LARGE):
        (width, height) = policy.prompt(one).resized[0]
        assert 100 * 100 <= width * height <= 160 * 160
    with pytest.raises(UserError, match=r"max_pixels=500 is less than one image token.*784"):
        tiny(family, max_pixels=500)
    with pytest.raises(UserError, match="make min_pixels the smaller one"):
        tiny(family, min_pixels=9000, max_pixels=8000)


@pytest.mark.parametrize("family", TILED)
def test_caps_that_cannot_be_kept_are_refused(family: str) -> None:
    with pytest.raises(UserError, match="cuts pictures into tiles"):
        tiny(family, min_pixels=1000)
    with pytest.raises(UserError, match=r"one tile of 56 x 56; give 3136 or more"):
        tiny(family, max_pixels=3000)


def test_a_family_of_one_size_refuses_caps() -> None:
    with pytest.raises(UserError, match="do not apply to the family 'gemma3'"):
        tiny("gemma3", max_pixels=10000)


def test_llava_s_model_follows_its_processor() -> None:
    """An adapter's folder holds the processor but not the config that the tower reads its canvases from."""
    model, processor = random_policy_parts("llava_onevision", **SIZES)
    processor.image_processor.image_grid_pinpoints = [[56, 112]]
    policy = make_policy(model, processor)
    prompt = policy.prompt(LARGE)
    features = policy.family.encode_images(policy.model, prompt.media).features
    assert len(features) == prompt.picture_tokens[0]


def test_pictures_that_need_more_than_the_context_are_refused() -> None:
    policy = make_policy(*random_policy_parts("idefics3", **SIZES, context=64))
    with pytest.raises(UserError, match=r"Problem large: .*for pictures.*holds 64.*lower max_pixels"):
        policy.prompt(LARGE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_ends_as_the_chat_template_ends_it(family: str) -> None:
    """Not with the tokenizer's own end of text, which Gemma's and Idefics' templates never write."""
    model, processor = random_policy_parts(family, **SIZES)
    end = processor.tokenizer.eos_token_id  # the builders' is the right one
    processor.tokenizer.eos_token = processor.tokenizer.pad_token
    policy = make_policy(model, processor)
    assert policy.eos_ids[0] == end
    assert policy.encode_reply("yes")[-1] == end
    assert policy.decode(np.array(policy.encode_reply("yes"))) == "yes"


def test_a_template_for_questions_only_leaves_the_tokenizer_s_end() -> None:
    model, processor = random_policy_parts("internvl", **SIZES)
    processor.chat_template = (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    policy = make_policy(model, processor)
    assert policy.reply_end is None
    assert policy.eos_ids[0] == processor.tokenizer.eos_token_id


def test_smolvlm_without_its_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("smolvlm").save(tmp_path)
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(UserError, match=r"num2words.*fovea-rl\[smolvlm\]") as caught:
        load_policy(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)
