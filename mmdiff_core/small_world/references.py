"""Reference images as a person might give them: other sizes, sides, tilts and lights, occlusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scenes import BLANK, SIDE, TALL, Array, Identity, reference, sprite
from .sprites import WIDTH

SUPERSAMPLE = 2  # `show` averages 2 x 2
SOFTENING = (0.125, 0.75, 0.125)  # what resizing a 128 px picture to 32 does to its dots


@dataclass(frozen=True)
class Look:
    """How an individual is shown.

    scale    in reference dots per sprite dot
    tilt     in radians
    covered  share of it that is hidden
    blurred  standard deviation of a Gaussian blur of the whole image, in dots
    """

    scale: float = 2.0
    tilt: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    flipped: bool = False
    light: float = 1.0
    blank: float = BLANK
    softened: bool = False
    covered: float = 0.0
    cover_angle: float = 0.0
    blurred: float = 0.0


# references that are worse than the ones of training, where nothing is blurred, light is 0.85 to
# 1.1, and tilts have a standard deviation of 0.12
LOOKS = {
    "half covered": Look(covered=0.5),
    "blurred": Look(blurred=1.5),
    "dark": Look(light=0.35, blank=0.35 * BLANK),
    "mirrored": Look(flipped=True),
    "other pose": Look(scale=1.6, tilt=0.5, shift=(1.5, -1.5)),
}


def random_look(rng: np.random.Generator, covered: float | None = None) -> Look:
    """A look as in training.

    covered  share that is hidden; None = nothing two times in three, else 0.2 to 0.5
    """
    hidden = float(rng.uniform(0.2, 0.5)) if rng.random() < 1 / 3 else 0.0
    return Look(
        scale=float(rng.uniform(1.3, 2.3)),
        tilt=float(rng.normal(0, 0.12)),
        shift=tuple(rng.uniform(-2.5, 2.5, 2).tolist()),
        flipped=bool(rng.random() < 0.5),
        light=float(rng.uniform(0.85, 1.1)),
        blank=BLANK if rng.random() < 0.7 else float(rng.uniform(0, 1)),
        softened=bool(rng.random() < 0.4),
        covered=hidden if covered is None else covered,
        cover_angle=float(rng.uniform(0, 2 * np.pi)),
    )


def show(kind: str, identity: Identity, look: Look) -> Array:
    """The individual [K K 3] under that look."""
    colours, mask = sprite(kind, identity)
    side = SIDE * SUPERSAMPLE
    y, x = (np.mgrid[:side, :side].astype(np.float32) + 0.5) / SUPERSAMPLE - SIDE / 2
    x, y = x - look.shift[0], y - look.shift[1]
    cos, sin = np.cos(look.tilt) / look.scale, np.sin(look.tilt) / look.scale
    u, v = cos * x + sin * y, -sin * x + cos * y
    inside_cover = _covered(u, v, mask, look)
    u = (-u if look.flipped else u) + WIDTH / 2
    v = v + TALL / 2
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    within = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < TALL)
    column, row = column.clip(0, WIDTH - 1), row.clip(0, TALL - 1)
    seen = within & mask[row, column] & ~inside_cover
    fine = np.where(seen[..., None], colours[row, column] * look.light, look.blank)
    image = (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4
    image = soften(image) if look.softened else image
    image = blur(image, look.blurred) if look.blurred else image
    return np.clip(image, 0, 1).astype(np.float32)


def _covered(u: Array, v: Array, mask: Array, look: Look) -> Array:
    """The half plane, at the cover's angle, that hides the stated share of the individual."""
    if look.covered <= 0:
        return np.zeros(u.shape, bool)
    rows, columns = np.nonzero(mask)
    cos, sin = np.cos(look.cover_angle), np.sin(look.cover_angle)
    side = -1 if look.flipped else 1
    along = side * (columns + 0.5 - WIDTH / 2) * cos + (rows + 0.5 - TALL / 2) * sin
    return u * cos + v * sin > np.quantile(along, 1 - look.covered)


def soften(image: Array) -> Array:
    """Each dot a little of its neighbours."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    a, b, c = SOFTENING
    rows = a * padded[:-2] + b * padded[1:-1] + c * padded[2:]
    return a * rows[:, :-2] + b * rows[:, 1:-1] + c * rows[:, 2:]


def blur(image: Array, deviation: float) -> Array:
    """A Gaussian blur [K K 3]; the border's dots go on outside of it. `deviation` in dots."""
    reach = int(np.ceil(3 * deviation))
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    kernel /= kernel.sum()
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    high, wide = image.shape[:2]
    rows = sum(k * padded[i : i + high] for i, k in enumerate(kernel))
    return sum(k * rows[:, i : i + wide] for i, k in enumerate(kernel))


def augmented(
    rng: np.random.Generator, kind: str, identity: Identity, covered: float | None = None
) -> Array:
    """A reference picture as in training: clean one time in five."""
    if covered is None and rng.random() < 0.2:
        clean = reference(kind, identity)
        return soften(clean) if rng.random() < 0.5 else clean
    return show(kind, identity, random_look(rng, covered))
