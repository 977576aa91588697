"""The engines: greedy equals Hugging Face, log-probs equal scoring, noise belongs to the sample, rows
leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    assert_gradients_close,
    assert_log_probs_close,
    different_problems,
    gradients,
    loud_policy,
    picture,
    plain_inputs,
    plain_log_probs,
    problem,
)

from fovea.engines.scripted import ScriptedEngine
from fovea.engines.shared_prefill import SharedPrefillEngine, choose, row_keys, uniforms
from fovea.models.head import sampling_logits
from fovea.models.policy import Policy
from fovea.models.shared_prefix import backward, score
from fovea.types import Completion, RunFailed, Sampling

SAMPLING = Sampling(temperature=0.9, max_new_tokens=24)


def flat(groups: list[tuple[Completion, ...]]) -> list[tuple[int, np.ndarray]]:
    return [(i, c.token_ids) for i, group in enumerate(groups) for c in group]


def test_greedy_equals_hugging_face_generate(policy: Policy) -> None:
    greedy = Sampling(temperature=0, max_new_tokens=16)
    problems = different_problems()
    groups = SharedPrefillEngine(policy).generate(
        [policy.prompt(p) for p in problems], 2, greedy, seed=(0, 0)
    )
    banned = [[i] for i in policy.bans(greedy)]
    for one, group in zip(problems, groups, strict=True):
        inputs = plain_inputs(policy, [one], [(0, np.zeros(0, dtype=np.int64))])
        out = policy.model.generate(**inputs, max_new_tokens=16, do_sample=False, bad_words_ids=banned)
        theirs = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert [c.token_ids.tolist() for c in group] == [theirs, theirs]


@pytest.mark.parametrize("temperature", [0.9, 0.0])
def test_log_probs_are_those_of_scoring(policy: Policy, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_new_tokens=24, bans=(40,))
    prompts = [policy.prompt(p) for p in different_problems()]
    groups = SharedPrefillEngine(policy).generate(prompts, 3, sampling, seed=(1, 2))
    said = torch.from_numpy(np.concatenate([c.log_probs for group in groups for c in group]))
    scored, _ = score(policy, prompts, flat(groups), sampling)
    assert_log_probs_close(said, scored)
    with torch.no_grad():
        plain, _ = plain_log_probs(policy, different_problems(), flat(groups), sampling)
    assert_log_probs_close(said, plain)


def test_hidden_state_of_the_model_is_never_read(policy: Policy) -> None:
    """Generation, training and another grid in turns, with plain forwards between them that leave
    rope_deltas."""
    engine = SharedPrefillEngine(policy)
    problems = different_problems()
    prompts = [policy.prompt(p) for p in problems]
    first = engine.generate(prompts, 2, SAMPLING, seed=(0, 0))
    rows = flat(first)

    def train() -> dict[str, torch.Tensor]:
        backward(policy, prompts, rows, SAMPLING, lambda index, log_probs, entropy: log_probs.sum())
        return gradients(policy)

    before = train()
    other = [problem("other", (picture(112, 224, 9),), "Something else entirely?")]
    for _ in range(2):
        engine.generate([policy.prompt(p) for p in other], 1, SAMPLING, seed=(0, 1))
        inputs = plain_inputs(policy, other, [(0, np.zeros(0, dtype=np.int64))])
        policy.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        again = engine.generate(prompts, 2, SAMPLING, seed=(0, 0))
        assert [t.tolist() for _, t in flat(again)] == [t.tolist() for _, t in rows]
        assert_gradients_close(train(), before, 1e-12)


def test_noise_does_not_depend_on_the_batch(policy: Policy) -> None:
    problems = different_problems()
    prompts = [policy.prompt(p) for p in problems]
    together = SharedPrefillEngine(policy).generate(prompts, 4, SAMPLING, seed=(3, 5))
    reversed_ = SharedPrefillEngine(policy).generate(prompts[::-1], 4, SAMPLING, seed=(3, 5))[::-1]
    small = SharedPrefillEngine(policy, rows_at_once=4).generate(prompts, 4, SAMPLING, seed=(3, 5))
    fewer = SharedPrefillEngine(policy).generate(prompts, 2, SAMPLING, seed=(3, 5))
    for other, samples in ((reversed_, 4), (small, 4), (fewer, 2)):
        for ours, theirs in zip(together, other, strict=True):
            assert [c.text for c in ours[:samples]] == [c.text for c in theirs]
    for seed, draw in (((4, 5), 0), ((3, 6), 0), ((3, 5), 1)):
        changed = SharedPrefillEngine(policy).generate(prompts, 4, SAMPLING, seed=seed, draw=draw)
        assert [c.text for g in changed for c in g] != [c.text for g in together for c in g]
    assert len({c.text for c in together[0]}) > 1, "samples of one group differ"


def test_media_tokens_and_bans_are_never_sampled(policy: Policy) -> None:
    """Even a head that wants nothing else: every hidden state points at the media tokens."""
    media = list(policy.family.media_ids(policy.model.config))
    prompts = [policy.prompt(p) for p in different_problems()]
    for sampling in (SAMPLING, Sampling(temperature=0, max_new_tokens=24, bans=(7, 8))):
        with torch.no_grad():
            policy.model.lm_head.weight[[*media, 7, 8]] *= 5
        groups = SharedPrefillEngine(policy).generate(prompts, 4, sampling, seed=(0, 0))
        said = np.concatenate([tokens for _, tokens in flat(groups)])
        assert not np.isin(said, policy.bans(sampling)).any()


def test_finished_rows_and_prompts_leave_the_batch(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every second token an end token and watch the decode batch shrink."""
    monkeypatch.setattr(Policy, "eos_ids", property(lambda self: (policy.pad_id, *range(60, 400))))
    widths: list[int] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        widths.append(kwargs["inputs_embeds"].shape[1])

    text = policy.family.text_model(policy.model)
    handle = text.register_forward_pre_hook(watch, with_kwargs=True)
    prompts = [policy.prompt(p) for p in different_problems()]
    groups = SharedPrefillEngine(policy).generate(prompts, 8, SAMPLING, seed=(0, 0))
    handle.remove()
    decode = widths[1:]
    assert decode == sorted(decode, reverse=True)
    assert decode[-1] < 16, "most rows are gone at the end"
    lengths = [len(t) for _, t in flat(groups)]
    assert min(lengths) == 1
    assert max(lengths) == len(decode) + 1
    assert all((c.stop == "eos") == (int(c.token_ids[-1]) in policy.eos_ids) for g in groups for c in g)
    assert not any(np.isin(t[:-1], policy.eos_ids).any() for _, t in flat(groups))
    scored, _ = score(policy, prompts, flat(groups), SAMPLING)
    said = torch.from_numpy(np.concatenate([c.log_probs for g in groups for c in g]))
    assert_log_probs_close(said, scored)


def test_the_same_prompt_object_twice_and_long_replies() -> None:
    """Beyond the first capacity of the key buffer, and with one prefix for two entries, which get other replies."""
    policy = loud_policy("qwen2_5_vl")
    a, b = (policy.prompt(p) for p in different_problems()[:2])
    sampling = Sampling(max_new_tokens=80, bans=policy.eos_ids)
    groups = SharedPrefillEngine(policy).generate([a, b, a], 2, sampling, seed=(0, 0))
    assert not {c.text for c in groups[0]} & {c.text for c in groups[2]}
    assert all(len(c.token_ids) == 80 and c.stop == "length" for g in groups for c in g)
    said = torch.from_numpy(np.concatenate([c.log_probs for g in groups for c in g]))
    assert_log_probs_close(said, score(policy, [a, b, a], flat(groups), sampling)[0])


def test_a_problem_twice_in_a_step_gets_other_replies(policy: Policy) -> None:
    """Its first occurrence those that it would get alone; whatever the batches."""
    a, b = (policy.prompt(p) for p in different_problems()[:2])
    again = policy.prompt(different_problems()[0])
    alone = SharedPrefillEngine(policy).generate([a, b], 2, SAMPLING, seed=(0, 0))
    for rows in (512, 2):
        groups = SharedPrefillEngine(policy, rows_at_once=rows).generate(
            [a, b, again], 2, SAMPLING, seed=(0, 0)
        )
        said = [[c.text for c in group] for group in groups]
        assert said[:2] == [[c.text for c in group] for group in alone]
        assert not set(said[0]) & set(said[2])


def test_inverse_cdf_draws_the_distribution() -> None:
    logits = sampling_logits(torch.log(torch.tensor([[0.5, 0.2, 0.3, 1.0]])), Sampling(), torch.tensor([3]))
    n = 20000
    keys = row_keys(["p"] * n, range(n), (0, 0, 0))
    tokens, log_probs = choose(logits.expand(n, -1), Sampling(), keys, 0)
    counts = torch.bincount(tokens, minlength=4) / n
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.2, 0.3, 0.0]), atol=0.012, rtol=0)
    assert counts[3] == 0
    torch.testing.assert_close(log_probs, torch.log(torch.tensor([0.5, 0.2, 0.3]))[tokens])


def test_noise_is_a_fixed_function_of_its_key() -> None:
    """Golden: changes of the hash would silently change every run."""
    keys = row_keys(["a", "b"], [0, 1], (7, 3, 0))
    u = uniforms(keys, 4)
    assert keys.tolist() == [0x8613FDA8F8A2EFD, 0x1BFC69EB88CA01CC]
    assert u.tolist() == [0.869583356473548, 0.6552975226718587]
    assert keys.tolist() == row_keys(["b", "a"][::-1], [0, 1], (7, 3, 0)).tolist()
    assert keys.tolist() == row_keys(["a", "b"], [0, 1], (7, 3, 0), [0, 0]).tolist()
    assert len(set(row_keys(["a", "a", "a"], [0, 0, 0], (7, 3, 0), [0, 1, 2]))) == 3
    many = uniforms(row_keys(["a"] * 4000, range(4000), (0, 0, 0)), 0)
    assert abs(many.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.05
    other = uniforms(row_keys(["a"] * 4000, range(4000), (0, 0, 0)), 1)
    assert abs(np.corrcoef(many, other)[0, 1]) < 0.05


def test_scripted_engine_says_its_script(policy: Policy) -> None:
    engine = ScriptedEngine(lambda problem, sample: f"{problem.id}{sample}", policy.encode_reply)
    groups = engine.generate([policy.prompt(different_problems()[0])], 2, SAMPLING, seed=(0, 0))
    assert [c.text for c in groups[0]] == ["one0", "one1"]
    assert policy.decode(groups[0][1].token_ids) == "one1"
    assert groups[0][0].stop == "eos"
    short = engine.generate(
        [policy.prompt(different_problems()[0])], 1, Sampling(max_new_tokens=1), seed=(0, 0)
    )
    assert short[0][0].stop == "length"
    assert len(short[0][0].token_ids) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_diverged_are_said(temperature: float) -> None:
    policy = loud_policy("qwen2_5_vl")
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(torch.nan)
    prompt = policy.prompt(different_problems()[0])
    with pytest.raises(RunFailed, match="weights have diverged"):
        SharedPrefillEngine(policy).generate(
            [prompt], 2, Sampling(temperature=temperature, max_new_tokens=3), seed=(0, 0)
        )
