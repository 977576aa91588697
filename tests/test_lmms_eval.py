"""The task in docs/lmms_eval judges as `fovea evaluate` does; where lmms-eval is installed it is run, on 8 problems."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fovea.evaluation import truth_text
from fovea.models.adapter import speak
from fovea.models.policy import TINY
from fovea.tasks import open_task
from fovea.tasks.written import write_task

TASK = Path(__file__).parents[1] / "docs" / "lmms_eval"


@pytest.fixture
def utils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task's functions, in a folder with 8 problems, for the embedded model."""
    write_task(open_task("digits/locate", "test", 3), 8, tmp_path / "problems")
    monkeypatch.chdir(tmp_path / "problems")
    monkeypatch.setenv("FOVEA_MODEL", str(TINY))
    monkeypatch.delenv("FOVEA_INSTRUCTION", raising=False)
    spec = importlib.util.spec_from_file_location("fovea_lmms_utils", TASK / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_truth_is_right_in_the_frame_of_the_family(utils: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, problem in enumerate(open_task("digits/locate", "test", 3).take(0, 8)[0]):
        doc = {"fovea_place": place}
        assert utils.question(doc) == problem.question
        assert [picture.size for picture in utils.pictures(doc)] == [
            picture.size for picture in problem.images
        ]
        said = f"<answer>{truth_text(speak(problem, 'thousandths', [(64, 64)]))}</answer>"
        judged = utils.judge(doc, [said])
        assert judged == {"fovea_accuracy": 1.0, "fovea_iou": pytest.approx(1.0, abs=1e-3)}
        pixels = f"<answer>{truth_text(problem)}</answer>"  # read as thousandths, it is somewhere else
        assert utils.judge(doc, [pixels])["fovea_accuracy"] == 0.0
    monkeypatch.setenv("FOVEA_INSTRUCTION", "Be brief.")
    assert utils.question({"fovea_place": 0}).endswith("\nBe brief.")


def test_lmms_eval_finds_what_fovea_finds(utils: Any, tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval")
    import fovea

    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    template = (
        model / "chat_template.jinja"
    )  # lmms-eval's wrapper adds a system message that the model never saw
    text = template.read_text()
    loop = "{% for message in messages %}"
    assert loop in text
    template.write_text(text.replace(loop, "{% for message in messages if message.role != 'system' %}"))
    arguments = f"pretrained={model},device=cpu,device_map=cpu,min_pixels=1024,max_pixels=102400"
    command = [sys.executable, "-m", "lmms_eval", "--model", "qwen3_vl", "--model_args", arguments,
               "--tasks", "fovea_problems", "--include_path", str(TASK), "--batch_size", "1",
               "--gen_kwargs", "max_new_tokens=32", "--output_path", str(tmp_path / "out")]  # fmt: skip
    env = os.environ | {"FOVEA_MODEL": str(model), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=env, capture_output=True, timeout=600)
    (results,) = (tmp_path / "out").rglob("*_results.json")
    theirs = json.loads(results.read_text())["results"]["fovea_problems"]["fovea_accuracy,none"]
    (file,) = Path.cwd().glob("*.jsonl")
    ours = fovea.evaluate(
        TINY,
        data=str(file),
        instruction="",
        dtype="bfloat16",
        sampling={"max_new_tokens": 32},
        evaluation={"n": "all"},
    )
    assert theirs == ours["accuracy"]["mean"]
