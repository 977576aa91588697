"""Does the agent succeed, and does it look? Held-out episodes from beginning to end, greedy, three times over.

    accuracy   share of episodes that succeed (`success` by its usual name here)
    swapped    the same episodes, but every turn shows the pictures of another episode that is under way
    looking    accuracy - swapped, paired over episodes
    blank      the same episodes and grey pictures
    return     mean sum of the environment's rewards

Beside them stand the success of random legal actions (`chance`) and, where it is known, that of the best policy
(`ceiling`). The original reports the peak of a training curve instead. `sampled`: success and return at the run's
temperature. `thought_follows`: of the first turns whose picture was swapped, the share whose thought changed with it;
near 0 is thought collapse (GTR, arXiv:2503.08525). What cannot be computed is null, never 0.

Not here: single questions (`fovea.evaluation`), playing (`fovea.rollouts.episodes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fovea.environments.game import Game, Observation
from fovea.outcomes import Outcome
from fovea.rollouts.episodes import Place, Show, Stage
from fovea.statistics import average, difference, mean, proportion
from fovea.types import Sampling, Trajectory

AT_ONCE = 64
"""Episodes side by side."""

SWAP = "at every turn the pictures of another episode that is under way; the text stays"


def evaluate_episodes(
    open_stage: Callable[[Sampling], Stage],
    game: Game,
    n: int,
    *,
    seed: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    samples: int = 0,
    look: bool = True,
    keep: Callable[[Trajectory], list[dict[str, Any]]] | None = None,
    show: int = 0,
    outcomes: list[Outcome] | None = None,
) -> dict[str, Any]:
    """Measure the first `n` episodes of a stage's split. JSON-ready, intervals are 95 %.

    `open_stage(sampling)` → a stage with nothing under way. `samples` > 0: the episodes are also played so
    often at `temperature`. `show`: so many episodes are recorded (`keep`: a trajectory → records of its turns);
    `outcomes`: a list that takes what came of each (matched by id, two models can be compared in pairs).
    """
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    own = _play(open_stage(greedy), n, seed)
    right = [bool(one.success) for one in own]
    record: dict[str, Any] = {
        "task": game.name,
        "n": n,
        "chance": game.floor,
        "ceiling": game.ceiling,
        "accuracy": proportion(right),
        "return": mean([one.total for one in own], seed),
        "turns": mean([float(len(one.turns)) for one in own], seed),
        "invalid": average([float(not turn.legal) for one in own for turn in one.turns], seed),
        "truncated": proportion([one.truncated for one in own]),
        "rewards": {},
    }
    if samples:
        drawn = _play(
            open_stage(Sampling(temperature=temperature, max_new_tokens=max_new_tokens)),
            n,
            seed,
            times=samples,
        )
        record["sampled"] = {
            "temperature": temperature,
            "samples": samples,
            "accuracy": average(_by_episode([float(bool(one.success)) for one in drawn], samples), seed),
            "return": mean(_by_episode([one.total for one in drawn], samples), seed),
        }
    if look:
        record |= _looking(open_stage, greedy, own, n, seed)
    if outcomes is not None:
        outcomes.extend(_outcome(one) for one in own)
    shown = [record for one in own[:show] for record in keep(one)] if keep is not None else []
    return record | {"shown": shown}


def _outcome(episode: Trajectory) -> Outcome:
    """An episode in the form of a question: the actions are the reply."""
    turns = episode.turns
    return Outcome(
        id=episode.id,
        question=turns[0].prompt.problem.question,
        truth="success",
        pictures=len(turns[0].prompt.problem.images),
        reply=" ".join(str(turn.action) for turn in turns),
        correct=bool(episode.success),
        truncated=episode.truncated,
        rewards={"return": episode.total},
        swapped=None,
        blank=None,
        samples=(),
        kind="text",
    )


def _by_episode(values: Sequence[float], times: int) -> np.ndarray:
    """float64 [n]: means over the times that each episode was played; those are the independent units."""
    return np.asarray(values, np.float64).reshape(-1, times).mean(axis=1)


def _play(stage: Stage, n: int, seed: int, show: Show | None = None, *, times: int = 1) -> list[Trajectory]:
    """The first `n` episodes, each `times` times from the same beginning."""
    stage.show, stage.learning = show, False
    try:
        return stage.whole(range(n), times, seed=(seed, 0), at_once=AT_ONCE)
    finally:
        stage.close()


def _looking(
    open_stage: Callable[[Sampling], Stage],
    greedy: Sampling,
    own: Sequence[Trajectory],
    n: int,
    seed: int,
) -> dict[str, Any]:
    nothing = {"mean": None, "ci95": None, "n": 0}
    empty = dict.fromkeys(("swapped", "looking", "follow", "blank"), nothing)
    if not any(turn.prompt.problem.images for turn in own[0].turns):
        return {**empty, "swap": None, "thought_follows": nothing}
    right = [bool(one.success) for one in own]
    swapped = _play(open_stage(greedy), n, seed, SwappedPictures())
    blank = _play(open_stage(greedy), n, seed, blank_pictures)
    other = [bool(one.success) for one in swapped]
    changed = [
        a.turns[0].thought != b.turns[0].thought
        for a, b in zip(own, swapped, strict=True)
        if a.turns[0].anchor == b.turns[0].anchor and a.turns[0].thought and _other_picture(a, b)
    ]
    return {
        "swapped": proportion(other) | {"n": n},
        "looking": difference(right, other, seed) | {"n": n},
        "follow": nothing,
        "blank": proportion([bool(one.success) for one in blank]) | {"n": n},
        "swap": SWAP,
        "thought_follows": proportion(changed) | {"n": len(changed)},
    }


def _other_picture(a: Trajectory, b: Trajectory) -> bool:
    """Whether the first turn of the same episode was shown with another picture."""
    pairs = zip(a.turns[0].prompt.problem.images, b.turns[0].prompt.problem.images)
    return any(not np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


class SwappedPictures:
    """To each episode the pictures of the next one under way whose pictures have the same sizes and show something
    else; where there is none (the last one under way) those that another one showed before; its own where there was
    nothing."""

    def __init__(self) -> None:
        self._before: list[tuple[int, Observation]] = []

    def __call__(self, places: Sequence[Place]) -> list[Observation]:
        now = [(place.number, place.observation) for place in places]
        found = []
        for i, (number, own) in enumerate(now):
            others = [now[(i + k) % len(now)] for k in range(1, len(now))] + self._before
            sizes = [image.size for image in own.images]
            donor = next(
                (
                    other
                    for of, other in others
                    if of != number
                    and [image.size for image in other.images] == sizes
                    and any(a.tobytes() != b.tobytes() for a, b in zip(other.images, own.images))
                ),
                own,
            )
            found.append(Observation(images=donor.images, text=own.text))
        self._before = [*now, *self._before][:AT_ONCE]
        return found


def blank_pictures(places: Sequence[Place]) -> list[Observation]:
    """To each episode grey pictures."""
    return [
        Observation(
            images=tuple(Image.new("RGB", image.size, (127, 127, 127)) for image in place.observation.images),
            text=place.observation.text,
        )
        for place in places
    ]
