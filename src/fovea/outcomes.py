"""What came of each held-out problem, as plain records: summed up, compared in pairs, written and read again.

Two files of outcomes can be compared without a model and without torch. Not here: asking the model
(`fovea.evaluation`), the intervals themselves (`fovea.statistics`).

Try it: `fovea evaluate fovea-tiny --out a.jsonl`, then `fovea evaluate b.jsonl --against a.jsonl`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fovea.detection_metrics import seen, summarize_boxes, summarize_detection
from fovea.rewards.answers import box_from
from fovea.runlog import to_json, write_atomically
from fovea.statistics import average, difference, mcnemar, mean_pass_at_k, pass_at_k, proportion
from fovea.types import UserError

SWAPPED_IS = (
    "all pictures of a problem are replaced by those of one donor, which has as many pictures of the same sizes; "
    "a problem without such a donor takes no part"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Swapped:
    """The reply to the question under a donor's pictures."""

    donor: str
    """Id of the problem that lent its pictures."""
    same_question: bool
    """Whether the donor was asked the same question."""
    reply: str
    correct: bool
    """By the problem's own truth."""
    follow: bool | None
    """By the donor's truth; None if the donor was asked something else."""
    predicted: Any = None
    """As in `Outcome`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One problem of an evaluation.

    Example: Outcome(id="digits/count:test:0:0", question="How many digits?", truth=3, pictures=1,
    reply="<answer>3</answer>", correct=True, truncated=False, rewards={"numeric": 1.0, "format": 1.0})
    """

    id: str
    question: str
    truth: Any
    """As the task gave it (boxes in pixels)."""
    pictures: int
    """How many; 0 for a text-only problem."""
    reply: str
    """The greedy one."""
    correct: bool
    truncated: bool
    """Whether the greedy reply was cut at its length limit."""
    rewards: dict[str, float]
    """Reward name -> reward of the greedy reply."""
    swapped: Swapped | None = None
    """None where nothing could be swapped, or was not asked for."""
    blank: bool | None = None
    """Whether the reply to grey pictures is right."""
    samples: tuple[bool, ...] = field(default=())
    """Whether each sampled reply is right."""
    kind: str | None = None
    """The problem's kind of answer; None in files written before it was noted."""
    predicted: Any = None
    """What the greedy reply says, in the frame of `truth`: a box [x1, y1, x2, y2] of kind "box", a list of
    {"bbox_2d": box or null, "label": text} of kind "objects"; None where it cannot be read, and of other kinds."""
    blank_predicted: Any = None
    """The same of the reply to grey pictures."""
    absent: tuple[str, ...] | None = None
    """Labels that a problem of kind "objects" asks for and that are not there; None where it is not known."""


def summarize(outcomes: Sequence[Outcome], seed: int, *, look: bool = True) -> dict[str, Any]:
    """Means with 95 % intervals, JSON-ready; each is {"mean", "ci95", …} and null where it is undefined.

    Keys: n, accuracy, truncated, rewards (by name, over the problems that have it, with their number `n` where they
    are not all: in a mixed file each is scored by its own); with `look`: swapped, looking, follow, blank, each with the
    `n` it is measured on, and `swap`, what was swapped; with samples: samples, pass_at_k (k a power of two or
    the number of samples). Outcomes are shares with Wilson intervals; rewards and pass@k means with bootstrap
    intervals over problems, seeded by `seed`. Problems of kind "box" add boxes (`summarize_boxes`), those of kind
    "objects" detection (`summarize_detection`).
    """
    record: dict[str, Any] = {
        "n": len(outcomes),
        "accuracy": proportion([o.correct for o in outcomes]),
        "truncated": proportion([o.truncated for o in outcomes]),
        "rewards": _rewards(outcomes, seed),
    }
    if look:
        record |= _looking(outcomes, seed)
    samples = min((len(o.samples) for o in outcomes), default=0)
    if samples:
        hits = [o.samples for o in outcomes]
        record["samples"] = samples
        record["pass_at_k"] = {str(k): mean_pass_at_k(hits, k, seed) for k in _ks(samples)}
    return record | _of_boxes(outcomes, seed, look)


def _rewards(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """Name → mean over the outcomes that have this reward, in the order in which names first occur."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in outcome.rewards.items():
            values.setdefault(name, []).append(value)
    return {
        name: average(found, seed) | ({"n": len(found)} if len(found) < len(outcomes) else {})
        for name, found in values.items()
    }


def _of_boxes(outcomes: Sequence[Outcome], seed: int, look: bool) -> dict[str, Any]:
    """The figures of boxes, over the problems that are answered with boxes."""
    record: dict[str, Any] = {}
    boxes = [o for o in outcomes if o.kind == "box"]
    if boxes:
        record["boxes"] = summarize_boxes(
            [o.truth for o in boxes],
            [o.predicted for o in boxes],
            [None if o.swapped is None else (o.swapped.predicted,) for o in boxes] if look else None,
            [None if o.blank is None else (o.blank_predicted,) for o in boxes] if look else None,
            seed=seed,
        )
    things = [o for o in outcomes if o.kind == "objects"]
    if things:
        swapped = [
            None if o.swapped is None else seen(o.truth, o.swapped.predicted, o.absent) for o in things
        ]
        blank = [None if o.blank is None else seen(o.truth, o.blank_predicted, o.absent) for o in things]
        record["detection"] = summarize_detection(
            [seen(o.truth, o.predicted, o.absent) for o in things],
            swapped if look else None,
            blank if look else None,
            seed=seed,
        )
    return record


def _looking(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    pairs = [(o.correct, o.swapped.correct) for o in outcomes if o.swapped is not None]
    seen, swapped = [own for own, _ in pairs], [other for _, other in pairs]
    follow = [o.swapped.follow for o in outcomes if o.swapped is not None and o.swapped.follow is not None]
    blank = [o.blank for o in outcomes if o.blank is not None]
    return {
        "swapped": proportion(swapped) | {"n": len(pairs)},
        "looking": difference(seen, swapped, seed) | {"n": len(pairs)},
        "follow": proportion(follow) | {"n": len(follow)},
        "blank": proportion(blank) | {"n": len(blank)},
        "swap": SWAPPED_IS if pairs else None,
    }


def _ks(samples: int) -> list[int]:
    return sorted({1, samples} | {2**i for i in range(1, samples.bit_length()) if 2**i <= samples})


def compare(a: Sequence[Outcome], b: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """Two models on the same problems, matched by id: both accuracies, and their paired difference a - b.

    `n`: problems in both; `unmatched`: problems in one only, which take no part. `counts`: both, only_a, only_b,
    neither are right. `difference`: {"mean", "ci95"} by paired bootstrap; `mcnemar_p`: exact two-sided p of "only
    chance decides which of the two is right where one is". `pass_at_k`: the same difference of the sampled
    replies, for every k that both have. Raises UserError if no problem is in both, or one differs.
    """
    other = {o.id: o for o in b}
    pairs = [(o, other[o.id]) for o in a if o.id in other]
    if not pairs:
        raise UserError("The two have no problem in common (by id); measure both on the same problems.")
    for x, y in pairs:
        if (x.question, to_json(x.truth)) != (y.question, to_json(y.truth)):
            raise UserError(
                f"Problem {x.id} differs between the two (another question or truth); measure both again."
            )
    right_a, right_b = np.array([x.correct for x, _ in pairs]), np.array([y.correct for _, y in pairs])
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    samples = min(min(len(x.samples), len(y.samples)) for x, y in pairs)
    return {
        "n": len(pairs),
        "unmatched": len(a) + len(b) - 2 * len(pairs),
        "a": proportion(right_a),
        "b": proportion(right_b),
        "difference": difference(right_a, right_b, seed),
        "mcnemar_p": mcnemar(only_a, only_b),
        "counts": {
            "both": int((right_a & right_b).sum()),
            "only_a": only_a,
            "only_b": only_b,
            "neither": int((~right_a & ~right_b).sum()),
        },
        "pass_at_k": {
            str(k): difference(_passes([x for x, _ in pairs], k), _passes([y for _, y in pairs], k), seed)
            for k in (_ks(samples) if samples else [])
        },
    }


def _passes(outcomes: Sequence[Outcome], k: int) -> list[float]:
    return [pass_at_k(len(o.samples), sum(o.samples), k) for o in outcomes]


def write_outcomes(path: str | Path, outcomes: Sequence[Outcome]) -> None:
    """One JSON object a line, fields as in `Outcome`, atomically. Raises UserError if it cannot be written."""
    lines = "".join(to_json(asdict(outcome)) + "\n" for outcome in outcomes)
    try:
        write_atomically(path, lines.encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"The outcomes cannot be written to {path} ({error.strerror}); choose another file with --out."
        ) from None


def check_outcomes_file(path: str | Path) -> None:
    """Raises UserError, before anything is measured, if `write_outcomes` could not write here or would replace
    a file that is not one of outcomes, such as the data."""
    file = Path(path)
    if file.is_file() and file.stat().st_size:
        try:
            read_outcomes(file)
        except UserError:
            raise UserError(
                f"{path} is there and holds no outcomes; choose another file with --out."
            ) from None
    probe = file.with_name(f".{file.name}.probe")
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The outcomes cannot be written to {path} ({error.strerror}); choose another file with --out."
        ) from None


def read_outcomes(path: str | Path) -> list[Outcome]:
    """What `write_outcomes` wrote. Raises UserError, naming file and line, for anything else."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of `--out`.") from None
    outcomes = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            outcomes.append(_outcome(line, f"{path}:{number}"))
    if not outcomes:
        raise UserError(f"{path} holds no outcomes; write them with `fovea evaluate MODEL --out FILE`.")
    return outcomes


def _outcome(line: bytes, where: str) -> Outcome:
    try:
        values = json.loads(line)
        values.pop("null_reasons", None)
        swapped = values["swapped"]
        values["swapped"] = None if swapped is None else Swapped(**swapped)
        values["samples"] = tuple(bool(right) for right in values["samples"])
        absent = values.get("absent")
        values["absent"] = None if absent is None else tuple(str(label) for label in absent)
        outcome = Outcome(**values)
        sound = isinstance(outcome.id, str) and isinstance(outcome.rewards, dict)
        sound = sound and isinstance(outcome.correct, bool) and isinstance(outcome.truncated, bool)
        sound = sound and all(isinstance(value, int | float) for value in outcome.rewards.values())
        sound = sound and _readable(outcome)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{where} is not an outcome; write the file with `fovea evaluate MODEL --out FILE`.")
    return outcome


def _readable(outcome: Outcome) -> bool:
    """Whether truth and boxes are what `_of_boxes` reads; may raise as a line that is not an outcome does."""
    if outcome.kind == "box":
        return box_from(list(outcome.truth)) is not None
    if outcome.kind == "objects":
        said = [outcome.predicted, outcome.blank_predicted, outcome.swapped and outcome.swapped.predicted]
        things = [seen(outcome.truth, list(one) if one is not None else None, outcome.absent) for one in said]
        return len(things[0].truth) + len(things[0].crowds) == len(outcome.truth)
    return True
