"""TRL 1.16's own trainer as oracle: its `_compute_loss` and its advantage code, run and not retyped, on our rollouts.

Ratios are not 1 (as from the second of μ = 2 updates on) and β > 0, so that nothing is zero by construction. Three
levels: the loss of every token and its gradient on recorded log-probs in float64; advantages and reference log-probs
from TRL's rollout code; the gradient of every weight of a small Qwen2.5-VL with pictures. Needs the extra `bench`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_gradients_close, gradients, loud_policy, picture, problem
from torch import Tensor

from fovea.algorithms import (
    ALGORITHMS,
    Algorithm,
    TokenView,
    TopEntropy,
    group_advantages,
    importance_correction,
    kl_estimates,
    sequence_log_ratios,
    step_advantages,
    token_loss,
    token_weights,
)
from fovea.config import load_run
from fovea.models.policy import Policy
from fovea.models.shared_prefix import score
from fovea.rollouts import to_samples
from fovea.training.update import update
from fovea.types import Completion, Group, Sampling

pytest.importorskip("trl", minversion="1.16", reason="TRL is not installed (extra [bench])")
pytest.importorskip("datasets", reason="datasets is not installed (extra [bench])")

BUDGET = 8
BETA = 0.04
TEXTS = ("<answer>3</answer>", "17", "a box", "ab")
# name → (TRL's loss_type, its importance_sampling_level)
IN_TRL = {
    "grpo": ("grpo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "dapo": ("dapo", "token"),
    "bnpo": ("bnpo", "token"),
    "cispo": ("cispo", "token"),
    "gspo": ("grpo", "sequence"),
}


def small_policy() -> Policy:
    """Without banned tokens: TRL's log-probs are of the whole vocabulary."""
    policy = loud_policy("qwen2_5_vl", text_layers=2, vision_layers=2)
    return replace(policy, family=replace(policy.family, media_ids=lambda config: ()))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real GRPOTrainer on a copy of the small model; its reference model is another one."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its warnings are not ours
        from trl import GRPOConfig, GRPOTrainer

        small_policy().save(folder / "model")
        processor = small_policy().processor
        # TRL pads prompts left itself but leaves mm_token_type_ids to the processor: with its default, right, a shorter
        # prompt gets wrong positions and no error (TRL#5785 was of this kind).
        processor.tokenizer.padding_side = "left"
        args = GRPOConfig(
            output_dir=str(folder / "out"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=8,
            num_generations=4,
            num_iterations=2,
            max_completion_length=BUDGET,
            activation_checkpointing=False,
            beta=BETA,
            save_strategy="no",
            model_init_kwargs={"dtype": "float32"},
        )
        rows = [{"prompt": [{"role": "user", "content": "?"}]}] * 2
        found = GRPOTrainer(
            model=str(folder / "model"),
            reward_funcs=lambda completions, reward, **_: reward,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
        )
        found.current_gradient_accumulation_steps = 1
        found.model.train()
        with torch.no_grad():
            draw = torch.Generator().manual_seed(5)
            for parameter in found.ref_model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
        yield found


def configure(trainer: Any, algorithm: Algorithm, loss_type: str, level: str) -> None:
    trainer.loss_type, trainer.importance_sampling_level = loss_type, level
    trainer.epsilon_low, trainer.epsilon_high = algorithm.clip_low, algorithm.clip_high
    if algorithm.objective == "cispo":  # TRL's is the bound itself
        trainer.epsilon_high = 1 + algorithm.clip_high
    trainer.beta, trainer.args.delta = algorithm.beta, algorithm.delta
    trainer.args.use_bias_correction_kl = algorithm.kl_ratio
    trainer.max_completion_length = BUDGET
    trainer.args.steps_per_generation = 1


# ---------------------------------------------------------------- recorded log-probs, float64


class Recorded:
    """8 rows of two groups, T = 7, ragged: log-probs that moved since sampling, others of a reference."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(3)
        normal = lambda scale: scale * torch.randn(8, 7, generator=draw, dtype=torch.float64)  # noqa: E731
        self.new = normal(0.6) - 1.5
        self.old = self.new + normal(0.25)  # ratios 0.5 to 2: all sides of every clip
        self.reference = self.new + normal(0.5)
        self.entropy = normal(1.0).abs()
        self.lengths = [7, 3, 5, 1, 2, 6, 4, 7]
        self.mask = torch.zeros(8, 7, dtype=torch.long)
        for row, length in zip(self.mask, self.lengths, strict=True):
            row[:length] = 1
        self.rewards = np.array([[1.0, 0.0, 0.4, 0.0], [0.2, 0.9, 0.9, 0.1]])

    def flat(self, x: Tensor) -> Tensor:
        """[N], the counted tokens row after row."""
        return x[self.mask.bool()]

    @property
    def rows(self) -> Tensor:
        return torch.arange(8).repeat_interleave(torch.tensor(self.lengths))


def trl_loss(
    trainer: Any, data: Recorded, advantages: Tensor, mask: Tensor, **more: Any
) -> tuple[float, Tensor]:
    """(loss, d loss / d log-probs [8, 7]) of TRL's `_compute_loss`; the model's answer is the recorded one."""
    leaf = data.new.clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (leaf, data.entropy, None)
    inputs = {
        "prompt_ids": torch.zeros(8, 2, dtype=torch.long),
        "prompt_mask": torch.ones(8, 2, dtype=torch.long),
        "completion_ids": torch.zeros(8, 7, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": data.old,
        "ref_per_token_logps": data.reference,
        "num_items_in_batch": mask.sum(),
    }
    try:
        loss = trainer._compute_loss(None, inputs | more)
        (gradient,) = torch.autograd.grad(loss, leaf)
    finally:
        del trainer._get_per_token_logps_and_entropies
    return float(loss.detach()), gradient


def our_tokens(data: Recorded, algorithm: Algorithm, advantages: Tensor, correction: Tensor | None = None):
    """(log-probs [N] with gradient, loss of every token [N], weights [N])."""
    masks = [np.ones(length, np.float32) for length in data.lengths]
    weights = torch.from_numpy(
        np.concatenate(token_weights(masks, [i // 4 for i in range(8)], algorithm, longest=BUDGET))
    ).double()
    leaf, old = data.flat(data.new).requires_grad_(), data.flat(data.old)
    advantage_N, mask_N = advantages[data.rows], torch.ones(len(leaf), dtype=torch.float64)
    sequence = None
    if algorithm.ratio != "token":
        sequence = sequence_log_ratios(leaf, old, mask_N, data.rows, algorithm)
    lengths = torch.tensor(data.lengths, dtype=torch.float64)[data.rows]
    kept = weights if correction is None else weights * correction
    loss = token_loss(leaf, old, advantage_N, kept, algorithm, sequence=sequence, lengths=lengths)
    if algorithm.beta:
        kl = kl_estimates(leaf, data.flat(data.reference), algorithm.kl)
        if algorithm.kl_ratio:
            kl = kl * (leaf - old).exp()
        loss = loss + algorithm.beta * weights * kl
    return leaf, loss, weights


def cases() -> list[Any]:
    found = []
    for name, (loss_type, level) in IN_TRL.items():
        for beta in (0.0, BETA):
            algorithm = replace(ALGORITHMS[name], beta=beta)
            found.append(pytest.param(algorithm, loss_type, level, id=f"{name}-beta{beta}"))
    grpo = ALGORITHMS["grpo"]
    found.append(pytest.param(replace(grpo, delta=1.4), "grpo", "token", id="two-sided"))
    found.append(pytest.param(replace(grpo, beta=BETA, kl_ratio=True), "grpo", "token", id="kl-ratio"))
    return found


@pytest.mark.parametrize(("algorithm", "loss_type", "level"), cases())
def test_loss_and_gradient_on_recorded_log_probs(
    trainer: Any, algorithm: Algorithm, loss_type: str, level: str
) -> None:
    data = Recorded()
    configure(trainer, algorithm, loss_type, level)
    advantages = torch.cat([group_advantages(group, algorithm) for group in data.rewards])
    theirs, gradient = trl_loss(trainer, data, advantages, data.mask)
    leaf, loss, _ = our_tokens(data, algorithm, advantages)
    loss.sum().backward()
    assert float(loss.sum().detach()) == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(leaf.grad, data.flat(gradient), rtol=1e-6, atol=1e-9)
    assert float(leaf.grad.abs().sum()) > 0.01


@pytest.mark.parametrize(("algorithm", "loss_type", "level"), cases())
def test_loss_of_every_token(trainer: Any, algorithm: Algorithm, loss_type: str, level: str) -> None:
    """TRL returns sums only: with all but one token (one completion, where the ratio is a completion's) masked out,
    the sum is that token's loss over a denominator of one token (one completion) in eight rows."""
    data = Recorded()
    configure(trainer, algorithm, loss_type, level)
    advantages = torch.cat([group_advantages(group, algorithm) for group in data.rewards])
    _, loss, weights = our_tokens(data, algorithm, advantages)
    ours = iter((loss / weights).tolist())
    for row, length in enumerate(data.lengths):
        spots = [[t] for t in range(length)] if level == "token" else [list(range(length))]
        for spot in spots:
            mask = torch.zeros_like(data.mask)
            mask[row, spot] = 1
            theirs, _ = trl_loss(trainer, data, advantages, mask)
            theirs *= {"grpo": 8, "dr_grpo": 8 * BUDGET}.get(loss_type, 1)
            mine = np.mean([next(ours) for _ in spot])
            assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9), (row, spot)


def test_rloo(trainer: Any) -> None:
    """TRL's RLOOTrainer has the same `_compute_loss` interface; its code runs here on the GRPO trainer's attributes."""
    from trl import RLOOTrainer

    data, algorithm = Recorded(), ALGORITHMS["rloo"]
    configure(trainer, algorithm, "grpo", "token")
    advantages = torch.cat([group_advantages(group, algorithm) for group in data.rewards])
    leaf = data.new.clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (leaf, data.entropy, None)
    inputs = {
        "prompt_ids": torch.zeros(8, 2, dtype=torch.long),
        "prompt_mask": torch.ones(8, 2, dtype=torch.long),
        "completion_ids": torch.zeros(8, 7, dtype=torch.long),
        "completion_mask": data.mask,
        "advantages": advantages,
        "old_logps": (data.old * data.mask).sum(1),
    }
    try:
        theirs = RLOOTrainer._compute_loss(trainer, None, inputs)
        (gradient,) = torch.autograd.grad(theirs, leaf)
    finally:
        del trainer._get_per_token_logps_and_entropies
    ours, loss, _ = our_tokens(data, algorithm, advantages)
    loss.sum().backward()
    assert float(loss.sum().detach()) == pytest.approx(float(theirs.detach()), rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(ours.grad, data.flat(gradient), rtol=1e-6, atol=1e-9)
    assert 0 < int((ours.grad == 0).sum()) < len(ours)


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_the_tokens_of_highest_entropy(trainer: Any, name: str) -> None:
    data, algorithm = Recorded(), replace(ALGORITHMS[name], beta=BETA)
    configure(trainer, algorithm, *IN_TRL[name])
    advantages = torch.cat([group_advantages(group, algorithm) for group in data.rewards])
    trainer.top_entropy_quantile = 0.2
    try:
        theirs, gradient = trl_loss(trainer, data, advantages, data.mask)
    finally:
        trainer.top_entropy_quantile = 1.0
    entropy = data.flat(data.entropy)
    view = TokenView(
        log_probs=data.flat(data.new), entropy=entropy, old_log_probs=data.flat(data.old),
        advantages=advantages[data.rows], mask=torch.ones_like(entropy), total=35.0, seed=(0, 0, 0), others={},
    )  # fmt: skip
    picked = TopEntropy(share=0.2).pick(view)
    assert int(picked.sum()) == 7
    leaf, loss, _ = our_tokens(data, algorithm, advantages, picked)
    loss.sum().backward()
    assert float(loss.sum().detach()) == pytest.approx(theirs, rel=1e-6)
    np.testing.assert_allclose(leaf.grad, data.flat(gradient), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_advantages_come_from_the_same_rewards(trainer: Any, scale: str) -> None:
    """Through TRL's `_generate_and_score_completions`, rewards that no function gave (None) among them."""
    rewards = np.array([[1.0, 0.0, 0.4, np.nan], [0.2, 0.9, 0.9, 0.1]])
    trainer.scale_rewards = {"group_std": "group", "batch_std": "batch", "none": "none"}[scale]
    trainer.beta = 0.0
    inputs, _ = scored_by_trl(trainer, rewards)
    algorithm = replace(ALGORITHMS["grpo"], scale=scale)
    rows = step_advantages(list(rewards), [np.ones(1)] * 8, algorithm)
    np.testing.assert_allclose(np.concatenate(rows), inputs["advantages"].numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_importance_correction(trainer: Any, mode: str) -> None:
    """TRL applies its weights inside `_generate_and_score_completions`, which needs vLLM; here the formula is checked
    by hand, and that the loss takes such weights as TRL's loss does."""
    data = Recorded()
    algorithm = replace(ALGORITHMS["grpo"], beta=BETA, correction=mode, correction_cap=1.1)
    configure(trainer, algorithm, "grpo", "token")
    engine = data.old + 0.2 * torch.sin(torch.arange(56, dtype=torch.float64).view(8, 7))
    split = lambda x: [row[:n].numpy() for row, n in zip(x, data.lengths, strict=True)]  # noqa: E731
    ours = importance_correction(split(data.old), split(engine), algorithm)
    gap = (data.old - engine) * data.mask
    raw = (gap.sum(1, keepdim=True).expand(8, 7) if mode.startswith("sequence") else gap).exp()
    capped = raw.clamp(max=1.1) if mode.endswith("truncate") else raw.masked_fill(raw > 1.1, 0.0)
    np.testing.assert_allclose(np.concatenate(ours), data.flat(capped), rtol=1e-6)
    advantages = torch.cat([group_advantages(group, algorithm) for group in data.rewards])
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
    try:
        theirs, gradient = trl_loss(trainer, data, advantages, data.mask, importance_sampling_ratio=capped)
    finally:
        trainer.use_vllm = False
    leaf, loss, _ = our_tokens(data, algorithm, advantages, torch.from_numpy(np.concatenate(ours)).double())
    loss.sum().backward()
    assert float(loss.sum().detach()) == pytest.approx(
        theirs, rel=1e-6, abs=1e-8
    )  # float32 weights, cancelling
    np.testing.assert_allclose(leaf.grad, data.flat(gradient), rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- a model, pictures, weights


def our_groups(policy: Policy, rewards: np.ndarray) -> list[Group]:
    """Two problems with a picture, four fixed replies each, old log-probs as if the policy had moved since."""
    draw, groups = np.random.default_rng(0), []
    for g, reward_G in enumerate(rewards):
        prompt = policy.prompt(problem(str(g), (picture(56 + 28 * g, 84, g),), "Where is the red circle?"))
        tokens = [policy.encode_reply(text)[:BUDGET] for text in TEXTS]
        flat, _ = score(policy, [prompt], [(0, ids) for ids in tokens], Sampling())
        moved = flat.numpy() + draw.normal(0, 0.2, len(flat)).astype(np.float32)
        old = np.split(moved, np.cumsum([len(ids) for ids in tokens])[:-1])
        completions = tuple(
            Completion(token_ids=ids, log_probs=lp, text=text, stop="eos")
            for ids, lp, text in zip(tokens, old, TEXTS, strict=True)
        )
        groups.append(
            Group(problem=prompt.problem, prompt=prompt, completions=completions, rewards=reward_G, parts={})
        )
    return groups


def scored_by_trl(trainer: Any, rewards: np.ndarray) -> tuple[dict[str, Any], list[Group]]:
    """What TRL's rollout code makes of our replies (`_generate` returns them), and our groups of the same."""
    policy = small_policy()
    groups = our_groups(policy, rewards)
    examples = [
        {
            "prompt": [{"role": "user", "content": group.problem.question}],
            "images": list(group.problem.images),
            "reward": None if np.isnan(reward) else float(reward),
        }
        for group in groups
        for reward in group.rewards
    ]
    replies = [completion for group in groups for completion in group.completions]
    prompt_ids = [group.prompt.token_ids.tolist() for group in groups for _ in group.completions]

    def generate(prompts: list[Any]) -> tuple[Any, ...]:
        ids = [completion.token_ids.tolist() for completion in replies]
        texts = [[{"role": "assistant", "content": completion.text}] for completion in replies]
        return prompt_ids, ids, None, texts, None, {}, None, None

    trainer._generate = generate
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trainer._generate_and_score_completions(examples), groups
    finally:
        del trainer._generate


@pytest.mark.parametrize("name", IN_TRL)
def test_gradient_of_every_weight(trainer: Any, name: str, tmp_path: Path) -> None:
    """The whole way: our prompts, one shared prefix a group, `update`; TRL's padding, repetition, `_compute_loss`."""
    algorithm = replace(ALGORITHMS[name], beta=BETA, overlong=0.0, resample_limit=0)
    trainer.scale_rewards = "none" if algorithm.scale == "none" else "group"
    configure(trainer, algorithm, *IN_TRL[name])
    inputs, groups = scored_by_trl(trainer, np.array([[1.0, 0.0, 0.4, 0.0], [0.2, 0.9, 0.9, 0.1]]))
    replies = [completion for group in groups for completion in group.completions]
    old = torch.zeros(inputs["completion_ids"].shape)
    for row, completion in zip(old, replies, strict=True):
        row[: len(completion.token_ids)] = torch.from_numpy(completion.log_probs)
    trainer.model.zero_grad(set_to_none=True)
    loss = trainer._compute_loss(trainer.model, inputs | {"old_per_token_logps": old})
    loss.backward()
    theirs = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}

    policy = small_policy()
    rows = [(g, completion.token_ids) for g, group in enumerate(groups) for completion in group.completions]
    frozen = small_policy()
    frozen.model.load_state_dict(trainer.ref_model.state_dict())
    reference = score(frozen, [group.prompt for group in groups], rows, Sampling())[0].numpy()
    split = np.split(reference, np.cumsum([len(ids) for _, ids in rows])[:-1])
    counted = inputs["ref_per_token_logps"][inputs["completion_mask"].bool()]
    np.testing.assert_allclose(reference, counted.numpy(), rtol=2e-6, atol=2e-6)

    samples = to_samples(groups, algorithm, BUDGET, reference=split)
    run = load_run(
        "quickstart",
        ["optimizer.max_grad_norm=1e9", f"sampling.max_new_tokens={BUDGET}", f"run_dir={tmp_path}"],
    )
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    report = update(policy, optimizer, samples, algorithm, Sampling(), run, 0)
    assert report["loss"] == pytest.approx(float(loss.detach()), rel=1e-6, abs=1e-6)
    ours = gradients(policy)
    assert_gradients_close(ours, {n: g for n, g in theirs.items() if n in ours})
    assert report["grad_norm"] == pytest.approx(
        float(torch.stack([g.norm() for n, g in theirs.items() if n in ours]).norm()), rel=1e-6
    )
