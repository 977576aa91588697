"""Exported runs, full and LoRA, are loaded by plain transformers and peft where fovea cannot be imported."""

from __future__ import annotations

import errno
import json
import os
import shutil
import site
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loud_policy, picture
from safetensors.torch import load_file

from fovea.cli import main
from fovea.config import load_run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.export import export, find_source
from fovea.export.readme import readme, reproduce
from fovea.export.source import public_name
from fovea.models.policy import Policy, load_policy
from fovea.training import train
from fovea.types import Problem, Sampling, UserError

QUESTION, TOKENS = "Where is the digit?", 12
EXTRA = {
    "video_preprocessor_config.json": b'{ "of": "the source" }\n',
    "merges.txt": "#version: 0.2\nĠ t\n".encode(),
    "LICENSE": b"Do as you like.\r\n",
    "README.md": b"---\nlicense: MIT\nlanguage: en\n---\n# Base\n",
    "notes.py": b"print('not carried')\n",
}

# What a user without fovea does. Arguments: bans as JSON, then name, folder, base ("" if none), ... in threes.
PLAIN = """
import importlib.util, json, sys
sys.path[:0] = json.loads(sys.argv[1])
assert importlib.util.find_spec("fovea") is None, "fovea can be imported"
import numpy, torch, warnings
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
warnings.filterwarnings("ignore")
out, picture, question, bans = sys.argv[2], Image.open(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5])
tokens, found = int(sys.argv[6]), {}
for name, folder, base in zip(sys.argv[7::3], sys.argv[8::3], sys.argv[9::3]):
    model, report = AutoModelForImageTextToText.from_pretrained(
        base or folder, dtype="auto", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    if base:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, folder)
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True,
        add_generation_prompt=True, return_dict=True, return_tensors="pt")
    inputs = inputs.to(model.dtype) if model.dtype != torch.float32 else inputs
    with torch.no_grad():
        done = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, suppress_tokens=bans,
            output_logits=True, return_dict_in_generate=True)
    prompt = inputs["input_ids"].shape[1]
    found[name + "_prompt"] = inputs["input_ids"][0].numpy()
    found[name + "_tokens"] = done.sequences[0, prompt:].numpy()
    found[name + "_logits"] = torch.stack(done.logits)[:, 0].float().numpy()
    found[name + "_dtype"] = numpy.array(str(model.dtype))
numpy.savez(out, **found)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """A base model that is not fovea's, and two runs of it."""

    base: Path
    full: Path
    lora: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two real runs of two steps; the learning rate is high, so that the weights really differ."""
    root = tmp_path_factory.mktemp("export")
    base = root / "base-model"
    loud_policy("qwen2_5_vl", text_layers=2, vision_layers=2).save(base)
    for name, data in EXTRA.items():
        (base / name).write_bytes(data)
    for name, more in (("full", []), ("lora", ["finetune.mode=lora", "finetune.rank=4"])):
        train(_short(base, root / name, *more))
    return Runs(base=base, full=root / "full", lora=root / "lora")


def _short(base: Path, folder: Path, *more: str) -> Any:
    always = ["steps=2", "prompts=2", "group=4", "sampling.max_new_tokens=6", "save_every=1", "show_every=0"]
    always += ["evaluation.n=4", "evaluation.during=2", "evaluation.every=1", "evaluation.samples=0"]
    # the random model is never right: a reward that any reply of another length changes
    always += ["optimizer.learning_rate=0.003", "optimizer.warmup_steps=0", "method=sft", "seed=3"]
    return load_run("quickstart", [f"model={base}", f"run_dir={folder}", *always, *more])


def replies(policy: Policy) -> dict[str, np.ndarray]:
    """Fovea's greedy reply to the question: prompt, tokens, log-probs of the same positions."""
    problem = Problem(
        id="q", task="t", images=(picture(84, 56, 5),), question=QUESTION, answer="1", kind="text"
    )
    prompt = policy.prompt(problem)
    sampling = Sampling(temperature=0.0, max_new_tokens=TOKENS)
    reply = SharedPrefillEngine(policy).generate([prompt], 1, sampling, seed=(0, 0))[0][0]
    return {"prompt": prompt.token_ids.numpy(), "tokens": reply.token_ids, "log_probs": reply.log_probs}


def plain_replies(tmp_path: Path, policy: Policy, *exports: tuple[str, Path, Path | str]) -> dict[str, Any]:
    """The same by plain transformers, in one process that cannot import fovea."""
    script, out, drawn = tmp_path / "plain.py", tmp_path / "plain.npz", tmp_path / "picture.png"
    script.write_text(PLAIN)
    picture(84, 56, 5).save(drawn)
    words = [json.dumps(site.getsitepackages()), str(out), str(drawn), QUESTION]
    words += [json.dumps(policy.bans(Sampling())), str(TOKENS)]
    words += [str(word) for one in exports for word in one]
    # -I: no PYTHONPATH and no current folder; -S: no .pth files, by which fovea is installed for development
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), *words],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(out))


def assert_same(ours: dict[str, np.ndarray], plain: dict[str, Any], name: str, bans: tuple[int, ...]) -> None:
    assert plain[f"{name}_prompt"].tolist() == ours["prompt"].tolist()
    assert plain[f"{name}_tokens"].tolist() == ours["tokens"].tolist()
    logits = torch.from_numpy(plain[f"{name}_logits"].copy())
    logits[:, list(bans)] = -torch.inf
    taken = logits.log_softmax(-1).gather(-1, torch.from_numpy(ours["tokens"])[:, None])[:, 0].numpy()
    assert np.abs(taken - ours["log_probs"]).max() < 1e-5


def test_plain_transformers_replies_as_fovea_does(runs: Runs, tmp_path: Path) -> None:
    full = export(runs.full, tmp_path / "full")
    merged = export(runs.lora, tmp_path / "merged")
    adapter = export(runs.lora, tmp_path / "adapter", adapter=True)
    assert (full.form, merged.form, adapter.form) == ("full", "merged", "adapter")
    policies = {
        "base": load_policy(str(runs.base), device="cpu"),
        "full": load_policy(str(find_source(runs.full).model), device="cpu"),
        "lora": load_policy(str(find_source(runs.lora).model), device="cpu"),
    }
    ours = {name: replies(policy) for name, policy in policies.items()}
    plain = plain_replies(
        tmp_path,
        policies["full"],
        ("full", full.folder, ""),
        ("merged", merged.folder, ""),
        ("adapter", adapter.folder, runs.base),
    )
    bans = policies["full"].bans(Sampling())
    assert_same(ours["full"], plain, "full", bans)
    assert_same(ours["lora"], plain, "adapter", bans)
    assert_same(ours["lora"], plain, "merged", bans)
    gap = np.abs(plain["merged_logits"] - plain["adapter_logits"]).max()
    assert gap < 1e-5 * max(1.0, np.abs(plain["merged_logits"]).max())
    # otherwise equality would prove nothing
    for name in ("full", "lora"):
        same = ours[name]["tokens"].tolist() == ours["base"]["tokens"].tolist()
        assert not same or np.abs(ours[name]["log_probs"] - ours["base"]["log_probs"]).max() > 1e-3


def test_names_of_tensors_are_those_of_the_base(runs: Runs, tmp_path: Path) -> None:
    before = load_file(runs.base / "model.safetensors")
    for run in (runs.full, runs.lora):
        after = load_file(export(run, tmp_path / run.name).folder / "model.safetensors")
        assert {name: (t.shape, t.dtype) for name, t in after.items()} == {
            name: (t.shape, t.dtype) for name, t in before.items()
        }
        assert any(not torch.equal(after[name], before[name]) for name in before)


def test_files_of_the_base_are_carried_byte_for_byte(runs: Runs, tmp_path: Path) -> None:
    for i, (run, adapter) in enumerate([(runs.full, False), (runs.lora, False), (runs.lora, True)]):
        done = export(run, tmp_path / str(i), adapter=adapter)
        assert done.carried == ("LICENSE", "merges.txt", "video_preprocessor_config.json")
        for name in done.carried:
            assert (done.folder / name).read_bytes() == EXTRA[name]
        assert {"tokenizer.json", "processor_config.json", "chat_template.jinja", "README.md"} <= set(
            done.files
        )
        assert "notes.py" not in done.files
        weights = {name for name in done.files if name.endswith(".safetensors")}
        assert weights == {"adapter_model.safetensors" if adapter else "model.safetensors"}
        if not adapter:
            assert {"config.json", "generation_config.json"} <= set(done.files)


def test_no_folder_of_this_machine_is_told(runs: Runs, tmp_path: Path) -> None:
    here = str(runs.base.parent)
    for i, (run, adapter) in enumerate([(runs.full, False), (runs.lora, False), (runs.lora, True)]):
        done = export(run, tmp_path / str(i), adapter=adapter)
        for name in done.files:
            if not name.endswith(".safetensors"):
                text = (done.folder / name).read_text(encoding="utf-8")
                assert here not in text, name
                assert str(Path.home()) not in text, name
    config = json.loads((tmp_path / "2" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base-model"


def test_the_card_says_what_was_done_and_measured(runs: Runs, tmp_path: Path) -> None:
    text = (export(runs.lora, tmp_path / "a").folder / "README.md").read_text()
    for part in (
        "license: mit",
        "- lora",
        "base-model",
        "digits/locate",
        "| accuracy | 0",
        "looking",
        "rank 4",
        "n = 4",
    ):
        assert part in text, part
    command = reproduce(find_source(runs.lora))
    assert command.startswith("fovea train quickstart ")
    assert "model=base-model" in command
    assert "finetune.mode=lora" in command
    assert "run_dir" not in command
    # an earlier checkpoint is not sold with the figures of the last one
    early = readme(find_source(runs.full, step=1), "full")
    assert "validation" in early
    assert "may have been chosen" in early
    assert "after 1 steps" in early
    assert "code of the author's" not in early


def test_the_card_says_what_the_command_lacks(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.full, run)
    description = json.loads((run / "run.json").read_text())
    description["run"] |= {"task": "mine", "data": None}
    description["rewards"] = {"iou": 1.0, "short": 0.5}
    (run / "run.json").write_text(json.dumps(description))
    assert "author's, too, which is not in this folder: task `mine`, reward `short`." in readme(
        find_source(run), "full"
    )


def test_a_checkpoint_can_be_named(runs: Runs, tmp_path: Path) -> None:
    assert find_source(runs.full).step == 2
    assert find_source(runs.full, step=1).step == 1
    assert find_source(runs.full / "checkpoints" / "step_1").step == 1
    assert find_source(runs.full / "checkpoints" / "step_1" / "model").step == 1
    assert find_source(runs.full, best=True).step == 1  # the earliest of equals
    with pytest.raises(UserError, match=r"no checkpoint of step 7; it has 1, 2\."):
        find_source(runs.full, step=7)
    with pytest.raises(UserError, match="leave one away"):
        find_source(runs.full, step=1, best=True)
    with pytest.raises(UserError, match="one checkpoint already"):
        find_source(runs.full / "checkpoints" / "step_1", best=True)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="neither a run folder"):
        export(tmp_path, out)
    with pytest.raises(UserError, match="plain model folder already"):
        export(runs.base, out)
    with pytest.raises(UserError, match="no adapter; leave --adapter away"):
        export(runs.full, out, adapter=True)
    with pytest.raises(UserError, match="not on this machine"):
        export(runs.lora, out, base="some/where")
    changed = tmp_path / "changed"
    shutil.copytree(runs.full, changed)
    (changed / "checkpoints" / "step_2" / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="missing or was changed"):
        export(changed, out, step=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        export(runs.full, tmp_path / "file")
    with pytest.raises(UserError, match="is not empty"):
        export(runs.full, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed", "file"]
    assert export(changed, out).step == 1  # the newest that is whole
    shutil.rmtree(out)
    out.mkdir()
    assert export(runs.full, out).folder == out  # an empty folder is as good as none


def test_a_full_disk_leaves_nothing(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []

    def copyfile(source: Path, target: Path) -> None:
        copies.append(target)
        if len(copies) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr("fovea.export.folder.shutil.copyfile", copyfile)
    with pytest.raises(UserError, match=r"cannot be written to .*No space left.*make room"):
        export(runs.full, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_went_on_with_an_adapter_names_the_model_below_it(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.lora, run)
    description = json.loads((run / "run.json").read_text())
    description["run"]["model"] = str(find_source(runs.lora, step=1).model)
    (run / "run.json").write_text(json.dumps(description))
    assert find_source(run).base_name == str(runs.base)


def test_a_moved_base_can_be_named(runs: Runs, tmp_path: Path) -> None:
    moved, run = tmp_path / "elsewhere", tmp_path / "run"
    shutil.copytree(runs.base, moved)
    shutil.copytree(runs.lora, run)
    description = json.loads((run / "run.json").read_text())
    description["run"]["model"] = "/gone/base-model"
    (run / "run.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="--base FOLDER"):
        export(run, tmp_path / "a")
    assert export(run, tmp_path / "b", adapter=True).base == "base-model"
    assert export(run, tmp_path / "c", base=str(moved)).form == "merged"


def test_capped_pictures_are_not_uncapped_by_an_older_file(runs: Runs, tmp_path: Path) -> None:
    run, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(runs.full, run)
    shutil.copytree(runs.base, base)
    (base / "preprocessor_config.json").write_text('{"size": {"longest_edge": 99999999}}')
    assert export(run, tmp_path / "a", base=str(base)).carried[-2] == "preprocessor_config.json"
    description = json.loads((run / "run.json").read_text())
    description["run"]["max_pixels"] = 100352
    (run / "run.json").write_text(json.dumps(description))
    done = export(run, tmp_path / "b", base=str(base))
    assert "preprocessor_config.json" not in done.carried
    inner = json.loads((done.folder / "processor_config.json").read_text())["image_processor"]
    assert json.loads((done.folder / "preprocessor_config.json").read_text()) == inner


def test_the_command(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(runs.lora), str(tmp_path / "a"), "--adapter", "--step", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["form"] == "adapter"
    assert record["step"] == 1
    assert main(["export", str(runs.full), str(tmp_path / "b")]) == 0
    assert "the model after 2 steps" in capsys.readouterr().out
    assert main(["export", str(runs.full), str(tmp_path / "b")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("fovea-tiny", "fovea-tiny"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("/data/models/qwen", "qwen"),
        ("/home/me/runs/a/checkpoints/step_9/model", "a/step_9"),
        ("../models/mine/", "mine"),
    ],
)
def test_public_names(name: str, shown: str) -> None:
    assert public_name(name) == shown


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_after_reinforcement_learning(dtype: str, tmp_path: Path) -> None:
    """The real thing: fovea-tiny, RL, full and LoRA on all parts, loaded without fovea."""
    exports: list[tuple[str, Path, Path | str]] = []
    policies: dict[str, Policy] = {}
    for name, more in {
        "full": [],
        "lora": [
            "finetune.mode=lora",
            "finetune.targets=[text,vision,projector]",
            "optimizer.learning_rate=1e-3",
        ],
    }.items():
        changes = ["steps=3", "prompts=4", "evaluation.n=8", "evaluation.samples=0", f"dtype={dtype}"]
        train(load_run("quickstart", [*changes, f"run_dir={tmp_path / name}", *more]))
        exports.append((name, export(tmp_path / name, tmp_path / f"out-{name}").folder, ""))
        policies[name] = load_policy(str(find_source(tmp_path / name).model), device="cpu", dtype=dtype)
    plain = plain_replies(tmp_path, policies["full"], *exports)
    for name, policy in policies.items():
        ours = replies(policy)
        assert str(plain[f"{name}_dtype"]) == f"torch.{dtype}"
        assert plain[f"{name}_tokens"].tolist() == ours["tokens"].tolist()
        if dtype == "float32":
            assert_same(ours, plain, name, policy.bans(Sampling()))


def test_one_command_from_vlm_r1s_file_to_an_exported_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fovea train … data= images= --export` (README): trained, measured before and after, and loaded again."""
    assert (
        main(
            [
                "tasks",
                "write",
                "digits/locate",
                "--n",
                "20",
                "--schema",
                "vlm_r1",
                "--out",
                str(tmp_path / "d"),
            ]
        )
        == 0
    )
    words = [
        "train", "quickstart", f"data={tmp_path}/d/digits-locate.jsonl", f"images={tmp_path}/d", "steps=1",
        "prompts=2", "group=2", "evaluation.samples=0", f"run_dir={tmp_path}/run", "threads=1",
    ]  # fmt: skip
    out = tmp_path / "model"
    assert main([*words, "--export", str(out), "--quiet"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["n"] == 2  # every tenth of 20
    assert load_policy(str(out)).model.config.model_type == "qwen3_vl"
    capsys.readouterr()
    assert (
        main([*words[:-2], f"run_dir={tmp_path}/other", "--export", str(out)]) == 2
    )  # before anything is trained
    assert f"The folder {out} is not empty; give a new folder." in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
