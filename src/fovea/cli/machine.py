"""Commands about this machine and the embedded models."""

from __future__ import annotations

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
    json: Json = False,
) -> None:
    """Measure the shared prefix against the plain repeated way on this machine."""
    from fovea import bench as benches

    rows = benches.bench_memory() if memory else benches.bench(phase) if phase else benches.bench()
    if json:
        print_json(rows)
        return
    for row in rows if isinstance(rows, list) else [rows]:
        print_text(
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
