"""COCO's detection JSON (`instances_*.json`) as problems: detect these categories, find the one, count them.

    {"images": [{"id", "file_name", "width", "height"}, …], "categories": [{"id", "name"}, …],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, width, height], "iscrowd", "area"}, …]}

`ask` (a recipe's `problems.ask`): "ovd" gives one problem a picture, which names its categories and some absent
ones in a drawn order; "rec" one for each category that is there exactly once; "count" one for each category. What
is drawn is a function of (seed, picture's id). A truth is never incomplete: where a category has a crowd, too many
or too small boxes in a picture, the category is not asked there, neither as present nor as absent, and `notes` say
how often. LVIS's `neg_category_ids` (known to be absent) and `not_exhaustive_category_ids` are respected.
Categories whose names the rewards do not tell apart (`answers.normal_text`: "Cat", "cat") are one, called as the first.

Not here: reading the file (`fovea.tasks.sources`), checking boxes against the pictures (`fovea.tasks.records`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fovea.config import ProblemsSection
from fovea.rewards.answers import normal_text
from fovea.tasks.kinds import BadLine, is_box, is_number, is_size, short
from fovea.tasks.scenes import generator
from fovea.types import UserError

REC_QUESTION = "Please provide the bounding box coordinates of the region this sentence describes: {query}."
OVD_QUESTION = (
    "Please carefully check the image and detect the following objects: {targets}. Output each detected target's "
    "bbox coordinates in JSON format. The format of the bbox coordinates is:\n```json\n[\n"
    '    {"bbox_2d": [x1, y1, x2, y2], "label": "target name"},\n'
    '    {"bbox_2d": [x1, y1, x2, y2], "label": "target name"}\n]\n```\n'
    "If there are no such targets in the image, simply respond with None."
)
COUNT_QUESTION = "How many {category} are in the picture?"
QUESTIONS: dict[str, tuple[str, str]] = {
    "ovd": (OVD_QUESTION, "{targets}"),
    "rec": (REC_QUESTION, "{query}"),
    "count": (COUNT_QUESTION, "{category}"),
}
"""What is asked → (question, its placeholder). The first two are VLM-R1's (arXiv:2504.07615, section 5.1)."""

Line = tuple[int, "dict[str, Any] | BadLine"]
"""(place in the file's list, from 1; a record of the plain schema, or why there is none)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """One box of a file.

    Example: Annotation(category="cat", box=(10, 20, 30, 40), crowd=False, area=400)
    """

    category: str
    box: tuple[float, float, float, float]
    """(x1, y1, x2, y2) in the file's frame."""
    crowd: bool
    area: float
    """Square pixels, of the mask where the file says so."""


@dataclass(kw_only=True, slots=True)
class Picture:
    """One picture of a file with its boxes, in the file's order."""

    number: int
    """Place in "images", from 1."""
    id: Any
    name: str
    frame: dict[str, Any]
    """"frame" and "resized" of its records."""
    boxes: list[Annotation] = field(default_factory=list)
    absent: frozenset[str] | None = None
    """Categories known to be absent; None: all that have no box."""
    unsure: frozenset[str] = frozenset()
    """Categories whose boxes are incomplete."""
    wrong: BadLine | None = None


def read_coco(
    value: Mapping[str, Any], file: str, problems: ProblemsSection
) -> tuple[list[Line], tuple[str, ...]]:
    """(lines, notes) of a parsed file. Raises UserError where it is not COCO's form as a whole."""
    question = question_of(problems, problems.ask)
    pictures, lost = read_pictures(value, file)
    left: Counter[str] = Counter()
    if lost:
        left["boxes belong to pictures that the file does not list"] = lost
    categories = {category["id"]: normal_text(category["name"]) for category in value["categories"]}
    if again := len(categories) - len(set(categories.values())):
        left["categories are called as another, up to case and white space, and are one with it"] = again
    everywhere = sorted({box.category for picture in pictures for box in picture.boxes})
    lines: list[Line] = []
    for picture in pictures:
        if picture.wrong is not None:
            lines.append((picture.number, picture.wrong))
            continue
        there, hidden = _askable(picture, problems, left)
        rng = generator("coco", problems.seed, problems.ask, str(picture.id))
        pool = everywhere if picture.absent is None else sorted(picture.absent)
        absent = [name for name in pool if name not in there and name not in hidden]
        ask = {"ovd": _detect, "rec": _refer, "count": _count}[problems.ask]
        made = list(ask(picture, there, absent, rng, problems, question))
        if not made:
            left["pictures have nothing that can be asked"] += 1
        lines += [(picture.number, record) for record in made]
    if not lines:
        raise UserError(f"{file} gives no problems with problems.ask={problems.ask}; {_why(left)}.")
    return lines, tuple(f"{count} {what}" for what, count in sorted(left.items()))


def question_of(problems: ProblemsSection, ask: str) -> str:
    """The question's words for what is asked. Raises UserError where they have no place for it."""
    default, place = QUESTIONS[ask]
    if problems.question is not None and place not in problems.question:
        raise UserError(
            f"problems.question={problems.question[:80]!r} has no {place}, where problems.ask={ask} writes what is "
            f"asked for; put {place} into it."
        )
    return problems.question or default


def _why(left: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(left.items())) or "it lists no pictures"


# --- the three questions ----------------------------------------------------------------------------------


def _askable(
    picture: Picture, problems: ProblemsSection, left: Counter[str]
) -> tuple[dict[str, list[Annotation]], set[str]]:
    """(category → its boxes, for those that can be asked; those that are there and cannot). Counts why in `left`."""
    by_name: dict[str, list[Annotation]] = {}
    for box in picture.boxes:
        by_name.setdefault(box.category, []).append(box)
    there, hidden = {}, set(picture.unsure)
    for name, boxes in by_name.items():
        kept = [box for box in boxes if not box.crowd]
        reason = None
        if name in picture.unsure:
            reason = "incomplete boxes"
        elif len(kept) < len(boxes) and not (problems.crowds == "keep" and problems.ask == "ovd" and kept):
            reason = "a crowd box"
        elif problems.max_boxes is not None and len(kept) > problems.max_boxes:
            reason = f"more than {problems.max_boxes} boxes"
        elif any(box.box[2] <= box.box[0] or box.box[3] <= box.box[1] for box in kept):
            reason = "a box without width or height"
        elif any(box.area < problems.min_area for box in kept):
            reason = f"a box smaller than {problems.min_area:g} square pixels"
        if reason is None:
            there[name] = boxes
        else:
            hidden.add(name)
            left[f"categories of pictures are not asked: {reason}"] += 1
    return there, hidden


def _detect(
    picture: Picture,
    there: dict[str, list[Annotation]],
    absent: Sequence[str],
    rng: np.random.Generator,
    problems: ProblemsSection,
    question: str,
) -> Iterable[dict[str, Any]]:
    empty = bool(rng.random() < problems.empty)
    least, most = problems.negatives
    wanted = int(rng.integers(least, most + 1))
    present = [] if empty else list(there)
    wanted = max(1, wanted) if empty else wanted
    drawn = [absent[i] for i in rng.permutation(len(absent))[:wanted]]
    if not (present or (empty and drawn)):
        return
    asked = [*present, *drawn]
    asked = [asked[i] for i in rng.permutation(len(asked))]
    answer = [
        {"bbox_2d": list(box.box), "label": name} | ({"iscrowd": 1} if box.crowd else {})
        for name in asked
        if name in present
        for box in there[name]
    ]
    record = _record(
        picture, str(picture.id), question.replace("{targets}", ", ".join(asked)), answer, "objects"
    )
    record["meta"] |= {"asked": asked, "absent": sorted(drawn)}
    yield record | ({} if answer else {"target": "<answer>None</answer>"})


def _refer(
    picture: Picture,
    there: dict[str, list[Annotation]],
    absent: Sequence[str],
    rng: np.random.Generator,
    problems: ProblemsSection,
    question: str,
) -> Iterable[dict[str, Any]]:
    for name, boxes in there.items():
        if len(boxes) == 1:
            text = question.replace("{query}", name)
            record = _record(picture, f"{picture.id}:{name}", text, list(boxes[0].box), "box")
            record["meta"]["query"] = name
            yield record


def _count(
    picture: Picture,
    there: dict[str, list[Annotation]],
    absent: Sequence[str],
    rng: np.random.Generator,
    problems: ProblemsSection,
    question: str,
) -> Iterable[dict[str, Any]]:
    counts = {name: len(boxes) for name, boxes in there.items()}
    if rng.random() < problems.empty and absent:
        counts[absent[int(rng.integers(len(absent)))]] = 0
    for name, count in counts.items():
        text = question.replace("{category}", name)
        yield _record(picture, f"{picture.id}:{name}", text, count, "number")


def _record(picture: Picture, id: str, question: str, answer: Any, kind: str) -> dict[str, Any]:
    return {
        "id": id, "image": picture.name, "question": question, "answer": answer, "kind": kind,
        "meta": {"image_id": picture.id},
    } | (picture.frame if kind != "number" else {})  # fmt: skip


# --- the file ---------------------------------------------------------------------------------------------


def read_pictures(value: Mapping[str, Any], file: str) -> tuple[list[Picture], int]:
    """(pictures with their boxes, boxes of pictures that are not listed). Raises UserError."""
    parts = {key: _listed(value, key, file) for key in ("images", "categories", "annotations")}
    names: dict[Any, str] = {}
    called: dict[str, str] = {}
    for place, category in enumerate(parts["categories"], 1):
        name = category.get("name")
        if not isinstance(name, str) or not name.strip() or not _is_id(category.get("id")):
            raise UserError(
                f"{file}: category {place} needs an id and a name, but is {short(category)}; correct it."
            )
        if category["id"] in names:
            first = list(names).index(category["id"]) + 1
            raise UserError(
                f"{file}: category {place} has the id {short(category['id'])}, which is already that of category "
                f"{first}; give each its own."
            )
        # to the rewards "Cat" and "cat" are one label: asked for as absent where it is there, a right reply would fail
        names[category["id"]] = called.setdefault(normal_text(name), name.strip())
    spellings = Counter(names.values())
    pictures = [_picture(number, image, names, spellings) for number, image in enumerate(parts["images"], 1)]
    by_id: dict[Any, Picture] = {}
    for picture in pictures:
        if picture.id in by_id:
            first = by_id[picture.id].number
            picture.wrong = BadLine(
                f"the id {short(picture.id)} is already that of picture {first}", "give each its own"
            )
        elif _is_id(picture.id):
            by_id[picture.id] = picture
    lost = 0
    for place, found in enumerate(parts["annotations"], 1):
        image_id = found.get("image_id")
        owner = by_id.get(image_id) if _is_id(image_id) else None
        if owner is None:
            lost += 1
            continue
        try:
            owner.boxes.append(annotation_of(found, place, names))
        except BadLine as error:
            owner.wrong = owner.wrong or error
    return pictures, lost


def _listed(value: Mapping[str, Any], key: str, file: str) -> list[dict[str, Any]]:
    found = value.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        state = "has no list" if found is None else "must hold a list of objects under"
        raise UserError(
            f'{file} {state} "{key}"; a COCO file holds the lists images, annotations and categories.'
        )
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _picture(
    number: int, image: dict[str, Any], names: Mapping[Any, str], spellings: Mapping[str, int]
) -> Picture:
    """`spellings`: name → how many categories are called so."""
    name = image.get("file_name")
    url = image.get("coco_url")
    if name is None and isinstance(url, str):  # LVIS: …/val2017/000000397133.jpg
        name = "/".join(url.split("/")[-2:])
    size = (image.get("width"), image.get("height"))
    known = is_size(list(size))
    wrong = None
    if not isinstance(name, str) or not name:
        wrong = BadLine(f'its "file_name" is {short(name)}', "name the picture's file")
    elif not _is_id(image.get("id")):
        wrong = BadLine(f'its "id" is {short(image.get("id"))}', "give a whole number or a text")

    def listed(key: str) -> Counter[str] | None:
        ids: Any = image.get(key)
        known_ids = {i for i in ids if _is_id(i) and i in names} if isinstance(ids, list) else None
        return None if known_ids is None else Counter(names[i] for i in known_ids)

    absent = listed("neg_category_ids")
    return Picture(
        number=number,
        id=image.get("id"),
        name=str(name),
        # Pictures are often resized after they were annotated: boxes are pixels of the size that the file declares.
        frame={"frame": "resized", "resized": list(size)} if known else {"frame": "pixels"},
        # of several categories that are one, all must be known to be absent
        absent=None if absent is None else frozenset(n for n in absent if absent[n] == spellings[n]),
        unsure=frozenset(listed("not_exhaustive_category_ids") or ()),
        wrong=wrong,
    )


def annotation_of(found: Mapping[str, Any], place: int, names: Mapping[Any, str]) -> Annotation:
    """One entry of "annotations"; `place` names it where it has no id. Raises BadLine."""
    which = f"annotation {found['id']}" if _is_id(found.get("id")) else f"annotation number {place}"
    box: Any = found.get("bbox")
    category = found.get("category_id")
    if not is_box(box):
        raise BadLine(f'{which} has the "bbox" {short(box)}', "write [x, y, width, height]")
    if not _is_id(category) or category not in names:
        raise BadLine(
            f"{which} has the category_id {short(category)}", "use one that is among the categories"
        )
    x, y, width, height = (float(number) for number in box)
    area: Any = found.get("area")
    return Annotation(
        category=names[category],
        box=(x, y, x + width, y + height),
        crowd=found.get("iscrowd") in (1, True),
        area=float(area) if is_number(area) else width * height,
    )
