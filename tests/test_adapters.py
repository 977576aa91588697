"""Runs that begin with an adapter: what it may be, what they are compared with, what is exported of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loud_policy, picture, problem, ragged_rows
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from fovea.config import FinetuneSection, Run, load_run
from fovea.export import Source, export, find_source
from fovea.export.folder import _copy_checkpoint, _write_merged
from fovea.models import score
from fovea.models.construct import random_policy_parts
from fovea.models.finetune import ADAPTER_CONFIG
from fovea.models.policy import TINY, Policy, load_policy, make_policy
from fovea.models.reference import Reference, open_reference
from fovea.training import train
from fovea.types import Sampling, UserError

LORA = FinetuneSection(mode="lora", rank=4, alpha=8)
LARGE = problem("large", (picture(220, 170, 0),), "Where?")
LLAVA: dict[str, Any] = {
    "text_layers": 1, "text_width": 32, "text_mlp": 32, "heads": 1, "kv_heads": 1, "head_dim": 32,
    "vision_layers": 2, "vision_width": 32, "vision_mlp": 32, "vision_heads": 1,
}  # fmt: skip
CAP = 2 * 56 * 56
SHORT = ["steps=1", "prompts=2", "group=2", "sampling.max_new_tokens=8", "show_every=0", "threads=1"]
SHORT += [
    "evaluation.n=2",
    "evaluation.during=2",
    "evaluation.every=0",
    "evaluation.samples=0",
    "preflight=off",
]


def shake(policy: Policy, seed: int = 1) -> None:
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.05)


def scored(policy: Policy, by: Reference | None = None) -> Tensor:
    prompts, rows = [policy.prompt(LARGE)], [(0, row) for _, row in ragged_rows(policy, 1, (3, 9))]
    if by is not None:
        return by.log_probs(prompts, rows, Sampling())
    return score(policy, prompts, rows, Sampling())[0]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A trained adapter of the embedded model, as a run before may have left it."""
    policy = load_policy("fovea-tiny", device="cpu", finetune=LORA)
    shake(policy)
    policy.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def merged(base: Path, adapter: Path, out: Path, **run: Any) -> Path:
    """What `fovea export` writes of an adapter, without a run around it."""
    source = Source(
        run_folder=base.parent,
        record={"run": {"run": run}},
        step=1,
        model=adapter,
        base_name=str(base),
        base=base,
    )
    out.mkdir()
    _write_merged(source, out)
    _copy_checkpoint(source, out, "merged")
    return out


# ---------------------------------------------------------------- what an adapter may be


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rslora", True),
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 64}),
        ("fan_in_fan_out", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa"),
        ("from_a_later_peft", 1),
    ],
)
def test_settings_that_change_the_function_are_refused(adapter: Path, key: str, value: Any) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | {key: value}))
    for ask in (
        lambda: load_policy(str(adapter), device="cpu"),
        lambda: load_policy("fovea-tiny", device="cpu", finetune=LORA, adapter=adapter),
    ):
        with pytest.raises(UserError, match=rf"{key}=.* not supported"):
            ask()


@pytest.mark.parametrize(
    ("key", "value"), [("init_lora_weights", "gaussian"), ("lora_dropout", 0.1), ("task_type", "CAUSAL_LM")]
)
def test_settings_that_do_not_are_taken(adapter: Path, key: str, value: Any) -> None:
    before = scored(load_policy(str(adapter), device="cpu"))
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | {key: value}))
    assert torch.equal(scored(load_policy(str(adapter), device="cpu")), before)


@pytest.mark.parametrize(
    ("key", "value"), [("r", None), ("r", "4"), ("lora_alpha", 0.5), ("lora_alpha", None)]
)
def test_a_rank_or_alpha_that_cannot_be_is_a_sentence(adapter: Path, key: str, value: Any) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=f"has {key}=.*whole numbers"):
        load_policy(str(adapter), device="cpu")


# ---------------------------------------------------------------- the reference of a run that begins with one


class Metrics:
    """Remembers the first step's KL."""

    kl: float | None = None

    def start(self, run: Any) -> None: ...

    def evaluation(self, record: Any) -> None: ...

    def finish(self, result: Any) -> None: ...

    def step(self, metrics: Any, shown: Any) -> None:
        self.kl = metrics["kl"] if self.kl is None else self.kl


def run_of(adapter: Path, folder: Path, *more: str) -> Run:
    return load_run("quickstart", [f"model={adapter}", f"run_dir={folder}", "device=cpu", *SHORT, *more])


def test_the_reference_is_the_model_at_the_run_s_start(adapter: Path, tmp_path: Path) -> None:
    run = run_of(adapter, tmp_path / "run")
    policy = load_policy(str(adapter), device="cpu")
    start = scored(policy)
    assert not torch.allclose(scored(load_policy("fovea-tiny", device="cpu")), start, atol=1e-3)
    reference = open_reference(run, policy)
    assert torch.equal(scored(policy, reference), start)
    assert reference.bytes > 0
    shake(policy, seed=2)
    moved = scored(policy)
    resumed = open_reference(run, policy, resumed=True)
    assert torch.equal(scored(policy), moved)
    # a resumed run: nothing was synced, so the checkpoint holds nothing of the reference
    assert reference.state_dict() == {}
    resumed.load_state_dict({})
    assert torch.equal(scored(policy, resumed), start)
    reference.sync()
    resumed.load_state_dict(reference.state_dict())
    assert torch.equal(scored(policy, resumed), moved)


def test_it_is_the_base_where_the_adapter_is_fresh(tmp_path: Path) -> None:
    run = run_of(Path("fovea-tiny"), tmp_path / "run", "finetune.mode=lora")
    policy = load_policy("fovea-tiny", device="cpu", finetune=run.finetune)
    start = scored(policy)
    shake(policy)
    reference = open_reference(run, policy, resumed=True)
    assert torch.equal(scored(policy, reference), start)
    assert reference.bytes == 0


def test_a_run_goes_on_with_an_adapter_and_is_exported(adapter: Path, tmp_path: Path) -> None:
    """The recipe does not repeat finetune: the KL is zero at first, and export reads the adapter's own settings."""
    seen = Metrics()
    train(run_of(adapter, tmp_path / "run", "algorithm.beta=0.1"), [seen])
    assert seen.kl == 0.0
    done = export(tmp_path / "run", tmp_path / "out")
    assert done.form == "merged"
    expected = scored(load_policy(str(find_source(tmp_path / "run").model), device="cpu"))
    assert torch.allclose(scored(load_policy(str(done.folder), device="cpu")), expected, atol=1e-4)
    assert "LoRA: rank 4, alpha 8" in (done.folder / "README.md").read_text()


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("target", ["lm_head", ".*"])
def test_merging_an_adapter_of_a_tied_head_unties_it(target: str, tmp_path: Path) -> None:
    model, processor = random_policy_parts("qwen2_5_vl", text_layers=1, vision_layers=1)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    make_policy(model, processor).save(tmp_path / "base")
    section = LORA.model_copy(update={"targets": (target,)})
    policy = load_policy(str(tmp_path / "base"), device="cpu", finetune=section)
    assert policy.model.lm_head.base_layer.weight is policy.model.get_input_embeddings().weight
    shake(policy)
    policy.save(tmp_path / "adapter")
    out = merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    again = load_policy(str(out), device="cpu")
    assert torch.allclose(scored(again), scored(policy), atol=1e-5)
    embeddings = again.model.get_input_embeddings().weight
    assert torch.equal(embeddings, policy.model.get_input_embeddings().weight)
    assert not torch.equal(embeddings, again.model.lm_head.weight)


def test_a_tied_head_without_an_adapter_stays_tied(tmp_path: Path) -> None:
    policy = load_policy("fovea-tiny", device="cpu", finetune=LORA)
    tied = policy.model.config.tie_word_embeddings
    policy.save(tmp_path / "adapter")
    out = merged(TINY, tmp_path / "adapter", tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] == tied


# ---------------------------------------------------------------- capped pictures


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    make_policy(*random_policy_parts("llava_onevision", **LLAVA)).save(tmp_path / "llava")
    return tmp_path / "llava"


@pytest.mark.parametrize("other", [False, True], ids=["resumed", "reference_model"])
def test_a_reference_from_disk_sees_capped_pictures(llava: Path, other: bool, tmp_path: Path) -> None:
    named = [f"reference_model={llava}"] if other else []
    run = run_of(llava, tmp_path / "run", f"max_pixels={CAP}", *named)
    policy = load_policy(str(llava), device="cpu", max_pixels=CAP)
    start = scored(policy)
    shake(policy)
    assert torch.equal(scored(policy, open_reference(run, policy, resumed=not other)), start)


def test_a_merged_model_keeps_the_caps_in_its_config(llava: Path, tmp_path: Path) -> None:
    policy = load_policy(str(llava), device="cpu", max_pixels=CAP, finetune=LORA)
    policy.save(tmp_path / "adapter")
    out = merged(llava, tmp_path / "adapter", tmp_path / "out", max_pixels=CAP)
    model, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert model.config.image_grid_pinpoints == processor.image_processor.image_grid_pinpoints
    content = [{"type": "image", "image": LARGE.images[0]}, {"type": "text", "text": "Where?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert np.isfinite(model(**inputs).logits.detach().numpy()).all()


# ---------------------------------------------------------------- tensors without a place


def test_a_base_with_a_tensor_too_many_is_refused_by_name(tmp_path: Path) -> None:
    """A config with fewer layers than the weights would silently be another model."""
    loud_policy("qwen2_5_vl", text_layers=2).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config["text_config"]
    text["num_hidden_layers"], text["layer_types"] = 1, text["layer_types"][:1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"12 tensors have no place in the model \('.*layers\.1\..*' is one\)"
    ):
        load_policy(str(tmp_path), device="cpu")


def test_tensors_that_the_class_ignores_are_not(tmp_path: Path) -> None:
    """Qwen3.5 is published with the weights of its multi-token head, which transformers leaves out."""
    from safetensors.torch import load_file, save_file

    loud_policy("qwen3_5").save(tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file(load_file(weights) | {"mtp.fc.weight": torch.zeros(2)}, weights, metadata={"format": "pt"})
    load_policy(str(tmp_path), device="cpu")


def test_a_frozen_part_is_not_trained_by_an_adapter_that_was_given(adapter: Path) -> None:
    """As `finetune.targets` and `freeze` of one part contradict each other, so do an adapter's own targets."""
    with pytest.raises(UserError, match="freeze=text, but the adapter trains layers of text"):
        load_policy(str(adapter), freeze=["text"])
    load_policy(str(adapter), freeze=["vision"])
