"""The command `fovea`. `COMMANDS` is the list; every command only reads its arguments and calls the package.

Exit codes: 0 done, 1 failed, 2 bad input (one line on standard error), 130 interrupted, 141 nobody reads.
With `--json` standard output holds JSON and nothing else. Heavy imports (torch) happen inside the commands,
so that help is instant.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fovea.cli.diagnosing import diagnose
from fovea.cli.exporting import export
from fovea.cli.filtering import filter_data
from fovea.cli.machine import bench, doctor, zoo_build, zoo_card
from fovea.cli.measuring import evaluate, score
from fovea.cli.playing import play
from fovea.cli.problems import convert, tasks_check, tasks_list, tasks_show, tasks_write
from fovea.cli.runs import recipes, report, sft, study, train
from fovea.cli.shared import ReaderLeft, print_text
from fovea.cli.viewing import view

COMMANDS: dict[str, Callable[..., None] | dict[str, Callable[..., None]]] = {
    "train": train,
    "sft": sft,
    "evaluate": evaluate,
    "score": score,
    "filter": filter_data,
    "diagnose": diagnose,
    "convert": convert,
    "recipes": recipes,
    "tasks": {"list": tasks_list, "show": tasks_show, "check": tasks_check, "write": tasks_write},
    "study": study,
    "export": export,
    "report": report,
    "view": view,
    "play": play,
    "bench": bench,
    "doctor": doctor,
    "zoo": {"build": zoo_build, "card": zoo_card},
}
GROUPS = {
    "tasks": "List, show, check and write the tasks; check your own data.",
    "zoo": "Make the embedded models, and measure what they can.",
}
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Of a command that hands its arguments on, --help among them."""


def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of a failure.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Teach vision-language models to look: reinforcement learning from rewards that can be checked."""
    if version:
        from fovea import __version__

        print_text(f"fovea {__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        print_text(context.get_help())
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
            app.command(name, context_settings=context)(command)
    return app


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
    if isinstance(error, RunFailed) and hasattr(error, "signal"):  # asked to stop, and saved
        return _complain(str(error), 128 + error.signal)
    if isinstance(error, RunFailed):
        return _complain(f"{error} (fovea --debug … shows the trace.)", 1)
    return _complain(f"Unexpected {type(error).__name__}: {error} (fovea --debug … shows the trace.)", 1)


def _complain(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"fovea: {' '.join(message.split())}", file=sys.stderr)
    return code
