"""The model being trained: a Hugging Face model, its processor, its family, and how many updates it has seen.

Dropout must be zero, the module stays in eval mode, and gradients are on for what is not frozen, so that
rollout, scoring and update are one distribution. Try: `load_policy("fovea-tiny").prompt(problem)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from fovea.models import qwen2_5_vl, qwen3_vl
from fovea.models.adapter import Family, Prompt, speak, tokenize_plain
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
    reply_tokens: int = 0
    """Room that every prompt must leave in the model's context: the longest reply that will be sampled."""

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
        """Render a problem: pictures, question, then `instruction` on a line of its own.

        The prompt's `problem` has its box answer and target in the family's frame, by the grid the processor
        used. Special tokens in the texts are ordinary text. Raises UserError, naming the problem, when a picture
        cannot be read, when prompt and reply do not fit the context (nothing is ever cut off), and for a box
        problem without pictures.
        """
        text = problem.question if instruction is None else f"{problem.question}\n{instruction}"
        try:
            rendered = self.family.render(self.processor, problem.images, text)
        except UserError as error:
            raise UserError(named(problem, str(error))) from error
        pictured = int((rendered.token_types == 1).sum())
        self._check_room(problem, len(rendered.token_ids), pictured, self.reply_tokens, "for the reply")
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
        fixes = ["shorten the question", *["use smaller pictures"] * bool(pictured), *[shorter] * bool(reply)]
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
        """Write the plain transformers layout (weights, configs, processor) for the Auto classes."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def named(problem: Problem, sentence: str) -> str:
    """A sentence about a problem that says which one, and where it was read, unless it does so already."""
    source = str(problem.meta.get("source") or "")
    if f"roblem {problem.id}" in sentence or (source and source in sentence):
        return sentence
    return f"Problem {problem.id}{f' ({source})' if source else ''}: {sentence}"


def make_policy(model: Any, processor: Any, *, freeze: Sequence[str] = (), reply_tokens: int = 0) -> Policy:
    """A policy of a model and its processor that are already in memory.

    Raises UserError for an unsupported family, dropout, sliding-window attention or an unknown part in
    `freeze`.
    """
    family = next((f for f in FAMILIES.values() if f.matches(model.config)), None)
    if family is None:
        _refuse_family(model.config.model_type)
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
    return Policy(model=model, processor=processor, family=family, reply_tokens=reply_tokens)


def _refuse_family(kind: Any) -> NoReturn:
    raise UserError(f"The model family {kind!r} is not supported; supported: {', '.join(FAMILIES)}.")


def load_policy(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    download: bool = False,
    freeze: Sequence[str] = (),
    reply_tokens: int = 0,
) -> Policy:
    """Load "fovea-tiny", a folder, or (with download=True) a hub name. `reply_tokens`: see `Policy`.

    Raises UserError when there is nothing to load, when a file is missing or broken, or when the model is not
    supported; what is cheap to check is checked before the weights are read.
    """
    source = find_model(model, download)
    place = choose_device(device)
    local = not download or Path(source).is_dir()
    with _quiet():
        with _explained(f"The config of the model {model!r}", "copy or download the folder again"):
            config, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local)
            if config.get("model_type") not in FAMILIES:
                _refuse_family(config.get("model_type"))
        fix = "it needs tokenizer.json and processor_config.json as its publisher ships them"
        with _explained(f"The tokenizer or processor of the model {model!r}", fix):
            processor = AutoProcessor.from_pretrained(source, local_files_only=local)
        if getattr(processor, "chat_template", None) is None:
            raise UserError(f"The model {model!r} has no chat template; add its chat_template.jinja.")
        _check_tokenizer(model, processor, config.get("image_token_id"), fix)
        with _explained(f"The weights of the model {model!r}", "copy or download the folder again"):
            both: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=getattr(torch, dtype),
                local_files_only=local,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, in one sentence
            )
    loaded, report = both
    wrong = sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])])
    if wrong:  # transformers only warns, and would train fresh random numbers in their place
        raise UserError(
            f"The weights of the model {model!r} do not fit its config: {len(wrong)} tensors are missing or of "
            f"another size ({wrong[0]!r} is one); copy or download the folder again."
        )
    return make_policy(loaded.to(place), processor, freeze=freeze, reply_tokens=reply_tokens)


def find_model(model: str, download: bool = False) -> str:
    """The folder or hub name that `load_policy` will read. Raises UserError for what cannot be a model."""
    source = str(TINY) if model == "fovea-tiny" else model
    _check_folder(model, Path(source), download)
    return source


def _check_tokenizer(model: str, processor: Any, wanted: Any, fix: str) -> None:
    """Refuse a tokenizer without the model's picture token: transformers makes an empty one where files lack."""
    found = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if wanted is not None and found != wanted:
        raise UserError(
            f"The tokenizer or processor of the model {model!r} does not fit its config (the picture token is "
            f"{found}, not {wanted}); {fix}."
        )


def _check_folder(model: str, folder: Path, download: bool) -> None:
    """Refuse what cannot be a model before a library tries."""
    if folder.is_file():
        raise UserError(f"{model} is a file; give the folder that holds config.json and the weights.")
    if not folder.is_dir() and not download:
        raise UserError(
            f"There is no model folder {model!r}; "
            "give a folder, 'fovea-tiny', or a hub name with download=true."
        )
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise UserError(
            f"The folder {folder} holds no model (no config.json); `fovea zoo build tiny` makes one."
        )
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise UserError(
            f"The folder {folder} holds a config but no weights (no *.safetensors); copy or download it again."
        )


@contextlib.contextmanager
def _explained(what: str, fix: str) -> Iterator[None]:
    """Any failure while the user's model files are read is theirs. Broad on purpose: safetensors and tokenizers
    raise types of their own, and a wrong JSON file fails as KeyError or TypeError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        first = " ".join(str(error).split()).split(". ")[0].rstrip(".:")[:200]
        raise UserError(f"{what} cannot be read ({type(error).__name__}: {first}); {fix}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports of transformers: what matters in them is said in one sentence."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


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
