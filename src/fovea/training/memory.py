"""How much memory a training step needs: measured on the real model with small probes, scaled by a formula.

    footprint = measure(policy, prompts)         what a token, a picture and the weights cost; some small forwards
    estimate(footprint, plan_of(run, ...))       bytes by phase; a pure function, so that a knob can be tried out
    free_bytes(device)                           what is left on the device now

The phases of a step do not overlap: the highest counts. n = prompts encoded together, P, I = tokens and image tokens of
a prompt, R = completion tokens, G = completions a prompt, N = tokens of a pass:

    always   optimizer state, float32 masters, reference copy
    rollout  2 n P kv + rows R kv + 24 rows V + a layer's work on n P tokens
    update   gradients + n (P (kept + kv) + I seen) + N kept + 24 logits of a chunk + a layer's work
    step     gradients + float32 gradients + the optimizer's temporaries

The weights themselves are loaded when this is asked, and not counted. Not here: what is done about it (`preflight`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fovea.config import Run
from fovea.models import Policy, Prompt, prefill
from fovea.models.adapter import join_media
from fovea.models.finetune import part_of
from fovea.models.recompute import layers
from fovea.training.optim import OPTIMIZERS
from fovea.types import Sampling

_PROBE = 64
"""Tokens of a probe: enough that what does not grow with them is small."""
_ROWS, _PREFIX_TOKENS = 512, 65536
"""What the default engine decodes together (`SharedPrefillEngine`)."""
_LOGITS = 2**22
"""Logits of a head chunk (`fovea.models.head`)."""
_HOLES = 1.7
"""Measured: an adapter's many small tensors keep glibc from joining what large ones leave between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What a model costs, in bytes, as it is now (dtype, frozen parts, adapter, recomputation)."""

    trained: dict[str, int]
    """Part -> numbers that are trained."""
    largest: int
    """Numbers of the largest trained tensor."""
    element: int
    """Bytes of a weight."""
    mastered: bool
    """Trained weights are bfloat16 (a float32 copy may be kept)."""
    copied: int
    """Bytes of a second copy of the weights; 0 where the reference is the base under an adapter."""
    adapter: int
    """Numbers of an adapter of rank 1 on all linear layers of the language model."""
    adapted: bool
    """There is an adapter in the model."""
    layers: int
    """Layers of the language model."""
    kept: float
    """Bytes that a token keeps for the backward pass through the language model."""
    kept_recomputed: float
    """The same with gradient checkpointing."""
    seen: float
    """Bytes that an image token keeps in vision tower and projector."""
    tower_layers: int
    tower_trained: bool
    kv: float
    """Bytes of keys and values of a token, all layers."""
    vocabulary: int
    prompt: int
    """P: tokens of the largest prompt."""
    pictured: int
    """I: image tokens of the prompt that has most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The knobs of a run that memory depends on. Example: plan_of(run)"""

    prompts: int
    group: int
    reply: int
    tokens_per_pass: int
    optimizer: str
    masters: bool
    reference: bool
    recompute: bool
    sampled: bool
    """RL: there is a rollout; False for SFT."""
    cpu: bool
    """On a GPU the optimizer works on all weights at once; the CPU's allocator leaves holes."""
    rank: int | None = None
    """What if there were an adapter of this rank; None: as it is."""
    blind: bool = False
    """What if vision tower and projector were frozen."""
    narrow: bool = False
    """What if the weights were bfloat16 and not float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Bytes beside the weights, by phase. `peak` is what a step needs at most."""

    always: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def peak(self) -> int:
        return int(sum(self.always.values()) + max(sum(parts.values()) for parts in self.phases.values()))

    @property
    def worst(self) -> str:
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))


def plan_of(run: Run, policy: Policy, *, reference: bool) -> Plan:
    """The knobs of a run. `reference`: its algorithm compares with a reference policy."""
    return Plan(
        prompts=run.prompts,
        group=run.group if run.method == "rl" else 1,
        reply=run.sampling.max_new_tokens,
        tokens_per_pass=run.tokens_per_pass,
        optimizer=run.optimizer.name,
        masters=run.optimizer.master_weights,
        reference=reference,
        recompute=run.gradient_checkpointing,
        sampled=run.method == "rl",
        cpu=policy.device.type == "cpu",
    )


def estimate(foot: Footprint, plan: Plan) -> Estimate:
    """The formula of the module's docstring."""
    small = 0.5 if plan.narrow else 1.0
    weights = _weights(foot, plan)
    kv = foot.kv * small
    kept = (foot.kept_recomputed if plan.recompute else foot.kept) * small
    layer = foot.kept / foot.layers * small * (2 if plan.recompute else 1)
    tower = foot.seen / foot.tower_layers * small * (2 if plan.recompute else 1)
    seen = foot.seen * small / (foot.tower_layers if plan.recompute else 1)
    seen *= foot.tower_trained and not plan.blind
    holes = _HOLES if plan.cpu and (foot.adapted or plan.rank is not None) else 1.0
    together = min(plan.prompts, max(1, plan.tokens_per_pass // foot.prompt))
    tokens, pictured = together * foot.prompt, together * foot.pictured
    passed = min(plan.tokens_per_pass, together * plan.group * plan.reply)
    update = {
        "gradients": weights.numbers * weights.element,
        "prompts": holes * tokens * (kept + kv),
        "pictures": holes * pictured * (seen + tower),
        "completions of a pass": holes * passed * kept,
        "logits": holes * 24.0 * min(passed * foot.vocabulary, _LOGITS),
        "one layer": holes * max(tokens, passed) * layer,
    }
    step = {
        "gradients": weights.numbers * weights.element,
        "float32 gradients": 4.0 * weights.numbers * weights.mastered,
        "temporaries": 8.0 * (min(foot.largest, weights.numbers) if plan.cpu else weights.numbers),
    }
    phases = {"update": update, "optimizer step": step}
    if plan.sampled:
        drawn = min(plan.prompts, max(1, _ROWS // plan.group), max(1, _PREFIX_TOKENS // foot.prompt))
        live = drawn * plan.group
        phases["rollout"] = {
            "keys and values": drawn * foot.prompt * 2 * kv + live * plan.reply * kv,
            "logits": 24.0 * live * foot.vocabulary,
            "one layer": drawn * (foot.prompt * layer + foot.pictured * tower),
        }
        if (
            drawn * foot.prompt <= plan.tokens_per_pass
        ):  # their graph waits for the update (`fovea.models.kept`)
            graph = foot.prompt * kept + foot.pictured * seen
            phases["rollout"]["prompts kept for the update"] = holes * drawn * graph
    always = {
        "optimizer state": weights.state,
        "float32 masters": 4.0 * weights.numbers * weights.mastered,
        "reference copy": weights.copied * plan.reference,
    }
    return Estimate(always=always, phases=phases)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    numbers: int
    element: float
    """Bytes of a number."""
    mastered: bool
    state: float
    copied: float


def _weights(foot: Footprint, plan: Plan) -> _Weights:
    """What is trained, with the plan's what-ifs."""
    small = 0.5 if plan.narrow else 1.0
    gone = ("vision", "projector") if plan.blind else ()
    numbers = sum(n for part, n in foot.trained.items() if part not in gone)
    element, copied = foot.element * small, foot.copied * small
    mastered = plan.masters and (foot.mastered or plan.narrow)
    if plan.rank is not None:
        numbers, element, mastered, copied = plan.rank * foot.adapter, 4.0, False, 0.0
    each = OPTIMIZERS[plan.optimizer].bytes_each
    if not mastered and plan.optimizer in ("adamw", "muon"):  # their state has the weights' type
        each *= element / 4
    return _Weights(numbers=numbers, element=element, mastered=mastered, state=each * numbers, copied=copied)


# ---------------------------------------------------------------- measuring


def measure(policy: Policy, prompts: Sequence[Prompt]) -> Footprint:
    """Probe the model with a short prompt and a small picture. `prompts`: the largest of the run, at least one."""
    model, family = policy.model, policy.family
    trained: dict[str, int] = {}
    largest = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(family, name) or "other"
            trained[part] = trained.get(part, 0) + parameter.numel()
            largest = max(largest, parameter.numel())
    weights = [p for p in model.parameters() if p.requires_grad]
    linear = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and part_of(family, name) == "text"
    ]
    blocks = {part: _layers(policy, part) for part in ("text", "vision")}
    seen = _seen(policy, prompts)
    kept, kv = _kept(policy, prompts, seen)
    width = model.config.text_config.hidden_size
    element = max((p.element_size() for p in weights), default=4)
    hidden = width * (model.get_input_embeddings().weight.element_size())
    return Footprint(
        trained=trained,
        largest=largest,
        element=element,
        mastered=any(p.dtype == torch.bfloat16 for p in weights),
        copied=0
        if policy.adapter is not None
        else sum(p.numel() * p.element_size() for p in model.parameters()),
        adapter=sum(layer.in_features + layer.out_features for layer in linear),
        adapted=policy.adapter is not None,
        layers=blocks["text"],
        kept=kept,
        kept_recomputed=min(kept, hidden * (blocks["text"] + 2) + kv),
        seen=seen,
        tower_layers=blocks["vision"],
        tower_trained=any(
            part_of(family, n) in ("vision", "projector")
            for n, p in model.named_parameters()
            if p.requires_grad
        ),
        kv=kv,
        vocabulary=model.config.text_config.vocab_size,
        prompt=max(len(prompt.token_ids) for prompt in prompts),
        pictured=max(sum(prompt.picture_tokens) for prompt in prompts),
    )


def _layers(policy: Policy, part: str) -> int:
    ours = {id(layer) for layer in layers(policy.model)}
    found = [
        n for n, m in policy.model.named_modules() if id(m) in ours and part_of(policy.family, n) == part
    ]
    return max(1, len(found))


def _seen(policy: Policy, prompts: Sequence[Prompt]) -> float:
    """Bytes that an image token keeps in tower and projector, by encoding the smallest prompt's pictures.

    The pixels ask for a gradient, so that a frozen tower shows its working set too."""
    pictured = [prompt for prompt in prompts if prompt.media]
    if not pictured:
        return 0.0
    prompt = min(pictured, key=lambda prompt: sum(prompt.picture_tokens))
    media = join_media([prompt.media], policy.device)
    media["pixel_values"] = media["pixel_values"].detach().float().requires_grad_()
    with torch.enable_grad(), _keeping(policy.model) as kept:
        features = policy.family.encode_images(policy.model, media)
        found = sum(kept.values())
        del features
    return found / sum(prompt.picture_tokens)


def _kept(policy: Policy, prompts: Sequence[Prompt], seen: float) -> tuple[float, float]:
    """(bytes that a token keeps in the language model, bytes of its keys and values)."""
    trained = any(
        p.requires_grad and part_of(policy.family, n) == "text" for n, p in policy.model.named_parameters()
    )
    prompt = min(prompts, key=lambda prompt: len(prompt.token_ids))
    if trained:
        prompt = _text_prompt(policy, prompt)
    with torch.enable_grad(), _keeping(policy.model) as kept:
        prefix = prefill(policy, [prompt])
        total = sum(kept.values())
        stores = [layer[0] for store in (prefix.keys, prefix.values) for layer in store.values()]
        held = sum(x.numel() * x.element_size() for x in stores)
        del prefix, stores
    tokens = len(prompt.token_ids)
    return max(total - seen * sum(prompt.picture_tokens), held) / tokens, held / tokens


def _text_prompt(policy: Policy, like: Prompt) -> Prompt:
    """`_PROBE` tokens that may be sampled."""
    bans = set(policy.bans(Sampling()))
    ids = [i for i in range(len(bans) + _PROBE) if i not in bans][:_PROBE]
    return Prompt(
        problem=like.problem,
        token_ids=torch.tensor(ids),
        positions=torch.arange(_PROBE).expand(like.positions.shape[0], -1),
        next_position=_PROBE,
        image_mask=torch.zeros(_PROBE, dtype=torch.bool),
    )


@contextlib.contextmanager
def _keeping(model: Any) -> Iterator[dict[int, int]]:
    """Storage -> bytes of what is kept for a backward pass while it is open, the weights excepted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


# ---------------------------------------------------------------- what is free


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where nobody says.

    CPU: the least of the system's available memory and what the process's control groups (containers) leave.
    """
    if device.type == "cuda":
        # what torch holds and does not use can be used again
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(unused)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    found = [number for number in (_available(), *_groups_left()) if number is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        try:  # no /proc (macOS): all there is
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return sizes.get("MemAvailable")


def _groups_left(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Limit less use (page cache that can be dropped excepted) of each control group that has a limit, v2 and v1."""
    left = []
    for folder in _groups(root, own):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                most, now = int((folder / limit).read_text()), int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group, or "max": no limit
                continue
            if most < 2**60:  # v1 writes a huge number for no limit
                left.append(most - now + int(stat.get(cache, 0)))
    return left


def _groups(root: Path, own: Path) -> list[Path]:
    """The folders of this process's groups and all groups above them."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    places = [root, root / "memory"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        top = root / "memory" if "memory" in controllers else root
        inside = top / path.lstrip("/")
        places += [inside, *(parent for parent in inside.parents if top in parent.parents)]
    return list(dict.fromkeys(places))
