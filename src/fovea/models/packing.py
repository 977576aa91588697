"""Which prompts and completions go through the model together: by tokens, without a model and without arithmetic.

A pass holds at most `tokens_per_pass` tokens. A completion longer than that goes alone, cut into segments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fovea.models.adapter import Prompt

Row = tuple[int, np.ndarray]
"""(index into prompts, token ids [T])."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Fed tokens [start, stop) of a row; it predicts tokens start+1 to stop, and token 0 if start is 0."""

    prompt: int
    """Place among the batch's prompts."""
    tokens: np.ndarray
    """int64 [T], the whole row."""
    offset: int
    """Where the row begins in the concatenation of all rows."""
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Prompts that are encoded together and the completions that go with them."""

    prompts: list[Prompt]
    passes: list[list[Piece]]
    long_rows: list[Piece]


def batches(
    prompts: Sequence[Prompt], rows: Sequence[Row], tokens_per_pass: int, padded: bool
) -> Iterator[Batch]:
    """Distinct prompts in the order of first use, together while their tokens stay within a pass.

    `padded`: count the padding to the longest, too (recurrent layers lay rows side by side).
    """
    offsets = np.cumsum([0, *(len(tokens) for _, tokens in rows)])
    by_prompt: dict[int, list[Piece]] = defaultdict(list)
    objects: dict[int, Prompt] = {}
    for i, (index, tokens) in enumerate(rows):
        prompt = prompts[index]
        objects[id(prompt)] = prompt
        piece = Piece(prompt=0, tokens=tokens, offset=int(offsets[i]), start=0, stop=len(tokens) - 1)
        by_prompt[id(prompt)].append(piece)
    keys = list(by_prompt)
    for a, b in together([len(objects[key].token_ids) for key in keys], tokens_per_pass, padded):
        yield _batch([(objects[key], by_prompt[key]) for key in keys[a:b]], tokens_per_pass, padded)


def together(
    lengths: Sequence[int], most: int, padded: bool, rows: int | None = None
) -> Iterator[tuple[int, int]]:
    """Consecutive ranges [a, b) whose `lengths` take at most `most` tokens: packed, or each as long as the longest.

    One that takes more goes alone. `rows`: most of them in a range.
    Example: list(together([3, 3, 3], 7, False)) == [(0, 2), (2, 3)]
    """
    start = total = longest = 0
    for i, length in enumerate(lengths):
        total, longest = total + length, max(longest, length)
        size = (i + 1 - start) * longest if padded else total
        if i > start and (size > most or (rows is not None and i + 1 - start > rows)):
            yield start, i
            start, total, longest = i, length, length
    if lengths:
        yield start, len(lengths)


def _batch(groups: list[tuple[Prompt, list[Piece]]], tokens_per_pass: int, padded: bool) -> Batch:
    rows = [
        Piece(prompt=place, tokens=piece.tokens, offset=piece.offset, start=0, stop=piece.stop)
        for place, (_, pieces) in enumerate(groups)
        for piece in pieces
    ]
    short = [row for row in rows if row.stop <= tokens_per_pass]
    lengths = [len(row.tokens) for row in short]
    return Batch(
        prompts=[prompt for prompt, _ in groups],
        passes=[short[a:b] for a, b in together(lengths, tokens_per_pass, padded)],
        long_rows=[row for row in rows if row.stop > tokens_per_pass],
    )


def cut(row: Piece, tokens_per_pass: int) -> list[Piece]:
    return [
        Piece(
            prompt=row.prompt,
            tokens=row.tokens,
            offset=row.offset,
            start=start,
            stop=min(start + tokens_per_pass, row.stop),
        )
        for start in range(0, row.stop, tokens_per_pass)
    ]


def predictions(pieces: Sequence[Piece], prompts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(predictor, target, index), each [N] long: place in [prompts' last hidden; packed hidden], token, flat
    place."""
    predictor, target, index = [], [], []
    packed = prompts
    for piece in pieces:
        first, fed = (piece.start == 0), piece.stop - piece.start
        places = np.arange(packed, packed + fed)
        predictor.append(np.concatenate([[piece.prompt], places]) if first else places)
        predicted = np.arange(0 if first else piece.start + 1, piece.stop + 1)
        target.append(piece.tokens[predicted])
        index.append(piece.offset + predicted)
        packed += fed
    flat = [np.concatenate(parts).astype(np.int64) for parts in (predictor, target, index)]
    return torch.from_numpy(flat[0]), torch.from_numpy(flat[1]), torch.from_numpy(flat[2])
