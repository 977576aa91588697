"""Continued prompts against the family's own processor and plain transformers over the whole conversation."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conformance.subject import SIZES, Subject, subject
from conftest import (
    assert_gradients_close,
    assert_log_probs_close,
    loud_policy,
    picture,
    problem,
    ragged_rows,
)
from miniature import SYSTEM, miniature
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models.adapter import Prompt
from fovea.models.construct import random_policy_parts
from fovea.models.conversation import continue_prompt, conversation
from fovea.models.policy import FAMILIES, Policy, make_policy
from fovea.models.rendering import special_ids
from fovea.models.shared_prefix import backward, score
from fovea.types import Problem, Sampling, UserError

SAMPLING = Sampling(temperature=0.8, max_new_tokens=12)
SAID = ("The left one is red", "No, I was wrong about it")

ONE = problem("one", (picture(84, 140, 1),), "Where is the red circle?")
NONE = problem("none", (), "How many are there?")
TWO = problem("two", (picture(56, 56, 2), picture(196, 84, 3)), "Which of the two is bigger, please?")
WIDE = problem("wide", (picture(280, 112, 4),), "And now?")
PAIR = problem("pair", (picture(70, 210, 5), picture(112, 56, 6)), "What of these?")

SPOKEN: dict[str, tuple[Problem, ...]] = {
    "one, one": (ONE, WIDE),
    "one, none": (ONE, NONE),
    "none, one": (NONE, ONE),
    "two, two": (TWO, PAIR),
    "one, two, one": (ONE, TWO, WIDE),
    "none, none, none": (NONE, NONE, NONE),
}


def ways(family: str) -> list[str]:
    """LLaVA-OneVision tiles a picture that is alone: its processor over the whole conversation, where it counts all
    pictures, changes turns that were rendered with one. Its tokens are compared where the count is the same."""
    if family != "llava_onevision":
        return list(SPOKEN)
    return ["one, none", "none, one", "two, two", "none, none, none"]


EVERY = [(family, way) for family in FAMILIES for way in ways(family)]


def content(asked: Problem) -> list[dict[str, Any]]:
    return [*({"type": "image"} for _ in asked.images), {"type": "text", "text": asked.question}]


def plain_text(processor: Any, problems: Sequence[Problem], said: Sequence[str]) -> str:
    """The whole conversation by the chat template, ending with the generation prompt."""
    chat: list[dict[str, Any]] = []
    for i, asked in enumerate(problems):
        chat.append({"role": "user", "content": content(asked)})
        if i + 1 < len(problems):
            chat.append({"role": "assistant", "content": [{"type": "text", "text": said[i]}]})
    return str(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def plain_whole(processor: Any, problems: Sequence[Problem], said: Sequence[str]) -> dict[str, Any]:
    images = [image for asked in problems for image in asked.images]
    text = plain_text(processor, problems, said)
    return dict(
        processor(
            text=[text],
            images=[images] if images else None,
            return_tensors="pt",
            return_mm_token_type_ids=True,
        )
    )


def replies(policy: Policy, problems: Sequence[Problem], said: Sequence[str] = SAID) -> list[np.ndarray]:
    """`said` as the model would sample it: with what the template puts between the generation prompt and a reply
    (Idefics' space), and the end token."""
    found = []
    for i in range(len(problems) - 1):
        first = plain_text(policy.processor, problems[: i + 1], said)
        both = plain_text(policy.processor, problems[: i + 2], said)
        assert both.startswith(first)
        found.append(policy.encode_reply(both[len(first) : both.index(said[i], len(first))] + said[i]))
    return found


def spoken(policy: Policy, problems: Sequence[Problem], said: Sequence[np.ndarray]) -> Prompt:
    return conversation(policy, list(zip(problems[:-1], said, strict=False)), problems[-1])


def plain_log_probs(
    one: Subject, prompt: Prompt, problems: Sequence[Problem], rows: Sequence[np.ndarray]
) -> tuple[Tensor, Tensor]:
    """Every row by a plain forward over everything, one after the other: the ids are the prompt's, the pictures'
    tensors the processor's, the positions and masks transformers' own."""
    made = plain_whole(one.processor, problems, SAID)
    known = inspect.signature(one.plain.forward).parameters
    if "batch_num_images" in known and made.get("pixel_values") is not None:
        # one text a turn: the processor then tiles as the turns were tiled, and the model is told which are alone
        shown = [asked for asked in problems if asked.images]
        texts = [plain_text(one.processor, [asked], ()) for asked in shown]
        made |= dict(
            one.processor(
                text=texts, images=[list(p.images) for p in shown], return_tensors="pt", padding=True
            )
        )
    taken, entropies = [], []
    for tokens in rows:
        after = torch.zeros(len(tokens), dtype=torch.long)
        inputs = {key: made[key] for key in made.keys() & known.keys()}
        inputs["input_ids"] = torch.cat([prompt.token_ids, torch.from_numpy(tokens)])[None]
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        for key in {"mm_token_type_ids", "token_type_ids"} & known.keys() & made.keys():
            inputs[key] = torch.cat([prompt.image_mask.long(), after])[None]
        logits = one.plain(**inputs).logits[0] / SAMPLING.temperature
        logits[..., list(one.policy.bans(SAMPLING))] = -torch.inf
        own = logits.log_softmax(-1)[-len(tokens) - 1 : -1]
        taken.append(own.gather(-1, torch.from_numpy(tokens)[:, None])[:, 0])
        entropies.append(-(own.exp() * own.masked_fill(own == -torch.inf, 0)).sum(-1))
    return torch.cat(taken), torch.cat(entropies)


def sampled(policy: Policy, lengths: Sequence[int], seed: int = 3) -> list[np.ndarray]:
    """Random ids: hardly any of them is how the tokenizer would write their text."""
    return [tokens for _, tokens in ragged_rows(policy, 1, tuple(lengths), seed)]


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize(("family", "way"), EVERY)
def test_tokens_are_the_processors_own_of_the_whole_conversation(family: str, way: str) -> None:
    one, problems = subject(family), SPOKEN[way]
    ours = spoken(one.policy, problems, replies(one.policy, problems))
    whole = plain_whole(one.processor, problems, SAID)
    assert ours.token_ids.tolist() == whole["input_ids"][0].tolist()
    shown = one.policy.prompt(ONE)
    image = int(shown.token_ids[shown.image_mask][0])
    assert torch.equal(ours.image_mask, whole["input_ids"][0] == image)
    pixels = whole.get("pixel_values")
    if pixels is not None and ours.media["pixel_values"].numel() == pixels.numel():
        assert torch.equal(ours.media["pixel_values"], pixels.reshape(ours.media["pixel_values"].shape))


@pytest.mark.parametrize("family", FAMILIES)
def test_continuing_is_the_whole_conversation_and_keeps_what_was_there(family: str) -> None:
    policy = subject(family).policy
    problems = SPOKEN["one, two, one"]
    said = sampled(policy, (7, 4))
    first = policy.prompt(problems[0])
    second = continue_prompt(policy, first, said[0], problems[1])
    third = continue_prompt(policy, second, said[1], problems[2])
    whole = spoken(policy, problems, said)
    for name in ("token_ids", "positions", "image_mask"):
        assert torch.equal(getattr(third, name), getattr(whole, name))
    for name in ("next_position", "picture_rows", "picture_tokens", "resized"):
        assert getattr(third, name) == getattr(whole, name)
    assert third.media.keys() == whole.media.keys()
    assert all(torch.equal(third.media[key], whole.media[key]) for key in whole.media)
    for before, after, reply in ((first, second, said[0]), (second, third, said[1])):
        length = len(before.token_ids)
        assert torch.equal(after.token_ids[:length], before.token_ids)
        assert torch.equal(after.positions[:, :length], before.positions)
        there = slice(length, length + len(reply))
        assert after.token_ids[there].tolist() == reply.tolist()
        steps = before.next_position + torch.arange(len(reply))
        assert torch.equal(after.positions[:, there], steps.expand(len(after.positions), -1))
    assert [len(p.picture_tokens) for p in (first, second, third)] == [1, 3, 4]
    assert third.problem.id == "wide"
    assert third.problem.question == WIDE.question
    assert int(third.image_mask.sum()) == sum(third.picture_tokens)


def test_a_window_begins_with_a_first_turn_and_an_empty_one_is_a_single_turn() -> None:
    policy = miniature()
    said = sampled(policy, (5, 6))
    window = conversation(policy, [(TWO, said[1])], WIDE, "Be short.")
    text = policy.processor.tokenizer.decode(window.token_ids)
    assert text.startswith(SYSTEM)
    assert text.count(SYSTEM) == 1
    assert text.count("please?\nBe short.") == 1
    assert text.count("And now?\nBe short.") == 1
    assert torch.equal(conversation(policy, [], ONE).token_ids, policy.prompt(ONE).token_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_ids_are_kept_as_they_are(family: str) -> None:
    """Pieces of characters, words cut in another way, special tokens that the model wrote itself."""
    policy = subject(family).policy
    tokenizer = policy.processor.tokenizer
    half = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    written = [
        i for i in special_ids(tokenizer) if i not in policy.bans(SAMPLING) and i not in policy.eos_ids
    ]
    reply = np.array([*half, *sampled(policy, (9,))[0], written[0], policy.eos_ids[0]], dtype=np.int64)
    again = tokenizer(tokenizer.decode(reply), add_special_tokens=False)["input_ids"]
    assert again != reply.tolist(), "the check means nothing for a reply that tokenizes to itself"
    before = policy.prompt(ONE)
    after = continue_prompt(policy, before, reply, TWO)
    place = len(before.token_ids)
    assert after.token_ids[place : place + len(reply)].tolist() == reply.tolist()
    drawn = np.array([policy.family.media_ids(policy.model.config)[0], policy.eos_ids[0]])
    with pytest.raises(ValueError, match="media token"):
        continue_prompt(policy, before, drawn, TWO)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_without_end_gets_the_templates_as_context(family: str) -> None:
    policy = subject(family).policy
    before = policy.prompt(ONE)
    cut = sampled(policy, (6,))[0]
    cut = cut[~np.isin(cut, policy.eos_ids)]
    whole = np.append(cut, policy.eos_ids[0])
    prompts = [continue_prompt(policy, before, reply, WIDE) for reply in (cut, whole)]
    assert torch.equal(prompts[0].token_ids, prompts[1].token_ids)
    assert policy.eos_ids[0] == policy.reply_end
    other = next((i for i in special_ids(policy.processor.tokenizer) if i not in policy.bans(SAMPLING)), None)
    assert other != policy.reply_end
    strange = continue_prompt(policy, before, np.append(cut, other), WIDE).token_ids
    place = len(before.token_ids) + len(cut)
    assert strange[place : place + 2].tolist() == [other, policy.reply_end]


def test_a_reply_that_another_token_ended_gets_the_templates_end_too() -> None:
    policy = miniature()
    other = next(token for token in policy.eos_ids if token != policy.reply_end)
    before, reply = policy.prompt(ONE), np.append(policy.encode_reply("Left")[:-1], other)
    after = continue_prompt(policy, before, reply, WIDE).token_ids[len(before.token_ids) :]
    assert after[: len(reply) + 1].tolist() == [*reply.tolist(), policy.reply_end]


def changed(family: str, template: str) -> Policy:
    """A policy of a family with another chat template."""
    model, processor = random_policy_parts(family, **SIZES)
    processor.chat_template = processor.tokenizer.chat_template = template
    return make_policy(model, processor)


PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
PARTS = (
    "{% for part in message.content %}{% if part.type == 'image' %}"
    + PICTURE
    + "{% elif message.role == 'user' %}"
    "{{ part.text }}{% else %}REPLY{% endif %}{% endfor %}"
)


def template(reply: str, end: str = "<|im_end|>\n", prompt: str = "") -> str:
    turn = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n" + PARTS.replace("REPLY", reply) + end
    )
    return turn + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n" + prompt + "{% endif %}"


def test_a_template_that_drops_earlier_thoughts_drops_none_of_ours() -> None:
    """As Qwen3's: of earlier replies only what stands behind the thought, and the thought is begun by the prompt."""
    policy = changed("qwen3_vl", template("{{ part.text.split('</think>')[-1] }}", prompt="<think>\n"))
    said = "It is a red circle.</think>Left"
    problems = (ONE, WIDE)
    whole = policy.processor.tokenizer.decode(plain_whole(policy.processor, problems, [said])["input_ids"][0])
    assert "It is a red circle" not in whole
    ours = conversation(policy, [(ONE, policy.encode_reply(said))], WIDE)
    text = policy.processor.tokenizer.decode(ours.token_ids)
    assert f"<|im_start|>assistant\n<think>\n{said}<|im_end|>\n<|im_start|>user\n" in text
    assert text.endswith("And now?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert text.count("<think>") == 2


@pytest.mark.parametrize("end", ["<|im_end|>\n", "<|im_end|>", "\n<|im_end|>", "<|im_end|>\n\n \n"])
@pytest.mark.parametrize("system", ["", SYSTEM, "a" * 9, "<|im_start|>user\na<|im_end|>\n"])
def test_ends_and_preambles_of_all_kinds(end: str, system: str) -> None:
    # jinja would take the line break behind a block for its own
    policy = changed("qwen2_5_vl", system + template("{{ part.text }}", end.replace("\n", "{{ '\\n' }}")))
    said = [policy.encode_reply(SAID[0] + end.partition("<")[0])]
    ours = spoken(policy, (ONE, TWO), said)
    assert ours.token_ids.tolist() == plain_whole(policy.processor, (ONE, TWO), SAID)["input_ids"][0].tolist()
    cut = spoken(policy, (ONE, TWO), [policy.encode_reply(SAID[0])[:-1]])
    text = policy.processor.tokenizer.decode(cut.token_ids)
    assert text == policy.processor.tokenizer.decode(ours.token_ids)


def test_a_tokenizer_that_begins_every_text_begins_the_conversation_once() -> None:
    model, processor = random_policy_parts("qwen2_5_vl", **SIZES)
    first = processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", first)]
    )
    policy = make_policy(model, processor)
    ours = spoken(policy, (ONE, TWO, WIDE), replies(policy, (ONE, TWO, WIDE)))
    theirs = plain_whole(processor, (ONE, TWO, WIDE), SAID)["input_ids"][0].tolist()
    assert ours.token_ids.tolist() == theirs
    assert theirs.count(first) == 1


ONCE = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (template("{{ part.text }}", "\n"), "same special token"),
        (template("{{ part.text | replace(part.text[0], '') }}"), "earlier reply once"),
        (template("{{ part.text }}{{ part.text }}"), "earlier reply once"),
        (
            template("{{ part.text }}", "{% if loop.last %}<|endoftext|>{% else %}<|im_end|>{% endif %}"),
            "same special",
        ),
        (ONCE + template("{{ part.text }}"), "one question only"),
        (template("{{ part.text }}").replace("in messages", "in messages[-1:]"), "earlier reply once"),
    ],
)
def test_templates_that_cannot_be_continued_are_refused(made: str, said: str) -> None:
    policy = changed("qwen2_5_vl", made)
    with pytest.raises(UserError, match=said) as refused:
        continue_prompt(policy, policy.prompt(ONE), policy.encode_reply("Left"), TWO)
    assert str(refused.value).count(".") <= 2
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_question_are_text(family: str) -> None:
    policy = subject(family).policy
    tokenizer = policy.processor.tokenizer
    special = special_ids(tokenizer)
    attack = "no" + "".join(tokenizer.added_tokens_decoder[i].content for i in sorted(special))
    before, reply = policy.prompt(TWO), policy.encode_reply("Left")
    innocent, hostile = (
        continue_prompt(policy, before, reply, replace(PAIR, question=text), f"{text} {{question}}")
        for text in ("Why?", attack)
    )
    count = [sum(int(i) in special for i in prompt.token_ids) for prompt in (innocent, hostile)]
    assert count[0] == count[1]
    assert int(hostile.image_mask.sum()) == int(innocent.image_mask.sum())
    assert f"{attack} {attack}" in tokenizer.decode(hostile.token_ids)
    marks = continue_prompt(policy, before, reply, replace(PAIR, question="\ue0f2\ue0f3 \ue0f0\ue0f1"))
    assert "\ue0f2\ue0f3 \ue0f0\ue0f1" in tokenizer.decode(marks.token_ids)


def test_what_does_not_fit_the_context_names_the_problem() -> None:
    policy = loud_policy("qwen2_5_vl", **SIZES, context=90)
    first = policy.prompt(ONE)
    reply = policy.encode_reply("Left")
    assert len(continue_prompt(policy, first, reply, NONE).token_ids) <= 90
    with pytest.raises(
        UserError, match=r"Problem two: with the turns before it .* holds 90; keep fewer turns"
    ) as no:
        continue_prompt(policy, first, reply, TWO)
    assert "for pictures" in str(no.value)
    policy.reply_tokens = 60
    source = replace(NONE, meta={"source": "my.jsonl:3"})
    with pytest.raises(UserError, match=r"Problem none \(my.jsonl:3\): .* and 60 for the reply"):
        continue_prompt(policy, first, reply, source)


def test_boxes_of_the_new_turn_are_in_its_own_pictures() -> None:
    policy = subject("qwen2_5_vl").policy
    asked = replace(
        PAIR, kind="box", answer=(7, 14, 35, 70), target="at {box:7,14,35,70}", meta={"box_image": 1}
    )
    alone = policy.prompt(asked)
    after = continue_prompt(policy, policy.prompt(ONE), policy.encode_reply("Left"), asked)
    assert after.problem.answer == alone.problem.answer
    assert after.problem.target == alone.problem.target
    assert after.resized[1:] == alone.resized


# ---------------------------------------------------------------- log-probs and gradients


@pytest.mark.parametrize("way", SPOKEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_a_plain_forward_over_everything(family: str, way: str) -> None:
    one, problems = subject(family), SPOKEN[way]
    prompt = spoken(one.policy, problems, sampled(one.policy, (7, 4)))
    rows = sampled(one.policy, (5, 1, 14), seed=4)
    ours, entropy = score(one.policy, [prompt], [(0, tokens) for tokens in rows], SAMPLING)
    with torch.no_grad():
        plain, plain_entropy = plain_log_probs(one, prompt, problems, rows)
    assert plain.std() > 0.4, "the check means nothing if all log-probs are alike"
    assert_log_probs_close(ours, plain)
    assert_log_probs_close(entropy, plain_entropy)


@pytest.mark.parametrize("family", FAMILIES)
def test_earlier_pictures_and_replies_are_seen(family: str) -> None:
    policy = subject(family).policy
    rows = [(0, sampled(policy, (20,), seed=4)[0])]
    said = sampled(policy, (7, 8))
    here, _ = score(policy, [spoken(policy, (ONE, WIDE), said)], rows, SAMPLING)
    others = (
        spoken(policy, (replace(ONE, images=(picture(84, 140, 99),)), WIDE), said),
        spoken(policy, (ONE, WIDE), said[1:]),
    )
    for other in others:
        assert float((score(policy, [other], rows, SAMPLING)[0] - here).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "qwen3_5"])
def test_gradients_are_those_of_plain_autograd(family: str) -> None:
    one = subject(family)
    said = sampled(one.policy, (7, 4))
    talks = [SPOKEN["one, two, one"], SPOKEN["one, one"]]
    prompts = [spoken(one.policy, problems, said) for problems in talks]
    rows = sampled(one.policy, (5, 9, 2, 12), seed=4)
    weights = torch.linspace(-1, 1, sum(map(len, rows)))

    def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        return (weights[index] * log_probs - 0.3 * weights[index].square() * entropy).sum()

    both = [plain_log_probs(one, prompts[i], talks[i], rows[2 * i : 2 * i + 2]) for i in (0, 1)]
    log_probs, entropy = (torch.cat(each) for each in zip(*both))
    loss(torch.arange(len(weights)), log_probs, entropy).backward()
    plain = gradients_of(one.plain)
    nothing = {name for name in plain if "vision" in name and name.endswith("k_proj.bias")}  # true gradient 0
    for tokens_per_pass in (8192, 7):
        dealt = [(i // 2, tokens) for i, tokens in enumerate(rows)]
        backward(one.policy, prompts, dealt, SAMPLING, loss, tokens_per_pass)
        ours = gradients_of(one.policy.model)
        assert_gradients_close(*({n: found[n] for n in found.keys() - nothing} for found in (ours, plain)))


def gradients_of(model: Any) -> dict[str, Tensor]:
    """By name, and cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_an_episode_sampled_turn_by_turn_is_scored_as_it_was_sampled(family: str) -> None:
    """Against the plain model too: of every turn, under the turns that were really sampled before it."""
    one = subject(family)
    engine, problems = SharedPrefillEngine(one.policy), SPOKEN["one, two, one"]
    prompt, said = one.policy.prompt(problems[0]), []
    for turn, asked in enumerate(problems):
        if turn:
            prompt = continue_prompt(one.policy, prompt, said[-1], asked)
        reply = engine.generate([prompt], 1, SAMPLING, seed=(0, turn))[0][0]
        said.append(reply.token_ids)
        ours = torch.from_numpy(reply.log_probs)
        with torch.no_grad():
            plain, _ = plain_log_probs(one, prompt, problems[: turn + 1], [reply.token_ids])
        assert_log_probs_close(ours, plain)
        assert_log_probs_close(ours, score(one.policy, [prompt], [(0, reply.token_ids)], SAMPLING)[0])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_frozen_tower_sees_a_picture_once_in_an_episode(family: str) -> None:
    policy = loud_policy(family, **SIZES)
    problems, said = SPOKEN["one, two, one"], sampled(policy, (7, 4))
    rows = [(0, sampled(policy, (9,), seed=4)[0])]
    expected, _ = score(policy, [spoken(policy, problems, said)], rows, SAMPLING)
    frozen = make_policy(policy.model, policy.processor, freeze=("vision", "projector"))
    assert frozen.family.name == family
    seen = []
    encode = frozen.family.encode_images

    def counted(model: Any, media: Any) -> Any:
        seen.append(len(media["image_sizes" if family == "llava_onevision" else "image_grid_thw"]))
        return encode(model, media)

    frozen.family = replace(frozen.family, encode_images=counted)
    score(frozen, [frozen.prompt(problems[0])], rows, SAMPLING)
    score(frozen, [spoken(frozen, problems[:2], said)], rows, SAMPLING)
    ours, _ = score(frozen, [spoken(frozen, problems, said)], rows, SAMPLING)
    assert_log_probs_close(ours, expected)
    assert sum(seen) == 4
