"""Rewards that compare an answer with a true text, letter, number, yes or no.

Each takes (reply, problem) and gives 1 or 0, never raises on any reply and refuses a truth that does not fit.
`compat="vlm_r1"` is what VLM-R1's code does (`grpo_jsonl.py`), its mistakes included. Not here: reading text
(`answers.py`), boxes (`detection.py`), mathematics (`mathematics.py`).

Try it: `fovea score choice --answer '"B"' --completion '<answer>(b)</answer>'` gives 1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NoReturn, TypeAlias

from fovea.rewards import answers
from fovea.types import Problem, UserError

Compat: TypeAlias = Literal["vlm_r1"] | None
"""None is right; "vlm_r1" reproduces the original with its mistakes."""

NUMERIC_TOLERANCE = 1e-6
"""Two numbers are equal when they differ by at most this share of the larger (zero equals only zero)."""

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_FIRST_YES_NO = re.compile(r"yes|no")
_LONE_LETTER = re.compile(r"(?<![A-Z])([A-Z])(?=[.,?!:;]|$)")
_NEWLINE_AFTER_SPACE = re.compile(r"(?<=\s)\n")
_RETURN_AFTER_SPACE = re.compile(r"(?<=\s)\r")
# The original's words that point to a choice: "answer, choose, right, is, correct", and "think, should, feel".
_POINTERS = (
    *("答案", "选择", "正确", "是", "对", "认为", "应该", "觉得"),
    *("ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "THINK", "BELIEVE", "SHOULD"),
)


def all_match(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """1 if answer and truth are the same text after `clean_text`, else 0 (case and a final full stop aside).

    The strictest comparison of texts: quotes, spaces inside and letters of other widths count (`exact` is more
    lenient). `compat="vlm_r1"`: an empty reply equals an empty truth, the block is the original's (from the first
    `<answer>` after the last pair, so one inside stays), and a reply without tags is compared whole, thought
    included.
    """
    truth = clean_text(_text_truth("all_match", problem))
    if compat == "vlm_r1":
        return float(clean_text(last_block(text)) == truth)
    answer = answers.value_of(text)
    return float(answer is not None and clean_text(answer) == truth and truth != "")


def yes_no(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """1 if the answer says yes or no, not both, and the truth says the same, else 0.

    They are whole words: "know", "not" and "yesterday" say nothing. `compat="vlm_r1"`: the first `yes` or `no` in
    the first block counts, inside words too ("I know" is no), and where both reply and truth have none it is 1.
    """
    truth = _text_truth("yes_no", problem)
    if compat == "vlm_r1":
        said, true = (_FIRST_YES_NO.search(part) for part in (first_block(text.lower()), truth.lower()))
        return float((said and said[0]) == (true and true[0]))
    wanted = _said(truth)
    if wanted is None:
        refuse("yes_no", problem, "a text that says yes or no")
    return float(_said(answers.value_of(text)) == wanted)


def _said(answer: str | None) -> str | None:
    """yes or no; None where the answer says neither or both."""
    if answer is None or len(answer) > answers.ANSWER_LIMIT:
        return None
    said = {word.lower() for word in _YES_NO.findall(answer)}
    return said.pop() if len(said) == 1 else None


def choice(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """1 if the whole answer is the true letter (`B`, `(B)`, `B)`, `B.`), else 0.

    `compat="vlm_r1"`: the letter that `guess_choice` finds in the first `<answer>` block, or in the whole reply.
    """
    truth = answers.read_choice(problem.answer) if isinstance(problem.answer, str) else None
    if truth is None:
        refuse("choice", problem, "one letter A to Z")
    if compat == "vlm_r1":
        return float(guess_choice(first_block(text)) == truth)
    return float(answers.read_choice(answers.value_of(text)) == truth)


def guess_choice(text: str) -> str | None:
    """The letter that VLM-R1's `mcq` reads out of a text in upper case, or None. For `compat` only.

    Candidates are letters with no letter before and one of `.,?!:;` or the end after them. One candidate wins;
    of several, the one with most points: 1 for each word like "answer" within 20 characters, 2 in the last 30 %
    of the text, 1 before a punctuation mark; of equals the first. The original's mistakes are kept: the
    points are given where the letter *first* occurs in the text, be it inside a word, and once for each time it is
    a candidate, so a letter that is repeated wins. And as all is upper case, "a" in "it is a." is a choice.

    Example: guess_choice("C, B. B.") == "B"
    """
    text = " ".join(text.split()).upper()
    candidates = Counter(_LONE_LETTER.findall(text))  # in the order in which they first occur
    if len(candidates) < 2:
        return next(iter(candidates), None)
    points = {}
    for letter, times in candidates.items():  # at most 26, and each is looked at in one place
        place = text.find(letter)
        near = text[max(0, place - 20) : place + 20]
        each = sum(word in near for word in _POINTERS) + 2 * (place > len(text) * 0.7)
        each += place < len(text) - 1 and text[place + 1] in "。.!！,，"
        points[letter] = times * each
    return max(points, key=points.__getitem__)


def numeric(
    text: str, problem: Problem, *, relative: float = NUMERIC_TOLERANCE, absolute: float = 0.0
) -> float:
    """1 if the answer holds one number close to the truth, else 0.

        |number - truth| <= max(relative * max(|number|, |truth|), absolute)          (`math.isclose`)

    `problem.meta["tolerance"]`, where given, is the problem's own absolute tolerance and takes the place of both.
    What stands around the number is not read: `45 %`, `45 cm` and `$45` are 45, and 0.45 is not 45 %.
    Raises UserError for a tolerance below 0.
    """
    for name, value in (("relative", relative), ("absolute", absolute)):
        if value < 0:
            raise UserError(
                f"{name} of the reward 'numeric' is {value}; give 0 or more, for example {name}=0.01."
            )
    truth = problem.answer
    truth = answers.read_number(truth) if isinstance(truth, str) else answers.finite(truth)
    if truth is None:
        refuse("numeric", problem, "one finite number")
    own = problem.meta.get("tolerance")
    if own is not None:
        relative, absolute = 0.0, _tolerance(problem, own)
    number = answers.read_number(answers.value_of(text))
    return float(number is not None and math.isclose(number, truth, rel_tol=relative, abs_tol=absolute))


def _tolerance(problem: Problem, value: object) -> float:
    number = answers.finite(value)
    if number is None or number < 0:
        raise UserError(
            f'The tolerance of problem {problem.id} is {value!r:.60}; give meta["tolerance"] a number of 0 or more.'
        )
    return number


def clean_text(text: str) -> str:
    """A text as VLM-R1's `clean_text` leaves it: line breaks and outer spaces out, final full stops out, lower case.

    A line break after white space vanishes, any other becomes a space; first `\\n`, then `\\r`.
    """
    text = _NEWLINE_AFTER_SPACE.sub("", text).replace("\n", " ")
    text = _RETURN_AFTER_SPACE.sub("", text).replace("\r", " ")
    return text.strip().rstrip(".").lower()


def first_block(text: str) -> str:
    """What `<answer>(.*?)</answer>` finds first in a text, stripped; the whole text where it finds nothing."""
    return next(_blocks(text), text).strip()


def last_block(text: str) -> str:
    """What `<answer>(.*?)</answer>` finds last in a text; the whole text where it finds nothing."""
    last = text
    for block in _blocks(text):
        last = block
    return last


def _blocks(text: str) -> Iterator[str]:
    """The matches of `<answer>(.*?)</answer>` from left to right, in linear time however many tags never close."""
    at = text.find("<answer>")
    while at >= 0:
        close = text.find("</answer>", at + len("<answer>"))
        if close < 0:
            return
        yield text[at + len("<answer>") : close]
        at = text.find("<answer>", close + len("</answer>"))


def _text_truth(reward: str, problem: Problem) -> str:
    if isinstance(problem.answer, bool) or not isinstance(problem.answer, str | int | float):
        refuse(reward, problem, "a text")
    return str(problem.answer)


def refuse(reward: str, problem: Problem, wanted: str) -> NoReturn:
    """Raise the UserError for a truth that a reward cannot use; `wanted` says what it needs."""
    shown = repr(problem.answer)[:60]
    raise UserError(
        f"Reward {reward!r} needs {wanted} as the true answer, but that of problem {problem.id} is {shown}; "
        "correct the answer or choose another reward."
    )
