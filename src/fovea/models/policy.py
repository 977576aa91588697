"""The model being trained: a Hugging Face model, its processor, its family, and how many updates it has seen.

Dropout must be zero, the module stays in eval mode, and gradients are on for what is not frozen, so that
rollout, scoring and update are one distribution. Try: `load_policy("fovea-tiny").prompt(problem)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from fovea.models import qwen2_5_vl, qwen3_vl
from fovea.models.adapter import Family, Prompt, speak
from fovea.models.attention import ATTENTION, register
from fovea.types import Problem, Sampling, UserError

FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": qwen2_5_vl.FAMILY,
    "qwen3_vl": qwen3_vl.FAMILY,
}

TINY = Path(__file__).parent / "tiny"


@dataclass(kw_only=True, slots=True, eq=False)
class Policy:
    """A model with its processor. Only `version` changes (and the weights)."""

    model: Any = field(repr=False)
    """A Hugging Face `...ForConditionalGeneration`."""
    processor: Any = field(repr=False)
    """Its processor (tokenizer, image processor, chat template)."""
    family: Family = field(repr=False)
    """How to talk to it."""
    version: int = 0
    """Updates that the weights have seen; the trainer adds one after each optimizer step."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply, the tokenizer's own first."""
        listed = self.model.generation_config.eos_token_id
        several = listed if isinstance(listed, list) else [] if listed is None else [listed]
        return tuple(dict.fromkeys([self.processor.tokenizer.eos_token_id, *several]))

    @property
    def pad_id(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return int(self.eos_ids[0] if pad is None else pad)

    def bans(self, sampling: Sampling) -> tuple[int, ...]:
        """Token ids with probability zero: the sampling's own and the family's media tokens."""
        return tuple(sorted({*sampling.bans, *self.family.media_ids(self.model.config)}))

    def prompt(self, problem: Problem, instruction: str | None = None) -> Prompt:
        """Render a problem: pictures, question, then `instruction` on a line of its own.

        The prompt's `problem` has its box answer and target in the family's frame, by the grid the processor
        used. Raises UserError for media tokens in the text and for a box problem without pictures.
        """
        text = problem.question if instruction is None else f"{problem.question}\n{instruction}"
        rendered = self.family.render(self.processor, problem.images, text)
        positions = self.family.positions(self.model, rendered)
        sizes = [self.family.resized(self.model.config, grid) for grid in rendered.grids]
        return Prompt(
            problem=speak(problem, self.family.frame, sizes),
            token_ids=rendered.token_ids,
            positions=positions,
            next_position=int(positions.max()) + 1,
            pixel_values=rendered.pixel_values,
            grids=rendered.grids,
            image_mask=rendered.token_types == 1,
            resized=tuple(sizes),
        )

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of a reply without its end token. Other special tokens stay visible: the model wrote them."""
        tokens = [int(i) for i in ids]
        if tokens and tokens[-1] in self.eos_ids:
            tokens.pop()
        return str(self.processor.tokenizer.decode(tokens, skip_special_tokens=False))

    def encode_reply(self, text: str) -> np.ndarray:
        """int64 [T], T >= 1: the tokens of a reply and the end token. Raises UserError for media tokens in
        it."""
        tokens = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if set(tokens) & set(self.family.media_ids(self.model.config)):
            raise UserError(
                f"The reply {text[:60]!r} contains a media token, which can never be said; remove it."
            )
        return np.array([*tokens, self.eos_ids[0]], dtype=np.int64)

    def save(self, folder: str | Path) -> None:
        """Write the plain transformers layout (weights, configs, processor) for the Auto classes."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def make_policy(model: Any, processor: Any, *, freeze: Sequence[str] = ()) -> Policy:
    """A policy of a model and its processor that are already in memory.

    Raises UserError for an unsupported family, dropout, sliding-window attention or an unknown part in
    `freeze`.
    """
    family = next((f for f in FAMILIES.values() if f.matches(model.config)), None)
    if family is None:
        known = ", ".join(FAMILIES)
        raise UserError(f"The model family {model.config.model_type!r} is not supported; supported: {known}.")
    _refuse_randomness(model)
    register()
    model.set_attn_implementation(ATTENTION)
    model.eval()
    frozen: list[str] = []
    for part in freeze:
        if part not in family.freeze:
            raise UserError(f"freeze={part!r} names no part of the model; parts: {', '.join(family.freeze)}.")
        frozen.extend(family.freeze[part])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen)))
    return Policy(model=model, processor=processor, family=family)


def load_policy(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    download: bool = False,
    freeze: Sequence[str] = (),
) -> Policy:
    """Load "fovea-tiny", a folder, or (with download=True) a hub name.

    Raises UserError when there is nothing to load or the model is not supported.
    """
    source = str(TINY) if model == "fovea-tiny" else model
    if not Path(source).is_dir() and not download:
        raise UserError(
            f"There is no model folder {model!r}; "
            "give a folder, 'fovea-tiny', or a hub name with download=true."
        )
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise UserError(
            f"The folder {source} holds no model (no config.json); `fovea zoo build tiny` makes one."
        )
    local = not download or Path(source).is_dir()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=getattr(torch, dtype), local_files_only=local
        )
        processor = AutoProcessor.from_pretrained(source, local_files_only=local)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The model {model!r} could not be loaded: {' '.join(str(error).split())[:300]}"
        ) from None
    return make_policy(loaded.to(choose_device(device)), processor, freeze=freeze)


def choose_device(device: str) -> torch.device:
    """ "auto" is the first GPU if there is one, else the CPU. Raises UserError for a device that is not
    there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"The device {device!r} is not available here; use device=auto or device=cpu."
        ) from None


def _refuse_randomness(model: Any) -> None:
    """Dropout and drop-path make rollout, scoring and update different distributions; windows are not
    built."""
    for config in (model.config.text_config, model.config.vision_config):
        for name, value in config.to_dict().items():
            noisy = "dropout" in name or "drop_path" in name
            if noisy and isinstance(value, (int, float)) and value > 0:
                raise UserError(
                    f"The model's config has {name}={value}; set it to 0, rollout and update must agree."
                )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            raise UserError(
                f"The model has dropout {module.p} at {name}; set it to 0, rollout and update must agree."
            )
    if "sliding_attention" in (getattr(model.config.text_config, "layer_types", None) or ()):
        raise UserError(
            "The model uses sliding-window attention, which is not supported; set use_sliding_window=false."
        )
