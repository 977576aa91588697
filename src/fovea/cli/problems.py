"""Commands about problems: list, show, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fovea.cli.shared import Json, print_json, print_text

MOST_DRAWN = 512
"""Problems on one sheet: more make a picture that no viewer opens."""


def tasks_list(json: Json = False) -> None:
    """List the built-in tasks with what they ask and the accuracy of a guesser that does not look."""
    from fovea.tasks import TASKS

    found = [
        {"name": name, "kind": spec.kind, "chance": spec.chance, "about": spec.about}
        for name, spec in TASKS.items()
    ]
    if json:
        print_json(found)
        return
    for item in found:
        print_text(f"{item['name']:<18}{item['kind']:<9}chance {item['chance']:<8.3g}{item['about']}")


def tasks_show(
    name: Annotated[
        str | None, typer.Argument(help="A task's name, a domain, or a file or folder.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="How many problems.")] = 6,
    out: Annotated[
        Path | None, typer.Option(help="Draw them into this PNG, true boxes included.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Which problems.")] = 0,
    data: Annotated[
        str | None, typer.Option(help="A file or folder of your own instead of a task.", show_default=False)
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of the pictures in --data.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show problems of a task, of all tasks of a domain (cards), or of your own data, as training will see them."""
    from fovea.tasks import TASKS, Task, open_data, open_task
    from fovea.types import UserError
    from fovea.viewer.sheet import draw_sheet, facts

    if name is not None and data is None and Path(name).exists():
        name, data = None, name  # as `fovea tasks check FILE`
    if (name is None) == (data is None):
        raise UserError("Name one task (fovea tasks show digits/locate) or give --data FILE.jsonl.")
    if out is not None and n > MOST_DRAWN:
        raise UserError(f"A sheet shows at most {MOST_DRAWN} problems; lower --n or leave --out away.")
    tasks: list[Task]
    if data:
        tasks = [open_data(data, images, shuffle=False)]
    else:
        names = [known for known in TASKS if known.startswith(f"{name}/")] or [str(name)]
        tasks = [open_task(known, split=split, seed=seed) for known in names]
    problems = [p for task in tasks for p in task.take(0, n if task.size is None else min(n, task.size))[0]]
    if out is not None:
        draw_sheet(problems, out)
    if json:
        print_json([facts(problem) for problem in problems])
        return
    for problem in problems:
        shown = facts(problem)
        print_text(f"{shown['id']}\n  asked  {shown['question']}\n  truth  {shown['answer']}")
    if out is not None:
        print_text(f"drawn {out}")


def tasks_check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="TASK_OR_DATA", help="A task's name, or a file or folder.", show_default=False
        ),
    ],
    images: Annotated[
        str | None, typer.Option(help="Folder that picture names start from.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="How many problems of a task; files are read whole.")] = 200,
    split: Annotated[str, typer.Option(help="train, validation or test (tasks).")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Which problems (tasks).")] = 0,
    decode: Annotated[
        bool, typer.Option(help="Decode every picture once; --no-decode reads headers only.")
    ] = True,
    megapixels: Annotated[float, typer.Option(min=0.001, help="Larger pictures are refused.")] = 100,
    json: Json = False,
) -> None:
    """Check a task or your own data: all bad samples in one pass. Exit code 2 if there are any."""
    from fovea.tasks import check_task

    report = check_task(name, n, images=images, split=split, seed=seed, verify=decode, megapixels=megapixels)
    if json:
        print_json(report.record())
    else:
        for finding in report.bad:
            print_text(str(finding))
        lost = len({finding.line for finding in report.bad if finding.line is not None})
        declared = "" if report.declared is None else f", declared {report.declared:.3g}"
        print_text(
            f"{report.n} samples, {lost} bad; the best constant reply is right {report.chance:.3g}{declared}"
        )
    if report.bad:
        raise typer.Exit(2)
