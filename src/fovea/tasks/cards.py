"""Cards on a table, and questions about them.

Two or more cards belong to the split that the hash of the hand says, a single card to that of its place; so no
hand of the test split is ever trained on. Fonts and table patterns are the split's own as well.

Not here: drawing a card (`card_pictures`), and the card games (environments).

Try it: python -c "from fovea.tasks.cards import *; scene(np.random.default_rng(0), 'train').image.show()"
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from fovea.boxes import look, place
from fovea.tasks.card_pictures import (
    ASPECT,
    RANKS,
    RGB,
    SUITS,
    Box,
    Card,
    blackjack_total,
    draw_back,
    draw_card,
    random_style,
)
from fovea.tasks.fonts import font
from fovea.tasks.questions import Asked, Question
from fovea.tasks.scenes import BACKGROUNDS, Scene, Split, Thing, background
from fovea.tasks.splits import split_of

FACTS: dict[str, tuple[str, ...]] = {"kind": ("card", "card back"), "rank": RANKS, "suit": SUITS}
"""What the vision tower is taught about a card; a card that lies face down has a kind only."""


# --- the table --------------------------------------------------------------------------------------------

_FELTS: tuple[RGB, ...] = (
    (53, 101, 77),
    (30, 80, 50),
    (36, 60, 110),
    (110, 40, 44),
    (92, 66, 44),
    (70, 72, 78),
)
# Sizes of the picture for so many cards in a row; nine in ten problems stay within 96 pixels.
_ROWS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((48, 48), (48, 64), (64, 64), (64, 80), (96, 96), (80, 64)),
    2: ((64, 48), (80, 48), (80, 64), (96, 64), (96, 80), (96, 96)),
    3: ((96, 48), (96, 48), (96, 64), (96, 64), (96, 80), (96, 96)),
    4: ((112, 48), (112, 64), (128, 48), (128, 64), (144, 64)),
}
_LARGE = 0.04
"""Share of pictures that are drawn twice as large."""


def _table(rng: np.random.Generator, split: Split, size: tuple[int, int]) -> Image.Image:
    """Felt in one colour, or one of the split's patterns."""
    if rng.random() < 0.5:
        felt = np.array(_FELTS[int(rng.integers(len(_FELTS)))]) + rng.integers(-12, 13, 3)
        return Image.new("RGB", size, (int(felt[0]), int(felt[1]), int(felt[2])))
    return Image.fromarray(background(int(rng.integers(*BACKGROUNDS[split])), *size))


def lay_out(
    rng: np.random.Generator, split: Split, size: tuple[int, int], cards: Sequence[Card], boxes: Sequence[Box]
) -> Scene:
    """The picture of `cards` in `boxes` (x2 follows from y2 - y1 and ASPECT), printed as one deck."""
    image = _table(rng, split, size)
    style, face = random_style(rng), font(split, rng, 40)
    things = []
    for card, (x1, y1, x2, y2) in zip(cards, boxes, strict=True):
        if card.hidden:
            drawn = draw_back(y2 - y1, style)
            facts: tuple[tuple[str, str], ...] = (("kind", "card back"),)
        else:
            drawn = draw_card(card.rank, card.suit, y2 - y1, face, style)
            facts = (("kind", "card"), ("rank", card.rank), ("suit", card.suit))
        image.paste(drawn, (x1, y1), drawn)
        things.append(Thing(label=card.label, box=(x1, y1, x2, y2), facts=facts))
    return Scene(image=image, things=tuple(sorted(things, key=lambda thing: thing.box)))


def _card_box(x: int, y: int, height: int) -> Box:
    return x, y, x + round(height * ASPECT), y + height


Table = tuple[tuple[int, int], list[Box]]
"""Size of the picture, and where each card lies."""


def _row(rng: np.random.Generator, count: int) -> Table:
    """One to four cards of one height from left to right, with uneven gaps."""
    sizes = _ROWS[count]
    width, height = sizes[int(rng.integers(len(sizes)))]
    if rng.random() < _LARGE:
        width, height = 2 * width, 2 * height
    highest = min(height - 4, int((width - 2 * count - 2) / count / ASPECT), 80)
    tall = int(rng.integers(max(33, round(0.75 * highest)), highest + 1))
    wide = round(tall * ASPECT)
    slack = width - count * wide - (count - 1)
    cuts = np.sort(rng.integers(0, slack + 1, count))
    tops = rng.integers(0, height - tall + 1, count)
    return (width, height), [
        _card_box(int(cuts[i]) + i * (wide + 1), int(tops[i]), tall) for i in range(count)
    ]


def _slots(rng: np.random.Generator, count: int) -> Table:
    """One to six cards, each somewhere in its slot of two rows of three."""
    wide, high = ((32, 40), (32, 48), (32, 48), (48, 64))[int(rng.choice(4, p=(0.4, 0.3, 0.22, 0.08)))]
    chosen = sorted(int(slot) for slot in rng.choice(6, count, replace=False))
    highest = min(high - 2, int((wide - 2) / ASPECT))
    tall = int(rng.integers(max(33, highest - 8), highest + 1))
    boxes = []
    for slot in chosen:
        x = slot % 3 * wide + int(rng.integers(0, wide - round(tall * ASPECT)))
        y = slot // 3 * high + int(rng.integers(0, high - tall))
        boxes.append(_card_box(x, y, tall))
    return (3 * wide, 2 * high), boxes


def _scattered(rng: np.random.Generator, count: int) -> Table:
    """Up to four cards anywhere, a pixel apart at least; begun anew with smaller cards when one finds no place."""
    sizes = ((80, 80), (96, 80), (80, 96), (96, 96), (96, 96), (160, 128))
    shares = (0.16, 0.2, 0.2, 0.2, 0.16, 0.08) if count < 4 else (0, 0, 0, 0.92, 0, 0.08)
    width, height = sizes[int(rng.choice(6, p=shares))]
    tall = int(rng.integers(33, height // 2 - 2))
    while True:
        wide = round(tall * ASPECT)
        boxes: list[Box] = []
        for x, y in rng.integers(0, (width - wide + 1, height - tall + 1), (16, 2)).tolist():
            if all(abs(x - box[0]) > wide or abs(y - box[1]) > tall for box in boxes):
                boxes.append(_card_box(x, y, tall))
            if len(boxes) == count:
                return (width, height), boxes
        tall = max(33, tall - 3)


def content(cards: Sequence[Card], boxes: Sequence[Box]) -> str:
    """The canonical text of a table, by which it belongs to a split: the cards, and the place of a single one."""
    text = ", ".join(card.label for card in cards)
    return text if len(cards) > 1 else f"{text} {boxes[0]}"


def _deal(
    rng: np.random.Generator,
    split: Split,
    draw: Callable[[], Sequence[Card]],
    arrange: Callable[[np.random.Generator, int], Table] = _row,
) -> tuple[tuple[Card, ...], tuple[int, int], list[Box]]:
    """Cards and where they lie; drawn again until they belong to the split."""
    while True:
        cards = tuple(draw())
        if len(cards) > 1 and split_of(content(cards, ())) != split:
            continue
        size, boxes = arrange(rng, len(cards))
        if split_of(content(cards, boxes)) == split:
            return cards, size, boxes


def _card(rng: np.random.Generator, rank: str | None = None) -> Card:
    rank = rank or RANKS[int(rng.integers(13))]
    return Card(rank=rank, suit=SUITS[int(rng.integers(4))])


def _mixed(rng: np.random.Generator, count: int, hidden: float) -> list[Card]:
    """`count` cards of different ranks; with probability `hidden` one of them lies face down."""
    cards = [_card(rng, RANKS[int(rank)]) for rank in rng.choice(13, count, replace=False)]
    if rng.random() < hidden:
        turned = int(rng.integers(count))
        cards[turned] = replace(cards[turned], hidden=True)
    return cards


def _any(rng: np.random.Generator, count: int, hidden: float) -> list[Card]:
    """`count` cards, each face down with probability `hidden`."""
    return [replace(_card(rng), hidden=bool(rng.random() < hidden)) for _ in range(count)]


def scene(rng: np.random.Generator, split: Split) -> Scene:
    """One to six cards on a table, one in eight face down: every one is a label for the vision tower."""
    count = int(rng.integers(1, 7))
    manner = rng.random()
    if count <= 4 and manner < 0.4:
        arrange = _scattered
    else:
        arrange = _row if count <= 3 and manner < 0.7 else _slots
    cards, size, boxes = _deal(rng, split, lambda: _any(rng, count, 0.125), arrange)
    return lay_out(rng, split, size, cards, boxes)


@functools.cache
def _hands(total: int, count: int) -> tuple[tuple[str, ...], ...]:
    """All ordered hands of `count` ranks with this blackjack total."""
    return tuple(ranks for ranks in itertools.product(RANKS, repeat=count) if blackjack_total(ranks) == total)


def _points_hand(rng: np.random.Generator, total: int) -> list[Card]:
    """Two or three cards of this total (5 to 21)."""
    hands = _hands(total, int(rng.integers(2, 4))) or _hands(total, 2)
    return [_card(rng, rank) for rank in hands[int(rng.integers(len(hands)))]]


# --- questions --------------------------------------------------------------------------------------------


def _seen(scene: Scene) -> list[str]:
    """The ranks from left to right, each after the place where it can be read."""
    return [look(thing.box) + thing.label.split()[0] for thing in scene.things]


def name_card(rng: np.random.Generator, split: Split) -> Asked:
    """One card; what is it?"""
    cards, size, boxes = _deal(rng, split, lambda: [_card(rng)])
    drawn = lay_out(rng, split, size, cards, boxes)
    seen, card = look(boxes[0]), cards[0]
    color = "red" if card.suit in ("hearts", "diamonds") else "black"
    return Asked(
        images=(drawn.image,),
        question="What card is this?",
        answer=card.label,
        said=seen + card.label,
        thought=f"The rank is {seen}{card.rank}. The sign is {seen}{color}: {card.suit}.",
        difficulty=0.0,
    )


def read_hand(rng: np.random.Generator, split: Split) -> Asked:
    """Two to four cards; their ranks from left to right."""
    count = int(rng.choice([2, 3, 4], p=(0.4, 0.45, 0.15)))
    cards, size, boxes = _deal(rng, split, lambda: [_card(rng) for _ in range(count)])
    drawn = lay_out(rng, split, size, cards, boxes)
    phrases = (
        "Which ranks do the cards have, from left to right?",
        "Read the cards from left to right: ranks only.",
    )
    return Asked(
        images=(drawn.image,),
        question=phrases[int(rng.integers(2))],
        answer=", ".join(card.rank for card in cards),
        said=", ".join(_seen(drawn)),
        thought=f"There are {count} cards. The first is {_seen(drawn)[0]}.",
        difficulty=(count - 2) / 2,
    )


def total_hand(rng: np.random.Generator, split: Split) -> Asked:
    """Two or three cards; the blackjack total, any of 5 to 21 equally likely."""
    total = int(rng.integers(5, 22))
    cards, size, boxes = _deal(rng, split, lambda: _points_hand(rng, total))
    drawn = lay_out(rng, split, size, cards, boxes)
    return Asked(
        images=(drawn.image,),
        question="What is the blackjack total of the cards? J, Q, K are 10, an ace is 11 or 1.",
        answer=total,
        said=str(total),
        thought=" + ".join(_seen(drawn)) + f" = {total}.",
        difficulty=float(len(cards) - 2),
    )


def count_cards(rng: np.random.Generator, split: Split) -> Asked:
    """One to six cards, some face down; how many?"""
    count = int(rng.integers(1, 7))
    cards, size, boxes = _deal(rng, split, lambda: _any(rng, count, 0.15), _slots)
    drawn = lay_out(rng, split, size, cards, boxes)
    top = sum(box[1] + box[3] < size[1] for box in boxes)
    phrases = ("How many cards are in the picture?", "How many cards are there?")
    return Asked(
        images=(drawn.image,),
        question=phrases[int(rng.integers(2))],
        answer=count,
        said=str(count),
        thought=f"{top} in the top row and {count - top} in the bottom row.",
        difficulty=(count - 1) / 5,
    )


def locate_card(rng: np.random.Generator, split: Split) -> Asked:
    """Two to four cards of different ranks anywhere; where is one of them? Sometimes one lies face down."""
    count = int(rng.integers(2, 5))
    cards, size, boxes = _deal(rng, split, lambda: _mixed(rng, count, 0.3), _scattered)
    drawn = lay_out(rng, split, size, cards, boxes)
    asked = int(rng.integers(count))
    card, box = cards[asked], boxes[asked]
    named = card.label if card.hidden or rng.random() < 0.5 else card.rank
    row = "bottom" if box[1] + box[3] > size[1] else "top"
    column = "right" if box[0] + box[2] > size[0] else "left"
    return Asked(
        images=(drawn.image,),
        question=f"Where is the {named}? Answer with its box.",
        answer=list(box),
        said=place(box),
        thought=f"The {named} is at the {look(box)}{row} {column}.",
        difficulty=(count - 2) / 2,
    )


def choose_suit(rng: np.random.Generator, split: Split) -> Asked:
    """Two or three cards of different ranks; which suit is one of them? The suits are lettered in random order."""
    count = int(rng.integers(2, 4))
    cards, size, boxes = _deal(rng, split, lambda: _mixed(rng, count, 0.0))
    drawn = lay_out(rng, split, size, cards, boxes)
    asked = int(rng.integers(count))
    order = [SUITS[int(i)] for i in rng.permutation(4)]
    letter = "ABCD"[order.index(cards[asked].suit)]
    options = " ".join(f"{name}) {suit}" for name, suit in zip("ABCD", order))
    return Asked(
        images=(drawn.image,),
        question=f"What suit is the {cards[asked].rank}? {options}",
        answer=letter,
        said=look(boxes[asked]) + letter,
        thought=f"The {cards[asked].rank} is one of {look(boxes[asked])}{cards[asked].suit}.",
        difficulty=float(count - 2),
    )


def choose_action(rng: np.random.Generator, split: Split) -> Asked:
    """Two or three cards and a rule; hit or stand?"""
    action = ("hit", "stand")[int(rng.integers(2))]
    total = int(rng.integers(5, 17) if action == "hit" else rng.integers(17, 22))
    cards, size, boxes = _deal(rng, split, lambda: _points_hand(rng, total))
    drawn = lay_out(rng, split, size, cards, boxes)
    added = " + ".join(_seen(drawn)) + f" = {total}"
    return Asked(
        images=(drawn.image,),
        question="Blackjack: hit below 17, else stand. What is your action?",
        answer=action,
        said=json.dumps({"thoughts": added, "action": action}),
        thought=added + ".",
        difficulty=float(len(cards) - 2),
    )


def compare_cards(rng: np.random.Generator, split: Split) -> Asked:
    """Two cards of different ranks; which is higher?"""
    side = ("left", "right")[int(rng.integers(2))]

    def draw() -> list[Card]:
        high_first = sorted(
            _mixed(rng, 2, 0.0), key=lambda card: (RANKS.index(card.rank) - 1) % 13, reverse=True
        )
        return high_first if side == "left" else high_first[::-1]

    cards, size, boxes = _deal(rng, split, draw)
    drawn = lay_out(rng, split, size, cards, boxes)
    left, right = _seen(drawn)
    apart = abs((RANKS.index(cards[0].rank) - 1) % 13 - (RANKS.index(cards[1].rank) - 1) % 13)
    return Asked(
        images=(drawn.image,),
        question="Which card is higher, left or right? The ace is high.",
        answer=side,
        said=side,
        thought=f"The left card is {left}, the right card is {right}.",
        difficulty=(12 - apart) / 11,
    )


QUESTIONS: dict[str, Question] = {
    # 13 ranks and 4 suits, all equally likely
    "cards/name": (name_card, "text", 1 / 52, "rank and suit of a single card"),
    # the best guess is a hand of the likeliest length: 0.4 / 13^2 beats 0.4 / 13^3
    "cards/hand": (read_hand, "text", 0.4 / 169, "ranks of two to four cards from left to right"),
    # 5 to 21, equally likely
    "cards/total": (total_hand, "number", 1 / 17, "blackjack total of two or three cards"),
    "cards/count": (count_cards, "number", 1 / 6, "how many cards, one to six, some face down"),
    # simulated: the best of the boxes that occurred in 4,000 problems (tests/test_cards.py does it again)
    "cards/locate": (locate_card, "box", 0.09, "the box of a named card among two to four"),
    "cards/suit": (choose_suit, "choice", 1 / 4, "suit of a named card as a letter"),
    "cards/action": (
        choose_action,
        "text",
        1 / 2,
        "hit or stand by a rule, as JSON with thoughts and an action",
    ),
    "cards/compare": (compare_cards, "text", 1 / 2, "the higher of two cards"),
}
"""name -> (question, kind of its answer, chance of the best reply that does not look, one line)."""
