"""What the solvers of `fovea.tasks.solvers` see of a problem: a table of numbers, made in one pass.

Blind: question text, number, sizes, tokens and bytes of the pictures. Low-level: colour, sharpness, borders,
JPEG grid, how like two pictures are in these, whether one lies in another pixel by pixel, and whether the border
of one goes on in another. Deliberately not here: matching across scales or turns, and anything learned from
other pictures; who solves a question by these has looked.
"""

from __future__ import annotations

import io
import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from fovea.tasks.scenes import COLORS
from fovea.tasks.solver_views import (
    CELLS,
    OWN,
    PAIR,
    maps,
    own_numbers,
    pair_numbers,
    place_numbers,
    without_coarse_own,
    without_coarse_pairs,
)
from fovea.types import Problem, Task

WORDS = 24
"""Buckets of the hashed bag of words."""
NUMBERS = 4
"""Numbers of the question that are kept."""
MOST_FLAT = 4
"""Pictures whose every number goes into the flat vector; the rest is seen by the candidate scorers."""
AROUND = 0.16
"""Of a picture's side: the square around a marked point that is looked at."""
NEAR = (40, 70, 100)
"""Distances of colours (8-bit RGB) within which a pixel has the colour that the question names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a solver sees of N problems; NaN where a problem has fewer views than another."""

    flat: np.ndarray
    """float32 [N, D]: of the problem as a whole."""
    views: np.ndarray
    """float32 [N, V, F]: of each view: the pictures, then the numbered parts of one picture."""
    pairs: np.ndarray
    """float32 [N, V, V, E]: of view a beside, above or around view b."""
    count: np.ndarray
    """int64 [N]: how many views a problem has."""
    maps: np.ndarray
    """float16 [N, LAYERS, CELLS, CELLS] of the picture that boxes are asked in; without layers for other kinds."""

    def take(self, chosen: np.ndarray) -> Seen:
        return Seen(
            flat=self.flat[chosen],
            views=self.views[chosen],
            pairs=self.pairs[chosen],
            count=self.count[chosen],
            maps=self.maps[chosen],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Problems without their pictures, and what each solver sees of them."""

    problems: tuple[Problem, ...]
    blind: Seen
    coarse: Seen
    """All that is seen of the pixels."""

    @property
    def low_level(self) -> Seen:
        """The same without what says where in a picture something lies."""
        whole = self.coarse
        flat = whole.flat.copy()
        start = WORDS + NUMBERS + 2 + len(NEAR)
        own, pairs = MOST_FLAT * OWN, MOST_FLAT * (MOST_FLAT - 1) * PAIR
        flat[:, start : start + own] = without_coarse_own(
            flat[:, start : start + own].reshape(-1, MOST_FLAT, OWN)
        ).reshape(-1, own)
        flat[:, start + own : start + own + pairs] = without_coarse_pairs(
            flat[:, start + own : start + own + pairs].reshape(len(flat), -1, PAIR)
        ).reshape(-1, pairs)
        flat[:, start + own + pairs :] = 0.0  # places
        views, between = without_coarse_own(whole.views), without_coarse_pairs(whole.pairs)
        return replace(whole, flat=flat, views=views, pairs=between)


def gather(task: Task, n: int, first: int = 0) -> Table:
    """Problems `first` to `first + n` of a task and their features: one pass over the pictures for both solvers."""
    problems: list[Problem] = []
    rows: list[list[np.ndarray]] = []
    cursor = first
    for done in range(0, n, 16):
        taken, cursor = task.take(cursor, min(16, n - done))
        for problem in taken:
            rows.append(_features(problem))
            sizes = [list(image.size) for image in problem.images]
            problems.append(replace(problem, images=(), meta=problem.meta | {"sizes": sizes}))
    blind, low = (
        Seen(
            flat=_stack([row[k] for row in rows]),
            views=_stack([row[k + 1] for row in rows]),
            pairs=_stack([row[k + 2] for row in rows]),
            count=np.array([len(row[k + 1]) for row in rows]),
            maps=np.stack([row[k + 3] for row in rows]),
        )
        for k in (0, 4)
    )
    return Table(problems=tuple(problems), blind=blind, coarse=low)


def save(path: Any, table: Table) -> None:
    """Write a table as one .npz, problems as JSON."""
    texts = [json.dumps({name: getattr(p, name) for name in _KEPT}) for p in table.problems]
    arrays = {
        f"{which}_{name}": getattr(getattr(table, which), name)
        for which in ("blind", "coarse")
        for name in _ARRAYS
    }
    np.savez_compressed(path, problems=np.array(texts), **arrays)


def load(path: Any) -> Table:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as held:
        problems = tuple(Problem(images=(), **json.loads(str(text))) for text in held["problems"])
        blind, low = (
            Seen(**{name: held[f"{which}_{name}"] for name in _ARRAYS}) for which in ("blind", "coarse")
        )
    return Table(problems=problems, blind=blind, coarse=low)


_ARRAYS = ("flat", "views", "pairs", "count", "maps")
_KEPT = ("id", "task", "question", "answer", "kind", "frame", "difficulty", "target", "meta")


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of one rank as one array, filled up with NaN."""
    shape = np.max([row.shape for row in rows], axis=0)
    found = np.full((len(rows), *shape), np.nan, np.float32)
    for i, row in enumerate(rows):
        found[i][tuple(slice(0, size) for size in row.shape)] = row
    return found


def _features(problem: Problem) -> list[np.ndarray]:
    """(flat, views, pairs, maps) of the blind solver, then of the low-level one."""
    pictures = [image.convert("RGB") for image in problem.images]
    costs = np.array([_costs(picture) for picture in pictures], np.float32).reshape(len(pictures), -1)
    words, none = _words(problem), np.zeros((0, CELLS, CELLS), np.float16)
    flat = np.concatenate([words, [len(pictures)], costs.ravel()])
    blind = [flat, costs, np.zeros((len(pictures), len(pictures), 0), np.float32), none]
    whole = [np.asarray(picture, np.float32) for picture in pictures]
    parts = [(array, 0.5, 0.5) for array in whole] + _parts(problem, whole)
    pixels = [array for array, *_ in parts]
    own = np.array([[*own_numbers(array), x, y] for array, x, y in parts], np.float32).reshape(len(parts), -1)
    pairs = pair_numbers(pixels, own, len(whole))
    seen = np.concatenate([words, _asked_color(problem, whole), _flat(whole, own, pairs)])
    boxed = problem.kind in ("box", "objects")
    return [*blind, seen, own, pairs, maps(whole[int(problem.meta.get("box_image", 0))]) if boxed else none]


def _flat(pictures: Sequence[np.ndarray], own: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The numbers of the first `MOST_FLAT` pictures, of their pairs, and the places of the first two in each other; NaN
    where there are fewer."""
    n = min(len(pictures), MOST_FLAT)
    one = np.full((MOST_FLAT, OWN), np.nan, np.float32)
    one[:n] = own[:n]
    two = np.full((MOST_FLAT, MOST_FLAT, PAIR), np.nan, np.float32)
    two[:n, :n] = pairs[:n, :n]
    places = [place_numbers(pictures[a], pictures[b]) for a, b in ((0, 1), (1, 0))] if n > 1 else []
    apart = two[~np.eye(MOST_FLAT, dtype=bool)]
    return np.concatenate([one.ravel(), apart.ravel(), *places])


def _parts(problem: Problem, pictures: Sequence[np.ndarray]) -> list[tuple[np.ndarray, float, float]]:
    """The numbered parts of one picture, or what lies around marked points; each with its place in shares.

    Where numbers or marks lie is told to the solver (`meta`): to find them is no part of the question. Strips that lie
    below each other are transposed, so that they lie beside each other, too.
    """
    meta, n = problem.meta, problem.meta.get("n", 0)
    if "points" in meta and pictures:
        points = np.array(meta["points"])
        if "link" in meta:  # marked in the first picture is the asked one, in the second are all
            return [_around(pictures[0], points[ord(problem.answer) - 65])] + [
                _around(pictures[1], point) for point in _mapped(np.array(meta["link"]).reshape(3, 3), points)
            ]
        return [_around(pictures[0], point) for point in points]
    if (
        len(pictures) != 1
        or not (n or "columns" in meta)
        or problem.kind not in ("order", "number", "choice")
    ):
        return []
    rows, columns = meta.get("rows", n), meta.get("columns", n)
    if problem.kind == "order" and len(problem.answer) == n:
        rows, columns = (n, 1) if "top to bottom" in problem.question else (1, n)
    height, width = pictures[0].shape[:2]
    found = []
    for top, bottom in _inside(height, rows):
        for left, right in _inside(width, columns):
            part = pictures[0][top:bottom, left:right]
            x, y = (left + right) / 2 / width, (top + bottom) / 2 / height
            found.append((part.swapaxes(0, 1), y, x) if columns == 1 else (part, x, y))
    return found


def _around(picture: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, float, float]:
    """A square of `AROUND` of the picture's side around a point, as far as it lies inside."""
    side = picture.shape[0]
    half = max(4, round(side * AROUND / 2))
    x, y = (int(v) for v in np.clip(point * side, half, side - half))
    return picture[y - half : y + half, x - half : x + half], float(point[0]), float(point[1])


def _mapped(link: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [n, 2] after a homography."""
    there = np.concatenate([points, np.ones((len(points), 1))], 1) @ link.T
    return np.asarray(there[:, :2] / there[:, 2:])


def _inside(side: int, n: int) -> list[tuple[int, int]]:
    """Where `n` equal pieces lie along a board of so many pixels, as `fovea.tasks.ssl.pieces.board` lays them."""
    from fovea.tasks.ssl.pieces import line, piece  # the table of tasks imports what imports this module

    width, step = piece(side, n), piece(side, n) + line(side)
    start = (side - n * width - (n - 1) * line(side)) // 2
    return [(start + k * step, start + k * step + width) for k in range(n)]


def _asked_color(problem: Problem, pictures: Sequence[np.ndarray]) -> list[float]:
    """Of the colour that the question names: the share of the first picture that has it, within each of `NEAR`."""
    named = [color for name, color in COLORS.items() if re.search(rf"\b{name}\b", problem.question)]
    if not named or not pictures:
        return [0.0] * len(NEAR)
    apart = np.abs(pictures[0] - np.array(named[0], np.float32)).sum(2)
    return [float((apart < near).mean()) for near in NEAR]


# --- blind ------------------------------------------------------------------------------------------------


def _words(problem: Problem) -> np.ndarray:
    """Hashed bag of the question's words, its first numbers, its length, the difficulty."""
    words = np.zeros(WORDS, np.float32)
    for word in re.findall(r"[^\W\d]+", problem.question.lower()):
        words[zlib.crc32(word.encode()) % WORDS] += 1
    numbers = [float(found) for found in re.findall(r"\d{1,6}(?:\.\d{1,6})?", problem.question)][:NUMBERS]
    numbers += [-1.0] * (NUMBERS - len(numbers))
    return np.concatenate([words, numbers, [len(problem.question), problem.difficulty]]).astype(np.float32)


def _costs(picture: Image.Image) -> list[float]:
    """Width, height, aspect, tokens by patches of 28 (rounded up) and of 16, bytes as PNG and as JPEG."""
    width, height = picture.size
    sizes = []
    for kind, how in (("PNG", {"compress_level": 1}), ("JPEG", {"quality": 90})):
        held = io.BytesIO()
        picture.save(held, kind, **how)
        sizes.append(float(held.tell()))
    tokens = math.ceil(width / 28) * math.ceil(height / 28)
    return [width, height, width / height, tokens, (width / 16) * (height / 16), *sizes]
