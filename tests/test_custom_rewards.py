"""Rewards as users write them: both signatures, names in recipes, columns, breakdowns, None, and what is refused."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fovea import rewards
from fovea.config import load_run
from fovea.rewards.calls import Batch, trl_arguments
from fovea.rewards.loading import code_of, form_of, style_of
from fovea.rewards.scorer import Job, Scorer, ScorerSettings, make_scorer, nan_sum, short_names
from fovea.tasks import open_data
from fovea.types import Problem, RunFailed, UserError

PROBLEM = Problem(
    id="t:0",
    task="t",
    images=(),
    question="Which?",
    answer="cat",
    kind="text",
    meta={"source_file": "a.jsonl"},
)
TEXTS = ("cat", "<answer>dog</answer>", "")

MODULE = """
import random

def brief(text, problem):
    return len(text) < 5

def broken_down(text, problem):
    return {"reward": 0.5, "length": len(text), "odd": None if not text else 1}

def batch(prompts, completions, completion_ids, answer, **kwargs):
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer)
    return [float(truth in completion) for completion, truth in zip(completions, answer)]

def chat(completions, **kwargs):
    return [1.0 if completion[0]["content"] == "cat" else None for completion in completions]

async def later(completions, trainer_state, log_metric, log_extra, **kwargs):
    import asyncio
    await asyncio.sleep(0)
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    log_extra("letters", [len(text) for text in completions])
    log_extra("words", completions)
    return [0.25 for _ in completions]

def strict(completions, nothing_has_this):
    return [0.0 for _ in completions]

def no_fit(a, b, c):
    return 0

class Stateful:
    def __call__(self, text, problem):
        return 1.0

instance = Stateful()
number = 3
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("user") / "my_rewards.py"
    path.write_text(MODULE, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def scorer(module: str) -> Iterator[Scorer]:
    names = ("brief", "broken_down", "batch", "chat", "later", "instance")
    weights = {f"{module}:{name}": 1.0 for name in names} | {"exact": 2.0}
    with make_scorer(weights, settings=ScorerSettings(steps=10, timeout=20)) as made:
        yield made


def test_every_way_to_write_a_reward(scorer: Scorer, module: str) -> None:
    scorer.check([PROBLEM])
    scores = scorer.weigh(TEXTS, PROBLEM, step=5, token_ids=[[1, 2], [3], [4]])
    wanted: dict[str, list[float]] = {
        "brief": [1, 0, 1],
        "broken_down": [0.5, 0.5, 0.5],
        "batch": [1, 0, 0],
        "chat": [1, math.nan, math.nan],
        "later": [0.25, 0.25, 0.25],
        "instance": [1, 1, 1],
        "exact": [1, 0, 0],
        "broken_down/length": [3, 20, 0],
        "broken_down/odd": [1, 1, math.nan],
        "later/letters": [3, 20, 0],
    }
    assert set(scores.parts) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(scores.parts[name], values, err_msg=name)
    # 1 + 0.5 + 1 + 1 + 0.25 + 1 + 2·1;   0.5 + 0.25 + 1;   1 + 0.5 + 0.25 + 1
    np.testing.assert_allclose(scores.rewards, [6.75, 1.75, 2.75])
    assert scores.metrics == {"progress": 0.5}
    assert scores.events == ()
    assert scorer.take_metrics() == {
        "reward_timeouts": 0,
        "reward_errors": 0,
        "reward_unscored": 0,
        "reward/progress": 0.5,
    }
    assert scorer.describe()[f"{module}:chat"]["form"] == "chat"
    assert scorer.describe()[f"{module}:batch"] | {"code": ""} == {"style": "trl", "form": "text", "code": ""}


def test_a_closure_is_a_reward() -> None:
    bound = 4
    with make_scorer({"short": 1.0}, {"short": lambda text, problem: float(len(text) < bound)}) as scorer:
        assert scorer.weigh(TEXTS, PROBLEM, step=0).rewards.tolist() == [1, 0, 1]


def made(source: str, **names: Any) -> Callable[..., Any]:
    """A function without a file."""
    exec(compile(source, "<made>", "exec"), names)
    return names["f"]  # type: ignore[no-any-return]


def test_the_code_of_a_function_in_memory_follows_all_that_it_says() -> None:
    sources = [
        "def f(t, p): return len(t) < 4",
        "def f(t, p): return len(t) < 5",
        "def f(t, p): return len(t) < True",
        "def f(t, p): return [x for x in t if x == 'a'] != []",
        "def f(t, p): return [x for x in t if x == 'b'] != []",
        "def f(t, p, k=1): return len(t) < k",
        "def f(t, p, k=2): return len(t) < k",
        "def f(t, p, *, k=2): return len(t) < k",
        "def g(n):\n def f(t, p): return len(t) < n\n return f\nf = g(4)",
        "def g(n):\n def f(t, p): return len(t) < n\n return f\nf = g(5)",
        "def g(n):\n def f(t, p): return len(t) < n()\n return f\nf = g(lambda: 5)",
        "def g(n):\n def f(t, p): return len(t) < n()\n return f\nf = g(lambda: 6)",
        "from functools import partial\ndef h(k, t, p): return len(t) < k\nf = partial(h, 1)",
        "from functools import partial\ndef h(k, t, p): return len(t) < k\nf = partial(h, 2)",
        "def f(t, p): return t in {'a', 'b', 'c'}",
    ]
    codes = [code_of(made(source)) for source in sources]
    assert len(set(codes)) == len(sources)
    assert [code_of(made(source)) for source in sources] == codes


def test_it_is_the_same_in_every_process() -> None:
    """Objects show no addresses, sets no order: a worker that was started again finds its journal."""
    script = (
        "from fovea.rewards.loading import code_of\n"
        "def g(*held):\n def f(t, p): return held\n return f\n"
        "print(code_of(g(object(), {'a', 'b', 'c'}, [1.5, {'x': None}], lambda t: t in {'x', 'y', 'z'})))"
    )
    said = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        said.add(done.stdout)
    assert len(said) == 1


def test_completions_that_nothing_scored_are_nan_and_counted() -> None:
    with make_scorer({"none": 1.0}, {"none": lambda text, problem: 1.0 if text else None}) as scorer:
        np.testing.assert_array_equal(scorer.weigh(TEXTS, PROBLEM, step=0).rewards, [1, 1, math.nan])
        assert scorer.take_metrics()["reward_unscored"] == 1
        assert scorer.take_metrics()["reward_unscored"] == 0


def test_nan_sum_against_a_sum_by_hand() -> None:
    part_KG = np.array([[1.0, math.nan, math.nan], [2.0, 3.0, math.nan], [7.0, 7.0, 7.0]])
    np.testing.assert_array_equal(nan_sum(np.array([0.5, 2.0, 0.0]), part_KG), [4.5, 6.0, math.nan])
    assert nan_sum(np.array([0.0]), np.array([[5.0, math.nan]])).tolist() == [0, 0]


def test_built_in_rewards_are_as_they_were_and_start_nothing() -> None:
    weights = {"exact": 1.0, "format": 0.1}
    with make_scorer(weights, audits=("iou_50", "completion_tokens")) as scorer:
        text = Problem(id="t:1", task="t", images=(), question="?", answer=[0, 0, 9, 9], kind="box")
        scorer.check([])
        with pytest.raises(UserError, match="needs a text"):
            scorer.check([text])
        assert scorer.weights == weights | {"iou_50": 0.0}
    with make_scorer(weights) as scorer:
        scores = scorer.weigh(TEXTS, PROBLEM, step=0)
        total_G, parts = rewards.weigh(TEXTS, PROBLEM, weights)
        assert (scores.rewards == total_G).all()
        assert {name: part.tolist() for name, part in scores.parts.items()} == {
            name: part.tolist() for name, part in parts.items()
        }
        assert scorer.take_metrics() == {}
    code = (
        "import sys; from fovea.rewards import make_scorer; from fovea.types import Problem\n"
        "p = Problem(id='t', task='t', images=(), question='', answer='a', kind='text')\n"
        "with make_scorer({'exact': 1.0}) as s: s.check([p]); s.weigh(['a'], p, step=0)\n"
        "print({'loky', 'cloudpickle', 'torch', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def one(text: str, problem: Problem) -> float:
    return 0.0


def defaulted(text: str, problem: Problem, scale: float = 1.0) -> float:
    return scale


def keywords(**kwargs: Any) -> list[float]:
    return []


def scaled(scale: float, completions: list[str], **kwargs: Any) -> list[float]:
    return [scale for _ in completions]


@pytest.mark.parametrize(
    ("function", "style"),
    [
        (one, "fovea"),
        (defaulted, "fovea"),
        (lambda *args: 0, "fovea"),
        (keywords, "trl"),
        (partial(scaled, 2.0), "trl"),
        (lambda completions, **kwargs: [], "trl"),
        (lambda prompts, completions: [], "trl"),
    ],
)
def test_the_signature_decides(function: Callable[..., Any], style: str) -> None:
    assert style_of(function) == style


@pytest.mark.parametrize("function", [lambda: 0, lambda text: 0, lambda a, b, c: 0])
def test_a_signature_that_fits_neither_form_is_named(function: Callable[..., Any]) -> None:
    with pytest.raises(LookupError, match="fit neither"):
        style_of(function)


def _read(completion: Any) -> str:
    return str(completion[0]["content"])


def _reads_itself(completions: Any, **kwargs: Any) -> list[float]:
    return [float(bool([message["content"] for message in completion])) for completion in completions]


def _through_a_helper(completions: Any, **kwargs: Any) -> list[float]:
    return [float(bool(_read(completion))) for completion in completions]


def test_the_form_of_completions_follows_the_code() -> None:
    assert form_of(_reads_itself) == form_of(_through_a_helper) == form_of(partial(_reads_itself)) == "chat"
    assert form_of(scaled) == "text"


def test_trl_columns() -> None:
    batch = Batch(texts=("a", "b"), token_ids=((1,), (2,)), problem=PROBLEM, step=0, steps=1, seed=0)
    given = trl_arguments(batch, "chat")
    assert given["prompts"] == [[{"role": "user", "content": "Which?"}]] * 2
    assert given["completions"][1] == [{"role": "assistant", "content": "b"}]
    assert given["completion_ids"] == [[1], [2]]
    assert given["solution"] == given["answer"] == ["cat", "cat"]
    assert given["source_file"] == ["a.jsonl"] * 2


def test_values_equal_trl(scorer: Scorer, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own code calls the same functions: the same values, NaN included."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", exc_type=ImportError)
    monkeypatch.setattr(trainer, "gather", lambda values: values)
    monkeypatch.setattr(trainer, "profiling_context", lambda *_: nullcontext())
    scope = runpy.run_path(module)
    names = ("batch", "chat")
    theirs = []
    for name, form in zip(names, ("text", "chat")):
        batch = Batch(texts=TEXTS, token_ids=((1,), (2,), (3,)), problem=PROBLEM, step=0, steps=1, seed=0)
        given = trl_arguments(batch, form)  # type: ignore[arg-type]
        own = SimpleNamespace(
            accelerator=SimpleNamespace(device="cpu"),
            reward_funcs=[scope[name], lambda completions, **_: [0.0 for _ in completions]],
            reward_processing_classes=[None, None],
            reward_func_names=[name, "nothing"],
            state=None,
            environments=None,
            _log_completion_extra=None,
            _log_metric=None,
        )
        rows = [{"prompt": "", "answer": "cat"} for _ in TEXTS]
        call = trainer.GRPOTrainer._calculate_rewards.__wrapped__
        values = call(own, rows, given["prompts"], given["completions"], given["completion_ids"])
        theirs.append(values[:, 0].numpy())
    ours = scorer.weigh(TEXTS, PROBLEM, step=1, token_ids=[[1], [2], [3]]).parts
    np.testing.assert_array_equal(np.stack([ours[name] for name in names]), np.stack(theirs))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strict", "needs nothing_has_this, which problems of t do not have"),
        ("no_fit", "fit neither"),
        ("number", "is a int, not a function"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_functions_that_cannot_be_used(module: str, name: str, message: str) -> None:
    with make_scorer({f"{module}:{name}": 1.0}) as scorer, pytest.raises(UserError, match=message):
        scorer.check([PROBLEM])


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import json\njson.loads('{')\n", encoding="utf-8")
    with (
        make_scorer({f"{tmp_path}/bad.py:f": 1.0}) as scorer,
        pytest.raises(UserError, match=r"cannot be used: JSONDecodeError.*\(bad.py:2\)"),
    ):
        scorer.check([PROBLEM])
    with pytest.raises(UserError, match=r"nowhere.py does not exist"):
        make_scorer({"nowhere.py:f": 1.0})
    with (
        make_scorer({"no_such_package.module:f": 1.0}) as scorer,
        pytest.raises(UserError, match="ModuleNotFoundError"),
    ):
        scorer.check([PROBLEM])
    with pytest.raises(UserError, match=r"no reward 'iuo' \(did you mean 'iou'\?\)"):
        make_scorer({"iuo": 1.0})
    with pytest.raises(UserError, match="built-in reward"):
        make_scorer({"iou": 1.0}, {"iou": one})
    lock = threading.Lock()
    with pytest.raises(UserError, match="cannot be sent to its worker"):
        make_scorer({"own": 1.0}, {"own": lambda text, problem: lock.locked()})


def test_a_broken_reward_stops_the_run_by_default() -> None:
    with (
        make_scorer({"inverse": 1.0}, {"inverse": lambda text, problem: 1 / len(text)}) as scorer,
        pytest.raises(RunFailed, match=r"raised ZeroDivisionError.*completion 2 of problem t:0 in step 7"),
    ):
        scorer.weigh(TEXTS, PROBLEM, step=7)


def test_recipes_name_functions(module: str) -> None:
    run = load_run("quickstart", [f"rewards.{module}:brief=0.5", "reward_timeout=2", "audits=iou"])
    assert run.rewards[f"{module}:brief"] == 0.5
    assert run.reward_timeout == 2
    assert run.audits == ("iou",)
    assert rewards.is_reference("package.module:name")
    assert not any(map(rewards.is_reference, ("iou", "a b:c", "x.py:", ":f", "a.py:b c")))


def test_short_names() -> None:
    assert short_names(["a.py:f", "b.py:g", "iou"]) == {"a.py:f": "f", "b.py:g": "g", "iou": "iou"}
    assert short_names(["a.py:f", "b.py:f", "c.py:iou"]) == {x: x for x in ("a.py:f", "b.py:f", "c.py:iou")}


def test_groups_of_a_step_in_order() -> None:
    problems = [
        Problem(id=f"t:{i}", task="t", images=(), question="", answer="", kind="text") for i in range(5)
    ]
    with make_scorer({"which": 1.0}, {"which": lambda text, problem: int(problem.id[2:])}) as scorer:
        found = scorer.weigh_all([Job(texts=("x",), problem=problem) for problem in problems], step=0)
    assert [scores.rewards[0] for scores in found] == [0, 1, 2, 3, 4]


def test_columns_of_a_data_file(tmp_path: Path) -> None:
    line = {"question": "2 x 3?", "answer": 6, "meta": {"solution": "2*3", "level": 2}}
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (problem,), _ = open_data(str(tmp_path / "own.jsonl")).take(0, 1)
    batch = Batch(texts=("6",), token_ids=((),), problem=problem, step=0, steps=0, seed=0)
    given = trl_arguments(batch, "text")
    assert (given["solution"], given["level"], given["answer"]) == (["2*3"], [2], [6])
