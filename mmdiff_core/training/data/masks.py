"""Segmentation masks on disk: COCO run lengths, .png files, and .npy maps of segment ids.

Shapes   H W image
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .images import Stored


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """bool [H W] -> COCO run lengths {"size": [H, W], "counts": [...]}.

    Runs go down the columns; the first one is outside of the mask.
    """
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat.size and flat[0] else runs}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """COCO run lengths, `counts` a list or COCO's compressed text -> bool [H W].

    ValueError if they do not fill the image.
    """
    height, width = rle["size"]
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = _decompress(counts)
    counts = np.asarray(counts, dtype=np.int64)
    if counts.size and counts.min() < 0 or counts.sum() != height * width:
        raise ValueError(
            f"run lengths sum to {counts.sum()}, expected {height} x {width} = {height * width}"
        )
    return np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """COCO's compressed counts: 5 bits a character, low bits first.

    From the fourth run on, a run is written as its difference to the run two before it.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode("ascii"):
        bits = letter - 48
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

    def decode(self) -> np.ndarray:
        """bool [H W]. Exceptions of UNREADABLE, KeyError, TypeError, IndexError: it is broken."""


@dataclass(frozen=True, slots=True)
class RunLengthMask:
    """Run lengths of the `number`-th segment (from 0) of a record's JSON."""

    record: Stored
    number: int

    def decode(self) -> np.ndarray:
        return decode_rle(json.loads(self.record.read())["segments"][self.number]["mask"])


@dataclass(frozen=True, slots=True)
class PngMask:
    """True where a .png file is white, or above half of its brightest value."""

    image: Stored

    def decode(self) -> np.ndarray:
        with self.image.open() as file, Image.open(file) as image:
            values = np.array(image.convert("L"))
        return (values > 0) & (values >= values.max() / 2)


@dataclass(frozen=True, slots=True)
class MapMask:
    """True where a .npy file [H W] of segment ids holds this id."""

    map: Stored
    id: int

    def decode(self) -> np.ndarray:
        return np.load(io.BytesIO(self.map.read()), allow_pickle=False) == self.id
