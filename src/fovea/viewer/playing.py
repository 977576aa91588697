"""An episode in which a person, or a file of replies, is the model: what `fovea play` does.

    spoken = open_spoken("number_line", {"side": 64})
    play(spoken, replies(["+", "+"]), say=print, show=lambda turn, pictures: None, seed=3, split="test", number=0)

The game, the rules and the reading of replies are those of a run, and so is the episode: number N of a seed and a split
is the one that a run with that seed meets under that number. A bare name of an action is put into the form of a reply;
anything else is handed on as it is, and the rules say what is done with it.

Not here: the command line, and a model (`fovea.rollouts.episodes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from rich.text import Text

from fovea.environments.catalogue import GAMES, find_game
from fovea.environments.game import Game
from fovea.environments.replies import INSTRUCTIONS, write_reply
from fovea.environments.seeds import episode_seed
from fovea.environments.spoken import Rules, Spoken
from fovea.types import UserError
from fovea.viewer.strips import Ending, signed

QUIT = "q"
MOST_NAMES = 24
"""Legal actions that are listed; the rest is counted."""

Ask = Callable[[], str | None]
"""→ the next reply, None where there is no more."""


def game_named(name: str) -> Game:
    """The game. Raises UserError for a name that there is not, and for one whose package is missing."""
    try:
        return find_game(name)
    except ImportError as error:
        raise UserError(_missing(name, error)) from None


def open_spoken(name: str, options: Mapping[str, Any]) -> Spoken:
    """The game as a run opens it. Raises UserError for a wrong option and for a missing package."""
    game = game_named(name)
    try:
        return Spoken(game=game, rules=Rules(), options=options)
    except ImportError as error:  # a game may need its package only when it is made
        raise UserError(_missing(name, error)) from None


def _missing(name: str, error: ImportError) -> str:
    what = f"the package {error.name}" if error.name else "a package"
    return f"{name} needs {what}, which is not installed: pip install 'fovea-rl[envs]'."


def games() -> list[dict[str, Any]]:
    """Every game of the catalogue: name, floor, ceiling, max_turns, and why it cannot be opened (null where it can)."""
    found = []
    for name in GAMES:
        row: dict[str, Any] = {
            "name": name,
            "floor": None,
            "ceiling": None,
            "max_turns": None,
            "trouble": None,
        }
        try:
            game = game_named(name)
        except UserError as error:
            row["trouble"] = str(error)
        else:
            row |= {"floor": game.floor, "ceiling": game.ceiling, "max_turns": game.max_turns}
        found.append(row)
    return found


def replies(lines: Iterable[str]) -> Ask:
    """Replies from a script, one a line; empty lines are left out."""
    rest: Iterator[str] = iter(line.strip() for line in lines)
    return lambda: next((line for line in rest if line), None)


def play(
    spoken: Spoken,
    ask: Ask,
    say: Callable[[str], None],
    show: Callable[[int, tuple[Image.Image, ...]], None],
    *,
    seed: int,
    split: str,
    number: int,
) -> dict[str, Any]:
    """One episode. `say`: prints a line of text, hostile or not; `show`: (turn, pictures) → shown to the person.

    Returns {"turns", "return", "ending", "replies"}; "goes on" where it was left before its end.
    """
    game, rules = spoken.game, spoken.rules
    observation, info = spoken.reset(seed=episode_seed(seed, split, number), options={"split": split})
    say(f"{game.name} · {split} · seed {seed} · episode {number} · at most {spoken.max_turns} turns")
    say(f"{_between(game)}A model is told: {INSTRUCTIONS[rules.form, rules.thought]}")
    say(f"Reply with the name of an action, or with a whole reply; {QUIT} ends.")
    say("Anything else is a reply without a legal action, as it is from a model: a random one is done.")
    told: list[str] = []
    total, ending, asked = 0.0, "goes on", None
    while ending == "goes on":
        say(f"\nturn {len(told) + 1}")
        show(len(told), observation.images)
        if observation.text != asked:  # said again only where it changes
            say(observation.text)
        asked, legal = observation.text, tuple(info["legal_actions"])
        say(f"actions: {_listed(legal)}")
        line = ask()
        if line is None or (line == QUIT and QUIT not in legal):
            break
        told.append(reply_of(spoken, legal, line))
        observation, reward, terminated, truncated, info = spoken.step(told[-1])
        total += float(info["parts"]["environment"])
        say(_done(info, reward))
        ending = _ending(info, terminated, truncated)
    if ending != "goes on":
        show(len(told), observation.images)
    say(f"\n{_last(ending, total, len(told))}")
    return {"turns": len(told), "return": total, "ending": ending, "replies": told}


def reply_of(spoken: Spoken, legal: tuple[str, ...], line: str) -> str:
    """What a person typed as a model's reply: the bare name of a legal action in the form of one, else as it is."""
    named = spoken.game.read(spoken.inner, legal, line) is not None
    return write_reply(None, line, spoken.rules.form) if named else line


def _between(game: Game) -> str:
    if game.floor is None:
        return ""
    best = "" if game.ceiling is None else f", the best policy in {100 * game.ceiling:.3g} %"
    return f"Random legal actions succeed in {100 * game.floor:.3g} % of the episodes{best}. "


def _listed(legal: tuple[str, ...]) -> str:
    more = len(legal) - MOST_NAMES
    return ", ".join(legal[:MOST_NAMES]) + (f", and {more} more" if more > 0 else "")


def _done(info: Mapping[str, Any], reward: float) -> str:
    action = "nothing" if info["action"] is None else str(info["action"])
    done = f"done: {action}" if info["legal"] else f"no legal action in the reply; done instead: {action}"
    parts = info["parts"]
    by_part = ", ".join(f"{name} {signed(value)}" for name, value in parts.items()) if len(parts) > 1 else ""
    return f"{done} · reward {signed(reward)}" + (f" ({by_part})" if by_part else "")


def _ending(info: Mapping[str, Any], terminated: bool, truncated: bool) -> Ending:
    if not (terminated or truncated):
        return "goes on"
    if info["success"]:
        return "success"
    return "failed" if terminated else "cut off"


def _last(ending: str, total: float, turns: int) -> str:
    what = "left before the end" if ending == "goes on" else ending
    return f"{what} · return {signed(total)} · {turns} turn{'' if turns == 1 else 's'}"


# The picture, in a terminal.


def half_blocks(image: Image.Image, columns: int, rows: int) -> Text:
    """The picture in at most `columns` × `rows` characters, two pixels in each: the upper one is the ink of `▀`, the
    lower one its paper. Never enlarged."""
    scale = min(1.0, columns / image.width, 2 * rows / image.height)
    size = (max(1, round(image.width * scale)), 2 * max(1, round(image.height * scale / 2)))
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2]):
        for (r, g, b), (x, y, z) in zip(upper.tolist(), lower.tolist()):
            text.append("▀", style=f"#{r:02x}{g:02x}{b:02x} on #{x:02x}{y:02x}{z:02x}")
        text.append("\n")
    text.right_crop(1)
    return text
