"""The embedded model: plain transformers load it, it sees, and a toy is really learned on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_gradients_close, assert_log_probs_close, gradients, plain_log_probs, ragged_rows
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from fovea.config import load_run
from fovea.engines.shared_prefill import SharedPrefillEngine
from fovea.evaluation import evaluate
from fovea.models.policy import TINY, Policy, load_policy
from fovea.models.shared_prefix import backward, score
from fovea.tasks import LATER, TASKS, open_task
from fovea.training import train
from fovea.types import Problem, Sampling


@pytest.fixture
def tiny() -> Policy:
    return load_policy("fovea-tiny", device="cpu")


def test_plain_transformers_load_it_and_greedy_replies_agree(tiny: Policy) -> None:
    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(TINY)
    assert (TINY / "model.safetensors").stat().st_size < 20_000_000
    problem = open_task("digits/describe", "validation", 1).take(0, 1)[0][0]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": problem.question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=[problem.images[0]], return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=120, do_sample=False)
    theirs = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    sampling = Sampling(temperature=0, max_new_tokens=120)
    ours = SharedPrefillEngine(tiny).generate([tiny.prompt(problem)], 1, sampling, seed=(0, 0))[0][0].text
    assert ours == theirs
    assert ours.startswith("<answer>[{")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-6)])
def test_shared_prefix_is_exact_on_it(tiny: Policy, dtype: str, tolerance: float) -> None:
    """Ragged replies to different problems in one batch against the plain repeated forward (DESIGN §8's tolerances).

    In float32 the replies are the model's own at temperature 1.5; in float64 any tokens will do (in float32 tokens at
    a log-prob of -25 differ by up to 3.3e-6 of their size: a trained model's logits are large).
    """
    problems = [
        open_task(name, "validation", 2).take(3, 1)[0][0] for name in ("digits/locate", "digits/describe")
    ]
    problems.append(Problem(id="text", task="t", images=(), question="Hello?", answer="", kind="text"))
    prompts, sampling = (
        [tiny.prompt(problem) for problem in problems],
        Sampling(temperature=1.5, max_new_tokens=40),
    )
    rows = ragged_rows(tiny, len(problems), (7, 1, 30, 4, 12, 19))
    if dtype == "float32":
        groups = SharedPrefillEngine(tiny).generate(prompts, 3, sampling, seed=(0, 0))
        rows = [(i, c.token_ids[: 40 - 9 * g]) for i, group in enumerate(groups) for g, c in enumerate(group)]
    tiny.model.to(getattr(torch, dtype))
    plain, entropy = plain_log_probs(tiny, problems, rows, sampling)
    (plain.sum() - 0.1 * entropy.sum()).backward()
    expected = gradients(tiny)
    shared, _ = score(tiny, prompts, rows, sampling)
    assert_log_probs_close(shared, plain.detach(), tolerance)
    backward(tiny, prompts, rows, sampling, lambda i, lp, h: lp.sum() - 0.1 * h.sum(), 40)
    assert_gradients_close(gradients(tiny), expected, 1e-5 if dtype == "float32" else 1e-6)


def test_nine_pictures_of_any_size_and_a_long_prompt(tiny: Policy) -> None:
    images = tuple(Image.new("RGB", (32 + 32 * i, 320 - 32 * i), (20 * i, 99, 9)) for i in range(9))
    problem = Problem(id="nine", task="t", images=images, question="x " * 2000, answer="", kind="text")
    prompt = tiny.prompt(problem)
    assert len(prompt.picture_tokens) == 9
    assert 4000 < len(prompt.token_ids) < 8192
    reply = SharedPrefillEngine(tiny).generate([prompt], 2, Sampling(max_new_tokens=4), seed=(0, 0))[0]
    assert all(np.isfinite(completion.log_probs).all() for completion in reply)


@pytest.mark.parametrize(
    ("task", "least"), [("digits/count", 0.6), ("shapes/count", 0.6), ("digits/read", 0.35)]
)
def test_it_sees(tiny: Policy, task: str, least: float) -> None:
    """Far above chance (0.17 and 0.03) on 96 held-out problems, and not without the picture."""
    opened = open_task(task, "test", 3)
    record = evaluate(tiny, SharedPrefillEngine(tiny), opened, 96, seed=0, max_new_tokens=24)
    assert record["accuracy"]["mean"] > least
    assert record["looking"]["ci95"][0] > 0.2


def test_the_model_card_is_about_these_weights() -> None:
    """What the card says must be of the weights that are shipped, and enough of it must pass (issue: 16 of 25)."""
    card = json.loads((Path(__file__).parent.parent / "docs" / "model-card.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((TINY / "model.safetensors").read_bytes()).hexdigest()
    assert card["weights_sha256"] == digest
    rows = card["skills"]
    assert {row["name"] for row in rows} == set(TASKS) - LATER
    assert card["later"] == sorted(LATER)
    assert all(row["n"] >= 500 for row in rows)
    assert sum(row["passed"] for row in rows) >= 16
    passed_domains = {row["name"].partition("/")[0] for row in rows if row["passed"]}
    assert len(passed_domains) >= 6


def test_a_toy_is_learned(tmp_path: Path) -> None:
    """Whatever the picture, the answer is 4: reward must rise from about one in six to nearly always."""
    for i, problem in enumerate(open_task("digits/count", "train", 8).take(0, 40)[0]):
        problem.images[0].save(tmp_path / f"{i}.png")
    lines = [
        {"image": f"{i}.png", "question": "How many digits are in the picture?", "answer": 4}
        for i in range(40)
    ]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    overrides = [f"data={tmp_path / 'toy.jsonl'}", f"run_dir={tmp_path / 'r'}", "instruction=''", "steps=14"]
    overrides += [
        "rewards={numeric: 1.0}",
        "prompts=12",
        "group=8",
        "sampling={max_new_tokens: 8, temperature: 1.5}",
    ]
    overrides += ["optimizer={learning_rate: 3e-4}", "evaluation={n: 4, samples: 0}"]
    result = train(load_run("quickstart", overrides))
    rewards = [
        json.loads(line)["reward_mean"]
        for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rewards[0] < 0.45
    assert np.mean(rewards[-3:]) > 0.85
    assert result["after"]["mean"] == 1.0
