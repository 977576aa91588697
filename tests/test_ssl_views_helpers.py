"""What all self-supervised generators share: windows, resampling, tints, comparing views, the last compression."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fovea.tasks.pool import BuiltIn
from fovea.tasks.ssl.views import difference, draw, encode, finish, fit, plain, render, tint, window

POOL = BuiltIn(split="train", side=64)
SIZES = [(w, h) for w in range(20, 700, 37) for h in range(20, 700, 41)]


def grey(level: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, (level,) * 3)


def halves(dark: int, light: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Dark on the left, light on the right."""
    pixels = np.full((size[1], size[0], 3), dark, np.uint8)
    pixels[:, size[0] // 2 :] = light
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("least", "most"), [(1.0, 1.0), (0.2, 1.0), (0.3, 0.3)])
def test_a_window_lies_inside_and_has_its_shape(least: float, most: float) -> None:
    """Its own shape as `aspect`, too: there the quotient of a product by its factor may be an ulp too large."""
    rng = np.random.default_rng(0)
    for w, h in SIZES:
        for aspect in (1.0, 4 / 3, 0.75, w / h):
            x1, y1, x2, y2 = window(rng, (w, h), aspect, least, most)
            assert 0 <= x1 < x2 <= w
            assert 0 <= y1 < y2 <= h
            assert (x2 - x1) / (y2 - y1) == pytest.approx(aspect)
            share = (x2 - x1) / min(w, h * aspect)
            assert least - 1e-9 <= share <= most + 1e-9


def test_the_largest_window_can_be_rendered() -> None:
    rng = np.random.default_rng(1)
    for w, h in SIZES[::7]:
        box = window(rng, (w, h), w / h, least=1.0)
        assert render(grey(9, (w, h)), box, (8, 6)).size == (8, 6)


def test_windows_are_spread_over_the_picture() -> None:
    """Half of the side on 100 x 60: x1 uniform on 0 to 70, y1 on 0 to 30; means 35 and 15, and 1,000 windows leave a
    standard error of 70 / sqrt(12 · 1000) = 0.64 and 0.27."""
    rng = np.random.default_rng(2)
    corners = np.array([window(rng, (100, 60), least=0.5, most=0.5)[:2] for _ in range(1000)])
    assert corners.mean(0) == pytest.approx([35, 15], abs=4 * 0.64)
    assert corners[:, 1].mean() == pytest.approx(15, abs=4 * 0.27)
    assert corners.min() < 1
    assert corners.max(0) == pytest.approx([70, 30], abs=1)


def test_drawn_pictures_differ_and_all_come() -> None:
    rng = np.random.default_rng(3)
    drawn = [draw(rng, POOL, 4) for _ in range(200)]
    assert all(len(set(some)) == 4 for some in drawn)
    assert {i for some in drawn for i in some} == set(range(len(POOL)))
    assert sorted(draw(rng, POOL, 10_000)) == list(range(len(POOL)))


@pytest.mark.parametrize(
    ("size", "side", "fitted"),
    [
        ((1000, 500), 100, (100, 50)),
        ((50, 100), 64, (32, 64)),
        ((30, 20), 64, (30, 20)),
        ((999, 1), 64, (64, 1)),
    ],
)
def test_fit(size: tuple[int, int], side: int, fitted: tuple[int, int]) -> None:
    assert fit(size, side) == fitted


def test_render_shows_the_part_at_the_size() -> None:
    """Bicubic weighs two pixels to either side, of the picture or of the view, whichever are larger: beyond the box,
    too. So a part that ends so far from the edge in the picture is of one level, and one that ends at it is not."""
    picture = halves(40, 200)
    for side in (8, 16, 31, 64, 200):
        reach = 2 * max(1.0, 32 / side)
        left = render(picture, (0, 0, 32 - reach, 64), (side, side))
        right = render(picture, (32 + reach, 0, 64, 64), (side, side))
        assert left.size == right.size == (side, side)
        assert (left.getextrema(), right.getextrema()) == (((40, 40),) * 3, ((200, 200),) * 3)
        assert render(picture, (0, 0, 32, 64), (side, side)).getextrema() != ((40, 40),) * 3
    assert render(picture, (0, 0, 64, 64), (64, 64)).tobytes() == picture.tobytes()


def test_a_tint_of_no_strength_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    for i in range(8):
        picture = POOL.picture(i)
        assert tint(rng, picture, 0.0).tobytes() == picture.tobytes()


def test_a_tint_stays_within_its_bounds() -> None:
    """A level v of mean m becomes (m + (v - m) · c) · g, c in 0.7 to 1.3, g in 0.7 · 0.85 to 1.3 · 1.15, and channels
    differ by at most 1.15 / 0.85. With v = m = 100 that is 59.5 to 149.5; strength 0.5 halves all: 78.6 to 123.6."""
    rng = np.random.default_rng(5)
    for strength, low, high, apart in ((1.0, 59.5, 149.5, 1.15 / 0.85), (0.5, 78.6, 123.6, 1.075 / 0.925)):
        seen = np.array([tint(rng, grey(100, (2, 2)), strength).getpixel((0, 0)) for _ in range(700)])
        assert seen.min() >= round(low)
        assert seen.max() <= round(high)
        assert seen.min() < low + (100 - low) / 4  # and reaches near them
        assert seen.max() > high - (high - 100) / 4
        assert ((seen.max(1) - 0.5) / (seen.min(1) + 0.5)).max() <= apart
    # Contrast: 80 and 120 stay around their mean, 40 · c · g apart.
    for _ in range(200):
        view = tint(rng, halves(80, 120), 1.0)
        dark, light = (np.array(view.getpixel(at)) for at in ((0, 0), (63, 0)))
        shares = (light - dark) / (light + dark)  # g falls out: 20 · c / 100
        assert (shares >= 0.2 * 0.7 - 0.012).all()
        assert (shares <= 0.2 * 1.3 + 0.012).all()


def test_difference_is_symmetric_and_0_for_equal_views() -> None:
    views = [render(POOL.picture(i), (0, 0, 64, 64), (64, 64)) for i in range(5)]
    for a in views:
        assert difference(a, a) == 0
        for b in views:
            assert difference(a, b) == difference(b, a)
            assert (a is b) == (difference(a, b) < 10)


def test_difference_by_hand() -> None:
    """Grey levels 40 and 200 have mean 120, so -80 and 80; turned round every place differs by 160, but for the columns
    that the blur smooths. Brightness apart: 60 more everywhere is no difference. Size apart, too."""
    one, other = halves(40, 200), halves(200, 40)
    assert 130 < difference(one, other) <= 160
    assert difference(halves(40, 140), halves(100, 200)) == 0
    assert difference(grey(0), grey(255)) == 0
    assert difference(one, halves(40, 200, (128, 128))) < 3


def test_plain_views() -> None:
    """Of two equal halves the standard deviation is half their distance: 15 and 17 about the limit of 16."""
    assert plain(grey(77))
    assert plain(halves(100, 130))
    assert not plain(halves(100, 134))
    assert not any(plain(POOL.picture(i)) for i in range(5))


def test_finish_treats_all_views_alike_and_is_deterministic() -> None:
    views = [POOL.picture(0), grey(90, (31, 17)), halves(10, 240, (64, 48))]
    once, again = (finish(np.random.default_rng(6), views) for _ in range(2))
    assert [view.size for view in once] == [view.size for view in views]
    assert {view.mode for view in once} == {"RGB"}
    assert [a.tobytes() for a in once] == [b.tobytes() for b in again]
    quality = int(np.random.default_rng(6).integers(80, 96))
    assert [view.tobytes() for view in once] == [encode(view, quality).tobytes() for view in views]
    assert once[0].tobytes() != views[0].tobytes()
    twice = finish(np.random.default_rng(7), [views[0], views[0].copy()])
    assert twice[0].tobytes() == twice[1].tobytes()
    rng = np.random.default_rng(8)
    assert {int(rng.integers(80, 96)) for _ in range(500)} == set(range(80, 96))


def test_compression_does_not_halve_the_colours() -> None:
    """Single columns of red and blue keep their colours: 4:4:4, every channel has every pixel."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, ::2, 0] = pixels[:, 1::2, 2] = 200
    coded = np.asarray(encode(Image.fromarray(pixels), 90), np.int64)
    assert np.abs(coded - pixels).mean() < 20  # 4:2:0 mixes them: 56
