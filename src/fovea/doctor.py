"""`fovea doctor`: what is here, whether it is enough, and what to do where it is not.

Every check is one function that never raises; nothing is downloaded and no network is touched.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]

EXTRAS = (
    "peft",
    "datasets",
    "gymnasium",
    "minigrid",
    "scipy",
    "math-verify",
    "vllm",
    "ray",
    "tensorboard",
    "wandb",
)
REINSTALL = "reinstall it: pip install --upgrade fovea-rl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the answer. Example: Check(name="python", status="ok", detail="3.12.4")."""

    name: str
    status: Status
    detail: str
    fix: str | None = None
    """What to do; given unless the status is ok."""


def doctor() -> dict[str, Any]:
    """`{"ok", "checks": [{"name", "status", "detail", "fix"}], "seconds"}`; ok means that nothing failed."""
    started = time.perf_counter()
    checks = [run() for run in CHECKS]
    return {
        "ok": all(check.status != "fail" for check in checks),
        "checks": [asdict(check) for check in checks],
        "seconds": round(time.perf_counter() - started, 3),
    }


def check_python() -> Check:
    detail = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    if sys.version_info >= (3, 14):
        return Check(name="python", status="warn", detail=detail, fix="3.11 to 3.13 are the tested versions")
    return Check(name="python", status="ok", detail=detail)


def check_torch() -> Check:
    try:
        torch = importlib.import_module("torch")
        total = float(torch.ones(2, 2).sum())
    except Exception as error:  # a broken binary raises anything: OSError, ImportError, RuntimeError
        return Check(name="torch", status="fail", detail=_one_line(error), fix=REINSTALL)
    if total != 4.0:
        return Check(name="torch", status="fail", detail="1+1+1+1 is not 4", fix=REINSTALL)
    return Check(name="torch", status="ok", detail=str(torch.__version__))


def check_torchvision() -> Check:
    """Image processors need it, and a pair that does not match torch breaks at import."""
    try:
        torchvision = importlib.import_module("torchvision")
        importlib.import_module("torchvision.transforms.v2")
    except Exception as error:
        fix = "let pip choose the pair: pip install --upgrade torch torchvision"
        return Check(name="torchvision", status="fail", detail=_one_line(error), fix=fix)
    return Check(name="torchvision", status="ok", detail=str(torchvision.__version__))


def check_transformers() -> Check:
    try:
        version = importlib.metadata.version("transformers")
        importlib.import_module("transformers")
    except Exception as error:
        return Check(name="transformers", status="fail", detail=_one_line(error), fix=REINSTALL)
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if not (5, 19) <= tuple(numbers) < (6,):
        fix = "pip install 'transformers>=5.19,<6'"
        return Check(name="transformers", status="fail", detail=version, fix=fix)
    return Check(name="transformers", status="ok", detail=version)


def check_devices() -> Check:
    try:
        torch = importlib.import_module("torch")
        if torch.cuda.is_available():
            found = []
            for i in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(i)
                found.append(f"cuda:{i} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
            return Check(name="devices", status="ok", detail="; ".join(found))
        if torch.backends.mps.is_available():
            return Check(name="devices", status="ok", detail="mps and cpu")
    except Exception as error:
        return Check(name="devices", status="warn", detail=_one_line(error), fix="train with device=cpu")
    return Check(
        name="devices",
        status="ok",
        detail="cpu only: enough for the quickstart and models of some million weights",
    )


def check_threads() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    policy, wanted = os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OMP_NUM_THREADS")
    detail = f"{cores} cores, OMP_NUM_THREADS={wanted or 'unset'}, OMP_WAIT_POLICY={policy or 'unset'}"
    if (policy or "").lower() != "passive" and wanted != "1":
        # Measured: with other load on the cores, waiting OpenMP threads spin: all is 5 to 30 times slower.
        fix = "export OMP_WAIT_POLICY=passive (the command `fovea` does so itself unless it is set)"
        return Check(name="threads", status="warn", detail=detail, fix=fix)
    if wanted is not None and wanted.isdigit() and int(wanted) > cores:
        return Check(name="threads", status="warn", detail=detail, fix=f"export OMP_NUM_THREADS={cores}")
    return Check(name="threads", status="ok", detail=detail)


def check_memory() -> Check:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return Check(name="memory", status="ok", detail="unknown on this system")
    available = _available_memory()
    detail = f"{total / 2**30:.1f} GiB" + (f", {available / 2**30:.1f} GiB free" if available else "")
    if (available or total) < 2 * 2**30:
        return Check(
            name="memory", status="warn", detail=detail, fix="free memory: the quickstart wants 2 GiB"
        )
    return Check(name="memory", status="ok", detail=detail)


def _available_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            values = dict(line.split(":", 1) for line in file if ":" in line)
        return int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def check_disk() -> Check:
    here = os.getcwd()
    free = shutil.disk_usage(here).free
    detail = f"{free / 2**30:.1f} GiB free in the current folder"
    if not os.access(here, os.W_OK):
        fix = "change to a folder you may write, or train with run_dir=FOLDER"
        return Check(name="disk", status="warn", detail="the current folder cannot be written", fix=fix)
    if free < 2 * 2**30:
        return Check(name="disk", status="warn", detail=detail, fix="free some space: checkpoints need it")
    return Check(name="disk", status="ok", detail=detail)


def check_tiny() -> Check:
    """The embedded model is loaded and asked one question, as training would do it."""
    try:
        from transformers.utils.logging import disable_progress_bar

        from fovea.engines.shared_prefill import SharedPrefillEngine
        from fovea.models.policy import load_policy
        from fovea.tasks import open_task
        from fovea.types import Sampling

        disable_progress_bar()
        policy = load_policy("fovea-tiny", device="cpu")
        problem = open_task("digits/locate", split="validation").take(0, 1)[0][0]
        engine = SharedPrefillEngine(policy)
        sampling = Sampling(temperature=0.0, max_new_tokens=8)
        groups = engine.generate([policy.prompt(problem)], 1, sampling, seed=(0, 0))
    except Exception as error:
        return Check(name="fovea-tiny", status="fail", detail=_one_line(error), fix=REINSTALL)
    count = sum(parameter.numel() for parameter in policy.model.parameters())
    detail = f"{count / 1e6:.1f} M weights, answered in {len(groups[0][0].token_ids)} tokens"
    return Check(name="fovea-tiny", status="ok", detail=detail)


def check_extras() -> Check:
    found = []
    for name in EXTRAS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Check(name="extras", status="ok", detail=", ".join(found) or "none installed (none is needed)")


def check_terminal() -> Check:
    encoding = getattr(sys.stdout, "encoding", None) or "unknown"
    detail = f"{'a terminal' if sys.stdout.isatty() else 'not a terminal'}, {encoding}"
    if encoding.lower().replace("-", "") != "utf8":
        return Check(
            name="terminal", status="warn", detail=detail, fix="export PYTHONUTF8=1 for the live curves"
        )
    return Check(name="terminal", status="ok", detail=detail)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_torch,
    check_torchvision,
    check_transformers,
    check_devices,
    check_threads,
    check_memory,
    check_disk,
    check_tiny,
    check_extras,
    check_terminal,
)
