"""The card games: rules against gymnasium's own and against brute force, floors and ceilings, hostile formulas."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from timing import best_time

from fovea.environments.cards import blackjack, ez_points, number_line, points24
from fovea.environments.cards.blackjack_solver import most_reward, most_wins, outcomes, total_of
from fovea.environments.cards.drawing import look, table
from fovea.environments.cards.formula_solver import completion, solutions, solvable
from fovea.environments.cards.formulas import evaluate, evaluate_like_python, solves
from fovea.environments.cards.number_line import HELD_OUT, NumberLine, pairs, paper_pairs, random_success
from fovea.environments.cards.points import Points, worth
from fovea.environments.game import Game, named
from fovea.tasks.card_pictures import Card
from fovea.tasks.fonts import font_names
from fovea.tasks.scenes import SPLITS
from fovea.types import UserError

GAMES: tuple[Game, ...] = (number_line.GAME, ez_points.GAME, points24.GAME, blackjack.GAME)
PRESETS = ("fixed", "paper")
every_game = pytest.mark.parametrize("game", GAMES, ids=lambda game: game.name)
every_preset = pytest.mark.parametrize("preset", PRESETS)


class Unseen:
    """Mixed in before a game: its rules without the time its pictures take."""

    def render(self) -> Any:
        return np.zeros((300, 300, 3), np.uint8)


class UnseenBlackjack(Unseen, blackjack.Blackjack):
    pass


class UnseenEZPoints(Unseen, ez_points.EZPoints):
    pass


class UnseenPoints24(Unseen, points24.Points24):
    pass


def press(env: Any, *names: str) -> Any:
    """The answer to the last of these actions."""
    for name in names:
        answer = env.step(env.names.index(name))
    return answer


def hand(env: Points, *ranks: str) -> Any:
    """The game with these cards."""
    env._ranks = lambda: ranks  # type: ignore[method-assign]
    env.reset(seed=0)
    return env


# --- every game ----------------------------------------------------------------------------------------------


@every_game
@every_preset
@pytest.mark.parametrize("side", [300, 64])
def test_gymnasium_finds_no_fault(game: Game, preset: str, side: int) -> None:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.utils.env_checker import check_env

    spec = EnvSpec(id="Fovea/Checked-v0", entry_point=game.make, kwargs={"preset": preset, "side": side})
    check_env(gymnasium.make(spec).unwrapped)


@every_game
@every_preset
def test_an_episode_depends_on_the_seed_and_the_split_alone(game: Game, preset: str) -> None:
    def frames(env: Any) -> list[bytes]:
        seen = [env.reset(seed=5, options={"split": "test"})[0].tobytes()]
        rng = np.random.default_rng(1)
        while not env.over:
            seen.append(env.step(int(rng.integers(len(env.names))))[0].tobytes())
        return seen

    env = game.make(preset=preset, side=96)
    first = frames(env)
    env.reset(seed=9)  # what was played in between leaves no trace
    assert frames(env) == first == frames(game.make(preset=preset, side=96))
    env.reset(seed=6, options={"split": "test"})
    assert env.render().tobytes() != first[0]


@every_game
def test_an_episode_is_restored_from_its_journal(game: Game) -> None:
    from fovea.environments.replay import Recorded, restore

    env = Recorded(game.make(side=64), id=game.name, kwargs={"side": 64})
    env.reset(seed=2, options={"split": "validation"})
    for name in ("-", "hit", "(", "10"):
        if name in game.legal(env.env) and not env.env.over:  # type: ignore[attr-defined]
            env.step(game.act(env.env, name))
    again = restore(json.loads(json.dumps(env.state())), make=lambda id, **options: game.make(**options))
    assert game.state(again.env) == game.state(env.env)
    assert again.env.render().tobytes() == env.env.render().tobytes()  # type: ignore[attr-defined]


@every_game
@every_preset
@pytest.mark.parametrize("wording", ["short", "paper"])
def test_the_game_is_spoken_of_in_names_that_can_be_read_back(game: Game, preset: str, wording: str) -> None:
    env = game.make(preset=preset, wording=wording, side=64)
    rng = np.random.default_rng(0)
    for seed in range(20):
        env.reset(seed=seed, options={"split": SPLITS[seed % 3]})
        turns = 0
        while not env.over:
            legal = game.legal(env)
            assert legal
            assert game.expert is not None
            assert game.reason is not None
            best = game.expert(env)
            assert best in legal
            assert game.reason(env, best)
            assert game.thought(env)
            assert len(game.ask(env)) < (100 if wording == "short" else 900)
            json.dumps(game.state(env))
            assert all(named(env, legal, f" '{name}' ") == name for name in legal)
            before = game.state(env)
            name = best if seed % 2 else str(rng.choice(legal))
            assert game.state(env) == before, "none of these changes anything"
            env.step(game.act(env, name))
            turns += 1
        assert turns <= game.max_turns


@every_game
def test_thoughts_are_short_for_the_embedded_model(game: Game) -> None:
    from fovea.models import load_policy

    tokenizer = load_policy("fovea-tiny").processor.tokenizer
    lengths: dict[str, list[int]] = {"thought": [], "reason": [], "ask": []}
    env = game.make(side=32)
    for seed in range(30):
        env.reset(seed=seed)
        while not env.over:
            assert game.expert is not None
            assert game.reason is not None
            best = game.expert(env)
            said = {"thought": game.thought(env), "reason": game.reason(env, best), "ask": game.ask(env)}
            for name, text in said.items():
                lengths[name].append(len(tokenizer(text, add_special_tokens=False).input_ids))
            env.step(game.act(env, best))
    assert np.mean(lengths["thought"]) <= 24
    assert np.mean(lengths["reason"]) <= 20
    assert max(lengths["thought"]) <= 36
    assert max(lengths["ask"]) <= 60


@every_game
def test_bad_options_are_refused_in_a_sentence(game: Game) -> None:
    for options in ({"preset": "x"}, {"side": 8}, {"side": [64]}, {"side": "64"}, {"wording": "long"}):
        with pytest.raises(UserError, match=next(iter(options))):
            game.make(**options)
    with pytest.raises(UserError, match="square"):
        game.make(preset="paper", side=[96, 64])
    env = game.make(side=[96, 64])
    assert env.reset(seed=0)[0].shape == (64, 96, 3)
    with pytest.raises(UserError, match="split"):
        env.reset(options={"split": "exam"})
    with pytest.raises(UserError, match="from 0 to"):
        env.step(99)


@every_game
def test_a_finished_episode_takes_no_action(game: Game) -> None:
    from gymnasium.error import ResetNeeded

    env = game.make(side=32)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    while not env.over:
        env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)


@every_game
def test_each_split_has_fonts_of_its_own_and_looks_never_change_the_deal(game: Game) -> None:
    env = game.make(side=32)
    for split in SPLITS:
        fonts = set()
        for seed in range(120):
            env.reset(seed=seed, options={"split": split})
            fonts.add(env.look.font)
        assert fonts == set(font_names(split))
    if game.name != "number_line":  # there the splits have starts of their own
        first, second = (env.reset(seed=3, options={"split": split})[1] for split in ("train", "test"))
        assert first == second


# --- NumberLine ----------------------------------------------------------------------------------------------


def test_number_line_random_success_exactly() -> None:
    # Without a wrong move, each of d moves must be right: 2^-d.
    for starts in (pairs(None), pairs("train"), pairs("test"), pairs("test", 5, "states"), paper_pairs()):
        assert random_success(starts) == sum(Fraction(1, 2 ** abs(s - t)) for s, t in starts) / len(starts)
    assert random_success(paper_pairs()) == Fraction(163, 576)  # 28.3 %
    assert random_success(pairs(None)) == Fraction(43, 160)  # 26.9 %
    assert random_success(pairs("test")) == Fraction(19, 96)  # 19.8 %
    assert random_success(pairs("test", 5, "starts")) == Fraction(35, 192)  # 18.2 %
    assert random_success(pairs("validation", 5, "states")) == Fraction(13, 48)  # 27.1 %
    assert random_success(pairs("test", 5, "states")) == Fraction(9, 32)  # 28.1 %
    assert random_success(pairs("train", 5, "states")) == Fraction(89, 336)  # 26.5 %
    assert number_line.GAME.floor == 19 / 96


@pytest.mark.parametrize("hold_out", ["pairs", "starts", "states"])
def test_number_line_holds_pairs_out(hold_out: Any) -> None:
    by_split = {split: set(pairs(split, 5, hold_out)) for split in SPLITS}
    assert [len(by_split[split]) for split in SPLITS] == [21, 3, 6]
    assert set.union(*by_split.values()) == set(pairs(None))
    env = NumberLine(side=32, hold_out=hold_out)
    for split in SPLITS:
        starts = set()
        for seed in range(200):
            info = env.reset(seed=seed, options={"split": split})[1]
            starts.add((info["current"], info["target"]))
        assert starts == by_split[split]
    held = {pair for some in HELD_OUT[hold_out].values() for pair in some}
    passed = {
        (number, target)
        for start, target in by_split["train"]
        for number in range(start, target, 1 if start < target else -1)
    }
    # "states": no right move of a training episode leads through a held-out state; the others: it may
    assert bool(held & passed) == (hold_out != "states")


def both_sides(train: set[tuple[int, int]]) -> bool:
    """Whether every number has training targets, and as a target training starts, on each side that the line has."""
    for place in (0, 1):
        for number in range(6):
            others = {pair[1 - place] for pair in train if pair[place] == number}
            below, above = any(o < number for o in others), any(o > number for o in others)
            if (number > 0 and not below) or (number < 5 and not above):
                return False
    return True


def test_number_line_pairs_are_those_that_were_drawn() -> None:
    everything = pairs(None)
    fits = []
    for seed, name in ((0, "starts"), (1, "pairs")):
        drawn = [everything[i] for i in np.random.default_rng(seed).permutation(30)[:9]]
        held: Any = HELD_OUT[name]
        assert (*held["test"], *held["validation"]) == tuple(drawn)
        fits.append(both_sides(set(everything) - set(drawn)))
    assert fits == [False, True]


def test_number_line_rewards() -> None:
    env = NumberLine(side=32)
    env.reset(seed=0)
    env.current, env.target = 0, 2
    assert press(env, "-")[1:4] == (-1.0, False, False)  # the wall
    assert env.current == 0
    assert press(env, "+")[1:4] == (0.0, False, False)
    assert press(env, "+")[1:4] == (1.0, True, False)
    env.reset(seed=0)
    env.current, env.target = 0, 5
    assert [press(env, "-")[3] for _ in range(10)] == [False] * 9 + [True]
    with pytest.raises(UserError, match="hold_out"):
        NumberLine(max_position=7)
    assert NumberLine(max_position=12, hold_out="none", side=64).reset(seed=1)[0].shape == (64, 64, 3)


def test_number_line_draws_what_the_original_draws() -> None:
    env = NumberLine(preset="paper", side=32)
    seen = set()
    for seed in range(600):
        info = env.reset(seed=seed)[1]
        seen.add((info["current"], info["target"]))
    assert seen == set(paper_pairs())


# --- formulas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/(3-8/3)", 24),
        ("3+5*2", 13),
        ("10-3-4", 3),
        ("8/4/2", 1),
        ("(1+2)*(3+4)", 21),
        ("((7))", 7),
        (" 2 * ( 3 + 4 ) ", 14),
        ("1/3", Fraction(1, 3)),
    ],
)
def test_formulas_come_to_exact_fractions(text: str, value: Fraction | int) -> None:
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2**3",
        "7//2",
        "2 4",
        "-3+5",
        "3+",
        "(3",
        "3)",
        "()",
        "(3)(4)",
        "3(4)",
        "8/(3-3)",
        "1e3",
        "0x1",
        "٣+1",
        "1\0+2",
        "3\n+4",
        "__import__('os')",
        "1_0",
        "2^3",
        "1.5",
        "²",
        "1234+1",
    ],
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    assert evaluate(text) is None


def test_hostile_formulas_are_refused_in_under_5_ms() -> None:
    hostile = [
        "9**9**9**9",
        "9**9**9**9-9",
        "(" * 10_000 + "1" + ")" * 10_000,
        "(" * 100 + "1" + ")" * 99,
        "9" * 100_000,
        "9*" * 50_000,
        "9*" * 99 + "9",
        "9**" * 60 + "9",
        "(9**" * 40 + "9" + ")" * 40,
        "1/" * 99 + "1",
        "٩" * 150,
        "\0" * 150,
        " " * 100_000,
        " " * 200,
        "𝟗*𝟗",
        "-" * 200,
        "1" + "-" * 198 + "1",
    ]
    rng = random.Random(0)
    alphabet = "0123456789+-*/()= \0٣𝟗.eE_xj\n"
    for number in range(10_000):
        letters = alphabet if number % 2 else "1234567890+-*/()"
        hostile.append("".join(rng.choices(letters, k=rng.randrange(1, 220))))
    for text in hostile:
        for function in (evaluate, evaluate_like_python):
            assert best_time(lambda: function(text), 0.005) < 0.005, text[:80]  # noqa: B023


def test_paper_formulas_are_python_s() -> None:
    """Against Python itself, on 4,000 texts small enough for it."""
    rng = random.Random(1)
    checked = 0
    while checked < 4_000:
        text = "".join(
            rng.choices(["1", "2", "3", "8", "10", "+", "-", "*", "/", "(", ")", " "], k=rng.randrange(1, 9))
        )
        if text.count("**") > 1 or "***" in text:
            continue
        try:
            expected = eval(text.strip(), {"__builtins__": {}})
        except (SyntaxError, TypeError, ZeroDivisionError, OverflowError):
            expected = None
        expected = None if isinstance(expected, tuple) else expected  # "()"
        if isinstance(expected, complex) or (expected is not None and abs(expected) > 10**6):
            continue
        found = evaluate_like_python(text)
        if found is None and expected is not None:  # only where a bound was passed on the way
            assert any(len(part) > 3 for part in text.replace("**", "x").split("x")) or "**" in text, text
        else:
            assert found == expected, text
        checked += 1


# --- EZPoints and Points24 -----------------------------------------------------------------------------------


def brute_force(cards: tuple[int, ...]) -> bool:
    """Written apart from the solver: permutations x operators x the five bracketings of four numbers."""

    def apply(sign: str, a: Fraction | None, b: Fraction | None) -> Fraction | None:
        if a is None or b is None or (sign == "/" and b == 0):
            return None
        return {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a / b

    for order in set(itertools.permutations(cards)):
        a, b, c, d = map(Fraction, order)
        for p, q, r in itertools.product("+-*/", repeat=3):
            ab, bc, cd = apply(p, a, b), apply(q, b, c), apply(r, c, d)
            results = (
                apply(r, apply(q, ab, c), d),
                apply(r, apply(p, a, bc), d),
                apply(q, ab, cd),
                apply(p, a, apply(r, bc, d)),
                apply(p, a, apply(q, b, cd)),
            )
            if 24 in results:
                return True
    return False


def test_points24_solver_agrees_with_brute_force_on_every_hand() -> None:
    ranks = tuple(itertools.combinations_with_replacement(range(1, 14), 4))
    assert len(ranks) == 1820
    known = functools.cache(brute_force)  # J, Q, K and 10 are one number: 715 different hands
    solved = 0
    for hand_ranks in ranks:
        cards = tuple(sorted(min(rank, 10) for rank in hand_ranks))
        assert solvable(cards, 24) == known(cards), cards
        orders = len(set(itertools.permutations(hand_ranks)))
        solved += orders * known(cards)
    assert round(solved / 13**4, 4) == 0.7309 == points24.GAME.ceiling


def test_solutions_are_right_and_say_when_there_is_none() -> None:
    rng = np.random.default_rng(0)
    hands = {tuple(sorted(int(n) for n in rng.integers(1, 11, 4))) for _ in range(120)} | {(3, 3, 8, 8)}
    for cards in sorted(hands):
        found = solutions(cards, 24)
        assert bool(found) == solvable(cards, 24)
        for symbols in found:
            assert symbols[-1] == "="
            assert solves("".join(symbols[:-1]), cards, 24), symbols
            assert len(symbols) <= 21
        if len(found) > 0 and len(hands) % 5 == 0:
            assert len(found[0]) == len(completion((), cards, 24, "+-*/(") or ())
    assert solutions((3, 3, 8, 8), 24) == (("8", "/", "(", "3", "-", "8", "/", "3", ")", "="),)
    assert solutions((1, 1, 1, 1), 24) == ()
    assert solutions((2, 10), 12, "+*") == (("10", "+", "2", "="), ("2", "+", "10", "="))


@pytest.mark.long
def test_every_formula_of_every_hand() -> None:
    hands = tuple(itertools.combinations_with_replacement(range(1, 11), 4))
    found = {cards: solutions(cards, 24) for cards in hands}
    assert len(hands) == 715
    assert sum(map(bool, found.values())) == 566
    assert sum(map(len, found.values())) == 12_636
    assert max(len(symbols) for some in found.values() for symbols in some) == 12
    for cards, some in found.items():
        assert all(solves("".join(symbols[:-1]), cards, 24) for symbols in some)
        shortest = completion((), cards, 24, "+-*/(")
        assert len(shortest or ()) == min(map(len, some), default=0)


def test_the_shortest_solution_is_found_from_nothing_and_from_half_a_formula() -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        cards = tuple(sorted(int(n) for n in rng.integers(1, 11, 4)))
        found = solutions(cards, 24)
        from_nothing = completion((), cards, 24, "+-*/(")
        assert (from_nothing is None) == (not found)
        if found:
            assert from_nothing is not None
            assert len(from_nothing) == len(found[0])
            symbols = found[int(rng.integers(len(found)))]
            env = hand(UnseenPoints24(), *map(str, cards)) if 1 not in cards else None
            for symbol in symbols if env else ():
                rest = points24.points.rest(env)
                assert rest is not None
                text = env.text() + "".join(rest[:-1])
                assert solves(text, cards, 24)
                answer = press(env, symbol)
            if env:
                assert answer[1:3] == (10.0, True)


def test_the_expert_goes_on_from_redundant_brackets_and_gives_up_when_nothing_helps() -> None:
    env = hand(UnseenPoints24(), "3", "8", "3", "8")
    press(env, "(", "(", "8", ")")
    rest = points24.points.rest(env)
    assert rest is not None
    assert solves(env.text() + "".join(rest[:-1]), (3, 3, 8, 8), 24)
    press(env, "+")
    assert points24.points.rest(env) is None
    assert points24.GAME.expert is not None
    assert points24.GAME.expert(env) == "="
    assert points24.GAME.reason is not None
    assert points24.GAME.reason(env, "=") == "no formula makes 24"
    env = hand(UnseenPoints24(), "4", "6", "10", "10")
    press(env, *"((((((((((((((")  # closing them all would take more than 21 symbols
    assert points24.points.rest(env) is None


@pytest.mark.parametrize("game", [ez_points.GAME, points24.GAME], ids=["ez_points", "points24"])
@every_preset
def test_the_expert_wins_whatever_can_be_won(game: Game, preset: str) -> None:
    env = {"ez_points": UnseenEZPoints, "points24": UnseenPoints24}[game.name](preset=preset)
    assert game.expert is not None
    for seed in range(60):
        env.reset(seed=seed)
        total, terminated = 0.0, False
        possible = points24.points.rest(env) is not None
        while not env.over:
            _, reward, terminated, _, _ = press(env, game.expert(env))
            total += reward
        assert game.won(env, total, terminated) == possible
        if preset == "fixed":
            assert possible == env.info()["solvable"]


def test_legality_in_both_presets() -> None:
    env = hand(UnseenPoints24(), "2", "4", "A", "A")
    assert env.legal() == ("1", "2", "4", "(", "=")
    assert press(env, "2", "4")[1:4] == (-1.0, False, False)  # no number after a number
    assert env.text() == "2"
    assert press(env, "*", "*")[1] == -1.0
    assert press(env, "3")[1] == -1.0  # no such card
    assert env.text() == "2*"
    assert press(env, "4", "*", "1", "*", "1", "=")[1:3] == (-1.0, True)  # 8 is not 24
    env = hand(UnseenPoints24(preset="paper"), "2", "4", "A", "A")
    assert env.legal() == ("1", "2", "4", "+", "-", "*", "/", "(", ")", "=")
    assert press(env, "2", "4", "*", "1", "*", "1", "=")[1:3] == (10.0, True)  # digits run together
    env = hand(UnseenPoints24(preset="paper"), "2", "4", "5", "5")
    assert press(env, "9")[1:4] == (-1.0, False, False)
    assert env.text() == " "
    assert press(env, *"24+5-5=")[1:3] == (10.0, True)
    env = hand(UnseenPoints24(preset="paper"), "3", "3", "8", "8")
    assert press(env, *"8/(3-8/3)=")[1:3] == (-1.0, True)  # 23.99999999999999 in floats
    env = hand(UnseenPoints24(), "3", "3", "8", "8")
    assert press(env, *"8/(3-8/3)=")[1:3] == (10.0, True)
    env = hand(UnseenPoints24(preset="paper"), "9", "9", "9", "9")
    assert press(env, *"9**9**9**9=")[1:3] == (-1.0, True)  # refused, not computed


@every_preset
def test_the_cap_ends_an_episode(preset: str) -> None:
    for env, cap in ((UnseenEZPoints(preset=preset), 5), (UnseenPoints24(preset=preset), 20)):
        env.reset(seed=0)
        missing = next(str(number) for number in range(1, 11) if number not in env.left)
        for _ in range(cap + 1):
            assert press(env, missing)[1:4] == (-1.0, False, False)
        assert press(env, "=")[1:4] == (-1.0, False, True)


def deals() -> dict[tuple[int, ...], Fraction]:
    """EZPoints' hands and their chances, by its rules."""
    chances: dict[tuple[int, ...], Fraction] = {}
    for rank in range(2, 14):
        number = min(rank, 10)
        factor = number in (2, 3, 4, 6)
        for partner in (12 - number, 12 // number) if factor else (12 - number,):
            cards = tuple(sorted((number, partner)))
            chances[cards] = chances.get(cards, Fraction(0)) + Fraction(1, 24 if factor else 12)
    return chances


def test_ez_points_deals_by_its_rules_and_always_solvable_hands() -> None:
    assert sum(deals().values()) == 1
    assert {cards: float(chance) for cards, chance in deals().items()}[(2, 10)] == 0.375
    env = UnseenEZPoints()
    seen: Counter[tuple[int, ...]] = Counter()
    env.reset(seed=0)
    for _ in range(4_000):
        info = env.reset()[1]
        assert info["solvable"]
        seen[tuple(sorted(info["numbers"]))] += 1
    assert set(seen) == set(deals())
    for cards, chance in deals().items():
        assert abs(seen[cards] / 4_000 - float(chance)) < 0.03


def test_ez_points_random_success_exactly() -> None:
    """Random legal symbols in the preset `fixed`: at most 6 count, and 10 minus nothing is a success."""

    def success(text: tuple[str, ...], left: tuple[int, ...]) -> Fraction:
        if len(text) > 5:
            return Fraction(0)  # the next action is cut off
        if text and text[-1].isdigit():
            after = [((*text, sign), left) for sign in "+*"]
        else:
            after = [
                ((*text, str(n)), tuple(sorted((Counter(left) - Counter([n])).elements()))) for n in set(left)
            ]
        won = Fraction(solves("".join(text), cards, 12) and not left)
        return (won + sum(success(*state) for state in after)) / (len(after) + 1)

    floor = Fraction(0)
    for cards, chance in deals().items():
        floor += chance * success((), cards)
    print("EZPoints floor", floor, float(floor))
    assert ez_points.GAME.floor == pytest.approx(float(floor), abs=5e-5)


def test_points24_solvable_only() -> None:
    env = UnseenPoints24(solvable_only=True)
    assert all(env.reset(seed=seed)[1]["solvable"] for seed in range(100))


# --- Blackjack -----------------------------------------------------------------------------------------------


def test_blackjack_is_gymnasium_s_on_10_000_hands() -> None:
    from gymnasium.envs.toy_text.blackjack import BlackjackEnv, sum_hand, usable_ace

    ours, theirs = UnseenBlackjack(), BlackjackEnv()
    choices = np.random.default_rng(0)
    ours.reset(seed=0)
    for number in range(10_000):
        theirs.reset(seed=number)
        ours.reset(seed=number)
        # Theirs draws the suit of a picture from the same stream as the cards: from here on the same stream again.
        ours.np_random = np.random.default_rng(10_000 + number)
        theirs.np_random = np.random.default_rng(10_000 + number)
        terminated = False
        while not terminated:
            assert [worth(card.rank) for card in ours.player] == theirs.player
            assert [worth(card.rank) for card in ours.dealer] == theirs.dealer
            assert ours.total() == (sum_hand(theirs.player), bool(usable_ace(theirs.player)))
            action = int(choices.integers(2))
            answer, expected = ours.step(action), theirs.step(action)
            assert answer[1:4] == expected[1:4]
            terminated = answer[2]
        assert [worth(card.rank) for card in ours.dealer] == theirs.dealer


def test_blackjack_floors_and_ceilings() -> None:
    def percent(policy: Any) -> float:
        return round(100 * outcomes(policy)[0], 2)

    assert percent(None) == 28.06
    assert percent(lambda total, soft, dealer: False) == 38.07
    assert percent(most_reward) == 42.95
    assert percent(most_wins) == 43.16
    assert (blackjack.GAME.floor, blackjack.GAME.ceiling) == (0.2806, 0.4316)
    won, drawn = outcomes(most_reward)
    assert round(100 * drawn, 2) == 9.45
    assert round(2 * won + drawn - 1, 4) == -0.0466


def test_the_expert_of_blackjack_wins_as_often_as_computed() -> None:
    env = UnseenBlackjack()
    assert blackjack.GAME.expert is not None
    env.reset(seed=0)
    wins = 0
    for _ in range(4_000):
        env.reset()
        total = 0.0
        while not env.over:
            total += press(env, blackjack.GAME.expert(env))[1]
        wins += blackjack.GAME.won(env, total, True)
    assert abs(wins / 4_000 - 0.4316) < 4 * (0.25 / 4_000) ** 0.5


def test_every_card_is_inside_the_picture_in_fixed_and_the_fifth_is_not_in_paper() -> None:
    cards = [Card(rank=str(rank), suit="clubs") for rank in range(2, 10)]
    style = look(np.random.default_rng(0), "train")
    for size in ((300, 300), (128, 96), (96, 64), (64, 64)):
        for count in range(2, 8):
            less, more = (table(style, size, cards[:2], cards[: count + extra]).tobytes() for extra in (0, 1))
            assert less != more
    env = blackjack.Blackjack(preset="paper")
    env.reset(seed=0)
    env.player = cards[:4]
    four = env._draw().tobytes()
    env.player = cards[:5]
    assert env._draw().tobytes() == four
    assert total_of([1, 5]) == (16, True)


# --- a learner that knows nothing of us ----------------------------------------------------------------------


def test_a_learner_that_knows_nothing_of_us_learns_number_line_from_the_picture() -> None:
    """stable-baselines3's PPO with a small convolutional network: measured 96 % after 4,096 moves; random 26.5 %."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import Tensor, nn

    class Small(BaseFeaturesExtractor):
        def __init__(self, space: Any) -> None:
            super().__init__(space, 128)
            self.net = nn.Sequential(
                nn.Conv2d(3, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten()
            )
            self.head = nn.Sequential(nn.Linear(32 * 6 * 6, 128), nn.ReLU())

        def forward(self, pictures: Tensor) -> Tensor:
            return self.head(self.net(pictures))

    torch.manual_seed(0)
    learner = PPO(
        "CnnPolicy",
        NumberLine(side=64),
        seed=0,
        n_steps=512,
        batch_size=128,
        n_epochs=6,
        learning_rate=1e-3,
        gamma=0.9,
        ent_coef=0.01,
        policy_kwargs={"features_extractor_class": Small, "net_arch": []},
        device="cpu",
    )
    learner.learn(4_096)
    env, wins = NumberLine(side=64), 0
    for seed in range(10_000, 10_100):  # fonts and colours of training in new mixtures
        picture, _ = env.reset(seed=seed)
        total, terminated = 0.0, False
        while not env.over:
            action, _ = learner.predict(picture, deterministic=True)
            picture, reward, terminated, _, _ = env.step(int(action))
            total += reward
        wins += number_line.GAME.won(env, total, terminated)
    print("PPO wins", wins, "of 100")
    assert wins > 60
