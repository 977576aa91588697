"""The command that shows a run: its pages in the browser, or report.html."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fovea.cli.shared import print_text


def view(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, finished or not.", show_default=False)
    ],
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html into the run folder instead.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Allow a --host that other machines can reach.")
    ] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Look at a run in the browser, also while it trains: curves, warnings, and every shown completion."""
    if report:
        from fovea.viewer.report import write_report

        print_text(str(write_report(run)))
        return
    from fovea.viewer.server import serve

    def announce(url: str) -> None:
        print_text(url)
        print_text("Ctrl-C ends it.")

    try:
        serve(
            run,
            host=host,
            port=port,
            allow_remote=allow_remote,
            browser=not no_browser and _has_screen(),
            announce=announce,
        )
    except KeyboardInterrupt:  # how it is ended: nothing was interrupted
        return


def _has_screen() -> bool:
    """Whether a browser could open a window: not over ssh, where it would be a text browser in this terminal."""
    if sys.platform in ("win32", "darwin"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
