"""What lmms-eval asks of a task, for the problems of a fovea file: pictures, question, and whether a reply is right.

The model side is lmms-eval's own: its wrapper renders the prompt, resizes the pictures and generates. The truth is put
into the frame that the model's family speaks, by the processor of the folder named in FOVEA_MODEL (no weights are
read), and judged by `fovea.rewards`. FOVEA_INSTRUCTION: text that is appended to every question, as `fovea evaluate`
does with `instruction=`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoProcessor

from fovea.models.adapter import speak
from fovea.models.families import family_of
from fovea.rewards import correct
from fovea.rewards.functions import iou
from fovea.tasks import open_data
from fovea.types import Problem, Task


@functools.cache
def _task() -> Task:
    files = sorted(Path.cwd().glob("*.jsonl"))
    if len(files) != 1:
        raise SystemExit(
            f"{Path.cwd()} holds {len(files)} files *.jsonl; go to the folder of `fovea tasks write`."
        )
    return open_data(str(files[0]), None, seed=0, shuffle=False)


@functools.cache
def _model() -> tuple[Any, Any]:
    """(family, processor)"""
    folder = os.environ.get("FOVEA_MODEL")
    if not folder:
        raise SystemExit("FOVEA_MODEL is not set; give it the folder that is evaluated.")
    return family_of(AutoConfig.from_pretrained(folder)), AutoProcessor.from_pretrained(folder)


def _problem(doc: dict[str, Any]) -> Problem:
    return _task().take(int(doc["fovea_place"]), 1)[0][0]


def numbered(dataset: Any) -> Any:
    """The lines with their place in the file, by which the problem is found again."""
    return dataset.map(lambda _, place: {"fovea_place": place}, with_indices=True)


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    return list(_problem(doc).images)


def question(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    instruction = os.environ.get("FOVEA_INSTRUCTION")
    asked = _problem(doc).question
    return f"{asked}\n{instruction}" if instruction else asked


def truth(doc: dict[str, Any]) -> str:
    return str(_problem(doc).answer)


def judge(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Accuracy of the reply as `fovea evaluate` has it, and of a box problem its IoU."""
    problem, (family, processor) = _problem(doc), _model()
    reply = str(getattr(results[0], "text", results[0]))
    resized = family.render(processor, problem.images, question(doc)).pictures.resized
    asked = speak(problem, family.frame, resized)
    found = {"fovea_accuracy": float(correct(reply, asked))}
    return found | ({"fovea_iou": iou(reply, asked)} if problem.kind == "box" else {})
