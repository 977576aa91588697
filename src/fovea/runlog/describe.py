"""What run.json says of a run: the resolved recipe, and all that is needed to do it again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import fovea
from fovea.config import Run, load_run
from fovea.types import UserError

PACKAGES = ("torch", "torchvision", "transformers", "peft", "numpy", "pillow", "safetensors", "pydantic")


def run_folder(run: Run) -> Path:
    """Where a run is written: its `run_dir`, or runs/RECIPE-seedSEED (vlm_r1/rec: runs/vlm_r1-rec-seed0)."""
    file = Path(run.recipe).suffix in (".yaml", ".yml")
    name = Path(run.recipe if file else run.recipe.replace("/", "-")).stem
    return Path(run.run_dir or f"runs/{name or 'run'}-seed{run.seed}")


def describe_run(run: Run) -> dict[str, Any]:
    """What run.json holds: the resolved recipe and all that is needed to do it again."""
    return {
        "command": reproduce_command(run),
        "run": run.model_dump(mode="json"),
        "versions": {"fovea": fovea.__version__, "python": platform.python_version()} | _versions(),
        "git": git_state(Path(fovea.__file__).parent),
        "host": _host(),
        "argv": sys.argv,
        "started_seconds": time.time(),
    }


def reproduce_command(run: Run) -> str:
    """The shortest `fovea train RECIPE key=value …` that resolves to the same run."""
    try:
        base = load_run(run.recipe)
    except UserError:  # built in code or the file is gone: everything that differs from the defaults
        base = Run(recipe=run.recipe)
    ours, theirs = run.model_dump(mode="json"), base.model_dump(mode="json")
    other_file = run.data != base.data and base.data is None
    mixed = run.mixture != base.mixture and bool(run.mixture)
    if (
        run.task != base.task or other_file or mixed
    ):  # then the recipe's rewards hold only where they are named
        theirs |= {"rewards": {"": 0} if run.rewards else {}, "reward_options": {}}
    overrides = list(_differences(ours, theirs, ""))
    return shlex.join(["fovea", "train", run.recipe or "RECIPE", *overrides])


def _differences(values: dict[str, Any], base: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        other = base.get(key)
        if isinstance(value, dict) and isinstance(other, dict) and set(other) <= set(value):
            yield from _differences(value, other, f"{prefix}{key}.")
        elif value != other and f"{prefix}{key}" != "recipe":
            yield f"{prefix}{key}={_as_yaml(value)}"


def _as_yaml(value: Any) -> str:
    """The value as an override is read: plain text where YAML gives the same text back, JSON otherwise."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return value
        except (yaml.YAMLError, ValueError):
            pass
    return json.dumps(value, ensure_ascii=False)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds `folder`, and whether tracked files differ; None outside one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # A package installed inside somebody else's repository (a .venv in it) is not that repository's code.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _host() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
