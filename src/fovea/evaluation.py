"""Does the model answer right, and does it look? Greedy replies to held-out problems, three times over.

    accuracy   the reply to the problem
    swapped    the same question, but the pictures of another problem (a donor): still judged by the own truth
    looking    accuracy - swapped, paired over problems; near zero means that the picture does not matter
    follow     the swapped replies judged by the donor's truth (donors that were asked the same question only)
    blank      the same question and grey pictures

All pictures of a problem are swapped at once, for those of one donor. A donor has as many pictures, of the same
sizes, and an answer that the checker tells apart; one that was asked the same question is preferred. Pictures are
never resized to fit: boxes in the donor's truth would then be wrong. A problem without a donor (text-only, or no
such problem in the sample) takes no part in `swapped`, `looking` and `follow`; `n` of each says how many did. What
cannot be computed is null, never 0.

Prompts exist for a few problems at a time, so memory does not grow with n. Not here: the sums and intervals
(`fovea.outcomes`, `fovea.statistics`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from fovea.boxes import Size, convert
from fovea.engines import Engine
from fovea.models import Policy, Prompt
from fovea.outcomes import Outcome, Swapped, summarize
from fovea.rewards import Options, answer_of, correct, default_rewards, measurable, read_box, weigh
from fovea.rewards.answers import normal_text
from fovea.rewards.detection import said_objects
from fovea.rewards.sequences import write_list
from fovea.types import Completion, Problem, Sampling, Task, picture_sizes

Keep = Callable[[Problem], list[str]]
"""Writes a problem's pictures and returns their paths (`RunLog.pictures`)."""

PROBLEMS_AT_ONCE = 128
PIXELS_AT_ONCE = 8_000_000
"""Prompts are made while both bounds hold: a prompt's patches are float32, eight times the size of its pictures."""

CANDIDATES = 64
"""Donors with different truths that are tried before a problem is said to have none, so that time grows with n."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """How a model is asked. Example: Exam(seed=0, max_new_tokens=64, samples=8)"""

    seed: int
    max_new_tokens: int
    instruction: str | None = None
    """Appended to every question."""
    samples: int = 0
    """Sampled replies a problem, besides the greedy one; 0: none."""
    temperature: float = 1.0
    """Of the sampled replies."""
    look: bool = True
    """Whether the swapped and blank passes are done."""
    rewards: tuple[str, ...] | None = None
    """Rewards of the greedy replies that are recorded; None: the default ones of the problem's kind."""
    options: Options = field(default_factory=dict)
    """Of those rewards, `compat` among them (`fovea.rewards.with_compat`)."""
    at_once: int = PROBLEMS_AT_ONCE
    """At most so many problems have a prompt at the same time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Swap:
    """A problem under the pictures of another one."""

    index: int
    """Place of the problem in the evaluation."""
    donor: int
    """Place of the problem that lends its pictures."""
    same_question: bool


# --- donors ----------------------------------------------------------------------------------------------------


def donors(problems: Sequence[Problem]) -> list[Swap]:
    """For each problem the next one (cyclically) that can lend its pictures; problems without one are left out.

    Of the problems that were asked the same question, else of all. Linear in n: problems are put in order by
    what must agree, runs of equal truths are skipped, at most `CANDIDATES` truths are tried.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    asked: dict[Any, list[int]] = defaultdict(list)
    keys = [(problem.kind, picture_sizes(problem)) for problem in problems]
    for i, (problem, key) in enumerate(zip(problems, keys)):
        if key[1]:
            alike[key].append(i)
            asked[key, problem.question].append(i)
    truths = [truth_text(problem) for problem in problems]
    same = _Ring.of_each(asked, truths)
    other = _Ring.of_each(alike, truths)
    swaps = []
    for i, (problem, key) in enumerate(zip(problems, keys)):
        if not key[1]:
            continue
        found = same[key, problem.question].donor(i, problems)
        donor = found if found is not None else other[key].donor(i, problems)
        if donor is not None:
            swaps.append(Swap(index=i, donor=donor, same_question=found is not None))
    return swaps


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ring:
    """Places of problems in a circle; `jump[k]`: the next member whose truth differs from that of member k."""

    members: list[int]
    jump: list[int | None]
    truths: Sequence[str]

    @classmethod
    def of_each(cls, groups: dict[Any, list[int]], truths: Sequence[str]) -> dict[Any, _Ring]:
        return {key: cls.of(members, truths) for key, members in groups.items()}

    @classmethod
    def of(cls, members: list[int], truths: Sequence[str]) -> _Ring:
        n = len(members)
        jump: list[int | None] = [None] * n
        for k in range(2 * n - 1, -1, -1):  # twice around, so that the last members see the first ones
            here, after = k % n, (k + 1) % n
            differs = truths[members[here]] != truths[members[after]]
            jump[here] = after if differs else jump[after]
        return cls(members=members, jump=jump, truths=truths)

    def donor(self, i: int, problems: Sequence[Problem]) -> int | None:
        """The first member after problem `i` whose truth is told apart from its own."""
        n, start = len(self.members), bisect_right(self.members, i) - 1
        reply = f"<answer>{self.truths[i]}</answer>"
        at, walked = start, 0
        for _ in range(CANDIDATES):
            following = self.jump[at]
            if following is None:
                return None
            walked += (following - at) % n
            if walked >= n:
                return None
            at = following
            # Whether a reply with the own truth would be wrong for the donor.
            if not correct(reply, problems[self.members[at]]):
                return self.members[at]
        return None


def truth_text(problem: Problem) -> str:
    """The truth as a reply would write it, in the problem's own frame."""
    if problem.kind == "box":
        return "[" + ", ".join(f"{value:g}" for value in problem.answer) + "]"
    if problem.kind == "objects":
        things = [f'{{"bbox_2d": {list(t["bbox_2d"])}, "label": "{t["label"]}"}}' for t in problem.answer]
        return "[" + ", ".join(things) + "]"
    if problem.kind in ("order", "set"):
        return write_list(problem.answer)
    return str(problem.answer)


# --- asking ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What is kept of a prompt once it was answered: no pixels."""

    problem: Problem
    """In the model's frame."""
    resized: tuple[Size, ...]
    greedy: Completion
    samples: tuple[bool, ...]


def examine(policy: Policy, engine: Engine, problems: Sequence[Problem], exam: Exam) -> list[Outcome]:
    """One outcome a problem, in order."""
    return _outcomes(problems, _answers(policy, engine, problems, exam), policy, engine, exam)


def evaluate(
    policy: Policy,
    engine: Engine,
    task: Task,
    n: int,
    *,
    seed: int,
    max_new_tokens: int,
    instruction: str | None = None,
    samples: int = 0,
    temperature: float = 1.0,
    look: bool = True,
    rewards: Sequence[str] | None = None,
    options: Options | None = None,
    show: int = 0,
    keep: Keep | None = None,
    outcomes: list[Outcome] | None = None,
) -> dict[str, Any]:
    """Measure `n` problems from the task's beginning. JSON-ready; intervals are 95 %; keys as in `summarize`.

    `samples` > 0 adds `pass_at_k` at `temperature`; `look=False` skips the swapped and blank passes; `show`: how
    many problems are recorded with pictures and boxes; `outcomes`: a list that takes what came of each problem.
    """
    problems, _ = task.take(0, n)
    exam = Exam(
        seed=seed,
        max_new_tokens=max_new_tokens,
        instruction=instruction,
        samples=samples,
        temperature=temperature,
        look=look,
        rewards=None if rewards is None else tuple(rewards),
        options=options or {},
    )
    answers = _answers(policy, engine, problems, exam)
    found = _outcomes(problems, answers, policy, engine, exam)
    if outcomes is not None:
        outcomes.extend(found)
    record = {"task": task.name, "chance": task.chance} | summarize(found, seed, look=look)
    if samples:
        record["temperature"] = temperature
    names = [problem.task for problem in problems]
    if len(set(names)) > 1:
        record["by_task"] = _by_task(names, found, seed, look)
    shown = zip(problems[:show], answers, found)
    return record | {"shown": [_show(problem, answer, outcome, keep) for problem, answer, outcome in shown]}


def _by_task(names: Sequence[str], outcomes: Sequence[Outcome], seed: int, look: bool) -> dict[str, Any]:
    """Of a mixture: task → n, accuracy and looking of its own problems."""
    found = {}
    for name in dict.fromkeys(names):
        own = summarize([o for o, of in zip(outcomes, names) if of == name], seed, look=look)
        found[name] = {key: own[key] for key in ("n", "accuracy", "looking") if key in own}
    return found


def _answers(policy: Policy, engine: Engine, problems: Sequence[Problem], exam: Exam) -> list[_Answer]:
    """Greedy and sampled replies to the problems as they are."""
    drawn = Sampling(temperature=exam.temperature, max_new_tokens=exam.max_new_tokens)
    answers = []
    for prompts, greedy in _ask(policy, engine, problems, exam):
        groups: list[tuple[Completion, ...]] = [()] * len(prompts)
        if exam.samples:
            groups = engine.generate(prompts, exam.samples, drawn, seed=(exam.seed, 1))
        for prompt, completion, group in zip(prompts, greedy, groups, strict=True):
            answers.append(
                _Answer(
                    problem=prompt.problem,
                    resized=prompt.resized,
                    greedy=completion,
                    samples=tuple(correct(sample.text, prompt.problem) for sample in group),
                )
            )
    return answers


def _ask(
    policy: Policy, engine: Engine, problems: Sequence[Problem], exam: Exam
) -> Iterator[tuple[list[Prompt], list[Completion]]]:
    """Prompts and greedy replies, a few problems at a time; the next ones are made when these are done with."""
    greedy = Sampling(temperature=0.0, max_new_tokens=exam.max_new_tokens)
    for together in in_pieces(problems, exam.at_once):
        prompts = [policy.prompt(problem, exam.instruction) for problem in together]
        replies = engine.generate(prompts, 1, greedy, seed=(exam.seed, 0))
        yield prompts, [completions[0] for completions in replies]


def in_pieces(problems: Sequence[Problem], at_once: int) -> Iterator[list[Problem]]:
    """Consecutive problems: at most `at_once`, and at most `PIXELS_AT_ONCE` unless one alone has more."""
    piece: list[Problem] = []
    pixels = 0
    for problem in problems:
        more = sum(width * height for width, height in picture_sizes(problem))
        if piece and (len(piece) == at_once or pixels + more > PIXELS_AT_ONCE):
            yield piece
            piece, pixels = [], 0
        piece.append(problem)
        pixels += more
    if piece:
        yield piece


def _outcomes(
    problems: Sequence[Problem], answers: Sequence[_Answer], policy: Policy, engine: Engine, exam: Exam
) -> list[Outcome]:
    swapped = _swapped(problems, answers, policy, engine, exam) if exam.look else {}
    blank = _blank(problems, policy, engine, exam) if exam.look else {}
    outcomes = []
    for i, (problem, answer) in enumerate(zip(problems, answers, strict=True)):
        reply = answer.greedy.text
        names = exam.rewards if exam.rewards is not None else tuple(default_rewards(problem.kind))
        parts = _parts(answer, names, exam.options)
        outcomes.append(
            Outcome(
                id=problem.id,
                question=problem.question,
                truth=problem.answer,
                pictures=len(problem.images),
                reply=reply,
                correct=correct(reply, answer.problem),
                truncated=answer.greedy.stop == "length",
                rewards={name: float(part_G[0]) for name, part_G in parts.items()},
                swapped=swapped.get(i),
                blank=correct(blank[i], answer.problem) if i in blank else None,
                samples=answer.samples,
                kind=problem.kind,
                predicted=_said(reply, problem, answer),
                blank_predicted=_said(blank[i], problem, answer) if i in blank else None,
                absent=_absent(problem),
            )
        )
    return outcomes


def _said(reply: str, problem: Problem, answer: _Answer) -> Any:
    """What a reply says in boxes, as in `Outcome.predicted`, in the frame of the task. `problem`: as it gave it."""
    sizes = picture_sizes(problem)
    if not sizes or problem.kind not in ("box", "objects"):
        return None
    which = int(problem.meta.get("box_image", 0))

    def to_task(box: Sequence[float] | None) -> list[float] | None:
        if box is None:
            return None
        there = convert(box, answer.problem.frame, problem.frame, sizes[which], answer.resized[which])
        return [round(value, 4) for value in there] if all(map(math.isfinite, there)) else None

    if problem.kind == "box":
        return to_task(read_box(answer_of(reply)))
    things = said_objects(reply)
    if things is None:
        return None
    return [{"bbox_2d": to_task(box), "label": label} for box, label in things]


def _absent(problem: Problem) -> tuple[str, ...] | None:
    """Labels asked for in vain, by the problem's meta: "absent", else "asked", without those that are true."""
    if problem.kind != "objects":
        return None
    absent, asked = problem.meta.get("absent"), problem.meta.get("asked")
    labels = absent if isinstance(absent, list | tuple) else asked
    if not isinstance(labels, list | tuple):
        return None
    there = {normal_text(str(thing["label"])) for thing in problem.answer}
    return tuple(str(label) for label in labels if normal_text(str(label)) not in there)


def _parts(answer: _Answer, names: Sequence[str], options: Options) -> dict[str, np.ndarray]:
    """Name → [1] of the rewards of the greedy reply that this process can compute."""
    weights = dict.fromkeys(measurable(names, answer.problem), 1.0)
    tokens = [len(answer.greedy.token_ids)]
    return (
        weigh([answer.greedy.text], answer.problem, weights, options=options, tokens=tokens)[1]
        if weights
        else {}
    )


def _swapped(
    problems: Sequence[Problem], answers: Sequence[_Answer], policy: Policy, engine: Engine, exam: Exam
) -> dict[int, Swapped]:
    """Place of a problem -> the reply under its donor's pictures."""
    asked = [answer.problem for answer in answers]
    swaps = donors(asked)
    exchanged = [replace(problems[s.index], images=problems[s.donor].images) for s in swaps]
    replies = _texts(policy, engine, exchanged, exam)
    return {
        s.index: Swapped(
            donor=problems[s.donor].id,
            same_question=s.same_question,
            reply=reply,
            correct=correct(reply, asked[s.index]),
            follow=correct(reply, asked[s.donor]) if s.same_question else None,
            predicted=_said(reply, problems[s.index], answers[s.index]),
        )
        for s, reply in zip(swaps, replies, strict=True)
    }


def _blank(problems: Sequence[Problem], policy: Policy, engine: Engine, exam: Exam) -> dict[int, str]:
    """Place of a problem -> the reply to grey pictures. What looks the same is asked once."""
    place: dict[Any, int] = {}
    keys: dict[int, Any] = {}
    for i, problem in enumerate(problems):
        sizes = picture_sizes(problem)
        if sizes:
            keys[i] = (problem.question, sizes)
            place.setdefault(keys[i], i)
    pictures = {size: Image.new("RGB", size, (127, 127, 127)) for _, sizes in place for size in sizes}
    grey = [
        replace(problems[i], images=tuple(pictures[size] for size in sizes))
        for (_, sizes), i in place.items()
    ]
    reply = dict(zip(place, _texts(policy, engine, grey, exam), strict=True))
    return {i: reply[key] for i, key in keys.items()}


def _texts(policy: Policy, engine: Engine, problems: Sequence[Problem], exam: Exam) -> list[str]:
    """Greedy replies, in order."""
    asked = _ask(policy, engine, problems, exam)
    return [completion.text for _, completions in asked for completion in completions]


# --- showing ---------------------------------------------------------------------------------------------------


def _show(problem: Problem, answer: _Answer, outcome: Outcome, keep: Keep | None) -> dict[str, Any]:
    """One problem with the reply, boxes in pixels of the original picture. `problem`: as the task gave it."""
    pictures = keep(problem) if keep is not None else []
    sizes = picture_sizes(problem)
    which = int(problem.meta.get("box_image", 0)) if sizes else 0
    box = outcome.predicted if problem.kind == "box" else None
    return {
        "id": problem.id,
        "picture": pictures[which] if pictures else None,
        "size": list(sizes[which]) if sizes else None,
        "question": problem.question,
        "kind": problem.kind,
        "frame": answer.problem.frame,
        "truth": problem.answer,
        "truth_text": truth_text(answer.problem),
        "reply": outcome.reply,
        "correct": outcome.correct,
        "truth_box": list(problem.answer) if problem.kind == "box" else None,
        "predicted_box": None if box is None else [round(value, 2) for value in box],
    }
