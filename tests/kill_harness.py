"""Kills runs with SIGKILL at chosen instants, resumes them, and compares them with the run that nobody killed.

    python tests/kill_harness.py --kills 30 --seed 0 --out killed.json

An instant is either a moment of wall time or "a little after the n-th time the run opens, renames, makes or removes a
file in its folder", so that the short windows between two writes of a checkpoint are hit as often as the long steps.
Runs are forked from one process that has already imported everything: a trial takes seconds. `attack` takes any
function that starts or resumes a run in a folder; later parts of the project bring their own.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a fork after OpenMP has made threads hangs
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from fovea import checkpoints
from fovea.config import Run, load_run
from fovea.models.construct import random_policy_parts
from fovea.models.policy import make_policy
from fovea.training import resume, train

Start = Callable[[Path], None]
"""Does the run in a folder from its beginning to its end, or goes on with what is there."""

WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


@dataclass(frozen=True, kw_only=True)
class Instant:
    """When to kill: `seconds` after the start, or after the `event`-th file event."""

    event: int | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One attacked run."""

    name: str
    instants: tuple[Instant, ...]
    killed: int
    """How many of the instants came before the run's end."""
    resumed_at: tuple[int, ...]
    """Steps that the newest whole checkpoint held after each kill; -1: none."""
    differences: tuple[str, ...]


def start_or_resume(run: Run) -> Start:
    """The ordinary way: `fovea train`, or `fovea train --resume` where a run.json stands."""

    def start(folder: Path) -> None:
        if (folder / "result.json").exists():
            return
        if (folder / "run.json").exists():
            resume(folder)
        else:
            train(run.model_copy(update={"run_dir": str(folder)}))

    return start


def spawn(start: Start, folder: Path, instant: Instant | None, counts: Path | None = None) -> bool:
    """Do the run in a forked process. True if it was killed at `instant`, False if it ended before.

    `counts`: file that gets the number of file events, for an undisturbed run. Raises AssertionError if it failed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            _watch(folder, None if instant is None else instant.event, writer, counts)
            start(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    if instant is not None:
        if instant.event is not None:
            os.read(reader, 1)  # the event, or the end of the process
        time.sleep(instant.seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0, "the run failed by itself (its trace is above)"
    return killed


def _watch(folder: Path, event: int | None, writer: int, counts: Path | None) -> None:
    """Count file events below `folder`; at the wanted one tell the parent, who kills."""
    seen, inside = 0, str(folder)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if name not in WATCHED or not str(arguments[0]).startswith(inside):
            return
        if counts is not None and str(arguments[0]) != str(counts):
            seen += 1
            descriptor = os.open(counts, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, str(seen).encode())
            os.close(descriptor)
        elif counts is None:
            seen += 1
            if seen == event:
                os.write(writer, b"!")

    sys.addaudithook(hook)


def attack(start: Start, folder: Path, name: str, kills: int, seed: int) -> Iterator[Trial]:
    """`kills` trials against one undisturbed run. Each third trial kills the resumed run once more."""
    draw = random.Random(seed)
    whole = folder / "whole"
    counts = folder / "events"
    began = time.perf_counter()
    spawn(start, whole, None, counts)
    seconds = time.perf_counter() - began
    events = int(counts.read_text())
    for i in range(kills):
        instants = tuple(_instant(draw, events, seconds, i + j) for j in range(2 if i % 3 == 2 else 1))
        trial = folder / f"trial{i}"
        hit, resumed_at = 0, []
        for instant in instants:
            if spawn(start, trial, instant):
                hit += 1
                saved, _ = checkpoints.newest_whole(trial)
                resumed_at.append(-1 if saved is None else saved.step)
        spawn(start, trial, None, folder / "unused")
        found = tuple(differences(whole, trial))
        yield Trial(name=name, instants=instants, killed=hit, resumed_at=tuple(resumed_at), differences=found)
        shutil.rmtree(trial)


def _instant(draw: random.Random, events: int, seconds: float, i: int) -> Instant:
    if i % 2:
        return Instant(event=None, seconds=draw.uniform(0, seconds))
    return Instant(event=draw.randint(1, events), seconds=draw.choice([0.0, 0.0005, 0.003, 0.01]))


# ---------------------------------------------------------------- equal, times aside


def differences(a: Path, b: Path) -> Iterator[str]:
    """What is not the same in two finished run folders: logs, weights, optimizer, state; times aside."""
    for name in ("metrics.jsonl", "evaluations.jsonl", "result.json"):
        if _timeless((a / name).read_text()) != _timeless((b / name).read_text()):
            yield name
    rollouts = [sorted(p.name for p in (folder / "rollouts").iterdir()) for folder in (a, b)]
    if rollouts[0] != rollouts[1]:
        yield f"rollouts: {rollouts}"
    else:
        for name in rollouts[0]:
            if (a / "rollouts" / name).read_bytes() != (b / "rollouts" / name).read_bytes():
                yield f"rollouts/{name}"
    saved = [checkpoints.newest_whole(folder)[0] for folder in (a, b)]
    assert saved[0] is not None
    assert saved[1] is not None
    if saved[0].step != saved[1].step or saved[0].weights != saved[1].weights:
        yield "trained weights"
    for path in sorted((saved[0].folder / "model").glob("*.safetensors")):
        tensors, others = load_file(path), load_file(saved[1].folder / "model" / path.name)
        if tensors.keys() != others.keys() or any(not torch.equal(tensors[n], others[n]) for n in tensors):
            yield f"model/{path.name}"
    states = [torch.load(one.folder / "optimizer.pt", weights_only=True) for one in saved if one]
    if not _equal(*states):
        yield "optimizer"
    ours, theirs = (_without_seconds(one.state) for one in saved if one)
    yield from (
        f"state: {key}" for key in ours.keys() | theirs.keys() if not _equal(ours.get(key), theirs.get(key))
    )


def _timeless(text: str) -> list[Any]:
    lines = text.splitlines() if text.startswith('{"') else [text]
    return [_without_seconds(json.loads(line)) for line in lines]


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if "seconds" not in k and "memory" not in k}
        return {k: _without_seconds(v) for k, v in kept.items()}
    return [_without_seconds(item) for item in value] if isinstance(value, list) else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if hasattr(a, "tobytes"):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return bool(a == b)


# ---------------------------------------------------------------- the runs that are attacked


def tiny_rl(folder: Path, *overrides: str) -> Run:
    """fovea-tiny by reinforcement learning, evaluations and checkpoints on the way."""
    sizes = ["steps=6", "save_every=2", "prompts=4", "show_every=2", "optimizer.warmup_steps=2", "threads=1"]
    measured = ["evaluation.n=8", "evaluation.during=4", "evaluation.every=3", "evaluation.samples=0"]
    return load_run("quickstart", [*sizes, *measured, *overrides])


# Replies of a random model are never right; this gives every group a signal. A user's function: it runs in a worker.
DENSE = """def dense(text, problem):
    return sum(letter in "aeiou0123456789" for letter in text) / (1 + len(text))
"""


def everything(folder: Path, *overrides: str) -> Run:
    """A random full-parameter Qwen2.5-VL with all that remembers: two updates a rollout, a reference that follows,
    a replay buffer, an audit, a reward of the user's."""
    (folder / "dense.py").write_text(DENSE)
    model, processor = random_policy_parts(
        "qwen2_5_vl", 0, text_layers=2, text_width=64, text_mlp=96, heads=1, kv_heads=1, vision_layers=2,
        vision_width=32, vision_mlp=48, vision_heads=2,
    )  # fmt: skip
    make_policy(model, processor).save(folder / "model")
    sizes = ["steps=6", "save_every=2", "prompts=4", "group=4", "sampling.max_new_tokens=12", "show_every=2"]
    learned = [
        f"model={folder / 'model'}",
        f"rewards={{{folder / 'dense.py'}:dense: 1}}",
        "audits=[unparsed]",
    ]
    kept = ["algorithm.replay=16", "algorithm.updates_per_rollout=2", "algorithm.prompts_per_update=2"]
    compared = ["algorithm.beta=0.05", "reference_sync_steps=3"]
    measured = ["evaluation.n=4", "evaluation.during=4", "evaluation.every=3", "evaluation.samples=0"]
    rate = ["optimizer.learning_rate=0.001", "optimizer.schedule=cosine", "threads=1"]
    return load_run("quickstart", [*sizes, *learned, *kept, *compared, *measured, *rate, *overrides])


def lora(folder: Path) -> Run:
    """An adapter in bfloat16 over float32 masters, groups drawn anew; the reference is the base."""
    changed = ["algorithm.name=dapo", "algorithm.replay=0", "dtype=bfloat16"]
    return everything(folder, "finetune={mode: lora, rank: 4, targets: [text, vision]}", *changed)


def perception(folder: Path) -> Run:
    """As `everything`, with PAPO: its masks are of the step, so that a resumed run must make the same."""
    papo = ["algorithm.papo=0.02", "algorithm.papo_entropy=0.05", "algorithm.papo_both=true"]
    return everything(folder, *papo)


def curriculum(folder: Path, *overrides: str) -> Run:
    """fovea-tiny on a mixture of self-supervised and drawn problems whose difficulty is controlled, with a replay
    buffer that makes earlier problems again."""
    mixture = "mixture={ssl/rotation: 2, shapes/color: 1}"
    controlled = [
        "difficulty.control=true",
        "difficulty.window=2",
        "difficulty.change=0.3",
        "pictures.side=32",
    ]
    kept = ["algorithm.replay=16", "evaluation.also=digits/count", "evaluation.also_n=4"]
    return tiny_rl(folder, mixture, *controlled, *kept, *overrides)


def exploring(folder: Path, *overrides: str) -> Run:
    """fovea-tiny under an attack whose ε is annealed and controlled, with a replay buffer."""
    attacked = ["intervention.name=egas", "intervention.schedule=linear", "intervention.measure_every=2"]
    fitted = ["intervention.control=true", "intervention.window=2", "intervention.keep=[0.9, 1.0]"]
    kept = ["algorithm.replay=16", "prompts=8", "intervention.ratio=corrected"]
    return tiny_rl(folder, *attacked, *fitted, *kept, *overrides)


def episodes(folder: Path, *overrides: str) -> Run:
    """fovea-tiny in a game with a critic: every checkpoint stands in the middle of episodes, whose prompts hold the
    turns before."""
    played = ["environment={name: number_line, options: {side: 32}, turns: 3, context: window}"]
    learned = ["algorithm.name=rl4vlm", "environment.learn_invalid=true", "critic.hidden=[16]", "group=1"]
    several = ["algorithm.updates_per_rollout=2", "algorithm.prompts_per_update=4", "rewards={}"]
    return tiny_rl(folder, *played, *learned, *several, "sampling.max_new_tokens=8", *overrides)


RUNS: dict[str, Callable[[Path], Run]] = {
    "tiny-rl": tiny_rl,
    "everything": everything,
    "lora": lora,
    "perception": perception,
    "curriculum": curriculum,
    "exploring": exploring,
    "episodes": episodes,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=30, help="trials of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    trials = []
    for name in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            run = RUNS[name](Path(folder))
            for trial in attack(start_or_resume(run), Path(folder), name, options.kills, options.seed):
                trials.append(trial)
                print(f"{name} {len(trials)}: {trial}", flush=True)
    record = {
        "command": " ".join(["python", "tests/kill_harness.py", *arguments]),
        "trials": [asdict(trial) for trial in trials],
        "killed": sum(trial.killed for trial in trials),
        "equal": sum(not trial.differences for trial in trials),
        "n": len(trials),
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{record['equal']} of {record['n']} equal ({record['killed']} kills)")
    return 0 if record["equal"] == record["n"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
