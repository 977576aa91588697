"""The update on a random model: mini-batches, several updates, replay, resampling, terms, sequence ratios cut over
passes. Gradients are the measure: a loss of one update without a KL is zero by construction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_gradients_close, gradients, loud_policy, picture
from torch import Tensor

from fovea.algorithms import ALGORITHMS, EntropyBonus, KlCov, SelectiveReplay, TokenView, TopEntropy
from fovea.config import Run, load_run
from fovea.engines.scripted import ScriptedEngine
from fovea.models.policy import Policy
from fovea.models.shared_prefix import score
from fovea.rollouts import fill, minibatches, reweigh, to_samples
from fovea.training import train
from fovea.training.opening import open_session
from fovea.training.setup import Session
from fovea.training.steps import prompt_again, rl_step, roll_out
from fovea.training.update import one_step, update
from fovea.types import Completion, Group, Problem, Sample, Sampling, UserError

GRPO = ALGORITHMS["grpo"]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return loud_policy("qwen3_vl", text_layers=2, vision_layers=2)


@pytest.fixture(scope="module")
def groups(policy: Policy) -> list[Group]:
    """Four groups of two: the third has no signal. Log-probs as if the policy had moved since sampling."""
    draw, found = np.random.default_rng(0), []
    for g, rewards in enumerate(([1.0, 0.0], [0.0, 0.5], [1.0, 1.0], [0.3, 0.9])):
        image = picture(56, 56, g)
        problem = Problem(id=str(g), task="t", images=(image,), question="?", answer="x", kind="text")
        prompt = policy.prompt(problem)
        tokens = [policy.encode_reply("abcdefgh"[: 2 + 3 * i + g]) for i in range(2)]
        flat = score(policy, [prompt], [(0, ids) for ids in tokens], Sampling())[0].numpy()
        flat = flat + draw.normal(0, 0.2, len(flat)).astype(np.float32)
        completions = tuple(
            Completion(token_ids=ids, log_probs=lp, text="x", stop="eos")
            for ids, lp in zip(tokens, np.split(flat, [len(tokens[0])]), strict=True)
        )
        found.append(
            Group(
                problem=problem, prompt=prompt, completions=completions, rewards=np.array(rewards), parts={}
            )
        )
    return found


def recipe(*overrides: str) -> Run:
    return load_run("quickstart", ["optimizer.max_grad_norm=1e9", "sampling.max_new_tokens=16", *overrides])


def gradient_of(
    policy: Policy, samples: list[Sample], algorithm: Any = GRPO, run: Run | None = None, **how: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The gradient of the last optimizer step, with a learning rate of zero."""
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    report = update(
        policy,
        optimizer,
        samples,
        algorithm,
        Sampling(),
        run or recipe("optimizer.learning_rate=1e-30"),
        0,
        **how,
    )
    return gradients(policy), report


def add(*parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}  # type: ignore[misc]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "grpo_token_mean", "gspo", "rloo"])
def test_passes_do_not_change_the_gradient(policy: Policy, groups: list[Group], name: str) -> None:
    """One pass against passes of four tokens, in which every completion is cut: the ratio of a completion too."""
    algorithm = replace(ALGORITHMS[name], clip_low=0.2, clip_high=0.3)
    samples = to_samples(groups, algorithm, 16)
    whole, report = gradient_of(policy, samples, algorithm)
    cut, same = gradient_of(policy, samples, algorithm, recipe("tokens_per_pass=4"))
    assert report["grad_norm"] > 1e-4
    assert_gradients_close(cut, whole, 2e-5)
    assert same["loss"] == pytest.approx(report["loss"], rel=1e-4, abs=1e-6)
    assert same["clip_fraction"] == pytest.approx(report["clip_fraction"], abs=1e-6)


def test_minibatches_have_denominators_of_their_own(policy: Policy, groups: list[Group]) -> None:
    """Two problems an update: each half is what it would be alone, and together they are twice the whole (P halves)."""
    samples = to_samples(groups, GRPO, 16)
    first, second = minibatches(samples, GRPO, 16, 2)
    assert [s.group for s in first] == [0, 0, 1, 1]
    np.testing.assert_allclose(first[0].weights, 2 * samples[0].weights, rtol=1e-6)
    whole, _ = gradient_of(policy, samples)
    a, _ = gradient_of(policy, first)
    b, _ = gradient_of(policy, second)
    assert_gradients_close(add(a, b), {n: 2 * g for n, g in whole.items()}, 1e-4)
    run = recipe("prompts=4", "algorithm.prompts_per_update=2", "optimizer.learning_rate=1e-30")
    last, report = gradient_of(policy, samples, GRPO, run)
    assert report["updates"] == 2
    assert_gradients_close(last, b, 1e-5)


def test_two_ranks_with_shared_totals_add_up_to_one(policy: Policy, groups: list[Group]) -> None:
    """Two groups on each worker; counts are added, gradients are added: the gradient of one worker with all four."""
    algorithm = replace(ALGORITHMS["grpo_token_mean"], beta=0.1)
    rows = [(g, c.token_ids) for g, group in enumerate(groups) for c in group.completions]
    zero = [np.full(len(ids), -2.0, np.float32) for _, ids in rows]
    whole, _ = gradient_of(
        policy,
        to_samples(groups, algorithm, 16, reference=zero),
        algorithm,
        terms=[EntropyBonus(coefficient=0.1)],
    )
    tokens = [sum(len(c.token_ids) for g in half for c in g.completions) for half in (groups[:2], groups[2:])]
    parts = []
    for worker, half in enumerate((groups[:2], groups[2:])):
        other = {2: np.array([tokens[1 - worker], 2.0]), 1: np.array([float(tokens[1 - worker])])}

        def reduce(vector: np.ndarray, other: dict[int, np.ndarray] = other) -> np.ndarray:
            return vector + other[len(vector)]

        mine = to_samples(half, algorithm, 16, reference=zero[4 * worker : 4 * worker + 4], reduce=reduce)
        how = {"terms": [EntropyBonus(coefficient=0.1)], "reduce": reduce}
        parts.append(gradient_of(policy, mine, algorithm, **how)[0])
    assert_gradients_close(add(*parts), whole, 2e-5)


def test_several_updates_move_the_ratio_and_count(policy: Policy, groups: list[Group]) -> None:
    fresh = loud_policy("qwen3_vl", text_layers=2, vision_layers=2)
    samples = [
        replace(s, old_log_probs=lp) for s, lp in zip(to_samples(groups, GRPO, 16), now(fresh, groups))
    ]
    optimizer = torch.optim.SGD(fresh.model.parameters(), lr=1.0)
    run = recipe("algorithm.updates_per_rollout=3", "optimizer.learning_rate=3e-3")
    report = update(fresh, optimizer, samples, GRPO, Sampling(), run, 0)
    assert (report["updates"], report["nonfinite"], fresh.version) == (3, 0, 3)
    assert report["approx_kl"] > 1e-6  # the first update's is zero
    assert report["rows_skipped"] == 2


def test_a_skipped_optimizer_step_beside_one_that_was_done_is_not_a_skipped_step(
    policy: Policy, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nonfinite` counts towards `max_nonfinite`, so only a step that learned nothing may have it."""
    from fovea.training import update as module

    real, samples = module.clip_gradients, to_samples(groups, GRPO, 16)
    for bad, expected in (({2}, (1, 0, 1)), ({1, 2}, (0, 1, 2)), (set(), (2, 0, 0))):
        calls: list[int] = []

        def clip(*given: Any, bad: Any = bad, calls: list[int] = calls) -> float:
            calls.append(1)
            return float("nan") if len(calls) in bad else real(*given)

        monkeypatch.setattr(module, "clip_gradients", clip)
        run = recipe("algorithm.updates_per_rollout=2", "optimizer.learning_rate=1e-30")
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
        report = update(policy, optimizer, samples, GRPO, Sampling(), run, 0)
        assert (report["updates"], report["nonfinite"], report["nonfinite_updates"]) == expected


@pytest.mark.parametrize("name", ["grpo", "gspo", "rloo", "cispo"])
def test_the_first_update_has_its_own_forward_as_old_log_probs(
    policy: Policy, groups: list[Group], name: str
) -> None:
    """The same as scoring ahead, without the scoring; also where replies are cut over passes. The gap is told."""
    algorithm = replace(ALGORITHMS[name], old_log_probs="recomputed")
    scored = to_samples(groups, algorithm, 16, recomputed=now(policy, groups))
    expected, _ = gradient_of(policy, scored, algorithm)
    engine = to_samples(groups, algorithm, 16)
    run = recipe("optimizer.learning_rate=1e-30")
    for how in (run, recipe("optimizer.learning_rate=1e-30", "tokens_per_pass=4")):
        found, report = gradient_of(policy, engine, algorithm, how, first=True)
        assert_gradients_close(found, expected, 2e-5)
        assert (report["clip_fraction"], report["approx_kl"]) == (0.0, 0.0)
        differences = [
            np.abs(a.old_log_probs - b.old_log_probs)
            for a, b in zip(engine, scored, strict=True)
            if a.advantage.any()
        ]
        assert report["engine_gap_mean"] == pytest.approx(np.concatenate(differences).mean(), rel=1e-3)
        assert report["engine_gap_max"] == pytest.approx(np.concatenate(differences).max(), rel=1e-3)


def test_when_one_forward_is_enough() -> None:
    recomputed = replace(GRPO, old_log_probs="recomputed")
    assert one_step(recipe(), recomputed)
    assert one_step(recipe(), replace(recomputed, beta=0.1))
    assert not one_step(recipe(), GRPO)
    assert not one_step(recipe(), replace(recomputed, correction="token_mask"))
    assert not one_step(recipe(), replace(recomputed, beta=0.1, kl_in="reward"))
    for section in ("updates_per_rollout=2", "prompts_per_update=1", "replay=8"):
        assert not one_step(recipe(f"algorithm.{section}"), recomputed)


def now(policy: Policy, groups: list[Group]) -> list[np.ndarray]:
    """Log-probs of every completion under the policy as it is."""
    rows = [(g, c.token_ids) for g, group in enumerate(groups) for c in group.completions]
    flat = score(policy, [group.prompt for group in groups], rows, Sampling())[0].numpy()
    return np.split(flat, np.cumsum([len(ids) for _, ids in rows])[:-1])


def test_the_kl_holds_rows_without_signal_too(policy: Policy, groups: list[Group]) -> None:
    """β > 0: nothing is skipped, and with all rewards equal the gradient is the KL's alone."""
    algorithm = replace(GRPO, beta=0.1)
    flat = [replace(group, rewards=np.ones(2)) for group in groups]
    reference = [lp + 0.3 for lp in now(policy, groups)]
    _, report = gradient_of(policy, to_samples(flat, algorithm, 16, reference=reference), algorithm)
    assert report["rows_skipped"] == 0
    assert report["grad_norm"] > 1e-4
    assert report["kl"] == pytest.approx(np.expm1(0.3) - 0.3, rel=1e-3)
    assert report["advantage_abs"] == 0


def test_terms_add_their_gradient(policy: Policy, groups: list[Group]) -> None:
    samples = to_samples(groups, GRPO, 16)
    plain, _ = gradient_of(policy, samples, terms=())
    bonus, _ = gradient_of(policy, samples, terms=[EntropyBonus(coefficient=0.5)])
    rows = [(g, c.token_ids) for g, group in enumerate(groups) for c in group.completions]
    from fovea.models.shared_prefix import backward

    total = sum(len(ids) for _, ids in rows)
    backward(
        policy,
        [group.prompt for group in groups],
        rows,
        Sampling(),
        lambda _, __, entropy: -0.5 * entropy.sum() / total,
    )
    alone = gradients(policy)
    assert_gradients_close(bonus, add(plain, alone), 2e-5)
    _top, report = gradient_of(policy, samples, terms=[TopEntropy(share=0.2)])
    assert 0 < report["grad_norm"] < torch.stack([g.norm() for g in plain.values()]).norm()
    _, report = gradient_of(policy, samples, terms=[KlCov(share=0.1)])
    assert report["rows_skipped"] == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Looking:
    """A term that only keeps what it is shown before the first pass."""

    seen: list[TokenView] = field(default_factory=list)
    name: str = "looking"
    variants: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    picks: bool = True
    weighs: bool = False

    def pick(self, view: TokenView) -> Tensor:
        self.seen.append(view)
        return view.mask

    def loss(self, variant: str, view: TokenView) -> None:
        return None


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_picking_term_knows_where_the_ratio_clip_decides(
    policy: Policy, groups: list[Group], name: str
) -> None:
    """As many tokens as `clip_fraction` counts of the three groups that have an advantage; none in a first update."""
    algorithm = replace(ALGORITHMS[name], clip_low=0.1, clip_high=0.1)
    term, samples = Looking(), to_samples(groups, algorithm, 16)
    _, report = gradient_of(policy, samples, algorithm, terms=[term])
    clipped, advantages = term.seen[0].clipped, term.seen[0].advantages
    assert clipped is not None
    assert 0 < int(clipped.sum()) < len(clipped)
    learning = advantages != 0
    assert int(clipped[learning].sum()) / int(learning.sum()) == pytest.approx(report["clip_fraction"])
    assert not clipped[~learning].any()
    gradient_of(policy, samples, replace(algorithm, old_log_probs="recomputed"), terms=[term], first=True)
    assert not term.seen[1].clipped.any()


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """A term on another forward variant: pulls log-probs under a blank picture towards those under the real one."""

    name: str = "drift"
    variants: tuple[str, ...] = ("blank",)
    scored: tuple[str, ...] = ()
    picks: bool = False
    weighs: bool = False

    def pick(self, view: TokenView) -> Tensor:
        return view.mask

    def loss(self, variant: str, view: TokenView) -> Tensor:
        assert variant == "blank"
        return ((view.log_probs - view.others["trained"]) ** 2 * view.mask).sum() / view.total


def test_a_term_on_another_forward_variant(policy: Policy, groups: list[Group]) -> None:
    """With the same picture as variant the term is zero; with a blank one it has a gradient of its own."""
    samples = to_samples(groups, GRPO, 16)
    _plain, before = gradient_of(policy, samples, terms=())

    def blank(prompt: Any) -> Any:
        image = picture(56, 56, 99)
        return policy.prompt(replace(prompt.problem, images=(image,)))

    _same, report = gradient_of(policy, samples, terms=[Drift()], variants={"blank": lambda prompt: prompt})
    assert report["loss"] == pytest.approx(before["loss"], abs=1e-6)
    _, report = gradient_of(policy, samples, terms=[Drift()], variants={"blank": blank})
    assert report["loss"] > before["loss"] + 1e-3


def test_a_reply_that_was_cut_off_can_be_left_out(policy: Policy, groups: list[Group]) -> None:
    cut = [
        replace(g, completions=(replace(g.completions[0], stop="length"), g.completions[1])) for g in groups
    ]
    samples = to_samples(cut, replace(GRPO, mask_truncated=True), 16)
    assert not samples[0].weights.any()
    assert samples[1].advantage[0] == to_samples(groups, GRPO, 16)[1].advantage[0]  # it stays in the baseline


# ---------------------------------------------------------------- replay


def test_replay_round_trip_is_exact_and_drawing_is_a_function_of_the_seed(
    policy: Policy, groups: list[Group]
) -> None:
    samples = to_samples(groups, GRPO, 16, positions=[10, 11, 12, 13])
    buffer = SelectiveReplay(capacity=5, alpha=2.0, age=3)
    buffer.add(samples, 4)
    assert [one.position for one in buffer.kept] == [
        10,
        11,
        11,
        13,
        13,
    ]  # six have an advantage, the newest five stay
    again = SelectiveReplay(capacity=5, alpha=2.0, age=3)
    again.restore(buffer.state())
    for mine, theirs in zip(buffer.kept, again.kept, strict=True):
        assert (mine.position, mine.problem, mine.step) == (theirs.position, theirs.problem, theirs.step)
        for name in ("token_ids", "old_log_probs", "advantage"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
            assert getattr(mine, name).dtype == getattr(theirs, name).dtype
    draws = [
        [(one.position, len(one.token_ids)) for one in b.draw(3, seed=(0, 5))]
        for b in (buffer, again, buffer)
    ]
    assert draws[0] == draws[1] == draws[2]
    assert len(set(draws[0])) == 3
    assert not buffer.draw(3, seed=(0, 8))  # older than three steps
    empty = SelectiveReplay(capacity=5)
    empty.restore(SelectiveReplay(capacity=5).state())
    assert empty.draw(2, seed=(0, 0)) == []


def test_replay_keeps_the_importance_weights(policy: Policy, groups: list[Group]) -> None:
    algorithm = replace(GRPO, old_log_probs="recomputed", correction="token_truncate")
    samples = to_samples(groups, algorithm, 16, recomputed=now(policy, groups), positions=[0, 1, 2, 3])
    buffer, again = SelectiveReplay(capacity=8), SelectiveReplay(capacity=8)
    buffer.add([replace(samples[0], correction=None), *samples[1:]], 0)
    again.restore(buffer.state())
    for kept in (buffer.kept, again.kept):
        assert kept[0].correction is None
        np.testing.assert_array_equal(kept[1].correction, samples[1].correction)
        assert kept[1].correction.dtype == np.float32
        filled = fill(samples, [(kept[1], groups[0].prompt)], algorithm, 16)
        np.testing.assert_array_equal(filled[4].correction, samples[1].correction)
    before = {
        name: value for name, value in buffer.state().items() if name not in ("corrected", "correction")
    }
    again.restore(before)
    assert all(one.correction is None for one in again.kept)


def test_a_replayed_row_takes_the_place_of_a_silent_one(policy: Policy, groups: list[Group]) -> None:
    samples = to_samples(groups, GRPO, 16, positions=[0, 1, 2, 3])
    buffer = SelectiveReplay(capacity=8)
    buffer.add(samples, 0)
    stored = buffer.kept[0]
    filled = fill(samples, [(stored, groups[0].prompt)], GRPO, 16)
    assert [s.replayed for s in filled] == [False] * 4 + [True] + [False] * 3
    replayed = filled[4]
    np.testing.assert_array_equal(replayed.old_log_probs, samples[0].old_log_probs)
    # P = 4 groups of G = 2: 1 / (8 |o|), as for every other row.
    np.testing.assert_allclose(replayed.weights, 1 / (8 * len(stored.token_ids)), rtol=1e-6)
    twice, _ = gradient_of(policy, filled)
    once, _ = gradient_of(policy, samples)
    alone, _ = gradient_of(policy, [replace(samples[0], group=0)])
    assert_gradients_close(twice, add(once, alone), 2e-5)


# ---------------------------------------------------------------- whole steps


@pytest.fixture(scope="module")
def folder(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    policy.save(path)
    return path


def short(folder: Path, run_dir: Path, *overrides: str) -> Run:
    always = [
        f"model={folder}",
        f"run_dir={run_dir}",
        "prompts=2",
        "group=4",
        "steps=3",
        "rewards={exact: 1}",
    ]
    always += ["task=digits/read", "sampling.max_new_tokens=6", "evaluation.n=2", "evaluation.samples=0"]
    return load_run("quickstart", [*always, *overrides])


def test_groups_without_signal_are_drawn_anew(folder: Path, tmp_path: Path) -> None:
    """A scripted engine answers problems at even positions with four equal replies and at odd ones with one right."""
    run = short(folder, tmp_path / "r", "algorithm={name: dapo}", "sampling.max_new_tokens=64")
    with open_session(run) as session:
        even = {session.task.take(i, 1)[0][0].id for i in range(0, 20, 2)}

        def reply(problem: Problem, sample: int) -> str:
            return f"<answer>{problem.answer}</answer>" if sample == 0 or problem.id in even else "no"

        session.engine = ScriptedEngine(reply, session.policy.encode_reply)  # type: ignore[assignment]
        rollout = roll_out(session, ALGORITHMS["dapo"], 0)
        assert rollout.positions == (
            1,
            3,
        )  # 0 and 1 are drawn; for the silent 0 comes 2, silent too, for it 3
        assert rollout.counts["groups_drawn"] == session.cursor == 4
        assert rollout.counts["resample_rounds"] == 2
        again = roll_out(session, replace(ALGORITHMS["dapo"], resample_limit=0), 0)
        assert (again.positions, session.cursor) == ((4, 5), 6)
        silent = ScriptedEngine(lambda problem, sample: "no", session.policy.encode_reply)
        session.engine = silent  # type: ignore[assignment]
        nothing = roll_out(session, replace(ALGORITHMS["dapo"], resample_limit=1), 0)
        assert (len(nothing.drawn), len(nothing.kept)) == (4, 2)


def test_replay_fills_a_run(folder: Path, tmp_path: Path) -> None:
    """Step 0 learns something, step 1 has no signal and learns from what was kept; the prompt is made again."""
    run = short(folder, tmp_path / "r", "algorithm={replay: 16}", "optimizer.learning_rate=1e-3")
    with open_session(run) as session:

        def reply(problem: Problem, sample: int) -> str:
            return f"<answer>{problem.answer}</answer>" if sample == 0 else "no"

        session.engine = ScriptedEngine(reply, session.policy.encode_reply)  # type: ignore[assignment]
        session.sampling = Sampling(max_new_tokens=32)
        first, _ = rl_step(session, 0)
        assert (first["replayed"], first["rows_skipped"]) == (0, 0)
        session.engine = ScriptedEngine(lambda problem, sample: "no", session.policy.encode_reply)  # type: ignore[assignment]
        second, _ = rl_step(session, 1)
        assert (second["replayed"], second["replay_age"], second["rows_skipped"]) == (8, 1.0, 0)
        assert second["grad_norm"] > 0
        buffer: Any = session.parts["replay"]
        assert prompt_again(session, buffer.kept[0]).problem.id == buffer.kept[0].problem
        with pytest.raises(UserError, match="no longer at its place"):
            prompt_again(session, replace(buffer.kept[0], problem="gone"))


@pytest.mark.parametrize(
    "section",
    [
        "name: dapo",
        "name: gspo, updates_per_rollout: 2, prompts_per_update: 1",
        "name: rloo, beta: 0.05",
        "name: reinforce_plus_plus, beta: 0.05",
        "name: reinforce_plus_plus_baseline, beta: 0.05, top_entropy: 0.2, entropy_bonus: 0.01",
        "name: cispo, correction: sequence_truncate",
        "replay: 32, clip_cov: 0.1",
    ],
)
def test_two_steps_of_each(folder: Path, tmp_path: Path, section: str) -> None:
    """Every algorithm runs from a recipe; with the shared engine the recomputed log-probs are those it sampled with."""
    run = short(folder, tmp_path / "r", "steps=2", f"algorithm={{{section}}}", "show_every=0")
    with open_session(run) as session:
        for step in range(2):
            metrics, _ = rl_step(session, step)
            assert metrics["nonfinite"] == 0
            assert np.isfinite(metrics["grad_norm"])
            assert {"clip_fraction", "approx_kl", "advantage_abs", "reward_std", "entropy"} <= metrics.keys()
            assert metrics.get("engine_gap_max", 0.0) < 1e-4
            if "reinforce" in section:  # a group whose rewards are all equal is learned from
                assert metrics["groups_skipped"] == 0
            assert ("kl" in metrics) == ("beta" in section and "baseline" in section)


@pytest.mark.parametrize("section", ["name: gspo", "name: gspo, prompts_per_update: 1", "kl_cov: 0.1"])
def test_the_first_update_clips_nothing_in_bfloat16(folder: Path, tmp_path: Path, section: str) -> None:
    """The decode path and the trainer's differ by more than GSPO's bounds there: old log-probs are the trainer's."""
    more = ["model=fovea-tiny", "task=digits/locate", "rewards={iou: 1}", "sampling.max_new_tokens=24"]
    more += ["dtype=bfloat16", "group=8", "steps=1", "show_every=0", "optimizer.learning_rate=1e-12"]
    run = short(folder, tmp_path / "r", *more, f"algorithm={{{section}}}")
    with open_session(run) as session:
        metrics = learned(session)
    assert metrics["engine_gap_max"] > 1e-4
    assert metrics["clip_fraction"] == 0.0
    assert metrics["approx_kl"] < 1e-9


def learned(session: Session) -> dict[str, Any]:
    """A step whose replies are worth 0, 1, 2, 3, so that every group has a signal."""
    real = session.scorer.weigh_all

    def weigh_all(jobs: Any, *, step: int) -> Any:
        return [
            replace(scores, rewards=np.arange(len(scores.rewards), dtype=np.float64))
            for scores in real(jobs, step=step)
        ]

    session.scorer.weigh_all = weigh_all  # type: ignore[method-assign]
    return rl_step(session, 0)[0]


def test_a_step_without_signal_leaves_no_graph(folder: Path, tmp_path: Path) -> None:
    """No row is computed, so nobody takes what the rollout kept: evaluation and save must not find it in memory."""
    run = short(folder, tmp_path / "r", "show_every=0")
    with open_session(run) as session:
        kept: list[bool] = []
        real = session.scorer.weigh_all

        def weigh_all(jobs: Any, *, step: int) -> Any:
            kept.append(session.policy.kept.prefix is not None)
            return [
                replace(scores, rewards=np.zeros(len(scores.rewards))) for scores in real(jobs, step=step)
            ]

        session.scorer.weigh_all = weigh_all  # type: ignore[method-assign]
        metrics, _ = rl_step(session, 0)
        assert kept == [True]
        assert metrics["rows_skipped"] == 8
        assert session.policy.kept.prefix is None

        def fail(jobs: Any, *, step: int) -> Any:
            raise RuntimeError("no rewards")

        session.scorer.weigh_all = fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="no rewards"):
            rl_step(session, 1)
        assert session.policy.kept.prefix is None


def test_a_run_with_replay_and_resampling_writes_equal_logs(folder: Path, tmp_path: Path) -> None:
    seen = []
    for name in ("a", "b"):
        train(short(folder, tmp_path / name, "algorithm={replay: 8}", "steps=2", "evaluation.every=0"))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        seen.append([[pair for pair in line.split(", ") if "seconds" not in pair] for line in lines])
    assert seen[0] == seen[1]


def test_reweigh_keeps_masks(policy: Policy, groups: list[Group]) -> None:
    samples = to_samples(groups, GRPO, 16)
    masked = [replace(samples[0], weights=np.zeros_like(samples[0].weights)), *samples[1:]]
    assert not reweigh(masked, GRPO, 16)[0].weights.any()
