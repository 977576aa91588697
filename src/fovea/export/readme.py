"""The model card of an exported model: what it is, how it was made, what was measured, what was not.

Written from the run folder alone. No path of the user's machine gets into it. Not here: the files beside it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from fovea.export.source import Source, public_name
from fovea.models.finetune import section_of
from fovea.rewards import REWARDS
from fovea.tasks.opening import is_known
from fovea.viewer.display import interval
from fovea.viewer.report import measures_of

TINY_LICENCE = "apache-2.0"


def readme(source: Source, form: str) -> str:
    """The text of README.md. `form`: "full", "merged" or "adapter"."""
    parts = [
        f"---\n{_front_matter(source, form)}\n---",
        *_head(source, form),
        "## Use",
        _use(source, form),
        *_measured(source),
        "## How it was made",
        "\n".join(_made(source, form)),
        "The command that makes it again:",
        f"```\n{reproduce(source)}\n```",
        *_own_code(source),
        f"Versions: {_versions(source)}.",
        "## What it was not tested on",
        "\n".join(_untested(source)),
        "## Licence",
        _licence_words(source),
    ]
    return scrub("\n\n".join(parts) + "\n", source)


def _front_matter(source: Source, form: str) -> str:
    method = "sft" if source.run.get("method") == "sft" else str(_algorithm(source).get("name", "grpo"))
    data = ModelCardData(
        base_model=source.hub_name,
        license=licence_of(source.base_name, source.base),
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["fovea", method, *(["lora"] if form != "full" else []), "vision-language"],
    )
    return data.to_yaml()


def _head(source: Source, form: str) -> Iterator[str]:
    run, base = source.run, public_name(source.base_name)
    yield f"# {base}, trained on {_problems(source)}"
    how = "supervised fine-tuning" if run.get("method") == "sft" else "reinforcement learning"
    what = {
        "full": "All weights are in this folder.",
        "merged": "It was trained with LoRA; the adapter is merged into the weights in this folder.",
        "adapter": f"This folder holds a LoRA adapter; it needs the base model {base}.",
    }[form]
    yield f"`{base}` after {source.step} steps of {how} with Fovea. {what}"


def _use(source: Source, form: str) -> str:
    load = 'AutoModelForImageTextToText.from_pretrained("THIS_FOLDER")'
    lines = ["```python", "from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    if form == "adapter":
        lines[2:] = ["from peft import PeftModel", ""]
        base = source.hub_name or "BASE_MODEL_FOLDER"
        load = (
            f'PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("{base}"), "THIS_FOLDER")'
        )
    lines += [f"model = {load}", 'processor = AutoProcessor.from_pretrained("THIS_FOLDER")', "```"]
    instruction = (source.record["run"] or {}).get("instruction")
    if instruction:
        text = " ".join(str(instruction).split()).replace("`", "'")
        how = "was put into this text" if "{question}" in text else "was followed by a line of its own"
        lines += ["", f"Every question {how}: `{text}`"]
    return "\n".join(lines)


# --- what was measured -----------------------------------------------------------------------------------------


def _measured(source: Source) -> Iterator[str]:
    records = source.record["evaluations"]
    before = next((line for line in records if line.get("phase") == "before"), None)
    own = [line for line in records if line.get("step") == source.step and line.get("phase") != "before"]
    after = next((line for line in own if line.get("phase") == "after"), own[-1] if own else None)
    yield "## What was measured"
    if after is None:
        yield f"Nothing was measured at step {source.step}, whose weights these are."
        if before is None:
            return
    elif before is not None and before.get("split") != after.get("split"):
        yield (
            f"The two columns are of different problems: before training {_where(before)}; these weights "
            f"{_where(after)}, on which this checkpoint may have been chosen."
        )
    else:
        yield f"Greedy replies to held-out problems: {_where(after)}."
    yield "\n".join(_table(before, after))
    chance = (after or before or {}).get("chance")
    guess = (
        ""
        if chance is None
        else f" The best guesser that does not look is right in {chance:.3g} of the cases."
    )
    yield (
        "Means, and in brackets their 95 % intervals over problems. `looking` is accuracy minus the accuracy of the "
        f"same questions with another problem's pictures: near 0 the model does not use the picture.{guess}"
    )


def _where(record: dict[str, Any]) -> str:
    return f"`{record.get('task')}`, {record.get('split')}, n = {record.get('n')}"


def _table(before: dict[str, Any] | None, after: dict[str, Any] | None) -> Iterator[str]:
    sides = [{label: value for label, _, value in measures_of(side or {})} for side in (before, after)]
    meanings = {label: meaning for side in (before, after) for label, meaning, _ in measures_of(side or {})}
    yield "| | before | after | |"
    yield "|---|---|---|---|"
    for label, meaning in meanings.items():
        words = (label, _cell(sides[0].get(label)), _cell(sides[1].get(label)), meaning)
        yield "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def _cell(summary: Any) -> str:
    return "not measured" if summary is None else interval(summary)


def _untested(source: Source) -> Iterator[str]:
    run = source.run
    yield (
        f"- Anything but {_problems(source)}: other questions, other kinds of pictures, other languages, video, "
        "several turns. Abilities that the base model had may have become worse; nothing here measured them."
    )
    yield f"- Other training seeds: this is one run (seed {run.get('seed', 0)}). The intervals do not cover that."
    longest = (run.get("sampling") or {}).get("max_new_tokens", "?")
    yield (
        f"- Other precisions than {source.dtype}, quantisation, replies drawn in another way or longer than {longest} "
        "tokens."
    )
    yield "- Safety, bias, and use where a wrong answer does harm."


# --- how it was made -------------------------------------------------------------------------------------------


def _made(source: Source, form: str) -> Iterator[str]:
    run = source.run
    yield f"- base: `{public_name(source.base_name)}`; recipe: `{_recipe(run)}`; problems: {_problems(source)}"
    optimizer = run.get("optimizer") or {}
    if run.get("method") == "sft":
        yield f"- method: supervised fine-tuning on the teachers' replies, {run.get('prompts')} a step"
    else:
        rewards = (source.record["run"] or {}).get("rewards") or run.get("rewards") or {}
        weights = ", ".join(f"{name} × {weight:g}" for name, weight in rewards.items())
        yield (
            f"- method: {_algorithm(source).get('name')}, {run.get('prompts')} problems × {run.get('group')} replies "
            f"a step, temperature {(run.get('sampling') or {}).get('temperature')}; rewards: {weights}"
        )
    yield (
        f"- optimizer: {optimizer.get('name', 'adamw')}, learning rate {optimizer.get('learning_rate')}, "
        f"{source.step} of {run.get('steps')} steps, seed {run.get('seed')}, {source.dtype}"
    )
    if form != "full":
        tuned = run.get("finetune") or {}
        if tuned.get("mode", "full") == "full":  # the run went on with an adapter and took its settings
            tuned = section_of(source.model)[1].model_dump()
        targets = ", ".join(f"`{target}`" for target in tuned.get("targets") or ())
        yield f"- LoRA: rank {tuned.get('rank')}, alpha {tuned.get('alpha')}, on {targets}"
        if tuned.get("mode") == "qlora":
            yield (
                "- the base was held in 4 bits while training; here it is as it was published, so replies may differ "
                "slightly from those in training"
            )
    if run.get("freeze"):
        yield f"- frozen: {', '.join(run['freeze'])}"
    result = source.record["result"] or {}
    if result.get("train_seconds") is not None and result.get("steps") == source.step:
        yield f"- training took {result['train_seconds']:.0f} seconds, evaluations aside"


def _algorithm(source: Source) -> dict[str, Any]:
    return source.run.get("algorithm") or {}


def _recipe(run: dict[str, Any]) -> str:
    return Path(str(run.get("recipe") or "none")).name


def _problems(source: Source) -> str:
    run = source.run
    return f"`{Path(str(run['data'])).name}`" if run.get("data") else f"`{run.get('task')}`"


def _versions(source: Source) -> str:
    found = (source.record["run"] or {}).get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def reproduce(source: Source) -> str:
    """The run's command without folders: `model=/home/me/qwen` becomes `model=qwen`, `run_dir` goes away."""
    words = shlex.split(str((source.record["run"] or {}).get("command") or "fovea train RECIPE"))
    shown = []
    for word in words:
        key, equals, value = word.partition("=")
        if key == "run_dir":
            continue
        if equals and _is_path(value):
            word = f"{key}={public_name(value)}"
        elif not equals and _is_path(word):
            word = Path(word).name
        shown.append(word)
    return shlex.join(shown)


def _own_code(source: Source) -> Iterator[str]:
    """A run of the Python API may have been given what no command can name."""
    run, rewards = source.run, (source.record["run"] or {}).get("rewards") or {}
    own = [f"reward `{name}`" for name in rewards if name not in REWARDS]
    if not run.get("data") and not run.get("mixture") and not is_known(str(run.get("task"))):
        own.insert(0, f"task `{run.get('task')}`")
    if own:
        yield f"It needs code of the author's, too, which is not in this folder: {', '.join(own)}."


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", "../", "./")) or re.match(r"[A-Za-z]:[\\/]", text) is not None


def scrub(text: str, source: Source) -> str:
    """The last word: folders that the run knew are taken out of whatever text they got into."""
    known = [str(source.run_folder.absolute()), str(Path.cwd()), str(Path.home())]
    known += [str(source.base.absolute())] if source.base is not None else []
    for key in ("model", "data", "validation_data", "images", "recipe", "run_dir"):
        value = str(source.run.get(key) or "")
        known += [value, str(Path(value).parent)] if Path(value).is_absolute() else []
    for path in sorted({path for path in known if len(path) > 3}, key=len, reverse=True):
        text = text.replace(path, Path(path).name)
    return text


def licence_of(base_name: str, base: Path | None) -> str | None:
    """The licence in the front matter of the base's own model card; None where that is not known."""
    if base_name == "fovea-tiny":
        return TINY_LICENCE
    try:
        card = (base / "README.md").read_text(encoding="utf-8", errors="replace") if base is not None else ""
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([\w.+-]+)['\"]?\s*$", front[1], re.MULTILINE) if front else None
    return found[1].lower() if found else None


def _licence_words(source: Source) -> str:
    licence, base = licence_of(source.base_name, source.base), public_name(source.base_name)
    if licence is None:
        return f"The licence of the base model `{base}` was not found; it holds for these weights, too: look it up."
    return f"The base model `{base}` is under `{licence}`, which holds for these weights, too."
