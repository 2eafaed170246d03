"""One annotated image: what a record is, how it is checked, and how it is decoded.

A record knows where its image and masks lie; decoding waits until `decode`.

Shapes   H W image · n segments
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .images import UNREADABLE, BrokenRecord, Stored, image_size, read_image, to_pixels
from .masks import StoredMask

# a detector's box may reach this share of the image's side beyond the image; it is clipped
SLACK = 0.05

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Segment:
    """One subject of an image.

    span      first and one-past-last character of `word` in the caption
    box       x0, y0, x1, y1 in pixels, within the image
    identity  the same individual has the same name in all images; None = unknown
    """

    word: str
    span: tuple[int, int]
    box: Box
    mask: StoredMask
    identity: str | None = None


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded record: pixels [3 H W] in 0..1 and one mask per segment [n H W], 0 or 1."""

    pixels: Tensor
    masks: Tensor


@dataclass(frozen=True, slots=True)
class Record:
    """An image of `size` (height, width) with its caption and segments, in caption order."""

    name: str
    image: Stored
    size: tuple[int, int]
    caption: str
    segments: tuple[Segment, ...]

    def decode(self) -> Decoded:
        """The image and its masks. Raises BrokenRecord for what only decoding can tell."""
        pixels = to_pixels(read_image(self.image))
        if pixels.shape[1:] != self.size:
            raise BrokenRecord(
                f"its image is {tuple(pixels.shape[1:])} now, and was {self.size} when the data "
                "was opened"
            )
        masks = torch.stack([torch.from_numpy(self._mask(s)) for s in self.segments])
        return Decoded(pixels.float() / 255, masks.float())

    def _mask(self, segment: Segment) -> np.ndarray:
        try:
            mask = np.ascontiguousarray(segment.mask.decode())
        except (*UNREADABLE, KeyError, TypeError, IndexError) as error:
            raise BrokenRecord(f"the mask of {segment.word!r} cannot be read: {error}") from error
        if mask.shape != self.size:
            raise BrokenRecord(
                f"the mask of {segment.word!r} is {mask.shape}, expected the image's {self.size}"
            )
        if not mask.any():
            raise BrokenRecord(f"the mask of {segment.word!r} is empty")
        return mask


# ---------------------------------------------------------------- from JSON, checked

MaskOf = Callable[[int, Mapping], StoredMask]


def record_from(name: str, facts: Mapping, image: Stored, mask_of: MaskOf) -> Record:
    """A record from its JSON; everything is checked that needs no decoding.

    `mask_of(number, segment)` gives the mask of the segment's JSON, numbered from 0. Raises
    BrokenRecord.
    """
    size, caption = image_size(image), field(facts, "caption", str)
    segments = []
    for number, given in enumerate(field(facts, "segments", list)):
        segments.append(_segment(number, given, caption, size, mask_of))
    if not segments:
        raise BrokenRecord("has no segments; expected at least one subject")
    segments.sort(key=lambda segment: segment.span)
    for one, two in zip(segments, segments[1:]):
        if two.span[0] < one.span[1]:
            raise BrokenRecord(
                f"two segments share characters of the caption: {one.word!r} at {one.span} and "
                f"{two.word!r} at {two.span}"
            )
    return Record(name, image, size, caption, tuple(segments))


def _segment(
    number: int, facts: Any, caption: str, size: tuple[int, int], mask_of: MaskOf
) -> Segment:
    if not isinstance(facts, Mapping):
        raise BrokenRecord(
            f"a segment is {str(facts)[:40]!r}, expected an object with word, start, end and box"
        )
    word = field(facts, "word", str)
    start, end = field(facts, "start", int), field(facts, "end", int)
    if not word or start < 0 or caption[start:end] != word:
        raise BrokenRecord(
            f"characters {start} to {end} of the caption are {caption[max(start, 0) : end]!r}, but "
            f"the word is {word!r}"
        )
    mask, box = mask_of(number, facts), _box(field(facts, "box", list), size)
    identity = facts.get("identity")
    return Segment(word, (start, end), box, mask, None if identity is None else str(identity))


def _box(values: list, size: tuple[int, int]) -> Box:
    """The box, clipped to the image. BrokenRecord when it has no area, or lies outside."""
    if len(values) != 4 or not all(isinstance(v, (int, float)) for v in values):
        raise BrokenRecord(f"a box is {values!r}, expected [x0, y0, x1, y1] in pixels")
    height, width = size
    ends = (width, height, width, height)
    x0, y0, x1, y1 = (min(max(v, 0), end) for v, end in zip(values, ends))
    clipped = (x0, y0, x1, y1)
    far = any(abs(v - c) > SLACK * end for v, c, end in zip(values, clipped, ends))
    if far or x0 >= x1 or y0 >= y1:
        raise BrokenRecord(
            f"the box {values} is empty or outside of the image of {width} x {height} pixels"
        )
    return float(x0), float(y0), float(x1), float(y1)


def parse_json(text: bytes) -> Mapping:
    """A JSON object. Raises BrokenRecord."""
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise BrokenRecord(f"is not JSON: {error}") from error
    if not isinstance(facts, Mapping):
        raise BrokenRecord(
            f"is JSON of a {type(facts).__name__}, expected an object with caption and segments"
        )
    return facts


def field(facts: Mapping, key: str, kind: type) -> Any:
    """A value of this type. Raises BrokenRecord where there is none."""
    if key not in facts:
        raise BrokenRecord(f"lacks the key {key!r}; it has {sorted(facts)}")
    value = facts[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BrokenRecord(f"{key!r} is {str(value)[:40]!r}, expected a {kind.__name__}")
    return value
