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
Estimator = Literal["group", "gigpo", "turn", "token", "bi_level", "lumped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """One variant of the policy gradient, with a critic or without.

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
    estimator: Estimator = "group"
    """Whence advantages come (`returns`): the rewards of a group, also by state (GiGPO), or a critic's GAE over turns,
    tokens, both, or turns with all rewards at the end. With a critic `scale` is "whiten" or "none"."""
    gamma: float = 1.0
    """γ from turn to turn (of "token": from token to token)."""
    gae_lambda: float = 1.0
    """λ of the GAE there."""
    token_gamma: float = 1.0
    """γ from token to token inside a turn ("bi_level")."""
    token_lambda: float = 1.0
    """λ there."""
    thought_weight: float = 1.0
    """λ of RL4VLM (equation 4.3): what the log-probs of a thought's tokens are multiplied by in the ratio of the whole
    reply, log π = λ Σ thought + Σ action; 1 where the ratio is a token's."""
    anchor_weight: float = 1.0
    """ω of GiGPO."""
    value_coefficient: float = 0.5
    """Weight of the critic's loss, ½ (V - R)²."""
    value_clip: float | None = None
    """The larger of that and the same with V held within this distance of the value at sampling; None: not clipped."""
    stop_gradient: bool = True
    """Whether the critic's loss leaves the model's own weights alone."""
    value_warmup: int = 0
    """First steps in which the critic alone learns."""

    @property
    def critic(self) -> bool:
        """Whether a critic is needed."""
        return self.estimator in ("turn", "token", "bi_level", "lumped")

    @property
    def values_of_tokens(self) -> bool:
        """Whether the critic learns a value before every token, and not only before the first one of a reply."""
        return self.estimator in ("token", "bi_level")

    @property
    def flat_groups_learn(self) -> bool:
        """Whether a group whose rewards are all equal still has an advantage."""
        return self.baseline == "none" or self.scale == "whiten" or (self.kl_in != "loss" and self.beta > 0)

    @property
    def every_row_learns(self) -> bool:
        """Whether a row of zero advantage has a gradient (the KL's), so that it may not be skipped."""
        return self.beta > 0 and self.kl_in == "loss"


def _actor_critic(name: str, **changes: Any) -> Algorithm:
    """PPO with a critic over turns: RL4VLM's constants (clip 0.1, γ 0.9, λ 0.95), changed."""
    base = Algorithm(
        name=name,
        baseline="none",
        scale="whiten",
        estimator="turn",
        clip_low=0.1,
        clip_high=0.1,
        gamma=0.9,
        gae_lambda=0.95,
    )
    return replace(base, **changes)


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
    # Zhai et al. 2024, RL4VLM, arXiv:2405.10292, equations 4.2 and 4.3, and its code: one ratio a reply, thoughts
    # weighed by λ, clipped values, the critic's gradient goes into the model. `delta`: its code takes the clipped
    # branch alone where the ratio is above 10. Four updates a rollout are the recipe's.
    "rl4vlm": _actor_critic(
        "rl4vlm", ratio="sequence_sum", thought_weight=0.5, value_clip=0.1, stop_gradient=False, delta=10.0
    ),
    # Bredis et al. 2025, VL-DAC, arXiv:2508.04280: the ratio is a token's, the advantage a turn's. Clip, γ and λ are
    # not in the notes we have: those of RL4VLM, whose code it is a fork of.
    "vl_dac": _actor_critic("vl_dac", beta=0.05, value_coefficient=0.15, value_warmup=2),
    # PPO (arXiv:1707.06347) over turns, with the ratio of a token and nothing else.
    "turn_ppo": _actor_critic("turn_ppo", clip_low=0.2, clip_high=0.2, gamma=0.99),
    # The same over the tokens of the whole episode.
    "token_ppo": _actor_critic(
        "token_ppo", estimator="token", clip_low=0.2, clip_high=0.2, gamma=1.0, denominator="token_mean"
    ),
    # Wang et al. 2025, VAGEN, arXiv:2510.16907: bi-level GAE with the constants of its first configuration.
    "vagen": _actor_critic(
        "vagen",
        estimator="bi_level",
        clip_low=0.2,
        clip_high=0.2,
        gamma=0.95,
        gae_lambda=1.0,
        denominator="token_mean",
    ),
    # Everything that an episode earned at its last turn: the baseline that the others must beat.
    "lumped_ppo": _actor_critic("lumped_ppo", estimator="lumped", clip_low=0.2, clip_high=0.2, gamma=1.0),
    # Chen et al. 2025, LOOP, arXiv:2502.01600: leave-one-out over whole episodes, a token's ratio.
    "loop": Algorithm(name="loop", baseline="leave_one_out", scale="none", denominator="token_mean"),
    # Feng et al. 2025, GiGPO, arXiv:2505.10978: ω = 1, γ = 0.95.
    "gigpo": Algorithm(name="gigpo", estimator="gigpo", gamma=0.95),
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
    *("gamma", "gae_lambda", "token_gamma", "token_lambda", "thought_weight", "anchor_weight"),
)
_CRITIC = {
    "coefficient": "value_coefficient",
    "clip": "value_clip",
    "stop_gradient": "stop_gradient",
    "warmup_steps": "value_warmup",
}
"""Keys of the `critic:` section that change fields of `Algorithm`."""


def algorithm_of(run: Run) -> Algorithm:
    """What the run's `algorithm:` section means. Raises UserError for settings that contradict each other.

    Old log-probs are recomputed unless the section says otherwise where weights are not float32: there the decode path
    and the trainer's differ by more (bfloat16: 3e-3 a token in the mean) than GSPO's clip bounds.
    """
    section = run.algorithm
    algorithm = find_algorithm(section.name, section.clip)
    given: dict[str, Any] = {name: getattr(section, name) for name in _OVERRIDES}
    given |= {field: getattr(run.critic, key) for key, field in _CRITIC.items()}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("value_clip") == 0:
        given["value_clip"] = None
    ratio = None if run.intervention.name == "none" else run.intervention.ratio
    moved = ratio in ("clean", "corrected", "shared")
    if ratio == "corrected":
        given.setdefault("correction", "token_truncate")
    corrected = given.get("correction", "none") != "none"
    if "old_log_probs" not in given and (corrected or moved or run.dtype != "float32"):
        given["old_log_probs"] = "recomputed"
    algorithm = replace(algorithm, **given)
    wrongs = _contradictions(run, section, algorithm) + (_of_other_pictures(run, algorithm) if moved else [])
    wrongs += _of_episodes(run, algorithm)
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


def _of_episodes(run: Run, a: Algorithm) -> list[tuple[bool, str]]:
    """Contradictions between the algorithm and what there is to learn from: episodes or questions of one turn."""
    episodes, section = run.environment.name != "none", run.algorithm
    thoughts = section.thought_weight is not None and section.thought_weight != 1
    return [
        (
            not episodes and a.estimator != "group",
            f"algorithm.name={a.name} learns from episodes; give environment.name, or take an algorithm of groups.",
        ),
        (
            episodes and run.intervention.name != "none" and run.method == "rl",
            "An intervention changes the pictures of a question of one turn, not yet those of episodes; leave one of "
            "environment and intervention away.",
        ),
        (
            episodes and a.critic and a.scale not in ("whiten", "none"),
            f"algorithm.scale={a.scale} compares the replies of a group, and {a.name} has a critic; take "
            "whiten or none.",
        ),
        (
            thoughts and a.ratio != "sequence_sum",
            "algorithm.thought_weight weighs thoughts in the ratio of a whole reply, which "
            f"{a.name} has not; take algorithm.name=rl4vlm.",
        ),
        (
            episodes and (a.resample_limit > 0 or a.overlong > 0 or section.replay > 0 or a.kl_in != "loss"),
            "algorithm.resample_limit, overlong, replay and kl_in other than loss are for questions of one turn; leave "
            "them away with an environment.",
        ),
        (
            episodes and section.papo > 0 and run.method == "rl",
            "algorithm.papo compares with masked pictures of a question of one turn, not yet of episodes; leave it "
            "away with an environment.",
        ),
        (
            run.optimizer.critic_learning_rate is not None and not a.critic,
            f"optimizer.critic_learning_rate is of no use: {a.name} has no critic.",
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
            run.environment.name == "none"
            and per is not None
            and (per > run.prompts or run.prompts % per != 0),
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
