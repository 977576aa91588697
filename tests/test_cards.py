"""Playing cards: the pictures can be told apart, the answers follow from the cards, splits share no hand."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from fovea.tasks import cards
from fovea.tasks.card_pictures import RANKS, SUITS, Card, CardStyle, blackjack_total, draw_card, draw_suit
from fovea.tasks.cards import FACTS, QUESTIONS, content
from fovea.tasks.chance import blind_chance
from fovea.tasks.fonts import font
from fovea.tasks.questions import Asked
from fovea.tasks.scenes import SPLITS, Split, generator
from fovea.tasks.splits import split_of

MARK = re.compile(r"\{(?:look:\d+,|box:)([\d.,]+)\}")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Card, ...], list[Any]]]:
    """What `lay_out`, which runs as it is, was given."""
    seen: list[tuple[tuple[Card, ...], list[Any]]] = []
    lay_out = cards.lay_out

    def record(rng: Any, split: Split, size: Any, hand: Any, boxes: Any) -> Any:
        seen.append((tuple(hand), list(boxes)))
        return lay_out(rng, split, size, hand, boxes)

    monkeypatch.setattr(cards, "lay_out", record)
    return seen


def ask(name: str, index: int, split: Split = "train") -> Asked:
    return QUESTIONS[name][0](generator("test-cards", name, split, index), split)


def best_total(hand: tuple[Card, ...]) -> int:
    """By trying both values of every ace."""
    values = [
        (1, 11) if card.rank == "A" else (10,) if card.rank in "JQK" else (int(card.rank),) for card in hand
    ]
    totals = [sum(choice) for choice in itertools.product(*values)]
    return max((total for total in totals if total <= 21), default=min(totals))


def expected(name: str, hand: tuple[Card, ...], boxes: list[Any], asked: Asked) -> Any:
    """The answer, from the cards on the table and the question alone."""
    order = ["2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K", "A"]
    if name == "cards/name":
        return f"{hand[0].rank} of {hand[0].suit}"
    if name == "cards/hand":
        return ", ".join(card.rank for _, card in sorted(zip(boxes, hand)))
    if name == "cards/total":
        return best_total(hand)
    if name == "cards/count":
        return len(hand)
    if name == "cards/action":
        return "hit" if best_total(hand) < 17 else "stand"
    if name == "cards/compare":
        left, right = (order.index(card.rank) for _, card in sorted(zip(boxes, hand)))
        assert left != right
        return "left" if left > right else "right"
    wanted = asked.question.split(" is the ")[1].split("?")[0]
    found = [
        (card, box)
        for card, box in zip(hand, boxes)
        if wanted in (card.label, "" if card.hidden else card.rank)
    ]
    assert len(found) == 1, "what is asked for must be unique"
    if name == "cards/locate":
        return list(found[0][1])
    return re.search(rf"([A-D])\) {found[0][0].suit}", asked.question).group(1)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_follow_from_the_cards(name: str, tables: list[Any]) -> None:
    for index in range(60):
        split = SPLITS[index % 3]
        asked = ask(name, index, split)
        hand, boxes = tables[-1]
        assert asked.answer == expected(name, hand, boxes, asked)
        assert split_of(content(hand, boxes)) == split
        width, height = asked.images[0].size
        assert all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in boxes)
        assert all(24 <= box[2] - box[0] <= 64 for box in boxes)
        for first, second in itertools.combinations(boxes, 2):
            assert (
                first[2] <= second[0]
                or second[2] <= first[0]
                or first[3] <= second[1]
                or second[3] <= first[1]
            )
        assert asked.thought
        assert 0 <= asked.difficulty <= 1


@pytest.mark.parametrize("name", QUESTIONS)
def test_said_is_the_answer_and_points_at_cards(name: str, tables: list[Any]) -> None:
    for index in range(20):
        asked = ask(name, index)
        boxes = {tuple(map(float, box)) for box in tables[-1][1]}
        plain = MARK.sub("", asked.said)
        if name == "cards/action":
            assert json.loads(plain)["action"] == asked.answer
        elif name != "cards/locate":
            assert plain == str(asked.answer)
        for numbers in MARK.findall(asked.said + asked.thought):
            assert tuple(map(float, numbers.split(","))) in boxes


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_problem_is_a_function_of_the_generator(name: str) -> None:
    first, again, other = ask(name, 3), ask(name, 3), ask(name, 4)
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert (first.question, first.answer, first.said) == (again.question, again.answer, again.said)
    assert first.images[0].tobytes() != other.images[0].tobytes()


@pytest.mark.parametrize("name", QUESTIONS)
def test_chance_of_the_best_constant_reply(name: str) -> None:
    _, kind, chance, _ = QUESTIONS[name]
    asked = [ask(name, index) for index in range(500)]
    sizes = [one.images[0].size if kind == "box" else None for one in asked]
    measured = blind_chance([kind] * len(asked), [one.answer for one in asked], sizes)
    slack = 4 * np.sqrt(chance * (1 - chance) / len(asked)) + 0.005
    assert chance - slack <= measured <= chance + slack + 0.01  # the best of many constants is lucky too


def test_all_totals_and_cards_occur_in_every_split() -> None:
    """No answer is lost because the hash sends all of its hands elsewhere."""
    found: dict[Split, set[int]] = {split: set() for split in SPLITS}
    for ranks in itertools.product(RANKS, repeat=2):
        for suits in itertools.product(SUITS, repeat=2):
            hand = [Card(rank=rank, suit=suit) for rank, suit in zip(ranks, suits)]
            found[split_of(content(hand, ()))].add(blackjack_total(ranks))
    for split in SPLITS:
        assert set(range(5, 22)) <= found[split]


def test_shares_of_the_splits() -> None:
    counts = Counter(split_of(f"hand {index}") for index in range(4000))
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2)):
        assert abs(counts[split] / 4000 - share) < 4 * np.sqrt(share * (1 - share) / 4000)


@pytest.mark.parametrize(
    ("ranks", "total"),
    [("A K", 21), ("A A", 12), ("A A A", 13), ("A 9 A", 21), ("A 5 K", 16), ("10 J 2", 22), ("2 3", 5)],
)
def test_blackjack_totals(ranks: str, total: int) -> None:
    assert blackjack_total(ranks.split()) == total


@pytest.mark.parametrize("layout", ["stacked", "diagonal", "index"])
@pytest.mark.parametrize("height", [33, 61])
def test_no_two_cards_look_alike(layout: Any, height: int) -> None:
    """The smallest difference of two cards, in pixels that differ by a fifth of the range, is a visible one."""
    style = CardStyle(layout=layout)
    for split in SPLITS:
        face = font(split, generator("face", split), 40)
        deck = [
            np.asarray(draw_card(rank, suit, height, face, style), np.int16)
            for rank in RANKS
            for suit in SUITS
        ]
        assert {card.shape for card in deck} == {(height, round(0.72 * height), 4)}
        for first, second in itertools.combinations(deck, 2):
            assert (np.abs(first - second).max(2) > 51).sum() >= 8


def test_suits_differ_and_have_their_colour() -> None:
    for size in (8, 12, 24):
        masks = {suit: np.asarray(draw_suit(suit, size), np.float32) / 255 for suit in SUITS}
        for first, second in itertools.combinations(masks.values(), 2):
            assert np.abs(first - second).mean() > 0.06
    face = font("train", generator(0), 40)
    for suit in SUITS:
        red, green, _, _ = np.asarray(draw_card("9", suit, 44, face)).reshape(-1, 4).astype(int).T
        assert ((red - green) > 100).any() == (suit in ("hearts", "diamonds"))


def test_scenes_are_labelled_with_facts_of_the_lists() -> None:
    for index in range(60):
        scene = cards.scene(generator("scene", index), SPLITS[index % 3])
        width, height = scene.image.size
        assert list(scene.things) == sorted(scene.things, key=lambda thing: thing.box)
        for thing in scene.things:
            assert 0 <= thing.box[0] < thing.box[2] <= width
            assert 0 <= thing.box[1] < thing.box[3] <= height
            facts = dict(thing.facts)
            assert all(value in FACTS[name] for name, value in facts.items())
            assert thing.label == (
                "face-down card" if "rank" not in facts else f"{facts['rank']} of {facts['suit']}"
            )
