"""One table of algorithms. A variant is a value here, not a subclass: a baseline, a scale, a ratio, a denominator.

`algorithm_of(run)` is the value a run uses: its named row with the recipe's overrides, contradictions refused.
Not here: what the fields do (`advantages`, `loss`), extra loss terms (`terms`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from fovea.config import AlgorithmSection, Run, nearest
from fovea.types import UserError

Denominator = Literal["sequence_mean", "token_mean", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """One variant of the policy gradient without a critic.

    Example: Algorithm(name="grpo", baseline="group_mean", scale="group_std", denominator="sequence_mean")
    """

    name: str
    """Its key in `ALGORITHMS`."""
    baseline: Literal["group_mean", "leave_one_out", "none"] = "group_mean"
    """What is subtracted from a completion's reward."""
    scale: Literal["group_std", "batch_std", "whiten", "none"] = "group_std"
    """What the difference is divided by. "whiten" also subtracts the mean over all tokens of the rollout."""
    denominator: Denominator = "sequence_mean"
    """What a token's loss is divided by; see `token_weights`."""
    ratio: Literal["token", "sequence_mean", "sequence_sum"] = "token"
    """Probability ratio of a token, of its completion to the power 1/length (GSPO), of its completion (RLOO)."""
    objective: Literal["clip", "cispo"] = "clip"
    """min(ρA, clip(ρ)A), or sg(clip(ρ)) A log π."""
    clip_low: float = 0.2
    """ε_low: the ratio is clipped below at 1 - ε_low; 1 means not at all."""
    clip_high: float = 0.2
    """ε_high: the ratio is clipped above at 1 + ε_high."""
    delta: float | None = None
    """Two-sided clip: a ratio above it gives no gradient where the advantage is negative either."""
    std_eps: float = 1e-4
    """Added to the standard deviation ("whiten" has its own; see there)."""
    beta: float = 0.0
    """Weight of the KL to the reference policy; 0: no reference is needed."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Its estimator, see `kl_estimates`."""
    kl_in: Literal["loss", "reward", "reward_to_go"] = "loss"
    """A loss of its own; taken off the completion's reward as a sum; off each token's return from there on."""
    kl_ratio: bool = False
    """Whether the KL in the loss is multiplied by the token's ratio (then its gradient is unbiased)."""
    old_log_probs: Literal["sampled", "recomputed"] = "sampled"
    """What the ratio compares with: the engine's own log-probs, or those the trainer computes before its first update.
    In float32 both agree to rounding; in a narrower dtype they do not (see `algorithm_of`)."""
    correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    """Importance weight π_trainer/π_engine at sampling time, see `importance_correction`."""
    correction_cap: float = 3.0
    """Its largest value; more is cut down to it (truncate) or to zero (mask)."""
    resample_limit: int = 0
    """Rounds in which groups whose rewards are all equal are replaced by groups of further problems."""
    overlong: float = 0.0
    """Share of the generation budget over which the length penalty grows from 0 to -1; 0: no penalty."""
    mask_truncated: bool = False
    """Whether a reply cut off by the budget is left out of the loss (it stays in its group's baseline)."""

    @property
    def flat_groups_learn(self) -> bool:
        """Whether a group whose rewards are all equal still has an advantage."""
        return self.baseline == "none" or self.scale == "whiten" or (self.kl_in != "loss" and self.beta > 0)

    @property
    def every_row_learns(self) -> bool:
        """Whether a row of zero advantage has a gradient (the KL's), so that it may not be skipped."""
        return self.beta > 0 and self.kl_in == "loss"


ALGORITHMS: dict[str, Algorithm] = {
    # Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, equations 1 and 3; the KL term by `beta`.
    "grpo": Algorithm(name="grpo"),
    # Liu et al. 2025, "Understanding R1-Zero-Like Training", arXiv:2503.20783: neither std nor 1/|o_i|.
    "dr_grpo": Algorithm(name="dr_grpo", scale="none", denominator="constant"),
    # Yu et al. 2025, arXiv:2503.14476: clip-higher, token mean, dynamic sampling, soft overlong penalty.
    # The rounds are our choice (the paper sets no limit); 0.2 is its 4,096 of 20,480 tokens.
    "dapo": Algorithm(name="dapo", denominator="token_mean", clip_high=0.28, resample_limit=4, overlong=0.2),
    # The token mean of DAPO alone.
    "grpo_token_mean": Algorithm(name="grpo_token_mean", denominator="token_mean"),
    # TRL's `loss_type="bnpo"`: the tokens of the mini-batch. Not the Beta normalisation of arXiv:2506.02864.
    "bnpo": Algorithm(name="bnpo", denominator="token_mean"),
    # Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv:2507.18071, equation 5; its section 5.1's clips.
    "gspo": Algorithm(name="gspo", ratio="sequence_mean", clip_low=3e-4, clip_high=4e-4),
    # MiniMax 2025, arXiv:2506.13585, equations 4 and 5: no lower bound. It does not state the upper one: 5 is our
    # choice, among the values of arXiv:2510.13786 (ScaleRL).
    "cispo": Algorithm(
        name="cispo", objective="cispo", denominator="token_mean", clip_low=1.0, clip_high=4.0
    ),
    # Ahmadian et al. 2024, "Back to Basics", arXiv:2402.14740: the whole reply is one action.
    # The clip is TRL's; at μ = 1 the ratio is 1 and it does nothing, as in the paper.
    "rloo": Algorithm(
        name="rloo",
        baseline="leave_one_out",
        scale="none",
        ratio="sequence_sum",
        kl="k1",
        kl_in="reward",
    ),
    # Hu et al. 2025, arXiv:2501.03262v9: reward and KL to go, normalised over the batch's tokens.
    "reinforce_plus_plus": Algorithm(
        name="reinforce_plus_plus", baseline="none", scale="whiten", kl="k1", kl_in="reward_to_go"
    ),
    # The same paper's "w/ Baseline": the group's mean off, then normalised over the batch; k2 in the loss.
    "reinforce_plus_plus_baseline": Algorithm(name="reinforce_plus_plus_baseline", scale="whiten", kl="k2"),
}


def find_algorithm(name: str, clip: float | None = None) -> Algorithm:
    """The named value of `ALGORITHMS`, with both clip bounds set to `clip` where given. Raises UserError."""
    if name not in ALGORITHMS:
        known = list(ALGORITHMS)
        raise UserError(f"There is no algorithm {name!r}{nearest(name, known)}; known: {', '.join(known)}.")
    algorithm = ALGORITHMS[name]
    return algorithm if clip is None else replace(algorithm, clip_low=clip, clip_high=clip)


_OVERRIDES = (
    *("clip_low", "clip_high", "delta", "beta", "kl", "kl_in", "kl_ratio", "scale", "old_log_probs"),
    *("correction", "correction_cap", "resample_limit", "overlong", "mask_truncated"),
)


def algorithm_of(run: Run) -> Algorithm:
    """What the run's `algorithm:` section means. Raises UserError for settings that contradict each other.

    Old log-probs are recomputed unless the section says otherwise where weights are not float32: there the decode path
    and the trainer's differ by more (bfloat16: 3e-3 a token in the mean) than GSPO's clip bounds.
    """
    section = run.algorithm
    algorithm = find_algorithm(section.name, section.clip)
    given: dict[str, Any] = {name: getattr(section, name) for name in _OVERRIDES}
    given = {name: value for name, value in given.items() if value is not None}
    ratio = None if run.intervention.name == "none" else run.intervention.ratio
    moved = ratio in ("clean", "corrected", "shared")
    if ratio == "corrected":
        given.setdefault("correction", "token_truncate")
    corrected = given.get("correction", "none") != "none"
    if "old_log_probs" not in given and (corrected or moved or run.dtype != "float32"):
        given["old_log_probs"] = "recomputed"
    algorithm = replace(algorithm, **given)
    wrongs = _contradictions(run, section, algorithm) + (_of_other_pictures(run, algorithm) if moved else [])
    for wrong, sentence in wrongs:
        if wrong:
            raise UserError(sentence)
    return algorithm


def _of_other_pictures(run: Run, a: Algorithm) -> list[tuple[bool, str]]:
    """Contradictions where completions are trained under another picture than they were sampled under."""
    return [
        (
            a.old_log_probs == "sampled",
            f"intervention.ratio={run.intervention.ratio} trains completions under another picture than they were "
            "sampled under, so that the engine's log-probs cannot be the old ones; leave algorithm.old_log_probs away.",
        ),
        (
            run.intervention.ratio == "corrected" and a.correction == "none",
            "intervention.ratio=corrected is an importance weight; leave algorithm.correction away.",
        ),
        (
            run.intervention.ratio != "corrected" and a.correction != "none",
            f"algorithm.correction would weigh completions by what the changed picture did to them; with "
            f"intervention.ratio={run.intervention.ratio} leave it away, or use ratio=corrected.",
        ),
    ]


def _contradictions(run: Run, section: AlgorithmSection, a: Algorithm) -> list[tuple[bool, str]]:
    name, per = section.name, section.prompts_per_update
    alone = a.baseline == "none"
    return [
        (
            section.clip is not None and (section.clip_low is not None or section.clip_high is not None),
            "algorithm.clip sets both bounds; leave it away when algorithm.clip_low or clip_high is given.",
        ),
        (
            a.clip_low > 1,
            f"algorithm.clip_low={a.clip_low} would clip a ratio below a negative number; give at most 1.",
        ),
        (
            a.delta is not None and a.objective == "cispo",
            f"algorithm.delta is a bound of the clipped objective and {name} has none; leave it away.",
        ),
        (
            a.delta is not None and a.delta <= 1 + a.clip_high,
            f"algorithm.delta={a.delta} must be above 1 + clip_high = {1 + a.clip_high:g}, or it takes its place.",
        ),
        (
            a.beta > 0 and a.kl == "k1" and a.kl_in == "loss" and not a.kl_ratio,
            "algorithm.kl=k1 in the loss has a gradient of mean zero and holds nothing back; take kl=k2 or k3, "
            "kl_in=reward, or kl_ratio=true.",
        ),
        (
            a.kl_ratio and a.kl_in != "loss",
            "algorithm.kl_ratio weighs the KL in the loss; with kl_in=" + a.kl_in + " leave it away.",
        ),
        (
            a.beta == 0 and any(v is not None for v in (section.kl, section.kl_in, section.kl_ratio)),
            "algorithm.kl, kl_in and kl_ratio do nothing without a weight; give algorithm.beta too.",
        ),
        (
            a.correction != "none" and a.old_log_probs == "sampled",
            "algorithm.correction compares the engine's log-probs with the trainer's; "
            "it needs old_log_probs=recomputed.",
        ),
        (
            section.correction_cap is not None and a.correction == "none",
            "algorithm.correction_cap is of no use without algorithm.correction.",
        ),
        (
            a.kl_in == "reward_to_go" and a.beta > 0 and a.scale == "group_std",
            "algorithm.kl_in=reward_to_go changes from token to token and a group's std does not; take scale=whiten "
            "or kl_in=reward.",
        ),
        (
            run.method == "rl" and run.group < 2 and not alone,
            f"group={run.group}: {name} compares the replies to one problem; give at least group=2.",
        ),
        (
            per is not None and (per > run.prompts or run.prompts % per != 0),
            f"algorithm.prompts_per_update={per} must divide prompts={run.prompts} without a rest.",
        ),
        (
            a.resample_limit > 0 and a.flat_groups_learn,
            f"algorithm.resample_limit replaces groups without signal, but with {name} every group has one; "
            "set it to 0.",
        ),
        (
            section.replay > 0 and a.resample_limit > 0,
            "algorithm.replay and resample_limit both fill the place of groups without signal; choose one of them.",
        ),
        (
            section.replay > 0 and a.flat_groups_learn,
            f"algorithm.replay fills the place of rows without signal, but with {name} every row has one.",
        ),
        (
            section.replay == 0 and (section.replay_alpha is not None or section.replay_age is not None),
            "algorithm.replay_alpha and replay_age are of no use without algorithm.replay.",
        ),
    ]
