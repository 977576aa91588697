"""`fovea play`: the episode of a run with a person, or a file of replies, as the model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fovea import cli
from fovea.cli import playing as command
from fovea.environments import catalogue
from fovea.environments.seeds import episode_seed
from fovea.environments.spoken import Rules, Spoken
from fovea.types import UserError
from fovea.viewer import playing
from fovea.viewer.playing import games, half_blocks, open_spoken, play, replies, reply_of

pytest.importorskip("gymnasium")

HOSTILE = "<think>\x1b[2J\u202e<script>alert(1)</script></think>{{ 7*7 }} [bold]x[/bold] __import__('os')"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["play", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def script(folder: Path, *lines: str) -> str:
    path = folder / "replies.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def played(name: str, lines: list[str], **more) -> tuple[dict, str, list[int]]:
    """What an episode came to, all that was said, and the turns whose pictures were shown."""
    spoken = open_spoken(name, more.pop("options", {}))
    said: list[str] = []
    shown: list[int] = []
    how = {"seed": 3, "split": "test", "number": 0} | more
    found = play(spoken, replies(lines), said.append, lambda turn, images: shown.append(turn), **how)
    spoken.close()
    return found, "\n".join(said), shown


def begun(**how) -> tuple[int, int]:
    """Start and target of the number line of an episode."""
    game = catalogue.find_game("number_line")
    spoken = Spoken(game=game)
    _, info = spoken.reset(
        seed=episode_seed(how["seed"], how["split"], how["number"]), options={"split": how["split"]}
    )
    return info["state"]["current"], info["state"]["target"]


# ---------------------------------------------------------------- the episode


@pytest.mark.parametrize("number", range(4))
def test_right_moves_win_and_every_state_is_shown(number):
    current, target = begun(seed=3, split="test", number=number)
    moves = abs(current - target)
    right = "+" if current < target else "-"
    found, said, shown = played("number_line", [right] * moves, number=number)
    assert (found["ending"], found["return"], found["turns"]) == ("success", 1.0, moves)
    assert found["replies"] == [f"<answer>{right}</answer>"] * moves
    assert shown == list(range(moves + 1))  # the last state, too
    assert said.count(f"done: {right}") == moves
    assert said.endswith(f"success · return +1 · {moves} turn{'' if moves == 1 else 's'}")
    assert said.count("Move the current number to the target") == 1  # said again only where it changes
    assert "actions: -, +" in said


def test_the_episode_is_the_one_a_run_meets_and_illegal_replies_are_answered_as_there():
    lines = ["north", "<think>5</think><answer>+</answer>", HOSTILE]
    game = catalogue.find_game("number_line")
    spoken = Spoken(game=game, rules=Rules())
    spoken.reset(seed=episode_seed(3, "test", 2), options={"split": "test"})
    done = []
    total = 0.0
    for line in lines:
        *_, truncated, info = spoken.step(line)
        done.append(info["action"])
        total += info["parts"]["environment"]
        if truncated or "success" in info:
            break
    found, said, _ = played("number_line", lines, number=2)
    assert found["return"] == total
    assert found["turns"] == len(done)
    assert found["replies"] == lines[: len(done)]  # not put into another form
    assert f"no legal action in the reply; done instead: {done[0]}" in said


def test_a_bare_name_becomes_a_reply_and_a_reply_stays_one():
    spoken = open_spoken("number_line", {})
    assert reply_of(spoken, ("-", "+"), ' "+" ') == '<answer> "+" </answer>'
    assert reply_of(spoken, ("-", "+"), "<answer>+</answer>") == "<answer>+</answer>"
    assert reply_of(spoken, ("-", "+"), "plus") == "plus"


def test_it_ends_early_on_q_and_at_the_end_of_a_script():
    for lines in (["q", "+"], [], ["", "  "]):
        found, said, shown = played("number_line", lines)
        assert (found["ending"], found["turns"], shown) == ("goes on", 0, [0])
        assert "left before the end · return 0 · 0 turns" in said


def test_an_action_called_q_is_played():
    spoken = open_spoken("number_line", {})
    _, info = spoken.reset(seed=0)
    assert "q" not in info["legal_actions"]
    asked = iter(["q", None])
    spoken.game = _with_q(spoken.game)
    found = play(
        spoken, lambda: next(asked), lambda text: None, lambda *_: None, seed=0, split="train", number=0
    )
    assert found["replies"] == ["<answer>q</answer>"]


def _with_q(game):
    from dataclasses import replace

    return replace(game, legal=lambda env: ("q", "+"), act=lambda env, name: 1)


def test_too_many_turns_cut_an_episode_off():
    current, target = begun(seed=3, split="test", number=0)
    wrong = "-" if current < target else "+"
    found, said, _ = played("number_line", [wrong] * 20)
    assert (found["ending"], found["turns"]) == ("cut off", 10)
    assert "cut off · return −10 · 10 turns" in said


@pytest.mark.parametrize("name", ["number_line", "ez_points", "points24", "blackjack"])
def test_every_card_game_is_played_by_its_solver(name):
    spoken = open_spoken(name, {"side": 64} if name == "number_line" else {})
    expert = spoken.game.expert
    assert expert is not None
    found = play(
        spoken,
        lambda: expert(spoken.inner),
        lambda text: None,
        lambda *_: None,
        seed=0,
        split="train",
        number=0,
    )
    assert found["ending"] in ("success", "failed")
    assert 1 <= found["turns"] <= spoken.max_turns


# ---------------------------------------------------------------- the command


def test_a_script_is_played_and_its_pictures_are_written(capsys, tmp_path):
    file = script(tmp_path, "", "left", HOSTILE, "q")
    code, out, err = run(
        capsys, "number_line", "side=64", "--replies", file, "--seed", "1000003", "--split", "test", "--episode",
        "3", "--pictures", str(tmp_path / "shown"),
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "number_line · test · seed 1000003 · episode 3 · at most 10 turns" in out
    floor = catalogue.find_game("number_line").floor
    assert (
        f"Random legal actions succeed in {100 * floor:.3g} % of the episodes, the best policy in 100 %."
        in out
    )
    assert "> left" in out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b[2J\\u202e<script>" in out
    assert "{{ 7*7 }} [bold]x[/bold]" in out
    assert "left before the end" in out
    files = sorted(path.name for path in (tmp_path / "shown").iterdir())
    assert files == ["turn_000.png", "turn_001.png", "turn_002.png"]
    with Image.open(tmp_path / "shown" / "turn_000.png") as image:
        assert image.size == (64, 64)
    assert str(tmp_path / "shown" / "turn_002.png") in out


def test_json_is_only_json(capsys, tmp_path):
    file = script(tmp_path, "+", "+", "+", "+", "+", "+", "+", "+", "+", "+")
    code, out, err = run(capsys, "number_line", "--replies", file, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["ending"] in ("success", "failed", "cut off")
    assert run(capsys, "number_line", "--replies", file, "--json")[1] == out  # the same again
    code, out, _ = run(capsys, "--list", "--json")
    assert {row["name"] for row in json.loads(out)} == set(catalogue.GAMES)


def test_the_list_has_every_game_with_floor_and_ceiling(capsys):
    code, out, err = run(capsys, "--list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == len(catalogue.GAMES) + 1
    row = next(line for line in lines if line.startswith("number_line "))
    assert row.split("  ")[0] == "number_line"
    assert f"{100 * catalogue.find_game('number_line').floor:.3g} %" in row
    assert "100 %" in row
    assert "10 turns" in row


def test_a_missing_package_is_one_sentence(capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'gymnasium'", name="gymnasium")

    monkeypatch.setattr(playing, "find_game", missing)
    code, out, err = run(capsys, "number_line")
    assert (code, out) == (2, "")
    assert err == (
        "fovea: number_line needs the package gymnasium, which is not installed: pip install 'fovea-rl[envs]'.\n"
    )
    assert all("pip install" in row["trouble"] for row in games())
    code, out, err = run(capsys, "--list")
    assert (code, err) == (0, "")
    assert out.count("pip install") == len(catalogue.GAMES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Name a game"),
        (["numberline"], "did you mean 'number_line'"),
        (["number_line", "sid=3"], "no option 'sid'"),
        (["number_line", "side"], "is not an override"),
        (["number_line", "side=3"], "side must be pixels"),
        (["number_line", "--split", "held_out"], "choose train, validation or test"),
        (["number_line", "--replies", "nowhere.txt"], "cannot be read"),
        (["number_line", "--json"], "add --replies"),
        (["number_line", "--seed", "-1"], "'--seed'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, says):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fovea: ")
    assert err.count("\n") == 1
    assert says in err


def test_files_that_are_no_text_and_folders_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    code, _, err = run(capsys, "number_line", "--replies", str(tmp_path / "bytes"))
    assert code == 2
    assert "is not UTF-8 text" in err
    code, _, err = run(
        capsys, "number_line", "--replies", script(tmp_path, "+"), "--pictures", str(tmp_path / "bytes")
    )
    assert code == 2
    assert "give another --pictures" in err


def test_a_person_types_and_the_end_of_the_input_is_the_end():
    """In a process of its own: empty lines are asked again, and nothing heavy is loaded."""
    code = (
        "import sys\nfrom fovea.cli import main\ncode = main(['play', 'number_line', 'side=64'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], input="\n\n+\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "return" in done.stdout.splitlines()[-1]
    assert "picture " in done.stdout
    assert "▀" not in done.stdout  # no terminal


# ---------------------------------------------------------------- the picture


def test_half_blocks_hold_two_pixels_each_and_are_never_enlarged():
    pixels = np.zeros((4, 3, 3), dtype=np.uint8)
    pixels[0], pixels[1] = (255, 0, 0), (0, 255, 0)
    text = half_blocks(Image.fromarray(pixels), columns=80, rows=40)
    assert text.plain == "▀▀▀\n▀▀▀"
    assert str(text.spans[0].style) == "#ff0000 on #00ff00"
    assert str(text.spans[-1].style) == "#000000 on #000000"
    for size, columns, rows in (((300, 300), 64, 20), ((640, 20), 64, 20), ((1, 999), 9, 9)):
        lines = half_blocks(Image.new("L", size), columns, rows).plain.split("\n")
        assert len(lines) <= rows
        assert 1 <= max(map(len, lines)) <= columns


def test_a_terminal_with_colours_shows_the_picture(monkeypatch, tmp_path, capsys):
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, color_system="truecolor", width=80, height=30, _environ={}
    )
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    command._showing(tmp_path, json=False)(3, (Image.new("RGB", (8, 8), (1, 2, 3)),))
    assert "▀" in stream.getvalue()
    assert "38;2;1;2;3" in stream.getvalue()
    assert str(tmp_path / "turn_003.png") in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be written"):
        command._showing(tmp_path / "turn_003.png", json=False)(0, (Image.new("RGB", (8, 8)),))
