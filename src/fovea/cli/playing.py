"""The command in which a person is the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fovea.cli.shared import Json, ReaderLeft, print_columns, print_json, print_text

if TYPE_CHECKING:
    from PIL import Image


def play(
    environment: Annotated[
        str | None, typer.Argument(metavar="ENV", help="A game from --list.", show_default=False)
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of the game: side=64.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The run's seed.")] = 0,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    episode: Annotated[int, typer.Option(min=0, help="Which episode of that seed and split.")] = 0,
    replies: Annotated[
        Path | None, typer.Option(help="A file of replies, one a line, instead of yours.", show_default=False)
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the pictures; default: a new one for temporary files.", show_default=False
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the games and leave.")] = False,
    json: Json = False,
) -> None:
    """Play an episode yourself, as a model would: fovea play number_line side=64"""
    from fovea.types import UserError
    from fovea.viewer.playing import games, open_spoken
    from fovea.viewer.playing import play as do

    if listed:
        _list(games(), json)
        return
    if environment is None:
        raise UserError("Name a game: `fovea play --list` lists them.")
    if split not in ("train", "validation", "test"):
        raise UserError(f"--split {split!r} is not known; choose train, validation or test.")
    if json and replies is None:
        raise UserError("With --json nothing is shown to a person; add --replies FILE.")
    ask = _asking() if replies is None else _scripted(replies, echo=not json)
    spoken = open_spoken(environment, _read_options(options))
    try:
        say = _silent if json else print_text
        played = do(spoken, ask, say, _showing(pictures, json), seed=seed, split=split, number=episode)
    finally:
        spoken.close()
    if json:
        print_json(played)


def _list(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(rows)
        return
    cells = [("game", "random actions", "best policy", "at most")]
    for row in rows:
        shares = ["–" if row[key] is None else f"{100 * row[key]:.3g} %" for key in ("floor", "ceiling")]
        turns = "–" if row["max_turns"] is None else f"{row['max_turns']} turns"
        cells.append((row["name"], shares[0], shares[1], row["trouble"] or turns))
    print_columns(cells)


def _read_options(options: list[str] | None) -> dict[str, Any]:
    from fovea.config import apply_override

    values: dict[str, Any] = {}
    for option in options or []:
        apply_override(values, option)
    return values


def _scripted(path: Path, echo: bool) -> Callable[[], str | None]:
    from fovea.types import UserError
    from fovea.viewer.playing import replies

    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"--replies {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError(f"--replies {path} is not UTF-8 text; save it as that, one reply a line.") from None
    scripted = replies(lines)

    def ask() -> str | None:
        line = scripted()
        if line is not None and echo:
            print_text(f"> {line}")
        return line

    return ask


def _asking() -> Callable[[], str | None]:
    """Asks the person; an empty line is asked again, the end of the input is the end."""

    def ask() -> str | None:
        from fovea.types import UserError

        try:
            while not (line := input("> ").strip()):
                pass
        except EOFError:
            return None
        except UnicodeDecodeError:
            raise UserError("A reply was not text in this terminal's encoding; type it again.") from None
        except BrokenPipeError:
            raise ReaderLeft from None
        return line

    return ask


def _silent(text: str) -> None:
    """With --json nothing else stands on standard output."""


def _showing(folder: Path | None, json: bool) -> Callable[[int, tuple[Image.Image, ...]], None]:
    """Writes the pictures of a turn, and shows them in the terminal where it has colours."""
    import tempfile

    from rich.console import Console

    from fovea.types import UserError
    from fovea.viewer.playing import half_blocks

    console = Console(highlight=False)
    colours = console.is_terminal and console.color_system is not None and not console.no_color
    colours = colours and not (console.options.ascii_only or json)
    where: list[Path] = []

    def show(turn: int, images: tuple[Image.Image, ...]) -> None:
        if not where and (images or folder):
            where.append(folder or Path(tempfile.mkdtemp(prefix="fovea-play-")))
        for i, image in enumerate(images):
            path = where[0] / (f"turn_{turn:03d}_{i}.png" if i else f"turn_{turn:03d}.png")
            try:
                where[0].mkdir(parents=True, exist_ok=True)
                image.save(path, "PNG")
            except OSError as error:
                raise UserError(
                    f"{path} cannot be written ({error.strerror or error}); give another --pictures FOLDER."
                ) from None
            if colours:
                console.print(half_blocks(image, min(console.width, 64), max(8, console.height - 10)))
            if not json:
                print_text(f"picture {path}")

    return show
