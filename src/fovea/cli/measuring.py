"""Commands that measure: a model on held-out problems, one reply by a reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fovea.cli.shared import Json, Overrides, print_json, print_text, still_libraries

if TYPE_CHECKING:
    from fovea.config import Run
    from fovea.outcomes import Outcome


def evaluate(
    model_or_run: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL_OR_RUN]",
            help="fovea-tiny, a model folder, a run folder, a hub name, or a file of --out.",
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
    temperature: Annotated[
        float | None, typer.Option(help="Of the sampled replies.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A JSONL file instead of a task.", show_default=False)
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of the pictures in --data.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Another model, run or file of outcomes: same problems, paired.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write what came of each problem (JSONL).", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Measure a model on held-out problems: accuracy, and whether it looks at the picture."""
    from fovea.api import as_overrides
    from fovea.types import UserError

    if task is not None and data is not None:
        raise UserError("--task and --data both name problems; leave one away.")
    overrides = list(overrides or [])
    if "=" in model_or_run and not Path(model_or_run).exists():  # `fovea evaluate n=64` leaves the model out
        overrides.insert(0, model_or_run)
        model_or_run = "fovea-tiny"
    named = {"task": task, "evaluation.split": split, "evaluation.n": n, "seed": seed,
             "evaluation.samples": samples, "sampling.temperature": temperature,
             "data": data, "images": images}  # fmt: skip
    changes = [*overrides, *as_overrides({k: v for k, v in named.items() if v is not None})]
    record = _measure(model_or_run, changes, against, out)
    if json:
        print_json(record)
        return
    from fovea.viewer.display import comparison_lines
    from fovea.viewer.report import measure_lines

    if record.get("task") is not None:
        print_text(
            f"{record['model']} on {record['task']} ({record['split']}), n = {record['n']}, greedy, 95 % intervals"
        )
    else:
        print_text(f"{record['model']}, n = {record['n']}, 95 % intervals")
    for line in [*measure_lines(record), *comparison_lines(record.get("comparison"))]:
        print_text(line)


def _measure(model_or_run: str, changes: list[str], against: str | None, out: Path | None) -> dict[str, Any]:
    """The record of one model, with `comparison` if there is another one; outcomes are written to `out`."""
    from fovea.api import run_to_evaluate
    from fovea.models.policy import find_model
    from fovea.outcomes import check_outcomes_file, compare, read_outcomes, summarize, write_outcomes
    from fovea.types import UserError

    run = other = None
    if out is not None:
        check_outcomes_file(out)
    others = read_outcomes(against) if against is not None and _is_outcomes(against) else None
    if _is_outcomes(model_or_run):  # measured before: nothing to load
        if changes:
            raise UserError(
                f"{model_or_run} was measured already, so {changes[0].split('=')[0]} cannot be set any more; "
                "measure its model again."
            )
        if against is not None and others is None:
            raise UserError(
                f"A file of outcomes can only be compared with another file of outcomes, and {against} is none; "
                f"write one with `fovea evaluate {against} --out FILE`."
            )
        outcomes = read_outcomes(model_or_run)
        record = {"model": model_or_run, "task": None, "split": None} | summarize(outcomes, 0)
    else:
        run = run_to_evaluate(model_or_run, changes)
        if against is not None and others is None:
            other = _same_problems(run, against, changes)
            find_model(other.model, other.download)  # not after the first model's hour
        record, outcomes = _evaluate(run)
    if out is not None:
        write_outcomes(out, outcomes)
    if against is None:
        return record
    if others is None:
        assert other is not None
        others = _evaluate(other)[1]
    return record | {"comparison": {"against": against} | compare(outcomes, others, run.seed if run else 0)}


def _is_outcomes(name: str) -> bool:
    return name.endswith(".jsonl")


def _evaluate(run: Run) -> tuple[dict[str, Any], list[Outcome]]:
    still_libraries(run)
    from fovea.api import measure

    return measure(run)


def _same_problems(run: Run, against: str, changes: list[str]) -> Run:
    """The other model on the problems of `run`; a run is asked in its own way, a model in the way of `run`."""
    from fovea.api import as_overrides, run_to_evaluate

    section = run.evaluation
    problems: dict[str, Any] = {"task": run.task, "data": run.data, "images": run.images, "seed": run.seed,
                "evaluation.split": section.split, "evaluation.n": section.n,
                "evaluation.samples": section.samples}  # fmt: skip
    if not (Path(against) / "run.json").is_file():
        problems |= {"instruction": run.instruction, "device": run.device, "dtype": run.dtype,
                     "download": run.download, "threads": run.threads,
                     "sampling.max_new_tokens": run.sampling.max_new_tokens,
                     "sampling.temperature": run.sampling.temperature}  # fmt: skip
    return run_to_evaluate(against, [*changes, *as_overrides(problems)])


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
        print_json(result)
        return
    print_text(f"reward {result['reward']:.6g}")
    for name, value in result["parts"].items():
        print_text(f"  {name} {value:.6g}")
