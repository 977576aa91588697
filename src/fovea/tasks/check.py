"""`check_task`: everything that is wrong with a task or a data file, in one pass, and what a blind guesser scores.

Of a file: what `read_data` finds, and targets that the checker calls wrong. Of a task: that problem i is a
function of (seed, i), that ids are unique, boxes inside, answers JSON, that the teacher's reply earns the full
reward, and that the declared chance is not below what the best constant reply scores.

Try it: `fovea tasks check digits/locate`
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fovea.boxes import fill
from fovea.config import ProblemsSection
from fovea.rewards import correct, default_rewards, weigh
from fovea.rewards.answers import ANSWER_LIMIT, box_from, finite, read_choice
from fovea.rewards.sequences import is_names, is_order
from fovea.statistics import wilson
from fovea.tasks.chance import blind_chance
from fovea.tasks.data import Finding, chance_of, read_all
from fovea.tasks.kinds import unfit
from fovea.tasks.pictures import MEGAPIXELS
from fovea.tasks.records import Row, to_problem
from fovea.tasks.sources import Files, open_sources
from fovea.tasks.tables import HUB
from fovea.types import AnswerKind, BoxFrame, Problem, Task, UserError, picture_sizes

_KINDS = typing.get_args(AnswerKind)
_FRAMES = typing.get_args(BoxFrame)

STRICT = 4.0
"""Standard errors by which the best constant reply may beat the declared chance before that counts as wrong."""
SLACK = 0.03
"""And an absolute allowance: declared figures are rounded, and the best of many constants is found on the same
problems that it is measured on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a check found.

    Example: Report(name="my", n=100, bad=(), chance=0.25, declared=None)
    """

    name: str
    n: int
    """Samples looked at, bad ones included."""
    bad: tuple[Finding, ...]
    chance: float
    """Measured: the share of good samples that the best constant reply gets right."""
    declared: float | None
    """The task's own figure; None for files."""
    notes: tuple[str, ...] = ()
    """What was left out of files and why, a clause each."""
    solved: Mapping[str, Any] | None = None
    """What `fovea.tasks.solvers.check_solvers` found of a self-supervised task."""

    def record(self) -> dict[str, Any]:
        """Plain JSON, as `fovea tasks check --json` prints it."""
        return {
            "name": self.name,
            "n": self.n,
            "bad": [{"file": f.file, "line": f.line, "problem": f.problem, "fix": f.fix} for f in self.bad],
            "chance": self.chance,
            "declared_chance": self.declared,
            "notes": list(self.notes),
            **(self.solved or {}),
        }


def check_task(
    task: Files | Task,
    n: int = 200,
    *,
    images: Files | None = None,
    split: str = "train",
    seed: int = 0,
    verify: bool = True,
    megapixels: float = MEGAPIXELS,
    problems: ProblemsSection | None = None,
    download: bool = False,
) -> Report:
    """Check a built-in task by name, the first `n` problems of any `Task`, or all of a file or folder by its path.

    A text is a task's name if there is such a task, else a path. `split` and `seed` belong to names, `images`,
    `verify`, `megapixels`, `problems` and `download` to files (as in `open_data`). Raises UserError if there is
    nothing to check.
    """
    if isinstance(task, Sequence) and not isinstance(task, str):
        return _check_files(task, images, verify, megapixels, problems, download)
    if not isinstance(task, str | Path):
        return _check_problems(task, n)
    from fovea.tasks import TASKS, open_task  # the table of tasks imports this module

    name = str(task)
    if name.partition("@")[0] in TASKS:
        return _check_problems(open_task(name, split, seed), n)
    bare = Path(name.rpartition("@")[0] or name)  # of folder@part, which a saved dataset has
    if not name.startswith(HUB) and not Path(task).suffix and not Path(task).exists() and not bare.exists():
        open_task(name)  # neither a file nor a task: says which task is near
    return _check_files(task, images, verify, megapixels, problems, download)


# --- files ------------------------------------------------------------------------------------------------


def _check_files(
    files: Files,
    images: Files | None,
    verify: bool,
    megapixels: float,
    problems: ProblemsSection | None,
    download: bool,
) -> Report:
    sources = open_sources(files, images, problems=problems, download=download)
    rows, bad = read_all(sources, verify=verify, megapixels=megapixels)
    found = [
        Finding(file=row.file, line=row.number, problem=problem, fix=fix, unit=row.unit)
        for row in rows
        for problem, fix in _wrong_target(row)
    ]
    lost = {(finding.file, finding.line) for finding in found}
    good = [row for row in rows if (row.file, row.number) not in lost]
    order = {source.file: place for place, source in enumerate(sources)}
    findings = sorted([*bad, *found], key=lambda finding: (order[finding.file], finding.line or 0))
    return Report(
        name="+".join(source.name for source in sources),
        n=len(rows) + sum(finding.line is not None for finding in bad),
        bad=tuple(findings),
        chance=chance_of(good),
        declared=None,
        notes=tuple(f"{source.file}: {note}" for source in sources for note in source.notes),
    )


def _wrong_target(row: Row) -> Iterator[tuple[str, str]]:
    problem = to_problem(row, "")
    if not correct(_reply(problem), problem):
        yield (
            f"the target {(row.target or '')[:60]!r} is not right by the line's own answer",
            "correct target or answer (a box of less than a pixel cannot be answered in whole pixels, nor anything in "
            f"more than {ANSWER_LIMIT:,} characters)",
        )


def _reply(problem: Problem) -> str:
    """The teacher's reply, boxes in the problem's own frame."""
    return fill(problem.target or "", lambda box: box, problem.frame)


# --- tasks ------------------------------------------------------------------------------------------------


def _check_problems(task: Task, n: int) -> Report:
    n = n if task.size is None else min(n, task.size)
    if n < 1:
        raise UserError(f"Task {task.name}: there is nothing to check; give n of at least 1.")
    problems, _ = task.take(0, n)
    seen: dict[str, int] = {}
    bad: list[Finding] = []
    good: list[Problem] = []
    for index, (problem, again) in enumerate(zip(problems, _in_pieces(task, n))):
        field = wrong_field(problem)  # first: what follows relies on the types
        wrong = [field] if field else list(_wrong_with(problem, again, task))
        if field is None and problem.id in seen:
            wrong.append((f"the id {problem.id!r} is that of problem {seen[problem.id]}", "make ids unique"))
        if field is None:
            seen.setdefault(problem.id, index)
        bad += [
            Finding(file=task.name, line=index, problem=what, fix=fix, unit="problem") for what, fix in wrong
        ]
        if not wrong:
            good.append(problem)
    chance = chance_of_problems(good)
    if good and wilson(round(chance * len(good)), len(good), STRICT)[0] > task.chance + SLACK:
        bad.append(
            Finding(
                file=task.name,
                line=None,
                problem=f"declares chance {task.chance:.3g}, but one constant reply is right {chance:.3g} of the time",
                fix="declare what was measured, or spread the answers",
            )
        )
    return Report(name=task.name, n=n, bad=tuple(bad), chance=chance, declared=task.chance)


def wrong_field(problem: Problem) -> tuple[str, str] | None:
    """(what, fix) for the first field of a problem that is of a wrong type or does not fit its kind; None: all fit.

    Whatever the fields hold: never raises. Where boxes lie, and everything else, is `check_task`'s.
    """
    for name in ("id", "task", "question"):
        value = getattr(problem, name)
        if not isinstance(value, str) or (name == "id" and not value):
            return _says(problem, name, value, f'give a text, for example {name}="{_TEXTS[name]}"')
    pictures = _wrong_images(problem)
    if pictures is not None:
        return pictures
    for name, known in (("kind", _KINDS), ("frame", _FRAMES)):
        value = getattr(problem, name)
        if not isinstance(value, str) or value not in known:
            return _says(problem, name, value, f"give one of {', '.join(known)}")
    if finite(problem.difficulty) is None:
        return _says(problem, "difficulty", problem.difficulty, "give a number from 0 to 1")
    if problem.target is not None and not isinstance(problem.target, str):
        return _says(problem, "target", problem.target, "give the reply as a text, or None")
    if not isinstance(problem.meta, dict):
        return _says(problem, "meta", problem.meta, "give a dict, {} for nothing")
    return _wrong_answer(problem)


_TEXTS = {"id": "7", "task": "cats", "question": "How many cats?"}


def _wrong_images(problem: Problem) -> tuple[str, str] | None:
    images: Any = problem.images
    if hasattr(images, "sizes"):  # of a data file: checked when it was read, decoded when it is taken
        return None
    if isinstance(images, Image.Image):
        return _says(problem, "images", images, "put the picture into a tuple: images=(picture,)")
    if not isinstance(images, list | tuple):
        return _says(problem, "images", images, _PICTURE_FIX.get(type(images).__name__, _PICTURES))
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image):
            fix = _PICTURE_FIX.get(type(image).__name__, _PICTURES)
            return _says(problem, f"images[{i}]", image, fix)
    return None


_PICTURES = "give a tuple of PIL pictures, () for none"
_PICTURE_FIX = {
    "str": 'open it: images=(PIL.Image.open("cat.png").convert("RGB"),)',
    "PosixPath": 'open it: images=(PIL.Image.open(path).convert("RGB"),)',
    "WindowsPath": 'open it: images=(PIL.Image.open(path).convert("RGB"),)',
    "ndarray": "make it a picture: images=(PIL.Image.fromarray(array),)",
    "Tensor": "make it a picture: images=(PIL.Image.fromarray(array),)",
}


def _wrong_answer(problem: Problem) -> tuple[str, str] | None:
    """(what, fix) where the answer does not fit the kind, or has no picture to refer to."""
    answer: Any = problem.answer
    fits = {
        "box": lambda: box_from(answer) is not None,
        "objects": lambda: isinstance(answer, list | tuple) and all(map(_is_thing, answer)),
        "number": lambda: finite(_numeral(answer)) is not None,
        "choice": lambda: isinstance(answer, str) and read_choice(answer) is not None,
        "text": lambda: (isinstance(answer, str) and bool(answer.strip())) or finite(answer) is not None,
        "order": lambda: is_order(answer),
        "set": lambda: is_names(answer),
        "math": lambda: (isinstance(answer, str) and bool(answer.strip())) or finite(answer) is not None,
    }
    if not fits[problem.kind]():
        what, fix = _says(problem, "answer", answer, _ANSWERS[problem.kind])
        return f"{what}, which does not fit kind {problem.kind!r}", fix
    if problem.kind in ("box", "objects"):
        count = len(picture_sizes(problem))
        if not count:
            return _says(problem, "images", problem.images, f"give the picture that the {problem.kind} is in")
        which: Any = problem.meta.get("box_image", 0)
        if not isinstance(which, int) or isinstance(which, bool) or not 0 <= which < count:
            return _says(problem, 'meta["box_image"]', which, f"give a picture's place, 0 to {count - 1}")
    return None


_ANSWERS = {
    "box": "give four plain numbers, (x1, y1, x2, y2) in pixels",
    "objects": 'give a list of {"bbox_2d": [x1, y1, x2, y2], "label": "cat"}',
    "number": "give one finite plain number",
    "choice": 'give one letter, for example "B"',
    "text": "give a text that is not empty",
    "order": "give a list of different whole numbers from 0 to 999, for example [3, 1, 2]",
    "set": 'give a list of names, for example ["os", "sys"]',
    "math": 'give LaTeX or plain mathematics as a text, for example "x^2-1"',
}


def _numeral(answer: Any) -> Any:
    """A number that is written as a text ("3") as that number; anything else as it is."""
    try:
        return float(answer) if isinstance(answer, str) else answer
    except ValueError:
        return answer


def _is_thing(thing: Any) -> bool:
    return (
        isinstance(thing, dict)
        and box_from(thing.get("bbox_2d")) is not None
        and isinstance(thing.get("label"), str)
    )


def _says(problem: Problem, field: str, value: Any, fix: str) -> tuple[str, str]:
    """What the field is and whose, for example ("(id '7') answer is the str 'x'", fix)."""
    try:
        seen = "None" if value is None else " ".join(f"the {type(value).__name__} {value!r}".split())
    except Exception:  # a __repr__ of the user's
        seen = f"a {type(value).__name__}"
    own = "" if field == "id" else f"(id {problem.id!r}) "
    return f"{own}{field} is {seen[:80]}{'…' if len(seen) > 80 else ''}", fix


def _in_pieces(task: Task, n: int) -> Iterator[Problem]:
    """The first `n` problems again, taken in pieces of 1, 2, 3, … by the cursor."""
    cursor, done, piece = 0, 0, 1
    while done < n:
        piece = min(piece, n - done)
        problems, cursor = task.take(cursor, piece)
        yield from problems
        done, piece = done + piece, piece + 1


def _wrong_with(problem: Problem, again: Problem, task: Task) -> Iterator[tuple[str, str]]:
    """(problem, fix) for everything that is wrong with one problem of a task."""
    if facts_of(problem) != facts_of(again):
        yield "is another problem when it is taken again", "make it depend on seed and index alone"
    if problem.kind != task.kind:
        yield f"is of kind {problem.kind!r}, the task of kind {task.kind!r}", "declare one kind"
    if not 0 <= problem.difficulty <= 1:
        yield f"has difficulty {problem.difficulty}", "keep it in 0 to 1"
    if not problem.question.strip():
        yield "has no question", "ask something"
    try:
        json.dumps(problem.answer, allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"has an answer that is not JSON ({error})", "use texts, finite numbers, lists"
        return
    sizes = picture_sizes(problem)
    for box in boxes_of(problem):
        which = int(problem.meta.get("box_image", 0))
        if not _is_inside(box, sizes[which] if which < len(sizes) else (0, 0)):
            yield f"has the box {tuple(box)} outside its picture", "draw things inside"
            return
    misfit = unfit(problem)
    if misfit is not None:
        yield misfit.problem, misfit.fix
    elif problem.target is not None:
        yield from wrong_reward(problem)


def wrong_reward(problem: Problem) -> Iterator[tuple[str, str]]:
    """(what, fix) where the target is not right, or does not earn the full reward."""
    reply = _reply(problem)
    if not correct(reply, problem):
        yield f"the target {reply[:60]!r} is wrong by the checker", "make target and answer agree"
        return
    weights = default_rewards(problem.kind)
    if "@" in problem.task:  # another style than the default `<answer>` is not what the format reward rewards
        weights.pop("format", None)
    total, parts = weigh([reply], problem, weights)
    if abs(float(total[0]) - sum(weights.values())) > 1e-9:
        low = ", ".join(f"{name} {float(part[0]):.3g}" for name, part in parts.items() if part[0] < 1)
        yield f"the target {reply[:60]!r} does not earn the full reward ({low})", "correct the target"


def facts_of(problem: Problem) -> tuple[Any, ...]:
    """All that makes a problem, pixels too: equal for the same problem made again."""
    pixels = tuple((image.size, image.mode, image.tobytes()) for image in problem.images)
    words = (problem.id, problem.task, problem.question, repr(problem.answer), problem.kind, problem.frame)
    return (*words, problem.difficulty, problem.target, repr(problem.meta), pixels)


def boxes_of(problem: Problem) -> Sequence[Sequence[float]]:
    """The boxes of a problem's answer, in its frame; none for kinds without."""
    if problem.kind == "box":
        return [problem.answer]
    return [thing["bbox_2d"] for thing in problem.answer] if problem.kind == "objects" else []


def _is_inside(box: Sequence[float], size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = box
    return 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]


def chance_of_problems(problems: Sequence[Problem]) -> float:
    """`blind_chance` of problems in the frame "pixels"."""
    sizes = [
        picture_sizes(problem)[int(problem.meta.get("box_image", 0))] if problem.kind == "box" else None
        for problem in problems
    ]
    return blind_chance([p.kind for p in problems], [p.answer for p in problems], sizes)
