"""Fovea teaches vision-language models to look: reinforcement learning from rewards that can be checked.

    import fovea
    result = fovea.train("quickstart", steps=20)
    print(result.table())

Importing this is light: torch loads with the first call that needs it (PEP 562). The Python API is documented in
docs/python-api.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fovea.api import Result, evaluate, resume, train
    from fovea.checkpoint_curve import evaluate_checkpoints
    from fovea.config import Run, load_run
    from fovea.types import Observer, Problem, RunFailed, Task, UserError

__version__ = "0.1.0"

_WHERE = {
    "train": "api",
    "resume": "api",
    "evaluate": "api",
    "evaluate_checkpoints": "checkpoint_curve",
    "Result": "api",
    "Run": "config",
    "load_run": "config",
    "Observer": "types",
    "Problem": "types",
    "RunFailed": "types",
    "Task": "types",
    "UserError": "types",
}

__all__ = [
    "Observer",
    "Problem",
    "Result",
    "Run",
    "RunFailed",
    "Task",
    "UserError",
    "__version__",
    "evaluate",
    "evaluate_checkpoints",
    "load_run",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """The names of the Python API, loaded when they are first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module 'fovea' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fovea.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
