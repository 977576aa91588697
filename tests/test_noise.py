"""Schedules and noises by hand-worked numbers: what papers and released code say, and what ours keeps besides."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fovea.interventions.noise import (
    blocks_masked,
    diffusion_noise,
    generator,
    occluded,
    random_sign,
    rotated,
    signal_levels,
    told_change,
)
from fovea.interventions.schedules import factor


def canvas(height: int = 56, width: int = 84, seed: int = 0) -> np.ndarray:
    """No pixel is black."""
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


# ---------------------------------------------------------------- schedules


def test_noisy_rollouts_sigmoid_on_geometry3k() -> None:
    """α_0 = 500, λ = 30, γ = 40 of T = 60. At step 35: 30 · (-5) / 60 = -2.5, 500 · (1 - 0.0759) = 462.07."""
    alphas = {step: int(500 * factor("sigmoid", step, 60)) for step in (30, 35, 40, 45, 50)}
    assert alphas == {30: 496, 35: 462, 40: 250, 45: 37, 50: 3}
    # K12's λ = 60, γ = 40: 60 · 5 / 60 = 5, 450 · (1 - 0.99331) = 3.01.
    assert int(450 * factor("sigmoid", 45, 60, steepness=60.0)) == 3


def test_the_other_schedules_by_hand() -> None:
    assert [factor("constant", step, 4) for step in (0, 4)] == [1.0, 1.0]
    assert [factor("linear", step, 4) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    # cos 0, 60, 90, 180 degrees: 1, 0.5, 0, -1.
    np.testing.assert_allclose(
        [factor("cosine", step, 6) for step in (0, 2, 3, 6)], [1, 0.75, 0.5, 0], atol=1e-15
    )
    assert factor("sigmoid", 60, 60, steepness=1e6) == 0.0  # no overflow
    assert factor("sigmoid", 0, 60, steepness=1e6) == 1.0


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="constant, linear, cosine, sigmoid"):
        factor("exponential", 0, 1)  # type: ignore[arg-type]
    for step, steps in ((0, 0), (-1, 5)):
        with pytest.raises(ValueError, match="needs 0 <= step"):
            factor("linear", step, steps)


# ---------------------------------------------------------------- noises


def test_noisy_rollouts_levels() -> None:
    """Signal and noise of its steps 500, 400 and 250, as worked out from its code."""
    levels = signal_levels()
    assert np.sqrt(levels[500]) == pytest.approx(0.863, abs=5e-4)
    assert np.sqrt(1 - levels[500]) == pytest.approx(0.505, abs=5e-4)
    assert np.sqrt(1 - levels[400]) == pytest.approx(0.328, abs=6e-4)  # 0.3275
    assert np.sqrt(1 - levels[250]) == pytest.approx(0.15, abs=5e-3)


def test_diffusion_noise_is_the_mixture_clamped_to_uint8() -> None:
    """On a grey of 0.5 at t = 250 almost nothing is clamped: mean and deviation are those of the equation."""
    grey = np.full((120, 120, 3), 128, np.uint8)
    noisy = diffusion_noise(grey, 250, np.random.default_rng(0))
    level = signal_levels()[250]
    assert (noisy.dtype, noisy.shape) == (np.uint8, grey.shape)
    # 43,200 draws of deviation 38: standard errors 0.18 of the mean and 0.13 of the deviation.
    assert noisy.mean() == pytest.approx(128 * np.sqrt(level), abs=0.8)
    assert noisy.std() == pytest.approx(255 * np.sqrt(1 - level), abs=0.8)
    strong = diffusion_noise(grey, 999, np.random.default_rng(0))
    assert {0, 255} <= set(np.unique(strong).tolist())
    for t in (-1, 1000):
        with pytest.raises(ValueError, match="0 to 999"):
            diffusion_noise(grey, t, np.random.default_rng(0))


@pytest.mark.parametrize("epsilon", [0, 1, 4, 255])
def test_random_sign_steps_by_epsilon_and_is_cut_exactly(epsilon: int) -> None:
    base = np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    changed = random_sign(base, epsilon, np.random.default_rng(2))
    up, down = np.minimum(base.astype(int) + epsilon, 255), np.maximum(base.astype(int) - epsilon, 0)
    assert ((changed == up) | (changed == down)).all()
    inside = (base >= epsilon) & (base <= 255 - epsilon)
    if 0 < epsilon < 128:
        rising = (changed > base)[inside]
        assert rising.mean() == pytest.approx(0.5, abs=0.02)  # 10,800 coins: standard error 0.005
        channels = (changed.astype(int) - base)[inside.all(axis=-1)]
        assert (channels[:, 0] == channels[:, 1]).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("epsilon", [0.5, -1, 256])
def test_random_sign_wants_whole_steps(epsilon: float) -> None:
    with pytest.raises(ValueError, match="whole number"):
        random_sign(canvas(), epsilon, np.random.default_rng(0))  # type: ignore[arg-type]


def test_a_rotation_keeps_the_size_and_the_whole_picture() -> None:
    """By 90 degrees of a square: exact. By 15: the corners are black, and all four coloured corners are still there."""
    square = canvas(56, 56)
    np.testing.assert_array_equal(rotated(square, 90.0), np.rot90(square))
    np.testing.assert_array_equal(rotated(square, 0.0), square)
    base = np.full((80, 120, 3), 100, np.uint8)
    base[:8, :8] = (255, 0, 0)
    turned = rotated(base, 15.0)
    assert turned.shape == base.shape
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
    red = np.argwhere((turned[..., 0] > 200) & (turned[..., 1] < 60))
    assert len(red) > 10
    assert red[:, 0].mean() > 8  # counter-clockwise: the top left corner comes down
    assert red[:, 1].mean() < 20


def test_an_occlusion_covers_its_share_once() -> None:
    """A quarter of 56 x 84: a rectangle of 28 x 42, black, and nothing else changes."""
    base = canvas()
    places = set()
    for seed in range(5):
        changed = occluded(base, 0.25, np.random.default_rng(seed))
        rows, columns = np.nonzero((changed == 0).all(axis=-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1, len(rows)) == (28, 42, 28 * 42)
        black = (changed == 0).all(axis=-1)
        np.testing.assert_array_equal(changed[~black], base[~black])
        places.add((int(rows.min()), int(columns.min())))
    assert len(places) > 1
    np.testing.assert_array_equal(occluded(base, 0.0, np.random.default_rng(0)), base)
    assert not occluded(base, 1.0, np.random.default_rng(0)).any()
    with pytest.raises(ValueError, match="0 to 1"):
        occluded(base, 1.1, np.random.default_rng(0))


def test_papos_mask_blackens_whole_blocks() -> None:
    """50 x 75 blocks of 14, cut at the edges; 3,750 coins of 0.6: standard error 0.008."""
    base = canvas(50 * 14 - 3, 75 * 14 - 5)
    masked = blocks_masked(base, 14, 0.6, np.random.default_rng(3))
    black = (masked == 0).all(axis=-1)
    np.testing.assert_array_equal(masked[~black], base[~black])
    first = black[::14, ::14]
    assert first.shape == (50, 75)
    np.testing.assert_array_equal(black, first.repeat(14, 0).repeat(14, 1)[: base.shape[0], : base.shape[1]])
    assert first.mean() == pytest.approx(0.6, abs=0.03)
    with pytest.raises(ValueError, match="side"):
        blocks_masked(base, 0, 0.6, np.random.default_rng(0))


def test_told_changes_are_told_and_as_often_as_the_paper_says() -> None:
    """2,000 pictures: changed with 0.3 (standard error 0.01), each of the eight changes in an eighth of those."""
    base = canvas(28, 42)
    told: dict[str | None, list[np.ndarray]] = {}
    for seed in range(2000):
        changed, sentence = told_change(base, np.random.default_rng(seed), moves=True)
        assert (changed.shape, changed.dtype) == (base.shape, np.uint8)
        told.setdefault(sentence, []).append(changed)
    same = told.pop(None)
    assert len(same) / 2000 == pytest.approx(0.7, abs=0.04)
    assert all((one == base).all() for one in same)
    assert len(told) == 8
    assert min(map(len, told.values())) > 0.5 * 600 / 8
    exact = {
        "The picture was rotated by 180 degrees.": base[::-1, ::-1],
        "The picture was flipped from left to right.": base[:, ::-1],
        "The picture was flipped upside down.": base[::-1],
    }
    for sentence, expected in exact.items():
        np.testing.assert_array_equal(told[sentence][0], expected)
    grey = np.full((90, 90, 3), 128, np.uint8)
    for std in (10, 25, 50):
        seed = next(
            s
            for s in range(500)
            if f" {std} " in str(told_change(grey, np.random.default_rng(s), moves=True)[1])
        )
        noisy, _ = told_change(grey, np.random.default_rng(seed), moves=True)
        # 24,300 draws; beyond ±128 lie 1 % of deviation 50, which clamping brings nearer.
        assert noisy.std() == pytest.approx(std, rel=0.03)


def test_quarter_turns_go_the_way_that_is_told() -> None:
    square = canvas(28, 28)
    ways = {"counter-clockwise": np.rot90(square), " clockwise": np.rot90(square, -1)}
    for way, expected in ways.items():
        seeds = (s for s in range(500))
        found = (told_change(square, np.random.default_rng(s), moves=True) for s in seeds)
        changed = next(picture for picture, sentence in found if sentence and way in sentence)
        np.testing.assert_array_equal(changed, expected)


def test_where_places_are_asked_nothing_moves() -> None:
    """Only noise: the mean of a picture of two halves stays where it was."""
    base = np.zeros((60, 60, 3), np.uint8)
    base[:, :30], base[:, 30:] = 80, 180
    sentences = set()
    for seed in range(200):
        changed, sentence = told_change(base, np.random.default_rng(seed), moves=False)
        sentences.add(sentence)
        assert changed[:, :30].mean() < 100 < 160 < changed[:, 30:].mean()
    assert {None} < sentences
    assert all("Noise" in sentence for sentence in sentences - {None})


def test_nothing_changes_what_it_is_given_and_the_generator_decides_everything() -> None:
    base = canvas()
    before = base.copy()
    changes = [
        lambda rng: diffusion_noise(base, 400, rng),
        lambda rng: random_sign(base, 4, rng),
        lambda rng: occluded(base, 0.3, rng),
        lambda rng: blocks_masked(base, 14, 0.6, rng),
        lambda rng: told_change(base, rng, moves=False)[0],
    ]
    for change in changes:
        drawn = [change(np.random.default_rng(seed)) for seed in range(12)]
        np.testing.assert_array_equal(change(np.random.default_rng(3)), drawn[3])
        assert any((drawn[0] != other).any() for other in drawn[1:])
        drawn[0][:] = 7  # a result is no view of what was given
    np.testing.assert_array_equal(base, before)


# ---------------------------------------------------------------- randomness


def test_a_problems_randomness_is_a_function_of_seed_step_and_id() -> None:
    """Also in another process, where Python's own hash of a text is another."""
    words = (
        "0, 3, 'a:7'",
        "1, 3, 'a:7'",
        "0, 4, 'a:7'",
        "0, 3, 'a:8'",
        "0, 3, 'a:7', 1",
        "0, 3, 'a:7', purpose='x'",
    )
    code = "from fovea.interventions.noise import generator\n"
    code += "".join(f"print(generator({given}).integers(2**62))\n" for given in words)
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    here = [
        generator(0, 3, "a:7"),
        generator(1, 3, "a:7"),
        generator(0, 4, "a:7"),
        generator(0, 3, "a:8"),
        generator(0, 3, "a:7", 1),
        generator(0, 3, "a:7", purpose="x"),
    ]
    assert [str(one.integers(2**62)) for one in here] == there
    assert len(set(there)) == len(there)
