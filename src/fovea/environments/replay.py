"""An environment is restored by doing again what was done to it, and checking that it answers the same.

A running environment cannot be saved: emulators, sockets and C++ hold state that nothing can read. What can be
saved is the journal: which environment, which seed, which actions, and a hash of every answer. `restore` makes a
fresh environment, repeats the journal and compares; an environment that answers otherwise is not deterministic
and is refused, naming the step.

Try it:

    lake = Recorded(gymnasium.make("FrozenLake-v1"))
    lake.reset(seed=3); lake.step(2)
    state = lake.state()                    # plain JSON, for a checkpoint
    again = restore(state)                  # stands where `lake` stands; again.last is its last answer

A journal begins at the last seeded reset: whoever seeds every episode keeps journals of one episode.
Not here: episodes, rewards, agents.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fovea.types import RunFailed, UserError

FORMAT = 1
"""Of the journal; another one is refused."""


class Environment(Protocol):
    """The part of gymnasium's `Env` that is used here; anything with these three methods can be recorded."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """(observation, info) of a new episode."""
        ...

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """(observation, reward, terminated, truncated, info)."""
        ...

    def close(self) -> None: ...


class Recorded:
    """An environment with a journal of what was done to it since the last seeded reset.

    Example: Recorded(gymnasium.make("FrozenLake-v1", is_slippery=False))

    `id` and `kwargs` say how to make it again; by default they are those of gymnasium's own `spec`. `show` is what
    the model sees beside the observation, typically `lambda env: env.render()`; it is hashed with every answer.
    `info` is never hashed: it may hold times. Actions and options must be plain values, tuples or NumPy arrays.
    """

    def __init__(
        self,
        env: Environment,
        *,
        id: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        show: Callable[[Any], Any] | None = None,
    ) -> None:
        spec = getattr(env, "spec", None)
        name = id if id is not None else getattr(spec, "id", None)
        if not isinstance(name, str):
            raise UserError(
                f"{type(env).__name__} has no spec that names it; give Recorded(env, id=NAME, kwargs={{…}})."
            )
        self.env = env
        self.id = name
        self.kwargs = dict(kwargs if kwargs is not None else getattr(spec, "kwargs", None) or {})
        self.show = show
        self.last: tuple[Any, float, bool, bool, dict[str, Any]] | None = None
        """The last answer: observation, reward, terminated, truncated, info (a reset: 0.0, False, False)."""
        self._events: list[list[Any]] = []

    @property
    def action_space(self) -> Any:
        return self.env.action_space  # type: ignore[attr-defined]

    @property
    def observation_space(self) -> Any:
        return self.env.observation_space  # type: ignore[attr-defined]

    @property
    def steps(self) -> int:
        """Resets and actions in the journal."""
        return len(self._events)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As gymnasium's. A seed starts the journal anew; the first reset needs one. Raises UserError without."""
        if seed is None and not self._events:
            raise UserError(
                f"{self.id}: the first reset needs a seed, or nobody could do it again; reset(seed=0)."
            )
        asked = encode({"seed": seed, "options": options})
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._events = []
        self._note("reset", asked, (observation, 0.0, False, False, info))
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As gymnasium's. Raises UserError before the first reset."""
        if not self._events:
            raise UserError(f"{self.id}: step before reset; call reset(seed=0) first.")
        asked = encode(action)  # before the step: an environment may write into the array it was given
        observation, reward, terminated, truncated, info = self.env.step(action)
        answer = (observation, float(reward), bool(terminated), bool(truncated), info)
        self._note("step", asked, answer)
        return answer

    def render(self) -> Any:
        return self.env.render()  # type: ignore[attr-defined]

    def close(self) -> None:
        self.env.close()

    def state(self) -> dict[str, Any]:
        """The journal as plain JSON: `id`, `kwargs`, `versions`, `events` of [kind, what, hash of the answer]."""
        return {
            "format": FORMAT,
            "id": self.id,
            "kwargs": encode(self.kwargs),
            "versions": versions(),
            "events": [list(event) for event in self._events],
        }

    def _note(self, kind: str, asked: Any, answer: tuple[Any, float, bool, bool, dict[str, Any]]) -> None:
        self.last = answer
        shown = self.show(self.env) if self.show is not None else None
        self._events.append([kind, asked, digest((*answer[:4], shown))])


def restore(
    state: Mapping[str, Any],
    make: Callable[..., Environment] | None = None,
    *,
    show: Callable[[Any], Any] | None = None,
    watch: Callable[[tuple[Any, float, bool, bool, dict[str, Any]]], object] | None = None,
) -> Recorded:
    """A fresh environment, brought to where the recorded one stood; its `last` is the last answer.

    `make(id, **kwargs)` makes it (default: `gymnasium.make`); `show` must be as it was when recording; `watch` is told
    every answer on the way. Raises
    RunFailed, naming the step, where it answers otherwise than recorded, and UserError where `state` is no journal.
    """
    if state.get("format") != FORMAT or not isinstance(state.get("events"), list):
        raise UserError(
            f"This is no journal of an environment (format {state.get('format')!r}, not {FORMAT})."
        )
    name = str(state["id"])
    env = (make or _gymnasium_make())(name, **decode(state["kwargs"]))
    recorded = Recorded(env, id=name, kwargs=decode(state["kwargs"]), show=show)
    try:
        for step, (kind, asked, wanted) in enumerate(state["events"]):
            if kind == "reset":
                recorded.reset(**decode(asked))
            else:
                recorded.step(decode(asked))
            if watch is not None and recorded.last is not None:
                watch(recorded.last)
            if recorded._events[-1][2] != wanted:
                raise RunFailed(_differs(state, step, kind, asked))
    except BaseException:
        recorded.close()
        raise
    return recorded


def _differs(state: Mapping[str, Any], step: int, kind: str, asked: Any) -> str:
    what = f"reset {json.dumps(asked)}" if kind == "reset" else f"action {json.dumps(asked)[:80]}"
    then, now = state.get("versions", {}), versions()
    moved = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
    why = "; ".join(moved) if moved else "it is not deterministic, or is shown or made in another way"
    return (
        f"The environment {state['id']} cannot be restored: at step {step} of {len(state['events'])} ({what}) it "
        f"answered otherwise than recorded ({why})."
    )


def _gymnasium_make() -> Callable[..., Environment]:
    try:
        import gymnasium
    except ImportError:
        raise UserError("Environments need gymnasium: pip install 'fovea-rl[envs]'.") from None
    return gymnasium.make


def versions() -> dict[str, str | None]:
    """What an environment's answers may depend on."""
    found: dict[str, str | None] = {}
    for name in ("gymnasium", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


# --- values --------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """SHA-256 (hex) of an answer: pictures and arrays by type, shape and bytes, the rest by type and exact value.

    Mappings are hashed in the order of their keys' texts, so that equal dicts hash equally. Raises TypeError for
    anything whose bytes are not known (an object's `repr` may hold an address).
    """
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Image.Image):
        _piece(state, f"picture {value.mode} {value.size}", value.tobytes())
        if value.mode == "P":  # the same indices under another palette are another picture
            _piece(state, "palette", bytes(value.getpalette() or []))
    elif isinstance(value, np.ndarray | np.generic) and not np.asarray(value).dtype.hasobject:
        array = np.asarray(value)
        _piece(state, f"array {array.dtype.str} {array.shape}", np.ascontiguousarray(array).tobytes())
    elif isinstance(value, bytes):
        _piece(state, "bytes", value)
    elif value is None or isinstance(value, bool | int | float | str):
        # repr of a float is exact; surrogatepass: a text may hold anything
        _piece(state, type(value).__name__, repr(value).encode("utf-8", "surrogatepass"))
    elif isinstance(value, Mapping):
        _piece(state, "mapping", str(len(value)).encode())
        for key in sorted(value, key=str):
            _feed(state, str(key))
            _feed(state, value[key])
    elif isinstance(value, list | tuple):
        _piece(state, "sequence", str(len(value)).encode())
        for item in value:
            _feed(state, item)
    else:
        raise TypeError(f"an answer of type {type(value).__name__} cannot be hashed")


def _piece(state: Any, kind: str, data: bytes) -> None:
    """Length and kind first: no two different sequences of pieces are the same bytes."""
    head = f"{kind}:{len(data)}:".encode()
    state.update(head + data)


def encode(value: Any) -> Any:
    """An action or option as JSON from which `decode` makes the same value, types included.

    Plain values and lists stay; a tuple becomes {"tuple": […]}, a mapping {"map": {…}}, a NumPy array or scalar
    {"array": nested lists, "dtype": …}. Raises TypeError for anything else.
    """
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"an action of dtype {array.dtype} cannot be recorded")
        return {"array": array.tolist(), "dtype": array.dtype.str, "scalar": isinstance(value, np.generic)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"map": {key: encode(item) for key, item in value.items()}}
    raise TypeError(
        f"an action of type {type(value).__name__} cannot be recorded; give numbers, texts or arrays"
    )


def decode(value: Any) -> Any:
    """What was given to `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "map" in value:
        return {key: decode(item) for key, item in value["map"].items()}
    if "tuple" in value:
        return tuple(decode(item) for item in value["tuple"])
    array = np.array(value["array"], dtype=np.dtype(value["dtype"]))
    return array[()] if value["scalar"] else array
