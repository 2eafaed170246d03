"""What one training step sees: pictures with captions, subjects with masks and references.

Shapes   H W picture · R references · S side of the image encoder's input
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ExampleSubject:
    """One subject of a picture.

    span        first and one-past-last character of the class noun in the caption
    mask        [H W] in 0..1, where the subject is in the picture
    references  [R 3 S S] in 0..1, the subject cut out on a blank background, augmented
    faces       portrait adapters only: unit face embeddings [R 512] and aligned crops [R 3 S S] in 0..1
    """

    span: tuple[int, int]
    mask: Tensor
    references: Tensor
    faces: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Example:
    """One picture [3 H W] in 0..1 with its caption. `index` is its number in the run: noise and timestep follow from it."""

    pixels: Tensor
    caption: str
    subjects: tuple[ExampleSubject, ...]
    index: int = 0


class ExampleSource(Protocol):
    """Where examples come from. The same number always gives the same example: that is what makes a resumed run, and a
    run on two processes, equal to an uninterrupted one."""

    def example(self, index: int) -> Example: ...

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        """Examples start..start+size, all of one picture size."""
        ...
