"""The model card: every skill of a model, measured, as one page and one JSON file.

A skill is a built-in task: one kind of question on one kind of picture. It passes when the model clearly beats who
does not look (the lower end of accuracy's 95 % interval at least 20 points above chance) and clearly looks (the
lower end of looking's interval above 0). Skills are measured one by one, several processes side by side, and each is
written down when it is done: a card that was stopped goes on. Not here: the measuring (`fovea.evaluation`).

Try it: `fovea zoo card fovea-tiny --n 64 --tasks digits/count`
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.evaluation import evaluate
from fovea.models import Policy, load_policy
from fovea.models.policy import TINY
from fovea.runlog import newest_model, to_json, write_atomically
from fovea.tasks import LATER, TASKS, open_task
from fovea.tasks.chance import blind_chance
from fovea.training.problems import EVALUATION_SEED
from fovea.types import Problem, UserError, picture_sizes

MARGIN = 0.20
"""How far above chance the lower end of accuracy's interval must be."""
SPLIT = "test"


@dataclass(frozen=True, kw_only=True, slots=True)
class CardSettings:
    """How every skill is measured. Example: CardSettings(n=512, samples=8)"""

    n: int = 512
    samples: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    """0: the problems that `fovea evaluate --task NAME` measures."""


# --- one skill -------------------------------------------------------------------------------------------------


def measure_skill(model: str, name: str, settings: CardSettings) -> dict[str, Any]:
    """One row of the card, JSON-ready. One thread; the model is loaded once a process."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    policy = _loaded(model)
    task = open_task(name, SPLIT, EVALUATION_SEED + settings.seed)
    record = evaluate(
        policy,
        SharedPrefillEngine(policy),
        task,
        settings.n,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        samples=settings.samples,
        temperature=settings.temperature,
    )
    problems = task.take(0, settings.n)[0]
    constant = constant_share(problems)
    chance = max(task.chance, constant)
    del record["shown"]
    row: dict[str, Any] = {"name": name, "domain": name.partition("/")[0], "kind": task.kind}
    row |= {"text_only": not any(len(problem.images) for problem in problems)}
    row |= record | {"chance": {"used": chance, "declared": task.chance, "constant": constant}}
    passed, why = verdict(row)
    return row | {"passed": passed, "why": why, "seconds": round(time.perf_counter() - began, 1)}


@lru_cache(maxsize=1)
def _loaded(model: str) -> Policy:
    return load_policy(model, device="cpu")


def verdict(row: dict[str, Any]) -> tuple[bool, str]:
    """(passed, why not). Needs `accuracy`, `chance.used` and `looking`; a skill without pictures cannot pass."""
    reasons = []
    low, least = row["accuracy"]["ci95"][0], row["chance"]["used"] + MARGIN
    if low < least:
        reasons.append(f"accuracy's lower end {low:.3f} is below chance + {MARGIN:.2f} = {least:.3f}")
    looking = row["looking"]["ci95"]
    if looking is None:
        reasons.append("no picture could be swapped")
    elif looking[0] <= 0:
        reasons.append(f"looking's lower end {looking[0]:.3f} is not above 0")
    return not reasons, "; ".join(reasons)


def constant_share(problems: Sequence[Problem]) -> float:
    """Accuracy of the best reply that is the same to every one of these problems, 0 to 1 (`blind_chance`).

    It is chosen with hindsight, so it is a little above what a guesser can expect.
    """
    sizes = [picture_sizes(problem) for problem in problems]
    shown = [size[int(p.meta.get("box_image", 0))] if size else None for p, size in zip(problems, sizes)]
    return blind_chance([p.kind for p in problems], [p.answer for p in problems], shown)


# --- the card --------------------------------------------------------------------------------------------------


def make_card(
    model: str,
    out: Path,
    settings: CardSettings,
    names: Sequence[str] = (),
    processes: int = 1,
    told: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Measure `names` (where empty: all built-in tasks that fovea-tiny's weights are of an age with, so not those in
    `LATER`, which the card then names), write `out` (Markdown) and the same as JSON beside it.

    Rows are kept in `OUT.skills.jsonl`; a row is measured again unless weights, settings and problems are those
    of its line. `told` hears each new row. Raises UserError for an unknown task and a model that is not there.
    """
    names = list(names) or [name for name in TASKS if name not in LATER]
    for name in names:
        open_task(name, SPLIT)
    if out.suffix != ".md":
        raise UserError(f"The card is a Markdown file, {out} is not; choose a name that ends with .md.")
    folder = model_folder(model)
    weights = weights_digest(folder)
    lines = out.with_suffix(".skills.jsonl")
    rows = _kept(lines, {name: skill_key(name, weights, settings) for name in names})
    missing = [name for name in names if name not in rows]
    for row in _measured(str(folder), missing, settings, processes):
        rows[row["name"]] = row
        _append(lines, row | {"key": skill_key(row["name"], weights, settings)})
        told(row)
    found = [{key: value for key, value in rows[name].items() if key != "key"} for name in names]
    card = describe_model(model, folder, weights) | {"settings": asdict(settings) | {"split": SPLIT}}
    seen = [row for row in found if not row["text_only"]]
    card |= {
        "measured": len(found),
        "domains": len({row["domain"] for row in found}),
        "passed": sum(row["passed"] for row in seen),
        "seconds": round(sum(row["seconds"] for row in found), 1),
        "later": sorted(LATER - set(names)),
        "skills": found,
    }
    write_atomically(out.with_suffix(".json"), (to_json(card, indent=1) + "\n").encode("utf-8"))
    write_atomically(out, card_markdown(card).encode("utf-8"))
    return card


def _measured(
    model: str, names: Sequence[str], settings: CardSettings, processes: int
) -> Iterator[dict[str, Any]]:
    """Rows as they are done, in any order; one process stays in this one."""
    if processes == 1 or len(names) < 2:
        for name in names:
            yield measure_skill(model, name, settings)
        return
    with ProcessPoolExecutor(min(processes, len(names)), mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(measure_skill, model, name, settings) for name in names]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def model_folder(model: str) -> Path:
    """The folder of the weights: fovea-tiny's own, a model folder, or a run's newest model. Raises UserError."""
    if model == "fovea-tiny":
        return TINY
    if (Path(model) / "run.json").is_file():
        return newest_model(model)
    if not (Path(model) / "config.json").is_file():
        raise UserError(f"There is no model folder {model!r}; give a folder, a run or 'fovea-tiny'.")
    return Path(model)


def weights_digest(folder: Path) -> str:
    """SHA-256 over the folder's weight files in order of name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def skill_key(name: str, weights: str, settings: CardSettings) -> str:
    """Digest of all that a row depends on: weights, settings, the first problems with their pictures."""
    digest = hashlib.sha256(f"{name} {weights} {to_json(asdict(settings))}".encode())
    for problem in open_task(name, SPLIT, EVALUATION_SEED + settings.seed).take(0, 8)[0]:
        digest.update(to_json([problem.question, problem.answer]).encode("utf-8"))
        for image in problem.images:
            digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def _kept(path: Path, keys: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Rows of an earlier start whose key is still the one in `keys`; a half-written line is left out."""
    rows: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and keys.get(str(row.get("name")), "") == row.get("key"):
                rows[row["name"]] = row
    return rows


def _append(path: Path, row: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = not path.is_file() or path.read_bytes()[-1:] in (b"", b"\n")
        with path.open("ab") as file:
            file.write(("" if whole else "\n").encode() + (to_json(row) + "\n").encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"The card cannot be written to {path.parent} ({error.strerror}); choose another --out."
        ) from None


def describe_model(model: str, folder: Path, weights: str) -> dict[str, Any]:
    """Name, size and, where the folder has one, the record of how it was built (build.json)."""
    record = folder / "build.json"
    try:
        build = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
    except ValueError:
        raise UserError(f"{record} is not valid JSON; restore it or build the model again.") from None
    return {
        "model": model,
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "weights_sha256": weights,
        "build": build if isinstance(build, dict) else None,
    }


# --- the page --------------------------------------------------------------------------------------------------


def card_markdown(card: dict[str, Any]) -> str:
    """The page. Its figures are the card's, nothing is measured here."""
    settings = card["settings"]
    rows = [row for row in card["skills"] if not row["text_only"]]
    texts = [row for row in card["skills"] if row["text_only"]]
    passed, failed = [r for r in rows if r["passed"]], [r for r in rows if not r["passed"]]
    parts = [
        f"# Model card: {Path(card['model']).name}",
        "Generated by `fovea zoo card`; the same figures as JSON stand beside this file.",
        _how_built(card),
        "## Skills",
        f"A skill is one kind of question on one kind of picture. {card['measured']} were measured over "
        f"{card['domains']} domains, each on {settings['n']} problems of the {settings['split']} split; "
        f"{len(passed)} of {len(rows)} with pictures pass.",
        "Greedy replies; brackets hold 95 % intervals (Wilson; bootstrap over problems for looking and pass@1). "
        "*chance*: the best reply that does not look, the larger of the declared one and the best constant reply "
        "to these very problems. *swapped*: accuracy with all pictures replaced by another problem's. *looking*: "
        "accuracy - swapped, paired. *follow*: replies to the swapped pictures that are right about those. *blank*: "
        f"grey pictures. *pass@k*: from {settings['samples']} replies a problem at temperature "
        f"{settings['temperature']:g}. To pass, accuracy's lower end must be at least {MARGIN:.2f} above chance and "
        "looking's lower end above 0.",
        "### Passed",
        _table(passed, settings["samples"]),
        "### Not passed",
        _table(failed, settings["samples"], why=True),
    ]
    if texts:
        parts += [
            "### Without pictures",
            "Looking is undefined for them.",
            _table(texts, settings["samples"]),
        ]
    if card.get("later"):
        parts += [
            "### Not measured",
            "Built-in tasks that came after fovea-tiny's weights, so that none was trained, and that are not "
            f"measured here: {', '.join(card['later'])}.",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how_built(card: dict[str, Any]) -> str:
    build = card["build"] or {}
    facts = [
        ("script", f"`{build['command']}`" if "command" in build else None),
        ("seed", build.get("seed")),
        ("parameters", f"{build['parameters']:,}" if "parameters" in build else None),
        ("weights", f"{card['bytes']:,} bytes, SHA-256 `{card['weights_sha256'][:16]}…`"),
        ("build time", _build_time(build)),
        ("processes", build.get("processes")),
        ("this card", f"{card['seconds'] / 60:.1f} minutes of measuring, summed over processes"),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts if value is not None)]
    mixtures = build.get("mixtures")
    if isinstance(mixtures, dict) and mixtures:
        lines += ["", "Data mixture, shares of the problems of each stage (train split only):", ""]
        lines += ["| stage | mixture |", "|---|---|"]
        for stage, mixture in mixtures.items():
            shares = sorted(mixture.items(), key=lambda item: -item[1]) if isinstance(mixture, dict) else []
            total = sum(share for _, share in shares) or 1
            text = ", ".join(f"{name} {100 * share / total:.3g} %" for name, share in shares)
            lines.append(f"| {stage} | {text or mixture} |")
    return "\n".join(lines)


def _build_time(build: dict[str, Any]) -> str | None:
    """Minutes in all and by stage; a stage whose seconds were not kept is named."""
    if "seconds" not in build:
        return None
    parts = [
        f"{name} {'not kept' if seconds is None else f'{seconds / 60:.0f}'}"
        for name, seconds in build.get("seconds_by_stage", {}).items()
    ]
    return f"{build['seconds'] / 60:.0f} minutes" + (f" ({', '.join(parts)})" if parts else "")


def _table(rows: Sequence[dict[str, Any]], samples: int, why: bool = False) -> str:
    if not rows:
        return "None."
    ks = [str(k) for k in ((1, samples) if samples > 1 else (1,) if samples else ())]
    heads = ["skill", "n", "accuracy", "chance", "swapped", "looking", "follow", "blank"]
    heads += [f"pass@{k}" for k in ks] + (["why not"] if why else [])
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["name"], str(row["n"]), _cell(row["accuracy"]), f"{row['chance']['used']:.3f}"]
        cells += [_cell(row[key], row["n"]) for key in ("swapped", "looking", "follow", "blank")]
        cells += [_cell(row["pass_at_k"][k]) for k in ks] + ([row["why"]] if why else [])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: dict[str, Any], n: int | None = None) -> str:
    """Mean and interval, and on how many problems where not on all `n`."""
    if value["mean"] is None:
        return "–"
    low, high = value["ci95"]
    on = f" (n = {value['n']})" if n is not None and value.get("n", n) != n else ""
    return f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]{on}"
