"""Bytes and images on disk.

Shapes   H W image
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ContainerIO, Image, ImageOps
from torch import Tensor

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# EXIF's orientation tag, and the values of it that exchange width and height
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
# what PIL and numpy raise for a damaged file
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)


class BrokenRecord(ValueError):
    """A record that cannot be used; the message says what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where bytes lie: `size` bytes of the file at `path` from `offset`; None = to its end."""

    path: str
    offset: int = 0
    size: int | None = None

    @contextmanager
    def open(self) -> Iterator[io.IOBase]:
        """The bytes as a file of their own, open for reading."""
        with open(self.path, "rb") as file:
            size = self.size
            if size is None:
                size = os.fstat(file.fileno()).st_size - self.offset
            yield ContainerIO.ContainerIO(file, self.offset, size)

    def read(self) -> bytes:
        """All the bytes."""
        with self.open() as file:
            return file.read()


def read_image(stored: Stored) -> Image.Image:
    """An RGB image, turned upright as EXIF says. Raises BrokenRecord."""
    try:
        with stored.open() as file, Image.open(file) as image:
            upright = image if image.format == "PNG" else ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except UNREADABLE as error:
        raise BrokenRecord(f"its image cannot be read: {error}") from error


def image_size(stored: Stored) -> tuple[int, int]:
    """(height, width) from the header alone, upright. Raises BrokenRecord."""
    try:
        with stored.open() as file, Image.open(file) as image:
            turned = image.format != "PNG" and image.getexif().get(ORIENTATION) in SIDEWAYS
            return image.size if turned else image.size[::-1]
    except UNREADABLE as error:
        raise BrokenRecord(f"its image cannot be read: {error}") from error


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3 H W]."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0)
