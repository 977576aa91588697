"""Pictures of the card games: two numbers on a sheet, a hand with a formula, a blackjack table.

Preset `fixed`: everything fills a picture of any size down to 32 pixels, every card is visible, and the deck, the
colours and the font (one of the split's own) are those of the episode. Preset `paper`: white or green, 300 pixels
and its layout, scaled to the side that is asked for; what it cuts off is cut off here too.

Not here: what lies on the table (the games), drawing a card (`fovea.tasks.card_pictures`).

Try it: python -c "from fovea.environments.cards.drawing import *; import numpy as np;
numbers(look(np.random.default_rng(0), 'test'), (64, 64), 3, 5).show()"
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from fovea.tasks.card_pictures import ASPECT, RGB, Card, CardStyle, draw_back, draw_card, random_style
from fovea.tasks.fonts import load, pick
from fovea.tasks.scenes import Split

Size = tuple[int, int]
"""Width and height in pixels."""
PAPER_SIDE = 300
_GREEN: RGB = (53, 101, 77)
_FELTS: tuple[RGB, ...] = (_GREEN, (30, 80, 50), (36, 60, 110), (110, 40, 44), (92, 66, 44), (70, 72, 78))
_SHEETS: tuple[RGB, ...] = (
    (255, 255, 255),
    (255, 255, 255),
    (250, 246, 228),
    (232, 240, 250),
    (238, 238, 238),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How the pictures of one episode are printed. Example: Look(font="test/Tinos-Bold.ttf")"""

    font: str = "train/DejaVuSans-Bold.ttf"
    """Name of a font of `fovea.tasks.fonts`. The original's games look for DejaVu."""
    style: CardStyle = field(default_factory=CardStyle)
    sheet: RGB = (255, 255, 255)
    """Ground of the pictures without cards."""
    ink: RGB = (0, 0, 0)
    felt: RGB = _GREEN
    """Ground of the pictures with cards."""


PLAIN = Look()
"""Of the preset `paper`."""


def look(rng: np.random.Generator, split: Split) -> Look:
    """A deck, a font of the split, and colours."""
    felt = np.array(_FELTS[int(rng.integers(len(_FELTS)))]) + rng.integers(-12, 13, 3)
    ink = rng.integers(0, 60, 3)
    return Look(
        font=pick(split, rng),
        style=random_style(rng),
        sheet=_SHEETS[int(rng.integers(len(_SHEETS)))],
        ink=(int(ink[0]), int(ink[1]), int(ink[2])),
        felt=(int(felt[0]), int(felt[1]), int(felt[2])),
    )


@functools.lru_cache(maxsize=512)
def _card(card: Card, height: int, look: Look) -> Image.Image:
    if card.hidden:
        return draw_back(height, look.style)
    return draw_card(card.rank, card.suit, height, load(look.font, 40), look.style)


def _write(image: Image.Image, look: Look, text: str, box: tuple[int, int, int, int], ink: RGB) -> None:
    """Text in the middle of a box, as large as fits, but no larger than a digit would be."""
    width, height = box[2] - box[0], box[3] - box[1]
    large = load(look.font, 100)
    tall = large.getbbox(text + "0")
    size = 100 * min(width / max(1, large.getlength(text)), height / (tall[3] - tall[1]))
    face = load(look.font, max(6, int(size)))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=face)
    x, y = box[0] + (width - right + left) / 2 - left, box[1] + (height - bottom + top) / 2 - top
    draw.text((round(x), round(y)), text, fill=ink, font=face)


# --- preset fixed --------------------------------------------------------------------------------------------


def numbers(look: Look, size: Size, current: int, target: int) -> Image.Image:
    """The target above, the current number below: a word on the left, a large number on the right."""
    image = Image.new("RGB", size, look.sheet)
    width, height = size
    edge, middle = max(1, width // 32), height // 2
    split = round(width * (0.64 if max(current, target) < 10 else 0.5))
    for word, number, top in (("Target", target, 0), ("Current", current, middle)):
        margin = max(2, height // 24)
        _write(image, look, word, (edge, top + margin, split - edge, top + middle - margin), look.ink)
        _write(image, look, str(number), (split, top + margin, width - edge, top + middle - margin), look.ink)
    ImageDraw.Draw(image).line(
        [(0, middle), (width, middle)], fill=(150, 150, 150), width=max(1, height // 150)
    )
    return image


def _tallest(width: int, height: int, counts: Sequence[int], gap: int) -> tuple[int, int]:
    """(height of a card, cards in a row) so that groups of so many cards, each begun in a new row, fit."""
    best = (1, max(counts))
    for columns in range(1, max(counts) + 1):
        rows = sum(-(-count // columns) for count in counts)
        tall = min((height - gap) // rows - gap, int(((width - gap) // columns - gap) / ASPECT))
        best = max(best, (tall, columns))
    return best


def _place(
    image: Image.Image, look: Look, cards: Sequence[Card], top: int, tall: int, columns: int, gap: int
) -> int:
    """Cards in even rows from `top` on, each row in the middle; returns where the next row begins."""
    columns = -(-len(cards) // -(-len(cards) // columns))
    for start in range(0, len(cards), columns):
        row = cards[start : start + columns]
        wide = round(tall * ASPECT)
        x = (image.width - len(row) * wide - (len(row) - 1) * gap) // 2
        for i, card in enumerate(row):
            drawn = _card(card, tall, look)
            image.paste(drawn, (x + i * (wide + gap), top), drawn)
        top += tall + gap
    return top


def hand(look: Look, size: Size, cards: Sequence[Card], formula: str) -> Image.Image:
    """Cards on felt and the formula on a white strip below them."""
    width, height = size
    image = Image.new("RGB", size, look.felt)
    strip = max(12, height // 5)
    gap = max(2, min(size) // 40)
    tall, columns = _tallest(width, height - strip, [len(cards)], gap)
    rows = -(-len(cards) // columns)
    _place(image, look, cards, (height - strip - rows * (tall + gap) + gap) // 2, tall, columns, gap)
    ImageDraw.Draw(image).rectangle([0, height - strip, width, height], fill=(255, 255, 255))
    _write(image, look, formula, (gap, height - strip + 2, width - gap, height - 2), look.ink)
    return image


def table(look: Look, size: Size, dealer: Sequence[Card], player: Sequence[Card]) -> Image.Image:
    """The dealer's cards above, the player's below a line; all of one size, in as many rows as they need."""
    width, height = size
    image = Image.new("RGB", size, look.felt)
    gap = max(2, min(size) // 40)
    title = height // 12 if height >= 150 else 0  # no words where they could not be read
    # Room for three cards from the beginning, so that the first card drawn does not shrink the others.
    counts = [max(2, len(dealer)), max(3, len(player))]
    tall, columns = _tallest(width, height - 2 * title - 1, counts, gap)
    if title:
        _write(image, look, "Dealer", (gap, gap, width - gap, title), (255, 255, 255))
    line = _place(image, look, dealer, gap + title, tall, columns, gap)
    ImageDraw.Draw(image).line([(0, line), (width, line)], fill=(255, 255, 255))
    if title:
        _write(image, look, "Player", (gap, line + gap, width - gap, line + title), (255, 255, 255))
    _place(image, look, player, line + gap + title, tall, columns, gap)
    return image


# --- preset paper: 300 pixels, scaled --------------------------------------------------------------------------


def _text(image: Image.Image, x: float, y: float, text: str, size: float, ink: RGB) -> None:
    k = image.width / PAPER_SIDE
    face = load(PLAIN.font, max(4, round(size * k)))
    ImageDraw.Draw(image).text((round(x * k), round(y * k)), text, fill=ink, font=face)


def _stand(image: Image.Image, card: Card, x: float, y: float, tall: float = 98) -> None:
    k = image.width / PAPER_SIDE
    drawn = _card(card, max(8, round(tall * k)), PLAIN)
    image.paste(drawn, (round(x * k), round(y * k)), drawn)


def paper_numbers(side: int, current: int, target: int) -> Image.Image:
    """Black on white: the target at (30, 60), the current number at (30, 180)."""
    image = Image.new("RGB", (side, side), (255, 255, 255))
    _text(image, 30, 60, f"Target: {target}", 36, (0, 0, 0))
    _text(image, 30, 180, f"Current: {current}", 36, (0, 0, 0))
    return image


def paper_hand(side: int, cards: Sequence[Card], formula: str) -> Image.Image:
    """Green, the cards in a row, the formula at 86 % of the height; a long formula leaves the picture."""
    image = Image.new("RGB", (side, side), _GREEN)
    for i, card in enumerate(cards):
        _stand(image, card, 5 + 74 * i, 80)
    _text(image, 15, 258, f"Formula: {formula}", 20, (255, 255, 255))
    return image


def paper_table(side: int, dealer: Sequence[Card], player: Sequence[Card]) -> Image.Image:
    """The fifth card lies outside the picture (x is 301), and a second row is cut off below."""
    image = Image.new("RGB", (side, side), _GREEN)
    _text(image, 5, 8, "Dealer", 22, (255, 255, 255))
    for i, card in enumerate(dealer[:2]):
        _stand(image, card, 5 + 74 * i, 40)
    _text(image, 5, 150, "Player", 22, (255, 255, 255))
    for i, card in enumerate(player):
        _stand(image, card, 5 + 74 * (i if i < 5 else i - 5), 182 if i < 5 else 284)
    return image
