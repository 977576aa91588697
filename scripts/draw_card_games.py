"""Draws docs/card-games.png: the four card games in both presets, and at the sizes of a tiny model.

python scripts/draw_card_games.py docs/card-games.png
"""

from __future__ import annotations

import sys
from typing import Any

from PIL import Image

from fovea.environments.cards import blackjack, ez_points, number_line, points24
from fovea.environments.game import Game

GAP = 6


def by_the_expert(game: Game, actions: int, seed: int, split: str = "train", **options: Any) -> Image.Image:
    """The picture after so many of the expert's actions."""
    env = game.make(**options)
    env.reset(seed=seed, options={"split": split})
    for _ in range(actions):
        assert game.expert is not None
        env.step(game.act(env, game.expert(env)))
    return Image.fromarray(env.render())


def after_hits(hits: int, seed: int, stand: bool = False, **options: Any) -> Image.Image:
    """The first hand from `seed` on that survives so many hits."""
    env = blackjack.GAME.make(**options)
    while True:
        env.reset(seed=seed)
        for _ in range(hits):
            if not env.over:
                env.step(1)
        if not env.over:
            break
        seed += 1
    if stand:
        env.step(0)
    return Image.fromarray(env.render())


def rows() -> list[list[Image.Image]]:
    line, ez, four = number_line.GAME, ez_points.GAME, points24.GAME
    both = [
        [
            by_the_expert(line, 0, 1, preset=preset, side=200),
            by_the_expert(ez, 2, 2, preset=preset, side=200),
            by_the_expert(four, 7, 3, preset=preset, side=200),
            after_hits(3, 0, preset=preset, side=200),
        ]
        for preset in ("paper", "fixed")
    ]
    small = [
        by_the_expert(line, 0, seed, split, side=64)
        for seed, split in ((1, "train"), (2, "train"), (3, "validation"), (4, "test"), (5, "test"))
    ]
    small += [
        by_the_expert(ez, actions, seed, split, side=64)
        for actions, seed, split in ((0, 1, "train"), (2, 2, "train"), (3, 7, "test"))
    ]
    wide = [
        by_the_expert(ez, actions, seed, split, side=(96, 64))
        for actions, seed, split in ((1, 1, "train"), (2, 6, "test"), (3, 11, "validation"))
    ]
    wide += [by_the_expert(four, 5, 3, side=(128, 64)), by_the_expert(four, 0, 4, "test", side=(128, 64))]
    wide += [by_the_expert(four, 0, 5, side=(96, 96))]
    tables = [after_hits(hits, seed, side=(128, 96)) for hits, seed in enumerate((0, 50, 90, 7, 11))]
    tables += [after_hits(4, 11, stand=True, side=(128, 96))]
    return [*both, small, wide, tables, [after_hits(hits, 0, side=(96, 64)) for hits in (0, 1)]]


def sheet(pictures: list[list[Image.Image]]) -> Image.Image:
    width = max(sum(picture.width + GAP for picture in row) for row in pictures) + GAP
    height = sum(max(picture.height for picture in row) + GAP for row in pictures) + GAP
    image, y = Image.new("RGB", (width, height), (128, 128, 128)), GAP
    for row in pictures:
        x = GAP
        for picture in row:
            image.paste(picture, (x, y))
            x += picture.width + GAP
        y += max(picture.height for picture in row) + GAP
    return image


if __name__ == "__main__":
    sheet(rows()).quantize(128).save(sys.argv[1], optimize=True)
