"""Sampling a step's groups in one phase, or in two with an intervention between them.

    explorer = Explorer(policy=policy, run=run, intervention=intervention_of(run.intervention), ...)
    drawn = explorer.draw(prompts, engine, group, sampling, seed=..., draw=...)

The first phase is sampled under the pictures as they are, the second under what the intervention hands back; where it
has nothing to hand back (it says why, and that is counted) the second phase, too, is sampled as the first. Not here:
what an intervention does (`fovea.interventions`), rewards, and under which picture a completion is trained
(`fovea.rollouts`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from fovea.config import Run
from fovea.engines import Engine
from fovea.interventions import Changed, EpsilonControl, Intervention, Moment, Seen, active, moment_of
from fovea.models import Policy, Prompt, score
from fovea.models.canvas import canvases, on_canvas
from fovea.models.pixels import PolicyPixels
from fovea.models.rendering import special_ids
from fovea.types import Completion, Group, Sampling, UserError, occurrences

CLEAN = "clean"
SECOND = 1 << 20
"""Added to `draw` in the second phase, so that it draws other replies than the first."""

FORMAT = re.compile(r"</?(?:think|answer|description|summary)>|\\boxed\{|```(?:json)?")
"""What only spells out a reply's form: where a model is sure of the form, its uncertainty there says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The replies of a step, in the order of the prompts."""

    prompts: tuple[Prompt, ...]
    """As shown in the first phase."""
    replies: tuple[tuple[Completion, ...], ...]
    variants: tuple[Mapping[str, Prompt], ...]
    """`Group.variants` of each."""


def plain(
    prompts: Sequence[Prompt],
    engine: Engine,
    group: int,
    sampling: Sampling,
    *,
    seed: tuple[int, int],
    draw: int = 0,
) -> Drawn:
    """One phase."""
    replies = engine.generate(prompts, group, sampling, seed=seed, draw=draw)
    return Drawn(prompts=tuple(prompts), replies=tuple(replies), variants=({},) * len(prompts))


@dataclass(kw_only=True)
class Explorer:
    """An intervention at work in a run. Only what it measured and the controller's ε change."""

    policy: Policy
    run: Run
    intervention: Intervention
    instruction: str | None = None
    control: EpsilonControl | None = None
    _counts: Counter[str] = field(default_factory=Counter)
    """Of the step: problems, and skipped ones by reason."""
    _sums: dict[str, list[float]] = field(default_factory=dict)
    """Of the step: figure -> its values."""
    _epsilon: int = 0

    def draw(
        self,
        prompts: Sequence[Prompt],
        engine: Engine,
        group: int,
        sampling: Sampling,
        *,
        seed: tuple[int, int],
        draw: int = 0,
    ) -> Drawn:
        """`group` replies to each prompt, in one phase or two. `seed`: (run's seed, step)."""
        moment = replace(self.moment(seed), draw=draw)
        self._epsilon = moment.epsilon
        if not active(self.intervention, moment):
            self._counts["problems"] += len(prompts)
            self._counts["annealed"] += len(prompts)
            return plain(prompts, engine, group, sampling, seed=seed, draw=draw)
        second = min(group - 1, max(1, round(self.run.intervention.share * group)))
        pictures = [canvases(self.policy, prompt) for prompt in prompts]
        shown = [self._shown(prompt, own) for prompt, own in zip(prompts, pictures, strict=True)]
        first = engine.generate(
            shown, group - second, sampling, seed=seed, draw=draw, entropies=self.intervention.asks
        )
        seen = self._seen(shown, pictures, first, sampling)
        pixels = PolicyPixels(
            policy=self.policy,
            prompts=shown,
            seen=seen,
            sampling=sampling,
            tokens_per_pass=self.run.tokens_per_pass,
        )
        changed = self.intervention.change(seen, pixels, moment)
        others = [self._other(*each) for each in zip(shown, changed, strict=True)]
        self._measure(seed[1], shown, others, seen, changed, sampling)
        more = engine.generate(others, second, sampling, seed=seed, draw=draw + SECOND)
        return self._joined(shown, others, first, more)

    def moment(self, seed: tuple[int, int]) -> Moment:
        """Where in the run a step is. `seed`: (run's seed, step)."""
        epsilon = None if self.control is None else float(self.control.epsilon)
        return moment_of(self.run.intervention, seed[0], seed[1], self.run.steps, epsilon)

    def first(self, prompt: Prompt, step: int) -> Prompt:
        """A prompt made again, as the first phase of `step` showed it: of a tiled family the canvas is not the picture,
        and old log-probs are of what was shown."""
        if not active(self.intervention, self.moment((self.run.seed, step))):
            return prompt
        return on_canvas(self.policy, prompt, canvases(self.policy, prompt), instruction=self.instruction)

    def _shown(self, prompt: Prompt, pictures: Sequence[np.ndarray]) -> Prompt:
        return on_canvas(
            self.policy, prompt, pictures, instruction=self.instruction, leaf=self.intervention.asks
        )

    def _seen(
        self,
        prompts: Sequence[Prompt],
        pictures: Sequence[tuple[np.ndarray, ...]],
        replies: Sequence[tuple[Completion, ...]],
        sampling: Sampling,
    ) -> list[Seen]:
        entropies = self._entropies(prompts, replies, sampling) if self.intervention.asks else None
        times = occurrences(prompt.problem.id for prompt in prompts)
        return [
            Seen(
                problem=prompt.problem,
                occurrence=times[i],
                canvases=pictures[i],
                completions=replies[i],
                entropies=() if entropies is None else entropies[i],
                content=tuple(content(self.policy, reply) for reply in replies[i]),
            )
            for i, prompt in enumerate(prompts)
        ]

    def _entropies(
        self, prompts: Sequence[Prompt], replies: Sequence[tuple[Completion, ...]], sampling: Sampling
    ) -> list[tuple[np.ndarray, ...]]:
        """The engine's, which it has anyway; or teacher-forced, where it does not say."""
        said = [[reply.entropies for reply in group] for group in replies]
        if all(one is not None for group in said for one in group):
            return [tuple(one for one in group if one is not None) for group in said]
        return entropies_under(self.policy, prompts, replies, sampling, self.run.tokens_per_pass)

    def _other(self, prompt: Prompt, changed: Changed) -> Prompt:
        """The prompt of the second phase; the identical object where it was skipped."""
        if changed.skipped is not None:
            return prompt
        pictures = tuple(Image.fromarray(canvas) for canvas in changed.canvases)
        shown = replace(prompt.problem, images=pictures)
        if changed.text is None:
            other = on_canvas(self.policy, prompt, changed.canvases, instruction=self.instruction)
        else:
            asked = replace(shown, question=f"{prompt.problem.question}\n{changed.text}")
            try:
                other = self.policy.prompt(asked, self.instruction)
            except UserError:  # the problem fits the context, but not with a sentence more
                self._counts["does_not_fit"] += 1
                return prompt
        return replace(other, problem=shown)

    def _joined(
        self,
        prompts: Sequence[Prompt],
        others: Sequence[Prompt],
        first: Sequence[tuple[Completion, ...]],
        second: Sequence[tuple[Completion, ...]],
    ) -> Drawn:
        name = self.intervention.name
        replies, variants = [], []
        for prompt, other, before, after in zip(prompts, others, first, second, strict=True):
            same = other is prompt
            marked = after if same else tuple(replace(reply, variant=name) for reply in after)
            replies.append((*(replace(reply, entropies=None) for reply in before), *marked))
            variants.append({} if same else {name: other})
        return Drawn(prompts=tuple(prompts), replies=tuple(replies), variants=tuple(variants))

    # ---------------------------------------------------------------- figures

    def _measure(
        self,
        step: int,
        prompts: Sequence[Prompt],
        others: Sequence[Prompt],
        seen: Sequence[Seen],
        changed: Sequence[Changed],
        sampling: Sampling,
    ) -> None:
        """Count; and now and then see what the change did to the entropy of the same completions."""
        self._counts["problems"] += len(seen)
        self._counts.update(one.skipped for one in changed if one.skipped is not None)
        for one, what in zip(seen, changed):
            if one.entropies and what.masks:
                self._note("selected", one.entropies, what.masks)
                self._note("unselected", one.entropies, [~mask for mask in what.masks])
        every = self.run.intervention.measure_every
        chosen = [i for i, what in enumerate(changed) if what.skipped is None and what.text is None]
        if not every or step % every or not chosen:
            return
        replies = [seen[i].completions for i in chosen]
        how = (sampling, self.run.tokens_per_pass)
        after = entropies_under(self.policy, [others[i] for i in chosen], replies, *how)
        before = [seen[i].entropies for i in chosen]
        if not self.intervention.asks:
            before = entropies_under(self.policy, [prompts[i] for i in chosen], replies, *how)
        for i, old, new in zip(chosen, before, after):
            gains = [b - a for a, b in zip(old, new)]
            masks = changed[i].masks or seen[i].content
            self._note("gain_selected", gains, masks)
            self._note("gain_unselected", gains, [~mask for mask in masks])

    def _note(self, figure: str, values: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
        """Add the mean over the masked tokens of one problem."""
        chosen = np.concatenate([v[m] for v, m in zip(values, masks)])
        if len(chosen):
            self._sums.setdefault(figure, []).append(float(chosen.mean(dtype=np.float64)))

    def take_metrics(self, groups: Sequence[Group]) -> dict[str, float | None]:
        """What the step's second phase was and did, and the controller's lesson from it; then forgotten.

        `explore/epsilon` in 1/255; `explore/skipped` a share of the problems, with one `explore/skipped_WHY` each;
        entropies in nats, means over problems; rewards are means over the halves of groups that have both.
        """
        problems = max(1, self._counts["problems"])
        skipped = {why: n for why, n in self._counts.items() if why != "problems"}
        found: dict[str, float | None] = (
            {"explore/epsilon": float(self._epsilon)} if self.intervention.ball else {}
        )
        found["explore/skipped"] = sum(skipped.values()) / problems
        found |= {f"explore/skipped_{why}": n / problems for why, n in skipped.items()}
        found |= {f"explore/entropy_{name}": float(np.mean(values)) for name, values in self._sums.items()}
        found["explore/policy_entropy"] = _entropy(groups)
        clean, changed = _halves(groups, self.intervention.name)
        if changed:
            found |= {
                "explore/reward_clean": float(np.mean(clean)),
                "explore/reward_changed": float(np.mean(changed)),
            }
            if self.control is not None:
                self.control.observe(
                    float(np.mean(clean)), float(np.mean(changed)), found.get("explore/entropy_gain_selected")
                )
        found["explore/distinct"] = distinct(groups)
        self._counts, self._sums = Counter(), {}
        return found

    def state(self) -> dict[str, Any]:
        """The controller's; everything else is a function of the seed and the step."""
        return {} if self.control is None else self.control.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.control is not None:
            self.control.restore(state)


def _entropy(groups: Sequence[Group]) -> float | None:
    """The policy's under the pictures as they are, as `entropy` is estimated: the mean of -log p of what it sampled."""
    parts = [c.log_probs for group in groups for c in group.completions if c.variant == CLEAN]
    return float(-np.concatenate(parts).mean(dtype=np.float64)) if parts else None


def _halves(groups: Sequence[Group], name: str) -> tuple[list[float], list[float]]:
    """Rewards of the first and of the second phase, where a group has both; NaN (not given) in neither."""
    clean: list[float] = []
    changed: list[float] = []
    for group in groups:
        if group.variants:
            for completion, reward in zip(group.completions, group.rewards):
                if not np.isnan(reward):
                    (changed if completion.variant == name else clean).append(float(reward))
    return clean, changed if clean else []


def distinct(groups: Sequence[Group]) -> float:
    """Mean over groups of the number of different replies (texts), 1 to G."""
    counts = [len({completion.text for completion in group.completions}) for group in groups]
    return float(np.mean(counts)) if counts else 0.0


def entropies_under(
    policy: Policy,
    prompts: Sequence[Prompt],
    replies: Sequence[tuple[Completion, ...]],
    sampling: Sampling,
    tokens_per_pass: int,
) -> list[tuple[np.ndarray, ...]]:
    """float32 [T] of every reply, teacher-forced under its prompt."""
    rows = [(i, reply.token_ids) for i, group in enumerate(replies) for reply in group]
    flat = score(policy, prompts, rows, sampling, tokens_per_pass=tokens_per_pass)[1].float().cpu().numpy()
    parts = iter(np.split(flat, np.cumsum([len(tokens) for _, tokens in rows])[:-1]))
    return [tuple(next(parts) for _ in group) for group in replies]


def content(policy: Policy, reply: Completion) -> np.ndarray:
    """bool [T]: neither a special token (an end of text among them) nor one that spells out the format."""
    tokenizer = policy.processor.tokenizer
    special = special_ids(tokenizer) | set(policy.eos_ids)
    ids = [int(token) for token in reply.token_ids]
    pieces = ["" if i in special else str(tokenizer.decode([i], skip_special_tokens=False)) for i in ids]
    ends = np.cumsum([len(piece) for piece in pieces])
    valid = np.array([i not in special for i in ids])
    for match in FORMAT.finditer("".join(pieces)):
        valid &= (ends <= match.start()) | (ends - [len(piece) for piece in pieces] >= match.end())
    return valid
