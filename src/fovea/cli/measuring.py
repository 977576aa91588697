"""Commands that measure: a model on held-out problems, one reply by a reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fovea.cli.shared import Json, Overrides, print_json, print_text, still_libraries

if TYPE_CHECKING:
    from fovea.config import Run


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
        print_json(record)
        return
    from fovea.viewer.display import interval
    from fovea.viewer.report import measures_of

    measured = f"{record.get('task')} ({record.get('split')}), n = {record.get('n')}"
    print_text(f"{run.model} on {measured}, greedy, 95 % intervals")
    for label, meaning, value in measures_of(record):
        print_text(f"{label:<10}{interval(value):<26}{meaning}")


def _evaluate(run: Run) -> dict[str, Any]:
    still_libraries(run)
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
        print_json(result)
        return
    print_text(f"reward {result['reward']:.6g}")
    for name, value in result["parts"].items():
        print_text(f"  {name} {value:.6g}")
