"""Does the model answer right, and does it look? Greedy replies to held-out problems, three times over.

    accuracy   the reply to the problem
    swapped    the same question, but the picture of another problem (a donor): still judged by the own truth
    looking    accuracy - swapped, paired over problems; near zero means that the picture does not matter
    follow     the swapped replies judged by the donor's truth (donors that were asked the same question only)
    blank      the same question and a grey picture

A donor has pictures of the same sizes and an answer that the checker tells apart; one that was asked the same
question is preferred. A problem without a donor (text-only, or no such problem in the sample) takes no part in
`swapped`, `looking` and `follow`; `n` of each says how many did. What cannot be computed is null, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from fovea.boxes import convert
from fovea.engines import Engine
from fovea.models import Policy, Prompt
from fovea.rewards import answer_of, correct, read_box
from fovea.statistics import difference, mean_pass_at_k, proportion
from fovea.types import Problem, Sampling, Task

Keep = Callable[[Problem], list[str]]
"""Writes a problem's pictures and returns their paths (`RunLog.pictures`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Swap:
    """A problem under the pictures of another one."""

    index: int
    """Place of the problem in the evaluation."""
    donor: int
    """Place of the problem that lends its pictures."""
    same_question: bool


def donors(problems: Sequence[Problem]) -> list[Swap]:
    """For each problem the next one (cyclically) that can lend its pictures; problems without one are left out."""
    swaps = []
    for i, problem in enumerate(problems):
        if not problem.images:
            continue
        found = [(i + k) % len(problems) for k in range(1, len(problems))]
        found = [j for j in found if _same_pictures(problem, problems[j])]
        same = next(
            (j for j in found if problems[j].question == problem.question and _apart(problem, problems[j])),
            None,
        )
        other = same if same is not None else next((j for j in found if _apart(problem, problems[j])), None)
        if other is not None:
            swaps.append(Swap(index=i, donor=other, same_question=same is not None))
    return swaps


def _same_pictures(a: Problem, b: Problem) -> bool:
    return a.kind == b.kind and [image.size for image in a.images] == [image.size for image in b.images]


def _apart(a: Problem, b: Problem) -> bool:
    """Whether a reply with a's truth would be wrong for b."""
    return not correct(f"<answer>{truth_text(a)}</answer>", b)


def truth_text(problem: Problem) -> str:
    """The truth as a reply would write it, in the problem's own frame."""
    if problem.kind == "box":
        return "[" + ", ".join(f"{value:g}" for value in problem.answer) + "]"
    if problem.kind == "objects":
        things = [f'{{"bbox_2d": {list(t["bbox_2d"])}, "label": "{t["label"]}"}}' for t in problem.answer]
        return "[" + ", ".join(things) + "]"
    return str(problem.answer)


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
    show: int = 0,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Measure `n` problems from the task's beginning. JSON-ready; intervals are 95 %.

    `samples` > 0 adds `sampled` accuracy and `pass_at_k` at `temperature`; `look=False` skips the swapped and
    blank passes; `show`: how many problems are recorded with pictures and boxes.
    """
    problems, _ = task.take(0, n)
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)

    def ask(asked: Sequence[Problem]) -> tuple[list[Prompt], list[str]]:
        prompts = [policy.prompt(problem, instruction) for problem in asked]
        replies = engine.generate(prompts, 1, greedy, seed=(seed, 0))
        return prompts, [completions[0].text for completions in replies]

    prompts, replies = ask(problems)
    right = np.array([correct(reply, prompt.problem) for reply, prompt in zip(replies, prompts)])
    record: dict[str, Any] = {
        "task": task.name,
        "n": len(problems),
        "chance": task.chance,
        "accuracy": proportion(right),
    }
    if look:
        record |= _looking(problems, prompts, right, ask, seed)
    if samples:
        sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
        groups = engine.generate(prompts, samples, sampling, seed=(seed, 1))
        hits = [[correct(c.text, prompt.problem) for c in group] for group, prompt in zip(groups, prompts)]
        ks = sorted({1, samples} | {k for k in (2, 4, 8, 16, 32, 64) if k <= samples})
        record["samples"] = samples
        record["pass_at_k"] = {str(k): mean_pass_at_k(hits, k, seed) for k in ks}
    record["shown"] = [
        _show(problems[i], prompts[i], replies[i], bool(right[i]), keep) for i in range(min(show, n))
    ]
    return record


def _looking(
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    right: np.ndarray,
    ask: Callable[[Sequence[Problem]], tuple[list[Prompt], list[str]]],
    seed: int,
) -> dict[str, Any]:
    """swapped, looking, follow and blank; {"mean": None, …} where nothing can be swapped."""
    swaps = donors([prompt.problem for prompt in prompts])
    swapped = [replace(problems[s.index], images=problems[s.donor].images) for s in swaps]
    replies = ask(swapped)[1] if swaps else []
    own = np.array([correct(reply, prompts[s.index].problem) for s, reply in zip(swaps, replies)])
    follow = [correct(reply, prompts[s.donor].problem) for s, reply in zip(swaps, replies) if s.same_question]
    pictured = [i for i, problem in enumerate(problems) if problem.images]
    grey = [
        replace(problems[i], images=tuple(_grey(image) for image in problems[i].images)) for i in pictured
    ]
    blank = [correct(r, prompts[i].problem) for i, r in zip(pictured, ask(grey)[1])] if pictured else []
    seen = right[[swap.index for swap in swaps]] if swaps else np.zeros(0)
    return {
        "swapped": proportion(own) | {"n": len(own)},
        "looking": difference(seen, own, seed) | {"n": len(own)},
        "follow": proportion(follow) | {"n": len(follow)},
        "blank": proportion(blank) | {"n": len(blank)},
    }


def _grey(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size, (127, 127, 127))


def _show(problem: Problem, prompt: Prompt, reply: str, right: bool, keep: Keep | None) -> dict[str, Any]:
    """One problem with the reply, boxes in pixels of the original picture. `problem`: as the task gave it."""
    pictures = keep(problem) if keep is not None else []
    size = problem.images[0].size if problem.images else None
    predicted = None
    if problem.kind == "box" and size is not None:
        box = read_box(answer_of(reply))
        resized = prompt.resized[0]
        predicted = (
            None
            if box is None
            else [round(v, 2) for v in convert(box, prompt.problem.frame, "pixels", size, resized)]
        )
    return {
        "id": problem.id,
        "picture": pictures[0] if pictures else None,
        "size": list(size) if size else None,
        "question": problem.question,
        "kind": problem.kind,
        "frame": prompt.problem.frame,
        "truth": problem.answer,
        "truth_text": truth_text(prompt.problem),
        "reply": reply,
        "correct": right,
        "truth_box": list(problem.answer) if problem.kind == "box" else None,
        "predicted_box": predicted,
    }
