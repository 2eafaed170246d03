"""A record that is whole, open for examples: its image in a bucket, and its subjects' cutouts.

Shapes   H W image · h w bucket · n segments · L side of a crop
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ..example import EncodedImage, ReferenceFace
from .buckets import Size, crop_to_bucket
from .cutouts import BLACK, Colour, cut_out, on_background
from .records import Decoded, Record

# a subject's crop [3 L L] in 0..1 -> its face, or None where there is none
FindFace = Callable[[Tensor], "ReferenceFace | None"]


class Cutout(NamedTuple):
    """A cutout [4 L L] and, where faces are needed, the face in it."""

    pixels: Tensor
    face: ReferenceFace | None


@dataclass(frozen=True, eq=False)
class InBucket:
    """A record's image in its bucket.

    masks    [n h w] in 0..1
    kept     the share of every mask that the crop left [n], 0..1
    pixels   [3 h w] in 0..1, or None where the image is `encoded`
    """

    masks: Tensor
    kept: Tensor
    pixels: Tensor | None = None
    encoded: EncodedImage | None = None


class OpenedRecord(Protocol):
    """What examples are made of."""

    def in_bucket(self, bucket: Size) -> InBucket: ...

    def cutout(self, s: int) -> Cutout | None:
        """Segment `s` cut out; None where a face is needed and there is none."""


@dataclass(frozen=True, eq=False)
class DecodedRecord:
    """An `OpenedRecord` from the files of its image and masks.

    find_face   for portrait adapters
    background  behind the crop in which faces are searched
    """

    decoded: Decoded
    find_face: FindFace | None = None
    background: Colour = BLACK

    def in_bucket(self, bucket: Size) -> InBucket:
        cropped = crop_to_bucket(self.decoded.pixels, self.decoded.masks, bucket)
        return InBucket(cropped.masks, cropped.kept, cropped.pixels)

    def cutout(self, s: int) -> Cutout | None:
        pixels = cut_out(self.decoded.pixels, self.decoded.masks[s])
        if self.find_face is None:
            return Cutout(pixels, None)
        face = self.find_face(on_background(pixels, self.background))
        return None if face is None else Cutout(pixels, face)


@dataclass(frozen=True)
class DecodeRecords:
    """Opens records by decoding them; fields as in `DecodedRecord`."""

    find_face: FindFace | None = None
    background: Colour = BLACK

    def __call__(self, record: Record) -> DecodedRecord:
        """Raises BrokenRecord."""
        return DecodedRecord(record.decode(), self.find_face, self.background)
