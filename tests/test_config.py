"""Recipes: overrides, refusals with the nearest name, and that a refusal is one line."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from fovea.config import Run, load_run, nearest, recipe_names
from fovea.runlog import reproduce_command
from fovea.types import UserError


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    rewards, optimizer = "rewards: {numeric: 1, format: 0.1}", "optimizer:\n  learning_rate: 5e-5"
    path.write_text(f"task: digits/count\nsteps: 7\n{rewards}\n{optimizer}\n")
    return str(path)


def test_a_file_and_its_overrides(recipe: str) -> None:
    run = load_run(
        recipe,
        ["steps=10", "rewards.format=2", "optimizer.beta2=0.95", "data=null", "sampling.temperature=0.7"],
    )
    assert (run.recipe, run.task, run.steps, run.data) == (recipe, "digits/count", 10, None)
    assert run.rewards == {"numeric": 1.0, "format": 2.0}
    assert (run.optimizer.learning_rate, run.optimizer.beta2) == (5e-5, 0.95)  # YAML 1.1 reads 5e-5 as a text
    assert run.sampling.temperature == 0.7
    assert Run.model_validate(run.model_dump()) == run
    assert Run.model_validate_json(run.model_dump_json()) == run
    with pytest.raises(ValidationError):
        run.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run_dir=2025-01-31", "run_dir", "2025-01-31"),  # a name, not a date
        ("run_dir=2025-13-45", "run_dir", "2025-13-45"),  # not even a date
        ("images=7", "images", "7"),
        ("freeze=vision", "freeze", ("vision",)),
        ("freeze=[vision, text]", "freeze", ("vision", "text")),
        ("instruction=a: b: c", "instruction", "a: b: c"),  # broken YAML is text
        ("data=null", "data", None),
        ("model=a=b", "model", "a=b"),
    ],
)
def test_overrides_are_read_as_meant(recipe: str, override: str, key: str, value: object) -> None:
    assert getattr(load_run(recipe, [override]), key) == value


def test_other_problems_get_their_own_rewards_unless_some_are_named(recipe: str) -> None:
    assert load_run(recipe, ["data=my.jsonl"]).rewards == {}
    assert load_run(recipe, ["task=digits/locate"]).rewards == {}
    assert load_run(recipe, ["task=digits/count", "data=null"]).rewards == {"numeric": 1.0, "format": 0.1}
    # What is named is all there is: the recipe's iou and format would not fit another file's numbers.
    assert load_run(recipe, ["data=my.jsonl", "rewards.accuracy=1"]).rewards == {"accuracy": 1.0}
    assert load_run(recipe, ["task=digits/locate", "rewards.iou=1"]).rewards == {"iou": 1.0}
    assert load_run("quickstart", ["rewards.format=2"]).rewards == {"iou_50": 1.0, "format": 2.0}
    for named in (["rewards={exact: 1}"], ["rewards.format=2"], ["rewards={numeric: 1, format: 0.1}"], []):
        run = load_run(recipe, ["data=my.jsonl", *named])
        assert load_run(recipe, shlex.split(reproduce_command(run))[3:]) == run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("step=3", r"'step' \(did you mean 'steps'\?\)"),
        ("learning_rate=1", "did you mean 'optimizer.learning_rate'"),
        ("max_tokens=9", "did you mean 'sampling.max_new_tokens'"),
        ("sampling.temprature=1", r"'sampling.temprature' \(did you mean 'temperature'\?\)"),
        ("optimizer=3", "write optimizer.learning_rate=VALUE"),
        ("rewards=3", "write rewards.NAME=VALUE"),
        ("steps.x=1", "steps is a single value"),
        ("steps", "write key=value"),
        ("=3", "write key=value"),
        ("data=", r"data= has no value; write data=VALUE, or data=null"),
        ("model= ", "model= has no value"),
        ("steps=many", "steps='many' is not allowed"),
        ("steps=-1", "greater than or equal to 0"),
        ("sampling.temperature=0", "greater than 0"),
        ("optimizer.learning_rate=.inf", "finite"),
        ("rewards.numeric=.nan", "finite"),
        ("rewards.numeric=1e999", "finite"),
        ("freeze=[ears]", "'vision', 'projector' or 'text'"),
        ("evaluation.split=train", "'validation' or 'test'"),
        ("evaluation.n=0", "evaluation.n=0 is not allowed: write a whole number"),
        ("intervention.band=[0.9, 0.5]", r"intervention: band=\[0.9, 0.5\] must be \[low, high\]"),
        (
            "intervention.guard=0.1",
            r"intervention: guard needs attack_steps of 2 .* the KL has no gradient\.$",
        ),
    ],
)
def test_refusals_are_one_line_that_names_the_place(recipe: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_run(recipe, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [", "not valid YAML"),
        ("steps: 2024-13-45", "not valid YAML"),
        ("- steps", "must hold `key: value` lines, not a list"),
        ("stepz: 3\nseeed: 4\n", r"1 more problem"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("steps: \x00", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_run(str(path))
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_run(str(path)) == Run(recipe=str(path))


def test_missing_recipes() -> None:
    with pytest.raises(UserError, match="There is no recipe 'nonesuch'"):
        load_run("nonesuch")
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_run("nowhere.yaml")


def test_built_in_recipes_are_valid() -> None:
    assert {"quickstart", "vlm_r1/rec"} <= set(recipe_names())
    assert all(name.count("/") <= 1 for name in recipe_names()), "folders of recipes are not nested"
    for name in recipe_names():
        assert load_run(name).recipe == name


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default as YAML, description) of a recipe's keys, sections last."""
    fields = model.model_fields.items()
    for name, field in sorted(fields, key=lambda item: hasattr(item[1].annotation, "model_fields")):
        if hasattr(field.annotation, "model_fields"):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            default = json.dumps(field.get_default(call_default_factory=True))
            yield (
                f"{prefix}{name}",
                default.replace("|", "\\|"),
                (field.description or "").replace("|", "\\|"),
            )


def test_the_page_of_keys_is_that_of_the_code() -> None:
    """FOVEA_WRITE_DOCS=1 writes it."""
    found = [key for key in keys(Run) if key[0] != "recipe"]
    # 130 until exploration came (issue 7): PAPO, noises and the adversarial picture have some thirty between them.
    assert len(found) <= 190, "a recipe should stay readable: fold or drop a key before adding one"
    assert not [key for key, _, about in found if not about], "every key says what it is"
    rows = [f"| `{key}` | `{default}` | {about} |" for key, default, about in found]
    text = "\n".join([HEAD, "| key | default | meaning |", "|---|---|---|", *rows, ""])
    page = Path(__file__).parent.parent / "docs" / "recipe.md"
    if os.environ.get("FOVEA_WRITE_DOCS") == "1":
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text, "run FOVEA_WRITE_DOCS=1 pytest tests/test_config.py"


HEAD = """# All keys of a recipe

A recipe is a YAML file of the few keys that differ from these defaults (see `src/fovea/recipes/quickstart.yaml`);
any key can be given on the command line (`fovea train quickstart steps=10 optimizer.learning_rate=1e-5`) and to
`fovea.train` (`steps=10`, `optimizer={"learning_rate": 1e-5}`). Where an algorithm's key is `null` the value is that
of the named algorithm ([algorithms](algorithms/README.md)). This page is written by a test from the code.
"""


def test_nearest() -> None:
    assert nearest("iuo", ["iou", "format"]) == " (did you mean 'iou'?)"
    assert nearest("zzz", ["iou"]) == ""


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["validation_data=held.jsonl"], "needs data=FILE"),
        (["data=my.jsonl", "task=digits/count"], "both given"),
    ],
)
def test_what_would_be_ignored_is_refused(overrides: list[str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        load_run("quickstart", overrides)


def test_a_recipe_that_names_a_file_keeps_its_rewards_for_another() -> None:
    run = load_run("vlm_r1/ovd", ["data=my.jsonl", "rewards.format=0.1"])
    assert run.rewards == {"od_length": 1.0, "format_strict": 1.0, "format": 0.1}


def test_options_leave_with_the_rewards_that_they_belong_to(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("rewards: {od_f1: 1}\nreward_options: {od_f1: {soft: true}}\n")
    assert load_run(str(file)).reward_options == {"od_f1": {"soft": True}}
    run = load_run(str(file), ["task=digits/count", "reward_options.numeric.absolute=1", "rewards.numeric=1"])
    assert run.reward_options == {"numeric": {"absolute": 1}}
    assert load_run(str(file), shlex.split(reproduce_command(run))[3:]) == run


@pytest.mark.parametrize(
    ("text", "near"),
    [("thnk", "think"), ("Think", "think"), ("plan", "plain"), ("think-json", "think_json")],
)
def test_a_misspelt_instruction_is_no_text(text: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{near}'\\? a text of one word is not an instruction"):
        load_run("quickstart", [f"instruction={text}"])


@pytest.mark.parametrize("text", ["think", "/no_think", "Think first.", "''", "Kurz!"])
def test_other_instructions_are_texts(text: str) -> None:
    assert load_run("quickstart", [f"instruction={text}"]).instruction == text.strip("'")


def test_the_names_of_instructions_are_those_that_have_a_text() -> None:
    from fovea.config import INSTRUCTIONS
    from fovea.training.problems import NAMED

    assert tuple(NAMED) == INSTRUCTIONS
