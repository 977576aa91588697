"""The update steps, policy gradient and cross-entropy, over the same shared-prefix backward.

A rollout is learned from `updates_per_rollout` times, each time in mini-batches of `prompts_per_update` problems; a
mini-batch is one optimizer step with denominators of its own. Not here: advantages and losses (`fovea.algorithms`),
optimizers (`optim`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fovea.algorithms import (
    TRAINED,
    Algorithm,
    RatioSums,
    Reduce,
    TokenView,
    alone,
    clip_decides,
    kl_estimates,
    loss_terms,
    perception_kl,
    ratio_sums,
    sequence_log_ratios,
    token_loss,
    token_ratio,
    value_errors,
)
from fovea.config import Run
from fovea.models import Policy, Prompt, backward, score
from fovea.models.shared_prefix import Loss, Row, ValueLoss
from fovea.rollouts import minibatches
from fovea.training.batch import Batch, batch_of, distinct_rows
from fovea.training.optim import clip_gradients, learning_rate, set_learning_rate
from fovea.types import LossTerm, Sample, Sampling


class Forward(NamedTuple):
    """One backward of an optimizer step."""

    prompts: list[Prompt]
    rows: list[Row]
    loss: Loss
    value_loss: ValueLoss | None = None


Variants = Mapping[str, Callable[[Prompt], Prompt]]
"""Forward variants by name, for loss terms: a prompt to the prompt under which its completions are scored again."""


@dataclass(kw_only=True, slots=True)
class _Report:
    """What the optimizer steps of one rollout say."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    nonfinite: int = 0
    """Optimizer steps that were skipped."""
    skipped: int = 0
    sums: RatioSums | None = None
    kl: float = 0.0
    value_loss: float = 0.0
    gap: float | None = None
    """Sum of the differences between the engine's log-probs and the update's own, where the update measures it."""
    largest_gap: float = 0.0
    shift: float = 0.0
    """Sum over the moved tokens of the KL between the prompt they were sampled under and the trained one."""
    moved: float = 0.0
    apart: dict[str, Tensor] = field(default_factory=dict)
    """[3] for every other forward variant: sums over its counted tokens of the KL and of -log p, and their number."""

    def metrics(self, rate: float) -> dict[str, float | None]:
        """Means over the optimizer steps that were done. `loss` and `grad_norm` are null when none was.

        `nonfinite` is 1 only where nothing was learned (what `max_nonfinite` counts in a row); `nonfinite_updates` is
        the number of optimizer steps that were skipped, also beside others that were done.
        """
        found: dict[str, float | None] = {
            "loss": float(np.mean(self.losses)) if self.losses else None,
            "grad_norm": float(np.mean(self.norms)) if self.norms else None,
            "learning_rate": rate,
            "updates": len(self.losses),
            "nonfinite": int(self.nonfinite > 0 and not self.losses),
            "nonfinite_updates": self.nonfinite,
        }
        return found


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    algorithm: Algorithm,
    sampling: Sampling,
    run: Run,
    step: int,
    *,
    terms: Sequence[LossTerm] | None = None,
    variants: Variants | None = None,
    reduce: Reduce = alone,
    first: bool = False,
) -> dict[str, float | None]:
    """All optimizer steps on one rollout's samples. Returns the step's metrics.

    A row whose every loss weight or advantage is zero gives no gradient and is not computed, unless the KL or a loss
    term has one; it stays in the denominators (they are in `Sample.weights`) and is counted in `rows_skipped`.
    A loss or gradient that is not finite skips that optimizer step (weights, optimizer and version stay) and is
    counted in `nonfinite_updates`. `terms`: default those of the recipe; `reduce` adds counts over workers.

    `first`: this is one optimizer step on what the policy as it is has sampled, so that the recomputed old log-probs
    are those of the step's own forward, to the bit, and `Sample.old_log_probs` (the engine's) only serve for
    `engine_gap_mean` and `engine_gap_max` over the counted tokens of the rows that are computed, and for `explore/kl`
    where a row was sampled under another prompt (KL of the changed policy to the clean one, nats a token, those rows
    alone). See `one_step`.
    """
    terms = loss_terms(run.algorithm) if terms is None else terms
    section, longest = run.algorithm, run.sampling.max_new_tokens
    report = _Report()
    batches = minibatches(samples, algorithm, longest, section.prompts_per_update, reduce)
    scored = [_scored(policy, batch, terms, variants or {}, sampling, run) for batch in batches]
    plan = [pair for _ in range(section.updates_per_rollout) for pair in zip(batches, scored, strict=True)]
    assert not first or len(plan) == 1, "a second optimizer step has another policy than the one that sampled"
    try:
        for number, (batch, others) in enumerate(plan):
            seed = (run.seed, step, number)
            passes = _Passes(policy, algorithm, sampling, run, terms, variants or {}, seed, first=first)
            report.skipped += passes.prepare(batch, reduce, others)
            forwards = passes.forwards() + _taught(batch, run.environment.thought_sft)
            _optimizer_step(policy, optimizer, forwards, sampling, run, step, report)
            passes.tell(report)
    finally:
        policy.kept.drop()  # still there where no row was computed, and the graph is large
    metrics = report.metrics(learning_rate(run.optimizer, step, run.steps))
    metrics |= {"rows_skipped": report.skipped // section.updates_per_rollout}
    if report.sums is not None:
        metrics |= report.sums.means()
        if algorithm.beta > 0 and algorithm.kl_in == "loss":
            metrics["kl"] = report.kl / max(float(report.sums.tokens), 1.0)
        if algorithm.critic:
            metrics["value_loss"] = report.value_loss / max(1, len(plan))
        if report.moved:
            metrics["explore/kl"] = report.shift / report.moved
        if report.gap is not None:
            metrics["engine_gap_mean"] = report.gap / max(float(report.sums.tokens) - report.moved, 1.0)
            metrics["engine_gap_max"] = report.largest_gap
    return metrics | _variant_metrics(report.apart) | _sample_metrics(samples, algorithm)


def one_step(run: Run, algorithm: Algorithm) -> bool:
    """Whether `update(..., first=True)` is right for the samples of a step: the log-probs of the policy that sampled
    are wanted, one optimizer step needs them, and nothing does before it (a KL in the reward, importance weights, a
    replay buffer)."""
    section, episodes = run.algorithm, run.environment.name != "none"
    return (
        algorithm.old_log_probs == "recomputed"
        and section.updates_per_rollout == 1
        and (
            section.prompts_per_update is None or (not episodes and section.prompts_per_update == run.prompts)
        )
        and algorithm.correction == "none"
        and not (algorithm.beta > 0 and algorithm.kl_in != "loss")
        and section.replay == 0
    )


def _taught(samples: Sequence[Sample], weight: float) -> list[Forward]:
    """Cross-entropy on the teacher's thoughts of a mini-batch, where there are any."""
    pairs = [(sample.trained_prompt, sample.taught) for sample in samples if sample.taught is not None]
    if not pairs or not weight:
        return []
    prompts, rows = distinct_rows(pairs)
    return [Forward(prompts, rows, cross_entropy(sum(len(tokens) for _, tokens in rows), weight))]


def _variant_metrics(apart: Mapping[str, Tensor]) -> dict[str, float]:
    """`NAME_kl`, how far the policy is from itself under the variant's prompts, and `NAME_entropy`, mean -log p there:
    means over the counted tokens whose prompt the variant changes. Nothing where it changes none."""
    found: dict[str, float] = {}
    for name, sums in apart.items():
        kl, surprise, tokens = sums.tolist()
        if tokens > 0:
            found |= {f"{name}_kl": kl / tokens, f"{name}_entropy": surprise / tokens}
    return found


def _sample_metrics(samples: Sequence[Sample], algorithm: Algorithm) -> dict[str, float]:
    """`advantage_abs`: mean over completions of mean |A|; of the importance weights mean and share at the cap."""
    found = (
        {"advantage_abs": float(np.mean([np.abs(s.advantage).mean() for s in samples]))} if samples else {}
    )
    weights = [s.correction for s in samples if s.correction is not None]
    if weights:
        flat = np.concatenate(weights)
        over = flat >= algorithm.correction_cap if algorithm.correction.endswith("truncate") else flat == 0
        found |= {"correction_mean": float(flat.mean()), "correction_capped": float(over.mean())}
    return found


class _Passes:
    """The forward and backward passes of one optimizer step, and what they add up."""

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        sampling: Sampling,
        run: Run,
        terms: Sequence[LossTerm],
        variants: Variants,
        seed: tuple[int, int, int],
        *,
        first: bool = False,
    ) -> None:
        self._policy = policy
        self._algorithm = algorithm
        self._sampling = sampling
        self._run = run
        self._terms = terms
        self._variants = variants
        self._seed = seed
        self._first = first
        self._picked: dict[str, Tensor] = {}
        self._others: dict[str, Tensor] = {}
        self._differs: dict[str, Tensor] = {}
        self._trained: Tensor | None = None
        self._sequence: Tensor | None = None
        self._batch: Batch
        zero = torch.zeros((), device=policy.device)
        self.sums = RatioSums(clipped=zero, kl=zero, tokens=zero)
        self.kl = zero
        self.value_loss = zero
        self.gap = zero
        self.largest_gap = zero
        self.shift = zero
        self.moved = zero
        self.apart: dict[str, Tensor] = {}

    def tell(self, report: _Report) -> None:
        """Add what the passes saw."""
        report.sums = self.sums if report.sums is None else report.sums + self.sums
        report.kl += float(self.kl)
        report.value_loss += float(self.value_loss)
        for name, sums in self.apart.items():
            report.apart[name] = report.apart.get(name, 0.0) + sums
        if self._first:
            report.gap = float(self.gap) + (report.gap or 0.0)
            report.largest_gap = max(report.largest_gap, float(self.largest_gap))
            report.shift += float(self.shift)
            report.moved += float(self.moved)

    def prepare(self, samples: Sequence[Sample], reduce: Reduce, scored: Mapping[str, Tensor]) -> int:
        """Everything that must be known before the first pass. Returns how many rows need none.

        `scored`: what `_scored` says of these samples.
        """
        policy, algorithm = self._policy, self._algorithm
        self._others = dict(scored)
        batch = batch_of(policy, samples, reduce)
        pickers = [term for term in self._terms if term.picks]
        if pickers:
            log_probs, entropy = self._score(batch.prompts, batch.rows)
            view = self._view(batch, slice(None), log_probs, entropy, None)
            view = replace(view, clipped=self._clipped(batch, log_probs))
            self._picked = {term.name: term.pick(view) for term in pickers}
            for term in pickers:
                if term.weighs:
                    batch = replace(batch, correction=batch.correction * self._picked[term.name])
        extra = algorithm.every_row_learns or any(term.variants for term in self._terms)
        learning = batch.weights if extra else batch.weights * batch.advantages * batch.correction
        learning = learning.abs() + batch.value_weights
        alive = torch.zeros(len(batch.rows), device=policy.device).index_add(
            0, batch.row_of, (learning != 0).float()
        )
        kept = [i for i, n in enumerate(alive.tolist()) if n > 0]
        self._batch = self._only(batch, kept)
        self._score_ahead()
        return len(batch.rows) - len(kept)

    def _clipped(self, batch: Batch, log_probs: Tensor) -> Tensor:
        """bool [N], of the whole mini-batch: where the ratio clip decides."""
        old, algorithm = self._old(batch, slice(None), log_probs), self._algorithm
        sequence = None
        if algorithm.ratio != "token":
            weighted = batch.mask * batch.coefficients
            sequence = sequence_log_ratios(log_probs, old, weighted, batch.row_of, algorithm)
        return clip_decides(log_probs, old, batch.advantages, algorithm, sequence=sequence)

    def forwards(self) -> list[Forward]:
        """Each backward: the trained prompts, then the variants that a term asks for."""
        batch = self._batch
        critic = self._value_loss if self._algorithm.critic else None
        found = [Forward(batch.prompts, batch.rows, self._trained_loss, critic)]
        for name in self._other_variants():
            prompts = [self._variants[name](prompt) for prompt in batch.prompts]
            found.append(Forward(prompts, batch.rows, self._variant_loss(name)))
        return found

    def _other_variants(self) -> list[str]:
        names = dict.fromkeys(name for term in self._terms for name in term.variants if name != TRAINED)
        return list(names)

    def _score(self, prompts: list[Prompt], rows: list[Row]) -> tuple[Tensor, Tensor]:
        return score(self._policy, prompts, rows, self._sampling, tokens_per_pass=self._run.tokens_per_pass)

    def _only(self, batch: Batch, kept: list[int]) -> Batch:
        """The same with these rows alone; denominators stay."""
        if len(kept) == len(batch.rows):
            return batch
        fewer, tokens = batch.only(kept)
        self._picked = {name: picked[tokens] for name, picked in self._picked.items()}
        self._others = {name: other[tokens] for name, other in self._others.items()}
        return fewer

    def _score_ahead(self) -> None:
        """Log-probs that a pass cannot have: of completions cut over passes, and of other variants."""
        batch, algorithm = self._batch, self._algorithm
        if algorithm.ratio != "token":
            self._sequence = torch.full_like(batch.old, torch.nan)
            cut = [i for i, (_, ids) in enumerate(batch.rows) if len(ids) > self._run.tokens_per_pass]
            if cut and not self._first:  # the first log-ratio is 0, of a part of a reply too
                log_probs, _ = self._score(batch.prompts, [batch.rows[i] for i in cut])
                tokens = torch.isin(batch.row_of, torch.tensor(cut, device=batch.row_of.device))
                weighted = (batch.mask * batch.coefficients)[tokens]
                self._sequence[tokens] = sequence_log_ratios(
                    log_probs, batch.old[tokens], weighted, batch.row_of[tokens], algorithm
                )
        for name in self._other_variants():
            prompts = [self._variants[name](prompt) for prompt in batch.prompts]
            self._others[name] = self._score(prompts, batch.rows)[0]
        for name in self._others:
            changed = [float(self._variants[name](prompt) is not prompt) for prompt in batch.prompts]
            of_rows = torch.tensor([changed[prompt] for prompt, _ in batch.rows])
            self._differs[name] = of_rows.to(batch.row_of.device)[batch.row_of]

    def _trained_loss(self, index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        """The policy gradient, the KL and the terms of one pass's tokens [N]."""
        batch, algorithm = self._batch, self._algorithm
        old, mask, advantages = self._old(batch, index, log_probs), batch.mask[index], batch.advantages[index]
        if self._first:
            self._compare(old - batch.old[index], mask * batch.moved[index], mask)
        sequence = None
        if self._sequence is not None:
            weighted = mask * batch.coefficients[index]
            inside = sequence_log_ratios(log_probs, old, weighted, batch.row_of[index], algorithm)
            ahead = self._sequence[index]
            sequence = torch.where(ahead.isnan(), inside, ahead)
        weights = batch.weights[index]
        total = token_loss(
            log_probs,
            old,
            advantages,
            weights * batch.correction[index],
            algorithm,
            sequence=sequence,
            lengths=batch.lengths[index],
            coefficients=batch.coefficients[index],
        ).sum()
        self.sums = self.sums + ratio_sums(log_probs, old, advantages, mask, algorithm, sequence=sequence)
        self._note_apart(index, log_probs.detach(), mask)
        if self._other_variants():  # the trained prompts' passes come first, so that those of the others know
            self._trained = log_probs.new_zeros(len(batch.old)) if self._trained is None else self._trained
            self._trained[index] = log_probs.detach()
        if algorithm.every_row_learns:
            assert batch.reference is not None, "beta > 0 needs the reference's log-probs"
            kl = kl_estimates(log_probs, batch.reference[index], algorithm.kl)
            self.kl = self.kl + (kl.detach() * mask).sum()
            if algorithm.kl_ratio:
                kl = kl * token_ratio(log_probs, old)
            total = total + algorithm.beta * (weights * kl).sum()
        return total + self._extra(TRAINED, index, log_probs, entropy)

    def _value_loss(self, index: Tensor, values: Tensor) -> Tensor:
        """The critic's loss on one pass's tokens [N]."""
        batch, algorithm = self._batch, self._algorithm
        returns, weights = batch.returns[index], batch.value_weights[index]
        errors = value_errors(values, returns, batch.old_values[index], algorithm.value_clip)
        self.value_loss = self.value_loss + (weights * errors.detach()).sum()
        return algorithm.value_coefficient * (weights * errors).sum()

    def _compare(self, difference: Tensor, moved: Tensor, mask: Tensor) -> None:
        """Of the trained prompts' log-probs and the engine's: rounding, or what the changed picture did."""
        gap = difference.abs() * (mask - moved)
        self.gap = self.gap + gap.sum()
        self.largest_gap = torch.maximum(self.largest_gap, gap.max())
        # E over completions of the changed policy of r - 1 - log r, r = clean / changed: KL(changed ‖ clean)
        self.shift = self.shift + ((torch.expm1(difference) - difference) * moved).sum()
        self.moved = self.moved + moved.sum()

    def _note_apart(self, index: Tensor, log_probs: Tensor, mask: Tensor) -> None:
        for name, differs in self._differs.items():
            other, counted = self._others[name][index], mask * differs[index]
            kl = perception_kl(log_probs, other)
            sums = torch.stack([(kl * counted).sum(), -(other * counted).sum(), counted.sum()])
            self.apart[name] = self.apart.get(name, 0.0) + sums

    def _variant_loss(self, name: str) -> Loss:
        def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
            return self._extra(name, index, log_probs, entropy)

        return loss

    def _extra(self, variant: str, index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        total = log_probs.sum() * 0.0
        for term in self._terms:
            if variant in term.variants:
                picked = self._picked.get(term.name)
                view = self._view(
                    self._batch, index, log_probs, entropy, None if picked is None else picked[index]
                )
                if variant != TRAINED:
                    assert self._trained is not None, "the trained prompts' passes come first"
                    view = replace(view, others={**view.others, TRAINED: self._trained[index]})
                value = term.loss(variant, view)
                total = total if value is None else total + value
        return total

    def _old(self, batch: Batch, index: Tensor | slice, log_probs: Tensor) -> Tensor:
        """[N]: what the ratio compares with."""
        return log_probs.detach() if self._first else batch.old[index]

    def _view(
        self, batch: Batch, index: Tensor | slice, log_probs: Tensor, entropy: Tensor, picked: Tensor | None
    ) -> TokenView:
        return TokenView(
            log_probs=log_probs,
            entropy=entropy,
            old_log_probs=self._old(batch, index, log_probs),
            advantages=batch.advantages[index],
            mask=batch.mask[index],
            total=batch.total,
            seed=self._seed,
            others={name: other[index] for name, other in self._others.items()},
            differs={name: differs[index] for name, differs in self._differs.items()},
            picked=picked,
        )


def _scored(
    policy: Policy,
    samples: Sequence[Sample],
    terms: Sequence[LossTerm],
    variants: Variants,
    sampling: Sampling,
    run: Run,
) -> dict[str, Tensor]:
    """[N] log-probs of the samples' tokens, without gradient, under each variant that a term wants scored."""
    names = dict.fromkeys(name for term in terms for name in term.scored)
    prompts, rows = distinct_rows([(sample.trained_prompt, sample.token_ids) for sample in samples])
    return {
        name: score(
            policy,
            [variants[name](prompt) for prompt in prompts],
            rows,
            sampling,
            tokens_per_pass=run.tokens_per_pass,
        )[0]
        for name in names
    }


def sft_update(
    policy: Policy, optimizer: torch.optim.Optimizer, prompts: Sequence[Prompt], run: Run, step: int
) -> dict[str, float | None]:
    """One step of cross-entropy on the prompts' `target` replies, in mini-batches of `prompts_per_update`.

    Each optimizer step's loss is the mean over all reply tokens of its mini-batch. `tokens` counts them as `tokens`
    counts the sampled ones in reinforcement learning.
    """
    targets = [policy.encode_target(prompt) for prompt in prompts]
    per = run.algorithm.prompts_per_update or max(1, len(prompts))
    report = _Report()
    for start in range(0, len(prompts), per):
        chosen = targets[start : start + per]
        distinct, rows = distinct_rows(list(zip(prompts[start : start + per], chosen, strict=True)))
        forward = Forward(distinct, rows, cross_entropy(sum(map(len, chosen))))
        _optimizer_step(policy, optimizer, [forward], Sampling(), run, step, report)
    tokens = sum(map(len, targets))
    counts = {"completion_tokens": tokens / max(1, len(targets)), "tokens": tokens}
    return report.metrics(learning_rate(run.optimizer, step, run.steps)) | counts


def cross_entropy(tokens: int, weight: float = 1.0) -> Loss:
    """Mean of -log p over `tokens` tokens, times `weight`."""

    def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        return -weight * log_probs.sum() / tokens

    return loss


def _optimizer_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    forwards: Sequence[Forward],
    sampling: Sampling,
    run: Run,
    step: int,
    report: _Report,
) -> None:
    """Backward, clip, step. Nothing changes but the count when the loss or the gradient is not finite."""
    optimizer.zero_grad(set_to_none=True)
    value = 0.0
    for prompts, rows, loss, critic in forwards:
        value += backward(policy, prompts, rows, sampling, loss, run.tokens_per_pass, critic)
    norm = clip_gradients(optimizer, run.optimizer.max_grad_norm)
    if not (math.isfinite(value) and math.isfinite(norm)):
        optimizer.zero_grad(set_to_none=True)
        report.nonfinite += 1
        return
    set_learning_rate(optimizer, learning_rate(run.optimizer, step, run.steps))
    optimizer.step()
    policy.version += 1
    report.losses.append(value)
    report.norms.append(norm)
