"""Commands about problems: list, show, check, write, convert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea.cli.shared import Json, Overrides, print_columns, print_json, print_text, run_of

MOST_DRAWN = 512
"""Problems on one sheet: more make a picture that no viewer opens."""


def tasks_list(json: Json = False) -> None:
    """List the built-in tasks with what they ask and the accuracy of a guesser that does not look."""
    from fovea.tasks import SSL, TASKS
    from fovea.tasks.graph_ssl import GRAPH_TASKS
    from fovea.tasks.ssl import LEVEL

    found: list[dict[str, Any]] = [
        {"name": name, "kind": spec.kind, "chance": spec.chance, "about": spec.about}
        for name, spec in TASKS.items()
    ]
    found += [  # chance at the level that holds where nobody says another
        {"name": name, "kind": spec.kind, "chance": spec.chance(LEVEL), "about": spec.about}
        for name, spec in (*SSL.items(), *GRAPH_TASKS.items())
    ]
    if json:
        print_json(found)
        return
    print_columns([(one["name"], one["kind"], f"chance {one['chance']:.3g}", one["about"]) for one in found])


def tasks_show(
    name: Annotated[
        str | None, typer.Argument(help="A task's name, a domain, or a file or folder.", show_default=False)
    ] = None,
    overrides: Overrides = None,
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
    from fovea.cli.shared import may_be_data
    from fovea.tasks import SSL, TASKS, Task, open_data
    from fovea.tasks.graph_ssl import GRAPH_TASKS
    from fovea.types import UserError
    from fovea.viewer.sheet import draw_sheet, facts

    if name is not None and data is not None and "=" in name:
        overrides, name = [name, *(overrides or [])], None  # --data FILE problems.ask=rec
    if name is not None and data is None and may_be_data(name):
        name, data = None, name  # as `fovea tasks check FILE`
    if (name is None) == (data is None):
        raise UserError("Name one task (fovea tasks show digits/locate) or give --data FILE.jsonl.")
    if out is not None and n > MOST_DRAWN:
        raise UserError(f"A sheet shows at most {MOST_DRAWN} problems; lower --n or leave --out away.")
    tasks: list[Task]
    if data:
        tasks = [open_data(**_named(data, images, overrides), shuffle=False)]
    else:
        names = [known for known in (*TASKS, *SSL, *GRAPH_TASKS) if known.startswith(f"{name}/")] or [
            str(name)
        ]
        tasks = [_built_in(known, images, overrides, split, seed) for known in names]
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
    overrides: Overrides = None,
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
    solvers: Annotated[
        bool,
        typer.Option(help="With --json, self-supervised tasks: solvers that do not look (extra solvers)."),
    ] = True,
    json: Json = False,
) -> None:
    """Check a task or your own data: all bad samples in one pass. Exit code 2 if there are any."""
    from fovea.cli.shared import may_be_data
    from fovea.tasks import check_task
    from fovea.tasks.opening import has_difficulty, is_known

    own = not is_known(name) and may_be_data(name)
    how: dict[str, Any] = _named(name, images, overrides) if own else {"path": name, "images": images}
    task: Any = how.pop("path")
    if is_known(name):
        task, how = _built_in(name, images, overrides, split, seed), {}
    report = check_task(task, n, **how, split=split, seed=seed, verify=decode, megapixels=megapixels)
    if json and solvers and has_difficulty(name):
        from dataclasses import replace

        from fovea.tasks.solvers import check_solvers

        solved = check_solvers(lambda part: _built_in(name, images, overrides, part, seed), n)
        report = replace(report, solved=solved)
    if json:
        print_json(report.record())
    else:
        for finding in report.bad:
            print_text(str(finding))
        for note in report.notes:
            print_text(f"{note}")
        lost = len({finding.line for finding in report.bad if finding.line is not None})
        declared = "" if report.declared is None else f", declared {report.declared:.3g}"
        print_text(
            f"{report.n} samples, {lost} bad; the best constant reply is right {report.chance:.3g}{declared}"
        )
    if report.bad:
        raise typer.Exit(2)


def tasks_write(
    name: Annotated[
        str,
        typer.Argument(help="A task's name, in a style if wanted: digits/read@think.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The new folder.", show_default=False)],
    overrides: Overrides = None,
    n: Annotated[int, typer.Option(min=1, help="How many problems.")] = 1000,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Which problems.")] = 0,
    schema: Annotated[str, typer.Option(help="plain or vlm_r1.")] = "plain",
    images: Annotated[
        str | None, typer.Option(help="Pictures of a self-supervised task.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Write a task's problems as files: pictures and one JSONL, which data=FILE reads back."""
    from fovea.tasks.written import write_task

    written = write_task(_built_in(name, images, overrides, split, seed), n, out, schema)
    if json:
        print_json({"file": str(written.file), "problems": written.problems, "pictures": written.pictures})
        return
    print_text(f"written {written.problems} problems with {written.pictures} pictures to {written.file}")


def convert(
    file: Annotated[
        str,
        typer.Argument(help="A file or folder of problems, hub:OWNER/NAME, or [a,b].", show_default=False),
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The new JSONL file.")] = Path("problems.jsonl"),
    images: Annotated[
        str | None, typer.Option(help="Folder that picture names start from.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Write the problems of any file as plain JSONL: fovea convert instances.json --images val2017 problems.ask=rec"""
    from fovea.tasks import open_data
    from fovea.tasks.convert import check_new, write_plain

    check_new(out)  # before a large file is read
    summary = write_plain(open_data(**_named(file, images, overrides), shuffle=False), out)
    if json:
        print_json(summary)
        return
    for note in summary["notes"]:
        print_text(note)
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items())
    print_text(f"written {summary['problems']} problems ({kinds}) to {summary['out']}")


_OF_TASKS = ("images", "pictures", "difficulty", "task_options", "graph", "download", "max_megapixels")
"""Keys of a recipe that a built-in task may have use for."""


def _built_in(name: str, images: str | None, overrides: list[str] | None, split: str, seed: int) -> Any:
    """A built-in task as `key=value` changes want it: its pictures, difficulty and options. Raises UserError."""
    from fovea.tasks.opening import open_named

    _refuse_unused(overrides, _OF_TASKS)
    values = {"task": name} | ({} if images is None else {"images": images})
    return open_named(run_of("tasks", values, overrides), split, seed)


_USED = ("problems", "images", "compat", "download")
"""Keys of a recipe that commands about problems read; their other settings are options."""


def _refuse_unused(overrides: list[str] | None, used: Sequence[str] = _USED) -> None:
    """Raise UserError for a key of a recipe that would do nothing here."""
    from fovea.types import UserError

    for override in overrides or []:
        key = override.partition("=")[0]
        if key.partition(".")[0] not in used:
            which = (
                f"of a recipe it reads {', '.join(used)}" if used else "a built-in task has no such settings"
            )
            raise UserError(f"{key} would do nothing in this command; leave it away ({which}).")


def _named(file: str, images: str | None, overrides: list[str] | None) -> dict[str, Any]:
    """What `open_data` needs of a file and `key=value` changes (problems.…, images, compat, download)."""
    from fovea.tasks.sources import named_files

    run = run_of("problems", {"data": file, "images": images}, overrides)
    _refuse_unused(overrides)
    files, folders = named_files(run.data or file, run.images, run.compat)
    return {
        "path": files if len(files) > 1 else files[0],
        "images": folders,
        "problems": run.problems,
        "download": run.download,
    }
