"""A checkpoint is a folder `checkpoints/step_N`: the model in plain transformers layout, optimizer, position, manifest.

It is written under a temporary name, synced and renamed, so that one that exists is whole. The manifest has a hash
of every file and the byte length of every log, to which a resumed run cuts them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from fovea.models import Policy
from fovea.runlog import RunLog, to_json
from fovea.types import UserError


def save(
    log: RunLog, policy: Policy, optimizer: torch.optim.Optimizer | None, step: int, state: dict[str, Any]
) -> Path:
    """Write `checkpoints/step_{step}` (steps done so far). `state`: anything JSON that the loop needs again."""
    final = log.folder / "checkpoints" / f"step_{step}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    policy.save(partial / "model")
    if optimizer is not None:
        torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {
        "step": step,
        "policy_version": policy.version,
        "state": state,
        "logs": log.offsets(),
        "files": {str(path.relative_to(partial)): _digest(path) for path in files},
    }
    (partial / "manifest.json").write_text(to_json(manifest, indent=2) + "\n", encoding="utf-8")
    for path in [*files, partial / "manifest.json"]:
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(final.parent)
    return final


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder, every hash checked. Raises UserError if anything is missing or changed."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a checkpoint (no manifest.json); choose a folder checkpoints/step_N."
        )
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise UserError(f"{folder / name} is missing or was changed; use an older checkpoint.")
    return manifest


def restore(folder: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load the optimizer of a checkpoint in place; returns its manifest. The model is loaded by `load_policy`."""
    manifest = read_manifest(folder)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    return manifest


def newest(run_folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = [path for path in (run_folder / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
    return max(found, key=lambda path: int(path.name[5:]), default=None)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
