"""How the embedded model `fovea-tiny` is made: `fovea zoo build tiny`. Seeded, resumable, no downloads.

Five stages, because a tiny model trained on questions alone learns the answer format long before it looks:

1. `vision`: the vision tower alone, with dense labels for every merged token (is a thing's centre here, which
   one, its colour, its box), through a linear head that is thrown away.
2. `describe`: the whole model names every thing with its box.
3. `skills`: short questions mixed with descriptions.
4. `lookup`: more questions that name what to look for; at them the middle of the text model is taught
   where to point, through a second head that is thrown away. Without this stage the model answers `locate`
   with the box of *some* thing, and RL only sharpens which one (docs/lab-notes.md).
5. `attend`: the same, but it is the middle layer's own attention that is taught where to look.

The shares of all tasks in all stages are published in `MIXTURES`.

No wrong labels are planted and nothing is stopped early. Only the train split of digits and backgrounds is used.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from fovea.models.adapter import Prompt
from fovea.models.construct import build_processor, build_tokenizer, model_config, random_model
from fovea.models.policy import Policy, make_policy
from fovea.models.shared_prefix import backward, prefill
from fovea.tasks import corpus, open_task
from fovea.tasks.scenes import COLORS, SHAPES, Scene, Split, compose, digit_stamps, generator, shape_stamps
from fovea.types import Problem, RunFailed, Sampling

FAMILY = "qwen3_vl"
PATCH = 8
CELL = 2 * PATCH  # pixels of one merged token
SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "text_layers": 4,
    "text_width": 256,
    "text_mlp": 512,
    "vision_layers": 6,
    "vision_width": 128,
    "vision_mlp": 512,
    "patch_size": PATCH,
    "position_grid": 16,
    "deepstack": (2,),
    "initializer_range": 0.05,  # the usual 0.02 is for wide models; narrow ones start too slowly with it
}
DESCRIBE = {"digits/describe": 0.6, "shapes/describe": 0.4}
"""Share of every task in the `describe` stage."""
SKILLS = {
    "digits/describe": 0.30,
    "shapes/describe": 0.12,
    "digits/read": 0.14,
    "digits/count": 0.10,
    "shapes/count": 0.10,
    "shapes/locate": 0.16,
    "digits/locate": 0.08,
}
LOOKUP = {
    "shapes/locate": 0.40,
    "digits/describe": 0.18,
    "digits/locate": 0.12,
    "shapes/describe": 0.10,
    "digits/read": 0.08,
    "digits/count": 0.06,
    "shapes/count": 0.06,
}
MIXTURES = {"describe": DESCRIBE, "skills": SKILLS, "lookup": LOOKUP, "attend": LOOKUP}
"""Share of every task in each language stage. What the quickstart asks for, `digits/locate`, is rare on purpose: RL
needs something to draw out. `printed/locate` is never trained."""
VISION_SCALE = 0.2
"""Learning rate of the taught vision tower relative to the new text model, in the later stages."""
CLASSES = (*map(str, range(10)), *SHAPES)


def new_tiny(seed: int) -> tuple[Any, Any]:
    """(model, processor) of the embedded architecture with fresh weights."""
    tokenizer = build_tokenizer(corpus(seed), SIZES["vocab_size"])
    processor = build_processor(FAMILY, tokenizer, patch_size=PATCH, min_pixels=32 * 32, max_pixels=320 * 320)
    return random_model(model_config(FAMILY, tokenizer, **SIZES), seed), processor


# --- stage 1: the vision tower alone ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTargets:
    """Labels of merged tokens, flat over a batch of pictures in raster order (N tokens)."""

    present: torch.Tensor
    """float32 [N], 1 where a thing's centre lies in the cell."""
    kind: torch.Tensor
    """int64 [N], index into CLASSES; -100 where nothing is."""
    color: torch.Tensor
    """int64 [N], index into COLORS; -100 for digits and empty cells."""
    box: torch.Tensor
    """float32 [N, 4], corners relative to the cell's centre, in cells."""


def vision_scene(seed: int, index: int, split: Split = "train") -> Scene:
    """Picture `index` of the vision stage: 70 % digits, 30 % shapes, crowded because every thing is a label."""
    rng = generator("zoo-vision", split, seed, index)
    stamps = digit_stamps if rng.random() < 0.7 else shape_stamps
    side = int(generator("zoo-size", seed, index // 64).choice([48, 64, 64, 64, 64, 64, 64, 80, 96]))
    count = int(rng.integers(2, 7)) if side >= 64 else int(rng.integers(1, 4))
    return compose(rng, stamps(split), count, split=split, size=(side, side), side=(12, 26))


def dense_targets(scenes: list[Scene]) -> DenseTargets:
    present, kind, color, box = [], [], [], []
    for scene in scenes:
        columns, rows = scene.image.width // CELL, scene.image.height // CELL
        p, k = np.zeros(rows * columns, np.float32), np.full(rows * columns, -100)
        c, b = np.full(rows * columns, -100), np.zeros((rows * columns, 4), np.float32)
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            column, row = int((x1 + x2) / 2 // CELL), int((y1 + y2) / 2 // CELL)
            cell = row * columns + column
            words = thing.label.split()
            p[cell], k[cell] = 1, CLASSES.index(words[-1])
            if len(words) == 2:
                c[cell] = list(COLORS).index(words[0])
            b[cell] = np.array(thing.box, np.float32) / CELL - (np.array([column, row, column, row]) + 0.5)
        present.append(p)
        kind.append(k)
        color.append(c)
        box.append(b)
    return DenseTargets(
        present=torch.from_numpy(np.concatenate(present)),
        kind=torch.from_numpy(np.concatenate(kind)),
        color=torch.from_numpy(np.concatenate(color)),
        box=torch.from_numpy(np.concatenate(box)),
    )


def dense_loss(
    features: torch.Tensor, head: torch.nn.Linear, targets: DenseTargets
) -> tuple[torch.Tensor, dict[str, float]]:
    out = head(features)
    present, kind, color, box = out.split([1, len(CLASSES), len(COLORS), 4], dim=-1)
    here = targets.present > 0
    loss_present = F.binary_cross_entropy_with_logits(present[:, 0], targets.present)
    loss_kind = F.cross_entropy(kind[here], targets.kind[here])
    colored = targets.color >= 0
    loss_color = F.cross_entropy(color[colored], targets.color[colored]) if colored.any() else kind.sum() * 0
    error = (box[here] - targets.box[here]).abs()
    with torch.no_grad():
        digits = here & (targets.kind < 10)
        shapes = here & (targets.kind >= 10)
        report = {
            "digits": (kind[digits].argmax(-1) == targets.kind[digits]).float().mean().item(),
            "shapes": (kind[shapes].argmax(-1) == targets.kind[shapes]).float().mean().item(),
            "colors": (color[colored].argmax(-1) == targets.color[colored]).float().mean().item(),
            "present": ((present[:, 0] > 0) == here).float().mean().item(),
            "box_pixels": error.mean().item() * CELL,
        }
    return loss_present + loss_kind + 0.5 * loss_color + error.mean() * 2, report


def _pixels(processor: Any, scenes: list[Scene]) -> Any:
    return processor.image_processor(images=[scene.image for scene in scenes], return_tensors="pt")


def vision_batches(seed: int, start: int, batch: int) -> Iterator[list[Scene]]:
    """Batches of pictures; the size is constant in blocks of 64, so a batch that divides 64 has one size."""
    index = start
    while True:
        yield [vision_scene(seed, index + i) for i in range(batch)]
        index += batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """How long and how fast a stage trains."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100

    def rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to a twentieth at the end."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        return self.learning_rate * (1 - 0.95 * (step - self.warmup) / max(1, self.steps - self.warmup))


@dataclass(slots=True)
class Trainer:
    """Optimizer, step counter and log of one stage; saved every `save_every` steps, resumed when present."""

    folder: Path
    name: str
    stage: Stage
    modules: dict[str, torch.nn.Module]
    save_every: int = 200
    step: int = 0
    optimizer: Any = None

    def __post_init__(self) -> None:
        named = [pair for module in self.modules.values() for pair in module.named_parameters()]
        slow = [p for name, p in named if name.startswith("model.visual.")]
        fast = [p for name, p in named if not name.startswith("model.visual.")]
        groups = [{"params": fast, "scale": 1.0}, {"params": slow, "scale": VISION_SCALE}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            self.step = saved["step"]
            self.optimizer.load_state_dict(saved["optimizer"])
            for name, module in self.modules.items():
                module.load_state_dict(saved["modules"][name])

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def save(self) -> None:
        if _rank() > 0:
            return
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def apply(self) -> None:
        """One optimizer step on the gradients that are there, summed over processes."""
        if dist.is_initialized():
            _sum_gradients([p for group in self.optimizer.param_groups for p in group["params"]])
        torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.rate(self.step) * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % self.save_every == 0 or self.step == self.stage.steps:
            self.save()

    def log(self, **values: Any) -> None:
        if _rank() > 0:
            return
        line = {
            "stage": self.name,
            "step": self.step,
            **{k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()},
        }
        print(json.dumps(line), flush=True)
        with (self.folder / "build.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def _dense_head(policy: Policy, seed: int) -> torch.nn.Linear:
    """The linear head that is thrown away."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(
            policy.model.config.text_config.hidden_size, 1 + len(CLASSES) + len(COLORS) + 4
        )


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _share(problems: list[Problem]) -> list[Problem]:
    """This process's part of a batch."""
    return problems[_rank() :: dist.get_world_size()] if dist.is_initialized() else problems


def _sum_gradients(parameters: list[torch.Tensor]) -> None:
    """Add up gradients over processes (none at all counts as zero)."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


def teach_vision(policy: Policy, folder: Path, seed: int, stage: Stage) -> None:
    """Stage 1. Only `model.model.visual` changes; its DeepStack output is taught through the same head."""
    visual, processor = policy.model.model.visual, policy.processor
    head = _dense_head(policy, seed)
    trainer = Trainer(folder, "vision", stage, {"visual": visual, "head": head})
    batches = vision_batches(seed, trainer.step * stage.batch, stage.batch)
    began = time.time()
    while trainer.step < stage.steps:
        scenes = next(batches)
        inputs = _pixels(processor, scenes)
        out = policy.family.encode_images(policy.model, inputs["pixel_values"], inputs["image_grid_thw"])
        targets = dense_targets(scenes)
        loss, report = dense_loss(out.features, head, targets)
        for features in out.deepstack:
            loss = loss + 0.3 * dense_loss(features, head, targets)[0]
        loss.backward()
        trainer.apply()
        if trainer.step % 100 == 0:
            trainer.log(loss=loss.item(), seconds=time.time() - began, **report)
        if trainer.step % 1000 == 0 or trainer.step == stage.steps:
            trainer.log(validation=vision_validation(policy, head, seed))


@torch.no_grad()
def vision_validation(policy: Policy, head: torch.nn.Linear, seed: int, n: int = 256) -> dict[str, float]:
    """The vision report on digits and backgrounds of the validation split."""
    scenes = [vision_scene(seed, index, "validation") for index in range(n)]
    inputs = _pixels(policy.processor, scenes)
    out = policy.family.encode_images(policy.model, inputs["pixel_values"], inputs["image_grid_thw"])
    return {k: round(v, 4) for k, v in dense_loss(out.features, head, dense_targets(scenes))[1].items()}


# --- stages 2 to 4: the whole model ----------------------------------------------------------------------


def mixed_problem(mixture: dict[str, float], stage: str, seed: int, index: int) -> Problem:
    """Problem `index` of a stage: the task by its share, then that task's problem."""
    names = list(mixture)
    share = np.array([mixture[name] for name in names])
    name = names[int(generator("zoo", stage, seed, index).choice(len(names), p=share / share.sum()))]
    return open_task(name, "train", seed + 1).take(index, 1)[0][0]


def language_step(policy: Policy, problems: list[Problem], tokens_per_pass: int = 2048) -> float:
    """Adds the gradient of the teacher's replies' cross-entropy, mean over the tokens of all processes' problems."""
    prompts = [policy.prompt(problem) for problem in problems]
    rows = [(i, policy.encode_reply(prompt.problem.target or "")) for i, prompt in enumerate(prompts)]
    tokens = torch.tensor(float(sum(len(ids) for _, ids in rows)))
    if dist.is_initialized():
        dist.all_reduce(tokens)

    def loss(index: torch.Tensor, log_probs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        return -log_probs.sum() / tokens

    value = torch.tensor(backward(policy, prompts, rows, Sampling(), loss, tokens_per_pass))
    if dist.is_initialized():
        dist.all_reduce(value)
    return float(value)


def teach_language(
    policy: Policy, folder: Path, seed: int, name: str, mixture: dict[str, float], stage: Stage
) -> None:
    """Stages 2 to 4: cross-entropy on the replies, through the shared-prefix backward; all weights move."""
    trainer = Trainer(folder, name, stage, {"model": policy.model})
    began, recent = time.time(), []
    while trainer.step < stage.steps:
        first = trainer.step * stage.batch
        problems = [mixed_problem(mixture, name, seed, first + i) for i in range(stage.batch)]
        recent.append(language_step(policy, _share(problems)))
        trainer.apply()
        if trainer.step % 50 == 0:
            trainer.log(loss=float(np.mean(recent[-50:])), seconds=time.time() - began)


def lookup_step(
    policy: Policy, problems: list[Problem], pointer: torch.nn.Linear | None
) -> tuple[float, float]:
    """(loss, share of right cells) of `locate` problems; adds the gradient.

    At the token before the box, the merged token that holds the centre of what was asked for must get the highest
    score: by a bilinear head on the middle layer's input, thrown away later (`pointer`), or by the middle layer's own
    attention, half of its heads.
    """
    prompts = [_begin_reply(policy, policy.prompt(problem), "<answer>[") for problem in problems]
    losses, right = [], 0
    for problem, prompt, states in zip(problems, prompts, middle_hidden(policy, prompts), strict=True):
        x1, y1, x2, y2 = problem.answer
        cell = int((y1 + y2) / 2 // CELL) * (problem.images[0].width // CELL) + int((x1 + x2) / 2 // CELL)
        if pointer is None:
            scores = attention_scores(policy, prompt, states)
        else:
            scores = (states[prompt.image_mask] @ pointer(states[-1]))[None] / states.shape[-1] ** 0.5
        losses.append(F.cross_entropy(scores, torch.tensor([cell]).expand(len(scores))))
        right += int(scores.mean(0).argmax()) == cell
    loss = torch.stack(losses).mean()
    (loss / (dist.get_world_size() if dist.is_initialized() else 1)).backward()
    return loss.item(), right / len(problems)


def attention_scores(policy: Policy, prompt: Prompt, states: torch.Tensor) -> torch.Tensor:
    """Scores [heads / 2, image tokens] that the middle layer's attention gives the picture, from the last token."""
    text = policy.family.text_model(policy.model)
    layer = text.layers[len(text.layers) // 2]
    attn, x = layer.self_attn, layer.input_layernorm(states)[None]
    q = attn.q_norm(attn.q_proj(x).unflatten(-1, (-1, attn.head_dim))).transpose(1, 2)
    k = attn.k_norm(attn.k_proj(x).unflatten(-1, (-1, attn.head_dim))).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *text.rotary_emb(x, prompt.positions[:, None]))
    taught = q.shape[1] // 2
    keys = k.repeat_interleave(attn.num_key_value_groups, 1)[0, :taught, prompt.image_mask]
    return (keys @ q[0, :taught, -1, :, None])[..., 0] * attn.scaling


def _begin_reply(policy: Policy, prompt: Prompt, text: str) -> Prompt:
    """The prompt with the first words of a reply."""
    ids = torch.from_numpy(policy.encode_reply(text)[:-1])
    positions = (prompt.next_position + torch.arange(len(ids))).expand(3, -1)
    return replace(
        prompt,
        token_ids=torch.cat([prompt.token_ids, ids]),
        positions=torch.cat([prompt.positions, positions], dim=1),
        next_position=prompt.next_position + len(ids),
        image_mask=torch.cat([prompt.image_mask, torch.zeros(len(ids), dtype=torch.bool)]),
    )


def middle_hidden(policy: Policy, prompts: list[Prompt]) -> list[torch.Tensor]:
    """Hidden states [P, width] of each prompt after half of the text layers, with gradient."""
    kept: list[torch.Tensor] = []
    layers = policy.family.text_model(policy.model).layers
    hook = layers[len(layers) // 2].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        prefill(policy, prompts)
    finally:
        hook.remove()
    return list(kept[0][0].split([len(prompt.token_ids) for prompt in prompts]))


def teach_lookup(policy: Policy, folder: Path, seed: int, stages: dict[str, Stage]) -> None:
    """Stages 4 and 5: as `teach_language`; the `locate` questions also teach where to point, then where to attend."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pointer = torch.nn.Linear(SIZES["text_width"], SIZES["text_width"], bias=False)
    for name, head in (("lookup", pointer), ("attend", None)):
        heads = {} if head is None else {"pointer": head}
        trainer = Trainer(folder, name, stages[name], {"model": policy.model, **heads})
        began = time.time()
        while trainer.step < stages[name].steps:
            first = trainer.step * stages[name].batch
            problems = [mixed_problem(LOOKUP, name, seed, first + i) for i in range(stages[name].batch)]
            loss = language_step(policy, _share(problems))
            asked = [problem for problem in _share(problems) if problem.kind == "box"]
            pointing, right = lookup_step(policy, asked, head) if asked else (0.0, 0.0)
            trainer.apply()
            if trainer.step % 25 == 0:
                trainer.log(loss=loss, pointing=pointing, right=right, seconds=time.time() - began)


STAGES = {
    "vision": Stage(steps=4000, batch=32, learning_rate=1e-3),
    "describe": Stage(steps=600, batch=48, learning_rate=1e-3),
    "skills": Stage(steps=900, batch=48, learning_rate=7e-4),
    "lookup": Stage(steps=420, batch=48, learning_rate=7e-4),
    "attend": Stage(steps=200, batch=48, learning_rate=7e-4, warmup=20),
}


def build_tiny(
    out: Path, work: Path, seed: int = 0, stages: dict[str, Stage] | None = None, processes: int = 1
) -> dict[str, Any]:
    """All stages, resumed from `work` where it holds them; writes the model and its processor to `out`.

    `processes` share the batches of the language stages (one thread each; on a CPU they use the cores far better
    than threads do). Up to `skills` their number changes the weights only through the order of float additions; in the
    last two stages each process's `locate` questions weigh the same, however many it has. The shipped weights: 2.
    """
    began = time.time()
    stages = stages or STAGES
    teach_vision(make_policy(*new_tiny(seed)), work, seed, stages["vision"])
    if processes > 1:
        context = torch.multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as folder:
            arguments = (processes, f"file://{folder}/meet", work, seed, stages)
            workers = [
                context.Process(target=_language_worker, args=(i, *arguments)) for i in range(processes)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        if any(worker.exitcode for worker in workers):
            raise RunFailed(
                "A process of the zoo's build failed; its message is above. Start again to go on."
            )
    policy = language_stages(work, seed, stages)  # with several processes: only loads what they saved
    policy.save(out)
    record = {
        "name": "fovea-tiny",
        "seed": seed,
        "processes": processes,
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "stages": {name: asdict(stage) for name, stage in stages.items()},
        "mixtures": MIXTURES,
        "command": f"fovea zoo build tiny --seed {seed} --processes {processes}",
        "seconds": round(time.time() - began, 1),
    }
    (out / "build.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def language_stages(work: Path, seed: int, stages: dict[str, Stage]) -> Policy:
    """Stages 2 to 4 on the vision tower of stage 1."""
    policy = make_policy(*new_tiny(seed))
    Trainer(
        work,
        "vision",
        stages["vision"],
        {"visual": policy.model.model.visual, "head": _dense_head(policy, seed)},
    )
    teach_language(policy, work, seed, "describe", DESCRIBE, stages["describe"])
    teach_language(policy, work, seed, "skills", SKILLS, stages["skills"])
    teach_lookup(policy, work, seed, stages)
    return policy


def _language_worker(
    rank: int, processes: int, meet: str, work: Path, seed: int, stages: dict[str, Stage]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=processes)
    language_stages(work, seed, stages)
    dist.destroy_process_group()
