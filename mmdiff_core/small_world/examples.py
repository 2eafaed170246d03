"""The small world as training examples: number in, example out.

Shapes   B examples · n subjects of a batch · r references of a batch · S scene side · K reference
         side; all images in dots
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..training.example import Example, ExampleSubject
from . import descriptions, references, scenes, sizes

REFERENCE_COUNTS = (1, 2, 3, 4, 5)
REFERENCE_CHANCES = (0.8, 0.08, 0.04, 0.04, 0.04)


@dataclass(frozen=True, eq=False)
class Pack:
    """A batch in few tensors, so that it is quickly passed from process to process.

    pixels      [B 3 S S] in 0..1
    captions    of the examples
    counts      subjects of each example
    subjects    span and told words of each subject, in reading order over the batch
    masks       [n S S] in 0..1
    shown       references of each subject
    references  [r 3 K K] in 0..1
    """

    first: int
    pixels: Tensor
    captions: tuple[str, ...]
    counts: tuple[int, ...]
    subjects: tuple[tuple[tuple[int, int], str], ...]
    masks: Tensor
    shown: tuple[int, ...]
    references: Tensor

    def to(self, device: torch.device | str) -> Pack:
        """The same with its tensors on that device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})


@dataclass(frozen=True)
class SmallWorldExamples:
    """Scenes with 1-3 subjects, each with 1-5 references.

    caption_dropout   share of the examples with an empty caption and no subjects, for guidance
    subject_dropout   share that keeps the caption and loses the subjects
    count             subjects in every scene, or None = 1 to 3
    processes         others that draw them in a training run; 0 = the run's own
    device            where the examples' tensors lie
    """

    seed: int = 0
    split: str = "train"
    caption_dropout: float = 0.1
    subject_dropout: float = 0.05
    count: int | None = None
    processes: int = 0
    device: str = "cpu"

    def example(self, index: int) -> Example:
        """The example of that number."""
        return self.batch(index, 1)[0]

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        """Examples start..start+size."""
        return self.finish(self.pack(start, size))

    def finish(self, pack: Pack) -> tuple[Example, ...]:
        """The examples of a pack, which another process may have made."""
        return unpack(pack.to(self.device))

    def pack(self, start: int, size: int) -> Pack:
        """The same as `batch`, packed."""
        drawn = [self._drawn(index) for index in range(start, start + size)]
        subjects = [subject for one in drawn for subject in one.subjects]
        masks = np.zeros((len(subjects), scenes.SIDE, scenes.SIDE), np.float32)
        for mask, subject in zip(masks, subjects, strict=True):
            mask[:] = subject.mask
        captions = tuple(one.caption for one in drawn)
        counts = tuple(len(one.subjects) for one in drawn)
        told = tuple((subject.span, subject.told) for subject in subjects)
        shown = [subject.references for subject in subjects]
        numbers, pixels = tuple(map(len, shown)), _channels_first([one.pixels for one in drawn])
        references_shown = _channels_first([image for images in shown for image in images])
        return Pack(
            start, pixels, captions, counts, told, torch.from_numpy(masks), numbers,
            references_shown,
        )

    def _drawn(self, index: int) -> _Drawn:
        scene = scenes.scene(self.split, self.seed, index, self.count)
        pixels, masks = scenes.draw(scene)
        rng = np.random.default_rng((self.seed, index, 11))
        dropped = rng.random()
        if dropped < self.caption_dropout:
            return _Drawn(pixels, "", ())
        if dropped < self.caption_dropout + self.subject_dropout:
            return _Drawn(pixels, scene.caption, ())
        told, subjects = descriptions.fully(scene), []
        for placed, span, mask in zip(told.placed, scene.spans(), masks, strict=True):
            shown = draw_references(rng, placed.kind, placed.identity)
            subjects.append(_Subject(span, " ".join(placed.told), mask, shown))
        return _Drawn(pixels, scene.caption, tuple(subjects))


@dataclass(frozen=True, eq=False)
class _Subject:
    """mask [S S], references [R K K 3]."""

    span: tuple[int, int]
    told: str
    mask: scenes.Array
    references: scenes.Array


@dataclass(frozen=True, eq=False)
class _Drawn:
    """pixels [S S 3]."""

    pixels: scenes.Array
    caption: str
    subjects: tuple[_Subject, ...]


def _channels_first(images: Sequence[scenes.Array]) -> Tensor:
    """Images [S S 3] -> [n 3 S S]; n may be 0."""
    if not images:
        return torch.zeros(0, 3, scenes.SIDE, scenes.SIDE)
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float()


def unpack(pack: Pack) -> tuple[Example, ...]:
    """The examples of a pack, at the size of the base's images."""
    pixels, masks = enlarge(pack.pixels), enlarge(pack.masks)
    references = pack.references.split(pack.shown)
    made = []
    for (span, told), mask, shown in zip(pack.subjects, masks, references, strict=True):
        made.append(ExampleSubject(span, mask, shown, told=told))
    examples, at = [], 0
    for number, (image, caption) in enumerate(zip(pixels, pack.captions, strict=True)):
        own = tuple(made[at : at + pack.counts[number]])
        examples.append(Example(image, caption, own, pack.first + number))
        at += len(own)
    return tuple(examples)


def enlarge(dots: Tensor) -> Tensor:
    """Dots [... h w] -> pixels [... 4h 4w]."""
    return dots.repeat_interleave(sizes.DOT, -1).repeat_interleave(sizes.DOT, -2)


def draw_references(
    rng: np.random.Generator,
    kind: str,
    identity: scenes.Identity,
    count: int | None = None,
    covered: float | None = None,
) -> scenes.Array:
    """References [R K K 3] of an individual, augmented as in training."""
    count = count or int(rng.choice(REFERENCE_COUNTS, p=REFERENCE_CHANCES))
    return np.stack([references.augmented(rng, kind, identity, covered) for _ in range(count)])
