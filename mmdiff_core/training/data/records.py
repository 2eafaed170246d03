"""One annotated image: what a record is, how it is checked, and how it is decoded.

A record knows where its image and masks lie; decoding waits until `decode`.

Shapes   H W image · n segments
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...untrusted import listed, load_json, quoted
from .images import BrokenRecord, Stored, image_size, read_image, to_pixels
from .masks import MOST_JSON, StoredMask

# a detector's box may reach this share of the image's side beyond the image; it is clipped
SLACK = 0.05
MOST_CAPTION = 10_000  # characters
MOST_NAME = 200
MOST_SEGMENTS = 64
MOST_MASKS = 1 << 29  # pixels of all masks of an image

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Segment:
    """One subject of an image.

    span      first and one-past-last character of `word` in the caption
    box       x0, y0, x1, y1 in pixels, within the image
    identity  the same individual has the same name in all images; None = unknown
    told      how it looks, in words that can stand before `word`; "" = unknown
    """

    word: str
    span: tuple[int, int]
    box: Box
    mask: StoredMask
    identity: str | None = None
    told: str = ""


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
        self._check_masks()
        pixels = to_pixels(read_image(self.image))
        if pixels.shape[1:] != self.size:
            raise BrokenRecord(
                f"its image is {tuple(pixels.shape[1:])} now, and was {self.size} when the data "
                "was opened"
            )
        return Decoded(pixels.float() / 255, self.decode_masks())

    def decode_masks(self) -> Tensor:
        """The masks alone [n H W], 0 or 1; errors as in `decode`."""
        self._check_masks()
        return torch.stack([torch.from_numpy(self._mask(s)) for s in self.segments]).float()

    def _check_masks(self) -> None:
        if len(self.segments) * math.prod(self.size) > MOST_MASKS:
            raise BrokenRecord(
                f"its {len(self.segments)} masks of {self.size} have more than {MOST_MASKS} pixels"
            )

    def _mask(self, segment: Segment) -> np.ndarray:
        word = quoted(segment.word)
        try:
            mask = np.ascontiguousarray(segment.mask.decode(self.size))
        except BrokenRecord as error:
            raise BrokenRecord(f"the mask of {word} cannot be read: {error}") from error
        except Exception as error:  # of numpy or PIL, or of a file that changed meanwhile
            raise BrokenRecord(
                f"the mask of {word} cannot be read ({type(error).__name__}): its file is damaged"
            ) from error
        if mask.shape != self.size:
            raise BrokenRecord(
                f"the mask of {word} is {mask.shape}, expected the image's {self.size}"
            )
        if not mask.any():
            raise BrokenRecord(f"the mask of {word} is empty")
        return mask


# ---------------------------------------------------------------- from JSON, checked

MaskOf = Callable[[int, Mapping], StoredMask]


def record_from(name: str, facts: Mapping, image: Stored, mask_of: MaskOf) -> Record:
    """A record from its JSON; everything is checked that needs no decoding.

    `mask_of(number, segment)` gives the mask of the segment's JSON, numbered from 0. Raises
    BrokenRecord.
    """
    size, caption = image_size(image), _text(facts, "caption", MOST_CAPTION)
    given, segments = field(facts, "segments", list), []
    if not 1 <= len(given) <= MOST_SEGMENTS:
        found = f"{len(given)} segments" if given else "no segments"
        raise BrokenRecord(f"has {found}; expected 1 to {MOST_SEGMENTS} subjects")
    for number, told in enumerate(given):
        segments.append(_segment(number, told, caption, size, mask_of))
    segments.sort(key=lambda segment: segment.span)
    for one, two in zip(segments, segments[1:]):
        if two.span[0] < one.span[1]:
            raise BrokenRecord(
                f"two segments share characters of the caption: {quoted(one.word)} at {one.span} "
                f"and {quoted(two.word)} at {two.span}"
            )
    return Record(name, image, size, caption, tuple(segments))


def _segment(
    number: int, facts: Any, caption: str, size: tuple[int, int], mask_of: MaskOf
) -> Segment:
    if not isinstance(facts, Mapping):
        raise BrokenRecord(
            f"a segment is {quoted(facts)}, expected an object with word, start, end and box"
        )
    word = _text(facts, "word", MOST_NAME)
    start, end = field(facts, "start", int), field(facts, "end", int)
    if not 0 <= start < end <= len(caption) or caption[start:end] != word:
        there = caption[max(start, 0) : max(end, 0)]
        raise BrokenRecord(
            f"characters {quoted(start)} to {quoted(end)} of the caption are {quoted(there)}, but "
            f"the word is {quoted(word)}"
        )
    _check_id(facts)
    mask, box = mask_of(number, facts), _box(field(facts, "box", list), size)
    looks = "" if facts.get("told") is None else _text(facts, "told", MOST_NAME)
    return Segment(word, (start, end), box, mask, _identity(facts), looks)


def _check_id(facts: Mapping) -> None:
    """BrokenRecord for an id that no mask can have."""
    own = facts.get("id")
    if own is None or type(own) is int and abs(own) < 2**31:
        return
    if not isinstance(own, str) or len(own) > MOST_NAME:
        raise BrokenRecord(f"'id' is {quoted(own)}, expected a whole number")


def _identity(facts: Mapping) -> str | None:
    """The name of the individual; a number is a name too."""
    if facts.get("identity") is None:
        return None
    if type(facts["identity"]) is int and abs(facts["identity"]) < 10**MOST_NAME:
        return str(facts["identity"])
    return _text(facts, "identity", MOST_NAME)


def _box(values: list, size: tuple[int, int]) -> Box:
    """The box, clipped to the image. BrokenRecord when it has no area, or lies outside."""
    if len(values) != 4 or not all(_is_number(v) for v in values):
        raise BrokenRecord(f"a box is {quoted(values)}, expected [x0, y0, x1, y1] in pixels")
    height, width = size
    ends = (width, height, width, height)
    x0, y0, x1, y1 = (min(max(v, 0), end) for v, end in zip(values, ends))
    clipped = (x0, y0, x1, y1)
    far = any(abs(v - c) > SLACK * end for v, c, end in zip(values, clipped, ends))
    if far or x0 >= x1 or y0 >= y1:
        raise BrokenRecord(
            f"the box {quoted(values)} is empty or outside of the image of {width} x {height} "
            "pixels"
        )
    return float(x0), float(y0), float(x1), float(y1)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return -1e9 < value < 1e9


def parse_json(text: bytes) -> Mapping:
    """A JSON object. Raises BrokenRecord."""
    try:
        facts = load_json(text, "it", MOST_JSON)
    except ValueError as error:
        raise BrokenRecord(str(error).removeprefix("it ")) from error
    if not isinstance(facts, Mapping):
        raise BrokenRecord(
            f"is JSON of a {type(facts).__name__}, expected an object with caption and segments"
        )
    return facts


def field(facts: Mapping, key: str, kind: type) -> Any:
    """A value of this type. Raises BrokenRecord where there is none."""
    if key not in facts:
        raise BrokenRecord(f"lacks the key {key!r}; it has {listed(sorted(facts), 10)}")
    value = facts[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BrokenRecord(f"{key!r} is {quoted(value)}, expected a {kind.__name__}")
    return value


def _text(facts: Mapping, key: str, most: int) -> str:
    """A text of at most so many characters that can be written as UTF-8. Raises BrokenRecord."""
    value = field(facts, key, str)
    if len(value) > most:
        raise BrokenRecord(f"{key!r} has {len(value)} characters, expected at most {most}")
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in value):
        raise BrokenRecord(f"{key!r} is {quoted(value)}, which is not whole Unicode text")
    return value
