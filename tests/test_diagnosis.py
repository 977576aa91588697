"""What `fovea diagnose` proposes, by hand; and once for real, from the measurement to a step of the recipe it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fovea import cli
from fovea.config import Run, load_run
from fovea.diagnosis import AT_CHANCE, Measured, Proposal, propose, recipe_of
from fovea.training import train


def one(task: str = "ssl/crop", difficulty: float = 0.1, **figures: Any) -> Measured:
    """A task at one difficulty; half of the replies right without looking, unless said otherwise."""
    usual: dict[str, Any] = {"n": 64, "chance": 0.0, "accuracy": 0.5, "sampled": 0.5, "looking": 0.0}
    usual |= {"variance": 0.2, "at_chance": False}
    return Measured(task=task, difficulty=difficulty, **usual | figures)


def test_the_level_nearest_to_the_band_is_proposed() -> None:
    """Above chance 0.25: (0.9 - .25)/.75 = 0.867 is 0.167 above 0.7; (0.475 - .25)/.75 = 0.3 is 0.1 below 0.4."""
    easy, hard = (
        one(difficulty=0.1, sampled=0.9, chance=0.25),
        one(difficulty=0.9, sampled=0.475, chance=0.25),
    )
    assert easy.above == pytest.approx(0.8667, abs=1e-4)
    assert propose([easy, hard]).levels == {"ssl/crop": 0.9}
    inside = one(difficulty=0.5, sampled=0.7, chance=0.25)  # 0.6: in the band
    assert propose([easy, inside, hard]).levels == {"ssl/crop": 0.5}
    assert propose([easy, inside, hard], low=0.2, high=0.35).levels == {"ssl/crop": 0.9}


def test_two_levels_in_the_band_are_told_apart_by_its_middle_and_then_the_easier() -> None:
    """The middle is 0.55: 0.5 is nearer than 0.69; 0.5 and 0.6 are as near, and the first is easier."""
    assert (
        propose([one(difficulty=0.1, sampled=0.69), one(difficulty=0.5, sampled=0.5)]).levels["ssl/crop"]
        == 0.5
    )
    assert (
        propose([one(difficulty=0.5, sampled=0.6), one(difficulty=0.1, sampled=0.5)]).levels["ssl/crop"]
        == 0.1
    )


def test_weights_are_variance_times_not_looking() -> None:
    """0.2 · 1 = 0.2; 0.2 · (1 - 0.3/0.5) = 0.08; 0.12 · 1 = 0.12 (worse than with other pictures: cut to 0); of 0.4."""
    found = propose(
        [
            one("ssl/flip"),
            one("ssl/crop", looking=0.3, chance=0.5, sampled=0.8),
            one("ssl/odd", variance=0.12, looking=-0.1),
        ]
    )
    assert found.mixture == {"ssl/flip": 0.5, "ssl/crop": 0.2, "ssl/odd": 0.3}
    assert propose([one(looking=None)]).mixture == {"ssl/crop": 1.0}  # nothing could be swapped


def test_what_is_at_chance_gets_a_fifth_together() -> None:
    """Seen: 0.8. At chance 0.15 and 0.05 share 0.2 as three to one. Only with others: alone they are all there is."""
    blind = [
        one("ssl/flip", at_chance=True, variance=0.15),
        one("ssl/jigsaw", at_chance=True, variance=0.05),
    ]
    found = propose([*blind, one("ssl/crop")])
    assert AT_CHANCE == 0.2
    assert found.mixture == {"ssl/flip": 0.15, "ssl/jigsaw": 0.05, "ssl/crop": 0.8}
    assert propose(blind).mixture == {"ssl/flip": 0.75, "ssl/jigsaw": 0.25}


def test_a_level_that_is_seen_goes_before_one_at_chance() -> None:
    """Above chance by guessing 0.5 in the band, seen 0.9: what is seen is what can be learned from."""
    found = propose([one(difficulty=0.1, sampled=0.9), one(difficulty=0.5, sampled=0.5, at_chance=True)])
    assert found.levels == {"ssl/crop": 0.1}
    assert found.mixture == {"ssl/crop": 1.0}


@pytest.mark.parametrize(
    ("sampled", "why"), [(0.0, "never right"), (1.0, "always right"), (0.5, "do not differ")]
)
def test_what_teaches_nothing_is_left_out_with_the_reason(sampled: float, why: str) -> None:
    flat = [one("ssl/odd", level, sampled=sampled, variance=0.0) for level in (0.1, 0.5)]
    found = propose([*flat, one("ssl/crop")])
    assert set(found.mixture) == set(found.levels) == {"ssl/crop"}
    assert why in found.left_out["ssl/odd"]
    assert propose(flat).mixture == {}
    # one level that teaches is enough
    assert propose([*flat, one("ssl/odd", 0.9)]).levels == {"ssl/odd": 0.9}


def test_the_recipe_keeps_what_was_asked_for_and_drops_what_it_replaces() -> None:
    run = Run(
        recipe="diagnose", model="fovea-tiny", images="photos", steps=7, task_options={"ssl/crop": {"turn": 0.0}},
        pictures={"side": 64, "max_pixels": 65536}, difficulty={"low": 0.3, "window": 16},
    )  # fmt: skip
    values = recipe_of(run, Proposal(mixture={"ssl/crop": 1.0}, levels={"ssl/crop": 0.5}, left_out={}))
    assert values == {
        "model": "fovea-tiny",
        "mixture": {"ssl/crop": 1.0},
        "task_options": {"ssl/crop": {"turn": 0.0}},
        "difficulty": {"levels": {"ssl/crop": 0.5}, "control": True, "low": 0.3, "window": 16},
        "pictures": {"side": 64, "max_pixels": 65536},
        "steps": 7,
    }
    other = recipe_of(run, Proposal(mixture={"ssl/odd": 1.0}, levels={"ssl/odd": 0.5}, left_out={}))
    assert "task_options" not in other  # they would do nothing, which a run refuses


WORDS = [
    "diagnose", "fovea-tiny", "pictures.side=32", "sampling.max_new_tokens=16", "threads=1", "--n", "4",
    "--samples", "2", "--difficulty", "0.1", "--task", "ssl/transform", "--task", "ssl/depth",
]  # fmt: skip


def test_from_measurement_to_a_step_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the same; the task without depth maps is skipped and said; the recipe is a run."""
    assert cli.main([*WORDS, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    out = tmp_path / "diagnosed.yaml"
    assert cli.main([*WORDS, "--out", str(out), "--json"]) == (0 if first["mixture"] else 2)
    assert out.is_file() == bool(first["mixture"])
    second = capsys.readouterr()
    assert json.loads(second.out) == first if first["mixture"] else "No recipe is written" in second.err
    (measured,) = first["measured"]
    assert (measured["task"], measured["n"], first["split"]) == ("ssl/transform", 4, "validation")
    share = (measured["sampled"] - measured["chance"]) / (1 - measured["chance"])
    assert measured["above_chance"] == pytest.approx(share)
    assert "needs depth maps" in first["skipped"]["ssl/depth"]
    assert set(first["mixture"]) <= {"ssl/transform"}


@pytest.mark.long
def test_the_written_recipe_is_a_run(tmp_path: Path) -> None:
    from fovea.diagnosis import Diagnosis, write_recipe

    run = Run(model="fovea-tiny", threads=1, pictures={"side": 32}, sampling={"max_new_tokens": 16})
    two = [one("ssl/flip", 0.1, variance=0.1), one("ssl/overlay", 0.5, variance=0.1)]
    skipped = {"ssl/depth": "it needs\ndepth maps: {none}"}
    out = tmp_path / "diagnosed.yaml"
    write_recipe(out, run, Diagnosis(measured=tuple(two), skipped=skipped, proposal=propose(two)))
    small = ["steps=1", "prompts=2", "group=2", "evaluation.n=2", f"run_dir={tmp_path / 'run'}"]
    written = load_run(str(out), small)
    assert written.mixture == {"ssl/flip": 0.5, "ssl/overlay": 0.5}
    assert written.difficulty.control
    assert written.difficulty.levels == {"ssl/flip": 0.1, "ssl/overlay": 0.5}
    assert train(written)["steps"] == 1
    step = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    levels = {key: value for key, value in step.items() if key.startswith("difficulty/")}
    assert levels
    assert levels.items() <= {"difficulty/ssl/flip": 0.1, "difficulty/ssl/overlay": 0.5}.items()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "ssl/krop"], "There is no self-supervised task 'ssl/krop' (did you mean 'ssl/crop'?)"),
        (["mixture.ssl/crop=1"], "mixture would do nothing"),
        (["difficulty.levels.ssl/crop=0.1"], "difficulty.levels would do nothing"),
        (["task_options.ssl/crop.turn=0", "--task", "ssl/odd"], "task_options.ssl/crop would do nothing"),
        (["--out", "diagnosed.json"], "ends in .yaml"),
        (["--out", "nowhere/diagnosed.yaml"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_told_before_the_model_is_opened(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["diagnose", "no-such-model", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
