"""The best images of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .verdicts import ImageLikeness, Scale


@dataclass(frozen=True, eq=False)
class BatchLikeness:
    """The scores of a batch: what the MMDIFF_SCORES socket carries.

    names   of the subjects
    images  one entry for each image, in the order of the batch
    """

    names: tuple[str, ...]
    scale: Scale
    images: tuple[ImageLikeness, ...]


def ranked(images: Sequence[ImageLikeness]) -> tuple[int, ...]:
    """Numbers of the images, counted from 0, best first: by the worst-served subject, then by the
    mean of all, then in the order of the batch."""
    return tuple(sorted(range(len(images)), key=lambda i: (-images[i].worst, -images[i].mean, i)))
