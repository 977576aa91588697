"""Many completions of one prompt, the prompt encoded once: scored and differentiated (architecture.md §5).

    prefill(policy, prompts)                              keys, values, last hidden state of each prompt
    score(policy, prompts, rows, sampling)                log-probs and entropies, no gradient
    backward(policy, prompts, rows, sampling, loss, ...)  the same with gradients, by *leaves*

Leaves: the prompts' keys and values (and the hidden state that predicts the first completion token) are cut
from the graph; completions stream through in passes of `tokens_per_pass` tokens and add to the leaves'
gradient; then one backward goes through the prompts, vision tower included. A completion longer than a pass
is cut into segments, last one first, whose past keys and values are leaves too. The state that a recurrent
layer keeps of a prompt (`recurrent.py`) is a leaf like its keys. Peak memory is the prompts plus one pass.

Tokens are packed without padding. Position ids always come from the prompt; `rope_deltas` is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fovea.models.adapter import Prompt, run_text
from fovea.models.attention import CapturePlan, segments_of
from fovea.models.cascade import AttendPlan, row_groups
from fovea.models.head import token_log_probs
from fovea.models.packing import Batch, Piece, Row, batches, cut, predictions
from fovea.models.policy import Policy
from fovea.models.recompute import recomputing
from fovea.models.recurrent import State, completion_rows, prompt_rows, take
from fovea.types import Sampling

__all__ = [
    "Loss",
    "Losses",
    "Prefix",
    "Row",
    "ValueLoss",
    "backward",
    "check_rows",
    "encoded",
    "gradient_pairs",
    "leaves_of",
    "prefill",
    "runs",
    "score",
    "through_completions",
]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(index [N] long into the concatenation of all rows' tokens, log_probs [N], entropy [N]) -> scalar,
additive."""

ValueLoss = Callable[[Tensor, Tensor], Tensor]
"""(index [N] as above, values [N]: what the critic expects before each token) -> scalar, additive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """Encoded prompts. Layers x distinct prompts, ragged, never expanded to completions."""

    keys: dict[int, tuple[Tensor, ...]]
    """Attention layer -> for each distinct prompt [1, KV, P, D], after RoPE."""
    values: dict[int, tuple[Tensor, ...]]
    """As `keys`."""
    last_hidden: Tensor
    """[prompts, width]: predicts the first completion token."""
    index: tuple[int, ...]
    """For each prompt as given, its place among the distinct ones."""
    states: dict[int, State] = field(default_factory=dict)
    """Recurrent layer -> the state after every distinct prompt."""


def prefill(policy: Policy, prompts: Sequence[Prompt]) -> Prefix:
    """Encode prompts; identical objects once. Keeps the graph where gradients are enabled."""
    distinct = list({id(prompt): prompt for prompt in prompts}.values())
    place = {id(prompt): i for i, prompt in enumerate(distinct)}
    device, family, model = policy.device, policy.family, policy.model
    lengths = [len(prompt.token_ids) for prompt in distinct]
    blocks = [runs(prompt.image_mask) for prompt in distinct] if family.picture_blocks else None
    plan = CapturePlan(
        segments=segments_of(lengths, device, blocks),
        recurrence=prompt_rows(lengths, device) if family.recurrent else None,
    )
    images = policy.vision_cache.encode(family, model, distinct, device)
    tokens = torch.cat([prompt.token_ids for prompt in distinct])[None].to(device)
    mask = torch.cat([prompt.image_mask for prompt in distinct])[None].to(device)
    positions = torch.cat([prompt.positions for prompt in distinct], dim=1).to(device)
    hidden = run_text(family, model, family.place(model, tokens, mask, images), positions, plan)
    ends = torch.tensor(lengths, device=device).cumsum(0) - 1
    return Prefix(
        keys={layer: keys.split(lengths, dim=2) for layer, keys in plan.keys.items()},
        values={layer: values.split(lengths, dim=2) for layer, values in plan.values.items()},
        last_hidden=hidden.index_select(0, ends),
        index=tuple(place[id(prompt)] for prompt in prompts),
        states={} if plan.recurrence is None else plan.recurrence.after,
    )


def prefill_rollout(policy: Policy, prompts: Sequence[Prompt]) -> Prefix:
    """`prefill` without gradients; inside `keeping` the graph is kept for the update."""
    distinct = list({id(prompt): prompt for prompt in prompts}.values())
    if not policy.kept.wants(distinct):
        return prefill(policy, prompts)
    with torch.enable_grad(), recomputing(policy.model, policy.recompute):
        captured = prefill(policy, prompts)
    policy.kept.put(policy.version, distinct, captured)
    return _mapped(Tensor.detach, captured)


def runs(mask: Tensor) -> tuple[tuple[int, int], ...]:
    """The [start, stop) of each run of True in `mask` [P] bool.

    Example: runs(tensor([False, True, True, False, True])) == ((1, 3), (4, 5))
    """
    edges = torch.diff(torch.nn.functional.pad(mask.int(), (1, 1)))
    return tuple(
        zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True)
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
    check_rows(policy, prompts, rows, sampling)
    tokens_per_pass = max(2, tokens_per_pass)
    total = sum(len(tokens) for _, tokens in rows)
    log_probs = torch.empty(total, device=policy.device, dtype=_wide(policy))
    entropy = torch.empty_like(log_probs)
    with torch.no_grad():
        for batch in batches(prompts, rows, tokens_per_pass, policy.family.recurrent):
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
    value_loss: ValueLoss | None = None,
) -> float:
    """Accumulate the gradient of `loss` in the parameters' `.grad`; nothing else is touched. Returns the
    loss.

    `loss` is called once a pass with that pass's tokens and must be additive over tokens; so must `value_loss`, which
    is added where the policy has a critic. Raises ValueError for an empty row or a row with a banned token.
    """
    check_rows(policy, prompts, rows, sampling)
    tokens_per_pass = max(2, tokens_per_pass)
    total = 0.0
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    both = Losses(loss=loss, value_loss=value_loss)
    with torch.enable_grad(), recomputing(policy.model, policy.recompute):
        for batch in batches(prompts, rows, tokens_per_pass, policy.family.recurrent):
            captured = encoded(policy, batch.prompts)
            leaves = leaves_of(captured)
            total += through_completions(policy, batch, leaves, sampling, both, tokens_per_pass)
            pairs = gradient_pairs(captured, leaves)
            if pairs:
                # pixels that an intervention asked about take a gradient, too, which nobody wants here
                inputs = trained if any(_pixels_learn(prompt) for prompt in batch.prompts) else None
                torch.autograd.backward([c for c, _ in pairs], [g for _, g in pairs], inputs=inputs)
    return total


def _pixels_learn(prompt: Prompt) -> bool:
    return any(media.requires_grad for media in prompt.media.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """What is differentiated of a pass."""

    loss: Loss
    value_loss: ValueLoss | None = None

    def of(self, out: _Out) -> Tensor:
        total = self.loss(out.index, out.log_probs, out.entropy)
        if self.value_loss is None:
            return total
        assert out.values is not None, "a value loss needs a critic"
        return total + self.value_loss(out.index, out.values)


def through_completions(
    policy: Policy, batch: Batch, leaves: Prefix, sampling: Sampling, loss: Losses, tokens_per_pass: int
) -> float:
    """Forward and backward through a batch's completions, down to the leaves. Returns the loss."""
    total = 0.0
    for pieces in batch.passes:
        out = _forward(policy, batch, leaves, pieces, sampling)
        value = loss.of(out)
        value.backward()
        total += float(value.detach())
        del out, value
    for row in batch.long_rows:
        total += _backward_long(policy, batch, leaves, row, sampling, loss, tokens_per_pass)
    return total


def leaves_of(captured: Prefix) -> Prefix:
    """The same, cut from the graph."""
    return _mapped(_leaf, captured)


def gradient_pairs(captured: Prefix, leaves: Prefix) -> list[tuple[Tensor, Tensor]]:
    """(tensor of the prompts' graph, gradient that its leaf has got), where there is one."""
    pairs = zip(_tensors(captured), _tensors(leaves), strict=True)
    return [(tensor, leaf.grad) for tensor, leaf in pairs if leaf.grad is not None]


def check_rows(policy: Policy, prompts: Sequence[Prompt], rows: Sequence[Row], sampling: Sampling) -> None:
    """Raises ValueError for an empty row, a row of no prompt, or one with a banned token."""
    bans = np.array(policy.bans(sampling))
    for i, (prompt, tokens) in enumerate(rows):
        if len(tokens) == 0 or not 0 <= prompt < len(prompts):
            raise ValueError(f"row {i} needs at least one token and a prompt index below {len(prompts)}")
        if np.isin(tokens, bans).any():
            raise ValueError(f"row {i} holds a banned token (a media token or one of sampling.bans)")


# ---------------------------------------------------------------- one pass


@dataclass(frozen=True, kw_only=True, slots=True)
class _Past:
    """What a long completion's earlier segments leave: keys and values [1, KV, start, D] by attention layer, and the
    state after them by recurrent layer."""

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    states: dict[int, State]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Out:
    """What one pass predicts, and what it leaves (of its own tokens; states only of a row that goes alone)."""

    index: Tensor
    """[N] long, into the concatenation of all rows' tokens."""
    log_probs: Tensor
    entropy: Tensor
    values: Tensor | None
    """What the critic expects before each token; None without one."""
    own: _Past


def _forward(
    policy: Policy,
    batch: Batch,
    prefix: Prefix,
    pieces: Sequence[Piece],
    sampling: Sampling,
    past: _Past | None = None,
) -> _Out:
    """Log-probs of the pieces' tokens (pieces ordered by prompt; with `past` exactly one piece)."""
    device = policy.device
    hidden = prefix.last_hidden
    own = _Past(keys={}, values={}, states={})
    fed = [piece for piece in pieces if piece.stop > piece.start]
    if fed:
        packed, own = _hidden(policy, batch, prefix, fed, past)
        hidden = torch.cat([hidden, packed])
    predictor, target, index = predictions(pieces, len(prefix.last_hidden))
    hidden = hidden.index_select(0, predictor.to(device))
    log_probs, entropy = token_log_probs(policy, hidden, target.to(device), sampling)
    values = None if policy.critic is None else policy.critic(hidden)
    return _Out(index=index.to(device), log_probs=log_probs, entropy=entropy, values=values, own=own)


def _hidden(
    policy: Policy, batch: Batch, prefix: Prefix, fed: Sequence[Piece], past: _Past | None
) -> tuple[Tensor, _Past]:
    """(hidden [N, width] of the pieces' fed tokens, packed; what they leave)."""
    plan = _attend_plan(prefix, fed, past, policy.device)
    tokens = np.concatenate([piece.tokens[piece.start : piece.stop] for piece in fed])
    steps = np.concatenate([batch.prompts[p.prompt].next_position + np.arange(p.start, p.stop) for p in fed])
    embeds = policy.model.get_input_embeddings()(torch.from_numpy(tokens).to(policy.device)[None])
    positions = torch.from_numpy(steps).to(policy.device).expand(len(batch.prompts[0].positions), -1)
    packed = run_text(policy.family, policy.model, {"inputs_embeds": embeds}, positions, plan)
    after = {} if plan.recurrence is None else plan.recurrence.after
    return packed, _Past(keys=plan.own_keys, values=plan.own_values, states=after)


def _attend_plan(
    prefix: Prefix, fed: Sequence[Piece], past: _Past | None, device: torch.device
) -> AttendPlan:
    spans: dict[int, list[int]] = {}
    end = 0
    for piece in fed:
        start, end = end, end + piece.stop - piece.start
        spans.setdefault(piece.prompt, [start, end])[1] = end
    keys = {layer: tuple(each[prompt] for prompt in spans) for layer, each in prefix.keys.items()}
    values = {layer: tuple(each[prompt] for prompt in spans) for layer, each in prefix.values.items()}
    states = prefix.states
    if past is None and states:
        states = take(states, torch.tensor([piece.prompt for piece in fed], device=device))
    if past is not None:
        assert len(fed) == 1, "a segment goes alone: its past is part of its prefix"
        keys = {layer: (torch.cat([k, past.keys[layer]], dim=2),) for layer, (k,) in keys.items()}
        values = {layer: (torch.cat([v, past.values[layer]], dim=2),) for layer, (v,) in values.items()}
        states = past.states
    lengths = tuple(piece.stop - piece.start for piece in fed)
    return AttendPlan(
        lengths=lengths,
        spans=tuple((a, b) for a, b in spans.values()),
        rows=row_groups(lengths, device),
        prefix_keys=keys,
        prefix_values=values,
        recurrence=completion_rows(lengths, states, device) if states else None,
    )


# ---------------------------------------------------------------- completions longer than a pass


def _segments(
    policy: Policy, batch: Batch, prefix: Prefix, row: Piece, sampling: Sampling, tokens_per_pass: int
) -> Iterator[_Out]:
    """Forward through a long row, segment after segment (call under no_grad)."""
    past: _Past | None = None
    for piece in cut(row, tokens_per_pass):
        out = _forward(policy, batch, prefix, [piece], sampling, past)
        yield out
        past = _longer(past, out.own)


def _longer(past: _Past | None, own: _Past) -> _Past:
    if past is None:
        return own
    return _Past(
        keys={layer: torch.cat([past.keys[layer], keys], dim=2) for layer, keys in own.keys.items()},
        values={layer: torch.cat([past.values[layer], v], dim=2) for layer, v in own.values.items()},
        states=own.states,
    )


def _backward_long(
    policy: Policy,
    batch: Batch,
    leaves: Prefix,
    row: Piece,
    sampling: Sampling,
    loss: Losses,
    tokens_per_pass: int,
) -> float:
    """Segments in reverse: each is recomputed with its past as leaves, then takes the gradient that later
    segments left on its own keys and values, and on its last state."""
    total = 0.0
    pieces = cut(row, tokens_per_pass)
    own, states = _own_store(policy, batch, leaves, pieces)
    d_own = [torch.zeros_like(x) for x in _listed(own)]
    d_state: list[Tensor | None] = []
    for i, piece in reversed(list(enumerate(pieces))):
        a, b = piece.start, piece.stop
        past = _leaf_past(own, states[i - 1], a) if a else None
        out = _forward(policy, batch, leaves, [piece], sampling, past)
        value = loss.of(out)
        later: list[tuple[Tensor, Tensor]] = []
        if b < row.stop:
            mine = zip(_listed(out.own), d_own, strict=True)
            later = [(x, gradient[:, :, a:b]) for x, gradient in mine if x.requires_grad]
            last = [x for layer in sorted(out.own.states) for x in out.own.states[layer]]
            pairs = zip(last, d_state, strict=True)
            later += [(x, gradient) for x, gradient in pairs if gradient is not None and x.requires_grad]
        torch.autograd.backward(
            [value, *(x for x, _ in later)], [torch.ones_like(value), *(gradient for _, gradient in later)]
        )
        if past is not None:
            for gradient, leaf in zip(d_own, _listed(past), strict=True):
                if leaf.grad is not None:
                    gradient[:, :, :a] += leaf.grad
            d_state = [x.grad for layer in sorted(past.states) for x in past.states[layer]]
        total += float(value.detach())
        del out, value, later, past
    return total


def _listed(past: _Past) -> list[Tensor]:
    """Keys of every layer, then values of every layer, each [1, KV, n, D]."""
    return [store[layer] for store in (past.keys, past.values) for layer in sorted(store)]


def _leaf_past(own: _Past, states: dict[int, State], stop: int) -> _Past:
    """The first `stop` tokens' keys and values, and the state after them, as leaves that take a gradient."""
    return _Past(
        keys={layer: x[:, :, :stop].detach().requires_grad_() for layer, x in own.keys.items()},
        values={layer: x[:, :, :stop].detach().requires_grad_() for layer, x in own.values.items()},
        states={
            layer: State(*(x.detach().requires_grad_() for x in state)) for layer, state in states.items()
        },
    )


def _own_store(
    policy: Policy, batch: Batch, prefix: Prefix, pieces: Sequence[Piece]
) -> tuple[_Past, list[dict[int, State]]]:
    """Keys and values of all segments but the last, and the states after each of them; no gradient."""
    past: _Past | None = None
    states = []
    with torch.no_grad():
        for piece in pieces[:-1]:
            _, own = _hidden(policy, batch, prefix, [piece], past)
            past = _longer(past, own)
            states.append(own.states)
    assert past is not None, "a long row has at least two segments"
    return past, states


def _leaf(x: Tensor) -> Tensor:
    """Cut from the graph; takes a gradient only where something below is trained."""
    return x.detach().requires_grad_(x.requires_grad)


def encoded(policy: Policy, prompts: Sequence[Prompt], *, keep: bool = False) -> Prefix:
    """The distinct prompts with their graph: that of the rollout where it was kept, else encoded now.

    `keep`: what was kept stays there for the update; a backward pass through it must then retain the graph."""
    kept = policy.kept.take(policy.version, prompts, keep=keep)
    if kept is None:
        return prefill(policy, prompts)
    prefix, places = kept
    index = torch.tensor(places, device=prefix.last_hidden.device)
    return Prefix(
        keys={layer: tuple(each[i] for i in places) for layer, each in prefix.keys.items()},
        values={layer: tuple(each[i] for i in places) for layer, each in prefix.values.items()},
        last_hidden=prefix.last_hidden.index_select(0, index),
        index=tuple(range(len(places))),
        states=take(prefix.states, index),
    )


def _mapped(each_tensor: Callable[[Tensor], Tensor], prefix: Prefix) -> Prefix:
    return Prefix(
        keys={layer: tuple(map(each_tensor, each)) for layer, each in prefix.keys.items()},
        values={layer: tuple(map(each_tensor, each)) for layer, each in prefix.values.items()},
        last_hidden=each_tensor(prefix.last_hidden),
        index=prefix.index,
        states={layer: State(*map(each_tensor, state)) for layer, state in prefix.states.items()},
    )


def _tensors(prefix: Prefix) -> list[Tensor]:
    stores = (prefix.keys, prefix.values, prefix.states)
    return [x for store in stores for each in store.values() for x in each] + [prefix.last_hidden]


def _wide(policy: Policy) -> torch.dtype:
    """float32, or float64 for a float64 model."""
    return torch.promote_types(next(policy.model.parameters()).dtype, torch.float32)
