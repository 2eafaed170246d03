"""The small world's places: flat colours on the latent's grid, with a few details that vary."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from .sprites import PLACES

SIDE = 32
Array = np.ndarray
RGB = tuple[float, float, float]


def _bands(*bands: tuple[int, RGB]) -> Array:
    image = np.zeros((SIDE, SIDE, 3), np.float32)
    for top, colour in bands:
        image[top:] = colour
    return image


def _spots(
    image: Array, rng: np.random.Generator, count: int, top: int, bottom: int, colour: RGB
) -> None:
    """Single dots on every second row and column of rows top..bottom."""
    rows = rng.integers(top // 2, bottom // 2, count) * 2
    image[rows, rng.integers(0, SIDE // 2, count) * 2] = colour


def _beach(rng: np.random.Generator, line: int) -> Array:
    image = _bands((0, SKY), (line, (0.16, 0.50, 0.84)), (line + 6, (0.96, 0.87, 0.63)))
    x = int(rng.integers(1, 13)) * 2
    image[2:6, x : x + 4] = (1.0, 0.94, 0.52)
    return image


def _forest(rng: np.random.Generator, line: int) -> Array:
    image = _bands((0, (0.33, 0.58, 0.36)), (line + 6, (0.36, 0.44, 0.20)))
    for x in rng.choice(8, 4, replace=False) * 4:
        image[: line + 6, x : x + 2] = (0.40, 0.28, 0.19)
    image[:4] = (0.20, 0.42, 0.25)
    return image


def _night(rng: np.random.Generator, line: int) -> Array:
    image = _bands((0, (0.17, 0.19, 0.42)), (line + 6, (0.27, 0.29, 0.45)))
    _spots(image, rng, 7, 0, line, (0.95, 0.93, 0.75))
    x = int(rng.integers(1, 13)) * 2
    image[2:6, x : x + 4] = (0.95, 0.93, 0.75)
    return image


def _snow(rng: np.random.Generator, line: int) -> Array:
    image = _bands((0, (0.66, 0.77, 0.88)), (line + 2, (0.95, 0.96, 1.0)))
    _spots(image, rng, 8, 0, line, (0.95, 0.96, 1.0))
    return image


def _desert(rng: np.random.Generator, line: int) -> Array:
    image = _bands((0, (1.0, 0.80, 0.52)), (line + 6, (0.83, 0.58, 0.29)))
    x = int(rng.integers(0, 9)) * 2
    for step in range(3):
        image[
            line + 2 * step : line + 6, x - 4 * step if step * 4 < x else 0 : x + 4 + 4 * step
        ] = (0.92, 0.68, 0.37)
    return image


def _city(rng: np.random.Generator, line: int) -> Array:
    image = _bands((0, (0.71, 0.76, 0.84)), (24, (0.45, 0.46, 0.50)))
    for x in range(0, SIDE, 8):
        top = int(rng.integers(2, 7)) * 2
        image[top:24, x : x + 6] = (0.50, 0.54, 0.63)
        image[top + 2 : 22 : 4, x + 1 : x + 5 : 2] = (0.97, 0.91, 0.60)
    return image


def _meadow(rng: np.random.Generator, line: int) -> Array:
    image = _bands((0, (0.66, 0.89, 0.98)), (line + 2, (0.51, 0.79, 0.35)))
    _spots(image, rng, 5, line + 4, SIDE, (1.0, 0.93, 0.93))
    x = int(rng.integers(0, 13)) * 2
    image[4:6, x : x + 8] = (1.0, 1.0, 1.0)
    return image


def _cave(rng: np.random.Generator, line: int) -> Array:
    image = _bands((0, (0.36, 0.30, 0.34)), (24, (0.52, 0.44, 0.40)))
    for x in rng.choice(8, 4, replace=False) * 4:
        image[: int(rng.integers(1, 5)) * 2, x : x + 2] = (0.25, 0.20, 0.24)
    return image


SKY: RGB = (0.53, 0.81, 0.97)
BACKGROUNDS = {
    "beach": _beach,
    "forest": _forest,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "city": _city,
    "meadow": _meadow,
    "cave": _cave,
}
HORIZONS = (12, 14, 16)


@lru_cache(maxsize=8192)
def background(place: str, style: int) -> Array:
    """Image [S S 3] in 0..1 of flat colours; `style` moves horizons, suns, trunks and stars.

    ValueError: there is no such place.
    """
    if place not in BACKGROUNDS:
        raise ValueError(f"there is no place {place!r}; the small world has {sorted(PLACES)}")
    rng = np.random.default_rng((style, 77))
    image = BACKGROUNDS[place](rng, int(rng.choice(HORIZONS)))
    image.setflags(write=False)
    return image


@cache
def palette(place: str) -> Array:
    """Every colour [n 3] that the backgrounds of a place are made of."""
    drawn = np.concatenate([background(place, style).reshape(-1, 3) for style in range(40)])
    return np.unique(drawn, axis=0)
