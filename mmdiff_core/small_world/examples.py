"""The small world as training examples: number in, example out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..training.example import Example, ExampleSubject
from . import descriptions, references, scenes, sizes

REFERENCE_COUNTS = (1, 2, 3, 4, 5)
REFERENCE_CHANCES = (0.8, 0.08, 0.04, 0.04, 0.04)


@dataclass(frozen=True)
class SmallWorldExamples:
    """Scenes with 1-3 subjects, each with 1-5 references.

    caption_dropout   share of the examples with an empty caption and no subjects, for guidance
    subject_dropout   share that keeps the caption and loses the subjects
    count             subjects in every scene, or None = 1 to 3
    """

    seed: int = 0
    split: str = "train"
    caption_dropout: float = 0.1
    subject_dropout: float = 0.05
    count: int | None = None

    def example(self, index: int) -> Example:
        scene = scenes.scene(self.split, self.seed, index, self.count)
        pixels, masks = scenes.draw(scene)
        rng = np.random.default_rng((self.seed, index, 11))
        dropped = rng.random()
        image = enlarge(torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 0))
        if dropped < self.caption_dropout:
            return Example(image, "", (), index)
        if dropped < self.caption_dropout + self.subject_dropout:
            return Example(image, scene.caption, (), index)
        told, subjects = descriptions.fully(scene), []
        for p, span, mask in zip(told.placed, scene.spans(), masks, strict=True):
            where = enlarge(torch.from_numpy(mask.astype(np.float32)))
            shown = show_references(rng, p.kind, p.identity)
            subjects.append(ExampleSubject(span, where, shown, told=" ".join(p.told)))
        return Example(image, scene.caption, tuple(subjects), index)

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        return tuple(self.example(i) for i in range(start, start + size))


def enlarge(dots: torch.Tensor) -> torch.Tensor:
    """Dots [... h w] -> pixels [... 4h 4w]."""
    return dots.repeat_interleave(sizes.DOT, -1).repeat_interleave(sizes.DOT, -2)


def show_references(
    rng: np.random.Generator,
    kind: str,
    identity: scenes.Identity,
    count: int | None = None,
    covered: float | None = None,
) -> torch.Tensor:
    """References [R 3 K K] of an individual, augmented as in training."""
    count = count or int(rng.choice(REFERENCE_COUNTS, p=REFERENCE_CHANCES))
    shown = np.stack([references.augmented(rng, kind, identity, covered) for _ in range(count)])
    return torch.from_numpy(shown).movedim(-1, 1)
