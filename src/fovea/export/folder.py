"""`fovea export`: a run's model as a plain Hugging Face folder, whole or not there.

A fully trained model is copied byte for byte from its checkpoint, which is in the plain layout already; a LoRA
adapter is merged into its base in float32 and written in the run's dtype, or written as a peft adapter. Files of the
base that describe its tokenizer and processors and that transformers would not write again (video and picture
preprocessors under their older names, vocabularies, licences) are carried through byte for byte.

Try it: `fovea export runs/quickstart-seed0 my-model`
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fovea.export.readme import readme
from fovea.export.source import Source, find_source, public_name
from fovea.models.finetune import section_of
from fovea.types import UserError

CARRIED = (
    "*tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.*",
    "chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
)
"""Files of the base that are carried through where the checkpoint has none of that name."""
PICTURES = "preprocessor_config.json"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written. Example: Exported(folder=Path("my-model"), step=120, form="full", ...)"""

    folder: Path
    step: int
    form: str
    """"full" (all weights were trained), "merged" or "adapter"."""
    dtype: str
    base: str
    """The model that the run started from, without folders of this machine."""
    files: tuple[str, ...]
    carried: tuple[str, ...]
    """Those of the base, byte for byte."""
    bytes: int

    def record(self) -> dict[str, Any]:
        """Plain JSON, as `fovea export --json` prints it."""
        return {
            "folder": str(self.folder), "step": self.step, "form": self.form, "dtype": self.dtype,
            "base": self.base, "files": list(self.files), "carried": list(self.carried), "bytes": self.bytes,
        }  # fmt: skip


def export(
    run_or_checkpoint: str | Path,
    out: str | Path,
    *,
    adapter: bool = False,
    step: int | None = None,
    best: bool = False,
    base: str | None = None,
) -> Exported:
    """Write the model of a run (its newest checkpoint, that of `step`, or the `best`) to the new folder `out`.

    `adapter`: write a LoRA run's adapter instead of merging it; `base`: where the model that the run started from is
    now, if it moved. Raises UserError, before anything is written, for an `out` that holds something and for what
    cannot be exported; `out` appears under its name only when it is complete.
    """
    target = Path(out).absolute()
    check_target(out)
    source = find_source(run_or_checkpoint, step=step, best=best, base=base)
    if adapter and not source.is_adapter:
        raise UserError(
            f"{run_or_checkpoint} trained the model's own weights, so there is no adapter; leave --adapter away."
        )
    form = "adapter" if adapter else "merged" if source.is_adapter else "full"
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if form == "merged":
            _write_merged(source, partial)
        _copy_checkpoint(source, partial, form)
        carried = _carry(source, partial)
        (partial / "README.md").write_text(readme(source, form), encoding="utf-8")
        _publish(partial, target)
    except OSError as error:
        raise UserError(
            f"The model cannot be written to {out} ({error.strerror or error}); choose another folder or make room."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return Exported(
        folder=Path(out),
        step=source.step,
        form=form,
        dtype=source.dtype,
        base=public_name(source.base_name),
        files=tuple(path.relative_to(target).as_posix() for path in files),
        carried=carried,
        bytes=sum(path.stat().st_size for path in files),
    )


def check_target(out: str | Path) -> None:
    """Raises UserError if `export` could not write there because something is in the way."""
    target = Path(out)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{out} is a file or a link; give a new folder.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"The folder {out} is not empty; give a new folder.")


def _copy_checkpoint(source: Source, folder: Path, form: str) -> None:
    """The checkpoint's files, but of a merged adapter only what the merged model did not write itself."""
    for path in sorted(source.model.rglob("*")):
        name = path.relative_to(source.model)
        own = name.name.startswith("adapter_") or name.suffix in (".safetensors", ".bin")
        made = form == "merged" and (own or (folder / name).exists())
        if not path.is_file() or name.name == "README.md" or made:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    if form == "adapter":
        _name_base(folder / ADAPTER, source)


def _name_base(path: Path, source: Source) -> None:
    """peft writes the base's folder into its config: there it is the base's name, which leaks nothing."""
    config = json.loads(path.read_bytes())
    config["base_model_name_or_path"] = public_name(source.base_name)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_merged(source: Source, folder: Path) -> None:
    """W + (alpha / r) B A in float32, then rounded once to the run's dtype."""
    if source.base is None:
        raise UserError(
            f"The model {source.base_name!r} that the adapter belongs to is not on this machine; say where it is "
            "with --base FOLDER, or write the adapter alone with --adapter."
        )
    model = _merged_model(source, source.base)
    model.to(getattr(torch, source.dtype)).save_pretrained(folder)


def _merged_model(source: Source, base: Path) -> Any:
    from fovea.models.policy import load_policy

    # A 4-bit base is merged as it was published: rounding it again would add an error that nobody trained.
    # What the adapter is, its own config says: a run that went on with one need not repeat it in its recipe.
    policy = load_policy(
        str(base),
        device="cpu",
        dtype="float32",
        finetune=section_of(source.model)[1],
        adapter=source.model,
        min_pixels=source.run.get("min_pixels"),
        max_pixels=source.run.get("max_pixels"),
    )
    _untie(policy.model, policy.family.lm_head(policy.model))
    return policy.adapter.merge_and_unload(safe_merge=True)


def _untie(model: Any, head: Any) -> None:
    """Give a head with an adapter weights of its own: added to the shared ones, its product would change what the
    model reads, too."""
    inner = getattr(head, "base_layer", None)
    if inner is None or inner.weight is not model.get_input_embeddings().weight:
        return
    inner.weight = torch.nn.Parameter(inner.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _carry(source: Source, folder: Path) -> tuple[str, ...]:
    """Copy what the base has and the export lacks; names of the files, sorted."""
    if source.base is None:
        return ()
    capped = source.run.get("min_pixels") is not None or source.run.get("max_pixels") is not None
    found = []
    for pattern in CARRIED:
        for path in sorted(source.base.glob(pattern)):
            name = path.relative_to(source.base)
            if not path.is_file() or (folder / name).exists():
                continue
            if capped and name.name == PICTURES:
                _write_picture_sizes(
                    folder
                )  # the base's would bring back the sizes that the run did not train
                continue
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
            found.append(name.as_posix())
    return tuple(sorted(found))


def _write_picture_sizes(folder: Path) -> None:
    """The picture processor under its older name, with the run's caps; read from the file that has them."""
    try:
        inner = json.loads((folder / "processor_config.json").read_bytes())["image_processor"]
    except (OSError, ValueError, KeyError):
        return
    (folder / PICTURES).write_text(json.dumps(inner, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _publish(partial: Path, target: Path) -> None:
    """Everything on the disk first, then one rename."""
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    if target.is_dir():
        target.rmdir()  # it is empty
    partial.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
