"""The command that turns a run into a model folder: export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fovea.cli.shared import Json, print_json, print_text

if TYPE_CHECKING:
    from fovea.export import Exported


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT", help="A run folder, or one of its checkpoints.", show_default=False
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    adapter: Annotated[
        bool, typer.Option("--adapter/--merge", help="Of a LoRA run: the adapter alone, or merged.")
    ] = False,
    step: Annotated[
        int | None, typer.Option(help="Of this step; default: the newest.", show_default=False)
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The best one by the evaluations on the way.")] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Where the model it was trained from is now, if it moved.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Write a run's model as a plain Hugging Face folder: fovea export runs/quickstart-seed0 my-model"""
    from transformers.utils.logging import disable_progress_bar

    from fovea.export import export as do

    disable_progress_bar()
    done = do(run, out, adapter=adapter, step=step, best=best, base=base)
    if json:
        print_json(done.record())
        return
    print_text(exported_line(done))
    if done.carried:
        print_text(f"as the base had them: {', '.join(done.carried)}")


def exported_line(done: Exported) -> str:
    """What was written where."""
    what = {"full": "the model", "merged": "the model, its adapter merged,", "adapter": "the adapter"}
    size = f"({len(done.files)} files, {done.bytes / 1e6:.1f} MB)"
    return f"{what[done.form]} after {done.step} steps: {done.folder} {size}"
