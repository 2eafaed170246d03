"""Bytes and images on disk, as strangers left them.

Shapes   H W image
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ContainerIO, Image, ImageOps
from torch import Tensor

from ...untrusted import plain

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# of PIL, which has readers of other formats that start programs or are of no use here
FORMATS = ("JPEG", "PNG", "WEBP")
# EXIF's orientation tag, and the values of it that exchange width and height
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
MOST_PIXELS = 1 << 27  # of an image
CHUNK = 1 << 20  # bytes


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
        """The bytes as a file of their own, open for reading. Raises BrokenRecord for what is not
        an ordinary file, or is shorter."""
        with open_regular(self.path) as file:
            left = os.fstat(file.fileno()).st_size - self.offset
            size = left if self.size is None else self.size
            if not 0 <= size <= left:
                raise BrokenRecord(f"{self.name} ends before its {size} bytes do")
            yield ContainerIO.ContainerIO(file, self.offset, size)

    def read(self, most: int) -> bytes:
        """All the bytes. Raises BrokenRecord where there are more than `most`."""
        with self.open() as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise BrokenRecord(f"{self.name} has more than {most} bytes")
        return data

    @property
    def name(self) -> str:
        return plain(os.path.basename(self.path))


def open_regular(path: str) -> io.BufferedReader:
    """An ordinary file, open for reading. Raises BrokenRecord for any other: opening a pipe would
    wait for ever."""
    name = plain(os.path.basename(path))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BrokenRecord(f"{name} is not an ordinary file")
        return open(path, "rb")
    except OSError as error:
        raise BrokenRecord(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, BrokenRecord):
            raise
        raise BrokenRecord(f"{name} cannot be read: that is no name of a file") from error


def read_image(stored: Stored) -> Image.Image:
    """An RGB image, turned upright as EXIF says. Raises BrokenRecord."""
    with _opened(stored) as image:
        if image.format == "PNG":
            check_png(stored)
        upright = image if image.format == "PNG" else ImageOps.exif_transpose(image)
        return upright.convert("RGB")


def image_size(stored: Stored) -> tuple[int, int]:
    """(height, width) from the header alone, upright. Raises BrokenRecord."""
    with _opened(stored) as image:
        turned = image.format != "PNG" and image.getexif().get(ORIENTATION) in SIDEWAYS
        return image.size if turned else image.size[::-1]


@contextmanager
def _opened(stored: Stored) -> Iterator[Image.Image]:
    """An image of the known formats, of a size that can be decoded."""
    Image.init()  # all of PIL's formats are known by name only then
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with stored.open() as file, Image.open(file, formats=formats) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BrokenRecord(
                    f"its image has {image.width} x {image.height} pixels, at most {MOST_PIXELS} "
                    "together can be used"
                )
            yield image
    except BrokenRecord as error:
        found = str(error)
        raise BrokenRecord(
            found if found.startswith("its image") else f"its image cannot be read: {found}"
        ) from error
    except Exception as error:  # a damaged file makes PIL raise whatever it likes
        raise BrokenRecord(
            f"its image cannot be read: {stored.name} is no whole JPEG, PNG or WebP "
            f"({type(error).__name__})"
        ) from error


def check_png(stored: Stored) -> None:
    """Every chunk of a .png file has the checksum that stands behind it; PIL does not look at all
    of them. Raises BrokenRecord."""
    with stored.open() as file:
        file.read(8)
        while len(head := file.read(8)) == 8:
            left, checksum = int.from_bytes(head[:4], "big"), zlib.crc32(head[4:])
            while left and (data := file.read(min(left, CHUNK))):
                left, checksum = left - len(data), zlib.crc32(data, checksum)
            if file.read(4) != checksum.to_bytes(4, "big"):
                raise BrokenRecord(f"{stored.name} is damaged: a checksum in it differs")
            if head[4:] == b"IEND":
                return
    raise BrokenRecord(f"{stored.name} ends before its image does")


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3 H W]."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0)
