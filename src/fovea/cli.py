"""The command `fovea`. `COMMANDS` is the list; every command only reads its arguments and calls the package.

Exit codes: 0 done, 1 failed, 2 bad input (one line on standard error), 130 interrupted, 141 nobody reads.
With `--json` standard output holds JSON and nothing else. Heavy imports (torch) happen inside the commands,
so that help is instant.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fovea.config import Run

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing while it runs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the recipe, e.g. steps=10.", show_default=False
    ),
]
Recipe = Annotated[
    str, typer.Argument(help="A name from `fovea recipes` or the path of a .yaml file.", show_default=False)
]


def train(recipe: Recipe, overrides: Overrides = None, json: Json = False, quiet: Quiet = False) -> None:
    """Train a model by a recipe: fovea train quickstart steps=20 seed=1"""
    from fovea.config import load_run

    _train(load_run(recipe, overrides), json, quiet)


def sft(recipe: Recipe, overrides: Overrides = None, json: Json = False, quiet: Quiet = False) -> None:
    """Train on the tasks' own replies instead of rewards (supervised fine-tuning)."""
    from fovea.config import load_run

    _train(load_run(recipe, ["method=sft", *(overrides or [])]), json, quiet)


def _train(run: Run, json: bool, quiet: bool) -> None:
    from rich.console import Console

    from fovea.runlog import run_folder
    from fovea.viewer.display import LiveDisplay
    from fovea.viewer.report import write_report

    console = Console(stderr=json, highlight=False)
    with LiveDisplay(console=console, quiet=quiet) as display:
        display.open(run.model_dump(mode="json") | {"folder": str(run_folder(run))})
        from fovea.training import train as do  # torch loads behind the first frame

        _still_libraries(run)
        try:
            result = do(run, observers=(display,))
        except BaseException:
            if display.history:  # an interrupted run has a page, too
                write_report(run_folder(run))
            raise
    page = write_report(run_folder(run))
    if json:
        _print_json(result)
    elif not quiet:
        _print(f"report {page}")


def _still_libraries(run: Run) -> None:
    """No progress bars of transformers between our lines, except for a download, which is worth one."""
    from transformers.utils.logging import disable_progress_bar

    if not run.download:
        disable_progress_bar()


def evaluate(
    model_or_run: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL_OR_RUN]", help="fovea-tiny, a model folder, a run folder or a hub name."
        ),
    ] = "fovea-tiny",
    overrides: Overrides = None,
    task: Annotated[
        str | None, typer.Option(help="A name from `fovea tasks list`.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="validation or test.", show_default=False)] = None,
    n: Annotated[int | None, typer.Option(help="How many problems.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Which problems.", show_default=False)] = None,
    samples: Annotated[
        int | None, typer.Option(help="Sampled replies a problem for pass@k.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A JSONL file instead of a task.", show_default=False)
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of the pictures in --data.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Measure a model on held-out problems: accuracy, and whether it looks at the picture."""
    overrides = list(overrides or [])
    if "=" in model_or_run and not Path(model_or_run).exists():  # `fovea evaluate n=64` leaves the model out
        overrides.insert(0, model_or_run)
        model_or_run = "fovea-tiny"
    named = {"task": task, "evaluation.split": split, "evaluation.n": n, "seed": seed,
             "evaluation.samples": samples, "data": data, "images": images}  # fmt: skip
    run = _run_to_evaluate(model_or_run, overrides, {k: v for k, v in named.items() if v is not None})
    record = _evaluate(run)
    if json:
        _print_json(record)
        return
    from fovea.viewer.display import interval
    from fovea.viewer.report import measures_of

    measured = f"{record.get('task')} ({record.get('split')}), n = {record.get('n')}"
    _print(f"{run.model} on {measured}, greedy, 95 % intervals")
    for label, meaning, value in measures_of(record):
        _print(f"{label:<10}{interval(value):<26}{meaning}")


def _evaluate(run: Run) -> dict[str, Any]:
    _still_libraries(run)
    from fovea.evaluation import evaluate as measure
    from fovea.training.setup import at_most, open_for_evaluation

    policy, engine, task, instruction = open_for_evaluation(run)
    section, sampling = run.evaluation, run.sampling
    record = measure(
        policy,
        engine,
        task,
        at_most(section.n, task),
        seed=run.seed,
        max_new_tokens=sampling.max_new_tokens,
        instruction=instruction,
        samples=section.samples,
        temperature=sampling.temperature,
    )
    return {"model": run.model, "split": section.split if run.data is None else "all lines"} | record


def _run_to_evaluate(model_or_run: str, overrides: list[str], named: dict[str, Any]) -> Run:
    """The run whose held-out problems are measured: a run folder's own recipe, or the defaults, changed."""
    from pydantic import ValidationError

    from fovea.config import Run, apply_override, explain
    from fovea.runlog import newest_model, read_run, to_json
    from fovea.types import UserError

    values: dict[str, Any] = {"recipe": "evaluate", "model": model_or_run}
    trained_on = None
    if (Path(model_or_run) / "run.json").is_file():
        values = read_run(model_or_run)["run"]["run"] | {"model": str(newest_model(model_or_run))}
        # Never measure on the lines that were trained on: only a separate file is known to be held out.
        trained_on, values["data"] = values["data"], values["validation_data"]
    # JSON is YAML, so a path with a colon stays one text.
    changes = [*overrides, *(f"{key}={to_json(value)}" for key, value in named.items())]
    for change in changes:
        apply_override(values, change)
    if trained_on and values["data"] is None and not any(change.startswith("task=") for change in changes):
        raise UserError(
            f"{model_or_run} was trained on {trained_on}; name held-out problems with --data or --task."
        )
    try:
        return Run.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, "evaluate")) from None


def score(
    reward: Annotated[
        str, typer.Argument(help="A reward's name, or weights: iou=1,format=0.1", show_default=False)
    ],
    answer: Annotated[str, typer.Option(help="The truth, as JSON.", show_default=False)],
    completion: Annotated[str, typer.Option(help="The reply to score.", show_default=False)],
    kind: Annotated[
        str | None,
        typer.Option(help="box, number, text or choice; default: by the answer.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Score one reply: fovea score iou --answer '[1,2,30,40]' --completion '<answer>[1,2,30,44]</answer>'"""
    from fovea.rewards import score_json

    result = score_json(reward, answer, completion, kind)  # type: ignore[arg-type]
    if json:
        _print_json(result)
        return
    _print(f"reward {result['reward']:.6g}")
    for name, value in result["parts"].items():
        _print(f"  {name} {value:.6g}")


def recipes(json: Json = False) -> None:
    """List the recipes and studies that are shipped with the package."""
    found = _list_recipes()
    if json:
        _print_json(found)
        return
    for item in found:
        command = "study" if item["kind"] == "study" else "sft" if item["kind"] == "sft" else "train"
        _print(f"{'fovea ' + command + ' ' + item['name']:<36}{item['about']}")


def study(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A study from `fovea recipes`.", show_default=False)],
) -> None:
    """Run a study: several runs and a table. Further arguments go to the study."""
    from fovea.config import RECIPES, nearest
    from fovea.types import UserError

    studies = sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "__init__")
    if name not in studies:
        raise UserError(
            f"There is no study {name!r}{nearest(name, studies)}; known: {', '.join(studies) or 'none'}."
        )
    importlib.import_module(f"fovea.recipes.{name}").main(list(context.args))


def _list_recipes() -> list[dict[str, Any]]:
    """Name, kind (rl, sft, study), what it is about (its first comment or docstring line), task and model."""
    from fovea.config import RECIPES, load_run, recipe_names

    found: list[dict[str, Any]] = []
    for name in recipe_names():
        run = load_run(name)
        first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
        about = first.lstrip("# ").strip() if first.startswith("#") else ""
        found.append({"name": name, "kind": run.method, "about": about, "task": run.task, "model": run.model})
    for path in sorted(RECIPES.glob("*.py")):
        if path.stem != "__init__":
            lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n", 1)
            found.append({"name": path.stem, "kind": "study", "about": lines[0], "task": None, "model": None})
    return found


def tasks_list(json: Json = False) -> None:
    """List the built-in tasks with what they ask and the accuracy of a guesser that does not look."""
    from fovea.tasks import TASKS

    found = [
        {"name": name, "kind": spec.kind, "chance": spec.chance, "about": spec.about}
        for name, spec in TASKS.items()
    ]
    if json:
        _print_json(found)
        return
    for item in found:
        _print(f"{item['name']:<18}{item['kind']:<9}chance {item['chance']:<8.3g}{item['about']}")


def tasks_show(
    name: Annotated[str | None, typer.Argument(help="A task's name.", show_default=False)] = None,
    n: Annotated[int, typer.Option(min=1, help="How many problems.")] = 6,
    out: Annotated[
        Path | None, typer.Option(help="Draw them into this PNG, true boxes included.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Which problems.")] = 0,
    data: Annotated[
        str | None, typer.Option(help="A JSONL file instead of a task.", show_default=False)
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of the pictures in --data.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show problems of a task, or of your own data, as training will see them."""
    from fovea.tasks import open_data, open_task
    from fovea.types import UserError
    from fovea.viewer.sheet import draw_sheet, facts

    if (name is None) == (data is None):
        raise UserError("Name one task (fovea tasks show digits/locate) or give --data FILE.jsonl.")
    task = open_data(data, images, shuffle=False) if data else open_task(str(name), split=split, seed=seed)
    problems = task.take(0, n)[0]
    if out is not None:
        draw_sheet(problems, out)
    if json:
        _print_json([facts(problem) for problem in problems])
        return
    for problem in problems:
        shown = facts(problem)
        _print(f"{shown['id']}\n  asked  {shown['question']}\n  truth  {shown['answer']}")
    if out is not None:
        _print(f"drawn {out}")


def doctor(json: Json = False) -> None:
    """Check this machine: Python, torch, devices, threads, memory, disk, the embedded model."""
    from fovea.doctor import doctor as examine

    found = examine()
    if json:
        _print_json(found)
    else:
        for check in found["checks"]:
            _print(f"{check['status']:<5}{check['name']:<14}{check['detail']}")
            if check["fix"] and check["status"] != "ok":
                _print(f"{'':<19}→ {check['fix']}")
    if not found["ok"]:
        raise typer.Exit(1)


def bench(
    phase: Annotated[
        list[str] | None, typer.Option(help="rollout, update or step; may be repeated.", show_default=False)
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peak memory of long replies instead.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure the shared prefix against the plain repeated way on this machine."""
    from fovea import bench as benches

    rows = benches.bench_memory() if memory else benches.bench(phase) if phase else benches.bench()
    if json:
        _print_json(rows)
        return
    for row in rows if isinstance(rows, list) else [rows]:
        _print(
            "  ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
            )
        )


def zoo_build(
    name: Annotated[str, typer.Argument(help="tiny", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the finished model.")] = Path("fovea-tiny"),
    work: Annotated[Path, typer.Option(help="Folder of what a stopped build continues from.")] = Path(
        "work/fovea-tiny"
    ),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the batches.")] = 1,
    json: Json = False,
) -> None:
    """Make an embedded model again from nothing, by its seeded script. May be stopped and resumed."""
    from fovea.types import UserError

    if name != "tiny":
        raise UserError(f"There is no embedded model {name!r}; known: tiny.")
    from fovea.zoo import build_tiny

    record = build_tiny(out, work, seed, processes=processes)
    if json:
        _print_json(record)
    else:
        _print(f"built {out}")


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, finished or not.", show_default=False)
    ],
) -> None:
    """Write report.html into a run folder."""
    from fovea.viewer.report import write_report

    _print(str(write_report(run)))


COMMANDS: dict[str, Callable[..., None] | dict[str, Callable[..., None]]] = {
    "train": train,
    "sft": sft,
    "evaluate": evaluate,
    "score": score,
    "recipes": recipes,
    "tasks": {"list": tasks_list, "show": tasks_show},
    "study": study,
    "report": report,
    "view": report,
    "bench": bench,
    "doctor": doctor,
    "zoo": {"build": zoo_build},
}
GROUPS = {"tasks": "List and show the tasks.", "zoo": "Make the embedded models."}
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of a failure.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Teach vision-language models to look: reinforcement learning from rewards that can be checked."""
    if version:
        from fovea import __version__

        _print(f"fovea {__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        _print(context.get_help())
        raise typer.Exit(0)


def build_app() -> typer.Typer:
    """The typer application of `COMMANDS`."""
    options: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}
    app = typer.Typer(**options)
    app.callback(invoke_without_command=True)(_root)
    for name, command in COMMANDS.items():
        if isinstance(command, dict):
            group = typer.Typer(help=GROUPS[name], **options)
            for part, function in command.items():
                group.command(part)(function)
            app.add_typer(group, name=name)
        else:
            context = PASS_ON if name == "study" else None
            app.command(name, context_settings=context, hidden=name == "view")(command)
    return app


class ReaderLeft(Exception):
    """Nobody reads standard output any more: `fovea tasks list | head -1`."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # Waiting OpenMP threads that spin make a busy machine 5 to 30 times slower. Set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = sys.argv[1:] if argv is None else argv
    try:
        code = build_app()(args=arguments, prog_name="fovea", standalone_mode=False)
    except ReaderLeft:
        # Python flushes standard output once more at exit and must not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if "--debug" in arguments[:1]:
            raise
        return _failure(error)
    if code == 130:  # typer turns Ctrl-C into this code
        return _complain("Interrupted.", 130)
    return code if isinstance(code, int) else 0


def _failure(error: Exception) -> int:
    """One line on standard error and the exit code."""
    from fovea.types import RunFailed, UserError

    if isinstance(error, UserError):
        return _complain(str(error), 2)
    if hasattr(
        error, "format_message"
    ):  # every usage error of typer: unknown option, missing argument, bad value
        return _complain(f"{error.format_message().rstrip('.')}; see `fovea --help`.", 2)
    if isinstance(error, RunFailed):
        return _complain(f"{error} (fovea --debug … shows the trace.)", 1)
    return _complain(f"Unexpected {type(error).__name__}: {error} (fovea --debug … shows the trace.)", 1)


def _complain(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"fovea: {' '.join(message.split())}", file=sys.stderr)
    return code


def _print(text: str) -> None:
    """Text that may hold anything (names of files, questions) on any terminal encoding."""
    from fovea.viewer import visible

    encoding = sys.stdout.encoding or "utf-8"
    _write(visible(text, 100_000).encode(encoding, "replace").decode(encoding))


def _print_json(value: Any) -> None:
    from fovea.runlog import to_json

    _write(to_json(value, indent=2))


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise ReaderLeft from None
