"""Episodes end to end on the embedded model: the critic, samples, rules, resuming, and two games that are solved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fovea
from fovea.algorithms import ALGORITHMS, sequence_log_ratios, token_loss, token_weights
from fovea.config import Run, load_run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.environments.catalogue import find_game
from fovea.environments.game import Game
from fovea.environments.replies import read_reply, write_reply
from fovea.environments.spoken import Rules, Spoken
from fovea.models import Policy, backward, load_policy, score
from fovea.models.critic import Critic, values
from fovea.rollouts.episodes import Layout, Stage
from fovea.rollouts.turn_rewards import TURN_REWARDS
from fovea.rollouts.turns import coefficients, credits_of, turn_samples, turns_of
from fovea.training import resume, train
from fovea.training.batch import distinct_rows
from fovea.types import RunFailed, Sampling, Trajectory, UserError

SAMPLING = Sampling(temperature=1.0, max_new_tokens=12)
SMALL = {"side": 64}


@pytest.fixture
def policy() -> Policy:
    return load_policy("fovea-tiny", reply_tokens=12)


def with_critic(policy: Policy, stop: bool = True) -> Policy:
    width = policy.model.config.text_config.hidden_size
    policy.critic = Critic(width, (16,), stop_gradient=stop, seed=3)
    with torch.no_grad():  # a fresh one says 0 everywhere
        for parameter in policy.critic.layers[-1].parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return policy


def stage_of(policy: Policy, game: str | Game = "number_line", **changes: Any) -> Stage:
    found = find_game(game) if isinstance(game, str) else game
    rules = changes.pop("rules", Rules())
    options = changes.pop("options", SMALL if isinstance(game, str) else {})
    return Stage(
        policy=policy,
        engine=SharedPrefillEngine(policy),
        sampling=SAMPLING,
        make=lambda: Spoken(game=found, rules=rules, options=options),
        game=found.name,
        split="train",
        seed=5,
        **changes,
    )


# --- replies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tags", "json"])
@pytest.mark.parametrize("thought", [None, 'it says "5" \\ {x}', ""])
def test_what_is_written_is_read(form: Any, thought: str | None) -> None:
    text = write_reply(thought, "go to cabinet 1", form)
    said = read_reply(text, form)
    assert (said.thought, said.action) == (thought or "", "go to cabinet 1")
    assert text[said.start :].startswith("<answer>" if form == "tags" else '"action"')


def test_what_cannot_be_read() -> None:
    for text in ("", "+", "<answer>", "<answer>+", "<think>x</think>", "\x00</answer><answer>"):
        assert read_reply(text).action is None
    assert read_reply("no marker").start == 9
    assert read_reply("<answer>-</answer> no, <answer> + </answer>").action == "+"
    for text in ('{"action": ', '{"action": [1]}', '{"action": null}', '{"actions": "+"}', '{"action": tru'):
        assert read_reply(text, "json").action is None
    assert read_reply('{"action": "-"} {"action" : "+"', "json").action == "+"
    assert read_reply('{"thoughts": "a", "action": 10}', "json").action == "10"


# --- the critic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, False])
def test_the_critics_gradient_is_that_of_plain_autograd(policy: Policy, stop: bool) -> None:
    """Against the whole model called once on prompt and reply, the critic on its last hidden states."""
    with_critic(policy, stop)
    stage = stage_of(policy)
    turns = turns_of(stage.advance(2, 1, seed=(0, 0)))
    prompts, rows = distinct_rows([(turn.prompt, turn.completion.token_ids) for turn in turns])
    total = sum(len(tokens) for _, tokens in rows)
    target = torch.linspace(-1, 1, total)

    def nothing(index: torch.Tensor, log_probs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        return log_probs.sum() * 0.0

    def squared(index: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        return ((found - target[index]) ** 2).sum()

    trained = policy.trained()
    for tokens_per_pass in (4096, 5):  # 5: replies are cut into segments
        policy.model.zero_grad(), policy.critic.zero_grad()
        value = backward(policy, prompts, rows, SAMPLING, nothing, tokens_per_pass, squared)
        ours = {
            n: p.grad.clone() for n, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0
        }
        policy.model.zero_grad(), policy.critic.zero_grad()
        plain = _plain_value_loss(policy, prompts, rows, target)
        plain.backward()
        theirs = {n: p.grad for n, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0}
        assert value == pytest.approx(float(plain.detach()), rel=1e-5)
        assert ours.keys() == theirs.keys()
        assert any(not name.startswith("critic.") for name in ours) == (not stop)
        whole = torch.cat([g.flatten() for g in theirs.values()]).norm()
        for name, gradient in ours.items():
            assert (gradient - theirs[name]).norm() <= 1e-5 * (theirs[name].norm() + 1e-4 * whole) * 10, name


def _plain_value_loss(policy: Policy, prompts: Any, rows: Any, target: torch.Tensor) -> torch.Tensor:
    found = []
    for prompt, tokens in rows:
        given = prompts[prompt]
        ids = torch.cat([given.token_ids, torch.from_numpy(tokens)])[None]
        kinds = torch.nn.functional.pad(given.image_mask.long(), (0, len(tokens)))[None]
        policy.model.set_attn_implementation("eager")
        out = policy.model.model(
            input_ids=ids,
            mm_token_type_ids=kinds,
            pixel_values=given.media["pixel_values"],
            image_grid_thw=given.media["image_grid_thw"],
        )
        hidden = out.last_hidden_state[0, len(given.token_ids) - 1 : -1]
        found.append(policy.critic(hidden))
    from fovea.models.attention import ATTENTION

    policy.model.set_attn_implementation(ATTENTION)
    return ((torch.cat(found) - target) ** 2).sum()


def test_the_engine_says_what_the_critic_expects(policy: Policy) -> None:
    with_critic(policy)
    turns = turns_of(stage_of(policy).advance(3, 2, seed=(0, 0)))
    expected = values(policy, [turn.prompt for turn in turns])
    said = [turn.completion.values[0] for turn in turns]
    np.testing.assert_allclose(said, expected, atol=1e-5)
    assert all(len(turn.completion.values) == len(turn.completion.token_ids) for turn in turns)


def test_a_fresh_critic_expects_nothing(policy: Policy) -> None:
    policy.critic = Critic(256, (8, 4), stop_gradient=True, seed=0)
    assert policy.critic(torch.randn(5, 256)).tolist() == [0.0] * 5
    again = Critic(256, (8, 4), stop_gradient=True, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(policy.critic.parameters(), again.parameters()))


# --- what was sampled is what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [Layout(), Layout(turns=2), Layout(turns=None, thoughts=False)])
def test_log_probs_are_those_of_the_turns_own_prompt(policy: Policy, layout: Layout) -> None:
    """RL4VLM scored every turn under the first turn's prompt (its code, evaluate_actions); in EZPoints the prompt holds
    the formula and so changes. The ratio of the first mini-batch must be 1."""
    stage = stage_of(policy, "ez_points", layout=layout, options={"side": 64})
    turns = turns_of(stage.advance(3, 3, seed=(0, 0)))
    prompts, rows = distinct_rows([(turn.prompt, turn.completion.token_ids) for turn in turns])
    ours, _ = score(policy, prompts, rows, SAMPLING)
    sampled = np.concatenate([turn.completion.log_probs for turn in turns])
    np.testing.assert_allclose(np.exp(ours.numpy() - sampled), 1.0, atol=2e-5)
    longest = max(len(turn.prompt.token_ids) for turn in turns)
    assert (longest > 2 * min(len(turn.prompt.token_ids) for turn in turns)) == (layout.turns != 1)


def test_lambda_weighs_thoughts_in_the_gradient() -> None:
    """Against autograd of the ratio as it is written: exp(Σ c (log π - log π_old)), c = λ on thoughts and 1 on the
    action (RL4VLM, equation 4.3), mean over replies."""
    algorithm = ALGORITHMS["rl4vlm"]
    rng = np.random.default_rng(0)
    lengths = (5, 3)
    rows = torch.arange(2).repeat_interleave(torch.tensor(lengths))
    coefficient = torch.tensor([0.5, 0.5, 0.5, 1, 1, 0.5, 1, 1])
    old = torch.tensor(rng.normal(-1, 0.02, 8), dtype=torch.float64)
    new = (old + torch.tensor(rng.normal(0, 0.01, 8))).requires_grad_()
    advantage = torch.tensor([2.0] * 5 + [-1.0] * 3, dtype=torch.float64)
    masks = [np.ones(n, np.float32) for n in lengths]
    weights = torch.tensor(
        np.concatenate(token_weights(masks, [0, 1], algorithm, longest=9)), dtype=torch.float64
    )
    sequence = sequence_log_ratios(new, old, coefficient.double(), rows, algorithm)
    size = torch.tensor(lengths, dtype=torch.float64)[rows]
    ours = token_loss(
        new,
        old,
        advantage,
        weights,
        algorithm,
        sequence=sequence,
        lengths=size,
        coefficients=coefficient.double(),
    ).sum()
    (gradient,) = torch.autograd.grad(ours, new)
    again = new.detach().clone().requires_grad_()
    parts = [((again - old) * coefficient)[rows == row].sum().exp() for row in (0, 1)]
    clipped = [part.clamp(0.9, 1.1) for part in parts]
    plain = -sum(torch.minimum(p * a, c * a) for p, c, a in zip(parts, clipped, (2.0, -1.0))) / 2
    (expected,) = torch.autograd.grad(plain, again)
    torch.testing.assert_close(gradient, expected)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()))


def test_invalid_replies_teach_the_critic_alone(policy: Policy) -> None:
    """A random action was done: the text did not cause what came of it."""
    with_critic(policy)
    trajectories = stage_of(policy).advance(4, 2, seed=(0, 0))
    turns = turns_of(trajectories)
    assert not any(turn.legal for turn in turns)  # the embedded model was never taught this game
    assert all(turn.action in "+-" for turn in turns)
    algorithm = ALGORITHMS["vl_dac"]
    masked = turn_samples(trajectories, algorithm, 12, learn_invalid=False)
    assert not any(sample.weights.any() for sample in masked)
    assert sum(sample.value_weights.sum() for sample in masked) == pytest.approx(1.0)
    assert all(sample.value_weights[0] > 0 and not sample.value_weights[1:].any() for sample in masked)
    learned = turn_samples(trajectories, algorithm, 12, learn_invalid=True)
    assert all(sample.weights.all() for sample in learned)
    assert sum(float(sample.weights.sum()) for sample in learned) == pytest.approx(1.0)
    warming = turn_samples(trajectories, algorithm, 12, learn_invalid=True, learn_policy=False)
    assert not any(sample.weights.any() for sample in warming)


def test_thoughts_stand_before_the_action(policy: Policy) -> None:
    with_critic(policy)
    (turn, *_) = turns_of(stage_of(policy).advance(1, 1, seed=(0, 0)))
    reply = policy.encode_reply("<think>current 1, target 5</think><answer>+</answer>")
    spoken = replace(turn, completion=replace(turn.completion, token_ids=reply), action_start=9)
    found = coefficients(spoken, ALGORITHMS["rl4vlm"])
    assert found is not None
    assert found[:9].tolist() == [0.5] * 9
    assert set(found[9:].tolist()) == {1.0}
    assert coefficients(spoken, ALGORITHMS["vl_dac"]) is None


def test_bootstrapped_where_a_step_ends_in_the_middle(policy: Policy) -> None:
    with_critic(policy)
    stage = stage_of(policy)
    first = stage.advance(3, 2, seed=(0, 0))
    open_ones = {one.id: one for one in first if not one.over}
    assert open_ones
    for place in stage.places:
        if trajectory := open_ones.get(stage._id(place)):
            problem = stage._problem(place, place.observation)
            expected = float(values(policy, [policy.prompt(problem)])[0])
            assert trajectory.bootstrap == pytest.approx(expected, abs=1e-5)
    credits = credits_of(first, ALGORITHMS["turn_ppo"])
    assert len(credits) == 6
    later = stage.advance(3, 2, seed=(0, 1))
    going_on = {one.id for one in first if not one.over} & {one.id for one in later}
    assert all(one.first > 0 for one in later if one.id in going_on)


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "action", "reward", "terminated"),
    [
        (Rules(invalid="no_op"), None, 0.0, False),
        (Rules(invalid="penalty", penalty=0.5), None, -0.5, False),
        (Rules(invalid="end", penalty=1.0), None, -1.0, True),
    ],
)
def test_what_is_done_with_a_reply_without_an_action(
    rules: Rules, action: str | None, reward: float, terminated: bool
) -> None:
    env = Spoken(game=find_game("number_line"), rules=rules, options=SMALL)
    env.reset(seed=1)
    _, got, ended, _, info = env.step("I would go up.")
    assert (info["action"], got, ended) == (action, reward, terminated)
    assert not info["legal"]
    if terminated:
        assert info["success"] is False
        with pytest.raises(UserError, match="over"):
            env.step("<answer>+</answer>")


def test_random_actions_are_uniform_and_seeded() -> None:
    env = Spoken(game=find_game("number_line"), options=SMALL)
    seen = []
    for _ in range(2):
        done = []
        for seed in range(40):
            env.reset(seed=seed)
            done.append(env.step("?")[4]["action"])
        seen.append("".join(done))
    assert seen[0] == seen[1]
    assert 8 < seen[0].count("+") < 32


def test_turns_are_counted() -> None:
    env = Spoken(game=find_game("number_line"), rules=Rules(invalid="no_op", max_turns=2, format_reward=0.25))
    env.reset(seed=1)
    _, reward, *_ = env.step("<think>x</think><answer>up</answer>")
    assert reward == 0.25  # the right form, though no legal action
    _, reward, terminated, truncated, info = env.step("<answer>up</answer>")
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["success"] is False
    with pytest.raises(UserError, match="no option 'sidee'"):
        Spoken(game=find_game("number_line"), options={"sidee": 3})


# --- determinism and resuming -----------------------------------------------------------------------------------------


def test_an_episode_does_not_depend_on_what_runs_beside_it(policy: Policy) -> None:
    one = stage_of(policy).whole(range(3), 2, seed=(0, 0), at_once=64)
    other = stage_of(policy).whole(range(3), 2, seed=(0, 0), at_once=2)
    assert [(t.id, t.group, t.success, t.total) for t in one] == [
        (t.id, t.group, t.success, t.total) for t in other
    ]
    texts = [[turn.completion.text for turn in t.turns] for t in one]
    assert texts == [[turn.completion.text for turn in t.turns] for t in other]
    assert one[0].turns[0].anchor == one[1].turns[0].anchor  # the same beginning
    assert one[0].id != one[1].id


@pytest.mark.parametrize("layout", [Layout(), Layout(turns=None)])
def test_episodes_go_on_in_the_middle(policy: Policy, layout: Layout) -> None:
    with_critic(policy)
    stage = stage_of(policy, layout=layout)
    stage.advance(3, 2, seed=(0, 0))
    state = stage.state()
    expected = stage.advance(3, 2, seed=(0, 1))
    again = stage_of(policy, layout=layout)
    again.restore(state)
    found = again.advance(3, 2, seed=(0, 1))
    assert _told(found) == _told(expected)
    assert again.state()["next_number"] == stage.state()["next_number"]


def _told(trajectories: list[Trajectory]) -> list[Any]:
    return [
        (
            t.id,
            t.first,
            t.bootstrap,
            t.total,
            [(turn.completion.text, turn.reward, turn.anchor) for turn in t.turns],
        )
        for t in trajectories
    ]


def test_an_environment_that_answers_otherwise_is_refused(policy: Policy) -> None:
    stage = stage_of(policy)
    stage.advance(2, 1, seed=(0, 0))
    state = stage.state()
    with pytest.raises(RunFailed, match="answered otherwise than recorded"):
        stage_of(policy, options={"side": 96}).restore(state)


# --- runs -------------------------------------------------------------------------------------------------------------


def run_of(folder: Path, *overrides: str) -> Run:
    (folder / "e.yaml").write_text(
        "model: fovea-tiny\nprompts: 4\ngroup: 1\nsteps: 4\nsave_every: 2\nthreads: 1\nshow_every: 2\n"
        "sampling: {max_new_tokens: 12}\nenvironment: {name: number_line, options: {side: 64}, turns: 3}\n"
        "critic: {hidden: [16]}\nevaluation: {n: 4, samples: 1, every: 2, during: 2}\n"
    )
    return load_run(str(folder / "e.yaml"), [f"run_dir={folder / 'run'}", *overrides])


ALL = ("rl4vlm", "vl_dac", "turn_ppo", "token_ppo", "vagen", "lumped_ppo", "gigpo", "loop", "grpo")


@pytest.mark.parametrize("name", ALL)
def test_every_algorithm_runs(tmp_path: Path, name: str) -> None:
    changes = [f"algorithm.name={name}", "steps=2", "environment.learn_invalid=true", "evaluation.every=0"]
    if ALGORITHMS[name].critic:
        changes += ["algorithm.updates_per_rollout=2", "algorithm.prompts_per_update=5"]
    else:
        changes += ["group=2", "prompts=2"]
    result = train(run_of(tmp_path, *changes))
    assert result["steps"] == 2
    assert result["task"] == "number_line"
    assert set(result["return"]) == {"before", "after"}


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    changes = ["algorithm.name=vl_dac", "environment.context=window", "environment.learn_invalid=true"]
    whole = train(run_of(tmp_path / "whole", *changes))
    short = run_of(tmp_path / "parts", *changes, "steps=3")
    train(short)
    folder = tmp_path / "parts" / "run"
    # step 2 is in the middle of episodes: they are played again and checked
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "step_3")
    result = resume(folder, ["steps=4"])
    assert {k: v for k, v in result.items() if "seconds" not in k} == {
        k: v for k, v in whole.items() if "seconds" not in k
    }


def test_further_rewards_and_a_taught_thought(tmp_path: Path) -> None:
    """Built in and a function of the user's; GTR's auxiliary loss changes what is learned."""
    (tmp_path / "mine.py").write_text(
        "def left(text, *, before, after):\n    return float(before['state']['current'])\n"
    )
    more = [f"environment.turn_rewards={{state: 1.0, prediction: 0.5, {tmp_path / 'mine.py'}:left: 0.25}}"]
    shared = ["algorithm.name=turn_ppo", "steps=1", "evaluation.every=0", "environment.learn_invalid=true"]
    losses = []
    for weight in (0.0, 1.0):
        folder = tmp_path / str(weight)
        folder.mkdir()
        train(run_of(folder, *shared, *more, f"environment.thought_sft={weight}"))
        (line,) = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        metrics = json.loads(line)
        assert metrics["reward/state"] == metrics["reward/prediction"] == 0.0
        assert metrics[f"reward/{tmp_path / 'mine.py'}:left"] > 0
        losses.append(metrics["loss"])
    assert losses[1] > losses[0] + 0.5  # a thought that was never taught costs nats


def test_turn_rewards_read_the_state() -> None:
    said = "<think>Current 3,  target 5<prediction>current 4, target 5</prediction></think><answer>+</answer>"
    before, after = {"thought": "current 3, target 5"}, {"thought": "current 4, target 5"}
    assert TURN_REWARDS["state"](said, before=before, after=after) == 1.0
    assert TURN_REWARDS["prediction"](said, before=before, after=after) == 1.0
    assert (
        TURN_REWARDS["state"](said, before=after, after=after) == 1.0
    )  # the prediction stands in the thought
    assert TURN_REWARDS["prediction"](said, before=before, after=before) == 0.0
    assert TURN_REWARDS["state"]("", before={"thought": ""}, after={}) == 0.0


def test_episodes_in_processes_of_their_own(tmp_path: Path) -> None:
    shared = ["algorithm.name=turn_ppo", "steps=1", "evaluation.every=0", "prompts=2", "evaluation.n=1"]
    games = f"environment.name={Path(__file__).parent / 'games.py'}:CORRIDOR"
    found = []
    for isolated in ("false", "true"):
        folder = tmp_path / isolated
        folder.mkdir()
        train(run_of(folder, *shared, games, "environment.options={}", f"environment.isolated={isolated}"))
        metrics = json.loads((folder / "run" / "metrics.jsonl").read_text())
        found.append({k: v for k, v in metrics.items() if "seconds" not in k and "memory" not in k})
    assert found[0] == found[1]


def test_a_model_is_evaluated_in_its_game(tmp_path: Path) -> None:
    run = run_of(tmp_path, "algorithm.name=vl_dac", "steps=1", "evaluation.every=0")
    train(run)
    outcomes: list[Any] = []
    record = fovea.evaluate(tmp_path / "run", evaluation={"n": 3, "samples": 1}, outcomes=outcomes)
    assert (record["task"], record["n"], record["ceiling"]) == ("number_line", 3, 1.0)
    assert {"accuracy", "return", "looking", "swapped", "blank", "sampled", "thought_follows"} <= set(record)
    assert [outcome.id for outcome in outcomes] == [f"number_line:test:1000003:{i}" for i in range(3)]
    again = fovea.evaluate(tmp_path / "run", evaluation={"n": 3, "samples": 1})
    assert again == record


def test_contradictions_are_refused(tmp_path: Path) -> None:
    for overrides, match in [
        (["algorithm.name=vl_dac", "environment.name=none"], "learns from episodes"),
        (["algorithm.name=vl_dac", "rewards.exact=1"], "rewards is for questions of one turn"),
        (["algorithm.name=grpo", "algorithm.thought_weight=0.5", "group=2"], "weighs thoughts"),
        (["environment.name=number_lines", "algorithm.name=vl_dac"], "number_line"),
        (["algorithm.name=vl_dac", "environment.turn_rewards.states=1"], "turn_rewards"),
        (["algorithm.name=grpo", "group=2", "optimizer.critic_learning_rate=0.1"], "has no critic"),
    ]:
        with pytest.raises(UserError, match=match):
            train(run_of(tmp_path, *overrides))


# --- two games that are solved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("game", "thought", "steps"), [("BANDIT", False, 8), ("CORRIDOR", True, 12)])
def test_ppo_solves_a_small_game(tmp_path: Path, game: str, thought: bool, steps: int) -> None:
    """To the optimum from a start that knows the form and nothing about acting. Greedy replies to held-out episodes."""
    name = f"environment.name={Path(__file__).parent / 'games.py'}:{game}"
    shared = [name, "environment.options={}", f"environment.thought={str(thought).lower()}", "save_every=0"]
    measured = ["evaluation.n=24", "evaluation.every=0", "evaluation.samples=0"]
    (tmp_path / "sft").mkdir()
    taught = run_of(
        tmp_path / "sft",
        *shared,
        "method=sft",
        "prompts=16",
        "steps=30",
        "optimizer.learning_rate=2e-4",
        *measured,
    )
    before = train(taught)["after"]["mean"]
    learned = [f"model={tmp_path / 'sft' / 'run' / 'checkpoints' / 'step_30' / 'model'}", f"steps={steps}"]
    found = train(
        run_of(
            tmp_path,
            *shared,
            *learned,
            *measured,
            "prompts=32",
            "environment.turns=2",
            "environment.invalid=penalty",
            "environment.penalty=1",
            "algorithm.name=turn_ppo",
            "algorithm.updates_per_rollout=2",
            "optimizer.critic_learning_rate=3e-3",
            "optimizer.learning_rate=1e-4",
        )
    )
    assert found["after"]["mean"] == 1.0, (before, found["after"])
