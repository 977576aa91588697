"""Commands about this machine and the embedded models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea.cli.shared import Json, print_json, print_text


def doctor(json: Json = False) -> None:
    """Check this machine: Python, torch, devices, threads, memory, disk, the embedded model."""
    from fovea.doctor import doctor as examine

    found = examine()
    if json:
        print_json(found)
    else:
        for check in found["checks"]:
            print_text(f"{check['status']:<5}{check['name']:<14}{check['detail']}")
            if check["fix"] and check["status"] != "ok":
                print_text(f"{'':<19}→ {check['fix']}")
    if not found["ok"]:
        raise typer.Exit(1)


def bench(
    phase: Annotated[
        list[str] | None, typer.Option(help="rollout, update or step; may be repeated.", show_default=False)
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peak memory of long replies instead.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(help="trl: whole steps beside TRL's GRPOTrainer.", show_default=False),
    ] = None,
    curves: Annotated[
        bool, typer.Option("--curves", help="With --against: over G = 2 to 32 and R = 16 to 512.")
    ] = False,
    image_tokens: Annotated[
        str | None, typer.Option(help="Picture sizes, e.g. 64,256,1024.", show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Counted repeats of each side.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=1, help="With --against: no case begins after so many CPU seconds.")
    ] = 3600,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --against: a JSON file of records; one that exists is continued.", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --against: draw the records as SVG.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Measure the shared prefix against the plain repeated way, or whole steps against TRL, on this machine."""
    from fovea import bench as benches
    from fovea.types import UserError

    def told(row: dict[str, Any]) -> None:
        if not json:
            print_text(_one_line(row))

    sizes = _whole_numbers("--image-tokens", image_tokens)
    rows: list[dict[str, Any]]
    if against is not None:
        if against != "trl":
            raise UserError(f"There is nothing called {against!r} to measure against; known: trl.")
        if phase and phase != ["step"]:
            raise UserError(f"Against TRL whole steps are measured, not {phase[0]!r}; leave --phase away.")
        rows = _against_trl(sizes, curves, memory, repeats, seconds, out, told)
    elif curves or out is not None or plot is not None:
        raise UserError("--curves, --out and --plot belong to --against trl; add it.")
    elif memory:
        rows = [benches.bench_memory()]
        told(rows[0])
    else:
        rows = benches.bench(
            phase or ("rollout", "update"), image_tokens=sizes or (64, 256, 1024), repeats=repeats
        )
        for row in rows:
            told(row)
    if plot is not None:
        plot.write_text(benches.curves_svg(rows), encoding="utf-8")
    if json:
        print_json(rows)


def _against_trl(
    sizes: list[int] | None,
    curves: bool,
    memory: bool,
    repeats: int,
    seconds: float,
    out: Path | None,
    told: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    from fovea import bench as benches

    if curves:
        if sizes is not None and len(sizes) > 1:
            from fovea.types import UserError

            raise UserError(f"The curves are drawn at one picture size, not at {len(sizes)}; give one.")
        work = benches.Work(image_tokens=sizes[0]) if sizes else None
        return benches.bench_curves(work=work, repeats=repeats, seconds=seconds, out=out, told=told)
    return benches.bench_against_trl(
        image_tokens=sizes or benches.IMAGE_TOKENS,
        repeats=repeats,
        seconds=seconds,
        memory=memory,
        out=out,
        told=told,
    )


def _whole_numbers(option: str, text: str | None) -> list[int] | None:
    """The numbers of "64,256"; None for no text."""
    from fovea.types import UserError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(
            f"{option} {text!r} is not a list of whole numbers above 0; write for example 64,256."
        )
    return [int(part) for part in parts]


def _one_line(row: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
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
        print_json(record)
    else:
        print_text(f"built {out}")


def zoo_card(
    model: Annotated[str, typer.Argument(help="fovea-tiny, a model folder or a run folder.")] = "fovea-tiny",
    out: Annotated[Path, typer.Option(help="The page; CARD.json is written beside it.")] = Path("CARD.md"),
    n: Annotated[int, typer.Option(min=1, help="Problems a skill.")] = 512,
    samples: Annotated[int, typer.Option(min=1, help="Sampled replies a problem for pass@k.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.01, max=10, help="Of the sampled replies.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Which problems.")] = 0,
    tasks: Annotated[
        str | None, typer.Option(help="Only these, e.g. digits/count,shapes/count.", show_default=False)
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Skills measured at the same time.")] = 1,
    json: Json = False,
) -> None:
    """Measure every skill of a model and write its card. May be stopped and started again."""
    from transformers.utils.logging import disable_progress_bar

    from fovea.card import CardSettings, make_card
    from fovea.types import UserError
    from fovea.viewer.display import interval

    def told(row: dict[str, Any]) -> None:
        mark = (
            "passed"
            if row["passed"]
            else "without pictures"
            if row["text_only"]
            else f"not passed: {row['why']}"
        )
        print_text(f"{row['name']:<24}{interval(row['accuracy']):<24}{row['seconds']:>6.1f} s  {mark}")

    disable_progress_bar()
    settings = CardSettings(
        n=n, samples=samples, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
    )
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if tasks is not None and not names:
        raise UserError("--tasks names no task; leave it away to measure all of them.")
    card = make_card(model, out, settings, names, processes, (lambda row: None) if json else told)
    if json:
        print_json(card)
    else:
        print_text(f"{card['passed']} of {card['measured']} skills pass; written {out}")
