"""The command that says what a model does not see, and what to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fovea.cli.shared import Json, Overrides, print_json, print_text, run_of, still_libraries


def diagnose(
    model_or_run: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL_OR_RUN]", help="fovea-tiny, a model folder, a run folder or a hub name."
        ),
    ] = "fovea-tiny",
    overrides: Overrides = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Only this self-supervised task; repeat it for several.", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option(min=2, help="Problems a task and difficulty.")] = 64,
    samples: Annotated[int, typer.Option(min=2, help="Sampled replies a problem.")] = 4,
    difficulty: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=1, help="To measure at; repeat it. Default: 0.1, 0.5 and 0.9.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the proposal as a recipe (YAML).", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Measure what a model sees of pictures and propose what to train on: fovea diagnose MODEL images=FOLDER"""
    overrides = list(overrides or [])
    if "=" in model_or_run and not Path(model_or_run).exists():  # `fovea diagnose images=FOLDER`
        overrides.insert(0, model_or_run)
        model_or_run = "fovea-tiny"
    model = model_or_run
    if (Path(model) / "run.json").is_file():
        from fovea.runlog import newest_model

        model = str(newest_model(model))
    run = run_of("diagnose", {"model": model}, overrides)
    from fovea.diagnosis import DIFFICULTIES, check_out, check_settings, proposal_lines, write_recipe
    from fovea.diagnosis import diagnose as do

    check_settings(run, task or ())
    if out is not None:
        check_out(out)
    still_libraries(run)
    say = None if json else print_text
    found = do(run, task or (), n=n, samples=samples, difficulties=difficulty or DIFFICULTIES, say=say)
    if out is not None:
        write_recipe(out, run, found)
    if json:
        print_json({"model": model, "seed": run.seed, "split": "validation"} | found.record())
        return
    for line in proposal_lines(found):
        print_text(line)
    if out is not None:
        print_text(f"written {out}; train on it: fovea train {out} images=FOLDER")
