"""Pictures of the small world: drawn by rule, without limit, and known exactly.

An identity is two colours of the continuous wheel, a pattern, eyes and an accessory: nothing that
its class name tells.
Everything follows from integers: `scene(split, seed, index)` is always the same scene.

Shapes   S scene side (32) · K reference side (32) · h w sprite with headroom (14 x 10)
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from .backgrounds import SIDE, Array, background
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
    INK,
    PATTERNS,
    PLACES,
    SPRITES,
    WIDTH,
    WORDS,
)

TALL = HEIGHT + HEADROOM
HUE_BINS = 12
BLANK = 0.75  # grey of a reference's background
SPLITS = ("train", "test")


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
    """An individual of a class; x and y of its top left corner, with headroom, in the scene.

    told  what the caption says of it, as words before the class
    """

    kind: str
    identity: Identity
    x: int
    y: int
    told: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The words before the class, and the class."""
        return " ".join((*self.told, self.kind))


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. The caption names the subjects in the order of `placed`."""

    placed: tuple[Placed, ...]
    place: str
    style: int  # seed of the background's accidents
    opening: str = ""

    @property
    def caption(self) -> str:
        return (
            self.opening
            + " and ".join(f"a {p.words}" for p in self.placed)
            + " "
            + PLACES[self.place]
        )

    def spans(self) -> tuple[tuple[int, int], ...]:
        """First and one-past-last character of each subject's noun in the caption."""
        spans, at = [], len(self.opening)
        for p in self.placed:
            end = at + 2 + len(p.words)
            spans.append((end - len(p.kind), end))
            at = end + len(" and ")
        return tuple(spans)


# ---------------------------------------------------------------- individuals


def random_identity(rng: np.random.Generator, split: str) -> Identity:
    """An individual of the split; its two hues differ by at least an eighth of the wheel."""
    while True:
        first = rng.random()
        second = (first + rng.uniform(0.14, 0.86)) % 1
        # `rng.choice` draws the same numbers, in four times the time
        traits = (values[rng.integers(len(values))] for values in (PATTERNS, EYES, ACCESSORIES))
        found = Identity(first, second, *traits)
        if found.held_out == (split == "test"):
            return found


def look_alike(rng: np.random.Generator, identity: Identity) -> Identity:
    """An individual that is hard to tell apart: other hues by a twelfth, one other trait."""
    shift = rng.choice([-1, 1], 2) / 12
    near = replace(
        identity, first=(identity.first + shift[0]) % 1, second=(identity.second + shift[1]) % 1
    )
    trait, values = (("pattern", PATTERNS), ("eyes", EYES), ("accessory", ACCESSORIES))[
        rng.integers(3)
    ]
    return replace(
        near, **{trait: str(rng.choice([v for v in values if v != getattr(identity, trait)]))}
    )


def blend(a: Identity, b: Identity) -> tuple[Identity, ...]:
    """Individuals between two: one's body colours with the other's, both ways round."""
    return (
        replace(a, second=b.first),
        replace(b, second=a.first),
        replace(a, first=b.first),
        replace(b, first=a.first),
    )


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
        "plain": np.zeros((TALL, WIDTH), bool),
        "stripes": (y // 2) % 2 == 0,
        "bars": (x // 2) % 2 == 0,
        "dots": (x % 4 == 2) & (y % 4 == 1) | (x % 4 == 0) & (y % 4 == 3),
        "checker": (x // 2 + y // 2) % 2 == 0,
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
    image[letters == "o"] = INK
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


# ---------------------------------------------------------------- scenes

GRID = 2  # dots: subjects stand on every second column and row, the latent's grid
FEET = (14, 16, 18)  # rows at which a sprite may begin; its feet are TALL rows further down


def _columns(rng: np.random.Generator, count: int) -> list[int]:
    """Left edges on the grid that keep subjects from covering one another, left to right."""
    free = (SIDE - count * WIDTH) // GRID
    cuts = np.sort(rng.integers(0, free + 1, count))
    return [int(cut) * GRID + i * WIDTH for i, cut in enumerate(cuts)]


def place_subjects(
    rng: np.random.Generator, subjects: list[tuple[str, Identity]]
) -> tuple[Placed, ...]:
    """Random positions side by side on the ground; which subject stands where has nothing to do
    with the caption's order."""
    columns = _columns(rng, len(subjects))
    rng.shuffle(columns)
    return tuple(
        Placed(kind, who, x, int(rng.choice(FEET)))
        for (kind, who), x in zip(subjects, columns, strict=True)
    )


def random_kinds(rng: np.random.Generator, count: int, split: str) -> list[str]:
    """Classes of a scene:

    Often the same one; pairs that are held out appear in the test split only.
    """
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
    told = " ".join(word for words in WORDS.values() for word in words)
    return (OPENING + " and ".join(f"a {kind}" for kind in CLASSES), *PLACES.values(), told)


def scene(split: str, seed: int, index: int, count: int | None = None) -> Scene:
    """The scene of that number. `count` subjects, or 1 to 3 with chances 0.3, 0.5, 0.2."""
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    count = count or int(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2]))
    kinds = random_kinds(rng, count, split)
    subjects = [(k, random_identity(rng, split)) for k in kinds]
    opening = OPENING if rng.random() < 0.2 else ""
    return Scene(
        place_subjects(rng, subjects),
        str(rng.choice(tuple(PLACES))),
        int(rng.integers(2**31)),
        opening,
    )


def draw(scene: Scene) -> tuple[Array, Array]:
    """The image [S S 3] in 0..1 and every subject's visible mask [n S S].

    Later subjects stand in front.
    """
    image = background(scene.place, scene.style).copy()
    masks = np.zeros((len(scene.placed), SIDE, SIDE), bool)
    for i, p in enumerate(scene.placed):
        colours, mask = sprite(p.kind, p.identity)
        image[p.y : p.y + TALL, p.x : p.x + WIDTH][mask] = colours[mask]
        masks[:i, p.y : p.y + TALL, p.x : p.x + WIDTH] &= ~mask
        masks[i, p.y : p.y + TALL, p.x : p.x + WIDTH] = mask
    return image, masks


def reference(kind: str, identity: Identity) -> Array:
    """A clean reference picture [K K 3]:

    The individual twice as large on a blank (light grey) background.
    """
    image = np.full((SIDE, SIDE, 3), BLANK, np.float32)
    colours, mask = sprite(kind, identity)
    big = np.repeat(np.repeat(np.where(mask[..., None], colours, BLANK), 2, 0), 2, 1)
    top, left = (SIDE - big.shape[0]) // 2, (SIDE - big.shape[1]) // 2
    image[top : top + big.shape[0], left : left + big.shape[1]] = big
    return image
