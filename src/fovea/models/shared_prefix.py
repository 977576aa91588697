"""Many completions of one prompt, the prompt encoded once: scored and differentiated (architecture.md §5).

    prefill(policy, prompts)                              keys, values, last hidden state of each prompt
    score(policy, prompts, rows, sampling)                log-probs and entropies, no gradient
    backward(policy, prompts, rows, sampling, loss, ...)  the same with gradients, by *leaves*

Leaves: the prompts' keys and values (and the hidden state that predicts the first completion token) are cut
from the graph; completions stream through in passes of `tokens_per_pass` tokens and add to the leaves'
gradient; then one backward goes through the prompts, vision tower included. A completion longer than a pass
is cut into segments, last one first, whose past keys and values are leaves too. Peak memory is the prompts
plus one pass.

Tokens are packed without padding. Position ids always come from the prompt; `rope_deltas` is never read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fovea.models.adapter import Prompt
from fovea.models.attention import AttendPlan, CapturePlan, row_groups, segments_of
from fovea.models.head import token_log_probs
from fovea.models.policy import Policy
from fovea.types import Sampling

Row = tuple[int, np.ndarray]
"""(index into prompts, token ids [T])."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(index [N] long into the concatenation of all rows' tokens, log_probs [N], entropy [N]) -> scalar,
additive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """Encoded prompts. Layers x distinct prompts, ragged, never expanded to completions."""

    keys: tuple[tuple[Tensor, ...], ...]
    """[layer][prompt] -> [1, KV, P, D], after RoPE."""
    values: tuple[tuple[Tensor, ...], ...]
    """As `keys`."""
    last_hidden: Tensor
    """[prompts, width]: predicts the first completion token."""
    index: tuple[int, ...]
    """For each prompt as given, its place among the distinct ones."""


def prefill(policy: Policy, prompts: Sequence[Prompt]) -> Prefix:
    """Encode prompts; identical objects once. Keeps the graph where gradients are enabled."""
    distinct = list({id(prompt): prompt for prompt in prompts}.values())
    place = {id(prompt): i for i, prompt in enumerate(distinct)}
    device, family, model = policy.device, policy.family, policy.model
    lengths = [len(prompt.token_ids) for prompt in distinct]
    plan = CapturePlan(segments=segments_of(lengths, device))
    pictures = [prompt for prompt in distinct if prompt.pixel_values is not None]
    images = None
    if pictures:
        pixels = torch.cat([prompt.pixel_values for prompt in pictures if prompt.pixel_values is not None])
        images = family.encode_images(
            model, pixels.to(device), torch.cat([prompt.grids for prompt in pictures]).to(device)
        )
    tokens = torch.cat([prompt.token_ids for prompt in distinct])[None].to(device)
    mask = torch.cat([prompt.image_mask for prompt in distinct])[None].to(device)
    hidden = family.text_model(model)(
        **family.place(model, tokens, mask, images),
        position_ids=torch.cat([prompt.positions for prompt in distinct], dim=1)[:, None].to(device),
        use_cache=False,
        shared_prefix=plan,
    ).last_hidden_state[0]
    ends = torch.tensor(lengths, device=device).cumsum(0) - 1
    layers = range(len(plan.keys))
    return Prefix(
        keys=tuple(plan.keys[layer].split(lengths, dim=2) for layer in layers),
        values=tuple(plan.values[layer].split(lengths, dim=2) for layer in layers),
        last_hidden=hidden.index_select(0, ends),
        index=tuple(place[id(prompt)] for prompt in prompts),
    )


def score(
    policy: Policy,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    sampling: Sampling,
    *,
    tokens_per_pass: int = 8192,
) -> tuple[Tensor, Tensor]:
    """(log_probs, entropy), each [sum of T] float32 in the order of `rows`, of the `Sampling` distribution.

    Temperature 0 counts as 1. Raises ValueError for an empty row or a row with a banned token.
    """
    _check(policy, prompts, rows, sampling)
    total = sum(len(tokens) for _, tokens in rows)
    log_probs = torch.empty(total, device=policy.device, dtype=_wide(policy))
    entropy = torch.empty_like(log_probs)
    with torch.no_grad():
        for batch in _batches(prompts, rows, tokens_per_pass):
            prefix = prefill(policy, batch.prompts)
            for pieces in batch.passes:
                out = _forward(policy, batch, prefix, pieces, sampling)
                log_probs[out.index], entropy[out.index] = out.log_probs, out.entropy
            for row in batch.long_rows:
                for out in _segments(policy, batch, prefix, row, sampling, tokens_per_pass):
                    log_probs[out.index], entropy[out.index] = out.log_probs, out.entropy
    return log_probs, entropy


def backward(
    policy: Policy,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    sampling: Sampling,
    loss: Loss,
    tokens_per_pass: int = 8192,
) -> float:
    """Accumulate the gradient of `loss` in the parameters' `.grad`; nothing else is touched. Returns the
    loss.

    `loss` is called once a pass with that pass's tokens and must be additive over tokens. Raises ValueError
    for an empty row or a row with a banned token.
    """
    _check(policy, prompts, rows, sampling)
    total = 0.0
    with torch.enable_grad():
        for batch in _batches(prompts, rows, tokens_per_pass):
            captured = prefill(policy, batch.prompts)
            leaves = Prefix(
                keys=tuple(tuple(map(_leaf, layer)) for layer in captured.keys),
                values=tuple(tuple(map(_leaf, layer)) for layer in captured.values),
                last_hidden=_leaf(captured.last_hidden),
                index=captured.index,
            )
            for pieces in batch.passes:
                out = _forward(policy, batch, leaves, pieces, sampling)
                value = loss(out.index, out.log_probs, out.entropy)
                value.backward()
                total += float(value.detach())
                del out, value
            for row in batch.long_rows:
                total += _backward_long(policy, batch, leaves, row, sampling, loss, tokens_per_pass)
            pairs = [(c, l.grad) for c, l in zip(_tensors(captured), _tensors(leaves)) if l.grad is not None]
            if pairs:
                torch.autograd.backward([c for c, _ in pairs], [g for _, g in pairs])
    return total


# ---------------------------------------------------------------- what goes through together


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
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
class _Batch:
    """Prompts that are encoded together and the completions that go with them."""

    prompts: list[Prompt]
    passes: list[list[_Piece]]
    long_rows: list[_Piece]


def _check(policy: Policy, prompts: Sequence[Prompt], rows: Sequence[Row], sampling: Sampling) -> None:
    bans = np.array(policy.bans(sampling))
    for i, (prompt, tokens) in enumerate(rows):
        if len(tokens) == 0 or not 0 <= prompt < len(prompts):
            raise ValueError(f"row {i} needs at least one token and a prompt index below {len(prompts)}")
        if np.isin(tokens, bans).any():
            raise ValueError(f"row {i} holds a banned token (a media token or one of sampling.bans)")


def _batches(prompts: Sequence[Prompt], rows: Sequence[Row], tokens_per_pass: int) -> Iterator[_Batch]:
    """Distinct prompts in the order of first use, together while their tokens stay within a pass."""
    offsets = np.cumsum([0, *(len(tokens) for _, tokens in rows)])
    by_prompt: dict[int, list[_Piece]] = defaultdict(list)
    objects: dict[int, Prompt] = {}
    for i, (index, tokens) in enumerate(rows):
        prompt = prompts[index]
        objects[id(prompt)] = prompt
        piece = _Piece(prompt=0, tokens=tokens, offset=int(offsets[i]), start=0, stop=len(tokens) - 1)
        by_prompt[id(prompt)].append(piece)
    together: list[int] = []
    size = 0
    for key in by_prompt:
        length = len(objects[key].token_ids)
        if together and size + length > tokens_per_pass:
            yield _batch([(objects[k], by_prompt[k]) for k in together], tokens_per_pass)
            together, size = [], 0
        together.append(key)
        size += length
    if together:
        yield _batch([(objects[k], by_prompt[k]) for k in together], tokens_per_pass)


def _batch(groups: list[tuple[Prompt, list[_Piece]]], tokens_per_pass: int) -> _Batch:
    passes: list[list[_Piece]] = []
    long_rows: list[_Piece] = []
    room = 0
    for place, (_, pieces) in enumerate(groups):
        for piece in pieces:
            placed = _Piece(prompt=place, tokens=piece.tokens, offset=piece.offset, start=0, stop=piece.stop)
            if piece.stop > tokens_per_pass:
                long_rows.append(placed)
            elif passes and len(piece.tokens) <= room:
                passes[-1].append(placed)
                room -= len(piece.tokens)
            else:
                passes.append([placed])
                room = tokens_per_pass - len(piece.tokens)
    return _Batch(prompts=[prompt for prompt, _ in groups], passes=passes, long_rows=long_rows)


# ---------------------------------------------------------------- one pass


@dataclass(frozen=True, kw_only=True, slots=True)
class _Out:
    """What one pass predicts, and the keys and values of its own tokens."""

    index: Tensor
    """[N] long, into the concatenation of all rows' tokens."""
    log_probs: Tensor
    entropy: Tensor
    own_keys: list[Tensor]
    """[layer] -> [1, KV, fed tokens, D]."""
    own_values: list[Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Past:
    """Keys and values, [layer] -> [1, KV, start, D], of a long completion's earlier segments."""

    keys: list[Tensor]
    values: list[Tensor]


def _forward(
    policy: Policy,
    batch: _Batch,
    prefix: Prefix,
    pieces: Sequence[_Piece],
    sampling: Sampling,
    past: _Past | None = None,
) -> _Out:
    """Log-probs of the pieces' tokens (pieces ordered by prompt; with `past` exactly one piece)."""
    device = policy.device
    hidden = prefix.last_hidden
    own_keys: list[Tensor] = []
    own_values: list[Tensor] = []
    fed = [piece for piece in pieces if piece.stop > piece.start]
    if fed:
        packed, own_keys, own_values = _hidden(policy, batch, prefix, fed, past)
        hidden = torch.cat([hidden, packed])
    predictor, target, index = _predictions(pieces, len(prefix.last_hidden))
    hidden = hidden.index_select(0, predictor.to(device))
    log_probs, entropy = token_log_probs(policy, hidden, target.to(device), sampling)
    return _Out(
        index=index.to(device),
        log_probs=log_probs,
        entropy=entropy,
        own_keys=own_keys,
        own_values=own_values,
    )


def _hidden(
    policy: Policy, batch: _Batch, prefix: Prefix, fed: Sequence[_Piece], past: _Past | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(hidden [N, width], own keys, own values by layer) of the pieces' fed tokens, packed."""
    plan = _attend_plan(prefix, fed, past, policy.device)
    tokens = np.concatenate([piece.tokens[piece.start : piece.stop] for piece in fed])
    steps = np.concatenate([batch.prompts[p.prompt].next_position + np.arange(p.start, p.stop) for p in fed])
    packed = policy.family.text_model(policy.model)(
        inputs_embeds=policy.model.get_input_embeddings()(torch.from_numpy(tokens).to(policy.device)[None]),
        position_ids=torch.from_numpy(steps).to(policy.device).expand(3, 1, -1),
        use_cache=False,
        shared_prefix=plan,
    ).last_hidden_state[0]
    layers = range(len(prefix.keys))
    return packed, [plan.own_keys[layer] for layer in layers], [plan.own_values[layer] for layer in layers]


def _attend_plan(
    prefix: Prefix, fed: Sequence[_Piece], past: _Past | None, device: torch.device
) -> AttendPlan:
    spans: dict[int, list[int]] = {}
    end = 0
    for piece in fed:
        start, end = end, end + piece.stop - piece.start
        spans.setdefault(piece.prompt, [start, end])[1] = end
    keys = [tuple(layer[prompt] for prompt in spans) for layer in prefix.keys]
    values = [tuple(layer[prompt] for prompt in spans) for layer in prefix.values]
    if past is not None:
        assert len(fed) == 1, "a segment goes alone: its past is part of its prefix"
        keys = [(torch.cat([k, own], dim=2),) for (k,), own in zip(keys, past.keys, strict=True)]
        values = [(torch.cat([v, own], dim=2),) for (v,), own in zip(values, past.values, strict=True)]
    return AttendPlan(
        spans=tuple((a, b) for a, b in spans.values()),
        rows=row_groups([piece.stop - piece.start for piece in fed], device),
        prefix_keys=tuple(keys),
        prefix_values=tuple(values),
    )


def _predictions(pieces: Sequence[_Piece], prompts: int) -> tuple[Tensor, Tensor, Tensor]:
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


# ---------------------------------------------------------------- completions longer than a pass


def _cut(row: _Piece, tokens_per_pass: int) -> list[_Piece]:
    return [
        _Piece(
            prompt=row.prompt,
            tokens=row.tokens,
            offset=row.offset,
            start=start,
            stop=min(start + tokens_per_pass, row.stop),
        )
        for start in range(0, row.stop, tokens_per_pass)
    ]


def _segments(
    policy: Policy, batch: _Batch, prefix: Prefix, row: _Piece, sampling: Sampling, tokens_per_pass: int
) -> Iterator[_Out]:
    """Forward through a long row, segment after segment (call under no_grad)."""
    past: _Past | None = None
    for piece in _cut(row, tokens_per_pass):
        out = _forward(policy, batch, prefix, [piece], sampling, past)
        yield out
        past = _longer(past, out.own_keys, out.own_values)


def _longer(past: _Past | None, keys: list[Tensor], values: list[Tensor]) -> _Past:
    if past is None:
        return _Past(keys=keys, values=values)
    return _Past(
        keys=[torch.cat(pair, dim=2) for pair in zip(past.keys, keys, strict=True)],
        values=[torch.cat(pair, dim=2) for pair in zip(past.values, values, strict=True)],
    )


def _backward_long(
    policy: Policy,
    batch: _Batch,
    leaves: Prefix,
    row: _Piece,
    sampling: Sampling,
    loss: Loss,
    tokens_per_pass: int,
) -> float:
    """Segments in reverse: each is recomputed with its past as leaves, then takes the gradient that later
    segments left on its own keys and values."""
    total = 0.0
    pieces = _cut(row, tokens_per_pass)
    own = _own_store(policy, batch, leaves, pieces)
    d_own = [torch.zeros_like(x) for x in own]
    for piece in reversed(pieces):
        a, b = piece.start, piece.stop
        past_leaves = [x[:, :, :a].detach().requires_grad_() for x in own] if a else []
        half = len(past_leaves) // 2
        past = _Past(keys=past_leaves[:half], values=past_leaves[half:]) if a else None
        out = _forward(policy, batch, leaves, [piece], sampling, past)
        value = loss(out.index, out.log_probs, out.entropy)
        later = []
        if b < row.stop:
            mine = zip([*out.own_keys, *out.own_values], d_own, strict=True)
            later = [(x, gradient[:, :, a:b]) for x, gradient in mine if x.requires_grad]
        torch.autograd.backward(
            [value, *(x for x, _ in later)], [torch.ones_like(value), *(gradient for _, gradient in later)]
        )
        for gradient, leaf in zip(d_own, past_leaves):
            if leaf.grad is not None:
                gradient[:, :, :a] += leaf.grad
        total += float(value.detach())
        del out, value, later, past, past_leaves
    return total


def _own_store(policy: Policy, batch: _Batch, prefix: Prefix, pieces: Sequence[_Piece]) -> list[Tensor]:
    """Keys of every layer, then values of every layer, [1, KV, n, D], of all segments but the last; no
    gradient."""
    past: _Past | None = None
    with torch.no_grad():
        for piece in pieces[:-1]:
            _, keys, values = _hidden(policy, batch, prefix, [piece], past)
            past = _longer(past, keys, values)
    assert past is not None, "a long row has at least two segments"
    return [*past.keys, *past.values]


def _leaf(x: Tensor) -> Tensor:
    """Cut from the graph; takes a gradient only where something below is trained."""
    return x.detach().requires_grad_(x.requires_grad)


def _tensors(prefix: Prefix) -> list[Tensor]:
    return [x for store in (prefix.keys, prefix.values) for layer in store for x in layer] + [
        prefix.last_hidden
    ]


def _wide(policy: Policy) -> torch.dtype:
    """float32, or float64 for a float64 model."""
    return torch.promote_types(next(policy.model.parameters()).dtype, torch.float32)
