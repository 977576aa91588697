"""Reading a run folder back, finished or not, by anything that does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fovea.types import UserError


def read_run(folder: str | Path) -> dict[str, Any]:
    """All that a run folder says, finished or not, as plain dicts.

    Keys: folder (Path), run (run.json), metrics and evaluations (lists of records), shown (records of the
    newest rollouts file), shown_step, result (None while unfinished), broken_lines (how many were not JSON).
    Raises UserError if there is no run.json.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise UserError(
            f"{folder} is not a run folder (it has no run.json); give one written by `fovea train`."
        )
    broken: list[str] = []
    rollouts = sorted((folder / "rollouts").glob("step_*.jsonl"))
    newest = rollouts[-1] if rollouts else None
    return {
        "folder": folder,
        "run": _read_object(folder / "run.json") or {},
        "metrics": list(_read_lines(folder / "metrics.jsonl", broken)),
        "evaluations": list(_read_lines(folder / "evaluations.jsonl", broken)),
        "shown": list(_read_lines(newest, broken)) if newest else [],
        "shown_step": int(newest.stem.removeprefix("step_")) if newest else None,
        "result": _read_object(folder / "result.json"),
        "broken_lines": len(broken),
    }


def newest_model(folder: str | Path) -> Path:
    """The model folder of a run's newest checkpoint: `checkpoints/step_N`, or `model` in it.

    Raises UserError if the run has saved none.
    """
    steps = [path for path in (Path(folder) / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
    for step in sorted(steps, key=lambda path: int(path.name[5:]), reverse=True):
        for path in (step / "model", step):
            if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
                return path
    raise UserError(f"The run {folder} has saved no model yet; train on, or save earlier with save_every=N.")


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise UserError(f"{path} is not valid JSON ({error}); restore or delete it.") from None
    return value if isinstance(value, dict) else {}


def _read_lines(path: Path, broken: list[str]) -> Iterator[dict[str, Any]]:
    """Records of a JSONL file; a line that is not a JSON object is noted in `broken` and left out."""
    if not path.is_file():
        return
    # Split at \n only: U+2028 and its like are ordinary characters of a JSON string. What follows the last
    # newline is a line that is being written, or was when the process died.
    for line in path.read_bytes().split(b"\n")[:-1]:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            yield record
        else:
            broken.append(path.name)
