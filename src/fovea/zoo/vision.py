"""Stages 1 and 2: the vision tower alone, with dense labels of every merged token, through a head thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fovea.models.policy import Policy
from fovea.tasks import cards, graphs, grids, printed
from fovea.tasks.questions import DIGITS
from fovea.tasks.scenes import COLORS, SHAPES, Scene, Split, compose, digit_stamps, generator, shape_stamps
from fovea.zoo.trainer import Stage, Trainer, share

CELL = 16
"""Pixels of one merged token (8 x 8 patches, merged two by two)."""

Facts = Mapping[str, tuple[str, ...]]
FIRST_FACTS: Facts = {"kind": (*DIGITS, *SHAPES), "color": tuple(COLORS)}
"""What the first stage teaches of every thing: name → values."""


def _all_facts() -> dict[str, tuple[str, ...]]:
    """The union over the domains. Characters have two slots, since two of them fit into one cell."""
    found: dict[str, dict[str, None]] = {}
    for facts in (FIRST_FACTS, cards.FACTS, grids.FACTS, graphs.FACTS):
        for name, values in facts.items():
            found.setdefault(name, {}).update(dict.fromkeys(values))
    united = {name: tuple(values) for name, values in found.items()}
    return united | {f"char{slot}": printed.FACTS["char"] for slot in (0, 1)}


FACTS: Facts = _all_facts()
WEIGHTS = {"kind": 1.0}
"""Weight of a fact's cross-entropy; one half where nothing is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTargets:
    """Labels of merged tokens, flat over a batch of pictures in raster order (N tokens)."""

    present: torch.Tensor
    """float32 [N], 1 where a thing's centre lies in the cell."""
    facts: dict[str, torch.Tensor]
    """Name → int64 [N], index of the value; -100 where nothing is."""
    box: torch.Tensor
    """float32 [N, 4], corners relative to the cell's centre, in cells."""
    color: torch.Tensor
    """float32 [N, 3], the cell's mean colour, 0 to 1."""


def vision_scene(seed: int, index: int, split: Split = "train") -> Scene:
    """Picture `index` of the first stage: 70 % digits, 30 % shapes, crowded because every thing is a label."""
    rng = generator("zoo-vision", split, seed, index)
    stamps = digit_stamps if rng.random() < 0.7 else shape_stamps
    side = int(generator("zoo-size", seed, index // 64).choice([48, 64, 64, 64, 64, 64, 64, 80, 96]))
    count = int(rng.integers(2, 7)) if side >= 64 else int(rng.integers(1, 4))
    return compose(rng, stamps(split), count, split=split, size=(side, side), side=(12, 26))


DOMAINS: dict[str, tuple[float, Callable[[np.random.Generator, Split], Scene]]] = {
    "printed": (0.26, printed.scene),
    "cards": (0.17, cards.scene),
    "grids": (0.14, grids.scene),
    "graphs": (0.08, graphs.scene),
}
"""Share and drawing of each domain in the second stage; the rest are pictures of the first stage's kind."""


def domain_scene(seed: int, index: int, split: Split = "train") -> Scene:
    """Picture `index` of the second stage."""
    rng = generator("zoo-domains", split, seed, index)
    u = rng.random()
    for share_of, draw in DOMAINS.values():
        if u < share_of:
            return draw(rng, split)
        u -= share_of
    return vision_scene(seed + 1, index, split)


def facts_of(thing: Any) -> tuple[tuple[str, str], ...]:
    """A thing's facts; digits and coloured shapes say theirs by their label."""
    if thing.facts:
        return tuple(thing.facts)
    words = thing.label.split()
    return (("kind", words[-1]), *((("color", words[0]),) if len(words) == 2 else ()))


def dense_targets(scenes: list[Scene], facts: Facts) -> DenseTargets:
    present, box, color = [], [], []
    labels: dict[str, list[np.ndarray]] = {name: [] for name in facts}
    for scene in scenes:
        image = scene.image
        columns, rows = max(1, round(image.width / CELL)), max(1, round(image.height / CELL))
        sx, sy = (
            columns / image.width,
            rows / image.height,
        )  # pixels to cells; the processor resizes to whole cells
        p, b = np.zeros(rows * columns, np.float32), np.zeros((rows * columns, 4), np.float32)
        known = {name: np.full(rows * columns, -100) for name in facts}
        for thing in scene.things:
            corners = np.array(thing.box, np.float64) * (sx, sy, sx, sy)
            x, y = (corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2
            column, row = min(columns - 1, max(0, int(x))), min(rows - 1, max(0, int(y)))
            cell = row * columns + column
            p[cell] = 1
            for name, value in facts_of(thing):
                slot = f"char{int(x - column >= 0.5)}" if name == "char" else name
                known[slot][cell] = facts[slot].index(value)
            b[cell] = corners - (np.array([column, row, column, row]) + 0.5)
        present.append(p)
        box.append(b)
        color.append(
            np.asarray(image.resize((columns, rows), 4), np.float32).reshape(-1, 3) / 255
        )  # 4: box filter
        for name in facts:
            labels[name].append(known[name])
    return DenseTargets(
        present=torch.from_numpy(np.concatenate(present)),
        facts={name: torch.from_numpy(np.concatenate(parts)) for name, parts in labels.items()},
        box=torch.from_numpy(np.concatenate(box)).float(),
        color=torch.from_numpy(np.concatenate(color)),
    )


def head_size(facts: Facts, color: bool) -> int:
    return 1 + sum(map(len, facts.values())) + 4 + (3 if color else 0)


def dense_loss(
    features: torch.Tensor, head: torch.nn.Linear, targets: DenseTargets, facts: Facts
) -> tuple[torch.Tensor, dict[str, float]]:
    """Presence, facts, box and (where the head has room for it) mean colour of every cell; and how many are right."""
    out = head(features)
    with_color = out.shape[-1] == head_size(facts, True)
    present, *logits, box, color = out.split([1, *map(len, facts.values()), 4, 3 * with_color], dim=-1)
    here = targets.present > 0
    loss = F.binary_cross_entropy_with_logits(present[:, 0], targets.present)
    report = {"present": float(((present[:, 0] > 0) == here).float().mean())}
    for (name, truth), scores in zip(targets.facts.items(), logits):
        known = truth >= 0
        if known.any():
            loss = loss + WEIGHTS.get(name, 0.5) * F.cross_entropy(scores[known], truth[known])
            report[name] = float((scores[known].argmax(-1) == truth[known]).float().mean())
    error = (box[here] - targets.box[here]).abs()
    report["box_pixels"] = error.detach().mean().item() * CELL
    if with_color:
        loss = loss + (color - targets.color).abs().mean()
    return loss + error.mean() * 2, report


def dense_head(policy: Policy, seed: int, size: int) -> torch.nn.Linear:
    """The linear head that is thrown away."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(policy.model.config.text_config.hidden_size, size)


def vision_trainer(policy: Policy, folder: Path, seed: int, name: str, stage: Stage) -> Trainer:
    """The trainer of a vision stage; loads what is saved of it into the policy."""
    size = head_size(FIRST_FACTS, False) if name == "vision" else head_size(FACTS, True)
    head = dense_head(policy, seed, size)
    return Trainer(folder, name, stage, {"visual": policy.model.model.visual, "head": head})


def teach_vision(policy: Policy, folder: Path, seed: int, name: str, stage: Stage) -> None:
    """Stages 1 ("vision") and 2 ("domains"). Only `model.model.visual` changes, DeepStack by the same head."""
    facts, draw = (FIRST_FACTS, vision_scene) if name == "vision" else (FACTS, domain_scene)
    trainer = vision_trainer(policy, folder, seed, name, stage)
    head = trainer.modules["head"]
    assert isinstance(head, torch.nn.Linear)
    while trainer.step < stage.steps:
        began = time.perf_counter()
        first = trainer.step * stage.batch
        scenes = [draw(seed, index) for index in share(range(first, first + stage.batch))]
        loss, report = _step(policy, head, scenes, facts)
        (loss / (dist.get_world_size() if dist.is_initialized() else 1)).backward()
        trainer.apply(time.perf_counter() - began)
        if trainer.step % 100 == 0:
            trainer.log(loss=loss.item(), **report)
        if trainer.step % 1000 == 0 or trainer.step == stage.steps:
            trainer.log(validation=vision_validation(policy, head, seed, name))


def _step(
    policy: Policy, head: torch.nn.Linear, scenes: list[Scene], facts: Facts
) -> tuple[torch.Tensor, dict[str, float]]:
    images = [scene.image for scene in scenes]
    inputs = policy.processor.image_processor(images=images, return_tensors="pt")
    out = policy.family.encode_images(policy.model, dict(inputs))
    targets = dense_targets(scenes, facts)
    loss, report = dense_loss(out.features, head, targets, facts)
    for features in out.deepstack:
        loss = loss + 0.3 * dense_loss(features, head, targets, facts)[0]
    return loss, report


@torch.no_grad()
def vision_validation(
    policy: Policy, head: torch.nn.Linear, seed: int, name: str, n: int = 256
) -> dict[str, float]:
    """The report on digits, backgrounds, fonts and photographs of the validation split."""
    facts, draw = (FIRST_FACTS, vision_scene) if name == "vision" else (FACTS, domain_scene)
    scenes = [draw(seed, index, "validation") for index in range(n)]
    return {k: round(v, 4) for k, v in _step(policy, head, scenes, facts)[1].items()}
