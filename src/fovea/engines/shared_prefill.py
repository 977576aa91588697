"""The default engine: each prompt is prefilled once, its G completions are decoded against the shared prefix.

Sampling is inverse-CDF with one uniform number per (seed, step, draw, problem, its occurrence, sample, token) from a
counter-based hash, so a reply depends on what else is in the batch only through float rounding. Finished rows
leave the decode batch, and prompts without rows leave too. Not here: what the rewards think of the replies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fovea.models.adapter import Prompt, run_text
from fovea.models.decoding import DecodePlan, slots
from fovea.models.head import sampling_logits
from fovea.models.packing import together
from fovea.models.policy import Policy
from fovea.models.recurrent import take, token_rows
from fovea.models.shared_prefix import Prefix, prefill_rollout
from fovea.types import Completion, RunFailed, Sampling, occurrences

# Rows leave once so large a share of the batch is finished: a compaction copies the keys, a finished row
# costs a step.
_LEAVE_AT = 1 / 8
_FIRST_CAPACITY = 32
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class SharedPrefillEngine:
    """Samples with the policy's own weights."""

    def __init__(
        self, policy: Policy, *, rows_at_once: int = 512, prefix_tokens_at_once: int = 65536
    ) -> None:
        """Prompts are taken together while rows and prompt tokens stay within the two bounds."""
        self._policy = policy
        self._rows = rows_at_once
        self._prefix_tokens = prefix_tokens_at_once

    def load_weights(self, policy: Policy) -> None:
        """The weights are shared with the policy; only the policy itself can change."""
        self._policy = policy

    def generate(
        self,
        prompts: Sequence[Prompt],
        group: int,
        sampling: Sampling,
        *,
        seed: tuple[int, int],
        draw: int = 0,
        entropies: bool = False,
    ) -> list[tuple[Completion, ...]]:
        """`group` completions for each prompt, in order; log-probs and `entropies` are of the `Sampling`
        distribution."""
        done: list[tuple[Completion, ...]] = []
        times = occurrences(
            prompt.problem.id for prompt in prompts
        )  # before the batches, which may not matter
        with torch.no_grad():
            for some in self._batches(prompts, group):
                now = times[len(done) : len(done) + len(some)]
                done.extend(_generate(self._policy, some, now, group, sampling, (*seed, draw), entropies))
        return done

    def _batches(self, prompts: Sequence[Prompt], group: int) -> list[list[Prompt]]:
        lengths = [len(prompt.token_ids) for prompt in prompts]
        rows, padded = max(1, self._rows // group), self._policy.family.recurrent
        return [list(prompts[a:b]) for a, b in together(lengths, self._prefix_tokens, padded, rows)]


# ---------------------------------------------------------------- the decode loop


def _generate(
    policy: Policy,
    prompts: list[Prompt],
    times: Sequence[int],
    group: int,
    sampling: Sampling,
    seed: tuple[int, int, int],
    entropies: bool,
) -> list[tuple[Completion, ...]]:
    device, family, model = policy.device, policy.family, policy.model
    # rows of one distinct prompt must stand together; identical objects share their prefix
    prefix = prefill_rollout(policy, prompts)
    order = sorted(range(len(prompts)), key=prefix.index.__getitem__)
    rows = [(i, sample) for i in order for sample in range(group)]
    row_prompt = [prefix.index[i] for i, _ in rows]
    plan = decode_plan(prefix, row_prompt, min(_FIRST_CAPACITY, sampling.max_new_tokens))
    problems, samples = [prompts[i].problem.id for i, _ in rows], [sample for _, sample in rows]
    keys = row_keys(problems, samples, seed, [times[i] for i, _ in rows])
    start = torch.tensor([prompts[i].next_position for i, _ in rows], device=device)
    bans = torch.tensor(policy.bans(sampling), device=device)
    ends = torch.tensor(policy.eos_ids, device=device)
    head, embed, axes = family.lm_head(model), model.get_input_embeddings(), len(prompts[0].positions)

    said: list[_Step] = []
    live = torch.arange(len(rows), device=device)
    hidden = prefix.last_hidden.index_select(0, torch.tensor(row_prompt, device=device))
    finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for step in range(sampling.max_new_tokens):
        logits = sampling_logits(head(hidden), sampling, bans)
        tokens, log_probs = choose(logits, sampling, keys, step)
        step_entropies = _entropy(logits) if entropies else None
        values = None if policy.critic is None else policy.critic(hidden)
        said.append(_Step(live, tokens, log_probs, step_entropies, values))
        finished |= torch.isin(tokens, ends)
        n_finished = int(finished.sum())
        if n_finished == len(live) or step + 1 == sampling.max_new_tokens:
            break
        if n_finished >= _LEAVE_AT * len(live):
            stay = torch.nonzero(~finished)[:, 0]
            live, tokens, start = live[stay], tokens[stay], start[stay]
            kept = stay.cpu().numpy()
            keys = keys[kept]
            plan.keep(stay, [row_prompt[i] for i in kept])
            row_prompt = _renumber([row_prompt[i] for i in kept])
            finished = torch.zeros(len(live), dtype=torch.bool, device=device)
        if plan.full:
            plan.reserve(min(2 * plan.step, sampling.max_new_tokens))
        positions = (start + step).expand(axes, -1)
        hidden = run_text(family, model, {"inputs_embeds": embed(tokens)[None]}, positions, plan)
        plan.next_token()
    return _completions(policy, prompts, rows, said)


class _Step(NamedTuple):
    """One token of every row that is still being written; each [live]."""

    live: Tensor
    """Which rows."""
    tokens: Tensor
    log_probs: Tensor
    entropies: Tensor | None
    values: Tensor | None
    """What the critic expected before the token."""


def _renumber(row_prompt: Sequence[int]) -> list[int]:
    live = {prompt: i for i, prompt in enumerate(sorted(set(row_prompt)))}
    return [live[prompt] for prompt in row_prompt]


def decode_plan(prefix: Prefix, row_prompt: Sequence[int], capacity: int) -> DecodePlan:
    """The key/value store for rows (ascending by prompt) with room for `capacity` own tokens."""
    layers = list(prefix.keys)
    lengths = [keys.shape[2] for keys in prefix.keys[layers[0]]]
    longest, device = max(lengths), prefix.last_hidden.device

    def padded(each: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[2])) for x in each])

    def room(example: Tensor) -> Tensor:
        return example.new_empty(len(row_prompt), example.shape[1], capacity, example.shape[3])

    slot, width = slots(row_prompt, device)
    states = take(prefix.states, torch.tensor(row_prompt, device=device))
    return DecodePlan(
        prefix_keys={layer: padded(prefix.keys[layer]) for layer in layers},
        prefix_values={layer: padded(prefix.values[layer]) for layer in layers},
        prefix_lengths=torch.tensor(lengths),
        own_keys={layer: room(prefix.keys[layer][0]) for layer in layers},
        own_values={layer: room(prefix.values[layer][0]) for layer in layers},
        slot=slot,
        width=width,
        recurrence=token_rows(states) if states else None,
    )


def _completions(
    policy: Policy,
    prompts: Sequence[Prompt],
    rows: Sequence[tuple[int, int]],
    said: Sequence[_Step],
) -> list[tuple[Completion, ...]]:
    """Cut each row after its first end token."""
    tokens = np.full((len(rows), len(said)), -1, dtype=np.int64)
    log_probs = np.zeros((len(rows), len(said)), dtype=np.float32)
    entropies = None if said[0].entropies is None else np.zeros_like(log_probs)
    values = None if said[0].values is None else np.zeros_like(log_probs)
    for number, step in enumerate(said):
        index = step.live.cpu().numpy()
        tokens[index, number] = step.tokens.cpu().numpy()
        log_probs[index, number] = step.log_probs.float().cpu().numpy()
        if entropies is not None and step.entropies is not None:
            entropies[index, number] = step.entropies.float().cpu().numpy()
        if values is not None and step.values is not None:
            values[index, number] = step.values.float().cpu().numpy()
    if not np.isfinite(log_probs).all():
        raise RunFailed(
            f"The model's logits are not finite after {policy.version} updates: its weights have diverged. Lower "
            "optimizer.learning_rate, or go on from an older checkpoint."
        )
    ended = np.isin(tokens, policy.eos_ids)
    by_prompt: list[list[Completion]] = [[] for _ in prompts]
    for row, (prompt, _) in enumerate(rows):
        stopped = bool(ended[row].any())
        length = int(ended[row].argmax()) + 1 if stopped else len(said)
        by_prompt[prompt].append(
            Completion(
                token_ids=tokens[row, :length].copy(),
                log_probs=log_probs[row, :length].copy(),
                text=policy.decode(tokens[row, :length]),
                stop="eos" if stopped else "length",
                policy_version=policy.version,
                entropies=None if entropies is None else entropies[row, :length].copy(),
                values=None if values is None else values[row, :length].copy(),
            )
        )
    return [tuple(group) for group in by_prompt]


# ---------------------------------------------------------------- choosing a token


def choose(logits: Tensor, sampling: Sampling, keys: np.ndarray, token: int) -> tuple[Tensor, Tensor]:
    """(tokens [B] long, log_probs [B]) for `sampling_logits` [B, V]; `keys` [B] from `row_keys`.

    Inverse CDF in float64: the first token whose cumulated probability exceeds u. Its probability is then >
    0.
    """
    lse = logits.logsumexp(-1, keepdim=True)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
    else:
        cumulated = (logits - lse).exp_().cumsum(-1, dtype=torch.float64)
        u = torch.from_numpy(uniforms(keys, token)).to(logits.device)[:, None]
        tokens = torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)
        tokens = tokens.clamp_(max=logits.shape[-1] - 1)  # only NaN logits need it; `_completions` says so
    return tokens[:, 0], (logits.gather(-1, tokens) - lse)[:, 0]


def _entropy(logits: Tensor) -> Tensor:
    """[B], of softmax(logits [B, V])."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def row_keys(
    problems: Sequence[str],
    samples: Sequence[int],
    seed: tuple[int, int, int],
    times: Sequence[int] | None = None,
) -> np.ndarray:
    """uint64 [B]: one counter key per (seed, step, draw, problem id, sample), stable across processes.

    `times`: which occurrence of its problem in the call a row belongs to (default: the first, 0), so that a problem
    that is there twice gets other replies.
    """
    which = list(zip(problems, times if times is not None else [0] * len(problems), strict=True))
    start = f"{seed[0]}|{seed[1]}|{seed[2]}"
    # no id can look like an occurrence: it stands before the bar that ends the numbers
    bases = {(name, n): _digest(f"{start}{f'~{n}' if n else ''}|{name}") for name, n in set(which)}
    base = np.array([bases[one] for one in which], dtype=np.uint64)
    return _splitmix64(base + _GAMMA * (np.array(samples, dtype=np.uint64) + np.uint64(1)))


def uniforms(keys: np.ndarray, token: int) -> np.ndarray:
    """float64 [B] in [0, 1 - 2^-52]: the noise of each row's `token`-th token."""
    counter = np.full_like(keys, token + 1) * _GAMMA
    return (_splitmix64(keys + counter) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Finaliser of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
