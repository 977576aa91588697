"""A checkpoint is a folder `checkpoints/step_N` from which a run goes on to the byte.

    model/            the policy in plain transformers layout (LoRA: the adapter)
    critic.pt         the value head's weights, where the algorithm has one
    optimizer.pt      its state, tensors and numbers only
    arrays.safetensors   arrays of the state below, by dotted name; random generators among them
    manifest.json     step, state (plain JSON), hash of every file and every trained tensor, byte length of every log

It is written under a temporary name, synced and renamed, so that one that exists is whole; what a killed process left
half-written has another name and is passed over. Loading is strict: a tensor that is missing, unexpected or different
is an error that names it. Not here: what the state is (`training.setup.Session.state`), cutting the logs (`RunLog`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fovea.models import Policy
from fovea.runlog import RunLog, open_up, to_json
from fovea.types import RunFailed, UserError

ARRAY = "$array"
"""Key of the stand-in for an array in the manifest's JSON: {"$array": dotted name in arrays.safetensors}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint that was read and found whole."""

    folder: Path
    step: int
    policy_version: int
    state: dict[str, Any]
    """What `save` was given, arrays included."""
    logs: dict[str, int]
    """Bytes of every log when it was saved."""
    weights: dict[str, str]
    """SHA-256 of every trained tensor, by its name in the model."""

    @property
    def model(self) -> Path:
        return self.folder / "model"


def save(
    log: RunLog,
    policy: Policy,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    state: Mapping[str, Any],
    *,
    logs: Mapping[str, int] | None = None,
    durable: bool = True,
) -> Path:
    """Write `checkpoints/step_{step}` (steps done so far); an older one of that name is replaced.

    `state`: plain JSON in which NumPy arrays may stand anywhere; `logs`: bytes of every log (`RunLog.offsets`) at the
    time of that state, by default now. The global random generators' state is added unless `state` has "random".
    `durable=False` leaves out the fsyncs (tests). Raises RunFailed when the disk
    does not take it: nothing that was saved before is touched.
    """
    final = log.folder / "checkpoints" / f"step_{step}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    random_now = random_state()
    try:
        partial.mkdir(parents=True)
        if durable:
            log.sync()
        whole = {"random": random_now, **state}
        _write(partial, log.offsets() if logs is None else logs, policy, optimizer, step, whole, durable)
        if final.exists():  # an old one of another run of this step: never a moment without either
            _remove(final)
        partial.rename(final)
        if durable:
            _sync(final.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        left = newest(log.folder)
        kept = f"the last whole checkpoint is {left.name}" if left else "there is no checkpoint yet"
        raise RunFailed(
            f"The checkpoint of step {step} cannot be written ({_first_line(error)}); {kept}. Make room, then go on "
            f"with: fovea train --resume {log.folder}"
        ) from error
    finally:  # transformers draws while it saves: a run must not depend on how often it was saved
        set_random_state(random_now)
    return final


def _write(
    folder: Path,
    logs: Mapping[str, int],
    policy: Policy,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    state: Mapping[str, Any],
    durable: bool,
) -> None:
    policy.save(folder / "model")
    if policy.critic is not None:
        torch.save(policy.critic.state_dict(), folder / "critic.pt")
    if optimizer is not None:
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    arrays: dict[str, np.ndarray] = {}
    plain = _split(state, "", arrays)
    if arrays:
        save_file(arrays, folder / "arrays.safetensors")
    open_up(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": 2,
        "step": step,
        "policy_version": policy.version,
        "state": plain,
        "logs": dict(logs),
        "weights": weight_digests(policy),
        "files": {path.relative_to(folder).as_posix(): _digest(path) for path in files},
    }
    (folder / "manifest.json").write_text(to_json(manifest, indent=1) + "\n", encoding="utf-8")
    if durable:
        for path in [*files, folder / "manifest.json", *(p for p in folder.rglob("*") if p.is_dir()), folder]:
            _sync(path)


def read(folder: Path) -> Saved:
    """A checkpoint folder with every hash checked. Raises UserError if anything is missing or changed."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a checkpoint (no manifest.json); choose a folder checkpoints/step_N."
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        files, state, weights = manifest["files"], manifest["state"], manifest["weights"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is broken or of an older format; use an older checkpoint.") from None
    for name, digest in files.items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise UserError(f"{folder / name} is missing or was changed; use an older checkpoint.")
    extra = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {*files, path.name}
    if extra:
        raise UserError(
            f"{folder / min(extra)} does not belong to the checkpoint (its manifest has no such file); remove it."
        )
    arrays = load_file(folder / "arrays.safetensors") if "arrays.safetensors" in files else {}
    return Saved(
        folder=folder,
        step=manifest["step"],
        policy_version=manifest["policy_version"],
        state=_join(state, arrays),
        logs=manifest["logs"],
        weights=weights,
    )


def restore(saved: Saved, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer and the random generators back, and check that the policy holds the saved weights.

    The policy itself is loaded from `saved.model` (`load_policy`). Raises UserError that names the first tensor that
    is missing, unexpected or different.
    """
    if policy.critic is not None and (saved.folder / "critic.pt").is_file():
        policy.critic.load_state_dict(
            torch.load(saved.folder / "critic.pt", weights_only=True, map_location="cpu")
        )
    check_weights(saved, policy)
    policy.version = saved.policy_version
    state = torch.load(saved.folder / "optimizer.pt", weights_only=True, map_location="cpu")
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{saved.folder / 'optimizer.pt'} does not fit the run's optimizer ({_first_line(error)}); it was written "
            "by other settings: use the recipe in run.json unchanged."
        ) from error
    set_random_state(saved.state["random"])


def check_weights(saved: Saved, policy: Policy) -> None:
    """Raises UserError unless the policy's trained tensors are those that were saved, bit for bit."""
    now = weight_digests(policy)
    lost, new = sorted(saved.weights.keys() - now.keys()), sorted(now.keys() - saved.weights.keys())
    changed = [name for name in saved.weights if name in now and saved.weights[name] != now[name]]
    for names, what in (
        (lost, "was saved but is not in the model"),
        (new, "is trained but was not saved"),
        (changed, "was not restored to what was saved"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"{saved.folder}: the tensor {names[0]}{more} {what}; the checkpoint and the recipe or the installed "
                "versions do not belong together (run.json has the versions)."
            )


def weight_digests(policy: Policy) -> dict[str, str]:
    """SHA-256 of the bytes of every tensor that is trained, by name. Frozen ones come from the base model."""
    return {
        name: hashlib.sha256(_bytes(parameter)).hexdigest() for name, parameter in policy.trained().items()
    }


def all_steps(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, the one with the most steps first. Half-written ones have another name."""
    found = [path for path in (run_folder / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def newest(run_folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    return next(iter(all_steps(run_folder)), None)


def newest_whole(
    run_folder: Path, check: Callable[[Saved], None] | None = None
) -> tuple[Saved | None, dict[Path, str]]:
    """The newest checkpoint that is whole and for which `check` raises no UserError; of each newer one that was passed
    over the folder and the reason in one sentence."""
    passed: dict[Path, str] = {}
    for folder in all_steps(run_folder):
        try:
            saved = read(folder)
            if check is not None:
                check(saved)
            return saved, passed
        except UserError as error:
            passed[folder] = str(error)
    return None, passed


def set_aside(folder: Path) -> None:
    """Give a broken checkpoint a name under which it is none (`step_4.broken`), so that it counts for nothing."""
    aside = folder.with_name(f"{folder.name}.broken")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def prune(run_folder: Path, keep: int, also: Collection[int] = ()) -> None:
    """Remove all but the `keep` newest checkpoints and those of the steps in `also`; and remains of killed runs."""
    steps = all_steps(run_folder)
    for folder in steps[max(keep, 1) :]:
        if int(folder.name[5:]) not in also:
            _remove(folder)
    for left in (run_folder / "checkpoints").glob(".step_*"):
        shutil.rmtree(left, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Out of the way under one rename first, so that a half-removed checkpoint never looks like one."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


# ---------------------------------------------------------------- state: JSON with arrays in it


def _split(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` with every array moved to `arrays` under its dotted place."""
    if isinstance(value, np.ndarray):
        arrays[where] = np.ascontiguousarray(value)
        return {ARRAY: where}
    if isinstance(value, Mapping):
        if ARRAY in value:
            raise ValueError(f"the state at {where or 'top'} has a key {ARRAY!r}, which stands for arrays")
        return {str(key): _split(item, f"{where}.{key}".strip("."), arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(item, f"{where}.{i}".strip("."), arrays) for i, item in enumerate(value)]
    return value


def _join(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {ARRAY}:
            return arrays[value[ARRAY]]
        return {key: _join(item, arrays) for key, item in value.items()}
    return [_join(item, arrays) for item in value] if isinstance(value, list) else value


def random_state() -> dict[str, Any]:
    """The global generators. Fovea draws from none of them; rewards, tasks and environments of users may."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    devices = [s.numpy() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return {
        "python": {"version": version, "numbers": np.array(numbers, np.uint32), "gauss": gauss},
        "numpy": {"name": name, "keys": keys, "position": position, "has": has_gauss, "cached": cached},
        "torch": torch.get_rng_state().numpy(),
        "cuda": devices,
    }


def seed_random(seed: int) -> None:
    """Start the global generators from a run's seed, so that users' code that draws from them is repeatable."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of `random_state`."""
    python, numbers = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(int(n) for n in python["numbers"]), python["gauss"]))
    np.random.set_state(
        (numbers["name"], numbers["keys"], numbers["position"], numbers["has"], numbers["cached"])
    )
    torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.from_numpy(one.copy()) for one in state["cuda"]])


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with _descriptor(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
