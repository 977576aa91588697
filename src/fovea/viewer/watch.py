"""What to look at while a run trains: its warnings first, and what to watch where the loss says nothing.

Pure functions over records of the run folder; the live display, the report and the pages of `fovea view` share them.
Not here: raising warnings (`fovea.audits` and training do), which stand in the step records as `"warnings"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fovea.viewer.charts import is_number

ROUNDING = 1e-4
"""A loss smaller than this is 0 but for rounding: advantages are of the order of 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Warned:
    """One warning and how often it came. Example: Warned(text="audit:length …", first=40, last=60, times=3)."""

    text: str
    """One sentence, as it was logged: hostile text, for it may quote a reply."""
    first: int | None
    """Step of its first occurrence, None if the record has no step."""
    last: int | None
    times: int


def warnings_of(records: Iterable[Mapping[str, Any]]) -> list[Warned]:
    """The different warnings of some step or evaluation records, that with the newest occurrence first.

    A record's `"warnings"` is a list of texts, or of objects with `name` and `message` (`fovea.audits`).
    """
    found: dict[str, Warned] = {}
    for record in records:
        listed = record.get("warnings")
        for item in listed if isinstance(listed, list) else []:
            text = _text_of(item)
            step = int(record["step"]) if is_number(record.get("step")) else None
            old = found.pop(text, None)  # popped and put back: the order is that of the newest occurrence
            first, times = (old.first, old.times + 1) if old else (step, 1)
            found[text] = Warned(text=text, first=first, last=step, times=times)
    return list(reversed(found.values()))


def _text_of(item: Any) -> str:
    if not isinstance(item, Mapping):
        return str(item)
    return ": ".join(str(item[key]) for key in ("name", "message", "text") if item.get(key))


def no_signal_in_loss(run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Whether the value of the loss cannot show learning: RL, one update per rollout, nothing added to the loss.

    A critic's loss is something added; which algorithms have a critic is seen by the `metrics` alone.

    The sampling policy is then the policy that is trained: every ratio is 1 where the loss is evaluated, and its value
    is a weighted mean of the advantages, whatever was learned. Its gradient is not affected.
    """
    algorithm = run.get("algorithm")
    if run.get("method", "rl") != "rl" or not isinstance(algorithm, Mapping):
        return False
    if any("value_loss" in record for record in metrics):
        return False
    kl = _is_on(algorithm.get("beta")) and algorithm.get("kl_in") in (None, "loss")
    added = kl or any(_is_on(algorithm.get(key)) for key in ("entropy_bonus", "kl_cov", "replay"))
    return not _several_updates(algorithm) and not added


def _several_updates(algorithm: Mapping[str, Any]) -> bool:
    return algorithm.get("updates_per_rollout", 1) != 1 or algorithm.get("prompts_per_update") is not None


def _is_on(amount: Any) -> bool:
    return is_number(amount) and amount != 0


def watch_keys(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Metrics that say whether a run learns, most telling first; `looking` stands in the evaluations."""
    keys = ("reward_mean", "reward_std", "grad_norm", "entropy", "looking")
    algorithm = run.get("algorithm")
    several = isinstance(algorithm, Mapping) and _several_updates(algorithm)
    return (*keys, "clip_fraction") if several else keys


def loss_note(run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """One sentence where the loss's value says nothing, with what to watch instead; None where it does.

    It says "0 by construction" only if the logged losses agree: denominators that weigh replies by their length
    (DAPO, Dr. GRPO) and CISPO leave a number that is not 0 and means as little. No losses, no sentence.
    """
    losses = [abs(float(m["loss"])) for m in metrics if is_number(m.get("loss"))]
    if not losses or not no_signal_in_loss(run, metrics):
        return None
    zero = (
        "is 0 by construction" if max(losses) < ROUNDING else "has a value that says nothing about learning"
    )
    labels = {"reward_mean": "reward", "reward_std": "its spread", "grad_norm": "gradient norm"}
    instead = ", ".join(labels.get(key, key) for key in watch_keys(run))
    return f"The loss {zero} (one update per rollout and no KL in it: every ratio is 1); watch instead: {instead}."
