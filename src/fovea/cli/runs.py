"""Commands that train, and that list and show what can be or was trained."""

from __future__ import annotations

import ast
import importlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fovea.cli.shared import (
    Json,
    Overrides,
    Quiet,
    Recipe,
    print_columns,
    print_json,
    print_text,
    still_libraries,
)

if TYPE_CHECKING:
    from fovea.config import Run


Resume = Annotated[
    str | None,
    typer.Option(
        "--resume", metavar="RUN_DIR", help="Go on with an unfinished run from its newest checkpoint."
    ),
]
Export = Annotated[
    str | None,
    typer.Option(
        "--export", metavar="FOLDER", help="At the end write the model there as a plain Hugging Face folder."
    ),
]
MaybeRecipe = Annotated[
    str | None,
    typer.Argument(help="A name from `fovea recipes` or the path of a .yaml file.", show_default=False),
]


def train(
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    resume: Resume = None,
    export: Export = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe: fovea train quickstart steps=20 seed=1"""
    from fovea.config import load_run
    from fovea.types import UserError

    if resume is not None:
        given = [*([recipe] if recipe else []), *(overrides or [])]
        _train(_unfinished(resume, given), json, quiet, export, resume=True)
    elif recipe is None:
        raise UserError("Name a recipe (`fovea recipes` lists them), or a run with --resume RUN_DIR.")
    else:
        _train(load_run(recipe, overrides), json, quiet, export)


def sft(
    recipe: Recipe,
    overrides: Overrides = None,
    export: Export = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on the tasks' own replies instead of rewards (supervised fine-tuning)."""
    from fovea.config import load_run

    _train(load_run(recipe, ["method=sft", *(overrides or [])]), json, quiet, export)


def _unfinished(folder: str, given: list[str]) -> Run:
    from pathlib import Path

    from fovea.config import RECIPES
    from fovea.training.resume import read_unfinished
    from fovea.types import UserError

    first = given[0] if given else ""
    if first and "=" not in first:
        is_recipe = (RECIPES / f"{first}.yaml").is_file() or Path(first).suffix in (".yaml", ".yml")
        why = "the run has its recipe" if is_recipe else f"{first!r} is not KEY=VALUE"
        raise UserError(f"With --resume no recipe is named ({why}): fovea train --resume {folder}")
    return read_unfinished(folder, given)


def _train(run: Run, json: bool, quiet: bool, export: str | None, resume: bool = False) -> None:
    from rich.console import Console

    from fovea.runlog import run_folder
    from fovea.viewer.display import LiveDisplay
    from fovea.viewer.report import write_report

    if export is not None:
        from fovea.export import check_target

        check_target(export)  # not after the run's hours
    console = Console(stderr=json, highlight=False)
    with LiveDisplay(console=console, quiet=quiet) as display:
        display.open(run.model_dump(mode="json") | {"folder": str(run_folder(run))})
        from fovea.training import train as do  # torch loads behind the first frame

        still_libraries(run)
        try:
            result = do(run, observers=(display,), resume=resume)
        except BaseException:
            if display.history:  # an interrupted run has a page, too
                write_report(run_folder(run))
            raise
    page = write_report(run_folder(run))
    exported = None
    if export is not None:
        from fovea.export import export as write_model

        exported = write_model(run_folder(run), export)
    if json:
        print_json(result | ({} if exported is None else {"exported": exported.record()}))
    elif not quiet:
        print_text(f"report {page}\nlook closer: fovea view {run_folder(run)}")
        if exported is not None:
            from fovea.cli.exporting import exported_line

            print_text(exported_line(exported))


def recipes(json: Json = False) -> None:
    """List the recipes and studies that are shipped with the package."""
    found = _list_recipes()
    if json:
        print_json(found)
        return
    commands = {"study": "study", "sft": "sft"}
    print_columns(
        [(f"fovea {commands.get(item['kind'], 'train')} {item['name']}", item["about"]) for item in found]
    )


def study(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A study from `fovea recipes`.", show_default=False)],
) -> None:
    """Run a study: several runs and a table. Further arguments go to the study, and --help after its name, too."""
    from fovea.config import nearest, study_names
    from fovea.types import UserError

    if name == "--help":
        print_text(context.get_help())
        return
    studies = study_names()
    if name not in studies:
        raise UserError(
            f"There is no study {name!r}{nearest(name, studies)}; known: {', '.join(studies) or 'none'}."
        )
    importlib.import_module(f"fovea.recipes.{name.replace('/', '.')}").main(list(context.args))


def _list_recipes() -> list[dict[str, Any]]:
    """Name, kind (rl, sft, study), what it is about (its first comment or docstring line), task and model."""
    from fovea.config import RECIPES, load_run, recipe_names, study_names

    found: list[dict[str, Any]] = []
    for name in recipe_names():
        run = load_run(name)
        first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
        about = first.lstrip("# ").strip() if first.startswith("#") else ""
        task = run.task if run.data is None else None
        found.append({"name": name, "kind": run.method, "about": about, "task": task, "model": run.model})
    for name in study_names():
        text = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n", 1)[0]
        found.append({"name": name, "kind": "study", "about": first, "task": None, "model": None})
    return found


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, finished or not.", show_default=False)
    ],
) -> None:
    """Write report.html into a run folder."""
    from fovea.viewer.report import write_report

    print_text(str(write_report(run)))
