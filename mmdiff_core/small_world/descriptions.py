"""What a caption can say of an individual, so that the base knows colours, patterns, eyes and
accessories by their words, as large text-to-image models do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .scenes import Identity, Scene
from .sprites import ACCESSORIES, EYES, HUES, PATTERNS, WORDS

BARE = 0.35  # share of the captions that say nothing but classes and place
TOLD = 0.75  # chance of every other trait to be told
LONGEST = 22  # words of a caption: the text encoder's columns without the first and the last


def traits(identity: Identity) -> dict[str, int]:
    """Trait -> number of its value, and of its word in `sprites.WORDS`."""
    return {
        "eyes": EYES.index(identity.eyes),
        "first": round(identity.first * len(HUES)) % len(HUES),
        "second": round(identity.second * len(HUES)) % len(HUES),
        "pattern": PATTERNS.index(identity.pattern),
        "accessory": ACCESSORIES.index(identity.accessory),
    }


def words_of(identity: Identity) -> tuple[str, ...]:
    """Everything that words can tell of an individual, in the captions' order."""
    return tuple(WORDS[trait][number] for trait, number in traits(identity).items())


def describe(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with traits in its caption: none (`BARE`), or each with the chance `TOLD`, as many
    as the text encoder has columns for."""
    if rng.random() < BARE:
        return scene
    room = (LONGEST - len(scene.caption.split())) // len(scene.placed)
    placed = []
    for p in scene.placed:
        chosen = np.flatnonzero(rng.random(len(WORDS)) < TOLD)
        kept = np.sort(rng.permutation(chosen)[:room])
        told = words_of(p.identity)
        placed.append(replace(p, told=tuple(told[number] for number in kept)))
    return replace(scene, placed=tuple(placed))


def fully(scene: Scene) -> Scene:
    """The scene with every trait of every individual told, as far as there is room."""
    room = (LONGEST - len(scene.caption.split())) // len(scene.placed)
    placed = [replace(p, told=words_of(p.identity)[:room]) for p in scene.placed]
    return replace(scene, placed=tuple(placed))


def plainly(scene: Scene) -> Scene:
    """The scene with nothing but classes and place in its caption."""
    return replace(scene, placed=tuple(replace(p, told=()) for p in scene.placed))
