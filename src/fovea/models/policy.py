"""The model being trained: a Hugging Face model, its processor, its family, and how many updates it has seen.

Dropout must be zero, the module stays in eval mode, and gradients are on for what is not frozen, so that
rollout, scoring and update are one distribution. Try: `load_policy("fovea-tiny").prompt(problem)`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from fovea.config import FinetuneSection
from fovea.models.adapter import Family, Prompt, speak
from fovea.models.attention import ATTENTION, register
from fovea.models.checking import (
    check_fit,
    check_folder,
    check_tokenizer,
    choose_device,
    explained,
    quiet,
    refuse_randomness,
)
from fovea.models.critic import NAME as CRITIC
from fovea.models.critic import Critic
from fovea.models.families import FAMILIES, family_of
from fovea.models.finetune import (
    add_adapter,
    freeze_parts,
    is_adapter,
    load_adapter,
    quantization,
    save_adapter,
    section_of,
)
from fovea.models.kept import Kept
from fovea.models.recompute import enable_recompute
from fovea.models.recurrent import hook
from fovea.models.rendering import asked, reply_end, tokenize_plain
from fovea.models.vision_cache import VisionCache
from fovea.types import Problem, Sampling, UserError

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
    reply_tokens: int = 0
    """Room that every prompt must leave in the model's context: the longest reply that will be sampled."""
    reply_end: int | None = None
    """The token with which the chat template ends a reply; None where it has none."""
    adapter: Any = field(default=None, repr=False)
    """The `peft.PeftModel` around `model` (LoRA, QLoRA); None where the model itself is trained."""
    critic: Critic | None = field(default=None, repr=False)
    """Expects what an episode will still earn; None where no algorithm asks for it."""
    recompute: bool = False
    """Gradient checkpointing: layers are computed again in the backward pass."""
    vision_cache: VisionCache = field(default_factory=VisionCache, repr=False)
    """What a frozen vision tower has said about the pictures seen so far."""
    kept: Kept = field(default_factory=Kept, repr=False)
    """Prompts that a rollout encoded, for the update that follows (`fovea.models.kept.keeping`)."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Everything that takes a gradient, by name: the model's, then the critic's under `critic.`"""
        found = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if self.critic is not None:
            found |= {f"{CRITIC}.{n}": p for n, p in self.critic.named_parameters()}
        return found

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply; first the one that the chat template or else the tokenizer puts there."""
        listed = self.model.generation_config.eos_token_id
        several = listed if isinstance(listed, list) else [] if listed is None else [listed]
        first = [] if self.reply_end is None else [self.reply_end]
        return tuple(dict.fromkeys([*first, self.processor.tokenizer.eos_token_id, *several]))

    @property
    def context(self) -> int | None:
        """Tokens that prompt and reply may have together; None where the config does not say."""
        limit = getattr(self.model.config.text_config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def pad_id(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return int(self.eos_ids[0] if pad is None else pad)

    def bans(self, sampling: Sampling) -> tuple[int, ...]:
        """Token ids with probability zero: the sampling's own and the family's media tokens."""
        return tuple(sorted({*sampling.bans, *self.family.media_ids(self.model.config)}))

    def prompt(self, problem: Problem, instruction: str | None = None) -> Prompt:
        """Render a problem: pictures, question, then `instruction` on a line of its own, or around its `{question}`.

        The prompt's `problem` has its box answer and target in the family's frame, by the grid the processor
        used. Special tokens in the texts are ordinary text. Raises UserError, naming the problem, when a picture
        cannot be read, when prompt and reply do not fit the context (nothing is ever cut off), and for a box
        problem without pictures.
        """
        if problem.earlier:
            from fovea.models.conversation import conversation

            turns = [
                (asked_then, self.encode_reply(reply) if isinstance(reply, str) else reply)
                for asked_then, reply in problem.earlier
            ]
            return conversation(self, turns, problem, instruction)
        text = asked(problem.question, instruction)
        try:
            rendered = self.family.render(self.processor, problem.images, text)
        except UserError as error:
            raise UserError(named(problem, str(error))) from error
        pictured = sum(rendered.pictures.tokens)
        self._check_room(problem, len(rendered.token_ids), pictured, self.reply_tokens, "for the reply")
        positions = self.family.positions(self.model, rendered)
        pictures = rendered.pictures
        return Prompt(
            problem=speak(problem, self.family.frame, pictures.resized),
            token_ids=rendered.token_ids,
            positions=positions,
            next_position=int(positions.max()) + 1,
            image_mask=rendered.image_mask,
            media=pictures.media,
            picture_rows=pictures.rows,
            picture_tokens=pictures.tokens,
            resized=pictures.resized,
        )

    def encode_target(self, prompt: Prompt) -> np.ndarray:
        """`encode_reply` of the teacher's reply to a prompt. Raises UserError when it does not fit the context."""
        tokens = self.encode_reply(prompt.problem.target or "")
        pictured = int(prompt.image_mask.sum())
        length = len(prompt.token_ids)
        self._check_room(prompt.problem, length, pictured, len(tokens), "for the target")
        return tokens

    def _check_room(self, problem: Problem, tokens: int, pictured: int, reply: int, what: str) -> None:
        limit = self.context
        if limit is None or tokens + reply <= limit:
            return
        pictures = f" ({pictured} of them for pictures)" if pictured else ""
        asked = f"{tokens} tokens{pictures}" + (f" and {reply} {what}" if reply else "")
        shorter = "lower sampling.max_new_tokens" if what == "for the reply" else "shorten the target"
        fixes = [
            "shorten the question",
            *["use smaller pictures or a lower max_pixels"] * bool(pictured),
            *[shorter] * bool(reply),
        ]
        text = f"the prompt needs {asked}, but the model's context holds {limit}; {' or '.join(fixes)}."
        raise UserError(named(problem, text))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of a reply without its end token. Other special tokens stay visible: the model wrote them."""
        tokens = [int(i) for i in ids]
        if tokens and tokens[-1] in self.eos_ids:
            tokens.pop()
        return str(self.processor.tokenizer.decode(tokens, skip_special_tokens=False))

    def encode_reply(self, text: str) -> np.ndarray:
        """int64 [T], T >= 1: the tokens of a reply and the end token. Special tokens in it are ordinary text."""
        return np.array([*tokenize_plain(self.processor.tokenizer, text), self.eos_ids[0]], dtype=np.int64)

    def save(self, folder: str | Path) -> None:
        """Write the plain transformers layout (weights, configs, processor) for the Auto classes; of an adapter
        peft's layout and the processor."""
        if self.adapter is None:
            self.model.save_pretrained(folder)
        else:
            save_adapter(self.adapter, folder)
        self.processor.save_pretrained(folder)


def named(problem: Problem, sentence: str) -> str:
    """A sentence about a problem that says which one, and where it was read, unless it does so already."""
    source = str(problem.meta.get("source") or "")
    if f"roblem {problem.id}" in sentence or (source and source in sentence):
        return sentence
    return f"Problem {problem.id}{f' ({source})' if source else ''}: {sentence}"


def make_policy(
    model: Any,
    processor: Any,
    *,
    freeze: Sequence[str] = (),
    finetune: FinetuneSection | None = None,
    adapter: str | Path | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    reply_tokens: int = 0,
) -> Policy:
    """A policy of a model and its processor that are already in memory; both are changed in place.

    `finetune`: with mode lora or qlora fresh adapters are put in, drawn from `seed`, and filled from the folder
    `adapter` if one is given. None is full fine-tuning. `min_pixels`, `max_pixels`: caps on the size of pictures
    (`fovea.models.resolution`); None leaves the processor's own.
    Raises UserError for an unsupported family, dropout, capped logits or an unknown part in `freeze`.
    """
    family = family_of(model.config)
    refuse_randomness(model)
    family.cap(model.config, processor, min_pixels, max_pixels)
    register()
    model.set_attn_implementation(ATTENTION)
    if family.recurrent_layers is not None:
        hook(family.recurrent_layers(model))
    model.eval()
    wrapped = None
    if finetune is None or finetune.mode == "full":
        freeze_parts(model, family, freeze)
    else:
        wrapped = add_adapter(model, family, finetune, freeze, seed)
        if adapter is not None:
            load_adapter(wrapped, adapter)
    if gradient_checkpointing:
        enable_recompute(model)
    return Policy(
        model=model,
        processor=processor,
        family=family,
        reply_tokens=reply_tokens,
        reply_end=reply_end(processor),
        adapter=wrapped,
        recompute=gradient_checkpointing,
    )


def load_policy(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    download: bool = False,
    freeze: Sequence[str] = (),
    finetune: FinetuneSection | None = None,
    adapter: str | Path | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    reply_tokens: int = 0,
) -> Policy:
    """Load "fovea-tiny", a folder, or (with download=True) a hub name. `reply_tokens`: see `Policy`.

    A folder that holds an adapter is loaded as its base model with that adapter. `finetune`, `adapter` and `seed`:
    see `make_policy`.

    Raises UserError when there is nothing to load, when a file is missing or broken, or when the model is not
    supported; what is cheap to check is checked before the weights are read.
    """
    chat = None  # where the processor is, if not with the model
    if is_adapter(model):
        folder = Path(model)
        chat = folder if (folder / "processor_config.json").is_file() else None
        model, saved = section_of(folder)
        finetune = saved if finetune is None or finetune.mode == "full" else finetune
        adapter = folder if adapter is None else adapter
    source = find_model(model, download)
    place = choose_device(device)
    local = not download or Path(source).is_dir()
    with quiet():
        with explained(f"The config of the model {model!r}", "copy or download the folder again"):
            config, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local)
            family_of(SimpleNamespace(model_type=config.get("model_type")))
        fix = "it needs tokenizer.json and processor_config.json as its publisher ships them"
        with explained(f"The tokenizer or processor of the model {model!r}", fix):
            processor = AutoProcessor.from_pretrained(chat or source, local_files_only=local)
        if getattr(processor, "chat_template", None) is None:
            raise UserError(f"The model {model!r} has no chat template; add its chat_template.jinja.")
        check_tokenizer(model, processor, config.get("image_token_id", config.get("image_token_index")), fix)
        how: dict[str, Any] = {}
        if finetune is not None and finetune.mode == "qlora":
            how["quantization_config"] = quantization(FAMILIES[config["model_type"]], dtype, place)
            how["device_map"] = {"": str(place)}
        with explained(f"The weights of the model {model!r}", "copy or download the folder again"):
            both: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=getattr(torch, dtype),
                local_files_only=local,
                output_loading_info=True,
                **how,
                ignore_mismatched_sizes=True,  # they are refused below, in one sentence
            )
    loaded, report = both
    check_fit(model, report)
    return make_policy(
        loaded if how else loaded.to(place),
        processor,
        freeze=freeze,
        finetune=finetune,
        adapter=adapter,
        seed=seed,
        gradient_checkpointing=gradient_checkpointing,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        reply_tokens=reply_tokens,
    )


def answers_untold(model: str) -> bool:
    """Whether a model's config says that it writes answers in fovea's form without being told (`answers_untold`).

    fovea-tiny was taught the form and never met an instruction: with one, 6 % of its boxes are right, without 66 %
    (docs/lab-notes.md, section 13). Models trained from it and their exports inherit the mark, adapters have their
    base's. A hub name is never looked up: False. Raises UserError for an adapter that cannot be used.
    """
    base = section_of(Path(model))[0] if is_adapter(model) else model
    folder = TINY if base == "fovea-tiny" else Path(base)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("answers_untold") is True


def find_model(model: str, download: bool = False) -> str:
    """The folder or hub name that `load_policy` will read. Raises UserError for what cannot be a model."""
    source = str(TINY) if model == "fovea-tiny" else model
    check_folder(model, Path(source), download)
    return source
