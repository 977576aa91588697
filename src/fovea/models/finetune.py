"""Which weights of a model are trained: all but frozen parts, or low-rank adapters (LoRA), on a 4-bit base (QLoRA).

    W x  becomes  W x + (alpha / r) B A x,   A [r, in] random, B [out, r] zero        Hu et al., arXiv:2106.09685
with W frozen, and for QLoRA stored as 4-bit normal floats                            Dettmers et al., arXiv:2305.14314

The layers are peft's, put into the model in place: `policy.model` stays the Hugging Face model that everything else
talks to, `policy.adapter` is the `PeftModel` around it (saving, switching off). Not here: the optimizer.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fovea.config import FinetuneSection
from fovea.models.adapter import Family
from fovea.types import UserError

if (
    TYPE_CHECKING
):  # imported where used: it takes seconds, imports bitsandbytes, and full fine-tuning needs neither
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNDERSTOOD = frozenset({
    # what is read, and what says where it came from
    "peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "revision", "task_type",
    "auto_mapping", "peft_version", "inference_mode", "megatron_core",
    # how the matrices were drawn, and dropout, which is off here anyway
    "lora_dropout", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "qalora_group_size",
    # which layers have matrices: that they are those of the run is checked tensor by tensor
    "exclude_modules", "layers_to_transform", "layers_pattern",
})  # fmt: skip
"""Keys of a peft config that do not change what an adapter of known rank and alpha computes."""
DRAWN = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base as it is (PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change it)."""


# ---------------------------------------------------------------- parts of a model


def part_of(family: Family, name: str) -> str | None:
    """The part ("vision", "projector", "text") of a parameter or module: that of the longest prefix in
    `family.freeze`. None where the family names no part for it.

    Example: part_of(qwen, "model.visual.merger.mlp.0.weight") == "projector", although "model.visual." is "vision".
    """
    fitting = [
        (len(prefix), part)
        for part, prefixes in family.freeze.items()
        for prefix in prefixes
        if f"{name}.".startswith(prefix)
    ]
    return max(fitting)[1] if fitting else None


def freeze_parts(model: Any, family: Family, parts: Sequence[str]) -> None:
    """Turn gradients off for `parts` and on for everything else. Raises UserError for an unknown part."""
    for part in parts:
        if part not in family.freeze:
            raise UserError(f"freeze={part!r} names no part of the model; parts: {', '.join(family.freeze)}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(family, name) not in parts)


# ---------------------------------------------------------------- LoRA


def add_adapter(
    model: Any, family: Family, section: FinetuneSection, freeze: Sequence[str], seed: int
) -> PeftModel:
    """Put fresh low-rank layers, drawn from `seed`, into `model` (changed in place); everything else is frozen.

    The product of the two matrices is zero at first, so the model computes what it did. Adapters of a bfloat16 or 4-bit
    model are float32: they are their own masters. Raises UserError for settings that cannot be.
    """
    if section.dropout > 0:
        raise UserError(
            f"finetune.dropout={section.dropout} must be 0: with dropout the update would train another distribution "
            "than the one the replies were sampled from."
        )
    both = sorted(set(freeze) & set(section.targets))
    if both:
        raise UserError(
            f"freeze={both[0]} and finetune.targets={both[0]} contradict each other; leave one away."
        )
    # bitsandbytes, which peft imports, says on every CPU that a faster kernel is not installed
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=0.0,
        target_modules=target_pattern(model, family, section.targets),
    )
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for a property by its old name
        warnings.simplefilter("ignore", FutureWarning)
        # and warns that a tied head is hard to merge: `fovea export` unties it
        warnings.filterwarnings(
            "ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning
        )
        torch.manual_seed(seed)
        adapter = get_peft_model(model, config)
    adapter.eval()
    trained = {part_of(family, name) for name, p in model.named_parameters() if p.requires_grad}
    if frozen := sorted(part for part in trained if part in freeze and part is not None):
        raise UserError(
            f"freeze={frozen[0]}, but the adapter trains layers of {frozen[0]}; leave the part out of freeze, or use "
            "an adapter of other layers."
        )
    for module in model.modules():
        # on some CPUs bitsandbytes rewrites the 4-bit weights of a module in eval mode for a product without gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return adapter


def target_pattern(model: Any, family: Family, targets: Sequence[str]) -> str:
    """A regular expression that matches the full names of exactly the linear layers meant by `targets`.

    A target is a part (its linear layers, the head that makes logits excepted) or a regular expression that must match
    a layer's whole name. Raises UserError for one that means nothing.
    """
    head = family.lm_head(model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "." in name and module is not head
    ]
    wanted: dict[str, None] = {}
    for target in targets:
        if target in family.freeze:
            found = [name for name in linear if part_of(family, name) == target]
        else:
            found = _matching(target, [*linear, "lm_head"], family)
        if not found:
            raise UserError(
                f"finetune.targets={target} means no linear layer of the model; use {', '.join(family.freeze)} or a "
                f"regular expression that matches whole names such as {linear[-1]}."
            )
        wanted |= dict.fromkeys(found)
    return _pattern(list(wanted), [name for name, _ in model.named_modules()])


def _matching(target: str, names: Sequence[str], family: Family) -> list[str]:
    try:
        return [name for name in names if re.fullmatch(target, name)]
    except re.error as error:
        raise UserError(
            f"finetune.targets={target} is neither a part of the model ({', '.join(family.freeze)}) nor a regular "
            f"expression ({error})."
        ) from None


def _pattern(wanted: Sequence[str], modules: Sequence[str]) -> str:
    """One alternative a stack of layers (all modules in it with these last names), where that says the same."""
    leaves: dict[str, set[str]] = defaultdict(set)
    for name in wanted:
        *stack, leaf = name.split(".")
        leaves[".".join(stack[:3])].add(leaf)
    short = "|".join(
        rf"{re.escape(stack)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(names)))})"
        for stack, names in sorted(leaves.items())
    )
    if {name for name in modules if re.fullmatch(short, name)} == set(wanted):
        return short
    return "|".join(map(re.escape, wanted))


def save_adapter(adapter: PeftModel, folder: str | Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors as peft's own `PeftModel.from_pretrained` reads them."""
    adapter.save_pretrained(str(folder), save_embedding_layers=False)
    # peft's model card says only that something was trained; `fovea export` writes a real one
    (Path(folder) / "README.md").unlink(missing_ok=True)


def load_adapter(adapter: PeftModel, folder: str | Path) -> None:
    """Fill an adapter from a folder. Raises UserError that names the first setting or tensor that does not fit."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    folder = Path(folder)
    saved = read_adapter_config(folder)
    config: Any = adapter.peft_config["default"]
    for key, name, now in (("r", "rank", config.r), ("lora_alpha", "alpha", config.lora_alpha)):
        if saved.get(key) != now:
            raise UserError(
                f"The adapter in {folder} has {name} {saved.get(key)}, the run finetune.{name}={now}; use its value."
            )
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS} cannot be read ({error}); copy the adapter again."
        ) from None
    here = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    for names, verdict in (
        (here.keys() - tensors.keys(), "is missing in"),
        (tensors.keys() - here.keys(), "is unexpected in"),
        (
            {n for n in here.keys() & tensors.keys() if here[n].shape != tensors[n].shape},
            "has another shape in",
        ),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"The tensor {min(names)}{more} {verdict} {folder / ADAPTER_WEIGHTS}; the adapter and the run's model "
                "or finetune.targets do not belong together."
            )
    set_peft_model_state_dict(adapter, tensors)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json as a dict. Raises UserError for a missing or broken file, another kind than LoRA, and any
    setting by which the adapter would compute something else than W x + (alpha / r) B A x."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        kind = config.get("peft_type")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no adapter (no {ADAPTER_CONFIG}); give the folder of one.") from None
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{folder / ADAPTER_CONFIG} is broken; copy the adapter again.") from None
    if kind != "LORA":
        raise UserError(f"The adapter in {folder} is of the kind {kind}; only LORA is supported.")
    for key, value in sorted(config.items()):
        known = value in DRAWN if key == "init_lora_weights" else not value or value == "none"
        if not known and key not in UNDERSTOOD:
            raise UserError(
                f"The adapter in {folder} was trained with {key}={json.dumps(value)[:60]}, which is not supported and "
                "would change what it computes; merge it into its base with peft and give that folder."
            )
    for key in ("r", "lora_alpha"):
        number = config.get(key)
        if not isinstance(number, int | float) or number < 1 or number != int(number):
            raise UserError(
                f"The adapter in {folder} has {key}={json.dumps(number)[:60]} in {ADAPTER_CONFIG}; "
                "only whole numbers from 1 are supported."
            )
    return dict(config)


def is_adapter(model: str | Path) -> bool:
    """Whether a folder holds an adapter and not a model."""
    return (Path(model) / ADAPTER_CONFIG).is_file() and not (Path(model) / "config.json").is_file()


def section_of(folder: Path) -> tuple[str, FinetuneSection]:
    """(base model, section) that an adapter folder was written with. Raises UserError where it names no base or no
    modules, and what `read_adapter_config` raises."""
    config = read_adapter_config(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} does not name its base model; write it under base_model_name_or_path."
        )
    modules = config.get("target_modules")
    if not modules:
        raise UserError(f"{folder / ADAPTER_CONFIG} names no target_modules; copy the adapter again.")
    targets = (modules,) if isinstance(modules, str) else tuple(rf"(?:.*\.)?{re.escape(m)}" for m in modules)
    return str(base), FinetuneSection(
        mode="lora", rank=config["r"], alpha=config["lora_alpha"], targets=targets
    )


# ---------------------------------------------------------------- 4-bit base


def needs_bitsandbytes(what: str) -> Any:
    """The module bitsandbytes. Raises UserError, naming `what` needs it, where it is missing or does not load."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    except Exception as error:
        first = " ".join(str(error).split())[:160]
        raise UserError(
            f"{what} needs the package bitsandbytes ({type(error).__name__}: {first}); "
            "pip install 'fovea-rl[bitsandbytes]'."
        ) from None


def quantization(family: Family, dtype: str, device: torch.device) -> Any:
    """transformers' settings for a base in 4-bit normal floats; vision tower, projector and head stay as they are.

    Raises UserError where bitsandbytes is missing or cannot multiply 4-bit matrices on `device`; it is tried.
    """
    library = needs_bitsandbytes("finetune.mode=qlora")
    kind = getattr(torch, dtype)
    try:
        layer = library.nn.Linear4bit(64, 64, bias=False, compute_dtype=kind, quant_type="nf4").to(device)
        x = torch.zeros(2, 64, device=device, dtype=kind, requires_grad=True)
        layer(x).sum().backward()
    except Exception as error:
        first = " ".join(str(error).split())[:160]
        raise UserError(
            f"finetune.mode=qlora does not run on {device} with this bitsandbytes ({first}); use finetune.mode=lora."
        ) from None
    from transformers import BitsAndBytesConfig

    kept = [prefix.rstrip(".") for part in ("vision", "projector") for prefix in family.freeze.get(part, ())]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=kind,
        llm_int8_skip_modules=[*kept, "lm_head"],
    )
