"""Where an action begins, against the bytes of every token."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conformance.subject import subject
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fovea.models.policy import Policy
from fovea.rollouts.spans import action_start, reach

TEXTS = (
    '<think>The card is a 7.</think> {"action": "hit"}',
    "Ich gehe über die Brücke → dann links",
    "日本語のテキスト: 進む",
    "🙂 ok 👩‍👩‍👧 and 🇩🇪 then \U0001f600\U0001f600",
    "  spaces\n\n and \t tabs  ",
    "é" * 9 + "\ufffd" + "é",
    "日😀é" * 3,
    "<|im_end|> as text </s>",
    "x",
)
FALLBACK = ("gemma", "llama")
BYTE_LEVEL = ("qwen2_5_vl", "internvl", "idefics3", "llava_onevision", "gemma3", "qwen3_5")


def fallback_policy(kind: str) -> Policy:
    """A SentencePiece-like vocabulary: "▁" for a space, and bytes for what it has no letter for."""
    letters = sorted({*'abcdefghijklmnopqrstuvwxyz<>/{}":,.ITDBü▁\n\t', "▁a", "th", "▁th", "on"})
    pieces = ["<pad>", "<eos>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("t", "h"), ("▁", "th"), ("o", "n")]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    spaces = normalizers.Replace(" ", "▁")
    if kind == "llama":  # a space is put before every text and taken away again
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        made.normalizer = spaces
    made.decoder = decoders.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    like = subject("qwen2_5_vl").policy
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=1))
    return replace(like, processor=SimpleNamespace(tokenizer=tokenizer), model=model, reply_end=1)


def policy_of(kind: str) -> Policy:
    return fallback_policy(kind) if kind in FALLBACK else subject(kind).policy


def bytes_of(policy: Policy, kind: str, token: int) -> bytes:
    piece = policy.processor.tokenizer.convert_ids_to_tokens(token)
    if kind not in FALLBACK:
        table = {letter: byte for byte, letter in bytes_to_unicode().items()}
        return bytes(table[letter] for letter in piece)
    if piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return str(piece.replace("▁", " ")).encode()


def by_bytes(policy: Policy, kind: str, ids: list[int], text: str, offset: int) -> int:
    """The first of `ids` (without an end) with a byte of character `offset` or of a later one."""
    place = len(text[:offset].encode()) + (kind == "llama")  # its space before the text
    ends = np.cumsum([len(bytes_of(policy, kind, token)) for token in ids])
    return int(np.searchsorted(ends, place, side="right"))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *FALLBACK])
def test_every_offset_of_every_text_agrees_with_the_bytes(kind: str, text: str) -> None:
    policy = policy_of(kind)
    ids = policy.encode_reply(text)
    assert policy.decode(ids) == text
    spoken = ids[:-1].tolist()
    for offset in range(len(text)):
        expected = by_bytes(policy, kind, spoken, text, offset)
        assert action_start(policy, ids, offset) == expected
        assert action_start(policy, spoken, offset) == expected


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *FALLBACK])
def test_the_ends(kind: str) -> None:
    policy = policy_of(kind)
    ids = policy.encode_reply("a thing")
    assert action_start(policy, ids, 0) == action_start(policy, ids, -3) == 0
    assert action_start(policy, ids, len("a thing")) == action_start(policy, ids, 999) == len(ids) - 1
    assert action_start(policy, ids[:-1], len("a thing")) == len(ids) - 1
    assert action_start(policy, ids[-1:], 0) == 0
    assert action_start(policy, [], 0) == 0


def test_a_character_in_pieces_is_reached_by_its_first_piece() -> None:
    policy = subject("qwen2_5_vl").policy
    letters = bytes_to_unicode()
    pieces = [letters[byte] for byte in "a😀b".encode()]
    ids = policy.processor.tokenizer.convert_tokens_to_ids(pieces)
    assert policy.decode(ids) == "a😀b"
    assert [action_start(policy, ids, offset) for offset in range(4)] == [0, 1, 5, 6]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_random_ids_whatever_they_decode_to(kind: str) -> None:
    """Bytes that are no text: the search finds what looking at every prefix finds, and offsets are in order."""
    policy = policy_of(kind)
    draw = np.random.default_rng(0)
    for _ in range(40):
        ids = draw.integers(0, 300, 24).tolist()
        if ids[-1] in policy.eos_ids:
            ids.pop()
        text = policy.decode(ids)
        prefixes = [policy.processor.tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)]
        reached = [reach(prefixes[n + 1 :: -1], text) for n in range(len(ids))]
        starts = [action_start(policy, ids, offset) for offset in range(len(text))]
        assert starts == sorted(starts)
        for offset, start in enumerate(starts):
            assert start == next(i for i, far in enumerate(reached) if far > offset)


@pytest.mark.parametrize("kind", FALLBACK)
def test_hostile_bytes_give_a_token_of_the_reply(kind: str) -> None:
    policy = policy_of(kind)
    draw = np.random.default_rng(1)
    for _ in range(40):
        ids = draw.integers(2, 300, 24).tolist()
        for offset in range(len(policy.decode(ids)) + 2):
            assert 0 <= action_start(policy, ids, offset) <= len(ids)


@pytest.mark.parametrize("kind", FALLBACK)
def test_a_reply_that_was_cut_inside_a_character(kind: str) -> None:
    """The whole run of bytes is then no text, and every byte of it one replacement character."""
    policy = policy_of(kind)
    ids = policy.encode_reply("on 日本")[:-2]
    text = policy.decode(ids)
    assert text.endswith("\ufffd" * 5)
    before = len(ids) - 5
    for i in range(5):
        assert action_start(policy, ids, len(text) - 5 + i) == before + i


def test_few_prefixes_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = fallback_policy("gemma")
    ids = policy.encode_reply("the thing on a line. " * 100)
    tokenizer, calls = policy.processor.tokenizer, []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda *a, **k: (calls.append(1), decode(*a, **k))[1])
    action_start(policy, ids, 1000)
    assert len(ids) > 1000
    assert len(calls) <= 13
