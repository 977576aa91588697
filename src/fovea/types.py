"""The words of the project as data: what a problem, a completion, a group and a sample are.

Light on purpose: no torch here, so that tasks, rewards and the viewer can be used without it.
Everything is frozen, keyword-only and slotted; nothing here computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image


class UserError(ValueError):
    """The user's input is wrong. The message is one sentence: what, where, and the fix.

    The command line prints it on standard error and exits with 2; no stack trace.
    """


class RunFailed(RuntimeError):
    """A run went wrong although its input was right (non-finite loss, lost worker). Exit code 1."""


# How a box's four numbers are to be read. A data set declares one, a model family has a native one.
#   pixels       of the original picture
#   resized      pixels of the picture as the processor resized it (Qwen2.5-VL)
#   thousandths  0 to 1000 of width and height (Qwen3-VL)
#   unit         0 to 1 of width and height
BoxFrame = Literal["pixels", "resized", "thousandths", "unit"]

AnswerKind = Literal["box", "text", "number", "choice", "objects", "math", "order", "set"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Pictures, a question, and what is needed to check an answer. A pure function of (seed, i, difficulty).

    Example: Problem(id="digits/locate:train:0:7", task="digits/locate", images=(picture,),
    question="Where is the digit 3?", answer=(12, 8, 30, 31), kind="box")
    """

    id: str
    """Unique within the task; enough to make the problem again (`task:split:seed:i`) or the data file's line."""
    task: str
    """Name of the task it came from, e.g. "digits/locate"."""
    images: Sequence[Image.Image]
    """RGB pictures in the order in which the prompt shows them (before the question). May be empty. Those of a
    file are decoded each time they are taken (`fovea.tasks.pictures`): take sizes from `picture_sizes`, and copy
    before drawing."""
    question: str
    """What is asked, without the chat template and without image placeholders."""
    answer: Any
    """The truth, plain JSON: a box (x1, y1, x2, y2) in *pixels of the original picture*, a number, a
    string, for "objects" a list of {"bbox_2d": box, "label": text}, for "math" LaTeX or plain mathematics as text,
    for "order" a list of whole numbers, for "set" a list of names."""
    kind: AnswerKind
    """How the truth is compared: which rewards apply and what `accuracy` means."""
    frame: BoxFrame = "pixels"
    """The frame in which `answer` and the model's reply are written. Tasks give "pixels"; `Prompt.problem`
    holds the same problem in the frame that the model family speaks."""
    difficulty: float = 0.0
    """0 easiest to 1 hardest, as the task defines it."""
    target: str | None = None
    """The reply a teacher would give (for SFT), in the text form of `frame`; None where the task has none."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Anything the task wants to keep (never shown to the model). `meta["source"]`: file and line."""
    earlier: tuple[Earlier, ...] = ()
    """The turns before this one that the prompt holds, in order: what was asked then, and the reply's tokens as they
    were sampled (or a text, of a demonstration). Empty for a question of one turn."""


Earlier = tuple[Problem, np.ndarray | str]
"""A turn that is part of a later prompt: (its problem, int64 [T] or text)."""


def picture_sizes(problem: Problem) -> tuple[tuple[int, int], ...]:
    """(width, height) of each picture in pixels, without decoding pictures that are not decoded yet."""
    sizes = getattr(problem.images, "sizes", None)
    return tuple(image.size for image in problem.images) if sizes is None else tuple(sizes)


def occurrences(problems: Iterable[str]) -> list[int]:
    """How often each id was there before it: a small data set has a problem twice in a step.

    Example: occurrences(["a", "b", "a"]) == [0, 0, 1]
    """
    seen: Counter[str] = Counter()
    found = []
    for problem in problems:
        found.append(seen[problem])
        seen[problem] += 1
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """The distribution that every log-prob in the project is a log-prob of.

    Example: Sampling(temperature=1.0, max_new_tokens=64)
    """

    temperature: float = 1.0
    """Divides the logits; 0 means greedy (log-probs are then those of temperature 1)."""
    max_new_tokens: int = 64
    """A completion that reaches it without an end token stops with `stop == "length"`."""
    bans: tuple[int, ...] = ()
    """Token ids that can never be sampled (logit -inf), besides the family's media tokens, always banned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One reply. `token_ids` includes the end token if one was sampled.

    Example: Completion(token_ids=np.array([5, 9, 2]), log_probs=np.array([-.1, -.2, -.01]),
    text="<answer>3</answer>", stop="eos")
    """

    token_ids: np.ndarray
    """int64 [T], T >= 1."""
    log_probs: np.ndarray
    """float32 [T], of the `Sampling` distribution."""
    text: str
    """Decoded without the end token. Hostile text: never eval'd, always escaped when rendered."""
    stop: Literal["eos", "length"]
    """Why it stopped."""
    variant: str = "clean"
    """Under which prompt variant it was sampled (an intervention may show another picture)."""
    policy_version: int = 0
    """How many updates the sampling weights had seen."""
    entropies: np.ndarray | None = None
    """float32 [T], of the `Sampling` distribution over the whole vocabulary at every token, in nats; None where the
    engine was not asked or cannot say."""
    values: np.ndarray | None = None
    """float32 [T], what the critic expects before each token (the first: after the prompt); None without a critic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """G completions of one problem and their rewards by part."""

    problem: Problem
    """In the frame of the model (see `Prompt.problem`)."""
    prompt: Any
    """The `fovea.models.Prompt` (token ids, positions, pixels). Any, because this floor has no torch."""
    completions: tuple[Completion, ...]
    rewards: np.ndarray
    """float64 [G], the weighted sum."""
    parts: dict[str, np.ndarray]
    """Reward name -> float64 [G], before weighting."""
    variants: Mapping[str, Any] = field(default_factory=dict)
    """Prompts of the other phases, by `Completion.variant`; "clean" is `prompt`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What the update needs of one completion."""

    sampled_prompt: Any
    """Prompt it was sampled under."""
    trained_prompt: Any
    """Prompt it is trained under; differs only under an intervention. Samples with the identical object share it."""
    token_ids: np.ndarray
    """int64 [T]."""
    old_log_probs: np.ndarray
    """float32 [T], of the sampling policy."""
    weights: np.ndarray
    """float32 [T], the loss weight of every token: mask over the algorithm's denominator."""
    advantage: np.ndarray
    """float32 [T], per-token advantage (constant along a completion in GRPO)."""
    group: int
    """Index of the group in the step."""
    reference_log_probs: np.ndarray | None = None
    """float32 [T], of the reference policy; None where the algorithm has none."""
    correction: np.ndarray | None = None
    """float32 [T], importance weight of the policy gradient where the engine's log-probs differ; None: 1."""
    policy_version: int = 0
    """How many updates the policy that sampled it had seen."""
    position: int | None = None
    """Cursor of the task with which its problem was taken, so that the prompt can be made again."""
    replayed: bool = False
    """Whether it comes from an earlier step: its old log-probs are then never recomputed."""
    coefficients: np.ndarray | None = None
    """float32 [T], what a token's log-prob is multiplied by in the ratio of the whole completion (RL4VLM's lambda on
    thoughts); None: 1."""
    returns: np.ndarray | None = None
    """float32 [T], what the critic learns to expect before each token; None without a critic."""
    old_values: np.ndarray | None = None
    """float32 [T], what the critic expected when the completion was sampled."""
    value_weights: np.ndarray | None = None
    """float32 [T], weight of each token in the critic's loss: mask over its denominator."""
    taught: np.ndarray | None = None
    """int64 [S], a teacher's thought for the same prompt, learned by cross-entropy beside; None: nothing is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One reply of an episode in its context.

    Example: Turn(prompt=prompt, completion=completion, reward=-1.0, action="+", legal=True, action_start=9)
    """

    prompt: Any
    """The `fovea.models.Prompt` it was sampled under (as `Group.prompt`)."""
    completion: Completion
    reward: float
    """What the environment gave for it, rewards of the text included."""
    action: str | None
    """Name of the action that was done; None where none was."""
    legal: bool
    """Whether the reply said it: False where the reply held no legal action, whatever was done instead."""
    action_start: int
    """Index of the first token of the action (0 to T; T: the reply has none): before it stands the thought."""
    thought: str = ""
    """The thought as text."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The reward by part: "environment", "format", ..."""
    anchor: str = ""
    """Hash of what was shown: equal for equal observations (GiGPO compares turns that have it in common)."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The truth as the environment tells it; never shown to the model."""
    taught: str | None = None
    """A teacher's thought for this state, where one is wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """The turns of one episode, or of the part of it that a step saw.

    Example: Trajectory(id="number_line:train:0:7", turns=(turn,), terminated=True, truncated=False)
    """

    id: str
    turns: tuple[Turn, ...]
    terminated: bool
    """The episode is over by the environment's own rules: nothing comes after."""
    truncated: bool
    """It was cut off (too many turns); something would have come."""
    bootstrap: float = 0.0
    """What the critic expects after the last turn; 0 where the episode terminated."""
    group: int = 0
    """Trajectories of the same group began in the same state."""
    first: int = 0
    """Which turn of its episode `turns[0]` is; above 0 where a former step saw the beginning."""
    total: float = 0.0
    """Sum of the environment's rewards of the whole episode so far."""
    success: bool | None = None
    """Of an episode that is over; None while it goes on."""

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class Reward(Protocol):
    """Text and problem in, a number out (usually 0 to 1). Deterministic, never raises on any text."""

    def __call__(self, text: str, problem: Problem) -> float: ...


class Task(Protocol):
    """An endless or finite source of problems."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> AnswerKind: ...

    @property
    def chance(self) -> float:
        """Accuracy of the best guesser that does not look, measured or derived (0 to 1)."""
        ...

    @property
    def size(self) -> int | None:
        """How many different problems there are; None if there is no end to them."""
        ...

    def take(self, cursor: int, n: int) -> tuple[list[Problem], int]:
        """The next `n` problems and the next cursor. Problem i depends on (seed, i) alone."""
        ...


class LossTerm(Protocol):
    """Something added to the policy gradient: weights on its tokens, or an extra loss on named forward variants.

    A `view` is a `fovea.algorithms.TokenView` and a tensor a `torch.Tensor` [N] (Any: no torch here).
    """

    @property
    def name(self) -> str: ...

    @property
    def variants(self) -> tuple[str, ...]:
        """Forward variants on which `loss` is added: "trained" is the prompt that is trained, others are made by the
        update's table of variants (a masked picture, for example)."""
        ...

    @property
    def scored(self) -> tuple[str, ...]:
        """Forward variants whose log-probs `loss` needs besides, without gradient: scored once, before the rollout's
        first update."""
        ...

    @property
    def picks(self) -> bool:
        """Whether `pick` must see the whole mini-batch before its first pass (one more forward, no gradient)."""
        ...

    @property
    def weighs(self) -> bool:
        """Whether what `pick` returns multiplies the tokens' weights in the policy gradient."""
        ...

    def pick(self, view: Any) -> Any:
        """A number for every token of the mini-batch, [N]."""
        ...

    def loss(self, variant: str, view: Any) -> Any:
        """An extra loss [] of one pass's tokens under `variant`, additive over tokens; or None."""
        ...


class Replay(Protocol):
    """Keeps samples for later steps. Deterministic; its state goes into checkpoints."""

    def add(self, samples: Sequence[Sample], step: int) -> None:
        """Offer a step's own samples."""
        ...

    def draw(self, n: int, *, seed: tuple[int, int]) -> list[Any]:
        """At most `n` kept ones (`fovea.algorithms.Stored`). `seed`: (run's seed, step)."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON in which NumPy arrays may stand."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken of."""
        ...


class Observer(Protocol):
    """Something that watches a run: the terminal display, a tracker. Never changes it."""

    def start(self, run: dict[str, Any]) -> None: ...
    def step(self, metrics: dict[str, Any], shown: list[dict[str, Any]]) -> None: ...
    def evaluation(self, record: dict[str, Any]) -> None: ...
    def finish(self, result: dict[str, Any]) -> None: ...
