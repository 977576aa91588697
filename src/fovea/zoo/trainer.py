"""One stage of a build: schedule, optimizer, log, a file to go on from; shared by processes on one machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

VISION_SCALE = 0.2
"""Learning rate of the taught vision tower relative to the new text model, in the language stages."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """How long and how fast a stage trains."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    horizon: int | None = None
    """Step at which the learning rate would have decayed, for a stage that ends earlier; default: `steps`."""
    places: bool = False
    """Whether a language stage also teaches where in its picture a cell is; the vision tower's position embedding
    then keeps the full learning rate."""

    def rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to a twentieth at the end."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        end = self.horizon or self.steps
        return self.learning_rate * (1 - 0.95 * (step - self.warmup) / max(1, end - self.warmup))


@dataclass(slots=True)
class Trainer:
    """Optimizer, step counter and log of one stage; saved every `save_every` steps, resumed when present."""

    folder: Path
    name: str
    stage: Stage
    modules: dict[str, torch.nn.Module]
    save_every: int = 200
    step: int = 0
    seconds: float = 0.0
    """Wall seconds of the stage so far, over all sessions."""
    optimizer: Any = None

    def __post_init__(self) -> None:
        named = [pair for module in self.modules.values() for pair in module.named_parameters()]
        is_slow = {
            name: name.startswith("model.visual.") and not (self.stage.places and "pos_embed" in name)
            for name, _ in named
        }
        slow = [p for name, p in named if is_slow[name]]
        fast = [p for name, p in named if not is_slow[name]]
        groups = [{"params": fast, "scale": 1.0}, {"params": slow, "scale": VISION_SCALE}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            self.step, self.seconds = saved["step"], saved.get("seconds", 0.0)
            self.optimizer.load_state_dict(saved["optimizer"])
            for name, module in self.modules.items():
                module.load_state_dict(saved["modules"][name])

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def save(self) -> None:
        if rank() > 0:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "optimizer": self.optimizer.state_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def apply(self, seconds: float = 0.0) -> None:
        """One optimizer step on the gradients that are there, summed over processes."""
        if dist.is_initialized():
            _sum_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.rate(self.step) * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += seconds
        if self.step % self.save_every == 0 or self.step == self.stage.steps:
            self.save()

    def log(self, **values: Any) -> None:
        if rank() > 0:
            return
        line = {"stage": self.name, "step": self.step, "seconds": round(self.seconds, 1)}
        line |= {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        print(json.dumps(line), flush=True)
        with (self.folder / "build.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def share(items: Sequence[T]) -> list[T]:
    """This process's part of a batch."""
    return list(items[rank() :: dist.get_world_size()]) if dist.is_initialized() else list(items)


def total(value: float) -> float:
    """The sum of a number over processes."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(tensor)
    return float(tensor)


def _sum_gradients(parameters: list[torch.Tensor]) -> None:
    """Add up gradients over processes (none at all counts as zero)."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
