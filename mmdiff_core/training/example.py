"""What one training step sees: images with captions, subjects with masks and references.

Shapes   H W image · R references · S side of the image encoder's input
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class ReferenceFace(NamedTuple):
    """One face: its unit embedding [512] and its aligned crop [3 S S] in 0..1."""

    embedding: Tensor
    crop: Tensor


@dataclass(frozen=True, eq=False)
class ReferenceFaces:
    """The faces of a subject's references: embeddings [R 512] and crops [R 3 S S] in 0..1."""

    embeddings: Tensor
    crops: Tensor

    @classmethod
    def stack(cls, faces: Sequence[ReferenceFace]) -> ReferenceFaces:
        """Single faces as one record."""
        embeddings, crops = zip(*faces)
        return cls(torch.stack(embeddings), torch.stack(crops))


@dataclass(frozen=True, eq=False)
class ExampleSubject:
    """One subject of an image.

    span        first and one-past-last character of the class noun in the caption
    mask        [H W] in 0..1, where the subject is in the image
    references  [R 3 S S] in 0..1, the subject cut out on a blank background, augmented
    faces       for portrait adapters only
    told        how it looks, in words that can stand before the noun; "" = nothing is known
    """

    span: tuple[int, int]
    mask: Tensor
    references: Tensor
    faces: ReferenceFaces | None = None
    told: str = ""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image that the base's VAE has encoded before the run.

    latent  [C h w], as `Bridge.latents` gives it
    size    (height, width) of the image, in pixels
    """

    latent: Tensor
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Example:
    """One image [3 H W] in 0..1 with its caption.

    pixels   None where `encoded` stands for them
    index    its number in the run: noise and timestep follow from it
    encoded  the image, encoded before the run; or None
    """

    pixels: Tensor | None
    caption: str
    subjects: tuple[ExampleSubject, ...]
    index: int = 0
    encoded: EncodedImage | None = None

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The spans of its subjects' nouns."""
        return tuple(tuple(subject.span) for subject in self.subjects)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image, in pixels."""
        if self.encoded is not None:
            return self.encoded.size
        height, width = self.pixels.shape[-2:]
        return height, width


class ExampleSource(Protocol):
    """Where examples come from.

    The same number always gives the same example. That is what makes a resumed run, and a run on
    two processes, equal to an uninterrupted one.
    """

    def example(self, index: int) -> Example: ...

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        """Examples start..start+size, all of one image size."""
        ...
