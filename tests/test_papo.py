"""PAPO: its estimate by hand, its gradient against plain repeated forwards in float64, its masks, a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    assert_gradients_close,
    different_problems,
    gradients,
    loud_policy,
    plain_log_probs,
    ragged_rows,
)
from PIL import Image
from torch import Tensor

from fovea.algorithms import ALGORITHMS, MASKED, Papo, TokenView, loss_terms, perception_kl
from fovea.config import Run, load_run
from fovea.interventions.noise import blocks_masked, generator
from fovea.models.canvas import canvases
from fovea.models.policy import Policy
from fovea.models.shared_prefix import score
from fovea.rollouts import to_samples
from fovea.runlog import read_run
from fovea.training import train
from fovea.training.update import update
from fovea.training.variants import Masked, variants_of
from fovea.types import Completion, Group, Problem, Sample, Sampling, UserError

GRPO = ALGORITHMS["grpo"]
GAMMA, ETA_1, ETA_2 = 0.02, 0.05, 0.03


# ---------------------------------------------------------------- the estimate


def test_the_estimate_by_hand() -> None:
    """π = 1/2, π_mask = 1/4: r = 2 and 1/r + log r - 1 = 0.5 + 0.6931 - 1; the other way round 2 - 0.6931 - 1."""
    half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert float(perception_kl(half, quarter)) == pytest.approx(0.19315, abs=1e-5)
    assert float(perception_kl(quarter, half)) == pytest.approx(0.30685, abs=1e-5)
    assert float(perception_kl(half, half)) == 0.0


def test_the_clamps_and_that_they_have_no_gradient() -> None:
    """d = 5: 148.4 - 5 - 1 is cut to 10. d = -15: 0 + 15 - 1 too. d = -30 is cut to -20 first. d = 1: e - 2."""
    log_probs = torch.tensor([-6.0, -1.0, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    masked = torch.tensor([-1.0, -16.0, -31.0, -1.0], dtype=torch.float64)
    kl = perception_kl(log_probs, masked)
    np.testing.assert_allclose(kl.detach(), [10, 10, 10, math.e - 2])
    (gradient,) = torch.autograd.grad(kl.sum(), log_probs)
    # d/dlogπ (e^d - d - 1) = 1 - e^d
    np.testing.assert_allclose(gradient, [0, 0, 0, 1 - math.e])


def view(log_probs: list[float], masked: list[float], mask: list[float], differs: list[float]) -> TokenView:
    ones = torch.ones(len(mask))
    return TokenView(
        log_probs=torch.tensor(log_probs).log(),
        entropy=ones,
        old_log_probs=ones,
        advantages=ones,
        mask=torch.tensor(mask),
        total=4.0,
        seed=(0, 0, 0),
        others={MASKED: torch.tensor(masked).log(), "trained": torch.tensor(log_probs).log()},
        differs={MASKED: torch.tensor(differs)},
    )


def test_the_loss_by_hand() -> None:
    """One token counts: the second is masked out, the third has no picture; the denominator is 4.

    -0.1 · 0.19315 + 0.2 · log 2 + 0.3 · log 4 = -0.019315 + 0.138629 + 0.415888 = 0.535203, over 4.
    """
    seen = view([0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [1, 0, 1], [1, 1, 0])
    released = Papo(gamma=0.1, entropy=0.2, masked_entropy=0.3)
    assert (released.variants, released.scored) == (("trained",), ("masked",))
    assert float(released.loss("trained", seen)) == pytest.approx(0.535203 / 4, abs=1e-6)
    both = replace(released, both=True)
    assert (both.variants, both.scored) == (("trained", "masked"), ())
    # The KL's value is told once: by the pass of the trained prompt.
    other = replace(seen, log_probs=seen.others[MASKED])
    assert float(both.loss("trained", seen)) == pytest.approx((0.535203 - 0.415888) / 4, abs=1e-6)
    assert float(both.loss("masked", other)) == pytest.approx(0.415888 / 4, abs=1e-6)


# ---------------------------------------------------------------- the gradient


@pytest.fixture(scope="module")
def policy() -> Policy:
    made = loud_policy("qwen2_5_vl", text_layers=2, vision_layers=2)
    made.model.double()
    return made


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    """One picture, none, two, a wide one."""
    return different_problems()


@pytest.fixture(scope="module")
def rows(policy: Policy) -> list[tuple[int, np.ndarray]]:
    drawn = ragged_rows(policy, 4, (3, 5, 2, 6, 4, 1, 5, 3))
    return sorted(drawn, key=lambda row: row[0])  # as samples come: group by group


def recipe(*overrides: str) -> Run:
    always = ["optimizer.max_grad_norm=1e9", "optimizer.learning_rate=1e-30", "sampling.max_new_tokens=16"]
    return load_run("quickstart", [*always, "seed=3", *overrides])


def samples_of(
    policy: Policy, problems: list[Problem], rows: list[tuple[int, np.ndarray]], rewards: tuple[float, float]
) -> list[Sample]:
    """Two completions a problem with these rewards: equal ones leave PAPO's gradient alone."""
    prompts = [policy.prompt(problem) for problem in problems]
    flat = score(policy, prompts, rows, Sampling())[0].float().numpy()
    cuts = np.cumsum([len(ids) for _, ids in rows])[:-1]
    replies = [
        Completion(token_ids=ids, log_probs=lp, text="x", stop="eos")
        for (_, ids), lp in zip(rows, np.split(flat, cuts), strict=True)
    ]
    groups = [
        Group(
            problem=prompt.problem,
            prompt=prompt,
            completions=tuple(replies[2 * g : 2 * g + 2]),
            rewards=np.array(rewards),
            parts={},
        )
        for g, prompt in enumerate(prompts)
    ]
    return to_samples(groups, GRPO, 16)


def updated(
    policy: Policy, samples: list[Sample], run: Run, **how: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    report = update(policy, optimizer, samples, GRPO, Sampling(), run, 7, **how)
    return gradients(policy), report


def masked_by_hand(policy: Policy, problems: list[Problem]) -> list[Problem]:
    """The problems with masked pictures, which then go through the processor like any others (seed 3, step 7)."""
    found = []
    for problem in problems:
        rng = generator(3, 7, problem.id, purpose="papo")
        clean = canvases(policy, policy.prompt(problem))
        masked = [Image.fromarray(blocks_masked(canvas, 14, 0.6, rng)) for canvas in clean]
        found.append(replace(problem, images=tuple(masked)))
    return found


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("tokens", [8192, 4])
def test_the_gradient_is_that_of_plain_forwards(
    policy: Policy, problems: list[Problem], rows: list[tuple[int, np.ndarray]], both: bool, tokens: int
) -> None:
    """Advantages are zero, so PAPO's gradient is alone. The formula is written with probabilities, not log-ratios."""
    run = recipe(
        f"algorithm={{papo: {GAMMA}, papo_entropy: {ETA_1}, papo_masked_entropy: {ETA_2}, papo_both: {both}}}",
        f"tokens_per_pass={tokens}",
    )
    samples = samples_of(policy, problems, rows, (1.0, 1.0))
    table = variants_of(policy, run, 7, None)
    ours, report = updated(policy, samples, run, variants=table)
    assert report["rows_skipped"] == 0

    p = plain_log_probs(policy, problems, rows, Sampling())[0].exp()
    q = plain_log_probs(policy, masked_by_hand(policy, problems), rows, Sampling())[0].exp()
    q = q if both else q.detach()
    pictured = torch.tensor([float(len(problems[i].images) > 0) for i, ids in rows for _ in ids])
    kl = q / p + (p / q).log() - 1  # no clamp decides here: those are above
    assert 0.1 < float((kl.detach() * pictured).max()) < 10
    loss = ((-GAMMA * kl - ETA_1 * p.log() - ETA_2 * q.log()) * pictured).sum() / len(pictured)
    loss.backward()
    assert_gradients_close(ours, gradients(policy), 1e-6)
    assert report["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    shown = pictured > 0
    assert report["masked_kl"] == pytest.approx(float(kl.detach()[shown].mean()), rel=1e-5)
    assert report["masked_entropy"] == pytest.approx(float(-q.detach().log()[shown].mean()), rel=1e-5)


def test_what_is_only_scored_has_no_gradient_and_is_not_counted_twice(
    policy: Policy, problems: list[Problem], rows: list[tuple[int, np.ndarray]]
) -> None:
    """η2 alone moves the loss by a number and the weights not at all; with `both` it moves them."""
    samples = samples_of(policy, problems, rows, (1.0, 0.0))
    table = variants_of(policy, recipe("algorithm.papo=0.01"), 7, None)
    plain, before = updated(policy, samples, recipe())
    still, after = updated(
        policy, samples, recipe(), terms=[Papo(gamma=0.0, masked_entropy=1.0)], variants=table
    )
    assert_gradients_close(still, plain, 1e-9)
    pictured = sum(len(ids) for i, ids in rows if problems[i].images) / sum(len(ids) for _, ids in rows)
    rise = after["loss"] - before["loss"]
    assert rise == pytest.approx(after["masked_entropy"] * pictured, rel=1e-6)
    moved, _ = updated(
        policy, samples, recipe(), terms=[Papo(gamma=0.0, masked_entropy=1.0, both=True)], variants=table
    )
    assert max(float((moved[name] - plain[name]).abs().max()) for name in plain) > 1e-3


def test_without_a_term_the_table_changes_no_bit(
    policy: Policy, problems: list[Problem], rows: list[tuple[int, np.ndarray]]
) -> None:
    samples = samples_of(policy, problems, rows, (1.0, 0.0))
    plain, before = updated(policy, samples, recipe())
    same, after = updated(
        policy, samples, recipe(), variants=variants_of(policy, recipe("algorithm.papo=1"), 7, None)
    )
    assert variants_of(policy, recipe(), 7, None) == {}
    assert before == after
    assert all(torch.equal(same[name], plain[name]) for name in plain)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorder:
    """Keeps what it is shown of the masked variant, and pulls at the log-probs so that the weights move."""

    seen: list[Tensor] = field(default_factory=list)
    name: str = "recorder"
    variants: tuple[str, ...] = ("trained",)
    scored: tuple[str, ...] = ("masked",)
    picks: bool = False
    weighs: bool = False

    def pick(self, view: TokenView) -> Tensor:
        return view.mask

    def loss(self, variant: str, view: TokenView) -> Tensor:
        self.seen.append(view.others["masked"].clone())
        return -view.log_probs.sum()


def test_a_variant_is_scored_once_before_the_first_update(
    problems: list[Problem], rows: list[tuple[int, np.ndarray]]
) -> None:
    """Two updates of the rollout in mini-batches of two problems: the second sees what the first saw, to the bit."""
    moving = loud_policy("qwen2_5_vl", text_layers=2, vision_layers=2)
    run = recipe("algorithm={updates_per_rollout: 2, prompts_per_update: 2, papo: 0.1}", "prompts=4")
    run = run.model_copy(update={"optimizer": run.optimizer.model_copy(update={"learning_rate": 1e-3})})
    samples = samples_of(moving, problems, rows, (1.0, 0.0))
    table, term = variants_of(moving, run, 7, None), Recorder()
    expected = score(
        moving,
        [table[MASKED](s.trained_prompt) for s in samples],
        [(i, s.token_ids) for i, s in enumerate(samples)],
        Sampling(),
    )[0]
    optimizer = torch.optim.SGD(moving.model.parameters(), lr=1e-3)
    report = update(moving, optimizer, samples, GRPO, Sampling(), run, 7, terms=[term], variants=table)
    assert report["updates"] == len(term.seen) == 4
    assert report["approx_kl"] > 0  # the weights did move
    assert torch.equal(term.seen[0], term.seen[2])
    assert torch.equal(term.seen[1], term.seen[3])
    torch.testing.assert_close(torch.cat(term.seen[:2]), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the masks


def test_a_masked_prompt_is_made_once_and_of_seed_step_and_problem_alone(
    policy: Policy, problems: list[Problem]
) -> None:
    def pixels(problem: Problem, **how: Any) -> Tensor:
        settings: dict[str, Any] = {"policy": policy, "share": 0.6, "seed": 0, "step": 2} | how
        return Masked(**settings)(policy.prompt(problem)).media["pixel_values"]

    table = Masked(policy=policy, share=0.6, seed=0, step=2)
    prompt, text = policy.prompt(problems[2]), policy.prompt(problems[1])
    assert table(prompt) is table(prompt)
    assert table(prompt).media.keys() == prompt.media.keys()
    assert torch.equal(table(prompt).token_ids, prompt.token_ids)
    assert table(text) is text
    same = pixels(problems[2])
    assert torch.equal(same, table(prompt).media["pixel_values"])
    assert torch.equal(same, pixels(replace(problems[2], question="Something else?")))
    for other in (
        pixels(problems[2], seed=1),
        pixels(problems[2], step=3),
        pixels(replace(problems[2], id="x")),
    ):
        assert not torch.equal(same, other)
    black = pixels(problems[2], share=1.0)
    assert float(black.std(dim=0).max()) < 1e-6  # every patch the same: black


# ---------------------------------------------------------------- a run


def test_parts_of_papo_without_its_weight_are_refused() -> None:
    for part in ("papo_entropy=0.05", "papo_masked_entropy=0.05", "papo_both=true"):
        with pytest.raises(UserError, match=r"need algorithm\.papo above 0"):
            loss_terms(load_run("quickstart", [f"algorithm.{part}"]).algorithm)


@pytest.mark.parametrize("section", ["papo: 0.02, papo_entropy: 0.05, papo_masked_entropy: 0.05, beta: 0.01"])
def test_a_run_with_papo_is_repeatable(tmp_path: Path, section: str) -> None:
    """The paper's GRPO preset for 7B, on fovea-tiny: finite, the same twice, other weights than without."""
    always = [
        "prompts=2",
        "group=4",
        "steps=2",
        "task=digits/locate",
        "sampling.max_new_tokens=12",
        "threads=1",
    ]
    always += [
        "evaluation.n=2",
        "evaluation.samples=0",
        "optimizer.learning_rate=1e-3",
        "optimizer.warmup_steps=0",
    ]
    found = {}
    for name, given in (("a", section), ("b", section), ("plain", "beta: 0.01")):
        run = load_run("quickstart", [*always, f"run_dir={tmp_path / name}", f"algorithm={{{given}}}"])
        train(run)
        found[name] = [
            {key: value for key, value in line.items() if "seconds" not in key and "memory" not in key}
            for line in read_run(tmp_path / name)["metrics"]
        ]
    assert len(found["a"]) == 2
    assert found["a"] == found["b"]
    assert all(math.isfinite(step["loss"]) and 0 < step["masked_kl"] <= 10 for step in found["a"])
    assert "masked_kl" not in found["plain"][0]
    assert found["a"][0]["grad_norm"] != found["plain"][0]["grad_norm"]


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm", "llava_onevision", "internvl", "gemma3"])
def test_other_families_see_masked_pictures(family: str) -> None:
    """Tiles, thumbnails, padding: the prompt's other tensors stay, and its completions can be scored."""
    other = loud_policy(family)
    prompt = other.prompt(different_problems()[0])
    masked = Masked(policy=other, share=0.6, seed=0, step=0)(prompt)
    changed = {name for name in prompt.media if not torch.equal(masked.media[name], prompt.media[name])}
    if family == "llava_onevision":  # its tokens follow from the picture's size before the resize
        assert changed == {"pixel_values", "image_sizes"}
    else:
        assert changed == {"pixel_values"}
        assert torch.equal(masked.token_ids, prompt.token_ids)
    assert masked.problem is prompt.problem
    clean, blind = (
        score(other, [one], [(0, np.array([40, 41, 42]))], Sampling())[0] for one in (prompt, masked)
    )
    assert float((clean - blind).abs().max()) > 1e-3
    assert torch.isfinite(blind).all()
