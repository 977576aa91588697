"""The training loop: reinforcement learning from checked rewards, and supervised fine-tuning beside it.

    problems → groups of replies → rewards → advantages → one shared-prefix update → log

Not here: how each of these is done (`steps`), what a run is made of (`setup`).
Try it: `fovea train quickstart steps=3`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fovea.config import Run
from fovea.training.environment import has_environment
from fovea.training.episodes import episode_step
from fovea.training.opening import Functions, open_session
from fovea.training.problems import Tasks
from fovea.training.resume import read_unfinished
from fovea.training.setup import Session
from fovea.training.steps import rl_step, sft_step
from fovea.training.stopping import StopNow, Stopped, StopRequest
from fovea.types import Observer, RunFailed, UserError


def train(
    run: Run,
    observers: Sequence[Observer] = (),
    *,
    tasks: Tasks | None = None,
    functions: Functions | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Do a run and return its result (what result.json holds).

    `tasks`: the user's own (training, validation, held-out) problems. `functions`: the user's own rewards, by the
    names that the recipe weighs. `resume`: go on in the run's folder.
    Raises UserError, RunFailed, and Stopped after Ctrl-C or SIGTERM, when what was done is saved.
    """
    learn = episode_step if has_environment(run) else rl_step
    step = sft_step if run.method == "sft" else learn
    opened = open_session(run, observers, tasks=tasks, functions=functions, resume=resume)
    with StopRequest() as stop, opened as session:
        try:
            while True:
                if phase := session.due():
                    session.evaluate(phase, stop.at_once)
                if session.over() or stop.number:
                    break
                with session.clock:
                    metrics, examples = step(session, session.done)
                session.record(metrics, examples)
                if run.save_every and session.done % run.save_every == 0:
                    session.save()
            session.save()
            session.evaluate("after", stop.at_once)
        except StopNow:
            session.save()
            raise _stopped(session, stop) from None
        except (UserError, RunFailed) as error:
            with contextlib.suppress(RunFailed):  # a full disk was the error, perhaps
                session.save()
            raise type(error)(f"{error} {_how_to_go_on(session)}".strip()) from error
        return session.finish()


def resume(
    folder: str | Path,
    overrides: Sequence[str] = (),
    observers: Sequence[Observer] = (),
    *,
    tasks: Tasks | None = None,
    functions: Functions | None = None,
) -> dict[str, Any]:
    """Go on with an unfinished run from its newest whole checkpoint. Raises as `train` does."""
    run = read_unfinished(folder, overrides)
    return train(run, observers, tasks=tasks, functions=functions, resume=True)


def _stopped(session: Session, stop: StopRequest) -> Stopped:
    assert stop.number is not None
    return Stopped(f"Stopped by {stop.name} after step {session.done}. {_how_to_go_on(session)}", stop.number)


def _how_to_go_on(session: Session) -> str:
    saved = session.saved
    if saved is None:
        return f"Nothing was saved yet; begin again: fovea train --resume {session.log.folder}"
    return f"Step {saved} is saved; go on: fovea train --resume {session.log.folder}"
