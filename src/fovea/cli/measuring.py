"""Commands that measure: a model on held-out problems, one reply by a reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fovea.cli.shared import Json, Overrides, as_listed, print_json, print_text, still_libraries

if TYPE_CHECKING:
    from fovea.config import Run
    from fovea.outcomes import Outcome
    from fovea.types import Task


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
        list[str] | None,
        typer.Option(help="A name from `fovea tasks list`; repeat it for several.", show_default=False),
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Of a run: its start and every kept checkpoint.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="validation or test.", show_default=False)] = None,
    n: Annotated[str | None, typer.Option(help="How many problems, or all.", show_default=False)] = None,
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
    named = {"evaluation.split": split, "evaluation.n": _number(n), "seed": seed,
             "evaluation.samples": samples, "sampling.temperature": temperature,
             "data": as_listed(data), "images": as_listed(images)}  # fmt: skip
    changes = [*overrides, *as_overrides({k: v for k, v in named.items() if v is not None})]
    if checkpoints:
        if against is not None or out is not None:
            raise UserError(
                "--checkpoints takes neither --against nor --out; evaluate two checkpoints for that."
            )
        _checkpoints(model_or_run, task, changes, json)
    elif task is not None and len(task) > 1:
        if against is not None:
            raise UserError("--against compares on one --task; give one, or leave --against away.")
        _several(model_or_run, task, changes, out, json)
    else:
        changes += as_overrides({} if task is None else {"task": task[0]})
        record = _measure(model_or_run, changes, against, out)
        print_json(record) if json else _show(record)


def _number(n: str | None) -> int | str | None:
    """--n as the recipe's evaluation.n, which says what is wrong with it."""
    return int(n) if n is not None and n.removeprefix("-").isdecimal() else n


def _checkpoints(run: str, tasks: list[str] | None, changes: list[str], json: bool) -> None:
    """`fovea evaluate RUN --checkpoints`: what is measured is told on standard error as it happens."""
    import sys

    from fovea.checkpoint_curve import curve_lines, measure_checkpoints
    from fovea.config import Run

    still_libraries(Run())

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    record = measure_checkpoints(run, tasks, changes, say=say)
    if json:
        print_json(record)
        return
    for line in curve_lines(record):
        print_text(line)


def _several(model: str, tasks: list[str], changes: list[str], out: Path | None, json: bool) -> None:
    """One model on several tasks: {"model", "records": [a record a task]}; outcomes of all in one file."""
    from fovea.api import as_overrides, measure, run_to_evaluate
    from fovea.outcomes import check_outcomes_file, write_outcomes
    from fovea.training.problems import open_model, open_to_measure

    if out is not None:
        check_outcomes_file(out)
    runs = [run_to_evaluate(model, [*changes, *as_overrides({"task": task})]) for task in tasks]
    opened = [
        open_to_measure(run) for run in runs
    ]  # a name that does not exist is told before the first minute
    still_libraries(runs[0])
    loaded = open_model(runs[0])
    records, outcomes = [], []
    for run, task in zip(runs, opened):
        record, found = measure(run, task, model=loaded, split=run.evaluation.split)
        records.append(record)
        outcomes += found
        if not json:
            _show(record)
    if out is not None:
        write_outcomes(out, outcomes)
    if json:
        print_json({"model": runs[0].model, "records": records})


def _show(record: dict[str, Any]) -> None:
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
    from fovea.api import to_evaluate
    from fovea.models.policy import find_model
    from fovea.outcomes import check_outcomes_file, compare, read_outcomes, summarize, write_outcomes
    from fovea.types import UserError

    run = other = held_out = split = None
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
        run, held_out, split = to_evaluate(model_or_run, changes)
        if against is not None and others is None:
            other = _same_problems(run, against, changes)
            find_model(other.model, other.download)  # not after the first model's hour
        record, outcomes = _evaluate(run, held_out, split)
    if out is not None:
        write_outcomes(out, outcomes)
    if against is None:
        return record
    if others is None:
        assert other is not None
        others = _evaluate(other, held_out, split)[1]
    return record | {"comparison": {"against": against} | compare(outcomes, others, run.seed if run else 0)}


def _is_outcomes(name: str) -> bool:
    return name.endswith(".jsonl")


def _evaluate(run: Run, held_out: Task | None, split: str | None) -> tuple[dict[str, Any], list[Outcome]]:
    still_libraries(run)
    from fovea.api import measure

    return measure(run, held_out, split=split)


def _same_problems(run: Run, against: str, changes: list[str]) -> Run:
    """The other model on the problems of `run`; a run is asked in its own way, a model in the way of `run`."""
    from fovea.api import as_overrides, run_to_evaluate

    section = run.evaluation
    problems: dict[str, Any] = {"task": run.task, "data": run.data, "images": run.images, "seed": run.seed,
                "mixture": run.mixture, "task_options": run.task_options, "graph": run.graph,
                "validation_images": run.validation_images, "pictures": run.pictures.model_dump(mode="json"),
                "difficulty": run.difficulty.model_dump(mode="json"),
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
        str | None, typer.Argument(help="A reward's name, or weights: iou=1,format=0.1", show_default=False)
    ] = None,
    answer: Annotated[str | None, typer.Option(help="The truth, as JSON.", show_default=False)] = None,
    completion: Annotated[str | None, typer.Option(help="The reply to score.", show_default=False)] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="box, number, text, choice, objects or math; default: by the answer.", show_default=False
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE, an option of the reward (or REWARD.KEY=VALUE); repeat it.", show_default=False
        ),
    ] = None,
    compat: Annotated[str | None, typer.Option(help="vlm_r1: as VLM-R1 has it.", show_default=False)] = None,
    tokens: Annotated[
        int | None, typer.Option(min=0, help="Length of the reply in tokens.", show_default=False)
    ] = None,
    meta: Annotated[
        str | None, typer.Option(help='The problem\'s meta, as JSON: {"tolerance": 0.5}', show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--list", help="List all rewards with their options.")] = False,
    json: Json = False,
) -> None:
    """Score one reply: fovea score iou --answer '[1,2,30,40]' --completion '<answer>[1,2,30,44]</answer>'"""
    from fovea.rewards import list_rewards, score_json
    from fovea.types import UserError

    if every:
        _list_rewards(list_rewards(), json)
        return
    if reward is None or answer is None or completion is None:
        raise UserError(
            "fovea score needs a reward, --answer and --completion, for example fovea score numeric --answer 3 "
            "--completion '<answer>3</answer>'; fovea score --list lists the rewards."
        )
    result = score_json(
        reward,
        answer,
        completion,
        kind,  # type: ignore[arg-type]
        options=option or (),
        compat=compat,
        tokens=tokens,
        meta_json=meta,
    )
    if json:
        print_json(result)
        return
    print_text(f"reward {result['reward']:.6g}")
    for name, value in result["parts"].items():
        print_text(f"  {name} {value:.6g}")


def _list_rewards(rewards: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(rewards)
        return
    for item in rewards:
        print_text(f"{item['name']:<14}{item['about']}")
        for name, default in item["options"].items():
            print_text(f"{'':<14}  {name}={default}")
