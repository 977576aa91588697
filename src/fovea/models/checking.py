"""What a user's model must be before it is trained, each refusal one sentence with the fix.

Not here: adapters (`finetune.py`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from fovea.types import UserError


def check_folder(model: str, folder: Path, download: bool) -> None:
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
        run = (folder / "run.json").is_file()
        inside = f"it is a run, its models are {folder}/checkpoints/step_N/model" if run else "no config.json"
        raise UserError(f"The folder {folder} holds no model ({inside}); give the folder of a model.")
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise UserError(
            f"The folder {folder} holds a config but no weights (no *.safetensors); copy or download it again."
        )


def check_fit(model: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that do not fit their config, by transformers' report on loading them; it only warns."""
    # it would train fresh random numbers in the place of these
    wrong = sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])])
    if wrong:
        raise UserError(
            f"The weights of the model {model!r} do not fit its config: {len(wrong)} tensors are missing or of "
            f"another size ({wrong[0]!r} is one); copy or download the folder again."
        )
    # Layers that the config leaves out: another model than was saved would be trained. What the model's own class says
    # it ignores is not in the report; published checkpoints carry other leftovers (rotary tables, say), which are none.
    strange = sorted(key for key in report["unexpected_keys"] if _LAYER.search(str(key)))
    if strange:
        raise UserError(
            f"The weights of the model {model!r} do not fit its config: {len(strange)} tensors have no place in the "
            f"model ({strange[0]!r} is one); copy or download the folder again."
        )


# A weight of a numbered layer.
_LAYER = re.compile(r"(layers?|blocks)\.\d+\..*(weight|bias)$")


def check_tokenizer(model: str, processor: Any, wanted: Any, fix: str) -> None:
    """Refuse a tokenizer without the model's picture token: transformers makes an empty one where files lack."""
    found = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    # Gemma's processor calls the token that begins a picture its image token; the tokenizer knows the other one
    if wanted is not None and wanted not in (found, getattr(processor.tokenizer, "image_token_id", None)):
        raise UserError(
            f"The tokenizer or processor of the model {model!r} does not fit its config (the picture token is "
            f"{found}, not {wanted}); {fix}."
        )


def refuse_randomness(model: Any) -> None:
    """Dropout and drop-path make rollout, scoring and update different distributions; capped logits are not built."""
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
    text = model.config.text_config
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (
            getattr(text, name, None) is not None
        ):  # transformers' own sdpa and Gemma 3 head ignore them silently
            raise UserError(
                f"The model's config has {name}={getattr(text, name)}, which is not supported; set it to null."
            )
    if getattr(text, "use_bidirectional_attention", None):
        raise UserError(
            "The model's text attends in both directions (use_bidirectional_attention), so it cannot generate; "
            "choose a causal model."
        )


def choose_device(device: str) -> torch.device:
    """ "auto" is the first GPU if there is one, else the CPU. Raises UserError for a device that is not
    there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if device == "meta":  # holds no numbers
            raise RuntimeError(device)
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"The device {device!r} is not available here; use device=auto or device=cpu."
        ) from None


@contextlib.contextmanager
def explained(what: str, fix: str) -> Iterator[None]:
    """Any failure while the user's model files are read is theirs. Broad on purpose: safetensors and tokenizers
    raise types of their own, and a wrong JSON file fails as KeyError or TypeError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except ImportError as error:  # transformers names the package in its message
        first = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"{what} needs a package that is not installed ({first}); for SmolVLM: pip install 'fovea-rl[smolvlm]'."
        ) from error
    except Exception as error:
        first = " ".join(str(error).split()).split(". ")[0].rstrip(".:")[:200]
        raise UserError(f"{what} cannot be read ({type(error).__name__}: {first}); {fix}.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the reports of transformers: what matters in them is said in one sentence."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
