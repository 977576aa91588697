"""What a reader of the episodes' code who did not write it found: refusals, hostile replies, windows, what is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fovea.config import Run, load_run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.environments.catalogue import find_game
from fovea.environments.demonstrations import Demonstrations
from fovea.environments.game import Observation
from fovea.environments.replies import INSTRUCTIONS, between, read_reply
from fovea.environments.spoken import Spoken
from fovea.episode_evaluation import SwappedPictures
from fovea.models import load_policy
from fovea.models.critic import Critic
from fovea.rollouts.episodes import Layout, Stage
from fovea.rollouts.turn_rewards import TURN_REWARDS
from fovea.training import train
from fovea.training.problems import instruction_of, open_for_filter, open_tasks
from fovea.types import Sampling, UserError


def run_of(folder: Path, *overrides: str) -> Run:
    (folder / "e.yaml").write_text(
        "model: fovea-tiny\nprompts: 2\ngroup: 1\nsteps: 1\nsave_every: 0\nthreads: 1\n"
        "sampling: {max_new_tokens: 6}\nenvironment: {name: number_line, options: {side: 64}, turns: 1, max_turns: 2}\n"
        "algorithm: {name: vl_dac}\ncritic: {hidden: [8]}\nevaluation: {n: 1, during: 1}\n"
    )
    return load_run(str(folder / "e.yaml"), [f"run_dir={folder / 'run'}", *overrides])


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["algorithm.papo=0.1"], "algorithm.papo"),
        (["difficulty.control=true"], "difficulty.control"),
        (["environment.thought_sft=1", "environment.form=json"], "needs environment.form=tags"),
        (["environment.thought_sft=1", "environment.thought=false"], "thought=true"),
        (["environment.invalid=penalty"], "give environment.penalty"),
        (["environment.earlier_thoughts=false"], "take context=window or history"),
        (["reward_options={exact: {}}"], "reward_options is for questions of one turn"),
        (["evaluation.metric=looking"], "known: accuracy, return"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, overrides: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        train(run_of(tmp_path, *overrides))
    assert not (tmp_path / "run").exists()


def test_questions_of_one_turn_are_not_measured_in_a_games_stead(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="episodes are measured by fovea evaluate"):
        open_for_filter(run_of(tmp_path))


def test_how_a_turn_is_asked(tmp_path: Path) -> None:
    form = INSTRUCTIONS["tags", True]
    for changes, expected in [
        ([], None),  # the embedded model was taught it
        (["instruction=plain"], form),
        (["instruction=''"], None),
        (["instruction=Play."], "Play."),
    ]:
        run = run_of(tmp_path, *changes)
        assert instruction_of(run, open_tasks(run)[2]) == expected
    untaught = run_of(tmp_path, "model=some/other", "instruction=think")
    assert str(instruction_of(untaught, open_tasks(untaught)[2])).startswith(
        "First output the thinking process"
    )
    untaught = run_of(tmp_path, "model=some/other")
    assert instruction_of(untaught, open_tasks(untaught)[2]) == form
    assert instruction_of(untaught, "number") is None  # of another task, measured beside the game


def test_other_tasks_are_measured_beside_a_game(tmp_path: Path) -> None:
    """digits/locate is what `task` says unless it is changed; a run in a game does not train on it."""
    result = train(run_of(tmp_path, "evaluation.also=[digits/locate]", "evaluation.also_n=2"))
    assert result["also"]["digits/locate"]["n"] == 2


def test_replies_are_read_in_linear_time() -> None:
    assert between("a<think> b </think><think>c</think>", "<think>", "</think>") == "b"
    assert between("</think><think>b", "<think>", "</think>") is None
    nothing: dict[str, Any] = {"thought": "x"}
    for text in ("<think>" * 2800, "<prediction>" * 1600, '"thoughts":"' * 1600):
        fastest = 1.0
        for _ in range(3):
            began = time.perf_counter()
            read_reply(text)
            read_reply(text, "json")
            TURN_REWARDS["prediction"](text, before=nothing, after=nothing)
            fastest = min(fastest, time.perf_counter() - began)
        assert fastest < 0.1  # a lazy pattern took a second


@pytest.mark.parametrize("turns", [2, 3, 4, 5, None])
def test_a_teachers_turn_holds_what_a_players_does(turns: int | None) -> None:
    """Turn k of a window of n holds min(k, n - 1) earlier ones, in the demonstrations as on the stage."""
    game = find_game("number_line")
    options = {"side": 64, "max_position": 9, "hold_out": "none"}
    problems, _ = Demonstrations(game=game, turns=turns, options=options).take(0, 40)
    numbers = {int(problem.id.rpartition("#")[2]) for problem in problems}
    assert max(numbers) > 4
    for problem in problems:
        number = int(problem.id.rpartition("#")[2])
        expected = number if turns is None else min(number, turns - 1)
        assert len(problem.earlier) == expected
        played: list[Any] = [(problem, (1,), 0)] * number
        assert len(Layout(turns=turns).earlier(played)) == expected


def test_an_evaluation_keeps_no_pixels_and_bootstraps_nothing() -> None:
    """A turn's pixels are most of its memory: ten megabytes of a picture of 336 pixels, of hundreds of episodes."""
    policy = load_policy("fovea-tiny", reply_tokens=6)
    width = policy.model.config.get_text_config().hidden_size
    policy.critic = Critic(width, (8,), stop_gradient=True, seed=0)
    policy.critic.layers[-1].bias.data.fill_(1.0)
    found = {}
    for learning in (True, False):
        stage = Stage(
            policy=policy,
            engine=SharedPrefillEngine(policy),
            sampling=Sampling(max_new_tokens=6),
            make=lambda: Spoken(game=find_game("number_line"), options={"side": 64}),
            game="number_line",
            split="train",
            seed=1,
            learning=learning,
        )
        (found[learning],) = stage.advance(1, 1, seed=(0, 0))
    assert found[True].turns[0].prompt.media
    assert not found[False].turns[0].prompt.media
    assert found[True].turns[0].completion.text == found[False].turns[0].completion.text
    if not found[True].terminated:
        assert (found[True].bootstrap, found[False].bootstrap) == (1.0, 0.0)


def test_the_metric_may_be_the_return(tmp_path: Path) -> None:
    changes = ["steps=2", "evaluation.every=1", "evaluation.metric=return"]
    train(run_of(tmp_path, *changes))
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert best["metric"] == "return"


def test_even_the_last_episode_under_way_is_shown_another_picture() -> None:
    """Else the swapped pass would end with its own pictures, and `looking` would be too small."""
    swap = SwappedPictures()
    shades = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (10, 20, 30)]

    def places(*numbers: int) -> list[Any]:
        return [
            SimpleNamespace(number=n, observation=Observation(images=(shades[n],), text=str(n)))
            for n in numbers
        ]

    first = swap(places(0, 1))
    assert [one.images[0].getpixel((0, 0))[0] for one in first] == [20, 10]
    assert [one.text for one in first] == ["0", "1"]
    (alone,) = swap(places(1))
    assert alone.images[0].getpixel((0, 0))[0] == 10
    assert SwappedPictures()(places(2))[0].images[0].getpixel((0, 0))[0] == 30  # nobody else was ever there
