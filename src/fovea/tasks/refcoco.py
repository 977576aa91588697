"""Referring expressions as problems: RefCOCO's own refs, and the flat lists that evaluations use.

Flat, a JSON list (VLM-R1's `rec_jsons_processed`, LISA-Grounding, and the like), one box an entry:

    [{"image": "train2014/a.jpg", "problem": "Please provide … describes: the left cat.", "solution": [x1, y1, x2, y2],
      "normal_caption": "the left cat"}, …]

The picture under image, file_name, img_name or img_path; the words under problem (a whole question), or
normal_caption, sentence, expression, caption, query, sentences (a list); the box under solution, bbox_2d or answer
(corners), or bbox (COCO's x, y, width, height).

RefCOCO's own form, `refs(unc).json` beside `instances.json` (a COCO file), one problem a sentence:

    [{"ref_id": 1, "ann_id": 7, "image_id": 3, "split": "train", "sentences": [{"sent": "the left cat"}, …]}, …]

Not here: pickles, in which RefCOCO is distributed; `fovea.tasks.sources` says how to convert one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fovea.config import ProblemsSection
from fovea.tasks.coco import Annotation, Line, annotation_of, question_of, read_pictures
from fovea.tasks.kinds import BadLine, is_box, said, short
from fovea.tasks.records import without_placeholders
from fovea.types import UserError

PICTURES = ("image", "file_name", "img_name", "img_path")
EXPRESSIONS = ("normal_caption", "sentence", "expression", "caption", "query", "sent", "sentences")
CORNERS = ("solution", "bbox_2d", "answer")
_USED = {*PICTURES, *EXPRESSIONS, *CORNERS, "problem", "bbox", "id", "normalized_solution", "conversations"}


def is_refs(first: Any) -> bool:
    """Whether the first entry of a list is one of RefCOCO's refs."""
    return isinstance(first, dict) and {"ann_id", "sentences"} <= set(first)


def is_expressions(first: Any) -> bool:
    """Whether the first entry of a list is a flat referring expression."""
    if not isinstance(first, dict) or {"conversations", "question"} & set(first):
        return False
    # of another length too: that is then said of the box, instead of calling its key unknown
    boxed = any(isinstance(said(first.get(key)), list) for key in (*CORNERS, "bbox"))
    return boxed and any(key in first for key in (*EXPRESSIONS, "problem"))


def read_expressions(entries: Sequence[Any], problems: ProblemsSection) -> Iterator[Line]:
    """Records of a flat list. Raises UserError for a question without a place."""
    question = question_of(problems, "rec")
    for number, entry in enumerate(entries, 1):
        try:
            records = list(_expressions(entry, problems, question))
        except BadLine as error:
            yield number, error
            continue
        for record in records:
            yield number, record


def _expressions(entry: Any, problems: ProblemsSection, question: str) -> Iterator[dict[str, Any]]:
    if not isinstance(entry, dict):
        raise BadLine("must be an object", 'write {"image": …, "sentence": …, "solution": [x1, y1, x2, y2]}')
    image = next((entry[key] for key in PICTURES if entry.get(key)), None)
    if not isinstance(image, str):
        raise BadLine(f"names no picture under {', '.join(PICTURES)}", 'write "image": "cat.png"')
    box = _box(entry)
    kept = {k: v for k, v in entry.items() if k not in _USED and isinstance(v, str | int | float)}
    shared = {"image": image, "answer": box, "kind": "box", "meta": kept} | _declared(problems)
    asked = _questions(entry, problems, question)
    for k, (text, query) in enumerate(asked):
        record = shared | {"question": text, "meta": kept | ({} if query is None else {"query": query})}
        if entry.get("id") is not None:
            record["id"] = entry["id"] if len(asked) == 1 else f"{entry['id']}:{k}"
        elif len(asked) > 1:
            record["id"] = f"{image}:{box}:{k}"
        yield record


def _box(entry: dict[str, Any]) -> list[float]:
    """The corners of an entry's box. Raises BadLine."""
    key = next((key for key in (*CORNERS, "bbox") if entry.get(key) is not None), None)
    if key is None:
        raise BadLine(
            f"holds no box under {', '.join(CORNERS)} or bbox", 'write "solution": [x1, y1, x2, y2]'
        )
    box = said(entry[key], loose=True)
    if not is_box(box):
        wanted = "[x, y, width, height]" if key == "bbox" else "[x1, y1, x2, y2]"
        raise BadLine(f'its "{key}" {short(entry[key])} is no box', f"write four numbers, {wanted}")
    x, y, right, bottom = box
    return [x, y, x + right, y + bottom] if key == "bbox" else box


def _questions(
    entry: dict[str, Any], problems: ProblemsSection, question: str
) -> list[tuple[str, str | None]]:
    """(what is asked, the bare expression where the entry has one) of an entry. Raises BadLine."""
    problem = entry.get("problem")
    found = next((entry[key] for key in EXPRESSIONS if entry.get(key)), None)
    queries = [_sentence(item) for item in (found if isinstance(found, list) else [found])] if found else []
    if isinstance(problem, str) and problem.strip() and problems.question is None:
        return [(without_placeholders(problem), queries[0] if len(queries) == 1 else None)]
    if not queries and isinstance(problem, str) and problem.strip():
        queries = [without_placeholders(problem)]
    if not queries:
        raise BadLine(
            f"holds no words under problem or {', '.join(EXPRESSIONS)}", 'write "sentence": "the left cat"'
        )
    return [(question.replace("{query}", query), query) for query in queries]


def _sentence(item: Any) -> str:
    text = item.get("sent", item.get("raw")) if isinstance(item, dict) else item
    if not isinstance(text, str) or not text.strip():
        raise BadLine(f"has the sentence {short(item)}", "write words")
    return text.strip()


def _declared(problems: ProblemsSection) -> dict[str, Any]:
    """What the whole file declares of its boxes."""
    return {} if problems.frame is None else {"frame": problems.frame, "resized": problems.resized}


def read_refs(
    refs: Sequence[Any],
    instances: Mapping[str, Any],
    file: str,
    where: str,
    part: str | None,
    problems: ProblemsSection,
) -> list[Line]:
    """Records of RefCOCO's refs, a sentence each, of the split `part`.

    `where`: the file of `instances`, for messages. Raises UserError for a split that is not there or not chosen,
    and for instances that are not COCO's form.
    """
    question = question_of(problems, "rec")
    splits = list(
        dict.fromkeys(str(ref.get("split")) for ref in refs if isinstance(ref, dict) and ref.get("split"))
    )
    if part is None and len(splits) > 1:
        raise UserError(
            f"{file} holds the splits {', '.join(splits)}; name one, for example {file}@{splits[0]}."
        )
    if part is not None and part not in splits:
        raise UserError(f"{file} has no split {part!r}; it holds {', '.join(splits) or 'none'}.")
    pictures = {picture.id: picture for picture in read_pictures(instances, where)[0]}
    names = {category["id"]: category["name"] for category in instances["categories"]}
    boxes: dict[Any, Annotation | BadLine] = {}
    for place, found in enumerate(instances["annotations"], 1):
        try:
            boxes[_key(found.get("id"))] = annotation_of(found, place, names)
        except BadLine as error:
            boxes[_key(found.get("id"))] = error
    lines: list[Line] = []
    for number, ref in enumerate(refs, 1):
        split = ref.get("split") if isinstance(ref, dict) else part
        if part is not None and split and str(split) != part:
            continue
        try:
            if part is not None and not split:
                raise BadLine("has no split", f'write "split": "{part}", or the one that it belongs to')
            lines += [
                (number, record) for record in _sentences(ref, number, pictures, boxes, where, question)
            ]
        except BadLine as error:
            lines.append((number, error))
    return lines


def _key(value: Any) -> Any:
    return value if isinstance(value, int | str) else None


def _sentences(
    ref: Any,
    number: int,
    pictures: Mapping[Any, Any],
    boxes: Mapping[Any, Annotation | BadLine],
    where: str,
    question: str,
) -> Iterator[dict[str, Any]]:
    if not is_refs(ref) or not isinstance(ref["sentences"], list) or not ref["sentences"]:
        raise BadLine("needs ann_id, image_id and sentences", "write it as the other refs")
    box = boxes.get(_key(ref["ann_id"]))
    if isinstance(box, BadLine):
        raise box
    if box is None:
        raise BadLine(
            f"its ann_id {short(ref['ann_id'])} is not in {where}", "use the instances.json of the same set"
        )
    picture = pictures.get(_key(ref.get("image_id")))
    if picture is None:
        raise BadLine(
            f"its image_id {short(ref.get('image_id'))} is not in {where}",
            "use the instances.json of the same set",
        )
    if picture.wrong is not None:
        raise picture.wrong
    ref_id = ref["ref_id"] if isinstance(ref.get("ref_id"), int | str) else number
    for k, item in enumerate(ref["sentences"]):
        query = _sentence(item)
        meta = {"image_id": picture.id, "ann_id": ref["ann_id"], "query": query, "category": box.category}
        yield {
            "id": f"{ref_id}:{k}", "image": picture.name, "question": question.replace("{query}", query),
            "answer": list(box.box), "kind": "box", "meta": meta,
        } | picture.frame  # fmt: skip
