"""Parts, LoRA, QLoRA, recomputation in the backward pass, and the reference model, on every family."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import gradients, loud_policy, picture, problem, ragged_rows
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from fovea.config import FinetuneSection, load_run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.models import FAMILIES, backward, load_policy, score
from fovea.models.finetune import ADAPTER_WEIGHTS, part_of, target_pattern
from fovea.models.policy import Policy, make_policy
from fovea.models.recompute import layers, recomputing
from fovea.models.reference import Reference, make_reference, open_reference
from fovea.training.memory import _keeping
from fovea.types import Problem, Sampling, UserError

SIZES: dict[str, Any] = {
    "text_layers": 2,
    "text_width": 64,
    "text_mlp": 128,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "vision_layers": 2,
    "vision_width": 32,
    "vision_mlp": 64,
    "vision_heads": 2,
    "deepstack": (0, 1),
}
LORA = FinetuneSection(mode="lora", rank=4, alpha=8)
QWENS = ("qwen2_5_vl", "qwen3_vl")
LENGTHS = (5, 1, 30, 9)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parts_of(family: str) -> tuple[Any, Any]:
    policy = loud_policy(family, **SIZES)
    return policy.model, policy.processor


def tuned(family: str, section: FinetuneSection = LORA, seed: int = 0, **more: Any) -> Policy:
    model, processor = parts_of(family)
    return make_policy(model, processor, finetune=section, seed=seed, **more)


def problems() -> list[Problem]:
    return [
        problem("one", (picture(84, 56, 1),), "Where is the red circle?"),
        problem("none", (), "How many?"),
    ]


def scored(policy: Policy) -> Tensor:
    prompts = [policy.prompt(p) for p in problems()]
    return score(policy, prompts, ragged_rows(policy, 2, LENGTHS), Sampling(), tokens_per_pass=20)[0]


def pull(policy: Policy, tokens_per_pass: int = 20) -> dict[str, Tensor]:
    """Gradients of a weighted sum of log-probs and entropies; the third row is longer than a pass."""
    prompts = [policy.prompt(p) for p in problems()]
    rows = ragged_rows(policy, 2, LENGTHS)
    weights = torch.linspace(-1, 1, sum(LENGTHS))

    def loss(index: Tensor, log_probs: Tensor, entropy: Tensor) -> Tensor:
        return (weights[index] * log_probs + 0.1 * entropy).sum()

    backward(policy, prompts, rows, Sampling(), loss, tokens_per_pass)
    return gradients(policy)


def shake(policy: Policy, seed: int = 1) -> None:
    """Move every trained weight a little, as some steps of training would."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.05)


# ---------------------------------------------------------------- parts


def test_every_weight_belongs_to_one_part_and_each_part_can_be_frozen(family: str) -> None:
    model, processor = parts_of(family)
    names = [name for name, _ in model.named_parameters()]
    assert {part_of(FAMILIES[family], name) for name in names} == {"vision", "projector", "text"}
    for part in ("vision", "projector", "text"):
        make_policy(model, processor, freeze=(part,))
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {n for n in names if part_of(FAMILIES[family], n) == part}


# ---------------------------------------------------------------- LoRA


def test_a_fresh_adapter_changes_nothing_and_every_matrix_of_it_learns(family: str) -> None:
    model, processor = parts_of(family)
    before = scored(make_policy(model, processor))
    policy = make_policy(model, processor, finetune=LORA)
    assert policy.model is model
    assert torch.equal(scored(policy), before)
    found = pull(policy)
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name and part_of(policy.family, name) == "text" for name in found)
    # A gets no gradient while B is zero; B gets one everywhere, so no layer is bypassed
    assert all(bool(g.any()) == ("lora_B" in name) for name, g in found.items())
    shake(policy)
    assert all(bool(g.any()) for g in pull(policy).values())
    assert (scored(policy) - before).abs().max() > 1e-3


@pytest.mark.parametrize("family", QWENS)
def test_a_merged_adapter_computes_the_same(family: str) -> None:
    policy = tuned(family)
    shake(policy)
    merged = make_policy(copy.deepcopy(policy.adapter).merge_and_unload(), policy.processor)
    assert torch.allclose(scored(merged), scored(policy), atol=2e-5)


def test_the_seed_decides_the_adapter_and_nothing_else_is_drawn() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (tuned("qwen3_vl", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    name = next(n for n, _ in first.model.named_parameters() if "lora_A" in n)
    drawn = [dict(p.model.named_parameters())[name] for p in (first, again, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_targets_are_parts_or_patterns() -> None:
    for family in QWENS:
        model, _ = parts_of(family)
        everything = target_pattern(model, FAMILIES[family], ("text", "vision", "projector"))
        assert len(everything) < 400  # a pattern, not a list
        policy = tuned(family, LORA.model_copy(update={"targets": ("vision", r".*\.q_proj")}))
        found = {n for n, p in policy.model.named_parameters() if p.requires_grad}
        assert found
        assert all("q_proj" in n or part_of(policy.family, n) == "vision" for n in found)


@pytest.mark.parametrize(
    ("change", "freeze", "match"),
    [
        ({"dropout": 0.1}, (), r"finetune\.dropout=0\.1 must be 0"),
        ({"targets": ("ears",)}, (), r"finetune\.targets=ears means no linear layer"),
        ({"targets": ("(",)}, (), r"neither a part of the model .* nor a regular expression"),
        (
            {"targets": ("vision", "text")},
            ("vision",),
            r"freeze=vision and finetune\.targets=vision contradict",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(
    change: dict[str, Any], freeze: tuple[str, ...], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        tuned("qwen2_5_vl", LORA.model_copy(update=change), freeze=freeze)


def test_the_adapter_of_a_bfloat16_model_is_float32() -> None:
    model, processor = parts_of("qwen2_5_vl")
    policy = make_policy(model.bfloat16(), processor, finetune=LORA)
    assert {p.dtype for p in policy.model.parameters() if p.requires_grad} == {torch.float32}
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in pull(policy).values())


# ---------------------------------------------------------------- saved and loaded


@pytest.fixture
def base(tmp_path: Path) -> Path:
    policy = loud_policy("qwen2_5_vl", **SIZES)
    policy.save(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own call
def test_an_adapter_is_saved_as_peft_reads_it_and_loaded_to_the_bit(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    policy = load_policy(str(base), finetune=LORA, seed=3, device="cpu")
    shake(policy)
    policy.save(tmp_path / "adapter")
    expected = scored(policy)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = load_policy(str(base), finetune=LORA, adapter=tmp_path / "adapter", device="cpu")
    assert torch.equal(scored(again), expected)
    by_folder = load_policy(
        str(tmp_path / "adapter"), device="cpu"
    )  # the base is named in adapter_config.json
    assert torch.equal(scored(by_folder), expected)
    plain = AutoModelForImageTextToText.from_pretrained(base)
    plain = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()
    assert torch.allclose(scored(make_policy(plain, policy.processor)), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda tensors, name: tensors.pop(name), r"The tensor base_model.*lora_A.* is missing in"),
        (lambda tensors, name: tensors.update(extra=torch.zeros(1)), r"The tensor extra is unexpected in"),
        (
            lambda tensors, name: tensors.update({name: torch.zeros(1, 1)}),
            r"lora_A\.weight has another shape in",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(
    base: Path, tmp_path: Path, spoil: Any, match: str
) -> None:
    folder = tmp_path / "adapter"
    load_policy(str(base), finetune=LORA, device="cpu").save(folder)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    spoil(tensors, min(tensors))
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    with pytest.raises(UserError, match=match):
        load_policy(str(base), finetune=LORA, adapter=folder, device="cpu")


def test_other_adapters_are_refused_in_a_sentence(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    load_policy(str(base), finetune=LORA, device="cpu").save(folder)
    wider = LORA.model_copy(update={"rank": 8})
    with pytest.raises(UserError, match=r"has rank 4, the run finetune\.rank=8"):
        load_policy(str(base), finetune=wider, adapter=folder, device="cpu")
    config = json.loads((folder / "adapter_config.json").read_text())
    for text, match in (
        ("{", "is broken"),
        (json.dumps(config | {"peft_type": "IA3"}), "only LORA"),
        (json.dumps(config | {"base_model_name_or_path": None}), "does not name its base model"),
        (json.dumps(config | {"target_modules": []}), "names no target_modules"),
        (json.dumps(config | {"base_model_name_or_path": "gone"}), "no model folder 'gone'"),
    ):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match=match):
            load_policy(str(folder), device="cpu")


# ---------------------------------------------------------------- QLoRA


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore")
def test_qlora_learns_on_a_four_bit_base(base: Path, tmp_path: Path) -> None:
    section = FinetuneSection(mode="qlora", rank=4, alpha=8)
    policy = load_policy(str(base), finetune=section, device="cpu")
    kinds = {
        part_of(policy.family, name): type(module).__name__
        for name, module in policy.model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.endswith(("down_proj.base_layer", "attn.qkv", "mlp.0"))
    }
    assert kinds == {"text": "Linear4bit", "vision": "Linear", "projector": "Linear"}
    found = pull(policy)
    assert all(bool(g.any()) == ("lora_B" in name) for name, g in found.items())
    shake(policy)
    expected = scored(policy)
    policy.save(tmp_path / "adapter")
    again = load_policy(str(base), finetune=section, adapter=tmp_path / "adapter", device="cpu")
    assert torch.equal(scored(again), expected)


def test_without_bitsandbytes_qlora_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"finetune\.mode=qlora needs the package bitsandbytes"):
        load_policy(str(base), finetune=FinetuneSection(mode="qlora"), device="cpu")


# ---------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize("section", [None, LORA], ids=["full", "lora"])
def test_recomputation_changes_no_gradient_and_keeps_less(
    family: str, section: FinetuneSection | None
) -> None:
    model, processor = parts_of(family)
    policy = make_policy(copy.deepcopy(model), processor, finetune=section)
    thrifty = make_policy(model, processor, finetune=section, gradient_checkpointing=True)
    shake(policy)
    shake(thrifty)
    ours, theirs = pull(thrifty), pull(policy)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name
    assert not any(module.training for module in thrifty.model.modules())

    def kept(one: Policy) -> int:
        prompt, rows = one.prompt(problems()[0]), ragged_rows(one, 1, (20,))
        with _keeping(one.model) as found, recomputing(one.model, one.recompute):
            backward(one, [prompt], rows, Sampling(), lambda i, l, e: l.sum(), 64)
        return sum(found.values())

    assert kept(thrifty) < 0.7 * kept(policy)
    assert len(layers(model)) >= 4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "qwen3_5"])
def test_recomputation_leaves_sampling_alone(family: str) -> None:
    model, processor = parts_of(family)
    plain = make_policy(copy.deepcopy(model), processor)
    thrifty = make_policy(model, processor, gradient_checkpointing=True)
    replies = [
        SharedPrefillEngine(one).generate(
            [one.prompt(p) for p in problems()], 2, Sampling(max_new_tokens=6), seed=(0, 0)
        )
        for one in (plain, thrifty)
    ]
    for mine, other in zip(*replies, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert np.array_equal(a.token_ids, b.token_ids)
            assert np.array_equal(a.log_probs, b.log_probs)


# ---------------------------------------------------------------- the reference


def reference_scores(reference: Reference, policy: Policy) -> Tensor:
    prompts = [policy.prompt(p) for p in problems()]
    return reference.log_probs(prompts, ragged_rows(policy, 2, LENGTHS), Sampling(), 20)


@pytest.mark.parametrize("section", [None, LORA], ids=["full", "lora"])
def test_the_reference_stays_while_the_policy_moves(section: FinetuneSection | None) -> None:
    model, processor = parts_of("qwen3_vl")
    policy = make_policy(model, processor, finetune=section)
    start = scored(policy)
    reference = make_reference(policy)
    assert (reference.bytes == 0) == (section is not None)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    shake(policy)
    moved = scored(policy)
    assert torch.allclose(reference_scores(reference, policy), start, atol=2e-6)
    assert torch.equal(scored(policy), moved)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert reference.state_dict() == {}
    reference.sync()
    shake(policy, seed=2)
    assert torch.allclose(reference_scores(reference, policy), moved, atol=2e-6)
    # a checkpoint brings the synced weights back into a fresh reference
    state = reference.state_dict()
    again = make_reference(policy)
    again.load_state_dict(state)
    assert torch.equal(reference_scores(again, policy), reference_scores(reference, policy))
    assert again.state_dict().keys() == state.keys()
    name = min(state)
    with pytest.raises(UserError, match=f"The tensor {name} is missing in the saved reference"):
        again.load_state_dict({n: x for n, x in state.items() if n != name})
    with pytest.raises(UserError, match="has another shape"):
        again.load_state_dict(state | {name: np.zeros(1, np.float32)})


def test_a_bfloat16_reference_state_loses_nothing() -> None:
    model, processor = parts_of("qwen2_5_vl")
    policy = make_policy(model.bfloat16(), processor)
    reference = make_reference(policy)
    shake(policy)
    reference.sync()
    again = make_reference(policy)
    shake(policy, seed=2)
    again.load_state_dict(reference.state_dict())
    assert torch.equal(reference_scores(again, policy), reference_scores(reference, policy))


def test_a_resumed_run_reads_the_reference_from_its_model(base: Path) -> None:
    run = load_run("quickstart", [f"model={base}", "device=cpu"])
    policy = load_policy(str(base), device="cpu")
    start = scored(policy)
    shake(policy)
    assert torch.equal(reference_scores(open_reference(run, policy, resumed=True), policy), start)
    other = run.model_copy(update={"reference_model": "fovea-tiny"})
    with pytest.raises(UserError, match="another family or vocabulary"):
        open_reference(other, policy)
