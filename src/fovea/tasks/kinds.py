"""The true answer of one line: as plain JSON, and of which kind it is (`KINDS`).

A table has one type a column, so there an answer is text whatever it is: `\\boxed{3}`, "(B)" and "1,200" are read
as what they mean (`loose`). Where a kind or a reward method says that the answer is a text, it stays as it is written:
"1.50" with `all_match` is no number. Not here: the rest of the line (`fovea.tasks.records`).
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from fovea.rewards import answers, correct, routing
from fovea.rewards.sequences import LARGEST, is_names, is_order, pieces_of, read_order
from fovea.types import AnswerKind, Problem, UserError

KINDS: tuple[AnswerKind, ...] = ("box", "text", "number", "choice", "objects", "math", "order", "set")
METHODS: dict[str, AnswerKind | None] = {name: kind for name, (_, kind) in routing.METHODS.items()}
"""VLM-R1's `accu_reward_method` and the kind it implies; None: by the answer."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
_THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3}){1,4}(\.\d{1,15})?")
_LETTER = re.compile(r"\(?([A-Z])[).:]?")
_OPTION = re.compile(r"(?:\(([A-Za-z])\)\s*|([A-Za-z])[).:](?=\s|$)\s*)(.*)", re.DOTALL)
_MARKED = re.compile(r"(?:\(?[A-Za-z][).:]\s*)+")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_SIGNS = re.compile(r"[\^√π°%=<>≤≥]|\d\s*[-+*/·×]\s*[\da-z(\\]|\d[a-z]\b|\b[a-z]\s*[-+*/]\s*\d")


class BadLine(Exception):
    """What is wrong with a line, and the fix."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem, self.fix = problem, fix


def inside_tags(text: str) -> str:
    """What stands in the last `<answer>` of a teacher's reply; the text itself if there is none."""
    found = _ANSWER.findall(text)
    return str(found[-1]) if found else text


def said(value: Any, *, loose: bool = False) -> Any:
    """A written answer as plain JSON: a box, labelled boxes (fenced or not), a number, else the text.

    `loose`: the content of `\\boxed{}`, and a number with thousands separators.
    """
    if not isinstance(value, str):
        return value
    fenced = _FENCED.findall(value)
    text = (fenced[-1] if fenced else value).strip()
    if loose:
        text = unboxed(text)
        if _THOUSANDS.fullmatch(text):
            text = text.replace(",", "")
    if text[:1] in ("[", "{") or _NUMBER.fullmatch(text):
        try:
            parsed = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return text
        if is_box(parsed) or is_number(parsed) or is_objects(parsed) or means_objects(parsed):
            return parsed
    return text


def unboxed(text: str) -> str:
    """The content of a `\\boxed{…}` that is the whole text (dollar signs aside), else the text, stripped.

    Example: unboxed("$\\\\boxed{\\\\frac{1}{2}}$") == "\\\\frac{1}{2}"
    """
    inner = text.strip().strip("$").strip()
    if not (inner.startswith("\\boxed{") and inner.endswith("}")):
        return text.strip()
    content, depth = inner[len("\\boxed{") : -1], 0
    for char in content:
        depth += (char == "{") - (char == "}")
        if depth < 0:  # two boxes beside each other
            return text.strip()
    return content.strip() if depth == 0 and content.strip() else text.strip()


def is_mathematical(text: str) -> bool:
    """Whether a text is written in LaTeX or in signs rather than in words: "\\\\frac{1}{2}", "2x+1", "45°", "x = 3".

    A guess for columns that declare nothing; `kind` says otherwise.
    """
    if _COMMAND.search(text):
        return True
    return bool(_SIGNS.search(text)) and not _WORD.search(text)


def kind_of(
    answer: Any, kind: Any, method: Any, *, written: str | None = None, loose: bool = False
) -> tuple[AnswerKind, Any]:
    """(kind, answer in the form of that kind): the declared kind, or the one the reward method implies, checked
    against the answer, or a guess from it.

    `written`: the answer as the line writes it, which a text stays. Raises BadLine.
    """
    if method is not None and not (isinstance(method, str) and method in METHODS):
        raise BadLine(f'"accu_reward_method" {short(method)} is unknown', f"known: {', '.join(METHODS)}")
    implied = METHODS[method] if method is not None else None
    kind = implied if kind is None else kind
    if kind in ("text", "math"):  # declared; what is only guessed to be one keeps the form it was read in
        answer = _as_text(answer, kind, written, loose, any_value=kind == implied)
    elif kind == implied == "choice" and isinstance(answer, str):
        answer = option_letter(answer) or answer
    elif kind in ("order", "set") and (written or isinstance(answer, str)):
        answer = _listed(written or answer, kind)
    if kind == "objects" and isinstance(answer, str) and answer.strip().lower() == "none":
        return "objects", []  # VLM-R1 writes None when nothing asked for is in the picture
    if kind is None:
        kind = _guess(answer, loose)
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadLine(f'"kind" {short(kind)} is unknown', f"known: {', '.join(KINDS)}")
    answer = _formed(answer, kind, loose)
    if not _fits(answer, kind):
        if kind == "objects" and isinstance(answer, list):
            raise _lacking(answer)
        raise BadLine(f"the answer {short(answer)} does not fit kind {kind!r}", _WANTED[kind])
    return kind, answer


def _guess(answer: Any, loose: bool) -> str:
    for name in ("box", "objects", "number", "choice"):
        if _fits(answer, name):
            return name
    if means_objects(answer):
        return "objects"
    if loose and isinstance(answer, str):
        if re.fullmatch(r"\([A-Z]\)|[A-Z][).]", answer):
            return "choice"
        return "math" if is_mathematical(answer) else "text"
    return "text"


def _as_text(answer: Any, kind: str, written: str | None, loose: bool, any_value: bool) -> Any:
    """The text of an answer that is declared to be text or mathematics: as it is written, "1.50" and "[1, 2]" too.

    A number that the line holds without quotes becomes its JSON text for mathematics and in a table; with
    `any_value` (a reward method of texts, where VLM-R1 takes the `str` of whatever is there) so does a list.
    """
    if isinstance(answer, str) and kind == "math":
        return answer
    if written is not None:
        return unboxed(written) if loose or kind == "math" else written
    number = is_number(answer) and (any_value or loose or kind == "math")
    if not number and not (any_value and isinstance(answer, list)):
        return answer
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return answer  # does not fit, which is said


def _listed(written: str, kind: str) -> Any:
    """An order or a set that a column writes as a text, "3,1,2"; the text where it is none."""
    listed = read_order(written) if kind == "order" else pieces_of(written)
    return written if listed is None else listed


def option_letter(answer: str) -> str | None:
    """The letter of a true choice: "B", "b", "(B)", "B." or the option itself, "B. a cat" and "(B) a cat"; else None.

    Several ("A. C.") are no choice, nor is a text that only begins with a letter ("a cat", "U.S.").
    """
    letter = answers.read_choice(answer)
    match = _OPTION.fullmatch(answer.strip()) if letter is None else None
    if match is None or _MARKED.fullmatch(match[3]):
        return letter
    return str(match[1] or match[2]).upper()


def _formed(answer: Any, kind: str, loose: bool) -> Any:
    """The answer in the form that `kind` wants, where only the form differs."""
    if kind == "choice" and loose and isinstance(answer, str) and (letter := _LETTER.fullmatch(answer)):
        return letter[1]
    if kind == "objects" and isinstance(answer, list):
        return [_thing(thing) for thing in answer]
    return answer


def _thing(thing: Any) -> Any:
    """A labelled box without a crowd flag of 0, which says nothing."""
    if isinstance(thing, dict) and "iscrowd" in thing:
        if thing["iscrowd"] not in (0, 1):
            raise BadLine(f'"iscrowd" is {short(thing["iscrowd"])}', "write 1 for a crowd box, else nothing")
        return (
            {**thing, "iscrowd": 1}
            if thing["iscrowd"]
            else {k: v for k, v in thing.items() if k != "iscrowd"}
        )
    return thing


def _fits(answer: Any, kind: str) -> bool:
    if kind == "box":
        return is_box(answer)
    if kind == "objects":
        return is_objects(answer)
    if kind == "number":
        return is_number(answer)
    if kind == "order":
        return isinstance(answer, list) and is_order(answer)
    if kind == "set":
        return isinstance(answer, list) and is_names(answer)
    if kind == "choice":
        return isinstance(answer, str) and len(answer) == 1 and "A" <= answer <= "Z"
    return isinstance(answer, str) and bool(answer.strip())


_WANTED = {
    "box": "write [x1, y1, x2, y2]",
    "objects": 'write [{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}]',
    "number": "write one finite number without quotes",
    "choice": "write one capital letter",
    "text": "write a text, a number, a letter or a box [x1, y1, x2, y2]",
    "order": f"write different whole numbers from 0 to {LARGEST}, [3, 1, 2]",
    "set": 'write a list of names, ["os", "sys"]',
    "math": 'write the formula as a text, for example "\\\\frac{1}{2}"',
}


def is_number(value: Any) -> bool:
    """A finite JSON number of at most 1e15."""
    # 10**400 is valid JSON and no float; nothing that is counted or measured here is above 1e15.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


def is_box(value: Any) -> bool:
    """A list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def is_size(value: Any) -> bool:
    """Width and height, both of at least a pixel."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(is_number(v) and v >= 1 for v in value)


def is_objects(value: Any) -> bool:
    """A list of labelled boxes, possibly empty."""
    return isinstance(value, list) and all(
        isinstance(thing, dict) and is_box(thing.get("bbox_2d")) and isinstance(thing.get("label"), str)
        for thing in value
    )


def means_objects(value: Any) -> bool:
    """Whether a list is meant as labelled boxes, faulty ones too: one of its items names a box."""
    return isinstance(value, list) and any(isinstance(thing, dict) and "bbox_2d" in thing for thing in value)


def _lacking(things: list[Any]) -> BadLine:
    """What the first item that is no labelled box lacks."""
    place, thing = next((i, thing) for i, thing in enumerate(things, 1) if not is_objects([thing]))
    which = f"item {place} of the answer"
    if not isinstance(thing, dict):
        return BadLine(f"{which} is {short(thing)}", _WANTED["objects"])
    if not is_box(thing.get("bbox_2d")):
        state = f'has the "bbox_2d" {short(thing["bbox_2d"])}' if "bbox_2d" in thing else 'has no "bbox_2d"'
        return BadLine(f"{which} {state}", 'write four numbers, "bbox_2d": [x1, y1, x2, y2]')
    state = f'has the "label" {short(thing["label"])}' if "label" in thing else 'has no "label"'
    return BadLine(f"{which} {state}", 'write what is in the box, "label": "cat"')


def unfit(problem: Problem) -> BadLine | None:
    """Why the reward that judges a problem (`routing.route`) refuses its truth, for it would whatever the reply; or
    what counts as correct does (`fovea.rewards.correct`). None: it can be judged.

    Truths that a language model judges (`llm`) fit always: nobody is asked.
    """
    try:
        if routing.route(problem) != "judge":
            routing.accuracy("", problem)
        correct("", problem)
    except UserError as error:
        what, _, fix = str(error).removesuffix(".").rpartition("; ")
        return BadLine(what, fix)
    return None


def short(value: Any) -> str:
    """A value of a line, fit for a message."""
    try:
        shown = json.dumps(value, ensure_ascii=True, default=str)
    except (ValueError, TypeError, RecursionError):
        shown = f"of type {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:60] + "…"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
