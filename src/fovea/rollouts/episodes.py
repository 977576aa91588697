"""Environments × engine → trajectories: many episodes side by side, every turn of all of them one decode batch.

    stage = Stage(policy=policy, engine=engine, sampling=sampling, make=lambda: Spoken(game), ...)
    stage.advance(turns=8, seed=(0, step))      every episode 8 turns further; finished ones are followed by new ones
    stage.whole(range(8), group=4, seed=...)    episodes from beginning to end, 4 of each beginning

An episode is a function of (seed, split, number): its environment is seeded by them, its replies by the step and the
turn's own id. What is under way between two steps is saved as a journal (`environments.replay`) and, when a run goes
on, played again and compared answer by answer.

Not here: advantages (`turns`), what an environment is (`fovea.environments`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fovea.engines import Engine
from fovea.environments import Recorded, digest, restore
from fovea.environments.game import Observation
from fovea.environments.replies import Said
from fovea.environments.seeds import episode_seed
from fovea.models import Policy, Prompt
from fovea.models.critic import values
from fovea.rollouts.spans import action_start
from fovea.rollouts.turn_rewards import TurnReward
from fovea.types import Completion, Earlier, Problem, Sampling, Trajectory, Turn

Show = Callable[[Sequence["Place"]], Sequence[Observation]]
"""What the model is shown of the episodes under way, where that is not what they show (an evaluation's swapped and
blank pictures)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a prompt holds besides this turn. Example: Layout(turns=3, thoughts=False)"""

    turns: int | None = 1
    """Turns in it, this one included; None: all since the beginning."""
    thoughts: bool = True
    """Whether earlier replies stand there with their thoughts."""

    def earlier(self, turns: Sequence[tuple[Problem, np.ndarray, int]]) -> tuple[Earlier, ...]:
        """Of the turns so far (problem, reply, where its action begins) those that the next prompt holds."""
        kept = turns if self.turns is None else turns[max(0, len(turns) - self.turns + 1) :]
        return tuple(
            (problem, reply if self.thoughts else reply[start:])
            for problem, reply, start in kept
            if len(reply)
        )


@dataclass(kw_only=True)
class Place:
    """One episode under way."""

    number: int
    member: int
    env: Recorded
    observation: Observation
    info: Mapping[str, Any]
    turns: list[tuple[Problem, np.ndarray, int]] = field(default_factory=list)
    """So far: what was asked, the reply's tokens, where its action begins."""
    total: float = 0.0
    terminated: bool = False
    truncated: bool = False
    fresh: list[Turn] = field(default_factory=list)
    """Turns that no trajectory holds yet."""

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


@dataclass(kw_only=True)
class Stage:
    """Episodes side by side; see the module. Only `places` and `next_number` change."""

    policy: Policy
    engine: Engine
    sampling: Sampling
    make: Callable[[], Any]
    """→ a fresh `Spoken` (or what behaves like one: gymnasium's API)."""
    game: str
    split: str
    seed: int
    layout: Layout = Layout()
    instruction: str | None = None
    rewards: Mapping[str, tuple[TurnReward, float]] = field(default_factory=dict)
    taught: Callable[[Mapping[str, Any]], str] | None = None
    """(info) → a teacher's thought for the state, where the update wants one."""
    show: Show | None = None
    learning: bool = True
    """Whether anything is learned from the turns; else they do not keep their pictures' tensors, which are most of an
    episode's memory, and nothing is bootstrapped."""
    places: list[Place] = field(default_factory=list)
    next_number: int = 0

    # ---------------------------------------------------------------- playing

    def advance(self, episodes: int, turns: int, *, seed: tuple[int, int]) -> list[Trajectory]:
        """`episodes` of them side by side, each `turns` turns further: episodes that end are followed by the next ones,
        and those that are still under way are bootstrapped and go on in the next call. `seed`: (run's seed, step)."""
        while len(self.places) < episodes:
            self.places.append(self._begin())
        done: list[tuple[Trajectory, Prompt | None]] = []
        for _ in range(turns):
            self._turn(self.places, seed)
            for i, place in enumerate(self.places):
                if place.over:
                    done.append(self._closed(place))
                    place.env.close()
                    self.places[i] = self._begin()
        done += [self._closed(place) for place in self.places if place.fresh]
        return self._bootstrapped(done)

    def whole(
        self, numbers: Iterable[int], group: int, *, seed: tuple[int, int], at_once: int = 64
    ) -> list[Trajectory]:
        """Every episode of `numbers` from beginning to end, `group` times from the same beginning, in order. At most
        `at_once` are under way."""
        waiting = ((g, number, member) for g, number in enumerate(numbers) for member in range(group))
        live: list[tuple[int, Place]] = []
        done: dict[tuple[int, int], tuple[Trajectory, Prompt | None]] = {}
        for g, number, member in waiting:
            live.append((g, self._begin(number, member)))
            if len(live) == at_once:
                live = self._turn_of_whole(live, seed, done)
                while len(live) == at_once:
                    live = self._turn_of_whole(live, seed, done)
        while live:
            live = self._turn_of_whole(live, seed, done)
        found = self._bootstrapped([done[key] for key in sorted(done)])
        return [replace(one, group=key[0]) for one, key in zip(found, sorted(done), strict=True)]

    def _turn_of_whole(
        self,
        live: list[tuple[int, Place]],
        seed: tuple[int, int],
        done: dict[tuple[int, int], tuple[Trajectory, Prompt | None]],
    ) -> list[tuple[int, Place]]:
        self._turn([place for _, place in live], seed)
        for g, place in live:
            if place.over:
                done[g, place.member] = self._closed(place)
                place.env.close()
        return [(g, place) for g, place in live if not place.over]

    def _turn(self, places: Sequence[Place], seed: tuple[int, int]) -> None:
        """One turn of every episode of `places`."""
        shown = [place.observation for place in places] if self.show is None else self.show(places)
        problems = [
            self._problem(place, observation) for place, observation in zip(places, shown, strict=True)
        ]
        prompts = [self.policy.prompt(problem, self.instruction) for problem in problems]
        replies = [group[0] for group in self.engine.generate(prompts, 1, self.sampling, seed=seed)]
        answers = list(_side_by_side(places, replies))
        for place, problem, prompt, reply, answer in zip(
            places, problems, prompts, replies, answers, strict=True
        ):
            self._note(place, problem, prompt, reply, answer)

    def _note(
        self, place: Place, problem: Problem, prompt: Prompt, reply: Completion, answer: tuple[Any, ...]
    ) -> None:
        observation, _, terminated, truncated, info = answer
        said: Said = info["said"]
        start = action_start(self.policy, reply.token_ids, said.start)
        parts = dict(info["parts"])
        for name, (function, weight) in self.rewards.items():
            parts[name] = weight * float(function(reply.text, before=place.info, after=info))
        place.fresh.append(
            Turn(
                prompt=prompt if self.learning else replace(prompt, media={}),
                completion=reply,
                reward=float(sum(parts.values())),
                action=info["action"],
                legal=bool(info["legal"]),
                action_start=start,
                thought=said.thought,
                parts=parts,
                anchor=digest((*place.observation,)),
                state=place.info["state"],
                taught=None if self.taught is None else self.taught(place.info),
            )
        )
        place.turns.append((problem, reply.token_ids, start))
        place.total += float(info["parts"]["environment"])
        place.observation, place.info = observation, info
        place.terminated, place.truncated = bool(terminated), bool(truncated)

    # ---------------------------------------------------------------- one episode

    def _begin(self, number: int | None = None, member: int = 0) -> Place:
        if number is None:
            number, self.next_number = self.next_number, self.next_number + 1
        env = Recorded(self.make(), id=self.game, kwargs={})
        seed = episode_seed(self.seed, self.split, number)
        observation, info = env.reset(seed=seed, options={"split": self.split})
        return Place(number=number, member=member, env=env, observation=observation, info=info)

    def _id(self, place: Place) -> str:
        return f"{self.game}:{self.split}:{self.seed}:{place.number}" + f".{place.member}" * (
            place.member > 0
        )

    def _problem(self, place: Place, observation: Observation) -> Problem:
        return Problem(
            id=f"{self._id(place)}#{len(place.turns)}",
            task=self.game,
            images=observation.images,
            question=observation.text,
            answer="",
            kind="text",
            earlier=self.layout.earlier(place.turns),
        )

    def _closed(self, place: Place) -> tuple[Trajectory, Prompt | None]:
        """The turns since the last call as a trajectory, and the prompt whose value it is bootstrapped with."""
        trajectory = Trajectory(
            id=self._id(place),
            turns=tuple(place.fresh),
            terminated=place.terminated,
            truncated=place.truncated,
            first=len(place.turns) - len(place.fresh),
            total=place.total,
            success=place.info.get("success"),
        )
        place.fresh = []
        if place.terminated or self.policy.critic is None or not self.learning:
            return trajectory, None
        return trajectory, self.policy.prompt(self._problem(place, place.observation), self.instruction)

    def _bootstrapped(self, done: Sequence[tuple[Trajectory, Prompt | None]]) -> list[Trajectory]:
        prompts = [prompt for _, prompt in done if prompt is not None]
        expected = iter(values(self.policy, prompts).tolist() if prompts else ())
        return [one if prompt is None else replace(one, bootstrap=next(expected)) for one, prompt in done]

    # ---------------------------------------------------------------- between two steps

    def state(self) -> dict[str, Any]:
        """Journals of the episodes under way, and their replies' tokens."""
        return {
            "next_number": self.next_number,
            "places": [
                {
                    "number": place.number,
                    "member": place.member,
                    "journal": place.env.state(),
                    "replies": [reply for _, reply, _ in place.turns],
                    "starts": [start for _, _, start in place.turns],
                }
                for place in self.places
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Play the journals again. Raises RunFailed where an environment answers otherwise than it did."""
        for place in self.places:
            place.env.close()
        self.next_number = int(state["next_number"])
        self.places = [self._again(saved) for saved in state["places"]]

    def _again(self, saved: Mapping[str, Any]) -> Place:
        answers: list[tuple[Any, ...]] = []
        env = restore(saved["journal"], lambda *_, **__: self.make(), watch=answers.append)
        observation, *_, info = answers[0]
        place = Place(
            number=int(saved["number"]),
            member=int(saved["member"]),
            env=env,
            observation=observation,
            info=info,
        )
        for (observation, _, terminated, truncated, info), reply, start in zip(
            answers[1:], saved["replies"], saved["starts"], strict=True
        ):
            place.turns.append((self._problem(place, place.observation), np.asarray(reply), int(start)))
            place.total += float(info["parts"]["environment"])
            place.observation, place.info = observation, info
            place.terminated, place.truncated = terminated, truncated
        return place

    def close(self) -> None:
        for place in self.places:
            place.env.close()
        self.places = []


def _side_by_side(places: Sequence[Place], replies: Sequence[Completion]) -> Iterator[tuple[Any, ...]]:
    """Step every environment; those that run in processes of their own at the same time."""
    pairs = list(zip(places, replies, strict=True))
    if not any(getattr(place.env.env, "waits", False) for place in places):
        for place, reply in pairs:
            yield place.env.step(reply.text)
        return
    with ThreadPoolExecutor(max_workers=min(32, len(pairs))) as pool:
        yield from pool.map(lambda pair: pair[0].env.step(pair[1].text), pairs)
