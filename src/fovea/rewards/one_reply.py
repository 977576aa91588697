"""Scoring one reply by hand: what `fovea score` does, and the list of what it can score with.

Not here: the rewards (`functions.py`).

Try it: `fovea score --list`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from fovea.rewards import answers
from fovea.rewards.functions import REWARDS, parse_weights, weigh
from fovea.rewards.matching import Compat
from fovea.rewards.options import Options, check_options, options_of, parameters_of
from fovea.rewards.routing import check_used
from fovea.rewards.sequences import is_order
from fovea.types import AnswerKind, Problem, UserError


def score_json(
    reward_name: str,
    answer_json: str,
    completion: str,
    kind: AnswerKind | None = None,
    *,
    options: Sequence[str] = (),
    compat: str | None = None,
    tokens: int | None = None,
    meta_json: str | None = None,
) -> dict[str, Any]:
    """What `fovea score REWARD --answer JSON --completion TEXT` prints: {"reward": …, "parts": …}.

    `reward_name` is a name or `iou=1,format=0.1`; `answer_json` the truth as JSON (`[0, 0, 9, 9]`, `3` or
    `"B"`); `kind` is inferred from it where not given; `options` are `key=value` (or `REWARD.key=value`);
    `meta_json` becomes `problem.meta`. Raises UserError for a bad name, bad JSON, a bad option or a truth that does
    not fit the reward.
    """
    weights = parse_weights(reward_name)
    answer = _json(
        answer_json,
        "--answer",
        "[0, 0, 9, 9] for a box, 3 for a number and '\"text\"' (with both quotes) for a text",
    )
    meta = (
        {}
        if meta_json is None
        else _json(meta_json, "--meta", "an object, for example '{\"tolerance\": 0.5}'")
    )
    if not isinstance(meta, dict):
        raise UserError("--meta must be a JSON object, for example '{\"tolerance\": 0.5}'.")
    _one_of("kind of answer", kind, get_args(AnswerKind))
    _one_of("compat", compat, ("vlm_r1",))
    if compat and not any("compat" in parameters_of(REWARDS[name]) for name in weights if name in REWARDS):
        having = [name for name, function in REWARDS.items() if "compat" in parameters_of(function)]
        raise UserError(
            f"--compat {compat} would do nothing: {', '.join(weights)} has no such mode; leave it away, or score one "
            f"of {', '.join(having)}."
        )
    given = parse_options(options, list(weights))
    check_used(check_options(REWARDS, given), list(weights), where="--option ")
    problem = Problem(
        id="score",
        task="score",
        images=(),
        question=str(meta.get("question", "")),
        answer=answer,
        kind=kind or _kind_of(answer),
        meta=meta,
    )
    total_G, parts = weigh(
        [completion],
        problem,
        weights,
        options=given,
        compat=cast(Compat, compat),
        tokens=None if tokens is None else [tokens],
    )
    return {"reward": float(total_G[0]), "parts": {name: float(part_G[0]) for name, part_G in parts.items()}}


def _json(text: str, where: str, examples: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{where} {text[:60]!r} is not JSON; write {examples}.") from None


def _one_of(what: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        from fovea.config import nearest

        near = nearest(value, list(known))
        raise UserError(f"There is no {what} {value!r}{near}; known: {', '.join(known)}.")


def _kind_of(answer: Any) -> AnswerKind:
    if isinstance(answer, list):
        if is_order(answer) and len(answer) != 4:  # four numbers are a box
            return "order"
        if answer and all(isinstance(name, str) for name in answer):
            return "set"
        return "box" if answer and not isinstance(answer[0], dict) else "objects"
    if isinstance(answer, int | float):
        return "number"
    return "choice" if isinstance(answer, str) and answers.read_choice(answer) else "text"


def parse_options(items: Sequence[str], names: Sequence[str]) -> Options:
    """`["n=3"]` → {name: {"n": 3}} for those of `names` that have the option; `["repetition.n=3"]` says which.

    Values are read as JSON where they are, else as text. Raises UserError where no reward has the option.
    """
    found: dict[str, dict[str, Any]] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--option {item!r} is not key=value; write for example --option n=3.")
        key = key.strip()
        reward, dot, option = key.rpartition(".")
        having = [reward] if dot else [name for name in names if key in options_of(REWARDS[name])]
        for name in having or names[:1]:  # where none has it the check says so
            found.setdefault(name, {})[option] = _plain(text)
    return found


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def list_rewards() -> list[dict[str, Any]]:
    """Every built-in reward as {"name", "about" (the docstring's first sentence), "options" (name → default)}."""
    return [
        {"name": name, "about": _first_line(function), "options": _defaults(function)}
        for name, function in REWARDS.items()
    ]


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")


def _defaults(function: Any) -> Mapping[str, Any]:
    passed = {"tokens": "the length of the reply"} if "tokens" in parameters_of(function) else {}
    return options_of(function) | passed
