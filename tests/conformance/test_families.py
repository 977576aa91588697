"""Every family against every check, plain transformers as the oracle. Families are built from their configs, without
a hub. What passes is written into docs/families.md (`FOVEA_WRITE_DOCS=1`); the last test compares.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_gradients_close, assert_log_probs_close, picture, problem, ragged_rows
from torch import Tensor
from transformers import AutoModelForImageTextToText

from conformance import matrix
from conformance.subject import (
    NONE,
    ONE,
    TALL,
    TWO,
    WIDE,
    Row,
    Subject,
    converted,
    plain_inputs,
    plain_log_probs,
    plain_prompt,
    subject,
)
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models.adapter import join_features, join_media, split_features, split_media
from fovea.models.policy import FAMILIES, load_policy
from fovea.models.rendering import special_ids
from fovea.models.shared_prefix import backward, score
from fovea.types import Completion, Problem, Sampling

SAMPLING = Sampling(temperature=0.8, max_new_tokens=12)
LENGTHS = (5, 1, 17, 9, 2, 12)
EMPTY = np.zeros(0, dtype=np.int64)


def same_as_plain(one: Subject, problems: Sequence[Problem], lengths: tuple[int, ...] = LENGTHS) -> None:
    """The processor's own tokens, and the log-probs and entropies of a repeated plain forward."""
    for asked in problems:
        ours, theirs = one.policy.prompt(asked), plain_prompt(one, asked)["input_ids"][0]
        assert torch.equal(ours.token_ids, theirs)
    rows = ragged_rows(one.policy, len(problems), lengths)
    ours, entropy = score(one.policy, one.prompts(problems), rows, SAMPLING)
    with torch.no_grad():
        plain, plain_entropy = plain_log_probs(one, problems, rows, SAMPLING)
    assert plain.std() > 0.5, "the check means nothing if all log-probs are alike"
    assert_log_probs_close(ours, plain)
    assert_log_probs_close(entropy, plain_entropy)


def one_image(one: Subject) -> None:
    same_as_plain(one, [ONE])


def several_images(one: Subject) -> None:
    same_as_plain(one, [TWO])


def different_sizes(one: Subject) -> None:
    same_as_plain(one, [ONE, WIDE, TALL])


def text_only_mixed(one: Subject) -> None:
    same_as_plain(one, [ONE, NONE, TWO])
    same_as_plain(one, [NONE])


def batched_is_single(one: Subject) -> None:
    problems = [ONE, NONE, TWO, WIDE]
    rows = ragged_rows(one.policy, len(problems), LENGTHS)
    together, _ = score(one.policy, one.prompts(problems), rows, SAMPLING)
    alone = [score(one.policy, one.prompts([problems[i]]), [(0, tokens)], SAMPLING)[0] for i, tokens in rows]
    assert_log_probs_close(together, torch.cat(alone))


def ragged_completions(one: Subject) -> None:
    same_as_plain(one, [ONE, TWO], (1, 33, 2, 20, 3))
    rows = ragged_rows(one.policy, 2, (1, 33, 2, 20, 3))
    prompts = one.prompts([ONE, TWO])
    whole, _ = score(one.policy, prompts, rows, SAMPLING)
    cut, _ = score(one.policy, prompts, rows, SAMPLING, tokens_per_pass=7)
    assert_log_probs_close(cut, whole)


def pictures_one_by_one(one: Subject) -> None:
    """Features of a picture do not depend on its neighbours: the cache of frozen towers rests on it."""
    prompts = one.prompts([TWO, ONE, WIDE])
    device = torch.device("cpu")
    encode, model = one.policy.family.encode_images, one.policy.model
    with torch.no_grad():
        together = encode(model, join_media([p.media for p in prompts], device))
        alone = [encode(model, media) for p in prompts for media in split_media(p)]
    tokens = [n for p in prompts for n in p.picture_tokens]
    joined = join_features(alone)
    assert [len(part.features) for part in split_features(together, tokens)] == tokens
    for ours, theirs in zip(
        (joined.features, *joined.deepstack), (together.features, *together.deepstack), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def gradients_are_plain(one: Subject) -> None:
    """Every parameter, vision tower included, in one pass, in several, and with completions cut into segments."""
    problems = [ONE, NONE, TWO]
    rows = ragged_rows(one.policy, len(problems), LENGTHS)
    weights = torch.linspace(-1, 1, sum(LENGTHS))

    def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        return (weights[index] * log_probs - 0.3 * weights[index].square() * entropy).sum()

    log_probs, entropy = plain_log_probs(one, problems, rows, SAMPLING)
    loss(torch.arange(len(weights)), log_probs, entropy).backward()
    plain = gradients_of(one.plain)
    # without rotary positions the bias of the keys shifts all scores of a query alike: its true gradient is 0
    nothing = {name for name in plain if "vision" in name and name.endswith("k_proj.bias")}
    assert any("vision" in name or "visual" in name for name in plain.keys() - nothing)
    whole = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
    for tokens_per_pass in (8192, 40, 7):
        backward(one.policy, one.prompts(problems), rows, SAMPLING, loss, tokens_per_pass)
        ours = gradients_of(one.policy.model)
        assert all(float(found[name].norm()) < 1e-7 * whole for name in nothing for found in (ours, plain))
        assert_gradients_close(*({n: found[n] for n in found.keys() - nothing} for found in (ours, plain)))


def gradients_of(model: Any) -> dict[str, Tensor]:
    """By name, and cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def bfloat16_runs(one: Subject) -> None:
    """Scores near those of float32, and a finite gradient for every parameter that has one in plain transformers."""
    half = converted(one, torch.bfloat16)
    problems = [ONE, NONE, TWO]
    rows = ragged_rows(one.policy, len(problems), LENGTHS)
    exact, _ = score(one.policy, one.prompts(problems), rows, SAMPLING)
    rounded, _ = score(half.policy, half.prompts(problems), rows, SAMPLING)
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).abs().mean()) < 0.15
    SharedPrefillEngine(half.policy).generate(half.prompts(problems), 2, SAMPLING, seed=(0, 0))
    backward(half.policy, half.prompts(problems), rows, SAMPLING, lambda i, lp, h: lp.mean())
    plain_log_probs(half, problems, rows, SAMPLING)[0].mean().backward()
    ours, plain = gradients_of(half.policy.model), gradients_of(half.plain)
    assert ours.keys() == plain.keys()
    assert all(bool(gradient.isfinite().all()) for gradient in ours.values())


def another_picture_differs(one: Subject) -> None:
    """The control: what the checks above compare does depend on the pixels."""
    other = replace(ONE, images=(picture(84, 140, 99),))
    rows = ragged_rows(one.policy, 1, (20,))
    ours, theirs = (score(one.policy, one.prompts([asked]), rows, SAMPLING)[0] for asked in (ONE, other))
    assert float((ours - theirs).abs().max()) > 1e-2


def flat(groups: Sequence[tuple[Completion, ...]]) -> list[Row]:
    return [(i, c.token_ids) for i, group in enumerate(groups) for c in group]


def generation_is_scoring(one: Subject) -> None:
    problems = [ONE, NONE, TWO]
    prompts = one.prompts(problems)
    for temperature in (0.8, 0.0):
        sampling = Sampling(temperature=temperature, max_new_tokens=12, bans=(40,))
        groups = SharedPrefillEngine(one.policy).generate(prompts, 3, sampling, seed=(1, 2))
        said = torch.from_numpy(np.concatenate([c.log_probs for group in groups for c in group]))
        assert_log_probs_close(said, score(one.policy, prompts, flat(groups), sampling)[0])
        with torch.no_grad():
            assert_log_probs_close(said, plain_log_probs(one, problems, flat(groups), sampling)[0])


def greedy_is_generate(one: Subject) -> None:
    """Token by token, until the two best logits of plain transformers are closer than 1e-5."""
    greedy = Sampling(temperature=0, max_new_tokens=12)
    banned = [[i] for i in one.policy.bans(greedy)]
    problems = [ONE, NONE, TWO]
    groups = SharedPrefillEngine(one.policy).generate(one.prompts(problems), 2, greedy, seed=(0, 0))
    for asked, group in zip(problems, groups, strict=True):
        inputs = plain_inputs(one, [asked], [(0, EMPTY)])
        out = one.plain.generate(
            **inputs, max_new_tokens=12, do_sample=False, bad_words_ids=banned, output_scores=True,
            return_dict_in_generate=True, eos_token_id=list(one.policy.eos_ids),
        )  # fmt: skip
        gaps = [float(torch.diff(scores[0].topk(2).values.flip(0))) for scores in out.scores]
        sure = next((i for i, gap in enumerate(gaps) if gap < 1e-5), len(gaps))
        assert sure > 3, "the check means nothing if the first tokens are ties"
        theirs = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        for completion in group:
            assert completion.token_ids.tolist()[:sure] == theirs[:sure]


def interleaved(one: Subject) -> None:
    """Generation, training and other pictures in turns: nothing is remembered in the modules."""
    engine, prompts = SharedPrefillEngine(one.policy), one.prompts([ONE, TWO])
    first = engine.generate(prompts, 2, SAMPLING, seed=(0, 0))
    rows = flat(first)

    def train() -> dict[str, Tensor]:
        backward(one.policy, prompts, rows, SAMPLING, lambda index, log_probs, entropy: log_probs.sum())
        return gradients_of(one.policy.model)

    before = train()
    other = problem("other", (picture(112, 224, 9),), "Something else entirely?")
    engine.generate(one.prompts([other]), 1, SAMPLING, seed=(0, 1))
    inputs = plain_inputs(one, [other], [(0, EMPTY)])
    one.policy.model.generate(**inputs, max_new_tokens=3, do_sample=False)  # leaves rope_deltas behind
    again = engine.generate(prompts, 2, SAMPLING, seed=(0, 0))
    assert [t.tolist() for _, t in flat(again)] == [t.tolist() for _, t in rows]
    assert_gradients_close(train(), before, 1e-12)


def special_tokens_are_text(one: Subject) -> None:
    tokenizer = one.policy.processor.tokenizer
    special = special_ids(tokenizer)
    attack = "no" + "".join(tokenizer.added_tokens_decoder[i].content for i in sorted(special))
    for pictures in ((), TWO.images):
        innocent, hostile = one.prompts([problem("x", pictures, "Why?"), problem("x", pictures, attack)])
        count = [sum(int(i) in special for i in prompt.token_ids) for prompt in (innocent, hostile)]
        assert count[0] == count[1], "the same turns and pictures as for an innocent question"
        assert int(hostile.image_mask.sum()) == int(innocent.image_mask.sum())
        assert attack in tokenizer.decode(hostile.token_ids)
    assert not special & set(one.policy.encode_reply(attack)[:-1].tolist())


def save_and_reload(one: Subject) -> None:
    """The Auto classes load every tensor, and the outputs are equal to the last bit; Fovea loads them, too."""
    again, report = AutoModelForImageTextToText.from_pretrained(one.folder, output_loading_info=True)
    assert type(again) is type(one.policy.model)
    assert not [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    inputs = plain_inputs(one, [ONE, TWO], [(0, EMPTY), (1, EMPTY)])
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, one.policy.model(**inputs).logits)
    loaded = load_policy(one.folder, device="cpu")
    rows = ragged_rows(one.policy, 2, (4, 6))
    ours = score(one.policy, one.prompts([ONE, TWO]), rows, SAMPLING)[0]
    theirs = score(loaded, [loaded.prompt(p) for p in (ONE, TWO)], rows, SAMPLING)[0]
    assert_log_probs_close(ours, theirs)  # experts of another memory alignment round otherwise


CHECKS: dict[str, Callable[[Subject], None]] = {
    "one image": one_image,
    "several images": several_images,
    "different sizes": different_sizes,
    "text-only mixed in": text_only_mixed,
    "batched = single": batched_is_single,
    "ragged completions": ragged_completions,
    "pictures one by one": pictures_one_by_one,
    "gradients = plain": gradients_are_plain,
    "bfloat16": bfloat16_runs,
    "another picture differs": another_picture_differs,
    "generation = scoring": generation_is_scoring,
    "greedy = generate": greedy_is_generate,
    "interleaved": interleaved,
    "special tokens are text": special_tokens_are_text,
    "save and reload": save_and_reload,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_conformance(family: str, check: str) -> None:
    matrix.RAN[family, check] = False
    CHECKS[check](subject(family))
    matrix.RAN[family, check] = True


def test_the_matrix_in_the_docs_is_what_ran() -> None:
    page = Path(__file__).parents[2] / "docs" / "families.md"
    if os.environ.get("FOVEA_WRITE_DOCS"):
        matrix.write(page, list(FAMILIES), list(CHECKS))
    shown = matrix.read(page)
    wrong = [cell for cell, passed in matrix.RAN.items() if shown.get(cell) != passed]
    assert not wrong, f"docs/families.md differs from this run in {wrong}; write it with FOVEA_WRITE_DOCS=1"
    everything = {(family, check) for family in FAMILIES for check in CHECKS}
    assert shown.keys() == everything, (
        "a family or a check is missing; write the page with FOVEA_WRITE_DOCS=1"
    )


def test_the_oldest_transformers_of_the_page_is_the_one_that_is_asked_for() -> None:
    root = Path(__file__).parents[2]
    asked = next(
        line
        for line in tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
        if line.startswith("transformers")
    )
    page = (root / "docs" / "families.md").read_text("utf-8")
    oldest = re.search(r"Tested with transformers (\d+\.\d+)\.", page)
    assert oldest is not None
    assert asked.startswith(f"transformers>={oldest[1]},")
    assert asked in page
