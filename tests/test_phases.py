"""Two sampling phases: what is sampled under which picture, trained under which, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance.subject import NONE, TWO, WIDE, subject
from torch import Tensor

from fovea.algorithms import algorithm_of
from fovea.config import Run, load_run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.interventions import Ask, Seen, intervention_of, noise
from fovea.interventions.noise import random_sign
from fovea.models import Policy, Prompt, backward, score
from fovea.models.canvas import canvases, on_canvas
from fovea.models.kept import keeping
from fovea.models.pixels import PolicyPixels
from fovea.phases import Explorer, content, entropies_under
from fovea.rollouts import collect, lines_of, to_samples
from fovea.training import train
from fovea.training.optim import make_optimizer
from fovea.training.setup import success
from fovea.training.update import one_step, update
from fovea.types import Completion, Group, Sampling, UserError

FAMILIES = ["qwen2_5_vl", "qwen3_vl", "smolvlm", "llava_onevision"]
SAMPLING = Sampling(max_new_tokens=6)


def run_of(**section: Any) -> Run:
    return Run(
        prompts=3,
        group=6,
        steps=10,
        intervention={"measure_every": 1} | section,
        optimizer={"learning_rate": 1e-9, "max_grad_norm": 1e9},
    )


def explored(
    family: str = "qwen2_5_vl", problems: Sequence[Any] = (WIDE, NONE, TWO), step: int = 0, **section: Any
) -> tuple[Policy, Run, Explorer, list[Group]]:
    """Three groups of six (an earned reward that differs from reply to reply), in two phases."""
    policy = subject(family).policy
    run = run_of(**section)
    intervention = intervention_of(run.intervention)
    assert intervention is not None
    explorer = Explorer(policy=policy, run=run, intervention=intervention)
    prompts = [policy.prompt(problem) for problem in problems]
    groups = collect(
        prompts,
        SharedPrefillEngine(policy),
        SAMPLING,
        {"format": 1.0},
        group=6,
        seed=(7, step),
        explorer=explorer,
    )
    worth = [np.arange(6.0), np.array([0.0, 1, 0, 0, 1, 1]), np.arange(6.0)[::-1].copy()]
    return policy, run, explorer, [replace(group, rewards=r) for group, r in zip(groups, worth)]


def log_probs(policy: Policy, prompt: Prompt, reply: Completion) -> np.ndarray:
    return score(policy, [prompt], [(0, reply.token_ids)], SAMPLING)[0].numpy()


# ---------------------------------------------------------------- what is sampled


@pytest.mark.parametrize("family", FAMILIES)
def test_each_half_is_sampled_under_its_own_picture(family: str) -> None:
    """No cache gives one picture's answers for the other: the engine's log-probs are those of a fresh forward."""
    policy, _, _, groups = explored(family, name="egas", epsilon=8)
    for group in (groups[0], groups[2]):
        assert [reply.variant for reply in group.completions] == ["clean"] * 3 + ["egas"] * 3
        other = group.variants["egas"]
        assert not torch.equal(other.media["pixel_values"], group.prompt.media["pixel_values"])
        assert torch.equal(other.token_ids, group.prompt.token_ids)
        for reply in group.completions:
            own = other if reply.variant == "egas" else group.prompt
            wrong = group.prompt if own is other else other
            assert np.abs(log_probs(policy, own, reply) - reply.log_probs).max() < 2e-5
            assert np.abs(log_probs(policy, wrong, reply) - reply.log_probs).max() > 1e-4
    text = groups[1]
    assert text.variants == {}
    assert {reply.variant for reply in text.completions} == {"clean"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_gets_uint8_in_the_ball_and_the_processor_makes_of_it_what_was_computed(
    family: str,
) -> None:
    policy, _, explorer, groups = explored(family, name="egas", epsilon=5)
    for group in (groups[0], groups[2]):
        other = group.variants["egas"]
        plain = policy.prompt(other.problem)  # as any engine would that is given the picture
        assert torch.equal(plain.media["pixel_values"], other.media["pixel_values"])
        assert torch.equal(plain.token_ids, other.token_ids)
        clean = policy.prompt(replace(group.problem, images=_canvases(policy, group)))
        assert torch.equal(clean.media["pixel_values"], group.prompt.media["pixel_values"].detach())
        for before, after in zip(_canvases(policy, group), other.problem.images):
            assert after.mode == "RGB"
            difference = np.abs(np.asarray(after).astype(int) - np.asarray(before).astype(int))
            assert difference.max() == 5
    metrics = explorer.take_metrics(groups)
    assert metrics["explore/epsilon"] == 5
    assert metrics["explore/skipped"] == pytest.approx(1 / 3)
    assert metrics["explore/skipped_no_picture"] == pytest.approx(1 / 3)


def _canvases(policy: Policy, group: Group) -> tuple[Any, ...]:
    from PIL import Image

    from fovea.models.canvas import canvases

    return tuple(Image.fromarray(canvas) for canvas in canvases(policy, group.prompt))


def test_entropies_of_the_engine_are_those_of_a_forward() -> None:
    policy = subject("qwen2_5_vl").policy
    prompts = [policy.prompt(WIDE), policy.prompt(NONE)]
    replies = SharedPrefillEngine(policy).generate(prompts, 3, SAMPLING, seed=(0, 0), entropies=True)
    silent = SharedPrefillEngine(policy).generate(prompts, 3, SAMPLING, seed=(0, 0))
    forced = entropies_under(policy, prompts, replies, SAMPLING, 64)
    for said, theirs, without in zip(replies, forced, silent):
        for reply, entropy, other in zip(said, theirs, without):
            assert reply.entropies is not None
            assert np.abs(reply.entropies - entropy).max() < 2e-5
            assert other.entropies is None
            assert np.array_equal(reply.token_ids, other.token_ids)


def test_an_engine_that_does_not_say_entropies_is_scored() -> None:
    class Silent(SharedPrefillEngine):
        def generate(self, *arguments: Any, **named: Any) -> Any:
            return super().generate(*arguments, **(named | {"entropies": False}))

    policy, run = subject("qwen2_5_vl").policy, run_of(name="egas")
    intervention = intervention_of(run.intervention)
    assert intervention is not None
    prompts = [policy.prompt(WIDE)]
    found = []
    for engine in (SharedPrefillEngine(policy), Silent(policy)):
        explorer = Explorer(policy=policy, run=run, intervention=intervention)
        drawn = explorer.draw(prompts, engine, 4, SAMPLING, seed=(0, 0))
        found.append(np.asarray(drawn.variants[0]["egas"].problem.images[0]))
    assert (found[0] == found[1]).mean() > 0.999  # the sign of a gradient near 0 may be rounding


def test_a_prompt_made_again_is_what_the_first_phase_showed() -> None:
    """Replay trains under it, with the log-probs of then: of a tiled family the picture itself has others."""
    policy, _, explorer, groups = explored("smolvlm", name="random_sign")
    plain = policy.prompt(WIDE)
    again = explorer.first(plain, 0)
    assert torch.equal(again.media["pixel_values"], groups[0].prompt.media["pixel_values"])
    assert not torch.equal(again.media["pixel_values"], plain.media["pixel_values"])
    text = policy.prompt(NONE)
    assert explorer.first(text, 0) is text


def test_annealed_away_it_is_one_phase_to_the_bit() -> None:
    policy = subject("qwen2_5_vl").policy
    prompts = [policy.prompt(WIDE)]
    (expected,) = SharedPrefillEngine(policy).generate(prompts, 6, SAMPLING, seed=(7, 9))
    _, _, explorer, (group,) = explored(problems=(WIDE,), step=9, name="egas", epsilon=4, schedule="linear")
    assert group.variants == {}
    for reply, other in zip(group.completions, expected):
        assert np.array_equal(reply.token_ids, other.token_ids)
        assert np.array_equal(reply.log_probs, other.log_probs)
    assert explorer.take_metrics([group])["explore/skipped_annealed"] == 1


def test_the_same_seed_draws_the_same_and_the_second_half_is_not_the_first() -> None:
    one, two = (explored(name="random_sign")[3] for _ in range(2))
    for a, b in zip(one, two):
        assert [r.text for r in a.completions] == [r.text for r in b.completions]
    still = explored(problems=(NONE,), name="random_sign")[3][0]
    half = [tuple(reply.token_ids) for reply in still.completions]
    assert half[:3] != half[3:]


@pytest.mark.parametrize("name", ["noisy_rollout", "rotation", "occlusion", "random_sign", "share"])
def test_every_neighbour_hands_back_pictures_that_the_prompt_takes(name: str) -> None:
    policy, _, explorer, groups = explored(name=name)
    changed = [group for group in groups if group.variants]
    assert len(changed) == (1 if name == "share" else 2)  # seven problems in ten are left alone by R1-ShareVL
    for group in changed:
        other = group.variants[name]
        assert {reply.variant for reply in group.completions} == {"clean", name}
        reply = group.completions[-1]
        assert np.abs(log_probs(policy, other, reply) - reply.log_probs).max() < 2e-5
    metrics = explorer.take_metrics(groups)
    assert metrics["explore/skipped_no_picture"] == pytest.approx(1 / 3)
    if name == "share":
        assert metrics["explore/skipped_unchanged"] == pytest.approx(1 / 3)
    else:
        assert metrics["explore/skipped"] == pytest.approx(1 / 3)
        assert metrics["explore/entropy_gain_selected"] is not None


def test_a_sentence_that_does_not_fit_the_context_is_left_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem whose own question fits ends no run because of what an intervention would add to it."""
    policy = subject("qwen2_5_vl").policy
    monkeypatch.setattr(noise, "TOLD_PROBABILITY", 1.0)
    lengths = [len(policy.prompt(problem).token_ids) for problem in (WIDE, TWO)]
    monkeypatch.setattr(policy.model.config.text_config, "max_position_embeddings", max(lengths))
    monkeypatch.setattr(policy, "reply_tokens", 0)
    longest = (WIDE, TWO)[int(np.argmax(lengths))]
    _, _, explorer, (group,) = explored(problems=(longest,), name="share")
    assert group.variants == {}
    metrics = explorer.take_metrics([group])
    assert metrics["explore/skipped"] == metrics["explore/skipped_does_not_fit"] == 1


def test_what_moves_the_answer_is_not_done_to_boxes() -> None:
    box = replace(WIDE, kind="box", answer=(0, 0, 10, 10), frame="pixels")
    _, _, explorer, groups = explored(problems=(box,), name="rotation")
    assert groups[0].variants == {}
    assert explorer.take_metrics(groups)["explore/skipped_moves_the_answer"] == 1


def test_difficulty_goes_by_the_replies_under_the_pictures_as_they_are() -> None:
    group = explored(name="random_sign", problems=(replace(WIDE, kind="number", answer=3),))[3][0]
    texts = [f"<answer>{n}</answer>" for n in (3, 3, 4, 4, 4, 4)]
    completions = tuple(replace(c, text=text) for c, text in zip(group.completions, texts))
    assert success(replace(group, completions=completions)) == pytest.approx(2 / 3)


def test_special_and_format_tokens_are_no_content() -> None:
    policy = subject("qwen2_5_vl").policy
    text = "<answer>[7, 8]</answer>"
    ids = policy.encode_reply(text)
    reply = Completion(token_ids=ids, log_probs=np.zeros(len(ids), np.float32), text=text, stop="eos")
    kept = policy.decode(ids[content(policy, reply)])
    assert kept == "[7, 8]"
    assert not content(policy, reply)[-1]


# ---------------------------------------------------------------- what is trained


def prepared(ratio: str, first: bool = False, **section: Any) -> tuple[Policy, Run, list[Group], list[Any]]:
    policy, run, _, groups = explored(name="egas", epsilon=8, ratio=ratio, **section)
    algorithm = algorithm_of(run)
    lines = lines_of(groups, ratio)
    recomputed = [log_probs(policy, line.trained, line.completion) for line in lines]
    samples = to_samples(
        groups,
        algorithm,
        SAMPLING.max_new_tokens,
        recomputed=None if algorithm.old_log_probs == "sampled" or first else recomputed,
        ratio=ratio,
        baseline=run.intervention.baseline,
    )
    return policy, run, groups, samples


def test_clean_trains_everything_under_the_clean_picture_and_its_log_probs() -> None:
    policy, run, groups, samples = prepared("clean")
    assert algorithm_of(run).old_log_probs == "recomputed"
    assert len(samples) == 18
    for sample in samples:
        assert sample.trained_prompt is groups[sample.group].prompt
        assert sample.correction is None
    moved = [s for s in samples if s.sampled_prompt is not s.trained_prompt]
    assert len(moved) == 6  # three of each group with pictures
    again = log_probs(policy, moved[0].trained_prompt, groups[0].completions[3])
    assert np.abs(moved[0].old_log_probs - again).max() < 1e-6
    assert np.abs(moved[0].old_log_probs - groups[0].completions[3].log_probs).max() > 1e-4


def test_adversarial_trains_what_was_sampled_where_it_was_sampled() -> None:
    _, run, groups, samples = prepared("adversarial")
    assert algorithm_of(run).old_log_probs == "sampled"
    assert all(sample.sampled_prompt is sample.trained_prompt for sample in samples)
    assert [sample.trained_prompt is groups[0].variants["egas"] for sample in samples[:6]] == [False] * 3 + [
        True
    ] * 3
    assert np.array_equal(samples[4].old_log_probs, groups[0].completions[4].log_probs)


def test_corrected_weighs_by_the_truncated_ratio_of_the_two_pictures() -> None:
    policy, run, groups, samples = prepared("corrected")
    cap = algorithm_of(run).correction_cap
    for sample, reply in zip(samples[:6], groups[0].completions):
        assert sample.trained_prompt is groups[0].prompt
        ratio = np.exp(log_probs(policy, groups[0].prompt, reply) - reply.log_probs)
        assert sample.correction == pytest.approx(np.minimum(ratio, cap), rel=1e-4)
    assert samples[0].correction == pytest.approx(1.0, abs=1e-4)  # the clean half
    assert samples[3].correction != pytest.approx(1.0, abs=1e-3)


def test_shared_trains_under_every_picture_and_adds_the_halfs_advantage_to_its_own() -> None:
    """Rewards 0 to 5 of the first group, G = 6: mean 2.5, standard deviation sqrt(3.5) = 1.8708; of its halves 0 1 2
    and 3 4 5: mean 1 and 4, standard deviation 1."""
    _, _, groups, samples = prepared("shared")
    first = [sample for sample in samples if sample.group == 0]
    assert len(first) == 12
    assert len([sample for sample in samples if sample.group == 1]) == 6  # text alone has one prompt
    pooled = (np.arange(6) - 2.5) / (1.8708287 + 1e-4)
    within = np.array([-1, 0, 1, -1, 0, 1]) / (1 + 1e-4)
    own = [sample.advantage[0] for sample in first[::2]]
    crossed = [sample.advantage[0] for sample in first[1::2]]
    alone = [sample for sample in samples if sample.group == 1]  # text: one phase, one prompt, 0 1 0 0 1 1
    assert [s.advantage[0] for s in alone] == pytest.approx(
        np.array([-1, 1, -1, -1, 1, 1]) * 0.9126, abs=1e-3
    )
    assert own == pytest.approx(pooled + within, abs=1e-5)
    assert crossed == pytest.approx(pooled, abs=1e-5)
    assert first[0].trained_prompt is groups[0].prompt
    assert first[1].trained_prompt is groups[0].variants["egas"]
    assert first[6].trained_prompt is groups[0].variants["egas"]
    assert sum(float(sample.weights.sum()) for sample in first) == pytest.approx(1 / 3)


def test_halves_have_baselines_of_their_own() -> None:
    _, _, _, samples = prepared("clean", baseline="halves")
    assert [s.advantage[0] for s in samples[:6]] == pytest.approx(
        np.array([-1, 0, 1] * 2) / (1 + 1e-4), abs=1e-5
    )


@pytest.mark.parametrize("ratio", ["clean", "adversarial", "corrected", "shared"])
def test_the_update_is_the_gradient_of_the_written_formula(ratio: str) -> None:
    """At the first update every ratio to the recomputed old log-probs is 1, so the gradient is that of
    -Σ w c A log π(o | trained picture), with c the truncated importance weight in `corrected` and else 1."""
    policy, run, _, samples = prepared(ratio, first=ratio in ("clean", "shared"))
    algorithm = algorithm_of(run)
    assert one_step(run, algorithm) == (ratio in ("clean", "shared"))
    model = policy.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(policy, run.optimizer)
    found: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(keep)
    version = policy.version
    report = update(
        policy, optimizer, samples, algorithm, SAMPLING, run, 0, terms=(), first=one_step(run, algorithm)
    )
    policy.version = version  # other tests share the policy: it stays as it was
    model.load_state_dict(weights)
    model.zero_grad(set_to_none=True)
    prompts = list({id(s.trained_prompt): s.trained_prompt for s in samples}.values())
    rows = [(next(i for i, p in enumerate(prompts) if p is s.trained_prompt), s.token_ids) for s in samples]
    coefficient = torch.from_numpy(
        np.concatenate(
            [s.weights * s.advantage * (1.0 if s.correction is None else s.correction) for s in samples]
        )
    )
    backward(policy, prompts, rows, SAMPLING, lambda i, lp, e: -(coefficient[i] * lp).sum())
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    assert float(whole) > 0
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-6 * float(
            whole
        ), name
    if ratio == "clean":
        assert report["explore/kl"] is not None
        assert report["explore/kl"] > 0
        assert report["engine_gap_max"] is not None
        assert report["engine_gap_max"] < 1e-4  # the moved rows are not in it


def test_pixels_that_took_a_gradient_cost_the_update_nothing() -> None:
    policy = subject("qwen2_5_vl").policy
    run = run_of(name="egas", measure_every=0)
    intervention = intervention_of(run.intervention)
    assert intervention is not None
    with keeping(policy, 8192):
        explorer = Explorer(policy=policy, run=run, intervention=intervention)
        drawn = explorer.draw([policy.prompt(WIDE)], SharedPrefillEngine(policy), 4, SAMPLING, seed=(0, 0))
    assert policy.kept.prefix is not None, "the clean prompts' graph serves the update"
    rows = [(0, reply.token_ids) for reply in drawn.replies[0]]
    backward(policy, drawn.prompts, rows, SAMPLING, lambda i, lp, e: -lp.sum())
    assert policy.kept.prefix is None
    assert drawn.prompts[0].media["pixel_values"].grad is None
    assert any(p.grad is not None for p in policy.model.parameters())
    policy.model.zero_grad(set_to_none=True)


# ---------------------------------------------------------------- whole runs


SHORT = [
    "prompts=4",
    "group=4",
    "steps=3",
    "evaluation.n=4",
    "evaluation.samples=0",
    "evaluation.every=0",
    "threads=1",
]


def lines(folder: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in read]


def test_switched_off_a_run_is_as_without_it(tmp_path: Path) -> None:
    train(load_run("quickstart", [*SHORT, f"run_dir={tmp_path / 'a'}"]))
    off = ["intervention.name=none", "intervention.ratio=shared", "intervention.epsilon=8"]
    train(load_run("quickstart", [*SHORT, *off, f"run_dir={tmp_path / 'b'}"]))
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert one == other, {key: (one[key], other.get(key)) for key in one if one[key] != other.get(key)}
    models = [next((tmp_path / x).rglob("model.safetensors")).read_bytes() for x in "ab"]
    assert models[0] == models[1]
    shown = [sorted(p.read_bytes() for p in (tmp_path / x / "rollouts").iterdir()) for x in "ab"]
    assert shown[0] == shown[1]


def test_a_run_shows_what_it_did_to_the_pictures(tmp_path: Path) -> None:
    train(load_run("quickstart", [*SHORT, "intervention.name=egas", f"run_dir={tmp_path / 'r'}"]))
    records = [
        json.loads(x) for p in (tmp_path / "r" / "rollouts").iterdir() for x in p.read_text().splitlines()
    ]
    flat = [one for record in records for one in record.get("completions", [record])]
    changed = [one["changed"] for one in flat if one["variant"] == "egas"]
    assert changed
    assert all("changed" not in one for one in flat if one["variant"] == "clean")
    assert changed[0]["largest"] == 4
    for name in (*changed[0]["pictures"], *changed[0]["differences"]):
        assert (tmp_path / "r" / name).is_file()
    assert "explore/kl" in lines(tmp_path / "r")[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["algorithm.replay=8", "intervention.ratio=adversarial"], "algorithm.replay makes prompts again"),
        (["algorithm.old_log_probs=sampled"], "cannot be the old ones"),
        (["algorithm.correction=token_truncate"], "use ratio=corrected"),
        (["method=sft"], "samples nothing"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(settings: list[str], says: str, tmp_path: Path) -> None:
    run = load_run("quickstart", [*SHORT, "intervention.name=egas", *settings, f"run_dir={tmp_path / 'r'}"])
    with pytest.raises(UserError, match=says):
        train(run)
    assert not (tmp_path / "r").exists()


def test_difficulty_is_controlled_by_what_was_sampled_under_the_picture_as_it_is() -> None:
    from types import SimpleNamespace

    from fovea.training.setup import Session

    told: list[Any] = []

    class Controller:
        def observe(self, problems: Any, shares: Any, cursor: int) -> dict[str, float]:
            told.extend(shares)
            return {}

    reply = Completion(token_ids=np.array([1]), log_probs=np.zeros(1, np.float32), text="7", stop="eos")
    asked = replace(NONE, answer="7")
    replies = (*(replace(reply, text=text) for text in ("7", "8")), *(replace(reply, variant="egas"),) * 2)
    group = Group(problem=asked, prompt=None, completions=replies, rewards=np.zeros(4), parts={})
    Session.observe(SimpleNamespace(parts={"curriculum": Controller()}, cursor=0), [group])  # type: ignore[arg-type]
    assert told == [0.5]


def test_a_round_drawn_again_has_other_noise_and_halves_need_a_signal_of_their_own() -> None:
    from fovea.rollouts import has_signal

    policy, run = subject("qwen2_5_vl").policy, run_of(name="random_sign", baseline="halves")
    intervention = intervention_of(run.intervention)
    assert intervention is not None
    explorer = Explorer(policy=policy, run=run, intervention=intervention)
    prompts = [policy.prompt(WIDE)]
    shown = [
        np.asarray(
            explorer.draw(prompts, SharedPrefillEngine(policy), 4, SAMPLING, seed=(0, 0), draw=draw)
            .variants[0]["random_sign"]
            .problem.images[0]
        )
        for draw in (0, 0, 1)
    ]
    assert (shown[0] == shown[1]).all()
    assert (shown[0] != shown[2]).mean() > 0.3
    (group,) = explored(problems=(WIDE,), name="random_sign")[3]
    apart = replace(group, rewards=np.array([0.0, 0, 0, 1, 1, 1]))
    algorithm = algorithm_of(run)
    assert has_signal(apart, algorithm, 6)
    assert not has_signal(apart, algorithm, 6, "halves")
    assert has_signal(replace(group, rewards=np.array([0.0, 1, 0, 1, 1, 1])), algorithm, 6, "halves")


def test_the_guard_costs_the_kl_away_from_the_clean_picture_and_pulls_nowhere_at_it() -> None:
    """value = Σ w H - Σ g (r - 1 - log r), r = π(changed) / π(clean) at the sampled tokens; no gradient at r = 1."""
    policy, run = subject("qwen2_5_vl").policy, run_of(name="egas")
    prompt = policy.prompt(WIDE)
    own = canvases(policy, prompt)
    shown = on_canvas(policy, prompt, own, leaf=True)
    engine = SharedPrefillEngine(policy)
    (replies,) = engine.generate([shown], 3, SAMPLING, seed=(0, 0), entropies=True)
    seen = Seen(
        problem=prompt.problem,
        occurrence=0,
        canvases=own,
        completions=replies,
        entropies=tuple(np.asarray(reply.entropies) for reply in replies),
        content=tuple(content(policy, reply) for reply in replies),
    )
    pixels = PolicyPixels(
        policy=policy, prompts=[shown], seen=[seen], sampling=SAMPLING, tokens_per_pass=run.tokens_per_pass
    )
    ones = tuple(np.ones(len(reply.token_ids), np.float32) for reply in replies)
    plain, guarded = Ask(which=0, weights=ones), Ask(which=0, weights=ones, guards=ones)
    for free, held in zip(*(pixels.gradients([ask])[0].gradients for ask in (plain, guarded))):
        assert np.abs(free - held).max() <= 1e-3 * np.abs(free).max()
    moved = tuple(random_sign(canvas, 16, np.random.default_rng(0)).astype(np.float32) for canvas in own)
    values = [pixels.values([replace(ask, canvases=moved)])[0].value for ask in (plain, guarded)]
    other = on_canvas(policy, prompt, [canvas.astype(np.uint8) for canvas in moved])
    log_ratio = np.concatenate([log_probs(policy, other, reply) - reply.log_probs for reply in replies])
    cost = float((np.exp(log_ratio) - 1 - log_ratio).sum())
    assert cost > 1e-3
    assert values[0] - values[1] == pytest.approx(cost, rel=1e-2)
