"""The command that chooses problems by a model's pass rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fovea.cli.shared import Json, Overrides, may_be_data, print_json, print_text, run_of, still_libraries

if TYPE_CHECKING:
    from fovea.config import Run

ENDLESS = 512
"""Problems that are judged of a built-in task, which has no end, unless --n says otherwise."""


def filter_data(
    data_or_task: Annotated[
        str, typer.Argument(metavar="DATA_OR_TASK", help="A data file or a task's name.", show_default=False)
    ],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="fovea-tiny, a model folder or a hub name.")] = "fovea-tiny",
    out: Annotated[Path, typer.Option(help="Kept problems; dropped.jsonl goes beside it.")] = Path(
        "kept.jsonl"
    ),
    samples: Annotated[int, typer.Option(min=1, help="Sampled replies a problem.")] = 8,
    low: Annotated[float, typer.Option(help="Keep pass rates above this.")] = 0.0,
    high: Annotated[float, typer.Option(help="Keep pass rates below this.")] = 1.0,
    n: Annotated[int | None, typer.Option(min=1, help="Only the first problems.", show_default=False)] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of the pictures in the data.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the replies, and of a task's problems.")] = 0,
    json: Json = False,
) -> None:
    """Keep the problems that a model sometimes solves: fovea filter my.jsonl --out kept.jsonl"""
    from fovea.filtering import check_bounds, check_out

    run, source = _run_to_filter(data_or_task, model, images, seed, overrides or [])
    check_bounds(samples, low, high)
    check_out(out, source)
    summary = _filter(run, source, n, out, samples, low, high)
    if json:
        print_json(summary)
        return
    _print(summary)
    if not summary["kept"]:
        print_text(
            "nothing is left to train on: raise --samples, widen --low and --high, or try another model"
        )
        return
    beside = "" if source is None or images else _images_hint(source, out)
    plain = " 'instruction=\"\"'" if run.data is None else ""
    print_text(f"train on them: fovea train RECIPE data={out}{beside}{plain}")


def _filter(
    run: Run, source: Path | None, n: int | None, out: Path, samples: int, low: float, high: float
) -> dict[str, Any]:
    still_libraries(run)
    from fovea.filtering import filter_problems
    from fovea.training.problems import at_most, open_for_filter
    from fovea.types import Sampling

    policy, engine, task, instruction = open_for_filter(run)
    count = at_most(n or (task.size or ENDLESS), task)
    return filter_problems(
        policy,
        engine,
        task,
        count,
        out,
        source=source,
        settings=_settings(run),
        samples=samples,
        low=low,
        high=high,
        seed=run.seed,
        sampling=Sampling(temperature=run.sampling.temperature, max_new_tokens=run.sampling.max_new_tokens),
        instruction=instruction,
    )


def _run_to_filter(
    data_or_task: str, model: str, images: str | None, seed: int, overrides: list[str]
) -> tuple[Run, Path | None]:
    """The run that says which model and problems, and the JSONL file whose own lines are kept (None: none is)."""
    from fovea.config import nearest
    from fovea.tasks import TASKS
    from fovea.tasks.sources import is_lines
    from fovea.types import UserError

    values: dict[str, Any] = {"model": model, "images": images, "seed": seed}
    is_task = data_or_task in TASKS
    if not is_task and not may_be_data(data_or_task):
        raise UserError(
            f"{data_or_task!r} is neither a data file nor a task{nearest(data_or_task, list(TASKS))}; "
            "`fovea tasks list` names the tasks."
        )
    values["task" if is_task else "data"] = data_or_task
    run = run_of("filter", values, overrides)
    return run, Path(data_or_task) if not is_task and is_lines(data_or_task) else None


def _settings(run: Run) -> dict[str, Any]:
    """What the pass rates depend on: the recipe, and the state of the data and of a model folder."""

    def state(path: Path) -> list[Any]:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]

    named = [run.data] if isinstance(run.data, str) else run.data or []
    data = [found for name in named for found in state(Path(name))]
    return {"run": run.model_dump(mode="json"), "data": data, "model": state(Path(run.model))}


def _print(summary: dict[str, Any]) -> None:
    most = max((bin["problems"] for bin in summary["histogram"]), default=0) or 1
    print_text(f"pass rate of {summary['n']} problems, {summary['samples']} replies each")
    for bin in summary["histogram"]:
        bar = "█" * round(40 * bin["problems"] / most)
        print_text(f"  {bin['pass_rate']:<7.3g}{bin['problems']:>6}  {bar}")
    print_text(f"kept {summary['kept']} in {summary['out']}")
    for reason, count in summary["dropped"].items():
        print_text(f"dropped {count}: {reason}")
    if summary["dropped"]:
        print_text(f"all dropped ones are in {summary['dropped_file']}")


def _images_hint(source: Path, out: Path) -> str:
    """Picture names are relative to the data file: a kept file in another folder needs to be told."""
    same = source.resolve().parent == out.resolve().parent
    return "" if same else f" images={source.resolve().parent}"
