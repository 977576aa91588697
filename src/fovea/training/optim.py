"""The optimizer of a run: one from a library, or several side by side, float32 masters of bfloat16 weights, schedules.

    optimizer = make_optimizer(policy, run.optimizer)
    set_learning_rate(optimizer, learning_rate(run.optimizer, step, run.steps))
    norm = clip_gradients(optimizer, run.optimizer.max_grad_norm)
    optimizer.step()

No optimizer is written here: AdamW, Adafactor and Muon are torch's, the 8-bit ones bitsandbytes'. What is added is what
training needs around them: weights have names (a checkpoint that does not fit is refused by name), vectors are not
decayed, the vision tower may have its own rate, and updates smaller than bfloat16's resolution are not lost.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fovea.config import OptimizerSection
from fovea.models import Policy
from fovea.models.critic import NAME as CRITIC
from fovea.models.finetune import needs_bitsandbytes, part_of
from fovea.types import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One optimizer of a library. Example: Kind(make=adamw, state={"step": "number", "exp_avg": "same"})"""

    make: Callable[[list[dict[str, Any]], OptimizerSection], torch.optim.Optimizer]
    """(groups of float parameters, section) -> the optimizer."""
    state: Mapping[str, str]
    """State it keeps of a parameter -> its form: "same" shape, "number", "any", and "rows", "columns" (matrices) or
    "vector" (the others)."""
    bytes_each: float
    """Bytes of state for each number of a matrix whose values are float32 (the preflight's figure)."""
    matrices_only: bool = False
    """Embeddings, the head, vectors and convolutions go to AdamW instead."""


def _adamw(groups: list[dict[str, Any]], section: OptimizerSection) -> torch.optim.Optimizer:
    """Loshchilov and Hutter, arXiv:1711.05101."""
    return torch.optim.AdamW(groups, lr=section.learning_rate, betas=(0.9, section.beta2))


def _adafactor(groups: list[dict[str, Any]], section: OptimizerSection) -> torch.optim.Optimizer:
    """Shazeer and Stern, arXiv:1804.04235: the second moment of a matrix as a row and a column. Its step is relative
    to the weights' size: lr times max(0.001, their root mean square)."""
    return torch.optim.Adafactor(groups, lr=section.learning_rate)


def _muon(groups: list[dict[str, Any]], section: OptimizerSection) -> torch.optim.Optimizer:
    """Jordan et al., Muon (2024); scaled as in arXiv:2502.16982 so that AdamW's learning rate and decay serve."""
    return torch.optim.Muon(groups, lr=section.learning_rate, adjust_lr_fn="match_rms_adamw")


def _eight_bit(groups: list[dict[str, Any]], section: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW with block-wise 8-bit state: Dettmers et al., arXiv:2110.02861."""
    library = needs_bitsandbytes(f"optimizer.name={section.name}")
    betas = (0.9, section.beta2)
    return cast(torch.optim.Optimizer, library.optim.AdamW8bit(groups, lr=section.learning_rate, betas=betas))


def _paged_eight_bit(groups: list[dict[str, Any]], section: OptimizerSection) -> torch.optim.Optimizer:
    """The same with the state in memory that CUDA moves to the host when the device is full (arXiv:2305.14314)."""
    library = needs_bitsandbytes(f"optimizer.name={section.name}")
    betas = (0.9, section.beta2)
    made = library.optim.PagedAdamW8bit(groups, lr=section.learning_rate, betas=betas)
    return cast(torch.optim.Optimizer, made)


_MOMENTS = {"step": "number", "exp_avg": "same", "exp_avg_sq": "same"}
_BLOCKS = {
    "step": "number",
    "state1": "same",
    "state2": "same",
    "qmap1": "any",
    "qmap2": "any",
    "absmax1": "any",
    "absmax2": "any",
}
_FACTORS = {"step": "number", "row_var": "rows", "col_var": "columns", "variance": "vector"}

OPTIMIZERS: dict[str, Kind] = {
    "adamw": Kind(make=_adamw, state=_MOMENTS, bytes_each=8.0),
    "adafactor": Kind(make=_adafactor, state=_FACTORS, bytes_each=0.1),
    "muon": Kind(make=_muon, state={"momentum_buffer": "same"}, bytes_each=4.0, matrices_only=True),
    "adamw_8bit": Kind(make=_eight_bit, state=_BLOCKS, bytes_each=2.1),
    "paged_adamw_8bit": Kind(make=_paged_eight_bit, state=_BLOCKS, bytes_each=2.1),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weight:
    """A trained weight: what the model computes with, and what the optimizer changes."""

    name: str
    parameter: torch.nn.Parameter
    worked: Tensor
    """The float32 master of a bfloat16 parameter, else the parameter itself."""
    kind: str
    """Key of `OPTIMIZERS`."""

    @property
    def mastered(self) -> bool:
        return self.worked is not self.parameter


class TrainOptimizer(torch.optim.Optimizer):
    """Library optimizers over named weights, as one `torch.optim.Optimizer`.

    `param_groups` hold the model's parameters (gradients are clipped there) and `lr`; each group's `lr_scale` is its
    share of the run's learning rate. A step gives the masters float32 copies of the gradients, lets the libraries
    change them, and rounds the result into the model.
    """

    def __init__(self, weights: Iterable[Weight], groups: list[dict[str, Any]], section: OptimizerSection):
        """`groups`: dicts of "weights" (list of Weight, all of one kind), "lr_scale" and "weight_decay"."""
        self._weights = {weight.name: weight for weight in weights}
        self._section = section
        outer = [
            {
                "params": [weight.parameter for weight in group["weights"]],
                "lr": section.learning_rate * group["lr_scale"],
                "lr_scale": group["lr_scale"],
                "weight_decay": group["weight_decay"],
            }
            for group in groups
        ]
        super().__init__(outer, {})
        of_kind: dict[str, list[int]] = defaultdict(list)
        for place, group in enumerate(groups):
            of_kind[group["weights"][0].kind].append(place)
        self._inner: dict[str, tuple[torch.optim.Optimizer, list[int]]] = {}
        for kind, places in of_kind.items():
            inner = [
                {
                    "params": [weight.worked for weight in groups[place]["weights"]],
                    "lr": outer[place]["lr"],
                    "weight_decay": groups[place]["weight_decay"],
                }
                for place in places
            ]
            self._inner[kind] = (OPTIMIZERS[kind].make(inner, section), places)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change every weight that has a gradient. `closure` is there for torch's signature and must be None."""
        assert closure is None, "gradients are made by fovea.models.backward"
        mastered = [w for w in self._weights.values() if w.mastered and w.parameter.grad is not None]
        for weight in mastered:
            weight.worked.grad = cast(Tensor, weight.parameter.grad).to(weight.worked.dtype)
        for optimizer, places in self._inner.values():
            for group, place in zip(optimizer.param_groups, places, strict=True):
                group["lr"] = self.param_groups[place]["lr"]
            optimizer.step()
        with torch.no_grad():
            for weight in mastered:
                weight.parameter.copy_(weight.worked)
                weight.worked.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything by the weights' names: {"optimizer", "weights": shapes, "state", "masters"}; tensors, numbers and
        text only, so that `torch.load(weights_only=True)` reads it."""
        state = {
            name: dict(self._inner[weight.kind][0].state[weight.worked])
            for name, weight in self._weights.items()
            if weight.worked in self._inner[weight.kind][0].state
        }
        return {
            "optimizer": self._section.name,
            "weights": {name: list(weight.parameter.shape) for name, weight in self._weights.items()},
            "state": state,
            "masters": {w.name: w.worked.detach() for w in self._weights.values() if w.mastered},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse, bit for bit, into an optimizer over the same weights (which must be loaded before).

        Raises UserError that names the first thing that is missing, unexpected, of another shape, or, for a master,
        not the float32 form of the weight that is in the model.
        """
        _check_same("optimizer", {state_dict["optimizer"]}, {self._section.name})
        _check_same("tensor", state_dict["weights"], self._weights)
        masters = {w.name for w in self._weights.values() if w.mastered}
        _check_same("float32 master of the tensor", state_dict["masters"], masters)
        unknown = [name for name in state_dict["state"] if name not in self._weights]
        _check_same("state of the tensor", unknown, ())
        for name, weight in self._weights.items():
            saved = state_dict["weights"][name]
            if list(saved) != list(weight.parameter.shape):
                now = list(weight.parameter.shape)
                raise UserError(
                    f"The optimizer's tensor {name} has the shape {list(saved)} in the file and {now} here."
                )
            _check_state(weight, state_dict["state"].get(name, {}))
            if weight.mastered:
                _restore_master(weight, state_dict["masters"][name])
        for optimizer, _ in self._inner.values():
            optimizer.state.clear()
        for name, entries in state_dict["state"].items():
            weight = self._weights[name]
            self._inner[weight.kind][0].state[weight.worked] = {
                key: _placed(key, value, weight.worked.device) for key, value in entries.items()
            }


def make_optimizer(policy: Policy, section: OptimizerSection) -> TrainOptimizer:
    """The section's optimizer over what is not frozen, the critic included. Raises UserError for float16
    weights, a missing library, or when nothing is trained."""
    trained = policy.trained()
    if not any(p.requires_grad for p in policy.model.parameters()):
        raise UserError("Everything is frozen, so there is nothing to train; shorten freeze.")
    embeddings = {
        id(policy.model.get_input_embeddings().weight),
        id(policy.family.lm_head(policy.model).weight),
    }
    by_group: dict[tuple[str, float, float], list[Weight]] = defaultdict(list)
    for name, parameter in trained.items():
        if parameter.dtype == torch.float16:
            raise UserError(
                "dtype=float16 cannot be trained: small gradients underflow to zero; use dtype=bfloat16 or float32."
            )
        kind = section.name
        if OPTIMIZERS[kind].matrices_only and (parameter.ndim != 2 or id(parameter) in embeddings):
            kind = "adamw"
        weight = Weight(name=name, parameter=parameter, worked=_worked(parameter, section), kind=kind)
        decay = section.weight_decay if parameter.ndim >= 2 else 0.0
        by_group[kind, _scale(policy, name, section), decay].append(weight)
    groups = [
        {"weights": weights, "lr_scale": scale, "weight_decay": decay}
        for (_, scale, decay), weights in by_group.items()
    ]
    return TrainOptimizer((weight for group in by_group.values() for weight in group), groups, section)


def _worked(parameter: torch.nn.Parameter, section: OptimizerSection) -> Tensor:
    if parameter.dtype == torch.bfloat16 and section.master_weights:
        return parameter.detach().float().requires_grad_()
    return parameter


def _scale(policy: Policy, name: str, section: OptimizerSection) -> float:
    """The share of the learning rate of the part that a weight belongs to."""
    if name.startswith(f"{CRITIC}."):
        return (section.critic_learning_rate or section.learning_rate) / section.learning_rate
    if section.vision_learning_rate is None or part_of(policy.family, name) not in ("vision", "projector"):
        return 1.0
    return section.vision_learning_rate / section.learning_rate


# ---------------------------------------------------------------- schedule and clipping


def learning_rate(section: OptimizerSection, step: int, steps: int) -> float:
    """The rate of `step` (from 0) of `steps`, in closed form: nothing to save.

    lr * (step + 1) / warmup_steps during the warm-up; then lr * (m + (1 - m) * s) with m = min_ratio and, d being the
    share of the steps behind the warm-up that are done,
        constant  s = 1
        linear    s = 1 - d
        cosine    s = (1 + cos(pi d)) / 2                                            arXiv:1608.03983
        wsd       s = 1, then falling linearly to 0 in the last `decay_ratio` of d   arXiv:2404.06395
    """
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.learning_rate
    done = (step - section.warmup_steps) / max(1, steps - section.warmup_steps)
    if section.schedule == "linear":
        share = 1 - done
    elif section.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * done))
    else:
        share = min(1.0, (1 - done) / section.decay_ratio)
    return section.learning_rate * (section.min_ratio + (1 - section.min_ratio) * max(0.0, share))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate times its `lr_scale` (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """The norm of all gradients, which are scaled to `max_norm` if it is larger. 0 without gradients.

    As `torch.nn.utils.clip_grad_norm_`, but the squares of bfloat16 gradients are added in float32. A norm that is not
    finite is returned and nothing is scaled.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    gradients: list[Tensor] = [p.grad for p in params if p.grad is not None]
    if not gradients:
        return 0.0
    norms = [
        torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if bool(torch.isfinite(norm)):
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
    return float(norm)


# ---------------------------------------------------------------- strict state


def _check_same(what: str, saved: Iterable[str], expected: Iterable[str]) -> None:
    """Raises UserError that names the first of `expected` that was not saved, or the first saved one too many."""
    found, wanted = set(saved), set(expected)
    for names, verdict in ((wanted - found, "is missing from"), (found - wanted, "is unexpected in")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"The {what} {min(names)}{more} {verdict} the saved optimizer state; "
                "resume with the recipe that wrote it."
            )


def _check_state(weight: Weight, entries: Mapping[str, Any]) -> None:
    """One weight's state: none (it never had a gradient), or exactly what its optimizer keeps."""
    shape = tuple(weight.parameter.shape)
    shapes: dict[str, tuple[int, ...] | None] = {"same": shape, "number": None, "any": None}
    if len(shape) > 1:
        shapes |= {"rows": (*shape[:-1], 1), "columns": (*shape[:-2], 1, shape[-1])}
    else:
        shapes["vector"] = shape
    forms = {key: form for key, form in OPTIMIZERS[weight.kind].state.items() if form in shapes}
    missing = [key for key, form in forms.items() if form != "any" and key not in entries]
    for key in [*missing, *(key for key in entries if key not in forms)] if entries else ():
        verdict = "is missing from" if key in missing else "is unexpected in"
        raise UserError(
            f"The entry {key!r} {verdict} the saved optimizer state of the tensor {weight.name}; it is of another "
            "optimizer or library version."
        )
    for key, value in entries.items():
        wanted = shapes[forms[key]]
        if wanted is not None and tuple(value.shape) != wanted:
            raise UserError(
                f"The optimizer state {key!r} of the tensor {weight.name} has the shape {list(value.shape)}, not "
                f"{list(wanted)}."
            )


def _restore_master(weight: Weight, saved: Tensor) -> None:
    if saved.shape != weight.worked.shape or saved.dtype != weight.worked.dtype:
        raise UserError(
            f"The float32 master of the tensor {weight.name} is {saved.dtype} {list(saved.shape)} in the file, not "
            f"{weight.worked.dtype} {list(weight.worked.shape)}."
        )
    saved = saved.to(weight.worked.device)
    if not torch.equal(saved.to(weight.parameter.dtype), weight.parameter.detach()):
        raise UserError(
            f"The float32 master of the tensor {weight.name} does not round to the weight in the model; weights and "
            "optimizer are of different checkpoints."
        )
    with torch.no_grad():
        weight.worked.copy_(saved)


def _placed(key: str, value: Any, device: torch.device) -> Any:
    """Torch's optimizers keep `step` on the CPU; everything else is where the weight is."""
    return value.clone() if key == "step" and isinstance(value, Tensor) else _moved(value, device)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
