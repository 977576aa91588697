"""Playing cards: drawing one, and what a hand is worth. No questions, no games.

Try it: python -c "from fovea.tasks.card_pictures import *;
draw_card('10', 'hearts', 88, ImageFont.load_default(40)).show()"
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
SUITS = ("hearts", "diamonds", "clubs", "spades")
RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]
Layout = Literal["stacked", "diagonal", "index"]

ASPECT = 0.72
"""Width of a card over its height."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A card on the table. Example: Card(rank="10", suit="hearts")"""

    rank: str
    """One of RANKS."""
    suit: str
    """One of SUITS."""
    hidden: bool = False
    """Whether it lies face down."""

    @property
    def label(self) -> str:
        return "face-down card" if self.hidden else f"{self.rank} of {self.suit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CardStyle:
    """How a deck is printed."""

    paper: RGB = (255, 255, 255)
    red: RGB = (200, 24, 36)
    black: RGB = (18, 18, 24)
    back: RGB = (40, 70, 160)
    layout: Layout = "stacked"
    """stacked: the suit below the rank; diagonal: rank top left, suit bottom right; index: a small suit
    top left, a large rank in the middle."""


# --- drawing one card -------------------------------------------------------------------------------------


def _heart(n: int) -> list[tuple[float, float]]:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled into n x n."""
    t = np.linspace(0, 2 * np.pi, 60)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(float(a), float(b)) for a, b in zip((x + 16) / 32 * n, (12 - y) / 29 * n)]


@functools.lru_cache(maxsize=256)
def draw_suit(suit: str, size: int) -> Image.Image:
    """Grey [size, size] mask of a suit's sign, drawn eight times larger and averaged down."""
    n = size * 8
    canvas = Image.new("L", (n, n))
    draw = ImageDraw.Draw(canvas)

    def disc(x: float, y: float, radius: float) -> None:
        draw.ellipse([n * (x - radius), n * (y - radius), n * (x + radius), n * (y + radius)], fill=255)

    def area(*points: tuple[float, float]) -> None:
        draw.polygon([(n * x, n * y) for x, y in points], fill=255)

    if suit == "hearts":
        draw.polygon(_heart(n), fill=255)
    elif suit == "diamonds":
        area((0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5))
    elif suit == "clubs":
        disc(0.5, 0.23, 0.23)
        disc(0.23, 0.58, 0.23)
        disc(0.77, 0.58, 0.23)
        area((0.43, 0.3), (0.57, 0.3), (0.7, 1), (0.3, 1))
    else:  # spades: a heart upside down on a stem
        draw.polygon([(x, n * 0.84 - y * 0.84) for x, y in _heart(n)], fill=255)
        area((0.45, 0.5), (0.55, 0.5), (0.72, 1), (0.28, 1))
    return canvas.resize((size, size), Image.Resampling.BOX)


@functools.lru_cache(maxsize=2048)
def _rank_mask(rank: str, face: ImageFont.FreeTypeFont, width: int, height: int) -> Image.Image:
    """Grey mask of a rank's text without margins, as large as fits; condensed to two thirds at most."""
    left, top, right, bottom = (round(edge) for edge in face.getbbox(rank))
    text = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(text).text((-left, -top), rank, fill=255, font=face)
    text = text.crop(text.getbbox())
    scale_y = height / text.height
    scale_x = min(scale_y, width / text.width)
    scale_y = min(scale_y, scale_x * 1.5)
    size = (max(1, round(text.width * scale_x)), max(1, round(text.height * scale_y)))
    return text.resize(size, Image.Resampling.BOX if scale_y < 1 else Image.Resampling.BICUBIC)


def draw_card(
    rank: str, suit: str, height: int, face: ImageFont.FreeTypeFont, style: CardStyle | None = None
) -> Image.Image:
    """RGBA picture of a card, `height` pixels high and ASPECT * height wide, with round corners.

    `rank` is one of RANKS, `suit` one of SUITS; `face` may have any size of about 24 px or more, the text is
    fitted. From 32 px of height rank and suit are legible.
    """
    style = style or CardStyle()
    card = _blank(style.paper, height)
    width = card.width
    ink = style.red if suit in ("hearts", "diamonds") else style.black
    pad = max(2, round(height * 0.07))
    if style.layout == "index":
        text = _rank_mask(rank, face, width - 2 * pad, round(height * 0.5))
        sign = draw_suit(suit, round(height * 0.3))
        card.paste(ink, (pad, pad), sign)
        card.paste(ink, ((width - text.width) // 2, height - pad - text.height), text)
        return card
    text = _rank_mask(rank, face, width - 2 * pad, round(height * 0.44))
    sign = draw_suit(suit, round(height * 0.37))
    diagonal = style.layout == "diagonal"
    card.paste(ink, (pad if diagonal else (width - text.width) // 2, pad), text)
    x = width - pad - sign.width if diagonal else (width - sign.width) // 2
    card.paste(ink, (x, height - pad - sign.height), sign)
    return card


def draw_back(height: int, style: CardStyle | None = None) -> Image.Image:
    """RGBA picture of a card that lies face down: a lattice in the deck's colour."""
    style = style or CardStyle()
    card = _blank(style.paper, height)
    edge = max(2, round(height * 0.07))
    inner = Image.new("RGB", (card.width - 2 * edge, height - 2 * edge), style.back)
    draw = ImageDraw.Draw(inner)
    for start in range(-height, height, 6):
        draw.line([(start, 0), (start + height, height)], fill=style.paper)
        draw.line([(start, height), (start + height, 0)], fill=style.paper)
    card.paste(inner, (edge, edge))
    return card


@functools.lru_cache(maxsize=64)
def _card_shape(height: int) -> tuple[Image.Image, Image.Image]:
    """(mask of the whole card, mask of its rim) of a card `height` pixels high."""
    size = (round(height * ASPECT), height)
    radius = max(2, height // 14)
    whole, rim = Image.new("L", size), Image.new("L", size)
    corners = (0, 0, size[0] - 1, size[1] - 1)
    ImageDraw.Draw(whole).rounded_rectangle(corners, radius, fill=255)
    ImageDraw.Draw(rim).rounded_rectangle(corners, radius, outline=255)
    return whole, rim


def _blank(paper: RGB, height: int) -> Image.Image:
    whole, rim = _card_shape(height)
    card = Image.new("RGBA", whole.size, (*paper, 0))
    card.putalpha(whole)
    card.paste((90, 90, 96, 255), (0, 0), rim)
    return card


_PAPERS: tuple[RGB, ...] = (
    (255, 255, 255),
    (255, 255, 255),
    (250, 246, 228),
    (232, 240, 250),
    (238, 238, 238),
)
_BACKS: tuple[RGB, ...] = ((40, 70, 160), (170, 36, 40), (30, 110, 70), (90, 60, 130))
_LAYOUTS: tuple[Layout, ...] = ("stacked", "stacked", "diagonal", "index")


def random_style(rng: np.random.Generator) -> CardStyle:
    """A deck: its paper, inks, back and layout."""
    shift = rng.integers(-18, 19, 3)
    return CardStyle(
        paper=_PAPERS[int(rng.integers(len(_PAPERS)))],
        red=(204 + int(shift[0]), 24 + abs(int(shift[1])), 32 + abs(int(shift[2]))),
        black=(18 + abs(int(shift[0])), 18 + abs(int(shift[0])), 18 + abs(int(shift[2]))),
        back=_BACKS[int(rng.integers(len(_BACKS)))],
        layout=_LAYOUTS[int(rng.integers(len(_LAYOUTS)))],
    )


def blackjack_total(ranks: Sequence[str]) -> int:
    """J, Q and K are 10; an ace is 11, or 1 where the total would pass 21. Example: ["A", "K"] is 21."""
    points = [1 if rank == "A" else 10 if rank in ("J", "Q", "K") else int(rank) for rank in ranks]
    total = sum(points)
    return total + 10 if "A" in ranks and total + 10 <= 21 else total
