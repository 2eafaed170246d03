"""The best images of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .verdicts import ImageLikeness, Scale

ROUNDING = 1e-6  # 0.62 - 0.60 is a little more than 0.02 in binary


@dataclass(frozen=True, eq=False)
class BatchLikeness:
    """The scores of a batch: what the MMDIFF_SCORES socket carries.

    names   of the subjects
    images  one entry for each image, in the order of the batch
    """

    names: tuple[str, ...]
    scale: Scale
    images: tuple[ImageLikeness, ...]


@dataclass(frozen=True)
class PromptFidelity:
    """How well each image of a batch follows the prompt, -1..1, and the distance between the scores
    of worst-served subjects `within` which that decides, 0..1; `seconds` an image took."""

    scores: tuple[float, ...]
    within: float
    seconds: float = 0.0


def ranked(
    images: Sequence[ImageLikeness], fidelity: PromptFidelity | None = None
) -> tuple[int, ...]:
    """Numbers of the images, counted from 0, best first: by the worst-served subject, then by the
    mean of all, then in the order of the batch.

    With `fidelity` the best image and those at most `within` below it form a group, then the best
    of the rest does, and so on; each group is ordered by how well its images follow the prompt.
    """
    order = sorted(range(len(images)), key=lambda i: (-images[i].worst, -images[i].mean, i))
    if fidelity is None:
        return tuple(order)
    found: list[int] = []
    while order:
        least = images[order[0]].worst - fidelity.within - ROUNDING
        group = [number for number in order if images[number].worst >= least]
        found += sorted(group, key=lambda number: -fidelity.scores[number])
        order = order[len(group) :]
    return tuple(found)
