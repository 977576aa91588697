"""Open-vocabulary detection: the boxes of all shapes of the classes that the question lists, and of nothing else.

One or two of the listed classes are not in the picture but nearly: their colour is, or their shape. In one problem of
ten none is, and the right answer is `None`. Shapes that are not listed stand in the picture and are not to be named.

Try it: `fovea tasks show shapes/detect --out sheet.png`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from fovea.boxes import look, place
from fovea.tasks.questions import Asked, Question
from fovea.tasks.scenes import COLORS, SHAPES, Split
from fovea.tasks.stages import Stage, draw, listing, some_labels

MOST_ALIKE = 3
"""Things of one class in a picture."""
MOST_FOUND = 4
"""Things in an answer: the reply stays under 110 tokens of the embedded model's."""
NONE_LISTED = 0.1
"""Share of the problems in which nothing listed is in the picture."""


def listed(rng: np.random.Generator, labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """(classes in the picture, classes that are not) that the question lists: two to four in all.

    One or two are absent, one in ten times all, two or three; an absent class shares colour or shape with a thing.
    """
    counts = Counter(labels)
    present = [str(name) for name in rng.permutation(sorted(counts))]
    if rng.random() < NONE_LISTED:
        present, wanted = [], int(rng.integers(2, 4))
    else:
        total, wanted = int(rng.integers(2, 5)), int(rng.integers(1, 3))
        present = present[: max(1, total - wanted)]
        while sum(counts[name] for name in present) > MOST_FOUND:
            present.pop()
    colors, shapes = ({label.split()[i] for label in labels} for i in (0, 1))
    near = [
        f"{color} {shape}"
        for color in COLORS
        for shape in SHAPES
        if f"{color} {shape}" not in counts and (color in colors or shape in shapes)
    ]
    return present, [str(name) for name in rng.choice(near, wanted, replace=False)]


def detect(stage: Stage) -> Callable[[np.random.Generator, Split], Asked]:
    """The question for pictures of a stage."""

    def ask(rng: np.random.Generator, split: Split) -> Asked:
        fewest, most = stage.things
        count = int(rng.integers(fewest, most + 1))
        labels = some_labels(rng, count)
        while max(Counter(labels).values()) > MOST_ALIKE:
            labels = some_labels(rng, count)
        present, absent = listed(rng, labels)
        scene = draw(rng, split, stage, labels)
        found = [thing for thing in scene.things if thing.label in present]
        asked = [str(name) for name in rng.permutation(present + absent)]
        items = (f'{{"bbox_2d": {place(t.box)}, "label": {json.dumps(t.label)}}}' for t in found)
        seen = ", ".join(look(thing.box) + thing.label for thing in found)
        return Asked(
            images=(scene.image,),
            question=f"Detect: {', '.join(asked)}. Answer with a JSON list, or None.",
            answer=listing(found),
            said=f"[{', '.join(items)}]" if found else "None",
            thought=" ".join(
                [f"I see: {seen or 'none'}.", *(f"No {name}." for name in asked if name in absent)]
            ),
            difficulty=(stage.crowding(count) + (len(asked) - 2) / 2) / 2,
            meta={
                "asked": asked,
                "present": [name for name in asked if name in present],
                "absent": [name for name in asked if name in absent],
                "things": listing(scene.things),
            },
        )

    return ask


QUESTIONS: dict[str, Question] = {
    # always "None"
    "shapes/detect": (
        detect(Stage(things=(2, 5))), "objects", NONE_LISTED, "the boxes of all shapes of the listed classes, or none",
    ),
    "shapes/detect_clutter": (
        detect(Stage(things=(6, 8), sizes=((96, 80), (80, 96), (96, 96)), side=(12, 20))), "objects", NONE_LISTED,
        "as shapes/detect, six to eight shapes; never trained",
    ),
    "shapes/detect_photo": (
        detect(Stage(things=(2, 5), photo=True)), "objects", NONE_LISTED,
        "as shapes/detect, on a photograph; never trained",
    ),
}  # fmt: skip
