"""Which checkpoint of which run is exported, and what it was trained from.

Not here: writing (`fovea.export.folder`), words (`fovea.export.readme`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea import checkpoints
from fovea.models.finetune import is_adapter, section_of
from fovea.models.policy import TINY
from fovea.runlog import read_run
from fovea.training.stopping import best_of
from fovea.types import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What is exported.

    Example: Source(run_folder=Path("runs/mine"), record=read_run("runs/mine"), step=100,
    model=Path("runs/mine/checkpoints/step_100/model"), base_name="fovea-tiny", base=TINY)
    """

    run_folder: Path
    record: dict[str, Any]
    """What `read_run` says of the run."""
    step: int
    """Steps that the weights have seen."""
    model: Path
    """The checkpoint's folder `model`; its files were compared with the manifest's hashes."""
    base_name: str
    """The model that the run started from, as the recipe (or `base=`) names it."""
    base: Path | None
    """Its folder, where it is on this machine."""

    @property
    def run(self) -> dict[str, Any]:
        """The resolved recipe."""
        return dict(self.record["run"].get("run") or {})

    @property
    def is_adapter(self) -> bool:
        """Whether the checkpoint holds a LoRA adapter instead of all weights."""
        return is_adapter(self.model)

    @property
    def dtype(self) -> str:
        return str(self.run.get("dtype", "float32"))

    @property
    def hub_name(self) -> str | None:
        """The base's name on the Hugging Face hub; None for a folder of the user's."""
        return self.base_name if is_hub_name(self.base_name) else None


def find_source(
    run_or_checkpoint: str | Path, *, step: int | None = None, best: bool = False, base: str | None = None
) -> Source:
    """The checkpoint to export: the named one, that of `step`, the best by the run's metric, or the newest whole.

    `base`: where the model that the run started from is now, if it moved. Raises UserError for what is no run, has
    no such checkpoint, or was changed since it was written.
    """
    given = Path(run_or_checkpoint)
    chosen = next((path for path in (given, given.parent) if (path / "manifest.json").is_file()), None)
    if chosen is not None and not (given / "run.json").is_file():
        if step is not None or best:
            raise UserError(f"{given} is one checkpoint already; give its run folder with --step or --best.")
        folder = chosen.absolute().parents[1]
    elif (given / "run.json").is_file():
        folder, chosen = given, None
    elif (given / "config.json").is_file() or (given / "adapter_config.json").is_file():
        raise UserError(f"{given} is a plain model folder already; give a run folder or a checkpoint.")
    else:
        raise UserError(
            f"{given} is neither a run folder (run.json) nor a checkpoint (manifest.json); give one of `fovea train`."
        )
    record = read_run(folder)
    saved = checkpoints.read(chosen) if chosen is not None else _choose(folder, record, step, best)
    name = base or str((record["run"].get("run") or {}).get("model", ""))
    while is_adapter(name):  # the run went on with an adapter that another run had trained
        name = section_of(Path(name))[0]
    return Source(
        run_folder=folder,
        record=record,
        step=saved.step,
        model=saved.folder / "model",
        base_name=name,
        base=find_base(name),
    )


def _choose(folder: Path, record: dict[str, Any], step: int | None, best: bool) -> checkpoints.Saved:
    if step is not None and best:
        raise UserError("--step and --best both name a checkpoint; leave one away.")
    if best:
        step = _best_step(folder, record)
    if step is None:
        saved, _ = checkpoints.newest_whole(folder)
        if saved is None:
            raise UserError(
                f"The run {folder} has saved no model yet; train on, or save earlier with save_every=N."
            )
        return saved
    path = folder / "checkpoints" / f"step_{step}"
    if not path.is_dir():
        there = sorted(int(found.name[5:]) for found in checkpoints.all_steps(folder))
        raise UserError(f"{folder} has no checkpoint of step {step}; it has {_listed(there)}.")
    return checkpoints.read(path)


def _best_step(folder: Path, record: dict[str, Any]) -> int:
    """By the evaluations on the way only: those before and after are of the split that the card reports."""
    section = (record["run"].get("run") or {}).get("evaluation") or {}
    metric = str(section.get("metric", "accuracy"))
    best = best_of([line for line in record["evaluations"] if line.get("phase") == "during"], metric)
    if best is None:
        raise UserError(
            f"{folder} was not evaluated on the way, so no checkpoint is known to be the best; "
            "train with evaluation.every=N, or name one with --step."
        )
    return int(best["step"])


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def is_hub_name(model: str) -> bool:
    """Whether a model's name is one of the hub (`owner/name`) and not a folder here."""
    return (
        re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None and model[0] != "." and not Path(model).exists()
    )


def find_base(model: str) -> Path | None:
    """The folder of a model on this machine: embedded, a folder, or the hub's cache. Nothing is downloaded."""
    if model == "fovea-tiny":
        return TINY
    if model and Path(model).is_dir():
        return Path(model)
    if not is_hub_name(model):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception:  # not in the cache, in any of the library's ways of saying so
        return None


def public_name(model: str) -> str:
    """A model's name without the folders of the user's machine: a hub name, else the last part that says something.

    "/data/models/qwen" is "qwen"; "/home/me/runs/a/checkpoints/step_9/model" is "a/step_9".
    """
    if is_hub_name(model):
        return model
    parts = Path(model).parts
    if len(parts) >= 4 and parts[-1] == "model" and parts[-3] == "checkpoints":
        return f"{parts[-4]}/{parts[-2]}"
    return parts[-1] if parts else "unknown"
