"""Segmentation masks on disk: COCO run lengths, .png files, and .npy maps of segment ids.

Shapes   H W image
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...untrusted import load_json, quoted
from .images import MOST_PIXELS, BrokenRecord, Stored, check_png

Size = tuple[int, int]

MOST_JSON = 1 << 26  # bytes of a record
MOST_NPY_HEADER = 10_000
MOST_ITEM = 16  # bytes of a number in a map


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """bool [H W] -> COCO run lengths {"size": [H, W], "counts": [...]}.

    Runs go down the columns; the first one is outside of the mask.
    """
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat.size and flat[0] else runs}


def decode_rle(rle: Mapping[str, Any], size: Size | None = None) -> np.ndarray:
    """COCO run lengths, `counts` a list or COCO's compressed text -> bool [H W].

    BrokenRecord if they are no run lengths, are not of this `size`, or do not fill it.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise BrokenRecord(f"run lengths are {quoted(rle)}, expected size and counts")
    height, width = _sides(rle["size"])
    if size is not None and (height, width) != tuple(size):
        raise BrokenRecord(f"run lengths are for {height} x {width}, expected the image's {size}")
    total, counts = height * width, rle["counts"]
    if isinstance(counts, str):
        counts = _decompress(counts, total)
    if not isinstance(counts, (list, tuple)) or len(counts) > total + 1:
        raise BrokenRecord(f"counts is {quoted(counts)}, expected run lengths")
    for count in counts:
        if type(count) is not int or not 0 <= count <= total:
            raise BrokenRecord(f"a run is {quoted(count)} long, expected 0 to {total}")
    if sum(counts) != total:
        raise BrokenRecord(
            f"run lengths sum to {sum(counts)}, expected {height} x {width} = {total}"
        )
    lengths = np.asarray(counts, dtype=np.int64)
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height).T


def _sides(size: Any) -> Size:
    """Height and width, of which there are not too many pixels."""
    sides = size if isinstance(size, (list, tuple)) else ()
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise BrokenRecord(f"size is {quoted(size)}, expected [height, width] in pixels")
    if sides[0] * sides[1] > MOST_PIXELS:
        raise BrokenRecord(f"size is {quoted(size)}, expected at most {MOST_PIXELS} pixels in all")
    return sides[0], sides[1]


def _decompress(text: str, total: int) -> list[int]:
    """COCO's compressed counts: 5 bits a character, low bits first.

    From the fourth run on, a run is written as its difference to the run two before it.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode("ascii", "replace"):
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60 or len(runs) > total:
            raise BrokenRecord(f"counts is {quoted(text)}, which is not COCO's compressed form")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


class StoredMask(Protocol):
    """A mask that is decoded when it is asked for."""

    def decode(self, size: Size) -> np.ndarray:
        """bool [H W] of this size. BrokenRecord says why not; any other exception: it is broken."""


@dataclass(frozen=True, slots=True)
class RunLengthMask:
    """Run lengths of the `number`-th segment (from 0) of a record's JSON."""

    record: Stored
    number: int

    def decode(self, size: Size) -> np.ndarray:
        try:
            facts = load_json(self.record.read(MOST_JSON), "its record", MOST_JSON)
        except ValueError as error:
            raise BrokenRecord(str(error)) from error
        return decode_rle(facts["segments"][self.number]["mask"], size)


@dataclass(frozen=True, slots=True)
class PngMask:
    """True where a .png file is white, or above half of its brightest value."""

    image: Stored

    def decode(self, size: Size) -> np.ndarray:
        check_png(self.image)
        with self.image.open() as file, Image.open(file, formats=["PNG"]) as image:
            if image.size[::-1] != tuple(size):
                raise BrokenRecord(f"{image.size[::-1]} pixels, expected the image's {size}")
            values = np.array(image.convert("L"))
        return (values > 0) & (values >= values.max() / 2)


@dataclass(frozen=True, slots=True)
class MapMask:
    """True where a .npy file [H W] of segment ids holds this id."""

    map: Stored
    id: int

    def decode(self, size: Size) -> np.ndarray:
        most = size[0] * size[1] * MOST_ITEM + MOST_NPY_HEADER
        return read_npy(self.map.read(most), size) == self.id


def read_npy(data: bytes, size: Size) -> np.ndarray:
    """The numbers of a .npy file [H W]. BrokenRecord unless they are of this size; nothing is
    allocated for what the header announces alone."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0}
    readers[2, 0] = np.lib.format.read_array_header_2_0
    if version not in readers:
        raise BrokenRecord(f"a .npy file of version {version}, expected 1.0 or 2.0")
    shape, by_columns, dtype = readers[version](file, max_header_size=MOST_NPY_HEADER)
    if shape != tuple(size) or dtype.kind not in "biuf":
        raise BrokenRecord(f"a map of {dtype} {shape}, expected numbers of the image's {size}")
    values = np.frombuffer(data, dtype, count=size[0] * size[1], offset=file.tell())
    return values.reshape(shape, order="F" if by_columns else "C")
