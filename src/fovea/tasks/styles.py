"""How a reply is to be written: the same question asked for plain tags, a thought first, `\\boxed{}` or JSON.

`digits/read` is asked in the style `answer`; `digits/read@think` asks the same problems for a thought first.
"""

from __future__ import annotations

from collections.abc import Callable

from fovea.tasks.questions import Asked
from fovea.types import AnswerKind

Style = tuple[str, Callable[[Asked, AnswerKind], str]]
"""(what is added to the question, the teacher's reply)."""


def _tags(asked: Asked, kind: AnswerKind) -> str:
    return f"<answer>{asked.said}</answer>"


def _think(asked: Asked, kind: AnswerKind) -> str:
    return f"<think>{asked.thought}</think>{_tags(asked, kind)}"


def _boxed(asked: Asked, kind: AnswerKind) -> str:
    return f"\\boxed{{{asked.said}}}"


def _json(asked: Asked, kind: AnswerKind) -> str:
    if kind == "box":
        return f'{{"bbox_2d": {asked.said}}}'
    if kind == "objects" or asked.said.startswith('{"'):  # these are JSON in every style
        return asked.said
    plain = kind == "number" or (kind == "set" and asked.said.startswith("["))
    return f'{{"answer": {asked.said}}}' if plain else f'{{"answer": "{asked.said}"}}'


STYLES: dict[str, Style] = {
    "answer": ("", _tags),
    "think": ("Think first.", _think),
    "boxed": ("Put the answer in \\boxed{}.", _boxed),
    "json": ("Answer in JSON.", _json),
}
"""Name → style. All keep the placeholders of `fovea.boxes`."""


def styled(asked: Asked, kind: AnswerKind, style: str) -> tuple[str, str]:
    """(question, the teacher's reply) in a style."""
    added, write = STYLES[style]
    return f"{asked.question} {added}".strip(), write(asked, kind)
