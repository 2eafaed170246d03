"""Pictures of the small world: drawn by rule, without limit, and known exactly.

An identity is two colours of the continuous wheel, a pattern, eyes and an accessory: nothing that its class name tells.
Everything follows from integers: `scene(split, seed, index)` is always the same scene.

Shapes   S scene side (32) · K reference side (32) · h w sprite with headroom (14 x 10)
"""
from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from .sprites import (
    ACCESSORIES,
    ACCESSORY_COLOURS,
    ACCESSORY_ROWS,
    CLASSES,
    EYE_COLOURS,
    EYES,
    HEADROOM,
    HEADS,
    HEIGHT,
    HELD_OUT_PAIRS,
    PATTERNS,
    PLACES,
    SPRITES,
    WIDTH,
)

SIDE = 32
TALL = HEIGHT + HEADROOM
HUE_BINS = 12
BLANK = 0.75         # grey of a reference's background
SPLITS = ("train", "test")
Array = np.ndarray


@dataclass(frozen=True)
class Identity:
    """One individual. Hues in 0..1 (turns of the colour wheel)."""

    first: float
    second: float
    pattern: str
    eyes: str
    accessory: str

    @property
    def held_out(self) -> bool:
        """True for the colour combinations that training never shows (about one in six)."""
        a, b = int(self.first * HUE_BINS) % HUE_BINS, int(self.second * HUE_BINS) % HUE_BINS
        return (a * 7 + b * 3 + a * b) % 6 == 0


@dataclass(frozen=True)
class Placed:
    """An individual of a class, at its top left corner in the scene (x, y of the sprite with headroom)."""

    kind: str
    identity: Identity
    x: int
    y: int
    flipped: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. The caption names the subjects in the order of `placed`."""

    placed: tuple[Placed, ...]
    place: str
    style: int          # seed of the background's accidents
    opening: str = ""

    @property
    def caption(self) -> str:
        return self.opening + " and ".join(f"a {p.kind}" for p in self.placed) + " " + PLACES[self.place]

    def spans(self) -> tuple[tuple[int, int], ...]:
        """First and one-past-last character of each subject's noun in the caption."""
        spans, at = [], len(self.opening)
        for p in self.placed:
            spans.append((at + 2, at + 2 + len(p.kind)))
            at += 2 + len(p.kind) + len(" and ")
        return tuple(spans)


# ---------------------------------------------------------------- individuals

def random_identity(rng: np.random.Generator, split: str) -> Identity:
    """An individual of the split; its two hues differ by at least an eighth of the wheel."""
    while True:
        first = rng.random()
        second = (first + rng.uniform(0.14, 0.86)) % 1
        found = Identity(first, second, str(rng.choice(PATTERNS)), str(rng.choice(EYES)), str(rng.choice(ACCESSORIES)))
        if found.held_out == (split == "test"):
            return found


def look_alike(rng: np.random.Generator, identity: Identity) -> Identity:
    """Another individual that is hard to tell apart: hues moved by a twelfth, and one other trait changed."""
    shift = rng.choice([-1, 1], 2) / 12
    near = replace(identity, first=(identity.first + shift[0]) % 1, second=(identity.second + shift[1]) % 1)
    trait, values = (("pattern", PATTERNS), ("eyes", EYES), ("accessory", ACCESSORIES))[rng.integers(3)]
    return replace(near, **{trait: str(rng.choice([v for v in values if v != getattr(identity, trait)]))})


def blend(a: Identity, b: Identity) -> tuple[Identity, ...]:
    """Individuals between two: one's body colours with the other's, both ways round."""
    return (replace(a, second=b.first), replace(b, second=a.first), replace(a, first=b.first), replace(b, first=a.first))


# ---------------------------------------------------------------- sprites

@cache
def _letters(kind: str) -> Array:
    rows = SPRITES[kind].strip("\n").split("\n")
    body = np.array([list(r) for r in rows])
    assert body.shape == (HEIGHT, WIDTH), (kind, body.shape)
    return np.concatenate([np.full((HEADROOM, WIDTH), "."), body])


@cache
def _pattern(name: str) -> Array:
    y, x = np.mgrid[:TALL, :WIDTH]
    return {
        "plain": np.zeros((TALL, WIDTH), bool), "stripes": (y // 2) % 2 == 0, "bars": (x // 2) % 2 == 0,
        "dots": (x % 3 == 1) & (y % 3 == 1), "checker": (x // 2 + y // 2) % 2 == 0,
    }[name]


def _colour(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


@lru_cache(maxsize=4096)
def sprite(kind: str, identity: Identity) -> tuple[Array, Array]:
    """Colours [h w 3] in 0..1 and mask [h w] (bool) of an individual of a class."""
    letters = _letters(kind)
    first, second = _colour(identity.first, 0.85, 0.95), _colour(identity.second, 0.75, 0.85)
    image = np.zeros((TALL, WIDTH, 3), np.float32)
    body = (letters == "a") | (letters == "e")
    image[body] = first
    image[(letters == "a") & _pattern(identity.pattern)] = second
    image[letters == "b"] = second
    image[letters == "o"] = first * 0.35
    eyes = letters == "e"
    image[eyes] = EYE_COLOURS[identity.eyes]
    if identity.eyes == "tall":
        image[np.roll(eyes, 1, axis=0)] = EYE_COLOURS["tall"]
        image[np.roll(eyes, -1, axis=0)] = (1.0, 1.0, 1.0)
    mask = letters != "."
    left, top = HEADS[kind]
    for up, row in enumerate(ACCESSORY_ROWS[identity.accessory]):
        for dx, letter in enumerate(row):
            if letter != ".":
                image[top + HEADROOM - 1 - up, left + dx] = ACCESSORY_COLOURS[letter]
                mask[top + HEADROOM - 1 - up, left + dx] = True
    image.setflags(write=False)
    mask.setflags(write=False)
    return image, mask


# ---------------------------------------------------------------- backgrounds

def _bands(*bands: tuple[int, tuple[float, float, float]]) -> Array:
    image = np.zeros((SIDE, SIDE, 3), np.float32)
    for top, colour in bands:
        image[top:] = colour
    return image


def background(place: str, style: int) -> Array:
    """[S S 3] in 0..1; `style` moves horizons, trunks, stars and shades."""
    rng = np.random.default_rng((style, 77))
    line = int(rng.integers(14, 20))
    if place == "beach":
        image = _bands((0, (0.53, 0.81, 0.98)), (line, (0.10, 0.45, 0.85)), (line + 5, (0.95, 0.87, 0.65)))
        x, y = rng.integers(2, 28), rng.integers(1, 5)
        image[y:y + 3, x:x + 3] = (1.0, 0.95, 0.55)
    elif place == "forest":
        image = _bands((0, (0.20, 0.42, 0.22)), (line + 6, (0.27, 0.24, 0.12)))
        for x in rng.integers(0, 30, 5):
            image[:line + 8, x:x + 2] = (0.30, 0.19, 0.10)
        image[:int(rng.integers(3, 7))] = (0.10, 0.30, 0.14)
    elif place == "night":
        image = _bands((0, (0.05, 0.06, 0.20)), (line + 7, (0.10, 0.12, 0.16)))
        image[rng.integers(0, line, 14), rng.integers(0, SIDE, 14)] = (0.95, 0.95, 0.8)
        x, y = rng.integers(2, 27), rng.integers(1, 4)
        image[y:y + 3, x:x + 3] = (0.93, 0.93, 0.78)
    elif place == "snow":
        image = _bands((0, (0.72, 0.80, 0.88)), (line + 2, (0.96, 0.97, 1.0)))
        image[rng.integers(0, line + 2, 18), rng.integers(0, SIDE, 18)] = (1.0, 1.0, 1.0)
    elif place == "desert":
        image = _bands((0, (0.99, 0.75, 0.45)), (line, (0.90, 0.65, 0.32)))
        x = np.arange(SIDE)
        height = (2.5 * np.sin(x / 5 + rng.uniform(0, 6)) + line + 5).astype(int)
        image[np.arange(SIDE)[:, None] >= height[None]] = (0.80, 0.54, 0.25)
    elif place == "city":
        image = _bands((0, (0.66, 0.70, 0.78)), (26, (0.35, 0.35, 0.38)))
        for x in range(int(rng.integers(0, 3)), SIDE, 6):
            top = int(rng.integers(3, 14))
            image[top:26, x:x + 5] = (0.42, 0.45, 0.52)
            image[top + 2:25:3, x + 1:x + 4:2] = (0.95, 0.90, 0.55)
    elif place == "meadow":
        image = _bands((0, (0.62, 0.88, 0.98)), (line, (0.45, 0.78, 0.30)))
        image[rng.integers(line + 2, SIDE, 10), rng.integers(0, SIDE, 10)] = (1.0, 0.9, 0.9)
        x, y = rng.integers(0, 24), rng.integers(1, 6)
        image[y:y + 2, x:x + 7] = (1.0, 1.0, 1.0)
    elif place == "cave":
        image = _bands((0, (0.22, 0.17, 0.18)), (26, (0.34, 0.27, 0.24)))
        for x in rng.integers(0, 30, 6):
            image[:int(rng.integers(2, 9)), x:x + 2] = (0.13, 0.10, 0.11)
    else:
        raise ValueError(f"there is no place {place!r}; the small world has {sorted(PLACES)}")
    return np.clip(image * rng.uniform(0.93, 1.05), 0, 1)


# ---------------------------------------------------------------- scenes

def _columns(rng: np.random.Generator, count: int) -> list[int]:
    """Left edges that keep subjects from covering one another, in random order."""
    free = SIDE - count * WIDTH
    cuts = np.sort(rng.integers(0, free + 1, count))
    return [int(c) + i * WIDTH for i, c in enumerate(cuts)]


def place_subjects(rng: np.random.Generator, subjects: list[tuple[str, Identity]]) -> tuple[Placed, ...]:
    """Random places side by side; which subject stands where has nothing to do with the caption's order."""
    columns = _columns(rng, len(subjects))
    rng.shuffle(columns)
    return tuple(
        Placed(kind, who, x, int(rng.integers(2, SIDE - TALL + 1)), bool(rng.random() < 0.5))
        for (kind, who), x in zip(subjects, columns, strict=True)
    )


def random_kinds(rng: np.random.Generator, count: int, split: str) -> list[str]:
    """Classes of a scene: often the same one; pairs that are held out appear in the test split only."""
    while True:
        kinds = [str(k) for k in rng.choice(CLASSES, count)]
        if count > 1 and rng.random() < 0.4:
            kinds[1] = kinds[0]
        pairs = {frozenset((a, b)) for i, a in enumerate(kinds) for b in kinds[:i]}
        if split == "test" or not pairs & HELD_OUT_PAIRS:
            return kinds


OPENING = "a picture of "


def every_word() -> tuple[str, ...]:
    """Texts that together hold every word a caption can have."""
    return (OPENING + " and ".join(f"a {kind}" for kind in CLASSES), *PLACES.values())


def scene(split: str, seed: int, index: int, count: int | None = None) -> Scene:
    """The scene of that number. `count` subjects, or 1 to 3 with chances 0.3, 0.5, 0.2."""
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    count = count or int(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2]))
    kinds = random_kinds(rng, count, split)
    subjects = [(k, random_identity(rng, split)) for k in kinds]
    opening = OPENING if rng.random() < 0.2 else ""
    return Scene(place_subjects(rng, subjects), str(rng.choice(tuple(PLACES))), int(rng.integers(2**31)), opening)


def draw(scene: Scene) -> tuple[Array, Array]:
    """The picture [S S 3] in 0..1 and every subject's visible mask [n S S]; later subjects stand in front."""
    image = background(scene.place, scene.style).copy()
    masks = np.zeros((len(scene.placed), SIDE, SIDE), bool)
    for i, p in enumerate(scene.placed):
        colours, mask = sprite(p.kind, p.identity)
        if p.flipped:
            colours, mask = colours[:, ::-1], mask[:, ::-1]
        image[p.y:p.y + TALL, p.x:p.x + WIDTH][mask] = colours[mask]
        masks[:i, p.y:p.y + TALL, p.x:p.x + WIDTH] &= ~mask
        masks[i, p.y:p.y + TALL, p.x:p.x + WIDTH] = mask
    return image, masks


def reference(kind: str, identity: Identity) -> Array:
    """A clean reference picture [K K 3]: the individual twice as large on a blank (light grey) background."""
    image = np.full((SIDE, SIDE, 3), BLANK, np.float32)
    colours, mask = sprite(kind, identity)
    big = np.repeat(np.repeat(np.where(mask[..., None], colours, BLANK), 2, 0), 2, 1)
    top, left = (SIDE - big.shape[0]) // 2, (SIDE - big.shape[1]) // 2
    image[top:top + big.shape[0], left:left + big.shape[1]] = big
    return image
