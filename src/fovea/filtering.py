"""Which problems are worth training on: those that the model sometimes solves. Behind `fovea filter`.

A group whose replies are all right, or all wrong, has equal rewards and teaches nothing (GRPO's advantages are
zero). So each problem gets k sampled replies; it is kept when low < pass rate < high. Nothing is dropped in
silence: `dropped.jsonl` names every one with its pass rate and the reason.

Kept lines of a JSONL file are its own lines, byte for byte. Problems of built-in tasks, tables and folders are
written as lines of the plain schema, their pictures as PNG beside them: `fovea train RECIPE data=kept.jsonl`.
Rates are noted in OUT.progress as they are measured; the same command goes on from there when it was stopped.

Not here: which model and which task (`fovea.cli.filtering`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fovea.boxes import unmarked
from fovea.engines import Engine
from fovea.models import Policy, Prompt
from fovea.rewards import correct
from fovea.rollouts import BadSample, gather
from fovea.runlog import to_json, write_atomically
from fovea.tasks.convert import OWN
from fovea.types import Problem, Sampling, Task, UserError

PROBLEMS_AT_ONCE = 32
PATCH_VALUES_AT_ONCE = 64_000_000
"""Prompts are alive together while both bounds hold (the second: 256 MB of pixels as float32)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of one problem.

    Example: Verdict(position=3, id="my:4", samples=8, passes=2)
    """

    position: int
    """The cursor with which the task gives it."""
    id: str
    samples: int
    passes: int = 0
    error: str | None = None
    """Why it could not be asked at all; `passes` then says nothing."""

    @property
    def pass_rate(self) -> float | None:
        """Share of right replies, 0 to 1; None when it could not be asked."""
        return None if self.error is not None else self.passes / self.samples

    def reason(self, low: float, high: float) -> str | None:
        """Why it is dropped; None: it is kept."""
        rate = self.pass_rate
        if rate is None:
            return "bad sample"
        if rate <= low:
            return "never solved" if rate == 0 else f"pass rate not above {low:g}"
        if rate >= high:
            return "always solved" if rate == 1 else f"pass rate not below {high:g}"
        return None


def judge(
    policy: Policy,
    engine: Engine,
    task: Task,
    positions: range,
    *,
    samples: int,
    sampling: Sampling,
    seed: int,
    instruction: str | None = None,
) -> Iterator[Verdict]:
    """A verdict for each position of the task, in order, a few problems in memory at a time.

    The replies are those of `engine.generate(…, seed=(seed, 0))`: they depend on the problem's id, not on what
    is asked beside it (but for float rounding).
    """
    waiting: list[tuple[int, Prompt]] = []
    bad: list[BadSample] = []

    def settle() -> Iterator[Verdict]:
        replies = engine.generate([prompt for _, prompt in waiting], samples, sampling, seed=(seed, 0))
        verdicts = [
            Verdict(
                position=position,
                id=prompt.problem.id,
                samples=samples,
                passes=sum(correct(completion.text, prompt.problem) for completion in group),
            )
            for (position, prompt), group in zip(waiting, replies, strict=True)
        ]
        verdicts += [Verdict(position=b.position, id=b.id, samples=samples, error=b.error) for b in bad]
        waiting.clear()
        bad.clear()
        yield from sorted(verdicts, key=lambda verdict: verdict.position)

    for position in positions:
        found = gather(task, position, 1, policy, instruction)
        waiting.extend((position, prompt) for prompt in found.prompts)
        bad.extend(found.bad)
        values = sum(p.media["pixel_values"].numel() for _, p in waiting if p.media)
        if len(waiting) + len(bad) >= PROBLEMS_AT_ONCE or values >= PATCH_VALUES_AT_ONCE:
            yield from settle()
    yield from settle()


def filter_problems(
    policy: Policy,
    engine: Engine,
    task: Task,
    n: int,
    out: Path,
    *,
    source: Path | None,
    settings: Mapping[str, Any],
    samples: int = 8,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    sampling: Sampling | None = None,
    instruction: str | None = None,
) -> dict[str, Any]:
    """Judge the first `n` problems and write OUT and dropped.jsonl beside it. Returns the summary, JSON-ready.

    `source`: the JSONL file whose own lines are kept; None: problems are written as new lines with PNGs.
    `settings`: what the rates depend on, besides the arguments here (model, data); a progress file of other
    settings is begun anew. Raises UserError for bounds that keep nothing and files that are there or in the way.
    """
    sampling = sampling or Sampling()
    check_bounds(samples, low, high)
    dropped_file = check_out(out, source)
    settings = dict(settings) | {"samples": samples, "seed": seed, "instruction": instruction}
    settings |= {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
    progress = out.with_name(out.name + ".progress")
    verdicts = _read_progress(progress, settings)[:n]
    rest = range(len(verdicts), n)
    with _open_progress(progress, settings, verdicts) as file:
        for verdict in judge(
            policy, engine, task, rest, samples=samples, sampling=sampling, seed=seed, instruction=instruction
        ):
            verdicts.append(verdict)
            file.write((to_json(asdict(verdict)) + "\n").encode("utf-8"))
            file.flush()
    reasons = [verdict.reason(low, high) for verdict in verdicts]
    kept = [verdict for verdict, reason in zip(verdicts, reasons) if reason is None]
    lines = _own_lines(source, task, kept) if source is not None else _new_lines(task, kept, out)
    _write(out, lines)
    _write(dropped_file, (_dropped_line(task, v, r) for v, r in zip(verdicts, reasons) if r is not None))
    progress.unlink()
    return _summary(verdicts, reasons, samples) | {"out": str(out), "dropped_file": str(dropped_file)}


def check_bounds(samples: int, low: float, high: float) -> None:
    """Raises UserError when no pass rate of so many samples lies strictly between the bounds."""
    if not any(low < passes / samples < high for passes in range(samples + 1)):
        raise UserError(
            f"No pass rate of {samples} samples lies above {low:g} and below {high:g}; "
            "widen the bounds or raise --samples."
        )


def check_out(out: Path, source: Path | None) -> Path:
    """Where the dropped ones go. Raises UserError when a file would be overwritten or cannot be written."""
    dropped = out.with_name("dropped.jsonl")
    if out.name == dropped.name:
        raise UserError(f"{out} is where the dropped problems go; choose another name with --out.")
    for path in (out, dropped):
        if path.exists():
            raise UserError(f"{path} exists already; choose another folder with --out, or delete it.")
    if source is not None and out.with_name(out.name + ".progress").resolve() == source.resolve():
        raise UserError(f"{source} would be overwritten; choose another name with --out.")
    try:
        write_atomically(out.with_name(f".{out.name}.probe"), bytes(4096))
        out.with_name(f".{out.name}.probe").unlink()
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); choose another place with --out."
        ) from None
    return dropped


# --- the progress file ------------------------------------------------------------------------------------


def _read_progress(path: Path, settings: Mapping[str, Any]) -> list[Verdict]:
    """Verdicts of a stopped run with the same settings, as far as they are whole and in order."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was being written
    verdicts: list[Verdict] = []
    try:
        if not lines or json.loads(lines[0]) != json.loads(to_json(settings)):
            return []
        for line in lines[1:]:
            verdict = Verdict(**json.loads(line))
            if verdict.position != len(verdicts):
                break
            verdicts.append(verdict)
    except (ValueError, TypeError):  # not written by this module
        pass
    return verdicts


def _open_progress(path: Path, settings: Mapping[str, Any], verdicts: Iterable[Verdict]) -> Any:
    head = [to_json(settings), *(to_json(asdict(verdict)) for verdict in verdicts)]
    write_atomically(path, ("\n".join(head) + "\n").encode("utf-8"))
    return path.open("ab")


# --- what is written --------------------------------------------------------------------------------------


def _write(path: Path, lines: Iterable[bytes]) -> None:
    """Whole or not there, a line at a time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _own_lines(source: Path, task: Task, kept: Iterable[Verdict]) -> Iterator[bytes]:
    """The kept lines of the file as they are. Kept ones are in the file's order: it is read once."""
    wanted = {int(task.take(verdict.position, 1)[0][0].meta["line"]) for verdict in kept}
    with source.open("rb") as file:
        yield from (line for number, line in enumerate(file, 1) if number in wanted)


def _new_lines(task: Task, kept: Iterable[Verdict], out: Path) -> Iterator[bytes]:
    """Problems as lines of the plain schema, their pictures written into the folder OUT_pictures."""
    folder = out.with_name(f"{out.stem}_pictures")
    for verdict in kept:
        (problem,), _ = task.take(verdict.position, 1)
        names = []
        for i, image in enumerate(problem.images):
            folder.mkdir(exist_ok=True)
            name = f"{verdict.position:06d}-{i}.png"
            image.save(folder / name)
            names.append(f"{folder.name}/{name}")
        yield (to_json(record_of(problem, names)) + "\n").encode("utf-8")


def record_of(problem: Problem, images: list[str]) -> dict[str, Any]:
    """A problem (frame "pixels") as a line of the plain schema that `open_data` reads back."""
    record: dict[str, Any] = {"id": problem.id, "images": images, "question": problem.question}
    record |= {"answer": problem.answer, "kind": problem.kind, "difficulty": problem.difficulty}
    if problem.target is not None:
        record["target"] = unmarked(problem.target)
    if "box_image" in problem.meta:
        record["box_image"] = problem.meta["box_image"]
    kept = {key: value for key, value in problem.meta.items() if key not in (*OWN, "box_image")}
    return record | ({"meta": kept} if kept else {})


def _dropped_line(task: Task, verdict: Verdict, reason: str) -> bytes:
    record: dict[str, Any] = {"id": verdict.id, "pass_rate": verdict.pass_rate, "reason": reason}
    if verdict.error is not None:
        record["problem"] = verdict.error
    else:
        (problem,), _ = task.take(verdict.position, 1)
        if "source" in problem.meta:
            record["source"] = problem.meta["source"]
    return (to_json(record) + "\n").encode("utf-8")


def _summary(verdicts: list[Verdict], reasons: list[str | None], samples: int) -> dict[str, Any]:
    asked = [verdict for verdict in verdicts if verdict.error is None]
    counts = Counter(verdict.passes for verdict in asked)
    return {
        "n": len(verdicts),
        "kept": reasons.count(None),
        "dropped": dict(sorted(Counter(reason for reason in reasons if reason is not None).items())),
        "samples": samples,
        "pass_rate_mean": sum(v.passes for v in asked) / (samples * len(asked)) if asked else None,
        "histogram": [
            {"pass_rate": passes / samples, "problems": counts[passes]} for passes in range(samples + 1)
        ],
    }
