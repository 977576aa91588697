"""Changes of a picture that ask no policy: the noises, turns and masks of the neighbours of an adversarial attack.

    diffusion_noise(canvas, t, rng)              NoisyRollout (arXiv:2504.13055)
    rotated(canvas, degrees), occluded(...)      its other two
    random_sign(canvas, epsilon, rng)            ±ε without a gradient: what an attack of the same ε must beat
    told_change(canvas, rng, moves=...)          R1-ShareVL (arXiv:2505.16673): a change, and the sentence that tells it
    blocks_masked(canvas, side, share, rng)      PAPO (arXiv:2507.06448)

A canvas is uint8 RGB [H, W, 3] at model-input resolution (`fovea.models.canvas`); every function returns another of the
same shape, so that the prompt's tokens stay, and leaves the given one as it is. All randomness is the generator's that
is given; `generator` makes one that is a function of (seed, step, problem). Not here: strength over the run
(`schedules`), gradients (`attack`).
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from PIL import Image

DIFFUSION_STEPS = 1000
"""Levels of NoisyRollout's noise; its α_0 is 500 for Geometry3K and 450 for K12."""
LARGEST_ROTATION = 15.0
"""Degrees, either way, of NoisyRollout's rotation."""
TOLD_PROBABILITY = 0.3
"""How often R1-ShareVL changes a picture."""
TOLD_STDS = (10.0, 25.0, 50.0)
"""Standard deviations of R1-ShareVL's noise, on the scale 0 to 255."""
PAPO_SIDE = 14
"""Pixels of a side of PAPO's blocks."""
PAPO_SHARE = 0.6
"""Probability with which PAPO blackens a block."""


def generator(
    seed: int, step: int, problem: str, occurrence: int = 0, *, purpose: str = ""
) -> np.random.Generator:
    """Randomness of one problem in one step, the same in every process and whatever else is in the step.

    `seed` and `step` are not negative; `problem` is the problem's id and `occurrence` how often it was in the step
    before. Streams of different `purpose` have nothing in common.

    Example: generator(0, 3, "digits/locate:train:0:7").integers(2)
    """
    key = hashlib.blake2b(f"{purpose}\0{problem}".encode(), digest_size=16).digest()
    words = np.frombuffer(key, dtype="<u4").tolist()
    return np.random.default_rng(np.random.SeedSequence([seed, step, occurrence, *words]))


@cache
def signal_levels() -> np.ndarray:
    """float64 [1000]: ᾱ_t = Π (1 - β_s), s = 0 to t, with β = sigmoid(-6 … 6) · (0.005 - 1e-5) + 1e-5, NoisyRollout's.

    A picture keeps sqrt(ᾱ_t) of itself and gets noise of standard deviation sqrt(1 - ᾱ_t). Read-only.
    """
    betas = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, DIFFUSION_STEPS))) * (0.005 - 1e-5) + 1e-5
    levels = np.cumprod(1.0 - betas)
    levels.flags.writeable = False
    return levels


def diffusion_noise(canvas: np.ndarray, t: int, rng: np.random.Generator) -> np.ndarray:
    """x_t = sqrt(ᾱ_t) x + sqrt(1 - ᾱ_t) n with n standard normal and x in [0, 1]; then clamped, and rounded to uint8.

    `t`, 0 to 999, is NoisyRollout's int(α_t). Its 0 is the smallest noise there is (standard deviation 1.3 of 255), not
    none: whoever anneals stops before. Rounding (not truncation) is our choice. Raises ValueError for another t.
    """
    if not 0 <= t < DIFFUSION_STEPS:
        raise ValueError(f"a noise level is 0 to {DIFFUSION_STEPS - 1}, not {t}")
    kept = signal_levels()[t]
    noise = rng.standard_normal(canvas.shape)
    return _uint8(255.0 * (np.sqrt(kept) * (canvas / 255.0) + np.sqrt(1.0 - kept) * noise))


def random_sign(canvas: np.ndarray, epsilon: int, rng: np.random.Generator) -> np.ndarray:
    """Every pixel and channel ε up or down, independently and with equal probability, cut at 0 and 255.

    The step of FGSM with a coin in the place of the gradient's sign: where an attack of equal ε does no better, its
    gradient says nothing. `epsilon`: whole steps of 1/255, 0 to 255; raises ValueError for another.
    """
    if epsilon != int(epsilon) or not 0 <= epsilon <= 255:
        raise ValueError(f"epsilon is a whole number of steps of 1/255, 0 to 255, not {epsilon}")
    signs = rng.integers(0, 2, canvas.shape, dtype=np.int16) * 2 - 1
    return np.clip(canvas.astype(np.int16) + int(epsilon) * signs, 0, 255).astype(np.uint8)


def rotated(canvas: np.ndarray, degrees: float) -> np.ndarray:
    """Turned counter-clockwise about its middle, black where nothing is.

    NoisyRollout turns by up to 15 degrees and lets the picture grow until nothing is cut off. Here it is then scaled
    back to the canvas' size, so that the prompt keeps its tokens: our choice, as is the bilinear filter.
    """
    if degrees % 360 == 0:
        return canvas.copy()
    turned = Image.fromarray(canvas).rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    return _fitted(turned, canvas)


def occluded(canvas: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A black rectangle over `share` (0 to 1) of the picture, anywhere inside it, in the picture's own proportions.

    NoisyRollout has a random occlusion; its shape was not found, so this is our reconstruction. The sides are rounded
    to whole pixels. Raises ValueError for another share.
    """
    _check_share(share)
    height, width = canvas.shape[:2]
    high, wide = round(height * share**0.5), round(width * share**0.5)
    top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
    changed = canvas.copy()
    changed[top : top + high, left : left + wide] = 0
    return changed


def told_change(
    canvas: np.ndarray, rng: np.random.Generator, *, moves: bool
) -> tuple[np.ndarray, str | None]:
    """With probability 0.3 one change and the sentence that tells it to the model, else the picture and None.

    R1-ShareVL's changes: a rotation by 90, -90 or 180 degrees, Gaussian noise of standard deviation 10, 25 or 50 (of
    255), a flip. `moves=False` leaves the noises alone, for questions whose answer is a place. That every change is as
    likely as every other, and the sentences, are our choice; so is that a picture turned by 90 degrees is scaled back
    to the canvas' size (stretched, unless it is a square), which keeps the prompt's tokens.
    """
    if rng.random() >= TOLD_PROBABILITY:
        return canvas.copy(), None
    changes = [("noise", std) for std in TOLD_STDS]
    if moves:
        changes += [("turn", 90.0), ("turn", -90.0), ("turn", 180.0), ("flip", 0.0), ("flip", 1.0)]
    kind, amount = changes[int(rng.integers(len(changes)))]
    if kind == "noise":
        noisy = canvas + rng.normal(0.0, amount, canvas.shape)
        return _uint8(noisy), f"Noise of standard deviation {amount:g} (of 255) was added to the picture."
    if kind == "flip":
        way = "from left to right" if amount else "upside down"
        return np.flip(canvas, axis=int(amount)).copy(), f"The picture was flipped {way}."
    turned = Image.fromarray(np.rot90(canvas, int(amount) // 90).copy())
    way = "" if amount == 180 else " counter-clockwise" if amount > 0 else " clockwise"
    return _fitted(turned, canvas), f"The picture was rotated by {abs(amount):g} degrees{way}."


def blocks_masked(canvas: np.ndarray, side: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Every block of side × side pixels is black with probability `share`, independently; PAPO has 14 and 0.6.

    Blocks start at the top left; those at the right and the bottom may be smaller. Raises ValueError for a share that
    is not 0 to 1 or a side below 1.
    """
    _check_share(share)
    if side < 1:
        raise ValueError(f"a block has a side of 1 pixel or more, not {side}")
    height, width = canvas.shape[:2]
    black = rng.random((-(-height // side), -(-width // side))) < share
    pixels = black.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    return np.where(pixels[..., None], np.uint8(0), canvas)


def _check_share(share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"a share is 0 to 1, not {share}")


def _fitted(image: Image.Image, canvas: np.ndarray) -> np.ndarray:
    """The picture at the canvas' size, uint8 [H, W, 3]."""
    height, width = canvas.shape[:2]
    same = image.size == (width, height)
    return np.array(image if same else image.resize((width, height), Image.Resampling.BILINEAR))


def _uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
