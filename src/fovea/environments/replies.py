"""A reply as an agent's: a thought and an action, in tags or in JSON, and where in the text the action begins.

    tags   <think>current 3, target 5</think><answer>+</answer>
    json   {"thoughts": "current 3, target 5", "action": "+"}

Replies are hostile text: nothing is evaluated, every search is linear. The JSON form is read by its action key alone,
because models forget brackets; RL4VLM's parser looks behind the first such key and takes any name that is a substring
there, ours reads the value of the last one as a whole (docs/rl4vlm.md).

Not here: whether an action is legal (`Game.read`), which tokens the text is made of (`fovea.rollouts`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

Form = Literal["tags", "json"]

ANSWER = "<answer>"
_ACTION_KEY = re.compile(r'"action"\s*:\s*')
_THOUGHTS = re.compile(r'"thoughts"\s*:\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
LONGEST = 20_000
"""Characters of a reply that are read, from its end: no model's reply is longer, and a hostile one costs no more."""

INSTRUCTIONS: dict[tuple[Form, bool], str] = {
    ("tags", True): "First describe what you see and think in <think> </think> tags, then give one action in "
    "<answer> </answer> tags.",
    ("tags", False): "Give one action in <answer> </answer> tags.",
    ("json", True): 'Reply with JSON: {"thoughts": "what you see and think", "action": "one action"}',
    ("json", False): 'Reply with JSON: {"action": "one action"}',
}
"""(form, with a thought) → what a model that was not taught the form is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a reply says. Example: Said(thought="3 < 5", action="+", start=24)"""

    thought: str
    """Empty where there is none."""
    action: str | None
    """The action's text as it stands there; None where the reply has no place for one."""
    start: int
    """Character at which the part that says the action begins (its tag or key); the text's length where there is
    none."""


def write_reply(thought: str | None, action: str, form: Form = "tags") -> str:
    """The reply that says `action`, with a thought unless that is None.

    Example: write_reply("3 < 5", "+") == "<think>3 < 5</think><answer>+</answer>"
    """
    if form == "json":
        said = {"action": action} if thought is None else {"thoughts": thought, "action": action}
        return json.dumps(said, ensure_ascii=False)
    return f"{'' if thought is None else f'<think>{thought}</think>'}{ANSWER}{action}</answer>"


def read_reply(text: str, form: Form = "tags") -> Said:
    """What `text` says; never raises. The last action counts."""
    skipped = max(0, len(text) - LONGEST)
    tail = text[skipped:]
    if form == "json":
        return _read_json(text, tail, skipped)
    begin = tail.rfind(ANSWER)
    said = between(text[:LONGEST], "<think>", "</think>") or ""
    if begin < 0:
        return Said(thought=said, action=None, start=len(text))
    action, closed, _ = tail[begin + len(ANSWER) :].partition("</answer>")
    return Said(thought=said, action=action.strip() if closed else None, start=skipped + begin)


def between(text: str, opens: str, closes: str) -> str | None:
    """What stands between the first `opens` and the next `closes`, without spaces around it; None where one is missing.
    Not a lazy pattern: that looks for `closes` again from every `opens`.

    Example: between("<a>x</a>", "<a>", "</a>") == "x"
    """
    said, closed, _ = text.partition(opens)[2].partition(closes)
    return said.strip() if closed else None


def _read_json(text: str, tail: str, skipped: int) -> Said:
    found = _THOUGHTS.search(text[:LONGEST])
    thought = _unescaped(found[1]) if found else ""
    keys = list(_ACTION_KEY.finditer(tail))
    last = keys[-1] if keys else None
    if last is None:
        return Said(thought=thought, action=None, start=len(text))
    value = tail[last.end() :]
    try:
        action, _ = json.JSONDecoder().raw_decode(value)
    except (ValueError, RecursionError):
        action = None
    said = action if isinstance(action, str) else None
    if isinstance(action, int | float) and not isinstance(action, bool):
        said = value[: len(value) - len(value.lstrip("-0123456789.eE+"))]
    return Said(thought=thought, action=said, start=skipped + last.start())


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text
