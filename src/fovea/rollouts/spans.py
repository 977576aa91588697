"""From a place in a reply's text to a token: where the action of a reply begins.

A reply is read as text and trained as tokens. Nothing is tokenized again, for text does not tokenize back to what was
sampled: prefixes of the sampled ids are decoded and compared with the whole, so any tokenizer will do.

Not here: finding the action in the text, and what is done with the tokens before and behind.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from fovea.models import Policy


def action_start(policy: Policy, token_ids: Sequence[int] | np.ndarray, text_offset: int) -> int:
    """Index of the first token whose text reaches beyond character `text_offset` of `policy.decode(token_ids)`.

    A token with only a part of a character (byte-level BPE) reaches that character; one whose text begins before the
    offset and ends behind it is beyond. The token that ends the reply is beyond every offset; without it an offset at
    the end of the text, or behind it, gives the number of tokens. Among bytes that are no character at all the place
    may be off within their run, where a tokenizer decodes a run otherwise than its parts. O(log T) decodes.

    Example: action_start(policy, policy.encode_reply("a b"), 0) == 0
    """
    ids = [int(token) for token in token_ids]
    text = policy.decode(ids)
    spoken = len(ids) - 1 if ids and ids[-1] in policy.eos_ids else len(ids)
    decode = policy.processor.tokenizer.decode

    def beyond(tokens: int) -> bool:
        prefixes = (decode(ids[:n], skip_special_tokens=False) for n in range(tokens, -1, -1))
        return reach(prefixes, text) > max(0, text_offset)

    # reach grows with the prefix; the first prefix that is beyond ends with the token that is asked for
    return bisect.bisect_left(range(1, spoken + 1), True, key=beyond)


# A character has four bytes at most: of a prefix that ends inside one, as many tokens hold bytes of it.
_PIECES = 3


def reach(prefixes: Iterable[str], whole: str) -> int:
    """Characters of `whole` that a decoded prefix touches; `prefixes` are it, and it without its last tokens one by
    one. Example: reach(["ab\\ufffd", "ab"], "abé") == 3

    A prefix that ends inside a character does not decode to a part of the whole: to replacement characters for that
    one, or, where a tokenizer falls back to bytes, for the whole run of bytes. So the prefixes before it are asked
    what it touches for certain, and it touches one more.
    """
    far = 0
    for i, prefix in enumerate(itertools.islice(prefixes, _PIECES + 1)):
        if whole.startswith(prefix):
            return max(far, len(prefix) + (i > 0))
        pairs = enumerate(zip(prefix, whole, strict=False))
        shared = next((j for j, (ours, theirs) in pairs if ours != theirs), len(whole))
        far = max(far, shared + 1)
    return far
