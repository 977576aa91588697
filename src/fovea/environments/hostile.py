"""Replies that nobody would write, to try a reader with: long, nested, half an action, in other scripts.

A function of (seed, n, names) alone. Example: next(hostile_texts(0, 1, ("left", "right")))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

LONGEST = 20_000
"""Characters; a reply of thousands of tokens is not longer."""

_PIECES = (
    " ", "\n", "\t", "(", ")", "[", "]", "{", "}", "<", ">", "</answer>", "<answer>", "<think>", '"', "'", "`", "\\",
    "-", "+", "*", "/", "=", "0", "9", "1e999", "nan", "-inf", "99999999999999999999", "0x1", "a", "A", "ß", "İ", "ﬁ",
    "́", "\u202e", "\u0000", "\ufffd", "\U0001f600", "١", "²", "½", ",", ".", ";", ":", "%s", "{0}", "{0.__class__}",
    "__import__('os')", "crop", "swap", "answer", "None", "true",
)  # fmt: skip
_LONE = "\ud800"
"""Half a surrogate pair: a Python string that no encoding takes."""


def hostile_texts(seed: int, n: int, names: Sequence[str]) -> Iterator[str]:
    """`n` texts. `names` are the legal actions, of which some texts are made."""
    rng = np.random.default_rng([seed, 5])
    fixed = [
        "",
        " ",
        "\n" * LONGEST,
        "(" * LONGEST,
        "9" * LONGEST,
        "-" * LONGEST,
        "a b " * (LONGEST // 4),
        _LONE,
    ]
    fixed += ["crop " + "1 " * (LONGEST // 2), "́" * LONGEST, "İ" * LONGEST, "swap 1 " + "9" * 5000]
    for number in range(n):
        yield fixed[number] if number < len(fixed) else _one(rng, names)


def _one(rng: np.random.Generator, names: Sequence[str]) -> str:
    name = names[int(rng.integers(len(names)))]
    manner = int(rng.integers(6))
    if manner == 0:  # one piece, over and over
        piece = _PIECES[int(rng.integers(len(_PIECES)))]
        return (piece * (LONGEST // len(piece)))[: int(rng.integers(1, LONGEST))]
    if manner == 1:  # a name with something missing or too much
        cut = int(rng.integers(len(name) + 1))
        return name[:cut] + _PIECES[int(rng.integers(len(_PIECES)))] + name[cut:]
    if manner == 2:  # names in a row
        return " ".join(names[int(i)] for i in rng.integers(len(names), size=int(rng.integers(2, 40))))
    if manner == 3:  # any characters, halves of surrogate pairs among them
        return "".join(map(chr, rng.integers(0, 0x11000, int(rng.integers(1, 400))).tolist()))
    chosen = rng.integers(len(_PIECES), size=int(rng.integers(1, 300)))
    mixed = "".join(_PIECES[int(i)] for i in chosen)
    return name + " " + mixed if manner == 4 else mixed
